//! By epoll(7).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{Event, Interest};

const STOP: u64 = u64::MAX;

pub struct Poller {
    epoll: OwnedFd,
    stop: OwnedFd,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        let stop = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let poller = Self { epoll, stop };
        poller.control(libc::EPOLL_CTL_ADD, poller.stop.as_raw_fd(), libc::EPOLLIN, STOP)?;
        Ok(poller)
    }

    /// Watches a new socket for bytes to read.
    pub fn add(&self, stream: &UnixStream, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, stream.as_raw_fd(), libc::EPOLLIN | libc::EPOLLONESHOT, token)
    }

    pub fn remove(&self, stream: &UnixStream) {
        // It fails only for a socket that is not watched, which is what is wanted.
        let _ = self.control(libc::EPOLL_CTL_DEL, stream.as_raw_fd(), 0, 0);
    }

    pub(super) fn rearm(&self, stream: &UnixStream, token: u64, interest: Interest) {
        let read = if interest.read { libc::EPOLLIN } else { 0 };
        let write = if interest.write { libc::EPOLLOUT } else { 0 };
        // A socket of ours that is open can be watched; a failure would show as silence, not as a wrong answer.
        let _ =
            self.control(libc::EPOLL_CTL_MOD, stream.as_raw_fd(), read | write | libc::EPOLLONESHOT, token);
    }

    /// Waits for events; `None` when it is time to stop.
    pub fn wait(&self) -> Option<Vec<Event>> {
        const NONE: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };
        let mut events = [NONE; 64];
        // SAFETY: `events` has room for as many events as the call is told.
        let n =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, -1) };
        let n = match usize::try_from(n) {
            Ok(n) => n,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {
                return Some(Vec::new());
            }
            Err(_) => return None,
        };
        let mut told = Vec::with_capacity(n);
        for event in &events[..n] {
            let (bits, token) = (event.events as i32, event.u64);
            if token == STOP {
                return None;
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
        // SAFETY: the eight bytes are those of the array.
        unsafe { libc::write(self.stop.as_raw_fd(), 1_u64.to_ne_bytes().as_ptr().cast(), 8) };
    }

    fn control(&self, op: i32, fd: i32, events: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
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
