//! Snapshots in pieces, for registries.

#![allow(unsafe_code, reason = "descriptors come as numbers")]

use std::fs::File;
use std::ops::Range;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use supermachine_snapshot::parts::{self, Table, Wanted};
use supermachine_snapshot::{Error, Result, open};

use crate::snapshot::{raise, watched};

/// First page, end.
type Run = (u64, u64);

/// Packs a part of `path` into the empty file `out`.
///
/// Gives the part for a table, the length of the blob, its SHA-256 in hexadecimal, how many pages are as in `base`, and
/// how many that are sent are much like the `kernel`'s.
#[pyfunction]
#[pyo3(signature = (path, out, *, name, file, origin, length, order=None, without=vec![], base=None, kernel=None, first=false))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn pack_part<'py>(
    py: Python<'py>,
    path: PathBuf,
    out: PathBuf,
    name: &str,
    file: u8,
    origin: u64,
    length: u64,
    order: Option<Vec<Run>>,
    without: Vec<Run>,
    base: Option<(PathBuf, u64)>,
    kernel: Option<&Kernel>,
    first: bool,
) -> PyResult<(Vec<u8>, u64, String, u64, u64)> {
    let order = order.map(ranges);
    let without = ranges(without);
    let packed = watched(py, &path, |watch| {
        let source = open(&path)?;
        let beside = base.as_ref().map(|(path, _)| open(path)).transpose()?;
        let out = File::options().read(true).write(true).open(&out);
        let out = out.map_err(|source| Error::Io { action: "write", source })?;
        let wanted = Wanted {
            name,
            file,
            origin,
            length,
            order: order.as_deref(),
            except: &without,
            base: beside.as_ref().zip(base.as_ref().map(|(_, origin)| *origin)),
            kernel: kernel.map(|kernel| &kernel.0),
            first,
        };
        parts::pack(&source, &wanted, &out, watch)
    })?;
    let mut bytes = vec![];
    packed.part.encode(&mut bytes);
    let shared = packed.part.base.iter().map(|run| run.end - run.start).sum();
    Ok((bytes, packed.part.packed_bytes(), packed.sha256.to_string(), shared, packed.alike))
}

/// Pages in the order of the blocks that they are, and which those are.
type Same = (Vec<Run>, Vec<u8>);

/// The pages of RAM, which begins at `origin`, that are blocks of the image `root`: of the pages `first`, and of the
/// others without those that are as in `base`.
///
/// Of each kind their runs, and what `Unpacker.from_root` is to be told of a part of these.
#[pyfunction]
#[pyo3(signature = (path, root, *, origin, length, first, base=None))]
pub(crate) fn root_pages(
    py: Python<'_>,
    path: PathBuf,
    root: PathBuf,
    origin: u64,
    length: u64,
    first: Vec<Run>,
    base: Option<(PathBuf, u64)>,
) -> PyResult<(Same, Same)> {
    let first = ranges(first);
    watched(py, &path, |watch| {
        let source = open(&path)?;
        let root = open(&root)?;
        let beside = base.as_ref().map(|(path, _)| open(path)).transpose()?;
        let base = beside.as_ref().zip(base.as_ref().map(|(_, origin)| *origin));
        let [first, rest] = parts::Same::find(&source, origin..origin + length, &root, &first, base, watch)?;
        let said = |same: &parts::Same| -> Result<Same> {
            let pages = same.pages.iter().map(|run| (run.start, run.end)).collect();
            Ok((pages, same.describe(&source, origin)?))
        };
        Ok((said(&first)?, said(&rest)?))
    })
}

fn ranges(runs: Vec<Run>) -> Vec<Range<u64>> {
    runs.into_iter().map(|(start, end)| start..end).collect()
}

/// A guest's kernel where it is loaded, for `pack_part`.
#[pyclass(module = "supermachine._core", frozen)]
pub struct Kernel(parts::Kernel);

#[pymethods]
impl Kernel {
    /// `data` is the file, packed or not. Raises `BadSnapshot` for what is no kernel.
    #[new]
    fn new(py: Python<'_>, path: PathBuf, data: PyBackedBytes) -> PyResult<Self> {
        let read = || parts::Kernel::read(&path, data.to_vec());
        py.detach(read).map(Self).map_err(|error| raise(py, &path, &error))
    }
}

/// Puts a snapshot's files together from the frames of its parts.
#[pyclass(module = "supermachine._core", frozen)]
pub struct Unpacker {
    path: PathBuf,
    inner: parts::Unpacker,
}

#[pymethods]
impl Unpacker {
    /// `files` are descriptors of empty files; `path` is what errors say. Raises `BadSnapshot` for a bad table.
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        table: PyBackedBytes,
        files: Vec<RawFd>,
        max_bytes: u64,
    ) -> PyResult<Self> {
        let make = || -> Result<parts::Unpacker> {
            let files = files.into_iter().map(duplicate).collect::<Result<Vec<File>>>()?;
            parts::Unpacker::new(Table::decode(&table, max_bytes)?, files)
        };
        match py.detach(make) {
            Ok(inner) => Ok(Self { path, inner }),
            Err(error) => Err(raise(py, &path, &error)),
        }
    }

    /// Of each part: name, file, length of its blob, pages that are sent, pages that are as in the base.
    fn parts(&self) -> Vec<(String, u8, u64, u64, u64)> {
        let base = |part: &parts::Part| part.base.iter().map(|run| run.end - run.start).sum();
        let entry = |part: &parts::Part| {
            (part.name.clone(), part.file, part.packed_bytes(), part.pages(), base(part))
        };
        self.inner.table().parts.iter().map(entry).collect()
    }

    /// The frames of a part in groups of at most `most` bytes, or of one frame: its first, where it begins, its end.
    fn groups(&self, part: usize, most: u64) -> Vec<(usize, u64, u64)> {
        let mut groups: Vec<(usize, u64, u64)> = vec![];
        let frames = self.inner.table().parts.get(part).map_or(&[][..], |part| &part.frames);
        for (number, frame) in frames.iter().enumerate() {
            let end = frame.at + u64::from(frame.bytes);
            match groups.last_mut() {
                Some(last) if end - last.1 <= most => last.2 = end,
                _ => groups.push((number, frame.at, end)),
            }
        }
        groups
    }

    /// The pages of its file that these frames of a part hold, `first` to before `end`: first page, end.
    fn pages(&self, part: usize, first: usize, end: usize) -> Vec<Run> {
        let runs = self.inner.pages(part, first..end);
        runs.into_iter().map(|run| (run.start, run.end)).collect()
    }

    /// Part and number of the frame that holds a page of a file; `None` for one that is sent in none.
    fn frame_of(&self, file: u8, page: u64) -> Option<(usize, usize)> {
        self.inner.frame_of(file, page)
    }

    /// Has frames that are packed against a kernel unpacked with this one; `data` is its file.
    fn with_kernel(&self, path: PathBuf, data: PyBackedBytes) {
        self.inner.with_kernel(path, data.to_vec());
    }

    /// Reads that kernel now, and not when the first frame comes. Raises `SnapshotDamaged` for what is none.
    fn read_kernel(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.kernel().map(drop)).map_err(|error| raise(py, &self.path, &error))
    }

    /// Takes whole frames from `first` on. Raises `SnapshotDamaged` for one that is not what the table says.
    fn frames(&self, py: Python<'_>, part: usize, first: usize, data: PyBackedBytes) -> PyResult<usize> {
        py.detach(|| self.inner.frames(part, first, &data)).map_err(|error| raise(py, &self.path, &error))
    }

    /// Takes from the file `base`, from `origin` on, the pages of a part that are as there.
    fn copy_base(&self, py: Python<'_>, part: usize, base: PathBuf, origin: u64) -> PyResult<()> {
        py.detach(|| self.inner.copy_base(part, &open(&base)?, origin))
            .map_err(|error| raise(py, &self.path, &error))
    }

    /// Takes the pages of a part from the root `image`, frame by frame, as far as they are what is `said` of them by
    /// `root_pages`; gives whether that is all of them.
    #[pyo3(name = "from_root")]
    fn take_from_root(
        &self,
        py: Python<'_>,
        part: usize,
        image: PathBuf,
        said: PyBackedBytes,
    ) -> PyResult<bool> {
        let take = || -> Result<bool> {
            let taken = self.inner.from_root(part, &open(&image)?, &said)?;
            Ok(self.inner.table().parts.get(part).is_some_and(|part| part.frames.len() == taken))
        };
        py.detach(take).map_err(|error| raise(py, &self.path, &error))
    }

    /// Verifies the whole snapshot and makes it durable. Gives its id.
    fn finish(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let id = py.detach(|| self.inner.finish()).map_err(|error| raise(py, &self.path, &error))?;
        Ok(id.map(|id| id.to_string()))
    }
}

fn duplicate(fd: RawFd) -> Result<File> {
    if fd < 0 {
        return Err(Error::Unwritable { reason: "a descriptor is closed".into() });
    }
    // SAFETY: the descriptor is the caller's, who keeps it open during this call; it is not kept beyond it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let owned = borrowed.try_clone_to_owned().map_err(|source| Error::Io { action: "keep", source })?;
    Ok(File::from(owned))
}
