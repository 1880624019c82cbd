//! From frames, in any order and by any number of threads, to a snapshot's files.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use supermachine_support::{lock, to_usize};
use zstd::zstd_safe::DCtx;

use super::{FRAME_PAGES, Kernel, Part, Runs, Table, root};
use crate::ram::{self, PAGE};
use crate::{Digest32, Error, Result, Source, export};

/// Files that are being put together.
#[derive(Debug)]
pub struct Unpacker {
    table: Table,
    files: Vec<File>,
    /// For each part, how many pages come before each of its runs.
    before: Vec<Vec<u64>>,
    /// The file of the kernel that frames are packed against, until the first of them comes; and then that kernel.
    kernel_file: Mutex<Option<(PathBuf, Vec<u8>)>>,
    kernel: OnceLock<Result<Kernel, String>>,
}

impl Unpacker {
    /// `files` are empty, and open for reading and writing; there is one for each that the table speaks of.
    pub fn new(table: Table, files: Vec<File>) -> Result<Self> {
        for part in &table.parts {
            if usize::from(part.file) >= files.len() {
                return Err(Error::unwritable(format!(
                    "the part {} is of a file that is not known",
                    part.name
                )));
            }
        }
        for (number, file) in files.iter().enumerate() {
            let bytes = table.file_bytes(u8::try_from(number).unwrap_or(u8::MAX));
            file.set_len(bytes).map_err(Error::io("write"))?;
        }
        let before = table.parts.iter().map(|part| {
            let mut pages = 0;
            let count = |run: &Range<u64>| {
                pages += run.end - run.start;
                pages - (run.end - run.start)
            };
            part.runs.iter().map(count).collect()
        });
        let before = before.collect();
        Ok(Self { table, files, before, kernel_file: Mutex::new(None), kernel: OnceLock::new() })
    }

    /// Has frames that were packed against a kernel unpacked with this one: a file as [`Kernel::read`] takes it.
    pub fn with_kernel(&self, path: PathBuf, file: Vec<u8>) {
        *lock(&self.kernel_file) = Some((path, file));
    }

    /// The kernel, which is read now if it was not before: several threads wait for one that does.
    pub fn kernel(&self) -> Result<&Kernel> {
        let read = || match lock(&self.kernel_file).take() {
            Some((path, file)) => Kernel::read(&path, file).map_err(|error| error.to_string()),
            None => Err("they are packed against a kernel that is not there".to_owned()),
        };
        let kernel = self.kernel.get_or_init(read).as_ref();
        kernel.map_err(|reason| Error::invalid("the frames of this part", 0, reason))
    }

    /// The parts that are unpacked.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Takes whole frames, `first` and those after it. An error unless each is the one that the table says.
    pub fn frames(&self, part: usize, first: usize, mut bytes: &[u8]) -> Result<usize> {
        let entry = self.part(part)?;
        let kernel = entry.against_kernel.then(|| self.kernel()).transpose()?;
        let mut number = first;
        let mut pages = vec![];
        while !bytes.is_empty() {
            let name = || format!("frame {number} of {}", entry.name);
            let Some(frame) = entry.frames.get(number) else {
                return Err(Error::invalid(name(), 0, "there is none"));
            };
            let Some((packed, rest)) = bytes.split_at_checked(frame.bytes as usize) else {
                return Err(Error::Cut {
                    section: name(),
                    offset: frame.at,
                    needed: frame.bytes.into(),
                    available: bytes.len() as u64,
                });
            };
            if Digest32::of(packed) != frame.digest {
                return Err(Error::Checksum { section: name(), offset: frame.at });
            }
            let wanted = to_usize(entry.frame_pages(number)) * PAGE;
            pages.clear();
            pages.reserve_exact(wanted);
            let prefix = kernel.map(|kernel| {
                let runs = self.part_pages(part, number..number + 1);
                kernel.prefix(runs.into_iter().flatten())
            });
            if decompress(packed, prefix.as_deref(), &mut pages) != Some(wanted) {
                return Err(Error::invalid(
                    name(),
                    frame.at,
                    "it does not unpack to the pages that are in it",
                ));
            }
            self.write(part, number, &pages)?;
            bytes = rest;
            number += 1;
        }
        Ok(number - first)
    }

    /// The pages of its file that these frames of a part hold; nothing for frames that it has not.
    pub fn pages(&self, part: usize, frames: Range<usize>) -> Runs {
        let Some(entry) = self.table.parts.get(part) else {
            return vec![];
        };
        let origin = entry.origin / PAGE as u64;
        let within = self.part_pages(part, frames).into_iter();
        within.map(|run| origin + run.start..origin + run.end).collect()
    }

    /// The same, counted from where the part begins.
    fn part_pages(&self, part: usize, frames: Range<usize>) -> Runs {
        let (entry, before) = (&self.table.parts[part], &self.before[part]);
        let first = (frames.start as u64).saturating_mul(FRAME_PAGES);
        let end = (frames.end as u64).saturating_mul(FRAME_PAGES);
        let from = before.partition_point(|count| *count <= first).saturating_sub(1);
        let runs = before.iter().zip(&entry.runs).skip(from).take_while(|(before, _)| **before < end);
        let within = runs.map(|(before, run)| {
            let start = run.start + first.saturating_sub(*before);
            start..run.end.min(run.start.saturating_add(end.saturating_sub(*before)))
        });
        within.filter(|run| run.start < run.end).collect()
    }

    /// Part and number of the frame that holds a page of a file, where one does.
    pub fn frame_of(&self, file: u8, page: u64) -> Option<(usize, usize)> {
        self.table.parts.iter().enumerate().filter(|(_, part)| part.file == file).find_map(
            |(number, part)| {
                let page = page.checked_sub(part.origin / PAGE as u64)?;
                let at = part.runs.iter().position(|run| run.contains(&page))?;
                let before = self.before[number][at] + (page - part.runs[at].start);
                Some((number, usize::try_from(before / FRAME_PAGES).ok()?))
            },
        )
    }

    fn part(&self, part: usize) -> Result<&Part> {
        self.table.parts.get(part).ok_or_else(|| Error::unwritable(format!("there is no part {part}")))
    }

    fn write(&self, part: usize, number: usize, mut pages: &[u8]) -> Result<()> {
        let (entry, before) = (&self.table.parts[part], &self.before[part]);
        let mut page = number as u64 * FRAME_PAGES;
        let mut run = before.partition_point(|count| *count <= page) - 1;
        while !pages.is_empty() {
            let into = page - before[run];
            let left = entry.runs[run].end - entry.runs[run].start - into;
            let count = left.min((pages.len() / PAGE) as u64);
            let (now, later) = pages.split_at(to_usize(count) * PAGE);
            let at = entry.origin + (entry.runs[run].start + into) * PAGE as u64;
            self.files[usize::from(entry.file)].write_all_at(now, at).map_err(Error::io("write"))?;
            pages = later;
            page += count;
            run += 1;
        }
        Ok(())
    }

    /// Takes the pages of a part that are as in the base, where they begin at `origin`.
    pub fn copy_base(&self, part: usize, base: &dyn Source, origin: u64) -> Result<()> {
        let entry = self.part(part)?;
        let mut buffer = vec![0; ram::CHUNK];
        for run in &entry.base {
            let (mut at, end) = (run.start * PAGE as u64, run.end * PAGE as u64);
            while at < end {
                let bytes = &mut buffer[..ram::CHUNK.min(to_usize(end - at))];
                base.fill_at(bytes, origin + at).map_err(Error::io("read the base of"))?;
                let file = &self.files[usize::from(entry.file)];
                file.write_all_at(bytes, entry.origin + at).map_err(Error::io("write"))?;
                at += bytes.len() as u64;
            }
        }
        Ok(())
    }

    /// Takes the frames of a part whose pages are blocks of a root image from that, until one is another than is
    /// `said`, as [`super::Same::describe`] does. How many it took: the others, if any, are to be fetched.
    pub fn from_root(&self, part: usize, image: &dyn Source, said: &[u8]) -> Result<usize> {
        root::frames(self.part(part)?, image, said, |number, pages| self.write(part, number, pages))
    }

    /// Reads and checks all of the snapshot file, the first of the files, and waits until the disk has them.
    pub fn finish(&self) -> Result<Option<Digest32>> {
        for file in &self.files {
            file.sync_all().map_err(Error::io("write"))?;
        }
        export::verify(&self.files[0], &mut ram::patient)
    }
}

/// Into `pages`, as far as there is room, from a frame that was packed against `prefix`; how much that is, unless the
/// frame is none, or needs more room.
fn decompress(frame: &[u8], prefix: Option<&[u8]>, pages: &mut Vec<u8>) -> Option<usize> {
    // The context holds on to a prefix as long as it is there.
    let mut context = DCtx::try_create()?;
    if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) {
        context.ref_prefix(prefix).ok()?;
    }
    context.decompress(pages, frame).ok()
}
