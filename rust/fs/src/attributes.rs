//! Looking names up, and attributes.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Gid, Mode, OFlags, Statx, StatxTimestamp, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use supermachine_proto::echo;

use crate::abi::{GETATTR_FH, ROOT_ID, set};
use crate::host;
use crate::nodes::FIRST_SHARE;
use crate::share::Cache;
use crate::wire::{Args, Out};
use crate::{Header, Session};

/// Bytes of `fuse_entry_out`, which an entry of a directory begins with.
pub(crate) const ENTRY: usize = 128;
/// set-user-id and set-group-id.
const SET_IDS: u32 = 0o6000;
/// UTIME_NOW and UTIME_OMIT (include/linux/stat.h).
const NOW: i64 = 0x3fff_ffff;
const OMIT: i64 = 0x3fff_fffe;

impl Session {
    pub(crate) fn lookup(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let (parent, name) = (header.node, args.name()?);
        if parent == ROOT_ID {
            if name == echo::INTERRUPT {
                self.locks.interrupt();
            } else if self.watched && name == echo::BEGIN {
                return Err(self.echoes.begin(header.thread));
            } else if self.watched && name == echo::END {
                self.echoes.end(header.thread);
            }
            let index = self.share_named(name)?;
            let stat = self.nodes.stat(FIRST_SHARE + index as u64)?;
            self.entry(FIRST_SHARE + index as u64, &stat);
            return Ok(());
        }
        self.found(parent, name)
    }

    /// The share that a name in the session's root stands for.
    fn share_named(&self, name: &CStr) -> Result<usize, Errno> {
        let index = name.to_str().ok().and_then(|name| name.parse::<usize>().ok());
        index.filter(|index| *index < self.nodes.shares.len()).ok_or(Errno::NOENT)
    }

    /// Answers with what a name in a directory stands for.
    pub(crate) fn found(&mut self, parent: u64, name: &CStr) -> Result<(), Errno> {
        let (id, stat) = self.find(parent, name)?;
        self.entry(id, &stat);
        Ok(())
    }

    /// What a name in a directory stands for, of which the guest is told.
    pub(crate) fn find(&mut self, parent: u64, name: &CStr) -> Result<(u64, Statx), Errno> {
        let directory = self.nodes.fd(parent)?;
        let stat = host::stat_name(directory, name)?;
        Ok((self.nodes.remember(parent, name, &stat)?, stat))
    }

    /// `fuse_entry_out`.
    pub(crate) fn entry(&mut self, id: u64, stat: &Statx) {
        let stat = &self.shown(id, stat);
        let seconds = self.nodes.share(id).map_or(0, |share| share.cache.seconds());
        self.out.u64(id).u64(0).u64(seconds).u64(seconds).u32(0).u32(0);
        self.attr(stat);
    }

    /// `fuse_attr`.
    pub(crate) fn attr(&mut self, stat: &Statx) {
        let ino = self.nodes.inode_number(stat);
        // Times before 1970 are negative on both sides, and bits of the other type between them.
        let seconds = |time: &StatxTimestamp| time.tv_sec.cast_unsigned();
        let out = &mut self.out;
        out.u64(ino).u64(stat.stx_size).u64(stat.stx_blocks);
        out.u64(seconds(&stat.stx_atime)).u64(seconds(&stat.stx_mtime)).u64(seconds(&stat.stx_ctime));
        out.u32(stat.stx_atime.tv_nsec).u32(stat.stx_mtime.tv_nsec).u32(stat.stx_ctime.tv_nsec);
        out.u32(stat.stx_mode.into()).u32(stat.stx_nlink).u32(stat.stx_uid).u32(stat.stx_gid);
        // A device's number as the kernel packs it (new_encode_dev).
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        out.u32(minor & 0xff | major << 8 | (minor & !0xff) << 12).u32(stat.stx_blksize).u32(0);
    }

    /// `fuse_attr_out`.
    pub(crate) fn attr_out(&mut self, node: u64, stat: &Statx) {
        let stat = &self.shown(node, stat);
        let seconds = self.nodes.share(node).map_or(0, |share| share.cache.seconds());
        self.out.u64(seconds).u32(0).u32(0);
        self.attr(stat);
    }

    pub(crate) fn getattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        if node == ROOT_ID {
            root_attributes(&mut self.out);
            return Ok(());
        }
        let (flags, _, handle) = (args.u32()?, args.u32()?, args.u64()?);
        let stat = if flags & GETATTR_FH != 0 {
            let file = self.handles.get(handle, node)?.file.clone();
            host::stat(file)?
        } else {
            self.nodes.stat(node)?
        };
        self.attr_out(node, &stat);
        Ok(())
    }

    pub(crate) fn setattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (mut valid, _, handle, size) = (args.u32()?, args.u32()?, args.u64()?, args.u64()?);
        let _lock_owner = args.u64()?;
        let (atime, mtime, _ctime) = (args.u64()?, args.u64()?, args.u64()?);
        let (atime_ns, mtime_ns, _ctime_ns) = (args.u32()?, args.u32()?, args.u32()?);
        let (mode, _, uid, gid) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        self.nodes.share(node)?.writable()?;
        let fd = self.nodes.fd(node)?;
        let stat = host::stat(&fd)?;
        let kind = u32::from(stat.stx_mode) & libc::S_IFMT;
        if valid & set::SIZE != 0 {
            if kind != libc::S_IFREG {
                return Err(if kind == libc::S_IFDIR { Errno::ISDIR } else { Errno::INVAL });
            }
            let file = if valid & set::FH != 0 {
                self.handles.get(handle, node)?.file.clone()
            } else {
                Arc::new(self.descriptors()?.reopen(&fd, OFlags::WRONLY)?)
            };
            let before = self.taken(node, &file);
            let done = rustix::fs::ftruncate(&file, size);
            self.count(node, before, self.taken(node, &file));
            done?;
        }
        if self.keeps_owners(node) {
            self.set_kept(node, &stat, valid, (mode, uid, gid))?;
            valid &= !(set::UID | set::GID | set::MODE | set::KILL_SUIDGID);
        }
        if valid & (set::UID | set::GID) != 0 {
            let uid = (valid & set::UID != 0 && uid != u32::MAX).then(|| Uid::from_raw(uid));
            let gid = (valid & set::GID != 0 && gid != u32::MAX).then(|| Gid::from_raw(gid));
            host::chown(&fd, uid, gid)?;
        }
        if valid & set::MODE != 0 {
            if kind == libc::S_IFLNK {
                return Err(Errno::OPNOTSUPP);
            }
            self.descriptors()?.chmod(&fd, Mode::from_raw_mode(mode & 0o7777))?;
        } else if valid & set::KILL_SUIDGID != 0 {
            self.drop_set_ids(node, &fd)?;
        }
        if valid & (set::ATIME | set::MTIME) != 0 {
            let time = |set: u32, now: u32, seconds: u64, nanoseconds: u32| {
                let (tv_sec, tv_nsec) = match (valid & set != 0, valid & now != 0) {
                    (false, _) => (0, OMIT),
                    (true, true) => (0, NOW),
                    (true, false) => (seconds.cast_signed(), i64::from(nanoseconds.min(999_999_999))),
                };
                Timespec { tv_sec, tv_nsec }
            };
            let times = Timestamps {
                last_access: time(set::ATIME, set::ATIME_NOW, atime, atime_ns),
                last_modification: time(set::MTIME, set::MTIME_NOW, mtime, mtime_ns),
            };
            host::set_times(&fd, &times)?;
        }
        let stat = host::stat(&fd)?;
        self.own_stamp(node, &stat);
        self.attr_out(node, &stat);
        Ok(())
    }

    /// Takes set-user-id, and set-group-id where it means that, from a file that is written to or has been given away.
    /// The host's kernel does so for a process without privileges.
    pub(crate) fn drop_set_ids(&mut self, node: u64, fd: &OwnedFd) -> Result<(), Errno> {
        let stat = host::stat(fd)?;
        if self.keeps_owners(node) {
            return self.drop_kept_ids(node, &stat);
        }
        let mode = u32::from(stat.stx_mode);
        // Without the group's execute bit, set-group-id says something else (mandatory locking).
        let drop = if mode & 0o010 != 0 { SET_IDS } else { 0o4000 };
        if mode & libc::S_IFMT != libc::S_IFREG || mode & drop == 0 {
            return Ok(());
        }
        self.descriptors()?.chmod(fd, Mode::from_raw_mode(mode & 0o7777 & !drop))
    }

    pub(crate) fn readlink(&mut self, node: u64) -> Result<(), Errno> {
        let fd = self.nodes.fd(node)?;
        let target = host::readlink(fd)?;
        self.out.bytes(target.to_bytes());
        Ok(())
    }

    pub(crate) fn statfs(&mut self, node: u64) -> Result<(), Errno> {
        if node == ROOT_ID {
            self.out.zeros(40).u32(4096).u32(255).u32(4096).zeros(28);
            return Ok(());
        }
        let stat = rustix::fs::fstatvfs(self.nodes.fd(node)?)?;
        let (mut blocks, mut free, mut available) = (stat.f_blocks, stat.f_bfree, stat.f_bavail);
        if let Some(room) = self.room(node) {
            let room = room / stat.f_frsize.max(1);
            (free, available) = (free.min(room), available.min(room));
            blocks = blocks.min(self.nodes.share(node)?.quota.unwrap_or(0) / stat.f_frsize.max(1)).max(free);
        }
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let out = &mut self.out;
        out.u64(blocks).u64(free).u64(available).u64(stat.f_files).u64(stat.f_ffree);
        out.u32(number(stat.f_bsize)).u32(number(stat.f_namemax)).u32(number(stat.f_frsize)).zeros(28);
        Ok(())
    }

    /// How a file of this share is opened (`FOPEN_*`).
    pub(crate) fn cache_flags(&self, node: u64, directory: bool) -> u32 {
        use crate::abi::opened::{CACHE_DIR, DIRECT_IO, KEEP_CACHE};
        match (self.nodes.share(node).map_or(Cache::None, |share| share.cache), directory) {
            (Cache::None, false) => DIRECT_IO,
            (Cache::Always, false) => KEEP_CACHE,
            (Cache::Always, true) => KEEP_CACHE | CACHE_DIR,
            _ => 0,
        }
    }
}

/// `fuse_attr_out` of the session's root: a directory that nobody can change, so that they hold for long.
fn root_attributes(out: &mut Out) {
    out.u64(Cache::Always.seconds()).u32(0).u32(0);
    out.u64(ROOT_ID).u64(0).u64(0).zeros(36).u32(libc::S_IFDIR | 0o555).u32(2);
    out.u32(0).u32(0).u32(0).u32(4096).u32(0);
}
