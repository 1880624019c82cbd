//! A file that somebody else fills, published when it is whole.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use supermachine_snapshot::publish::Publication as Unpublished;

use crate::snapshot::{not_taken, raise};

/// An empty file of mode 0600 beside its final name, which it gets by `commit` or, at the end of the `with` block,
/// not at all.
#[pyclass(module = "supermachine._core")]
pub struct Publication {
    path: PathBuf,
    unpublished: Option<Unpublished>,
}

#[pymethods]
impl Publication {
    /// Raises `SnapshotExists` when the name is taken, before there is any work to lose.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        match not_taken(&path).and_then(|()| Unpublished::begin(&path)) {
            Ok(unpublished) => Ok(Self { path, unpublished: Some(unpublished) }),
            Err(error) => Err(raise(py, &path, &error)),
        }
    }

    /// The file's descriptor, open for reading and writing until the end of the block.
    fn fileno(&self) -> PyResult<RawFd> {
        let unpublished = self.unpublished.as_ref().ok_or_else(over)?;
        Ok(unpublished.file().as_raw_fd())
    }

    /// Makes the file durable and gives it its name. Raises `SnapshotExists` when somebody else was quicker.
    fn commit(&mut self, py: Python<'_>) -> PyResult<()> {
        let unpublished = self.unpublished.take().ok_or_else(over)?;
        py.detach(|| unpublished.commit(false)).map_err(|error| raise(py, &self.path, &error))
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&mut self, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.unpublished = None;
    }
}

fn over() -> PyErr {
    PyValueError::new_err("the publication is over")
}
