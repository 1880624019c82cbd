//! Another TCP talks to ours over a link that loses and reorders: the streams come out whole, and both sides end.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use supermachine_net::{Call, INCOMING, Offloads, Protocol, wire};

/// Frames that are lost or swapped at most, and how long a conversation may take in virtual time: the peer waits up to
/// a minute before it sends again.
const TROUBLE: u32 = 40;
const LONG: Duration = Duration::from_secs(7200);

const SERVER: &str = "192.0.2.1:80";
const SERVER_V6: &str = "[2001:db8::1]:80";

/// The link as the peer sees it: IP packets in and out.
#[derive(Default)]
struct Link {
    to_peer: VecDeque<Vec<u8>>,
    from_peer: VecDeque<Vec<u8>>,
    segment: usize,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut bytes = vec![0; length];
        let result = f(&mut bytes);
        self.0.push_back(bytes);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Received, Sending<'_>)> {
        Some((Received(self.to_peer.pop_front()?), Sending(&mut self.from_peer)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.from_peer))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.segment;
        capabilities
    }
}

#[derive(Clone, Debug)]
struct Case {
    /// Percent of the frames that are lost, and that are swapped, as long as there is [`TROUBLE`] left.
    loss: u32,
    reorder: u32,
    offloads: bool,
    peer_buffer: usize,
    segment: usize,
    from_guest: usize,
    from_host: usize,
    host_chunk: usize,
    guest_chunk: usize,
    queue: usize,
    /// Bytes that the broker wants to see first; none for a connection that it grants at once.
    judged: Option<usize>,
    /// The host's side connects to the guest.
    incoming: bool,
    v6: bool,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = || prop_oneof![Just(0_usize), 1..3000_usize, 3000..200_000_usize];
    (
        (0..20_u32, 0..30_u32, any::<bool>(), 600..100_000_usize, 576..1500_usize),
        (sizes(), sizes(), 1..70_000_usize, 1..70_000_usize, 1..40_usize, any::<u64>()),
        prop_oneof![Just(None), (1..40_000_usize).prop_map(Some)],
        (any::<bool>(), any::<bool>()),
    )
        .prop_map(|((loss, reorder, offloads, peer_buffer, segment), rest, judged, (incoming, v6))| {
            let (from_guest, from_host, host_chunk, guest_chunk, queue, seed) = rest;
            Case {
                loss,
                reorder,
                offloads,
                peer_buffer,
                segment,
                from_guest,
                from_host,
                host_chunk,
                guest_chunk,
                queue,
                judged,
                incoming,
                v6,
                seed,
            }
        })
}

/// xorshift64*.
struct Dice {
    state: u64,
    trouble: u32,
}

impl Dice {
    fn roll(&mut self, percent: u32) -> bool {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % 100 < u64::from(percent)
    }
}

fn pattern(length: usize, factor: usize) -> Vec<u8> {
    (0..length).map(|n| (n * factor + n / 253) as u8).collect()
}

/// Loses and swaps what passes.
fn disturb(frames: Vec<Vec<u8>>, case: &Case, dice: &mut Dice) -> Vec<Vec<u8>> {
    let mut kept = Vec::new();
    for frame in frames {
        if dice.trouble > 0 && dice.roll(case.loss) {
            dice.trouble -= 1;
        } else {
            kept.push(frame);
        }
    }
    for at in 1..kept.len() {
        if dice.trouble > 0 && dice.roll(case.reorder) {
            dice.trouble -= 1;
            kept.swap(at - 1, at);
        }
    }
    kept
}

fn converse(case: &Case) -> Result<(), TestCaseError> {
    let mut dice = Dice { state: case.seed | 1, trouble: TROUBLE };
    let mut stack = common::stack(Offloads {
        checksum: case.offloads,
        segments_v4: case.offloads,
        segments_v6: case.offloads,
    });
    let mut link = Link { segment: case.segment, ..Link::default() };
    let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut link, SmolInstant::ZERO);
    interface.update_ip_addrs(|all| {
        all.push(IpCidr::new(common::GUEST.into(), 24)).unwrap();
        all.push(IpCidr::new(common::GUEST_V6.into(), 64)).unwrap();
    });
    interface.routes_mut().add_default_ipv4_route(common::GATEWAY).unwrap();
    interface.routes_mut().add_default_ipv6_route(common::GATEWAY_V6).unwrap();
    let remote: SocketAddr = if case.v6 { SERVER_V6 } else { SERVER }.parse().unwrap();
    let buffer = || tcp::SocketBuffer::new(vec![0; case.peer_buffer]);
    let mut sockets = SocketSet::new(vec![]);
    let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
    let client = sockets.get_mut::<tcp::Socket>(handle);
    if case.incoming {
        client.listen(80).unwrap();
    } else {
        client.connect(interface.context(), (IpAddress::from(remote.ip()), 80), 49_152).unwrap();
    }

    let (ours, mut server) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    let mut ours = Some(ours);
    let (sent_by_guest, sent_by_host) = (pattern(case.from_guest, 7), pattern(case.from_host, 11));
    let (mut at_guest, mut at_host) = (Vec::<u8>::new(), Vec::<u8>::new());
    let (mut guest_sent, mut host_sent, mut guest_closed, mut host_closed, mut host_saw_end) =
        (0, 0, false, false, false);
    let began = Instant::now();
    if case.incoming {
        // As a guest with IPv6 has long done.
        common::give(&mut stack, &common::echo(common::GUEST_V6, common::GATEWAY_V6), began);
        let source = SocketAddr::new(remote.ip(), 49_152);
        let call = Call { flow: INCOMING | 1, protocol: Protocol::Tcp, source, port: 80 };
        stack.call(&call, ours.take().unwrap().into(), began);
    }
    let mut passed = Duration::ZERO;
    while passed < LONG {
        let before = at_guest.len();
        let (now, smol_now) = (began + passed, SmolInstant::from_millis(passed.as_millis() as i64));
        interface.poll(smol_now, &mut link, &mut sockets);
        let client = sockets.get_mut::<tcp::Socket>(handle);
        if client.can_recv() {
            let take = case.guest_chunk;
            client
                .recv(|data| {
                    let n = data.len().min(take);
                    at_guest.extend(&data[..n]);
                    (n, ())
                })
                .unwrap();
        }
        if client.can_send() && guest_sent < sent_by_guest.len() {
            let end = sent_by_guest.len().min(guest_sent + case.guest_chunk);
            guest_sent += client.send_slice(&sent_by_guest[guest_sent..end]).unwrap();
        }
        if client.may_send() && guest_sent == sent_by_guest.len() && !guest_closed {
            client.close();
            guest_closed = true;
        }
        let frames = link.from_peer.drain(..).map(|packet| {
            let kind = if case.v6 { wire::IPV6 } else { wire::IPV4 }.to_be_bytes();
            [&common::ADDRESSES.gateway_mac[..], &common::ADDRESSES.guest_mac, &kind, &packet].concat()
        });
        let frames: Vec<_> = frames.collect();
        let mut quiet = frames.is_empty();
        for frame in disturb(frames, case, &mut dice) {
            common::give(&mut stack, &frame, now);
        }
        if let Some(question) = stack.broker().asked.pop_front() {
            prop_assert_eq!(question.destination, remote);
            match case.judged {
                None => stack.answer(question.flow, Ok(ours.take().unwrap().into()), now),
                Some(_) => stack.judged(question.flow, now),
            }
        }
        for (flow, bytes, ended) in std::mem::take(&mut stack.broker().first) {
            // The broker sends what it has seen itself.
            at_host.extend(bytes);
            if ended || Some(at_host.len()) >= case.judged {
                stack.answer(flow, Ok(ours.take().unwrap().into()), now);
            } else {
                stack.more_wanted(flow, now);
            }
        }
        // The server.
        if ours.is_none() {
            let mut chunk = vec![0; case.host_chunk];
            match server.read(&mut chunk) {
                Ok(0) => host_saw_end = true,
                Ok(n) => at_host.extend(&chunk[..n]),
                Err(_) => {}
            }
            let end = sent_by_host.len().min(host_sent + case.host_chunk);
            host_sent += server.write(&sent_by_host[host_sent..end]).unwrap_or(0);
            if host_sent == sent_by_host.len() && !host_closed {
                server.shutdown(Shutdown::Write).unwrap();
                host_closed = true;
            }
        }
        let watched: Vec<_> = stack.watcher().0.values().copied().collect();
        for (flow, read, write) in watched {
            stack.event(flow, read, write, now);
        }
        stack.tick(now);
        let mut queue = common::Queue { room: case.queue, ..Default::default() };
        stack.flush(&mut queue, now);
        quiet &= queue.frames.is_empty() && at_guest.len() == before;
        let frames =
            queue.frames.iter().flat_map(|(header, bytes)| common::segments(header, bytes)).collect();
        for frame in disturb(frames, case, &mut dice) {
            link.to_peer.push_back(frame[14..].to_vec());
        }
        passed += Duration::from_millis(if quiet { 200 } else { 2 });
        let all = at_guest.len() == sent_by_host.len() && host_saw_end;
        let client = sockets.get_mut::<tcp::Socket>(handle);
        let peer_over = matches!(client.state(), tcp::State::TimeWait | tcp::State::Closed);
        if all && peer_over && stack.flows() == 0 {
            prop_assert!(at_guest == sent_by_host && at_host == sent_by_guest);
            prop_assert_eq!(stack.kept(), 0);
            let taken: &[u64] = if case.incoming { &[INCOMING | 1] } else { &[] };
            prop_assert_eq!(&stack.broker().accepted[..], taken);
            return Ok(());
        }
    }
    let client = sockets.get_mut::<tcp::Socket>(handle);
    Err(TestCaseError::fail(format!(
        "not over: guest has {} of {}, host {} of {}, host saw the end: {host_saw_end}, peer is {}, {} flows",
        at_guest.len(),
        sent_by_host.len(),
        at_host.len(),
        sent_by_guest.len(),
        client.state(),
        stack.flows(),
    )))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn streams_come_out_as_they_went_in_and_both_sides_end(case in cases()) {
        converse(&case)?;
    }
}
