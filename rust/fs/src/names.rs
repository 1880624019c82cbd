//! Making, renaming and removing names.

use std::ffi::CStr;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::abi::ROOT_ID;
use crate::host::{self, Identity};
use crate::wire::Args;
use crate::{Header, Session, quota};

/// A mode with its kind has 16 bits.
pub(crate) const MAX_MODE: u32 = 0o177_777;

/// The bits of a mode that the guest may set; it has applied its umask.
pub(crate) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

impl Session {
    /// The directory's share may be written to. Nothing is made beside the shares.
    pub(crate) fn writable_directory(&self, node: u64) -> Result<(), Errno> {
        if node == ROOT_ID {
            return Err(Errno::ROFS);
        }
        self.nodes.share(node)?.writable()
    }

    pub(crate) fn symlink(&mut self, parent: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (name, target) = (args.name()?, args.text()?);
        self.writable_directory(parent)?;
        self.wants_room(parent)?;
        let directory = self.nodes.fd(parent)?;
        self.in_directory(parent, |_| rustix::fs::symlinkat(target, &directory, name))?;
        self.new_name(parent, name)
    }

    /// Answers with something that has just been made, and counts what it takes.
    fn new_name(&mut self, parent: u64, name: &CStr) -> Result<(), Errno> {
        if self.room(parent).is_some()
            && let Ok(stat) = host::stat_name(self.nodes.fd(parent)?, name)
        {
            self.count(parent, 0, quota::bytes(&stat));
        }
        self.named(parent, name)
    }

    /// The same, of what has one more name and takes nothing.
    fn named(&mut self, parent: u64, name: &CStr) -> Result<(), Errno> {
        self.own_name(parent, name);
        let (id, stat) = self.find(parent, name)?;
        self.own_stamp(id, &stat);
        self.entry(id, &stat);
        Ok(())
    }

    /// A file, FIFO or socket: those are the guest's kernel's own business. Devices of the host's are not to be had;
    /// where owners are kept, an empty file stands for any of them.
    pub(crate) fn mknod(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let parent = header.node;
        let (mode, rdev, _umask, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let name = args.name()?;
        self.writable_directory(parent)?;
        self.wants_room(parent)?;
        let directory = self.nodes.fd(parent)?;
        let mode = if mode & libc::S_IFMT == 0 { mode | libc::S_IFREG } else { mode };
        if mode > MAX_MODE {
            return Err(Errno::INVAL);
        }
        let special = matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
        // A device's number as the kernel packs it (new_decode_dev).
        let device = if special { (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00) } else { (0, 0) };
        if let Some(kept) = self.made(parent, header, mode, device)? {
            let how = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let file = self.in_directory(parent, |_| host::open(&directory, name, how, kept.on_host()))?;
            self.keep(Some(kept), &file).inspect_err(|_| {
                let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
            })?;
            return self.new_name(parent, name);
        }
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG => FileType::RegularFile,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            _ => return Err(Errno::PERM),
        };
        self.in_directory(parent, |_| rustix::fs::mknodat(&directory, name, kind, permissions(mode), 0))?;
        self.new_name(parent, name)
    }

    pub(crate) fn mkdir(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let parent = header.node;
        let (mode, _umask, name) = (args.u32()?, args.u32()?, args.name()?);
        self.writable_directory(parent)?;
        self.wants_room(parent)?;
        let kept = self.made(parent, header, libc::S_IFDIR | mode & 0o7777, (0, 0))?;
        let mode = kept.map_or(permissions(mode), |kept| kept.on_host());
        let directory = self.nodes.fd(parent)?;
        self.in_directory(parent, |_| rustix::fs::mkdirat(&directory, name, mode))?;
        if kept.is_some() {
            let made = self.open_made(parent, name).and_then(|made| self.keep(kept, made));
            made.inspect_err(|_| {
                let _ = rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR);
            })?;
        }
        self.new_name(parent, name)
    }

    pub(crate) fn unlink(&mut self, parent: u64, args: &mut Args<'_>, directory: bool) -> Result<(), Errno> {
        let name = args.name()?;
        self.writable_directory(parent)?;
        let fd = self.nodes.fd(parent)?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let linked = if directory { None } else { self.pin_other_names(parent, name) };
        let leaving = self.leaving(parent, name);
        self.in_directory(parent, |_| rustix::fs::unlinkat(&fd, name, flags))?;
        self.own_removal(parent, name);
        self.nodes.unnamed(parent, name);
        if let Some(id) = linked.filter(|_| self.watched)
            && let Ok(file) = self.nodes.fd(id)
        {
            self.own_change(id, file);
        }
        self.left(parent, leaving);
        Ok(())
    }

    /// Before a name goes: a file that has others is kept in reach.
    fn pin_other_names(&mut self, parent: u64, name: &CStr) -> Option<u64> {
        // What removes a tree asks for little else: of what the guest knows by one name each, nothing is looked at.
        if !self.watched && !self.nodes.any_has_names() {
            return None;
        }
        let fd = self.nodes.fd(parent).ok()?;
        let stat = host::stat_name(fd, name).ok()?;
        if stat.stx_nlink < 2 || u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR {
            return None;
        }
        let id = self.nodes.known(parent, &stat)?;
        self.nodes.pin(id);
        Some(id)
    }

    pub(crate) fn rename(&mut self, parent: u64, args: &mut Args<'_>, with_flags: bool) -> Result<(), Errno> {
        let new_parent = args.u64()?;
        let flags = if with_flags { args.u32()? } else { 0 };
        if with_flags {
            args.u32()?;
        }
        let (name, new_name) = (args.name()?, args.name()?);
        self.writable_directory(parent)?;
        self.writable_directory(new_parent)?;
        // A whiteout is a device.
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::INVAL);
        }
        // Each share has rules and a quota of its own.
        if !std::ptr::eq(self.nodes.share(parent)?, self.nodes.share(new_parent)?) {
            return Err(Errno::XDEV);
        }
        let (from, to) = (self.nodes.fd(parent)?, self.nodes.fd(new_parent)?);
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if !exchange {
            self.pin_other_names(new_parent, new_name);
        }
        let leaving = if exchange { None } else { self.leaving(new_parent, new_name) };
        // Onto itself nothing goes.
        let leaving = leaving.filter(|_| {
            let seen = |fd, name| host::stat_name(fd, name).map(|stat| Identity::of(&stat));
            seen(&from, name) != seen(&to, new_name)
        });
        self.in_directory(new_parent, |_| match flags.is_empty() {
            true => rustix::fs::renameat(&from, name, &to, new_name),
            false => rustix::fs::renameat_with(&from, name, &to, new_name, flags),
        })?;
        self.left(new_parent, leaving);
        self.own_removal(parent, name);
        self.own_name(new_parent, new_name);
        self.moved(new_parent, new_name);
        self.own_change_of(new_parent, new_name);
        if exchange {
            self.own_removal(new_parent, new_name);
            self.own_name(parent, name);
            self.moved(parent, name);
            self.own_change_of(parent, name);
        }
        Ok(())
    }

    /// What is called so now may be known by the name it had before.
    pub(crate) fn moved(&mut self, parent: u64, name: &CStr) {
        if let Ok(fd) = self.nodes.fd(parent)
            && let Ok(stat) = host::stat_name(fd, name)
            && let Some(id) = self.nodes.known(parent, &stat)
        {
            self.nodes.renamed(id, parent, name);
        }
    }

    pub(crate) fn link(&mut self, new_parent: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (node, name) = (args.u64()?, args.name()?);
        self.writable_directory(new_parent)?;
        // From another share no name may come, as one of the two may be read-only.
        if !std::ptr::eq(self.nodes.share(node)?, self.nodes.share(new_parent)?) {
            return Err(Errno::XDEV);
        }
        let (file, directory) = (self.nodes.fd(node)?, self.nodes.fd(new_parent)?);
        self.wants_room(new_parent)?;
        self.in_directory(new_parent, |session| session.descriptors()?.link(&file, &directory, name))?;
        // What had no name has one.
        self.nodes.adopted(node);
        self.named(new_parent, name)
    }
}
