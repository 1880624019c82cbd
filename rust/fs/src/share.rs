//! A directory or a file of the host's that a guest is given, and how long the guest may trust what it has seen of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::Error;
use crate::host::{self, Identity};

/// How long the guest goes by what it has seen, without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Names and attributes for a second; contents until a file's size or time of change is another one.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// For a day: for what nobody else changes.
    Always,
}

impl Cache {
    /// Seconds that names and attributes hold.
    pub(crate) fn seconds(self) -> u64 {
        match self {
            Self::Auto => 1,
            Self::None => 0,
            Self::Always => 24 * 60 * 60,
        }
    }
}

/// One share.
pub struct Share {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) identity: Identity,
    pub(crate) is_dir: bool,
    pub(crate) read_only: bool,
    pub(crate) cache: Cache,
}

impl Share {
    /// Takes an open directory or regular file (O_PATH does). Where it lies is looked at no more: the share goes with the
    /// directory when that is moved.
    pub fn new(fd: OwnedFd, read_only: bool, cache: Cache) -> Result<Self, Error> {
        let stat = host::stat(&fd, c"", AtFlags::EMPTY_PATH).map_err(Error::Share)?;
        let kind = u32::from(stat.stx_mode) & libc::S_IFMT;
        if kind != libc::S_IFDIR && kind != libc::S_IFREG {
            return Err(Error::Kind);
        }
        let identity = Identity::of(&stat);
        Ok(Self { fd: Arc::new(fd), identity, is_dir: kind == libc::S_IFDIR, read_only, cache })
    }

    /// Opens a share by its path, symbolic links included: the path is the user's own.
    pub fn open(path: &std::path::Path, read_only: bool, cache: Cache) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(Error::Share)?;
        Self::new(fd, read_only, cache)
    }

    /// The descriptor, for who sets the rules that hold the process to its shares.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub fn is_directory(&self) -> bool {
        self.is_dir
    }

    pub(crate) fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }
}
