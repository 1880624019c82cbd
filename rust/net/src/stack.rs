//! The stack: finds the flow that a frame belongs to, makes new ones, and gives each its turn to send.

#![allow(unsafe_code, reason = "a frame names its memory by address")]

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Instant;

use crate::broker::{Addresses, Answer, Broker, Ended, Offloads, Protocol, Question, Refusal, Watch};
use crate::frame::Frame;
use crate::limits;
use crate::tcp::{Connection, Fate};
use crate::udp::Datagrams;
use crate::wire::{self, Ip};

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
    pub queued: bool,
    /// In `Stack::timers` under this.
    timer: Option<Instant>,
    /// What its socket is watched for; `None` for one that never was.
    pub armed: Option<(bool, bool)>,
}

/// The network of one guest.
pub struct Stack<B, W> {
    pub(crate) addresses: Addresses,
    pub(crate) offloads: Offloads,
    pub(crate) broker: B,
    pub(crate) watch: W,
    pub(crate) flows: HashMap<u64, Flow>,
    pub(crate) keys: HashMap<Key, u64>,
    next_flow: u64,
    pub(crate) datagram_flows: usize,
    pub(crate) ready: VecDeque<u64>,
    timers: BTreeSet<(Instant, u64)>,
    pub(crate) answers: VecDeque<Vec<u8>>,
    /// Bytes that all flows keep.
    pub(crate) kept: usize,
    pub(crate) next_id: u16,
    /// A datagram on its way to the guest.
    pub(crate) buffer: Box<[u8]>,
    secret: std::hash::RandomState,
    started: Instant,
    pub(crate) fragments: crate::fragments::Fragments,
    /// Whether the guest has ever spoken from its address of IPv6.
    has_v6: bool,
}

impl<B: Broker, W: Watch> Stack<B, W> {
    /// A stack without flows, whose guest takes no offloads before [`Stack::set_offloads`].
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
            has_v6: false,
        }
    }

    /// Who decides about its flows.
    pub fn broker(&mut self) -> &mut B {
        &mut self.broker
    }

    /// Who watches its sockets.
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
        self.has_v6 = false;
    }

    /// A frame of the guest's. `checksum_valid` says that its transport checksum is none to look at: the guest left it
    /// to us, or vouches for it.
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
                let own = self.addresses.v6.is_some_and(|(guest, _)| guest == source);
                self.has_v6 |= own;
                own || ip.protocol == wire::ICMPV6
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
        if connection.is_stray(segment) {
            return self.reset_unknown(&key, segment, payload.len());
        }
        let (before, opening) = (connection.kept(), connection.is_opening());
        let fate = connection.receive(segment, payload, spare, now);
        self.kept = self.kept - before + connection.kept();
        if opening && !connection.is_opening() {
            self.broker.accepted(id);
        }
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
    pub(crate) fn make_room(&mut self) {
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
        self.insert_as(id, key, kind, now);
        id
    }

    pub(crate) fn insert_as(&mut self, id: u64, key: Key, kind: Kind, now: Instant) {
        self.keys.insert(key, id);
        self.flows.insert(id, Flow { key, kind, queued: false, timer: None, armed: None });
        self.set_timer(id, now);
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

    /// The broker answers when it has seen what the guest says first on this connection, which is open to the guest.
    pub fn judged(&mut self, id: u64, now: Instant) {
        if let Some(Flow { kind: Kind::Tcp(connection), .. }) = self.flows.get_mut(&id) {
            connection.judged();
            self.settle(id, Fate::Lives, now);
        }
    }

    /// The broker has not seen enough of it.
    pub fn more_wanted(&mut self, id: u64, now: Instant) {
        if let Some(Flow { kind: Kind::Tcp(connection), .. }) = self.flows.get_mut(&id) {
            connection.more_wanted();
            self.settle(id, Fate::Lives, now);
        }
    }

    /// Nobody answers any more: what is asked is refused, what is open goes on.
    pub fn broker_is_gone(&mut self) {
        let asking = |flow: &Flow| match &flow.kind {
            Kind::Tcp(connection) => connection.is_asking(),
            Kind::Datagrams(datagrams) => datagrams.socket().is_none(),
        };
        let pending: Vec<u64> =
            self.flows.iter().filter(|(_, flow)| asking(flow)).map(|(id, _)| *id).collect();
        for id in pending {
            self.refuse(id, Refusal::Unreachable);
        }
    }

    /// Ends a flow that the policy no longer allows, or whose other end is gone.
    pub fn revoke(&mut self, id: u64, why: Refusal, now: Instant) {
        match self.flows.get(&id).map(|flow| &flow.kind) {
            Some(Kind::Tcp(_)) => self.settle(id, Fate::Reset, now),
            Some(Kind::Datagrams(_)) => self.refuse(id, why),
            None => {}
        }
    }

    pub(crate) fn refuse(&mut self, id: u64, refusal: Refusal) {
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
        self.end(id, Ended::Reset);
    }

    /// What was asked for by [`Watch`] is there.
    pub fn event(&mut self, id: u64, readable: bool, writable: bool, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        // It is told once.
        flow.armed = flow.armed.and(Some((false, false)));
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
                    let fate = match connection.expired(now) {
                        // The guest has turned IPv6 off, or it would have asked who that is. Who has come is to try
                        // IPv4, and not to wait.
                        Fate::Lives
                            if flow.key.guest.is_ipv6()
                                && !self.has_v6
                                && connection.is_opening()
                                && connection.attempts() >= limits::SILENT =>
                        {
                            Fate::Reset
                        }
                        fate => fate,
                    };
                    self.settle(id, fate, now);
                }
                Kind::Datagrams(datagrams) if datagrams.last_used + limits::UDP_IDLE <= now => {
                    self.remove(id)
                }
                Kind::Datagrams(_) => self.set_timer(id, now),
            }
        }
    }

    /// Moves bytes of a flow's, and does what follows.
    pub(crate) fn settle(&mut self, id: u64, fate: Fate, now: Instant) {
        let spare = limits::RINGS.saturating_sub(self.kept);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let mut fate = fate;
        if let Kind::Tcp(connection) = &mut flow.kind {
            if fate == Fate::Lives {
                let before = connection.kept();
                fate = connection.pump(spare);
                if let Some((bytes, ended)) = connection.first(B::FIRST) {
                    self.broker.first(id, bytes, ended);
                }
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
            Fate::Done => self.remove(id),
            Fate::Aborted => self.end(id, Ended::Reset),
        }
    }

    pub(crate) fn set_timer(&mut self, id: u64, now: Instant) {
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

    pub(crate) fn remove(&mut self, id: u64) {
        self.end(id, Ended::Over);
    }

    pub(crate) fn end(&mut self, id: u64, how: Ended) {
        let Some(flow) = self.flows.remove(&id) else { return };
        let how = match &flow.kind {
            Kind::Tcp(connection) if !connection.is_opening() => how,
            Kind::Tcp(connection) if connection.is_unanswered() => Ended::Unreachable,
            Kind::Tcp(_) => Ended::Refused,
            Kind::Datagrams(_) => how,
        };
        self.broker.closed(id, how);
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
        if let (Some(socket), true) = (socket, flow.armed.is_some()) {
            self.watch.forget(socket.as_fd());
        }
    }

    pub(crate) fn take_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// The initial sequence number (RFC 6528): a clock's time and a secret hash.
    #[expect(clippy::cast_possible_truncation, reason = "clock and hash are taken modulo 2³²")]
    pub(crate) fn first_number(&self, key: &Key) -> u32 {
        use std::hash::BuildHasher;
        let clock = (self.started.elapsed().as_micros() / 4) as u32;
        (self.secret.hash_one(key) as u32).wrapping_add(clock)
    }

    pub(crate) fn push_answer(&mut self, frame: Vec<u8>) {
        if self.answers.len() < limits::ANSWERS {
            self.answers.push_back(frame);
        }
    }
}

/// An address that no flow leads to: it is nobody's, or everybody's.
pub(crate) fn is_nobody(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unspecified(),
    }
}
