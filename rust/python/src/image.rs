//! `convert_image`: layers to one root file system.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use supermachine_image::{Compression, Error, Layer, Limits, Progress, convert};

use crate::errors;
use crate::sys::SIGNAL_INTERVAL_MS;

/// path, offset, length, digest of these bytes, digest of the tar inside, compression.
type LayerTuple = (PathBuf, u64, u64, Option<String>, Option<String>, Option<String>);

fn compression(name: &str) -> Result<Compression, Error> {
    match name {
        "none" | "plain" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        _ => Err(Error::MediaType { media_type: name.to_owned() }),
    }
}

/// Converts layers, lowest first, to an EROFS image at `output`, of at most `max_bytes` of uncompressed data.
///
/// `progress` is called with `(bytes read, bytes in all)`; an exception from it ends the conversion. Gives
/// `image_bytes`, `inodes`, `entries`, `diff_ids` and `dropped_xattrs`.
#[pyfunction]
#[pyo3(signature = (layers, output, max_bytes, progress=None))]
pub(crate) fn convert_image<'py>(
    py: Python<'py>,
    layers: Vec<LayerTuple>,
    output: PathBuf,
    max_bytes: u64,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let layers = layers
        .into_iter()
        .map(|(path, offset, length, digest, diff_id, name)| {
            let compression = name.as_deref().map(compression).transpose()?;
            Ok(Layer { path, offset, length, digest, diff_id, compression })
        })
        .collect::<Result<Vec<_>, Error>>()
        .map_err(|error| image_error(py, &error))?;
    let limits = Limits { max_uncompressed_bytes: max_bytes, ..Limits::default() };
    let summary = watched(py, progress, |progress| convert(&layers, &output, &limits, progress))?;
    let made = PyDict::new(py);
    made.set_item("image_bytes", summary.image_bytes)?;
    made.set_item("inodes", summary.inodes)?;
    made.set_item("entries", summary.entries)?;
    made.set_item("diff_ids", summary.diff_ids)?;
    made.set_item("dropped_xattrs", summary.dropped_xattrs)?;
    Ok(made)
}

/// Decompresses a whole archive (gzip or zstd) to `output`, which is of at most `max_bytes` then.
#[pyfunction]
pub(crate) fn decompress_archive(
    py: Python<'_>,
    path: PathBuf,
    output: PathBuf,
    max_bytes: u64,
) -> PyResult<()> {
    let limits = Limits { max_uncompressed_bytes: max_bytes, ..Limits::default() };
    watched(py, None, |progress| supermachine_image::decompress_archive(&path, &output, &limits, progress))
}

/// Does what takes long without holding the interpreter; signals and an exception from `progress` end it.
fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl Send + FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<T, Error>,
) -> PyResult<T> {
    // Files are made by what has no business with standard streams.
    crate::descriptors::reserve_standard()?;
    let mut stopped = None;
    let mut looked = Instant::now();
    let result = py.detach(|| {
        work(&mut |at: Progress| {
            let last = at.bytes == at.total_bytes;
            if !last && looked.elapsed() < Duration::from_millis(SIGNAL_INTERVAL_MS) {
                return ControlFlow::Continue(());
            }
            looked = Instant::now();
            let told = Python::attach(|py| {
                py.check_signals()?;
                match &progress {
                    Some(progress) => progress.call1(py, (at.bytes, at.total_bytes)).map(drop),
                    None => Ok(()),
                }
            });
            match told {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    stopped = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
    });
    if let Some(error) = stopped {
        return Err(error);
    }
    result.map_err(|error| image_error(py, &error))
}

fn image_error(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error.kind() {
        "disk_full" => "DiskFull",
        "digest_mismatch" | "diff_id_mismatch" => "DigestMismatch",
        "media_type" => "UnsupportedMediaType",
        "limit" => "ImageTooLarge",
        "io" => "CacheError",
        "memory" => "HostShortage",
        _ => "InvalidImage",
    };
    errors::instance(py, class, &error.to_string(), |_| Ok(()))
}

/// SHA-256 of some bytes in hexadecimal digits. hashlib would load OpenSSL for it, which takes longer than all that the
/// start of a virtual machine has to hash.
#[pyfunction]
pub(crate) fn sha256(data: &[u8]) -> String {
    supermachine_image::sha256(data)
}
