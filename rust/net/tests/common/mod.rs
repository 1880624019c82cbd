//! What tests of the stack share: a guest's end of the link, and a broker that does as it is told.
#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use supermachine_net::{
    Addresses, Broker, Ended, Frame, Header, Offloads, Output, Question, Stack, Watch, wire,
};

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 15);
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const ADDRESSES: Addresses = Addresses {
    guest_mac: [2, 0, 0, 0, 0, 15],
    gateway_mac: [2, 0, 0, 0, 0, 2],
    guest: GUEST,
    gateway: GATEWAY,
    v6: Some((GUEST_V6, GATEWAY_V6)),
};

/// Keeps questions for the test.
#[derive(Default)]
pub(crate) struct Questions {
    pub asked: VecDeque<Question>,
    pub closed: Vec<(u64, Ended)>,
    pub accepted: Vec<u64>,
    /// What was said first, by flow.
    pub first: Vec<(u64, Vec<u8>, bool)>,
    pub gone: bool,
}

impl Broker for Questions {
    const FIRST: usize = 16 * 1024;

    fn ask(&mut self, question: &Question) -> bool {
        self.asked.push_back(*question);
        !self.gone
    }

    fn first(&mut self, flow: u64, bytes: Vec<u8>, ended: bool) {
        self.first.push((flow, bytes, ended));
    }

    fn accepted(&mut self, flow: u64) {
        self.accepted.push(flow);
    }

    fn closed(&mut self, flow: u64, how: Ended) {
        self.closed.push((flow, how));
    }
}

/// Flows whose sockets somebody waits for.
#[derive(Default)]
pub(crate) struct Watched(pub BTreeMap<i32, (u64, bool, bool)>);

impl Watch for Watched {
    fn watch(&mut self, socket: BorrowedFd<'_>, flow: u64, read: bool, write: bool, new: bool) {
        let before = self.0.insert(socket.as_raw_fd(), (flow, read, write));
        assert!(before.is_none() || !new);
    }

    fn forget(&mut self, socket: BorrowedFd<'_>) {
        assert!(self.0.remove(&socket.as_raw_fd()).is_some());
    }
}

/// The guest's receive queue.
#[derive(Default)]
pub(crate) struct Queue {
    pub frames: VecDeque<(Header, Vec<u8>)>,
    pub room: usize,
}

impl Output for Queue {
    fn has_room(&mut self) -> bool {
        self.frames.len() < self.room
    }

    fn send(&mut self, header: &Header, pieces: &[&[u8]]) -> bool {
        let room = self.has_room();
        if room {
            self.frames.push_back((*header, pieces.concat()));
        }
        room
    }
}

pub(crate) type TestStack = Stack<Questions, Watched>;

pub(crate) fn stack(offloads: Offloads) -> TestStack {
    let mut stack = Stack::new(ADDRESSES, Questions::default(), Watched::default());
    stack.set_offloads(offloads);
    stack
}

/// A frame from the guest.
pub(crate) fn give(stack: &mut TestStack, bytes: &[u8], now: Instant) {
    // Two spans, with a virtio header before them that is skipped.
    let cut = bytes.len() / 2;
    let header = [0_u8; 12];
    let span =
        |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let spans = [span(&header), span(&bytes[..cut]), span(&bytes[cut..])];
    // SAFETY: the spans are slices that outlive the call.
    let frame = unsafe { Frame::new(&spans, header.len()) };
    stack.receive(frame, false, now);
}

/// A frame from the guest, of IPv6.
pub(crate) fn packet(ends: (Ipv6Addr, Ipv6Addr), protocol: u8, body: &[u8]) -> Vec<u8> {
    let macs = (ADDRESSES.guest_mac, ADDRESSES.gateway_mac);
    let ends: (IpAddr, IpAddr) = (ends.0.into(), ends.1.into());
    [wire::Writer::ip(macs, ends, protocol, body.len(), 1, 0).bytes(), body].concat()
}

/// A body with its checksum, which is there.
pub(crate) fn with_sum(ends: (Ipv6Addr, Ipv6Addr), protocol: u8, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = wire::checksum(&body, wire::pseudo(ends.0.into(), ends.1.into(), protocol, body.len()));
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    body
}

/// The guest pings somebody.
pub(crate) fn echo(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let ends = (source, destination);
    packet(ends, wire::ICMPV6, &with_sum(ends, wire::ICMPV6, vec![128, 0, 0, 0, 0, 7, 0, 1, 1, 2], 2))
}

/// The frames that one for the guest stands for: its segments, with their checksums.
pub(crate) fn segments(header: &Header, bytes: &[u8]) -> Vec<Vec<u8>> {
    if !header.needs_checksum {
        assert_eq!(header.segment, 0);
        return vec![bytes.to_vec()];
    }
    let ip = wire::ip(bytes, bytes.len()).unwrap();
    let tcp = wire::tcp(&bytes[ip.at..]).unwrap();
    let start = ip.at + tcp.header;
    assert_eq!((usize::from(header.checksum_start), header.checksum_offset), (ip.at, 16));
    let partial = wire::fold(wire::pseudo(ip.source, ip.destination, wire::TCP, ip.length));
    assert_eq!(bytes[ip.at + 16..ip.at + 18], partial.to_be_bytes());
    let size = if header.segment == 0 { bytes.len() } else { usize::from(header.segment) };
    if header.segment > 0 {
        assert_eq!(usize::from(header.header_bytes), start);
        assert!(bytes.len() - start > size);
    }
    let payload = &bytes[start..];
    let count = payload.len().div_ceil(size).max(1);
    let mut made = Vec::new();
    for number in 0..count {
        let piece = &payload[number * size..payload.len().min((number + 1) * size)];
        let flags = if number + 1 < count { tcp.flags & !(wire::FIN | wire::PSH) } else { tcp.flags };
        let length = tcp.header + piece.len();
        let ends = (ip.source, ip.destination);
        let writer = wire::Writer::ip(
            (bytes[6..12].try_into().unwrap(), bytes[..6].try_into().unwrap()),
            ends,
            wire::TCP,
            length,
            0,
            0,
        );
        let mut frame = writer.bytes().to_vec();
        frame.extend(&bytes[ip.at..start]);
        frame.extend(piece);
        frame[ip.at + 4..ip.at + 8]
            .copy_from_slice(&tcp.seq.wrapping_add((number * size) as u32).to_be_bytes());
        frame[ip.at + 13] = flags;
        frame[ip.at + 16..ip.at + 18].fill(0);
        let sum = wire::checksum(&frame[ip.at..], wire::pseudo(ends.0, ends.1, wire::TCP, length));
        frame[ip.at + 16..ip.at + 18].copy_from_slice(&sum.to_be_bytes());
        made.push(frame);
    }
    made
}
