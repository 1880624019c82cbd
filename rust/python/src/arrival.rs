//! Messages to a worker whose memory is still on its way, and what it says of the pages that it waits for.

use std::sync::Mutex;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use supermachine_proto::arrival::{Arrived, Awaited, MAX_STRETCHES};
use supermachine_proto::frame::{self, Decoder};
use supermachine_support::lock;

/// First page, end.
type Run = (u64, u64);

/// What a worker is told: `missing`, `begin`, `pages`, `all`, or `lost` with the reason. `runs` are pages of RAM.
#[pyfunction]
#[pyo3(signature = (kind, runs=vec![], why=""))]
pub(crate) fn arrival_message(kind: &str, runs: Vec<Run>, why: &str) -> PyResult<Vec<u8>> {
    let stretches: Vec<_> = runs.into_iter().map(|(start, end)| (start, end.saturating_sub(start))).collect();
    let several = |of: fn(Vec<(u64, u64)>) -> Arrived| {
        stretches.chunks(MAX_STRETCHES).map(|some| of(some.to_vec())).collect::<Vec<_>>()
    };
    let messages = match kind {
        "missing" => several(Arrived::Missing),
        "begin" => vec![Arrived::Begin],
        "pages" => several(Arrived::Pages),
        "all" => vec![Arrived::All],
        "lost" => vec![Arrived::Lost(why.to_owned())],
        other => return Err(PyValueError::new_err(format!("{other:?} is no message of an arrival"))),
    };
    let mut bytes = vec![];
    for message in messages {
        frame::encode(&message, &mut bytes).map_err(|e| PyValueError::new_err(e.to_string()))?;
    }
    Ok(bytes)
}

/// Reads which pages of RAM a worker waits for.
#[pyclass(module = "supermachine._core", frozen)]
#[derive(Default)]
pub(crate) struct AwaitedPages(Mutex<Decoder>);

#[pymethods]
impl AwaitedPages {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The pages that are named by what has come. Raises `ValueError` for what no worker says.
    fn push(&self, data: &[u8]) -> PyResult<Vec<u64>> {
        let mut decoder = lock(&self.0);
        decoder.push(data);
        let mut pages = vec![];
        while let Some(Awaited { page }) = decoder.next().map_err(|e| PyValueError::new_err(e.to_string()))? {
            pages.push(page);
        }
        Ok(pages)
    }
}
