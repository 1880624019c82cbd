//! One rule of a policy, as users write it: `TARGET[:PORTS][/PROTOCOL]`.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::address::{self, Class};
use supermachine_proto::agent::HOST_NAMES;
use supermachine_proto::netd::Protocol;

/// Bytes of a rule at most.
const MAX_BYTES: usize = 512;

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// In small letters, without a dot at its end.
    Name(String),
    /// Names that end with a dot and this.
    Below(String),
    /// Addresses that begin alike.
    Network {
        /// The first of them.
        address: IpAddr,
        /// Bits that are alike: 0 to 32, or 128 for IPv6.
        prefix: u8,
    },
    /// Addresses of a kind.
    Group(Group),
}

/// Kinds of addresses that rules name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// "public".
    Public,
    /// "private".
    Private,
    /// "host".
    Host,
    /// "meta".
    Metadata,
    /// All of them but metadata and link-local addresses.
    Any,
}

/// What a user allows or denies: TARGET[:PORTS][/tcp|udp|icmp].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As it was written.
    pub text: String,
    /// Whom it is about.
    pub target: Target,
    /// Empty for all.
    pub ports: Vec<RangeInclusive<u16>>,
    /// `None` for all.
    pub protocol: Option<Protocol>,
}

/// Why a text is no rule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a rule: {what}; a rule is TARGET[:PORTS][/tcp|udp|icmp], where TARGET is a name, *.name, an address, a network as 10.0.0.0/8, or one of public, private, host, meta and any"
)]
pub struct NotARule {
    text: String,
    what: &'static str,
}

impl Rule {
    /// Reads a rule of at most 512 bytes.
    pub fn parse(text: &str) -> Result<Self, NotARule> {
        let wrong = |what| NotARule { text: text.chars().take(80).collect(), what };
        if text.len() > MAX_BYTES {
            return Err(wrong("it is too long"));
        }
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
            Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
            Some((rest, "icmp")) => (rest, Some(Protocol::Icmp)),
            _ => (text, None),
        };
        // An address of IPv6 has colons of its own, so its ports come after brackets.
        let bare = rest.split('/').next().unwrap_or_default().parse::<std::net::Ipv6Addr>().is_ok();
        let (target, ports) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (target, after) = rest.split_once(']').ok_or_else(|| wrong("a bracket is not closed"))?;
                match after.strip_prefix(':') {
                    Some(ports) => (target, Some(ports)),
                    None if after.is_empty() => (target, None),
                    None => return Err(wrong("only ports may follow the bracket")),
                }
            }
            None if bare => (rest, None),
            None => match rest.split_once(':') {
                Some((target, ports)) => (target, Some(ports)),
                None => (rest, None),
            },
        };
        let ports = match ports {
            Some(_) if protocol == Some(Protocol::Icmp) => return Err(wrong("icmp has no ports")),
            Some(ports) => parse_ports(ports).ok_or_else(|| wrong("its ports are none"))?,
            None => Vec::new(),
        };
        let target = parse_target(target).map_err(wrong)?;
        Ok(Self { text: text.into(), target, ports, protocol })
    }

    /// Whether it is about this port and protocol.
    pub fn concerns(&self, protocol: Protocol, port: u16) -> bool {
        // A port of no number stands for any: where names are looked up.
        self.protocol.is_none_or(|own| own == protocol)
            && (self.ports.is_empty() || self.ports.iter().any(|range| range.contains(&port)))
    }

    /// Whether it is about a flow to this address, of this class, which was found under these names.
    pub fn matches(&self, to: IpAddr, class: Class, names: &[&str], protocol: Protocol, port: u16) -> bool {
        self.concerns(protocol, port)
            && match &self.target {
                Target::Name(name) if HOST_NAMES.contains(&name.as_str()) => class == Class::Host,
                Target::Name(_) | Target::Below(_) => names.iter().any(|name| self.names(name)),
                Target::Network { address, prefix } => contains(*address, *prefix, to),
                Target::Group(group) => group.holds(class),
            }
    }

    /// Whether it is about this name.
    pub fn names(&self, name: &str) -> bool {
        match &self.target {
            Target::Name(own) => own == name,
            Target::Below(above) => {
                name.strip_suffix(above.as_str()).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
            }
            _ => false,
        }
    }

    /// Whether it names metadata or link-local addresses, or the host, and does not just include them.
    pub fn means(&self, class: Class) -> bool {
        match &self.target {
            Target::Network { address, prefix } => {
                let long = *prefix >= if address.is_ipv4() { 16 } else { 10 };
                long && address::class(*address) == class
                    || *prefix == if address.is_ipv4() { 32 } else { 128 }
            }
            Target::Group(group) => *group != Group::Any || class == Class::Host,
            Target::Name(name) => HOST_NAMES.contains(&name.as_str()),
            Target::Below(_) => false,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Group {
    /// Whether addresses of this kind are meant.
    pub fn holds(self, class: Class) -> bool {
        match self {
            Self::Public => class == Class::Public,
            Self::Private => class == Class::Private,
            Self::Host => class == Class::Host,
            Self::Metadata => matches!(class, Class::Metadata | Class::LinkLocal),
            Self::Any => !matches!(class, Class::Metadata | Class::LinkLocal),
        }
    }
}

fn parse_ports(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let port = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u16>().ok().filter(|port| *port != 0),
        false => None,
    };
    text.split(',')
        .map(|part| match part.split_once('-') {
            Some((first, last)) => {
                let (first, last) = (port(first)?, port(last)?);
                (first <= last).then_some(first..=last)
            }
            None => port(part).map(|port| port..=port),
        })
        .collect()
}

fn parse_target(text: &str) -> Result<Target, &'static str> {
    let group = match text {
        "public" => Some(Group::Public),
        "private" => Some(Group::Private),
        "host" => Some(Group::Host),
        "meta" => Some(Group::Metadata),
        "any" => Some(Group::Any),
        _ => None,
    };
    if let Some(group) = group {
        return Ok(Target::Group(group));
    }
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    if let Ok(address) = address.parse::<IpAddr>() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                prefix.parse().ok().filter(|prefix| *prefix <= most).ok_or("its prefix is too long")?
            }
            Some(_) => return Err("its prefix is no number"),
            None => most,
        };
        if masked(address, prefix) != masked(address, most) {
            return Err("its address has bits beyond its prefix");
        }
        return Ok(Target::Network { address, prefix });
    }
    if prefix.is_some() {
        return Err("what follows the slash is no protocol, and what precedes it no address");
    }
    let (name, below) = match text.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (text, false),
    };
    let name = normal(name).ok_or("its target is no name")?;
    // What old resolvers read as an address (inet_aton) is not a name that anybody means.
    if name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x"))
    {
        return Err("its target looks like an address and is none");
    }
    Ok(if below { Target::Below(name) } else { Target::Name(name) })
}

/// A host name in small letters, without a dot at its end; `None` for what is none (RFC 1123, and underscores).
pub fn normal(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    (name.len() <= 253 && name.split('.').all(label)).then(|| name.to_ascii_lowercase())
}

fn masked(address: IpAddr, prefix: u8) -> u128 {
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let host = width - u32::from(prefix).min(width);
    bits.checked_shr(host).unwrap_or(0).checked_shl(host).unwrap_or(0)
}

fn contains(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    let same = |address: IpAddr| {
        network.is_ipv4() == address.is_ipv4() && masked(network, prefix) == masked(address, prefix)
    };
    same(address) || same(address::plain(address))
}
