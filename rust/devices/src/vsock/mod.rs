//! virtio-vsock (virtio 1.2, 5.10): stream sockets between guest and host.
//!
//! Each connection of the guest's is joined to a Unix stream socket of the host's. Bytes from the guest go to that
//! socket at once, or wait in a buffer of at most [`BUFFER`] bytes, which is the credit the guest gets. Bytes
//! from the socket are read only when the guest has room for them. An I/O thread waits for the sockets; all the
//! rest happens under the transport's lock.

mod connection;
mod packet;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, TryLockError};

use supermachine_support::lock;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use crate::mmio::{Device, Rings, Transport};
use crate::poller::{self, Poller};
use crate::{Broken, chain};
use connection::{Connection, Key, State};
use packet::*;

/// Bytes of one connection that the host keeps for a socket that does not take them yet.
pub const BUFFER: u32 = 256 * 1024;
/// Bytes of one packet to the guest.
const MAX_PACKET: usize = 64 * 1024;
/// Connections at once; further ones are refused.
const MAX_CONNECTIONS: usize = 4096;
/// Bytes of all connections that the host keeps for sockets that do not take them. A guest that fills more than this
/// loses the connection that goes beyond.
const MAX_BUFFERED: usize = 256 << 20;
/// Requests of the guest's that wait for it to have ended its connections.
const MAX_ASKED: usize = 64;
/// Guest ports below this one are for who may bind them: the agent is, other users' processes are not
/// (LAST_RESERVED_PORT in net/vmw_vsock/af_vsock.c).
const RESERVED_PORTS: u32 = 1024;
/// Packets without data that wait for the guest's buffers. Each answers one of the guest's own, or belongs to a
/// connection, so a guest that goes beyond does not take what it asked for.
const MAX_CONTROL: usize = 4 * MAX_CONNECTIONS;
/// Packets of the guest's that are given back without an interrupt, of the 128 that it can have under way. Linux is
/// woken to free them: more work than to send one. It also looks at them with the next packet that it gets.
const MAX_UNTOLD: u32 = 16;
/// Host ports from here on are given to connections that the host makes.
const FIRST_EPHEMERAL: u32 = 1 << 30;
const HOST_CID: u64 = libc::VMADDR_CID_HOST as u64;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;

/// Takes the host's end of a connection that the guest has made, or why there is none: the host has no more
/// descriptors.
pub type Accept = Box<dyn FnMut(io::Result<OwnedFd>) + Send>;

/// A port of the host's. One connection at a time, for there is one process in a guest that it is for: the first to
/// connect, which is there before any other, or who may bind a reserved port.
struct Listener {
    accept: Accept,
    connected: Option<Key>,
    /// Whether somebody has connected in the guest's present life.
    known: bool,
}

/// The device.
pub struct Vsock {
    config: [u8; 8],
    poller: Arc<Poller>,
    listeners: BTreeMap<u32, Listener>,
    connections: BTreeMap<Key, Connection>,
    /// The poller's names of connections.
    tokens: BTreeMap<u64, Key>,
    next_token: u64,
    next_port: u32,
    control: VecDeque<Header>,
    /// Where the search for a connection with something to read starts, so that each has its turn.
    turn: Option<Key>,
    buffer: Box<[u8]>,
    /// The driver is still to hear that its connections are gone.
    reset_unreported: bool,
    /// It has heard, and has yet to end them. Linux ends all that it knows, new ones as well, and tells nobody.
    reset_under_way: bool,
    /// Host's sockets that wait for that, each with the guest's port that it is for.
    waiting: Vec<(u32, UnixStream)>,
    /// The guest's requests that wait for that.
    asked: Vec<(Key, Header)>,
    closed: bool,
    /// Bytes of all connections that wait for their sockets.
    buffered: usize,
    /// Packets that were given back without an interrupt since the last.
    untold: u32,
}

impl Vsock {
    fn new(guest_cid: u64) -> io::Result<Self> {
        Ok(Self {
            config: guest_cid.to_le_bytes(),
            poller: Arc::new(Poller::new()?),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: 0,
            next_port: FIRST_EPHEMERAL,
            control: VecDeque::new(),
            turn: None,
            buffer: vec![0; MAX_PACKET].into(),
            reset_unreported: false,
            reset_under_way: false,
            waiting: Vec::new(),
            asked: Vec::new(),
            closed: false,
            buffered: 0,
            untold: 0,
        })
    }

    fn header(&self, key: Key, op: u16, flags: u32) -> Header {
        let fwd_cnt = self.connections.get(&key).map_or(0, |c| c.forwarded);
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: u64::from_le_bytes(self.config).into(),
            src_port: key.host.into(),
            dst_port: key.guest.into(),
            len: 0.into(),
            kind: TYPE_STREAM.into(),
            op: op.into(),
            flags: flags.into(),
            buf_alloc: BUFFER.into(),
            fwd_cnt: fwd_cnt.into(),
        }
    }

    fn send(&mut self, key: Key, op: u16, flags: u32) -> Result<(), Broken> {
        self.answer(self.header(key, op, flags))?;
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.announced = connection.forwarded;
        }
        Ok(())
    }

    fn answer(&mut self, header: Header) -> Result<(), Broken> {
        if self.control.len() >= MAX_CONTROL {
            return Err(Broken::Overrun { what: "vsock answers" });
        }
        self.control.push_back(header);
        Ok(())
    }

    fn add(&mut self, key: Key, stream: UnixStream, state: State) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let token = self.next_token;
        self.next_token += 1;
        self.poller.add(&stream, token)?;
        self.tokens.insert(token, key);
        self.connections.insert(key, Connection::new(stream, token, state));
        Ok(())
    }

    /// Forgets a connection; its socket closes, and the host's side sees the end of the stream.
    fn remove(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(&key) {
            self.tokens.remove(&connection.token);
            self.poller.remove(&connection.stream);
            self.buffered -= connection.waiting();
            if let Some(listener) = self.listeners.get_mut(&key.host)
                && listener.connected == Some(key)
            {
                listener.connected = None;
            }
        }
    }

    fn reset_connection(&mut self, key: Key) -> Result<(), Broken> {
        self.remove(key);
        self.send(key, OP_RST, 0)
    }

    /// Whether the driver has yet to end its connections.
    fn is_resetting(&self) -> bool {
        self.reset_unreported || self.reset_under_way
    }

    /// Starts a connection to a guest port for a socket of the host's.
    fn connect(&mut self, guest_port: u32, stream: UnixStream) -> Result<(), Broken> {
        if self.closed || self.connections.len() + self.waiting.len() >= MAX_CONNECTIONS {
            return Ok(());
        }
        if self.is_resetting() {
            self.waiting.push((guest_port, stream));
            return Ok(());
        }
        let mut key = Key { host: self.next_port, guest: guest_port };
        while self.connections.contains_key(&key) {
            key.host = key.host.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
        }
        self.next_port = key.host.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
        match self.add(key, stream, State::Requested) {
            Ok(()) => self.send(key, OP_REQUEST, 0),
            Err(_) => Ok(()),
        }
    }

    /// A packet of the guest's.
    fn receive(&mut self, header: &Header, data: &mut impl Read) -> Result<(), Broken> {
        let key = Key { host: header.dst_port.into(), guest: header.src_port.into() };
        let op = u16::from(header.op);
        if u64::from(header.dst_cid) != HOST_CID || u16::from(header.kind) != TYPE_STREAM {
            // From whom the guest has asked for and of the type it has asked for; it waits for no other answer.
            let refusal =
                Header { src_cid: header.dst_cid, kind: header.kind, ..self.header(key, OP_RST, 0) };
            return if op == OP_RST { Ok(()) } else { self.answer(refusal) };
        }
        if op == OP_REQUEST {
            return self.accept(key, header);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return if op == OP_RST { Ok(()) } else { self.send(key, OP_RST, 0) };
        };
        connection.credit(header.buf_alloc.into(), header.fwd_cnt.into());
        match op {
            OP_RESPONSE if connection.state == State::Requested => {
                // The host has mostly said what it wants by now: the guest gets that at once, and need not sleep for
                // it.
                (connection.state, connection.readable) = (State::Established, true);
            }
            OP_RST => self.remove(key),
            OP_SHUTDOWN => {
                connection.guest_shutdown |= u32::from(header.flags) & SHUTDOWN_BOTH;
                return self.after_write(key);
            }
            OP_RW => {
                let (length, before) = (u32::from(header.len) as usize, connection.waiting());
                if self.buffered + length > MAX_BUFFERED {
                    return self.reset_connection(key);
                }
                let taken = connection.take(length, data);
                self.buffered += connection.waiting() - before;
                if !taken? {
                    return self.reset_connection(key);
                }
                return self.after_write(key);
            }
            OP_CREDIT_UPDATE => {}
            OP_CREDIT_REQUEST => return self.send(key, OP_CREDIT_UPDATE, 0),
            _ => return self.reset_connection(key),
        }
        Ok(())
    }

    fn accept(&mut self, key: Key, header: &Header) -> Result<(), Broken> {
        let Some(listener) = self.listeners.get(&key.host) else { return self.reset_connection(key) };
        if self.is_resetting() && self.asked.len() < MAX_ASKED {
            self.asked.push((key, *header));
            return Ok(());
        }
        let refused = self.is_resetting()
            || self.closed
            || listener.connected.is_some()
            || listener.known && key.guest >= RESERVED_PORTS
            || self.connections.contains_key(&key);
        if refused {
            return self.reset_connection(key);
        }
        let made = UnixStream::pair().and_then(|(ours, theirs)| {
            self.add(key, ours, State::Established)?;
            Ok(theirs)
        });
        let theirs = match made {
            Ok(theirs) => theirs,
            Err(error) => {
                if let Some(listener) = self.listeners.get_mut(&key.host) {
                    (listener.accept)(Err(error));
                }
                return self.reset_connection(key);
            }
        };
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.credit(header.buf_alloc.into(), header.fwd_cnt.into());
        }
        if let Some(listener) = self.listeners.get_mut(&key.host) {
            (listener.connected, listener.known) = (Some(key), true);
            (listener.accept)(Ok(theirs.into()));
        }
        self.send(key, OP_RESPONSE, 0)
    }

    /// Writes what the guest has sent on to the socket, and does what follows from its having been written.
    fn after_write(&mut self, key: Key) -> Result<(), Broken> {
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        let before = connection.waiting();
        let flushed = connection.flush();
        self.buffered -= before - connection.waiting();
        if flushed.is_err() {
            return self.reset_connection(key);
        }
        if connection.is_drained() {
            match connection.guest_shutdown {
                SHUTDOWN_BOTH => return self.reset_connection(key),
                SHUTDOWN_SEND => connection.end_writing(),
                SHUTDOWN_RECEIVE => connection.end_reading(),
                _ => {}
            }
        }
        let unannounced = connection.forwarded.wrapping_sub(connection.announced);
        connection.watch(&self.poller);
        // Half a buffer: seldom enough to be cheap, early enough that the guest does not wait.
        if unannounced >= BUFFER / 2 {
            return self.send(key, OP_CREDIT_UPDATE, 0);
        }
        Ok(())
    }

    /// Fills the guest's receive buffers: packets without data first, then what the sockets hold, in turn.
    fn fill(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        let memory = rings.memory();
        loop {
            while !self.control.is_empty() || self.next_readable().is_some() {
                let Some(chain) = rings.pop(RECEIVE)? else { break };
                let head = chain.head_index();
                let mut writer = chain.writer(&memory)?;
                let room = writer.available_bytes().checked_sub(HEADER_BYTES);
                let room =
                    room.ok_or_else(|| Broken::Chain("a vsock buffer does not hold a header".into()))?;
                let written = match self.control.pop_front() {
                    Some(header) => {
                        writer.write_all(vm_memory::ByteValued::as_slice(&header))?;
                        Some(HEADER_BYTES)
                    }
                    None => self.read_socket(&mut writer, room)?,
                };
                match written {
                    Some(written) => rings.push(RECEIVE, head, chain::told(written)?)?,
                    None => rings.put_back(RECEIVE),
                }
            }
            // While nothing is to be sent the guest need not say that it has added buffers.
            if self.control.is_empty() && self.next_readable().is_none() {
                return Ok(());
            }
            if !rings.enable_notification(RECEIVE)? {
                return Ok(());
            }
        }
    }

    /// One packet from the next socket that has something; the packet's length. `None` when all turn out empty.
    fn read_socket(&mut self, writer: &mut impl Write, room: usize) -> Result<Option<usize>, Broken> {
        loop {
            let Some(key) = self.next_readable() else { return Ok(None) };
            self.turn = Some(key);
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            let limit = room.min(MAX_PACKET).min(connection.guest_room() as usize);
            match connection.stream.read(&mut self.buffer[..limit]) {
                Ok(0) => {
                    connection.readable = false;
                    connection.host_ended = true;
                    let flags = if connection.hung_up { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
                    let header = self.header(key, OP_SHUTDOWN, flags);
                    writer.write_all(vm_memory::ByteValued::as_slice(&header))?;
                    self.watch(key);
                    return Ok(Some(HEADER_BYTES));
                }
                Ok(n) => {
                    let length = u32::try_from(n).expect("a packet has at most MAX_PACKET");
                    connection.sent = connection.sent.wrapping_add(length);
                    connection.announced = connection.forwarded;
                    let mut header = self.header(key, OP_RW, 0);
                    header.len = length.into();
                    writer.write_all(vm_memory::ByteValued::as_slice(&header))?;
                    writer.write_all(&self.buffer[..n])?;
                    return Ok(Some(HEADER_BYTES + n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                    self.watch(key);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.remove(key);
                    let header = self.header(key, OP_RST, 0);
                    writer.write_all(vm_memory::ByteValued::as_slice(&header))?;
                    return Ok(Some(HEADER_BYTES));
                }
            }
        }
    }

    /// The next connection whose socket may have bytes that the guest has room for.
    fn next_readable(&self) -> Option<Key> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = self.turn.map_or(Unbounded, Excluded);
        let can_read = |(key, connection): (&Key, &Connection)| connection.can_read().then_some(*key);
        self.connections
            .range((after, Unbounded))
            .find_map(can_read)
            .or_else(|| self.connections.iter().find_map(can_read))
    }

    /// A socket is ready, says the poller.
    fn ready(&mut self, event: poller::Event) -> Result<(), Broken> {
        let Some(key) = self.tokens.get(&event.token).copied() else { return Ok(()) };
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        connection.hung_up |= event.hung_up;
        connection.readable |= event.readable && !connection.host_ended;
        if event.hung_up && connection.host_ended {
            // Nothing can be read from it or written to it any more.
            return self.reset_connection(key);
        }
        match event.writable {
            true => self.after_write(key),
            // The event was told once for both directions: the other one still wants to be heard of.
            false => {
                self.watch(key);
                Ok(())
            }
        }
    }

    /// Tells the driver that all connections are gone (virtio 1.2, 5.10.6.7), once it has a buffer for that.
    fn report_reset(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        if !self.reset_unreported {
            return Ok(());
        }
        let memory = rings.memory();
        let Some(chain) = rings.pop(EVENT)? else { return Ok(()) };
        let head = chain.head_index();
        chain.writer(&memory)?.write_all(&EVENT_TRANSPORT_RESET.to_le_bytes())?;
        // It has a dozen more buffers there, and would not tell of this one.
        rings.enable_notification_of_next(EVENT)?;
        (self.reset_unreported, self.reset_under_way) = (false, true);
        rings.push(EVENT, head, 4)
    }

    /// The driver has given buffers for events: it has come up, or has dealt with an event.
    fn events_wanted(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        if self.reset_unreported {
            return self.report_reset(rings);
        }
        self.reset_under_way = false;
        for (key, header) in std::mem::take(&mut self.asked) {
            self.accept(key, &header)?;
        }
        for (port, stream) in std::mem::take(&mut self.waiting) {
            self.connect(port, stream)?;
        }
        self.fill(rings)
    }

    /// Gives a packet of the guest's back, with an interrupt for every so many.
    fn give_back(&mut self, head: u16, rings: &mut Rings) -> Result<(), Broken> {
        self.untold += 1;
        if self.untold < MAX_UNTOLD && rings.says_what_it_saw(TRANSMIT) {
            return rings.push_untold(TRANSMIT, head, 0);
        }
        self.untold = 0;
        rings.push(TRANSMIT, head, 0)
    }

    fn watch(&self, key: Key) {
        if let Some(connection) = self.connections.get(&key) {
            connection.watch(&self.poller);
        }
    }

    fn drop_all(&mut self) {
        self.listeners.values_mut().for_each(|listener| listener.known = false);
        for key in self.connections.keys().copied().collect::<Vec<_>>() {
            self.remove(key);
        }
        self.control.clear();
        self.waiting.clear();
        self.asked.clear();
    }
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[128, 128, 16]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn notify(&mut self, index: usize, rings: &mut Rings) -> Result<(), Broken> {
        if index == TRANSMIT {
            let memory = rings.memory();
            loop {
                while let Some(chain) = rings.pop(TRANSMIT)? {
                    let head = chain.head_index();
                    let mut reader = chain.reader(&memory)?;
                    let header: Header = reader.read_obj()?;
                    if u32::from(header.len) as usize > reader.available_bytes() {
                        return Err(Broken::Chain("a vsock packet is shorter than it says".into()));
                    }
                    self.receive(&header, &mut reader)?;
                    self.give_back(head, rings)?;
                }
                if !rings.enable_notification(TRANSMIT)? {
                    break;
                }
            }
        }
        if index == EVENT {
            return self.events_wanted(rings);
        }
        self.fill(rings)
    }

    fn reset(&mut self) {
        self.drop_all();
        self.untold = 0;
        (self.reset_unreported, self.reset_under_way) = (false, false);
    }
}

/// The host's side: makes and takes connections, from any thread.
pub struct Host {
    transport: Arc<Mutex<Transport<Vsock>>>,
    poller: Arc<Poller>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Host {
    /// Makes the device with this guest CID and starts its I/O thread.
    pub fn start(
        guest_cid: u32,
        memory: crate::Memory,
        line: crate::IrqLine,
    ) -> io::Result<(Self, Arc<Mutex<Transport<Vsock>>>)> {
        let device = Vsock::new(guest_cid.into())?;
        let poller = device.poller.clone();
        let transport = Arc::new(Mutex::new(Transport::new(device, memory, line)));
        let (waits, serves) = (poller.clone(), transport.clone());
        let thread = std::thread::Builder::new().name("vsock".into()).spawn(move || {
            while let Some(events) = waits.wait() {
                lock(&serves).with(|device, rings| {
                    for event in events {
                        device.ready(event)?;
                    }
                    device.fill(rings)
                });
            }
        })?;
        let host = Self { transport: transport.clone(), poller, thread: Mutex::new(Some(thread)) };
        Ok((host, transport))
    }

    /// Takes connections that the guest makes to this host port: one at a time, and after the first only from ports of
    /// the guest's that are reserved for who may bind them.
    pub fn listen(&self, port: u32, accept: Accept) {
        let listener = Listener { accept, connected: None, known: false };
        lock(&self.transport).device.listeners.insert(port, listener);
    }

    /// As [`Host::connect`], unless the guest keeps the device busy: then the socket comes back.
    pub fn try_connect(&self, port: u32, fd: OwnedFd) -> Option<OwnedFd> {
        let mut transport = match self.transport.try_lock() {
            Ok(transport) => transport,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Some(fd),
        };
        transport.with(|device, rings| {
            device.connect(port, UnixStream::from(fd))?;
            device.fill(rings)
        });
        None
    }

    /// Joins a stream socket to a port that the guest listens on. When the guest refuses, or the VM ends, the
    /// socket's other end sees the end of the stream.
    pub fn connect(&self, port: u32, fd: OwnedFd) {
        lock(&self.transport).with(|device, rings| {
            device.connect(port, UnixStream::from(fd))?;
            device.fill(rings)
        });
    }

    /// Tells the guest of the last of its packets that were given back, for who waits for that (MSG_ZEROCOPY).
    pub fn tell_of_packets(&self) {
        lock(&self.transport).with(|device, rings| {
            if std::mem::take(&mut device.untold) > 0 {
                rings.tell_of_untold(TRANSMIT);
            }
            Ok(())
        });
    }

    /// Ends all connections, on both sides; for a guest that has been restored, whose peers are not there. Listeners
    /// stay.
    pub fn reset_connections(&self) {
        lock(&self.transport).with(|device, rings| {
            device.drop_all();
            device.next_port = fresh_port();
            device.reset_unreported = true;
            device.report_reset(rings)
        });
    }

    /// Ends all connections and the I/O thread.
    pub fn close(&self) {
        {
            let mut transport = lock(&self.transport);
            transport.device.closed = true;
            transport.device.drop_all();
            transport.device.listeners.clear();
        }
        self.poller.stop();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.close();
    }
}

/// A first port that a restored guest has seen no connection from: it knows those that were open at its capture until
/// each of its processes has closed its end, and takes a new connection of the same ports for the old one.
fn fresh_port() -> u32 {
    use std::hash::{BuildHasher, Hasher};

    #[expect(clippy::cast_possible_truncation, reason = "any 32 bits of it are as random")]
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish() as u32;
    FIRST_EPHEMERAL + random % (u32::MAX - FIRST_EPHEMERAL)
}
