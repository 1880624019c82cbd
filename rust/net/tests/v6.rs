//! What IPv6 has that IPv4 has not: neighbours in place of ARP, and fragments with a header of their own.

mod common;

use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use common::{ADDRESSES, GATEWAY_V6, GUEST_V6, Queue, TestStack, give, stack};
use supermachine_net::{Offloads, Protocol, wire};

const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const STRANGER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 99);

fn packet(ends: (Ipv6Addr, Ipv6Addr), protocol: u8, body: &[u8]) -> Vec<u8> {
    let macs = (ADDRESSES.guest_mac, ADDRESSES.gateway_mac);
    let ends: (IpAddr, IpAddr) = (ends.0.into(), ends.1.into());
    [wire::Writer::ip(macs, ends, protocol, body.len(), 1, 0).bytes(), body].concat()
}

fn with_sum(ends: (Ipv6Addr, Ipv6Addr), protocol: u8, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = wire::checksum(&body, wire::pseudo(ends.0.into(), ends.1.into(), protocol, body.len()));
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    body
}

fn sent(stack: &mut TestStack, now: Instant) -> Vec<Vec<u8>> {
    let mut queue = Queue { room: 100, ..Default::default() };
    stack.flush(&mut queue, now);
    queue.frames.into_iter().map(|(_, frame)| frame).collect()
}

fn echo(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let ends = (source, destination);
    packet(ends, wire::ICMPV6, &with_sum(ends, wire::ICMPV6, vec![128, 0, 0, 0, 0, 7, 0, 1, 1, 2], 2))
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
