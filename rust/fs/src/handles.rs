//! Files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// One open file.
pub(crate) struct Handle {
    pub file: Arc<OwnedFd>,
    pub node: u64,
    /// Whether the descriptor appends now, whatever the offset.
    appends: bool,
    /// Of a directory: where the next listing starts, when the descriptor stands there already.
    pub position: Option<u64>,
}

impl Handle {
    /// Has writes go to the end of the file, wherever that is by then, or to their offsets.
    pub(crate) fn set_append(&mut self, append: bool) -> Result<(), Errno> {
        if self.appends != append {
            let flags = rustix::fs::fcntl_getfl(&self.file)? & !OFlags::APPEND;
            rustix::fs::fcntl_setfl(&self.file, if append { flags | OFlags::APPEND } else { flags })?;
            self.appends = append;
        }
        Ok(())
    }
}

/// All that is open, by the number that the guest names it by.
pub(crate) struct Handles {
    open: HashMap<u64, Handle>,
    next: u64,
    most: usize,
}

impl Handles {
    pub(crate) fn new(most: usize, next: u64) -> Self {
        Self { open: HashMap::new(), next: next.max(1), most }
    }

    /// Fails when the guest has too much open, before anything is opened for it.
    pub(crate) fn room(&self) -> Result<(), Errno> {
        if self.has_room_for(1) { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Whether there may be so many descriptors beside.
    pub(crate) fn has_room_for(&self, more: usize) -> bool {
        self.open.len().saturating_add(more) <= self.most
    }

    pub(crate) fn insert(&mut self, file: Arc<OwnedFd>, node: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, Handle { file, node, appends: false, position: Some(0) });
        number
    }

    /// All of them, with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Handle)> {
        self.open.iter().map(|(number, handle)| (*number, handle))
    }

    /// What the guest has had open since before it was restored.
    pub(crate) fn take_up(&mut self, number: u64, file: Arc<OwnedFd>, node: u64) {
        let handle = Handle { file, node, appends: false, position: Some(0) };
        self.open.entry(number).or_insert(handle);
    }

    /// What the guest names, if it is open on this node; a handle of before a restore is stale.
    pub(crate) fn get(&mut self, number: u64, node: u64) -> Result<&mut Handle, Errno> {
        self.open.get_mut(&number).filter(|handle| handle.node == node).ok_or(Errno::STALE)
    }

    /// The same, to look at.
    pub(crate) fn peek(&self, number: u64, node: u64) -> Result<&Handle, Errno> {
        self.open.get(&number).filter(|handle| handle.node == node).ok_or(Errno::STALE)
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<Handle> {
        self.open.remove(&number)
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}
