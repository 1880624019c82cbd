//! Everything that can go wrong between a layer and an image.

use std::io;
use std::path::{Path, PathBuf};

use crate::Compression;

/// Why a conversion, an index or a decompression failed.
///
/// Errors that concern one layer arrive wrapped in [`Error::Layer`]; [`Error::kind`] sees through the wrapper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A failure while reading or applying one layer.
    #[error("layer {index} ({path}): {source}", path = path.display())]
    Layer {
        /// From 0, the lowest first.
        index: usize,
        /// The layer's blob.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The file system answered with an error.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// A verb: "open", "read" ….
        action: &'static str,
        /// Of the file that it is about.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No room for the image (ENOSPC, EDQUOT or a file size limit). Nothing is left behind.
    #[error("no room to write {path}: {source}; free space there or choose another cache directory", path = path.display())]
    DiskFull {
        /// Of the file that was written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The progress callback asked to stop.
    #[error("the conversion was cancelled")]
    Cancelled,
    /// A media type that names no compression known here.
    #[error(
        "unsupported layer media type {media_type:?}; plain, gzip and zstd tar layers are supported, encrypted layers are not"
    )]
    MediaType {
        /// As it was given.
        media_type: String,
    },
    /// A digest string that is not `sha256:` or `sha512:` followed by lower-case hexadecimal.
    #[error(
        "malformed or unsupported digest {digest:?}; sha256:<64 hex digits> and sha512:<128 hex digits> are understood"
    )]
    DigestFormat {
        /// As it was given.
        digest: String,
    },
    /// The blob's bytes are not those its digest names.
    #[error(
        "the blob has digest {actual} but {expected} was expected; it is damaged or was replaced, fetch it again"
    )]
    DigestMismatch {
        /// The digest by which the blob was asked for.
        expected: String,
        /// That of its bytes.
        actual: String,
    },
    /// The uncompressed tar is not the one that the image configuration names.
    #[error("the uncompressed layer has digest {actual} but the image configuration says {expected}")]
    DiffIdMismatch {
        /// The diff_id in the image configuration.
        expected: String,
        /// That of the uncompressed bytes.
        actual: String,
    },
    /// The compressed stream is damaged or cut.
    #[error("the {compression} stream is damaged or incomplete: {source}")]
    Decompress {
        /// Which decoder it was.
        compression: Compression,
        /// What the decoder said.
        source: io::Error,
    },
    /// Decoding takes more memory than there is: a zstd window above 64 MiB and above half of what the host has left.
    #[error(
        "the {compression} stream {path} takes more memory to decode than this host or this process has; free some, raise its limit, or compress it without --long and --ultra (os error 12)",
        path = path.display()
    )]
    Memory {
        /// The blob.
        path: PathBuf,
        /// Which decoder it was.
        compression: Compression,
    },
    /// A tar archive that breaks its format.
    #[error("invalid tar archive at byte {offset} of the uncompressed data: {reason}")]
    Tar {
        /// Of the header that it is about.
        offset: u64,
        /// What rule it breaks.
        reason: String,
    },
    /// A well-formed tar entry that cannot become part of a file system.
    #[error("tar entry {name:?}: {reason}")]
    Entry {
        /// As it is in the archive, cut after 200 bytes.
        name: String,
        /// Why a file system cannot have it.
        reason: String,
    },
    /// A limit of [`crate::Limits`] (or of EROFS itself) was reached.
    #[error("more than {value} {what}: {limit} reached; {remedy}")]
    Limit {
        /// Name of the limit.
        limit: &'static str,
        /// What is counted, in the plural.
        what: &'static str,
        /// The limit's value.
        value: u64,
        /// What to do about it.
        remedy: &'static str,
    },
    /// [`crate::index_tar`] met an archive that is compressed as a whole.
    #[error("{path} is compressed with {compression}; decompress the archive first (decompress_archive)", path = path.display())]
    CompressedArchive {
        /// The archive.
        path: PathBuf,
        /// What it is compressed with, by its first bytes.
        compression: Compression,
    },
}

impl Error {
    /// A stable, short name for the kind of failure, seen through [`Error::Layer`].
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Layer { source, .. } => source.kind(),
            Error::Io { .. } => "io",
            Error::DiskFull { .. } => "disk_full",
            Error::Cancelled => "cancelled",
            Error::MediaType { .. } => "media_type",
            Error::DigestFormat { .. } => "digest_format",
            Error::DigestMismatch { .. } => "digest_mismatch",
            Error::DiffIdMismatch { .. } => "diff_id_mismatch",
            Error::Decompress { .. } => "decompress",
            Error::Memory { .. } => "memory",
            Error::Tar { .. } => "tar",
            Error::Entry { .. } => "entry",
            Error::Limit { .. } => "limit",
            Error::CompressedArchive { .. } => "compressed_archive",
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                Error::DiskFull { path: path.to_owned(), source }
            }
            _ => Error::Io { action, path: path.to_owned(), source },
        }
    }

    pub(crate) fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        const SHOWN: usize = 200;
        let mut shown = String::from_utf8_lossy(&name[..name.len().min(SHOWN)]).into_owned();
        if name.len() > SHOWN {
            shown.push('…');
        }
        Error::Entry { name: shown, reason: reason.into() }
    }

    pub(crate) fn in_layer(self, index: usize, path: &Path) -> Self {
        match self {
            // What concerns the output or the whole run is not the layer's fault.
            e @ (Error::Layer { .. } | Error::Cancelled | Error::DiskFull { .. }) => e,
            e => Error::Layer { index, path: path.to_owned(), source: Box::new(e) },
        }
    }
}
