//! TCP segments for the guest as frames, with what virtio-net leaves to it.

use crate::broker::{Addresses, Broker, Offloads, Watch};
use crate::frame::Header;
use crate::stack::{Key, Stack};
use crate::tcp::{Out, amount};
use crate::wire::{self, Writer};

impl<B: Broker, W: Watch> Stack<B, W> {
    /// The reset for a segment that belongs to no connection (RFC 9293, 3.10.7.1).
    pub(crate) fn reset_unknown(&mut self, key: &Key, segment: &wire::Tcp, payload: usize) {
        if segment.flags & wire::ACK != 0 {
            return self.send_reset(*key, segment.ack, None);
        }
        let numbers = u32::from(segment.flags & wire::SYN != 0) + u32::from(segment.flags & wire::FIN != 0);
        let end = segment.seq.wrapping_add(amount(payload)).wrapping_add(numbers);
        self.send_reset(*key, 0, Some(end));
    }

    pub(crate) fn send_reset(&mut self, key: Key, seq: u32, ack: Option<u32>) {
        let flags = wire::RST | if ack.is_some() { wire::ACK } else { 0 };
        let out = Out { seq, ack: ack.unwrap_or(0), flags, window: 0, offset: 0, length: 0, scale: None };
        let id = self.take_id();
        let (writer, _) = segment(&self.addresses, &key, &out, [&[], &[]], Offloads::default(), 0, id);
        self.push_answer(writer.bytes().to_vec());
    }
}

/// The headers of a segment for the guest.
pub(crate) fn segment(
    addresses: &Addresses,
    key: &Key,
    out: &Out,
    payload: [&[u8]; 2],
    offloads: Offloads,
    mss: u16,
    id: u16,
) -> (Writer, Header) {
    let syn = out.flags & wire::SYN != 0;
    let options = if syn { 4 + if out.scale.is_some() { 4 } else { 0 } } else { 0 };
    let length = 20 + options + out.length;
    let macs = (addresses.gateway_mac, addresses.guest_mac);
    let ends = (key.remote.ip(), key.guest.ip());
    let mut writer = Writer::ip(macs, ends, wire::TCP, length, id, 0x4000);
    let start = writer.bytes().len();
    writer.put(&key.remote.port().to_be_bytes());
    writer.put(&key.guest.port().to_be_bytes());
    writer.put(&out.seq.to_be_bytes());
    writer.put(&out.ack.to_be_bytes());
    let words = u8::try_from((20 + options) / 4).expect("options are few");
    writer.put(&[words << 4, out.flags]);
    writer.put(&out.window.to_be_bytes());
    writer.put(&[0; 4]);
    if syn {
        let ours = if key.guest.is_ipv6() { 1440_u16 } else { 1460 };
        writer.put(&[2, 4]);
        writer.put(&ours.to_be_bytes());
        if let Some(scale) = out.scale {
            writer.put(&[3, 3, scale, 1]);
        }
    }
    let pseudo = wire::pseudo(ends.0, ends.1, wire::TCP, length);
    let mut header = Header::default();
    if offloads.checksum {
        writer.set(start + 16, wire::fold(pseudo));
        header.needs_checksum = true;
        (header.checksum_start, header.checksum_offset) = (header_field(start), 16);
        if out.length > usize::from(mss) {
            header.segment = mss;
            header.header_bytes = header_field(writer.bytes().len());
            header.v6 = key.guest.is_ipv6();
        }
    } else {
        let sum = wire::add(&writer.bytes()[start..], pseudo);
        let sum = !wire::fold(add_pieces(payload, sum));
        writer.set(start + 16, sum);
    }
    (writer, header)
}

/// A length of headers.
fn header_field(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("headers are short")
}

/// Adds two pieces that follow each other to a sum, the first of which may be odd.
fn add_pieces(pieces: [&[u8]; 2], sum: u64) -> u64 {
    let sum = wire::add(pieces[0], sum);
    let second = wire::fold(wire::add(pieces[1], 0));
    sum + u64::from(if pieces[0].len().is_multiple_of(2) { second } else { second.swap_bytes() })
}
