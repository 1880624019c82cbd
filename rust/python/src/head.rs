//! What a snapshot says of itself, without its RAM.

use std::fs::File;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use supermachine_snapshot::v9::Snapshot;

use crate::errors;

/// The section that is the API's own.
const API: &str = "api";

/// `id`, `parent` (hexadecimal, or `None`), `engine`, `architecture`, `vcpus`, `memory_bytes`, `image`, and `api`, the
/// bytes that [`crate::worker::Worker`] was given at the capture. Raises OSError or `BadSnapshot`.
#[pyfunction]
pub fn snapshot_head(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let file = File::open(&path)?;
    let snapshot = py.detach(|| Snapshot::open(&file)).map_err(|error| {
        let message = format!("{} cannot be used as a snapshot: {error}", path.display());
        errors::instance(py, "BadSnapshot", &message, |_| Ok(()))
    })?;
    let identity = snapshot.identity();
    let head = PyDict::new(py);
    head.set_item("id", snapshot.id().to_string())?;
    head.set_item("parent", identity.parent.map(|parent| parent.to_string()))?;
    head.set_item("engine", &identity.engine)?;
    head.set_item("architecture", &identity.architecture)?;
    head.set_item("vcpus", identity.vcpus)?;
    head.set_item("memory_bytes", identity.memory_bytes)?;
    head.set_item("image", &identity.image)?;
    let api = snapshot.section(API, 0).map_or(&[][..], |section| &section.data);
    head.set_item("api", PyBytes::new(py, api))?;
    Ok(head)
}
