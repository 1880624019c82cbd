//! Serves the guest's questions to its name server: those that the policy allows go on to the host's servers.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::dns::{self, Question};
use crate::host::Host;
use crate::policy::{self, Denied, Pins, Policy};
use crate::segments::Segments;

/// Connections of the guest's that are served at once; the one that was idle the longest makes room.
const CLIENTS: usize = 512;
/// Questions that wait for an answer, and those of them that go by TCP.
const LOOKUPS: usize = 1024;
const BY_TCP: usize = 32;
/// How long a server has before the next is asked, and how often each is.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// How long a client is kept that asks nothing.
const IDLE: Duration = Duration::from_secs(30);
const MAX_MESSAGE: usize = 65_535;

struct Client {
    id: u64,
    socket: OwnedFd,
    /// Of a stream: bytes that have come.
    stream: Option<Vec<u8>>,
    last_used: Instant,
}

struct Lookup {
    client: u64,
    query: Vec<u8>,
    question: Question,
    /// How many servers have been asked before this one.
    tried: usize,
    socket: UdpSocket,
    deadline: Instant,
}

/// A question that came by TCP goes on by TCP, in a thread of its own.
struct Answered {
    client: u64,
    query: Vec<u8>,
    question: Question,
    answer: Option<Vec<u8>>,
}

pub(crate) struct Resolver {
    host: Host,
    gateway: Vec<IpAddr>,
    clients: VecDeque<Client>,
    lookups: Vec<Lookup>,
    next_client: u64,
    by_tcp: usize,
    answered: (Sender<Answered>, Receiver<Answered>),
    /// A datagram here says that something was answered.
    bell: (UnixDatagram, UnixDatagram),
}

/// What a resolver learns and tells while it works.
pub(crate) struct Context<'a> {
    pub policy: &'a Policy,
    pub pins: &'a mut Pins,
    pub segments: &'a Segments,
    /// Names that were not allowed.
    pub denied: &'a mut Vec<(String, Denied)>,
}

impl Resolver {
    pub(crate) fn new(host: Host, gateway: Vec<IpAddr>) -> io::Result<Self> {
        let bell = UnixDatagram::pair()?;
        bell.0.set_nonblocking(true)?;
        bell.1.set_nonblocking(true)?;
        Ok(Self {
            host,
            gateway,
            clients: VecDeque::new(),
            lookups: Vec::new(),
            next_client: 0,
            by_tcp: 0,
            answered: mpsc::channel(),
            bell,
        })
    }

    /// The guest's end of a new connection to the name server.
    pub(crate) fn connect(&mut self, stream: bool) -> io::Result<OwnedFd> {
        let (ours, theirs): (OwnedFd, OwnedFd) = if stream {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            (ours.into(), theirs.into())
        } else {
            let (ours, theirs) = UnixDatagram::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            (ours.into(), theirs.into())
        };
        if self.clients.len() >= CLIENTS {
            let idle = self.clients.iter().enumerate().min_by_key(|(_, client)| client.last_used);
            if let Some((at, _)) = idle {
                self.clients.remove(at);
            }
        }
        self.next_client += 1;
        let (id, stream) = (self.next_client, stream.then(Vec::new));
        self.clients.push_back(Client { id, socket: ours, stream, last_used: Instant::now() });
        Ok(theirs)
    }

    /// What to wait for until something can be read.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.bell.1.as_fd())
            .chain(self.clients.iter().map(|client| client.socket.as_fd()))
            .chain(self.lookups.iter().map(|lookup| lookup.socket.as_fd()))
    }

    /// When there is something to do though nothing can be read.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let idle = self.clients.iter().map(|client| client.last_used + IDLE);
        self.lookups.iter().map(|lookup| lookup.deadline).chain(idle).min()
    }

    /// Does what can be done now.
    pub(crate) fn serve(&mut self, context: &mut Context<'_>, now: Instant) {
        while self.bell.1.recv(&mut [0; 8]).is_ok() {}
        while let Ok(done) = self.answered.1.try_recv() {
            self.by_tcp -= 1;
            let answer = done.answer.filter(|answer| dns::answers(answer, &done.question).is_some());
            let answer =
                answer.unwrap_or_else(|| dns::answer(&done.query, &done.question, dns::SERVER_FAILED, &[]));
            self.give(done.client, &done.question, &answer, context, now);
        }
        for (client, query) in self.questions(now) {
            self.ask(client, query, context, now);
        }
        self.hear(context, now);
    }

    /// Reads what clients ask, and forgets those that are gone.
    fn questions(&mut self, now: Instant) -> Vec<(u64, Vec<u8>)> {
        let mut asked = Vec::new();
        let mut buffer = vec![0; MAX_MESSAGE];
        self.clients.retain_mut(|client| {
            loop {
                match rustix::io::read(&client.socket, &mut buffer[..]) {
                    // A datagram of no bytes is no question; a stream ends here.
                    Ok(0) if client.stream.is_some() => return false,
                    Ok(n) => {
                        client.last_used = now;
                        let Some(stream) = &mut client.stream else {
                            asked.push((client.id, buffer[..n].to_vec()));
                            continue;
                        };
                        stream.extend(&buffer[..n]);
                        while let [high, low, rest @ ..] = &stream[..] {
                            let length = usize::from(u16::from_be_bytes([*high, *low]));
                            let Some(message) = rest.get(..length) else { break };
                            asked.push((client.id, message.to_vec()));
                            stream.drain(..2 + length);
                        }
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => return client.last_used + IDLE > now,
                    Err(_) => return false,
                }
            }
        });
        asked
    }

    /// Answers a question, or passes it on.
    fn ask(&mut self, client: u64, query: Vec<u8>, context: &mut Context<'_>, now: Instant) {
        let Some(question) = dns::question(&query) else { return };
        let own = |resolver: &mut Self, code, addresses: &[IpAddr]| {
            resolver.send(client, &dns::answer(&query, &question, code, addresses));
        };
        let Some(name) = question.name.clone() else {
            return own(self, dns::NO_SUCH_NAME, &[]);
        };
        if policy::is_host_name(&name) {
            let gateway = self.gateway.clone();
            return own(self, 0, &gateway);
        }
        if let Some(addresses) = context.segments.addresses(&name) {
            return match context.policy.denied_name(&name) {
                None => own(self, 0, &addresses),
                Some(denied) => {
                    context.denied.push((name, denied));
                    own(self, dns::NO_SUCH_NAME, &[])
                }
            };
        }
        if let Err(denied) = context.policy.name(&name) {
            context.denied.push((name, denied));
            return own(self, dns::NO_SUCH_NAME, &[]);
        }
        if matches!(question.kind, dns::SVCB | dns::HTTPS) && context.policy.is_by_name() {
            return own(self, 0, &[]);
        }
        if let Some(addresses) = self.host.names.get(&name) {
            // The host's loopback is the gateway to a guest.
            let addresses: Vec<_> = addresses
                .iter()
                .flat_map(|address| if address.is_loopback() { self.gateway.clone() } else { vec![*address] })
                .collect();
            addresses.iter().for_each(|address| context.pins.add(*address, &name, IDLE, now));
            return own(self, 0, &addresses);
        }
        if self.lookups.len() >= LOOKUPS {
            return own(self, dns::SERVER_FAILED, &[]);
        }
        let by_stream = self.clients.iter().any(|known| known.id == client && known.stream.is_some());
        if by_stream {
            return self.ask_by_tcp(client, query, question);
        }
        self.forward(client, query, question, 0, now);
    }

    /// Asks the next server, or gives up.
    fn forward(&mut self, client: u64, query: Vec<u8>, question: Question, tried: usize, now: Instant) {
        let servers = self.host.servers_of(question.name.as_deref());
        for tried in tried..servers.len() * ROUNDS {
            let server = servers[tried % servers.len()];
            if let Ok(socket) = send(server, &query) {
                let deadline = now + PATIENCE;
                self.lookups.push(Lookup { client, query, question, tried, socket, deadline });
                return;
            }
        }
        self.send(client, &dns::answer(&query, &question, dns::SERVER_FAILED, &[]));
    }

    /// Hears what servers say, and goes on to the next where one does not help.
    fn hear(&mut self, context: &mut Context<'_>, now: Instant) {
        let mut buffer = vec![0; MAX_MESSAGE];
        let mut at = 0;
        while at < self.lookups.len() {
            let lookup = &self.lookups[at];
            let (code, length, failed) = match lookup.socket.recv(&mut buffer) {
                Ok(n) => (dns::answers(&buffer[..n], &lookup.question), n, false),
                Err(error) => (None, 0, error.kind() != io::ErrorKind::WouldBlock),
            };
            let servers = self.host.servers_of(lookup.question.name.as_deref()).len();
            let last = lookup.tried + 1 >= servers * ROUNDS;
            match code {
                Some(dns::SERVER_FAILED | dns::REFUSED | dns::NOT_IMPLEMENTED) if !last => {
                    let Lookup { client, query, question, tried, .. } = self.lookups.swap_remove(at);
                    self.forward(client, query, question, tried + 1, now);
                }
                Some(_) => {
                    let lookup = self.lookups.swap_remove(at);
                    self.give(lookup.client, &lookup.question, &buffer[..length], context, now);
                }
                None if failed || lookup.deadline <= now => {
                    let Lookup { client, query, question, tried, .. } = self.lookups.swap_remove(at);
                    self.forward(client, query, question, tried + 1, now);
                }
                None => at += 1,
            }
        }
    }

    fn ask_by_tcp(&mut self, client: u64, query: Vec<u8>, question: Question) {
        let servers = self.host.servers_of(question.name.as_deref()).to_vec();
        let (sender, bell) = (self.answered.0.clone(), self.bell.0.try_clone());
        let kept = (query.clone(), question.clone());
        let spawned = match (self.by_tcp < BY_TCP, bell) {
            (true, Ok(bell)) => thread::Builder::new().name("dns-tcp".into()).spawn(move || {
                let answer = servers.iter().find_map(|server| ask_stream(*server, &query).ok());
                let _ = sender.send(Answered { client, query, question, answer });
                let _ = bell.send(&[0]);
            }),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        };
        match spawned {
            Ok(_) => self.by_tcp += 1,
            Err(_) => self.send(client, &dns::answer(&kept.0, &kept.1, dns::SERVER_FAILED, &[])),
        }
    }

    /// Remembers what an answer says, and gives it to who asked.
    fn give(
        &mut self,
        client: u64,
        question: &Question,
        answer: &[u8],
        context: &mut Context<'_>,
        now: Instant,
    ) {
        // What a denied name leads to is not given under another one that is an alias of it.
        for alias in dns::aliases(answer) {
            if let Some(denied) = context.policy.denied_name(&alias) {
                context.denied.push((alias, denied));
                return self.send(client, &dns::denied(answer, question));
            }
        }
        if let Some(name) = &question.name {
            for (address, ttl) in dns::addresses(answer) {
                context.pins.add(address, name, ttl, now);
            }
        }
        self.send(client, answer);
    }

    fn send(&mut self, client: u64, answer: &[u8]) {
        let Some(at) = self.clients.iter().position(|known| known.id == client) else { return };
        let sent = if self.clients[at].stream.is_some() {
            let Ok(length) = u16::try_from(answer.len()).map(u16::to_be_bytes) else { return };
            let framed = [&length[..], answer].concat();
            rustix::io::write(&self.clients[at].socket, &framed).map(|n| n == framed.len())
        } else {
            rustix::io::write(&self.clients[at].socket, answer).map(|_| true)
        };
        // A client that takes no answers has no use of more.
        if sent != Ok(true) {
            self.clients.remove(at);
        }
    }
}

fn send(server: SocketAddr, query: &[u8]) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    socket.send(query)?;
    Ok(socket)
}

fn ask_stream(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_be_bytes();
    stream.write_all(&[&length[..], query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}
