//! Which pages are in which frame, read from bytes that nobody vouches for.

use std::ops::Range;

use super::{FRAME_BYTES, FRAME_PAGES};
use crate::codec::{Cursor, put_varint};
use crate::ram::PAGE;
use crate::{Digest32, Error, Result};

const NAME: &str = "the table of frames";
/// Parts of a snapshot at most.
const MAX_PARTS: u8 = 16;
const MAX_NAME: u8 = 32;
/// Beside the length of a part's name: its frames are packed against the pages of a kernel.
const AGAINST_KERNEL: u8 = 0x80;

/// Page numbers, in an order of their own: no two ranges share a page.
pub type Runs = Vec<Range<u64>>;

/// One packed frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it begins in the part's blob.
    pub at: u64,
    /// Its packed length.
    pub bytes: u32,
    /// BLAKE3 of it as it is packed.
    pub digest: Digest32,
}

/// A stretch of one of a snapshot's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// At most 32 bytes.
    pub name: String,
    /// Which of the files.
    pub file: u8,
    /// Where the part begins in it, and its length. Both in bytes, multiples of a page.
    pub origin: u64,
    /// Bytes; a multiple of a page.
    pub length: u64,
    /// Whether its frames are packed against the pages of a [`super::Kernel`], which is then needed to unpack them.
    pub against_kernel: bool,
    /// The pages that are sent, counted from `origin`, in the order of the frames.
    pub runs: Runs,
    /// In the order of the blob, without gaps.
    pub frames: Vec<Frame>,
    /// The pages that are as in the base.
    pub base: Runs,
}

impl Part {
    /// Length of the blob.
    pub fn packed_bytes(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.at + u64::from(frame.bytes))
    }

    /// Number of pages that are sent.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    pub(super) fn frame_pages(&self, number: usize) -> u64 {
        FRAME_PAGES.min(self.pages() - number as u64 * FRAME_PAGES)
    }

    /// Appends it as a table has it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let length = u8::try_from(self.name.len()).expect("names have at most MAX_NAME bytes");
        out.push(length | if self.against_kernel { AGAINST_KERNEL } else { 0 });
        out.extend(self.name.as_bytes());
        out.push(self.file);
        put_varint(out, self.origin / PAGE as u64);
        put_varint(out, self.length / PAGE as u64);
        encode_runs(&self.runs, out);
        encode_runs(&self.base, out);
        for frame in &self.frames {
            put_varint(out, frame.bytes.into());
            out.extend(frame.digest.0);
        }
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let first = cursor.u8()?;
        let (length, against_kernel) = (first & !AGAINST_KERNEL, first & AGAINST_KERNEL != 0);
        if length == 0 || length > MAX_NAME {
            return Err(cursor.invalid("the name of a part is empty or too long"));
        }
        let name = cursor.bytes(length.into())?.to_vec();
        let name = String::from_utf8(name).map_err(|_| cursor.invalid("the name of a part is not text"))?;
        let file = cursor.u8()?;
        let origin = pages_to_bytes(cursor)?;
        let length = pages_to_bytes(cursor)?;
        let end = origin.checked_add(length).ok_or_else(|| cursor.invalid("a part ends nowhere"))?;
        let pages = (end - origin) / PAGE as u64;
        let runs = decode_runs(cursor, pages)?;
        let base = decode_runs(cursor, pages)?;
        let mut left: u64 = runs.iter().map(|run| run.end - run.start).sum();
        let mut frames = vec![];
        let mut at = 0_u64;
        while left > 0 {
            let bytes = cursor.varint()?;
            let most = zstd::zstd_safe::compress_bound(FRAME_BYTES);
            let Some(bytes) =
                u32::try_from(bytes).ok().filter(|bytes| (1..=most).contains(&(*bytes as usize)))
            else {
                return Err(cursor.invalid("a frame is empty or too long"));
            };
            frames.push(Frame { at, bytes, digest: Digest32(cursor.array()?) });
            at += u64::from(bytes);
            left -= left.min(FRAME_PAGES);
        }
        Ok(Self { name, file, origin, length, against_kernel, runs, frames, base })
    }
}

fn pages_to_bytes(cursor: &mut Cursor<'_>) -> Result<u64> {
    let pages = cursor.varint()?;
    pages.checked_mul(PAGE as u64).ok_or_else(|| cursor.invalid("a number of pages is too large"))
}

/// Appends runs as a table has them, for others who say something of runs.
pub(super) fn put_runs(runs: &[Range<u64>], out: &mut Vec<u8>) {
    encode_runs(runs, out);
}

/// Their number, and for each the distance from the end of the one before, signed in the lowest bit, and its pages.
fn encode_runs(runs: &[Range<u64>], out: &mut Vec<u8>) {
    put_varint(out, runs.len() as u64);
    let mut last = 0_u64;
    for run in runs {
        let distance = if run.start >= last { (run.start - last) << 1 } else { (last - run.start) << 1 | 1 };
        put_varint(out, distance);
        put_varint(out, run.end - run.start);
        last = run.end;
    }
}

pub(super) fn decode_runs(cursor: &mut Cursor<'_>, pages: u64) -> Result<Runs> {
    let count = cursor.varint()?;
    // Each takes two bytes at least, so nothing is kept for a number that is not there.
    if count > cursor.remaining() as u64 / 2 {
        return Err(cursor.invalid("there are more runs than bytes"));
    }
    let mut runs = vec![];
    let mut last = 0_u64;
    for _ in 0..count {
        let distance = cursor.varint()?;
        let length = cursor.varint()?;
        let start = match distance & 1 {
            0 => last.checked_add(distance >> 1),
            _ => last.checked_sub(distance >> 1),
        };
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if length > 0 && end <= pages => runs.push(start..end),
            _ => return Err(cursor.invalid("a run of pages is empty or outside its part")),
        }
        last = runs.last().map_or(0, |run| run.end);
    }
    Ok(runs)
}

/// The parts of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// At most 255.
    pub parts: Vec<Part>,
}

impl Table {
    /// A byte for their number, and the parts one after another.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::try_from(self.parts.len()).expect("there are at most 255")];
        self.parts.iter().for_each(|part| part.encode(&mut out));
        out
    }

    /// Checks that each page of a file is said once at most, and that no file is longer than `max_bytes`.
    pub fn decode(bytes: &[u8], max_bytes: u64) -> Result<Self> {
        let mut cursor = Cursor::new(NAME, bytes, 0);
        let count = cursor.u8()?;
        if count == 0 || count > MAX_PARTS {
            return Err(cursor.invalid(format!("it has {count} parts; 1 to {MAX_PARTS} are possible")));
        }
        let parts = (0..count).map(|_| Part::decode(&mut cursor)).collect::<Result<Vec<_>>>()?;
        cursor.end()?;
        let table = Self { parts };
        for file in 0..=table.parts.iter().map(|part| part.file).max().unwrap_or(0) {
            let bytes = table.file_bytes(file);
            if bytes > max_bytes {
                return Err(Error::invalid(
                    NAME,
                    0,
                    format!("a file of it has {bytes} bytes, and {max_bytes} is the limit"),
                ));
            }
        }
        table.check_once()?;
        Ok(table)
    }

    /// Length of one of the files.
    pub fn file_bytes(&self, file: u8) -> u64 {
        self.of_file(file).map(|part| part.origin + part.length).max().unwrap_or(0)
    }

    fn of_file(&self, file: u8) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.file == file)
    }

    fn check_once(&self) -> Result<()> {
        let mut said: Vec<(u8, Range<u64>)> = vec![];
        for part in &self.parts {
            let first = part.origin / PAGE as u64;
            let runs = part.runs.iter().chain(&part.base);
            said.extend(runs.map(|run| (part.file, first + run.start..first + run.end)));
        }
        said.sort_unstable_by_key(|(file, run)| (*file, run.start));
        match said.windows(2).any(|two| two[0].0 == two[1].0 && two[0].1.end > two[1].1.start) {
            true => Err(Error::invalid(NAME, 0, "a page is in it twice")),
            false => Ok(()),
        }
    }
}
