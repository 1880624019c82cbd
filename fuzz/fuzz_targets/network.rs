//! A guest's frames into the stack of its network, with a broker and servers that do as the input says.
//!
//! The input is a row of steps, each an opcode and what it takes. Whatever comes, what is kept stays within the limits,
//! and nothing is left when the guest's driver starts over.
#![no_main]

use std::collections::VecDeque;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use supermachine_net::{
    Addresses, Broker, Call, Ended, Frame, Header, INCOMING, Offloads, Output, Protocol, Question, Refusal,
    Stack, Watch, limits, wire,
};

const ADDRESSES: Addresses = Addresses {
    guest_mac: [2, 0, 0, 0, 0, 15],
    gateway_mac: [2, 0, 0, 0, 0, 2],
    guest: Ipv4Addr::new(10, 0, 2, 15),
    gateway: Ipv4Addr::new(10, 0, 2, 2),
    v6: Some((Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 15), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2))),
};

#[derive(Default)]
struct Questions(VecDeque<u64>);

impl Broker for Questions {
    const FIRST: usize = supermachine_proto::netd::FIRST;

    fn ask(&mut self, question: &Question) -> bool {
        self.0.push_back(question.flow);
        self.0.len() < 64
    }

    fn first(&mut self, _: u64, bytes: Vec<u8>, _: bool) {
        assert!(bytes.len() <= Self::FIRST);
    }

    fn accepted(&mut self, flow: u64) {
        assert!(flow & INCOMING != 0);
    }

    fn closed(&mut self, flow: u64, _: Ended) {
        self.0.retain(|asked| *asked != flow);
    }
}

struct Nobody;

impl Watch for Nobody {
    fn watch(&mut self, _: BorrowedFd<'_>, _: u64, _: bool, _: bool, _: bool) {}
    fn forget(&mut self, _: BorrowedFd<'_>) {}
}

/// The guest's buffers. The last sequence number is what its next segments acknowledge.
struct Queue {
    room: usize,
    acknowledged: u32,
}

impl Output for Queue {
    fn has_room(&mut self) -> bool {
        self.room > 0
    }

    fn send(&mut self, header: &Header, pieces: &[&[u8]]) -> bool {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        assert!((14..=65_549).contains(&length));
        assert!(usize::from(header.header_bytes) <= length);
        if self.room > 0 {
            let bytes = pieces[0];
            if let Some(segment) = wire::ip(bytes, length).and_then(|ip| wire::tcp(&bytes[ip.at..])) {
                self.acknowledged = segment.seq.wrapping_add(1);
            }
            self.room -= 1;
            return true;
        }
        false
    }
}

type Guest = Stack<Questions, Nobody>;

fn give(stack: &mut Guest, bytes: &[u8], now: Instant) {
    let span = [libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }];
    // SAFETY: the span is the slice, which outlives the call.
    let frame = unsafe { Frame::new(&span, 0) };
    stack.receive(frame, true, now);
}

fn packet(protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let macs = (ADDRESSES.guest_mac, ADDRESSES.gateway_mac);
    let ends = (ADDRESSES.guest.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let writer = wire::Writer::ip(macs, ends, protocol, body.len(), 7, fragment);
    [writer.bytes(), body].concat()
}

fuzz_target!(
    init: {
        // As Rust's own `main` does, which there is none of here: a write to a socket that has gone is an error.
        // SAFETY: there is no other thread yet.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    },
    |data: &[u8]| {
    let mut data = data;
    let mut stack = Stack::new(ADDRESSES, Questions::default(), Nobody);
    let offloads = data.first().is_some_and(|byte| byte & 1 == 1);
    stack.set_offloads(Offloads { checksum: offloads, segments_v4: offloads, segments_v6: offloads });
    let (mut now, mut servers) = (Instant::now(), Vec::<UnixStream>::new());
    let mut queue = Queue { room: 0, acknowledged: 0 };
    let (mut seq, mut last) = (1_u32, 0_u64);
    while let [opcode, length, rest @ ..] = data {
        let (body, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        data = rest;
        let at = |at: usize| body.get(at).copied().unwrap_or(0);
        match opcode % 11 {
            0 => give(&mut stack, body, now),
            1 => give(&mut stack, &packet(at(0), u16::from_be_bytes([at(1), at(2)]), body), now),
            // A segment that fits: ports, flags, a distance from the next number, a window, payload.
            2 => {
                let number = seq.wrapping_add_signed(i32::from(at(2) as i8));
                let flags = at(1);
                let payload = body.get(4..).unwrap_or_default();
                let mut segment = vec![0x80, at(0) & 3, 0, 80];
                segment.extend(number.to_be_bytes());
                segment.extend(queue.acknowledged.to_be_bytes());
                segment.extend([0x50, flags, at(3), 0xff, 0, 0, 0, 0]);
                segment.extend(payload);
                give(&mut stack, &packet(wire::TCP, 0, &segment), now);
                let ends = flags & (wire::SYN | wire::FIN);
                seq = number.wrapping_add(payload.len() as u32).wrapping_add(u32::from(ends != 0));
            }
            3 => {
                if let Some(flow) = stack.broker().0.pop_front() {
                    last = flow;
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    ours.set_nonblocking(true).unwrap();
                    theirs.set_nonblocking(true).unwrap();
                    servers.push(theirs);
                    stack.answer(flow, Ok(ours.into()), now);
                }
            }
            4 => {
                if let Some(flow) = stack.broker().0.pop_front() {
                    stack.answer(flow, Err(Refusal::Denied), now);
                }
            }
            5 => {
                if let Some(server) = servers.last_mut() {
                    let _ = server.write(&vec![at(0); 64 * usize::from(*length)]);
                }
                stack.event(last, true, true, now);
            }
            6 => drop(servers.pop()),
            7 => {
                now += Duration::from_millis(u64::from(*length) * 100);
                stack.tick(now);
            }
            8 => {
                queue.room = usize::from(*length);
                stack.flush(&mut queue, now);
            }
            // Somebody comes to the guest.
            9 => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                theirs.set_nonblocking(true).unwrap();
                servers.push(theirs);
                let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp][usize::from(at(0) % 3)];
                last = INCOMING | u64::from(at(1));
                let source = (Ipv4Addr::new(192, 0, 2, at(2)), u16::from(at(3))).into();
                stack.call(&Call { flow: last, protocol, source, port: u16::from(at(4)) }, ours.into(), now);
            }
            _ => match stack.broker().0.front().copied() {
                Some(flow) if at(0) & 1 == 0 => {
                    last = flow;
                    stack.judged(flow, now);
                }
                Some(flow) => stack.more_wanted(flow, now),
                None => stack.revoke(last, Refusal::Denied, now),
            },
        }
        assert!(stack.kept() <= limits::RINGS + 4 * limits::RING && stack.flows() <= limits::FLOWS);
    }
    stack.clear();
    assert_eq!((stack.kept(), stack.flows()), (0, 0));
}
);
