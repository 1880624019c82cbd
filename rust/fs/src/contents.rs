//! Opening files, and what is in them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use supermachine_support::to_usize;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::abi::{
    FSYNC_FDATASYNC, IN_HEADER, MAX_IO, OPEN_KILL_SUIDGID, OUT_HEADER, WRITE_CACHE, WRITE_IN,
    WRITE_KILL_SUIDGID, guest_open, opened,
};
use crate::names::permissions;
use crate::share::Cache;
use crate::users::Place;
use crate::wire::Args;
use crate::{Header, Session, guest, host};

/// Bytes that one request has copied at most; the guest asks again for the rest.
const MAX_COPY: usize = 16 << 20;

/// How the host opens what the guest opens so. What concerns caches and descriptors is the guest's own business, and
/// each write says whether it appends.
fn open_flags(guest: u32) -> OFlags {
    let mut flags = match guest & guest_open::ACCMODE {
        guest_open::WRONLY => OFlags::WRONLY,
        guest_open::RDWR => OFlags::RDWR,
        _ => OFlags::RDONLY,
    };
    for (asked, flag) in [
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
    pub(crate) fn open(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let node = header.node;
        let place = self.handles.place(header.uid)?;
        let (flags, open_flags) = (args.u32()?, args.u32()?);
        let (file, how) = self.open_node(node, flags, open_flags & OPEN_KILL_SUIDGID != 0)?;
        self.opened(node, file, how, place);
        Ok(())
    }

    /// Opens a file, and says how the guest has it open (`FOPEN_*`).
    fn open_node(&mut self, node: u64, flags: u32, kill: bool) -> Result<(Arc<OwnedFd>, u32), Errno> {
        if writes(flags) {
            self.nodes.share(node)?.writable()?;
        }
        let fd = self.nodes.fd(node)?;
        let stat = host::stat(&fd)?;
        match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::ISDIR),
            // The guest's kernel opens those itself; the host's are never opened.
            _ => return Err(Errno::NXIO),
        }
        let mut how = if flags & guest_open::ACCMODE == 0 { opened::NOFLUSH } else { 0 };
        // What the guest has of its contents is what is there. Without a cache it has none to keep but by mappings.
        let keeps = self.nodes.share(node)?.cache != Cache::None && flags & guest_open::TRUNC == 0;
        if self.nodes.is_unchanged(node, &stat) && keeps {
            how |= opened::KEEP_CACHE;
        }
        let before = if flags & guest_open::TRUNC == 0 { 0 } else { self.taken(node, &fd) };
        let file = Arc::new(self.descriptors()?.reopen(&fd, open_flags(flags))?);
        if flags & guest_open::TRUNC != 0 {
            self.count(node, before, self.taken(node, &file));
        }
        if kill {
            self.drop_set_ids(node, &file)?;
        }
        if flags & guest_open::TRUNC != 0 {
            self.own_change(node, &file);
        }
        Ok((file, how))
    }

    /// Answers with `fuse_open_out`.
    fn opened(&mut self, node: u64, file: Arc<OwnedFd>, how: u32, place: Place) {
        self.nodes.opened(node, &file);
        let handle = self.handles.insert(file, node, place);
        let flags = self.cache_flags(node, false) | how;
        self.out.u64(handle).u32(flags).u32(0);
    }

    /// Makes a file and opens it; one that somebody else has made in the meantime is opened.
    pub(crate) fn create(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let parent = header.node;
        let (flags, mode, _umask, kill) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let name = args.name()?;
        self.writable_directory(parent)?;
        let place = self.handles.place(header.uid)?;
        let directory = self.nodes.fd(parent)?;
        let how = open_flags(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOCTTY;
        let kept = self.made(parent, header, libc::S_IFREG | mode & 0o7777, (0, 0))?;
        let mode = kept.map_or(permissions(mode), |kept| kept.on_host());
        self.wants_room(parent).or_else(|full| match host::stat_name(&directory, name) {
            // What is there already is opened, and takes nothing.
            Ok(_) => Ok(()),
            Err(_) => Err(full),
        })?;
        match self.in_directory(parent, |_| host::open(&directory, name, how, mode)) {
            Ok(file) => {
                if let Err(error) = self.keep(kept, &file) {
                    let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
                    return Err(error);
                }
                let stat = host::stat(&file)?;
                let id = self.nodes.remember(parent, name, &stat)?;
                self.own_name(parent, name);
                self.own_stamp(id, &stat);
                self.entry(id, &stat);
                // A request less for each file that is made: its locks hold until it is closed for good.
                self.opened(id, Arc::new(file), opened::NOFLUSH, place);
            }
            Err(Errno::EXIST) if flags & guest_open::EXCL == 0 => {
                let stat = host::stat_name(&directory, name)?;
                let id = self.nodes.remember(parent, name, &stat)?;
                let file = self.open_node(id, flags, kill & OPEN_KILL_SUIDGID != 0);
                let (file, how) = file.inspect_err(|_| self.nodes.forget(id, 1))?;
                let stat = host::stat(&file);
                let stat = stat.inspect_err(|_| self.nodes.forget(id, 1))?;
                self.entry(id, &stat);
                self.opened(id, file, how, place);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes a file without a name.
    pub(crate) fn tmpfile(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let parent = header.node;
        let (flags, mode) = (args.u32()?, args.u32()?);
        self.writable_directory(parent)?;
        let place = self.handles.place(header.uid)?;
        let directory = self.nodes.fd(parent)?;
        let mut how = open_flags(flags) | OFlags::TMPFILE;
        if flags & guest_open::EXCL != 0 {
            how |= OFlags::EXCL;
        }
        let kept = self.made(parent, header, libc::S_IFREG | mode & 0o7777, (0, 0))?;
        let mode = kept.map_or(permissions(mode), |kept| kept.on_host());
        self.wants_room(parent)?;
        let file = Arc::new(host::open(&directory, c".", how, mode)?);
        self.keep(kept, &file)?;
        let stat = host::stat(&file)?;
        let id = self.nodes.remember(parent, c"", &stat)?;
        // It can be reached by what is open alone.
        self.nodes.opened(id, &file);
        self.nodes.orphaned(id);
        self.entry(id, &stat);
        self.opened(id, file, 0, place);
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
        let (_lock_owner, open_flags) = (args.u64()?, args.u32()?);
        self.nodes.share(node)?.writable()?;
        let open = self.handles.get(handle, node)?;
        // Pages that were changed by way of a mapping belong where they are, by whatever descriptor they come.
        open.set_append(open_flags & guest_open::APPEND != 0 && flags & WRITE_CACHE == 0)?;
        let file = open.file.clone();
        let skip = IN_HEADER + WRITE_IN;
        if guest::length(request).saturating_sub(skip) < size as usize || size > MAX_IO {
            return Err(Errno::INVAL);
        }
        let append = open_flags & guest_open::APPEND != 0 && flags & WRITE_CACHE == 0;
        let most = self.writes_at_most(node, &file, (!append).then_some(offset), size.into())?;
        let before = self.taken(node, &file);
        let written = guest::write_file(file.as_fd(), request, skip, to_usize(most), offset);
        self.count(node, before, self.taken(node, &file));
        let written = written?;
        if flags & WRITE_KILL_SUIDGID != 0 {
            self.drop_set_ids(node, &file)?;
        }
        self.own_change(node, &file);
        self.out.length(written).u32(0);
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
        let file = self.handles.get(handle, node)?.file.clone();
        let frees = FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE;
        if !mode.intersects(frees) && self.room(node).is_some_and(|room| room < length) {
            return Err(Errno::NOSPC);
        }
        let before = self.taken(node, &file);
        let done = rustix::fs::fallocate(&file, mode, offset, length);
        self.count(node, before, self.taken(node, &file));
        self.own_change(node, &file);
        done
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
        let target = self.handles.get(to_handle, to_node)?.file.clone();
        let length = to_usize(self.writes_at_most(to_node, &target, Some(to), length as u64)?);
        let before = self.taken(to_node, &target);
        let copied = rustix::fs::copy_file_range(source, Some(&mut from), &target, Some(&mut to), length);
        self.count(to_node, before, self.taken(to_node, &target));
        self.own_change(to_node, &target);
        let copied = copied?;
        self.out.length(copied).u32(0);
        Ok(())
    }

    /// Opens a node for reading what is beside its contents: extended attributes, or a directory's entries.
    pub(crate) fn open_beside(&mut self, node: u64, directory: bool) -> Result<OwnedFd, Errno> {
        let fd = self.nodes.fd(node)?;
        let stat = host::stat(&fd)?;
        match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFDIR => self.descriptors()?.reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY),
            _ if directory => Err(Errno::NOTDIR),
            libc::S_IFREG => self.descriptors()?.reopen(&fd, OFlags::RDONLY),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}
