//! Bodies of messages: where they end, and how they are written anew (RFC 9112, 6 and 7).

/// How a body's end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// Content-Length.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// With the connection.
    End,
}

/// Bytes of a line that says how long a chunk is, and of all trailer fields.
const LINE: usize = 1024;
const TRAILERS: usize = 16 * 1024;

/// Reads a body as its bytes come.
#[derive(Debug)]
pub struct Reader {
    state: State,
    trailers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Data(u64),
    ToTheEnd,
    Size,
    Chunk(u64),
    AfterChunk,
    Trailers,
    Done,
}

impl Reader {
    /// At the begin of a body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Data(length),
            Framing::Chunked => State::Size,
            Framing::End => State::ToTheEnd,
        };
        Self { state, trailers: 0 }
    }

    /// Whether the body has been read to its end.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether it ends with the connection.
    pub fn ends_with_connection(&self) -> bool {
        self.state == State::ToTheEnd
    }

    /// Takes what is the body's from the front of `input` and appends the data to `data`; trailer fields are left out,
    /// as who passes a message on may. An error for what is no chunk.
    pub fn read(&mut self, input: &mut Vec<u8>, data: &mut Vec<u8>) -> Result<(), &'static str> {
        let mut at = 0;
        let done = self.advance(input, &mut at, data);
        input.drain(..at);
        done
    }

    fn advance(&mut self, input: &[u8], at: &mut usize, data: &mut Vec<u8>) -> Result<(), &'static str> {
        loop {
            let rest = &input[*at..];
            match self.state {
                State::Done => return Ok(()),
                State::ToTheEnd => {
                    data.extend(rest);
                    *at = input.len();
                    return Ok(());
                }
                State::Data(left) | State::Chunk(left) => {
                    let taken = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    data.extend(&rest[..taken]);
                    *at += taken;
                    let (left, chunk) = (left - taken as u64, matches!(self.state, State::Chunk(_)));
                    self.state = match (left, chunk) {
                        (0, false) => State::Done,
                        (0, true) => State::AfterChunk,
                        (left, false) => State::Data(left),
                        (left, true) => State::Chunk(left),
                    };
                    if left > 0 {
                        return Ok(());
                    }
                }
                State::AfterChunk => match rest {
                    [b'\r', b'\n', ..] => {
                        *at += 2;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(()),
                    _ => return Err("a chunk is longer than it says"),
                },
                State::Size => {
                    let Some(line) = line(rest, LINE)? else { return Ok(()) };
                    *at += line.len() + 2;
                    let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
                    let digits = (1..=15).contains(&size.len()) && size.iter().all(u8::is_ascii_hexdigit);
                    let size = std::str::from_utf8(size).ok().filter(|_| digits);
                    let size = size.and_then(|text| u64::from_str_radix(text, 16).ok());
                    self.state = match size.ok_or("a chunk does not say how long it is")? {
                        0 => State::Trailers,
                        size => State::Chunk(size),
                    };
                }
                State::Trailers => {
                    let Some(line) = line(rest, TRAILERS)? else { return Ok(()) };
                    *at += line.len() + 2;
                    self.trailers += line.len() + 2;
                    if line.is_empty() {
                        self.state = State::Done;
                    } else if self.trailers > TRAILERS {
                        return Err("its trailer fields are too long");
                    }
                }
            }
        }
    }
}

/// The line at the front, without its end; `None` while it is not whole.
fn line(bytes: &[u8], most: usize) -> Result<Option<&[u8]>, &'static str> {
    match bytes.iter().take(most + 1).position(|byte| *byte == b'\n') {
        Some(at) if at > 0 && bytes[at - 1] == b'\r' && !bytes[..at - 1].contains(&b'\r') => {
            Ok(Some(&bytes[..at - 1]))
        }
        Some(_) => Err("a line of a chunked body does not end as lines do"),
        None if bytes.len() > most => Err("a line of a chunked body is too long"),
        None => Ok(None),
    }
}

/// Data as it goes on: as a chunk, where the body is chunked.
pub fn write(framing: Framing, data: &[u8], out: &mut Vec<u8>) {
    if framing == Framing::Chunked && !data.is_empty() {
        out.extend(format!("{:x}\r\n", data.len()).bytes());
        out.extend(data);
        out.extend(b"\r\n");
    } else {
        out.extend(data);
    }
}

/// What comes after the data.
pub fn finish(framing: Framing, out: &mut Vec<u8>) {
    if framing == Framing::Chunked {
        out.extend(b"0\r\n\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_read_however_they_are_cut_and_what_follows_stays() {
        let text = b"3;x=\"y\"\r\nabc\r\n0A \r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nrest";
        for size in 1..text.len() {
            let (mut reader, mut input, mut data) = (Reader::new(Framing::Chunked), Vec::new(), Vec::new());
            for part in text.chunks(size) {
                input.extend(part);
                reader.read(&mut input, &mut data).unwrap();
            }
            assert!(reader.is_done());
            assert_eq!((&data[..], &input[..]), (&b"abc0123456789"[..], &b"rest"[..]), "{size}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for bad in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"3\nabc",
            b"3\r\nabcd\r\n",
            b"1\r\na\n",
            b"0x3\r\nabc",
            b"1000000000000000\r\n",
            b" 3\r\nabc\r\n",
            b"3\r\r\nabc",
            b"0\r\na\nb\r\n\r\n",
        ] {
            let (mut input, mut data) = (bad.to_vec(), Vec::new());
            assert!(Reader::new(Framing::Chunked).read(&mut input, &mut data).is_err(), "{bad:?}");
        }
        let mut endless = vec![b'1'; LINE + 1];
        assert!(Reader::new(Framing::Chunked).read(&mut endless, &mut Vec::new()).is_err());
        let mut trailers = b"0\r\n".iter().copied().chain(b"a: b\r\n".repeat(TRAILERS)).collect();
        assert!(Reader::new(Framing::Chunked).read(&mut trailers, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_body_of_a_length_takes_that_and_no_more() {
        let (mut reader, mut data) = (Reader::new(Framing::Length(4)), Vec::new());
        let mut input = b"abcdef".to_vec();
        reader.read(&mut input, &mut data).unwrap();
        assert!(reader.is_done());
        assert_eq!((&data[..], &input[..]), (&b"abcd"[..], &b"ef"[..]));
        let mut out = Vec::new();
        write(Framing::Chunked, &data, &mut out);
        finish(Framing::Chunked, &mut out);
        assert_eq!(out, b"4\r\nabcd\r\n0\r\n\r\n");
    }
}
