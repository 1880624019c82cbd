//! The end of an image: directory blocks, then the metadata area with inodes, then the superblock.
//!
//! ```text
//! block 0      superblock
//! block 1..    file data, in the order of the layers
//!              directory blocks, and symlink targets too long to stand by their inode
//!              metadata: inodes, each with its extended attributes and its inline tail or chunk table
//! ```

use std::os::unix::fs::FileExt;

use supermachine_support::to_usize;

use crate::Error;
use crate::data::{BLOCK, Body, DataArea, MAX_TAIL};
use crate::erofs::{self, DIRENT, Layout, NULL_BLOCK, RawInode, SLOT, SuperBlock};
use crate::id::{Id, NONE, ROOT};
use crate::tree::{Tree, format};

/// Places before the current end where a small inode still fits, remembered so that they get used.
const MAX_GAPS: usize = 64;

/// What the image came to.
pub(crate) struct Written {
    pub bytes: u64,
    pub inodes: u64,
}

/// A directory's entries in on-disk order: name, inode.
struct Listing<'a> {
    names: Vec<(&'a [u8], Id)>,
}

impl<'a> Listing<'a> {
    fn new(tree: &'a Tree, directory: Id) -> Self {
        let dots = [(&b"."[..], directory), (&b".."[..], tree.parent(directory))];
        let mut names: Vec<_> = tree.children(directory).chain(dots).collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        Self { names }
    }

    /// Ranges of entries that share a block, with the bytes each takes.
    fn blocks(&self) -> impl Iterator<Item = (&[(&'a [u8], Id)], usize)> {
        let mut rest = &self.names[..];
        std::iter::from_fn(move || {
            let mut used = 0;
            let fits = rest
                .iter()
                .take_while(|(name, _)| {
                    used += DIRENT + name.len();
                    used <= BLOCK
                })
                .count();
            let (block, after) = rest.split_at(fits);
            rest = after;
            let bytes = block.iter().map(|(name, _)| DIRENT + name.len()).sum();
            (!block.is_empty()).then_some((block, bytes))
        })
    }

    fn size(&self) -> u64 {
        let mut size = 0u64;
        for (_, bytes) in self.blocks() {
            size = size.next_multiple_of(BLOCK as u64) + bytes as u64;
        }
        size
    }
}

/// One directory block without padding.
fn encode_block(tree: &Tree, entries: &[(&[u8], Id)], out: &mut Vec<u8>) {
    let mut name_at = entries.len() * DIRENT;
    for (name, inode) in entries {
        let inode = tree.inode(*inode);
        out.extend_from_slice(&u64::from(inode.nid).to_le_bytes());
        let at = u16::try_from(name_at).expect("names lie in a block");
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&[erofs::file_type(inode.attributes.mode), 0]);
        name_at += name.len();
    }
    entries.iter().for_each(|(name, _)| out.extend_from_slice(name));
}

pub(crate) struct Writer<'a> {
    pub tree: &'a mut Tree,
    pub area: &'a mut DataArea,
    pub uuid: [u8; 16],
}

/// Where inodes go, in the order they are met.
struct Slots {
    end: u64,
    gaps: Vec<(u64, u64)>,
}

impl Slots {
    /// The number of a place for `head` bytes and a tail that must not cross a block.
    fn place(&mut self, head: u64, tail: u64) -> u64 {
        let fit = |from: u64| {
            let inline = from + head;
            let room = BLOCK as u64 - inline % BLOCK as u64;
            match tail > room {
                // Tails are short enough for the few bytes lost to the slots' size.
                true => (inline.next_multiple_of(BLOCK as u64) - head).next_multiple_of(SLOT),
                false => from,
            }
        };
        let bytes = head + tail;
        let gap = self
            .gaps
            .iter()
            .position(|(start, length)| bytes <= *length && fit(*start) + bytes <= start + length);
        let start = match gap {
            Some(i) => {
                let (gap_start, gap_length) = self.gaps.swap_remove(i);
                let start = fit(gap_start);
                self.add_gap(gap_start, start);
                self.add_gap((start + bytes).next_multiple_of(SLOT), gap_start + gap_length);
                start
            }
            None => {
                let start = fit(self.end);
                self.add_gap(self.end, start);
                self.end = (start + bytes).next_multiple_of(SLOT);
                start
            }
        };
        start / SLOT
    }

    fn add_gap(&mut self, start: u64, end: u64) {
        if end >= start + SLOT {
            if self.gaps.len() == MAX_GAPS {
                self.gaps.remove(0);
            }
            self.gaps.push((start, end - start));
        }
    }
}

/// How an inode is stored, derived from what the tree knows; the same for placing and writing.
struct Plan {
    compact: bool,
    layout: Layout,
    head: usize,
    tail: usize,
    table: u64,
    size: u64,
}

impl Writer<'_> {
    fn plan(&self, id: Id, build_time: (i64, u32)) -> Plan {
        let inode = self.tree.inode(id);
        let size = inode.size;
        let compact = erofs::is_compact(&inode.attributes, inode.links, size, build_time);
        let head = erofs::inode_bytes(compact) + self.tree.xattrs.encoded(inode.attributes.xattrs).len();
        let (layout, tail, table) = match inode.body {
            Body::Nothing | Body::Device(_) => (Layout::FlatPlain, 0, 0),
            Body::Chunks { bits, .. } => (Layout::ChunkBased, 0, size.div_ceil((BLOCK as u64) << bits) * 4),
            Body::Blocks { .. } | Body::Directory { .. } | Body::Target(_) => match Body::tail_length(size) {
                0 => (Layout::FlatPlain, 0, 0),
                tail => (Layout::FlatInline, tail, 0),
            },
        };
        Plan { compact, layout, head, tail, table, size }
    }

    /// Writes everything after the file data.
    pub(crate) fn finish(self) -> Result<Written, Error> {
        let Self { tree, area, uuid } = self;
        let mut writer = Writer { tree, area, uuid };
        writer.area.image.align()?;
        let order = writer.count_links();
        let build_time = writer.newest(&order);
        // Number 0 would be inode number 0, which readdir(3) callers take for a deleted file.
        let mut slots = Slots { end: 2 * SLOT, gaps: Vec::new() };
        let mut by_place: Vec<(u32, Id)> = Vec::with_capacity(order.len());
        let too_large = || Error::Limit {
            limit: "the metadata area",
            what: "bytes of inodes and directories",
            value: u64::from(u32::MAX) * SLOT,
            remedy: "the image cannot be converted",
        };
        for id in order {
            let plan = writer.plan(id, build_time);
            let nid = slots.place(plan.head as u64, plan.tail as u64 + plan.table);
            let nid = u32::try_from(nid).map_err(|_| too_large())?;
            writer.tree.inode_mut(id).nid = nid;
            by_place.push((nid, id));
        }
        let first_block = writer.area.image.block()?;
        let mut block = first_block;
        let mut starts = Vec::new();
        let mut out = Vec::with_capacity(BLOCK);
        // Directories' whole blocks, in the order in which their inodes were met.
        for (_, id) in &by_place {
            let inode = writer.tree.inode(*id);
            let whole = inode.size.div_ceil(BLOCK as u64) - u64::from(Body::tail_length(inode.size) > 0);
            if whole == 0 || !matches!(inode.body, Body::Directory { .. } | Body::Target(_)) {
                continue;
            }
            starts.push((*id, block));
            if let Body::Target(_) = inode.body {
                writer.area.image.write(writer.tree.target(inode))?;
                writer.area.image.align()?;
            } else {
                let listing = Listing::new(writer.tree, *id);
                for (entries, _) in listing.blocks().take(usize::try_from(whole).unwrap_or(usize::MAX)) {
                    out.clear();
                    encode_block(writer.tree, entries, &mut out);
                    out.resize(BLOCK, 0);
                    writer.area.image.write(&out)?;
                }
            }
            block = writer.area.image.block()?;
        }
        starts.sort_unstable();
        by_place.sort_unstable();
        writer.metadata(&by_place, &starts, build_time)?;
        let blocks = writer.area.image.block()?;
        let chunked = writer.tree.extents.len() > 0
            || by_place.iter().any(|(_, id)| matches!(writer.tree.inode(*id).body, Body::Chunks { .. }));
        let root = u16::try_from(writer.tree.inode(ROOT).nid).map_err(|_| too_large())?;
        let super_block = SuperBlock {
            root,
            inodes: by_place.len() as u64,
            build_time,
            blocks,
            metadata: block,
            uuid,
            chunked,
        };
        let image = &mut writer.area.image;
        image.flush()?;
        let failed = |e| Error::io("write", &image.path, e);
        image.file.write_all_at(&super_block.encode(), 0).map_err(failed)?;
        let bytes = u64::from(blocks) * BLOCK as u64;
        image.file.set_len(bytes).map_err(failed)?;
        Ok(Written { bytes, inodes: super_block.inodes })
    }

    /// Inodes in the order in which a walk meets them, each once; a directory's children stand together. Sets the
    /// sizes and link counts of directories.
    fn count_links(&mut self) -> Vec<Id> {
        let mut order = vec![ROOT];
        let mut seen = vec![0u64; self.tree.inode_slots().div_ceil(64)];
        let mut pending = vec![ROOT];
        while let Some(directory) = pending.pop() {
            let listing = Listing::new(self.tree, directory);
            let size = listing.size();
            let mut subdirectories = 0;
            let first = pending.len();
            for (name, child) in &listing.names {
                if matches!(*name, b"." | b"..") {
                    continue;
                }
                if self.tree.inode(*child).is_directory() {
                    subdirectories += 1;
                    pending.push(*child);
                }
                let (word, bit) = (*child as usize / 64, 1u64 << (child % 64));
                if seen[word] & bit == 0 {
                    seen[word] |= bit;
                    order.push(*child);
                }
            }
            pending[first..].reverse();
            let inode = self.tree.inode_mut(directory);
            inode.size = size;
            inode.links = 2 + subdirectories;
        }
        order
    }

    /// The build time, which compact inodes share: the newest time, since reproducible images clamp to it.
    fn newest(&self, order: &[Id]) -> (i64, u32) {
        let time = |id: &Id| {
            let a = &self.tree.inode(*id).attributes;
            (a.mtime, a.nanoseconds)
        };
        order.iter().map(time).max().unwrap_or_default()
    }

    fn metadata(
        &mut self,
        by_place: &[(u32, Id)],
        starts: &[(Id, u32)],
        build_time: (i64, u32),
    ) -> Result<(), Error> {
        let start = self.area.image.position();
        self.area.spool.flush()?;
        let mut tails = TailReader::default();
        let mut out = Vec::new();
        for (number, (nid, id)) in by_place.iter().enumerate() {
            let at = start + u64::from(*nid) * SLOT;
            self.area.image.zeros(at - self.area.image.position())?;
            let plan = self.plan(*id, build_time);
            let inode = self.tree.inode(*id);
            let late = || match starts.binary_search_by_key(id, |(id, _)| *id) {
                Ok(i) => starts[i].1,
                Err(_) => NULL_BLOCK,
            };
            let union = match inode.body {
                Body::Nothing => 0,
                Body::Device(number) => number,
                Body::Chunks { bits, .. } => u32::from(bits),
                Body::Blocks { start, .. } => start,
                Body::Directory { .. } | Body::Target(_) => late(),
            };
            out.clear();
            let raw = RawInode {
                attributes: &inode.attributes,
                layout: plan.layout,
                xattr_bytes: plan.head - erofs::inode_bytes(plan.compact),
                links: inode.links,
                size: plan.size,
                union,
                number: u32::try_from(number + 1).expect("inodes have an Id each"),
            };
            raw.encode(plan.compact, &mut out);
            out.extend_from_slice(self.tree.xattrs.encoded(inode.attributes.xattrs));
            match inode.body {
                Body::Blocks { tail, .. } if plan.tail > 0 => {
                    let spool = &self.area.spool;
                    tails
                        .append(&spool.file, tail, plan.tail, &mut out)
                        .map_err(|e| Error::io("read", &spool.path, e))?;
                }
                Body::Target(_) if plan.tail > 0 => {
                    let target = self.tree.target(inode);
                    out.extend_from_slice(&target[target.len() - plan.tail..]);
                }
                Body::Directory { .. } if plan.tail > 0 => {
                    let listing = Listing::new(self.tree, *id);
                    let last = listing.blocks().last();
                    last.into_iter().for_each(|(entries, _)| encode_block(self.tree, entries, &mut out));
                }
                _ => {}
            }
            self.area.image.write(&out)?;
            if let Body::Chunks { first, count, bits } = inode.body {
                self.chunk_table(first, count, bits, plan.table / 4)?;
            }
        }
        self.area.image.align()
    }

    /// A block address for each chunk.
    fn chunk_table(&mut self, first: u32, count: u32, bits: u8, chunks: u64) -> Result<(), Error> {
        let mut extents = (first..first + count).map(|i| self.tree.extents[i]).peekable();
        let mut out = Vec::with_capacity(BLOCK);
        for chunk in 0..chunks {
            let block = chunk << bits;
            while extents.next_if(|e| u64::from(e.logical) + u64::from(e.count) <= block).is_some() {}
            let address = match extents.peek() {
                Some(e) if u64::from(e.logical) <= block => {
                    e.physical
                        + u32::try_from(block - u64::from(e.logical)).expect("it is one of the extent's")
                }
                _ => NULL_BLOCK,
            };
            out.extend_from_slice(&address.to_le_bytes());
            if out.len() == BLOCK {
                self.area.image.write(&out)?;
                out.clear();
            }
        }
        self.area.image.write(&out)
    }
}

/// Tails come back mostly in the order in which they were written, so reading ahead pays.
#[derive(Default)]
struct TailReader {
    buffer: Vec<u8>,
    start: u64,
}

impl TailReader {
    const AHEAD: usize = 256 << 10;

    fn append(&mut self, spool: &std::fs::File, at: u64, n: usize, out: &mut Vec<u8>) -> std::io::Result<()> {
        let held = self.start..self.start + self.buffer.len() as u64;
        if !(held.contains(&at) && at + n as u64 <= held.end) {
            self.buffer.resize(Self::AHEAD, 0);
            self.start = at;
            let mut filled = 0;
            while filled < Self::AHEAD {
                match spool.read_at(&mut self.buffer[filled..], at + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            self.buffer.truncate(filled);
        }
        let from = to_usize(at - self.start);
        let tail = self.buffer.get(from..from + n).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        out.extend_from_slice(tail);
        Ok(())
    }
}

const _: () = assert!(MAX_TAIL + 2 * to_usize(SLOT) <= BLOCK);
const _: () = assert!(NONE == u32::MAX && format::MASK == 0o170000);
