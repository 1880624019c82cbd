//! Everything that can go wrong between a machine's state and a file.

use std::io;
use std::path::{Path, PathBuf};

use crate::Digest32;

/// Why a snapshot could not be read, written, checked or published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something on an open snapshot file.
    #[error("cannot {action} the snapshot file: {source}")]
    Io {
        /// A verb: "read", "write" ….
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The operating system refused something on a path.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Path {
        /// A verb: "open", "rename" ….
        action: &'static str,
        /// Of the file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No room for the file (ENOSPC, EDQUOT or a file size limit). Nothing is published.
    #[error("no room to {action} the snapshot: {source}; free space there or choose another place")]
    DiskFull {
        /// A verb: "write", "publish" ….
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Something is published under that name already.
    #[error("{path} exists; remove it first, ask for it to be replaced, or choose another name", path = path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// There is no place for the file.
    #[error("{path} cannot be written: its directory does not exist; make that, or choose another place", path = path.display())]
    NoDirectory {
        /// The file that was to be made.
        path: PathBuf,
    },
    /// Not this kind of file.
    #[error("this is not a {expected} file: it begins with {found}")]
    Magic {
        /// Which kind was looked for.
        expected: &'static str,
        /// Its first bytes, for people.
        found: String,
    },
    /// The file is shorter than something in it says.
    #[error(
        "{section} at byte {offset} needs {needed} bytes and the file has {available} more; it was cut off, copy or capture it again"
    )]
    Cut {
        /// What it is that is cut.
        section: String,
        /// Where it begins in the file.
        offset: u64,
        /// Bytes that it has from there on.
        needed: u64,
        /// Bytes of the file from there on.
        available: u64,
    },
    /// Something in the file cannot be.
    #[error("{section}, at byte {offset} of the file: {reason}")]
    Invalid {
        /// What it is that is wrong.
        section: String,
        /// Where it is in the file, in bytes.
        offset: u64,
        /// Which rule it breaks.
        reason: String,
    },
    /// The bytes of a part are not those that were written.
    #[error(
        "the checksum of {section} at byte {offset} does not match; the file is damaged, copy or capture it again"
    )]
    Checksum {
        /// Which part.
        section: String,
        /// Where it begins in the file, in bytes.
        offset: u64,
    },
    /// The RAM is not the one that was written.
    #[error(
        "the RAM has digest {found} and {expected} was recorded; the file is damaged, copy or capture it again"
    )]
    RamDigest {
        /// As the header has it.
        expected: Digest32,
        /// That of the RAM in the file.
        found: Digest32,
    },
    /// What is in the file is not what was written to it.
    #[error(
        "{written} bytes of RAM were written and {found} are in the file; something else writes to it, or the file system lost some"
    )]
    WrittenDiffers {
        /// Bytes that were given to the writer.
        written: u64,
        /// Bytes that are data in the file.
        found: u64,
    },
    /// A required section that this build does not know.
    #[error(
        "section {kind:?} (index {index}, version {version}) is required to restore this snapshot and this version does not know it; use the version of supermachine that wrote it, or a newer one"
    )]
    UnknownSection {
        /// The section's kind.
        kind: String,
        /// Which of its kind.
        index: u32,
        /// Of what is in it.
        version: u32,
    },
    /// A register of a version 8 file that is unknown, doubled or missing.
    #[error("vCPU {vcpu}, at byte {offset} of the file: {reason}")]
    Register {
        /// Its index.
        vcpu: u32,
        /// Where the register's record is in the file, in bytes.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The members of a chain do not belong together.
    #[error("snapshot {position} of the chain: {reason}")]
    Chain {
        /// From 0, the whole one first.
        position: usize,
        /// Why it is not the one that belongs there.
        reason: String,
    },
    /// A string that is no digest.
    #[error("{text:?} is no digest: one is 64 lower-case hexadecimal digits")]
    Digest {
        /// As it was given.
        text: String,
    },
    /// A watcher asked to stop.
    #[error("this was cancelled")]
    Cancelled,
    /// What was to be written cannot be.
    #[error("this cannot be written as a snapshot: {reason}")]
    Unwritable {
        /// Which rule of the format it breaks.
        reason: String,
    },
}

impl Error {
    /// A stable, short name for the kind of failure.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Io { .. } | Error::Path { .. } => "io",
            Error::DiskFull { .. } => "disk_full",
            Error::Exists { .. } => "exists",
            Error::NoDirectory { .. } => "no_directory",
            Error::Magic { .. } => "magic",
            Error::Cut { .. } => "cut",
            Error::Invalid { .. } => "invalid",
            Error::Checksum { .. } => "checksum",
            Error::RamDigest { .. } => "ram_digest",
            Error::WrittenDiffers { .. } => "written_differs",
            Error::UnknownSection { .. } => "unknown_section",
            Error::Register { .. } => "register",
            Error::Chain { .. } => "chain",
            Error::Digest { .. } => "digest",
            Error::Cancelled => "cancelled",
            Error::Unwritable { .. } => "unwritable",
        }
    }

    /// For `map_err`: a failure to `action` the open file.
    pub(crate) fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(number) if NO_ROOM.contains(&number) => Error::DiskFull { action, source },
            _ => Error::Io { action, source },
        }
    }

    /// For `map_err`: a failure to `action` something at `path`.
    pub(crate) fn path(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(number) if NO_ROOM.contains(&number) => Error::DiskFull { action, source },
            _ => Error::Path { action, path: path.to_owned(), source },
        }
    }

    pub(crate) fn invalid(section: impl Into<String>, offset: u64, reason: impl Into<String>) -> Self {
        Error::Invalid { section: section.into(), offset, reason: reason.into() }
    }

    pub(crate) fn unwritable(reason: impl Into<String>) -> Self {
        Error::Unwritable { reason: reason.into() }
    }
}

/// What a file begins with, for [`Error::Magic`].
pub(crate) fn beginning(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "its end: it is empty".into();
    }
    if bytes.iter().all(|byte| *byte == 0) {
        // The header is written last.
        return "zeros, as one does whose capture was not finished".into();
    }
    match bytes {
        b"SMSNAP\x08\0" => "the mark of a version 8 snapshot".into(),
        b"SMSNAP\x09\0" => "the mark of a version 9 snapshot".into(),
        other => format!("{:?}", String::from_utf8_lossy(other)),
    }
}

const NO_ROOM: [i32; 3] = [
    rustix::io::Errno::NOSPC.raw_os_error(),
    rustix::io::Errno::DQUOT.raw_os_error(),
    rustix::io::Errno::FBIG.raw_os_error(),
];
