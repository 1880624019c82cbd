//! Stops and lets go every process of the user's, by the control group that each is born in (kernel
//! Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze"), so that nothing of the user's runs between a snapshot
//! and the moment at which a clone of it has an identity of its own.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// The control group of all that the host starts.
const GROUP: &str = "/sys/fs/cgroup/supermachine";
/// How long processes may take to stop: those that wait for a disk cannot before it has answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// `cgroup.procs` of the group; what writes "0" to it is in the group from then on.
static MEMBERS: OnceLock<File> = OnceLock::new();
static FROZEN: AtomicBool = AtomicBool::new(false);
/// How often this guest has become another one.
static LIVES: AtomicU64 = AtomicU64::new(0);

/// Makes the group.
pub fn prepare() -> io::Result<()> {
    match fs::create_dir(GROUP) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let members = File::options().write(true).open(format!("{GROUP}/cgroup.procs"))?;
    let _ = MEMBERS.set(members);
    Ok(())
}

/// A control group below it for who divides its processes further; the file that a process writes "0" to.
pub fn own_group(name: &str) -> io::Result<File> {
    let path = format!("{GROUP}/{name}");
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::options().write(true).open(path + "/cgroup.procs"),
    }
}

/// The file that a new process writes "0" to.
pub fn members() -> Option<RawFd> {
    MEMBERS.get().map(AsRawFd::as_raw_fd)
}

/// Which life of this guest's this is. A connection of an earlier one has lost its peer to a snapshot.
pub fn life() -> u64 {
    LIVES.load(Ordering::SeqCst)
}

/// Whether a connection that breaks now, and was made in `life`, lost its peer because the guest was restored.
pub fn has_moved(life: u64) -> bool {
    FROZEN.load(Ordering::SeqCst) || self::life() != life
}

/// Stops every process and waits until all have.
pub fn freeze() -> io::Result<()> {
    FROZEN.store(true, Ordering::SeqCst);
    let frozen = set("1").and_then(|()| wait("frozen 1"));
    if frozen.is_err() {
        let _ = thaw();
    }
    frozen
}

/// Lets every process go on.
pub fn thaw() -> io::Result<()> {
    set("0")?;
    FROZEN.store(false, Ordering::SeqCst);
    Ok(())
}

/// Lets every process go on in a guest that is another one now.
pub fn thaw_renewed() -> io::Result<()> {
    LIVES.fetch_add(1, Ordering::SeqCst);
    thaw()
}

fn set(value: &str) -> io::Result<()> {
    fs::write(format!("{GROUP}/cgroup.freeze"), value)
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
        let mut fds = [libc::pollfd { fd: events.as_raw_fd(), events: libc::POLLPRI, revents: 0 }];
        sys::poll(&mut fds, Some(left))?;
    }
}
