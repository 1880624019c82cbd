//! Flows that come to the guest: connections to its ports, and pings.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::broker::{Broker, Call, Ended, Protocol, Watch};
use crate::limits;
use crate::stack::{Key, Kind, Stack, is_nobody};
use crate::tcp::{Connection, Fate};
use crate::udp::Datagrams;
use crate::wire;

impl<B: Broker, W: Watch> Stack<B, W> {
    /// Somebody at the other end of `socket` wants a flow with the guest. The broker hears whether the guest takes it.
    pub fn call(&mut self, call: &Call, socket: OwnedFd, now: Instant) {
        let Some(key) = self.key_of(call) else {
            return self.broker.closed(call.flow, Ended::Unreachable);
        };
        if call.protocol == Protocol::Tcp {
            let connection = Connection::opening(self.first_number(&key), socket, now);
            self.insert_as(call.flow, key, Kind::Tcp(Box::new(connection)), now);
            return self.settle(call.flow, Fate::Lives, now);
        }
        if self.datagram_flows >= limits::UDP_FLOWS {
            self.make_room();
        }
        let mut datagrams = Datagrams::new(Vec::new(), now);
        // Nothing waits in it yet that could not be sent.
        let _ = datagrams.granted(socket);
        self.datagram_flows += 1;
        self.insert_as(call.flow, key, Kind::Datagrams(Box::new(datagrams)), now);
        self.broker.accepted(call.flow);
        self.settle(call.flow, Fate::Lives, now);
    }

    /// The flow's ends as the guest sees them; none where there can be no such flow. A source whose port is taken gets
    /// another.
    fn key_of(&self, call: &Call) -> Option<Key> {
        let guest = match call.source.ip() {
            IpAddr::V4(_) => IpAddr::V4(self.addresses.guest),
            IpAddr::V6(_) => IpAddr::V6(self.addresses.v6?.0),
        };
        let source = call.source.ip();
        if source == guest
            || is_nobody(source)
            || source.is_loopback()
            || self.flows.len() >= limits::FLOWS
            || self.flows.contains_key(&call.flow)
        {
            return None;
        }
        let wanted = call.source.port();
        let ports = (wanted..=u16::MAX).chain(1024..wanted.max(1024));
        let key = |port| match call.protocol {
            Protocol::Icmp => {
                Key { protocol: Protocol::Icmp, guest: wire::end(guest, port), remote: wire::end(source, 0) }
            }
            protocol => Key { protocol, guest: wire::end(guest, call.port), remote: wire::end(source, port) },
        };
        // At most as many are taken as there are flows.
        ports.take(limits::FLOWS + 1).map(key).find(|key| !self.keys.contains_key(key))
    }

    /// The guest says that nobody takes the datagram which this was the head of (RFC 1122, 3.2.2.1; RFC 4443, 3.1).
    pub(crate) fn not_taken(&mut self, head: &[u8]) {
        let (addresses, ports) = match head {
            [0x45, _, _, _, _, _, _, _, _, wire::UDP, _, _, ends @ ..] => ends.split_at_checked(8),
            [0x60..=0x6f, _, _, _, _, _, wire::UDP, _, ends @ ..] => ends.split_at_checked(32),
            _ => None,
        }
        .unwrap_or_default();
        let &[a, b, c, d, ..] = ports else { return };
        let end = |address: &[u8], port| {
            let v4 = <[u8; 4]>::try_from(address).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(address).map(IpAddr::from);
            v4.or(v6).ok().map(|address| wire::end(address, u16::from_be_bytes(port)))
        };
        let (remote, guest) = addresses.split_at(addresses.len() / 2);
        let (Some(remote), Some(guest)) = (end(remote, [a, b]), end(guest, [c, d])) else { return };
        let key = Key { protocol: Protocol::Udp, guest, remote };
        if let Some(id) = self.keys.get(&key).copied().filter(|id| id & crate::broker::INCOMING != 0) {
            self.end(id, Ended::Reset);
        }
    }
}
