//! What IPv6 has that IPv4 has not: neighbours in place of ARP, and fragments with a header of their own.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::net::Ipv6Addr;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use common::{ADDRESSES, GATEWAY_V6, GUEST_V6, Queue, TestStack, echo, give, packet, stack, with_sum};
use supermachine_net::{Call, Ended, INCOMING, Offloads, Protocol, wire};

const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const STRANGER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 99);

fn sent(stack: &mut TestStack, now: Instant) -> Vec<Vec<u8>> {
    let mut queue = Queue { room: 100, ..Default::default() };
    stack.flush(&mut queue, now);
    queue.frames.into_iter().map(|(_, frame)| frame).collect()
}

#[test]
fn every_neighbour_is_the_gateway_and_nobody_else_is_served() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    for target in [GATEWAY_V6, STRANGER] {
        let ends = (GUEST_V6, target);
        let question =
            [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1, 2, 0, 0, 0, 0, 15]].concat();
        give(&mut stack, &packet(ends, wire::ICMPV6, &with_sum(ends, wire::ICMPV6, question, 2)), now);
        let answer = sent(&mut stack, now).pop().unwrap();
        let ip = wire::ip(&answer, answer.len()).unwrap();
        assert_eq!((ip.source, ip.destination), (target.into(), GUEST_V6.into()));
        let pseudo = wire::pseudo(ip.source, ip.destination, wire::ICMPV6, ip.length);
        assert_eq!(wire::checksum(&answer[ip.at..], pseudo), 0);
        assert_eq!((answer[ip.at], &answer[ip.at + 8..ip.at + 24]), (136, &target.octets()[..]));
        assert!(answer.ends_with(&ADDRESSES.gateway_mac));
    }
    give(&mut stack, &echo(GUEST_V6, GATEWAY_V6), now);
    assert_eq!(sent(&mut stack, now)[0][54], 129);
    // By an address that is not its own the guest reaches neither the gateway nor anybody else.
    give(&mut stack, &echo(STRANGER, GATEWAY_V6), now);
    give(&mut stack, &echo(STRANGER, SERVER), now);
    let ends = (STRANGER, SERVER);
    let mut segment = vec![0; 20];
    (segment[3], segment[12], segment[13]) = (80, 0x50, wire::SYN);
    give(&mut stack, &packet(ends, wire::TCP, &with_sum(ends, wire::TCP, segment, 16)), now);
    assert!(sent(&mut stack, now).is_empty() && stack.broker().asked.is_empty());
}

fn come(stack: &mut TestStack, protocol: Protocol, now: Instant) -> UnixDatagram {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let call = Call { flow: INCOMING | 1, protocol, source: (SERVER, 5000).into(), port: 53 };
    stack.call(&call, ours.into(), now);
    theirs
}

#[test]
fn who_comes_is_told_that_nobody_takes_the_datagram() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let caller = come(&mut stack, Protocol::Udp, now);
    caller.send(b"question").unwrap();
    stack.event(INCOMING | 1, true, false, now);
    let frame = sent(&mut stack, now).pop().unwrap();
    let ip = wire::ip(&frame, frame.len()).unwrap();
    assert_eq!((ip.source, ip.destination), (SERVER.into(), GUEST_V6.into()));
    assert_eq!(wire::udp(&frame[ip.at..]), Some((5000, 53, 16)));
    let ends = (GUEST_V6, SERVER);
    let mut quoted = frame[wire::ETHERNET..].to_vec();
    // Of another flow, and of no transport, it ends nothing.
    for (at, other) in [(43, 54), (6, wire::TCP), (42, 0)] {
        assert!(stack.broker().closed.is_empty(), "{at}");
        let right = std::mem::replace(&mut quoted[at], other);
        let message = [&[1, 4, 0, 0, 0, 0, 0, 0], &quoted[..]].concat();
        give(&mut stack, &packet(ends, wire::ICMPV6, &with_sum(ends, wire::ICMPV6, message, 2)), now);
        quoted[at] = right;
    }
    assert_eq!(stack.broker().closed, [(INCOMING | 1, Ended::Reset)]);
}

#[test]
fn who_comes_to_a_guest_that_has_turned_it_off_is_not_kept_waiting() {
    let (mut stack, mut now) = (stack(Offloads::default()), Instant::now());
    let begun = now;
    let _caller = come(&mut stack, Protocol::Tcp, now);
    while stack.flows() > 0 {
        sent(&mut stack, now);
        now = stack.deadline().unwrap();
        stack.tick(now);
    }
    assert_eq!(stack.broker().closed, [(INCOMING | 1, Ended::Refused)]);
    assert!(now - begun < Duration::from_secs(5));
    // One that has spoken by it is given the usual time.
    stack.broker().closed.clear();
    let _caller = come(&mut stack, Protocol::Tcp, now);
    give(&mut stack, &echo(GUEST_V6, GATEWAY_V6), now);
    let begun = now;
    while stack.flows() > 0 {
        sent(&mut stack, now);
        now = stack.deadline().unwrap();
        stack.tick(now);
    }
    assert_eq!(stack.broker().closed, [(INCOMING | 1, Ended::Unreachable)]);
    assert!(now - begun > Duration::from_secs(60));
}

#[test]
fn datagrams_in_fragments_are_whole_on_the_other_side() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let payload: Vec<u8> = (0..5000_u32).map(|n| (n * 7) as u8).collect();
    let ends = (GUEST_V6, SERVER);
    let length = (8 + payload.len()) as u16;
    let header: Vec<u8> = [5000, 53, length, 0].iter().flat_map(|field: &u16| field.to_be_bytes()).collect();
    let datagram = with_sum(ends, wire::UDP, [header, payload.clone()].concat(), 6);
    let pieces: Vec<_> = datagram.chunks(1200).collect();
    for (number, piece) in pieces.iter().enumerate().rev() {
        let more = u16::from(number + 1 < pieces.len());
        let field = (number * 1200) as u16 | more;
        let body = [&[wire::UDP, 0][..], &field.to_be_bytes(), &[0, 0, 0, 9], piece].concat();
        give(&mut stack, &packet(ends, wire::FRAGMENT, &body), now);
    }
    let question = stack.broker().asked.pop_front().unwrap();
    assert_eq!((question.protocol, question.destination), (Protocol::Udp, (SERVER, 53).into()));
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    stack.answer(question.flow, Ok(ours.into()), now);
    let mut got = vec![0; 10_000];
    let n = theirs.recv(&mut got).unwrap();
    assert!(got[..n] == payload);

    theirs.send(&payload).unwrap();
    stack.event(question.flow, true, false, now);
    let mut whole = Vec::new();
    for frame in sent(&mut stack, now) {
        assert!(frame.len() <= 14 + 1500);
        let ip = wire::ip(&frame, frame.len()).unwrap();
        let (_, offset, more) = ip.fragment.unwrap();
        assert_eq!((ip.protocol, offset), (wire::UDP, whole.len()));
        whole.extend(&frame[ip.at..ip.at + ip.length]);
        assert_eq!(more, whole.len() < datagram.len());
    }
    assert!(whole[8..] == payload);
    let pseudo = wire::pseudo(SERVER.into(), GUEST_V6.into(), wire::UDP, whole.len());
    assert_eq!(wire::checksum(&whole, pseudo), 0);
}
