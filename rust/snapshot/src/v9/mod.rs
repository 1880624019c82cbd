//! Version 9: identity, named sections with checksums, RAM.
//!
//! | part | bytes |
//! |---|---|
//! | header | 160 |
//! | sections | `metadata_bytes` |
//! | zeros | up to the next multiple of 64 KiB |
//! | RAM | `memory_bytes` |
//! | the disk's blocks, since minor version 1 | as section `disk` says |
//!
//! The header's own digest covers a digest of the sections and one of the RAM, so it names the whole snapshot: it is
//! the snapshot's id, by which a diff names its parent.
//!
//! ```
//! use supermachine_snapshot::v9::{Identity, Metadata, Section, Snapshot, Writer};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = std::env::temp_dir().join(format!("snapshot-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory)?;
//! # let path = directory.join("a");
//! let metadata = Metadata {
//!     identity: Identity {
//!         architecture: "aarch64".into(),
//!         engine: "soft".into(),
//!         vcpus: 1,
//!         memory_bytes: 64 << 10,
//!         ram_gpa: 0x4000_0000,
//!         ..Identity::default()
//!     },
//!     sections: vec![Section {
//!         kind: "vcpu".into(),
//!         index: 0,
//!         version: 1,
//!         required: true,
//!         data: b"registers".to_vec(),
//!     }],
//! };
//! let publication = supermachine_snapshot::publish::Publication::begin(&path)?;
//! // The guest is paused ...
//! let mut writer = Writer::begin(publication.file(), &metadata)?;
//! writer.write_ram(&[7; 64 << 10])?;
//! // ... and goes on.
//! let written = writer.finish()?;
//! publication.commit(false)?;
//!
//! let file = std::fs::File::open(&path)?;
//! let snapshot = Snapshot::open(&file)?;
//! snapshot.require_known(&["vcpu"])?;
//! assert_eq!(snapshot.id(), written.id);
//! assert_eq!(snapshot.section("vcpu", 0).unwrap().data, b"registers");
//! # std::fs::remove_dir_all(&directory)?;
//! # Ok(())
//! # }
//! ```

mod chain;
mod disk;
mod extents;
mod header;
mod identity;
mod reader;
mod section;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::Range;

pub use chain::{check_chain, flatten, flatten_watched, layers};
pub use disk::{Disk, DiskContents, DiskPiece, disk_layers};
pub use header::MAGIC;
pub use reader::{Snapshot, Verified, verify, verify_watched};
pub use writer::{Summary, Writer};

use crate::Digest32;

/// Newest minor version that this build writes; a file has the oldest that knows what is in it. A minor version only
/// ever adds: sections, versions of sections, and flags, which older readers refuse.
pub const MINOR: u32 = 1;
/// RAM begins at a multiple of this in the file, so that hosts of any page size can map it.
pub const RAM_ALIGNMENT: u64 = 64 << 10;
/// The most bytes of sections that a file may have.
pub const MAX_METADATA: u64 = 32 << 20;
/// The most sections that a file may have.
pub const MAX_SECTIONS: u32 = 1 << 16;
/// The most characters in a section's kind.
pub const MAX_KIND: usize = 16;

/// Everything in a snapshot but RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// What the machine must be.
    pub identity: Identity,
    /// In the order of the file.
    pub sections: Vec<Section>,
}

/// What a machine must be, to be restored from this snapshot. Strings have at most 256 bytes and no control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Of the guest: `aarch64` or `x86_64`.
    pub architecture: String,
    /// Engine whose sections these are.
    pub engine: String,
    /// Of the engine's sections: who knows another refuses them.
    pub engine_version: u32,
    /// Features of the CPU that the guest may have come to rely on.
    pub cpu_features: Vec<String>,
    /// BLAKE3 of the kernel that the guest booted.
    pub kernel: Digest32,
    /// BLAKE3 of the initramfs, the agent in it, that the guest booted.
    pub initramfs: Digest32,
    /// Digest of the image that is the guest's root.
    pub image: Option<String>,
    /// Types of the devices in bus order.
    pub devices: Vec<String>,
    /// At least 1.
    pub vcpus: u32,
    /// A multiple of 4 KiB, and not 0.
    pub memory_bytes: u64,
    /// Guest physical address of the RAM; a multiple of 4 KiB.
    pub ram_gpa: u64,
    /// Id of the snapshot that this is a diff to; `None` when it is whole.
    pub parent: Option<Digest32>,
    /// Wall clock at capture, nanoseconds since 1970-01-01 UTC.
    pub created_unix_ns: u64,
}

/// A named piece of state; the file does not know what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// 1 to 16 of `a-z 0-9 - . _`, such as `vcpu`. `identity`, `ram-extents` and `disk` are the file's own.
    pub kind: String,
    /// Tells apart sections of one kind.
    pub index: u32,
    /// Of the data's format.
    pub version: u32,
    /// Whether a reader that does not know this kind must refuse the snapshot.
    pub required: bool,
    /// At most [`MAX_METADATA`] with those of all other sections.
    pub data: Vec<u8>,
}

/// Sorted, page-aligned byte ranges of RAM.
pub type Extents = Vec<Range<u64>>;
