//! What the gateway answers on the guest's link: ARP and DHCP.

use std::net::Ipv4Addr;

use crate::broker::{Broker, Protocol, Watch};
use crate::stack::Stack;
use crate::wire::{self, Writer};

/// Ethernet and IPv4 (RFC 826).
const HARDWARE: [u8; 6] = [0, 1, 8, 0, 6, 4];
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Seconds.
const LEASE: u32 = 86_400;

impl<B: Broker, W: Watch> Stack<B, W> {
    /// Every address but the guest's own is the gateway's.
    pub(crate) fn arp(&mut self, head: &[u8]) {
        let Some(request) = head.get(wire::ETHERNET..wire::ETHERNET + 28) else { return };
        let target = &request[24..28];
        if request[..6] != HARDWARE || request[6..8] != [0, 1] || target == self.addresses.guest.octets() {
            return;
        }
        let (gateway, guest) = (self.addresses.gateway_mac, self.addresses.guest_mac);
        let mut answer = Writer::ethernet(gateway, guest, wire::ARP);
        answer.put(&HARDWARE);
        answer.put(&[0, 2]);
        answer.put(&gateway);
        answer.put(target);
        answer.put(&guest);
        answer.put(&request[14..18]);
        self.push_answer(answer.bytes().to_vec());
    }

    /// A DHCP client gets the one address that there is (RFC 2131).
    pub(crate) fn dhcp(&mut self, request: &[u8]) {
        if request.len() < 240 || request[0] != 1 || request[236..240] != COOKIE {
            return;
        }
        let mut options = &request[240..];
        let mut kind = None;
        while let [code, rest @ ..] = options {
            options = match (code, rest) {
                (0, rest) => rest,
                (255, _) => break,
                (code, [length, rest @ ..]) if rest.len() >= usize::from(*length) => {
                    let (value, rest) = rest.split_at(usize::from(*length));
                    if *code == 53 {
                        kind = value.first().copied();
                    }
                    rest
                }
                _ => return,
            };
        }
        let answer = match kind {
            Some(1) => 2,
            Some(3) => 5,
            _ => return,
        };
        let (guest, gateway) = (self.addresses.guest, self.addresses.gateway);
        let mut reply = vec![0; 240];
        reply[..4].copy_from_slice(&[2, 1, 6, 0]);
        reply[4..12].copy_from_slice(&request[4..12]);
        reply[16..20].copy_from_slice(&guest.octets());
        reply[20..24].copy_from_slice(&gateway.octets());
        reply[28..44].copy_from_slice(&request[28..44]);
        reply[236..240].copy_from_slice(&COOKIE);
        reply.extend([53, 1, answer]);
        for (code, value) in [
            (1, [255, 255, 255, 0]),
            (3, gateway.octets()),
            (6, gateway.octets()),
            (51, LEASE.to_be_bytes()),
            (54, gateway.octets()),
        ] {
            reply.extend([code, 4]);
            reply.extend(value);
        }
        reply.push(255);
        let guest = wire::end(Ipv4Addr::BROADCAST.into(), 68);
        let key = crate::stack::Key { protocol: Protocol::Udp, guest, remote: wire::end(gateway.into(), 67) };
        self.send_datagram(&key, &reply);
    }
}
