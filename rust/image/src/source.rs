//! Layer blobs as one stream of uncompressed data, decoded and hashed on a thread of their own.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use crate::compression::{Compression, Decoder, MAGIC_BYTES, Peek};
use crate::digest::Hasher;
use crate::stream::Stream;
use crate::{Error, Limits, Progress};

/// One layer blob: a region of a file, so that a layer inside an archive needs no copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The file that holds the blob.
    pub path: PathBuf,
    /// First byte of the blob in the file.
    pub offset: u64,
    /// Bytes of the blob.
    pub length: u64,
    /// `sha256:` or `sha512:` digest of the blob, checked while streaming.
    pub digest: Option<String>,
    /// Digest of the uncompressed tar as the image configuration lists it, checked while streaming.
    pub diff_id: Option<String>,
    /// The compression that the media type names; by magic number when `None`.
    pub compression: Option<Compression>,
}

/// Bytes in one buffer handed from the decoder to the consumer, and buffers in flight.
const BUFFER: usize = 256 << 10;
pub(crate) const BUFFERS: usize = 6;

pub(crate) enum Message {
    Data { buffer: Vec<u8>, position: u64 },
    EndOfLayer { diff_id: String },
    Failed(Error),
}

/// Decodes all layers in order until done, failed, or the receiver is gone.
pub(crate) fn decode_all(
    layers: &[Layer],
    limits: &Limits,
    out: &SyncSender<Message>,
    spare: &Receiver<Vec<u8>>,
) {
    let mut total = 0;
    for layer in layers {
        let last = match decode(layer, limits, &mut total, out, spare) {
            Ok(Some(diff_id)) => Message::EndOfLayer { diff_id },
            Ok(None) => return,
            Err(e) => Message::Failed(e),
        };
        let failed = matches!(last, Message::Failed(_));
        if out.send(last).is_err() || failed {
            return;
        }
    }
}

/// `Ok(None)`: nobody listens any more.
fn decode(
    layer: &Layer,
    limits: &Limits,
    total: &mut u64,
    out: &SyncSender<Message>,
    spare: &Receiver<Vec<u8>>,
) -> Result<Option<String>, Error> {
    let mut diff = Hasher::for_digest(layer.diff_id.as_deref())?;
    let mut region = Region::open(layer)?;
    let start = region.peek().map_err(|e| Error::io("read", &layer.path, e))?;
    let compression = layer.compression.unwrap_or_else(|| Compression::detect(start));
    let mut decoder = Decoder::new(region, compression).map_err(|e| Error::io("decode", &layer.path, e))?;
    let position = |d: &Decoder<Region>| match d {
        Decoder::Plain(r) => r.position(),
        Decoder::Gzip(crate::compression::GzipMembers::Member(d)) => d.get_ref().position(),
        Decoder::Gzip(crate::compression::GzipMembers::Rest(r)) => r.position(),
        Decoder::Gzip(crate::compression::GzipMembers::Moved) => 0,
        Decoder::Zstd(d) => d.get_ref().position(),
    };
    let failure = loop {
        let mut buffer = spare.try_recv().unwrap_or_else(|_| vec![0; BUFFER]);
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        let mut failure = None;
        while filled < BUFFER {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
        }
        buffer.truncate(filled);
        diff.update(&buffer);
        *total += filled as u64;
        limits.uncompressed(*total)?;
        if failure.is_some() {
            break failure;
        }
        if filled == 0 {
            break None;
        }
        let position = position(&decoder);
        if out.send(Message::Data { buffer, position }).is_err() {
            return Ok(None);
        }
    };
    // A wrong digest explains a damaged stream better than the decoder's complaint does, so it is looked at first.
    let failure = failure.map(|source| match source.raw_os_error() {
        Some(libc::ENOMEM) => Error::Memory { path: layer.path.clone(), compression },
        Some(_) => Error::io("read", &layer.path, source),
        None => Error::Decompress { compression, source },
    });
    if let Some(region) = decoder.into_source() {
        region.verify(layer)?;
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let actual = diff.finish();
    match &layer.diff_id {
        Some(expected) if *expected != actual => {
            Err(Error::DiffIdMismatch { expected: expected.clone(), actual })
        }
        _ => Ok(Some(actual)),
    }
}

/// The bytes of a layer's region, hashed as they are read from the file.
pub(crate) struct Region {
    file: File,
    hasher: Option<Hasher>,
    unread: u64,
    length: u64,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Region {
    pub(crate) fn open(layer: &Layer) -> Result<Self, Error> {
        let hasher = match &layer.digest {
            Some(digest) => Some(Hasher::for_digest(Some(digest))?),
            None => None,
        };
        let io = |e| Error::io("open", &layer.path, e);
        let mut file = open_regular(&layer.path)?;
        file.seek(SeekFrom::Start(layer.offset)).map_err(io)?;
        Ok(Self {
            file,
            hasher,
            unread: layer.length,
            length: layer.length,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
        })
    }

    fn position(&self) -> u64 {
        self.length - self.unread - (self.end - self.start) as u64
    }

    fn refill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = self.buffer.len() - self.end;
        let want = usize::try_from(self.unread).unwrap_or(usize::MAX).min(room);
        if want == 0 {
            return Ok(());
        }
        let n = self.file.read(&mut self.buffer[self.end..self.end + want])?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the file ends {} bytes before the blob does", self.unread),
            ));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.buffer[self.end..self.end + n]);
        }
        self.end += n;
        self.unread -= n as u64;
        Ok(())
    }

    /// Reads the rest and compares the digest.
    fn verify(mut self, layer: &Layer) -> Result<(), Error> {
        let Some(expected) = &layer.digest else { return Ok(()) };
        while self.unread > 0 {
            self.start = self.end;
            match self.refill() {
                // A cut file is no longer the blob that the digest names; the comparison below says so.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => result.map_err(|e| Error::io("read", &layer.path, e))?,
            }
        }
        match self.hasher.map(Hasher::finish) {
            Some(actual) if actual != *expected => {
                Err(Error::DigestMismatch { expected: expected.clone(), actual })
            }
            _ => Ok(()),
        }
    }
}

impl Read for Region {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Region {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.refill()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }
}

impl Peek for Region {
    fn peek(&mut self) -> io::Result<&[u8]> {
        while self.end - self.start < MAGIC_BYTES && self.unread > 0 {
            self.refill()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }
}

/// Opens a file that must be a regular one: a FIFO or a device would block or never end.
pub(crate) fn open_regular(path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let io = |e| Error::io("open", path, e);
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    Ok(file)
}

/// The consumer's end: the uncompressed bytes of one layer after the other.
pub(crate) struct LayerStream<'a> {
    messages: Receiver<Message>,
    spare: Sender<Vec<u8>>,
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    report: Progress,
    done_before: u64,
    buffer: Vec<u8>,
    used: usize,
    ended: Option<String>,
}

impl<'a> LayerStream<'a> {
    pub(crate) fn new(
        layers: &[Layer],
        messages: Receiver<Message>,
        spare: Sender<Vec<u8>>,
        progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Self {
        let report = Progress {
            layer: 0,
            layers: layers.len(),
            bytes: 0,
            total_bytes: layers.iter().fold(0, |sum, l| sum.saturating_add(l.length)),
        };
        Self { messages, spare, progress, report, done_before: 0, buffer: Vec::new(), used: 0, ended: None }
    }

    pub(crate) fn begin_layer(&mut self, index: usize) {
        self.report.layer = index;
        self.ended = None;
    }

    /// Reads what the tar reader left (padding after the end mark) and returns the layer's diff id.
    pub(crate) fn finish_layer(&mut self, length: u64) -> Result<String, Error> {
        loop {
            let n = self.chunk()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        self.done_before = self.done_before.saturating_add(length);
        self.report.bytes = self.done_before;
        self.tell()?;
        Ok(self.ended.take().unwrap_or_default())
    }

    fn tell(&mut self) -> Result<(), Error> {
        match (self.progress)(self.report) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

impl Stream for LayerStream<'_> {
    fn chunk(&mut self) -> Result<&[u8], Error> {
        while self.used == self.buffer.len() && self.ended.is_none() {
            let empty = std::mem::take(&mut self.buffer);
            self.used = 0;
            if empty.capacity() > 0 {
                // The decoder may be done already; then nobody needs the buffer.
                let _ = self.spare.send(empty);
            }
            match self.messages.recv() {
                Ok(Message::Data { buffer, position }) => {
                    self.buffer = buffer;
                    self.report.bytes = self.done_before.saturating_add(position);
                    self.tell()?;
                }
                Ok(Message::EndOfLayer { diff_id }) => self.ended = Some(diff_id),
                Ok(Message::Failed(e)) => return Err(e),
                Err(_) => {
                    return Err(Error::Tar { offset: 0, reason: "the decoder stopped early".into() });
                }
            }
        }
        Ok(&self.buffer[self.used..])
    }

    fn consume(&mut self, n: usize) {
        self.used = (self.used + n).min(self.buffer.len());
    }
}
