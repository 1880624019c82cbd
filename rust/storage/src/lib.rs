//! Disks that are files of the host: an empty ext4 file system made in process, the writable disk of a root with its layers,
//! and the lock that keeps two machines from one volume. Knows no device and no engine.

#![deny(unsafe_code)]

pub mod ext4;
pub mod lock;
pub mod scratch;
pub mod volume;
