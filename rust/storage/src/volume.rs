//! A volume: a sparse file with the contents of a disk, and behind them a block of its own that says what it is, who
//! has it open, by what a snapshot knows the moment at which it was taken, and how large others want it while it is
//! open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use supermachine_support::to_usize;

use crate::BLOCK;
use crate::ext4::{self, Identity};

const MAGIC: [u8; 8] = *b"SMVOLUM\x01";
/// In the last block: the magic, who has it open, the mark, and the wish; the rest is zeros.
const HOLDER: u64 = 8;
const MARK: u64 = 16;
const WISH: u64 = 32;
/// What a volume is known by while nobody writes to it; zeros when somebody has.
pub type Mark = [u8; 16];
/// What others want of a volume that a machine has open, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing, or it was done.
    None,
    /// To be of so many bytes, with its file system.
    Bytes(u64),
    /// The machine could not do it.
    Refused,
}

impl Wish {
    fn of(raw: u64) -> Self {
        match raw {
            0 => Self::None,
            u64::MAX => Self::Refused,
            bytes => Self::Bytes(bytes),
        }
    }

    fn raw(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Bytes(bytes) => bytes,
            Self::Refused => u64::MAX,
        }
    }
}

/// Bytes of a volume at least and at most.
pub const MIN_BYTES: u64 = ext4::MIN_BYTES;
/// The same at most.
pub const MAX_BYTES: u64 = ext4::MAX_BYTES;

/// Makes a volume of `bytes` in an empty file.
pub fn make(file: &File, bytes: u64, identity: &Identity) -> Result<(), ext4::Error> {
    ext4::make(file, bytes, identity)?;
    let mut last = [0; to_usize(BLOCK)];
    last[..MAGIC.len()].copy_from_slice(&MAGIC);
    file.write_all_at(&last, bytes)?;
    Ok(file.sync_all()?)
}

/// A volume that is open.
pub struct Volume {
    file: File,
    bytes: u64,
    marked: bool,
}

impl Volume {
    /// Takes a file that is open for reading and writing and of this length. Refuses what is no volume.
    pub fn open(file: File, length: u64) -> io::Result<Self> {
        let refused = || io::Error::new(io::ErrorKind::InvalidData, "the file is no volume");
        let bytes =
            length.checked_sub(BLOCK).filter(|bytes| bytes.is_multiple_of(BLOCK)).ok_or_else(refused)?;
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, bytes)?;
        if magic != MAGIC {
            return Err(refused());
        }
        let mut volume = Self { file, bytes, marked: false };
        volume.marked = volume.mark()? != Mark::default();
        Ok(volume)
    }

    /// Length of the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is smaller than `bytes` and can be made as large.
    pub fn can_grow(&self, bytes: u64) -> Result<bool, ext4::Error> {
        if bytes > MAX_BYTES {
            return Err(ext4::Error::Size { bytes });
        }
        if bytes < self.bytes || !bytes.is_multiple_of(BLOCK) {
            return Err(ext4::Error::Smaller { bytes, least: self.bytes });
        }
        if bytes > self.bytes && !ext4::can_grow(&self.file)? {
            return Err(ext4::Error::Old);
        }
        Ok(bytes > self.bytes)
    }

    /// Makes the disk larger; the file system on it grows when a guest next mounts it. Whoever is killed amid this
    /// leaves a volume of the one size or the other.
    pub fn grow(&mut self, bytes: u64) -> Result<(), ext4::Error> {
        if !self.can_grow(bytes)? {
            return Ok(());
        }
        let mut last = [0; to_usize(BLOCK)];
        self.file.read_exact_at(&mut last, self.bytes)?;
        last[to_usize(MARK)..to_usize(MARK) + Mark::default().len()].fill(0);
        self.file.write_all_at(&last, bytes)?;
        self.file.sync_all()?;
        // What it was is a block like any other now, which is nobody's.
        self.file.write_all_at(&[0; to_usize(BLOCK)], self.bytes)?;
        crate::scratch::punch(&self.file, self.bytes, BLOCK);
        (self.bytes, self.marked) = (bytes, false);
        Ok(())
    }

    /// The process that had it open last.
    pub fn holder(&self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, self.bytes + HOLDER)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Says that this process has it open; what was wished of others is over.
    pub fn hold(&self) -> io::Result<()> {
        self.set_wish(Wish::None)?;
        self.file.write_all_at(&std::process::id().to_le_bytes(), self.bytes + HOLDER)
    }

    /// What others want of it: they write to the file, with the lock held by who serves it.
    pub fn wish(&self) -> io::Result<Wish> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, self.bytes + WISH)?;
        Ok(Wish::of(u64::from_le_bytes(bytes)))
    }

    /// Asks it of whoever serves the volume; no lock is needed.
    pub fn set_wish(&self, wish: Wish) -> io::Result<()> {
        self.file.write_all_at(&wish.raw().to_le_bytes(), self.bytes + WISH)
    }

    /// What it is known by; zeros when somebody has written to it since.
    pub fn mark(&self) -> io::Result<Mark> {
        let mut mark = Mark::default();
        self.file.read_exact_at(&mut mark, self.bytes + MARK)?;
        Ok(mark)
    }

    /// Makes it known by `mark` until somebody writes to it.
    pub fn set_mark(&mut self, mark: Mark) -> io::Result<()> {
        self.file.write_all_at(&mark, self.bytes + MARK)?;
        self.marked = mark != Mark::default();
        Ok(())
    }

    /// What it was known by is over. A file system that thaws writes its superblock, in the first block, and nothing
    /// else.
    fn change(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if self.marked && offset + length > BLOCK {
            self.set_mark(Mark::default())?;
        }
        Ok(())
    }

    /// Fills the buffer from so many bytes after the volume's start on.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Writes the buffer there; the mark is gone, as nothing is known of the volume any more.
    pub fn write(&mut self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.change(offset, buffer.len() as u64)?;
        self.file.write_all_at(buffer, offset)
    }

    /// What was written lasts (fdatasync(2)).
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The room of whole blocks is given back, where the file system can; they are zeros then.
    pub fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.change(offset, length)?;
        let (start, end) = (offset.next_multiple_of(BLOCK), (offset + length) / BLOCK * BLOCK);
        if start < end {
            crate::scratch::punch(&self.file, start, end - start);
        }
        Ok(())
    }

    /// These bytes read as zeros; whole blocks give their room back, where the file system can.
    pub fn zero(&mut self, offset: u64, length: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        self.change(offset, length)?;
        let (start, end) = (offset.next_multiple_of(BLOCK), (offset + length) / BLOCK * BLOCK);
        if start < end
            && offset == start
            && offset + length == end
            && crate::scratch::punch(&self.file, start, length)
        {
            return Ok(());
        }
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let count = (end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..to_usize(count)], at)?;
            at += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const IDENTITY: Identity = Identity { uuid: [3; 16], created: 1_700_000_000 };

    fn made(bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        make(&file, bytes, &IDENTITY).unwrap();
        file
    }

    fn opened(file: &File) -> Volume {
        Volume::open(file.try_clone().unwrap(), file.metadata().unwrap().len()).unwrap()
    }

    #[test]
    fn a_mark_lasts_until_something_but_the_superblock_is_written() {
        let file = made(32 << 20);
        let mut volume = opened(&file);
        assert_eq!((volume.bytes(), volume.mark().unwrap()), (32 << 20, [0; 16]));
        for change in [
            (|volume| volume.write(&[1; 512], 4096)) as fn(&mut Volume) -> io::Result<()>,
            |volume| volume.write(&[1; 8192], 0),
            |volume| volume.zero(1 << 20, 4096),
            |volume| volume.discard(1 << 20, 4096),
        ] {
            volume.set_mark([7; 16]).unwrap();
            volume.write(&[2; 4096], 0).unwrap();
            volume.flush().unwrap();
            assert_eq!(opened(&file).mark().unwrap(), [7; 16]);
            // Also by who opens it anew.
            volume = opened(&file);
            change(&mut volume).unwrap();
            assert_eq!(opened(&file).mark().unwrap(), [0; 16]);
        }
    }

    #[test]
    fn room_is_given_back_and_zeros_are_zeros() {
        let file = made(64 << 20);
        let mut volume = opened(&file);
        let before = file.metadata().unwrap().blocks();
        volume.write(&vec![5; 4 << 20], 32 << 20).unwrap();
        volume.discard(32 << 20, 2 << 20).unwrap();
        volume.zero(34 << 20, 2 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), before);
        volume.write(&[5; 8192], 32 << 20).unwrap();
        volume.zero((32 << 20) + 512, 4096).unwrap();
        let mut found = [9; 8192];
        volume.read(&mut found, 32 << 20).unwrap();
        assert!(found[512..4608].iter().all(|byte| *byte == 0));
        assert!(found[..512].iter().chain(&found[4608..]).all(|byte| *byte == 5));
    }

    #[test]
    fn it_grows_keeps_what_it_has_and_is_no_more_what_it_was_known_by() {
        let file = made(32 << 20);
        let mut volume = opened(&file);
        volume.write(b"contents", (32 << 20) - 512).unwrap();
        volume.set_mark([7; 16]).unwrap();
        volume.hold().unwrap();
        volume.grow(32 << 20).unwrap();
        assert_eq!(volume.mark().unwrap(), [7; 16]);
        // Another process wishes it; that is over when who grants it says so, or when a machine begins with it.
        assert_eq!(volume.wish().unwrap(), Wish::None);
        opened(&file).set_wish(Wish::Bytes(1 << 40)).unwrap();
        volume.grow(1 << 40).unwrap();
        for volume in [&volume, &opened(&file)] {
            assert_eq!((volume.bytes(), volume.mark().unwrap()), (1 << 40, [0; 16]));
            assert_eq!(volume.holder().unwrap(), std::process::id());
            assert_eq!(volume.wish().unwrap(), Wish::Bytes(1 << 40));
            let mut found = [1; 4096 + 512];
            volume.read(&mut found, (32 << 20) - 512).unwrap();
            assert!(found.starts_with(b"contents") && found[8..].iter().all(|byte| *byte == 0));
        }
        assert!(file.metadata().unwrap().blocks() * 512 < 8 << 20);
        volume.set_wish(Wish::Refused).unwrap();
        assert_eq!(opened(&file).wish().unwrap(), Wish::Refused);
        volume.hold().unwrap();
        assert_eq!(opened(&file).wish().unwrap(), Wish::None);
        for (bytes, said) in
            [(1 << 30, "of 1099511627776 bytes cannot be made"), (64 << 40, "from 16777216 to")]
        {
            assert!(volume.grow(bytes).unwrap_err().to_string().contains(said));
        }
    }

    #[test]
    fn one_that_an_earlier_version_made_stays_as_it_is() {
        let file = made(32 << 20);
        file.write_all_at(&(0x22c_u32).to_le_bytes(), 1024 + 92).unwrap();
        let before = file.metadata().unwrap().len();
        assert!(opened(&file).grow(1 << 30).unwrap_err().to_string().contains("earlier version"));
        assert_eq!(file.metadata().unwrap().len(), before);
    }

    #[test]
    fn what_is_no_volume_is_refused_and_who_holds_one_is_known() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for length in [0, 100, 5000, 1 << 20] {
            assert!(Volume::open(file.try_clone().unwrap(), length).is_err(), "{length}");
        }
        let file = made(MIN_BYTES);
        opened(&file).hold().unwrap();
        assert_eq!(opened(&file).holder().unwrap(), std::process::id());
    }
}
