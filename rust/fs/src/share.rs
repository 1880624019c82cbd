//! A directory or a file of the host's that a guest is given, and how long the guest may trust what it has seen of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Error;
use crate::host::{self, Descriptors, Identity};
use crate::owners::{self, Owner};

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
    pub(crate) owner: Owner,
    /// Bytes by which the guest may make it grow, and by how many it has.
    pub(crate) quota: Option<u64>,
    pub(crate) grown: i64,
    /// Whether the guest's kernel may be told of what the host changes.
    pub(crate) watch: bool,
}

impl Share {
    /// Takes an open directory or regular file (O_PATH does). Where it lies is looked at no more: the share goes with
    /// the directory when that is moved.
    pub fn new(fd: OwnedFd, read_only: bool, cache: Cache) -> Result<Self, Error> {
        let stat = host::stat(&fd).map_err(Error::Share)?;
        let kind = u32::from(stat.stx_mode) & libc::S_IFMT;
        if kind != libc::S_IFDIR && kind != libc::S_IFREG {
            return Err(Error::Kind);
        }
        let identity = Identity::of(&stat);
        let (fd, is_dir) = (Arc::new(fd), kind == libc::S_IFDIR);
        Ok(Self {
            fd,
            identity,
            is_dir,
            read_only,
            cache,
            owner: Owner::Host,
            quota: None,
            grown: 0,
            watch: false,
        })
    }

    /// Has it keep the owners and modes that the guest sets. The host's file system must have extended attributes of
    /// users.
    pub fn with_owners_of_its_own(mut self) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = Descriptors::new().map_err(Error::Descriptors)?.reopen(&self.fd, flags);
        owners::possible(file.map_err(Error::Share)?).map_err(Error::Owners)?;
        self.owner = Owner::Virtual;
        Ok(self)
    }

    /// Lets the guest make it grow by so many bytes at most.
    pub fn with_quota(mut self, bytes: u64) -> Self {
        self.quota = Some(bytes);
        self
    }

    /// Has the guest's kernel told of what the host changes, by a thread of the guest's that makes itself known.
    pub fn watched(mut self) -> Self {
        self.watch = true;
        self
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

    /// Whether what would change something fails with EROFS.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it is a directory, and not a single file.
    pub fn is_directory(&self) -> bool {
        self.is_dir
    }

    pub(crate) fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }
}
