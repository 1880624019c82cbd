//! A snapshot as one compressed file, to be carried about.
//!
//! It is a Zstandard file in the seekable format (zstd's contrib/seekable_format, version 0.1.0) that unpacks to the
//! snapshot file: `zstd -d` does it. Each frame holds 1 MiB of the snapshot and a checksum and stands for itself; a
//! skippable frame at the end says how long each is. So metadata can be looked at without unpacking RAM.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use supermachine_support::to_usize;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use crate::codec::Cursor;
use crate::ram::{self, Watch};
use crate::{Digest32, Error, Format, Result, Source, v8, v9};

/// How a Zstandard frame begins.
pub const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
const SKIPPABLE_MAGIC: u32 = 0x184d_2a5e;
const SEEKABLE_MAGIC: u32 = 0x8f92_eab1;
/// Magic and length of a skippable frame.
const SKIPPABLE_HEAD: u64 = 8;
/// Number of frames, descriptor, magic.
const FOOTER: u64 = 9;
/// In the descriptor: each entry has a checksum, which other writers may add.
const HAS_CHECKSUMS: u8 = 0x80;
/// Bits that must be 0.
const RESERVED: u8 = 0x7c;

/// What a frame written here unpacks to, the last excepted.
const FRAME: usize = 1 << 20;
/// The most that a frame written by others may unpack to.
const MAX_FRAME: u32 = 8 << 20;
/// Enough for 1 TiB.
const MAX_FRAMES: u32 = 1 << 20;
const LEVEL: i32 = 3;

/// Of a frame, or of the table of all of them: of snapshots that hosts can have, far below 4 GiB.
fn length_field(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a snapshot has fewer frames")
}

/// Writes an export of a snapshot file, which is verified on the way, to `out`, which is empty. Gives its length.
///
/// `watch` hears at which byte of the snapshot it is, and may end it.
pub fn write(source: &File, out: &File, watch: Watch) -> Result<u64> {
    verify_plain(source, watch)?;
    let length = source.length().map_err(Error::io("look at"))?;
    if length.div_ceil(FRAME as u64) > MAX_FRAMES.into() {
        return Err(Error::unwritable(format!("an export has at most {MAX_FRAMES} MiB")));
    }
    let failed = |source: io::Error| Error::Io { action: "compress", source };
    let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
    let zeros = compressor.compress(&vec![0; FRAME]).map_err(failed)?;

    let write = Error::io("write");
    let mut chunk = vec![0; FRAME];
    let mut table: Vec<u8> = vec![];
    let mut frames = 0_u32;
    let mut written = 0;
    let mut at = 0;
    while at < length {
        if watch(at).is_break() {
            return Err(Error::Cancelled);
        }
        let bytes = FRAME.min(usize::try_from(length - at).unwrap_or(FRAME));
        let packed: &[u8] = if is_hole(source, at..at + bytes as u64)? && bytes == FRAME {
            &zeros
        } else {
            source.fill_at(&mut chunk[..bytes], at).map_err(Error::io("read"))?;
            &compressor.compress(&chunk[..bytes]).map_err(failed)?
        };
        out.write_all_at(packed, written).map_err(&write)?;
        table.extend(length_field(packed.len()).to_le_bytes());
        table.extend(length_field(bytes).to_le_bytes());
        written += packed.len() as u64;
        at += bytes as u64;
        frames += 1;
    }
    let mut end = SKIPPABLE_MAGIC.to_le_bytes().to_vec();
    end.extend(length_field(table.len() + to_usize(FOOTER)).to_le_bytes());
    end.extend(table);
    end.extend(frames.to_le_bytes());
    end.push(0);
    end.extend(SEEKABLE_MAGIC.to_le_bytes());
    out.write_all_at(&end, written).map_err(&write)?;
    out.sync_all().map_err(&write)?;
    Ok(written + end.len() as u64)
}

fn is_hole(source: &dyn Source, range: Range<u64>) -> Result<bool> {
    Ok(ram::data_extents(source, range).next().transpose()?.is_none())
}

/// Unpacks an export, or copies a snapshot file, to `out`, which is empty, and verifies what is there then. Gives a
/// digest that names the snapshot, which version 8 does not have.
///
/// Nothing is written unless the metadata is in order. `watch` hears at which byte of the snapshot it is, and may end
/// it.
pub fn read(source: &File, out: &File, watch: Watch) -> Result<Option<Digest32>> {
    match Format::of(source)? {
        Format::Export => unpack(&Export::open(source)?, out, watch),
        Format::V8 | Format::V9 => unpack(source, out, watch),
    }
}

fn unpack<S: Source>(source: &S, out: &File, watch: Watch) -> Result<Option<Digest32>> {
    let length = source.length().map_err(Error::io("look at"))?;
    check_metadata(source)?;
    let write = Error::io("write");
    let mut end = 0;
    ram::read_data(source, 0..length, watch, |offset, bytes| {
        for run in ram::runs(bytes) {
            out.write_all_at(&bytes[run.clone()], offset + run.start as u64).map_err(&write)?;
            end = offset + run.end as u64;
        }
        Ok(())
    })?;
    if end < length {
        out.write_all_at(&[0], length - 1).map_err(&write)?;
    }
    out.sync_all().map_err(&write)?;
    verify_plain(out, watch)
}

/// An error unless the metadata is in order and the length is what it says.
fn check_metadata<S: Source>(source: &S) -> Result<()> {
    match Format::of(source)? {
        Format::V8 => v8::Snapshot::read(source).map(drop),
        Format::V9 => v9::Snapshot::open(source).map(drop),
        Format::Export => Err(Error::Magic { expected: "snapshot", found: "another export".into() }),
    }
}

/// Reads and checks all of a snapshot file, or of an export of one. Gives a digest that names the snapshot, which
/// version 8 does not have: of it, no more than the metadata can be checked, and in an export each frame.
pub fn verify(file: &File, watch: Watch) -> Result<Option<Digest32>> {
    if Format::of(file)? != Format::Export {
        return verify_plain(file, watch);
    }
    let export = Export::open(file)?;
    let length = export.length;
    let id = verify_plain(&export, watch)?;
    if id.is_none() {
        ram::read_data(&export, 0..length, watch, |_, _| Ok(()))?;
    }
    Ok(id)
}

fn verify_plain<S: Source>(source: &S, watch: Watch) -> Result<Option<Digest32>> {
    match Format::of(source)? {
        Format::V9 => v9::verify_watched(source, watch).map(|verified| Some(verified.snapshot.id())),
        _ => check_metadata(source).map(|()| None),
    }
}

/// One frame.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where it begins in the export, and where in the snapshot.
    packed_at: u64,
    at: u64,
    packed: u32,
    bytes: u32,
}

/// An export, read as the snapshot that is in it.
pub struct Export<'a> {
    source: &'a dyn Source,
    frames: Vec<Frame>,
    length: u64,
    /// The frame that was unpacked last, and what is in it.
    last: Mutex<(usize, Vec<u8>)>,
}

impl<'a> Export<'a> {
    /// Reads and checks the table of frames.
    pub fn open(source: &'a dyn Source) -> Result<Self> {
        const NAME: &str = "the table of frames";
        let length = source.length().map_err(Error::io("look at"))?;
        let invalid = |offset, reason: &str| Err(Error::invalid(NAME, offset, reason));
        let Some(footer_at) = length.checked_sub(FOOTER) else {
            return invalid(0, "the file is too short to have one");
        };
        let mut footer = [0; to_usize(FOOTER)];
        source.fill_at(&mut footer, footer_at).map_err(Error::io("read"))?;
        let mut cursor = Cursor::new(NAME, &footer, footer_at);
        let (count, descriptor, magic) = (cursor.u32()?, cursor.u8()?, cursor.u32()?);
        if magic != SEEKABLE_MAGIC {
            return invalid(
                footer_at,
                "there is none at the end: it was cut off, or is some other Zstandard file",
            );
        }
        if descriptor & RESERVED != 0 || count > MAX_FRAMES {
            return invalid(footer_at, "it is of an unknown kind or too long");
        }
        let entry = if descriptor & HAS_CHECKSUMS != 0 { 12 } else { 8 };
        let table_bytes = u64::from(count) * entry;
        let Some(head_at) = footer_at.checked_sub(table_bytes + SKIPPABLE_HEAD) else {
            return invalid(footer_at, "it is longer than the file");
        };
        let mut table = vec![0; to_usize(SKIPPABLE_HEAD + table_bytes)];
        source.fill_at(&mut table, head_at).map_err(Error::io("read"))?;
        let mut cursor = Cursor::new(NAME, &table, head_at);
        if cursor.u32()? != SKIPPABLE_MAGIC || u64::from(cursor.u32()?) != table_bytes + FOOTER {
            return invalid(head_at, "its head does not fit its end");
        }
        let mut frames = vec![];
        let (mut packed_at, mut at) = (0, 0);
        for _ in 0..count {
            let offset = cursor.offset();
            let frame = Frame { packed_at, at, packed: cursor.u32()?, bytes: cursor.u32()? };
            cursor.bytes(to_usize(entry) - 8)?;
            let bound = zstd::zstd_safe::compress_bound(frame.bytes as usize) as u64 + SKIPPABLE_HEAD;
            if frame.bytes == 0 || frame.bytes > MAX_FRAME || u64::from(frame.packed) > bound {
                return invalid(offset, "a frame is empty or too long");
            }
            packed_at += u64::from(frame.packed);
            at += u64::from(frame.bytes);
            frames.push(frame);
        }
        if packed_at != head_at {
            return invalid(head_at, "the frames in it are not those before it");
        }
        Ok(Self { source, frames, length: at, last: Mutex::new((usize::MAX, vec![])) })
    }

    fn unpack(&self, number: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let frame = &self.frames[number];
        let mut packed = vec![0; frame.packed as usize];
        self.source.fill_at(&mut packed, frame.packed_at)?;
        into.clear();
        into.reserve_exact(frame.bytes as usize);
        let damaged = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let found = Decompressor::new()?
            .decompress_to_buffer(&packed, into)
            .map_err(|error| damaged(format!("frame {number} at byte {}: {error}", frame.packed_at)))?;
        if found != frame.bytes as usize {
            return Err(damaged(format!("frame {number} has {found} bytes and not {}", frame.bytes)));
        }
        Ok(())
    }
}

impl Source for Export<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn fill_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut last = supermachine_support::lock(&self.last);
        while !bytes.is_empty() {
            let number = self.frames.partition_point(|frame| frame.at <= offset) - 1;
            if last.0 != number {
                last.0 = usize::MAX;
                self.unpack(number, &mut last.1)?;
                last.0 = number;
            }
            let there = &last.1[to_usize(offset - self.frames[number].at)..];
            let count = there.len().min(bytes.len());
            let (now, later) = bytes.split_at_mut(count);
            now.copy_from_slice(&there[..count]);
            offset += count as u64;
            bytes = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::testing::{bytes_of, file_of, nameless};

    /// A snapshot of several frames, some of them holes.
    fn snapshot() -> File {
        let memory_bytes = 9 * FRAME as u64 / 2;
        let identity = v9::Identity { vcpus: 1, memory_bytes, ..v9::Identity::default() };
        let mut ram = vec![0; memory_bytes as usize];
        for (n, byte) in ram[..FRAME].iter_mut().enumerate() {
            *byte = (n >> 3) as u8;
        }
        ram[3 * FRAME + 77] = 1;
        let file = nameless();
        let mut writer = v9::Writer::begin(&file, &v9::Metadata { identity, sections: vec![] }).unwrap();
        writer.write_ram(&ram).unwrap();
        writer.finish().unwrap();
        file
    }

    fn exported(snapshot: &File) -> File {
        let out = nameless();
        let length = write(snapshot, &out, &mut ram::patient).unwrap();
        assert_eq!(out.length().unwrap(), length);
        out
    }

    #[test]
    fn what_was_exported_is_imported() {
        let original = snapshot();
        let export = exported(&original);
        assert!(export.length().unwrap() < FRAME as u64 / 2);
        let out = nameless();
        let id = v9::Snapshot::open(&original).unwrap().id();
        assert_eq!(read(&export, &out, &mut ram::patient).unwrap(), Some(id));
        assert!(bytes_of(&out) == bytes_of(&original));
        let copy = nameless();
        assert_eq!(read(&original, &copy, &mut ram::patient).unwrap(), Some(id));
        assert!(bytes_of(&copy) == bytes_of(&original));
    }

    #[test]
    fn it_is_a_zstandard_file_and_can_be_read_in_place() {
        let original = snapshot();
        let packed = bytes_of(&exported(&original));
        assert!(zstd::decode_all(&packed[..]).unwrap() == bytes_of(&original));
        let bytes = &packed[..];
        let export = Export::open(&bytes).unwrap();
        assert_eq!(v9::Snapshot::open(&export).unwrap(), v9::Snapshot::open(&original).unwrap());
        v9::verify(&export).unwrap();
        assert!(export.fill_at(&mut [0], export.length).is_err());
        assert!(export.fill_at(&mut [0; 2], u64::MAX).is_err());
    }

    #[test]
    fn damage_is_noticed_or_makes_no_difference() {
        let original = bytes_of(&snapshot());
        let packed = bytes_of(&exported(&snapshot()));
        let file = file_of(&packed);
        let mut unnoticed = 0;
        // Four frames end within the last bytes, and the table is there.
        for at in (0..packed.len() - 400).step_by(997).chain(packed.len() - 400..packed.len()) {
            file.write_all_at(&[packed[at] ^ 1], at as u64).unwrap();
            let out = nameless();
            match read(&file, &out, &mut ram::patient) {
                Err(error) => assert!(!error.to_string().is_empty()),
                // Zstandard has bits that mean nothing, and encodings that mean the same.
                Ok(_) => {
                    unnoticed += 1;
                    assert!(bytes_of(&out) == original, "byte {at}");
                }
            }
            file.write_all_at(&[packed[at]], at as u64).unwrap();
        }
        assert!(unnoticed < 20, "{unnoticed} changes made no difference");
        for length in (0..packed.len()).rev().step_by(331) {
            file.set_len(length as u64).unwrap();
            let error = read(&file, &nameless(), &mut ram::patient).expect_err(&format!("{length}"));
            assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn lengths_in_the_table_are_not_believed() {
        let packed = bytes_of(&exported(&snapshot()));
        let end = packed.len();
        let refused = |at: usize, value: u32, reason: &str| {
            let mut bytes = packed.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let error = Export::open(&&bytes[..]).err().unwrap().to_string();
            assert!(error.contains(reason), "{error}");
        };
        refused(end - 9, u32::MAX, "too long");
        refused(end - 9, 1 << 20, "longer than the file");
        refused(end - 9, 4, "head");
        refused(end - 17, u32::MAX, "too long");
        refused(end - 13, 0, "empty");
        refused(end - 13, u32::MAX, "too long");
        refused(end - 17, 1, "not those before");
        refused(end - 4, 0, "cut off");
    }

    #[test]
    fn a_watcher_may_end_it() {
        let original = snapshot();
        let export = exported(&original);
        let stop = &mut |_: u64| ControlFlow::Break(());
        assert!(matches!(write(&original, &nameless(), stop), Err(Error::Cancelled)));
        assert!(matches!(read(&export, &nameless(), stop), Err(Error::Cancelled)));
    }

    #[test]
    fn damaged_snapshots_are_not_exported() {
        let original = snapshot();
        original.write_all_at(&[1], original.length().unwrap() - 1).unwrap();
        let result = write(&original, &nameless(), &mut ram::patient);
        assert!(matches!(result, Err(Error::RamDigest { .. })));
        let export = exported(&snapshot());
        assert!(matches!(write(&export, &nameless(), &mut ram::patient), Err(Error::Magic { .. })));
    }
}
