//! Opening files, and what is in them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::abi::{
    FSYNC_FDATASYNC, IN_HEADER, MAX_IO, OPEN_KILL_SUIDGID, OUT_HEADER, WRITE_IN, WRITE_KILL_SUIDGID,
    guest_open,
};
use crate::names::permissions;
use crate::wire::Args;
use crate::{Session, guest, host};

/// Bytes that one request has copied at most; the guest asks again for the rest.
const MAX_COPY: usize = 16 << 20;

/// How the host opens what the guest opens so. What concerns caches and descriptors is the guest's own business.
fn open_flags(guest: u32) -> OFlags {
    let mut flags = match guest & guest_open::ACCMODE {
        guest_open::WRONLY => OFlags::WRONLY,
        guest_open::RDWR => OFlags::RDWR,
        _ => OFlags::RDONLY,
    };
    for (asked, flag) in [
        (guest_open::APPEND, OFlags::APPEND),
        (guest_open::TRUNC, OFlags::TRUNC),
        (guest_open::DSYNC, OFlags::DSYNC),
        (guest_open::SYNC, OFlags::SYNC),
    ] {
        if guest & asked == asked {
            flags |= flag;
        }
    }
    flags
}

/// Whether opening so can change the file.
fn writes(guest: u32) -> bool {
    guest & guest_open::ACCMODE != 0 || guest & guest_open::TRUNC != 0
}

impl Session {
    pub(crate) fn open(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (flags, open_flags) = (args.u32()?, args.u32()?);
        let file = self.open_node(node, flags, open_flags & OPEN_KILL_SUIDGID != 0)?;
        self.opened(node, file);
        Ok(())
    }

    fn open_node(&mut self, node: u64, flags: u32, kill: bool) -> Result<Arc<OwnedFd>, Errno> {
        self.handles.room()?;
        if writes(flags) {
            self.nodes.share(node)?.writable()?;
        }
        let fd = self.nodes.fd(node)?;
        let stat = host::stat(&fd, c"", AtFlags::EMPTY_PATH)?;
        match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::ISDIR),
            // The guest's kernel opens those itself; the host's are never opened.
            _ => return Err(Errno::NXIO),
        }
        let file = Arc::new(self.descriptors()?.reopen(&fd, open_flags(flags))?);
        if kill {
            self.drop_set_ids(&file)?;
        }
        Ok(file)
    }

    /// Answers with `fuse_open_out`.
    fn opened(&mut self, node: u64, file: Arc<OwnedFd>) {
        self.nodes.opened(node, &file);
        let handle = self.handles.insert(file, node);
        let flags = self.cache_flags(node, false);
        self.out.u64(handle).u32(flags).u32(0);
    }

    /// Makes a file and opens it; one that somebody else has made in the meantime is opened.
    pub(crate) fn create(&mut self, parent: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (flags, mode, _umask, kill) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let name = args.name()?;
        self.writable_directory(parent)?;
        self.handles.room()?;
        let directory = self.nodes.fd(parent)?;
        let how = open_flags(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOCTTY;
        match host::open(&directory, name, how, permissions(mode)) {
            Ok(file) => {
                let stat = host::stat(&file, c"", AtFlags::EMPTY_PATH)?;
                let id = self.nodes.remember(parent, name, &stat)?;
                self.entry(id, &stat);
                self.opened(id, Arc::new(file));
            }
            Err(Errno::EXIST) if flags & guest_open::EXCL == 0 => {
                let stat = host::stat(&directory, name, AtFlags::empty())?;
                let id = self.nodes.remember(parent, name, &stat)?;
                let file = self.open_node(id, flags, kill & OPEN_KILL_SUIDGID != 0);
                let file = file.inspect_err(|_| self.nodes.forget(id, 1))?;
                let stat = host::stat(&file, c"", AtFlags::EMPTY_PATH);
                let stat = stat.inspect_err(|_| self.nodes.forget(id, 1))?;
                self.entry(id, &stat);
                self.opened(id, file);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes a file without a name.
    pub(crate) fn tmpfile(&mut self, parent: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (flags, mode) = (args.u32()?, args.u32()?);
        self.writable_directory(parent)?;
        self.handles.room()?;
        let directory = self.nodes.fd(parent)?;
        let mut how = open_flags(flags) | OFlags::TMPFILE;
        if flags & guest_open::EXCL != 0 {
            how |= OFlags::EXCL;
        }
        let file = host::open(&directory, c".", how, permissions(mode))?;
        let stat = host::stat(&file, c"", AtFlags::EMPTY_PATH)?;
        let id = self.nodes.remember(parent, c"", &stat)?;
        self.entry(id, &stat);
        self.opened(id, Arc::new(file));
        Ok(())
    }

    pub(crate) fn read<B: BitmapSlice>(
        &mut self,
        node: u64,
        args: &mut Args<'_>,
        answer: &[VolatileSlice<'_, B>],
        room: usize,
    ) -> Result<usize, Errno> {
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let file = &self.handles.get(handle, node)?.file;
        let most = (size.min(MAX_IO) as usize).min(room);
        guest::read_file(file.as_fd(), answer, OUT_HEADER, most, offset)
    }

    pub(crate) fn write<B: BitmapSlice>(
        &mut self,
        node: u64,
        args: &mut Args<'_>,
        request: &[VolatileSlice<'_, B>],
    ) -> Result<(), Errno> {
        let (handle, offset, size, flags) = (args.u64()?, args.u64()?, args.u32()?, args.u32()?);
        self.nodes.share(node)?.writable()?;
        let file = self.handles.get(handle, node)?.file.clone();
        let skip = IN_HEADER + WRITE_IN;
        if guest::length(request).saturating_sub(skip) < size as usize || size > MAX_IO {
            return Err(Errno::INVAL);
        }
        let written = guest::write_file(file.as_fd(), request, skip, size as usize, offset)?;
        if flags & WRITE_KILL_SUIDGID != 0 {
            self.drop_set_ids(&file)?;
        }
        self.out.u32(written as u32).u32(0);
        Ok(())
    }

    pub(crate) fn fsync(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, flags) = (args.u64()?, args.u32()?);
        let file = &self.handles.get(handle, node)?.file;
        if flags & FSYNC_FDATASYNC != 0 { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub(crate) fn fallocate(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, offset, length, mode) = (args.u64()?, args.u64()?, args.u64()?, args.u32()?);
        self.nodes.share(node)?.writable()?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fallocate(&self.handles.get(handle, node)?.file, mode, offset, length)
    }

    pub(crate) fn lseek(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, offset, whence) = (args.u64()?, args.u64()?, args.u32()?);
        let from = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            // The guest's kernel does the others itself.
            _ => return Err(Errno::INVAL),
        };
        let offset = rustix::fs::seek(&self.handles.get(handle, node)?.file, from)?;
        self.out.u64(offset);
        Ok(())
    }

    pub(crate) fn copy_file_range(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, mut from) = (args.u64()?, args.u64()?);
        let (to_node, to_handle, mut to) = (args.u64()?, args.u64()?, args.u64()?);
        let length = usize::try_from(args.u64()?).unwrap_or(MAX_COPY).min(MAX_COPY);
        self.nodes.share(to_node)?.writable()?;
        let source = self.handles.get(handle, node)?.file.clone();
        let target = &self.handles.get(to_handle, to_node)?.file;
        let copied = rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length)?;
        self.out.u32(copied as u32).u32(0);
        Ok(())
    }

    /// Opens a node for reading what is beside its contents: extended attributes, or a directory's entries.
    pub(crate) fn open_beside(&mut self, node: u64, directory: bool) -> Result<OwnedFd, Errno> {
        let fd = self.nodes.fd(node)?;
        let stat = host::stat(&fd, c"", AtFlags::EMPTY_PATH)?;
        match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFDIR => self.descriptors()?.reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY),
            _ if directory => Err(Errno::NOTDIR),
            libc::S_IFREG => self.descriptors()?.reopen(&fd, OFlags::RDONLY),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}
