//! Writing: what needs the guest to stand still, and then the rest.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use supermachine_support::to_usize;

use super::disk::{self, Disk, DiskContents};
use super::header::{self, Header};
use super::{Extents, Identity, MAX_METADATA, MAX_SECTIONS, MINOR, Metadata, extents, identity};
use crate::ram;
use crate::{Digest32, Error, Result, Source, fault};

/// A snapshot that is being written: [`Writer::begin`] and one of the `write_ram` calls while the guest is paused,
/// [`Writer::finish`] while it goes on. Until that is done the file is no snapshot.
///
/// Only the open file is used, by pwrite, pread, lseek and fsync, so a confined process can do it.
#[derive(Debug)]
pub struct Writer {
    file: File,
    identity: Identity,
    /// Encoded; the file's own, which come first, are not among them.
    sections: Vec<u8>,
    section_count: u32,
    disk: Option<Contents>,
    ram: Option<Ram>,
}

/// What the disk holds, and what the file says of it.
struct Contents(Disk, Box<dyn DiskContents>);

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What was laid out when RAM was written.
#[derive(Debug)]
struct Ram {
    metadata: Vec<u8>,
    section_count: u32,
    /// Where in `metadata` the section of the disk is.
    disk: Option<Range<usize>>,
    offset: u64,
    /// End of what was written last, counted from the start of RAM.
    written: u64,
    /// Bytes of pages that are not zero.
    data_bytes: u64,
}

/// What [`Writer::finish`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Names the whole snapshot ([`Snapshot::id`](super::Snapshot::id)).
    pub id: Digest32,
    /// BLAKE3 of RAM, holes as the zeros that they read as.
    pub ram_digest: Digest32,
    /// Bytes of pages that are not zero, which is what RAM takes on disk.
    pub data_bytes: u64,
    /// Where RAM begins in the file; a multiple of [`super::RAM_ALIGNMENT`].
    pub ram_offset: u64,
    /// Length of the file, holes included.
    pub file_bytes: u64,
}

impl Writer {
    /// Takes what is not RAM. `file` is empty, and open for reading and writing.
    pub fn begin(file: &File, metadata: &Metadata) -> Result<Self> {
        let length = file.length().map_err(Error::io("look at"))?;
        if length != 0 {
            return Err(Error::unwritable(format!("the file has {length} bytes already")));
        }
        metadata.identity.encode()?;
        let mut seen = HashSet::new();
        let mut sections = vec![];
        for section in &metadata.sections {
            let name = (section.kind.as_str(), section.index);
            if [identity::KIND, extents::KIND, disk::KIND].contains(&name.0) {
                return Err(Error::unwritable(format!("the kind {:?} is the file's own", name.0)));
            }
            if !seen.insert(name) {
                return Err(Error::unwritable(format!("two sections are {:?} {}", name.0, name.1)));
            }
            section.encode(&mut sections)?;
        }
        Ok(Self {
            file: file.try_clone().map_err(Error::io("keep"))?,
            identity: metadata.identity.clone(),
            sections,
            section_count: u32::try_from(metadata.sections.len()).unwrap_or(u32::MAX),
            disk: None,
            ram: None,
        })
    }

    /// Takes a disk that belongs to the machine, before RAM is written. It is read by [`Writer::finish`].
    pub fn set_disk(&mut self, contents: Box<dyn DiskContents>) -> Result<()> {
        if self.ram.is_some() {
            return Err(Error::unwritable("RAM was written before the disk was named"));
        }
        let disk = Disk {
            bytes: contents.bytes(),
            present: contents.present(),
            zeros: contents.zeros(),
            digest: Digest32::default(),
        };
        disk.check()?;
        self.disk = Some(Contents(disk, contents));
        Ok(())
    }

    /// Writes the whole of RAM, zero pages as holes.
    pub fn write_ram(&mut self, ram: &[u8]) -> Result<()> {
        self.write_ram_within(ram, std::slice::from_ref(&(0..ram.len() as u64)))
    }

    /// Writes the whole of RAM, of which nothing outside `touched` is anything but zero; the rest is not looked at.
    /// Byte ranges of whole pages, in any order.
    pub fn write_ram_within(&mut self, ram: &[u8], touched: &[Range<u64>]) -> Result<()> {
        let touched = ram::normalize(touched, ram.len() as u64)?;
        self.lay_out(ram.len() as u64, None)?;
        self.write_ranges(ram, &touched)
    }

    /// Writes a diff to the identity's parent: the pages of `ranges` are in it, zero or not, and no others. Byte ranges
    /// of whole pages, in any order; `ram` is the whole of it.
    pub fn write_ram_pages(&mut self, ram: &[u8], ranges: &[Range<u64>]) -> Result<()> {
        let present = ram::normalize(ranges, ram.len() as u64)?;
        self.lay_out(ram.len() as u64, Some(&present))?;
        self.write_ranges(ram, &present)
    }

    /// Decides where everything goes. `present` is what a diff holds.
    pub(super) fn lay_out(&mut self, ram_bytes: u64, present: Option<&Extents>) -> Result<()> {
        let wanted = self.identity.memory_bytes;
        if ram_bytes != wanted {
            return Err(Error::unwritable(format!(
                "RAM has {ram_bytes} bytes and the identity says {wanted}"
            )));
        }
        if self.ram.is_some() {
            return Err(Error::unwritable("RAM was written already"));
        }
        match (self.identity.parent, present) {
            (Some(_), None) => return Err(Error::unwritable("a whole snapshot has no parent")),
            (None, Some(_)) => return Err(Error::unwritable("a diff needs a parent")),
            _ => {}
        }
        let mut metadata = vec![];
        self.identity.encode()?.encode(&mut metadata)?;
        if let Some(present) = present {
            extents::encode(present).encode(&mut metadata)?;
        }
        let mut disk_at = None;
        if let Some(Contents(disk, _)) = &self.disk {
            if present.is_none() && !disk.zeros.is_empty() {
                return Err(Error::unwritable("the disk of a whole snapshot has zeros where it has nothing"));
            }
            let start = metadata.len();
            disk.encode().encode(&mut metadata)?;
            disk_at = Some(start..metadata.len());
        }
        metadata.extend(std::mem::take(&mut self.sections));
        let own = 1 + u32::from(present.is_some()) + u32::from(disk_at.is_some());
        let section_count = self.section_count.saturating_add(own);
        if metadata.len() as u64 > MAX_METADATA || section_count > MAX_SECTIONS {
            return Err(Error::unwritable(format!(
                "{section_count} sections of {} bytes; {MAX_SECTIONS} of {MAX_METADATA} bytes in all is the most",
                metadata.len()
            )));
        }
        let offset = Header::ram_offset(metadata.len() as u64);
        self.ram = Some(Ram { metadata, section_count, disk: disk_at, offset, written: 0, data_bytes: 0 });
        Ok(())
    }

    fn write_ranges(&mut self, ram: &[u8], ranges: &[Range<u64>]) -> Result<()> {
        for range in ranges {
            self.write_at(range.start, &ram[to_usize(range.start)..to_usize(range.end)])?;
        }
        fault::point("ram");
        Ok(())
    }

    /// Writes what is not zero of these whole pages at `start` of RAM, straight from where it is.
    pub(super) fn write_at(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let ram = self.ram.as_mut().expect("laid out before");
        for run in ram::runs(bytes) {
            let at = start + run.start as u64;
            self.file.write_all_at(&bytes[run.clone()], ram.offset + at).map_err(Error::io("write"))?;
            ram.written = at + run.len() as u64;
            ram.data_bytes += run.len() as u64;
        }
        Ok(())
    }

    /// Digests RAM, writes the rest, and waits until the disk has it. The header comes last, after the disk has what it
    /// vouches for.
    pub fn finish(self) -> Result<Summary> {
        self.end(true)
    }

    /// The same for a file that nobody keeps: it has no digest of RAM, so that [`super::verify`] refuses it, and no
    /// disk is waited for.
    pub fn finish_unkept(self) -> Result<Summary> {
        self.end(false)
    }

    fn end(self, kept: bool) -> Result<Summary> {
        let Some(mut ram) = self.ram else { return Err(Error::unwritable("no RAM was written")) };
        let sync = |sync: &dyn Fn() -> std::io::Result<()>| if kept { sync() } else { Ok(()) };
        let write = Error::io("write");
        let memory_bytes = self.identity.memory_bytes;
        let has_disk = self.disk.is_some();
        if ram.written < memory_bytes {
            // Gives the file its length without a call that a confined process may lack.
            self.file.write_all_at(&[0], ram.offset + memory_bytes - 1).map_err(&write)?;
        }
        let place = ram.offset..ram.offset + memory_bytes;
        let (mut ram_digest, mut data_bytes) = match kept {
            true => ram::digest(&self.file, place.clone())?,
            false => (Digest32::default(), ram.data_bytes),
        };
        if data_bytes != ram.data_bytes {
            // There have been file systems that took for a hole what the disk did not have yet.
            self.file.sync_data().map_err(&write)?;
            (ram_digest, data_bytes) = ram::digest(&self.file, place)?;
        }
        if data_bytes != ram.data_bytes {
            return Err(Error::WrittenDiffers { written: ram.data_bytes, found: data_bytes });
        }
        fault::point("digest");
        let mut file_bytes = ram.offset + memory_bytes;
        if let (Some(Contents(mut disk, contents)), Some(at)) = (self.disk, ram.disk.take()) {
            disk.digest = disk::copy(&*contents, &disk, &self.file, file_bytes)?;
            file_bytes += disk.held_bytes();
            // As long as it was, for only the digest differs.
            let mut section = Vec::with_capacity(at.len());
            disk.encode().encode(&mut section)?;
            ram.metadata[at].copy_from_slice(&section);
            fault::point("disk");
        }
        self.file.write_all_at(&ram.metadata, header::BYTES as u64).map_err(&write)?;
        fault::point("metadata");
        sync(&|| self.file.sync_data()).map_err(&write)?;
        fault::point("data-synced");
        let header = Header {
            minor: if has_disk { MINOR } else { 0 },
            sections: ram.section_count,
            metadata_bytes: ram.metadata.len() as u64,
            ram_offset: ram.offset,
            memory_bytes,
            disk: has_disk,
            metadata: Digest32::of(&ram.metadata),
            ram: ram_digest,
        };
        let (header, id) = header.encode();
        self.file.write_all_at(&header, 0).map_err(&write)?;
        fault::point("header");
        sync(&|| self.file.sync_all()).map_err(&write)?;
        fault::point("header-synced");
        Ok(Summary { id, ram_digest, data_bytes, ram_offset: ram.offset, file_bytes })
    }
}
