//! What is asked of the host's kernel. Names are single components, and symbolic links are never followed: nothing here
//! can leave the directory that a descriptor stands for.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Statx, StatxFlags, Timestamps, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use crate::sealed;
pub(crate) use crate::sealed::open_path;

/// Which file this is, whatever it is called: a number of an inode is used again, its time of birth is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub dev: u64,
    pub ino: u64,
    pub born: (i64, u32),
}

saved_structure!(Identity { dev: u64, ino: u64, born: (i64, u32) });

impl Identity {
    pub(crate) fn of(stat: &Statx) -> Self {
        let dev = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
        let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = if known { (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { (0, 0) };
        Self { dev, ino: stat.stx_ino, born }
    }
}

/// The attributes of what a descriptor stands for.
pub(crate) fn stat(file: impl AsFd) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(file, sealed::empty()?, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// The same of a name in a directory.
pub(crate) fn stat_name(directory: impl AsFd, name: &CStr) -> Result<Statx, Errno> {
    stat(open_path(directory, name)?)
}

/// Opens a name in a directory, which is a single component. What is mounted there is part of the share, as with a
/// recursive bind mount.
pub(crate) fn open(directory: impl AsFd, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)
}

/// Gives what a descriptor stands for to somebody else.
pub(crate) fn chown(file: impl AsFd, uid: Option<Uid>, gid: Option<Gid>) -> Result<(), Errno> {
    rustix::fs::chownat(file, sealed::empty()?, uid, gid, AtFlags::EMPTY_PATH)
}

/// Sets the times of what a descriptor stands for.
pub(crate) fn set_times(file: impl AsFd, times: &Timestamps) -> Result<(), Errno> {
    rustix::fs::utimensat(file, sealed::empty()?, times, AtFlags::EMPTY_PATH)
}

/// What the symbolic link says that a descriptor stands for.
pub(crate) fn readlink(link: impl AsFd) -> Result<CString, Errno> {
    rustix::fs::readlinkat(link, sealed::empty()?, Vec::new())
}

/// /proc/self/fd, through which a descriptor of a file that is known becomes one to read and write it with.
pub(crate) struct Descriptors(OwnedFd);

impl Descriptors {
    pub(crate) fn new() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/proc/self/fd", flags, Mode::empty()).map(Self)
    }

    /// The name of a descriptor in that directory.
    pub(crate) fn name(of: &OwnedFd) -> CString {
        CString::new(of.as_raw_fd().to_string()).expect("digits")
    }

    /// Opens the same file anew. The caller knows that it is a regular file or a directory.
    pub(crate) fn reopen(&self, file: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::openat(&self.0, Self::name(file), flags, Mode::empty())
    }

    /// Sets the mode of what a descriptor stands for, which is no symbolic link. Without fchmodat2(2) it has to be a
    /// file that can be opened.
    pub(crate) fn chmod(&self, file: &OwnedFd, mode: Mode) -> Result<(), Errno> {
        match sealed::chmod(file, mode) {
            // PERM is what filters of containers say that do not know the call.
            Err(error @ (Errno::NOSYS | Errno::PERM)) => match rustix::fs::fchmod(file, mode) {
                Err(Errno::BADF) => self
                    .reopen(file, OFlags::RDONLY)
                    .map_or(Err(error), |file| rustix::fs::fchmod(file, mode)),
                done => done,
            },
            done => done,
        }
    }

    /// Gives a file one more name.
    pub(crate) fn link(&self, file: &OwnedFd, directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        rustix::fs::linkat(&self.0, Self::name(file), directory, name, AtFlags::SYMLINK_FOLLOW)
    }
}
