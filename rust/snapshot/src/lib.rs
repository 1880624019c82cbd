//! Snapshot files of virtual machines: two formats, sparse RAM, publishing, verification.
//!
//! [`v9`] is the format that this project writes; [`v8`] the one that arm64 snapshots in the field have. Neither knows
//! what a device or an engine is: v9 holds named sections of bytes, v8 has fixed records of Hypervisor.framework's
//! registers. Both files end with the guest's RAM, aligned so that it can be mapped copy-on-write, zeros as holes.
//!
//! A file is hostile until it was checked: readers allocate for bytes that they have seen only, within fixed limits.
//! A file is whole or not there: writers go through [`publish::Publication`], and the header comes last.

#![forbid(unsafe_code)]

mod codec;
mod digest;
mod error;
mod fault;
pub mod publish;
pub mod ram;
pub mod v8;
pub mod v9;

pub use digest::Digest32;
pub use error::Error;

/// What everything here gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
