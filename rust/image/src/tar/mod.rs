//! A tar reader for hostile input: POSIX ustar and pax, GNU, star and v7 headers, with every allocation bounded.
//!
//! Format: POSIX.1-2017 pax(1), and GNU tar's manual ("Tar Internals", "Sparse Formats").

mod header;
mod pax;
mod sparse;

use crate::Error;
use crate::stream::Stream;
use header::Header;
use pax::Records;

pub(crate) const BLOCK: usize = 512;

/// Largest pax header or GNU long name, as in Go's archive/tar, which reads the same layers.
const MAX_SPECIAL_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// A run of data in a sparse file: offset in the file, bytes.
pub(crate) type DataRun = (u64, u64);

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds above them.
    pub mtime: (i64, u32),
    /// Bytes of the file as read, holes included.
    pub size: u64,
    pub link: Vec<u8>,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Runs of data in ascending order; the rest is zeros.
    pub sparse: Option<Vec<DataRun>>,
    /// Bytes of data that follow in the archive.
    pub stored: u64,
}

/// Entries of one archive. Between two calls of [`Reader::next`] the entry's data may be read with
/// [`Reader::data`] and [`Reader::consume`]; what is left is skipped.
pub(crate) struct Reader<'a, S: Stream> {
    stream: &'a mut S,
    offset: u64,
    unread: u64,
    padding: u64,
    global: Records,
}

impl<'a, S: Stream> Reader<'a, S> {
    pub(crate) fn new(stream: &'a mut S) -> Self {
        Self { stream, offset: 0, unread: 0, padding: 0, global: Records::default() }
    }

    /// Byte position in the archive: that of the data while an entry is being read.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::Tar { offset: self.offset, reason: reason.into() }
    }

    /// More of the current entry's data; empty at its end.
    pub(crate) fn data(&mut self) -> Result<&[u8], Error> {
        if self.unread == 0 {
            return Ok(&[]);
        }
        let offset = self.offset;
        let chunk = self.stream.chunk()?;
        if chunk.is_empty() {
            return Err(Error::Tar { offset, reason: "the archive ends inside a file's data".into() });
        }
        let n = chunk.len().min(usize::try_from(self.unread).unwrap_or(usize::MAX));
        Ok(&chunk[..n])
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.stream.consume(n);
        self.offset += n as u64;
        self.unread -= n as u64;
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let want = self.unread.saturating_add(self.padding);
        let got = self.stream.skip(want)?;
        self.offset = self.offset.saturating_add(got);
        // An archive that ends with its last file's data, neither padded nor marked, is whole: `umoci insert` writes
        // such ones, and Go's archive/tar reads them.
        if got < self.unread {
            return Err(self.bad("the archive ends inside an entry"));
        }
        self.unread = 0;
        self.padding = 0;
        Ok(())
    }

    /// A whole block, or `None` at a clean end of the data.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let n = self.stream.read_full(&mut block)?;
        self.offset += n as u64;
        match n {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(self.bad("the archive ends inside a header")),
        }
    }

    fn set_size(&mut self, size: u64) -> Result<(), Error> {
        if size > i64::MAX as u64 {
            return Err(self.bad(format!("an entry claims {size} bytes")));
        }
        self.unread = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    /// The whole data of a pax header or GNU long name.
    fn special(&mut self, size: u64, what: &str) -> Result<Vec<u8>, Error> {
        if size > MAX_SPECIAL_BYTES {
            return Err(self.bad(format!("a {what} of {size} bytes; {MAX_SPECIAL_BYTES} are allowed")));
        }
        self.set_size(size)?;
        let mut data = Vec::new();
        while self.unread > 0 {
            let chunk = self.data()?;
            data.extend_from_slice(chunk);
            let n = chunk.len();
            self.consume(n);
        }
        self.skip_rest()?;
        Ok(data)
    }

    /// The next entry that is not a description of another one; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.skip_rest()?;
        let mut records: Option<Records> = None;
        let mut long_name = None;
        let mut long_link = None;
        loop {
            let Some(block) = self.block()? else {
                return self.end(records.is_some() || long_name.is_some() || long_link.is_some());
            };
            if block.iter().all(|b| *b == 0) {
                match self.block()? {
                    Some(next) if next.iter().any(|b| *b != 0) => {
                        return Err(self.bad("a lone block of zeros between entries"));
                    }
                    _ => return self.end(records.is_some() || long_name.is_some() || long_link.is_some()),
                }
            }
            let header = Header::parse(&block).map_err(|reason| self.bad(reason))?;
            match header.type_flag {
                b'x' | b'X' => {
                    let data = self.special(header.size, "pax header")?;
                    records = Some(Records::parse(&data).map_err(|reason| self.bad(reason))?);
                }
                b'g' => {
                    let data = self.special(header.size, "global pax header")?;
                    let global = Records::parse(&data).map_err(|reason| self.bad(reason))?;
                    self.global.update(global);
                    if self.global.bytes() > MAX_SPECIAL_BYTES {
                        return Err(self.bad("global pax headers of more than a megabyte"));
                    }
                }
                b'L' => long_name = Some(until_nul(self.special(header.size, "long name")?)),
                b'K' => long_link = Some(until_nul(self.special(header.size, "long link name")?)),
                // GNU volume label: a remark about the medium, no member.
                b'V' => {
                    self.set_size(header.size)?;
                    self.skip_rest()?;
                }
                _ => {
                    let records = match records {
                        Some(own) if self.global.is_empty() => own,
                        Some(own) => {
                            let mut all = self.global.clone();
                            all.update(own);
                            all
                        }
                        None => self.global.clone(),
                    };
                    return self.entry(&block, header, &records, long_name, long_link).map(Some);
                }
            }
        }
    }

    fn end(&self, dangling: bool) -> Result<Option<Entry>, Error> {
        if dangling {
            return Err(self.bad("the archive ends after an extended header"));
        }
        Ok(None)
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        header: Header,
        records: &Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Error> {
        let bad = |s: &Self, reason: String| s.bad(reason);
        let name = long_name.unwrap_or(header.name);
        let name = records.get(b"path").map_or(name, <[u8]>::to_vec);
        let link = long_link.unwrap_or(header.link);
        let link = records.get(b"linkpath").map_or(link, <[u8]>::to_vec);
        let number = |key: &[u8], or: i64| records.integer(key, or);
        let uid = number(b"uid", header.uid).map_err(|e| bad(self, e))?;
        let gid = number(b"gid", header.gid).map_err(|e| bad(self, e))?;
        let size = records.size(b"size", header.size).map_err(|e| bad(self, e))?;
        let mtime = records.time(b"mtime", header.mtime).map_err(|e| bad(self, e))?;
        let mtime = pax::in_range(mtime);
        let owner = |value: i64, what: &str| {
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| Error::entry(&name, format!("{what} {value} is outside 0..=4294967294")))
        };
        let (uid, gid) = (owner(uid, "user id")?, owner(gid, "group id")?);
        let kind = match header.type_flag {
            b'0' | 0 | b'7' | b'S' if name.ends_with(b"/") && header.type_flag != b'S' => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let shown = char::from(other).escape_default().to_string();
                return Err(Error::entry(&name, format!("entry type '{shown}' is not supported")));
            }
        };
        // Only regular files have data, whatever the size field of the others says (pax(1), ustar typeflag).
        self.set_size(if kind == Kind::File { size } else { 0 })?;
        let mut entry = Entry {
            name,
            kind,
            mode: header.mode,
            uid,
            gid,
            mtime,
            size: self.unread,
            link,
            device: header.device,
            xattrs: records.xattrs(),
            sparse: None,
            stored: self.unread,
        };
        if kind == Kind::File {
            if header.type_flag == b'S' {
                self.gnu_sparse(block, &mut entry)?;
            } else {
                self.pax_sparse(records, &mut entry)?;
            }
        }
        Ok(entry)
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests;
