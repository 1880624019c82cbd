//! Length-prefixed frames: how a message becomes bytes on a stream and back, with a bound on both sides.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of one frame's body. A longer one is refused before anything is allocated for it.
pub const MAX_FRAME: usize = 256 * 1024;

/// Most bytes of file or stream data that one message carries, so that a message always fits a frame.
pub const MAX_DATA: usize = 64 * 1024;

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A frame, or a message to be sent, is longer than [`MAX_FRAME`].
    #[error("a frame of {length} bytes is longer than the limit of {MAX_FRAME}")]
    TooLong {
        /// Bytes of the frame's body.
        length: usize,
    },
    /// The other side is of another version, or no friend.
    #[error("a frame does not hold a message of this version: {0}")]
    Malformed(#[from] postcard::Error),
    /// The other side has gone in the middle of a message.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// What the stream said.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Appends `message` as one frame to `out`.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let buffer = std::mem::take(out);
    let mut buffer = postcard::to_extend(message, buffer)?;
    let length = buffer.len() - start - 4;
    let Some(prefix) = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME) else {
        buffer.truncate(start);
        *out = buffer;
        return Err(Error::TooLong { length });
    };
    buffer[start..start + 4].copy_from_slice(&prefix.to_le_bytes());
    *out = buffer;
    Ok(())
}

/// Writes `message` as one frame with one call to `writer`.
pub fn write<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), Error> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes)?;
    writer.write_all(&bytes)?;
    Ok(())
}

/// Reads one message; `None` when the stream ends between two frames.
pub fn read<T: DeserializeOwned>(reader: &mut impl Read) -> Result<Option<T>, Error> {
    let mut header = [0; 4];
    let mut have = 0;
    while have < header.len() {
        match reader.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(Error::Truncated),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME {
        return Err(Error::TooLong { length });
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated,
        _ => Error::Io(e),
    })?;
    Ok(Some(postcard::from_bytes(&body)?))
}

/// Takes messages out of bytes that arrive in pieces, for readers that must not block.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > MAX_FRAME {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, `None` until more bytes arrive.
    #[expect(clippy::should_implement_trait, reason = "each call may ask for another type, and may fail")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let have = &self.buffer[self.start..];
        let Some(header) = have.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length > MAX_FRAME {
            return Err(Error::TooLong { length });
        }
        let Some(body) = have.get(4..4 + length) else { return Ok(None) };
        let message = postcard::from_bytes(body)?;
        self.start += 4 + length;
        Ok(Some(message))
    }

    /// Bytes that have arrived and are not yet part of a whole message.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{Chunk, ExecOutput};

    #[test]
    fn messages_survive_any_cut_of_the_stream() {
        let messages = [
            ExecOutput::Started { pid: 7 },
            ExecOutput::Stdout(Chunk::from(vec![1, 2, 3])),
            ExecOutput::StdinConsumed(9),
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            encode(message, &mut bytes).unwrap();
        }
        for piece in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for part in bytes.chunks(piece) {
                decoder.push(part);
                while let Some(message) = decoder.next::<ExecOutput>().unwrap() {
                    out.push(message);
                }
            }
            assert_eq!(out, messages);
            assert_eq!(decoder.pending(), 0);
        }
    }

    #[test]
    fn a_long_frame_is_refused_before_its_body() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.next::<ExecOutput>(), Err(Error::TooLong { .. })));
        assert!(matches!(read::<ExecOutput>(&mut &u32::MAX.to_le_bytes()[..]), Err(Error::TooLong { .. })));
    }

    #[test]
    fn a_cut_frame_is_an_error_and_a_clean_end_is_not() {
        let mut bytes = Vec::new();
        encode(&ExecOutput::Started { pid: 1 }, &mut bytes).unwrap();
        assert!(read::<ExecOutput>(&mut &bytes[..0]).unwrap().is_none());
        for cut in 1..bytes.len() {
            assert!(matches!(read::<ExecOutput>(&mut &bytes[..cut]), Err(Error::Truncated)));
        }
    }
}
