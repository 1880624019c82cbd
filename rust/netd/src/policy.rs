//! What the guest may reach.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use supermachine_proto::agent::HOST_NAMES;
use supermachine_proto::netd::{self, Preset, Protocol};

use crate::address::Class;
use crate::rules::{NotARule, Rule, Target};

const HTTPS: u16 = 443;

/// A policy whose rules have been read.
#[derive(Debug)]
pub struct Policy {
    preset: Preset,
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

/// By what a flow is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// By its address.
    Address,
    /// Only by a name that its address was found under.
    Name,
}

/// Why something is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// As the user has written it.
    pub rule: Option<String>,
    /// A part of a sentence: "no rule allows it".
    pub reason: &'static str,
    /// A rule that would allow it; empty where none could.
    pub remedy: String,
}

impl Policy {
    /// Reads the rules; an error names the first that is none.
    pub fn new(policy: &netd::Policy) -> Result<Self, NotARule> {
        let rules =
            |texts: &[String]| -> Result<Vec<_>, _> { texts.iter().map(|text| Rule::parse(text)).collect() };
        Ok(Self { preset: policy.preset, allow: rules(&policy.allow)?, deny: rules(&policy.deny)? })
    }

    /// Whether a flow to this address, which was found under these names, may be.
    pub fn flow(
        &self,
        to: IpAddr,
        class: Class,
        names: &[&str],
        protocol: Protocol,
        port: u16,
    ) -> Result<Basis, Denied> {
        let remedy = || remedy(to, class, names, protocol, port);
        let denied = |rule: Option<&Rule>, reason, remedy| {
            Err(Denied { rule: rule.map(|rule| rule.text.clone()), reason, remedy })
        };
        if let Some(rule) = self.deny.iter().find(|rule| rule.matches(to, class, names, protocol, port)) {
            return denied(Some(rule), "a rule denies it", String::new());
        }
        let special = matches!(class, Class::Metadata | Class::LinkLocal | Class::Host);
        let (mut by_name, mut named) = (false, None);
        for rule in self.allow.iter().filter(|rule| rule.matches(to, class, names, protocol, port)) {
            match rule.target {
                // Whoever serves a name says where it leads, so it leads to public addresses only.
                Target::Name(_) | Target::Below(_)
                    if !(class == Class::Public || special && rule.means(class)) =>
                {
                    by_name = true;
                }
                Target::Name(_) | Target::Below(_) if class == Class::Public => {
                    // Of a rule that says so, QUIC as well.
                    named = Some(named == Some(true) || rule.protocol == Some(Protocol::Udp));
                }
                _ if special && !rule.means(class) => {}
                _ => return Ok(Basis::Address),
            }
        }
        if let (Some(udp), true) = (named, self.preset == Preset::Nothing) {
            return match protocol {
                // It encrypts the name that it is for. Clients go back to TCP.
                Protocol::Udp if port == HTTPS && !udp => {
                    let remedy = names.first().map_or_else(String::new, |name| format!("{name}:{port}/udp"));
                    denied(None, "rules for names are held by TCP alone, not by QUIC", remedy)
                }
                _ => Ok(Basis::Name),
            };
        }
        if by_name && named.is_none() {
            return denied(None, "its name leads to an address that is not public", remedy());
        }
        match (self.preset, class) {
            (_, Class::Metadata | Class::LinkLocal) => {
                denied(None, "metadata and link-local addresses must be named to be allowed", remedy())
            }
            (Preset::All, _) | (Preset::Public, Class::Public) => Ok(Basis::Address),
            (Preset::Public, Class::Host) => denied(None, "it is the host", remedy()),
            (Preset::Public, _) => denied(None, "its address is not public", remedy()),
            (Preset::Nothing, _) => denied(None, "no rule allows it", remedy()),
        }
    }

    /// Whether a flow to another machine of a private segment may be. What has put both there allows it; rules deny.
    pub fn member(&self, to: IpAddr, names: &[&str], protocol: Protocol, port: u16) -> Result<Basis, Denied> {
        let denies = |rule: &&Rule| rule.matches(to, Class::Private, names, protocol, port);
        match self.deny.iter().find(denies) {
            None => Ok(Basis::Address),
            Some(rule) => Err(Denied {
                rule: Some(rule.text.clone()),
                reason: "a rule denies it",
                remedy: String::new(),
            }),
        }
    }

    /// The rule that denies all that has this name, as an error.
    pub fn denied_name(&self, name: &str) -> Option<Denied> {
        let denies = |rule: &&Rule| rule.names(name) && rule.ports.is_empty() && rule.protocol.is_none();
        let rule = self.deny.iter().find(denies)?;
        Some(Denied { rule: Some(rule.text.clone()), reason: "a rule denies it", remedy: String::new() })
    }

    /// Whether this name may be looked up: who serves it learns of the question, so that is a flow as well.
    pub fn name(&self, name: &str) -> Result<(), Denied> {
        if let Some(denied) = self.denied_name(name) {
            return Err(denied);
        }
        let named = |rules: &[Rule]| rules.iter().find(|rule| rule.names(name)).cloned();
        let all = |rule: &Rule| matches!(rule.target, Target::Group(group) if group.holds(Class::Public));
        if self.preset != Preset::Nothing || named(&self.allow).is_some() || self.allow.iter().any(all) {
            return Ok(());
        }
        Err(Denied { rule: None, reason: "no rule allows the name", remedy: name.into() })
    }

    /// Whether a connection to this port that says it is for `name` may be; it was found under `pinned` names.
    pub fn presents(
        &self,
        name: &str,
        to: IpAddr,
        class: Class,
        pinned: &[&str],
        basis: Basis,
        port: u16,
    ) -> Result<(), Denied> {
        let denies = |rule: &&Rule| rule.names(name) && rule.concerns(Protocol::Tcp, port);
        if let Some(rule) = self.deny.iter().find(denies) {
            let rule = Some(rule.text.clone());
            return Err(Denied { rule, reason: "a rule denies it", remedy: String::new() });
        }
        match basis {
            Basis::Address => Ok(()),
            Basis::Name if !pinned.contains(&name) => Err(Denied {
                rule: None,
                reason: "it is for a name that does not lead to this address",
                remedy: String::new(),
            }),
            Basis::Name => self.flow(to, class, &[name], Protocol::Tcp, port).map(drop),
        }
    }

    /// Whether some names are denied.
    pub fn denies_names(&self) -> bool {
        self.deny.iter().any(|rule| matches!(rule.target, Target::Name(_) | Target::Below(_)))
    }

    /// Whether names are a boundary: only some may be looked up.
    pub fn is_by_name(&self) -> bool {
        self.preset == Preset::Nothing
    }
}

fn remedy(to: IpAddr, class: Class, names: &[&str], protocol: Protocol, port: u16) -> String {
    let end = match protocol {
        Protocol::Icmp => "/icmp".into(),
        _ => format!(":{port}"),
    };
    match (class, names) {
        (Class::Host, _) => format!("host{end}"),
        (Class::Public, [name, ..]) => format!("{name}{end}"),
        (Class::Special, _) => String::new(),
        _ if to.is_ipv6() && protocol != Protocol::Icmp => format!("[{to}]{end}"),
        _ => format!("{to}{end}"),
    }
}

/// Whether the name is one of the host's.
pub fn is_host_name(name: &str) -> bool {
    HOST_NAMES.contains(&name)
}

/// Addresses kept at most, and names for each.
const ADDRESSES: usize = 8192;
const NAMES: usize = 16;
/// How long an address is its name's at least: programs look up once and go on connecting.
const LEAST: Duration = Duration::from_secs(300);
const MOST: Duration = Duration::from_secs(86_400);

/// Which names addresses were found under, by this guest.
#[derive(Default)]
pub struct Pins {
    names: BTreeMap<IpAddr, Vec<(String, Instant)>>,
    order: VecDeque<IpAddr>,
}

impl Pins {
    /// An answer of a name server says that `name` has `address` for so long; it is held for no less and no more than
    /// the bounds above.
    pub fn add(&mut self, address: IpAddr, name: &str, ttl: Duration, now: Instant) {
        let until = now + ttl.clamp(LEAST, MOST);
        if !self.names.contains_key(&address) {
            if self.order.len() >= ADDRESSES
                && let Some(oldest) = self.order.pop_front()
            {
                self.names.remove(&oldest);
            }
            self.order.push_back(address);
        }
        let names = self.names.entry(address).or_default();
        names.retain(|(own, at)| own != name && *at > now);
        if names.len() >= NAMES {
            names.remove(0);
        }
        names.push((name.into(), until));
    }

    /// The names, the latest first.
    pub fn names(&self, address: IpAddr, now: Instant) -> Vec<&str> {
        let names = self.names.get(&address).map(Vec::as_slice).unwrap_or_default();
        names.iter().rev().filter(|(_, until)| *until > now).map(|(name, _)| name.as_str()).collect()
    }
}
