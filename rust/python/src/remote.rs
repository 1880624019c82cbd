//! A VM whose worker belongs to another process, which hands connections to the guest over.

use std::io::PipeReader;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use crate::descriptors::Unshared;
use crate::errors::{self, HOST_LOST};
use crate::state::{Exit, Shared};
use crate::sys;
use crate::worker::{Connected, Worker};

/// What `Remote.ended` may say; anything else is "ended".
const REASONS: [&str; 15] = [
    "shutdown",
    "guest-power-off",
    "guest-reset",
    "panic",
    "agent-timeout",
    "agent-failed",
    "renew-failed",
    "bad-snapshot",
    "snapshot-incomplete",
    "bad-configuration",
    "engine",
    "unconfined",
    "killed",
    "crashed",
    HOST_LOST,
];

/// Stands for a worker wherever a connection to its guest is all that is needed.
#[pyclass(frozen, module = "supermachine._core")]
pub struct Remote {
    dial: Py<PyAny>,
    shared: Arc<Shared>,
}

impl Remote {
    fn open(&self, py: Python<'_>, port: u32) -> PyResult<Connected> {
        if let Some(exit) = self.shared.exit() {
            return Err(errors::vm_exited(py, &exit));
        }
        let socket = self.dial.bind(py).call1((port,))?;
        let stream = Unshared::new(|| {
            let fd = socket.call_method0("fileno").and_then(|fd| fd.extract())?;
            Ok(UnixStream::from(sys::duplicate(fd)?))
        })?;
        socket.call_method0("close")?;
        Ok((stream, self.shared.clone()))
    }
}

#[pymethods]
impl Remote {
    /// `dial(port)` gives a connected socket of a vsock port of the guest, which is closed here.
    #[new]
    fn new(dial: Py<PyAny>) -> PyResult<Self> {
        Ok(Self { dial, shared: Arc::new(Shared::new()?) })
    }

    /// `(reason, message, console_tail)` once the VM has ended.
    #[getter]
    fn exit(&self) -> Option<(&'static str, String, String)> {
        self.shared.exit().map(|e| (e.reason, e.message, e.console_tail))
    }

    /// Wakes everybody who waits for this VM: it has ended, or cannot be reached any more.
    fn ended(&self, reason: &str, message: String, console_tail: String) {
        end(&self.shared, reason, message, console_tail);
    }

    /// For a thread that waits for the VM's end on behalf of whoever uses it.
    fn watched(&self) -> PyResult<Watched> {
        let gone = Unshared::new(|| self.shared.ended().try_clone())?;
        Ok(Watched { shared: Arc::downgrade(&self.shared), gone })
    }
}

fn end(shared: &Shared, reason: &str, message: String, console_tail: String) {
    let reason = REASONS.into_iter().find(|known| *known == reason).unwrap_or("ended");
    shared.end(|_| Exit { reason, message, console_tail });
}

/// What tells users of a `Remote` of the VM's end, and keeps nothing alive for that.
#[pyclass(frozen, module = "supermachine._core")]
pub struct Watched {
    shared: Weak<Shared>,
    gone: Unshared<PipeReader>,
}

#[pymethods]
impl Watched {
    /// Reads as ended once there is nobody to tell: the VM has ended, or neither the `Remote` nor anything that runs
    /// by it is left.
    fn fileno(&self) -> RawFd {
        self.gone.as_raw_fd()
    }

    /// As `Remote.ended`.
    fn ended(&self, reason: &str, message: String, console_tail: String) {
        if let Some(shared) = self.shared.upgrade() {
            end(&shared, reason, message, console_tail);
        }
    }
}

/// Whatever leads to a guest.
#[derive(FromPyObject)]
pub(crate) enum Machine<'py> {
    Worker(Bound<'py, Worker>),
    Remote(Bound<'py, Remote>),
}

impl Machine<'_> {
    /// A stream to a guest's vsock port. A refused one ends at once.
    pub(crate) fn open(&self, py: Python<'_>, port: u32) -> PyResult<Connected> {
        match self {
            Machine::Worker(worker) => worker.get().open(py, port),
            Machine::Remote(remote) => remote.get().open(py, port),
        }
    }
}
