//! What a snapshot is read from: a file, an export of one, or bytes in memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{Error, Result};

/// Bytes that can be read at any place.
pub trait Source {
    /// Number of bytes.
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` from `offset` on, or fails with `UnexpectedEof`.
    fn fill_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Where the first bytes at or behind the start of `range` are that may be other than zero; `None` if none are.
    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok(Some(range))
    }
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        // By the descriptor alone: `File::metadata` makes a call that takes a path as well, which a confined process
        // may not make.
        Ok(u64::try_from(rustix::fs::fstat(self)?.st_size).unwrap_or_default())
    }

    fn fill_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    /// A file system that does not tell says: everywhere. The file's offset moves.
    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let start = match rustix::fs::seek(self, SeekFrom::Data(range.start)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(range)),
            Err(errno) => return Err(errno.into()),
        };
        if start >= range.end {
            return Ok(None);
        }
        let end = rustix::fs::seek(self, SeekFrom::Hole(start))?;
        Ok(Some(start..end.min(range.end)))
    }
}

/// Opens a file for reading; an error if it is not a regular file, which a pipe would wait for ever to tell.
pub fn open(path: &Path) -> Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(Error::path("open", path))?;
    let kind = file.metadata().map_err(Error::path("look at", path))?.file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() { "it is a directory" } else { "it is not a regular file" };
        return Err(Error::path("read", path)(io::Error::new(io::ErrorKind::InvalidInput, what)));
    }
    Ok(file)
}

impl Source for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn fill_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..)?.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
