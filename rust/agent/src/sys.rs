//! System calls that the standard library does not have, each as a function that returns a result.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Connections that may wait to be accepted: as many as processes are started at once.
const BACKLOG: i32 = 4096;

/// Locks, also after a thread has panicked with the lock held, as tests' threads may; the agent itself ends with a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A constant of the kernel's headers in a field of two bytes: libc has all as c_int.
pub(crate) fn short(constant: i32) -> u16 {
    u16::try_from(constant).expect("it is for such a field")
}

/// The same in a field of one byte.
pub(crate) fn byte(constant: i32) -> u8 {
    u8::try_from(constant).expect("it is for such a field")
}

/// The length of a structure or a message, as the kernel's interfaces and the protocol have it.
pub(crate) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("nothing that is sent has 4 GiB")
}

/// Bytes as C's characters, which have a sign on x86_64 and none on aarch64.
pub(crate) fn chars<const N: usize>(bytes: [u8; N]) -> [libc::c_char; N] {
    bytes.map(|byte| libc::c_char::from_ne_bytes([byte]))
}

/// Bytes of a file system's block.
pub(crate) fn block_bytes(found: &libc::statfs) -> u64 {
    found.f_bsize.cast_unsigned()
}

/// Has the allocator keep what is freed, in one heap for all threads: each request has a thread, which would otherwise map a heap
/// of its own and touch pages anew. Before any thread is started.
pub(crate) fn keep_memory() {
    const KEPT: i32 = 1 << 20;
    let settings = [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, KEPT), (libc::M_TOP_PAD, KEPT / 4)];
    for (setting, value) in settings {
        // SAFETY: the call takes no pointers; no other thread allocates yet.
        unsafe { libc::mallopt(setting, value) };
    }
}

/// A result from a return value that is negative on failure.
pub(crate) fn check(value: i32) -> io::Result<i32> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A socket of netlink(7).
pub(crate) fn netlink_socket(protocol: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no pointers; the kernel has just made the descriptor for us.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(libc::AF_NETLINK, kind, protocol))?)) }
}

/// A C string; what holds a NUL is an invalid argument.
pub(crate) fn c_string(bytes: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The first `limit` bytes of a regular file. What else may stand there (a FIFO without a writer, a device without an
/// end) is an error, and nothing is waited for.
pub(crate) fn read_file(path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let length = regular(&file)?;
    read_up_to(&file, length, limit)
}

/// What a file has from its begin on, `limit` bytes at most, where it says that it has `length`. There is room for all of it and
/// one byte more, so that one call tells that it ends there; the kernel's own files say that they have nothing.
pub(crate) fn read_up_to(file: &File, length: u64, limit: u64) -> io::Result<Vec<u8>> {
    let index = |n| usize::try_from(n).unwrap_or(usize::MAX);
    let (length, limit) = (index(length), index(limit));
    let (mut contents, mut have) = (vec![0; length.max(1023).min(limit) + 1], 0);
    while have < contents.len() && have < limit {
        match file.read_at(&mut contents[have..], have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if have > 0 && have == length {
            break;
        }
        if have == contents.len() {
            contents.resize((2 * have).min(limit), 0);
        }
    }
    contents.truncate(have.min(limit));
    Ok(contents)
}

/// Gives a regular file, which is made when there is none, these contents. What else may stand there is an error.
pub(crate) fn write_file(path: &str, contents: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK).open(path)?;
    replace(&file, regular(&file)?, contents)
}

/// Gives a regular file that is open, and has so many bytes, these contents.
pub(crate) fn replace(file: &File, before: u64, contents: &[u8]) -> io::Result<()> {
    // In place: to give a file's blocks up and to find it others is most of the work.
    file.write_all_at(contents, 0)?;
    if before > contents.len() as u64 { file.set_len(contents.len() as u64) } else { Ok(()) }
}

/// Gives a regular file other contents where it has the ones from before; what else may stand there stays.
pub(crate) fn exchange(path: &str, before: &[u8], after: &[u8]) -> io::Result<()> {
    match open_with(path, before)? {
        Some(file) => replace(&file, before.len() as u64, after),
        None => Ok(()),
    }
}

/// Opens a regular file to be written, if it has these contents.
pub(crate) fn open_with(path: &str, contents: &[u8]) -> io::Result<Option<File>> {
    let file = match File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EISDIR | libc::ELOOP)) => {
            return Ok(None);
        }
        opened => opened?,
    };
    // One byte more, which is there when the file is longer. What is no file has no such contents, or no places in it.
    let mut found = vec![0; contents.len() + 1];
    let has = file.read_at(&mut found, 0).is_ok_and(|n| found[..n] == *contents);
    Ok(has.then_some(file))
}

/// The length of a regular file.
fn regular(file: &File) -> io::Result<u64> {
    let found = file.metadata()?;
    if found.is_file() { Ok(found.len()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// Sets access and modification time, in nanoseconds since 1970, without opening the file; links are followed.
pub(crate) fn set_times(path: &[u8], atime_ns: i64, mtime_ns: i64) -> io::Result<()> {
    let time = |ns: i64| libc::timespec {
        tv_sec: ns.div_euclid(1_000_000_000),
        tv_nsec: ns.rem_euclid(1_000_000_000),
    };
    let (path, times) = (c_string(path)?, [time(atime_ns), time(mtime_ns)]);
    // SAFETY: the string is NUL-terminated, and the array has the two times that the call reads.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }).map(drop)
}

/// mkfifo(3).
pub(crate) fn make_fifo(path: &[u8], mode: u32) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: the string is NUL-terminated and outlives the call.
    check(unsafe { libc::mkfifo(path.as_ptr(), mode) }).map(drop)
}

/// lseek(2), for what the standard library has no name for (SEEK_DATA, SEEK_HOLE).
pub(crate) fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the descriptor is open, and the call touches no memory of this process.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// mount(2).
pub(crate) fn mount(
    source: &str,
    target: &str,
    fs: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let [source, target, fs, options] = [source, target, fs, options].map(c_string);
    let (source, target, fs, options) = (source?, target?, fs?, options?);
    // SAFETY: the strings are NUL-terminated and outlive the call.
    let done =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fs.as_ptr(), flags, options.as_ptr().cast()) };
    check(done).map(drop)
}

/// chroot(2).
pub(crate) fn chroot(path: &str) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: the string is NUL-terminated and outlives the call.
    check(unsafe { libc::chroot(path.as_ptr()) }).map(drop)
}

/// gethostname(2).
pub(crate) fn hostname() -> String {
    // HOST_NAME_MAX is 64.
    let mut name = [0_u8; 65];
    // SAFETY: pointer and length are those of `name`, the last byte of which stays 0.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    name.split(|byte| *byte == 0)
        .next()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .unwrap_or_default()
}

/// sethostname(2).
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are the string's.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Steps CLOCK_REALTIME to so many nanoseconds since 1970.
pub(crate) fn set_clock(ns: u64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: (ns / 1_000_000_000).cast_signed(),
        tv_nsec: (ns % 1_000_000_000).cast_signed(),
    };
    // SAFETY: the call reads `time` only.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
}

/// A stream socket of AF_VSOCK.
pub(crate) fn vsock() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeros is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = short(libc::AF_VSOCK);
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Connects to a vsock port, from a port that no other user of the guest's may bind, by which the host knows the agent.
pub(crate) fn connect_vsock(cid: u32, port: u32) -> io::Result<File> {
    let socket = vsock()?;
    bind_reserved(&socket)?;
    let address = vsock_address(cid, port);
    let length = length(size_of_val(&address));
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
        let length = length(size_of_val(&address));
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
pub(crate) fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    let length = length(size_of_val(&address));
    // SAFETY: pointer and length are those of `address`.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// accept4(2) with CLOEXEC: the connection, and the context id of who made it.
pub(crate) fn accept_vsock(listener: &OwnedFd) -> io::Result<(File, u32)> {
    let mut peer = vsock_address(0, 0);
    let mut length = length(size_of_val(&peer));
    // SAFETY: pointer and length are those of `peer`.
    let fd = check(unsafe {
        libc::accept4(listener.as_raw_fd(), (&raw mut peer).cast(), &raw mut length, libc::SOCK_CLOEXEC)
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((unsafe { File::from_raw_fd(fd) }, peer.svm_cid))
}

/// A descriptor that stands for nothing, to be closed when there are no others; `None` where there are none now.
pub(crate) fn spare() -> Option<OwnedFd> {
    File::open("/dev/null").ok().map(OwnedFd::from)
}

/// Has reads of a socket give up after this long.
pub(crate) fn set_read_timeout(socket: &impl AsRawFd, timeout: Duration) -> io::Result<()> {
    let time =
        libc::timeval { tv_sec: timeout.as_secs().cast_signed(), tv_usec: timeout.subsec_micros().into() };
    // SAFETY: pointer and length are those of `time`.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const time).cast(),
            length(size_of_val(&time)),
        )
    })
    .map(drop)
}

/// Lets this process have as many descriptors as the kernel gives any by default (fs.nr_open), and those that it starts.
pub(crate) fn raise_file_limit() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the call reads `limit` only.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).map(drop)
}

/// A pipe: reader and writer, both CLOEXEC.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the kernel has just made these descriptors for us.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// An eventfd that starts at zero.
pub(crate) fn event() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes reads and writes return at once.
pub(crate) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    let yes: libc::c_int = 1;
    // SAFETY: the call reads the integer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONBIO as _, &raw const yes) }).map(drop)
}

/// poll(2); `None` waits for ever. An interrupted call returns as if nothing were ready.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that a deadline has passed when the call says so.
    let ms = timeout.map_or(-1, |t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
    // SAFETY: pointer and length are the slice's.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, ms) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// pidfd_open(2) of a child that has not been waited for.
pub(crate) fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(i32::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// kill(2); a process that is gone is no error.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: the call takes no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Everything written to file systems goes to their devices.
pub(crate) fn sync() {
    // SAFETY: the call takes no arguments.
    unsafe { libc::sync() };
}

/// Whether there is something at a path, by who has the file system and not by what the kernel remembers of it: in a guest that
/// was restored a file server's memory of a name may be another's.
pub(crate) fn exists_now(path: &Path) -> io::Result<bool> {
    let path = c_string(path.as_os_str().as_bytes())?;
    let flags = libc::AT_STATX_FORCE_SYNC | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: all zeros is a valid statx, which the call writes to; the string is NUL-terminated and outlives it.
    let found = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        check(libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_TYPE, &raw mut found))
    };
    match found {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What fstatfs(2) says of the file system that a file is in.
pub(crate) fn file_system(file: &File) -> io::Result<libc::statfs> {
    // SAFETY: all zeros is a valid statfs, which the call writes to; the descriptor is open.
    unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        check(libc::fstatfs(file.as_raw_fd(), &raw mut found))?;
        Ok(found)
    }
}

/// Ends the guest.
pub(crate) fn power_off() -> ! {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_what_was_written_last_and_no_more() {
        let path = std::env::temp_dir().join(format!("agent-sys-{}", std::process::id()));
        let name = path.to_str().unwrap();
        for contents in [&b"a longer one"[..], b"short", b"", &[b'x'; 5000]] {
            write_file(name, contents).unwrap();
            assert_eq!(read_file(name, 1 << 20).unwrap(), contents);
        }
        assert_eq!(read_file(name, 4096).unwrap(), [b'x'; 4096]);
        exchange(name, b"other", b"no").unwrap();
        assert_eq!(read_file(name, 1 << 20).unwrap(), [b'x'; 5000]);
        exchange(name, &[b'x'; 5000], b"yes").unwrap();
        assert_eq!(read_file(name, 1 << 20).unwrap(), b"yes");
        std::fs::remove_file(name).unwrap();
        exchange(name, b"yes", b"no").unwrap();
        assert!(!path.exists());
        // The kernel's files say that they are empty.
        let status = std::fs::read("/proc/self/maps").unwrap();
        assert!(status.len() > 1024 && read_file("/proc/self/maps", 1 << 20).unwrap().len() > 1024);
    }
}
