//! The writable disk of a machine's root: what the machine writes goes into a sparse file of its own, and the rest is
//! read from layers below, which machines that come of one snapshot share and nobody writes to.
//!
//! A block is written to the next free place of the file. So what is there can be sealed at any moment, in no time:
//! blocks that are written from then on get places of their own, and whoever reads what was sealed reads the disk as it
//! was.

#![allow(unsafe_code, reason = "holes are punched by a C call")]

mod map;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use supermachine_support::to_usize;

use crate::BLOCK;
use map::{Entry, MAX_PLACES, Map, extend, places};

/// Bytes of a disk at most.
pub const MAX_BYTES: u64 = 8 << 40;

/// A stretch of the disk, in whole blocks, and where its contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of the disk.
    pub disk: Range<u64>,
    /// Which file has them.
    pub file: usize,
    /// Where they begin there.
    pub at: u64,
}

/// What a disk is where the machine has not written to it: zeros, but for these pieces, in ascending order and without
/// overlaps.
#[derive(Clone, Debug, Default)]
pub struct Below {
    /// Each is in one of `files`.
    pub pieces: Vec<Piece>,
    /// By a piece's index; opened for reading.
    pub files: Vec<Arc<File>>,
}

impl Below {
    /// The pieces from the one that `offset` is in, or before which it is.
    fn from(&self, offset: u64) -> &[Piece] {
        &self.pieces[self.pieces.partition_point(|piece| piece.disk.end <= offset)..]
    }

    /// Fills `buffer` with what is at `offset`.
    fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        for piece in self.from(offset) {
            if buffer.is_empty() {
                break;
            }
            let gap = piece.disk.start.saturating_sub(offset).min(buffer.len() as u64);
            let (zeros, rest) = buffer.split_at_mut(to_usize(gap));
            zeros.fill(0);
            offset += gap;
            let (now, later) = rest.split_at_mut(rest.len().min(to_usize(piece.disk.end - offset)));
            self.files[piece.file].read_exact_at(now, piece.at + offset.saturating_sub(piece.disk.start))?;
            offset += now.len() as u64;
            buffer = later;
        }
        buffer.fill(0);
        Ok(())
    }

    fn has_any(&self, range: Range<u64>) -> bool {
        self.from(range.start).first().is_some_and(|piece| piece.disk.start < range.end)
    }
}

/// How much of a disk is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What is not as the layers below have it.
    Own,
    /// All of it.
    Whole,
}

/// The disk, shared by the device and by who seals it.
#[derive(Clone)]
pub struct Scratch(Arc<Mutex<Disk>>);

struct Disk {
    bytes: u64,
    below: Below,
    own: Arc<File>,
    map: Map,
    /// Places of the file that have been given out, and those among them that nothing is at any more, the next one
    /// last.
    places: u32,
    free: Vec<u32>,
    /// Places before it are somebody's: of a clone for as long as the disk lives, of a capture until it is done.
    kept: u32,
    held: u32,
    /// Places that nothing is at any more once the capture is done.
    left: Vec<u32>,
}

impl Scratch {
    /// A disk of so many bytes, a multiple of [`BLOCK`], whose changes go to `own`, an empty file.
    pub fn new(own: File, bytes: u64, below: Below) -> Self {
        let disk = Disk {
            bytes: bytes / BLOCK * BLOCK,
            below,
            own: Arc::new(own),
            map: Map::default(),
            places: 0,
            free: Vec::new(),
            kept: 0,
            held: 0,
            left: Vec::new(),
        };
        Self(Arc::new(Mutex::new(disk)))
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        supermachine_support::lock(&self.0)
    }

    /// Length of the disk; a multiple of its blocks.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// The file that changes go to.
    pub fn file(&self) -> Arc<File> {
        self.lock().own.clone()
    }

    /// Fills `buffer` with what is at `offset`; all of it lies inside the disk.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.lock().read(buffer, offset)
    }

    /// Writes at `offset`; all of it lies inside the disk. Of what fails nothing is mapped.
    pub fn write(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.lock().write(buffer, offset)
    }

    /// These bytes are zeros from now on, and those of whole blocks take no room.
    pub fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        self.lock().zero(offset, length)
    }

    /// What the whole blocks among these bytes hold is not needed any more.
    pub fn discard(&self, offset: u64, length: u64) {
        let mut disk = self.lock();
        let (start, end) = (offset.div_ceil(BLOCK), (offset + length) / BLOCK);
        if start < end {
            disk.clear(start..end);
        }
    }

    /// The disk as it is now, to be read while the machine goes on writing. One that is not to `last` is for a capture,
    /// of which there is one at a time, and ends with what is returned; others are for clones, whose files go by it.
    pub fn seal(&self, scope: Scope, last: bool) -> Sealed {
        let mut disk = self.lock();
        let (pieces, zeros) = disk.sealed(scope);
        let mut files = disk.below.files.clone();
        files.push(disk.own.clone());
        // What is free now may be given out again as soon as nobody takes its place for one that is sealed.
        let free = std::mem::take(&mut disk.free);
        if last {
            disk.kept = disk.places;
        } else {
            disk.held = disk.places;
            disk.left = free;
        }
        let held = (!last).then(|| self.clone());
        Sealed { bytes: disk.bytes, pieces, zeros, files, held }
    }
}

impl Disk {
    /// The places that are somebody's.
    fn sealed_places(&self) -> u32 {
        self.kept.max(self.held)
    }

    /// What a block, and as many after it as are of one kind and lie together, is.
    fn run(&self, block: u64, end: u64) -> (Entry, u64) {
        let first = self.map.get(block);
        let mut count = 1;
        if first == Entry::Below {
            count = self.map.empty_from(block, end).max(1);
        }
        while block + count < end {
            let next = self.map.get(block + count);
            let goes_on = match (first, next) {
                (Entry::At(place), Entry::At(found)) => u64::from(found) == u64::from(place) + count,
                (first, next) => first == next,
            };
            if !goes_on {
                break;
            }
            count += 1;
        }
        (first, count)
    }

    fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let block = offset / BLOCK;
            let (entry, count) = self.run(block, (offset + buffer.len() as u64).div_ceil(BLOCK));
            let within = offset % BLOCK;
            let (now, later) = buffer.split_at_mut(to_usize(count * BLOCK - within).min(buffer.len()));
            match entry {
                Entry::Below => self.below.read(now, offset)?,
                Entry::Zero => now.fill(0),
                Entry::At(place) => self.own.read_exact_at(now, u64::from(place) * BLOCK + within)?,
            }
            offset += now.len() as u64;
            buffer = later;
        }
        Ok(())
    }

    fn write(&mut self, mut buffer: &[u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let within = offset % BLOCK;
            let whole = buffer.len() as u64 / BLOCK * BLOCK;
            let length = if within != 0 || whole == 0 {
                let length = (BLOCK - within).min(buffer.len() as u64);
                let mut block = [0; to_usize(BLOCK)];
                self.read(&mut block, offset - within)?;
                block[to_usize(within)..to_usize(within + length)]
                    .copy_from_slice(&buffer[..to_usize(length)]);
                self.write_blocks(&block, offset / BLOCK)?;
                length
            } else {
                self.write_blocks(&buffer[..to_usize(whole)], offset / BLOCK)?;
                whole
            };
            buffer = &buffer[to_usize(length)..];
            offset += length;
        }
        Ok(())
    }

    /// Writes whole blocks.
    fn write_blocks(&mut self, mut buffer: &[u8], mut block: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let count = buffer.len() as u64 / BLOCK;
            let (place, count, new) = match self.run(block, block + count) {
                (Entry::At(place), count) if place >= self.sealed_places() => (place, count, false),
                (_, count) => {
                    let (place, count) = self.take(count)?;
                    (place, count, true)
                }
            };
            let length = to_usize(count * BLOCK);
            if let Err(error) = self.own.write_all_at(&buffer[..length], u64::from(place) * BLOCK) {
                if new {
                    self.give_back(place, places(count));
                }
                return Err(error);
            }
            if new {
                for n in 0..count {
                    let before = self.map.set(block + n, Entry::At(place + places(n)));
                    self.leave(before);
                }
            }
            buffer = &buffer[length..];
            block += count;
        }
        Ok(())
    }

    /// Places for up to `count` blocks that lie together; how many there are.
    fn take(&mut self, count: u64) -> io::Result<(u32, u64)> {
        if let Some(first) = self.free.pop() {
            let mut taken = 1;
            while taken < count && self.free.last() == Some(&(first + places(taken))) {
                self.free.pop();
                taken += 1;
            }
            return Ok((first, taken));
        }
        let first = self.places;
        let count = count.min(u64::from(MAX_PLACES - first));
        if count == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.places += places(count);
        Ok((first, count))
    }

    /// Frees places that lie together, so that they are given out again in this order.
    fn give_back(&mut self, first: u32, count: u32) {
        punch(&self.own, u64::from(first) * BLOCK, u64::from(count) * BLOCK);
        self.free.extend((first..first + count).rev());
    }

    /// Nothing is at the place of this entry any more.
    fn leave(&mut self, entry: Entry) {
        let Entry::At(place) = entry else { return };
        if place >= self.sealed_places() {
            self.give_back(place, 1);
        } else if place >= self.kept {
            self.left.push(place);
        }
    }

    fn zero(&mut self, offset: u64, length: u64) -> io::Result<()> {
        static ZEROS: [u8; to_usize(BLOCK)] = [0; to_usize(BLOCK)];
        let end = offset + length;
        let (first, last) = (offset.next_multiple_of(BLOCK).min(end), (end / BLOCK * BLOCK).max(offset));
        if first >= last {
            // No whole block: it lies in one, or in two.
            let middle = first.clamp(offset, end);
            self.write(&ZEROS[..to_usize(middle - offset)], offset)?;
            return self.write(&ZEROS[..to_usize(end - middle)], middle);
        }
        self.write(&ZEROS[..to_usize(first - offset)], offset)?;
        self.write(&ZEROS[..to_usize(end - last)], last)?;
        self.clear(first / BLOCK..last / BLOCK);
        Ok(())
    }

    /// These blocks are zeros from now on.
    fn clear(&mut self, blocks: Range<u64>) {
        let mut block = blocks.start;
        while block < blocks.end {
            let (entry, count) = self.run(block, blocks.end);
            let range = block * BLOCK..(block + count) * BLOCK;
            if entry != Entry::Below || self.below.has_any(range) {
                for n in block..block + count {
                    let below = self.below.has_any(n * BLOCK..(n + 1) * BLOCK);
                    self.map.set(n, if below { Entry::Zero } else { Entry::Below });
                }
                if let Entry::At(place) = entry {
                    if place >= self.sealed_places() {
                        self.give_back(place, places(count));
                    } else {
                        (0..places(count)).for_each(|n| self.leave(Entry::At(place + n)));
                    }
                }
            }
            block += count;
        }
    }

    fn sealed(&self, scope: Scope) -> (Vec<Piece>, Vec<Range<u64>>) {
        let file = self.below.files.len();
        let mut own: Vec<Piece> = Vec::new();
        let (mut zeros, mut changed) = (Vec::new(), Vec::new());
        for (block, entry) in self.map.entries() {
            let disk = block * BLOCK..(block + 1) * BLOCK;
            extend(&mut changed, disk.clone());
            match entry {
                Entry::Below => {}
                Entry::Zero => extend(&mut zeros, disk),
                Entry::At(place) => {
                    let at = u64::from(place) * BLOCK;
                    match own.last_mut() {
                        Some(last)
                            if last.disk.end == disk.start
                                && last.at + (last.disk.end - last.disk.start) == at =>
                        {
                            last.disk.end = disk.end;
                        }
                        _ => own.push(Piece { disk, file, at }),
                    }
                }
            }
        }
        if scope == Scope::Own {
            return (own, zeros);
        }
        own.extend(without(&self.below.pieces, &changed));
        own.sort_by_key(|piece| piece.disk.start);
        (own, Vec::new())
    }
}

/// What is left of pieces outside of ranges; both in ascending order.
fn without(pieces: &[Piece], ranges: &[Range<u64>]) -> Vec<Piece> {
    let mut left = Vec::new();
    for piece in pieces {
        let mut at = piece.disk.start;
        let first = ranges.partition_point(|range| range.end <= at);
        let cut = ranges[first..].iter().take_while(|range| range.start < piece.disk.end);
        let end = piece.disk.end..piece.disk.end;
        for range in cut.chain([&end]) {
            if at < range.start {
                let from = piece.at + (at - piece.disk.start);
                left.push(Piece { disk: at..range.start, file: piece.file, at: from });
            }
            at = at.max(range.end);
        }
    }
    left
}

/// The disk as it was at a moment.
pub struct Sealed {
    bytes: u64,
    pieces: Vec<Piece>,
    zeros: Vec<Range<u64>>,
    files: Vec<Arc<File>>,
    held: Option<Scratch>,
}

impl Sealed {
    /// Length of the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it holds, in ascending order; by the numbers of [`Sealed::files`].
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// What is zeros where the layers below may have something else.
    pub fn zeros(&self) -> &[Range<u64>] {
        &self.zeros
    }

    /// Files that the pieces are in, by their index.
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// Bytes of the disk that it holds, as maximal ranges.
    pub fn present(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        self.pieces.iter().for_each(|piece| extend(&mut ranges, piece.disk.clone()));
        ranges
    }

    /// Fills `buffer` with what is at `offset`, all of which it holds.
    pub fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let first = self.pieces.partition_point(|piece| piece.disk.end <= offset);
        for piece in &self.pieces[first..] {
            if buffer.is_empty() {
                return Ok(());
            }
            let Some(within) = offset.checked_sub(piece.disk.start) else { break };
            let (now, later) = buffer.split_at_mut(buffer.len().min(to_usize(piece.disk.end - offset)));
            self.files[piece.file].read_exact_at(now, piece.at + within)?;
            offset += now.len() as u64;
            buffer = later;
        }
        if buffer.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        let Some(scratch) = self.held.take() else { return };
        let mut disk = scratch.lock();
        disk.held = 0;
        let mut left = std::mem::take(&mut disk.left);
        left.sort_unstable();
        let mut at = 0;
        while at < left.len() {
            let first = left[at];
            let count =
                left[at..].iter().zip(first..).take_while(|(place, expected)| **place == *expected).count()
                    as u64;
            disk.give_back(first, places(count));
            at += to_usize(count);
        }
    }
}

/// Gives the room of these bytes of a file back, where the file system can, which makes them zeros.
pub(crate) fn punch(file: &File, offset: u64, length: u64) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length).is_ok()
    }
    #[cfg(target_os = "macos")]
    {
        use std::os::fd::AsRawFd;
        let hole = libc::fpunchhole_t {
            fp_flags: 0,
            reserved: 0,
            fp_offset: offset.cast_signed(),
            fp_length: length.cast_signed(),
        };
        // SAFETY: the call reads the structure, which outlives it.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PUNCHHOLE, &raw const hole) == 0 }
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = (file, offset, length);
        false
    }
}
