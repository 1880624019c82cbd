//! One layer after the other laid over the tree, with the results of `umoci unpack` (OCI image-spec, layer.md).

use std::collections::VecDeque;

use crate::data::{Body, DataArea, Extent};
use crate::id::{Id, ROOT};
use crate::output::punch_hole;
use crate::stream::Stream;
use crate::tar::{Entry, Kind, Reader};
use crate::tree::{Attributes, Tree, format};
use crate::{Error, Limits};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Symlinks followed for one path before it counts as a loop, as in filepath-securejoin.
const MAX_SYMLINKS: usize = 255;

pub(crate) struct Applier<'a> {
    pub tree: Tree,
    pub area: DataArea,
    pub limits: &'a Limits,
    pub entries: u64,
}

impl Applier<'_> {
    pub(crate) fn layer(&mut self, index: u16, stream: &mut impl Stream) -> Result<(), Error> {
        self.tree.begin_layer(index);
        let mut reader = Reader::new(stream);
        while let Some(entry) = reader.next()? {
            self.entries += 1;
            self.limits.entries(self.entries)?;
            self.entry(&mut reader, entry)?;
            if !self.tree.dead.is_empty() {
                self.give_back()?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, reader: &mut Reader<'_, impl Stream>, mut entry: Entry) -> Result<(), Error> {
        let mut path = clean(&entry.name)?;
        let Some(name) = path.pop() else { return self.root(entry) };
        let name = name.to_vec();
        let parent = resolve(&self.tree, &entry.name, path)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let Parent::Found(directory) = parent else { return Ok(()) };
            if name == OPAQUE {
                self.tree.make_opaque(directory);
            } else if let Some(old) = self.tree.find(directory, hidden) {
                self.tree.white_out(old);
            } else if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::entry(&entry.name, "a whiteout that names no file"));
            }
            return Ok(());
        }
        let directory = match parent {
            Parent::Found(directory) => directory,
            Parent::Missing { above, names } => {
                let mut directory = above;
                for name in &names {
                    directory = self.tree.implied_directory(directory, name)?;
                }
                directory
            }
            Parent::NotADirectory => {
                return Err(Error::entry(&entry.name, "a part of its path is not a directory"));
            }
        };
        let xattrs = match entry.kind {
            Kind::HardLink => Vec::new(),
            _ => std::mem::take(&mut entry.xattrs),
        };
        let xattrs = self.tree.xattrs.intern(&entry.name, xattrs)?;
        let attributes = |format: u16| Attributes {
            mode: format | entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime.0,
            nanoseconds: entry.mtime.1,
            xattrs,
        };
        let old = self.tree.find(directory, &name);
        let inode = match entry.kind {
            Kind::Directory => {
                if let Some(old) = old {
                    let inode = self.tree.inode_of(old);
                    if self.tree.inode(inode).is_directory() {
                        self.tree.inode_mut(inode).attributes = attributes(format::DIRECTORY);
                        self.tree.touch(old);
                        return Ok(());
                    }
                }
                self.tree.new_inode(attributes(format::DIRECTORY), 0, Body::EMPTY_DIRECTORY)?
            }
            Kind::HardLink => {
                let target = self.hard_link_target(&entry)?;
                if old.is_some_and(|old| self.tree.inode_of(old) == target) {
                    // Already so; removing it first would lose a file whose only name this is.
                    old.into_iter().for_each(|old| self.tree.touch(old));
                    return Ok(());
                }
                target
            }
            Kind::Symlink => self.tree.new_symlink(attributes(format::SYMLINK), &entry.name, &entry.link)?,
            Kind::CharDevice | Kind::BlockDevice => {
                let (major, minor) = entry.device;
                if major >= 1 << 12 || minor >= 1 << 20 {
                    let reason = format!("device number {major}:{minor} is beyond 4095:1048575");
                    return Err(Error::entry(&entry.name, reason));
                }
                let number = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
                let format = if entry.kind == Kind::CharDevice { format::CHAR } else { format::BLOCK };
                self.tree.new_inode(attributes(format), 0, Body::Device(number))?
            }
            Kind::Fifo => self.tree.new_inode(attributes(format::FIFO), 0, Body::Nothing)?,
            Kind::File => {
                let body = self.file(reader, &entry)?;
                self.tree.new_inode(attributes(format::FILE), entry.size, body)?
            }
        };
        // A hard link keeps the old contents for its other names: only the name is replaced.
        if let Some(old) = old {
            self.tree.remove(old);
        }
        // Removing may have taken a hard link's target with it (a link to a file below the path it replaces).
        if self.tree.inode(inode).links == 0 && entry.kind == Kind::HardLink {
            return Err(Error::entry(&entry.name, "a hard link that replaces its own target"));
        }
        self.tree.link(directory, &name, inode)
    }

    /// An entry for the root itself.
    fn root(&mut self, mut entry: Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(Error::entry(&entry.name, "the root can only be a directory"));
        }
        let xattrs = self.tree.xattrs.intern(&entry.name, std::mem::take(&mut entry.xattrs))?;
        self.tree.inode_mut(ROOT).attributes = Attributes {
            mode: format::DIRECTORY | entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime.0,
            nanoseconds: entry.mtime.1,
            xattrs,
        };
        Ok(())
    }

    fn hard_link_target(&self, entry: &Entry) -> Result<Id, Error> {
        let missing = || {
            let target = String::from_utf8_lossy(&entry.link[..entry.link.len().min(200)]).into_owned();
            Error::entry(&entry.name, format!("the target {target:?} of this hard link does not exist"))
        };
        let mut path = clean(&entry.link)?;
        let name = path.pop().ok_or_else(missing)?.to_vec();
        let Parent::Found(directory) = resolve(&self.tree, &entry.link, path)? else { return Err(missing()) };
        let target = self.tree.inode_of(self.tree.find(directory, &name).ok_or_else(missing)?);
        if self.tree.inode(target).is_directory() {
            return Err(Error::entry(&entry.name, "a hard link to a directory"));
        }
        Ok(target)
    }

    fn file(&mut self, reader: &mut Reader<'_, impl Stream>, entry: &Entry) -> Result<Body, Error> {
        self.limits.file(entry.size)?;
        let mut writer = self.area.begin(entry.size)?;
        let whole = [(0, entry.stored)];
        let runs = entry.sparse.as_deref().unwrap_or(&whole);
        let mut at = 0;
        for (offset, length) in runs {
            writer.skip(offset - at)?;
            let mut left = *length;
            while left > 0 {
                let data = reader.data()?;
                if data.is_empty() {
                    return Err(Error::entry(&entry.name, "its data is shorter than its sparse map"));
                }
                let n = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                writer.write(&data[..n])?;
                reader.consume(n);
                left -= n as u64;
                self.limits.metadata((writer.extents() * size_of::<Extent>()) as u64)?;
            }
            at = offset + length;
        }
        writer.skip(entry.size - at)?;
        let tree = &mut self.tree;
        writer.finish(|extent| tree.add_extent(extent))
    }

    /// Lets the file system have back what replaced and removed files took up.
    fn give_back(&mut self) -> Result<(), Error> {
        self.area.image.flush()?;
        for (body, size) in std::mem::take(&mut self.tree.dead) {
            match body {
                Body::Blocks { start, .. } => {
                    let tail = Body::tail_length(size) as u64;
                    punch_hole(
                        &self.area.image.file,
                        start,
                        (size - tail).div_ceil(crate::data::BLOCK as u64),
                    );
                }
                Body::Chunks { first, count, .. } => {
                    for i in first..first + count {
                        let extent = self.tree.extents[i];
                        punch_hole(&self.area.image.file, extent.physical, u64::from(extent.count));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The parts of a path from the root, `.` and `..` taken out as if the root were the only place there is.
fn clean(name: &[u8]) -> Result<Vec<&[u8]>, Error> {
    if name.contains(&0) {
        return Err(Error::entry(name, "a path with a NUL"));
    }
    let mut path = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            part => path.push(part),
        }
    }
    Ok(path)
}

enum Parent {
    Found(Id),
    /// These names are missing below a directory that exists.
    Missing {
        above: Id,
        names: Vec<Vec<u8>>,
    },
    NotADirectory,
}

/// Where a path leads inside the root with every symlink followed: absolute targets start at the root, `..` stays
/// inside, and names that do not exist are taken as they are (the rules of filepath-securejoin).
fn resolve(tree: &Tree, shown: &[u8], path: Vec<&[u8]>) -> Result<Parent, Error> {
    let mut pending: VecDeque<Vec<u8>> = VecDeque::new();
    let mut direct = path.into_iter();
    let mut directory = ROOT;
    let mut missing: Vec<Vec<u8>> = Vec::new();
    let mut through_file = None;
    let mut followed = 0;
    loop {
        let owned;
        let part: &[u8] = match pending.pop_front() {
            Some(part) => {
                owned = part;
                &owned
            }
            None => match direct.next() {
                Some(part) => part,
                None => break,
            },
        };
        if part == b".." {
            if missing.pop().is_none() && through_file.take().is_none() {
                directory = tree.parent(directory);
            }
            continue;
        }
        if !missing.is_empty() || through_file.is_some() {
            missing.push(part.to_vec());
            continue;
        }
        let Some(found) = tree.find(directory, part) else {
            missing.push(part.to_vec());
            continue;
        };
        let id = tree.inode_of(found);
        let inode = tree.inode(id);
        if inode.is_directory() {
            directory = id;
        } else if inode.format() == format::SYMLINK {
            followed += 1;
            if followed > MAX_SYMLINKS {
                return Err(Error::entry(shown, "too many symbolic links in its path"));
            }
            let target = tree.target(inode);
            if target.starts_with(b"/") {
                directory = ROOT;
            }
            let parts = target.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b"."));
            for part in parts.rev() {
                pending.push_front(part.to_vec());
            }
            if pending.len() > 1 << 16 {
                return Err(Error::entry(shown, "too many symbolic links in its path"));
            }
        } else {
            through_file = Some(id);
        }
    }
    if through_file.is_some() {
        return Ok(Parent::NotADirectory);
    }
    Ok(match missing.is_empty() {
        true => Parent::Found(directory),
        false => Parent::Missing { above: directory, names: missing },
    })
}
