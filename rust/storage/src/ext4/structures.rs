//! The superblock, a group's descriptor and the journal's superblock, field by field at their offsets.

#![expect(
    clippy::cast_possible_truncation,
    reason = "fields hold a part of a number, or what Layout::new bounds"
)]

use supermachine_support::to_usize;

use super::{BLOCK, GROUP, INODE_SIZE, INODES, Identity, Layout, Life};

/// Features that a system need not know; that it must know to write; that it must know at all.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20; // journal, extended attributes, indexed directories
pub(super) const SPARSE_SUPER2: u32 = 0x200;
const READ_ONLY: u32 = 0x2 | 0x8 | 0x20 | 0x40; // large and huge files, many links, large inodes
/// Checksums of everything; and those of descriptors alone, without which groups could not be left to the kernel to
/// make.
const METADATA_CSUM: u32 = 0x400;
const GDT_CSUM: u32 = 0x10;
/// What a file system of a disk that ends with its machine is mounted with in any case: blocks of files are not marked
/// as unwritten first, and as written when they are, which is for crashes, and another transaction for each file.
const MOUNT_OPTIONS: &[u8] = b"dioread_lock";
const SPARSE_SUPER: u32 = 0x1;
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80; // file types, extents, 64 bits
const META_BG: u32 = 0x10;
/// For what grows. Of a disk of 64 GiB it makes a mount take a fifth of a boot's instructions more.
const FLEX_BG: u32 = 0x200;
/// Groups that the kernel treats as one where it spreads directories and adds groups, as a power of two.
const FLEX: u8 = 8;

/// Inodes of the root, the journal and lost+found: their numbers.
pub(super) const ROOT: u32 = 2;
pub(super) const JOURNAL: u32 = 8;
pub(super) const LOST_FOUND: u32 = 11;

/// Of a group's descriptor.
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
const INODE_ZEROED: u16 = 4;

pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// CRC32C as ext4 has it: neither inverted before nor after.
pub(super) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// CRC16 (ANSI), reflected, as descriptors have it.
fn crc16(mut sum: u16, bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < table.len() {
            let (mut sum, mut bit) = (index as u16, 0);
            while bit < 8 {
                sum = sum >> 1 ^ if sum & 1 == 0 { 0 } else { 0xa001 };
                bit += 1;
            }
            table[index] = sum;
            index += 1;
        }
        table
    };
    for byte in bytes {
        sum = sum >> 8 ^ TABLE[usize::from(sum as u8 ^ byte)];
    }
    sum
}

/// How checksums are made.
#[derive(Clone, Copy)]
pub(super) struct Sums<'a> {
    pub life: Life,
    pub seed: u32,
    pub uuid: &'a [u8; 16],
}

impl Sums<'_> {
    pub(super) fn are_kept(&self) -> bool {
        self.life == Life::Lasting
    }

    /// Of what lies in these parts; 0 where none are kept.
    pub(super) fn of(&self, parts: &[&[u8]]) -> u32 {
        let sum = |before, part: &&[u8]| checksum(before, part);
        if self.are_kept() { parts.iter().fold(self.seed, sum) } else { 0 }
    }

    /// Of a group's descriptor, in which it is zeros yet.
    fn of_descriptor(&self, group: u32, descriptor: &[u8]) -> u16 {
        let group = group.to_le_bytes();
        match self.life {
            Life::Lasting => self.of(&[&group, descriptor]) as u16,
            // All but the checksum itself.
            Life::Passing => {
                [self.uuid, &group[..], &descriptor[..30], &descriptor[32..]].into_iter().fold(!0, crc16)
            }
        }
    }
}

pub(super) struct Descriptor {
    /// The first block of the group's own.
    pub own: u64,
    pub free_blocks: u64,
    /// Checksums of the bitmaps that are written; the kernel makes the others.
    pub block_bitmap: Option<u32>,
    pub inode_bitmap: Option<u32>,
}

impl Descriptor {
    pub(super) fn write(&self, group: u32, sums: &Sums<'_>, to: &mut [u8]) {
        for (index, block) in [self.own, self.own + 1, self.own + 2].into_iter().enumerate() {
            put32(to, 4 * index, block as u32);
            put32(to, 32 + 4 * index, (block >> 32) as u32);
        }
        put16(to, 12, self.free_blocks as u16);
        let used = if group == 0 { LOST_FOUND as u16 } else { 0 };
        let free_inodes = INODES as u16 - used;
        put16(to, 14, free_inodes);
        // The directories.
        put16(to, 16, if group == 0 { 2 } else { 0 });
        // Inodes at the table's end that have never been used.
        put16(to, 28, free_inodes);
        let mut flags = INODE_ZEROED;
        for (at, bitmap, flag) in
            [(24, self.block_bitmap, BLOCK_UNINIT), (26, self.inode_bitmap, INODE_UNINIT)]
        {
            match bitmap {
                Some(sum) => {
                    put16(to, at, sum as u16);
                    put16(to, at + 32, (sum >> 16) as u16);
                }
                None => flags |= flag,
            }
        }
        put16(to, 18, flags);
        let sum = sums.of_descriptor(group, to);
        put16(to, 30, sum);
    }
}

pub(super) struct Superblock<'a> {
    pub layout: &'a Layout,
    pub identity: &'a Identity,
    pub journal_inode: Vec<u8>,
}

impl Superblock<'_> {
    /// The one at the start of a group.
    pub(super) fn bytes(&self, group: u16) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let layout = self.layout;
        let inodes = layout.groups * INODES;
        let mut put = |at, value: u64| put32(&mut bytes, at, value as u32);
        put(0, inodes);
        put(4, layout.blocks);
        put(12, layout.free_blocks());
        put(16, inodes - u64::from(LOST_FOUND));
        // Blocks of 1024 << 2 bytes, clusters of as many.
        put(24, 2);
        put(28, 2);
        put(32, GROUP);
        put(36, GROUP);
        put(40, INODES);
        put(48, self.identity.created.into());
        // Never to be checked for having been mounted often; the magic number.
        put(52, 0xffff_0000);
        put(56, 0x0001_ef53);
        // On errors: go on.
        put(60, 1);
        put(64, self.identity.created.into());
        // Revision 1: inodes of other sizes than 128 bytes.
        put(76, 1);
        put(84, LOST_FOUND.into());
        put(88, INODE_SIZE);
        let (compatible, incompatible, read_only) = match layout.life {
            Life::Lasting => (0, META_BG | FLEX_BG, SPARSE_SUPER | METADATA_CSUM),
            Life::Passing => (SPARSE_SUPER2, 0, GDT_CSUM),
        };
        put(92, (COMPATIBLE | compatible).into());
        put(96, (INCOMPATIBLE | incompatible).into());
        put(100, (READ_ONLY | read_only).into());
        put(224, JOURNAL.into());
        // Half MD4 for directories; the journal's inode is kept here as well; descriptors of 64 bytes.
        put(252, 1 | 1 << 8 | 64 << 16);
        // Mounted with extended attributes and access control lists.
        put(256, 0xc);
        // Descriptors of groups from here on would lie in them.
        put(260, if layout.life == Life::Lasting { layout.descriptor_blocks } else { 0 });
        put(264, self.identity.created.into());
        put(336, layout.blocks >> 32);
        put(344, layout.free_blocks() >> 32);
        put(348, 32 | 32 << 16);
        put(584, layout.overhead());
        // Hashes of directories take characters as signed.
        put(352, 1);
        bytes[104..120].copy_from_slice(&self.identity.uuid);
        // The seed of directories' hashes.
        bytes[236..252].copy_from_slice(&self.identity.uuid);
        // The journal's extents, and its size.
        bytes[268..328].copy_from_slice(&self.journal_inode[40..100]);
        put32(&mut bytes, 332, (layout.journal.1 * BLOCK) as u32);
        put16(&mut bytes, 90, group);
        bytes[372] = if layout.life == Life::Lasting { FLEX } else { 0 };
        match layout.life {
            Life::Lasting => {
                // Checksums are CRC32C.
                bytes[373] = 1;
                let sum = checksum(!0, &bytes[..1020]);
                put32(&mut bytes, 1020, sum);
            }
            Life::Passing => bytes[512..512 + MOUNT_OPTIONS.len()].copy_from_slice(MOUNT_OPTIONS),
        }
        bytes
    }

    /// The block of a copy.
    pub(super) fn copy(&self, group: u16) -> Vec<u8> {
        let mut block = self.bytes(group);
        block.resize(to_usize(BLOCK), 0);
        block
    }
}

/// The first block of an empty journal (include/linux/jbd2.h, all big endian).
pub(super) fn journal_superblock(blocks: u64, uuid: &[u8; 16]) -> Vec<u8> {
    let mut block = vec![0; to_usize(BLOCK)];
    let words = [0xc03b_3998_u32, 4, 0, BLOCK as u32, blocks as u32, 1, 1, 0];
    for (index, word) in words.into_iter().enumerate() {
        block[4 * index..4 * index + 4].copy_from_slice(&word.to_be_bytes());
    }
    block[48..64].copy_from_slice(uuid);
    block[64..68].copy_from_slice(&1_u32.to_be_bytes());
    block
}
