//! From a file to the blob of a part: in order, by several threads, a few megabytes at a time.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};
use zstd::zstd_safe::{self, CCtx, CParameter};

use super::{FRAME_BYTES, Frame, Kernel, Part, Runs};
use crate::ram::{self, PAGE, Watch};
use crate::{Digest32, Error, Result, Source};

/// Frames that are compressed at once.
const BATCH: usize = 16;
const MAX_THREADS: usize = 4;
const LEVEL: i32 = 3;
/// Of the few pages that a start waits for.
const FIRST_LEVEL: i32 = 19;

/// What is to be packed.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// At most 32 bytes.
    pub name: &'a str,
    /// Which of a snapshot's files it is of.
    pub file: u8,
    /// Where it begins in that file, in bytes; a multiple of a page.
    pub origin: u64,
    /// Bytes; a multiple of a page.
    pub length: u64,
    /// These pages alone, in this order; otherwise all that are not zero, ascending.
    pub order: Option<&'a [Range<u64>]>,
    /// Without these pages; sorted.
    pub except: &'a [Range<u64>],
    /// A file whose pages need not be sent again, and where they begin in it.
    pub base: Option<(&'a File, u64)>,
    /// The kernel of RAM that begins where the part does.
    pub kernel: Option<&'a Kernel>,
    /// Whether a start waits for it: it is packed as small as can be.
    pub first: bool,
}

/// What was packed.
#[derive(Clone, Debug)]
pub struct Packed {
    /// What a [`super::Table`] has of it.
    pub part: Part,
    /// Of the blob.
    pub sha256: Digest32,
    /// Pages that have half of what the kernel has there, at least.
    pub alike: u64,
}

/// Writes the blob of a part to `out`, which is empty. The same pages give the same bytes.
pub fn pack(source: &File, wanted: &Wanted<'_>, out: &File, watch: Watch<'_>) -> Result<Packed> {
    let (name, file) = (wanted.name.to_owned(), wanted.file);
    let (origin, length) = (wanted.origin, wanted.length);
    if !origin.is_multiple_of(PAGE as u64) || !length.is_multiple_of(PAGE as u64) || name.len() > 32 {
        return Err(Error::unwritable(format!("the part {name} is not one of whole pages")));
    }
    let against_kernel = wanted.kernel.is_some();
    let part =
        Part { name, file, origin, length, against_kernel, runs: vec![], frames: vec![], base: vec![] };
    let mut writer = Writer {
        out,
        part,
        level: if wanted.first { FIRST_LEVEL } else { LEVEL },
        kernel: wanted.kernel,
        alike: 0,
        written: 0,
        sha256: Sha256::new(),
        waiting: vec![],
        open: Unpacked::default(),
    };
    match wanted.order {
        Some(order) => in_order(source, wanted, order, &mut writer, watch)?,
        None => ascending(source, wanted, &mut writer, watch)?,
    }
    writer.finish()
}

fn in_order(
    source: &File,
    wanted: &Wanted<'_>,
    order: &[Range<u64>],
    writer: &mut Writer<'_>,
    watch: Watch<'_>,
) -> Result<()> {
    let mut page = vec![0; PAGE];
    for number in order.iter().cloned().flatten() {
        let at = number.saturating_mul(PAGE as u64);
        let except = wanted.except.partition_point(|run| run.end <= number);
        if at >= wanted.length || wanted.except.get(except).is_some_and(|run| run.start <= number) {
            continue;
        }
        if watch(at).is_break() {
            return Err(Error::Cancelled);
        }
        source.fill_at(&mut page, wanted.origin + at).map_err(Error::io("read"))?;
        if !ram::is_zero(&page) {
            writer.page(number, &page)?;
        }
    }
    Ok(())
}

fn ascending(source: &File, wanted: &Wanted<'_>, writer: &mut Writer<'_>, watch: Watch<'_>) -> Result<()> {
    let range = wanted.origin..wanted.origin + wanted.length;
    let mut except = wanted.except.iter().peekable();
    let mut beside = vec![0; ram::CHUNK];
    ram::read_data(source, range, watch, |offset, bytes| {
        let base = match wanted.base {
            Some((file, origin)) => {
                let beside = &mut beside[..bytes.len()];
                file.fill_at(beside, origin + offset).map_err(Error::io("read the base of"))?;
                Some(&*beside)
            }
            None => None,
        };
        for (n, page) in bytes.chunks(PAGE).enumerate() {
            let number = offset / PAGE as u64 + n as u64;
            while except.next_if(|run| run.end <= number).is_some() {}
            if ram::is_zero(page) || except.peek().is_some_and(|run| run.start <= number) {
                continue;
            }
            if base.is_some_and(|base| base[n * PAGE..][..page.len()] == *page) {
                append(&mut writer.part.base, number);
            } else {
                writer.page(number, page)?;
            }
        }
        Ok(())
    })
}

pub(super) fn append(runs: &mut Runs, number: u64) {
    match runs.last_mut() {
        Some(last) if last.end == number => last.end += 1,
        _ => runs.push(number..number + 1),
    }
}

/// A frame that is not compressed yet: its pages, and what they are packed against.
#[derive(Default)]
struct Unpacked {
    pages: Vec<u8>,
    prefix: Vec<u8>,
}

struct Writer<'a> {
    out: &'a File,
    part: Part,
    level: i32,
    kernel: Option<&'a Kernel>,
    alike: u64,
    written: u64,
    sha256: Sha256,
    /// Whole frames, and the one that is being filled.
    waiting: Vec<Unpacked>,
    open: Unpacked,
}

impl Writer<'_> {
    fn page(&mut self, number: u64, bytes: &[u8]) -> Result<()> {
        append(&mut self.part.runs, number);
        self.open.pages.reserve_exact(FRAME_BYTES - self.open.pages.len());
        self.open.pages.extend_from_slice(bytes);
        if let Some(kernel) = self.kernel {
            let before = self.open.prefix.len();
            kernel.page(number, &mut self.open.prefix);
            self.alike += u64::from(is_alike(bytes, &self.open.prefix[before..]));
        }
        if self.open.pages.len() == FRAME_BYTES {
            self.waiting.push(std::mem::take(&mut self.open));
        }
        if self.waiting.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
        let each = self.waiting.len().div_ceil(threads).max(1);
        let level = self.level;
        let packed: Vec<Result<Vec<Vec<u8>>>> = std::thread::scope(|scope| {
            let started: Vec<_> = self
                .waiting
                .chunks(each)
                .map(|frames| scope.spawn(move || compress(frames, level)))
                .collect();
            started.into_iter().map(|thread| thread.join().expect("compressing does not panic")).collect()
        });
        self.waiting.clear();
        for frames in packed {
            for frame in frames? {
                self.out.write_all_at(&frame, self.written).map_err(Error::io("write"))?;
                self.sha256.update(&frame);
                let bytes = u32::try_from(frame.len()).expect("zstd bounds what FRAME_BYTES become");
                self.part.frames.push(Frame { at: self.written, bytes, digest: Digest32::of(&frame) });
                self.written += frame.len() as u64;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Packed> {
        if !self.open.pages.is_empty() {
            self.waiting.push(std::mem::take(&mut self.open));
        }
        self.flush()?;
        Ok(Packed { part: self.part, sha256: Digest32(self.sha256.finalize().into()), alike: self.alike })
    }
}

/// Whether at least half of a page, by eight bytes, is what the other has there.
fn is_alike(page: &[u8], other: &[u8]) -> bool {
    let (page, other) = (page.chunks_exact(8), other.chunks_exact(8));
    let same = page.zip(other).filter(|(one, two)| one == two && **one != [0; 8]).count();
    same * 16 >= PAGE
}

fn compress(frames: &[Unpacked], level: i32) -> Result<Vec<Vec<u8>>> {
    let failed =
        |code| Error::Io { action: "compress", source: io::Error::other(zstd_safe::get_error_name(code)) };
    let compressed = |frame: &Unpacked| {
        // The context holds on to a prefix as long as it is there.
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(level))?;
        context.set_parameter(CParameter::ChecksumFlag(true))?;
        if !frame.prefix.is_empty() {
            context.ref_prefix(&frame.prefix)?;
        }
        let mut out = Vec::with_capacity(zstd_safe::compress_bound(frame.pages.len()));
        context.compress2(&mut out, &frame.pages)?;
        out.shrink_to_fit();
        Ok(out)
    };
    frames.iter().map(|frame| compressed(frame).map_err(failed)).collect()
}
