//! The stack: finds the flow that a frame belongs to, makes new ones, and gives each its turn to send.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::frame::{Frame, Header, Output};
use crate::limits;
use crate::tcp::{Connection, Fate, Out};
use crate::udp::Datagrams;
use crate::wire::{self, Ip, Mac, Writer};

/// Who is who on the guest's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub guest_mac: Mac,
    pub gateway_mac: Mac,
    pub guest: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// The same of IPv6, where the guest has it.
    pub v6: Option<(Ipv6Addr, Ipv6Addr)>,
}

/// What the guest's driver has accepted: frames for it may leave their checksum to it, and stand for many segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    pub checksum: bool,
    pub segments_v4: bool,
    pub segments_v6: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    /// Echo requests.
    Icmp,
}

/// A new flow that the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub flow: u64,
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// Why there is no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy does not allow it.
    Denied,
    /// Nobody listens there.
    Refused,
    /// There is no way there, or no answer from there.
    Unreachable,
}

/// What the broker says to a [`Question`].
pub type Answer = Result<OwnedFd, Refusal>;

/// Who decides about flows and makes their sockets.
pub trait Broker {
    /// Asks for a flow; [`Stack::answer`] tells what came of it. `false` when there is nobody to ask.
    fn ask(&mut self, question: &Question) -> bool;
}

/// Has somebody wait for sockets: each event is told once, by [`Stack::event`], until it is asked for again.
pub trait Watch {
    fn watch(&mut self, socket: BorrowedFd<'_>, flow: u64, read: bool, write: bool, new: bool);
    fn forget(&mut self, socket: BorrowedFd<'_>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub protocol: Protocol,
    pub guest: SocketAddr,
    pub remote: SocketAddr,
}

pub(crate) enum Kind {
    Tcp(Box<Connection>),
    Datagrams(Box<Datagrams>),
}

pub(crate) struct Flow {
    pub key: Key,
    pub kind: Kind,
    /// In `Stack::ready`.
    queued: bool,
    /// In `Stack::timers` under this.
    timer: Option<Instant>,
    watched: bool,
}

/// The network of one guest.
pub struct Stack<B, W> {
    pub(crate) addresses: Addresses,
    pub(crate) offloads: Offloads,
    broker: B,
    watch: W,
    flows: HashMap<u64, Flow>,
    keys: HashMap<Key, u64>,
    next_flow: u64,
    datagram_flows: usize,
    ready: VecDeque<u64>,
    timers: BTreeSet<(Instant, u64)>,
    pub(crate) answers: VecDeque<Vec<u8>>,
    /// Bytes that all flows keep.
    kept: usize,
    pub(crate) next_id: u16,
    /// A datagram on its way to the guest.
    buffer: Box<[u8]>,
    secret: std::hash::RandomState,
    started: Instant,
    pub(crate) fragments: crate::fragments::Fragments,
}

impl<B: Broker, W: Watch> Stack<B, W> {
    pub fn new(addresses: Addresses, broker: B, watch: W) -> Self {
        Self {
            addresses,
            offloads: Offloads::default(),
            broker,
            watch,
            flows: HashMap::new(),
            keys: HashMap::new(),
            next_flow: 1,
            datagram_flows: 0,
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            answers: VecDeque::new(),
            kept: 0,
            next_id: 1,
            buffer: vec![0; limits::DATAGRAM].into(),
            secret: std::hash::RandomState::new(),
            started: Instant::now(),
            fragments: crate::fragments::Fragments::default(),
        }
    }

    pub fn broker(&mut self) -> &mut B {
        &mut self.broker
    }

    pub fn watcher(&mut self) -> &mut W {
        &mut self.watch
    }

    /// The guest's driver has started with these features, or anew.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
    }

    /// Flows at present.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Bytes that wait in all flows' rings.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// When [`Stack::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Ends every flow, and tells the guest nothing: its network is another one now.
    pub fn clear(&mut self) {
        for flow in self.flows.keys().copied().collect::<Vec<_>>() {
            self.remove(flow);
        }
        self.answers.clear();
    }

    /// A frame of the guest's. `checksum_valid` says that its transport checksum is none to look at: the guest left it to
    /// us, or vouches for it.
    pub fn receive(&mut self, frame: Frame<'_>, checksum_valid: bool, now: Instant) {
        let mut head = [0; wire::HEADERS];
        let n = frame.copy_to(&mut head);
        let head = &head[..n];
        if head.len() < wire::ETHERNET {
            return;
        }
        if head[12..14] == wire::ARP.to_be_bytes() {
            return self.arp(head);
        }
        let Some(ip) = wire::ip(head, frame.len()) else { return };
        if ip.fragment.is_some() {
            if let Some(whole) = self.fragments.add(&ip, frame, now) {
                let span = [libc::iovec { iov_base: whole.as_ptr().cast_mut().cast(), iov_len: whole.len() }];
                // SAFETY: the span is that of `whole`, which outlives the frame.
                let frame = unsafe { Frame::new(&span, 0) };
                let mut head = [0; wire::HEADERS];
                let n = frame.copy_to(&mut head);
                if let Some(ip) = wire::ip(&head[..n], frame.len()) {
                    self.packet(&head[..n], &ip, frame, checksum_valid, now);
                }
            }
            return;
        }
        self.packet(head, &ip, frame, checksum_valid, now);
    }

    fn packet(&mut self, head: &[u8], ip: &Ip, frame: Frame<'_>, checksum_valid: bool, now: Instant) {
        // A guest that takes another address speaks to nobody.
        let ours = match ip.source {
            // Who has no address yet may ask for one.
            IpAddr::V4(source) => source == self.addresses.guest || source.is_unspecified(),
            IpAddr::V6(source) => {
                self.addresses.v6.is_some_and(|(guest, _)| guest == source) || ip.protocol == wire::ICMPV6
            }
        };
        if !ours {
            return;
        }
        let transport = frame.part(ip.at, ip.length);
        if !checksum_valid && matches!(ip.protocol, wire::TCP | wire::UDP) {
            let bytes = transport.to_vec();
            let none = ip.protocol == wire::UDP && bytes.get(6..8) == Some(&[0, 0]) && ip.source.is_ipv4();
            let pseudo = wire::pseudo(ip.source, ip.destination, ip.protocol, ip.length);
            if !none && wire::checksum(&bytes, pseudo) != 0 {
                return;
            }
        }
        if ip.source.is_unspecified() && ip.protocol != wire::UDP && ip.protocol != wire::ICMPV6 {
            return;
        }
        match ip.protocol {
            wire::TCP => {
                if let Some(segment) = head.get(ip.at..).and_then(wire::tcp)
                    && segment.header <= ip.length
                {
                    self.segment(ip, &segment, transport.part(segment.header, usize::MAX), now);
                }
            }
            wire::UDP => {
                if let Some((source, destination, length)) = head.get(ip.at..).and_then(wire::udp)
                    && (8..=ip.length).contains(&length)
                {
                    if destination == 67 && ip.destination.is_ipv4() {
                        return self.dhcp(&transport.part(8, length - 8).to_vec());
                    }
                    if ip.source.is_unspecified() {
                        return;
                    }
                    let guest = wire::end(ip.source, source);
                    let remote = wire::end(ip.destination, destination);
                    let key = Key { protocol: Protocol::Udp, guest, remote };
                    self.datagram(key, transport.part(8, length - 8), head, ip, now);
                }
            }
            wire::ICMP | wire::ICMPV6 => self.icmp(head, ip, transport, now),
            _ => self.unreachable(&head[..head.len().min(ip.at + 8)], Refusal::Denied),
        }
    }

    fn segment(&mut self, ip: &Ip, segment: &wire::Tcp, payload: Frame<'_>, now: Instant) {
        let guest = wire::end(ip.source, segment.source);
        let remote = wire::end(ip.destination, segment.destination);
        let key = Key { protocol: Protocol::Tcp, guest, remote };
        let Some(&id) = self.keys.get(&key) else {
            let opens = segment.flags & (wire::SYN | wire::ACK | wire::RST | wire::FIN) == wire::SYN;
            if segment.flags & wire::RST != 0 {
                return;
            }
            if !opens || is_nobody(remote.ip()) || self.flows.len() >= limits::FLOWS {
                return self.reset_unknown(&key, segment, payload.len());
            }
            let connection = Connection::new(segment, self.first_number(&key), now);
            let id = self.insert(key, Kind::Tcp(Box::new(connection)), now);
            if !self.ask(id, &key) {
                self.refuse(id, Refusal::Unreachable);
            }
            return;
        };
        let spare = limits::RINGS.saturating_sub(self.kept);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Kind::Tcp(connection) = &mut flow.kind else { return };
        let before = connection.kept();
        let fate = connection.receive(segment, payload, spare, now);
        self.kept = self.kept - before + connection.kept();
        self.settle(id, fate, now);
    }

    pub(crate) fn datagram(&mut self, key: Key, payload: Frame<'_>, head: &[u8], ip: &Ip, now: Instant) {
        let headers = &head[..head.len().min(ip.at + 8)];
        let id = match self.keys.get(&key) {
            Some(id) => *id,
            None => {
                if is_nobody(key.remote.ip()) {
                    return;
                }
                if self.datagram_flows >= limits::UDP_FLOWS {
                    self.make_room();
                }
                if self.flows.len() >= limits::FLOWS {
                    return self.unreachable(headers, Refusal::Unreachable);
                }
                let datagrams = Datagrams::new(headers.to_vec(), now);
                self.datagram_flows += 1;
                let id = self.insert(key, Kind::Datagrams(Box::new(datagrams)), now);
                if !self.ask(id, &key) {
                    return self.refuse(id, Refusal::Unreachable);
                }
                id
            }
        };
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Kind::Datagrams(datagrams) = &mut flow.kind else { return };
        if datagrams.send(payload, now).is_err() {
            self.unreachable(headers, Refusal::Refused);
            self.remove(id);
        }
    }

    /// Ends the UDP flow that was idle the longest.
    fn make_room(&mut self) {
        let idle = self.flows.iter().filter_map(|(id, flow)| match &flow.kind {
            Kind::Datagrams(datagrams) => Some((datagrams.last_used, *id)),
            Kind::Tcp(_) => None,
        });
        if let Some((_, id)) = idle.min() {
            self.remove(id);
        }
    }

    fn insert(&mut self, key: Key, kind: Kind, now: Instant) -> u64 {
        let id = self.next_flow;
        self.next_flow += 1;
        self.keys.insert(key, id);
        self.flows.insert(id, Flow { key, kind, queued: false, timer: None, watched: false });
        self.set_timer(id, now);
        id
    }

    fn ask(&mut self, flow: u64, key: &Key) -> bool {
        let (protocol, source, destination) = (key.protocol, key.guest, key.remote);
        self.broker.ask(&Question { flow, protocol, source, destination })
    }

    /// What the broker says to the question about `flow`. The guest may have given it up.
    pub fn answer(&mut self, id: u64, answer: Answer, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let asking = match &flow.kind {
            Kind::Tcp(connection) => connection.is_asking(),
            Kind::Datagrams(datagrams) => datagrams.socket().is_none(),
        };
        if !asking {
            return;
        }
        match (answer, &mut flow.kind) {
            (Err(refusal), _) => self.refuse(id, refusal),
            (Ok(socket), Kind::Tcp(connection)) => {
                connection.granted(socket);
                self.settle(id, Fate::Lives, now);
            }
            (Ok(socket), Kind::Datagrams(datagrams)) => match datagrams.granted(socket) {
                Ok(()) => self.settle(id, Fate::Lives, now),
                Err(_) => self.refuse(id, Refusal::Refused),
            },
        }
    }

    /// Nobody answers any more: what is asked is refused, what is open goes on.
    pub fn broker_is_gone(&mut self) {
        let asking = |flow: &Flow| match &flow.kind {
            Kind::Tcp(connection) => connection.is_asking(),
            Kind::Datagrams(datagrams) => datagrams.socket().is_none(),
        };
        let pending: Vec<u64> = self.flows.iter().filter(|(_, flow)| asking(flow)).map(|(id, _)| *id).collect();
        for id in pending {
            self.refuse(id, Refusal::Unreachable);
        }
    }

    /// Ends a flow that the policy no longer allows.
    pub fn revoke(&mut self, id: u64, now: Instant) {
        match self.flows.get(&id).map(|flow| &flow.kind) {
            Some(Kind::Tcp(_)) => self.settle(id, Fate::Reset, now),
            Some(Kind::Datagrams(_)) => self.refuse(id, Refusal::Denied),
            None => {}
        }
    }

    fn refuse(&mut self, id: u64, refusal: Refusal) {
        let Some(flow) = self.flows.get(&id) else { return };
        match &flow.kind {
            Kind::Tcp(connection) => {
                let (seq, ack) = connection.reset();
                self.send_reset(flow.key, seq, Some(ack));
            }
            Kind::Datagrams(datagrams) => {
                let first = datagrams.first.clone();
                self.unreachable(&first, refusal);
            }
        }
        self.remove(id);
    }

    /// What was asked for by [`Watch`] is there.
    pub fn event(&mut self, id: u64, readable: bool, writable: bool, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match &mut flow.kind {
            Kind::Tcp(connection) => {
                connection.readable |= readable;
                connection.writable |= writable;
            }
            Kind::Datagrams(datagrams) => datagrams.readable |= readable,
        }
        self.settle(id, Fate::Lives, now);
    }

    /// Does what was to be done by now.
    pub fn tick(&mut self, now: Instant) {
        self.fragments.expire(now);
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.timer = None;
            match &mut flow.kind {
                Kind::Tcp(connection) => {
                    let fate = connection.expired(now);
                    self.settle(id, fate, now);
                }
                Kind::Datagrams(datagrams) if datagrams.last_used + limits::UDP_IDLE <= now => self.remove(id),
                Kind::Datagrams(_) => self.set_timer(id, now),
            }
        }
    }

    /// Moves bytes of a flow's, and does what follows.
    fn settle(&mut self, id: u64, fate: Fate, now: Instant) {
        let spare = limits::RINGS.saturating_sub(self.kept);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let mut fate = fate;
        if let Kind::Tcp(connection) = &mut flow.kind {
            if fate == Fate::Lives {
                let before = connection.kept();
                fate = connection.pump(spare);
                self.kept = self.kept - before + connection.kept();
                connection.watch_window(now);
            }
            match fate {
                Fate::Lives if connection.is_done() => fate = Fate::Done,
                Fate::Reset | Fate::Aborted => connection.abort(),
                _ => {}
            }
        }
        match fate {
            Fate::Lives => {
                if !flow.queued {
                    flow.queued = true;
                    self.ready.push_back(id);
                }
                self.set_timer(id, now);
            }
            Fate::Reset => self.refuse(id, Refusal::Refused),
            Fate::Done | Fate::Aborted => self.remove(id),
        }
    }

    fn set_timer(&mut self, id: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let wanted = match &flow.kind {
            Kind::Tcp(connection) => connection.deadline,
            Kind::Datagrams(_) => flow.timer.or(Some(now + limits::UDP_IDLE)),
        };
        if wanted != flow.timer {
            if let Some(at) = flow.timer {
                self.timers.remove(&(at, id));
            }
            if let Some(at) = wanted {
                self.timers.insert((at, id));
            }
            flow.timer = wanted;
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.keys.remove(&flow.key);
        if let Some(at) = flow.timer {
            self.timers.remove(&(at, id));
        }
        let socket = match &flow.kind {
            Kind::Tcp(connection) => {
                self.kept -= connection.kept();
                connection.socket()
            }
            Kind::Datagrams(datagrams) => {
                self.datagram_flows -= 1;
                datagrams.socket()
            }
        };
        if let (Some(socket), true) = (socket, flow.watched) {
            self.watch.forget(socket.as_fd());
        }
    }

    /// Sends the guest what there is for it, as far as it has room.
    pub fn flush(&mut self, output: &mut impl Output, now: Instant) {
        if !self.send_answers(output) {
            return;
        }
        // Each flow has its turn, of at most one frame.
        while let Some(id) = self.ready.pop_front() {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            let more = match &flow.kind {
                Kind::Tcp(_) => self.flush_segment(id, output, now),
                Kind::Datagrams(_) => self.flush_datagram(id, output, now),
            };
            match more {
                Turn::Full => {
                    self.ready.push_front(id);
                    return;
                }
                Turn::More => self.ready.push_back(id),
                Turn::Over => self.rest(id, now),
            }
        }
    }

    fn send_answers(&mut self, output: &mut impl Output) -> bool {
        while let Some(answer) = self.answers.front() {
            if !output.send(&Header::default(), &[answer]) {
                return false;
            }
            self.answers.pop_front();
        }
        true
    }

    /// Whether something waits for the guest's buffers.
    pub fn has_output(&self) -> bool {
        !self.answers.is_empty() || !self.ready.is_empty()
    }

    /// A flow has sent all that it has: from here on its socket, its timer or the guest wakes it.
    fn rest(&mut self, id: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.queued = false;
        let (socket, (read, write)) = match &mut flow.kind {
            Kind::Tcp(connection) => {
                if connection.is_done() {
                    return self.remove(id);
                }
                connection.watch_window(now);
                (connection.socket(), connection.interest())
            }
            Kind::Datagrams(datagrams) => (datagrams.socket(), (!datagrams.readable, false)),
        };
        if let Some(socket) = socket
            && (read || write)
        {
            let new = !std::mem::replace(&mut flow.watched, true);
            self.watch.watch(socket.as_fd(), id, read, write, new);
        }
        self.set_timer(id, now);
    }

    fn flush_segment(&mut self, id: u64, output: &mut impl Output, now: Instant) -> Turn {
        let (addresses, offloads) = (self.addresses, self.offloads);
        let packet_id = self.take_id();
        let spare = limits::RINGS.saturating_sub(self.kept);
        let Some(flow) = self.flows.get_mut(&id) else { return Turn::Over };
        let Kind::Tcp(connection) = &mut flow.kind else { return Turn::Over };
        let v6 = flow.key.guest.is_ipv6();
        let headers = if v6 { 60 } else { 40 };
        let mss = connection.mss().min(1500 - headers);
        let many = if v6 { offloads.segments_v6 } else { offloads.segments_v4 } && offloads.checksum;
        let most = if many { 0xffff - 100 } else { usize::from(mss) };
        let Some(out) = connection.next(most) else { return Turn::Over };
        let payload = connection.payload(&out);
        let (writer, header) = segment(&addresses, &flow.key, &out, payload, offloads, mss, packet_id);
        if !output.send(&header, &[writer.bytes(), payload[0], payload[1]]) {
            return Turn::Full;
        }
        connection.sent(&out, now);
        if connection.readable {
            let before = connection.kept();
            let fate = connection.pump(spare);
            self.kept = self.kept - before + connection.kept();
            if fate != Fate::Lives {
                self.settle(id, fate, now);
                return Turn::Over;
            }
        }
        Turn::More
    }

    fn flush_datagram(&mut self, id: u64, output: &mut impl Output, now: Instant) -> Turn {
        if !output.has_room() {
            return Turn::Full;
        }
        let Some(flow) = self.flows.get_mut(&id) else { return Turn::Over };
        let key = flow.key;
        let Kind::Datagrams(datagrams) = &mut flow.kind else { return Turn::Over };
        match datagrams.receive(&mut self.buffer, now) {
            Ok(Some(n)) => {
                let buffer = std::mem::take(&mut self.buffer);
                self.send_datagram(&key, &buffer[..n]);
                self.buffer = buffer;
                if self.send_answers(output) { Turn::More } else { Turn::Full }
            }
            Ok(None) => Turn::Over,
            Err(_) => {
                // The other end refuses; the guest's next datagram asks anew.
                self.refuse(id, Refusal::Refused);
                Turn::Over
            }
        }
    }

    pub(crate) fn take_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// The initial sequence number (RFC 6528): a clock's time and a secret hash.
    fn first_number(&self, key: &Key) -> u32 {
        use std::hash::BuildHasher;
        let clock = (self.started.elapsed().as_micros() / 4) as u32;
        (self.secret.hash_one(key) as u32).wrapping_add(clock)
    }

    /// The reset for a segment that belongs to no connection (RFC 9293, 3.10.7.1).
    fn reset_unknown(&mut self, key: &Key, segment: &wire::Tcp, payload: usize) {
        if segment.flags & wire::ACK != 0 {
            return self.send_reset(*key, segment.ack, None);
        }
        let numbers = u32::from(segment.flags & wire::SYN != 0) + u32::from(segment.flags & wire::FIN != 0);
        let end = segment.seq.wrapping_add(payload as u32).wrapping_add(numbers);
        self.send_reset(*key, 0, Some(end));
    }

    fn send_reset(&mut self, key: Key, seq: u32, ack: Option<u32>) {
        let flags = wire::RST | if ack.is_some() { wire::ACK } else { 0 };
        let out = Out { seq, ack: ack.unwrap_or(0), flags, window: 0, offset: 0, length: 0, scale: None };
        let id = self.take_id();
        let (writer, _) = segment(&self.addresses, &key, &out, [&[], &[]], Offloads::default(), 0, id);
        self.push_answer(writer.bytes().to_vec());
    }

    pub(crate) fn push_answer(&mut self, frame: Vec<u8>) {
        if self.answers.len() < limits::ANSWERS {
            self.answers.push_back(frame);
        }
    }
}

/// What a flow's turn came to.
enum Turn {
    /// The guest has no room.
    Full,
    More,
    Over,
}

/// An address that no flow leads to: it is nobody's, or everybody's.
fn is_nobody(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unspecified(),
    }
}

/// The headers of a segment for the guest.
fn segment(
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
    writer.put(&[((20 + options) / 4 << 4) as u8, out.flags]);
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
        (header.checksum_start, header.checksum_offset) = (start as u16, 16);
        if out.length > usize::from(mss) {
            header.segment = mss;
            header.header_bytes = writer.bytes().len() as u16;
            header.v6 = key.guest.is_ipv6();
        }
    } else {
        let sum = wire::add(&writer.bytes()[start..], pseudo);
        let sum = !wire::fold(add_pieces(payload, sum));
        writer.set(start + 16, sum);
    }
    (writer, header)
}

/// Adds two pieces that follow each other to a sum, the first of which may be odd.
pub(crate) fn add_pieces(pieces: [&[u8]; 2], sum: u64) -> u64 {
    let sum = wire::add(pieces[0], sum);
    let second = wire::fold(wire::add(pieces[1], 0));
    sum + u64::from(if pieces[0].len().is_multiple_of(2) { second } else { second.swap_bytes() })
}
