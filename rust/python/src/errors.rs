//! From Rust's errors to the classes of `supermachine.errors`.

use std::time::Duration;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::state::Exit;

/// An instance of a class of `supermachine.errors`, ready to raise.
pub(crate) fn instance(
    py: Python<'_>,
    class: &str,
    message: &str,
    fill: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>,
) -> PyErr {
    let make = || -> PyResult<PyErr> {
        let class = py.import("supermachine.errors")?.getattr(class)?;
        let keywords = PyDict::new(py);
        fill(&keywords)?;
        Ok(PyErr::from_value(class.call((message,), Some(&keywords))?))
    };
    make().unwrap_or_else(|error| error)
}

/// The reason of a VM that was on a host which cannot be reached any more.
pub(crate) const HOST_LOST: &str = "host-lost";

/// `VMExited`, or `HostLost`, which is one: the VM ended while something waited for it.
pub(crate) fn vm_exited(py: Python<'_>, exit: &Exit) -> PyErr {
    let class = if exit.reason == HOST_LOST { "HostLost" } else { "VMExited" };
    instance(py, class, &exit.message, |k| {
        k.set_item("reason", exit.reason)?;
        k.set_item("console_tail", &exit.console_tail)
    })
}

/// `AgentError`: the guest's agent closed a connection or broke the protocol while the VM goes on.
pub(crate) fn agent(py: Python<'_>, message: &str) -> PyErr {
    instance(py, "AgentError", message, |_| Ok(()))
}

/// `HostShortage`: the worker could not take a connection. `message` ends with the number of the system's error, by
/// which `shortage.py` names the limit.
pub(crate) fn shortage(py: Python<'_>, message: &str) -> PyErr {
    let make = || -> PyResult<Option<PyErr>> {
        let named = py
            .import("supermachine.shortage")?
            .call_method1("in_words", (message, "the guest's agent cannot be reached"))?;
        Ok((!named.is_none()).then(|| PyErr::from_value(named)))
    };
    make().map_or_else(|error| error, |named| named.unwrap_or_else(|| agent(py, message)))
}

/// A process could not be started in the guest. `kind` names the case.
pub(crate) fn exec_failed(py: Python<'_>, kind: &str, message: &str) -> PyErr {
    let class = match kind {
        "not-found" => "CommandNotFound",
        "not-executable" => "CommandNotExecutable",
        "unknown-user" => "UnknownUser",
        "bad-directory" => "BadWorkingDirectory",
        "invalid" => "InvalidCommand",
        _ => "CommandNotStarted",
    };
    instance(py, class, message, |_| Ok(()))
}

/// `VMTimeout`: the guest did not answer in time.
pub(crate) fn late(py: Python<'_>, timeout: Duration) -> PyErr {
    let message =
        format!("the guest's agent did not answer a file command within {} seconds", timeout.as_secs_f64());
    instance(py, "VMTimeout", &message, |_| Ok(()))
}

/// `ArgumentsTooLong`: what execve(2) says of arguments and an environment that are too long.
pub(crate) fn arguments_too_long(py: Python<'_>, length: usize) -> PyErr {
    let most = supermachine_proto::frame::MAX_FRAME;
    let message = format!(
        "Argument list too long: arguments and environment take {length} bytes, and a guest takes {most} at most"
    );
    too_long(py, &message)
}

/// `ArgumentsTooLong` for one of them.
pub(crate) fn argument_too_long(py: Python<'_>, length: usize, most: usize) -> PyErr {
    too_long(
        py,
        &format!(
            "Argument list too long: an argument or a variable has {length} bytes, and a process takes {most} at most"
        ),
    )
}

fn too_long(py: Python<'_>, message: &str) -> PyErr {
    instance(py, "ArgumentsTooLong", message, |k| {
        k.set_item("cause", std::io::Error::from_raw_os_error(libc::E2BIG).to_string())
    })
}

/// The `OSError` subclass that Python gives this errno, with the path it happened at.
pub(crate) fn os_error(errno: i32, path: &[u8]) -> PyErr {
    Python::attach(|py| {
        let make = || -> PyResult<PyErr> {
            let text = py.import("os")?.getattr("strerror")?.call1((errno,))?;
            let path = String::from_utf8_lossy(path);
            let class = py.get_type::<PyOSError>();
            Ok(PyErr::from_value(class.call1((errno, text, path))?))
        };
        make().unwrap_or_else(|error| error)
    })
}
