//! Files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

/// One open file.
pub struct Handle {
    pub file: Arc<OwnedFd>,
    pub node: u64,
    /// Of a directory: where the next listing starts, when the descriptor stands there already.
    pub position: Option<u64>,
}

/// All that is open, by the number that the guest names it by.
pub struct Handles {
    open: HashMap<u64, Handle>,
    next: u64,
    most: usize,
}

impl Handles {
    pub fn new(most: usize, next: u64) -> Self {
        Self { open: HashMap::new(), next: next.max(1), most }
    }

    /// Fails when the guest has too much open, before anything is opened for it.
    pub fn room(&self) -> Result<(), Errno> {
        if self.open.len() < self.most { Ok(()) } else { Err(Errno::NFILE) }
    }

    pub fn insert(&mut self, file: Arc<OwnedFd>, node: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, Handle { file, node, position: Some(0) });
        number
    }

    /// What the guest names, if it is open on this node; a handle of before a restore is stale.
    pub fn get(&mut self, number: u64, node: u64) -> Result<&mut Handle, Errno> {
        self.open.get_mut(&number).filter(|handle| handle.node == node).ok_or(Errno::STALE)
    }

    pub fn remove(&mut self, number: u64) {
        self.open.remove(&number);
    }

    pub fn clear(&mut self) {
        self.open.clear();
    }
}
