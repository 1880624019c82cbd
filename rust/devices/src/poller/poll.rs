//! By poll(2), for systems without epoll. Few sockets are watched at a time, so that going through all of them costs
//! little.

#![allow(unsafe_code, reason = "poll(2) is a C call")]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use supermachine_support::lock;

use super::{Event, Interest, milliseconds};

/// How often a socket that nothing but a hang-up is to be heard of is looked at, in milliseconds: systems differ in
/// whether poll tells of that alone.
const LOOK: i32 = 50;

/// What waits for sockets. A token is the caller's name of a socket.
pub struct Poller {
    watched: Mutex<BTreeMap<RawFd, Watched>>,
    /// A byte here has a wait look again.
    wake: UnixStream,
    woken: UnixStream,
    stopped: AtomicBool,
}

#[derive(Clone, Copy)]
struct Watched {
    token: u64,
    interest: Interest,
    /// Not told since it was asked for.
    armed: bool,
}

impl Poller {
    /// Watches nothing yet; an error when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok(Self { watched: Mutex::default(), wake, woken, stopped: AtomicBool::new(false) })
    }

    /// The same: no second thread waits by poll(2), which would wake both.
    #[cfg(not(target_os = "linux"))]
    pub fn for_two() -> io::Result<Self> {
        Self::new()
    }

    /// Whether the caller is the second thread from now on.
    #[cfg(not(target_os = "linux"))]
    pub fn begin_beside(&self) -> bool {
        false
    }

    /// Nobody waits so.
    #[cfg(not(target_os = "linux"))]
    pub fn wait_beside(&self, _: Option<Instant>) -> Option<Vec<Event>> {
        None
    }

    /// Nobody waits who could be woken.
    #[cfg(not(target_os = "linux"))]
    pub fn wake_beside(&self) {}

    /// Nobody has had events.
    #[cfg(not(target_os = "linux"))]
    pub fn let_go(&self) {}

    /// Nobody has begun.
    #[cfg(not(target_os = "linux"))]
    pub fn end_beside(&self) {}

    /// Watches a new socket for bytes to read.
    pub fn add(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        self.rearm(socket, token, Interest { read: true, write: false });
        Ok(())
    }

    /// Watches a socket no more.
    pub fn remove(&self, socket: &impl AsFd) {
        self.watched().remove(&socket.as_fd().as_raw_fd());
    }

    /// Asks once more to be told of a watched socket.
    pub fn rearm(&self, socket: &impl AsFd, token: u64, interest: Interest) {
        self.watched().insert(socket.as_fd().as_raw_fd(), Watched { token, interest, armed: true });
        self.wake();
    }

    /// Waits for events; `None` when it is time to stop.
    pub fn wait(&self) -> Option<Vec<Event>> {
        self.wait_until(None)
    }

    /// As [`Poller::wait`]; no events when the deadline comes first, or [`Poller::wake`].
    pub fn wait_until(&self, deadline: Option<Instant>) -> Option<Vec<Event>> {
        if self.stopped.load(Ordering::SeqCst) {
            return None;
        }
        let armed: Vec<_> =
            self.watched().iter().filter(|(_, w)| w.armed).map(|(fd, watched)| (*fd, *watched)).collect();
        let quiet = |watched: &Watched| !watched.interest.read && !watched.interest.write;
        let timeout = match (milliseconds(deadline), armed.iter().any(|(_, watched)| quiet(watched))) {
            (-1, true) => LOOK,
            (timeout, true) => timeout.min(LOOK),
            (timeout, false) => timeout,
        };
        let mut polled = vec![libc::pollfd { fd: self.woken.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        polled.extend(armed.iter().map(|(fd, watched)| {
            let read = if watched.interest.read { libc::POLLIN } else { 0 };
            let write = if watched.interest.write { libc::POLLOUT } else { 0 };
            // A negative descriptor is skipped.
            libc::pollfd { fd: if quiet(watched) { -1 } else { *fd }, events: read | write, revents: 0 }
        }));
        let count = libc::nfds_t::try_from(polled.len()).expect("they are open descriptors");
        // SAFETY: the array is as long as the call is told.
        let n = unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) };
        if n < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
        if polled[0].revents != 0 {
            // However many bytes there are, one look is enough.
            while matches!((&self.woken).read(&mut [0; 64]), Ok(1..)) {}
        }
        if self.stopped.load(Ordering::SeqCst) {
            return None;
        }
        let mut events = Vec::new();
        let mut watched = self.watched();
        for ((fd, before), polled) in armed.into_iter().zip(&polled[1..]) {
            // Removed or asked for anew in the meantime.
            let Some(now) = watched.get_mut(&fd).filter(|now| now.token == before.token && now.armed) else {
                continue;
            };
            let ended = polled.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0;
            // Some systems call the end of what is to be read a hang-up as well.
            let hung_up = (ended || quiet(&before)) && is_hung_up(fd);
            if polled.revents == 0 && !hung_up {
                continue;
            }
            now.armed = false;
            events.push(Event {
                token: now.token,
                readable: ended || hung_up || polled.revents & libc::POLLIN != 0,
                writable: polled.revents & libc::POLLOUT != 0,
                hung_up,
            });
        }
        Some(events)
    }

    /// Makes every [`Poller::wait`] from now on return `None`.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Ends a wait, or the next one.
    pub fn wake(&self) {
        // When it fails the socket is full of requests to look again.
        let _ = (&self.wake).write(&[0]);
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<RawFd, Watched>> {
        lock(&self.watched)
    }
}

/// Whether nothing that is written to this socket can arrive any more: a write of no bytes says so.
fn is_hung_up(fd: RawFd) -> bool {
    // SAFETY: no bytes are read from the pointer.
    let sent = unsafe { libc::send(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    sent < 0 && io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock
}
