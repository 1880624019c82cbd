//! The few system calls that std does not wrap: poll(2), descriptor passing, descriptor kinds.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// Longest time in milliseconds between two looks for pending Python signals while waiting.
pub const SIGNAL_INTERVAL_MS: u64 = 50;

/// One descriptor in a call of [`poll`]; `None` takes part with no events.
pub struct Interest {
    fd: Option<RawFd>,
    events: libc::c_short,
}

impl Interest {
    /// Waits for `events` on `fd` while `wanted`.
    pub fn when(wanted: bool, fd: &impl AsRawFd, events: libc::c_short) -> Self {
        Self { fd: wanted.then(|| fd.as_raw_fd()), events }
    }

    /// Takes no part.
    pub fn none() -> Self {
        Self { fd: None, events: 0 }
    }
}

/// poll(2): the events that are there, per interest. Empty on a time-out or an interrupting signal.
pub fn poll<const N: usize>(
    interests: [Interest; N],
    timeout: Option<Duration>,
) -> io::Result<[libc::c_short; N]> {
    let mut fds = interests.map(|i| libc::pollfd { fd: i.fd.unwrap_or(-1), events: i.events, revents: 0 });
    let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: `fds` is an array of N pollfd that lives across the call.
    let n = unsafe { libc::poll(fds.as_mut_ptr(), N as libc::nfds_t, timeout) };
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
pub fn wait_for<T: Send>(
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
pub fn deadline(timeout: Option<f64>) -> Option<Instant> {
    let seconds = timeout?;
    let duration = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
    Instant::now().checked_add(duration)
}

/// Sends `bytes`, and `fd` with the first of them, over a stream socket. Blocks while the socket is full.
pub fn send_with_fd(socket: &UnixStream, bytes: &[u8], fd: &impl AsRawFd) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // CMSG_SPACE of one descriptor is 24 bytes on the 64-bit systems this is built for; u64 for alignment.
    let mut control = [0u64; 8];
    // SAFETY: msghdr is plain data for which zero is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE only computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(mem::size_of::<RawFd>() as u32) } as _;
    // SAFETY: msg_control points at 64 writable bytes, more than msg_controllen, so the first header and the
    // descriptor behind it lie within `control`.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<RawFd>() as u32) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
    }
    let sent = loop {
        // SAFETY: `message` and all that it points at live across the call.
        let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        if n >= 0 {
            break n as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut socket = socket;
    io::Write::write_all(&mut socket, &bytes[sent..])
}

/// A duplicate of a descriptor that Python owns, closed on exec.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
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

/// Switches an open file description to non-blocking.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take and give integers only.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a descriptor is a regular file, for which poll(2) and short writes mean nothing.
pub fn is_regular(fd: &impl AsRawFd) -> bool {
    // SAFETY: stat is plain data for which zero is a valid value.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: `stat` is writable and lives across the call.
    unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG }
}

/// read(2) that goes on after an interrupting signal.
pub fn read(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and length are those of a writable slice.
        let n = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if n >= 0 {
            return Ok(n as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// write(2) that goes on after an interrupting signal.
pub fn write(fd: &impl AsRawFd, buffer: &[u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and length are those of a readable slice.
        let n = unsafe { libc::write(fd.as_raw_fd(), buffer.as_ptr().cast(), buffer.len()) };
        if n >= 0 {
            return Ok(n as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
