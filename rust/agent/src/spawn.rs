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
/// The child runs on this while its parent waits for it.
const STACK: usize = 64 * 1024;

/// Why a process was not started.
#[derive(Debug)]
pub struct Failure {
    pub kind: ExecError,
    pub message: String,
}

impl Failure {
    pub fn new(kind: ExecError, message: impl Into<String>) -> Self {
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
    /// Where it writes "0" to be in the control group of all that the host starts.
    group: i32,
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
    Group,
    Place,
    Stdio,
    Identity,
    Directory,
    Execute,
}

/// Starts what `exec` says with these descriptors as stdin, stdout and stderr. A session and a process group of its
/// own; its terminal is stdin when `exec.tty` is set.
pub fn spawn(exec: &Exec, stdio: [&OwnedFd; 3]) -> Result<(i32, Arc<Exit>), Failure> {
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
    if let Ok(text) = std::str::from_utf8(&cwd) {
        // As docker does for WORKDIR; what stands in the way shows when the child enters the directory.
        let _ = std::fs::create_dir_all(text);
    }
    let mut child = Child {
        stdio: stdio.map(AsRawFd::as_raw_fd),
        group: freeze::members().unwrap_or(-1),
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
    let mut stack = vec![0_u128; STACK / 16];
    let top = stack.as_mut_ptr_range().end;
    child.place.prepare_thread()?;
    let (pid, exit) = reaper::register(|| {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD | child.place.clone_flags();
        // SAFETY: CLONE_VFORK suspends this thread until the child has executed the program or exited, so `child`,
        // its strings and the stack outlive the child's use of them, and nothing is used by both at once.
        sys::check(unsafe { libc::clone(child_main, top.cast(), flags, (&raw mut child).cast()) })
    })?;
    match child.failed {
        None => {
            child.place.started(pid, &exit)?;
            Ok((pid, exit))
        }
        Some((step, errno)) => Err(explain(step, errno, exec)),
    }
}

fn candidate(directory: &[u8], name: &[u8]) -> Vec<u8> {
    // An empty part of PATH is the current directory.
    let directory = if directory.is_empty() { b"." } else { directory };
    [directory, b"/", name].concat()
}

/// The environment with what docker adds to it.
fn environment(exec: &Exec, home: &str, place: &Place) -> Vec<Vec<u8>> {
    let mut env: Vec<Vec<u8>> = exec.env.iter().map(|entry| entry.0.clone()).collect();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut defaults = vec![("PATH", PATH), ("HOSTNAME", hostname.trim_end()), ("HOME", home)];
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
extern "C" fn child_main(argument: *mut libc::c_void) -> i32 {
    // SAFETY: the parent gave us its `Child` and waits, so this is the only reference.
    let child = unsafe { &mut *argument.cast::<Child>() };
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
        if child.group >= 0 && libc::write(child.group, b"0".as_ptr().cast(), 1) < 0 {
            return (Step::Group, errno());
        }
        let placed = child.place.take();
        if placed != 0 {
            return (Step::Place, placed);
        }
        libc::setsid();
        for (number, fd) in child.stdio.iter().enumerate() {
            if libc::dup2(*fd, number as i32) < 0 {
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
