//! Locks of the guest's processes: they hold against other guests and the host as well.
//!
//! Each owner of locks in the guest has a descriptor of its own for each file, whose open file description has the
//! locks on the host; who closes the one gives up the others. flock(2) is of the guest's open file, which is one here
//! too. A request that must wait is not answered ([`crate::Served::Later`]): it comes again, and nothing waits here.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use crate::abi::LK_FLOCK;
use crate::ofd::{self, Range};
use crate::users::{Place, Places};
use crate::wire::Args;
use crate::{Header, Session};

/// Requests that wait at most; a device has no room for more.
const MAX_WAITING: usize = 512;
/// Ranges of one owner in one file at most.
const MAX_RANGES: usize = 4096;

/// What an owner has locked of a file.
struct Held {
    file: OwnedFd,
    /// The guest's open file by which it did so last: when that is closed for good, the locks are gone.
    handle: u64,
    pid: u32,
    ranges: Vec<Range>,
    _place: Place,
}

/// A request that waits.
struct Waiting {
    node: u64,
    owner: u64,
    /// `None` for flock(2).
    range: Option<Range>,
    interrupted: bool,
    _place: Place,
}

/// All locks of a session, by file and owner, and who waits, by request.
pub(crate) struct Locks {
    held: HashMap<(u64, u64), Held>,
    waiting: HashMap<u64, Waiting>,
    /// For those that wait.
    places: Places,
    /// Whether a lock was given up, or a wait interrupted, since somebody asked.
    news: bool,
}

/// A lock that is asked for.
struct Wanted {
    handle: u64,
    owner: u64,
    range: Range,
    pid: u32,
    flags: u32,
}

impl Wanted {
    /// `fuse_lk_in`.
    fn read(args: &mut Args<'_>) -> Result<Self, Errno> {
        let (handle, owner, start, end) = (args.u64()?, args.u64()?, args.u64()?, args.u64()?);
        let (kind, pid, flags) = (args.u32()?.cast_signed(), args.u32()?, args.u32()?);
        if !matches!(kind, libc::F_RDLCK | libc::F_WRLCK | libc::F_UNLCK) {
            return Err(Errno::INVAL);
        }
        Ok(Self { handle, owner, range: Range { start, end, kind }, pid, flags })
    }
}

fn overlap(one: &Range, other: &Range) -> bool {
    one.start <= other.end && other.start <= one.end
}

impl Locks {
    pub(crate) fn new() -> Self {
        let (held, waiting) = (HashMap::new(), HashMap::new());
        Self { held, waiting, places: Places::new(MAX_WAITING), news: false }
    }

    /// Who has locked what is in the way.
    fn in_the_way(&self, node: u64, owner: u64, range: &Range) -> impl Iterator<Item = (u64, &Held)> {
        let held = self.held.iter().filter(move |((of, by), _)| *of == node && *by != owner);
        let excludes = |found: &Range| range.kind == libc::F_WRLCK || found.kind == libc::F_WRLCK;
        held.filter(move |(_, held)| held.ranges.iter().any(|found| overlap(found, range) && excludes(found)))
            .map(|((_, by), held)| (*by, held))
    }

    /// Whether who would wait for this is waited for, by way of others of this guest.
    fn deadlocks(&self, node: u64, owner: u64, range: &Range) -> bool {
        let mut next: Vec<u64> = self.in_the_way(node, owner, range).map(|(by, _)| by).collect();
        let mut seen = Vec::new();
        while let Some(by) = next.pop() {
            if by == owner {
                return true;
            }
            if seen.contains(&by) {
                continue;
            }
            seen.push(by);
            for waiting in self.waiting.values().filter(|waiting| waiting.owner == by) {
                if let Some(range) = &waiting.range {
                    next.extend(self.in_the_way(waiting.node, by, range).map(|(by, _)| by));
                }
            }
        }
        false
    }

    /// Has all that wait be told that they are interrupted.
    pub(crate) fn interrupt(&mut self) {
        self.waiting.values_mut().for_each(|waiting| waiting.interrupted = true);
        self.news = !self.waiting.is_empty();
    }

    /// An open file is closed by one of the processes that have it.
    fn flushed(&mut self, node: u64, owner: u64) {
        self.news |= self.held.remove(&(node, owner)).is_some();
    }

    /// An open file is closed for good.
    pub(crate) fn released(&mut self, handle: u64) {
        if !self.held.is_empty() {
            self.held.retain(|_, held| held.handle != handle);
        }
        // flock(2) may have been.
        self.news |= !self.waiting.is_empty();
    }
}

impl Held {
    /// Notes what is locked now.
    fn note(&mut self, range: Range) {
        let mut after = Vec::with_capacity(self.ranges.len() + 2);
        for found in self.ranges.drain(..) {
            if !overlap(&found, &range) {
                after.push(found);
                continue;
            }
            if found.start < range.start {
                after.push(Range { end: range.start - 1, ..found });
            }
            if found.end > range.end {
                after.push(Range { start: range.end + 1, ..found });
            }
        }
        if range.kind != libc::F_UNLCK {
            after.push(range);
        }
        self.ranges = after;
    }
}

impl Session {
    /// Whether a request that waits may succeed now, by what has been served since this was last asked.
    pub fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.locks.news)
    }

    /// Whether requests wait.
    pub fn has_waiting(&self) -> bool {
        !self.locks.waiting.is_empty()
    }

    /// A process closes an open file, and gives up its locks of that file (fcntl_locking(2)).
    pub(crate) fn flush(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, _, _, owner) = (args.u64()?, args.u32()?, args.u32()?, args.u64()?);
        self.handles.get(handle, node)?;
        self.locks.flushed(node, owner);
        Ok(())
    }

    pub(crate) fn getlk(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let wanted = Wanted::read(args)?;
        let found = match self.locks.held.get(&(node, wanted.owner)) {
            Some(held) => ofd::conflict(held.file.as_fd(), wanted.range),
            None => ofd::conflict(self.lockable(node, wanted.handle)?.as_fd(), wanted.range),
        }?;
        let range = found.unwrap_or(Range { kind: libc::F_UNLCK, ..wanted.range });
        // A process of another guest's or of the host's has no number here.
        let mut by = self.locks.in_the_way(node, wanted.owner, &wanted.range);
        let pid = found.and_then(|_| by.next()).map_or(0, |(_, held)| held.pid);
        drop(by);
        self.out.u64(range.start).u64(range.end).u32(range.kind.cast_unsigned()).u32(pid);
        Ok(())
    }

    /// Locks or unlocks; whether that is done, or who asks is to wait.
    pub(crate) fn setlk(&mut self, header: &Header, args: &mut Args<'_>, waits: bool) -> Result<bool, Errno> {
        let &Header { unique, node, uid, .. } = header;
        let wanted = Wanted::read(args)?;
        let before = self.locks.waiting.remove(&unique);
        let whole = wanted.flags & LK_FLOCK != 0;
        let done = if whole { self.flock(node, &wanted) } else { self.lock_range(node, uid, &wanted) };
        if done != Err(Errno::AGAIN) || !waits {
            return done.map(|()| true);
        }
        if before.is_some_and(|before| before.interrupted) {
            return Err(Errno::INTR);
        }
        if !whole && self.locks.deadlocks(node, wanted.owner, &wanted.range) {
            return Err(Errno::DEADLK);
        }
        let place = self.locks.places.take(uid).ok_or(Errno::NOLCK)?;
        let range = (!whole).then_some(wanted.range);
        let waiting = Waiting { node, owner: wanted.owner, range, interrupted: false, _place: place };
        self.locks.waiting.insert(unique, waiting);
        Ok(false)
    }

    fn flock(&mut self, node: u64, wanted: &Wanted) -> Result<(), Errno> {
        let how = match wanted.range.kind {
            libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
            libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
            _ => FlockOperation::NonBlockingUnlock,
        };
        rustix::fs::flock(&self.handles.get(wanted.handle, node)?.file, how)?;
        self.locks.news |= how == FlockOperation::NonBlockingUnlock;
        Ok(())
    }

    fn lock_range(&mut self, node: u64, user: u32, wanted: &Wanted) -> Result<(), Errno> {
        let unlocks = wanted.range.kind == libc::F_UNLCK;
        let key = (node, wanted.owner);
        // What is open may be closed and its number be another's.
        self.handles.get(wanted.handle, node)?;
        if !self.locks.held.contains_key(&key) {
            if unlocks {
                return Ok(());
            }
            let place = self.handles.place(user).map_err(|_| Errno::NOLCK)?;
            let file = self.lockable(node, wanted.handle)?;
            ofd::set(file.as_fd(), wanted.range)?;
            let ranges = vec![wanted.range];
            let held = Held { file, handle: wanted.handle, pid: wanted.pid, ranges, _place: place };
            self.locks.held.insert(key, held);
            return Ok(());
        }
        let held = self.locks.held.get_mut(&key).ok_or(Errno::STALE)?;
        if held.ranges.len() >= MAX_RANGES && !unlocks {
            return Err(Errno::NOLCK);
        }
        ofd::set(held.file.as_fd(), wanted.range)?;
        held.note(wanted.range);
        held.handle = wanted.handle;
        // A lock for reading in place of one for writing lets others in as well.
        self.locks.news |= !self.locks.waiting.is_empty();
        if self.locks.held.get(&key).is_some_and(|held| held.ranges.is_empty()) {
            self.locks.held.remove(&key);
        }
        Ok(())
    }

    /// A descriptor of a file, with a description of its own.
    fn lockable(&self, node: u64, handle: u64) -> Result<OwnedFd, Errno> {
        let file = &self.handles.peek(handle, node)?.file;
        // A lock for writing needs a descriptor for that, and one for reading the other.
        let writes = self.nodes.share(node)?.writable().is_ok();
        let both = writes.then(|| self.descriptors()?.reopen(file, OFlags::RDWR));
        match both {
            Some(Ok(file)) => Ok(file),
            _ => {
                // As the guest has it open.
                let access = rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE;
                self.descriptors()?.reopen(file, access)
            }
        }
    }
}
