//! What the host changes in a share, told to the guest that has it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rustix::fs::{Mode, OFlags};
use supermachine_proto::agent::{AttachReply, Change, Changes, REQUEST_PORT, Request};
use supermachine_storage::watch::{self, MAX_DIRECTORIES, Tree};

use crate::connection::Connection;
use crate::descriptors::Unshared;
use crate::errors;
use crate::sys::{self, Interest};
use crate::worker::Worker;

/// How long what was taken away may take to come by another name.
const UNDECIDED: Duration = Duration::from_millis(10);
/// Bytes of paths in one message, and what a change has beside.
const BATCH: usize = 64 << 10;
const BESIDE: usize = 32;

/// A share that is watched.
#[pyclass(frozen)]
pub(crate) struct Watch {
    share: u32,
    /// One thread follows it.
    state: Mutex<(Tree<Unshared<OwnedFd>>, Connection)>,
}

/// Watches the share at this place among the worker's, which is at `path` on the host, and has the guest's agent tell
/// its kernel of changes; `Watch.wait` does it. Raises AgentError, and OSError: ENOSPC where the system watches no more
/// directories for this user, EDQUOT for more than can be watched.
#[pyfunction]
pub(crate) fn watch_share(
    py: Python<'_>,
    worker: &Bound<'_, Worker>,
    share: u32,
    path: PathBuf,
) -> PyResult<Watch> {
    let made = || {
        let inotify = Unshared::new(watch::descriptor)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let top = Unshared::new(|| Ok(rustix::fs::open(&path, flags, Mode::empty())?))?;
        Tree::new(inotify, top, MAX_DIRECTORIES)
    };
    let tree = py.detach(made).map_err(|error| match error.kind() {
        io::ErrorKind::QuotaExceeded => errors::os_error(libc::EDQUOT, path.as_os_str().as_encoded_bytes()),
        _ => error.into(),
    })?;
    let (stream, vm) = worker.get().open(py, REQUEST_PORT)?;
    // It waits as long as the guest lives, and a guest may stand still.
    let mut connection = Connection::new(stream, vm, Duration::MAX)?;
    connection.send(py, &Request::Watch)?;
    answered(py, &mut connection)?;
    Ok(Watch { share, state: Mutex::new((tree, connection)) })
}

fn answered(py: Python<'_>, connection: &mut Connection) -> PyResult<()> {
    match connection.receive(py)? {
        AttachReply::Done => Ok(()),
        AttachReply::Failed { message } => Err(errors::agent(py, &message)),
    }
}

#[pymethods]
impl Watch {
    /// Tells of changes until something is to be known: `(lost, unwatched)`, whether some came too fast to be told and
    /// whether there are directories that are not watched. ``None`` when the guest has ended.
    fn wait(&self, py: Python<'_>) -> PyResult<Option<(bool, bool)>> {
        let mut state =
            self.state.try_lock().map_err(|_| PyRuntimeError::new_err("another thread follows it"))?;
        let (tree, connection) = &mut *state;
        loop {
            let timeout = tree.is_undecided().then_some(UNDECIDED);
            let ready = py.detach(|| {
                sys::poll(
                    [
                        Interest::when(true, tree.descriptor(), libc::POLLIN),
                        Interest::when(true, connection.stream(), libc::POLLIN),
                    ],
                    timeout,
                )
            })?;
            // The agent says nothing unasked.
            if ready[1] != 0 {
                return Ok(None);
            }
            if ready[0] == 0 && timeout.is_none() {
                continue;
            }
            let read = py.detach(|| tree.read())?;
            for changes in self.messages(read.changes) {
                connection.send(py, &changes)?;
                answered(py, connection)?;
            }
            if read.lost || read.unwatched {
                return Ok(Some((read.lost, read.unwatched)));
            }
        }
    }
}

impl Watch {
    /// As messages that fit.
    fn messages(&self, changes: Vec<Change>) -> Vec<Changes> {
        let (mut messages, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
        for change in changes {
            bytes += change.path.0.len() + change.to.0.len() + BESIDE;
            if bytes > BATCH {
                messages.push(std::mem::take(&mut batch));
                bytes = 0;
            }
            batch.push(change);
        }
        messages.push(batch);
        messages.retain(|changes| !changes.is_empty());
        messages.into_iter().map(|changes| Changes { share: self.share, changes }).collect()
    }
}
