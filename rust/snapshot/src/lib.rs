//! Snapshot files of virtual machines: their format, sparse RAM, publishing, verification.
//!
//! The format, [`v9`], knows nothing of what a device or an engine saves: it holds named sections of bytes. The file
//! ends with the guest's RAM, aligned so that it can be mapped copy-on-write, zero pages as holes.
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
pub mod v9;

pub use digest::Digest32;
pub use error::Error;

/// What everything here gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
