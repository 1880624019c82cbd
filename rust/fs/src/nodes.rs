//! The files that the guest's kernel knows, by node id.
//!
//! A node is an identity and the name that it was last seen under. Descriptors are a cache of bounded size: one that
//! has been closed is had again by the name, and only if the identity is still the same. So the guest may know millions
//! of files, and one that is deleted is freed by the host as soon as the guest lets go of it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::Statx;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use crate::abi::ROOT_ID;
use crate::host::{self, Identity};
use crate::share::Share;

/// The node id of the first share; the others follow. Ids of other files begin after [`MAX_SHARES`].
pub(crate) const FIRST_SHARE: u64 = ROOT_ID + 1;
/// Shares of one guest at most.
pub const MAX_SHARES: usize = 64;
/// The first id of a file that is looked up.
pub(crate) const FIRST_NODE: u64 = FIRST_SHARE + MAX_SHARES as u64;
/// Nodes at most: some hundreds of bytes each. The guest's kernel forgets what it has no memory for.
const MAX_NODES: usize = 1 << 21;
/// Directories between a file and its share at most. The kernel has no limit, but paths are limited to 4096 bytes.
const MAX_DEPTH: usize = 2048;

/// Seconds after which a change of a file has another time than one before: file systems count ticks, some seconds.
const SETTLED: i64 = 2;

struct Node {
    share: u16,
    identity: Identity,
    parent: u64,
    name: CString,
    lookups: u64,
    /// Its kind (`S_IFMT`).
    kind: u32,
    /// Stands for the file (O_PATH): kept for directories, and for what is pinned. Of another file it would keep the
    /// contents on the disk after the host has deleted it.
    fd: Option<Arc<OwnedFd>>,
    /// Whether `fd` was used since the cache last looked.
    used: bool,
    /// Whether the name was taken away while the guest may still know another: `fd` stays until the node is forgotten.
    pinned: bool,
    /// Whether the guest may know it by several names.
    has_names: bool,
    /// Whether the guest has removed it while it was open, so that its room is not given back yet.
    orphan: bool,
    /// What the guest has open of it, for a file that has no name any more.
    open: Vec<Weak<OwnedFd>>,
    /// As it was when the guest last opened it, if a later change cannot look the same.
    seen: Option<Stamp>,
    /// Of a directory: since when the guest has gone by one listing of it.
    listed: Option<Instant>,
}

impl Node {
    /// One that the guest is told of for the first time.
    fn new(share: u16, identity: Identity, parent: u64, name: CString, kind: u32) -> Self {
        Self {
            share,
            identity,
            parent,
            name,
            lookups: 1,
            kind,
            fd: None,
            used: false,
            pinned: false,
            has_names: false,
            orphan: false,
            open: Vec::new(),
            seen: None,
            listed: None,
        }
    }
}

/// What a change of a file's contents changes: its size, and when contents and inode were changed last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    size: u64,
    times: [(i64, u32); 2],
}

impl Stamp {
    pub(crate) fn of(stat: &Statx) -> Self {
        let time = |time: &rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Self { size: stat.stx_size, times: [time(&stat.stx_mtime), time(&stat.stx_ctime)] }
    }

    /// Whether it is so long ago that a change from now on has another time.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
        self.times.iter().all(|(seconds, _)| seconds.saturating_add(SETTLED) < now)
    }
}

/// A file that the guest knows, as a snapshot holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The number that the guest knows it by.
    pub id: u64,
    pub share: u16,
    pub identity: Identity,
    /// The directory that it was last seen in, by its number.
    pub parent: u64,
    /// And its name there.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// How often the guest was told of it.
    pub lookups: u64,
    /// Its kind (`S_IFMT`).
    pub kind: u32,
}

saved_structure!(Known {
    id: u64,
    share: u16,
    identity: Identity,
    parent: u64,
    name: Vec<u8>,
    lookups: u64,
    kind: u32
});

/// All nodes of a session.
pub(crate) struct Nodes {
    pub shares: Vec<Share>,
    nodes: HashMap<u64, Node>,
    ids: HashMap<(u16, Identity), u64>,
    /// Nodes by directory and name, where a share is watched.
    names: Option<HashMap<(u64, CString), u64>>,
    /// Nodes with a descriptor that may be closed, in the order in which that is considered.
    cached: VecDeque<u64>,
    max_cached: usize,
    pinned: usize,
    /// How many nodes the guest may know by several names.
    with_names: usize,
    next: u64,
    /// Devices that files of the shares have been seen on; the index is part of the inode number that the guest sees.
    devices: Vec<u64>,
}

impl Nodes {
    pub(crate) fn new(shares: Vec<Share>, max_cached: usize, next: u64) -> Self {
        let devices = shares.first().map(|share| share.identity.dev).into_iter().collect();
        let names = shares.iter().any(|share| share.watch).then(HashMap::new);
        Self {
            shares,
            nodes: HashMap::new(),
            ids: HashMap::new(),
            names,
            cached: VecDeque::new(),
            max_cached: max_cached.max(16),
            pinned: 0,
            with_names: 0,
            next: next.max(FIRST_NODE),
            devices,
        }
    }

    /// The share that a node belongs to.
    pub(crate) fn share(&self, id: u64) -> Result<&Share, Errno> {
        let index = match share_index(id) {
            Some(index) => index,
            None => self.nodes.get(&id).ok_or(Errno::STALE)?.share,
        };
        self.shares.get(usize::from(index)).ok_or(Errno::STALE)
    }

    /// The same, to count in.
    pub(crate) fn share_mut(&mut self, id: u64) -> Result<&mut Share, Errno> {
        let index = match share_index(id) {
            Some(index) => index,
            None => self.nodes.get(&id).ok_or(Errno::STALE)?.share,
        };
        self.shares.get_mut(usize::from(index)).ok_or(Errno::STALE)
    }

    /// Whether the guest has it open.
    pub(crate) fn is_open(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.open.iter().any(|open| open.strong_count() > 0))
    }

    /// Notes that the guest has removed what it has open.
    pub(crate) fn orphaned(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.orphan = true;
        }
    }

    pub(crate) fn is_orphan(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.orphan)
    }

    /// It has a name, or has gone.
    pub(crate) fn adopted(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.orphan = false;
        }
    }

    /// What a snapshot holds of them.
    pub(crate) fn saved(&self) -> impl Iterator<Item = Known> {
        self.nodes.iter().map(|(id, node)| Known {
            id: *id,
            share: node.share,
            identity: node.identity,
            parent: node.parent,
            name: node.name.to_bytes().into(),
            lookups: node.lookups,
            kind: node.kind,
        })
    }

    /// A node that the guest has known since before it was restored.
    pub(crate) fn take_up(&mut self, saved: &Known, name: CString) {
        let Known { id, share, identity, parent, lookups, kind, .. } = *saved;
        // Of one that is known twice it is not said which is which.
        if self.nodes.contains_key(&id) || self.ids.contains_key(&(share, identity)) {
            return;
        }
        self.ids.insert((share, identity), id);
        if let Some(names) = &mut self.names {
            names.insert((parent, name.clone()), id);
        }
        self.nodes.insert(id, Node { lookups, ..Node::new(share, identity, parent, name, kind) });
        // It is not said whether it was known by others.
        if kind != libc::S_IFDIR {
            self.has_names(id);
        }
    }

    /// The guest may know this one by several names.
    fn has_names(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id)
            && !node.has_names
        {
            node.has_names = true;
            self.with_names += 1;
        }
    }

    /// Whether there is any that the guest may know by several names.
    pub(crate) fn any_has_names(&self) -> bool {
        self.with_names > 0
    }

    /// Has every node that lies in a directory of another share, which none does by requests, be forgotten: it would be
    /// served by the rules of the one and found in the other.
    pub(crate) fn part_shares(&mut self) {
        let lies = |node: &Node| match share_index(node.parent) {
            Some(index) => index == node.share,
            None => self.nodes.get(&node.parent).is_none_or(|parent| parent.share == node.share),
        };
        let wrong = self.nodes.iter().filter(|(_, node)| !lies(node)).map(|(id, node)| (*id, node.lookups));
        for (id, lookups) in wrong.collect::<Vec<_>>() {
            self.forget(id, lookups);
        }
    }

    /// Forgets every node, as when a new session begins.
    pub(crate) fn clear(&mut self) {
        self.nodes.clear();
        self.ids.clear();
        self.names.iter_mut().for_each(HashMap::clear);
        self.cached.clear();
        (self.pinned, self.with_names) = (0, 0);
    }

    /// Notes that the guest has been told of a file under this name; its id.
    pub(crate) fn remember(&mut self, parent: u64, name: &CStr, stat: &Statx) -> Result<u64, Errno> {
        let share = match share_index(parent) {
            Some(index) => index,
            None => self.nodes.get(&parent).ok_or(Errno::STALE)?.share,
        };
        let identity = Identity::of(stat);
        let kind = u32::from(stat.stx_mode) & libc::S_IFMT;
        let linked = kind != libc::S_IFDIR && stat.stx_nlink > 1;
        if let Some(id) = self.ids.get(&(share, identity)) {
            let node = self.nodes.get_mut(id).ok_or(Errno::STALE)?;
            node.lookups = node.lookups.saturating_add(1);
            let id = *id;
            let another = (node.parent, node.name.as_c_str()) != (parent, name);
            if another {
                self.renamed(id, parent, name);
            }
            if linked || another && kind != libc::S_IFDIR {
                self.has_names(id);
            }
            return Ok(id);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(Errno::NFILE);
        }
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Node::new(share, identity, parent, name.into(), kind));
        if linked {
            self.has_names(id);
        }
        self.ids.insert((share, identity), id);
        if let Some(names) = &mut self.names {
            names.insert((parent, name.into()), id);
        }
        Ok(id)
    }

    /// The guest's kernel knows the node by so many answers less.
    pub(crate) fn forget(&mut self, id: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0
            && let Some(node) = self.nodes.remove(&id)
        {
            if self.ids.get(&(node.share, node.identity)) == Some(&id) {
                self.ids.remove(&(node.share, node.identity));
            }
            self.unname(id, node.parent, node.name);
            self.pinned -= usize::from(node.pinned);
            self.with_names -= usize::from(node.has_names);
        }
    }

    /// A name does not stand for this node any more.
    fn unname(&mut self, id: u64, parent: u64, name: CString) {
        if let Some(names) = &mut self.names
            && let Entry::Occupied(found) = names.entry((parent, name))
            && *found.get() == id
        {
            found.remove();
        }
    }

    /// Nor for any.
    pub(crate) fn unnamed(&mut self, parent: u64, name: &CStr) {
        if let Some(names) = &mut self.names {
            names.remove(&(parent, name.into()));
        }
    }

    /// The node that the guest knows by this name, where names are kept.
    pub(crate) fn named(&self, parent: u64, name: &CStr) -> Option<u64> {
        self.names.as_ref()?.get(&(parent, name.into())).copied()
    }

    /// The guest's kernel holds its file for gone: should it be there still, it is another node.
    pub(crate) fn retire(&mut self, id: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        let (key, parent, name) = ((node.share, node.identity), node.parent, node.name.clone());
        if self.ids.get(&key) == Some(&id) {
            self.ids.remove(&key);
        }
        self.unname(id, parent, name);
    }

    /// A number that no node has.
    pub(crate) fn unused(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Notes that the guest is told of a node once more.
    pub(crate) fn told_of(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_add(1);
        }
    }

    /// The kind of its file (`S_IFMT`).
    pub(crate) fn kind(&self, id: u64) -> Result<u32, Errno> {
        self.nodes.get(&id).map(|node| node.kind).ok_or(Errno::STALE)
    }

    /// What the guest has open of it.
    pub(crate) fn open_of(&self, id: u64) -> Option<Arc<OwnedFd>> {
        self.nodes.get(&id)?.open.iter().find_map(Weak::upgrade)
    }

    /// Notes an open descriptor of the file.
    pub(crate) fn opened(&mut self, id: u64, file: &Arc<OwnedFd>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.open.retain(|open| open.strong_count() > 0);
            node.open.push(Arc::downgrade(file));
        }
    }

    /// Whether the file's contents are those of when this was last asked, which is when the guest opens it.
    pub(crate) fn is_unchanged(&mut self, id: u64, stat: &Statx) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let stamp = Stamp::of(stat);
        let unchanged = node.seen == Some(stamp);
        if !unchanged {
            node.seen = stamp.is_settled().then_some(stamp);
        }
        unchanged
    }

    /// Whether the guest has listed the directory within the time for which names hold, and its names are those of
    /// then.
    pub(crate) fn is_listed(&mut self, id: u64, stat: &Statx) -> bool {
        let is_unchanged = self.is_unchanged(id, stat);
        let seconds = self.share(id).map_or(0, |share| share.cache.seconds());
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let holds = |listed: &Instant| listed.elapsed() < Duration::from_secs(seconds);
        let is_listed = is_unchanged && node.listed.as_ref().is_some_and(holds);
        if !is_listed {
            node.listed = Some(Instant::now());
        }
        is_listed
    }

    /// The id under which the guest knows a file of the same share as `near`.
    pub(crate) fn known(&self, near: u64, stat: &Statx) -> Option<u64> {
        let share = match share_index(near) {
            Some(index) => index,
            None => self.nodes.get(&near)?.share,
        };
        self.ids.get(&(share, Identity::of(stat))).copied()
    }

    /// The file has another name now.
    pub(crate) fn renamed(&mut self, id: u64, parent: u64, name: &CStr) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let parent_before = std::mem::replace(&mut node.parent, parent);
        let name_before = std::mem::replace(&mut node.name, name.into());
        self.unname(id, parent_before, name_before);
        if let Some(names) = &mut self.names {
            names.insert((parent, name.into()), id);
        }
    }

    /// A name is about to be taken from a file that has others: keeps what stands for it, as the guest may know it by
    /// one of those.
    pub(crate) fn pin(&mut self, id: u64) {
        if self.pinned >= self.max_cached {
            return;
        }
        let Ok(fd) = self.fd(id) else { return };
        if let Some(node) = self.nodes.get_mut(&id)
            && !node.pinned
        {
            (node.fd, node.pinned) = (Some(fd), true);
            self.pinned += 1;
        }
    }

    /// A descriptor that stands for the node's file.
    pub(crate) fn fd(&mut self, id: u64) -> Result<Arc<OwnedFd>, Errno> {
        // From the file upwards to the first directory that has a descriptor, and down again.
        let mut missing = Vec::new();
        let mut at = id;
        let mut fd = loop {
            if let Some(index) = share_index(at) {
                break self.shares.get(usize::from(index)).ok_or(Errno::STALE)?.fd.clone();
            }
            let node = self.nodes.get_mut(&at).ok_or(Errno::STALE)?;
            if let Some(fd) = &node.fd {
                node.used = true;
                break fd.clone();
            }
            missing.push(at);
            if missing.len() > MAX_DEPTH {
                return Err(Errno::STALE);
            }
            at = node.parent;
        };
        while let Some(at) = missing.pop() {
            let node = self.nodes.get(&at).ok_or(Errno::STALE)?;
            fd = match reached(&fd, node) {
                Ok(found) => Arc::new(found),
                // Its name is gone, but the guest has it open.
                Err(error) => node.open.iter().find_map(Weak::upgrade).ok_or(error)?,
            };
            if node.kind == libc::S_IFDIR {
                self.cache(at, &fd);
            }
        }
        Ok(fd)
    }

    /// Keeps a descriptor, and closes others that have not been used for long.
    fn cache(&mut self, id: u64, fd: &Arc<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        (node.fd, node.used) = (Some(fd.clone()), true);
        self.cached.push_back(id);
        while self.cached.len() > self.max_cached {
            let Some(oldest) = self.cached.pop_front() else { break };
            let Some(node) = self.nodes.get_mut(&oldest) else { continue };
            if node.pinned {
                continue;
            }
            if node.used && oldest != id {
                node.used = false;
                self.cached.push_back(oldest);
            } else {
                node.fd = None;
            }
        }
    }

    /// The node's attributes.
    pub(crate) fn stat(&mut self, id: u64) -> Result<Statx, Errno> {
        if let Some(node) = self.nodes.get(&id)
            && node.fd.is_none()
        {
            // A name and an identity do without a descriptor that is kept.
            let (parent, name, identity) = (node.parent, node.name.clone(), node.identity);
            if let Ok(stat) = self.fd(parent).and_then(|fd| host::stat_name(fd, &name))
                && Identity::of(&stat) == identity
            {
                return Ok(stat);
            }
        }
        let fd = self.fd(id)?;
        host::stat(fd)
    }

    /// The inode number that the guest sees: the host's, with the device in its upper bits where there are several.
    pub(crate) fn inode_number(&mut self, stat: &Statx) -> u64 {
        let dev = Identity::of(stat).dev;
        let index = match self.devices.iter().position(|known| *known == dev) {
            Some(index) => index,
            None if self.devices.len() < 1 << 12 => {
                self.devices.push(dev);
                self.devices.len() - 1
            }
            None => 0,
        };
        stat.stx_ino ^ (index as u64) << 52
    }
}

/// The share whose top this node is.
pub(crate) fn share_index(id: u64) -> Option<u16> {
    let index = u16::try_from(id.checked_sub(FIRST_SHARE)?).ok()?;
    (usize::from(index) < MAX_SHARES).then_some(index)
}

/// What the node's name stands for in its directory, if that is still the same file.
fn reached(directory: &OwnedFd, node: &Node) -> Result<OwnedFd, Errno> {
    let stale = |error| if matches!(error, Errno::NOENT | Errno::NOTDIR) { Errno::STALE } else { error };
    let fd = host::open_path(directory, &node.name).map_err(stale)?;
    let stat = host::stat(&fd)?;
    if Identity::of(&stat) == node.identity { Ok(fd) } else { Err(Errno::STALE) }
}
