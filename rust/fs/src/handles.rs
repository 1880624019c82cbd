//! Files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::users::{Place, Places};

/// One open file.
pub(crate) struct Handle {
    pub file: Arc<OwnedFd>,
    pub node: u64,
    /// Whether the descriptor appends now, whatever the offset.
    appends: bool,
    /// Of a directory: where the next listing starts, when the descriptor stands there already.
    pub position: Option<u64>,
    _place: Place,
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
    places: Places,
}

impl Handles {
    pub(crate) fn new(places: Places, next: u64) -> Self {
        Self { open: HashMap::new(), next: next.max(1), places }
    }

    /// For one more of this user's, before anything is opened for it; fails when the guest or that user has too much
    /// open.
    pub(crate) fn place(&self, user: u32) -> Result<Place, Errno> {
        self.places.take(user).ok_or(Errno::NFILE)
    }

    pub(crate) fn insert(&mut self, file: Arc<OwnedFd>, node: u64, place: Place) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, Handle { file, node, appends: false, position: Some(0), _place: place });
        number
    }

    /// All of them, with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Handle)> {
        self.open.iter().map(|(number, handle)| (*number, handle))
    }

    /// What the guest has had open since before it was restored.
    pub(crate) fn take_up(&mut self, number: u64, file: Arc<OwnedFd>, node: u64, place: Place) {
        let handle = Handle { file, node, appends: false, position: Some(0), _place: place };
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
