//! ICMP: echo requests, and what tells the guest that a datagram goes nowhere.

use std::net::IpAddr;
use std::time::Instant;

use crate::broker::{Broker, Protocol, Refusal, Watch};
use crate::frame::Frame;
use crate::stack::{Key, Stack};
use crate::wire::{self, Ip, Writer};

const ECHO: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);
const PORT_UNREACHABLE: [u8; 2] = [3, 3];
const PORT_UNREACHABLE_V6: [u8; 2] = [1, 4];
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

impl<B: Broker, W: Watch> Stack<B, W> {
    pub(crate) fn icmp(&mut self, head: &[u8], ip: &Ip, message: Frame<'_>, now: Instant) {
        let v6 = ip.source.is_ipv6();
        if (ip.protocol == wire::ICMPV6) != v6 || message.len() < 8 {
            return;
        }
        let mut start = [0; 8];
        message.copy_to(&mut start);
        let (request, reply) = if v6 { ECHO_V6 } else { ECHO };
        if v6 && start[0] == SOLICITATION {
            return self.neighbour(ip, &message.to_vec());
        }
        // By an address that is not its own the guest finds its neighbours alone.
        if v6 && self.addresses.v6.is_none_or(|(guest, _)| ip.source != guest) {
            return;
        }
        let id = u16::from_be_bytes([start[4], start[5]]);
        let (guest, remote) = (wire::end(ip.source, id), wire::end(ip.destination, 0));
        let key = Key { protocol: Protocol::Icmp, guest, remote };
        match [start[0], start[1]] {
            request_or if request_or == [request, 0] => {}
            // To who pings the guest.
            answer if answer == [reply, 0] && self.keys.contains_key(&key) => {
                return self.datagram(key, message, head, ip, now);
            }
            PORT_UNREACHABLE if !v6 => return self.not_taken(&message.part(8, 28).to_vec()),
            PORT_UNREACHABLE_V6 if v6 => return self.not_taken(&message.part(8, 48).to_vec()),
            _ => return,
        }
        let here = match ip.destination {
            IpAddr::V4(address) => address == self.addresses.gateway,
            IpAddr::V6(address) => self.addresses.v6.is_some_and(|(_, gateway)| gateway == address),
        };
        if here {
            let mut bytes = message.to_vec();
            bytes[0] = reply;
            return self.send_icmp((ip.destination, ip.source), bytes);
        }
        self.datagram(key, message, head, ip, now);
    }

    /// An echo or the answer to one, under the identifier that the guest knows it by: the host's kernel, or who pings
    /// the guest, has put another there.
    pub(crate) fn send_echo(&mut self, key: &Key, message: &[u8]) {
        let (request, reply) = if key.guest.is_ipv6() { ECHO_V6 } else { ECHO };
        if message.len() >= 8 && (message[..2] == [request, 0] || message[..2] == [reply, 0]) {
            let mut bytes = message.to_vec();
            bytes[4..6].copy_from_slice(&key.guest.port().to_be_bytes());
            self.send_icmp((key.remote.ip(), key.guest.ip()), bytes);
        }
    }

    /// Sends a message, whose checksum is made here, in as many fragments as it takes.
    fn send_icmp(&mut self, ends: (IpAddr, IpAddr), mut bytes: Vec<u8>) {
        bytes[2..4].fill(0);
        let v6 = ends.0.is_ipv6();
        let protocol = if v6 { wire::ICMPV6 } else { wire::ICMP };
        let pseudo = if v6 { wire::pseudo(ends.0, ends.1, protocol, bytes.len()) } else { 0 };
        let sum = wire::checksum(&bytes, pseudo);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        self.send_packets(ends, protocol, &bytes);
    }

    /// Tells the guest that the packet with these headers goes nowhere (RFC 792; RFC 4443, 3.1).
    pub(crate) fn unreachable(&mut self, headers: &[u8], refusal: Refusal) {
        let Some(ip) = wire::ip(headers, usize::MAX) else { return };
        let v6 = ip.source.is_ipv6();
        let code = match (refusal, v6) {
            (Refusal::Denied, false) => 13,
            (Refusal::Denied, true) => 1,
            (Refusal::Refused, false) => 3,
            (Refusal::Refused, true) => 4,
            (Refusal::Unreachable, false) => 1,
            (Refusal::Unreachable, true) => 0,
        };
        let mut message = vec![if v6 { 1 } else { 3 }, code, 0, 0, 0, 0, 0, 0];
        message.extend(&headers[wire::ETHERNET..]);
        // Of a TCP segment the guest's kernel heeds it too; of ICMP errors there is none that brings an error.
        let from = match ip.source {
            IpAddr::V4(_) => IpAddr::V4(self.addresses.gateway),
            IpAddr::V6(_) => match self.addresses.v6 {
                Some((_, gateway)) => IpAddr::V6(gateway),
                None => return,
            },
        };
        self.send_icmp((from, ip.source), message);
    }

    /// A neighbour solicitation (RFC 4861, 4.3): every address but the guest's own is the gateway's.
    fn neighbour(&mut self, ip: &Ip, message: &[u8]) {
        let Some((guest, _)) = self.addresses.v6 else { return };
        let Some(target) = message.get(8..24).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()) else {
            return;
        };
        let target = std::net::Ipv6Addr::from(target);
        // From no address: the guest asks whether its own is taken.
        if target == guest || ip.source.is_unspecified() {
            return;
        }
        let mut answer = vec![ADVERTISEMENT, 0, 0, 0, 0x60, 0, 0, 0];
        answer.extend(target.octets());
        answer.extend([2, 1]);
        answer.extend(self.addresses.gateway_mac);
        self.send_icmp((target.into(), ip.source), answer);
    }

    /// Sends a transport's bytes to the guest, in fragments where they do not fit a frame (RFC 791, 3.2; RFC 8200,
    /// 4.5).
    pub(crate) fn send_packets(&mut self, ends: (IpAddr, IpAddr), protocol: u8, bytes: &[u8]) {
        /// What fits a frame of 1500 bytes: whole, and in a piece, whose length is a multiple of 8.
        const PIECE: usize = 1480;
        const WHOLE_V6: usize = 1460;
        const PIECE_V6: usize = 1448;
        let macs = (self.addresses.gateway_mac, self.addresses.guest_mac);
        let (v6, id) = (ends.0.is_ipv6(), self.take_id());
        if v6 && bytes.len() <= WHOLE_V6 {
            let writer = Writer::ip(macs, ends, protocol, bytes.len(), id, 0);
            return self.push_answer([writer.bytes(), bytes].concat());
        }
        let most = if v6 { PIECE_V6 } else { PIECE };
        let pieces = bytes.len().div_ceil(most).max(1);
        if self.answers.len() + pieces > crate::limits::ANSWERS {
            return;
        }
        for number in 0..pieces {
            let from = number * most;
            let piece = &bytes[from..bytes.len().min(from + most)];
            let more = number + 1 < pieces;
            let offset = u16::try_from(from).expect("a datagram has less than 64 KiB");
            let writer = if v6 {
                let length = wire::FRAGMENT_HEADER + piece.len();
                let mut writer = Writer::ip(macs, ends, wire::FRAGMENT, length, id, 0);
                writer.put(&[protocol, 0]);
                writer.put(&(offset | u16::from(more)).to_be_bytes());
                writer.put(&u32::from(id).to_be_bytes());
                writer
            } else {
                let more = if more { 0x2000 } else { 0 };
                Writer::ip(macs, ends, protocol, piece.len(), id, (offset / 8) | more)
            };
            self.push_answer([writer.bytes(), piece].concat());
        }
    }

    /// A datagram from a flow's other end.
    pub(crate) fn send_datagram(&mut self, key: &Key, payload: &[u8]) {
        if key.protocol == Protocol::Icmp {
            return self.send_echo(key, payload);
        }
        let ends = (key.remote.ip(), key.guest.ip());
        let length = 8 + payload.len();
        let mut bytes = Vec::with_capacity(length);
        let Ok(total) = u16::try_from(length) else { return };
        for field in [key.remote.port(), key.guest.port(), total, 0] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(payload);
        let sum = wire::checksum(&bytes, wire::pseudo(ends.0, ends.1, wire::UDP, length));
        // All zeros would say that there is none.
        bytes[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
        self.send_packets(ends, wire::UDP, &bytes);
    }
}
