//! Every call that the filter knows, and many that it must not let through, made by a process that is confined as a
//! worker is. Each refused one is also made by a process that is not, which shows that the wall is what refuses it.

#![allow(unsafe_code, reason = "the tests call the kernel as an attacker would")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::ptr::{null, null_mut};

use rustix::fs::{Mode, OFlags};
use supermachine_fs::{FCHMODAT2, Sealed};
use supermachine_machine::Engine;

use super::{Beneath, landlock_version, privileges, seccomp};

/// fcntl(2); libc has no name for it.
const F_SETSIG: i32 = 10;
const CHILD: &str = "SUPERMACHINE_TEST_CONFINED";

/// Runs `body` in a process of its own, which stays confined afterwards; `test` is the path of the calling test.
fn apart(test: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let mut process = std::process::Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", &format!("confine::linux::tests::{test}"), "--nocapture"]).env(CHILD, "1");
    assert!(process.status().unwrap().success());
}

/// A system call with up to six arguments; the number of the error when it fails.
macro_rules! call {
    (FCHMODAT2 $(, $argument:expr)*) => { call!(@ FCHMODAT2 $(, $argument)*) };
    ($number:ident $(, $argument:expr)*) => { call!(@ libc::$number $(, $argument)*) };
    (@ $number:expr $(, $argument:expr)*) => {{
        // SAFETY: the arguments are numbers, or pointers to what outlives the call and is as the call expects it.
        match unsafe { libc::syscall($number $(, $argument)*) } {
            -1 => Err(io::Error::last_os_error().raw_os_error().unwrap()),
            value => Ok(value),
        }
    }};
}

type Outcome = Result<libc::c_long, i32>;

/// A child that a call has made ends at once.
fn bury(outcome: Outcome) -> Outcome {
    match outcome {
        // SAFETY: ends the child, which has run nothing else.
        Ok(0) => unsafe { libc::_exit(0) },
        Ok(pid) => {
            // SAFETY: waits for that child alone.
            unsafe { libc::waitpid(pid as i32, null_mut(), 0) };
            Ok(pid)
        }
        failed => failed,
    }
}

const HERE: &CStr = c"/proc/self/status";

/// What other calls work on; made while anything may be.
struct Things {
    stream: (UnixStream, UnixStream),
    file: std::fs::File,
    kvm: Option<std::fs::File>,
    parent: libc::pid_t,
    page: *mut libc::c_void,
}

impl Things {
    fn new() -> Self {
        // SAFETY: a new mapping, where the kernel likes.
        let page = unsafe {
            libc::mmap(null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(page, libc::MAP_FAILED);
        Self {
            stream: UnixStream::pair().unwrap(),
            file: tempfile::tempfile().unwrap(),
            kvm: std::fs::File::options().read(true).write(true).open("/dev/kvm").ok(),
            // SAFETY: the call takes no arguments.
            parent: unsafe { libc::getppid() },
            page,
        }
    }

    /// Calls that must go through; what they come to, for the error of one that does not.
    fn allowed(&self) -> Vec<(&'static str, Outcome)> {
        let (stream, file) = (self.stream.0.as_raw_fd(), self.file.as_raw_fd());
        let mut bytes = [0_u8; 8];
        let at = bytes.as_mut_ptr();
        let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
        let mut pair = [0_i32; 2];
        let time = libc::timespec { tv_sec: 0, tv_nsec: 1 };
        let me = std::process::id();
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let none = null::<libc::c_void>();
        let mut done = vec![
            ("write", call!(SYS_write, stream, b"x".as_ptr(), 1_usize)),
            ("sendto without an address", call!(SYS_sendto, stream, b"x".as_ptr(), 1_usize, 0, none, 0)),
            ("fstat", call!(SYS_fstat, file, stat.as_mut_ptr())),
            ("ftruncate", call!(SYS_ftruncate, file, 8192_i64)),
            ("fallocate", call!(SYS_fallocate, file, 0, 0_i64, 4096_i64)),
            ("pwrite64", call!(SYS_pwrite64, file, at, 8_usize, 0_i64)),
            ("pread64", call!(SYS_pread64, file, at, 8_usize, 0_i64)),
            ("lseek", call!(SYS_lseek, file, 0_i64, libc::SEEK_END)),
            ("fsync", call!(SYS_fsync, file)),
            ("fdatasync", call!(SYS_fdatasync, file)),
            ("fcntl F_GETFD", call!(SYS_fcntl, stream, libc::F_GETFD)),
            ("fcntl F_GETFL", call!(SYS_fcntl, stream, libc::F_GETFL)),
            ("fcntl F_SETFL", call!(SYS_fcntl, stream, libc::F_SETFL, libc::O_NONBLOCK)),
            ("fcntl F_DUPFD_CLOEXEC", call!(SYS_fcntl, stream, libc::F_DUPFD_CLOEXEC, 3)),
            ("ioctl FIONBIO", call!(SYS_ioctl, stream, libc::FIONBIO, &raw const pair[0])),
            (
                "mmap",
                call!(SYS_mmap, none, 4096_usize, libc::PROT_READ | libc::PROT_WRITE, anonymous, -1, 0_i64),
            ),
            ("mprotect", call!(SYS_mprotect, self.page, 4096_usize, libc::PROT_READ | libc::PROT_WRITE)),
            ("madvise", call!(SYS_madvise, self.page, 4096_usize, libc::MADV_DONTNEED)),
            (
                "socketpair of streams",
                call!(
                    SYS_socketpair,
                    libc::AF_UNIX,
                    libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                    0,
                    pair.as_mut_ptr()
                ),
            ),
            (
                "setsockopt SO_LINGER",
                call!(SYS_setsockopt, stream, libc::SOL_SOCKET, libc::SO_LINGER, [1_i32, 0].as_ptr(), 8),
            ),
            ("tgkill to itself", call!(SYS_tgkill, me, me, 0)),
            ("prctl PR_SET_NAME", call!(SYS_prctl, libc::PR_SET_NAME, c"named".as_ptr())),
            ("epoll_create1", call!(SYS_epoll_create1, libc::EPOLL_CLOEXEC)),
            ("eventfd2", call!(SYS_eventfd2, 0, libc::EFD_CLOEXEC)),
            ("getrandom", call!(SYS_getrandom, at, 8_usize, 0)),
            ("clock_nanosleep", call!(SYS_clock_nanosleep, libc::CLOCK_MONOTONIC, 0, &raw const time, none)),
            ("shutdown", call!(SYS_shutdown, pair[0], libc::SHUT_RDWR)),
            ("close", call!(SYS_close, pair[0])),
        ];
        let thread = std::thread::Builder::new().name("a thread".into()).spawn(|| 7);
        done.push((
            "a thread",
            thread.map_err(|e| e.raw_os_error().unwrap_or(-1)).map(|t| t.join().unwrap()),
        ));
        if let Some(kvm) = &self.kvm {
            // KVM_GET_API_VERSION
            done.push(("ioctl KVM", call!(SYS_ioctl, kvm.as_raw_fd(), 0xae00, 0)));
        }
        done
    }

    /// Calls that a worker must not be able to make.
    fn refused(&self) -> Vec<(&'static str, Outcome)> {
        let (stream, file) = (self.stream.0.as_raw_fd(), self.file.as_raw_fd());
        let none = null::<libc::c_void>();
        let mut room = [0_u8; 512];
        let at = room.as_mut_ptr();
        let mut pair = [0_i32; 2];
        // SAFETY: all zeros is a message of nothing.
        let message: libc::msghdr = unsafe { std::mem::zeroed() };
        let address = libc::sockaddr { sa_family: libc::AF_UNIX as _, sa_data: [0; 14] };
        let (read, execute) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_EXEC);
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let me = std::process::id();
        let mut lock =
            libc::flock { l_type: libc::F_RDLCK as _, l_whence: 0, l_start: 0, l_len: 1, l_pid: 0 };
        let limit = [1_u64, 1_u64];
        let mut done = vec![
            ("openat", call!(SYS_openat, libc::AT_FDCWD, HERE.as_ptr(), libc::O_RDONLY, 0)),
            ("statx of a path", call!(SYS_statx, libc::AT_FDCWD, HERE.as_ptr(), 0, 0xfff, at)),
            ("statx of no path", call!(SYS_statx, file, c"".as_ptr(), libc::AT_EMPTY_PATH, 0xfff, at)),
            ("newfstatat", call!(SYS_newfstatat, libc::AT_FDCWD, HERE.as_ptr(), at, 0)),
            ("faccessat", call!(SYS_faccessat, libc::AT_FDCWD, HERE.as_ptr(), libc::R_OK)),
            ("readlinkat", call!(SYS_readlinkat, libc::AT_FDCWD, c"/proc/self/exe".as_ptr(), at, 512)),
            ("getcwd", call!(SYS_getcwd, at, 512)),
            ("memfd_create", call!(SYS_memfd_create, c"m".as_ptr(), 0)),
            ("inotify_init1", call!(SYS_inotify_init1, 0)),
            ("dup", call!(SYS_dup, stream)),
            ("pipe2", call!(SYS_pipe2, pair.as_mut_ptr(), 0)),
            ("socket", call!(SYS_socket, libc::AF_UNIX, libc::SOCK_DGRAM, 0)),
            (
                "socketpair of datagrams",
                call!(SYS_socketpair, libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()),
            ),
            (
                "socketpair of packets",
                call!(SYS_socketpair, libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, pair.as_mut_ptr()),
            ),
            (
                "sendto an address",
                call!(SYS_sendto, stream, b"x".as_ptr(), 1_usize, 0, &raw const address, 2),
            ),
            ("sendmsg", call!(SYS_sendmsg, stream, &raw const message, 0)),
            (
                "setsockopt",
                call!(SYS_setsockopt, stream, libc::SOL_SOCKET, libc::SO_PASSCRED, pair.as_ptr(), 4),
            ),
            ("kill of itself", call!(SYS_kill, me, 0)),
            ("kill of its parent", call!(SYS_kill, self.parent, 0)),
            ("tkill", call!(SYS_tkill, me, 0)),
            ("tgkill of its parent", call!(SYS_tgkill, self.parent, self.parent, 0)),
            ("pidfd_open", call!(SYS_pidfd_open, self.parent, 0)),
            ("clone of a process", bury(call!(SYS_clone, libc::SIGCHLD, none, none, none, none))),
            (
                "clone into a user namespace",
                bury(call!(SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, none, none, none, none)),
            ),
            ("unshare", call!(SYS_unshare, libc::CLONE_FS)),
            ("execve", call!(SYS_execve, c"/nowhere".as_ptr(), none, none)),
            ("mmap of code", call!(SYS_mmap, none, 4096_usize, execute, anonymous, -1, 0_i64)),
            ("mprotect to code", call!(SYS_mprotect, self.page, 4096_usize, execute)),
            ("pkey_mprotect", call!(SYS_pkey_mprotect, self.page, 4096_usize, read, -1)),
            ("prctl PR_SET_DUMPABLE", call!(SYS_prctl, libc::PR_SET_DUMPABLE, 1)),
            ("prctl PR_SET_PDEATHSIG", call!(SYS_prctl, libc::PR_SET_PDEATHSIG, 0)),
            ("fcntl F_SETOWN", call!(SYS_fcntl, stream, libc::F_SETOWN, me)),
            ("fcntl F_SETSIG", call!(SYS_fcntl, stream, F_SETSIG, 0)),
            ("fcntl F_SETLK", call!(SYS_fcntl, file, libc::F_SETLK, &raw mut lock)),
            ("fcntl F_DUPFD", call!(SYS_fcntl, stream, libc::F_DUPFD, 3)),
            ("ioctl FIONREAD", call!(SYS_ioctl, stream, libc::FIONREAD, pair.as_mut_ptr())),
            ("ioctl FIOASYNC", call!(SYS_ioctl, stream, libc::FIOASYNC, pair.as_ptr())),
            ("prlimit64", call!(SYS_prlimit64, 0, libc::RLIMIT_CORE, limit.as_ptr(), none)),
            ("setpriority", call!(SYS_setpriority, libc::PRIO_PROCESS, 0, 0)),
            ("getppid", call!(SYS_getppid)),
            ("umask", call!(SYS_umask, 0o22)),
        ];
        if let Some(kvm) = &self.kvm {
            // KVM_GET_EMULATED_CPUID, whose list of no entries is too short.
            done.push(("another ioctl of KVM's", call!(SYS_ioctl, kvm.as_raw_fd(), 0xc008_ae09_u32, at)));
        }
        done
    }
}

#[test]
fn what_a_worker_does_goes_through() {
    apart("what_a_worker_does_goes_through", || {
        let things = Things::new();
        super::confine(Engine::Kvm, &[]).unwrap();
        for (what, outcome) in things.allowed() {
            assert!(outcome.is_ok(), "{what}: {outcome:?}");
        }
    });
}

#[test]
fn what_a_worker_has_no_use_for_is_refused() {
    apart("what_a_worker_has_no_use_for_is_refused", || {
        let things = Things::new();
        for (what, outcome) in things.refused() {
            assert_ne!(outcome, Err(libc::EPERM), "{what} is refused to everybody");
        }
        super::confine(Engine::Kvm, &[]).unwrap();
        for (what, outcome) in things.refused() {
            assert_eq!(outcome, Err(libc::EPERM), "{what}");
        }
        // As a kernel says that does not have the call, so that threads are made in another way.
        assert_eq!(call!(SYS_clone3, null::<libc::c_void>(), 0_usize), Err(libc::ENOSYS));
    });
}

/// A template has a few calls more, for its copies, which lose them with their own filter.
#[test]
fn a_templates_copy_has_what_a_worker_has() {
    apart("a_templates_copy_has_what_a_worker_has", || {
        let things = Things::new();
        super::confine_template().unwrap();
        let none = null::<libc::c_void>();
        let copy = || call!(SYS_clone, seccomp::COPY, none, none, none, none);
        // Its parent is not here to wait for it.
        match copy() {
            // SAFETY: ends the copy, which has run nothing else.
            Ok(0) => unsafe { libc::_exit(0) },
            outcome => assert!(outcome.is_ok(), "{outcome:?}"),
        }
        // Every other way to a process is closed already.
        for flags in [libc::SIGCHLD, libc::CLONE_PARENT, libc::CLONE_PARENT | libc::CLONE_VM | libc::SIGCHLD]
        {
            assert_eq!(bury(call!(SYS_clone, flags, none, none, none, none)), Err(libc::EPERM));
        }
        assert!(call!(SYS_memfd_create, c"m".as_ptr(), 0).is_ok());
        super::confine_clone().unwrap();
        assert_eq!(bury(copy()), Err(libc::EPERM));
        for (what, outcome) in things.refused() {
            assert_eq!(outcome, Err(libc::EPERM), "{what}");
        }
        assert_eq!(call!(SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, none), Err(libc::EPERM));
        for (what, outcome) in things.allowed() {
            assert!(outcome.is_ok() || what == "ioctl KVM", "{what}: {outcome:?}");
        }
    });
}

#[test]
fn kvm_is_for_its_engine_alone() {
    apart("kvm_is_for_its_engine_alone", || {
        let things = Things::new();
        super::confine(Engine::Soft, &[]).unwrap();
        let descriptor = things.kvm.as_ref().map_or(things.stream.0.as_raw_fd(), AsRawFd::as_raw_fd);
        assert_eq!(call!(SYS_ioctl, descriptor, 0xae00, 0), Err(libc::EPERM));
    });
}

/// Each wall holds without the others.
#[test]
fn landlock_alone_keeps_paths_sockets_and_other_processes_out_of_reach() {
    apart("landlock_alone_keeps_paths_sockets_and_other_processes_out_of_reach", || {
        let version = landlock_version();
        let name = format!("supermachine-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // SAFETY: the call takes no arguments.
        let parent = unsafe { libc::getppid() };
        super::landlock(&[]).unwrap();
        let denied = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        if version >= 1 {
            assert!(denied(std::fs::File::open("/etc/passwd").unwrap_err()));
            assert!(denied(std::fs::create_dir("/tmp/made").unwrap_err()));
        }
        if version >= 4 {
            assert!(denied(std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap_err()));
            assert!(denied(std::net::TcpListener::bind("127.0.0.1:0").unwrap_err()));
        }
        if version >= 6 {
            // The listener is of before, so outside.
            assert!(denied(UnixStream::connect_addr(&address).unwrap_err()));
            assert_eq!(call!(SYS_kill, parent, 0), Err(libc::EPERM));
        }
        drop(listener);
    });
}

/// Of the file system a worker with shares reaches those, each as it is shared.
#[test]
fn shares_are_all_that_is_reached() {
    apart("shares_are_all_that_is_reached", || {
        let place = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let directory = place.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("file"), "contents").unwrap();
            std::fs::File::open(directory).unwrap()
        };
        let (written, read, outside) = (made("written"), made("read"), made("outside"));
        let beneath =
            |top, read_only| Beneath { top: std::os::fd::AsFd::as_fd(top), directory: true, read_only };
        if landlock_version() < 3 {
            return; // before that, truncating could not be refused
        }
        super::confine(Engine::Soft, &[beneath(&written, false), beneath(&read, true)]).unwrap();
        let open = |top: &std::fs::File, name: &CStr, flags: i32| {
            call!(SYS_openat, top.as_raw_fd(), name.as_ptr(), flags, 0o600)
        };
        assert!(open(&written, c"file", libc::O_RDWR).is_ok());
        assert!(open(&written, c"new", libc::O_RDWR | libc::O_CREAT).is_ok());
        assert!(open(&read, c"file", libc::O_RDONLY).is_ok());
        assert_eq!(open(&read, c"file", libc::O_RDWR), Err(libc::EACCES));
        assert_eq!(open(&read, c"new", libc::O_RDWR | libc::O_CREAT), Err(libc::EACCES));
        assert_eq!(open(&outside, c"file", libc::O_RDONLY), Err(libc::EACCES));
        assert_eq!(open(&written, c"../outside/file", libc::O_RDONLY), Err(libc::EACCES));
        let unlinked = call!(SYS_unlinkat, read.as_raw_fd(), c"file".as_ptr(), 0);
        assert_eq!(unlinked, Err(libc::EACCES));
        // Names are given and taken by file servers, programs started by nobody.
        assert_eq!(call!(SYS_execve, null::<u8>(), null::<u8>(), null::<u8>()), Err(libc::EPERM));
    });
}

#[test]
fn no_privilege_is_left_and_no_core_is_dumped() {
    apart("no_privilege_is_left_and_no_core_is_dumped", || {
        privileges::drop().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        for name in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(of(name), "0000000000000000", "{name}");
        }
        assert_eq!(of("NoNewPrivs:"), "1");
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
        assert_eq!(call!(SYS_prctl, libc::PR_GET_DUMPABLE), Ok(0));
    });
}

/// Landlock has no say in modes, owners, sizes and times, nor in descriptors that stand for a file.
#[test]
fn a_worker_changes_the_modes_owners_and_times_of_its_shares_alone() {
    apart("a_worker_changes_the_modes_owners_and_times_of_its_shares_alone", || {
        let place = tempfile::tempdir().unwrap();
        let (share, outside) = (place.path().join("share"), place.path().join("outside"));
        std::fs::create_dir(&share).unwrap();
        std::fs::write(&outside, "contents").unwrap();
        std::fs::write(share.join("file"), "contents").unwrap();
        std::os::unix::fs::symlink("../outside", share.join("link")).unwrap();
        let _socket = UnixListener::bind(share.join("socket")).unwrap();
        // By descriptors, as paths tell nothing later.
        let stand_for = |path: &std::path::Path| {
            rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let told = |file: &OwnedFd| {
            let told = rustix::fs::fstat(file).unwrap();
            (told.st_mode, told.st_uid, told.st_gid, told.st_mtime, told.st_ctime_nsec)
        };
        let (link, socket) = (stand_for(&share.join("link")), stand_for(&share.join("socket")));
        let unchanged = stand_for(&outside);
        let before = told(&unchanged);
        let path = std::ffi::CString::new(outside.to_str().unwrap()).unwrap();
        let top = std::fs::File::open(&share).unwrap();
        let beneath = Beneath { top: std::os::fd::AsFd::as_fd(&top), directory: true, read_only: false };
        std::env::set_current_dir(place.path()).unwrap();
        super::confine(Engine::Soft, &[beneath]).unwrap();
        let Sealed { how, how_bytes, empty, end } = Sealed::get().unwrap();
        let (top, here, at_empty) = (top.as_raw_fd(), libc::AT_FDCWD, libc::AT_EMPTY_PATH);
        let times = [libc::timespec { tv_sec: 1, tv_nsec: 0 }; 2];
        let (mode, times) = (0o777, times.as_ptr());
        let (none, own) = (null::<u8>(), [u64::from(libc::O_PATH as u32), 0, 0]);
        let mut room = [0_u8; 256];
        let room = room.as_mut_ptr();
        // SAFETY: the call takes no arguments.
        let id = unsafe { libc::getuid() };
        let name = path.as_ptr();
        let up = c"../outside".as_ptr();
        let refused = [
            ("fchmodat", call!(SYS_fchmodat, here, name, mode)),
            ("fchmodat in the share", call!(SYS_fchmodat, top, c"file".as_ptr(), mode)),
            ("fchmodat2", call!(FCHMODAT2, here, name, mode, 0)),
            ("fchmodat2 beside an empty path", call!(FCHMODAT2, top, up, mode, at_empty)),
            ("fchmodat2 of what is here", call!(FCHMODAT2, here, empty, mode, at_empty)),
            ("fchownat", call!(SYS_fchownat, here, name, id, id, 0)),
            ("fchownat beside an empty path", call!(SYS_fchownat, top, up, id, id, at_empty)),
            ("fchownat of what is here", call!(SYS_fchownat, here, empty, id, id, at_empty)),
            ("utimensat", call!(SYS_utimensat, here, name, times, 0)),
            ("utimensat beside an empty path", call!(SYS_utimensat, top, up, times, at_empty)),
            ("statx", call!(SYS_statx, here, name, 0, 0xfff, room)),
            ("statx in the share", call!(SYS_statx, top, c"file".as_ptr(), 0, 0xfff, room)),
            ("statx beside an empty path", call!(SYS_statx, top, up, at_empty, 0xfff, room)),
            ("statx of what is here", call!(SYS_statx, here, empty, at_empty, 0xfff, room)),
            ("openat for what stands for it", call!(SYS_openat, here, name, libc::O_PATH)),
            ("openat2", call!(SYS_openat2, here, name, own.as_ptr(), how_bytes)),
            ("openat2 from here", call!(SYS_openat2, here, c"outside".as_ptr(), how, how_bytes)),
            ("openat2 of more", call!(SYS_openat2, top, c"file".as_ptr(), how, how_bytes + 8)),
            ("readlinkat", call!(SYS_readlinkat, top, c"link".as_ptr(), none, 0)),
            ("mprotect", call!(SYS_mprotect, how, 1, libc::PROT_READ | libc::PROT_WRITE)),
            ("mprotect from below", call!(SYS_mprotect, 0, end, libc::PROT_READ | libc::PROT_WRITE)),
            ("munmap", call!(SYS_munmap, how, 4096)),
            ("munmap with a tag", call!(SYS_munmap, how | 1 << 56, 4096)),
            ("madvise", call!(SYS_madvise, how, 4096, libc::MADV_DONTNEED)),
            ("mremap", call!(SYS_mremap, how, 4096, 4096, libc::MREMAP_MAYMOVE, 0)),
            (
                "mremap onto it",
                call!(
                    SYS_mremap,
                    end + (1 << 30),
                    4096,
                    4096,
                    libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                    how
                ),
            ),
            (
                "mmap onto it",
                call!(
                    SYS_mmap,
                    how,
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0
                ),
            ),
        ];
        for (what, outcome) in refused {
            assert_eq!(outcome, Err(libc::EPERM), "{what}");
        }
        let stands_for = |name: &CStr| call!(SYS_openat2, top, name.as_ptr(), how, how_bytes);
        for (name, error) in [(c"../outside", libc::EXDEV), (c"/", libc::EXDEV), (c"link/.", libc::ELOOP)] {
            assert_eq!(stands_for(name), Err(error), "{name:?}");
        }
        let file = call!(SYS_openat, top, c"file".as_ptr(), libc::O_RDONLY).unwrap();
        assert_eq!(call!(SYS_read, file, how, 1), Err(libc::EFAULT));
        // What the server does, also to what cannot be opened.
        for name in [c"file", c"link", c"socket", c"."] {
            let file = stands_for(name).unwrap();
            assert_eq!(call!(SYS_statx, file, empty, at_empty, 0xfff, room), Ok(0), "{name:?}");
            assert_eq!(call!(SYS_fchownat, file, empty, id, u32::MAX, at_empty), Ok(0), "{name:?}");
            assert_eq!(call!(SYS_utimensat, file, empty, times, at_empty), Ok(0), "{name:?}");
            // Of Linux 6.6.
            let done = call!(FCHMODAT2, file, empty, 0o700, at_empty);
            assert!(name == c"link" || matches!(done, Ok(0) | Err(libc::ENOSYS)), "{name:?}: {done:?}");
        }
        assert_eq!(told(&link).3, 1);
        assert_eq!(told(&socket).3, 1);
        assert_eq!(before, told(&unchanged));
    });
}

/// Who may only read changes nothing, were it by a descriptor of an open file.
#[test]
fn a_worker_whose_shares_are_read_only_has_no_calls_that_change_files() {
    apart("a_worker_whose_shares_are_read_only_has_no_calls_that_change_files", || {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("file"), "contents").unwrap();
        let top = std::fs::File::open(place.path()).unwrap();
        let beneath = Beneath { top: std::os::fd::AsFd::as_fd(&top), directory: true, read_only: true };
        super::confine(Engine::Soft, &[beneath]).unwrap();
        let Sealed { how, how_bytes, empty, .. } = Sealed::get().unwrap();
        let (top, at_empty) = (top.as_raw_fd(), libc::AT_EMPTY_PATH);
        let file = call!(SYS_openat, top, c"file".as_ptr(), libc::O_RDONLY).unwrap();
        let stands_for = call!(SYS_openat2, top, c"file".as_ptr(), how, how_bytes).unwrap();
        let text = c"user.text".as_ptr();
        let refused = [
            ("fchmod", call!(SYS_fchmod, file, 0o777)),
            ("fchmodat2", call!(FCHMODAT2, stands_for, empty, 0o777, at_empty)),
            ("fchownat", call!(SYS_fchownat, stands_for, empty, -1, -1, at_empty)),
            ("utimensat", call!(SYS_utimensat, stands_for, empty, null::<u8>(), at_empty)),
            ("fsetxattr", call!(SYS_fsetxattr, file, text, text, 1, 0)),
            ("fremovexattr", call!(SYS_fremovexattr, file, text)),
            ("unlinkat", call!(SYS_unlinkat, top, c"file".as_ptr(), 0)),
        ];
        for (what, outcome) in refused {
            assert_eq!(outcome, Err(libc::EPERM), "{what}");
        }
    });
}

/// The time of a restore hangs on it.
#[test]
fn the_filter_is_small() {
    let shares = seccomp::Shares { sealed: Sealed::get().unwrap(), writable: true };
    assert!(seccomp::program(Engine::Kvm, Some(shares)).unwrap().len() < 1000);
}
