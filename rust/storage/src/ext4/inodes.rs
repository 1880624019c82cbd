//! The inodes that an empty file system has, and its two directories.

#![expect(
    clippy::cast_possible_truncation,
    reason = "fields hold a part of a number, or what Layout::new bounds"
)]

use supermachine_support::to_usize;

use super::structures::{JOURNAL, LOST_FOUND, ROOT, Sums, put16, put32};
use super::{BLOCK, INODE_SIZE, Identity, Layout};

const EXTENTS: u32 = 0x8_0000;
/// Bytes of an inode beyond the first 128 that have a meaning.
const EXTRA: u16 = 32;
/// The entry at the end of a directory's block that holds its checksum.
const TAIL: usize = 12;

pub(super) struct Contents<'a> {
    pub layout: &'a Layout,
    pub identity: &'a Identity,
    pub sums: Sums<'a>,
}

impl Contents<'_> {
    /// The block of the first inodes' table that is not all zeros.
    pub(super) fn first_inodes(&self) -> Vec<u8> {
        let mut block = vec![0; to_usize(BLOCK)];
        let layout = self.layout;
        for (number, inode) in [
            (ROOT, self.inode(ROOT, 0o40755, 3, layout.root, 1)),
            (JOURNAL, self.journal()),
            (LOST_FOUND, self.inode(LOST_FOUND, 0o40700, 2, layout.lost_found, 1)),
        ] {
            let at = to_usize(u64::from(number - 1) * INODE_SIZE);
            block[at..at + inode.len()].copy_from_slice(&inode);
        }
        block
    }

    pub(super) fn journal(&self) -> Vec<u8> {
        let (start, blocks) = self.layout.journal;
        self.inode(JOURNAL, 0o100_600, 1, start, blocks)
    }

    /// An inode whose contents lie together.
    fn inode(&self, number: u32, mode: u16, links: u16, start: u64, blocks: u64) -> Vec<u8> {
        let mut inode = vec![0; to_usize(INODE_SIZE)];
        put16(&mut inode, 0, mode);
        put32(&mut inode, 4, (blocks * BLOCK) as u32);
        // Access, change and modification; and birth.
        for at in [8, 12, 16, 144] {
            put32(&mut inode, at, self.identity.created);
        }
        put16(&mut inode, 26, links);
        put32(&mut inode, 28, (blocks * BLOCK / 512) as u32);
        put32(&mut inode, 32, EXTENTS);
        // The header of an extent tree with one leaf in the inode, and the leaf.
        put16(&mut inode, 40, 0xf30a);
        put16(&mut inode, 42, 1);
        put16(&mut inode, 44, 4);
        put16(&mut inode, 56, blocks as u16);
        put16(&mut inode, 58, (start >> 32) as u16);
        put32(&mut inode, 60, start as u32);
        put16(&mut inode, 128, EXTRA);
        let sum = self.sum(number, &inode);
        put16(&mut inode, 124, sum as u16);
        put16(&mut inode, 130, (sum >> 16) as u16);
        inode
    }

    /// The checksum of something of an inode's, which begins with its number and generation.
    fn sum(&self, number: u32, bytes: &[u8]) -> u32 {
        self.sums.of(&[&number.to_le_bytes(), &[0; 4], bytes])
    }

    pub(super) fn root(&self) -> Vec<u8> {
        self.directory(ROOT, &[(ROOT, "."), (ROOT, ".."), (LOST_FOUND, "lost+found")])
    }

    pub(super) fn lost_found(&self) -> Vec<u8> {
        self.directory(LOST_FOUND, &[(LOST_FOUND, "."), (ROOT, "..")])
    }

    /// A directory of directories in one block; the last entry reaches to the tail, or to the end where there is none.
    fn directory(&self, number: u32, entries: &[(u32, &str)]) -> Vec<u8> {
        let mut block = vec![0; to_usize(BLOCK)];
        let end = if self.sums.are_kept() { block.len() - TAIL } else { block.len() };
        let mut at = 0;
        for (index, (inode, name)) in entries.iter().enumerate() {
            let last = index + 1 == entries.len();
            let length = if last { end - at } else { (8 + name.len()).next_multiple_of(4) };
            put32(&mut block, at, *inode);
            put16(&mut block, at + 4, length as u16);
            block[at + 6] = name.len() as u8;
            // EXT4_FT_DIR
            block[at + 7] = 2;
            block[at + 8..at + 8 + name.len()].copy_from_slice(name.as_bytes());
            at += length;
        }
        if self.sums.are_kept() {
            put16(&mut block, end + 4, TAIL as u16);
            block[end + 7] = 0xde;
            let sum = self.sum(number, &block[..end]);
            put32(&mut block, end + 8, sum);
        }
        block
    }
}
