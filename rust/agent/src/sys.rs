//! System calls that the standard library does not have, each as a function that returns a result.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// Connections that may wait to be accepted: as many as processes are started at once.
const BACKLOG: i32 = 4096;

/// A result from a return value that is negative on failure.
pub fn check(value: i32) -> io::Result<i32> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A C string; what holds a NUL is an invalid argument.
pub fn c_string(bytes: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The first `limit` bytes of a regular file. What else may stand there (a FIFO without a writer, a device without an
/// end) is an error, and nothing is waited for.
pub fn read_file(path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    regular(&file)?;
    let mut contents = Vec::new();
    file.take(limit).read_to_end(&mut contents)?;
    Ok(contents)
}

/// Gives a regular file, which is made when there is none, these contents. What else may stand there is an error.
pub fn write_file(path: &str, contents: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    let mut file =
        options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK).open(path)?;
    regular(&file)?;
    file.set_len(0)?;
    file.write_all(contents)
}

fn regular(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// Sets access and modification time, in nanoseconds since 1970, without opening the file; links are followed.
pub fn set_times(path: &[u8], atime_ns: i64, mtime_ns: i64) -> io::Result<()> {
    let time = |ns: i64| libc::timespec {
        tv_sec: ns.div_euclid(1_000_000_000),
        tv_nsec: ns.rem_euclid(1_000_000_000),
    };
    let (path, times) = (c_string(path)?, [time(atime_ns), time(mtime_ns)]);
    // SAFETY: the string is NUL-terminated, and the array has the two times that the call reads.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }).map(drop)
}

/// mkfifo(3).
pub fn make_fifo(path: &[u8], mode: u32) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: the string is NUL-terminated and outlives the call.
    check(unsafe { libc::mkfifo(path.as_ptr(), mode) }).map(drop)
}

/// lseek(2), for what the standard library has no name for (SEEK_DATA, SEEK_HOLE).
pub fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the descriptor is open, and the call touches no memory of this process.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// mount(2).
pub fn mount(source: &str, target: &str, fs: &str, flags: libc::c_ulong, options: &str) -> io::Result<()> {
    let [source, target, fs, options] = [source, target, fs, options].map(c_string);
    let (source, target, fs, options) = (source?, target?, fs?, options?);
    // SAFETY: the strings are NUL-terminated and outlive the call.
    let done =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fs.as_ptr(), flags, options.as_ptr().cast()) };
    check(done).map(drop)
}

/// chroot(2).
pub fn chroot(path: &str) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: the string is NUL-terminated and outlives the call.
    check(unsafe { libc::chroot(path.as_ptr()) }).map(drop)
}

/// sethostname(2).
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are the string's.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Steps CLOCK_REALTIME to so many nanoseconds since 1970.
pub fn set_clock(ns: u64) -> io::Result<()> {
    let time = libc::timespec { tv_sec: (ns / 1_000_000_000) as _, tv_nsec: (ns % 1_000_000_000) as _ };
    // SAFETY: the call reads `time` only.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
}

/// A stream socket of AF_VSOCK.
pub fn vsock() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeros is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as _;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Connects to a vsock port, from a port that no other user of the guest's may bind, by which the host knows the agent.
pub fn connect_vsock(cid: u32, port: u32) -> io::Result<File> {
    let socket = vsock()?;
    bind_reserved(&socket)?;
    let address = vsock_address(cid, port);
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length are those of `address`.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket.into())
}

/// Binds the highest reserved port that is free: one of a connection before may not be, for some seconds.
fn bind_reserved(socket: &OwnedFd) -> io::Result<()> {
    // Reserved up to 1023 (LAST_RESERVED_PORT in net/vmw_vsock/af_vsock.c).
    let mut last = Err(io::ErrorKind::AddrInUse.into());
    for port in (512..1024).rev() {
        let address = vsock_address(libc::VMADDR_CID_ANY, port);
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: pointer and length are those of `address`.
        last =
            check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) }).map(drop);
        match &last {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            _ => break,
        }
    }
    last
}

/// Listens on a vsock port.
pub fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length are those of `address`.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// accept4(2) with CLOEXEC: the connection, and the context id of who made it.
pub fn accept_vsock(listener: &OwnedFd) -> io::Result<(File, u32)> {
    let mut peer = vsock_address(0, 0);
    let mut length = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: pointer and length are those of `peer`.
    let fd = check(unsafe {
        libc::accept4(listener.as_raw_fd(), (&raw mut peer).cast(), &raw mut length, libc::SOCK_CLOEXEC)
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((unsafe { File::from_raw_fd(fd) }, peer.svm_cid))
}

/// Has reads of a socket give up after this long.
pub fn set_read_timeout(socket: &impl AsRawFd, timeout: Duration) -> io::Result<()> {
    let time = libc::timeval { tv_sec: timeout.as_secs() as _, tv_usec: timeout.subsec_micros() as _ };
    // SAFETY: pointer and length are those of `time`.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const time).cast(),
            size_of_val(&time) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Lets this process have as many descriptors as the kernel gives any by default (fs.nr_open), and those that it starts.
pub fn raise_file_limit() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the call reads `limit` only.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).map(drop)
}

/// A pipe: reader and writer, both CLOEXEC.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the kernel has just made these descriptors for us.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// An eventfd that starts at zero.
pub fn event() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes reads and writes return at once.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: neither call takes pointers.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// poll(2); `None` waits for ever. An interrupted call returns as if nothing were ready.
pub fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that a deadline has passed when the call says so.
    let ms = timeout.map_or(-1, |t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
    // SAFETY: pointer and length are the slice's.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, ms) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// pidfd_open(2) of a child that has not been waited for.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// kill(2); a process that is gone is no error.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: the call takes no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Everything written to file systems goes to their devices.
pub fn sync() {
    // SAFETY: the call takes no arguments.
    unsafe { libc::sync() };
}

/// Ends the guest.
pub fn power_off() -> ! {
    // An x86_64 kernel without ACPI has no way to power off and would halt for ever; to its host a reset is the end.
    let how = if cfg!(target_arch = "x86_64") { libc::RB_AUTOBOOT } else { libc::RB_POWER_OFF };
    loop {
        // SAFETY: the call takes no pointers; it returns only when it is not permitted.
        unsafe {
            libc::reboot(how);
            libc::pause();
        }
    }
}
