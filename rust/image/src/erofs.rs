//! EROFS structures as bytes (Linux 6.12, fs/erofs/erofs_fs.h; Documentation/filesystems/erofs.rst).
//!
//! Uncompressed layouts only. Compressed ones would be further values of [`Layout`].

use crate::data::BLOCK;
use crate::tree::{Attributes, format};

/// Bytes of an inode number's unit: the address of inode n is `n * 32` into the metadata area.
pub(crate) const SLOT: u64 = 32;

/// Of a block's size the logarithm.
const BLOCK_BITS: u8 = 12;
const _: () = assert!(1 << BLOCK_BITS == BLOCK);

const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;

/// A block address that stands for zeros.
pub(crate) const NULL_BLOCK: u32 = u32::MAX;

pub(crate) const DIRENT: usize = 12;

pub(crate) struct SuperBlock {
    pub root: u16,
    pub inodes: u64,
    pub build_time: (i64, u32),
    pub blocks: u32,
    pub metadata: u32,
    pub uuid: [u8; 16],
    pub chunked: bool,
}

impl SuperBlock {
    /// The image's first block; boot code's place before the superblock is zero.
    pub(crate) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut at = SUPER_OFFSET;
        let mut put = |bytes: &[u8]| {
            block[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&[0; 4]);
        put(&(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(&[BLOCK_BITS, 0]);
        put(&self.root.to_le_bytes());
        put(&self.inodes.to_le_bytes());
        put(&self.build_time.0.to_le_bytes());
        put(&self.build_time.1.to_le_bytes());
        put(&self.blocks.to_le_bytes());
        put(&self.metadata.to_le_bytes());
        put(&0u32.to_le_bytes());
        put(&self.uuid);
        put(&[0; 16]);
        put(&if self.chunked { INCOMPAT_CHUNKED_FILE } else { 0 }.to_le_bytes());
        // The kernel's checksum leaves out the final inversion that CRC-32C ends with elsewhere.
        let checksum = !crc32c::crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    FlatPlain = 0,
    FlatInline = 2,
    ChunkBased = 4,
}

pub(crate) struct RawInode<'a> {
    pub attributes: &'a Attributes,
    pub layout: Layout,
    pub xattr_bytes: usize,
    pub links: u32,
    pub size: u64,
    /// `i_u`: first block, device number or chunk format.
    pub union: u32,
    /// `i_ino`, for 32-bit callers of stat(2).
    pub number: u32,
}

/// Whether the 32-byte form can hold an inode: it has no time of its own and narrow fields.
pub(crate) fn is_compact(attributes: &Attributes, links: u32, size: u64, build_time: (i64, u32)) -> bool {
    (attributes.mtime, attributes.nanoseconds) == build_time
        && attributes.uid <= u32::from(u16::MAX)
        && attributes.gid <= u32::from(u16::MAX)
        && links <= u32::from(u16::MAX)
        && size <= u64::from(u32::MAX)
}

pub(crate) fn inode_bytes(compact: bool) -> usize {
    if compact { 32 } else { 64 }
}

impl RawInode<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "is_compact and xattr's MAX_BODY say what fits")]
    pub(crate) fn encode(&self, compact: bool, out: &mut Vec<u8>) {
        let a = self.attributes;
        let start = out.len();
        let xattr_count = match self.xattr_bytes {
            0 => 0,
            n => ((n - 12) / 4 + 1) as u16,
        };
        let format = u16::from(!compact) | (self.layout as u16) << 1;
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&xattr_count.to_le_bytes());
        out.extend_from_slice(&a.mode.to_le_bytes());
        if compact {
            out.extend_from_slice(&(self.links as u16).to_le_bytes());
            out.extend_from_slice(&(self.size as u32).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&self.union.to_le_bytes());
            out.extend_from_slice(&self.number.to_le_bytes());
            out.extend_from_slice(&(a.uid as u16).to_le_bytes());
            out.extend_from_slice(&(a.gid as u16).to_le_bytes());
        } else {
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&self.size.to_le_bytes());
            out.extend_from_slice(&self.union.to_le_bytes());
            out.extend_from_slice(&self.number.to_le_bytes());
            out.extend_from_slice(&a.uid.to_le_bytes());
            out.extend_from_slice(&a.gid.to_le_bytes());
            out.extend_from_slice(&a.mtime.to_le_bytes());
            out.extend_from_slice(&a.nanoseconds.to_le_bytes());
            out.extend_from_slice(&self.links.to_le_bytes());
        }
        out.resize(start + inode_bytes(compact), 0);
    }
}

/// `EROFS_FT_*`, the generic directory entry types.
pub(crate) fn file_type(mode: u16) -> u8 {
    match mode & format::MASK {
        format::FILE => 1,
        format::DIRECTORY => 2,
        format::CHAR => 3,
        format::BLOCK => 4,
        format::FIFO => 5,
        format::SYMLINK => 7,
        _ => 0,
    }
}
