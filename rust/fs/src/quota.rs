//! By how much the guest may make a share grow.
//!
//! What is counted is the room that files and directories take on the host (`st_blocks`), before and after each
//! operation of the guest's. What it frees is given back; what others do on the host does not count. A file that the
//! guest removes while it has it open counts until it is closed.

use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, Statx};
use rustix::io::Errno;

use crate::{Session, host};

/// Bytes of a block of `st_blocks` (stat(2)), and what a file system gives out at least.
const BLOCK: u64 = 512;
const UNIT: u64 = 4096;

/// Bytes that something takes of which the host says this.
pub(crate) fn bytes(stat: &Statx) -> u64 {
    stat.stx_blocks.saturating_mul(BLOCK)
}

/// Bytes that what is open takes.
fn taken(file: impl AsFd) -> u64 {
    host::stat(file).map_or(0, |stat| bytes(&stat))
}

/// What an operation is about to take away for good, if it succeeds.
pub(crate) struct Leaving {
    node: Option<u64>,
    bytes: u64,
}

impl Session {
    /// Bytes that the guest may still take in the share of a node; `None` without a quota.
    pub(crate) fn room(&self, node: u64) -> Option<u64> {
        let share = self.nodes.share(node).ok()?;
        let grown = share.grown;
        share.quota.map(|most| most.saturating_add_signed(grown.saturating_neg()))
    }

    /// Fails where there is a quota and nothing is left of it.
    pub(crate) fn wants_room(&self, node: u64) -> Result<(), Errno> {
        if self.room(node).is_some_and(|room| room < UNIT) { Err(Errno::NOSPC) } else { Ok(()) }
    }

    /// How much of `length` bytes at `offset` of a file there is room for. What is there already takes none.
    pub(crate) fn writes_at_most(
        &self,
        node: u64,
        file: impl AsFd,
        offset: Option<u64>,
        length: u64,
    ) -> Result<u64, Errno> {
        let Some(room) = self.room(node) else { return Ok(length) };
        if length.div_ceil(UNIT).saturating_add(1).saturating_mul(UNIT) <= room {
            return Ok(length);
        }
        let stat = host::stat(&file)?;
        let whole = bytes(&stat) >= stat.stx_size;
        let offset = offset.unwrap_or(stat.stx_size);
        // Up to the end, or to the next hole. What lies beyond the end in the last unit is there as well.
        let there = if whole {
            stat.stx_size.next_multiple_of(UNIT)
        } else {
            rustix::fs::seek(&file, SeekFrom::Hole(offset)).map_or(0, |hole| hole.next_multiple_of(UNIT))
        };
        let most = there.saturating_sub(offset).saturating_add(room / UNIT * UNIT);
        if most == 0 && length > 0 { Err(Errno::NOSPC) } else { Ok(length.min(most)) }
    }

    /// Counts what an operation has changed.
    pub(crate) fn count(&mut self, node: u64, before: u64, after: u64) {
        if let Ok(share) = self.nodes.share_mut(node)
            && share.quota.is_some()
        {
            let change = i64::try_from(i128::from(after) - i128::from(before));
            let most = if after > before { i64::MAX } else { i64::MIN };
            share.grown = share.grown.saturating_add(change.unwrap_or(most));
        }
    }

    /// Bytes that something takes in whose share there is a quota; elsewhere it is not asked for.
    pub(crate) fn taken(&self, node: u64, file: impl AsFd) -> u64 {
        if self.room(node).is_some() { taken(file) } else { 0 }
    }

    /// Does something to a directory of the guest's, and counts by how much that has grown.
    pub(crate) fn in_directory<T>(
        &mut self,
        parent: u64,
        work: impl FnOnce(&mut Self) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if self.room(parent).is_none() {
            return work(self);
        }
        let fd = self.nodes.fd(parent)?;
        let before = taken(&fd);
        let done = work(self);
        self.count(parent, before, taken(&fd));
        done
    }

    /// What is freed when a name goes.
    pub(crate) fn leaving(&mut self, parent: u64, name: &std::ffi::CStr) -> Option<Leaving> {
        self.room(parent)?;
        let fd = self.nodes.fd(parent).ok()?;
        let stat = host::stat_name(fd, name).ok()?;
        let directory = u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        (directory || stat.stx_nlink == 1)
            .then(|| Leaving { node: self.nodes.known(parent, &stat), bytes: bytes(&stat) })
    }

    /// It has gone.
    pub(crate) fn left(&mut self, parent: u64, leaving: Option<Leaving>) {
        let Some(leaving) = leaving else { return };
        match leaving.node {
            Some(node) if self.nodes.is_open(node) => self.nodes.orphaned(node),
            _ => self.count(parent, leaving.bytes, 0),
        }
    }

    /// Closes what the guest had open.
    pub(crate) fn release(&mut self, handle: u64) {
        let Some(open) = self.handles.remove(handle) else { return };
        self.locks.released(handle);
        let node = open.node;
        self.own_close(node, &open.file);
        if !self.nodes.is_orphan(node) {
            return;
        }
        let bytes = taken(&open.file);
        drop(open);
        if !self.nodes.is_open(node) {
            self.nodes.adopted(node);
            self.count(node, bytes, 0);
        }
    }
}
