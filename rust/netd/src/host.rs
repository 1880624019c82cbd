//! What the host says of names: its name servers and its own table. Read once, before the process is confined.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::rules;

/// Bytes of a file that are looked at, and name servers that are asked (resolv.conf(5), MAXNS).
const MAX_BYTES: usize = 1 << 20;
const MAX_SERVERS: usize = 3;

/// What is known of the host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub servers: Vec<SocketAddr>,
    /// Names, in small letters.
    pub names: BTreeMap<String, Vec<IpAddr>>,
}

impl Host {
    pub fn read() -> Self {
        let read = |path| {
            let mut bytes = fs::read(path).unwrap_or_default();
            bytes.truncate(MAX_BYTES);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self { servers: servers(&read("/etc/resolv.conf")), names: names(&read("/etc/hosts")) }
    }
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found: Vec<_> = words
        .filter_map(|words| match words[..] {
            ["nameserver", address, ..] => Some(SocketAddr::new(address.parse().ok()?, 53)),
            _ => None,
        })
        .take(MAX_SERVERS)
        .collect();
    if found.is_empty() {
        // As resolv.conf(5) has it.
        found.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    found
}

fn names(text: &str) -> BTreeMap<String, Vec<IpAddr>> {
    let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words.filter_map(rules::normal) {
            found.entry(name).or_default().push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_hosts_own_resolver_does() {
        let found = servers(
            "search a.test\nnameserver 192.0.2.1\n#nameserver 1.1.1.1\nnameserver fd00::1\nnameserver x\n",
        );
        assert_eq!(found, ["192.0.2.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
        assert_eq!(servers(""), ["127.0.0.1:53".parse().unwrap()]);
        let found = names("127.0.0.1 localhost\n192.0.2.9\tBox box.test # comment\n::1 localhost\n");
        assert_eq!(found["box"], ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(found["localhost"].len(), 2);
    }
}
