//! Owners, modes and kinds that are kept beside a file: of a share with owners of its own, whose files all belong to
//! the host's user in truth.
//!
//! They are an extended attribute of the host's file, which the guest neither sees nor sets: `user.supermachine.stat`
//! is "UID:GID:MODE:MAJOR:MINOR", the mode in octal and with its kind. A file without it, or with one that cannot be,
//! shows what the host says. FIFOs, sockets and devices are empty regular files on the host; symbolic links have no
//! such attribute (xattr(7)), and always belong to the host's user.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Statx, XattrFlags};
use rustix::io::Errno;

use crate::abi::set;
use crate::names::MAX_MODE;
use crate::{Header, Session};

/// What all such attributes begin with: they are this server's own.
pub(crate) const RESERVED: &[u8] = b"user.supermachine.";
const NAME: &CStr = c"user.supermachine.stat";
/// Five numbers of 32 bits at most.
const MAX_TEXT: usize = 64;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o010;

/// Whose the files are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// As on the host, where all that the guest makes belongs to one user.
    #[default]
    Host,
    /// As the guest says, kept beside each file.
    Virtual,
}

/// What is kept of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub uid: u32,
    pub gid: u32,
    /// With its kind.
    pub mode: u32,
    /// Of a device: major and minor.
    pub device: (u32, u32),
}

impl Kept {
    /// What the host says.
    pub(crate) fn of(stat: &Statx) -> Self {
        Self { uid: stat.stx_uid, gid: stat.stx_gid, mode: stat.stx_mode.into(), device: (0, 0) }
    }

    fn text(&self) -> String {
        let (major, minor) = self.device;
        format!("{}:{}:{:o}:{major}:{minor}", self.uid, self.gid, self.mode)
    }

    /// What a text says of a file that the host says this of; `None` when it cannot be.
    fn parse(text: &[u8], host: &Statx) -> Option<Self> {
        let mut fields = std::str::from_utf8(text).ok()?.split(':');
        let mut number = |radix| u32::from_str_radix(fields.next()?, radix).ok();
        let kept =
            Self { uid: number(10)?, gid: number(10)?, mode: number(8)?, device: (number(10)?, number(10)?) };
        let (kind, host) = (kept.mode & libc::S_IFMT, u32::from(host.stx_mode) & libc::S_IFMT);
        let special = matches!(kind, libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK);
        let possible = kind == host || host == libc::S_IFREG && special;
        (fields.next().is_none() && possible && kept.mode <= MAX_MODE).then_some(kept)
    }

    /// The attributes as the guest is to see them.
    pub(crate) fn shown(&self, host: &Statx) -> Statx {
        let mut stat = *host;
        #[expect(clippy::cast_possible_truncation, reason = "modes have 16 bits in struct statx")]
        let mode = self.mode as u16;
        (stat.stx_uid, stat.stx_gid, stat.stx_mode) = (self.uid, self.gid, mode);
        (stat.stx_rdev_major, stat.stx_rdev_minor) = self.device;
        stat
    }

    /// The permissions of the host's file: those that are kept, but never without its owner's own.
    pub(crate) fn on_host(&self) -> Mode {
        let owners = if self.mode & libc::S_IFMT == libc::S_IFDIR { 0o700 } else { 0o600 };
        Mode::from_raw_mode(self.mode & 0o777 | owners)
    }

    /// As the kernel does when a file is written to or given away.
    fn drop_set_ids(&mut self) {
        if self.mode & libc::S_IFMT == libc::S_IFREG {
            self.mode &= !SET_UID;
            if self.mode & GROUP_EXECUTES != 0 {
                self.mode &= !SET_GID;
            }
        }
    }

    /// Writes it to a file that is open.
    fn write(&self, file: impl AsFd) -> Result<(), Errno> {
        rustix::fs::fsetxattr(file, NAME, self.text().as_bytes(), XattrFlags::empty())
    }
}

/// Whether files of what is open can have attributes of their own at all.
pub(crate) fn possible(file: impl AsFd) -> Result<(), Errno> {
    let mut text = [0; MAX_TEXT];
    match rustix::fs::fgetxattr(file, NAME, &mut text[..]) {
        Ok(_) | Err(Errno::NODATA | Errno::RANGE) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Session {
    /// Whether owners are kept in the share of a node.
    pub(crate) fn keeps_owners(&self, node: u64) -> bool {
        self.nodes.share(node).is_ok_and(|share| share.owner == Owner::Virtual)
    }

    /// What is kept of a node, or what the host says where nothing is.
    fn kept(&mut self, node: u64, host: &Statx) -> Kept {
        let kind = u32::from(host.stx_mode) & libc::S_IFMT;
        let mut text = [0; MAX_TEXT];
        let kept = (|| {
            if !matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
                return None;
            }
            let file = self.open_beside(node, false).ok()?;
            let length = rustix::fs::fgetxattr(file, NAME, &mut text[..]).ok()?;
            Kept::parse(&text[..length], host)
        })();
        kept.unwrap_or_else(|| Kept::of(host))
    }

    /// A node's attributes as the guest is to see them.
    pub(crate) fn shown(&mut self, node: u64, host: &Statx) -> Statx {
        if self.keeps_owners(node) { self.kept(node, host).shown(host) } else { *host }
    }

    /// What is to be kept of something that the guest makes in a directory; `None` where nothing is.
    pub(crate) fn made(
        &mut self,
        parent: u64,
        header: &Header,
        mode: u32,
        device: (u32, u32),
    ) -> Result<Option<Kept>, Errno> {
        if !self.keeps_owners(parent) {
            return Ok(None);
        }
        let host = self.nodes.stat(parent)?;
        let directory = self.kept(parent, &host);
        let mut kept = Kept { uid: header.uid, gid: header.gid, mode, device };
        if directory.mode & SET_GID != 0 {
            kept.gid = directory.gid;
            if mode & libc::S_IFMT == libc::S_IFDIR {
                kept.mode |= SET_GID;
            }
        }
        Ok(Some(kept))
    }

    /// Keeps what [`Session::made`] has said of a file that has just been made, unless the host says the same.
    pub(crate) fn keep(&self, kept: Option<Kept>, file: impl AsFd) -> Result<(), Errno> {
        let Some(kept) = kept else { return Ok(()) };
        let host = crate::host::stat(&file)?;
        if kept == Kept::of(&host) { Ok(()) } else { kept.write(file) }
    }

    /// Owner and mode of a SETATTR, in a share that keeps them.
    pub(crate) fn set_kept(
        &mut self,
        node: u64,
        host: &Statx,
        valid: u32,
        (mode, uid, gid): (u32, u32, u32),
    ) -> Result<(), Errno> {
        if valid & (set::MODE | set::UID | set::GID | set::KILL_SUIDGID) == 0 {
            return Ok(());
        }
        if u32::from(host.stx_mode) & libc::S_IFMT == libc::S_IFLNK {
            return if valid & set::MODE == 0 { Ok(()) } else { Err(Errno::OPNOTSUPP) };
        }
        let mut kept = self.kept(node, host);
        if valid & set::UID != 0 {
            kept.uid = uid;
        }
        if valid & set::GID != 0 {
            kept.gid = gid;
        }
        if valid & set::MODE != 0 {
            kept.mode = kept.mode & libc::S_IFMT | mode & 0o7777;
        } else {
            kept.drop_set_ids();
        }
        let file = self.open_beside(node, false)?;
        kept.write(&file)?;
        // So that a program that is made executable is one on the host as well; of a file of somebody else's the host
        // keeps the mode that it has.
        if valid & set::MODE != 0 {
            let _ = self.descriptors()?.chmod(&file, kept.on_host());
        }
        Ok(())
    }

    /// Takes the bits that would lend rights from what is kept of a file.
    pub(crate) fn drop_kept_ids(&mut self, node: u64, host: &Statx) -> Result<(), Errno> {
        let before = self.kept(node, host);
        let mut kept = before;
        kept.drop_set_ids();
        if kept == before { Ok(()) } else { kept.write(self.open_beside(node, false)?) }
    }

    /// Opens a directory that has just been made, to write to it what is kept.
    pub(crate) fn open_made(&mut self, parent: u64, name: &CStr) -> Result<OwnedFd, Errno> {
        crate::host::open(self.nodes.fd(parent)?, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }
}
