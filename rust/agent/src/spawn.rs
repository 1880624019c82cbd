//! Starts a process: everything is prepared first, so that the child makes system calls and nothing else.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use supermachine_proto::agent::{Chunk, Exec, ExecError};

use crate::init::{self, Place};
use crate::reaper::{self, Exit};
use crate::spare::Spare;
use crate::{freeze, server, sys, user};

/// docker's PATH for an image that has none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// include/uapi/linux/sched.h: the process is born in the control group that a descriptor of its directory names. Moving it
/// there afterwards would stop all forks in the guest meanwhile.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Why a process was not started.
#[derive(Debug)]
pub(crate) struct Failure {
    pub kind: ExecError,
    pub message: String,
}

impl Failure {
    pub(crate) fn new(kind: ExecError, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let kind =
            if error.raw_os_error() == Some(libc::EINVAL) { ExecError::Invalid } else { ExecError::Other };
        Self::new(kind, server::shortage(&error))
    }
}

/// What the child needs, in memory that it shares with its parent until it executes the program.
pub(crate) struct Child {
    /// Of one that is made for it.
    stdio: [i32; 3],
    /// Whether its stdin is a pipe.
    pub(crate) has_input: bool,
    tty: bool,
    place: Place,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    cwd: CString,
    /// What may be the program, in the order of PATH.
    programs: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// What the child could not do, and why; it has executed the program when there is nothing here.
    pub(crate) failed: Option<(Step, i32)>,
}

/// Where a process comes from, and with it its stdin, stdout and stderr.
pub(crate) enum Origin<'a> {
    /// It is made, with these.
    New([&'a OwnedFd; 3]),
    /// It waits for its program, and has them.
    Waiting(&'a Spare),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Place,
    Stdio,
    Identity,
    Directory,
    Execute,
}

/// The program's name.
fn name(exec: &Exec) -> Result<&[u8], Failure> {
    let name = exec.args.first().filter(|name| !name.0.is_empty());
    Ok(&name.ok_or_else(|| Failure::new(ExecError::Invalid, "there is no program to run"))?.0)
}

/// How the process that `exec` says stands to init systems.
pub(crate) fn place(exec: &Exec) -> Result<Place, Failure> {
    Ok(Place::of(name(exec)?)?)
}

/// Starts what `exec` says, at its `place`. A session and a process group of its own; its terminal is stdin when `exec.tty` is
/// set. One that waited has a plain place and no terminal.
pub(crate) fn spawn(exec: &Exec, place: Place, origin: &Origin) -> Result<(i32, Arc<Exit>), Failure> {
    let name = name(exec)?;
    let user = user::resolve(&exec.user).map_err(|message| Failure::new(ExecError::UnknownUser, message))?;
    let env = environment(exec, &user.home, &place)?;
    let args = strings(&exec.args)?;
    let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
    let programs = if name.contains(&b'/') {
        vec![sys::c_string(name)?]
    } else {
        let path = env.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
        let parts = path.split(|byte| *byte == b':');
        parts.map(|part| sys::c_string(candidate(part, name))).collect::<io::Result<_>>()?
    };
    let cwd = if exec.cwd.0.is_empty() { b"/" } else { &*exec.cwd.0 };
    if cwd != b"/"
        && let Ok(text) = std::str::from_utf8(cwd)
    {
        // As docker does for WORKDIR; what stands in the way shows when the child enters the directory.
        let _ = std::fs::create_dir_all(text);
    }
    let mut child = Child {
        stdio: match origin {
            Origin::New(stdio) => stdio.map(AsRawFd::as_raw_fd),
            Origin::Waiting(_) => [-1; 3],
        },
        has_input: exec.stdin,
        tty: exec.tty.is_some(),
        place,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        cwd: sys::c_string(cwd)?,
        programs,
        argv: pointers(&args),
        envp: pointers(&env),
        failed: None,
    };
    let moved = || Failure::new(ExecError::Other, "the guest is another one now");
    let starting = freeze::start().ok_or_else(moved)?;
    let (pid, exit) = match origin {
        Origin::New(_) => {
            child.place.prepare_thread()?;
            reaper::register(|| make(&mut child))?
        }
        Origin::Waiting(spare) => spare.become_program(&mut child),
    };
    drop(starting);
    match child.failed {
        None => {
            child.place.started(pid, &exit)?;
            Ok((pid, exit))
        }
        Some((step, errno)) => Err(explain(step, errno, exec)),
    }
}

/// Makes the process, as vfork(2) does but in the control group of all that the host starts; its id, once it has executed its
/// program or ended.
fn make(child: &mut Child) -> io::Result<i32> {
    let mut arguments = in_group();
    arguments.flags |= bits(libc::CLONE_VM | libc::CLONE_VFORK | child.place.clone_flags());
    // SAFETY: the child goes on with a copy of all registers, and calls `child_main`, which never returns: it
    // uses the stack below what is in use, which the thread, suspended by CLONE_VFORK until the child has executed
    // the program or ended, does not look at afterwards. So `child` and its strings outlive the child's use of them,
    // and nothing is used by both at once.
    unsafe { clone(&arguments, child_main, (&raw mut *child).cast()) }
}

/// Makes a process in the same group that runs `main` beside its maker, in the same memory; the kernel makes `here` 0, and
/// wakes who waits for that, when it has other memory.
///
/// # Safety
/// `stack` has `length` bytes that are the process's alone, and `here` is a word; both outlive its use of this memory. `main`
/// uses nothing that is a thread's own, and nothing with others but by atomics.
pub(crate) unsafe fn make_beside(
    stack: *mut u8,
    length: usize,
    here: *mut i32,
    main: extern "C" fn(*mut libc::c_void) -> !,
    argument: *mut libc::c_void,
) -> io::Result<i32> {
    let mut arguments = in_group();
    arguments.flags |= bits(libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID);
    (arguments.stack, arguments.stack_size) = (stack as u64, length as u64);
    arguments.child_tid = here as u64;
    // SAFETY: that the process has a stack of its own and what it may do there is the caller's promise.
    unsafe { clone(&arguments, main, argument) }
}

/// Of clone3(2): a child that is born in the control group of all that the host starts.
fn in_group() -> libc::clone_args {
    let group = freeze::group();
    // SAFETY: all zeros is a valid clone_args: no stack of the child's own, no places to write to.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = if group.is_some() { CLONE_INTO_CGROUP } else { 0 };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = group.unwrap_or_default().cast_unsigned().into();
    arguments
}

fn bits(flags: libc::c_int) -> u64 {
    flags.cast_unsigned().into()
}

/// clone3(2): the child's id. The child calls `main`.
///
/// # Safety
/// The child has a copy of all registers, and of the stack what `arguments` say: it must not disturb its parent's use of what
/// they share.
unsafe fn clone(
    arguments: &libc::clone_args,
    main: extern "C" fn(*mut libc::c_void) -> !,
    argument: *mut libc::c_void,
) -> io::Result<i32> {
    let size = size_of_val(arguments);
    let result: isize;
    // SAFETY: the call reads `arguments`. In this thread all it changes is the register of its result, and memory. The
    // child goes on at the same place with a copy of all registers, and calls `main`, which never returns; what that does
    // is the caller's promise.
    unsafe {
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x0, {argument}",
            "blr {main}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            main = in(reg) main,
            inlateout("x0") &raw const *arguments => result,
            in("x1") size,
            in("x8") libc::SYS_clone3,
        );
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, {argument}",
            // The compiler may make the frame, and with it the alignment, after this block.
            "and rsp, -16",
            "call {main}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            main = in(reg) main,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const *arguments,
            in("rsi") size,
            out("rcx") _,
            out("r11") _,
        );
    }
    let result = i32::try_from(result).expect("a process id, or an error below 4096");
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// A system call, which leaves `errno` alone: what it returns, an error as its negative number.
///
/// # Safety
/// As the call says.
pub(crate) unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> isize {
    let result: isize;
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the kernel changes these registers and, of memory, what the call says.
    unsafe {
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            in("x5") f,
            options(nostack),
        );
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}

fn candidate(directory: &[u8], name: &[u8]) -> Vec<u8> {
    // An empty part of PATH is the current directory.
    let directory = if directory.is_empty() { b"." } else { directory };
    [directory, b"/", name].concat()
}

fn strings(list: &[Chunk]) -> io::Result<Vec<CString>> {
    list.iter().map(|chunk| sys::c_string(&*chunk.0)).collect()
}

/// The environment with what docker adds to it.
fn environment(exec: &Exec, home: &str, place: &Place) -> io::Result<Vec<CString>> {
    let mut env = strings(&exec.env)?;
    let hostname = sys::hostname();
    let mut defaults = vec![("PATH", PATH), ("HOSTNAME", &*hostname), ("HOME", home)];
    if exec.tty.is_some() {
        defaults.push(("TERM", "xterm"));
    }
    if let Place::First(_) = place {
        defaults.push(init::ENVIRONMENT);
    }
    for (name, value) in defaults {
        let is_it = |entry: &CString| {
            entry.to_bytes().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
        };
        if !env.iter().any(is_it) {
            env.push(sys::c_string([name, "=", value].concat())?);
        }
    }
    Ok(env)
}

fn explain(step: Step, errno: i32, exec: &Exec) -> Failure {
    let name = String::from_utf8_lossy(&exec.args[0].0).into_owned();
    let error = io::Error::from_raw_os_error(errno);
    match (step, errno) {
        (Step::Directory, _) => {
            let cwd = String::from_utf8_lossy(&exec.cwd.0);
            Failure::new(
                ExecError::BadDirectory,
                format!("the working directory {cwd} cannot be entered: {error}"),
            )
        }
        (Step::Execute, libc::ENOENT | libc::ENOTDIR) => Failure::new(
            ExecError::NotFound,
            format!("{name} is not in the guest, or its interpreter is not"),
        ),
        (Step::Execute, libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::EPERM) => {
            Failure::new(ExecError::NotExecutable, format!("{name} cannot be executed: {error}"))
        }
        _ => Failure::new(ExecError::Other, format!("{name} cannot be started: {error}")),
    }
}

/// The child's life until it is the program. No allocation, no lock, no function that keeps state for all threads.
extern "C" fn child_main(child: *mut libc::c_void) -> ! {
    // SAFETY: the parent gave us its `Child` and waits, so this is the only reference.
    let child = unsafe { &mut *child.cast::<Child>() };
    let failed = become_program(child);
    child.failed = Some(failed);
    // SAFETY: ends this process at once, without running what its parent registered.
    unsafe { libc::_exit(127) }
}

/// Returns only when something fails.
fn become_program(child: &Child) -> (Step, i32) {
    // SAFETY: `__errno_location` is the calling thread's own; the parent's thread, whose it is, waits.
    let errno = || unsafe { *libc::__errno_location() };
    // SAFETY: all calls take the descriptors of `child`.
    unsafe {
        let placed = child.place.take();
        if placed != 0 {
            return (Step::Place, placed);
        }
        libc::setsid();
        for (number, fd) in (0..).zip(&child.stdio) {
            if libc::dup2(*fd, number) < 0 {
                return (Step::Stdio, errno());
            }
        }
        if child.tty && libc::ioctl(0, libc::TIOCSCTTY as _, 0) < 0 {
            return (Step::Stdio, errno());
        }
    }
    settle();
    execute(child)
}

/// In the new process: what an earlier one may have said of signals and modes is as every program expects it. By system calls.
pub(crate) fn settle() {
    // struct sigaction as the kernel has it: the default handler, no flags, an empty mask.
    let (default, none) = ([0_u64; 4], 0_u64);
    // SAFETY: the calls read the structures, which are as long as they expect.
    unsafe {
        let pipe = libc::SIGPIPE as usize;
        call(libc::SYS_rt_sigaction, [pipe, default.as_ptr() as usize, 0, size_of_val(&none), 0, 0]);
        let set = libc::SIG_SETMASK as usize;
        call(libc::SYS_rt_sigprocmask, [set, &raw const none as usize, 0, size_of_val(&none), 0, 0]);
        call(libc::SYS_umask, [0o022, 0, 0, 0, 0, 0]);
    }
}

/// In the new process: takes on the identity and executes the program, by system calls. Returns only when something fails.
pub(crate) fn execute(child: &Child) -> (Step, i32) {
    let errno = |result: isize| i32::try_from(-result).unwrap_or(libc::EINVAL);
    let (groups, count) = (child.groups.as_ptr() as usize, child.groups.len());
    let (uid, gid) = (child.uid as usize, child.gid as usize);
    // SAFETY: all calls take the strings and lists of `child`, which are valid and end as their calls expect. The identity
    // is set by plain system calls, for this process alone.
    unsafe {
        let is_root = call(libc::SYS_geteuid, [0; 6]) == 0;
        let mut set = if is_root { call(libc::SYS_setgroups, [count, groups, 0, 0, 0, 0]) } else { 0 };
        if set == 0 {
            set = call(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0]);
        }
        if set == 0 {
            set = call(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0]);
        }
        if set < 0 {
            return (Step::Identity, errno(set));
        }
        let entered = call(libc::SYS_chdir, [child.cwd.as_ptr() as usize, 0, 0, 0, 0, 0]);
        if entered < 0 {
            return (Step::Directory, errno(entered));
        }
        let (argv, envp) = (child.argv.as_ptr() as usize, child.envp.as_ptr() as usize);
        let mut failure = libc::ENOENT;
        for program in &child.programs {
            match errno(call(libc::SYS_execve, [program.as_ptr() as usize, argv, envp, 0, 0, 0])) {
                libc::ENOENT | libc::ENOTDIR => {}
                // The search goes on, and this is what is told when it finds nothing better (execvp(3)).
                libc::EACCES => failure = libc::EACCES,
                other => return (Step::Execute, other),
            }
        }
        (Step::Execute, failure)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    impl Child {
        /// A program with its words, run as who runs this.
        pub(crate) fn of(program: &CString, words: &[&std::ffi::CStr], has_input: bool) -> Self {
            // SAFETY: the calls take nothing.
            let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
            Self {
                stdio: [-1; 3],
                has_input,
                tty: false,
                place: Place::Plain,
                uid,
                gid,
                groups: vec![gid],
                cwd: c"/".into(),
                programs: vec![program.clone()],
                argv: words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect(),
                envp: vec![ptr::null()],
                failed: None,
            }
        }
    }

    /// Starts a shell's words, or a program's alone, and gives its exit code.
    fn run(args: &[&str]) -> Result<i32, Failure> {
        let args = args.iter().map(|arg| Chunk::from(arg.as_bytes().to_vec())).collect();
        let nothing = OwnedFd::from(File::open("/dev/null").unwrap());
        // SAFETY: the calls take nothing.
        let user = unsafe { format!("{}:{}", libc::getuid(), libc::getgid()) };
        let (env, cwd) = (Vec::new(), Chunk::default());
        let exec = Exec { args, env, cwd, user, tty: None, stdin: false, timeout_ms: 0 };
        let (pid, _) = spawn(&exec, place(&exec)?, &Origin::New([&nothing; 3]))?;
        let mut status = 0;
        // SAFETY: the call writes to `status`.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        Ok(libc::WEXITSTATUS(status))
    }

    #[test]
    fn a_process_runs_its_program_or_says_why_not() {
        for code in [0, 7] {
            assert_eq!(run(&["/bin/sh", "-c", &format!("exit {code}")]).unwrap(), code);
        }
        assert_eq!(run(&["/bin/sh", "-c", "[ $(pwd) = / ]"]).unwrap(), 0);
        assert_eq!(run(&["/nowhere"]).unwrap_err().kind, ExecError::NotFound);
        assert_eq!(run(&["/etc/passwd"]).unwrap_err().kind, ExecError::NotExecutable);
    }
}
