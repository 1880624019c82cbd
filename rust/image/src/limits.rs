//! Bounds that keep a hostile image from filling the disk or the memory.

use crate::Error;

/// What one conversion may use. Every default is far above real images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers together after decompression; answers gzip bombs. Default 64 GiB.
    pub max_uncompressed_bytes: u64,
    /// Tar entries of all layers together. Default 4 million.
    pub max_entries: u64,
    /// Bytes of memory for names, inodes, extended attributes and block maps. Default 128 MiB, which is room for more
    /// than a million files and keeps the peak of a conversion under 200 MB.
    pub max_metadata_bytes: u64,
    /// Apparent size of one file, holes included. Default and ceiling 16 TiB less one block (32-bit block numbers).
    pub max_file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_uncompressed_bytes: 64 << 30,
            max_entries: 4_000_000,
            max_metadata_bytes: 128 << 20,
            max_file_bytes: MAX_FILE_BYTES,
        }
    }
}

pub(crate) const MAX_FILE_BYTES: u64 = (1 << 44) - 4096;

impl Limits {
    pub(crate) fn uncompressed(&self, bytes: u64) -> Result<(), Error> {
        if bytes <= self.max_uncompressed_bytes {
            return Ok(());
        }
        Err(Error::Limit {
            limit: "max_uncompressed_bytes",
            what: "bytes of uncompressed data",
            value: self.max_uncompressed_bytes,
            remedy: "raise Limits::max_uncompressed_bytes if the image is trusted to be that large",
        })
    }

    pub(crate) fn entries(&self, count: u64) -> Result<(), Error> {
        if count <= self.max_entries {
            return Ok(());
        }
        Err(Error::Limit {
            limit: "max_entries",
            what: "tar entries",
            value: self.max_entries,
            remedy: "raise Limits::max_entries if the image really has that many files",
        })
    }

    pub(crate) fn metadata(&self, bytes: u64) -> Result<(), Error> {
        if bytes <= self.max_metadata_bytes {
            return Ok(());
        }
        Err(Error::Limit {
            limit: "max_metadata_bytes",
            what: "bytes of file system metadata",
            value: self.max_metadata_bytes,
            remedy: "raise Limits::max_metadata_bytes if the image really has that many files and memory allows it",
        })
    }

    pub(crate) fn file(&self, bytes: u64) -> Result<(), Error> {
        let value = self.max_file_bytes.min(MAX_FILE_BYTES);
        if bytes <= value {
            return Ok(());
        }
        Err(Error::Limit {
            limit: "max_file_bytes",
            what: "bytes in one file",
            value,
            remedy: "raise Limits::max_file_bytes (16 TiB at most)",
        })
    }
}
