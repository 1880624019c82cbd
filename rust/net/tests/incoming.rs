//! Flows that come to the guest, whose answers are made here segment by segment.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use common::{ADDRESSES, GUEST, Queue, TestStack, give, stack};
use supermachine_net::{Call, Ended, INCOMING, Offloads, Protocol, Refusal, wire};

const CALLER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: u16 = 80;

fn call(number: u64, protocol: Protocol, port: u16) -> Call {
    Call { flow: INCOMING | number, protocol, source: (CALLER, port).into(), port: PORT }
}

fn come(stack: &mut TestStack, number: u64, port: u16, now: Instant) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    stack.call(&call(number, Protocol::Tcp, port), ours.into(), now);
    theirs
}

fn come_by_datagrams(stack: &mut TestStack, call: &Call, now: Instant) -> UnixDatagram {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    stack.call(call, ours.into(), now);
    theirs
}

/// What the guest is sent: its frames' IP packets.
fn sent(stack: &mut TestStack, now: Instant) -> Vec<Vec<u8>> {
    let mut queue = Queue { room: 100, ..Default::default() };
    stack.flush(&mut queue, now);
    queue.frames.into_iter().map(|(_, frame)| frame).collect()
}

fn segment(frame: &[u8]) -> wire::Tcp {
    let ip = wire::ip(frame, frame.len()).unwrap();
    assert_eq!((ip.destination, ip.protocol), (GUEST.into(), wire::TCP));
    wire::tcp(&frame[ip.at..]).unwrap()
}

fn from_guest(stack: &mut TestStack, protocol: u8, body: &[u8], now: Instant) {
    let macs = (ADDRESSES.guest_mac, ADDRESSES.gateway_mac);
    let ends = (GUEST.into(), CALLER.into());
    let mut body = body.to_vec();
    if protocol == wire::TCP {
        let sum = wire::checksum(&body, wire::pseudo(ends.0, ends.1, protocol, body.len()));
        body[16..18].copy_from_slice(&sum.to_be_bytes());
    }
    let writer = wire::Writer::ip(macs, ends, protocol, body.len(), 1, 0);
    give(stack, &[writer.bytes(), &body].concat(), now);
}

fn answer(stack: &mut TestStack, to: &wire::Tcp, seq: u32, ack: u32, flags: u8, now: Instant) {
    let mut body = Vec::new();
    for field in [to.destination, to.source] {
        body.extend(field.to_be_bytes());
    }
    body.extend(seq.to_be_bytes());
    body.extend(ack.to_be_bytes());
    body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    from_guest(stack, wire::TCP, &body, now);
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_and_the_caller_is_left_as_it_was() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let mut caller = come(&mut stack, 1, 5000, now);
    let frames = sent(&mut stack, now);
    let syn = segment(&frames[0]);
    assert_eq!((syn.flags, syn.source, syn.destination, frames.len()), (wire::SYN, 5000, PORT, 1));
    answer(&mut stack, &syn, 0, syn.seq.wrapping_add(1), wire::RST | wire::ACK, now);
    assert_eq!(stack.broker().closed, [(INCOMING | 1, Ended::Refused)]);
    assert!(stack.broker().accepted.is_empty() && sent(&mut stack, now).is_empty());
    assert_eq!(caller.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_reset_that_answers_something_else_ends_nothing() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let _caller = come(&mut stack, 1, 5000, now);
    let syn = segment(&sent(&mut stack, now)[0]);
    answer(&mut stack, &syn, 0, syn.seq, wire::RST | wire::ACK, now);
    answer(&mut stack, &syn, 0, 0, wire::RST, now);
    assert_eq!((stack.flows(), stack.broker().closed.len()), (1, 0));
}

#[test]
fn what_the_guest_has_left_of_an_earlier_connection_is_cleared_away() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let mut caller = come(&mut stack, 1, 5000, now);
    let syn = segment(&sent(&mut stack, now)[0]);
    answer(&mut stack, &syn, 77, syn.seq.wrapping_sub(1000), wire::ACK, now);
    let reset = segment(&sent(&mut stack, now)[0]);
    assert_eq!((reset.flags, reset.seq), (wire::RST, syn.seq.wrapping_sub(1000)));
    // The SYN comes again, and now the guest takes it.
    let later = now + Duration::from_secs(2);
    stack.tick(later);
    let again = segment(&sent(&mut stack, later)[0]);
    assert_eq!((again.flags, again.seq), (wire::SYN, syn.seq));
    answer(&mut stack, &again, 500, syn.seq.wrapping_add(1), wire::SYN | wire::ACK, later);
    assert_eq!(stack.broker().accepted, [INCOMING | 1]);
    caller.write_all(b"hello").unwrap();
    stack.event(INCOMING | 1, true, false, later);
    let frames = sent(&mut stack, later);
    let told = segment(&frames[0]);
    assert_eq!((told.ack, told.flags & wire::ACK), (501, wire::ACK));
    assert!(frames.iter().any(|frame| frame.ends_with(b"hello")));
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_in_the_end() {
    let (mut stack, mut now) = (stack(Offloads::default()), Instant::now());
    let _caller = come(&mut stack, 1, 5000, now);
    for _ in 0..100 {
        sent(&mut stack, now);
        let Some(at) = stack.deadline() else { break };
        now = at;
        stack.tick(now);
    }
    assert_eq!(stack.broker().closed, [(INCOMING | 1, Ended::Unreachable)]);
}

#[test]
fn callers_with_the_same_port_are_told_apart_and_impossible_ones_refused() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let _callers = [1, 2, 3].map(|number| come(&mut stack, number, 65_535, now));
    let mut ports: Vec<u16> = sent(&mut stack, now).iter().map(|frame| segment(frame).source).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3);
    for (number, source) in ["10.0.2.15:5", "127.0.0.1:5", "224.0.0.1:5", "[fd00::1]:5"].iter().enumerate() {
        let call = Call { source: source.parse().unwrap(), ..call(number as u64, Protocol::Udp, 5) };
        come_by_datagrams(&mut stack, &call, now);
    }
    let refused = (0..4).map(|number| (INCOMING | number, Ended::Unreachable)).collect::<Vec<_>>();
    assert_eq!(stack.broker().closed, refused);
}

#[test]
fn datagrams_go_both_ways_until_nobody_takes_them() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let caller = come_by_datagrams(&mut stack, &call(1, Protocol::Udp, 5353), now);
    assert_eq!(stack.broker().accepted, [INCOMING | 1]);
    caller.send(b"question").unwrap();
    stack.event(INCOMING | 1, true, false, now);
    let frames = sent(&mut stack, now);
    let ip = wire::ip(&frames[0], frames[0].len()).unwrap();
    assert_eq!(wire::udp(&frames[0][ip.at..]), Some((5353, PORT, 16)));
    let body = [&PORT.to_be_bytes()[..], &5353_u16.to_be_bytes(), &[0, 14, 0, 0], b"answer"].concat();
    from_guest(&mut stack, wire::UDP, &body, now);
    let mut buffer = [0; 16];
    assert_eq!(caller.recv(&mut buffer).unwrap(), 6);
    // The guest's kernel quotes the headers of what it could not give to anybody.
    let quoted = &frames[0][wire::ETHERNET..wire::ETHERNET + 28];
    let mut unreachable = [&[3, 3, 0, 0, 0, 0, 0, 0], quoted].concat();
    let sum = wire::checksum(&unreachable, 0);
    unreachable[2..4].copy_from_slice(&sum.to_be_bytes());
    from_guest(&mut stack, wire::ICMP, &unreachable, now);
    assert_eq!(stack.broker().closed, [(INCOMING | 1, Ended::Reset)]);
    assert!(caller.send(b"more").is_err());
}

#[test]
fn pings_come_and_their_answers_go_back() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let caller = come_by_datagrams(&mut stack, &Call { port: 0, ..call(1, Protocol::Icmp, 7) }, now);
    // What is neither an echo nor the answer to one is not passed on: a redirect would turn the guest's routes.
    caller.send(&[5, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]).unwrap();
    caller.send(&[8, 0, 0, 0, 99, 99, 0, 1, b'p']).unwrap();
    stack.event(INCOMING | 1, true, false, now);
    assert_eq!(sent(&mut stack, now).len(), 0);
    stack.event(INCOMING | 1, true, false, now);
    let frames = sent(&mut stack, now);
    assert_eq!(frames.len(), 1);
    let ip = wire::ip(&frames[0], frames[0].len()).unwrap();
    let mut echo = frames[0][ip.at..].to_vec();
    assert_eq!((echo[0], &echo[4..]), (8, &[0, 7, 0, 1, b'p'][..]));
    echo[0] = 0;
    from_guest(&mut stack, wire::ICMP, &echo, now);
    let mut buffer = [0; 16];
    assert_eq!(caller.recv(&mut buffer).unwrap(), 9);
    assert_eq!((buffer[0], &buffer[6..9]), (0, &[0, 1, b'p'][..]));
    // An answer that nobody has asked for leads to no question.
    echo[5] = 8;
    from_guest(&mut stack, wire::ICMP, &echo, now);
    assert_eq!((stack.broker().asked.len(), stack.flows()), (0, 1));
}

#[test]
fn a_flood_of_what_the_guest_is_not_given_holds_up_nobody() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let caller = come_by_datagrams(&mut stack, &Call { port: 0, ..call(1, Protocol::Icmp, 7) }, now);
    while caller.send(&[]).is_ok() {}
    for _ in 0..3 {
        stack.event(INCOMING | 1, true, false, now);
        assert_eq!(sent(&mut stack, now).len(), 0);
        // One was looked at.
        assert!(caller.send(&[]).is_ok());
        assert!(caller.send(&[]).is_err());
    }
}

#[test]
fn a_flow_that_is_taken_back_is_reset() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let _caller = come(&mut stack, 1, 5000, now);
    let syn = segment(&sent(&mut stack, now)[0]);
    answer(&mut stack, &syn, 9, syn.seq.wrapping_add(1), wire::SYN | wire::ACK, now);
    sent(&mut stack, now);
    stack.revoke(INCOMING | 1, Refusal::Unreachable, now);
    assert_eq!(segment(&sent(&mut stack, now)[0]).flags & wire::RST, wire::RST);
    assert_eq!((stack.flows(), &stack.broker().closed[..]), (0, &[(INCOMING | 1, Ended::Reset)][..]));
}

#[test]
fn a_socket_is_asked_about_once_for_each_thing_that_it_tells() {
    let (mut stack, now) = (stack(Offloads::default()), Instant::now());
    let mut caller = come(&mut stack, 1, 5000, now);
    let syn = segment(&sent(&mut stack, now)[0]);
    answer(&mut stack, &syn, 9, syn.seq.wrapping_add(1), wire::SYN | wire::ACK, now);
    sent(&mut stack, now);
    let asked =
        |stack: &mut TestStack| std::mem::take(&mut stack.watcher().0).into_values().collect::<Vec<_>>();
    assert_eq!(asked(&mut stack), [(INCOMING | 1, true, false)]);
    let mut ack = syn.seq.wrapping_add(1);
    for _ in 0..3 {
        // What the guest says changes nothing: it is watched still.
        answer(&mut stack, &syn, 10, ack, wire::ACK, now);
        sent(&mut stack, now);
        assert_eq!(asked(&mut stack), []);
        caller.write_all(b"x").unwrap();
        stack.event(INCOMING | 1, true, false, now);
        assert!(sent(&mut stack, now)[0].ends_with(b"x"));
        assert_eq!(asked(&mut stack), [(INCOMING | 1, true, false)]);
        ack = ack.wrapping_add(1);
    }
}
