//! Waiting on descriptors with an ear for Python's signals, and the system calls around it.

#![allow(unsafe_code, reason = "descriptors come as numbers")]

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::retry_on_intr;
use supermachine_support::descriptors;

/// Longest time in milliseconds between two looks for pending Python signals while waiting.
pub(crate) const SIGNAL_INTERVAL_MS: u64 = 50;

/// One descriptor in a call of [`poll`]; `None` takes part with no events.
pub(crate) struct Interest {
    fd: Option<RawFd>,
    events: libc::c_short,
}

impl Interest {
    /// Waits for `events` on `fd` while `wanted`.
    pub(crate) fn when(wanted: bool, fd: &impl AsRawFd, events: libc::c_short) -> Self {
        Self { fd: wanted.then(|| fd.as_raw_fd()), events }
    }

    /// Takes no part.
    pub(crate) fn none() -> Self {
        Self { fd: None, events: 0 }
    }
}

/// poll(2): the events that are there, per interest. Empty on a time-out or an interrupting signal.
pub(crate) fn poll<const N: usize>(
    interests: [Interest; N],
    timeout: Option<Duration>,
) -> io::Result<[libc::c_short; N]> {
    let mut fds = interests.map(|i| libc::pollfd { fd: i.fd.unwrap_or(-1), events: i.events, revents: 0 });
    let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    let count = libc::nfds_t::try_from(N).expect("they are few");
    // SAFETY: `fds` is an array of N pollfd that lives across the call.
    let n = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout) };
    if n < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok([0; N]);
    }
    Ok(fds.map(|fd| fd.revents))
}

/// Waits without the GIL until `ready` gives a value, in slices short enough for Python's signals.
///
/// `ready` gets the longest time that it may block. `None` comes back at the deadline.
pub(crate) fn wait_for<T: Send>(
    py: Python<'_>,
    deadline: Option<Instant>,
    mut ready: impl FnMut(Duration) -> Option<T> + Send,
) -> PyResult<Option<T>> {
    loop {
        let mut slice = Duration::from_millis(SIGNAL_INTERVAL_MS);
        if let Some(deadline) = deadline {
            slice = slice.min(deadline.saturating_duration_since(Instant::now()));
        }
        let ready = &mut ready;
        if let Some(value) = py.detach(move || ready(slice)) {
            return Ok(Some(value));
        }
        py.check_signals()?;
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Ok(None);
        }
    }
}

/// The instant `timeout` seconds from now; `None` for never, also when it is too far to represent.
pub(crate) fn deadline(timeout: Option<f64>) -> Option<Instant> {
    let seconds = timeout?;
    let duration = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
    Instant::now().checked_add(duration)
}

/// Sends `bytes`, and `fd` with the first of them, over a stream socket. Blocks while the socket is full.
pub(crate) fn send_with_fd(socket: &UnixStream, bytes: &[u8], fd: &impl AsFd) -> io::Result<()> {
    send_with_fds(socket, bytes, &[fd.as_fd()])
}

/// Sends all of `bytes` with up to as many descriptors as go at once.
pub(crate) fn send_with_fds(mut socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd]) -> io::Result<()> {
    let sent = descriptors::send(socket, bytes, fds)?;
    socket.write_all(&bytes[sent..])
}

/// A duplicate of a descriptor that Python owns, closed on exec.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl checks the descriptor; a bad one gives EBADF.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if new < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_DUPFD_CLOEXEC just made this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Has the kernel tell with what is read from a socket which process has written it (unix(7), SO_PASSCRED).
#[cfg(target_os = "linux")]
pub(crate) fn ask_for_credentials(socket: &impl AsRawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("four bytes");
    // SAFETY: pointer and length are those of `on`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            length,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// read(2), and the process that has written it, where the kernel was asked to tell.
#[cfg(target_os = "linux")]
pub(crate) fn read_with_credentials(
    socket: &impl AsRawFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<libc::pid_t>)> {
    // Aligned as a header is, with room for one message of this kind and for no descriptors beside it.
    let mut control = [0_u64; 4];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeros is a message of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let count = loop {
        // SAFETY: the message is of one part, which is the buffer, and of the control data above; both outlive the
        // call.
        match unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) } {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            count => break usize::try_from(count).unwrap_or_default(),
        }
    };
    // SAFETY: the kernel has written the headers and their lengths, the first inside of `control`; a header of this
    // kind is followed by a `ucred`.
    let pid = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let told = !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_CREDENTIALS;
        told.then(|| libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned().pid)
    };
    Ok((count, pid))
}

/// Switches an open file description to non-blocking.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}

/// Whether a descriptor is a regular file, for which poll(2) and short writes mean nothing.
pub(crate) fn is_regular(fd: &impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
}

/// read(2) that goes on after an interrupting signal.
pub(crate) fn read(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| rustix::io::read(fd, &mut *buffer))?)
}

/// write(2) that goes on after an interrupting signal.
pub(crate) fn write(fd: &impl AsFd, buffer: &[u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| rustix::io::write(fd, buffer))?)
}
