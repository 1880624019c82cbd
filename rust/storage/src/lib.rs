//! Disks that are files of the host: an empty ext4 file system made in process, the writable disk of a root with its
//! layers, and the lock that keeps two machines from one volume. What changes in directories of the host. Knows no
//! device and no engine.

#![cfg_attr(
    test,
    allow(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "tests make small numbers and bytes of counters"
    )
)]

/// Bytes of a block: of a file system, and what is mapped, shared and given back.
pub const BLOCK: u64 = 4096;

pub mod ext4;
pub mod lock;
pub mod scratch;
pub mod volume;
pub mod watch;
