//! A published port of UDP: each client has a socket pair, whose other end is the guest's flow.

use std::collections::HashMap;
use std::io::{self, PipeReader};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use supermachine_proto::netd::Protocol;

use crate::callers::{goes_on, seen_as};
use crate::descriptors::{self, Unshared};
use crate::netd::Door;

/// Clients of one port at once; the one that was silent the longest makes room.
const CLIENTS: usize = 1024;
/// How long a client is kept that neither says nor hears anything.
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams of one socket that are taken in one turn.
const TURN: usize = 64;
const DATAGRAM: usize = 65_507;

struct Client {
    /// Our end.
    guest: Unshared<UnixDatagram>,
    last_used: Instant,
}

/// Serves clients until `stop` or `ended` closes.
pub(crate) fn listen(socket: &UdpSocket, door: &Door, port: u16, stop: &PipeReader, ended: &PipeReader) {
    let mut clients: HashMap<SocketAddr, Client> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (from_clients, from_guest) = {
            let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
            fds.extend([PollFd::new(stop, PollFlags::IN), PollFd::new(ended, PollFlags::IN)]);
            let known: Vec<_> = clients.iter().collect();
            fds.extend(
                known.iter().map(|(_, client)| PollFd::from_borrowed_fd(client.guest.as_fd(), PollFlags::IN)),
            );
            let patience = Timespec { tv_sec: IDLE.as_secs().cast_signed(), tv_nsec: 0 };
            match poll(&mut fds, (!known.is_empty()).then_some(&patience)) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            }
            if !fds[1].revents().is_empty() || !fds[2].revents().is_empty() {
                return;
            }
            let ready = known.iter().zip(&fds[3..]).filter(|(_, fd)| !fd.revents().is_empty());
            let ready: Vec<SocketAddr> = ready.map(|((address, _), _)| **address).collect();
            (!fds[0].revents().is_empty(), ready)
        };
        let now = Instant::now();
        for address in from_guest {
            if !answer(socket, address, &mut clients, &mut buffer, now) {
                clients.remove(&address);
            }
        }
        for _ in 0..if from_clients { TURN } else { 0 } {
            // An error is the port-unreachable of a client that is gone; the next datagram may be another's.
            match socket.recv_from(&mut buffer) {
                Ok((length, address)) => {
                    let at = socket.local_addr().map_or(address.ip(), |at| at.ip());
                    let source = seen_as(address, at);
                    let lives = || goes_on(stop, ended);
                    pass_on(&mut clients, address, &buffer[..length], now, |guest| {
                        door.deliver(Protocol::Udp, source, port, guest.as_fd(), Box::new(|| {}), lives);
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
        clients.retain(|_, client| client.last_used + IDLE > now);
    }
}

/// Sends a client what the guest says; whether the guest's end is still there.
fn answer(
    socket: &UdpSocket,
    address: SocketAddr,
    clients: &mut HashMap<SocketAddr, Client>,
    buffer: &mut [u8],
    now: Instant,
) -> bool {
    let Some(client) = clients.get_mut(&address) else { return true };
    for _ in 0..TURN {
        match client.guest.recv(buffer) {
            Ok(length) => {
                client.last_used = now;
                // One that cannot be sent is lost, as any may be.
                let _ = socket.send_to(&buffer[..length], address);
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// Sends the guest what a client says; a new one, or one whose flow has ended, gets a flow by `deliver`.
fn pass_on(
    clients: &mut HashMap<SocketAddr, Client>,
    address: SocketAddr,
    datagram: &[u8],
    now: Instant,
    deliver: impl FnOnce(&UnixDatagram),
) {
    if let Some(client) = clients.get_mut(&address) {
        client.last_used = now;
        match client.guest.send(datagram) {
            Ok(_) => return,
            // A queue that is full loses it.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => drop(clients.remove(&address)),
        }
    }
    if clients.len() >= CLIENTS {
        let silent = clients.iter().min_by_key(|(_, client)| client.last_used).map(|(address, _)| *address);
        silent.and_then(|silent| clients.remove(&silent));
    }
    let Ok((guest, theirs)) = descriptors::datagram_pair() else { return };
    if guest.set_nonblocking(true).is_err() || theirs.set_nonblocking(true).is_err() {
        return;
    }
    let _ = guest.send(datagram);
    deliver(&theirs);
    clients.insert(address, Client { guest, last_used: now });
}
