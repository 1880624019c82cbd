//! What the host changes in shares that are watched, told to the guest's kernel.
//!
//! `supermachine_proto::echo` says how. What a thread that is known asks for is never done, so that an echo which comes
//! too late is not taken for a wish.
//!
//! A change of the guest's own comes back from the host like any other. Its kernel has told of that one, so it is noted
//! here and no echo wanted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, Statx};
use rustix::io::Errno;
use supermachine_proto::echo::{self, ANNOUNCEMENT, Announcement, Step};

use crate::abi::{ROOT_ID, op, opened};
use crate::host;
use crate::nodes::{MAX_SHARES, Stamp};
use crate::wire::Args;
use crate::{Header, Session};

const UNDERSTOOD: Errno = Errno::from_raw_os_error(echo::UNDERSTOOD);
const OWN: Errno = Errno::from_raw_os_error(echo::OWN);
/// Names and files that the guest has changed itself, at most; beyond, its kernel tells of some twice.
const MAX_OWN: usize = 16 << 10;
/// How long it may take until the host's word of such a change comes.
const OWN_HOLDS: Duration = Duration::from_secs(30);

/// A name in a directory.
type Place = (u64, CString);

/// What is announced.
struct Change {
    step: Step,
    directory: bool,
    at: Place,
    /// What it was called, for what is called otherwise.
    from: Option<Place>,
}

/// A thread that echoes.
#[derive(Default)]
struct Thread {
    from: Option<Place>,
    next: Option<Change>,
    /// What it has been told of a file last.
    told: Option<(u64, Statx)>,
}

/// Who echoes, and what needs no echo.
#[derive(Default)]
pub(crate) struct Echoes {
    threads: HashMap<u32, Thread>,
    /// Names that the guest has made (`true`) and taken away, when, and how often.
    names: HashMap<(u64, CString, bool), (Instant, u32)>,
    /// Files as the guest's last change has left them.
    files: HashMap<u64, Stamp>,
    /// Files that the guest has closed after they were open for writing, of which the host is heard once or more.
    closed: HashMap<u64, Instant>,
}

impl Echoes {
    pub(crate) fn is_known(&self, thread: u32) -> bool {
        self.threads.contains_key(&thread)
    }

    /// A thread makes itself known.
    pub(crate) fn begin(&mut self, thread: u32) -> Errno {
        if self.threads.len() >= MAX_SHARES {
            return Errno::BUSY;
        }
        self.threads.insert(thread, Thread::default());
        UNDERSTOOD
    }

    pub(crate) fn end(&mut self, thread: u32) {
        self.threads.remove(&thread);
    }

    fn note(&mut self, directory: u64, name: &CStr, made: bool) {
        if self.names.len() >= MAX_OWN {
            self.names.retain(|_, (noted, _)| noted.elapsed() < OWN_HOLDS);
        }
        if self.names.len() >= MAX_OWN {
            self.names.clear();
        }
        let noted = self.names.entry((directory, name.into(), made)).or_insert((Instant::now(), 0));
        *noted = (Instant::now(), noted.1.saturating_add(1));
    }

    /// Whether the guest has done that, of which the host is heard once.
    fn was_own(&mut self, (directory, name): &Place, made: bool) -> bool {
        let Entry::Occupied(mut noted) = self.names.entry((*directory, name.clone(), made)) else {
            return false;
        };
        let (when, left) = noted.get_mut();
        let holds = when.elapsed() < OWN_HOLDS;
        *left -= 1;
        if *left == 0 || !holds {
            noted.remove();
        }
        holds
    }
}

/// The name in an announcement, which is one component or none.
fn name_of(bytes: &[u8]) -> Result<CString, Errno> {
    if matches!(bytes, b"." | b"..") || bytes.contains(&b'/') || bytes.len() > 255 {
        return Err(Errno::INVAL);
    }
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

impl Session {
    fn watches(&self, node: u64) -> bool {
        self.watched && self.nodes.share(node).is_ok_and(|share| share.watch)
    }

    /// Notes that the guest has made a name.
    pub(crate) fn own_name(&mut self, directory: u64, name: &CStr) {
        if self.watches(directory) {
            self.echoes.note(directory, name, true);
        }
    }

    /// Notes that the guest has changed the file of this name.
    pub(crate) fn own_change_of(&mut self, directory: u64, name: &CStr) {
        if self.watches(directory)
            && let Ok(Some((id, stat))) = self.known_as(&(directory, name.into()))
        {
            self.own_stamp(id, &stat);
        }
    }

    /// Notes that the guest has taken a name away.
    pub(crate) fn own_removal(&mut self, directory: u64, name: &CStr) {
        if self.watches(directory) {
            self.echoes.note(directory, name, false);
        }
    }

    /// Notes that the guest has changed a file.
    pub(crate) fn own_change(&mut self, node: u64, file: impl AsFd) {
        if self.watches(node)
            && let Ok(stat) = host::stat(file)
        {
            self.own_stamp(node, &stat);
        }
    }

    /// Notes that the guest closes a file, which is heard of if it was open for writing.
    pub(crate) fn own_close(&mut self, node: u64, file: impl AsFd) {
        let reads = OFlags::RDONLY | OFlags::PATH;
        if self.watches(node)
            && let Ok(flags) = rustix::fs::fcntl_getfl(file)
            && !reads.contains(flags & (OFlags::RWMODE | OFlags::PATH))
        {
            if self.echoes.closed.len() >= MAX_OWN {
                self.echoes.closed.clear();
            }
            self.echoes.closed.insert(node, Instant::now());
        }
    }

    /// The same as of a change, of a file whose attributes are known.
    pub(crate) fn own_stamp(&mut self, node: u64, stat: &Statx) {
        if self.watches(node) {
            if self.echoes.files.len() >= MAX_OWN {
                self.echoes.files.clear();
            }
            self.echoes.files.insert(node, Stamp::of(stat));
        }
    }

    /// A request of a thread that echoes; `None` for what changes nothing, which is served as any is.
    pub(crate) fn echo(&mut self, header: &Header, mut args: Args<'_>) -> Option<Result<(), Errno>> {
        let (node, thread) = (header.node, header.thread);
        match header.opcode {
            op::LOOKUP if node != ROOT_ID => self.echo_lookup(thread, node, &mut args),
            op::GETATTR if node != ROOT_ID => {
                let stat = match self.nodes.stat(node) {
                    Ok(stat) => stat,
                    Err(error) => return Some(Err(error)),
                };
                self.echoes.threads.get_mut(&thread)?.told = Some((node, stat));
                self.attr_out(node, &stat);
                Some(Ok(()))
            }
            op::SETXATTR => Some(Err(self.announced(thread, node, &mut args).unwrap_or_else(|error| error))),
            op::SETATTR | op::OPEN | op::MKNOD | op::MKDIR | op::SYMLINK | op::UNLINK | op::RMDIR => {
                Some(self.echoed(header, &mut args))
            }
            op::RENAME | op::RENAME2 => Some(self.echoed(header, &mut args)),
            op::LINK
            | op::WRITE
            | op::CREATE
            | op::TMPFILE
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
            | op::REMOVEXATTR => Some(Err(Errno::PERM)),
            _ => None,
        }
    }

    /// What comes next is said; the error that is the answer.
    fn announced(&mut self, thread: u32, node: u64, args: &mut Args<'_>) -> Result<Errno, Errno> {
        let (size, _, _, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let name = args.text()?;
        let value = args.0.get(..size as usize).ok_or(Errno::INVAL)?;
        if name != ANNOUNCEMENT || !self.watches(node) {
            return Err(Errno::PERM);
        }
        let Announcement { step, directory, name } = Announcement::decode(value).ok_or(Errno::INVAL)?;
        let at = (node, name_of(name)?);
        let named = !at.1.is_empty();
        let state = self.echoes.threads.get_mut(&thread).ok_or(Errno::PERM)?;
        state.next = None;
        let from = state.from.take();
        if step == Step::From {
            state.from = Some(at);
            return Ok(UNDERSTOOD);
        }
        let from = from.filter(|_| step == Step::To);
        match step {
            Step::Created if self.echoes.was_own(&at, true) => return Ok(OWN),
            Step::Removed if self.echoes.was_own(&at, false) => return Ok(OWN),
            Step::To => {
                let from = from.as_ref().ok_or(Errno::INVAL)?;
                if self.echoes.was_own(from, false) {
                    self.echoes.was_own(&at, true);
                    return Ok(OWN);
                }
            }
            Step::Modified | Step::Written | Step::Attributes => {
                let found = if named { self.known_as(&at)? } else { Some((node, self.nodes.stat(node)?)) };
                if let Some((id, stat)) = found {
                    let closed = step == Step::Written && {
                        let when = self.echoes.closed.remove(&id);
                        when.is_some_and(|when| when.elapsed() < OWN_HOLDS)
                    };
                    if closed || self.echoes.files.get(&id) == Some(&Stamp::of(&stat)) {
                        return Ok(OWN);
                    }
                }
            }
            _ => {}
        }
        if matches!(step, Step::Created | Step::To) {
            // It is there still.
            self.known_as(&at)?;
        }
        let next = Change { step, directory, at, from };
        self.echoes.threads.get_mut(&thread).ok_or(Errno::PERM)?.next = Some(next);
        Ok(UNDERSTOOD)
    }

    /// What a name stands for on the host, and the node by which the guest knows it.
    fn known_as(&mut self, (directory, name): &Place) -> Result<Option<(u64, Statx)>, Errno> {
        let stat = host::stat_name(self.nodes.fd(*directory)?, name)?;
        Ok(self.nodes.known(*directory, &stat).map(|id| (id, stat)))
    }

    /// What a name stands for that is about to be made, taken away or changed, as the guest's kernel is to see it until
    /// then.
    fn echo_lookup(&mut self, thread: u32, parent: u64, args: &mut Args<'_>) -> Option<Result<(), Errno>> {
        let next = self.echoes.threads.get(&thread)?.next.as_ref()?;
        let name = args.name().ok()?;
        let is = |place: &Place| place.0 == parent && *place.1 == *name;
        let (step, directory) = (next.step, next.directory);
        if next.from.as_ref().is_some_and(is) {
            let (at, from) = (next.at.clone(), (parent, name.to_owned()));
            return Some(self.what_moved(&at, &from));
        }
        if !is(&next.at) {
            return None;
        }
        Some(match step {
            Step::Created => Err(Errno::NOENT),
            Step::Removed => self.what_was(parent, name, directory),
            // What is there now came by the new name; what it took the place of is known yet, or was not.
            Step::To => match self.replaced(parent, name) {
                Some(id) => self.remembered(id),
                None => Err(Errno::NOENT),
            },
            _ => return None,
        })
    }

    /// What was called so and is not on the host any more: a node that the guest knows.
    fn replaced(&mut self, parent: u64, name: &CStr) -> Option<u64> {
        let id = self.nodes.named(parent, name)?;
        let now = self.nodes.fd(parent).and_then(|fd| host::stat_name(fd, name));
        match now {
            Ok(stat) if self.nodes.known(parent, &stat) == Some(id) => None,
            _ => Some(id),
        }
    }

    /// Answers with what was called so; where the guest did not know it, with something of its kind that is nothing
    /// else.
    fn what_was(&mut self, parent: u64, name: &CStr, directory: bool) -> Result<(), Errno> {
        if let Some(id) = self.replaced(parent, name) {
            return self.remembered(id);
        }
        let id = self.nodes.unused();
        let kind = if directory { libc::S_IFDIR } else { libc::S_IFREG };
        self.gone(id, kind);
        Ok(())
    }

    /// Answers with a node whose name is gone.
    fn remembered(&mut self, id: u64) -> Result<(), Errno> {
        // What is open may be mapped, and keeps its size.
        match self.nodes.open_of(id) {
            Some(file) => {
                let stat = host::stat(&file)?;
                self.nodes.told_of(id);
                let stat = self.shown(id, &stat);
                self.out.u64(id).u64(0).zeros(24);
                self.attr(&stat);
            }
            None => {
                let kind = self.nodes.kind(id)?;
                self.nodes.told_of(id);
                self.gone(id, kind);
            }
        }
        Ok(())
    }

    /// `fuse_entry_out` of what is not there any more; it holds for no time.
    fn gone(&mut self, id: u64, kind: u32) {
        self.out.u64(id).u64(0).zeros(24);
        self.out.u64(id).zeros(52).u32(kind | 0o600).u32(1).u32(0).u32(0).u32(0).u32(4096).u32(0);
    }

    /// What has another name now, as it was before.
    fn what_moved(&mut self, at: &Place, from: &Place) -> Result<(), Errno> {
        let stat = host::stat_name(self.nodes.fd(at.0)?, &at.1)?;
        let id = self.nodes.remember(from.0, &from.1, &stat)?;
        self.entry(id, &stat);
        Ok(())
    }

    /// The change itself, which was announced. Nothing is done on the host.
    fn echoed(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let node = header.node;
        let thread = self.echoes.threads.get_mut(&header.thread).ok_or(Errno::PERM)?;
        let next = thread.next.take().ok_or(Errno::PERM)?;
        let told = thread.told.take().filter(|(of, _)| *of == node);
        match (header.opcode, next.step) {
            // As it was told last: what has changed since is another change, and the kernel must find that it has.
            (op::SETATTR, Step::Modified | Step::Attributes) => {
                let (_, stat) = told.ok_or(Errno::STALE)?;
                self.attr_out(node, &stat);
            }
            (op::OPEN, Step::Written) => {
                let place = self.handles.place(header.uid)?;
                // It stands for the file, and cannot read or write it.
                let file = self.nodes.fd(node)?;
                let handle = self.handles.insert(file, node, place);
                let flags = self.cache_flags(node, false) | opened::NOFLUSH;
                self.out.u64(handle).u32(flags).u32(0);
            }
            (op::MKNOD | op::MKDIR | op::SYMLINK, Step::Created) => {
                let name = made(header.opcode, args)?;
                check(next.at == (node, name.to_owned()))?;
                self.found(node, name)?;
            }
            (op::UNLINK | op::RMDIR, Step::Removed) => {
                let name = args.name()?;
                check(next.at == (node, name.to_owned()))?;
                if let Some(id) = self.replaced(node, name) {
                    self.nodes.retire(id);
                }
            }
            (op::RENAME | op::RENAME2, Step::To) => {
                let to = args.u64()?;
                if header.opcode == op::RENAME2 {
                    args.u64()?;
                }
                let (name, new_name) = (args.name()?, args.name()?);
                check(next.at == (to, new_name.to_owned()) && next.from == Some((node, name.to_owned())))?;
                if let Some(id) = self.replaced(to, new_name) {
                    self.nodes.retire(id);
                }
                self.moved(to, new_name);
            }
            _ => return Err(Errno::PERM),
        }
        Ok(())
    }
}

/// The name that a request would make.
fn made<'a>(opcode: u32, args: &mut Args<'a>) -> Result<&'a CStr, Errno> {
    let before = match opcode {
        op::MKNOD => 2,
        op::MKDIR => 1,
        _ => 0,
    };
    for _ in 0..before {
        args.u64()?;
    }
    args.name()
}

fn check(holds: bool) -> Result<(), Errno> {
    if holds { Ok(()) } else { Err(Errno::PERM) }
}
