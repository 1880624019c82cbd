//! `Files`: the guest's file system over one connection.

use std::sync::Mutex;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use supermachine_proto::agent::{Chunk, FileCommand, FileReply, REQUEST_PORT, Request, Stat, WriteMode};
use supermachine_proto::frame::MAX_DATA;

use crate::connection::Connection;
use crate::errors;
use crate::remote::Machine;
use crate::worker::closed;

/// Entries of one directory at most; a million in memory would take some hundred megabytes.
const MAX_ENTRIES: usize = 1 << 19;
/// Bytes of their names at most.
const MAX_NAMES: usize = 64 << 20;
/// Bytes of a path or a link's target at most: twice Linux's PATH_MAX.
const MAX_TARGET: usize = 8192;
/// How many times the usual time the removal of a tree is given, which one command does however large it is.
const TREE: u32 = 10;

/// A file's status in the order of the fields of [`Stat`].
type StatTuple = (u64, u64, u32, u32, u32, u32, u64, u64, u64, (i64, i64, i64));

fn tuple(s: &Stat) -> StatTuple {
    (
        s.dev,
        s.ino,
        s.mode,
        s.nlink,
        s.uid,
        s.gid,
        s.rdev,
        s.size,
        s.blocks,
        (s.atime_ns, s.mtime_ns, s.ctime_ns),
    )
}

struct Inner {
    connection: Connection,
    /// The path of the file that `write_open` has opened.
    writing: Option<Vec<u8>>,
    /// An answer is outstanding, or the connection failed.
    spoilt: bool,
}

/// File operations in the guest, one at a time. Paths are absolute bytes.
#[pyclass(frozen, module = "supermachine._core")]
pub struct Files {
    inner: Mutex<Option<Inner>>,
}

fn unexpected(py: Python<'_>) -> PyErr {
    errors::agent(py, "the agent gave an answer that does not fit the file command")
}

/// Whether there is too little of something in the guest; numbers of Linux's, which Macs have others for.
fn is_shortage(errno: i32) -> bool {
    const ENOMEM: i32 = 12;
    const EAGAIN: i32 = 11;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(errno, EAGAIN | ENOMEM | ENFILE | EMFILE)
}

/// Whether a directory can have an entry of this name.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_TARGET
        && !name.iter().any(|b| matches!(b, b'/' | 0))
}

/// What a directory holds, as its parts arrive.
#[derive(Default)]
struct Listing {
    entries: Vec<(Chunk, Stat)>,
    names: usize,
}

impl Listing {
    /// Takes a part; says what is wrong with it.
    fn add(&mut self, part: Vec<(Chunk, Stat)>) -> Result<(), String> {
        if part.is_empty() {
            return Err("the agent gave an empty part of a directory".to_owned());
        }
        for (name, stat) in part {
            if !is_name(&name.0) {
                return Err("the agent gave a directory's entry a name that none can have".to_owned());
            }
            self.names += name.0.len();
            if self.entries.len() >= MAX_ENTRIES || self.names > MAX_NAMES {
                return Err(format!(
                    "the directory has more than {MAX_ENTRIES} entries; list it in the guest"
                ));
            }
            self.entries.push((name, stat));
        }
        Ok(())
    }
}

impl Inner {
    fn ask(&mut self, py: Python<'_>, command: &FileCommand, path: &[u8]) -> PyResult<FileReply> {
        self.spoilt = true;
        self.connection.begin(if matches!(command, FileCommand::RemoveTree { .. }) { TREE } else { 1 });
        self.connection.send(py, command)?;
        self.answer(py, path)
    }

    /// Nothing that this agent says here is believed any more.
    fn unfit(&mut self, py: Python<'_>) -> PyErr {
        self.spoilt = true;
        unexpected(py)
    }

    fn answer(&mut self, py: Python<'_>, path: &[u8]) -> PyResult<FileReply> {
        self.spoilt = true;
        let reply = self.connection.receive(py)?;
        // An agent that could start no thread for this connection says so and closes it.
        self.spoilt = matches!(reply, FileReply::Failed { errno } if is_shortage(errno));
        match reply {
            // Linux's errors are 1 to 4095 (MAX_ERRNO in include/linux/err.h).
            FileReply::Failed { errno: errno @ 1..=4095 } => Err(errors::os_error(errno, path)),
            FileReply::Failed { .. } => Err(self.unfit(py)),
            reply => Ok(reply),
        }
    }
}

impl Files {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> PyResult<T>) -> PyResult<T> {
        // Two threads never share a connection (the pool above lends it to one), so this lock does not wait.
        let mut inner = self.inner.try_lock().map_err(|e| match e {
            std::sync::TryLockError::Poisoned(_) => closed("the connection"),
            std::sync::TryLockError::WouldBlock => closed("the connection is in use; it"),
        })?;
        let inner = inner.as_mut().ok_or_else(|| closed("the connection"))?;
        if let Some(exit) = inner.connection.elsewhere() {
            return Python::attach(|py| Err(errors::vm_exited(py, &exit)));
        }
        work(inner)
    }

    fn done(&self, py: Python<'_>, command: &FileCommand, path: &[u8]) -> PyResult<()> {
        self.with(|inner| match inner.ask(py, command, path)? {
            FileReply::Done => Ok(()),
            _ => Err(inner.unfit(py)),
        })
    }

    fn target<'py>(
        &self,
        py: Python<'py>,
        command: &FileCommand,
        path: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        self.with(|inner| match inner.ask(py, command, path)? {
            FileReply::Target(Chunk(target)) if target.len() <= MAX_TARGET && !target.contains(&0) => {
                Ok(PyBytes::new(py, &target))
            }
            _ => Err(inner.unfit(py)),
        })
    }
}

#[pymethods]
impl Files {
    /// Connects to the agent, which answers a command within `timeout` seconds, but for what large files take.
    #[staticmethod]
    #[pyo3(signature = (worker, timeout=180.0))]
    fn open(py: Python<'_>, worker: Machine<'_>, timeout: f64) -> PyResult<Self> {
        let timeout =
            Duration::try_from_secs_f64(timeout).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let (stream, vm) = worker.open(py, REQUEST_PORT)?;
        let mut connection = Connection::new(stream, vm, timeout)?;
        connection.send(py, &Request::Files)?;
        let inner = Inner { connection, writing: None, spoilt: false };
        Ok(Self { inner: Mutex::new(Some(inner)) })
    }

    /// Whether the connection can be used for another command.
    #[getter]
    fn reusable(&self) -> bool {
        self.inner.try_lock().is_ok_and(|i| {
            i.as_ref().is_some_and(|i| !i.spoilt && i.writing.is_none() && i.connection.idle())
        })
    }

    fn close(&self) {
        // Nobody else has it, but in a process that was forked while somebody had.
        if let Ok(mut inner) = self.inner.try_lock() {
            *inner = None;
        }
    }

    fn stat(&self, py: Python<'_>, path: Vec<u8>, follow: bool) -> PyResult<StatTuple> {
        let command = FileCommand::Stat { path: Chunk(path.clone()), follow };
        self.with(|inner| match inner.ask(py, &command, &path)? {
            FileReply::Stat(stat) => Ok(tuple(&stat)),
            _ => Err(inner.unfit(py)),
        })
    }

    /// Names and status of a directory's entries, without "." and "..".
    fn list<'py>(&self, py: Python<'py>, path: Vec<u8>) -> PyResult<Vec<(Bound<'py, PyBytes>, StatTuple)>> {
        self.with(|inner| {
            let mut listing = Listing::default();
            let mut reply = inner.ask(py, &FileCommand::List { path: Chunk(path.clone()) }, &path)?;
            loop {
                match reply {
                    FileReply::Entries(part) => listing.add(part).map_err(|trouble| {
                        inner.spoilt = true;
                        errors::agent(py, &trouble)
                    })?,
                    FileReply::Done => break,
                    _ => return Err(inner.unfit(py)),
                }
                reply = inner.answer(py, &path)?;
            }
            let entries = listing.entries.into_iter();
            Ok(entries.map(|(name, stat)| (PyBytes::new(py, &name.0), tuple(&stat))).collect())
        })
    }

    /// Reads a file from `offset`, `length` bytes or, for 0, to the end, and calls `write` with each piece. What takes
    /// no room in the guest is told to `hole`, as a number of bytes, where that is given.
    #[pyo3(signature = (path, offset, length, write, hole=None))]
    fn read(
        &self,
        py: Python<'_>,
        path: Vec<u8>,
        offset: u64,
        length: u64,
        write: &Bound<'_, PyAny>,
        hole: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.with(|inner| {
            let holes = hole.is_some();
            let command = FileCommand::Read { path: Chunk(path.clone()), offset, length, holes };
            let mut left = if length == 0 { u64::MAX } else { length };
            let mut reply = inner.ask(py, &command, &path)?;
            loop {
                match reply {
                    FileReply::Data(part) if !part.0.is_empty() && part.0.len() as u64 <= left => {
                        left -= part.0.len() as u64;
                        // More is under way until Done: a failing `write` spoils the connection.
                        inner.spoilt = true;
                        write.call1((PyBytes::new(py, &part.0),))?;
                    }
                    FileReply::Hole { length } if holes && length > 0 && length <= left => {
                        left -= length;
                        inner.spoilt = true;
                        if let Some(hole) = hole {
                            hole.call1((length,))?;
                        }
                    }
                    FileReply::Done => return Ok(()),
                    _ => return Err(inner.unfit(py)),
                }
                reply = inner.answer(py, &path)?;
            }
        })
    }

    /// Opens a file for `write`. `how` is "truncate", "append" or "create" (which fails when it exists).
    fn write_open(&self, py: Python<'_>, path: Vec<u8>, mode: u32, how: &str) -> PyResult<()> {
        let how = match how {
            "truncate" => WriteMode::Truncate,
            "append" => WriteMode::Append,
            "create" => WriteMode::CreateNew,
            _ => return Err(closed("a way to write other than truncate, append and create")),
        };
        self.done(py, &FileCommand::Write { path: Chunk(path.clone()), mode, how }, &path)?;
        self.with(|inner| {
            inner.writing = Some(path);
            Ok(())
        })
    }

    /// Appends to the open file. A failure in the guest shows in `write_end`.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        self.with(|inner| {
            if inner.writing.is_none() {
                return Err(closed("the file"));
            }
            inner.connection.begin(1);
            for part in data.as_bytes().chunks(MAX_DATA) {
                inner.connection.send(py, &FileCommand::WriteData(Chunk(part.to_vec())))?;
            }
            Ok(())
        })
    }

    /// Appends so many zero bytes that take no room in the guest.
    fn write_hole(&self, py: Python<'_>, length: u64) -> PyResult<()> {
        self.with(|inner| match inner.writing {
            Some(_) => inner.connection.send(py, &FileCommand::WriteHole { length }),
            None => Err(closed("the file")),
        })
    }

    /// Closes the open file: all of it is written, or an `OSError` says why not.
    fn write_end(&self, py: Python<'_>) -> PyResult<()> {
        let path = self.with(|inner| inner.writing.take().ok_or_else(|| closed("the file")))?;
        self.done(py, &FileCommand::WriteEnd, &path)
    }

    fn make_dir(
        &self,
        py: Python<'_>,
        path: Vec<u8>,
        mode: u32,
        parents: bool,
        exist_ok: bool,
    ) -> PyResult<()> {
        self.done(py, &FileCommand::MakeDir { path: Chunk(path.clone()), mode, parents, exist_ok }, &path)
    }

    fn make_fifo(&self, py: Python<'_>, path: Vec<u8>, mode: u32) -> PyResult<()> {
        self.done(py, &FileCommand::MakeFifo { path: Chunk(path.clone()), mode }, &path)
    }

    fn unlink(&self, py: Python<'_>, path: Vec<u8>) -> PyResult<()> {
        self.done(py, &FileCommand::Unlink { path: Chunk(path.clone()) }, &path)
    }

    fn remove_dir(&self, py: Python<'_>, path: Vec<u8>) -> PyResult<()> {
        self.done(py, &FileCommand::RemoveDir { path: Chunk(path.clone()) }, &path)
    }

    fn remove_tree(&self, py: Python<'_>, path: Vec<u8>) -> PyResult<()> {
        self.done(py, &FileCommand::RemoveTree { path: Chunk(path.clone()) }, &path)
    }

    fn rename(&self, py: Python<'_>, source: Vec<u8>, target: Vec<u8>) -> PyResult<()> {
        self.done(py, &FileCommand::Rename { from: Chunk(source.clone()), to: Chunk(target) }, &source)
    }

    fn symlink(&self, py: Python<'_>, target: Vec<u8>, path: Vec<u8>) -> PyResult<()> {
        self.done(py, &FileCommand::Symlink { target: Chunk(target), path: Chunk(path.clone()) }, &path)
    }

    fn link(&self, py: Python<'_>, target: Vec<u8>, path: Vec<u8>) -> PyResult<()> {
        self.done(py, &FileCommand::Link { target: Chunk(target), path: Chunk(path.clone()) }, &path)
    }

    fn read_link<'py>(&self, py: Python<'py>, path: Vec<u8>) -> PyResult<Bound<'py, PyBytes>> {
        self.target(py, &FileCommand::ReadLink { path: Chunk(path.clone()) }, &path)
    }

    /// The canonical path.
    fn resolve<'py>(&self, py: Python<'py>, path: Vec<u8>) -> PyResult<Bound<'py, PyBytes>> {
        self.target(py, &FileCommand::Resolve { path: Chunk(path.clone()) }, &path)
    }

    fn chmod(&self, py: Python<'_>, path: Vec<u8>, mode: u32) -> PyResult<()> {
        self.done(py, &FileCommand::Chmod { path: Chunk(path.clone()), mode }, &path)
    }

    /// An id of 2**32 - 1 leaves that id as it is.
    fn chown(&self, py: Python<'_>, path: Vec<u8>, uid: u32, gid: u32, follow: bool) -> PyResult<()> {
        self.done(py, &FileCommand::Chown { path: Chunk(path.clone()), uid, gid, follow }, &path)
    }

    /// Access and modification time in nanoseconds since 1970.
    fn set_times(&self, py: Python<'_>, path: Vec<u8>, atime_ns: i64, mtime_ns: i64) -> PyResult<()> {
        self.done(py, &FileCommand::SetTimes { path: Chunk(path.clone()), atime_ns, mtime_ns }, &path)
    }
}
