//! The file system as the layers so far make it: inodes and directory entries, compact enough for millions.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use supermachine_support::to_usize;

use crate::arena::{Pieces, Strings};
use crate::data::{Body, Extent};
use crate::id::{Id, NONE, ROOT};
use crate::xattr::{NO_XATTRS, Xattrs};
use crate::{Error, Limits};

/// EROFS_NAME_LEN, and Linux' NAME_MAX.
const NAME_MAX: usize = 255;
/// Linux refuses longer symlink targets (PATH_MAX with its NUL).
const TARGET_MAX: usize = 4095;

/// Inode kinds with the values of S_IFMT (inode(7)).
pub(crate) mod format {
    pub(crate) const MASK: u16 = 0o170000;
    pub(crate) const FIFO: u16 = 0o010000;
    pub(crate) const CHAR: u16 = 0o020000;
    pub(crate) const DIRECTORY: u16 = 0o040000;
    pub(crate) const BLOCK: u16 = 0o060000;
    pub(crate) const FILE: u16 = 0o100000;
    pub(crate) const SYMLINK: u16 = 0o120000;
}

/// The number of what was added last to a table of this length. A table of 2^32 would take more memory than there is.
fn last(length: usize) -> Id {
    Id::try_from(length - 1).expect("tables are smaller than 2^32")
}

/// Owner, mode and the like, without contents.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    /// Format and permission bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub nanoseconds: u32,
    pub xattrs: u32,
}

impl Attributes {
    /// A directory that no layer describes: 0755, root's, from 1970.
    fn implied_directory() -> Self {
        Self { mode: format::DIRECTORY | 0o755, uid: 0, gid: 0, mtime: 0, nanoseconds: 0, xattrs: NO_XATTRS }
    }
}

pub(crate) struct Inode {
    pub attributes: Attributes,
    /// Names of this inode; counted anew for directories when the image is laid out.
    pub links: u32,
    /// Bytes of a file or symlink target.
    pub size: u64,
    pub body: Body,
    /// Slot in the metadata area, in units of 32 bytes; set by the layout.
    pub nid: u32,
}

impl Inode {
    pub(crate) fn format(&self) -> u16 {
        self.attributes.mode & format::MASK
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory { .. })
    }

    fn first_child(&self) -> Id {
        match self.body {
            Body::Directory { first_child, .. } => first_child,
            _ => NONE,
        }
    }

    fn own_entry(&self) -> Id {
        match self.body {
            Body::Directory { own_entry, .. } => own_entry,
            _ => NONE,
        }
    }

    fn set_first_child(&mut self, id: Id) {
        if let Body::Directory { first_child, .. } = &mut self.body {
            *first_child = id;
        }
    }
}

struct Entry {
    directory: Id,
    inode: Id,
    name: u32,
    next: Id,
    previous: Id,
    layer: u16,
    name_length: u8,
}

pub(crate) struct Tree {
    inodes: Pieces<Inode>,
    entries: Pieces<Entry>,
    free_inodes: Vec<Id>,
    free_entries: Vec<Id>,
    strings: Strings,
    index: HashTable<Id>,
    hasher: RandomState,
    pub xattrs: Xattrs,
    pub extents: Pieces<Extent>,
    /// Data of inodes that lost their last name, to give the room back.
    pub dead: Vec<(Body, u64)>,
    limits: Limits,
    layer: u16,
}

impl Tree {
    pub(crate) fn new(limits: &Limits) -> Self {
        let mut tree = Self {
            inodes: Pieces::new(),
            entries: Pieces::new(),
            free_inodes: Vec::new(),
            free_entries: Vec::new(),
            strings: Strings::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            xattrs: Xattrs::new(),
            extents: Pieces::new(),
            dead: Vec::new(),
            limits: limits.clone(),
            layer: 0,
        };
        tree.inodes.push(Inode {
            attributes: Attributes::implied_directory(),
            links: 1,
            size: 0,
            body: Body::EMPTY_DIRECTORY,
            nid: 0,
        });
        tree
    }

    pub(crate) fn begin_layer(&mut self, layer: u16) {
        self.layer = layer;
    }

    pub(crate) fn inode(&self, id: Id) -> &Inode {
        &self.inodes[id]
    }

    pub(crate) fn inode_mut(&mut self, id: Id) -> &mut Inode {
        &mut self.inodes[id]
    }

    /// Room for as many inodes as there ever were at once.
    pub(crate) fn inode_slots(&self) -> usize {
        self.inodes.len()
    }

    fn charge(&self) -> Result<(), Error> {
        let tables = self.inodes.len() * size_of::<Inode>()
            + self.entries.len() * (size_of::<Entry>() + 8)
            + self.extents.len() * size_of::<Extent>()
            // The layout's lists of inodes and of one directory's children.
            + self.inodes.len() * 12;
        self.limits.metadata(tables as u64 + self.strings.bytes() + self.xattrs.bytes())
    }

    fn hash(&self, directory: Id, name: &[u8]) -> u64 {
        self.hasher.hash_one((directory, name))
    }

    fn name_of(&self, entry: Id) -> &[u8] {
        let e = &self.entries[entry];
        self.strings.get(e.name, usize::from(e.name_length))
    }

    pub(crate) fn find(&self, directory: Id, name: &[u8]) -> Option<Id> {
        let hash = self.hash(directory, name);
        let same = |e: &Id| self.entries[*e].directory == directory && self.name_of(*e) == name;
        self.index.find(hash, same).copied()
    }

    pub(crate) fn inode_of(&self, entry: Id) -> Id {
        self.entries[entry].inode
    }

    pub(crate) fn parent(&self, directory: Id) -> Id {
        match self.inodes[directory].own_entry() {
            NONE => ROOT,
            entry => self.entries[entry].directory,
        }
    }

    pub(crate) fn children(&self, directory: Id) -> impl Iterator<Item = (&[u8], Id)> {
        self.child_entries(directory).map(|e| (self.name_of(e), self.entries[e].inode))
    }

    pub(crate) fn child_entries(&self, directory: Id) -> impl Iterator<Item = Id> {
        let start = self.inodes[directory].first_child();
        let some = |entry: Id| (entry != NONE).then_some(entry);
        std::iter::successors(some(start), move |entry| some(self.entries[*entry].next))
    }

    pub(crate) fn target(&self, inode: &Inode) -> &[u8] {
        match inode.body {
            Body::Target(at) => self.strings.get(at, to_usize(inode.size)),
            _ => &[],
        }
    }

    pub(crate) fn add_extent(&mut self, extent: Extent) -> Result<u32, Error> {
        self.charge()?;
        self.extents.push(extent);
        Ok(last(self.extents.len()))
    }

    /// An inode without a name yet.
    pub(crate) fn new_inode(&mut self, attributes: Attributes, size: u64, body: Body) -> Result<Id, Error> {
        let inode = Inode { attributes, links: 0, size, body, nid: 0 };
        self.charge()?;
        Ok(match self.free_inodes.pop() {
            Some(id) => {
                self.inodes[id] = inode;
                id
            }
            None => {
                self.inodes.push(inode);
                last(self.inodes.len())
            }
        })
    }

    /// A symbolic link to `target`; `name` is of the tar entry, for errors.
    pub(crate) fn new_symlink(
        &mut self,
        mut attributes: Attributes,
        name: &[u8],
        target: &[u8],
    ) -> Result<Id, Error> {
        if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
            let bytes = target.len();
            let reason = format!(
                "the target of this symbolic link has {bytes} bytes; 1 to {TARGET_MAX} are allowed, none of them NUL"
            );
            return Err(Error::entry(name, reason));
        }
        attributes.mode = format::SYMLINK | 0o777;
        let at = self.strings.add(target).ok_or_else(|| Error::entry(name, "too many names"))?;
        self.new_inode(attributes, target.len() as u64, Body::Target(at))
    }

    /// Gives `inode` the name `name` in `directory`, where it must be free.
    pub(crate) fn link(&mut self, directory: Id, name: &[u8], inode: Id) -> Result<(), Error> {
        let Some(name_length) = u8::try_from(name.len()).ok().filter(|n| *n > 0) else {
            return Err(Error::entry(
                name,
                format!("a name of {} bytes; {NAME_MAX} are allowed", name.len()),
            ));
        };
        if name.contains(&0) || name.contains(&b'/') || name == b"." || name == b".." {
            return Err(Error::entry(name, "not a file name"));
        }
        self.charge()?;
        let next = self.inodes[directory].first_child();
        let at = self.strings.add(name).ok_or_else(|| Error::entry(name, "too many names"))?;
        let entry =
            Entry { directory, inode, name: at, next, previous: NONE, layer: self.layer, name_length };
        let id = match self.free_entries.pop() {
            Some(id) => {
                self.entries[id] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                last(self.entries.len())
            }
        };
        if next != NONE {
            self.entries[next].previous = id;
        }
        self.inodes[directory].set_first_child(id);
        let hash = self.hash(directory, name);
        let (entries, strings, hasher) = (&self.entries, &self.strings, &self.hasher);
        self.index.insert_unique(hash, id, |e| {
            let e = &entries[*e];
            hasher.hash_one((e.directory, strings.get(e.name, usize::from(e.name_length))))
        });
        let inode = &mut self.inodes[inode];
        inode.links = inode.links.checked_add(1).ok_or_else(|| Error::entry(name, "too many links"))?;
        if let Body::Directory { own_entry, .. } = &mut inode.body {
            *own_entry = id;
        }
        self.touch_directory(directory);
        Ok(())
    }

    /// Notes that this layer wrote `directory`'s entry and all above it, so that its whiteouts spare them.
    fn touch_directory(&mut self, directory: Id) {
        self.touch(self.inodes[directory].own_entry());
    }

    pub(crate) fn touch(&mut self, mut entry: Id) {
        // An entry is only ever marked together with its ancestors, so the first marked one ends the walk.
        while entry != NONE && self.entries[entry].layer != self.layer {
            self.entries[entry].layer = self.layer;
            entry = self.inodes[self.entries[entry].directory].own_entry();
        }
    }

    /// Removes an entry and, when it is a directory, everything in it.
    pub(crate) fn remove(&mut self, entry: Id) {
        let mut pending = vec![entry];
        while let Some(entry) = pending.pop() {
            let inode = self.entries[entry].inode;
            if self.inodes[inode].is_directory() {
                let children = self.child_entries(inode);
                pending.extend(children);
            }
            self.unlink(entry);
        }
    }

    fn unlink(&mut self, entry: Id) {
        let hash = self.hash(self.entries[entry].directory, self.name_of(entry));
        if let Ok(found) = self.index.find_entry(hash, |e| *e == entry) {
            found.remove();
        }
        let Entry { directory, inode, next, previous, .. } = self.entries[entry];
        if next != NONE {
            self.entries[next].previous = previous;
        }
        if previous != NONE {
            self.entries[previous].next = next;
        } else if self.inodes[directory].first_child() == entry {
            self.inodes[directory].set_first_child(next);
        }
        self.free_entries.push(entry);
        let node = &mut self.inodes[inode];
        node.links -= 1;
        if node.links == 0 {
            if matches!(node.body, Body::Blocks { .. } | Body::Chunks { .. }) {
                self.dead.push((node.body, node.size));
            }
            node.body = Body::Nothing;
            self.free_inodes.push(inode);
        }
    }

    /// Removes what lies under `entry` and was not written by this layer, and `entry` itself if so.
    pub(crate) fn white_out(&mut self, entry: Id) {
        if self.entries[entry].layer != self.layer {
            self.remove(entry);
        } else if self.inodes[self.entries[entry].inode].is_directory() {
            self.make_opaque(self.entries[entry].inode);
        }
    }

    /// Removes what `directory` has from lower layers.
    pub(crate) fn make_opaque(&mut self, directory: Id) {
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            let mut child = self.inodes[directory].first_child();
            while child != NONE {
                let next = self.entries[child].next;
                let inode = self.entries[child].inode;
                if self.entries[child].layer != self.layer {
                    self.remove(child);
                } else if self.inodes[inode].is_directory() {
                    pending.push(inode);
                }
                child = next;
            }
        }
    }

    /// The directory `name` in `directory`, made when missing.
    pub(crate) fn implied_directory(&mut self, directory: Id, name: &[u8]) -> Result<Id, Error> {
        let inode = self.new_inode(Attributes::implied_directory(), 0, Body::EMPTY_DIRECTORY)?;
        self.link(directory, name, inode)?;
        Ok(inode)
    }
}
