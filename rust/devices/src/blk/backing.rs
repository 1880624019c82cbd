//! The seam between virtio-blk and what holds a disk's contents.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use supermachine_support::to_usize;

use super::SECTOR;

/// A disk's contents. All calls come with the transport's lock held, on the vCPU that notified; the device has checked
/// that they lie inside [`Backing::bytes`], in whole sectors of 512 bytes.
pub trait Backing: Send {
    /// The disk's length; it stays as long as the disk is in the machine. A last part that is no whole sector is not
    /// shown.
    fn bytes(&self) -> u64;

    /// Fills the buffer from so many bytes after the disk's start on.
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes the buffer so many bytes after the disk's start; it need not last before [`Backing::flush`].
    fn write(&mut self, buffer: &[u8], offset: u64) -> io::Result<()>;

    /// What has been written lasts, as fdatasync(2) has it.
    fn flush(&mut self) -> io::Result<()>;

    /// The guest does not need these bytes any more; what they read as afterwards is not said.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// These bytes read as zeros. With `free` their room may be given back, without it it stays taken.
    fn write_zeroes(&mut self, offset: u64, length: u64, free: bool) -> io::Result<()>;
}

/// A file of the disk's contents.
pub struct FileBacking {
    file: File,
    bytes: u64,
}

impl FileBacking {
    /// A disk of as many whole sectors as the file has; an error when its end cannot be found.
    pub fn new(file: File) -> io::Result<Self> {
        // By the descriptor alone: what `File::metadata` calls takes a path as well, which a confined process may not.
        let bytes = (&file).seek(SeekFrom::End(0))? / SECTOR * SECTOR;
        Ok(Self { file, bytes })
    }
}

impl Backing for FileBacking {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&mut self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buffer, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// A hint that this one does not take.
    fn discard(&mut self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, _free: bool) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let n = (end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..to_usize(n)], at)?;
            at += n;
        }
        Ok(())
    }
}
