//! What a worker with a running guest can call: system calls are put into it by a tracer, as a guest that had taken it
//! over would make them. The tracer needs the capability to trace, as a worker lets no other process of its user's do
//! so.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "ptrace(2) and registers")]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Running, Worker, read, restoring, snapshot_of, start};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use supermachine_proto::worker::{self, Event, ExitReason, Share, ShareCache, ShareOwner, Start};

/// Higher than any number of a call that there is.
const MAX_NUMBER: i64 = 1024;
const FCHMODAT2: i64 = 452;
const ALL: u64 = u64::MAX;
const AT: u64 = libc::AT_EMPTY_PATH as u64;
const HERE: u64 = libc::AT_FDCWD as u64;

/// include/uapi/asm-generic/ioctls.h and linux/kvm.h; the C libraries differ in the type.
const FIONBIO: u64 = 0x5421;
const FIOASYNC: u64 = 0x5452;
const FIONREAD: u64 = 0x541b;
const TIOCSTI: u64 = 0x5412;
const KVM_GET_API_VERSION: u64 = 0xae00;

#[cfg(target_arch = "x86_64")]
mod machine {
    pub(crate) const SYSCALL: &[u8] = &[0x0f, 0x05];
    pub(crate) const ALIGNED: usize = 1;

    pub(crate) fn enter(regs: &mut libc::user_regs_struct, at: u64, number: i64, args: &[u64; 6]) {
        // No call is under way that would be begun again.
        regs.orig_rax = u64::MAX;
        (regs.rip, regs.rax) = (at, number as u64);
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = *args;
    }

    pub(crate) fn result(regs: &libc::user_regs_struct) -> i64 {
        regs.rax as i64
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    pub(crate) const SYSCALL: &[u8] = &[0x01, 0x00, 0x00, 0xd4];
    pub(crate) const ALIGNED: usize = 4;

    pub(crate) fn enter(regs: &mut libc::user_regs_struct, at: u64, number: i64, args: &[u64; 6]) {
        regs.regs[..6].copy_from_slice(args);
        (regs.pc, regs.regs[8]) = (at, number as u64);
    }

    pub(crate) fn result(regs: &libc::user_regs_struct) -> i64 {
        regs.regs[0] as i64
    }
}

/// A thread of a worker's that is stopped, and makes calls for us.
struct Traced {
    process: i32,
    memory: File,
    /// Where the worker has an instruction that makes a call.
    at: u64,
    saved: libc::user_regs_struct,
    /// A page of the worker's for what calls point to.
    room: u64,
    used: u64,
}

type Outcome = Result<i64, i32>;

impl Traced {
    /// `None` where tracing is not permitted.
    fn seize(worker: &Worker) -> Option<Self> {
        let process = worker.process.id() as i32;
        // SAFETY: these requests take numbers alone.
        if unsafe { libc::ptrace(libc::PTRACE_SEIZE, process, 0, 0) } != 0 {
            eprintln!("skipped, as nobody may trace here: {}", std::io::Error::last_os_error());
            return None;
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, process, 0, 0) }, 0);
        stopped(process);
        let memory = File::options().read(true).write(true).open(format!("/proc/{process}/mem")).unwrap();
        let vdso = mapping(process, |line| line.ends_with("[vdso]"));
        let mut code = vec![0; (vdso.1 - vdso.0) as usize];
        memory.read_exact_at(&mut code, vdso.0).unwrap();
        let places = (0..code.len() - 4).step_by(machine::ALIGNED);
        let place = places.into_iter().find(|at| code[*at..].starts_with(machine::SYSCALL)).unwrap();
        let mut traced =
            Self { process, memory, at: vdso.0 + place as u64, saved: registers(process), room: 0, used: 0 };
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let page = traced.call(libc::SYS_mmap, &[0, 4096, protection as u64, flags as u64, ALL, 0]);
        traced.room = page.unwrap() as u64;
        Some(traced)
    }

    fn call(&self, number: i64, args: &[u64]) -> Outcome {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let mut regs = self.saved;
        machine::enter(&mut regs, self.at, number, &all);
        set_registers(self.process, &mut regs);
        // SAFETY: the request takes numbers alone.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.process, 0, 0) }, 0);
        stopped(self.process);
        match machine::result(&registers(self.process)) {
            error @ -4095..0 => Err(-error as i32),
            value => Ok(value),
        }
    }

    /// Where the worker has these bytes now.
    fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let at = self.room + self.used;
        self.memory.write_all_at(bytes, at).unwrap();
        self.used += bytes.len().next_multiple_of(16) as u64;
        assert!(self.used <= 4096);
        at
    }

    fn path(&mut self, path: impl AsRef<Path>) -> u64 {
        let mut path = path.as_ref().as_os_str().as_encoded_bytes().to_vec();
        path.push(0);
        self.bytes(&path)
    }

    fn refused(&self, what: &str, number: i64, args: &[u64]) {
        assert_eq!(self.call(number, args), Err(libc::EPERM), "{what}");
    }

    fn allowed(&self, what: &str, number: i64, args: &[u64]) -> u64 {
        let outcome = self.call(number, args);
        outcome.unwrap_or_else(|error| panic!("{what}: error {error}")) as u64
    }

    /// The worker goes on where it was.
    fn let_go(mut self) {
        set_registers(self.process, &mut self.saved);
        // SAFETY: the request takes numbers alone.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, self.process, 0, 0) }, 0);
    }
}

fn stopped(process: i32) {
    let mut status = 0;
    // SAFETY: the call writes to `status`.
    assert_eq!(unsafe { libc::waitpid(process, &raw mut status, libc::__WALL) }, process);
    assert!(libc::WIFSTOPPED(status), "the worker has ended: {status:#x}");
}

fn set(regs: &mut libc::user_regs_struct) -> libc::iovec {
    libc::iovec { iov_base: (&raw mut *regs).cast(), iov_len: size_of::<libc::user_regs_struct>() }
}

fn registers(process: i32) -> libc::user_regs_struct {
    // SAFETY: all zeros is a value of it.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let mut set = set(&mut regs);
    // SAFETY: the request writes no more than the length of what it is given.
    let done = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, process, libc::NT_PRSTATUS, &raw mut set) };
    assert_eq!(done, 0);
    regs
}

fn set_registers(process: i32, regs: &mut libc::user_regs_struct) {
    let mut set = set(regs);
    // SAFETY: the request reads no more than the length of what it is given.
    let done = unsafe { libc::ptrace(libc::PTRACE_SETREGSET, process, libc::NT_PRSTATUS, &raw mut set) };
    assert_eq!(done, 0);
}

/// Start and end of the first mapping of a process of which this holds.
fn mapping(process: i32, which: impl Fn(&str) -> bool) -> (u64, u64) {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let line = maps.lines().find(|line| which(line)).unwrap();
    let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap())
}

/// Calls that go through with any arguments.
fn free(shares: bool) -> BTreeSet<i64> {
    let mut free = BTreeSet::from([
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_close,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_fallocate,
        libc::SYS_fdatasync,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_fsync,
        libc::SYS_ftruncate,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_gettid,
        libc::SYS_lseek,
        libc::SYS_nanosleep,
        libc::SYS_ppoll,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_restart_syscall,
        libc::SYS_rseq,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_shutdown,
        libc::SYS_sigaltstack,
        libc::SYS_write,
        libc::SYS_writev,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
    ]);
    if shares {
        free.extend([
            libc::SYS_copy_file_range,
            libc::SYS_fchmod,
            libc::SYS_fgetxattr,
            libc::SYS_flistxattr,
            libc::SYS_flock,
            libc::SYS_fremovexattr,
            libc::SYS_fsetxattr,
            libc::SYS_getdents64,
            libc::SYS_linkat,
            libc::SYS_mkdirat,
            libc::SYS_mknodat,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_symlinkat,
            libc::SYS_unlinkat,
        ]);
    } else {
        // With shares these depend on the address.
        free.extend([libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap]);
    }
    free
}

/// Every call that there is, with arguments that none would take.
fn every_call(traced: &Traced, shares: bool) {
    // Those that do not come back, and two that the kernel has for its own probes and shows no filter (uretprobe,
    // uprobe).
    let mut ends = vec![libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn];
    ends.extend(if cfg!(target_arch = "x86_64") { 335..337 } else { 0..0 });
    let mut through = BTreeSet::new();
    for number in (0..MAX_NUMBER).filter(|number| !ends.contains(number)) {
        match traced.call(number, &[ALL; 6]) {
            Err(libc::EPERM) => {}
            Err(libc::ENOSYS) if number == libc::SYS_clone3 => {}
            _ => assert!(through.insert(number)),
        }
    }
    assert_eq!(through, free(shares));
    // The other numbers of x86_64 (asm/unistd.h, __X32_SYSCALL_BIT).
    for number in 0..512 {
        traced.refused("x32", 0x4000_0000 | number, &[ALL; 6]);
    }
}

/// Calls that depend on an argument, which all workers make.
fn conditions(traced: &mut Traced) {
    let process = traced.process as u64;
    let parent = u64::from(std::process::id());
    let room = traced.room;
    let text = traced.bytes(b"text\0");
    let address = traced.bytes(&[libc::AF_UNIX as u8, 0, 0, 0]);
    let (unix, stream) = (libc::AF_UNIX as u64, libc::SOCK_STREAM as u64);
    let pair = traced.bytes(&[0; 8]);
    traced.allowed("socketpair", libc::SYS_socketpair, &[unix, stream, 0, pair]);
    let mut ends = [0; 8];
    traced.memory.read_exact_at(&mut ends, pair).unwrap();
    let socket = u64::from(u32::from_le_bytes(ends[..4].try_into().unwrap()));
    let datagram = libc::SOCK_DGRAM as u64;
    traced.refused("socketpair of datagrams", libc::SYS_socketpair, &[unix, datagram, 0, pair]);
    let internet = libc::AF_INET as u64;
    traced.refused("socketpair of another family", libc::SYS_socketpair, &[internet, stream, 0, pair]);
    traced.refused("socket", libc::SYS_socket, &[unix, stream, 0]);
    traced.refused("connect", libc::SYS_connect, &[socket, address, 3]);
    traced.allowed("sendto", libc::SYS_sendto, &[socket, text, 4, 0, 0, 0]);
    traced.refused("sendto an address", libc::SYS_sendto, &[socket, text, 4, 0, address, 3]);
    let (level, linger) = (libc::SOL_SOCKET as u64, libc::SO_LINGER as u64);
    traced.allowed("SO_LINGER", libc::SYS_setsockopt, &[socket, level, linger, pair, 8]);
    traced.refused("SO_PASSCRED", libc::SYS_setsockopt, &[socket, level, libc::SO_PASSCRED as u64, pair, 4]);

    for command in [libc::F_GETFD, libc::F_GETFL] {
        traced.allowed("fcntl", libc::SYS_fcntl, &[socket, command as u64]);
    }
    traced.allowed("F_SETFL", libc::SYS_fcntl, &[socket, libc::F_SETFL as u64, libc::O_NONBLOCK as u64]);
    let copy = traced.allowed("F_DUPFD", libc::SYS_fcntl, &[socket, libc::F_DUPFD_CLOEXEC as u64, 3]);
    traced.allowed("close", libc::SYS_close, &[copy]);
    for command in [libc::F_SETOWN, libc::F_SETLK, libc::F_DUPFD, libc::F_SETLEASE, libc::F_NOTIFY] {
        traced.refused("fcntl", libc::SYS_fcntl, &[socket, command as u64, process]);
    }
    traced.allowed("FIONBIO", libc::SYS_ioctl, &[socket, FIONBIO, pair]);
    for request in [FIOASYNC, FIONREAD, TIOCSTI, KVM_GET_API_VERSION] {
        traced.refused("ioctl", libc::SYS_ioctl, &[socket, request, pair]);
    }

    traced.allowed("tgkill to itself", libc::SYS_tgkill, &[process, process, 0]);
    traced.refused("tgkill", libc::SYS_tgkill, &[parent, parent, 0]);
    for (what, number) in
        [("kill", libc::SYS_kill), ("tkill", libc::SYS_tkill), ("pidfd_open", libc::SYS_pidfd_open)]
    {
        traced.refused(what, number, &[parent, 0]);
        traced.refused(what, number, &[process, 0]);
    }
    traced.allowed("PR_SET_NAME", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, text]);
    for option in [libc::PR_SET_DUMPABLE, libc::PR_SET_PDEATHSIG, libc::PR_SET_MM, libc::PR_SET_PTRACER] {
        traced.refused("prctl", libc::SYS_prctl, &[option as u64, 1]);
    }
    let processes = [
        libc::SIGCHLD,
        libc::CLONE_PARENT | libc::SIGCHLD,
        libc::CLONE_NEWUSER | libc::SIGCHLD,
        libc::CLONE_VM | libc::CLONE_VFORK,
    ];
    for flags in processes {
        traced.refused("clone", libc::SYS_clone, &[flags as u64]);
    }
    traced.refused("a file in memory", libc::SYS_memfd_create, &[text, 0]);
    traced.refused("another filter", libc::SYS_seccomp, &[libc::SECCOMP_SET_MODE_FILTER.into(), 0, room]);
    assert_eq!(traced.call(libc::SYS_clone3, &[room, 88]), Err(libc::ENOSYS));

    let (read, code) = (libc::PROT_READ as u64, (libc::PROT_READ | libc::PROT_EXEC) as u64);
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let page = traced.allowed("mmap", libc::SYS_mmap, &[0, 8192, read, anonymous, ALL, 0]);
    traced.refused("mmap of code", libc::SYS_mmap, &[0, 4096, code, anonymous, ALL, 0]);
    traced.refused("mprotect to code", libc::SYS_mprotect, &[page, 4096, code]);
    traced.refused("pkey_mprotect", libc::SYS_pkey_mprotect, &[page, 4096, read, 0]);
    traced.allowed("mprotect", libc::SYS_mprotect, &[page, 4096, read]);
    traced.allowed("madvise", libc::SYS_madvise, &[page, 4096, libc::MADV_DONTNEED as u64]);
    let moved = traced.allowed("mremap", libc::SYS_mremap, &[page, 4096, 4096, 1]);
    traced.allowed("munmap", libc::SYS_munmap, &[moved, 4096]);
    let fixed = anonymous | libc::MAP_FIXED as u64;
    traced.allowed("mmap at an address", libc::SYS_mmap, &[page + 4096, 4096, read, fixed, ALL, 0]);
    traced.allowed("munmap", libc::SYS_munmap, &[page + 4096, 4096]);
    traced.allowed("close", libc::SYS_close, &[socket]);
}

/// Every thread is confined, and has no privileges.
fn every_thread(process: i32) {
    let threads: Vec<_> = fs::read_dir(format!("/proc/{process}/task")).unwrap().collect();
    assert!(threads.len() > 1);
    for thread in threads {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        assert_eq!((of("Seccomp:"), of("NoNewPrivs:")), ("2", "1"), "{}", of("Name:"));
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(of(set), "0000000000000000", "{}", of("Name:"));
        }
    }
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().map(str::to_owned).take(2).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    let files = limit("Max open files");
    assert!(files[0] == files[1] && files[0].parse::<u64>().unwrap() <= 24 * 1024, "{files:?}");
}

fn confined_without_shares(traced: &mut Traced) {
    every_thread(traced.process);
    every_call(traced, false);
    conditions(traced);
    let path = traced.path("/proc/self/status");
    for number in [libc::SYS_openat, libc::SYS_statx, libc::SYS_readlinkat, libc::SYS_faccessat] {
        traced.refused("a path", number, &[HERE, path, 0, 0]);
    }
}

#[test]
fn a_worker_makes_the_calls_that_it_needs_and_no_others() {
    let mut worker = Worker::ready(start());
    let Some(mut traced) = Traced::seize(&worker) else { return };
    confined_without_shares(&mut traced);
    traced.let_go();
    // It has not noticed.
    assert!(read(&mut worker.files(), "/proc/version").starts_with(b"Linux"));
}

/// What a template may do for its copies is not theirs once they run a guest.
#[test]
fn a_templates_copy_makes_the_calls_of_a_worker_and_no_others() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("whole");
    snapshot_of(&mut Worker::ready(start()), &path);
    let template = Worker::template(restoring(std::slice::from_ref(&path), "template"));
    let mut worker = Worker::fork(&template, restoring(&[], "copy"));
    worker.wait_ready();
    let Some(mut traced) = Traced::seize(&worker) else { return };
    confined_without_shares(&mut traced);
    // Nothing that runs can be written to, and nothing of it is another process's too.
    let maps = fs::read_to_string(format!("/proc/{}/maps", traced.process)).unwrap();
    let code = |process: i32| {
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
        maps.lines().any(|line| line.contains("memfd:code"))
    };
    assert!(!maps.lines().any(|line| line.contains("rwx")), "{maps}");
    assert!(code(traced.process) && !code(template.process.id() as i32));
    traced.let_go();
    assert!(read(&mut worker.files(), "/proc/version").starts_with(b"Linux"));
}

/// What is in the file runs in the next worker.
#[test]
fn a_worker_cannot_write_to_decoded_code() {
    let place = tempfile::tempdir().unwrap();
    let (snapshot, code) = (vec![place.path().join("whole")], place.path().join("code"));
    let mut original = Worker::ready(start());
    snapshot_of(&mut original, &snapshot[0]);
    let file = File::options().write(true).create_new(true).mode(0o600).open(&code).unwrap();
    Worker::bake(env!("CARGO_BIN_EXE_supermachine-worker"), &snapshot, common::code_of(&mut original), &file);
    drop((file, original));
    let before = fs::read(&code).unwrap();
    let mut worker = Worker::ready(common::going_by(&snapshot, &code));
    let process = worker.process.id();
    let fds = fs::read_dir(format!("/proc/{process}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let open: Vec<_> = fds.filter(|fd| fs::read_link(fd).is_ok_and(|of| of == code)).collect();
    assert_eq!(open.len(), 1, "it is read as the guest runs");
    let fd = open[0].file_name().unwrap().to_str().unwrap().parse().unwrap();
    let Some(mut traced) = Traced::seize(&worker) else { return };
    let (room, path) = (traced.bytes(b"other code"), traced.path(&code));
    for (what, number, args) in [
        ("pwrite", libc::SYS_pwrite64, &[fd, room, 10, 0][..]),
        ("write", libc::SYS_write, &[fd, room, 10]),
        ("fallocate", libc::SYS_fallocate, &[fd, 0, 0, 4096]),
    ] {
        assert_eq!(traced.call(number, args), Err(libc::EBADF), "{what}");
    }
    assert_eq!(traced.call(libc::SYS_ftruncate, &[fd, 0]), Err(libc::EINVAL));
    let shared = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let mapped = traced.call(libc::SYS_mmap, &[0, 4096, shared, libc::MAP_SHARED as u64, fd, 0]);
    assert!(mapped.is_err(), "{mapped:?}");
    let own = traced.path(format!("/proc/self/fd/{fd}"));
    for path in [path, own] {
        traced.refused("opening it", libc::SYS_openat, &[HERE, path, libc::O_RDWR as u64, 0]);
        traced.refused("removing it", libc::SYS_unlinkat, &[HERE, path, 0]);
    }
    traced.refused("fchmod", libc::SYS_fchmod, &[fd, 0o666]);
    traced.let_go();
    assert!(read(&mut worker.files(), "/proc/version").starts_with(b"Linux"));
    assert_eq!(fs::read(&code).unwrap(), before);
}

#[test]
fn a_worker_with_shares_reaches_those_alone() {
    let place = tempfile::tempdir().unwrap();
    let shared = |name: &str, read_only| {
        fs::create_dir(place.path().join(name)).unwrap();
        fs::write(place.path().join(name).join("file"), "contents").unwrap();
        Share {
            path: place.path().join(name),
            read_only,
            cache: ShareCache::Auto,
            owner: ShareOwner::Map,
            quota_bytes: None,
            watch: false,
        }
    };
    let shares = vec![shared("written", false), shared("read", true)];
    let outside = place.path().join("outside");
    fs::write(&outside, "contents").unwrap();
    let told = || {
        let told = fs::metadata(&outside).unwrap();
        (told.mode(), told.uid(), told.gid(), told.mtime(), told.ctime(), told.ctime_nsec())
    };
    let before = told();
    let mut worker = Worker::ready(Start { shares, ..start() });
    let Some(mut traced) = Traced::seize(&worker) else { return };
    every_thread(traced.process);
    every_call(&traced, true);
    conditions(&mut traced);

    let sealed = mapping(traced.process, |_| true);
    assert!(sealed.1 <= 32 << 20, "no page lies below all others");
    // See rust/fs/src/sealed.rs.
    let (how, empty, end) = (sealed.0, sealed.0 + 24, sealed.1);
    let top = |name: &str| {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", traced.process)).unwrap();
        let named = |path: &Path| fs::read_link(path).is_ok_and(|to| to == place.path().join(name));
        let found = descriptors.map(|entry| entry.unwrap().path()).find(|path| named(path)).unwrap();
        found.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap()
    };
    let (written, read_only) = (top("written"), top("read"));
    let path = traced.path(&outside);
    let up = traced.path("../outside");
    let file = traced.path("file");
    let new = traced.path("new");
    let root = traced.path("/");
    let times = traced.bytes(&[0; 32]);
    let told_of = traced.bytes(&[0; 256]);
    let own = (libc::O_PATH as u64).to_le_bytes().into_iter().chain([0; 16]).collect::<Vec<_>>();
    let own = traced.bytes(&own);
    let (mode, id) = (0o777, u64::from(fs::metadata(&outside).unwrap().uid()));
    let (read, create) = (libc::O_RDONLY as u64, (libc::O_RDWR | libc::O_CREAT) as u64);

    // By Landlock: contents and names.
    for (at, name) in [(HERE, path), (written, up), (read_only, up)] {
        assert_eq!(traced.call(libc::SYS_openat, &[at, name, read]), Err(libc::EACCES));
        assert_eq!(traced.call(libc::SYS_unlinkat, &[at, name, 0]), Err(libc::EACCES));
        for number in [libc::SYS_linkat, libc::SYS_renameat] {
            let moved = traced.call(number, &[at, name, written, new, 0]);
            assert!(matches!(moved, Err(libc::EACCES | libc::EXDEV)), "{moved:?}");
        }
    }
    assert_eq!(traced.call(libc::SYS_openat, &[read_only, file, create, 0o600]), Err(libc::EACCES));
    assert_eq!(traced.call(libc::SYS_unlinkat, &[read_only, file, 0]), Err(libc::EACCES));
    // By the filter: modes, owners, times, what they are told as, and descriptors that stand for files.
    for (at, name) in [(HERE, path), (written, up), (written, file)] {
        traced.refused("fchmodat", libc::SYS_fchmodat, &[at, name, mode]);
        traced.refused("fchmodat2", FCHMODAT2, &[at, name, mode, 0]);
        traced.refused("fchmodat2", FCHMODAT2, &[at, name, mode, AT]);
        traced.refused("fchownat", libc::SYS_fchownat, &[at, name, id, id, 0]);
        traced.refused("fchownat", libc::SYS_fchownat, &[at, name, id, id, AT]);
        traced.refused("utimensat", libc::SYS_utimensat, &[at, name, times, 0]);
        traced.refused("utimensat", libc::SYS_utimensat, &[at, name, times, AT]);
        traced.refused("openat", libc::SYS_openat, &[at, name, libc::O_PATH as u64]);
        traced.refused("openat2", libc::SYS_openat2, &[at, name, own, 24]);
        traced.refused("readlinkat", libc::SYS_readlinkat, &[at, name, times, 32]);
        traced.refused("statx", libc::SYS_statx, &[at, name, 0, 0xfff, told_of]);
        traced.refused("statx", libc::SYS_statx, &[at, name, AT, 0xfff, told_of]);
    }
    traced.refused("what is here", libc::SYS_statx, &[HERE, empty, AT, 0xfff, told_of]);
    traced.refused("what is here", libc::SYS_fchownat, &[HERE, empty, id, id, AT]);
    traced.refused("what is here", FCHMODAT2, &[HERE, empty, mode, AT]);
    traced.refused("what is here", libc::SYS_utimensat, &[HERE, empty, times, AT]);
    traced.refused("from here", libc::SYS_openat2, &[HERE, file, how, 24]);
    for name in [up, path, root] {
        assert_eq!(traced.call(libc::SYS_openat2, &[written, name, how, 24]), Err(libc::EXDEV));
    }
    // And nobody changes what is said there.
    let (write, anonymous) =
        ((libc::PROT_READ | libc::PROT_WRITE) as u64, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64);
    let fixed = anonymous | libc::MAP_FIXED as u64;
    traced.refused("mprotect", libc::SYS_mprotect, &[how, 4096, write]);
    traced.refused("mprotect from below", libc::SYS_mprotect, &[0, end, write]);
    traced.refused("munmap", libc::SYS_munmap, &[how, 4096]);
    traced.refused("munmap by a tag", libc::SYS_munmap, &[how | 1 << 56, 4096]);
    traced.refused("madvise", libc::SYS_madvise, &[how, 4096, libc::MADV_DONTNEED as u64]);
    traced.refused("mmap", libc::SYS_mmap, &[how, 4096, write, fixed, ALL, 0]);
    traced.refused("mremap", libc::SYS_mremap, &[how, 4096, 4096, 1]);
    traced.refused("mremap", libc::SYS_mremap, &[traced.room, 4096, 4096, 3, how]);
    let opened = traced.allowed("openat", libc::SYS_openat, &[written, file, read]);
    assert_eq!(traced.call(libc::SYS_read, &[opened, how, 1]), Err(libc::EFAULT));
    traced.allowed("close", libc::SYS_close, &[opened]);
    // What the server does.
    let stands_for = traced.allowed("openat2", libc::SYS_openat2, &[written, file, how, 24]);
    traced.allowed("statx", libc::SYS_statx, &[stands_for, empty, AT, 0xfff, told_of]);
    traced.allowed("fchownat", libc::SYS_fchownat, &[stands_for, empty, id, ALL, AT]);
    traced.allowed("utimensat", libc::SYS_utimensat, &[stands_for, empty, times, AT]);
    assert!(matches!(
        traced.call(FCHMODAT2, &[stands_for, empty, 0o640, AT]),
        Ok(0) | Err(libc::ENOSYS) // before Linux 6.6
    ));
    traced.allowed("close", libc::SYS_close, &[stands_for]);
    assert_eq!(fs::metadata(place.path().join("written/file")).unwrap().mtime(), 0);
    assert_eq!(before, told());
    traced.let_go();
    assert!(common::read(&mut worker.files(), "/proc/version").starts_with(b"Linux"));
}

/// The worker's command on a kernel that does not have this call.
fn without(call: i64) -> Command {
    refusing(call, vec![], libc::ENOSYS)
}

/// The same on one that answers a call with this error where one of the rules is for it, or always.
fn refusing(call: i64, rules: Vec<SeccompRule>, error: i32) -> Command {
    let refused = SeccompFilter::new(
        [(call, rules)].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(error as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = refused.unwrap().try_into().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_supermachine-worker"));
    // SAFETY: between fork and exec two system calls are made, and no memory is asked for.
    unsafe { command.pre_exec(move || seccompiler::apply_filter(&program).map_err(std::io::Error::other)) };
    command
}

#[test]
fn a_kernel_without_a_wall_is_told_and_refused_where_it_is_required() {
    let lacks = [
        (libc::SYS_landlock_create_ruleset, "has no Landlock"),
        (libc::SYS_seccomp, "filters no system calls"),
    ];
    for (call, said) in lacks {
        let probed = without(call).arg("--probe-confinement").output().unwrap();
        assert!(String::from_utf8(probed.stdout).unwrap().contains(said));
        let begin = |require_confinement| {
            let (control, theirs) = UnixStream::pair().unwrap();
            control.set_read_timeout(Some(common::DEADLINE)).unwrap();
            let process = without(call).stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
            let mut worker = Worker { process: Running::Started(process), control };
            worker.send(&worker::Command::Start(Box::new(Start { require_confinement, ..start() })));
            worker.event()
        };
        match begin(true) {
            Event::Exited { reason: ExitReason::Unconfined, message, .. } => assert!(message.contains(said)),
            other => panic!("{other:?}"),
        }
        assert!(matches!(begin(false), Event::Ready(_)));
    }
}

/// As SELinux refuses it, and a kernel whose files in memory are never executable (vm.memfd_noexec): the interpreter
/// serves.
#[test]
fn where_no_memory_may_be_executable_guests_run_and_the_probe_says_why() {
    let condition = |argument, set: i32| {
        let set = u64::from(set as u32);
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(set), set).unwrap()
    };
    // Programs and libraries are mapped as private: only what is shared may not be executable.
    let shared_code = || {
        let conditions = vec![condition(2, libc::PROT_EXEC), condition(3, libc::MAP_SHARED)];
        vec![SeccompRule::new(conditions).unwrap()]
    };
    let hosts: [&dyn Fn() -> Command; 2] =
        [&|| refusing(libc::SYS_mmap, shared_code(), libc::EACCES), &|| {
            refusing(libc::SYS_memfd_create, vec![], libc::EACCES)
        }];
    for host in hosts {
        let probed = host().arg("--probe-confinement").output().unwrap();
        let said = String::from_utf8(probed.stdout).unwrap();
        assert!(said.contains("this system lets no memory be executable: Permission denied"), "{said}");
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(common::DEADLINE)).unwrap();
        let process = host().stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
        let mut worker = Worker { process: Running::Started(process), control };
        worker.send(&worker::Command::Start(Box::new(start())));
        worker.wait_ready();
        assert!(read(&mut worker.files(), "/proc/version").starts_with(b"Linux"));
        assert_eq!(code_mappings(&worker), Vec::<String>::new());
    }
    // And where nothing is refused.
    let worker = Worker::ready(start());
    let expected = if interprets() { vec![] } else { vec!["r-xs".to_owned(), "rw-s".to_owned()] };
    assert_eq!(code_mappings(&worker), expected);
}

/// Whether this host has no translation to begin with.
fn interprets() -> bool {
    let probed = Command::new(env!("CARGO_BIN_EXE_supermachine-worker")).arg("--probe-confinement").output();
    !String::from_utf8(probed.unwrap().stdout).unwrap().contains("\"interprets\":null")
}

/// How a worker's memory for code is mapped. No other memory of it is writable and executable.
fn code_mappings(worker: &Worker) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", worker.process.id())).unwrap();
    let protections = |line: &str| line.split(' ').nth(1).unwrap().to_owned();
    for line in maps.lines() {
        let protection = protections(line);
        assert!(!(protection.contains('w') && protection.contains('x')), "{line}");
    }
    let mut found: Vec<_> = maps.lines().filter(|l| l.contains("/memfd:code")).map(protections).collect();
    found.sort();
    found
}
