//! The section `disk`, version 1, and what follows RAM in a file that has it.
//!
//! In this order: u64 bytes of the disk, 32 bytes BLAKE3 of the blocks that the file holds, u32 bytes of the list that
//! follows, that list of the stretches that the file holds, and, up to the end of the data, the list of those that are
//! zeros whatever the parent has there. Lists are as in `ram-extents`, of blocks of 4 KiB. The blocks lie one after
//! another behind RAM, in ascending order.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use supermachine_support::to_usize;

use super::{Extents, Section, Snapshot, extents};
use crate::codec::Cursor;
use crate::ram::{self, PAGE, Piece, Watch};
use crate::{Digest32, Error, Result, Source};

pub(super) const KIND: &str = "disk";
const VERSION: u32 = 1;
const NAME: &str = "section disk 0";
/// Bytes of a disk at most; more than any file has.
const MAX_BYTES: u64 = 1 << 56;

/// A disk that belongs to the machine, as far as one file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// A multiple of 4 KiB, and not 0.
    pub bytes: u64,
    /// What the file holds.
    pub present: Extents,
    /// What is zeros whatever the parent has; nothing in a whole snapshot.
    pub zeros: Extents,
    pub(super) digest: Digest32,
}

impl Disk {
    /// Bytes of the disk that the file holds.
    pub fn held_bytes(&self) -> u64 {
        self.present.iter().map(|range| range.end - range.start).sum()
    }

    pub(super) fn encode(&self) -> Section {
        let mut data = self.bytes.to_le_bytes().to_vec();
        data.extend(self.digest.0);
        let mut list = vec![];
        extents::put(&mut list, &self.present);
        data.extend(u32::try_from(list.len()).expect("a disk has fewer stretches").to_le_bytes());
        data.extend(list);
        extents::put(&mut data, &self.zeros);
        Section { kind: KIND.into(), index: 0, version: VERSION, required: true, data }
    }

    /// Reads the data of a section that begins at `offset` of the file, of a snapshot that is `whole` or a diff.
    pub(super) fn decode(section: &Section, offset: u64, whole: bool) -> Result<Self> {
        let mut cursor = Cursor::new(NAME, &section.data, offset);
        if section.version != VERSION {
            return Err(cursor.invalid(format!(
                "its version is {} and this version of supermachine reads {VERSION}",
                section.version
            )));
        }
        let bytes = cursor.u64()?;
        if bytes == 0 || bytes > MAX_BYTES || !bytes.is_multiple_of(PAGE as u64) {
            return Err(
                cursor.invalid(format!("a disk of {bytes:#x} bytes is not one of whole 4 KiB blocks"))
            );
        }
        let digest = Digest32(cursor.array()?);
        let length = cursor.u32()? as usize;
        let at = cursor.offset();
        let list = cursor.bytes(length)?.to_vec();
        let present = extents::take(&mut Cursor::new(NAME, &list, at), NAME, bytes)?;
        let zeros = extents::take(&mut cursor, NAME, bytes)?;
        let overlap = present.iter().any(|range| {
            let next = zeros.partition_point(|zero| zero.end <= range.start);
            zeros.get(next).is_some_and(|zero| zero.start < range.end)
        });
        if overlap || whole && !zeros.is_empty() {
            let reason = "it says of blocks that they are zeros, and holds them or has no parent";
            return Err(Error::invalid(NAME, offset, reason));
        }
        Ok(Self { bytes, present, zeros, digest })
    }

    pub(super) fn check(&self) -> Result<()> {
        let bytes = self.bytes;
        if bytes == 0 || bytes > MAX_BYTES || !bytes.is_multiple_of(PAGE as u64) {
            return Err(Error::unwritable(format!(
                "a disk of {bytes:#x} bytes is not one of whole 4 KiB blocks"
            )));
        }
        for list in [&self.present, &self.zeros] {
            if ram::normalize(list, bytes)? != *list {
                return Err(Error::unwritable("the stretches of a disk are not sorted and maximal"));
            }
        }
        Ok(())
    }

    /// Where a byte of the disk that the file holds is, counted from the end of RAM.
    fn place(&self, byte: u64) -> u64 {
        let mut before = 0;
        for range in &self.present {
            if byte < range.end {
                return before + (byte - range.start);
            }
            before += range.end - range.start;
        }
        before
    }
}

/// What a disk holds at the moment of a capture, read once the guest goes on.
pub trait DiskContents: Send {
    /// Length of the disk; a multiple of 4 KiB.
    fn bytes(&self) -> u64;

    /// What the snapshot is to hold: sorted, maximal ranges of whole 4 KiB blocks.
    fn present(&self) -> Extents;

    /// What is zeros whatever the parent of a diff has, in the same form.
    fn zeros(&self) -> Extents;

    /// Fills `buffer` with what is at `offset`, all of which is present.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Writes what is present to `out` from `start` on, zeros as holes. Gives the digest.
pub(super) fn copy(contents: &dyn DiskContents, disk: &Disk, out: &File, start: u64) -> Result<Digest32> {
    let write = Error::io("write");
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; ram::CHUNK];
    let (mut at, mut written) = (start, start);
    for range in &disk.present {
        let mut offset = range.start;
        while offset < range.end {
            let chunk = &mut buffer[..to_usize((range.end - offset).min(ram::CHUNK as u64))];
            contents.read(chunk, offset).map_err(Error::io("read the disk of the machine for"))?;
            hasher.update(chunk);
            for run in ram::runs(chunk) {
                out.write_all_at(&chunk[run.clone()], at + run.start as u64).map_err(&write)?;
                written = at + run.end as u64;
            }
            at += chunk.len() as u64;
            offset += chunk.len() as u64;
        }
    }
    if written < at {
        out.write_all_at(&[0], at - 1).map_err(&write)?;
    }
    Ok(hasher.finalize().into())
}

/// Checks the digest of what the file holds.
pub(super) fn verify(source: &dyn Source, snapshot: &Snapshot, watch: Watch) -> Result<()> {
    let Some(disk) = snapshot.disk() else { return Ok(()) };
    let start = snapshot.ram().end;
    let end = start + disk.held_bytes();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; ram::CHUNK];
    let mut at = start;
    while at < end {
        if watch(at).is_break() {
            return Err(Error::Cancelled);
        }
        let chunk = &mut buffer[..to_usize((end - at).min(ram::CHUNK as u64))];
        source.fill_at(chunk, at).map_err(Error::io("read the disk of"))?;
        hasher.update(chunk);
        at += chunk.len() as u64;
    }
    match Digest32::from(hasher.finalize()) == disk.digest {
        true => Ok(()),
        false => Err(Error::Checksum { section: "the disk".into(), offset: start }),
    }
}

/// A stretch of a chain's disk, and where its contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPiece {
    /// Bytes of the disk.
    pub disk: Range<u64>,
    /// Which member of the chain has them; 0 is the base.
    pub layer: usize,
    /// Where in that file.
    pub at: u64,
}

/// What the disk of a chain is: its length, and in ascending order what is not zeros. `None` for a machine without.
///
/// The chain has been checked.
pub fn disk_layers(chain: &[&Snapshot]) -> Option<(u64, Vec<DiskPiece>)> {
    const ZEROS: usize = usize::MAX;
    let bytes = chain.first()?.disk()?.bytes;
    let mut pieces = vec![Piece { ram: 0..bytes, layer: ZEROS }];
    for (layer, disk) in chain.iter().map(|snapshot| snapshot.disk()).enumerate() {
        let disk = disk?;
        pieces = ram::overlay(pieces, &disk.present, layer);
        pieces = ram::overlay(pieces, &disk.zeros, ZEROS);
    }
    let held = pieces.into_iter().filter(|piece| piece.layer != ZEROS);
    let piece = |Piece { ram: disk, layer }| {
        let snapshot = chain[layer];
        let at = snapshot.ram().end + snapshot.disk()?.place(disk.start);
        Some(DiskPiece { disk, layer, at })
    };
    Some((bytes, held.filter_map(piece).collect()))
}

/// The disk of a chain, to be written into one file.
pub(super) struct Flattened {
    pub bytes: u64,
    pub pieces: Vec<DiskPiece>,
    pub files: Vec<File>,
}

impl DiskContents for Flattened {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn present(&self) -> Extents {
        let mut all = Extents::new();
        for piece in &self.pieces {
            match all.last_mut() {
                Some(last) if last.end == piece.disk.start => last.end = piece.disk.end,
                _ => all.push(piece.disk.clone()),
            }
        }
        all
    }

    fn zeros(&self) -> Extents {
        Extents::new()
    }

    fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let first = self.pieces.partition_point(|piece| piece.disk.end <= offset);
        for piece in &self.pieces[first..] {
            let length = buffer.len().min(usize::try_from(piece.disk.end - offset).unwrap_or(usize::MAX));
            let (now, later) = buffer.split_at_mut(length);
            self.files[piece.layer].read_exact_at(now, piece.at + (offset - piece.disk.start))?;
            offset += length as u64;
            buffer = later;
            if buffer.is_empty() {
                break;
            }
        }
        Ok(())
    }
}
