//! What is asked of the host's kernel. Names are single components, and symbolic links are never followed: nothing here
//! can leave the directory that a descriptor stands for.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

/// Which file this is, whatever it is called: a number of an inode is used again, its time of birth is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub dev: u64,
    pub ino: u64,
    born: (i64, u32),
}

impl Identity {
    pub fn of(stat: &Statx) -> Self {
        let dev = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
        let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = if known { (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { (0, 0) };
        Self { dev, ino: stat.stx_ino, born }
    }
}

/// The attributes of a name in a directory, or of the descriptor itself (with an empty name and `EMPTY_PATH`).
pub fn stat(directory: impl AsFd, name: &CStr, flags: AtFlags) -> Result<Statx, Errno> {
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Opens a name in a directory. What is mounted there is part of the share, as with a recursive bind mount.
pub fn open(directory: impl AsFd, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, resolve)
}

/// Stands for a file without opening it: a FIFO is not joined, a device not touched.
pub fn open_path(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    open(directory, name, OFlags::PATH, Mode::empty())
}

/// /proc/self/fd, through which a descriptor of a file that is known becomes one to read and write it with.
pub struct Descriptors(OwnedFd);

impl Descriptors {
    pub fn new() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/proc/self/fd", flags, Mode::empty()).map(Self)
    }

    /// The name of a descriptor in that directory.
    pub fn name(of: &OwnedFd) -> CString {
        CString::new(of.as_raw_fd().to_string()).expect("digits")
    }

    /// Opens the same file anew. The caller knows that it is a regular file or a directory.
    pub fn reopen(&self, file: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::openat(&self.0, Self::name(file), flags, Mode::empty())
    }

    pub fn chmod(&self, file: &OwnedFd, mode: Mode) -> Result<(), Errno> {
        rustix::fs::chmodat(&self.0, Self::name(file), mode, AtFlags::empty())
    }

    /// Gives a file one more name.
    pub fn link(&self, file: &OwnedFd, directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        rustix::fs::linkat(&self.0, Self::name(file), directory, name, AtFlags::SYMLINK_FOLLOW)
    }
}
