//! vsock against a guest's side written from the specification (virtio 1.2, 5.10).

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use supermachine_devices::vsock::{Host, Vsock};

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

const RX: usize = 0;
const TX: usize = 1;
const HEADER: usize = 44;
const RX_BUFFERS: u16 = 16;
const RX_BYTES: u32 = 65536 + HEADER as u32;
const TX_AT: u64 = BUFFERS + 0x20_0000;
const EVENT_AT: u64 = BUFFERS + 0x40_0000;
const GUEST_BUFFER: u32 = 128 * 1024;
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Packet {
    host_port: u32,
    guest_port: u32,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    data: Vec<u8>,
}

struct Guest {
    driver: Driver<Vsock>,
    host: Host,
}

impl Guest {
    fn start() -> Self {
        let memory = memory();
        let (line, level) = line();
        let (host, transport) = Host::start(3, memory.clone(), line).unwrap();
        let mut guest = Self { driver: Driver::with(transport, memory, level), host };
        assert_eq!(guest.driver.load(0x100), 3);
        for n in 0..RX_BUFFERS {
            guest.driver.add(RX, n, &[writable(rx_at(n), RX_BYTES)]);
        }
        guest.driver.notify(RX);
        guest
    }

    /// The next packet from the host, if there is one.
    fn poll(&mut self) -> Option<Packet> {
        let (head, length) = self.driver.take(RX)?;
        let bytes = self.driver.bytes(rx_at(head), length as usize);
        self.driver.offer(RX, head);
        self.driver.notify(RX);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        assert_eq!((u32_at(0), u32_at(8)), (2, 3), "from the host to the guest");
        assert_eq!(u16_at(28), 1, "a stream");
        assert_eq!(u32_at(24) as usize, bytes.len() - HEADER);
        Some(Packet {
            host_port: u32_at(16),
            guest_port: u32_at(20),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            data: bytes[HEADER..].to_vec(),
        })
    }

    fn receive(&mut self) -> Packet {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(packet) = self.poll() {
                return packet;
            }
            assert!(Instant::now() < end, "no packet came");
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// The next packet that is more than news about credit.
    fn receive_op(&mut self, op: u16) -> Packet {
        loop {
            let packet = self.receive();
            if packet.op == op || packet.op != CREDIT_UPDATE {
                assert_eq!(packet.op, op, "{packet:?}");
                return packet;
            }
        }
    }

    fn send(&mut self, ports: (u32, u32), op: u16, flags: u32, fwd_cnt: u32, data: &[u8]) {
        let (host, guest) = ports;
        let mut packet = Vec::new();
        packet.extend(3_u64.to_le_bytes());
        packet.extend(2_u64.to_le_bytes());
        for word in [guest, host, data.len() as u32, 1 | u32::from(op) << 16, flags, GUEST_BUFFER, fwd_cnt] {
            packet.extend(word.to_le_bytes());
        }
        packet.extend(data);
        self.driver.put(TX_AT, &packet);
        self.driver.add(TX, 0, &[readable(TX_AT, packet.len() as u32)]);
        self.driver.notify(TX);
        assert!(!self.driver.is_broken());
        assert_eq!(self.driver.take(TX), Some((0, 0)), "the guest never waits to send");
    }

    /// Takes the event that all connections are gone, and gives the buffer back.
    fn hear_of_reset(&mut self) {
        self.driver.add(2, 0, &[writable(EVENT_AT, 4)]);
        self.driver.notify(2);
        assert_eq!(self.driver.take(2), Some((0, 4)));
        self.driver.offer(2, 0);
        self.driver.notify(2);
    }

    /// A connection that the host makes to a guest port that listens.
    fn connected(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        ours.set_write_timeout(Some(DEADLINE)).unwrap();
        self.host.connect(port, theirs.into());
        let packet = self.receive_op(REQUEST);
        assert_eq!(packet.guest_port, port);
        let ports = (packet.host_port, port);
        self.send(ports, RESPONSE, 0, 0, &[]);
        (ours, ports)
    }

    fn listen(&self, port: u32) -> Receiver<UnixStream> {
        let (sender, accepted) = mpsc::channel();
        self.host.listen(
            port,
            Box::new(move |fd: io::Result<OwnedFd>| sender.send(UnixStream::from(fd.unwrap())).unwrap()),
        );
        accepted
    }
}

fn rx_at(n: u16) -> u64 {
    BUFFERS + 0x2_0000 * u64::from(n)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n ^ n >> 8 ^ n >> 16) as u8).collect()
}

#[test]
fn megabytes_reach_the_guest_as_its_credit_allows() {
    let mut guest = Guest::start();
    let (mut socket, ports) = guest.connected(1025);
    let sent = pattern(3_000_001);
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        socket.write_all(&sent).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        socket
    });
    let (mut got, mut announced) = (Vec::new(), 0);
    loop {
        let packet = guest.receive();
        match packet.op {
            RW => got.extend(packet.data),
            SHUTDOWN => {
                assert_eq!(packet.flags, 2, "the host ended one direction");
                break;
            }
            op => panic!("operation {op}"),
        }
        assert!(guest.driver.level.load(std::sync::atomic::Ordering::SeqCst));
        assert!(got.len() - announced <= GUEST_BUFFER as usize, "the host goes beyond the guest's credit");
        if got.len() - announced > GUEST_BUFFER as usize / 2 {
            announced = got.len();
            guest.send(ports, CREDIT_UPDATE, 0, announced as u32, &[]);
        }
    }
    assert!(got == expected);
    // The other direction is still there.
    let mut socket = writer.join().unwrap();
    guest.send(ports, RW, 0, got.len() as u32, b"thanks");
    let mut answer = [0; 6];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"thanks");
}

#[test]
fn megabytes_reach_a_slow_host_and_its_credit_comes_back() {
    let mut guest = Guest::start();
    let accepted = guest.listen(1024);
    let ports = (1024, 5000);
    guest.send(ports, REQUEST, 0, 0, &[]);
    let response = guest.receive_op(RESPONSE);
    let mut socket = accepted.recv().unwrap();
    let sent = pattern(3_000_001);
    let expected = sent.clone();
    let reader = thread::spawn(move || {
        let (mut got, mut part) = (Vec::<u8>::new(), [0_u8; 10_000]);
        loop {
            match socket.read(&mut part).unwrap() {
                0 => return (got, socket),
                n => got.extend(&part[..n]),
            }
            if got.len() % 7 == 0 {
                thread::sleep(Duration::from_micros(300));
            }
        }
    });
    let (mut at, mut forwarded) = (0_usize, 0_u32);
    while at < sent.len() {
        while let Some(packet) = guest.poll() {
            assert_eq!(packet.op, CREDIT_UPDATE);
            forwarded = packet.fwd_cnt;
        }
        let room = (response.buf_alloc - (at as u32 - forwarded)) as usize;
        let part = room.min(60_000).min(sent.len() - at);
        if part == 0 {
            forwarded = guest.receive_op(CREDIT_UPDATE).fwd_cnt;
            continue;
        }
        guest.send(ports, RW, 0, 0, &sent[at..at + part]);
        at += part;
    }
    guest.send(ports, SHUTDOWN, 2, 0, &[]);
    let (got, mut socket) = reader.join().unwrap();
    assert!(got == expected);
    // Half closed: the host still answers, and its own end ends it all.
    socket.write_all(b"bye").unwrap();
    assert_eq!(guest.receive_op(RW).data, b"bye");
    drop(socket);
    while !matches!(guest.receive().op, SHUTDOWN | RST) {}
}

#[test]
fn refusals_show_on_both_sides() {
    let mut guest = Guest::start();
    guest.send((77, 5000), REQUEST, 0, 0, &[]);
    let refused = guest.receive_op(RST);
    assert_eq!((refused.host_port, refused.guest_port), (77, 5000));
    // Data for a connection that does not exist.
    guest.send((78, 5001), RW, 0, 0, b"x");
    assert_eq!(guest.receive_op(RST).host_port, 78);

    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    guest.host.connect(9, theirs.into());
    let request = guest.receive_op(REQUEST);
    guest.send((request.host_port, 9), RST, 0, 0, &[]);
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_is_not_for_the_host_is_refused_by_whom_it_was_for() {
    let mut guest = Guest::start();
    for (cid, kind) in [(1_u64, 1_u16), (7, 1), (2, 2)] {
        let mut packet = vec![];
        packet.extend(3_u64.to_le_bytes());
        packet.extend(cid.to_le_bytes());
        for word in [5000, 1024, 0, u32::from(kind) | u32::from(REQUEST) << 16, 0, GUEST_BUFFER, 0] {
            packet.extend(word.to_le_bytes());
        }
        guest.driver.put(TX_AT, &packet);
        guest.driver.add(TX, 0, &[readable(TX_AT, packet.len() as u32)]);
        guest.driver.notify(TX);
        assert_eq!(guest.driver.take(TX), Some((0, 0)));
        let (head, _) = guest.driver.take(RX).expect("an answer at once");
        let mut expected = vec![];
        expected.extend(cid.to_le_bytes());
        expected.extend(3_u64.to_le_bytes());
        for word in [1024, 5000, 0, u32::from(kind) | u32::from(RST) << 16] {
            expected.extend(word.to_le_bytes());
        }
        assert_eq!(guest.driver.bytes(rx_at(head), expected.len()), expected, "cid {cid}, type {kind}");
        guest.driver.offer(RX, head);
        guest.driver.notify(RX);
    }
}

#[test]
fn a_guest_beyond_its_credit_loses_the_connection_alone() {
    let mut guest = Guest::start();
    let (mut other, other_ports) = guest.connected(1025);
    let (mut socket, ports) = guest.connected(1026);
    let mut sent = 0;
    let reset = loop {
        guest.send(ports, RW, 0, 0, &[1; 60_000]);
        sent += 60_000;
        assert!(sent < 4 << 20, "the host buffers without bound");
        if let Some(packet) = guest.poll().filter(|packet| packet.op == RST) {
            break packet;
        }
    };
    assert_eq!(reset.guest_port, 1026);
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got);
    assert!(got.len() < sent && got.iter().all(|byte| *byte == 1));
    guest.send(other_ports, RW, 0, 0, b"fine");
    other.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn many_connections_at_once_each_keep_their_bytes() {
    let mut guest = Guest::start();
    let mut sockets: Vec<_> = (0..200).map(|n| guest.connected(2000 + n)).collect();
    for (n, (socket, _)) in sockets.iter_mut().enumerate() {
        socket.write_all(&[n as u8; 100]).unwrap();
    }
    let mut left = sockets.len() * 100;
    while left > 0 {
        let packet = guest.receive_op(RW);
        let n = packet.guest_port - 2000;
        assert!(packet.data.iter().all(|byte| u32::from(*byte) == n % 256));
        left -= packet.data.len();
    }
    for n in (0..200).rev() {
        guest.send(sockets[n].1, RW, 0, 0, &[n as u8; 10]);
        let mut got = [0; 10];
        sockets[n].0.read_exact(&mut got).unwrap();
        assert_eq!(got, [n as u8; 10]);
    }
    // The end of the VM ends every one.
    guest.host.close();
    for (socket, _) in &mut sockets {
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    }
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    guest.host.connect(1, theirs.into());
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "nobody waits on a VM that is gone");
}

#[test]
fn a_guest_that_closes_is_answered_and_one_that_only_stops_reading_too() {
    let mut guest = Guest::start();
    let (mut socket, ports) = guest.connected(1025);
    guest.send(ports, RW, 0, 0, b"last words");
    guest.send(ports, SHUTDOWN, 3, 0, &[]);
    assert_eq!(guest.receive_op(RST).guest_port, 1025);
    let mut got = Vec::new();
    socket.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last words");

    let (mut socket, ports) = guest.connected(1026);
    guest.send(ports, SHUTDOWN, 1, 0, &[]);
    assert_eq!(socket.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let mut guest = Guest::start();
    let accepted = guest.listen(1024);
    let (mut socket, ports) = guest.connected(1025);
    guest.host.reset_connections();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.driver.take(2), None);
    guest.driver.put(EVENT_AT, &[0xff; 4]);
    guest.driver.add(2, 0, &[writable(EVENT_AT, 4)]);
    guest.driver.notify(2);
    assert_eq!(guest.driver.take(2), Some((0, 4)));
    assert_eq!(guest.driver.bytes(EVENT_AT, 4), [0; 4]);
    guest.send(ports, RW, 0, 0, b"stale");
    guest.receive_op(RST);
    guest.driver.offer(2, 0);
    guest.driver.notify(2);
    // Listeners are still there.
    guest.send((1024, 6000), REQUEST, 0, 0, &[]);
    guest.receive_op(RESPONSE);
    accepted.recv().unwrap();
}

#[test]
fn a_restored_guest_gets_connections_that_it_does_not_take_for_those_it_had() {
    let mut original = Guest::start();
    let (_stream, before) = original.connected(1025);
    let mut restored = Guest::start();
    restored.host.reset_connections();
    restored.hear_of_reset();
    let (_stream, after) = restored.connected(1025);
    assert_ne!(before, after);
}

#[test]
fn a_restored_guest_gets_no_connection_before_it_has_ended_those_it_had() {
    // Linux ends all that it knows when it hears of the reset, those that it has just been asked for as well.
    let mut guest = Guest::start();
    guest.driver.features = 1 << 29; // VIRTIO_RING_F_EVENT_IDX
    guest.driver.initialise();
    for n in 0..RX_BUFFERS {
        guest.driver.add(RX, n, &[writable(rx_at(n), RX_BYTES)]);
    }
    guest.driver.notify(RX);
    for n in 0..4 {
        guest.driver.add(2, n, &[writable(EVENT_AT + 4 * u64::from(n), 4)]);
    }
    guest.driver.notify(2);
    guest.host.reset_connections();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    guest.host.connect(1025, theirs.into());
    assert_eq!(guest.driver.take(2), Some((0, 4)));
    // The guest is told, and has yet to do what follows. It will say when it has.
    assert!(guest.poll().is_none());
    assert!(guest.driver.would_notify(2));
    guest.driver.offer(2, 0);
    guest.driver.notify(2);
    let packet = guest.receive_op(REQUEST);
    assert_eq!(packet.guest_port, 1025);
    guest.send((packet.host_port, 1025), RESPONSE, 0, 0, &[]);
    guest.send((packet.host_port, 1025), RW, 0, 0, b"x");
    let mut got = [0];
    ours.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"x");
    // Those that wait when the device ends see the end.
    guest.host.reset_connections();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    guest.host.connect(1025, theirs.into());
    guest.host.close();
    assert_eq!(ours.read(&mut got).unwrap(), 0);
}

#[test]
fn a_restored_guest_that_asks_is_answered_once_it_has_ended_what_it_had() {
    // It would end what it had been given, without a word to the host, which would keep its own end for ever.
    let mut guest = Guest::start();
    let accepted = guest.listen(1024);
    guest.host.reset_connections();
    guest.driver.add(2, 0, &[writable(EVENT_AT, 4)]);
    guest.driver.notify(2);
    assert_eq!(guest.driver.take(2), Some((0, 4)));
    guest.send((1024, 6000), REQUEST, 0, 0, &[]);
    guest.send((1026, 6001), REQUEST, 0, 0, &[]);
    assert_eq!(guest.receive_op(RST).guest_port, 6001, "nobody listens there");
    assert!(guest.poll().is_none());
    assert!(accepted.try_recv().is_err());
    guest.driver.offer(2, 0);
    guest.driver.notify(2);
    assert_eq!(guest.receive_op(RESPONSE).guest_port, 6000);
    let mut socket = accepted.recv().unwrap();
    guest.send((1024, 6000), RW, 0, 0, b"x");
    let mut got = [0];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"x");
}

#[test]
fn a_restored_guest_does_not_ask_without_end() {
    let mut guest = Guest::start();
    let _accepted = guest.listen(1024);
    guest.host.reset_connections();
    for port in 0..64 {
        guest.send((1024, port), REQUEST, 0, 0, &[]);
        assert!(guest.poll().is_none());
    }
    guest.send((1024, 64), REQUEST, 0, 0, &[]);
    assert_eq!(guest.receive_op(RST).guest_port, 64);
}

#[test]
fn a_port_of_the_hosts_is_for_who_came_first_or_may_bind_a_reserved_port() {
    let mut guest = Guest::start();
    let accepted = guest.listen(1024);
    guest.send((1024, 5000), REQUEST, 0, 0, &[]);
    assert_eq!(guest.receive_op(RESPONSE).guest_port, 5000);
    let first = accepted.recv().unwrap();
    // While it is there nobody else gets in, whoever that is.
    for port in [5001, 1023] {
        guest.send((1024, port), REQUEST, 0, 0, &[]);
        assert_eq!(guest.receive_op(RST).guest_port, port);
    }
    drop(first);
    while guest.receive().op != SHUTDOWN {}
    guest.send((1024, 5000), RST, 0, 0, &[]);
    // Any process of the guest's could come now, as often as it likes.
    for port in 5000..5200 {
        guest.send((1024, port), REQUEST, 0, 0, &[]);
        assert_eq!(guest.receive_op(RST).guest_port, port);
    }
    assert!(accepted.try_recv().is_err());
    guest.send((1024, 1023), REQUEST, 0, 0, &[]);
    assert_eq!(guest.receive_op(RESPONSE).guest_port, 1023);
    assert!(accepted.recv().is_ok());
}

#[test]
fn a_guest_is_interrupted_for_many_of_its_packets_at_once_and_for_the_last_on_request() {
    let mut guest = Guest::start();
    guest.driver.features = 1 << 29; // VIRTIO_RING_F_EVENT_IDX
    guest.driver.initialise();
    for n in 0..RX_BUFFERS {
        guest.driver.add(RX, n, &[writable(rx_at(n), RX_BYTES)]);
    }
    let (mut socket, ports) = guest.connected(1025);
    // Where the driver says how far it has looked, behind its ring (virtio 1.2, 2.7.7).
    let has_seen = |guest: &Guest, packets: u16| {
        let at = rings(TX)[1] + 4 + 2 * u64::from(guest.driver.sizes[TX]);
        guest.driver.put(at, &packets.to_le_bytes());
    };
    guest.driver.store(0x64, guest.driver.load(0x60));
    for packet in 2..=16 {
        guest.send(ports, RW, 0, 0, b"x");
        let level = guest.driver.level.load(Ordering::SeqCst);
        assert_eq!(level, packet == 16, "packet {packet}");
    }
    assert!(guest.driver.load(0x60) & 1 != 0);
    guest.driver.store(0x64, 1);
    has_seen(&guest, 16);
    guest.send(ports, RW, 0, 0, b"x");
    assert_eq!(guest.driver.load(0x60), 0);
    guest.host.tell_of_packets();
    assert_eq!(guest.driver.load(0x60) & 1, 1);
    guest.driver.store(0x64, 1);
    has_seen(&guest, 17);
    guest.host.tell_of_packets();
    assert_eq!(guest.driver.load(0x60), 0, "it has looked");
    socket.read_exact(&mut [0; 16]).unwrap();
}
