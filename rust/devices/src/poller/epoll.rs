//! By epoll(7).

#![allow(unsafe_code, reason = "epoll(7) and eventfd(2) are C calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::{Event, Interest, milliseconds};

/// No socket's token.
const WAKE: u64 = u64::MAX;

/// What waits for sockets. A token is the caller's name of a socket; `u64::MAX` is taken.
pub struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
    stopped: AtomicBool,
}

impl Poller {
    /// Watches nothing yet; an error when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        let wake = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let poller = Self { epoll, wake, stopped: AtomicBool::new(false) };
        poller.control(libc::EPOLL_CTL_ADD, poller.wake.as_raw_fd(), libc::EPOLLIN, WAKE)?;
        Ok(poller)
    }

    /// Watches a new socket for bytes to read.
    pub fn add(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        self.control(
            libc::EPOLL_CTL_ADD,
            socket.as_fd().as_raw_fd(),
            libc::EPOLLIN | libc::EPOLLONESHOT,
            token,
        )
    }

    /// Watches a socket no more.
    pub fn remove(&self, socket: &impl AsFd) {
        // It fails only for a socket that is not watched, which is what is wanted.
        let _ = self.control(libc::EPOLL_CTL_DEL, socket.as_fd().as_raw_fd(), 0, 0);
    }

    /// Asks once more to be told of a watched socket.
    pub fn rearm(&self, socket: &impl AsFd, token: u64, interest: Interest) {
        let read = if interest.read { libc::EPOLLIN } else { 0 };
        let write = if interest.write { libc::EPOLLOUT } else { 0 };
        // A socket of ours that is open can be watched; a failure would show as silence, not as a wrong answer.
        let _ = self.control(
            libc::EPOLL_CTL_MOD,
            socket.as_fd().as_raw_fd(),
            read | write | libc::EPOLLONESHOT,
            token,
        );
    }

    /// Waits for events; `None` when it is time to stop.
    pub fn wait(&self) -> Option<Vec<Event>> {
        self.wait_until(None)
    }

    /// As [`Poller::wait`]; no events when the deadline comes first, or [`Poller::wake`].
    pub fn wait_until(&self, deadline: Option<Instant>) -> Option<Vec<Event>> {
        const NONE: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };
        const ROOM: u8 = 64;
        let mut events = [NONE; ROOM as usize];
        let timeout = milliseconds(deadline);
        let (epoll, room) = (self.epoll.as_raw_fd(), i32::from(ROOM));
        // SAFETY: `events` has room for as many events as the call is told.
        let n = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), room, timeout) };
        let n = match usize::try_from(n) {
            Ok(n) => n,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {
                return Some(Vec::new());
            }
            Err(_) => return None,
        };
        let mut told = Vec::with_capacity(n);
        for event in &events[..n] {
            let (bits, token) = (event.events.cast_signed(), event.u64);
            if token == WAKE {
                if self.stopped.load(Ordering::SeqCst) {
                    return None;
                }
                // SAFETY: the eight bytes are those of the array.
                unsafe { libc::read(self.wake.as_raw_fd(), [0_u8; 8].as_mut_ptr().cast(), 8) };
                continue;
            }
            let hung_up = bits & (libc::EPOLLHUP | libc::EPOLLERR) != 0;
            told.push(Event {
                token,
                readable: bits & libc::EPOLLIN != 0 || hung_up,
                writable: bits & libc::EPOLLOUT != 0,
                hung_up,
            });
        }
        Some(told)
    }

    /// Makes every [`Poller::wait`] from now on return `None`.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Ends a wait, or the next one.
    pub fn wake(&self) {
        // SAFETY: the eight bytes are those of the array.
        unsafe { libc::write(self.wake.as_raw_fd(), 1_u64.to_ne_bytes().as_ptr().cast(), 8) };
    }

    fn control(&self, op: i32, fd: i32, events: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: token };
        // SAFETY: `event` outlives the call, which copies it.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), op, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    match fd {
        0.. => {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
