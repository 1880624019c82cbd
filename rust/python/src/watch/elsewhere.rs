//! Where hosts have no inotify(7), and guests no shares: nothing is watched.

use std::path::PathBuf;

use pyo3::prelude::*;

use crate::errors;
use crate::worker::Worker;

/// What no share is there for.
#[pyclass(frozen)]
pub(crate) struct Watch;

#[pymethods]
impl Watch {
    fn wait(&self) -> Option<(bool, bool)> {
        None
    }
}

/// Raises NotSupported.
#[pyfunction]
pub(crate) fn watch_share(
    py: Python<'_>,
    _worker: &Bound<'_, Worker>,
    _share: u32,
    path: PathBuf,
) -> PyResult<Watch> {
    let message = format!("{} cannot be watched: hosts other than Linux watch no shares yet", path.display());
    Err(errors::instance(py, "NotSupported", &message, |_| Ok(())))
}
