//! Stops and lets go every process of the user's, by the control group that each is born in (kernel
//! Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze"), so that nothing of the user's runs between a snapshot
//! and the moment at which a clone of it has an identity of its own.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
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

/// The group's directory, and its `cgroup.freeze`.
static FILES: OnceLock<(File, File)> = OnceLock::new();
static FROZEN: AtomicBool = AtomicBool::new(false);
/// How often this guest has become another one.
static LIVES: AtomicU64 = AtomicU64::new(0);

/// Whether what this agent does in several steps has to wait. It is locked meanwhile, so that no snapshot falls in between.
static HELD: Mutex<bool> = Mutex::new(false);
static LET_GO: Condvar = Condvar::new();

fn held() -> MutexGuard<'static, bool> {
    sys::lock(&HELD)
}

/// Waits until the guest goes on; then it does, and no snapshot is taken, for as long as this is held. `None` when it has become
/// another one than in `life`.
pub(crate) fn turn(life: u64) -> Option<MutexGuard<'static, bool>> {
    let turn = LET_GO.wait_while(held(), |held| *held).unwrap_or_else(PoisonError::into_inner);
    (self::life() == life).then_some(turn)
}

/// Makes the group.
pub(crate) fn prepare() -> io::Result<()> {
    match fs::create_dir(GROUP) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let freeze = File::options().write(true).open(format!("{GROUP}/cgroup.freeze"))?;
    let _ = FILES.set((File::open(GROUP)?, freeze));
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
    FILES.get().map(|(group, _)| group.as_raw_fd())
}

/// Which life of this guest's this is. A connection of an earlier one has lost its peer to a snapshot.
pub(crate) fn life() -> u64 {
    LIVES.load(Ordering::SeqCst)
}

/// Whether a connection that breaks now, and was made in `life`, lost its peer because the guest was restored.
pub(crate) fn has_moved(life: u64) -> bool {
    FROZEN.load(Ordering::SeqCst) || self::life() != life
}

/// Stops every process and waits until all have.
pub(crate) fn freeze() -> io::Result<()> {
    FROZEN.store(true, Ordering::SeqCst);
    *held() = true;
    let frozen = set("1").and_then(|()| wait("frozen 1"));
    shares::flush();
    if frozen.is_err() {
        let _ = thaw();
    }
    frozen
}

/// Lets every process go on.
pub(crate) fn thaw() -> io::Result<()> {
    set("0")?;
    FROZEN.store(false, Ordering::SeqCst);
    *held() = false;
    LET_GO.notify_all();
    Ok(())
}

/// Lets every process go on in a guest that is another one now.
pub(crate) fn thaw_renewed() -> io::Result<()> {
    LIVES.fetch_add(1, Ordering::SeqCst);
    thaw()
}

fn set(value: &str) -> io::Result<()> {
    let (_, freeze) = FILES.get().ok_or(io::ErrorKind::NotFound)?;
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
