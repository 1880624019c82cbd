//! An empty ext4 file system in a sparse file, made in milliseconds whatever its size.
//!
//! Of all block groups but the first and the last only the descriptor is written: the kernel makes their bitmaps when
//! it first needs them (`BLOCK_UNINIT`, `INODE_UNINIT`), and inode tables are holes, which read as the zeros that they
//! are to be (`INODE_ZEROED`). Each group has its own bitmaps and inodes at its start, since a group that held
//! another's would have to be written. The kernel adds groups to such a file system while it is mounted: their
//! descriptors do not follow those that are there but lie in the new groups (`meta_bg`). Layout: the kernel's
//! Documentation/filesystems/ext4.

mod inodes;
mod structures;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use supermachine_support::to_usize;

use crate::BLOCK;
use inodes::Contents;
use structures::{Descriptor, Sums, Superblock};

/// Blocks of a group: as many as a block has bits.
const GROUP: u64 = 8 * BLOCK;
/// Inodes of a group, one for each 16 KiB, and the blocks of their table.
const INODES: u64 = 8192;
const INODE_SIZE: u64 = 256;
const TABLE: u64 = INODES * INODE_SIZE / BLOCK;
/// Blocks of a group that are never a file's: two bitmaps and the table.
const OVERHEAD: u64 = 2 + TABLE;
/// Descriptors in a block.
const DESCRIPTORS: u64 = BLOCK / 64;
/// The smallest file system: the first group's own, a small journal and something to use.
pub const MIN_BYTES: u64 = 16 << 20;
/// The largest, which has 2^31 inodes; its descriptors and its journal fit the first group.
pub const MAX_BYTES: u64 = 32 << 40;

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is too small or too large.
    #[error("a file system of {bytes} bytes cannot be made: from {MIN_BYTES} to {MAX_BYTES} bytes it can")]
    Size {
        /// What it was to have.
        bytes: u64,
    },
    /// A file system does not shrink.
    #[error("a file system of {least} bytes cannot be made one of {bytes}")]
    Smaller {
        /// What it was to have.
        bytes: u64,
        /// What it has.
        least: u64,
    },
    /// There is no room for the descriptors of more groups.
    #[error(
        "the file system was made by an earlier version and cannot grow; export the volume, and import it into a larger one"
    )]
    Old,
    /// What the disk said.
    #[error("a file system cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// Whom a file system is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// A disk of its own. It has checksums, and copies by which `e2fsck` goes when the first are damaged: of the
    /// superblock in all groups that are to have one (`sparse_super`), of the descriptors in [`COPIED`], as those in
    /// the others would be megabytes. The kernel writes there what it changes, and can make it larger.
    Lasting,
    /// A disk that ends with its machine. It has neither, nor places for copies (`sparse_super2`), so that it cannot
    /// grow: what a checksum of each block that is changed would find, snapshots' own find, and of what unpacking a
    /// tree takes the guest's processor a tenth are checksums.
    Passing,
}

/// Groups with copies of the descriptors.
const COPIED: [u64; 2] = [1, 3];

/// What tells one file system from another.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// As blkid shows it.
    pub uuid: [u8; 16],
    /// Seconds since 1970.
    pub created: u32,
}

/// Where things are.
struct Layout {
    blocks: u64,
    groups: u64,
    life: Life,
    /// Groups that begin with a copy of the superblock and room for descriptors, in ascending order.
    copied: Vec<u64>,
    /// Blocks of descriptors, after a superblock.
    descriptor_blocks: u64,
    journal: (u64, u64),
    root: u64,
    lost_found: u64,
}

impl Layout {
    fn new(bytes: u64, life: Life) -> Result<Self, Error> {
        if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) {
            return Err(Error::Size { bytes });
        }
        let mut blocks = bytes / BLOCK;
        let descriptor_blocks = blocks.div_ceil(GROUP).div_ceil(DESCRIPTORS);
        // What is left for the last group may be too small for what it needs itself.
        let least = 1 + descriptor_blocks + OVERHEAD + 64;
        if !blocks.is_multiple_of(GROUP) && blocks % GROUP < least && blocks > GROUP {
            blocks -= blocks % GROUP;
        }
        let groups = blocks.div_ceil(GROUP);
        let root = 1 + descriptor_blocks + OVERHEAD;
        let journal = match bytes {
            ..0x1000_0000 => 1024,
            0x1000_0000..0x4000_0000 => 4096,
            _ => 16384,
        };
        let copied = if life == Life::Lasting { groups_with_copies(groups) } else { Vec::new() };
        Ok(Self {
            blocks,
            groups,
            life,
            copied,
            descriptor_blocks,
            root,
            lost_found: root + 1,
            journal: (root + 2, journal),
        })
    }

    /// Whether a group begins with the superblock, or a copy of it, and descriptors.
    fn has_superblock(&self, group: u64) -> bool {
        group == 0 || self.copied.binary_search(&group).is_ok()
    }

    /// The first block of a group's own: the bitmap of its blocks, that of its inodes, its inodes.
    fn own(&self, group: u64) -> u64 {
        let before = if self.has_superblock(group) { 1 + self.descriptor_blocks } else { 0 };
        group * GROUP + before
    }

    fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - group * GROUP).min(GROUP)
    }

    /// Blocks of a group that are in use; they lie at its start.
    fn used(&self, group: u64) -> u64 {
        match group {
            0 => self.journal.0 + self.journal.1,
            _ => self.own(group) + OVERHEAD - group * GROUP,
        }
    }

    fn free_blocks(&self) -> u64 {
        // Each superblock has this asked for: not by going through all groups.
        let copies = self.copied.len() as u64 * (1 + self.descriptor_blocks);
        self.blocks - self.used(0) - (self.groups - 1) * OVERHEAD - copies
    }

    /// Blocks that are the file system's own, those of two directories left out.
    fn overhead(&self) -> u64 {
        self.blocks - self.free_blocks() - 2
    }
}

/// The first group after the first, and those whose numbers are powers of 3, 5 and 7, in ascending order
/// (`sparse_super`).
fn groups_with_copies(groups: u64) -> Vec<u64> {
    let powers = |base: u64| std::iter::successors(Some(base), move |power| power.checked_mul(base));
    let mut found = vec![1];
    [3, 5, 7].into_iter().for_each(|base| found.extend(powers(base).take_while(|power| *power < groups)));
    found.retain(|group| *group < groups);
    found.sort_unstable();
    found
}

/// Makes an empty file system of `bytes` in a file, whose contents it takes the place of; all that is not written is a
/// hole. The caller syncs the file.
pub fn make(file: &File, bytes: u64, identity: &Identity) -> Result<(), Error> {
    Layout::new(bytes, Life::Lasting)?;
    file.set_len(0)?;
    file.set_len(bytes)?;
    write(bytes, identity, Life::Lasting, &mut |data, offset| file.write_all_at(data, offset))
}

/// As [`make`], on a disk of zeros that `write_at` writes to.
pub fn write(
    bytes: u64,
    identity: &Identity,
    life: Life,
    write_at: &mut dyn FnMut(&[u8], u64) -> io::Result<()>,
) -> Result<(), Error> {
    let layout = Layout::new(bytes, life)?;
    let seed = structures::checksum(!0, &identity.uuid);
    let sums = Sums { life, seed, uuid: &identity.uuid };
    let contents = Contents { layout: &layout, identity, sums };
    let superblock = Superblock { layout: &layout, identity, journal_inode: contents.journal() };

    let inode_bitmap = inode_bitmap();
    let last = layout.groups - 1;
    let mut descriptors = vec![0; to_usize(layout.descriptor_blocks * BLOCK)];
    for group in 0..layout.groups {
        let written = group == 0 || group == last;
        let descriptor = Descriptor {
            own: layout.own(group),
            free_blocks: layout.group_blocks(group) - layout.used(group),
            block_bitmap: written.then(|| sums.of(&[&block_bitmap(&layout, group)])),
            inode_bitmap: (group == 0).then(|| sums.of(&[&inode_bitmap[..to_usize(INODES) / 8]])),
        };
        let at = to_usize(group) * 64;
        let number = u32::try_from(group).expect("MAX_BYTES has 2^18 groups");
        descriptor.write(number, &sums, &mut descriptors[at..at + 64]);
    }
    for &group in &layout.copied {
        #[expect(clippy::cast_possible_truncation, reason = "the field has the lower half, also of mke2fs")]
        let mut copy = superblock.copy(group as u16);
        if COPIED.contains(&group) {
            copy.extend(&descriptors);
        }
        write_at(&copy, group * GROUP * BLOCK)?;
    }
    // One write for what lies together.
    descriptors.extend(block_bitmap(&layout, 0));
    descriptors.extend(inode_bitmap);
    descriptors.extend(contents.first_inodes());
    write_at(&descriptors, BLOCK)?;
    if last > 0 {
        write_at(&block_bitmap(&layout, last), layout.own(last) * BLOCK)?;
    }
    let mut directories = contents.root();
    directories.extend(contents.lost_found());
    directories.extend(structures::journal_superblock(layout.journal.1, &identity.uuid));
    write_at(&directories, layout.root * BLOCK)?;

    // Last, for without it there is no file system.
    write_at(&superblock.bytes(0), 1024)?;
    Ok(())
}

/// Whether the kernel can add groups to a file system that is mounted; to those that earlier versions made it cannot.
pub fn can_grow(file: &File) -> io::Result<bool> {
    let mut features = [0; 4];
    file.read_exact_at(&mut features, 1024 + 92)?;
    Ok(u32::from_le_bytes(features) & structures::SPARSE_SUPER2 == 0)
}

/// Blocks of a group that are in use, and those that it does not have.
fn block_bitmap(layout: &Layout, group: u64) -> Vec<u8> {
    let mut bitmap = vec![0; to_usize(BLOCK)];
    set(&mut bitmap, 0, layout.used(group));
    set(&mut bitmap, layout.group_blocks(group), GROUP);
    bitmap
}

/// The first eleven inodes are reserved or made; what is beyond a group's inodes is set.
fn inode_bitmap() -> Vec<u8> {
    let mut bitmap = vec![0; to_usize(BLOCK)];
    set(&mut bitmap, 0, structures::LOST_FOUND.into());
    set(&mut bitmap, INODES, GROUP);
    bitmap
}

fn set(bitmap: &mut [u8], from: u64, to: u64) {
    for bit in from..to {
        bitmap[to_usize(bit) / 8] |= 1 << (bit % 8);
    }
}
