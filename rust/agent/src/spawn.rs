//! Starts a process: everything is prepared first, so that the child makes system calls and nothing else.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use supermachine_proto::agent::{Exec, ExecError};

use crate::init::{self, Place};
use crate::reaper::{self, Exit};
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
struct Child {
    stdio: [i32; 3],
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
    failed: Option<(Step, i32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Place,
    Stdio,
    Identity,
    Directory,
    Execute,
}

/// Starts what `exec` says with these descriptors as stdin, stdout and stderr. A session and a process group of its
/// own; its terminal is stdin when `exec.tty` is set.
pub(crate) fn spawn(exec: &Exec, stdio: [&OwnedFd; 3]) -> Result<(i32, Arc<Exit>), Failure> {
    let name = exec.args.first().filter(|name| !name.0.is_empty());
    let name = &name.ok_or_else(|| Failure::new(ExecError::Invalid, "there is no program to run"))?.0;
    let user = user::resolve(&exec.user).map_err(|message| Failure::new(ExecError::UnknownUser, message))?;
    let place = Place::of(name)?;
    let env = environment(exec, &user.home, &place);
    let path = env.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or_default().to_vec();

    let strings =
        |list: &[Vec<u8>]| list.iter().map(|s| sys::c_string(s.as_slice())).collect::<io::Result<Vec<_>>>();
    let args: Vec<Vec<u8>> = exec.args.iter().map(|arg| arg.0.clone()).collect();
    let (args, env) = (strings(&args)?, strings(&env)?);
    let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
    let programs = match name.contains(&b'/') {
        true => vec![name.clone()],
        false => path.split(|byte| *byte == b':').map(|part| candidate(part, name)).collect(),
    };
    let cwd = if exec.cwd.0.is_empty() { b"/".to_vec() } else { exec.cwd.0.clone() };
    if cwd != b"/"
        && let Ok(text) = std::str::from_utf8(&cwd)
    {
        // As docker does for WORKDIR; what stands in the way shows when the child enters the directory.
        let _ = std::fs::create_dir_all(text);
    }
    let mut child = Child {
        stdio: stdio.map(AsRawFd::as_raw_fd),
        tty: exec.tty.is_some(),
        place,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        cwd: sys::c_string(cwd)?,
        programs: strings(&programs)?,
        argv: pointers(&args),
        envp: pointers(&env),
        failed: None,
    };
    child.place.prepare_thread()?;
    let (pid, exit) = reaper::register(|| make(&mut child))?;
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
    let group = freeze::group();
    // SAFETY: all zeros is a valid clone_args: no stack of the child's own, no places to write to.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | child.place.clone_flags();
    arguments.flags = u64::from(flags.cast_unsigned()) | if group.is_some() { CLONE_INTO_CGROUP } else { 0 };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = group.unwrap_or_default().cast_unsigned().into();
    let (size, child) = (size_of_val(&arguments), &raw mut *child);
    let result: isize;
    // SAFETY: the call reads `arguments`. In this thread all it changes is the register of its result, and memory. The
    // child goes on at the same place with a copy of all registers, and calls `child_main`, which never returns: it
    // uses the stack below what is in use, which the thread, suspended by CLONE_VFORK until the child has executed
    // the program or ended, does not look at afterwards. So `child` and its strings outlive the child's use of them,
    // and nothing is used by both at once.
    unsafe {
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x0, {argument}",
            "blr {main}",
            "brk 1",
            "2:",
            argument = in(reg) child,
            main = in(reg) child_main as extern "C" fn(*mut Child) -> !,
            inlateout("x0") &raw const arguments => result,
            in("x1") size,
            in("x8") libc::SYS_clone3,
        );
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, {argument}",
            "call {main}",
            "ud2",
            "2:",
            argument = in(reg) child,
            main = in(reg) child_main as extern "C" fn(*mut Child) -> !,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const arguments,
            in("rsi") size,
            out("rcx") _,
            out("r11") _,
        );
    }
    let result = i32::try_from(result).expect("a process id, or an error below 4096");
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

fn candidate(directory: &[u8], name: &[u8]) -> Vec<u8> {
    // An empty part of PATH is the current directory.
    let directory = if directory.is_empty() { b"." } else { directory };
    [directory, b"/", name].concat()
}

/// The environment with what docker adds to it.
fn environment(exec: &Exec, home: &str, place: &Place) -> Vec<Vec<u8>> {
    let mut env: Vec<Vec<u8>> = exec.env.iter().map(|entry| entry.0.clone()).collect();
    let hostname = sys::hostname();
    let mut defaults = vec![("PATH", PATH), ("HOSTNAME", &*hostname), ("HOME", home)];
    if exec.tty.is_some() {
        defaults.push(("TERM", "xterm"));
    }
    if let Place::First(_) = place {
        defaults.push(init::ENVIRONMENT);
    }
    for (name, value) in defaults {
        let prefix = format!("{name}=");
        if !env.iter().any(|entry| entry.starts_with(prefix.as_bytes())) {
            env.push((prefix + value).into_bytes());
        }
    }
    env
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
extern "C" fn child_main(child: *mut Child) -> ! {
    // SAFETY: the parent gave us its `Child` and waits, so this is the only reference.
    let child = unsafe { &mut *child };
    let failed = become_program(child);
    child.failed = Some(failed);
    // SAFETY: ends this process at once, without running what its parent registered.
    unsafe { libc::_exit(127) }
}

/// Returns only when something fails.
fn become_program(child: &Child) -> (Step, i32) {
    // SAFETY: `__errno_location` is the calling thread's own; the parent's thread, whose it is, waits.
    let errno = || unsafe { *libc::__errno_location() };
    // SAFETY: all calls take the descriptors, strings and lists of `child`, which are valid and end as their calls
    // expect. The identity is set by plain system calls, for this process alone.
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
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::umask(0o022);
        let (groups, count) = (child.groups.as_ptr(), child.groups.len());
        let (uid, gid) = (child.uid, child.gid);
        let is_root = libc::syscall(libc::SYS_geteuid) == 0;
        if is_root && libc::syscall(libc::SYS_setgroups, count, groups) < 0
            || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
            || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
        {
            return (Step::Identity, errno());
        }
        if libc::chdir(child.cwd.as_ptr()) < 0 {
            return (Step::Directory, errno());
        }
        let mut failure = libc::ENOENT;
        for program in &child.programs {
            libc::execve(program.as_ptr(), child.argv.as_ptr(), child.envp.as_ptr());
            match errno() {
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

    use supermachine_proto::agent::Chunk;

    use super::*;

    /// Starts a shell's words, or a program's alone, and gives its exit code.
    fn run(args: &[&str]) -> Result<i32, Failure> {
        let args = args.iter().map(|arg| Chunk::from(arg.as_bytes().to_vec())).collect();
        let nothing = OwnedFd::from(File::open("/dev/null").unwrap());
        // SAFETY: the calls take nothing.
        let user = unsafe { format!("{}:{}", libc::getuid(), libc::getgid()) };
        let (env, cwd) = (Vec::new(), Chunk::default());
        let exec = Exec { args, env, cwd, user, tty: None, stdin: false, timeout_ms: 0 };
        let (pid, _) = spawn(&exec, [&nothing; 3])?;
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
