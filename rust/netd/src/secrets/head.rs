//! Heads of requests and responses (RFC 9112), read strictly: they are written anew, so both sides read one and the
//! same.

use super::body::Framing;
use crate::rules;

/// Bytes and fields of a head at most.
pub const MOST: usize = 64 * 1024;
const FIELDS: usize = 128;

/// Why a request is answered here, and the status of the answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Bad(pub u16, pub &'static str);

/// A field's name as it was written, and its value.
pub type Field = (String, Vec<u8>);

/// A request that is for the host.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// As it was written.
    pub method: String,
    /// In the origin form, or `*`.
    pub target: String,
    /// Of HTTP/1.
    pub minor: u8,
    /// Without those that concern one hop alone.
    pub fields: Vec<Field>,
    /// Where its body ends.
    pub framing: Framing,
    /// Whether the connection ends after it.
    pub close: bool,
    /// Whether it asks for a WebSocket (RFC 6455, 4.1).
    pub websocket: bool,
    /// Whether the client waits for the host to want the body.
    pub expects: bool,
}

/// A response, as far as it is known without its request.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// From 100 to 999.
    pub status: u16,
    /// The reason phrase.
    pub phrase: String,
    /// Of HTTP/1.
    pub minor: u8,
    /// Without those that concern one hop alone.
    pub fields: Vec<Field>,
    /// Where its body ends, if it is no answer to HEAD or CONNECT.
    pub framing: Framing,
    /// Whether the connection ends after it.
    pub close: bool,
    /// To what the protocol is switched, of a response with status 101.
    pub upgrade: Option<Vec<u8>>,
}

/// Fields that concern one hop alone (RFC 9110, 7.6.1), or the framing, which is written anew.
const OF_A_HOP: [&str; 10] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields by the names of small letters.
struct Fields<'a, 'b>(&'a [httparse::Header<'b>]);

impl<'b> Fields<'_, 'b> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The members of a list (RFC 9110, 5.6.1).
    fn members(&self, name: &str) -> Vec<&'b [u8]> {
        let members = self.all(name).flat_map(|value| value.split(|byte| *byte == b','));
        members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()).collect()
    }

    fn has(&self, name: &str, member: &str) -> bool {
        self.members(name).iter().any(|found| found.eq_ignore_ascii_case(member.as_bytes()))
    }

    /// Those that go on.
    fn kept(&self) -> Vec<Field> {
        let nominated = self.members("connection");
        let goes = |name: &str| {
            !OF_A_HOP.iter().any(|own| name.eq_ignore_ascii_case(own))
                && (name.eq_ignore_ascii_case("host")
                    || !nominated.iter().any(|own| own.eq_ignore_ascii_case(name.as_bytes())))
        };
        let kept = self.0.iter().filter(|field| goes(field.name));
        kept.map(|field| (field.name.to_owned(), field.value.to_vec())).collect()
    }

    /// How the body is framed; `None` where nothing says it, an error where two things do or what is said is unclear.
    fn framing(&self, minor: u8) -> Result<Option<Framing>, &'static str> {
        let lengths: Vec<&[u8]> = self.all("content-length").collect();
        let codings = self.members("transfer-encoding");
        match (&lengths[..], &codings[..]) {
            ([], []) if self.all("transfer-encoding").next().is_none() => Ok(None),
            ([], [chunked]) if minor == 1 && chunked.eq_ignore_ascii_case(b"chunked") => {
                Ok(Some(Framing::Chunked))
            }
            ([length], []) if self.all("transfer-encoding").next().is_none() => {
                let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
                let length = std::str::from_utf8(length).ok().filter(|_| digits);
                length
                    .and_then(|text| text.parse().ok())
                    .map(Framing::Length)
                    .map(Some)
                    .ok_or("its Content-Length is no number")
            }
            ([], _) => Err("its Transfer-Encoding is not chunked alone"),
            _ => Err("it gives its length twice"),
        }
    }
}

/// The request at the front, and its bytes; `None` while it is not whole. It is to be for the host `name` at `port`.
pub fn request(bytes: &[u8], name: &str, port: u16) -> Result<Option<(Request, usize)>, Bad> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Bad(431, "it has too many fields")),
        Err(_) => return Err(Bad(400, "it is no request of HTTP/1.1")),
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Bad(400, "it is no request of HTTP/1.1"));
    };
    // TRACE has the host send back what it was sent.
    if ["CONNECT", "TRACE", "TRACK"].iter().any(|method_of| method.eq_ignore_ascii_case(method_of)) {
        return Err(Bad(405, "this method is not passed on to a secret's host"));
    }
    let fields = Fields(parsed.headers);
    let hosts: Vec<&[u8]> = fields.all("host").collect();
    let [host] = hosts[..] else { return Err(Bad(400, "it does not name one host")) };
    let is_host = |authority: &[u8]| is_of(authority, name, port);
    if !is_host(host) {
        return Err(Bad(421, "its Host is not the one that the TLS hello names"));
    }
    let target = match target.split_once("://") {
        Some((scheme, rest)) if !target.starts_with('/') => {
            let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            if !scheme.eq_ignore_ascii_case("https") || !is_host(&rest.as_bytes()[..at]) {
                return Err(Bad(421, "its target is not at the host that the TLS hello names"));
            }
            match &rest[at..] {
                "" => "/".into(),
                query if query.starts_with('?') => format!("/{query}"),
                path => path.into(),
            }
        }
        _ if target.starts_with('/') || target == "*" && method == "OPTIONS" => target.into(),
        _ => return Err(Bad(400, "its target is no path")),
    };
    let framing = fields.framing(minor).map_err(|reason| Bad(400, reason))?.unwrap_or(Framing::None);
    let websocket = minor == 1 && fields.has("connection", "upgrade") && fields.has("upgrade", "websocket");
    let mut kept = fields.kept();
    kept.retain(|(name, _)| {
        !name.eq_ignore_ascii_case("expect") && !name.eq_ignore_ascii_case("http2-settings")
    });
    let request = Request {
        method: method.into(),
        target,
        minor,
        fields: kept,
        framing,
        close: minor == 0 || fields.has("connection", "close"),
        websocket,
        expects: minor == 1 && fields.has("expect", "100-continue"),
    };
    Ok(Some((request, length)))
}

fn is_of(authority: &[u8], name: &str, port: u16) -> bool {
    let Ok(authority) = std::str::from_utf8(authority) else { return false };
    let host = match authority.rsplit_once(':') {
        Some((host, text)) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            if text.parse() != Ok(port) {
                return false;
            }
            host
        }
        _ => authority,
    };
    rules::normal(host).as_deref() == Some(name)
}

/// The response at the front to a request of this method, and its bytes; `None` while it is not whole.
pub fn response(bytes: &[u8], method: &str) -> Result<Option<(Response, usize)>, &'static str> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("the host's answer is no response of HTTP/1.1"),
    };
    let (Some(status @ 100..), Some(minor)) = (parsed.code, parsed.version) else {
        return Err("the host's answer is no response of HTTP/1.1");
    };
    let fields = Fields(parsed.headers);
    let said = fields.framing(minor).map_err(|_| "how long the host's answer is can be read in two ways")?;
    // RFC 9112, 6.3.
    let framing = match (status, said) {
        (100..200 | 204 | 304, _) => Framing::None,
        _ if method == "HEAD" => Framing::None,
        (_, Some(framing)) => framing,
        (_, None) => Framing::End,
    };
    let persistent = if minor == 0 { false } else { !fields.has("connection", "close") };
    let mut kept = fields.kept();
    // Of a body that is not there, it is news.
    if framing == Framing::None
        && let Some(Framing::Length(length)) = said
        && (method == "HEAD" || status == 304)
    {
        kept.push(("Content-Length".into(), length.to_string().into_bytes()));
    }
    let response = Response {
        status,
        phrase: parsed.reason.unwrap_or_default().into(),
        minor,
        fields: kept,
        framing,
        close: !persistent || framing == Framing::End,
        upgrade: (status == 101).then(|| fields.all("upgrade").next().unwrap_or_default().to_vec()),
    };
    Ok(Some((response, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<(Request, usize)>, Bad> {
        request(text.replace('\n', "\r\n").as_bytes(), "a.test", 443)
    }

    #[test]
    fn requests_that_two_servers_could_read_in_two_ways_are_refused() {
        let head = |line: &str, fields: &str| format!("{line}\nHost: a.test\n{fields}\n");
        for (text, status) in [
            (head("POST / HTTP/1.1", "Content-Length: 4\nTransfer-Encoding: chunked\n"), 400),
            (head("POST / HTTP/1.1", "Content-Length: 4\nContent-Length: 4\n"), 400),
            (head("POST / HTTP/1.1", "Content-Length: 4, 4\n"), 400),
            (head("POST / HTTP/1.1", "Content-Length: +4\n"), 400),
            (head("POST / HTTP/1.1", "Content-Length: 99999999999999999999\n"), 400),
            (head("POST / HTTP/1.1", "Transfer-Encoding: gzip, chunked\n"), 400),
            (head("POST / HTTP/1.1", "Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n"), 400),
            (head("POST / HTTP/1.1", "Transfer-Encoding:\n"), 400),
            (head("POST / HTTP/1.1", "Transfer-Encoding: xchunked\n"), 400),
            (head("POST / HTTP/1.0", "Transfer-Encoding: chunked\n"), 400),
            (head("GET / HTTP/1.1", "Host: b.test\n"), 400),
            (head("GET / HTTP/1.1", "X : 1\n"), 400),
            (head("GET / HTTP/1.1", "X: 1\n folded: 2\n"), 400),
            (head("GET https://b.test/ HTTP/1.1", ""), 421),
            (head("GET http://a.test/ HTTP/1.1", ""), 421),
            (head("GET a.test HTTP/1.1", ""), 400),
            (head("TRACE / HTTP/1.1", ""), 405),
            (head("CONNECT a.test:443 HTTP/1.1", ""), 405),
            ("GET / HTTP/1.1\n\n".into(), 400),
            ("GET / HTTP/1.1\nHost: b.test\n\n".into(), 421),
            ("GET / HTTP/1.1\nHost: a.test:80\n\n".into(), 421),
            ("GET / HTTP/1.1\nHost: a.test.evil\n\n".into(), 421),
            ("PRI * HTTP/2.0\n\nSM\n\n".into(), 400),
        ] {
            assert_eq!(read(&text).map_err(|Bad(status, _)| status), Err(status), "{text:?}");
        }
        let many = head("GET / HTTP/1.1", &"X: 1\n".repeat(FIELDS));
        assert_eq!(read(&many).map_err(|Bad(status, _)| status), Err(431));
    }

    #[test]
    fn requests_are_read_and_lose_what_concerns_a_hop() {
        let text = "POST https://A.test:443?q=1 HTTP/1.1\nhost: a.TEST\nConnection: close, X-Own, Host\nX-Own: 1\n\
                    Keep-Alive: 5\nTE: trailers\nUpgrade: h2c\nHTTP2-Settings: x\nExpect: 100-continue\nX: 2\n\
                    transfer-encoding: Chunked\n\nrest";
        let (request, length) = read(text).unwrap().unwrap();
        assert_eq!(length, text.replace('\n', "\r\n").len() - 4);
        assert_eq!((&request.target[..], request.framing), ("/?q=1", Framing::Chunked));
        assert!(request.close && request.expects && !request.websocket);
        let names: Vec<&str> = request.fields.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(names, ["host", "X"]);
        for cut in 1..40 {
            assert_eq!(read(&text[..cut]), Ok(None));
        }
    }

    #[test]
    fn the_length_of_a_response_is_what_its_request_makes_it() {
        let read = |text: &str, method: &str| {
            let (found, _) = response(text.replace('\n', "\r\n").as_bytes(), method)?.unwrap();
            Ok::<_, &str>((found.framing, found.close))
        };
        assert_eq!(read("HTTP/1.1 200 OK\nContent-Length: 3\n\n", "GET"), Ok((Framing::Length(3), false)));
        assert_eq!(read("HTTP/1.1 200 OK\nContent-Length: 3\n\n", "HEAD"), Ok((Framing::None, false)));
        assert_eq!(read("HTTP/1.1 304 X\nContent-Length: 3\n\n", "GET"), Ok((Framing::None, false)));
        assert_eq!(
            read("HTTP/1.1 200\nTransfer-Encoding: chunked\n\n", "GET"),
            Ok((Framing::Chunked, false))
        );
        assert_eq!(read("HTTP/1.1 200 OK\n\n", "GET"), Ok((Framing::End, true)));
        assert_eq!(read("HTTP/1.0 200 OK\nContent-Length: 3\n\n", "GET"), Ok((Framing::Length(3), true)));
        for bad in
            ["Content-Length: 3\nContent-Length: 4\n", "Content-Length: 3\nTransfer-Encoding: chunked\n"]
        {
            assert!(read(&format!("HTTP/1.1 200 OK\n{bad}\n"), "GET").is_err(), "{bad}");
        }
        assert!(read("HTTP/1.1 020 OK\n\n", "GET").is_err());
    }
}
