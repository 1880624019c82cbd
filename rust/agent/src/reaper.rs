//! Collects every process that ends, those that others left behind included, and tells who waits for one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sys;

/// A process that somebody waits for.
pub(crate) struct Exit {
    /// Readable once the process has ended.
    pub event: OwnedFd,
    status: Mutex<Option<i32>>,
}

impl Exit {
    /// The wait status (wait(2)) once the process has ended.
    pub(crate) fn status(&self) -> Option<i32> {
        *sys::lock(&self.status)
    }
}

/// Those that are waited for, by process id. Held while a process is made, so that none ends unregistered.
static WAITED: Mutex<BTreeMap<i32, Arc<Exit>>> = Mutex::new(BTreeMap::new());
static REAPED: Condvar = Condvar::new();

fn waited() -> MutexGuard<'static, BTreeMap<i32, Arc<Exit>>> {
    sys::lock(&WAITED)
}

/// Starts the reaper. SIGCHLD is blocked in this thread and all that it starts from now on.
pub(crate) fn start() -> io::Result<()> {
    let mut signals = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, which outlives the calls.
    let signals = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGCHLD);
        let signals = signals.assume_init();
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
        signals
    };
    std::thread::Builder::new().name("reaper".into()).stack_size(64 << 10).spawn(move || {
        loop {
            reap();
            // SAFETY: the set is initialised; no information about the signal is asked for.
            unsafe { libc::sigwaitinfo(&signals, std::ptr::null_mut()) };
        }
    })?;
    Ok(())
}

/// Makes a process with `make`, which returns its id, and registers it.
pub(crate) fn register(make: impl FnOnce() -> io::Result<i32>) -> io::Result<(i32, Arc<Exit>)> {
    let exit = Arc::new(Exit { event: sys::event()?, status: Mutex::new(None) });
    let mut waited = waited();
    let pid = make()?;
    waited.insert(pid, exit.clone());
    Ok((pid, exit))
}

fn reap() {
    let mut waited = waited();
    loop {
        let mut status = 0;
        // SAFETY: the call writes to `status` only.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            break;
        }
        if let Some(exit) = waited.remove(&pid) {
            *sys::lock(&exit.status) = Some(status);
            // SAFETY: the eight bytes are those of the array.
            unsafe { libc::write(exit.event.as_raw_fd(), 1_u64.to_ne_bytes().as_ptr().cast(), 8) };
        }
    }
    REAPED.notify_all();
}

/// Ends every process: SIGTERM, and SIGKILL for those that are left after `grace`.
pub(crate) fn end_all(grace: Duration) {
    for (signal, patience) in [(libc::SIGTERM, grace), (libc::SIGKILL, Duration::from_secs(1))] {
        sys::kill(-1, signal);
        let end = Instant::now() + patience;
        let mut guard = waited();
        while has_children() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            guard = REAPED.wait_timeout(guard, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }
}

/// Whether any process is left: all that lose their parent become ours.
fn has_children() -> bool {
    // SAFETY: all zeros is a valid siginfo_t, which the call may write to.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == 0
    }
}
