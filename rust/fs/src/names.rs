//! Making, renaming and removing names.

use std::ffi::CStr;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use crate::Session;
use crate::abi::ROOT_ID;
use crate::host;
use crate::wire::Args;

/// The bits of a mode that the guest may set; it has applied its umask.
pub fn permissions(mode: u32) -> Mode {
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
        rustix::fs::symlinkat(target, self.nodes.fd(parent)?, name)?;
        self.found(parent, name)
    }

    /// A file, FIFO or socket: those are the guest's kernel's own business. Devices of the host's are not to be had.
    pub(crate) fn mknod(&mut self, parent: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (mode, _rdev, _umask, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let name = args.name()?;
        self.writable_directory(parent)?;
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => FileType::RegularFile,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            _ => return Err(Errno::PERM),
        };
        rustix::fs::mknodat(self.nodes.fd(parent)?, name, kind, permissions(mode), 0)?;
        self.found(parent, name)
    }

    pub(crate) fn mkdir(&mut self, parent: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (mode, _umask, name) = (args.u32()?, args.u32()?, args.name()?);
        self.writable_directory(parent)?;
        rustix::fs::mkdirat(self.nodes.fd(parent)?, name, permissions(mode))?;
        self.found(parent, name)
    }

    pub(crate) fn unlink(&mut self, parent: u64, args: &mut Args<'_>, directory: bool) -> Result<(), Errno> {
        let name = args.name()?;
        self.writable_directory(parent)?;
        let fd = self.nodes.fd(parent)?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        if !directory {
            self.pin_other_names(parent, name);
        }
        rustix::fs::unlinkat(fd, name, flags)
    }

    /// Before a name goes: a file that has others is kept in reach.
    fn pin_other_names(&mut self, parent: u64, name: &CStr) {
        let Ok(fd) = self.nodes.fd(parent) else { return };
        let Ok(stat) = host::stat(fd, name, AtFlags::empty()) else { return };
        if stat.stx_nlink > 1
            && u32::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFDIR
            && let Some(id) = self.nodes.known(parent, &stat)
        {
            self.nodes.pin(id);
        }
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
        let (from, to) = (self.nodes.fd(parent)?, self.nodes.fd(new_parent)?);
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if !exchange {
            self.pin_other_names(new_parent, new_name);
        }
        if flags.is_empty() {
            rustix::fs::renameat(&from, name, &to, new_name)?;
        } else {
            rustix::fs::renameat_with(&from, name, &to, new_name, flags)?;
        }
        self.moved(new_parent, new_name);
        if exchange {
            self.moved(parent, name);
        }
        Ok(())
    }

    /// What is called so now may be known by the name it had before.
    fn moved(&mut self, parent: u64, name: &CStr) {
        if let Ok(fd) = self.nodes.fd(parent)
            && let Ok(stat) = host::stat(fd, name, AtFlags::empty())
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
        self.descriptors()?.link(&file, &directory, name)?;
        self.found(new_parent, name)
    }
}
