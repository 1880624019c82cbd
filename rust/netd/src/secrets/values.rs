//! Values and placeholders: which are for which host, where they are replaced, and how values that come back are
//! covered.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use memchr::memmem;
use supermachine_proto::netd::{Protocol, Secret, Secrets};
use zeroize::Zeroizing;

use super::authority::Issuing;
use super::error::{Error, LEAST_BYTES, MOST_BYTES};
use crate::rules::{Rule, Target};

const HTTPS: u16 = 443;
/// What covers a value in a body, whose length must stay.
const COVER: u8 = b'*';

/// The rule for a host of a secret's: a name, its ports those of HTTPS unless it says others.
pub fn host(text: &str) -> Result<Rule, Error> {
    let mut rule = Rule::parse(text)?;
    if !matches!(rule.target, Target::Name(_) | Target::Below(_)) || rule.protocol.is_some() {
        return Err(Error::Host(text.into()));
    }
    if rule.ports.is_empty() {
        rule.ports.push(HTTPS..=HTTPS);
    }
    Ok(rule)
}

/// A secret, and where it is for.
pub(super) struct Value {
    placeholder: String,
    value: Zeroizing<Vec<u8>>,
    hosts: Vec<Rule>,
    query: bool,
    body: bool,
}

impl Value {
    fn read(secret: Secret) -> Result<Self, Error> {
        let Secret { placeholder, value, hosts, query, body } = secret;
        let value = Zeroizing::new(value.0);
        let printable = value.iter().all(|byte| (32..127).contains(byte));
        if !(LEAST_BYTES..=MOST_BYTES).contains(&value.len()) || !printable || placeholder.is_empty() {
            return Err(Error::Value(placeholder));
        }
        let hosts = hosts.iter().map(|text| host(text)).collect::<Result<_, _>>()?;
        Ok(Self { placeholder, value, hosts, query, body })
    }

    fn is_for(&self, name: &str, port: u16) -> bool {
        self.hosts.iter().any(|rule| rule.concerns(Protocol::Tcp, port) && rule.names(name))
    }
}

/// All secrets of a guest.
pub struct Values {
    known: Vec<Arc<Value>>,
    /// Certificates for the hosts' names.
    pub issuing: Issuing,
}

impl Values {
    /// Checks the secrets and the key of their authority.
    pub fn read(secrets: Secrets) -> Result<Self, Error> {
        let issuing = Issuing::new(&secrets.authority)?;
        let known = secrets.secrets.into_iter().map(|secret| Value::read(secret).map(Arc::new));
        Ok(Self { known: known.collect::<Result<_, _>>()?, issuing })
    }

    /// Whether some are for a host of this name and port.
    pub fn concern(&self, name: &str, port: u16) -> bool {
        self.known.iter().any(|value| value.is_for(name, port))
    }

    /// Those for one host.
    pub fn of(&self, name: &str, port: u16) -> Replacing {
        let values: Vec<_> = self.known.iter().filter(|value| value.is_for(name, port)).cloned().collect();
        let mut replacing = Replacing { values, masks: Vec::new() };
        for value in replacing.values.clone() {
            replacing.cover(&value.value, &value.placeholder);
        }
        replacing
    }
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Plain,
    /// RFC 3986, 2.1.
    Percent,
    /// Within a string of JSON (RFC 8259, 7).
    Json,
}

impl Form {
    /// That of a body whose Content-Type is this.
    pub fn of_body(media_type: &[u8]) -> Self {
        let essence = media_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let essence = essence.to_ascii_lowercase();
        match &essence[..] {
            b"application/x-www-form-urlencoded" => Self::Percent,
            essence if essence == b"application/json" || essence.ends_with(b"+json") => Self::Json,
            _ => Self::Plain,
        }
    }

    fn write(self, value: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut written = Zeroizing::new(Vec::with_capacity(3 * value.len()));
        for &byte in value {
            match self {
                Self::Percent if !byte.is_ascii_alphanumeric() && !b"-._~".contains(&byte) => {
                    written.extend(format!("%{byte:02X}").bytes());
                }
                Self::Json if matches!(byte, b'"' | b'\\') => written.extend([b'\\', byte]),
                _ => written.push(byte),
            }
        }
        written
    }
}

/// What is replaced on one connection, and covered on the way back.
pub struct Replacing {
    values: Vec<Arc<Value>>,
    /// What must not reach the guest, and what is there in its place.
    masks: Vec<(Zeroizing<Vec<u8>>, String)>,
}

impl Replacing {
    /// Whether requests' bodies are replaced in, so that they are to be read whole.
    pub fn in_bodies(&self) -> bool {
        self.values.iter().any(|value| value.body)
    }

    /// A header field's value with the secrets in it; `None` where there are none.
    pub fn field(&mut self, name: &str, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if name.eq_ignore_ascii_case("authorization")
            && let Some(credentials) = basic(text)
        {
            let plain = self.written(&credentials, |_| true, Form::Plain)?;
            let encoded = Zeroizing::new(BASE64_STANDARD.encode(&*plain));
            self.cover(encoded.as_bytes(), &String::from_utf8_lossy(&text[text.len().min(6)..]));
            return Some(Zeroizing::new([b"Basic ", encoded.as_bytes()].concat()));
        }
        self.written(text, |_| true, Form::Plain)
    }

    /// A target with the secrets in its query that may be there.
    pub fn target(&mut self, target: &str) -> Option<Zeroizing<Vec<u8>>> {
        let at = target.find('?')?;
        let query = self.written(&target.as_bytes()[at..], |value| value.query, Form::Percent)?;
        Some(Zeroizing::new([&target.as_bytes()[..at], &query].concat()))
    }

    /// The body with values in place of placeholders, of those secrets that may be in one; `None` when there is none in
    /// it.
    pub fn body(&mut self, body: &[u8], form: Form) -> Option<Zeroizing<Vec<u8>>> {
        self.written(body, |value| value.body, form)
    }

    fn written(
        &mut self,
        text: &[u8],
        may: impl Fn(&Value) -> bool,
        form: Form,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let mut found: Option<Zeroizing<Vec<u8>>> = None;
        for value in self.values.clone() {
            let before = found.as_ref().map_or(text, |found| &found[..]);
            if may(&value) && memmem::find(before, value.placeholder.as_bytes()).is_some() {
                let written = form.write(&value.value);
                let after = replaced(before, value.placeholder.as_bytes(), &written);
                self.cover(&written, &value.placeholder);
                found = Some(after);
            }
        }
        found
    }

    fn cover(&mut self, what: &[u8], by: &str) {
        if !self.masks.iter().any(|(known, _)| known[..] == *what) {
            self.masks.push((Zeroizing::new(what.to_vec()), by.into()));
        }
    }

    /// A field of a response with placeholders where values were.
    pub fn cover_field(&self, text: &[u8]) -> Vec<u8> {
        self.masks
            .iter()
            .fold(text.to_vec(), |text, (what, by)| replaced(&text, what, by.as_bytes()).to_vec())
    }
}

/// Credentials of the scheme Basic (RFC 7617).
fn basic(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (scheme, rest) = text.split_at_checked(6)?;
    let rest = scheme.eq_ignore_ascii_case(b"basic ").then_some(rest)?;
    BASE64_STANDARD.decode(rest.trim_ascii()).ok().map(Zeroizing::new)
}

fn replaced(text: &[u8], what: &[u8], by: &[u8]) -> Zeroizing<Vec<u8>> {
    let (mut found, mut from) = (Zeroizing::new(Vec::with_capacity(text.len() + by.len())), 0);
    for at in memmem::find_iter(text, what) {
        found.extend(&text[from..at]);
        found.extend(by);
        from = at + what.len();
    }
    found.extend(&text[from..]);
    found
}

/// Covers values in a stream, however it is cut, and leaves its length.
#[derive(Default)]
pub(super) struct Covering {
    /// The end of what has come, as far as a value may begin there.
    held: Vec<u8>,
}

impl Covering {
    /// What may go on of what has come.
    pub(super) fn push(&mut self, bytes: &[u8], replacing: &Replacing) -> Vec<u8> {
        self.held.extend(bytes);
        for (what, _) in &replacing.masks {
            let places: Vec<usize> = memmem::find_iter(&self.held, &what[..]).collect();
            for at in places {
                self.held[at..at + what.len()].fill(COVER);
            }
        }
        let begun = replacing.masks.iter().map(|(what, _)| begun(&self.held, what)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - begun);
        std::mem::replace(&mut self.held, rest)
    }

    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that `what` begins with.
fn begun(text: &[u8], what: &[u8]) -> usize {
    let most = text.len().min(what.len().saturating_sub(1));
    (1..=most).rev().find(|length| text.ends_with(&what[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use supermachine_proto::netd::Hidden;

    use super::*;

    fn values() -> Values {
        let rules = [host("*.a.test").unwrap()];
        let (authority, pem) = super::super::authority::create(&rules).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n"));
        let secret = |placeholder: &str, value: &str, hosts: &[&str], more| Secret {
            placeholder: placeholder.into(),
            value: Hidden(value.into()),
            hosts: hosts.iter().map(ToString::to_string).collect(),
            query: more,
            body: more,
        };
        let secrets = vec![
            secret("HOLDER_1", "value \"one\"", &["api.a.test", "*.b.test:8000-8001"], true),
            secret("HOLDER_2", "value-two", &["api.a.test"], false),
        ];
        Values::read(Secrets { authority, secrets }).unwrap()
    }

    #[test]
    fn each_secret_is_for_its_hosts_alone() {
        let values = values();
        for (name, port, for_it) in [
            ("api.a.test", 443, true),
            ("api.a.test", 444, false),
            ("x.api.a.test", 443, false),
            ("a.test", 443, false),
            ("x.b.test", 8001, true),
            ("x.b.test", 443, false),
            ("b.test", 8000, false),
        ] {
            assert_eq!(values.concern(name, port), for_it, "{name}:{port}");
        }
        let mut other = values.of("x.b.test", 8000);
        assert_eq!(other.field("x", b"HOLDER_2"), None);
        for bad in ["10.0.0.1", "public", "a.test/tcp", "a b", "10.0.0.0/8", ""] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_stands_where_its_placeholder_was_as_the_place_needs_it() {
        let mut for_it = values().of("api.a.test", 443);
        let mut field = |name: &str, text: &str| {
            for_it.field(name, text.as_bytes()).map(|found| String::from_utf8(found.to_vec()).unwrap())
        };
        assert_eq!(field("x", "a HOLDER_1,HOLDER_2").as_deref(), Some("a value \"one\",value-two"));
        assert_eq!(field("x", "HOLDER_3"), None);
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        assert_eq!(field("authorization", &basic("me:HOLDER_2")), Some(basic("me:value-two")));
        assert_eq!(field("authorization", "Bearer HOLDER_2").as_deref(), Some("Bearer value-two"));
        assert_eq!(field("x", &basic("me:HOLDER_2")), None);
        let back = for_it.cover_field(format!("{} value-two", basic("me:value-two")).as_bytes());
        assert_eq!(String::from_utf8(back).unwrap(), format!("{} HOLDER_2", basic("me:HOLDER_2")));
        let target =
            |found: Option<Zeroizing<Vec<u8>>>| found.map(|found| String::from_utf8(found.to_vec()).unwrap());
        assert_eq!(target(for_it.target("/HOLDER_1")), None);
        assert_eq!(
            target(for_it.target("/HOLDER_1?a=HOLDER_1&b=HOLDER_2")).as_deref(),
            Some("/HOLDER_1?a=value%20%22one%22&b=HOLDER_2")
        );
        let json =
            for_it.body(b"{\"a\": \"HOLDER_1\"}", Form::of_body(b"Application/JSON; charset=x")).unwrap();
        assert_eq!(&json[..], br#"{"a": "value \"one\""}"#);
        assert_eq!(Form::of_body(b"application/x-www-form-urlencoded"), Form::Percent);
    }

    #[test]
    fn values_are_covered_however_a_stream_is_cut() {
        let mut for_it = values().of("api.a.test", 443);
        for_it.field("authorization", b"Basic bWU6SE9MREVSXzI=").unwrap();
        let encoded = BASE64_STANDARD.encode("me:value-two");
        let text = format!("vvalue-two,{encoded} and value \"one\" and val");
        let stars = |text: &str| "*".repeat(text.len());
        let expected =
            format!("v{},{} and {} and val", stars("value-two"), stars(&encoded), stars("value 'one'"));
        for size in 1..text.len() {
            let (mut covering, mut found) = (Covering::default(), Vec::new());
            for part in text.as_bytes().chunks(size) {
                found.extend(covering.push(part, &for_it));
            }
            found.extend(covering.finish());
            assert_eq!(String::from_utf8(found).unwrap(), expected, "{size}");
        }
    }
}
