//! A process that waits to become a program. It is made before a snapshot is taken and stands still in it, so that a guest
//! that is restored has it for its first command: in its control group, with a session and pipes, and nothing else open.
//! Until it executes it has the agent's memory, as a child of vfork(2) has, but runs beside it: on a stack of its own, and
//! by system calls alone, for libc's `errno` is that of the thread that made it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::reaper::{self, Exit};
use crate::spawn::{self, Child, call};
use crate::{exec, sys};

/// Enough for system calls.
const STACK: usize = 8 << 10;
/// How long a snapshot waits for it to come to where it waits; else it does the rest of its work in every clone.
const PATIENCE: Duration = Duration::from_millis(10);
/// After how long one that was told to go, and has not, is looked after.
static STOPPED: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Where it has /dev/null until it executes.
const NOTHING: i32 = 3;

/// What the agent and the process both look at.
struct Shared {
    /// 1 when it has come to where it waits.
    waits: AtomicU32,
    /// 1 when it is to become a program.
    goes: AtomicU32,
    /// Not 0 as long as the process has this memory; then the kernel makes it so, and wakes who waits.
    here: AtomicI32,
    /// What to become.
    child: AtomicPtr<Child>,
    /// Its stdin, stdout and stderr, and /dev/null.
    files: [i32; 4],
}

/// A process that waits.
pub(crate) struct Spare {
    exit: Arc<Exit>,
    /// The other ends of its stdin, stdout and stderr.
    pub(crate) ours: [OwnedFd; 3],
    process: Process,
}

struct Process {
    pid: i32,
    /// Of the allocator's, and not given back to it as long as the process may use it.
    memory: NonNull<Memory>,
}

// SAFETY: of `memory` the agent looks at what is `Shared` alone, which has atomics and constants.
unsafe impl Send for Process {}

struct Memory {
    shared: Shared,
    stack: [u128; STACK / 16],
}

static SPARE: Mutex<Option<Spare>> = Mutex::new(None);

/// Makes one where none waits. Without one a command takes longer and nothing else.
pub(crate) fn prepare() {
    let mut spare = sys::lock(&SPARE);
    if !spare.as_ref().is_some_and(Spare::is_here) {
        *spare = Spare::new().ok();
    }
}

/// The one that waits, if any.
pub(crate) fn take() -> Option<Spare> {
    sys::lock(&SPARE).take().filter(Spare::is_here)
}

/// Whether the process of this id waits.
pub(crate) fn is(pid: i32) -> bool {
    sys::lock(&SPARE).as_ref().is_some_and(|spare| spare.process.pid == pid && spare.is_here())
}

/// It is not needed yet, if it still waits.
pub(crate) fn give_back(spare: Spare) {
    if spare.is_here() {
        sys::lock(&SPARE).get_or_insert(spare);
    }
}

impl Process {
    fn shared(&self) -> &Shared {
        // SAFETY: the memory is there until this is dropped, and of what is shared nobody has it for himself.
        unsafe { &(*self.memory.as_ptr()).shared }
    }

    /// Whether it waits: it is no program yet, and has not been killed.
    fn is_here(&self) -> bool {
        self.shared().here.load(Ordering::Acquire) != 0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_here() {
            // Its memory is lost, for it may take a while to go.
            sys::kill(self.pid, libc::SIGKILL);
        } else {
            // SAFETY: it was made as a box, and the process, which has other memory or none now, was the only other user.
            drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
        }
    }
}

impl Spare {
    fn new() -> io::Result<Self> {
        let ((input, our_input), (our_output, output), (our_errors, errors)) =
            (sys::pipe()?, sys::pipe()?, sys::pipe()?);
        // As who serves a process has them.
        [&our_input, &our_output, &our_errors].into_iter().try_for_each(sys::set_nonblocking)?;
        let theirs = [&input, &output, &errors, exec::nothing()?];
        let memory = NonNull::from(Box::leak(Box::new(Memory {
            shared: Shared {
                waits: AtomicU32::new(0),
                goes: AtomicU32::new(0),
                here: AtomicI32::new(1),
                child: AtomicPtr::default(),
                files: theirs.map(AsRawFd::as_raw_fd),
            },
            stack: [0; STACK / 16],
        })));
        let made = reaper::register(|| {
            // SAFETY: the stack and what is shared are in `memory`, which stays until the process has other memory, and
            // neither is looked at by the agent but for atomics. The process makes system calls and touches nothing
            // else of the agent's until it is given a `Child`.
            unsafe {
                let (stack, shared) = (&raw mut (*memory.as_ptr()).stack, &raw mut (*memory.as_ptr()).shared);
                let here = (*shared).here.as_ptr();
                spawn::make_beside(stack.cast(), STACK, here, main, shared.cast())
            }
        });
        let (pid, exit) = match made {
            Ok(made) => made,
            Err(error) => {
                // SAFETY: it was made as a box, and there is no process that uses it.
                drop(unsafe { Box::from_raw(memory.as_ptr()) });
                return Err(error);
            }
        };
        let process = Process { pid, memory };
        let spare = Self { exit, ours: [our_input, our_output, our_errors], process };
        let end = Instant::now() + PATIENCE;
        while spare.process.shared().waits.load(Ordering::Acquire) == 0
            && spare.is_here()
            && Instant::now() < end
        {
            std::thread::yield_now();
        }
        Ok(spare)
    }

    fn is_here(&self) -> bool {
        self.process.is_here()
    }

    /// Has the process become what `child` says; returns when it has executed the program, or ended.
    pub(crate) fn become_program(&self, child: &mut Child) -> (i32, Arc<Exit>) {
        let shared = self.process.shared();
        shared.child.store(child, Ordering::Relaxed);
        shared.goes.store(1, Ordering::Release);
        // SAFETY: the word is one that both look at.
        unsafe { call(libc::SYS_futex, [shared.goes.as_ptr() as usize, FUTEX_WAKE, 1, 0, 0, 0]) };
        loop {
            let here = shared.here.load(Ordering::Acquire);
            if here == 0 {
                return (self.process.pid, self.exit.clone());
            }
            // SAFETY: as above, and the time outlives the call. The kernel wakes it as a word that processes share.
            unsafe {
                let (value, soon) =
                    (usize::try_from(here).unwrap_or_default(), (&raw const STOPPED) as usize);
                call(libc::SYS_futex, [shared.here.as_ptr() as usize, FUTEX_WAIT, value, soon, 0, 0])
            };
            if shared.here.load(Ordering::Acquire) != 0 {
                // A root of the guest's may have stopped it while it waited.
                sys::kill(self.process.pid, libc::SIGCONT);
            }
        }
    }
}

const FUTEX_WAIT: usize = 0;
const FUTEX_WAKE: usize = 1;

/// The process's life until it is a program.
extern "C" fn main(shared: *mut libc::c_void) -> ! {
    // SAFETY: it is the `Shared` that `Spare::new` has made, and stays until this process has other memory.
    let shared = unsafe { &*shared.cast::<Shared>() };
    let number = |n: i32| n.cast_unsigned() as usize;
    // SAFETY: the calls take descriptors, and structures and words that outlive them.
    unsafe {
        call(libc::SYS_setsid, [0; 6]);
        for (to, from) in (0..).zip(shared.files) {
            if from != to {
                let flags = if to == NOTHING { libc::O_CLOEXEC } else { 0 };
                call(libc::SYS_dup3, [number(from), number(to), number(flags), 0, 0, 0]);
            }
        }
        call(libc::SYS_close_range, [number(NOTHING) + 1, u32::MAX as usize, 0, 0, 0, 0]);
        spawn::settle();
        shared.waits.store(1, Ordering::Release);
        while shared.goes.load(Ordering::Acquire) == 0 {
            call(libc::SYS_futex, [shared.goes.as_ptr() as usize, FUTEX_WAIT, 0, 0, 0, 0]);
        }
        let child = &mut *shared.child.load(Ordering::Acquire);
        if !child.has_input {
            call(libc::SYS_dup3, [number(NOTHING), 0, 0, 0, 0, 0]);
        }
        let failed = spawn::execute(child);
        child.failed = Some(failed);
        loop {
            call(libc::SYS_exit_group, [127, 0, 0, 0, 0, 0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn one_that_waits_is_there_until_it_is_killed() {
        let spare = Spare::new().unwrap();
        assert_eq!(spare.process.shared().waits.load(Ordering::Acquire), 1);
        assert!(spare.is_here());
        sys::kill(spare.process.pid, libc::SIGKILL);
        let mut status = 0;
        // SAFETY: the call writes to `status`.
        assert_eq!(unsafe { libc::waitpid(spare.process.pid, &mut status, 0) }, spare.process.pid);
        assert!(!spare.is_here());
    }

    #[test]
    fn it_has_its_pipes_and_nothing_else_of_its_makers() {
        let kept = File::open("/dev/null").unwrap();
        let spare = Spare::new().unwrap();
        let listed: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", spare.process.pid))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(listed.len(), 4, "{listed:?}, but not {kept:?}");
        let program = c"/bin/sh".to_owned();
        let words = [c"sh", c"-c", c"read word; echo $word $1; exit 7", c"x", c"one"];
        let mut child = Child::of(&program, &words, true);
        let (pid, _) = spare.become_program(&mut child);
        assert!(child.failed.is_none());
        let [input, output, _] = spare.ours.each_ref().map(|end| File::from(end.try_clone().unwrap()));
        (&input).write_all(b"read\n").unwrap();
        let mut wanted = [libc::pollfd { fd: output.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        sys::poll(&mut wanted, None).unwrap();
        let mut said = [0; 9];
        (&output).read_exact(&mut said).unwrap();
        assert_eq!(&said, b"read one\n");
        let mut status = 0;
        // SAFETY: the call writes to `status`.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!(libc::WEXITSTATUS(status), 7);
    }
}
