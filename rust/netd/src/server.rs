//! Grants flows, or does not: the only place where sockets are made for a guest.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto, socket, sockopt};
use supermachine_proto::agent::HOST_NAMES;
use supermachine_proto::netd::{
    Command, Denial, Ended, Event, Flow, INCOMING, Protocol, Refusal, Reply, Request, Start,
};

use crate::address::{Class, class};
use crate::channel::Channel;
use crate::host::Host;
use crate::incoming::{Caller, Incoming};
use crate::judging::{HTTP, HTTPS, Judgements, Pending};
use crate::policy::{Basis, Denied, Pins, Policy};
use crate::resolver::{Context, Resolver};
use crate::secrets::{Complaint, Opening};
use crate::segments::Segments;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(60);
/// Connections that are being made at once.
const CONNECTING: usize = 4096;
const DNS: u16 = 53;

struct Connecting {
    flow: u64,
    socket: OwnedFd,
    deadline: Instant,
    /// What it says first decides.
    judged: Option<Basis>,
}

/// A flow that was granted.
pub(crate) struct Granted {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub names: Vec<String>,
    since_ns: u64,
}

impl Granted {
    pub(crate) fn new(
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        names: Vec<String>,
    ) -> Self {
        Self { protocol, source, destination, names, since_ns: now_ns() }
    }

    fn told(&self) -> Flow {
        Flow {
            protocol: self.protocol,
            source: self.source,
            destination: self.destination,
            name: self.names.first().cloned(),
            since_ns: self.since_ns,
        }
    }
}

/// Flows in one message.
const FLOWS: usize = 256;

/// The policy process of one machine: what it knows of the guest, its policy and its flows.
pub struct Server {
    pub(crate) control: Channel,
    pub(crate) link: Channel,
    pub(crate) policy: Policy,
    pins: Pins,
    resolver: Resolver,
    pub(crate) guest: Ipv4Addr,
    pub(crate) guest_v6: Option<Ipv6Addr>,
    gateway: Vec<IpAddr>,
    audit: bool,
    connecting: Vec<Connecting>,
    pub(crate) granted: HashMap<u64, Granted>,
    pub(crate) judgements: Judgements,
    pub(crate) opening: Option<Opening>,
    pub(crate) incoming: Incoming,
    pub(crate) segments: Segments,
    dial: Dial,
}

/// Makes a socket for a flow, and whether it is connected already.
pub type Dial = fn(Protocol, SocketAddr) -> Result<(OwnedFd, bool), Errno>;

impl Server {
    /// For a policy whose rules make sense.
    pub fn new(control: Channel, link: Channel, start: Start, mut host: Host) -> io::Result<Self> {
        let policy = Policy::new(&start.policy).map_err(io::Error::other)?;
        if !start.dns.is_empty() {
            host.servers = start.dns;
            host.scoped.clear();
        }
        let opening = start.secrets.map(|secrets| Opening::new(secrets, &host.roots)).transpose();
        let opening = opening.map_err(io::Error::other)?;
        let resolver = Resolver::new(host, start.gateway.clone())?;
        Ok(Self {
            control,
            link,
            policy,
            pins: Pins::default(),
            resolver,
            guest: start.guest,
            guest_v6: start.guest_v6,
            gateway: start.gateway,
            audit: start.audit,
            connecting: Vec::new(),
            granted: HashMap::new(),
            judgements: Judgements::default(),
            opening,
            incoming: Incoming::default(),
            segments: Segments::default(),
            dial: connect,
        })
    }

    /// Has another function make sockets: tests reach no public address.
    #[must_use]
    pub fn dialing(self, dial: Dial) -> Self {
        Self { dial, ..self }
    }

    /// Serves until the API or the worker is gone.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let (control, link, members) = self.wait()?;
            if (control && !self.hear_control()?) || (link && !self.hear_link()?) {
                return Ok(());
            }
            let now = Instant::now();
            self.hear_members(&members, now)?;
            self.expire_incoming(now)?;
            self.finish(now)?;
            self.end_judgements(now)?;
            let mut denied = Vec::new();
            let mut context = Context {
                policy: &self.policy,
                pins: &mut self.pins,
                segments: &self.segments,
                denied: &mut denied,
            };
            self.resolver.serve(&mut context, now);
            for (name, why) in denied {
                self.tell(Some(name), None, 0, Protocol::Dns, why)?;
            }
            self.tell_complaints()?;
            self.control.flush()?;
            self.link.flush()?;
        }
    }

    /// Waits until there is something to do; whether something came from the API, from the worker, and from each of the
    /// other machines.
    fn wait(&self) -> io::Result<(bool, bool, Vec<bool>)> {
        let both = |channel: &Channel| {
            if channel.has_waiting() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
        };
        let mut fds =
            vec![PollFd::new(&self.control, both(&self.control)), PollFd::new(&self.link, both(&self.link))];
        fds.extend(self.segments.channels().map(|channel| PollFd::new(channel, both(channel))));
        let members = 2..fds.len();
        fds.extend(self.connecting.iter().map(|pending| PollFd::new(&pending.socket, PollFlags::OUT)));
        let complaints = self.opening.as_ref().map(Opening::descriptor);
        fds.extend(complaints.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        fds.extend(self.resolver.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let deadline = self.connecting.iter().map(|pending| pending.deadline).chain(self.resolver.deadline());
        let deadline = deadline.chain(self.judgements.deadline());
        let deadline = deadline.chain(self.incoming.deadline()).chain(self.segments.deadline()).min();
        let timeout = deadline.map(|at| {
            // Rounded up, so that the deadline has passed afterwards.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let told = |fd: &PollFd<'_>| fd.revents().intersects(!PollFlags::OUT);
        Ok((told(&fds[0]), told(&fds[1]), fds[members].iter().map(told).collect()))
    }

    fn hear_control(&mut self) -> io::Result<bool> {
        let open = self.control.receive()?;
        while let Some(command) = self.control.take::<Command>().map_err(io::Error::other)? {
            match command {
                Command::Start(_) => return Err(io::Error::other("it was told to start twice")),
                Command::SetPolicy(policy) => {
                    self.policy = Policy::new(&policy).map_err(io::Error::other)?;
                    self.revoke()?;
                }
                Command::Sync => self.control.send(&Event::Synced, None)?,
                Command::Flows => {
                    let flows: Vec<Flow> = self.granted.values().map(Granted::told).collect();
                    for some in flows.chunks(FLOWS) {
                        self.control.send(&Event::Flows(some.to_vec()), None)?;
                    }
                    self.control.send(&Event::Flows(Vec::new()), None)?;
                }
                Command::Deliver { call, protocol, source, port } => {
                    let socket =
                        self.control.take_fd().ok_or_else(|| io::Error::other("a descriptor is missing"))?;
                    self.deliver(Caller::Api(call), protocol, source, port, socket)?;
                }
                Command::Join(member) => self.segments.join(member),
                Command::Meet(member) => {
                    let link =
                        self.control.take_fd().ok_or_else(|| io::Error::other("a descriptor is missing"))?;
                    self.segments.meet(member, link)?;
                }
                Command::Leave { segment } => self.leave(segment)?,
            }
        }
        Ok(open)
    }

    fn hear_link(&mut self) -> io::Result<bool> {
        let open = self.link.receive()?;
        while let Some(request) = self.link.take::<Request>().map_err(io::Error::other)? {
            match request {
                Request::Open { flow, protocol, source, destination } => {
                    self.open(flow, protocol, source, destination)?;
                }
                Request::Closed { flow, how } => self.closed(flow, how)?,
                Request::Accepted { flow } => self.accepted(flow)?,
                Request::First { flow, bytes, ended } => self.hear_first(flow, &bytes.0, ended)?,
            }
        }
        Ok(open)
    }

    /// A flow has ended.
    fn closed(&mut self, flow: u64, how: Ended) -> io::Result<()> {
        self.connecting.retain(|pending| pending.flow != flow);
        self.judgements.forget(flow);
        if let Some(opening) = &mut self.opening {
            opening.forget(flow);
        }
        self.incoming_ended(flow, how)?;
        self.outgoing_ended(flow, how == Ended::Reset)?;
        self.granted_ended(flow)
    }

    pub(crate) fn granted_ended(&mut self, flow: u64) -> io::Result<()> {
        match self.granted.remove(&flow) {
            Some(granted) if self.audit => self.control.send(&Event::Closed(granted.told()), None),
            _ => Ok(()),
        }
    }

    fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway.contains(&address)
    }

    /// Decides about a flow and begins to connect it.
    fn open(
        &mut self,
        flow: u64,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> io::Result<()> {
        let gateway = self.is_gateway(destination.ip());
        if gateway && destination.port() == DNS && matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            return match self.resolver.connect(protocol == Protocol::Tcp) {
                Ok(socket) => self.link.send(&Reply::Granted { flow }, Some(socket)),
                Err(_) => self.refuse(flow, Refusal::Unreachable),
            };
        }
        let member = self.segments.names_of(destination.ip()).map(<[String]>::to_vec);
        let is_member = member.is_some();
        let names = member.unwrap_or_else(|| {
            self.pins.names(destination.ip(), Instant::now()).into_iter().map(Into::into).collect()
        });
        let granted = Granted::new(protocol, source, destination, names);
        let web =
            protocol == Protocol::Tcp && !gateway && !is_member && matches!(destination.port(), HTTP | HTTPS);
        let basis = match self.decide(&granted) {
            Ok(basis) => basis,
            Err(denied) => {
                let (name, to) = (granted.names.first().cloned(), destination.ip());
                let readable = web && destination.port() == HTTP && name.is_some();
                self.tell(name, Some(to), destination.port(), protocol, denied.clone())?;
                if readable {
                    self.granted.insert(flow, granted);
                    return self.judge(flow, None, Pending::Denied(denied));
                }
                return self.refuse(flow, Refusal::Denied);
            }
        };
        if is_member {
            return self.call_member(flow, granted);
        }
        let secret = protocol == Protocol::Tcp && self.has_secrets_for(&granted);
        let judged = (secret || web && (basis == Basis::Name || self.policy.denies_names())).then_some(basis);
        // The host's loopback, by its name on the guest's link.
        let target = match destination {
            SocketAddr::V4(_) if gateway => SocketAddr::from((Ipv4Addr::LOCALHOST, destination.port())),
            SocketAddr::V6(_) if gateway => SocketAddr::from((Ipv6Addr::LOCALHOST, destination.port())),
            _ => destination,
        };
        match (self.dial)(protocol, target) {
            Ok((socket, true)) => {
                self.granted.insert(flow, granted);
                self.hand_over(flow, socket, judged)
            }
            Ok((socket, false)) if self.connecting.len() < CONNECTING => {
                self.granted.insert(flow, granted);
                let deadline = Instant::now() + CONNECT;
                self.connecting.push(Connecting { flow, socket, deadline, judged });
                Ok(())
            }
            Ok(_) => self.refuse(flow, Refusal::Unreachable),
            Err(Errno::ACCESS | Errno::PERM) if protocol == Protocol::Icmp => {
                let denied = Denied {
                    rule: None,
                    reason: "the host lets this user send no ping (sysctl net.ipv4.ping_group_range)",
                    remedy: String::new(),
                };
                let name = granted.names.first().cloned();
                self.tell(name, Some(destination.ip()), 0, protocol, denied)?;
                self.refuse(flow, Refusal::Denied)
            }
            Err(error) => self.refuse(flow, refusal(error)),
        }
    }

    pub(crate) fn class(&self, address: IpAddr) -> Class {
        match class(address) {
            _ if self.is_gateway(address) => Class::Host,
            Class::Public | Class::Private | Class::Special if is_own(address) => Class::Host,
            class => class,
        }
    }

    /// Whether secrets may be for who is there.
    pub(crate) fn has_secrets_for(&self, granted: &Granted) -> bool {
        let Some(opening) = &self.opening else { return false };
        let (to, names) = (granted.destination, granted.names.iter().map(String::as_str));
        match self.is_gateway(to.ip()) {
            true => opening.concerns(HOST_NAMES.into_iter(), to.port()),
            false => opening.concerns(names, to.port()),
        }
    }

    fn decide(&self, granted: &Granted) -> Result<Basis, Denied> {
        let to = granted.destination;
        let names: Vec<&str> = granted.names.iter().map(String::as_str).collect();
        if self.segments.names_of(to.ip()).is_some() {
            return self.policy.member(to.ip(), &names, granted.protocol, to.port());
        }
        self.policy.flow(to.ip(), self.class(to.ip()), &names, granted.protocol, to.port())
    }

    /// A connected socket is the worker's, unless what the guest says first decides.
    pub(crate) fn hand_over(&mut self, flow: u64, socket: OwnedFd, judged: Option<Basis>) -> io::Result<()> {
        if let Some(told) = self.granted.get(&flow).filter(|_| self.audit).map(Granted::told) {
            self.control.send(&Event::Opened(told), None)?;
        }
        match judged {
            Some(basis) => self.judge(flow, Some(socket), Pending::Basis(basis)),
            None => self.link.send(&Reply::Granted { flow }, Some(socket)),
        }
    }

    /// Tells of a flow, where that is asked for.
    pub(crate) fn opened(&mut self, granted: &Granted) -> io::Result<()> {
        if self.audit { self.control.send(&Event::Opened(granted.told()), None) } else { Ok(()) }
    }

    pub(crate) fn refuse(&mut self, flow: u64, refusal: Refusal) -> io::Result<()> {
        self.granted.remove(&flow);
        self.link.send(&Reply::Refused { flow, refusal }, None)
    }

    /// Hands over what is connected by now, and gives up what takes too long.
    fn finish(&mut self, now: Instant) -> io::Result<()> {
        let mut at = 0;
        while at < self.connecting.len() {
            let pending = &self.connecting[at];
            let done = match sockopt::socket_error(&pending.socket) {
                Ok(Ok(())) if rustix::net::getpeername(&pending.socket).is_ok() => Some(Ok(())),
                Ok(Ok(())) if pending.deadline <= now => Some(Err(Refusal::Unreachable)),
                Ok(Ok(())) => None,
                Ok(Err(error)) | Err(error) => Some(Err(refusal(error))),
            };
            let Some(done) = done else {
                at += 1;
                continue;
            };
            let Connecting { flow, socket, judged, .. } = self.connecting.swap_remove(at);
            match done {
                Ok(()) => self.hand_over(flow, socket, judged)?,
                Err(why) => self.refuse(flow, why)?,
            }
        }
        Ok(())
    }

    /// Ends the flows that the policy does not allow.
    fn revoke(&mut self) -> io::Result<()> {
        let ended: Vec<u64> = self
            .granted
            .iter()
            .filter(|(flow, granted)| *flow & INCOMING == 0 && self.decide(granted).is_err())
            .map(|(flow, _)| *flow)
            .collect();
        for flow in ended {
            if let Some(opening) = &mut self.opening {
                opening.end(flow);
            }
            self.closed(flow, Ended::Reset)?;
            self.link.send(&Reply::Revoked { flow, why: Refusal::Denied }, None)?;
        }
        Ok(())
    }

    /// Tells what was not passed on to hosts of secrets.
    fn tell_complaints(&mut self) -> io::Result<()> {
        for complaint in self.opening.as_mut().map(Opening::complaints).unwrap_or_default() {
            let Complaint { name, address, port, reason } = complaint;
            let denial = Denial {
                name: Some(name),
                address: Some(address),
                port,
                protocol: Protocol::Tcp,
                rule: None,
                reason,
                remedy: String::new(),
                time_ns: now_ns(),
            };
            self.control.send(&Event::Denied(denial), None)?;
        }
        Ok(())
    }

    pub(crate) fn tell(
        &mut self,
        name: Option<String>,
        address: Option<IpAddr>,
        port: u16,
        protocol: Protocol,
        denied: Denied,
    ) -> io::Result<()> {
        let Denied { rule, reason, remedy } = denied;
        let reason = reason.into();
        let denial = Denial { name, address, port, protocol, rule, reason, remedy, time_ns: now_ns() };
        self.control.send(&Event::Denied(denial), None)
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn refusal(error: Errno) -> Refusal {
    match error {
        Errno::CONNREFUSED | Errno::CONNRESET => Refusal::Refused,
        _ => Refusal::Unreachable,
    }
}

/// Whether the address is one of the host's own: then the way to it begins there as well.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let found = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    found.is_ok_and(|own| own.ip().to_canonical() == address.to_canonical())
}

/// A socket that is connected, or is being.
fn connect(protocol: Protocol, target: SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Icmp if target.is_ipv4() => (SocketType::DGRAM, Some(ipproto::ICMP)),
        Protocol::Icmp => (SocketType::DGRAM, Some(ipproto::ICMPV6)),
        Protocol::Dns => return Err(Errno::INVAL),
    };
    let socket = socket(family, kind, number)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    if protocol == Protocol::Tcp {
        // An urgent byte is one of the stream, as the guest's are (RFC 6093): otherwise it would be lost on the way.
        sockopt::set_socket_oobinline(&socket, true)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
    }
    match rustix::net::connect(socket.as_fd(), &target) {
        Ok(()) => Ok((socket, true)),
        Err(Errno::INPROGRESS) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}
