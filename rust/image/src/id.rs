//! Numbers of inodes and of directory entries.

/// Number of an inode or of a directory entry in its table.
pub(crate) type Id = u32;

/// No inode, no entry.
pub(crate) const NONE: Id = u32::MAX;
pub(crate) const ROOT: Id = 0;
