//! What changes in a directory of the host and below it (inotify(7)), by path.
//!
//! Whoever changes it may be hostile: names are bytes, no link is followed, each directory is opened beneath the top
//! before it is watched, and one that has left is watched no more.

#![cfg(target_os = "linux")]

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::inotify::{self, ReadFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;
use supermachine_proto::agent::{Change, ChangeKind, Chunk};

/// Directories of one tree at most; the system has a limit of its own for each user (fs.inotify.max_user_watches).
pub const MAX_DIRECTORIES: usize = 1 << 16;
/// Bytes of events that are read at once, and of a directory's entries.
const BUFFER: usize = 64 << 10;
/// Of paths: deeper ones cannot be opened either (PATH_MAX).
const MAX_PATH: usize = 4096;
const MAX_DEPTH: usize = MAX_PATH / 2;

const OF_A_DIRECTORY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(OF_A_FILE);
const OF_A_FILE: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::ATTRIB);

/// By how much the clock of file systems, which counts ticks, may be behind.
const TICK: Duration = Duration::from_millis(20);
/// And one that has no fractions of a second.
const COARSE: i64 = 2;

/// What has come.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In the order in which they came about.
    pub changes: Vec<Change>,
    /// Whether the system has dropped some: they came faster than they were read. What can be found of those is among
    /// the changes: what is new, and what has other times; not the names of files that are gone.
    pub lost: bool,
    /// Whether there are directories that are not watched, by the limits.
    pub unwatched: bool,
}

impl Changes {
    fn push(&mut self, kind: ChangeKind, directory: bool, path: Vec<u8>) {
        let change = Change { kind, directory, path: Chunk(path), to: Chunk::default() };
        // A file that is written to piece by piece is told of once.
        if self.changes.last() != Some(&change) {
            self.changes.push(change);
        }
    }
}

/// An event as it came.
struct Event {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<CString>,
}

/// A directory, or a single file, that is watched.
pub struct Tree<D> {
    inotify: D,
    top: D,
    top_watch: i32,
    /// Each with its directory and its name there, but for the top.
    watches: HashMap<i32, Option<(i32, CString)>>,
    directories: HashMap<(i32, CString), i32>,
    /// What was found in directories that are new; the system may say that it was made as well.
    found: HashSet<(i32, CString)>,
    /// What was taken away, and may come by another name.
    leaving: Option<Event>,
    most: usize,
    /// All changes of before have been told.
    told_until: Duration,
}

/// What is wanted of directories that are looked through.
#[derive(Clone, Copy)]
enum Search<'a> {
    /// That they are watched.
    Watch,
    /// They are new, and so is what is in them.
    New,
    /// What has changed since, in those that were watched by these paths.
    Changed { since: Duration, known: &'a HashSet<Vec<u8>> },
}

/// An inotify descriptor for a tree.
pub fn descriptor() -> io::Result<OwnedFd> {
    Ok(inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?)
}

impl<D: AsFd> Tree<D> {
    /// Watches what `top` stands for (O_PATH does), and all directories below it, `most` at most. `StorageFull` where
    /// the system watches no more for this user, `QuotaExceeded` for more than `most`.
    pub fn new(inotify: D, top: D, most: usize) -> io::Result<Self> {
        let path = through(&top);
        let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&top)?.st_mode) == FileType::Directory;
        let flags = if is_directory { OF_A_DIRECTORY } else { OF_A_FILE };
        let top_watch = inotify::add_watch(&inotify, path, flags)?;
        let mut tree = Self {
            inotify,
            top,
            top_watch,
            watches: HashMap::from([(top_watch, None)]),
            directories: HashMap::new(),
            found: HashSet::new(),
            leaving: None,
            most,
            told_until: now(),
        };
        if is_directory {
            tree.look_through(top_watch, Search::Watch, &mut Changes::default())?;
        }
        Ok(tree)
    }

    /// Readable when something has changed.
    pub fn descriptor(&self) -> &D {
        &self.inotify
    }

    /// Whether something may still turn out to be renamed: [`Tree::read`] is to be called soon.
    pub fn is_undecided(&self) -> bool {
        self.leaving.is_some()
    }

    /// What has changed; nothing, when nothing has. Waits for nothing.
    pub fn read(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        let began = now();
        let events = self.events()?;
        if events.is_empty() {
            self.left(&mut changes);
        }
        for event in events {
            self.take(event, &mut changes);
        }
        // All that was made while a directory was looked through has come.
        if rustix::io::ioctl_fionread(&self.inotify)? == 0 {
            self.found.clear();
            self.told_until = began;
        }
        Ok(changes)
    }

    fn events(&self) -> io::Result<Vec<Event>> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Event {
                    watch: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(CStr::to_owned),
                }),
                Err(Errno::AGAIN) => return Ok(events),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if reader.is_buffer_empty() {
                return Ok(events);
            }
        }
    }

    fn take(&mut self, event: Event, changes: &mut Changes) {
        let flags = event.flags;
        if flags.contains(ReadFlags::MOVED_TO)
            && let Some(from) = self.leaving.take_if(|from| from.cookie == event.cookie)
        {
            return self.renamed(from, event, changes);
        }
        self.left(changes);
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.find_lost(changes);
        }
        if flags.contains(ReadFlags::IGNORED) {
            return self.forget(event.watch);
        }
        let directory = flags.contains(ReadFlags::ISDIR);
        let Some(path) = self.path(event.watch, event.name.as_deref()) else { return };
        let Some(name) = event.name.clone() else {
            if event.watch == self.top_watch {
                self.changed(flags, directory, path, changes);
            }
            return;
        };
        if flags.contains(ReadFlags::MOVED_FROM) {
            self.found.remove(&(event.watch, name));
            self.leaving = Some(event);
        } else if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            if !self.found.remove(&(event.watch, name.clone())) {
                changes.push(ChangeKind::Created, directory, path);
            }
            if directory {
                self.enter(event.watch, name, changes);
            }
        } else if flags.contains(ReadFlags::DELETE) {
            self.found.remove(&(event.watch, name));
            changes.push(ChangeKind::Removed, directory, path);
        } else {
            self.changed(flags, directory, path, changes);
        }
    }

    fn changed(&self, flags: ReadFlags, directory: bool, path: Vec<u8>, changes: &mut Changes) {
        for (flag, kind) in [
            (ReadFlags::MODIFY, ChangeKind::Modified),
            (ReadFlags::CLOSE_WRITE, ChangeKind::Written),
            (ReadFlags::ATTRIB, ChangeKind::Attributes),
        ] {
            if flags.contains(flag) {
                changes.push(kind, directory, path.clone());
            }
        }
    }

    /// What was taken away has come by no other name.
    fn left(&mut self, changes: &mut Changes) {
        let Some(Event { watch, flags, name: Some(name), .. }) = self.leaving.take() else { return };
        let directory = flags.contains(ReadFlags::ISDIR);
        if let Some(path) = self.path(watch, Some(&name)) {
            changes.push(ChangeKind::Removed, directory, path);
        }
        if let Some(gone) = self.directories.get(&(watch, name)) {
            self.leave(*gone);
        }
    }

    fn renamed(&mut self, from: Event, to: Event, changes: &mut Changes) {
        let (Some(name), Some(new_name)) = (from.name, to.name) else { return };
        let directory = from.flags.contains(ReadFlags::ISDIR);
        let paths = (self.path(from.watch, Some(&name)), self.path(to.watch, Some(&new_name)));
        if let (Some(path), Some(to)) = paths {
            let (path, to) = (Chunk(path), Chunk(to));
            changes.changes.push(Change { kind: ChangeKind::Renamed, directory, path, to });
        }
        // What it took the place of, if that was one, is empty.
        let moved = self.directories.remove(&(from.watch, name));
        if let Some(watch) = moved {
            self.directories.insert((to.watch, new_name.clone()), watch);
            self.watches.insert(watch, Some((to.watch, new_name)));
        } else if directory {
            self.enter(to.watch, new_name, changes);
        }
    }

    /// Watches a directory that is new, and all in it, which is new as well.
    fn enter(&mut self, parent: i32, name: CString, changes: &mut Changes) {
        match self.add(parent, name) {
            Ok(watch) => {
                if let Err(error) = self.look_through(watch, Search::New, changes) {
                    changes.unwatched |= is_limit(&error);
                }
            }
            Err(error) => changes.unwatched |= is_limit(&error),
        }
    }

    /// What was dropped is looked for, and all directories are watched anew: some may have other names.
    fn find_lost(&mut self, changes: &mut Changes) {
        changes.lost = true;
        self.found.clear();
        let since = self.told_until;
        let mut known = HashSet::new();
        for (watch, _) in self.watches.clone() {
            if watch == self.top_watch {
                continue;
            }
            known.extend(self.path(watch, None));
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
        self.watches.retain(|watch, _| *watch == self.top_watch);
        self.directories.clear();
        if let Ok(stat) = attributes(&self.top, c"", AtFlags::EMPTY_PATH)
            && is_since(&stat.stx_ctime, since)
        {
            let directory = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
            tell_changed(&stat, since, directory, Vec::new(), changes);
            if !directory {
                return;
            }
        }
        let wanted = Search::Changed { since, known: &known };
        if let Err(error) = self.look_through(self.top_watch, wanted, changes) {
            // Those that are not looked at any more are not gone.
            changes.unwatched |= is_limit(&error);
            return;
        }
        for watch in self.watches.keys() {
            if let Some(path) = self.path(*watch, None) {
                known.remove(&path);
            }
        }
        let mut gone: Vec<_> = known.into_iter().collect();
        // What is in one before itself.
        gone.sort_unstable_by(|one, other| other.cmp(one));
        gone.into_iter().for_each(|path| changes.push(ChangeKind::Removed, true, path));
    }

    /// Watches the directories below one.
    fn look_through(&mut self, from: i32, wanted: Search<'_>, changes: &mut Changes) -> io::Result<()> {
        let mut next = vec![(from, wanted)];
        while let Some((watch, wanted)) = next.pop() {
            let Ok(directory) = self.open(watch, None) else { continue };
            let mut buffer = [MaybeUninit::uninit(); 8 << 10];
            let mut entries = RawDir::new(&directory, &mut buffer);
            while let Some(Ok(entry)) = entries.next() {
                let name = entry.file_name().to_owned();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let is_directory = match entry.file_type() {
                    FileType::Unknown => kind_of(&directory, &name) == Some(FileType::Directory),
                    kind => kind == FileType::Directory,
                };
                let known = self.directories.get(&(watch, name.clone())).copied();
                let mut within = wanted;
                match (wanted, self.path(watch, Some(&name))) {
                    (Search::New, Some(path)) if known.is_none() && self.found.len() < MAX_DIRECTORIES => {
                        changes.push(ChangeKind::Created, is_directory, path);
                        self.found.insert((watch, name.clone()));
                    }
                    (Search::Changed { known: before, .. }, Some(path))
                        if is_directory && !before.contains(&path) =>
                    {
                        changes.push(ChangeKind::Created, true, path);
                        within = Search::New;
                    }
                    (Search::Changed { since, .. }, Some(path)) => {
                        if let Ok(stat) = attributes(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                            tell_changed(&stat, since, is_directory, path, changes);
                        }
                    }
                    _ => {}
                }
                if let Some(known) = known {
                    next.push((known, within));
                } else if is_directory {
                    match self.add(watch, name) {
                        Ok(watch) => next.push((watch, within)),
                        Err(error) if is_limit(&error) => return Err(error),
                        // It is gone, or closed to this user, and so to the guest.
                        Err(_) => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Watches a directory.
    fn add(&mut self, parent: i32, name: CString) -> io::Result<i32> {
        if self.watches.len() >= self.most {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let directory = self.open(parent, Some(&name))?;
        // One that is there by two ways is watched by the first.
        let flags = OF_A_DIRECTORY | WatchFlags::ONLYDIR | WatchFlags::MASK_CREATE;
        let watch = inotify::add_watch(&self.inotify, through(&directory), flags)?;
        self.directories.insert((parent, name.clone()), watch);
        self.watches.insert(watch, Some((parent, name)));
        Ok(watch)
    }

    /// Opens a directory that is watched, or one in it.
    fn open(&self, watch: i32, name: Option<&CStr>) -> io::Result<OwnedFd> {
        let mut path = self.path(watch, name).ok_or(io::ErrorKind::NotFound)?;
        if path.is_empty() {
            path.push(b'.');
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.top, path, flags, Mode::empty(), how)?)
    }

    /// The path of a name in a directory that is watched.
    fn path(&self, watch: i32, name: Option<&CStr>) -> Option<Vec<u8>> {
        let mut names: Vec<&[u8]> = name.map(CStr::to_bytes).into_iter().collect();
        let mut at = watch;
        while let Some((parent, name)) = self.watches.get(&at)? {
            names.push(name.to_bytes());
            at = *parent;
            if names.len() > MAX_DEPTH {
                return None;
            }
        }
        names.reverse();
        Some(names.join(&b'/')).filter(|path| path.len() < MAX_PATH)
    }

    /// A directory is outside of the top now, with all that is in it.
    fn leave(&mut self, gone: i32) {
        let is_below = |mut at: i32| {
            for _ in 0..MAX_DEPTH {
                if at == gone {
                    return true;
                }
                match self.watches.get(&at) {
                    Some(Some((parent, _))) => at = *parent,
                    _ => return false,
                }
            }
            true
        };
        let below: Vec<i32> = self.watches.keys().copied().filter(|watch| is_below(*watch)).collect();
        for watch in below {
            let _ = inotify::remove_watch(&self.inotify, watch);
            self.forget(watch);
        }
    }

    fn forget(&mut self, watch: i32) {
        if let Some(Some(place)) = self.watches.remove(&watch)
            && self.directories.get(&place) == Some(&watch)
        {
            self.directories.remove(&place);
        }
    }
}

/// The path by which a descriptor is reached.
fn through(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The time, as file systems may have it.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(TICK)
}

/// Whether this is the time of a change since then.
fn is_since(time: &StatxTimestamp, since: Duration) -> bool {
    let (seconds, nanoseconds) = (since.as_secs().cast_signed(), since.subsec_nanos());
    (time.tv_sec, time.tv_nsec) >= (seconds, nanoseconds)
        || time.tv_nsec == 0 && time.tv_sec + COARSE >= seconds
}

/// What a file's times say of it.
fn tell_changed(stat: &Statx, since: Duration, directory: bool, path: Vec<u8>, changes: &mut Changes) {
    let is_new = stat.stx_mask & StatxFlags::BTIME.bits() != 0 && is_since(&stat.stx_btime, since);
    if is_new && !directory {
        changes.push(ChangeKind::Created, false, path.clone());
    }
    if is_since(&stat.stx_mtime, since)
        && FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile
    {
        changes.push(ChangeKind::Modified, false, path.clone());
        changes.push(ChangeKind::Written, false, path);
    } else if is_since(&stat.stx_ctime, since) && (directory || !is_new) {
        changes.push(ChangeKind::Attributes, directory, path);
    }
}

fn attributes(directory: impl AsFd, name: &CStr, flags: AtFlags) -> io::Result<Statx> {
    Ok(rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?)
}

fn kind_of(directory: &OwnedFd, name: &CStr) -> Option<FileType> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

fn is_limit(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
