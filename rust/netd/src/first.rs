//! The first bytes of a connection, which name whom it is for: a TLS ClientHello (RFC 8446, 4.1.2) or the head of an
//! HTTP request (RFC 9112). Both come from the guest, and servers read them less strictly than this does.

use supermachine_proto::netd::FIRST;

use crate::rules;

/// What the bytes so far say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// More is needed.
    Incomplete,
    /// In small letters, without a dot at its end.
    Name(String),
    /// A hello or a request that names nobody, or an address.
    NoName,
    /// The name is encrypted (Encrypted Client Hello).
    Hidden,
    /// Something else, or what can be read in two ways.
    Other,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_HELLO: u16 = 0xfe0d;

/// Reads numbers and vectors from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// A vector whose length comes first, in so many bytes.
    fn vector(&mut self, bytes: usize) -> Option<Reader<'a>> {
        let length = self.number(bytes)?;
        self.take(length).map(Reader)
    }
}

/// Bytes of the message that begins like this; most, as long as that is not known.
fn length_of(message: &[u8]) -> usize {
    match message {
        [_, high, middle, low, ..] => 4 + u32::from_be_bytes([0, *high, *middle, *low]) as usize,
        _ => usize::MAX,
    }
}

/// What a TLS client says first.
pub fn hello(bytes: &[u8]) -> Seen {
    // The message may lie in several records.
    let (mut records, mut message) = (Reader(bytes), Vec::new());
    // What follows the message, as early data does, is not looked at.
    while !records.0.is_empty() && message.len() < length_of(&message) {
        let head = records.0;
        if head[0] != HANDSHAKE || head.get(1).is_some_and(|major| *major != 3) {
            return Seen::Other;
        }
        let Some(fragment) = records.take(3).and_then(|_| records.vector(2)) else { break };
        if fragment.0.is_empty() || fragment.0.len() > 1 << 14 {
            return Seen::Other;
        }
        message.extend(fragment.0);
    }
    let length = length_of(&message);
    match message.first() {
        Some(kind) if *kind != CLIENT_HELLO => return Seen::Other,
        _ if message.len() >= 4 && length > FIRST => return Seen::Other,
        _ if message.len() < length => return Seen::Incomplete,
        _ => message.truncate(length),
    }
    name_in(&message[4..]).unwrap_or(Seen::Other)
}

fn name_in(hello: &[u8]) -> Option<Seen> {
    let mut hello = Reader(hello);
    hello.take(2 + 32)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    if hello.0.is_empty() {
        return Some(Seen::NoName);
    }
    let mut extensions = hello.vector(2)?;
    if !hello.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let (kind, mut data) = (extensions.number(2)?, extensions.vector(2)?);
        match u16::try_from(kind).expect("it has two bytes") {
            ENCRYPTED_HELLO => return Some(Seen::Hidden),
            SERVER_NAME => {
                let mut names = data.vector(2)?;
                let (kind, name) = (names.number(1)?, names.vector(2)?);
                // One name, once (RFC 6066, 3).
                if kind != 0 || !names.0.is_empty() || !data.0.is_empty() || found.is_some() {
                    return None;
                }
                found = Some(std::str::from_utf8(name.0).ok().and_then(rules::normal)?);
            }
            _ => {}
        }
    }
    Some(found.map_or(Seen::NoName, named))
}

fn named(name: String) -> Seen {
    if name.parse::<std::net::Ipv4Addr>().is_ok() { Seen::NoName } else { Seen::Name(name) }
}

/// What an HTTP client says first.
pub fn request(bytes: &[u8]) -> Seen {
    if bytes.first().is_some_and(|byte| !byte.is_ascii_alphabetic()) {
        return Seen::Other;
    }
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Seen::Incomplete };
    head(&bytes[..end]).unwrap_or(Seen::Other)
}

fn head(head: &[u8]) -> Option<Seen> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (_method, target, version) = (words.next()?, words.next()?, words.next()?);
    // Only what every server reads alike.
    let plain =
        |text: &str| text.bytes().all(|byte| byte == b'\t' || (32..127).contains(&byte) || byte >= 128);
    if words.next().is_some() || !version.starts_with("HTTP/1.") || !plain(target) {
        return None;
    }
    let mut host = None;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) || !plain(value) {
            return None;
        }
        if name.eq_ignore_ascii_case("host") && host.replace(value.trim_matches([' ', '\t'])).is_some() {
            return None;
        }
    }
    let host = host.unwrap_or_default();
    // The form for proxies, which servers heed before the header (RFC 9112, 3.2.2).
    if let Some((_, rest)) = target.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next()?;
        if !authority.eq_ignore_ascii_case(host) {
            return None;
        }
    } else if !target.starts_with(['/', '*']) {
        return None;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    if name.is_empty() || name.starts_with('[') {
        return Some(Seen::NoName);
    }
    rules::normal(name).map(named)
}

/// A page that says to a program and to a person what is not allowed.
pub fn forbidden(reason: &str, rule: Option<&str>, remedy: &str) -> Vec<u8> {
    answer("403 Forbidden", "denied by the virtual machine's network policy", reason, rule, remedy)
}

/// A page of this status, after which the connection ends.
pub fn answer(status: &str, error: &str, reason: &str, rule: Option<&str>, remedy: &str) -> Vec<u8> {
    let text = |text: &str| {
        let escaped = text.chars().flat_map(char::escape_default).collect::<String>();
        format!("\"{}\"", escaped.replace("\\'", "'"))
    };
    let rule = rule.map_or_else(|| "null".into(), text);
    let body = format!(
        "{{\"error\": {}, \"reason\": {}, \"rule\": {rule}, \"remedy\": {}}}\n",
        text(error),
        text(reason),
        text(remedy)
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(bytes: usize, data: &[u8]) -> Vec<u8> {
        [&data.len().to_be_bytes()[8 - bytes..], data].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(2, data)].concat()
    }

    fn sni(name: &str) -> Vec<u8> {
        extension(0, &vector(2, &[&[0][..], &vector(2, name.as_bytes())].concat()))
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let body =
            [&[3, 3][..], &[7; 32], &[0], &vector(2, &[0x13, 1]), &[1, 0], &vector(2, extensions)].concat();
        [&[1][..], &vector(3, &body)].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &vector(2, part)].concat()).collect()
    }

    #[test]
    fn the_name_in_a_hello_is_found_however_it_is_cut() {
        let said = message(&[extension(10, &[0, 0]), sni("Api.Example.ORG"), extension(16, &[])].concat());
        for size in [1, 2, 3, 50, 4000] {
            let bytes = records(&said, size);
            assert_eq!(hello(&bytes), Seen::Name("api.example.org".into()));
            for length in 0..bytes.len() {
                assert_eq!(hello(&bytes[..length]), Seen::Incomplete, "{length} of {size}");
            }
        }
    }

    #[test]
    fn hellos_that_name_nobody_or_hide_it_or_name_two_are_told_apart() {
        let of = |extensions: &[u8]| hello(&records(&message(extensions), 4000));
        assert_eq!(of(&[]), Seen::NoName);
        assert_eq!(of(&sni("127.0.0.1")), Seen::NoName);
        assert_eq!(of(&[sni("a.test"), extension(ENCRYPTED_HELLO, &[0, 1])].concat()), Seen::Hidden);
        assert_eq!(of(&[sni("a.test"), sni("b.test")].concat()), Seen::Other);
        assert_eq!(of(&sni("a b")), Seen::Other);
        assert_eq!(of(&sni("a.test\0.b.test")), Seen::Other);
        // Early data may follow at once.
        let early = [records(&message(&sni("a.test")), 90), vec![20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 9]].concat();
        assert_eq!(hello(&early), Seen::Name("a.test".into()));
        assert_eq!(hello(b"SSH-2.0-x\r\n"), Seen::Other);
        assert_eq!(hello(&[22, 3, 1, 0, 0]), Seen::Other);
        assert_eq!(hello(&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]), Seen::Other);
    }

    #[test]
    fn the_host_of_a_request_is_found_and_only_where_there_is_one() {
        for (text, seen) in [
            ("GET / HTTP/1.1\r\nHost: A.test:80\r\n\r\n", Seen::Name("a.test".into())),
            ("GET http://a.test/x HTTP/1.1\r\nhost:a.test\r\n\r\n", Seen::Name("a.test".into())),
            ("GET / HTTP/1.0\r\n\r\n", Seen::NoName),
            ("GET / HTTP/1.1\r\nHost: 1.2.3.4\r\n\r\n", Seen::NoName),
            ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Seen::NoName),
            ("GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", Seen::Other),
            ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", Seen::Other),
            ("GET / HTTP/1.1\r\nHost : a.test\r\n\r\n", Seen::Other),
            ("GET / HTTP/1.1\r\nX: 1\r\n Host: a.test\r\n\r\n", Seen::Other),
            ("GET / HTTP/1.1\nHost: b.test\r\nHost: a.test\r\n\r\n", Seen::Other),
            ("GET / HTTP/1.1\r\nX: 1\nHost: b.test\r\nHost: a.test\r\n\r\n", Seen::Other),
            ("CONNECT b.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", Seen::Other),
            ("PRI * HTTP/2.0\r\n\r\n", Seen::Other),
            ("GET / HTTP/1.1\r\nHost: a.te", Seen::Incomplete),
            ("\u{16}", Seen::Other),
        ] {
            assert_eq!(request(text.as_bytes()), seen, "{text:?}");
        }
    }

    #[test]
    fn a_page_of_refusal_is_json_whatever_the_names_say() {
        let page = String::from_utf8(forbidden("it's \"so\"\n", Some("*.a.test"), "a.test:80")).unwrap();
        assert!(page.ends_with(
            "\"reason\": \"it's \\\"so\\\"\\n\", \"rule\": \"*.a.test\", \"remedy\": \"a.test:80\"}\n"
        ));
    }
}
