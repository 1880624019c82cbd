//! Ends the worker when the process that it works for is gone, by either of two signs: the control socket ends, or that
//! process does. A process that it has forked holds the socket open after it, so that the first alone is not enough.
//!
//! The thread here waits for nothing else and takes no lock, so that no guest can keep it from its work.

#![allow(unsafe_code, reason = "the owner is watched by calls that the standard library has not")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

/// The process that made the control socket.
pub(crate) struct Owner {
    control: UnixStream,
    /// Readable once the process is gone; `None` where the system does not tell, and the socket is all there is.
    process: Option<OwnedFd>,
}

impl Owner {
    /// Before the worker is confined. An error when the owner is gone already.
    pub(crate) fn of(control: &UnixStream) -> io::Result<Self> {
        let process = system::process(control)?;
        Ok(Self { control: control.try_clone()?, process })
    }

    /// The same process, for one that has another control socket.
    #[cfg(target_os = "linux")]
    pub(crate) fn of_copy(self, control: &UnixStream) -> io::Result<Self> {
        Ok(Self { control: control.try_clone()?, process: self.process })
    }

    /// Waits until the owner has something to say; `false` when it is gone.
    pub(crate) fn wait_for_words(&self) -> bool {
        loop {
            let [control, process] = self.poll(libc::POLLIN);
            if process != 0 {
                return false;
            }
            if control != 0 {
                // Its last words, or the end of the stream, which the reader tells from each other.
                return true;
            }
        }
    }

    /// From now on the process ends with its owner. Nobody is left to hear why, nor to use what it was doing.
    pub(crate) fn end_with_it(self) -> io::Result<()> {
        thread::Builder::new().name("owner".into()).spawn(move || {
            while self.poll(0) == [0, 0] {}
            exit(0)
        })?;
        Ok(())
    }

    /// What has come of the control socket, where a hang-up counts always, and of the process.
    fn poll(&self, events: libc::c_short) -> [libc::c_short; 2] {
        let process = self.process.as_ref().map_or(-1, std::os::fd::AsRawFd::as_raw_fd);
        let control = std::os::fd::AsRawFd::as_raw_fd(&self.control);
        let mut fds = [
            libc::pollfd { fd: control, events, revents: 0 },
            libc::pollfd { fd: process, events: libc::POLLIN, revents: 0 },
        ];
        let count = libc::nfds_t::try_from(fds.len()).expect("they are few");
        // SAFETY: the array is as long as the call is told, and outlives it.
        unsafe { libc::poll(fds.as_mut_ptr(), count, -1) };
        fds.map(|fd| fd.revents)
    }
}

/// Ends the process at once: no thread is waited for, no lock taken.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: the call takes no pointers and does not return.
    unsafe { libc::_exit(status) }
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use rustix::io::Errno;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    /// A descriptor of the process that made the socket (pidfd_open(2); SO_PEERCRED in unix(7)).
    pub(super) fn process(control: &UnixStream) -> io::Result<Option<OwnedFd>> {
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        #[expect(clippy::cast_possible_truncation, reason = "twelve bytes")]
        let mut length = size_of_val(&peer) as libc::socklen_t;
        // SAFETY: pointer and length are those of `peer`, which is plain numbers.
        let failed = unsafe {
            libc::getsockopt(
                control.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut length,
            )
        };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        // A process of another PID namespace has no number here.
        let Some(pid) = Pid::from_raw(peer.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => Ok(Some(process)),
            Err(Errno::SRCH) => Err(io::Error::other("the process that started it is gone")),
            // A kernel before 5.3, or a container that allows it not.
            Err(_) => Ok(None),
        }
    }
}

#[cfg(target_os = "macos")]
mod system {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustix::event::kqueue::{Event, EventFilter, EventFlags, ProcessEvents, kevent, kqueue};
    use rustix::process::getppid;

    /// A queue that is readable once the parent has exited (kqueue(2), EVFILT_PROC).
    pub(crate) fn process(_: &UnixStream) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = getppid() else { return Ok(None) };
        let queue = kqueue()?;
        let filter = EventFilter::Proc { pid, flags: ProcessEvents::EXIT };
        let asked = [Event::new(filter, EventFlags::ADD | EventFlags::ONESHOT, std::ptr::null_mut())];
        let mut none: [Event; 0] = [];
        // SAFETY: the filter is about a process and not about a descriptor that might be closed.
        let made = unsafe { kevent(&queue, &asked, &mut none[..], Some(Duration::ZERO)) };
        Ok(made.ok().map(|_| queue))
    }
}
