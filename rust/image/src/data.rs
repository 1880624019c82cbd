//! File contents on their way into the image: whole blocks to the data area, tails to a spool, holes nowhere.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use supermachine_support::to_usize;

use crate::Error;
use crate::id::{Id, NONE};

/// EROFS block size: the page size every guest kernel can mount (Linux: the block may not exceed the page).
pub(crate) const BLOCK: usize = 4096;

/// Tails up to this long go into the metadata area behind their inode, where they always find room beside an inode
/// that need not start on a block boundary.
pub(crate) const MAX_TAIL: usize = 3584;

/// Zero runs shorter than this are written: a hole costs an index and a seek.
const MIN_HOLE: u64 = 64 << 10;

/// A file's block map has at most this many entries; larger files use larger chunks.
const MAX_CHUNKS: u64 = 1 << 18;

/// Where an inode's contents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Nothing,
    /// Consecutive blocks from `start`, then, when the rest is no longer than [`MAX_TAIL`], a tail in the spool.
    Blocks {
        start: u32,
        tail: u64,
    },
    /// Extents `first..first + count`, with holes between them, in chunks of `1 << bits` blocks.
    Chunks {
        first: u32,
        count: u32,
        bits: u8,
    },
    /// A symlink's target in the tree's strings.
    Target(u32),
    /// A device number as Linux encodes it on disk (`new_encode_dev`).
    Device(u32),
    Directory {
        first_child: Id,
        own_entry: Id,
    },
}

impl Body {
    pub(crate) const EMPTY_DIRECTORY: Self = Self::Directory { first_child: NONE, own_entry: NONE };

    /// Bytes of a file of `size` bytes that stand in the spool.
    pub(crate) fn tail_length(size: u64) -> usize {
        match to_usize(size % BLOCK as u64) {
            rest if rest <= MAX_TAIL => rest,
            _ => 0,
        }
    }
}

/// Consecutive blocks of a file with holes: position in the file, position in the image, count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub logical: u32,
    pub physical: u32,
    pub count: u32,
}

/// A file written from front to back through a large buffer, with jumps forward that leave holes.
pub(crate) struct Appender {
    pub file: File,
    pub path: PathBuf,
    buffer: Vec<u8>,
    /// Position of the buffer's first byte.
    flushed: u64,
}

impl Appender {
    const BUFFER: usize = 1 << 20;

    pub(crate) fn new(file: File, path: PathBuf) -> Self {
        Self { file, path, buffer: Vec::with_capacity(Self::BUFFER), flushed: 0 }
    }

    pub(crate) fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.file.write_all_at(&self.buffer, self.flushed).map_err(|e| Error::io("write", &self.path, e))?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn write(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            let n = data.len().min(Self::BUFFER - self.buffer.len());
            self.buffer.extend_from_slice(&data[..n]);
            data = &data[n..];
            if self.buffer.len() == Self::BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// `n` bytes of zeros; many of them stay holes of the file.
    pub(crate) fn zeros(&mut self, n: u64) -> Result<(), Error> {
        if n <= BLOCK as u64 {
            return self.write(&[0; BLOCK][..to_usize(n)]);
        }
        self.flush()?;
        self.flushed += n;
        Ok(())
    }

    pub(crate) fn align(&mut self) -> Result<(), Error> {
        self.zeros(self.position().wrapping_neg() % BLOCK as u64)
    }

    pub(crate) fn block(&self) -> Result<u32, Error> {
        // The last number means "hole".
        u32::try_from(self.position() / BLOCK as u64).ok().filter(|b| *b < u32::MAX - 1).ok_or(Error::Limit {
            limit: "the 32-bit block number of EROFS",
            what: "blocks in the image",
            value: u64::from(u32::MAX),
            remedy: "the image cannot be converted",
        })
    }
}

/// Writes one file after the other.
pub(crate) struct DataArea {
    pub image: Appender,
    pub spool: Appender,
}

/// One file on its way.
pub(crate) struct FileWriter<'a> {
    area: &'a mut DataArea,
    size: u64,
    /// Bytes of the file seen so far.
    at: u64,
    /// log2 of blocks in a chunk.
    bits: u8,
    first_block: u32,
    /// Zero bytes before `at` not yet decided on; whole blocks.
    zeros: u64,
    partial: Vec<u8>,
    extents: Vec<Extent>,
    holes: bool,
}

impl DataArea {
    pub(crate) fn begin(&mut self, size: u64) -> Result<FileWriter<'_>, Error> {
        let blocks = size.div_ceil(BLOCK as u64);
        let mut bits = 0;
        while blocks >> bits > MAX_CHUNKS {
            bits += 1;
        }
        let first_block = self.image.block()?;
        Ok(FileWriter {
            area: self,
            size,
            at: 0,
            bits,
            first_block,
            zeros: 0,
            partial: Vec::new(),
            extents: Vec::new(),
            holes: false,
        })
    }
}

/// A number of a file's blocks, of which there are fewer than 2^32 (`MAX_FILE_BYTES`).
fn block_number(number: u64) -> u32 {
    u32::try_from(number).expect("files have at most MAX_FILE_BYTES")
}

impl FileWriter<'_> {
    /// Memory this file needs so far.
    pub(crate) fn extents(&self) -> usize {
        self.extents.len()
    }

    fn may_have_holes(&self) -> bool {
        self.size >= MIN_HOLE
    }

    pub(crate) fn write(&mut self, mut data: &[u8]) -> Result<(), Error> {
        if !self.partial.is_empty() {
            let n = data.len().min(BLOCK - self.partial.len());
            self.partial.extend_from_slice(&data[..n]);
            self.at += n as u64;
            data = &data[n..];
            if self.partial.len() < BLOCK {
                return Ok(());
            }
            let block = std::mem::take(&mut self.partial);
            self.blocks(&block)?;
            self.partial = block;
            self.partial.clear();
        }
        let whole = data.len() - data.len() % BLOCK;
        self.at += data.len() as u64;
        self.blocks(&data[..whole])?;
        self.partial.extend_from_slice(&data[whole..]);
        Ok(())
    }

    /// `n` zero bytes that the archive does not store.
    pub(crate) fn skip(&mut self, mut n: u64) -> Result<(), Error> {
        if !self.partial.is_empty() {
            let fill = (BLOCK - self.partial.len()).min(usize::try_from(n).unwrap_or(BLOCK));
            self.write(&[0; BLOCK][..fill])?;
            n -= fill as u64;
        }
        let rest = n % BLOCK as u64;
        self.at += n - rest;
        if self.may_have_holes() {
            self.zeros += n - rest;
        } else {
            for _ in 0..n / BLOCK as u64 {
                self.emit(&[0; BLOCK])?;
            }
        }
        self.write(&[0; BLOCK][..to_usize(rest)])
    }

    /// Whole blocks, the first at the end of what was written or counted as zeros.
    fn blocks(&mut self, data: &[u8]) -> Result<(), Error> {
        if !self.may_have_holes() {
            return self.emit(data);
        }
        let mut from = 0;
        for (i, block) in data.chunks_exact(BLOCK).enumerate() {
            if is_zero(block) {
                self.emit(&data[from..i * BLOCK])?;
                self.zeros += BLOCK as u64;
                from = (i + 1) * BLOCK;
            } else if self.zeros > 0 {
                self.settle_zeros(false)?;
            }
        }
        self.emit(&data[from..])
    }

    fn written_blocks(&self) -> u32 {
        self.extents.last().map_or(0, |e| e.logical + e.count)
    }

    fn emit(&mut self, data: &[u8]) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let (logical, physical) = (self.written_blocks(), self.area.image.block()?);
        self.note(logical, physical, block_number((data.len() / BLOCK) as u64));
        self.area.image.write(data)
    }

    fn note(&mut self, logical: u32, physical: u32, count: u32) {
        match self.extents.last_mut() {
            Some(e) if e.logical + e.count == logical && e.physical + e.count == physical => e.count += count,
            _ => self.extents.push(Extent { logical, physical, count }),
        }
    }

    /// Makes a hole of the pending zeros if they are many, or writes them.
    fn settle_zeros(&mut self, at_end: bool) -> Result<(), Error> {
        let start = u64::from(self.written_blocks());
        let end = start + self.zeros / BLOCK as u64;
        self.zeros = 0;
        let chunk = 1u64 << self.bits;
        let hole_start = start.next_multiple_of(chunk);
        let hole_end = if at_end { end } else { end / chunk * chunk };
        if hole_end > hole_start && (hole_end - hole_start) * BLOCK as u64 >= MIN_HOLE {
            self.holes = true;
            self.zero_blocks(start, hole_start - start)?;
            self.zero_blocks(hole_end, end - hole_end)?;
            // The next block written comes after the hole even when no zeros follow it.
            if hole_end == end {
                let physical = self.area.image.block()?;
                self.extents.push(Extent { logical: block_number(end), physical, count: 0 });
            }
            return Ok(());
        }
        self.zero_blocks(start, end - start)
    }

    fn zero_blocks(&mut self, logical: u64, count: u64) -> Result<(), Error> {
        if count > 0 {
            let physical = self.area.image.block()?;
            self.note(block_number(logical), physical, block_number(count));
            self.area.image.zeros(count * BLOCK as u64)?;
            self.area.image.block()?;
        }
        Ok(())
    }

    /// The end of the file; all of its bytes have been given. `store` keeps an extent and returns its number.
    pub(crate) fn finish(
        mut self,
        mut store: impl FnMut(Extent) -> Result<u32, Error>,
    ) -> Result<Body, Error> {
        debug_assert_eq!(self.at, self.size);
        let mut rest = std::mem::take(&mut self.partial);
        if self.zeros > 0 {
            // A last part of zeros belongs to the run before it, as a whole block.
            let at_end = is_zero(&rest);
            if at_end {
                self.zeros += (rest.len() as u64).next_multiple_of(BLOCK as u64);
                rest.clear();
            }
            self.settle_zeros(at_end)?;
        }
        if !rest.is_empty() && (self.holes || rest.len() > MAX_TAIL) {
            let mut block = rest.clone();
            block.resize(BLOCK, 0);
            self.emit(&block)?;
        }
        if self.holes {
            self.extents.retain(|e| e.count > 0);
            let mut first = 0;
            for (i, extent) in self.extents.iter().enumerate() {
                let at = store(*extent)?;
                if i == 0 {
                    first = at;
                }
            }
            let count = block_number(self.extents.len() as u64);
            return Ok(Body::Chunks { first, count, bits: self.bits });
        }
        let mut tail = 0;
        let tail_length = Body::tail_length(self.size);
        if tail_length > 0 {
            tail = self.area.spool.position();
            rest.resize(tail_length, 0);
            self.area.spool.write(&rest)?;
        }
        Ok(Body::Blocks { start: self.first_block, tail })
    }
}

fn is_zero(data: &[u8]) -> bool {
    // Most blocks differ from zero at once; the rest is compared in words.
    data.iter().take(16).all(|b| *b == 0) && {
        let (words, rest) = data.as_chunks::<16>();
        words.iter().all(|w| u128::from_ne_bytes(*w) == 0) && rest.iter().all(|b| *b == 0)
    }
}
