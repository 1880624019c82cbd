//! Snapshot files of virtual machines: two formats, sparse RAM, publishing, verification.
//!
//! [`v9`] is the format that this project writes; [`v8`] the one that arm64 snapshots in the field have. Neither knows
//! what a device or an engine is: v9 holds named sections of bytes, v8 has fixed records of Hypervisor.framework's
//! registers; [`layout`] has the names and places of devices. Both files end with the guest's RAM, aligned so that it
//! can be mapped copy-on-write, zeros as holes.
//!
//! [`export`] packs either into one compressed file, [`parts`] into blobs that are fetched and checked in pieces.
//!
//! A file is hostile until it was checked: readers allocate for bytes that they have seen only, within fixed limits.
//! A file is whole or not there: writers go through [`publish::Publication`], and the header comes last.

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
#![forbid(unsafe_code)]

pub mod boot_files;
mod codec;
mod digest;
mod error;
pub mod export;
mod fault;
pub mod layout;
pub mod parts;
pub mod publish;
pub mod ram;
mod source;
#[cfg(test)]
mod testing;
pub mod v8;
pub mod v9;

pub use digest::Digest32;
pub use error::Error;
pub use source::{Source, open};

/// What a file begins like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// [`v8`], as hypervisors in the field write it.
    V8,
    /// [`v9`], this project's own.
    V9,
    /// Parts of a snapshot, packed into one file ([`export`]).
    Export,
}

impl Format {
    /// Looks at the first bytes alone.
    pub fn of(source: &dyn Source) -> Result<Self> {
        let length = source.length().map_err(Error::io("look at"))?;
        let mut start = [0; 8];
        let start = &mut start[..usize::try_from(length).map_or(8, |length| length.min(8))];
        source.fill_at(start, 0).map_err(Error::io("read"))?;
        match &*start {
            start if start == v8::MAGIC => Ok(Self::V8),
            start if start == v9::MAGIC => Ok(Self::V9),
            start if start.starts_with(&export::MAGIC) => Ok(Self::Export),
            start => Err(Error::Magic { expected: "snapshot", found: error::beginning(start) }),
        }
    }
}

/// What everything here gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
