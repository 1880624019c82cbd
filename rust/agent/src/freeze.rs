//! Stops and lets go every process of the user's, by the control group that each is born in (kernel
//! Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze"), so that nothing of the user's runs between a snapshot
//! and the moment at which a clone of it has an identity of its own. Where there is none, none is made meanwhile, and no
//! clone has any to let go.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::{shares, sys};

/// The control group of all that the host starts.
const GROUP: &str = "/sys/fs/cgroup/supermachine";
/// How long processes may take to stop: those that wait for a disk cannot before it has answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long until those are interrupted again who began to wait for a lock in the meantime.
const AGAIN: Duration = Duration::from_millis(20);

/// The group's directory, its `cgroup.freeze` and its `cgroup.procs`.
static FILES: OnceLock<[File; 3]> = OnceLock::new();
static FROZEN: AtomicBool = AtomicBool::new(false);
/// How often this guest has become another one.
static LIVES: AtomicU64 = AtomicU64::new(0);

/// Of what this agent does in several steps, between which no snapshot is to fall. It is locked for those that are short.
pub(crate) struct Steps {
    /// Whether it has to wait.
    held: bool,
    /// Processes that are being started.
    starting: u32,
}

static STEPS: Mutex<Steps> = Mutex::new(Steps { held: false, starting: 0 });
static LET_GO: Condvar = Condvar::new();
static STARTED: Condvar = Condvar::new();
/// How long processes may take to start before they are stopped at it.
const START: Duration = Duration::from_millis(100);
/// Whether the group was stopped, since there were processes in it.
static STOPPED: AtomicBool = AtomicBool::new(false);

fn steps() -> MutexGuard<'static, Steps> {
    sys::lock(&STEPS)
}

/// Waits until the guest goes on; then it does, and no snapshot is taken, for as long as this is held. `None` when it has become
/// another one than in `life`.
pub(crate) fn turn(life: u64) -> Option<MutexGuard<'static, Steps>> {
    let turn = LET_GO.wait_while(steps(), |steps| steps.held).unwrap_or_else(PoisonError::into_inner);
    (self::life() == life).then_some(turn)
}

/// A process that is being started.
pub(crate) struct Starting(());

/// Waits until the guest goes on, to start a process; `None` when it has become another one meanwhile.
pub(crate) fn start() -> Option<Starting> {
    turn(life()).map(|mut turn| {
        turn.starting += 1;
        Starting(())
    })
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut steps = steps();
        steps.starting -= 1;
        if steps.held && steps.starting == 0 {
            STARTED.notify_all();
        }
    }
}

/// Makes the group.
pub(crate) fn prepare() -> io::Result<()> {
    match fs::create_dir(GROUP) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let freeze = File::options().write(true).open(format!("{GROUP}/cgroup.freeze"))?;
    let _ = FILES.set([File::open(GROUP)?, freeze, File::open(format!("{GROUP}/cgroup.procs"))?]);
    Ok(())
}

/// A control group below it for who divides its processes further; the file that a process writes "0" to.
pub(crate) fn own_group(name: &str) -> io::Result<File> {
    let path = format!("{GROUP}/{name}");
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::options().write(true).open(path + "/cgroup.procs"),
    }
}

/// The directory of the group that a new process is born in.
pub(crate) fn group() -> Option<RawFd> {
    FILES.get().map(|[group, ..]| group.as_raw_fd())
}

/// Which life of this guest's this is. A connection of an earlier one has lost its peer to a snapshot.
pub(crate) fn life() -> u64 {
    LIVES.load(Ordering::SeqCst)
}

/// Whether a connection that breaks now, and was made in `life`, lost its peer because the guest was restored.
pub(crate) fn has_moved(life: u64) -> bool {
    FROZEN.load(Ordering::SeqCst) || self::life() != life
}

/// Stops every process and waits until all have. One that `waits` to become a program is none of the user's yet.
pub(crate) fn freeze(waits: fn(i32) -> bool) -> io::Result<()> {
    FROZEN.store(true, Ordering::SeqCst);
    let mut steps = steps();
    steps.held = true;
    let waited = STARTED.wait_timeout_while(steps, START, |steps| steps.starting > 0);
    let some = waited.unwrap_or_else(PoisonError::into_inner).0.starting > 0 || !is_empty(waits);
    STOPPED.store(some, Ordering::SeqCst);
    let frozen = if some { set("1").and_then(|()| wait("frozen 1")) } else { Ok(()) };
    shares::flush();
    if frozen.is_err() {
        let _ = thaw();
    }
    frozen
}

/// Lets every process go on.
pub(crate) fn thaw() -> io::Result<()> {
    if STOPPED.load(Ordering::SeqCst) {
        set("0")?;
    }
    FROZEN.store(false, Ordering::SeqCst);
    steps().held = false;
    LET_GO.notify_all();
    Ok(())
}

/// Lets every process go on in a guest that is another one now.
pub(crate) fn thaw_renewed() -> io::Result<()> {
    LIVES.fetch_add(1, Ordering::SeqCst);
    thaw()
}

/// Whether nobody is in the group, nor in one below it, but who waits to become a program. Nobody comes: a process is
/// born where its parent is.
fn is_empty(waits: fn(i32) -> bool) -> bool {
    let Some([group, _, processes]) = FILES.get() else { return false };
    // The kernel's directories have two links and one for each directory in them (kernfs_refresh_inode in fs/kernfs/inode.c).
    if !group.metadata().is_ok_and(|group| group.nlink() == 2) {
        return false;
    }
    // More than there is room for are more than one.
    let mut ids = [0; 32];
    let listed = processes.read_at(&mut ids, 0).ok().filter(|n| *n < ids.len());
    let listed = listed.and_then(|n| std::str::from_utf8(&ids[..n]).ok());
    listed.is_some_and(|ids| ids.lines().all(|id| id.parse().is_ok_and(waits)))
}

fn set(value: &str) -> io::Result<()> {
    let [_, freeze, _] = FILES.get().ok_or(io::ErrorKind::NotFound)?;
    freeze.write_all_at(value.as_bytes(), 0)
}

/// Waits until the group's events say so; the kernel tells of changes by POLLPRI.
fn wait(line: &str) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut events = File::open(format!("{GROUP}/cgroup.events"))?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|found| found == line) {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Who waits for a lock stands still when the wait is interrupted, and waits anew when it goes on.
        shares::interrupt();
        let mut fds = [libc::pollfd { fd: events.as_raw_fd(), events: libc::POLLPRI, revents: 0 }];
        sys::poll(&mut fds, Some(left.min(AGAIN)))?;
    }
}
