//! A port of the host that leads to a port of the guest.
//!
//! A connection is handed to the guest's network, whose worker speaks with the client from then on. What does not come
//! to the guest that way, as a service that listens on the guest's loopback alone, is joined to a connection that the
//! agent makes there, by threads that never take the GIL.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use supermachine_proto::agent::{FileReply, REQUEST_PORT, Request};
use supermachine_proto::frame;
use supermachine_proto::netd::Protocol;
use supermachine_support::lock;

use crate::callers::{goes_on, seen_as};
use crate::datagrams;
use crate::descriptors::{self, Owner, Unshared};
use crate::netd::Otherwise;
use crate::sys::{self, Interest};
use crate::worker::{Dialer, Worker};

/// Connections that one port serves by threads at once; more are closed as they come.
const MAX_CONNECTIONS: usize = 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Bytes in flight in each direction of a connection.
const BUFFER: usize = 64 * 1024;
/// How long the guest may take to answer a new connection.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a client may take to read what a VM sent before it ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A port of the guest.
#[derive(Clone, Copy, Debug)]
enum Guest {
    /// By its network; where it has none, or nobody listens there, on its loopback, by way of its agent.
    Tcp(u16),
    /// By its network.
    Udp(u16),
    Vsock(u32),
}

/// What listens on the host.
enum Listener {
    Stream(Unshared<TcpListener>),
    Datagrams(Unshared<UdpSocket>),
}

/// A listening port of the host; closed with the VM, or by `close`.
#[pyclass(frozen, module = "supermachine._core")]
pub struct Forward {
    address: SocketAddr,
    /// Closing it ends the listener.
    alive: Mutex<Option<Unshared<PipeWriter>>>,
    owner: Owner,
}

#[pymethods]
impl Forward {
    /// Listens on `host`:`port`, 0 for any free one, for the guest's `guest_port` of "tcp", "udp" or "vsock". UDP needs
    /// a guest with a network. Raises OSError when the port cannot be had.
    #[staticmethod]
    fn start(
        py: Python<'_>,
        worker: &Worker,
        protocol: &str,
        guest_port: u32,
        host: &str,
        port: u16,
    ) -> PyResult<Self> {
        let invalid = |message: String| Err(pyo3::exceptions::PyValueError::new_err(message));
        let guest = match (protocol, u16::try_from(guest_port)) {
            ("vsock", _) => Guest::Vsock(guest_port),
            ("tcp", Ok(port)) => Guest::Tcp(port),
            ("udp", Ok(port)) => Guest::Udp(port),
            _ => return invalid(format!("{guest_port} is not a port of {protocol}")),
        };
        let Ok(address) = host.parse::<IpAddr>() else {
            return invalid(format!("{host:?} is not an IP address of this host"));
        };
        let dialer = worker.dialer();
        if matches!(guest, Guest::Udp(_)) && dialer.door().is_none() {
            return invalid("a guest without a network has no UDP ports to publish".into());
        }
        let started = py.detach(move || -> io::Result<Self> {
            let (listener, address) = Listener::bind(guest, (address, port).into())?;
            let (stop, alive) = descriptors::pipe()?;
            thread::Builder::new().name("supermachine-port".into()).stack_size(128 * 1024).spawn(
                move || match (&listener, guest, dialer.door()) {
                    (Listener::Datagrams(socket), Guest::Udp(port), Some(door)) => {
                        datagrams::listen(socket, door, port, &stop, dialer.vm().ended());
                    }
                    (Listener::Stream(listener), ..) => listen(listener, &dialer, guest, &stop),
                    _ => {}
                },
            )?;
            Ok(Self { address, alive: Mutex::new(Some(alive)), owner: Owner::this() })
        });
        Ok(started?)
    }

    /// The port of the host.
    #[getter]
    fn port(&self) -> u16 {
        self.address.port()
    }

    /// Takes no more connections; those that are open go on.
    fn close(&self) {
        if !self.owner.is_here() {
            return;
        }
        lock(&self.alive).take();
    }
}

impl Listener {
    fn bind(guest: Guest, address: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        if matches!(guest, Guest::Udp(_)) {
            let socket = Unshared::new(|| UdpSocket::bind(address))?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            return Ok((Self::Datagrams(socket), address));
        }
        let listener = Unshared::new(|| TcpListener::bind(address))?;
        listener.set_nonblocking(true)?;
        // The standard library has 128 connections wait at most; clients of more would be told nothing and try again
        // after a second.
        rustix::net::listen(&*listener, BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((Self::Stream(listener), address))
    }
}

/// Takes connections until `stop` or `ended` closes.
fn listen(listener: &TcpListener, dialer: &Dialer, guest: Guest, stop: &PipeReader) {
    let open = Arc::new(AtomicUsize::new(0));
    let ended = dialer.vm().ended();
    loop {
        let interests = [
            Interest::when(true, listener, libc::POLLIN),
            Interest::when(true, stop, libc::POLLIN),
            Interest::when(true, ended, libc::POLLIN),
        ];
        let Ok([_, 0, 0]) = sys::poll(interests, None) else { return };
        let (client, source) = match accept(listener) {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => {
                // Out of descriptors, most likely: the connection stays in the queue.
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let (agent, counted) = (dialer.clone(), open.clone());
        let client = Arc::new(client);
        let kept = client.clone();
        let otherwise: Otherwise = Box::new(move || by_thread(kept, agent, guest, counted));
        match (guest, dialer.door()) {
            (Guest::Tcp(port), Some(door)) => {
                door.deliver(Protocol::Tcp, source, port, client.as_fd(), otherwise, || goes_on(stop, ended));
            }
            _ => otherwise(),
        }
    }
}

/// The next connection, and who the guest is told has come.
fn accept(listener: &TcpListener) -> io::Result<(Unshared<TcpStream>, SocketAddr)> {
    let client = Unshared::new(|| Ok(listener.accept()?.0))?;
    client.set_nonblocking(true)?;
    client.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_oobinline(&*client, true)?;
    // A client whose host has gone would be kept for ever.
    rustix::net::sockopt::set_socket_keepalive(&*client, true)?;
    let source = seen_as(client.peer_addr()?, client.local_addr()?.ip());
    Ok((client, source))
}

/// Serves a connection by a thread of its own; one that there are too many for is closed.
fn by_thread(client: Arc<Unshared<TcpStream>>, dialer: Dialer, guest: Guest, open: Arc<AtomicUsize>) {
    if open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
        open.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let counted = open.clone();
    let spawned =
        thread::Builder::new().name("supermachine-port".into()).stack_size(256 * 1024).spawn(move || {
            let _ = serve(&client, &dialer, guest);
            counted.fetch_sub(1, Ordering::SeqCst);
        });
    if spawned.is_err() {
        open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One connection, to its end. Dropping the client closes it, which is how a refusal shows.
fn serve(client: &TcpStream, dialer: &Dialer, to: Guest) -> Result<(), frame::Error> {
    let guest = match to {
        Guest::Vsock(port) => dialer.open(port)?,
        Guest::Tcp(port) | Guest::Udp(port) => {
            let guest = dialer.open(REQUEST_PORT)?;
            guest.set_read_timeout(Some(ANSWER))?;
            guest.set_write_timeout(Some(ANSWER))?;
            frame::write(&mut &*guest, &Request::Forward { port })?;
            let mut answer = Until { stream: &guest, deadline: Instant::now() + ANSWER };
            if frame::read::<FileReply>(&mut answer)? != Some(FileReply::Done) {
                return Ok(());
            }
            guest
        }
    };
    guest.set_nonblocking(true)?;
    Ok(relay(client, &guest, dialer.vm().ended())?)
}

/// Reads until a moment, however little comes at a time.
struct Until<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        (&mut &*self.stream).read(buffer)
    }
}

/// Bytes on their way in one direction.
struct Flow {
    buffer: Vec<u8>,
    filled: usize,
    sent: usize,
    /// Nothing more comes.
    ended: bool,
    /// And the receiver has been told.
    closed: bool,
}

impl Flow {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER], filled: 0, sent: 0, ended: false, closed: false }
    }

    fn is_empty(&self) -> bool {
        self.sent == self.filled
    }

    fn wants_input(&self) -> bool {
        self.is_empty() && !self.ended
    }

    /// Moves what can be moved without waiting.
    fn advance(&mut self, mut from: impl Read, mut to: impl Write) -> io::Result<()> {
        if self.wants_input() {
            match from.read(&mut self.buffer) {
                Ok(0) => self.ended = true,
                Ok(n) => (self.sent, self.filled) = (0, n),
                Err(error) => later(error)?,
            }
        }
        while !self.is_empty() {
            match to.write(&self.buffer[self.sent..self.filled]) {
                Ok(n) => self.sent += n,
                Err(error) => return later(error),
            }
        }
        Ok(())
    }

    /// Whether the receiver is to be told now that nothing more comes.
    fn must_close(&mut self) -> bool {
        let now = self.ended && self.is_empty() && !self.closed;
        self.closed |= now;
        now
    }
}

/// What a socket that would block says is no error.
fn later(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

/// Moves bytes both ways until both sides have ended, one is gone, or the VM has ended.
fn relay(client: &TcpStream, guest: &UnixStream, ended: &PipeReader) -> io::Result<()> {
    let (mut up, mut down) = (Flow::new(), Flow::new());
    let mut deadline: Option<Instant> = None;
    while !(up.closed && down.closed) {
        let events = |reads: &Flow, writes: &Flow| {
            let input = if reads.wants_input() { libc::POLLIN } else { 0 };
            input | if writes.is_empty() { 0 } else { libc::POLLOUT }
        };
        let (of_client, of_guest) = (events(&up, &down), events(&down, &up));
        let interests = [
            Interest::when(of_client != 0, client, of_client),
            Interest::when(of_guest != 0, guest, of_guest),
            Interest::when(deadline.is_none(), ended, libc::POLLIN),
        ];
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        let [_, _, over] = sys::poll(interests, left)?;
        if over != 0 {
            // What the VM had sent is delivered, to a client that reads; it takes nothing more.
            deadline = Some(Instant::now() + LAST_WORDS);
            (up.ended, up.closed, up.sent) = (true, true, up.filled);
        }
        up.advance(client, guest)?;
        down.advance(guest, client)?;
        if up.must_close() {
            guest.shutdown(Shutdown::Write)?;
        }
        if down.must_close() {
            client.shutdown(Shutdown::Write)?;
        }
    }
    Ok(())
}
