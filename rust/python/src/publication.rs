//! A file that somebody else fills, published when it is whole.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use supermachine_snapshot::publish::Publication as Unpublished;

use crate::descriptors::{self, Owner, Watched};
use crate::snapshot::{not_taken, raise};

/// An empty file of mode 0600 beside its final name, which it gets by `commit` or, at the end of the `with` block,
/// not at all.
#[pyclass(module = "supermachine._core")]
pub struct Publication {
    path: PathBuf,
    /// Before the file, whose number is free once it is closed.
    watched: Option<Watched>,
    unpublished: Option<Unpublished>,
    owner: Owner,
}

impl Publication {
    /// Removes what has not been published; in a process that was forked from the owner's, which is still at it,
    /// nothing.
    fn give_up(&mut self) {
        self.watched = None;
        let left = self.unpublished.take();
        if !self.owner.is_here() {
            std::mem::forget(left);
        }
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[pymethods]
impl Publication {
    /// Raises `SnapshotExists` when the name is taken, before there is any work to lose.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        descriptors::reserve_standard()?;
        match not_taken(&path).and_then(|()| Unpublished::begin(&path)) {
            Ok(unpublished) => {
                let watched = Some(Watched::new(unpublished.file()));
                Ok(Self { path, watched, unpublished: Some(unpublished), owner: Owner::this() })
            }
            Err(error) => Err(raise(py, &path, &error)),
        }
    }

    /// The file's descriptor, open for reading and writing until the end of the block.
    fn fileno(&self) -> PyResult<RawFd> {
        let unpublished = self.unpublished.as_ref().ok_or_else(over)?;
        Ok(unpublished.file().as_raw_fd())
    }

    /// Makes the file durable and gives it its name. Raises `SnapshotExists` when somebody else was quicker. Does
    /// nothing in a process that was forked from the owner's.
    fn commit(&mut self, py: Python<'_>) -> PyResult<()> {
        if !self.owner.is_here() {
            return Ok(());
        }
        let unpublished = self.unpublished.take().ok_or_else(over)?;
        self.watched = None;
        py.detach(|| unpublished.commit(false)).map_err(|error| raise(py, &self.path, &error))
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&mut self, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.give_up();
    }
}

fn over() -> PyErr {
    PyValueError::new_err("the publication is over")
}
