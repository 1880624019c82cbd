//! Reading: header and sections, and RAM only when asked for.

use std::collections::HashMap;
use std::ops::Range;

use supermachine_support::to_usize;

use super::disk::{self, Disk};
use super::header::{self, Header};
use super::{Extents, Identity, Section, extents, identity, section};
use crate::ram::{self, PAGE, Watch};
use crate::{Digest32, Error, Result, Source, error};

/// What a snapshot file says, all of it checked but RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    header: Header,
    id: Digest32,
    identity: Identity,
    present: Option<Extents>,
    disk: Option<Disk>,
    sections: Vec<Section>,
    positions: HashMap<(String, u32), usize>,
}

impl Snapshot {
    /// Reads and checks header and sections, and that the file is as long as they say; RAM is neither read nor checked.
    pub fn open<S: Source>(source: &S) -> Result<Self> {
        Self::read(source)
    }

    /// As [`Snapshot::open`].
    pub fn read(source: &dyn Source) -> Result<Self> {
        let length = source.length().map_err(Error::io("look at"))?;
        let mut bytes = [0; header::BYTES];
        if length < bytes.len() as u64 {
            let mut start = [0; 8];
            let at_hand = usize::try_from(length).unwrap_or(8).min(8);
            source.fill_at(&mut start[..at_hand], 0).map_err(Error::io("read"))?;
            if start[..at_hand] != header::MAGIC[..at_hand] {
                let found = error::beginning(&start[..at_hand]);
                return Err(Error::Magic { expected: "version 9 snapshot", found });
            }
            return Err(Error::Cut {
                section: "the header".into(),
                offset: 0,
                needed: bytes.len() as u64,
                available: length,
            });
        }
        source.fill_at(&mut bytes, 0).map_err(Error::io("read"))?;
        let (header, id) = Header::decode(&bytes)?;
        let end = header.ram_offset + header.memory_bytes;
        if length < end {
            return Err(Error::Cut {
                section: "RAM".into(),
                offset: header.ram_offset,
                needed: header.memory_bytes,
                available: length.saturating_sub(header.ram_offset),
            });
        }
        if length > end && !header.disk {
            return Err(Error::invalid("RAM", end, format!("{} bytes follow its end", length - end)));
        }
        let snapshot = Self::read_sections(source, header, id)?;
        let held = snapshot.disk.as_ref().map_or(0, Disk::held_bytes);
        match length - end {
            available if available < held => {
                Err(Error::Cut { section: "the disk".into(), offset: end, needed: held, available })
            }
            available if available > held => Err(Error::invalid(
                "the disk",
                end + held,
                format!("{} bytes follow its end", available - held),
            )),
            _ => Ok(snapshot),
        }
    }

    fn read_sections(source: &dyn Source, header: Header, id: Digest32) -> Result<Self> {
        let mut metadata = Metadata::new(source, header.metadata_bytes);
        let (mut own_identity, mut present, mut disk) = (None, None, None);
        let mut sections = vec![];
        let mut positions = HashMap::new();
        for number in 0..header.sections {
            let (section, at) = metadata.section()?;
            let name = (section.kind.clone(), section.index);
            let repeated = match section.kind.as_str() {
                identity::KIND if number == 0 && section.index == 0 => {
                    own_identity = Some(Identity::decode(&section, at)?);
                    false
                }
                extents::KIND if number == 1 && section.index == 0 => {
                    present = Some(extents::decode(&section, at, header.memory_bytes)?);
                    false
                }
                disk::KIND if number == 1 + u32::from(present.is_some()) && section.index == 0 => {
                    disk = Some(Disk::decode(&section, at, present.is_none())?);
                    false
                }
                identity::KIND | extents::KIND | disk::KIND => true,
                _ => {
                    let position = sections.len();
                    sections.push(section);
                    positions.insert(name.clone(), position).is_some()
                }
            };
            if repeated {
                let name = section::name(&name.0, name.1);
                return Err(Error::invalid(name, at, "this section is there twice or out of its place"));
            }
        }
        metadata.end(&header)?;
        let Some(identity) = own_identity else {
            return Err(Error::invalid(
                "the sections",
                header::BYTES as u64,
                "the first is not the identity, and it must be",
            ));
        };
        let wrong = |reason: &str| Err(Error::invalid("section identity 0", header::BYTES as u64, reason));
        if identity.memory_bytes != header.memory_bytes {
            return wrong("its amount of RAM is not the header's");
        }
        match (identity.parent, &present) {
            (Some(_), None) => return wrong("it names a parent, but there is no section ram-extents"),
            (None, Some(_)) => return wrong("it names no parent, but there is a section ram-extents"),
            _ => {}
        }
        if header.disk != disk.is_some() {
            return Err(Error::invalid("the header", 40, "its flags and the section disk do not fit"));
        }
        Ok(Self { header, id, identity, present, disk, sections, positions })
    }

    /// Names the whole of this snapshot: a digest over header, sections and (as recorded) RAM.
    pub fn id(&self) -> Digest32 {
        self.id
    }

    /// What a machine must be to be restored from it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Minor version of the format that the writer knew.
    pub fn minor(&self) -> u32 {
        self.header.minor
    }

    /// All sections but the file's own, in the order of the file.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The section of this kind with this index.
    pub fn section(&self, kind: &str, index: u32) -> Option<&Section> {
        self.positions.get(&(kind.to_owned(), index)).map(|at| &self.sections[*at])
    }

    /// An error that names the first section that must be known and is not of these kinds.
    pub fn require_known(&self, kinds: &[&str]) -> Result<()> {
        match self.sections.iter().find(|s| s.required && !kinds.contains(&s.kind.as_str())) {
            None => Ok(()),
            Some(s) => {
                Err(Error::UnknownSection { kind: s.kind.clone(), index: s.index, version: s.version })
            }
        }
    }

    /// Where RAM begins in the file; a multiple of [`super::RAM_ALIGNMENT`].
    pub fn ram_offset(&self) -> u64 {
        self.header.ram_offset
    }

    /// Which bytes of RAM a diff holds, in whole pages; `None` when this snapshot is whole.
    pub fn present_extents(&self) -> Option<&[Range<u64>]> {
        self.present.as_deref()
    }

    /// The disk that belongs to the machine, if one does.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// The digest of RAM that was recorded.
    pub fn ram_digest(&self) -> Digest32 {
        self.header.ram
    }

    /// Where RAM is in the file.
    pub(super) fn ram(&self) -> Range<u64> {
        self.header.ram_offset..self.header.ram_offset + self.header.memory_bytes
    }
}

/// The sections, read once from front to back and digested on the way.
struct Metadata<'a> {
    source: &'a dyn Source,
    /// Offset in the file of what `buffer` does not have yet.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    taken: usize,
    hasher: blake3::Hasher,
}

impl<'a> Metadata<'a> {
    const BUFFER: u64 = 64 << 10;

    fn new(source: &'a dyn Source, bytes: u64) -> Self {
        let at = header::BYTES as u64;
        Self { source, at, end: at + bytes, buffer: vec![], taken: 0, hasher: blake3::Hasher::new() }
    }

    /// Offset in the file of what is taken next.
    fn offset(&self) -> u64 {
        self.at - (self.buffer.len() - self.taken) as u64
    }

    fn remaining(&self) -> u64 {
        self.end - self.offset()
    }

    /// Fills `out`, which is no longer than what remains.
    fn fill(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            if self.taken == self.buffer.len() {
                self.buffer.resize(to_usize((self.end - self.at).min(Self::BUFFER)), 0);
                self.source.fill_at(&mut self.buffer, self.at).map_err(Error::io("read"))?;
                self.hasher.update(&self.buffer);
                self.at += self.buffer.len() as u64;
                self.taken = 0;
            }
            let count = out.len().min(self.buffer.len() - self.taken);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&self.buffer[self.taken..self.taken + count]);
            self.taken += count;
            out = later;
        }
        Ok(())
    }

    /// The next section, and where its data begins in the file.
    fn section(&mut self) -> Result<(Section, u64)> {
        let offset = self.offset();
        let mut head = [0; section::HEAD_BYTES];
        let ends = |name: String, needed| {
            let reason = format!("{needed} bytes are needed and the sections end before");
            Error::invalid(name, offset, reason)
        };
        if self.remaining() < head.len() as u64 {
            return Err(ends("a section's head".into(), head.len() as u64));
        }
        self.fill(&mut head)?;
        let head = section::Head::decode(&head, offset)?;
        let at = self.offset();
        let padding = section::padding(head.data_bytes.min(self.end));
        if self.remaining().checked_sub(padding as u64).is_none_or(|most| most < head.data_bytes) {
            return Err(ends(head.name(), head.data_bytes));
        }
        let mut data = vec![0; to_usize(head.data_bytes)];
        self.fill(&mut data)?;
        let section = head.complete(data)?;
        let mut zeros = [0xff; 8];
        self.fill(&mut zeros[..padding])?;
        if zeros[..padding].iter().any(|byte| *byte != 0) {
            let name = section::name(&section.kind, section.index);
            return Err(Error::invalid(name, offset, "the bytes after its data are not 0"));
        }
        Ok((section, at))
    }

    /// Checks that nothing is left, and the digest.
    fn end(self, header: &Header) -> Result<()> {
        let at = self.offset();
        match self.remaining() {
            0 if Digest32::from(self.hasher.finalize()) == header.metadata => Ok(()),
            0 => Err(Error::Checksum { section: "all sections".into(), offset: header::BYTES as u64 }),
            more => Err(Error::invalid("the sections", at, format!("{more} bytes follow the last"))),
        }
    }
}

/// What [`verify`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What was checked.
    pub snapshot: Snapshot,
    /// Bytes of pages that are not zero.
    pub data_bytes: u64,
}

/// Checks everything, RAM, which is read whole but for its holes, and the disk included.
pub fn verify<S: Source>(source: &S) -> Result<Verified> {
    verify_watched(source, &mut ram::patient)
}

/// As [`verify`]; `watch` hears at which byte of RAM it is, and may end it.
pub fn verify_watched(source: &dyn Source, watch: Watch) -> Result<Verified> {
    let snapshot = Snapshot::read(source)?;
    let ram = snapshot.ram();
    check_padding(source, header::BYTES as u64 + snapshot.header.metadata_bytes..ram.start)?;
    let mut hasher = ram::RamHasher::default();
    let mut present = snapshot.present_extents().map(|extents| extents.iter().peekable());
    ram::read_data(source, ram.clone(), watch, |offset, bytes| {
        hasher.update(offset, bytes);
        let Some(present) = &mut present else { return Ok(()) };
        for run in ram::runs(bytes) {
            let mut at = offset + run.start as u64;
            let end = offset + run.end as u64;
            while at < end {
                while present.next_if(|extent| extent.end <= at).is_some() {}
                match present.peek() {
                    Some(extent) if extent.start <= at => at = extent.end.min(end),
                    _ => {
                        let reason = "a page that this diff does not hold is not 0";
                        return Err(Error::invalid("RAM", ram.start + at, reason));
                    }
                }
            }
        }
        Ok(())
    })?;
    let data_bytes = hasher.data_bytes;
    let found = hasher.finish();
    if found != snapshot.ram_digest() {
        return Err(Error::RamDigest { expected: snapshot.ram_digest(), found });
    }
    disk::verify(source, &snapshot, watch)?;
    Ok(Verified { snapshot, data_bytes })
}

fn check_padding(source: &dyn Source, range: Range<u64>) -> Result<()> {
    let mut buffer = vec![0; to_usize(range.end - range.start)];
    source.fill_at(&mut buffer, range.start).map_err(Error::io("read"))?;
    match buffer.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(at) => Err(Error::invalid(
            "the space before RAM",
            range.start + at as u64,
            "a byte is not 0, as all of them must be",
        )),
    }
}

const _: () = assert!(super::RAM_ALIGNMENT.is_multiple_of(PAGE as u64));
