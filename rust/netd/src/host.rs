//! What the host says of names: its name servers and its own table. Read once, before the process is confined.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use crate::rules;

/// Bytes of a file that are looked at, and name servers that are asked (resolv.conf(5), MAXNS).
const MAX_BYTES: usize = 1 << 20;
const MAX_SERVERS: usize = 3;

/// Where macOS has name servers of single domains (resolver(5)), and how many domains are looked at.
const SCOPED: &str = "/etc/resolver";
const MAX_SCOPED: usize = 256;

/// Domains that are searched, and bytes of them (resolv.conf(5)).
const MAX_SEARCH: usize = 32;
const MAX_SEARCH_BYTES: usize = 1024;
const MAX_NDOTS: u8 = 15;

/// Where the host's resolver looks for a name that is not whole. Guests do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// In the order in which they are tried.
    pub domains: Vec<String>,
    /// Dots of a name that is tried as it is first, 0 to 15.
    pub ndots: u8,
}

impl Search {
    /// From /etc/resolv.conf; nothing where it cannot be read.
    pub fn read() -> Self {
        search(&read("/etc/resolv.conf"))
    }
}

/// What is known of the host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Name servers of /etc/resolv.conf.
    pub servers: Vec<SocketAddr>,
    /// Name servers of a domain and of all below it, by the domain in small letters, where the host has some.
    pub scoped: BTreeMap<String, Vec<SocketAddr>>,
    /// Names, in small letters.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// Certificates, in DER, of the authorities that it trusts: those of the system, or of SSL_CERT_FILE and
    /// SSL_CERT_DIR. They are read when there are secrets alone.
    pub roots: Vec<Vec<u8>>,
}

impl Host {
    /// From /etc/resolv.conf and /etc/hosts, and with `roots` the certificates; what cannot be read is empty.
    pub fn read(roots: bool) -> Self {
        let roots = if roots { rustls_native_certs::load_native_certs().certs } else { Vec::new() };
        Self {
            servers: servers(&read("/etc/resolv.conf")),
            scoped: if cfg!(target_os = "macos") { scoped(Path::new(SCOPED)) } else { BTreeMap::new() },
            names: names(&read("/etc/hosts")),
            roots: roots.iter().map(|der| der.to_vec()).collect(),
        }
    }

    /// Who is asked for this name: those of the longest domain that it is in.
    pub fn servers_of(&self, name: Option<&str>) -> &[SocketAddr] {
        let mut rest = name;
        while let (Some(domain), false) = (rest, self.scoped.is_empty()) {
            if let Some(servers) = self.scoped.get(domain) {
                return servers;
            }
            rest = domain.split_once('.').map(|(_, above)| above);
        }
        &self.servers
    }
}

/// Whether the host has a way to public addresses of IPv6. Nothing is sent.
pub fn has_route_v6() -> bool {
    // Any global unicast address (RFC 4291, 2.5.4) that no special network has.
    let somebody = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1), 9);
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    socket.is_ok_and(|socket| socket.connect(somebody).is_ok())
}

fn read(path: impl AsRef<Path>) -> String {
    let mut bytes = fs::read(path).unwrap_or_default();
    bytes.truncate(MAX_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn search(text: &str) -> Search {
    let mut found = Search { domains: Vec::new(), ndots: 1 };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            // Of several lines the last one counts.
            Some("search" | "domain") => {
                let mut bytes = 0;
                found.domains = words
                    .filter_map(rules::normal)
                    .take(MAX_SEARCH)
                    .take_while(|domain| {
                        bytes += domain.len() + 1;
                        bytes <= MAX_SEARCH_BYTES
                    })
                    .collect();
            }
            Some("options") => {
                let ndots =
                    words.filter_map(|word| word.strip_prefix("ndots:")?.parse::<u8>().ok()).next_back();
                found.ndots = ndots.map_or(found.ndots, |ndots| ndots.min(MAX_NDOTS));
            }
            _ => {}
        }
    }
    found
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

/// Of a directory of resolver(5), macOS's, whose files have a domain's servers each. Those that programs alone tell its
/// resolver of, as some VPNs do, are in no file.
fn scoped(directory: &Path) -> BTreeMap<String, Vec<SocketAddr>> {
    let mut found = BTreeMap::new();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.take(MAX_SCOPED) {
        let text = read(entry.path());
        let lines = || text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let last = |key: &str| {
            lines().filter_map(|words| (words.first() == Some(&key)).then_some(*words.get(1)?)).next_back()
        };
        let file = entry.file_name();
        let domain = last("domain").or(file.to_str()).and_then(rules::normal);
        let port = last("port").map_or(Some(53), |port| port.parse().ok());
        let (Some(domain), Some(port)) = (domain, port) else { continue };
        let servers: Vec<_> = lines()
            .filter_map(|words| match words[..] {
                ["nameserver", server, ..] => scoped_server(server, port),
                _ => None,
            })
            .take(MAX_SERVERS)
            .collect();
        if !servers.is_empty() {
            found.insert(domain, servers);
        }
    }
    found
}

/// An address, which may have a port behind a dot.
fn scoped_server(text: &str, port: u16) -> Option<SocketAddr> {
    let whole = text.parse().map(|address| SocketAddr::new(address, port));
    whole.ok().or_else(|| {
        let (address, port) = text.rsplit_once('.')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    })
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
        let found = search("domain a.test\nsearch B.test c.test. bad/name\noptions edns0 ndots:5\n");
        assert_eq!(found, Search { domains: vec!["b.test".into(), "c.test".into()], ndots: 5 });
        assert_eq!(search(""), Search { domains: vec![], ndots: 1 });
        assert!(search(&format!("search {}", "long.test ".repeat(500))).domains.len() <= MAX_SEARCH);
        let found = names("127.0.0.1 localhost\n192.0.2.9\tBox box.test # comment\n::1 localhost\n");
        assert_eq!(found["box"], ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(found["localhost"].len(), 2);
    }

    #[test]
    fn a_domain_with_servers_of_its_own_is_asked_there() {
        let place = std::env::temp_dir().join(format!("resolver-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        for (file, text) in [
            ("corp.test", "# office\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nport 5300\n"),
            ("lab", "domain Lab.corp.test.\nnameserver 127.0.0.1.5353\nnameserver fd00::1\nnameserver x\n"),
            ("empty.test", "search_order 1\n"),
            ("odd.test", "nameserver 192.0.2.3\nport many\n"),
            ("no name", "nameserver 192.0.2.3\n"),
        ] {
            fs::write(place.join(file), text).unwrap();
        }
        let scoped = scoped(&place);
        fs::remove_dir_all(&place).unwrap();
        assert_eq!(scoped.keys().collect::<Vec<_>>(), ["corp.test", "lab.corp.test"]);
        let host = Host { servers: servers("nameserver 192.0.2.9"), scoped, ..Host::default() };
        for (name, expected) in [
            ("corp.test", "192.0.2.1:5300 192.0.2.2:5300"),
            ("a.b.corp.test", "192.0.2.1:5300 192.0.2.2:5300"),
            ("lab.corp.test", "127.0.0.1:5353 [fd00::1]:53"),
            ("x.lab.corp.test", "127.0.0.1:5353 [fd00::1]:53"),
            ("notcorp.test", "192.0.2.9:53"),
            ("test", "192.0.2.9:53"),
        ] {
            let found: Vec<_> = host.servers_of(Some(name)).iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), expected, "{name}");
        }
        assert_eq!(host.servers_of(None).len(), 1);
        assert!(super::scoped(Path::new("/nonexistent")).is_empty());
    }
}
