//! Messages of the domain name system (RFC 1035): what is asked, what the answers are, and short answers of our own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::rules;

const HEADER: usize = 12;
/// Where the question's name begins, as names that are said again refer to it.
const NAME: u8 = 12;
/// An address of IPv4.
pub const A: u16 = 1;
const CNAME: u16 = 5;
/// An address of IPv6 (RFC 3596).
pub const AAAA: u16 = 28;
/// SVCB and HTTPS (RFC 9460) can carry keys that hide which name is connected to.
pub const SVCB: u16 = 64;
/// Of a web server, as SVCB.
pub const HTTPS: u16 = 65;
const IN: u16 = 1;
/// Labels of a name, and names that a compressed one leads through.
const LABELS: usize = 128;
/// Aliases that are followed.
const CHAIN: usize = 16;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// By which the answer is known.
    pub id: u16,
    /// In small letters, without a dot at its end; empty for the root. `None` for bytes that no host name has.
    pub name: Option<String>,
    /// The type: [`A`], [`AAAA`] or any other.
    pub kind: u16,
    /// Where the question ends.
    end: usize,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The name at `at`, and where it ends there. `None` where there is none.
fn name(bytes: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    let (mut name, mut at, mut end) = (Vec::new(), at, None);
    for _ in 0..LABELS {
        match usize::from(*bytes.get(at)?) {
            0 => return Some((name, end.unwrap_or(at + 1))),
            length @ 1..=63 => {
                let label = bytes.get(at + 1..at + 1 + length)?;
                if !name.is_empty() {
                    name.push(b'.');
                }
                name.extend(label.to_ascii_lowercase());
                if name.len() > 255 {
                    return None;
                }
                at += 1 + length;
            }
            // A pointer to an earlier name.
            0xc0.. => {
                end = end.or(Some(at + 2));
                at = usize::from(be16(bytes, at)? & 0x3fff);
            }
            _ => return None,
        }
    }
    None
}

fn text(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    if name.is_empty() { Some(String::new()) } else { rules::normal(name) }
}

/// Reads a query; `None` for what is none.
pub fn question(bytes: &[u8]) -> Option<Question> {
    // A query with one question and no answers.
    let flags = be16(bytes, 2)?;
    if flags & 0xf800 != 0 || be16(bytes, 4)? != 1 || be16(bytes, 6)? != 0 {
        return None;
    }
    // Its name is written out: there is nothing before it that it could point to.
    let (found, end) = name(bytes, HEADER)?;
    let length = if found.is_empty() { 1 } else { found.len() + 2 };
    if end != HEADER + length { None } else { asked(bytes) }
}

fn asked(bytes: &[u8]) -> Option<Question> {
    let (found, at) = name(bytes, HEADER)?;
    let kind = be16(bytes, at)?;
    be16(bytes, at + 2)?;
    Some(Question { id: be16(bytes, 0)?, name: text(&found), kind, end: at + 4 })
}

/// Addresses that a message gives for the question's name, through the aliases in it, each with how long it holds.
pub fn addresses(bytes: &[u8]) -> Vec<(IpAddr, Duration)> {
    read_addresses(bytes).unwrap_or_default()
}

struct Record<'a> {
    owner: Vec<u8>,
    kind: u16,
    ttl: u32,
    data: &'a [u8],
    /// Where the data is.
    at: usize,
}

/// The answers of a message, from `at` on.
fn records(bytes: &[u8], mut at: usize) -> Option<Vec<Record<'_>>> {
    let mut found = Vec::new();
    for _ in 0..be16(bytes, 6)?.min(512) {
        let Some((owner, end)) = name(bytes, at) else { break };
        let (Some(kind), Some(class), Some(length)) =
            (be16(bytes, end), be16(bytes, end + 2), be16(bytes, end + 8))
        else {
            break;
        };
        let ttl = u32::from(be16(bytes, end + 4)?) << 16 | u32::from(be16(bytes, end + 6)?);
        let Some(data) = bytes.get(end + 10..end + 10 + usize::from(length)) else { break };
        if class == IN {
            found.push(Record { owner, kind, ttl, data, at: end + 10 });
        }
        at = end + 10 + usize::from(length);
    }
    Some(found)
}

/// The name that the question's leads to, through the aliases in the message, and the names on the way.
fn follow(bytes: &[u8], records: &[Record<'_>]) -> Option<Vec<Vec<u8>>> {
    let mut names = vec![name(bytes, HEADER)?.0];
    while names.len() <= CHAIN {
        let alias = records.iter().find(|record| names.last() == Some(&record.owner) && record.kind == CNAME);
        match alias.and_then(|record| name(bytes, record.at)) {
            Some((next, _)) => names.push(next),
            None => break,
        }
    }
    Some(names)
}

/// Names that the question's is an alias of, by the message.
pub fn aliases(bytes: &[u8]) -> Vec<String> {
    let read = || {
        let (_, at) = name(bytes, HEADER)?;
        follow(bytes, &records(bytes, at + 4)?)
    };
    read().unwrap_or_default().iter().skip(1).filter_map(|name| text(name)).collect()
}

fn read_addresses(bytes: &[u8]) -> Option<Vec<(IpAddr, Duration)>> {
    let (_, at) = name(bytes, HEADER)?;
    let records = records(bytes, at + 4)?;
    let wanted = follow(bytes, &records)?.pop()?;
    let found = records.iter().filter(|record| record.owner == wanted).filter_map(|record| {
        let address = match record.kind {
            A => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(record.data).ok()?)),
            AAAA => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(record.data).ok()?)),
            _ => return None,
        };
        Some((address, Duration::from_secs(record.ttl.into())))
    });
    Some(found.collect())
}

/// Whether `bytes` answers the query, and with what code (RFC 1035, 4.1.1).
pub fn answers(bytes: &[u8], query: &Question) -> Option<u8> {
    let flags = be16(bytes, 2)?;
    let same = || {
        let own = asked(bytes)?;
        Some((own.id, own.name, own.kind) == (query.id, query.name.clone(), query.kind))
    };
    // A server that understood nothing may leave the question out.
    let code = (flags & 15) as u8;
    let empty = be16(bytes, 4)? == 0 && code != 0 && be16(bytes, 0)? == query.id;
    (flags & 0x8000 != 0 && (empty || same()?)).then_some(code)
}

/// SERVFAIL: nobody could be asked.
pub const SERVER_FAILED: u8 = 2;
/// NXDOMAIN.
pub const NO_SUCH_NAME: u8 = 3;
/// NOTIMP: questions of that kind are not answered here.
pub const NOT_IMPLEMENTED: u8 = 4;
/// REFUSED: the policy does not allow it.
pub const REFUSED: u8 = 5;

/// An answer to a query with this code and these addresses.
pub fn answer(query: &[u8], question: &Question, code: u8, addresses: &[IpAddr]) -> Vec<u8> {
    let mut bytes = query[..question.end].to_vec();
    // A response; recursion was wanted as the query says, and is there.
    bytes[2] = 0x80 | (bytes[2] & 1);
    bytes[3] = 0x80 | code;
    bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    for address in addresses {
        let (length, data) = match address {
            IpAddr::V4(address) if question.kind == A => (4, address.octets().to_vec()),
            IpAddr::V6(address) if question.kind == AAAA => (16, address.octets().to_vec()),
            _ => continue,
        };
        bytes.extend([0xc0, NAME]);
        bytes.extend(question.kind.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 60]);
        bytes.extend([0, length]);
        bytes.extend(data);
        bytes[7] += 1;
    }
    bytes
}

/// The answer to the same question that there is no such name.
pub fn denied(answer: &[u8], question: &Question) -> Vec<u8> {
    // It has answered this question, so that far it is like the query.
    match answer.get(..question.end) {
        Some(_) => self::answer(answer, question, NO_SUCH_NAME, &[]),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    #[test]
    fn a_question_is_read_whatever_its_letters() {
        let bytes = query("ExAmPle.ORG", A);
        let question = question(&bytes).unwrap();
        assert_eq!((question.name.as_deref(), question.kind, question.id), (Some("example.org"), A, 0x1234));
        let address = [IpAddr::from([192, 0, 2, 7])];
        let reply = answer(&bytes, &question, 0, &address);
        assert_eq!(answers(&reply, &question), Some(0));
        assert_eq!(addresses(&reply), [(address[0], Duration::from_secs(60))]);
        let other = super::question(&query("example.com", A)).unwrap();
        assert_eq!(answers(&reply, &other), None);
        assert_eq!(answers(&answer(&bytes, &question, NO_SUCH_NAME, &[]), &question), Some(NO_SUCH_NAME));
    }

    #[test]
    fn a_name_that_loops_or_ends_early_is_none() {
        let mut bytes = query("a", A);
        bytes[12..14].copy_from_slice(&[0xc0, 12]);
        assert_eq!(question(&bytes), None);
        // Nor is one that points behind itself a question.
        let behind = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 18, 0, 1, 0, 1, 0];
        assert_eq!(question(&behind), None);
        for length in 0..query("example.org", A).len() {
            assert_eq!(question(&query("example.org", A)[..length]), None);
        }
        assert_eq!(question(&query("bad name", A)).unwrap().name, None);
    }

    #[test]
    fn only_addresses_that_the_aliases_lead_to_are_the_names() {
        let mut bytes = query("a.test", A);
        bytes[2] = 0x80;
        bytes[7] = 3;
        // "b" of the same domain, which the first record makes the question's alias.
        let (start, alias) = (bytes.len(), [1, b'b', 0xc0, 14]);
        bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 4]);
        bytes.extend(alias);
        let target = [0xc0, start as u8 + 12];
        bytes.extend(target);
        bytes.extend([0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
        // And one of a name that has nothing to do with it.
        bytes.extend([1, b'x', 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 66]);
        assert_eq!(addresses(&bytes), [(IpAddr::from([192, 0, 2, 1]), Duration::from_secs(9))]);
    }
}
