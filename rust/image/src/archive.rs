//! Archives that hold layers: OCI layout tars and `docker save` tars.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use supermachine_support::to_usize;

use crate::compression::{Compression, MAGIC_BYTES};
use crate::data::Appender;
use crate::output::Output;
use crate::source::{BUFFERS, Layer, LayerStream, decode_all, open_regular};
use crate::stream::Stream;
use crate::tar::{Kind, Reader};
use crate::{Error, Limits, Progress};

/// Members of one archive; real ones have some hundreds.
const MAX_MEMBERS: u64 = 1_000_000;
/// Bytes of their names.
const MAX_NAME_BYTES: u64 = 64 << 20;

/// A regular file in a tar archive: where its data stands in the archive file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarMember {
    /// Path in the archive without a leading `./` or `/`; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// First byte of the data in the archive file.
    pub offset: u64,
    /// Bytes of data.
    pub size: u64,
}

/// The regular files of an uncompressed tar archive, reading headers only. Symbolic and hard links to members are
/// listed with their target's data (older `docker save` links equal layers). A later member replaces an earlier one
/// of the same name. Sparse members are left out: their data is not contiguous.
///
/// # Errors
/// [`Error::CompressedArchive`] when the whole archive is compressed: [`decompress_archive`] makes a plain one.
/// [`Error::Tar`] when it is damaged.
pub fn index_tar(path: &Path) -> Result<Vec<TarMember>, Error> {
    let mut file = open_regular(path)?;
    let mut magic = [0; MAGIC_BYTES];
    let failed = |e| Error::io("read", path, e);
    let n = read_some(&mut file, &mut magic).map_err(failed)?;
    match Compression::detect(&magic[..n]) {
        Compression::None => {}
        compression => return Err(Error::CompressedArchive { path: path.to_owned(), compression }),
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut stream = FileStream {
        file,
        path: path.to_owned(),
        buffer: vec![0; 64 << 10],
        start: 0,
        end: 0,
        at: 0,
        length,
    };
    let mut reader = Reader::new(&mut stream);
    let mut found: Vec<(String, Found)> = Vec::new();
    let (mut count, mut name_bytes) = (0, 0);
    while let Some(entry) = reader.next()? {
        count += 1;
        name_bytes += (entry.name.len() + entry.link.len()) as u64;
        if count > MAX_MEMBERS || name_bytes > MAX_NAME_BYTES {
            return Err(Error::Limit {
                limit: "the size of an archive's index",
                what: "members in an image archive",
                value: count.min(MAX_MEMBERS),
                remedy: "this is not an image archive",
            });
        }
        let name = clean(&String::from_utf8_lossy(&entry.name), "");
        let link = String::from_utf8_lossy(&entry.link).into_owned();
        let what = match entry.kind {
            Kind::File if entry.sparse.is_none() => Found::Data(reader.offset(), entry.stored),
            Kind::HardLink => Found::Link(clean(&link, "")),
            Kind::Symlink => {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                Found::Link(clean(&link, parent))
            }
            _ => continue,
        };
        found.push((name, what));
    }
    let last: HashMap<&str, usize> = found.iter().enumerate().map(|(i, (name, _))| (&name[..], i)).collect();
    let mut members = Vec::new();
    for (i, (name, what)) in found.iter().enumerate() {
        if last.get(&name[..]) != Some(&i) {
            continue;
        }
        let mut what = what;
        // A chain of links longer than this is a loop.
        for _ in 0..8 {
            match what {
                Found::Data(offset, size) => {
                    members.push(TarMember { name: name.clone(), offset: *offset, size: *size });
                    break;
                }
                Found::Link(target) => match last.get(&target[..]) {
                    Some(i) => what = &found[*i].1,
                    None => break,
                },
            }
        }
    }
    Ok(members)
}

enum Found {
    Data(u64, u64),
    Link(String),
}

/// `path` seen from `base` (unless absolute), without `.` and `..`.
fn clean(path: &str, base: &str) -> String {
    let base = if path.starts_with('/') { "" } else { base };
    let mut parts = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Decompresses a whole archive (gzip or zstd by magic number, or a plain copy) to `output`, published atomically.
///
/// # Errors
/// Those of [`crate::convert`] that concern reading and writing; `limits.max_uncompressed_bytes` bounds the result.
pub fn decompress_archive(
    path: &Path,
    output: &Path,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), Error> {
    let length = open_regular(path)?.metadata().map_err(|e| Error::io("read", path, e))?.len();
    let archive =
        [Layer { path: path.to_owned(), offset: 0, length, digest: None, diff_id: None, compression: None }];
    let output = Output::create(output)?;
    let file = output.file.try_clone().map_err(|e| Error::io("open", output.temporary(), e))?;
    let mut to = Appender::new(file, output.temporary().to_owned());
    let (sender, messages) = mpsc::sync_channel(BUFFERS);
    let (spare, spares) = mpsc::channel();
    std::thread::scope(|scope| {
        let archive = &archive;
        scope.spawn(move || decode_all(archive, limits, &sender, &spares));
        let mut stream = LayerStream::new(archive, messages, spare, progress);
        loop {
            let chunk = stream.chunk()?;
            if chunk.is_empty() {
                break;
            }
            to.write(chunk)?;
            let n = chunk.len();
            stream.consume(n);
        }
        to.flush()
    })?;
    output.publish()
}

fn read_some(file: &mut File, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// A file of which most is passed over by seeking.
struct FileStream {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Position of the buffer's end in the file.
    at: u64,
    length: u64,
}

impl Stream for FileStream {
    fn chunk(&mut self) -> Result<&[u8], Error> {
        if self.start == self.end {
            self.start = 0;
            self.end = read_some(&mut self.file, &mut self.buffer[..4096])
                .map_err(|e| Error::io("read", &self.path, e))?;
            self.at += self.end as u64;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    fn skip(&mut self, n: u64) -> Result<u64, Error> {
        let buffered = (self.end - self.start) as u64;
        if n <= buffered {
            self.consume(to_usize(n));
            return Ok(n);
        }
        let target = self.at.saturating_add(n - buffered).min(self.length.max(self.at));
        self.file.seek(SeekFrom::Start(target)).map_err(|e| Error::io("read", &self.path, e))?;
        let skipped = buffered + (target - self.at);
        (self.start, self.end, self.at) = (0, 0, target);
        Ok(skipped)
    }
}
