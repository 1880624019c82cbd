//! Disks that are files of the host: an empty ext4 file system made in process, the writable disk of a root with its layers,
//! and the lock that keeps two machines from one volume. What changes in directories of the host. Knows no device and no
//! engine.

/// Bytes of a block: of a file system, and what is mapped, shared and given back.
pub const BLOCK: u64 = 4096;

pub mod ext4;
pub mod lock;
pub mod scratch;
pub mod volume;
pub mod watch;
