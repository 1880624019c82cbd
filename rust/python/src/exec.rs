//! `Exec`: one process in the guest.

use std::io::PipeReader;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use supermachine_proto::agent::{self, Chunk, ExecInput, ExitStatus, REQUEST_PORT, Request, WindowSize};
use supermachine_proto::frame;

use crate::descriptors;
use crate::errors;
use crate::pump::{Command, Handle, Outcome, Pump, Sink, Source};
use crate::remote::Machine;
use crate::sys;

/// Bytes of an argument or a variable at most, the NUL at its end included (Linux's MAX_ARG_STRLEN, execve(2)).
const MAX_WORD: usize = 128 * 1024;

/// A process in the guest. Its output goes where `start` was told; dropping the object leaves it running.
#[pyclass(frozen, module = "supermachine._core")]
pub struct Exec {
    handle: Arc<Handle>,
    pipes: [Option<RawFd>; 3],
}

/// What `stdin=`, `stdout=` and `stderr=` may say.
#[derive(FromPyObject)]
enum Stream {
    /// A descriptor; it is duplicated, the caller keeps its own.
    Fd(RawFd),
    /// "null", "pipe" or "buffer".
    Word(String),
    /// Input that is known already.
    Bytes(PyBackedBytes),
}

impl Exec {
    fn check<T>(py: Python<'_>, outcome: Outcome, ok: impl FnOnce(ExitStatus) -> T) -> PyResult<T> {
        match outcome {
            Outcome::Exited(status) => Ok(ok(status)),
            Outcome::Failed { kind, message } => Err(errors::exec_failed(py, kind, &message)),
            Outcome::VmExited(exit) => Err(errors::vm_exited(py, &exit)),
            Outcome::Lost(message) => Err(errors::agent(py, &message)),
            Outcome::Shortage(message) => Err(errors::shortage(py, &message)),
        }
    }
}

fn returncode(status: ExitStatus) -> i32 {
    match status {
        ExitStatus::Code(code) => code,
        ExitStatus::Signal(signal) => -signal,
        ExitStatus::TimedOut => -libc::SIGKILL,
    }
}

fn output(stream: Option<Stream>) -> PyResult<(Sink, Option<PipeReader>)> {
    Ok(match stream {
        None => (Sink::Null, None),
        Some(Stream::Fd(fd)) => (Sink::Fd(sys::duplicate(fd)?), None),
        Some(Stream::Word(word)) => match word.as_str() {
            "null" => (Sink::Null, None),
            "buffer" => (Sink::Buffer, None),
            "pipe" => {
                let (reader, writer) = descriptors::pipe()?;
                sys::set_nonblocking(&writer)?;
                (Sink::Pipe(Arc::new(writer)), Some(reader.release()))
            }
            _ => {
                return Err(PyValueError::new_err(format!(
                    "{word:?} is not \"null\", \"pipe\" or \"buffer\""
                )));
            }
        },
        Some(Stream::Bytes(_)) => return Err(PyValueError::new_err("bytes are no place for output")),
    })
}

#[pymethods]
impl Exec {
    /// Starts a process. `stdin` is bytes, a descriptor, "pipe" or "null"; `stdout` and `stderr` are a descriptor,
    /// "pipe", "buffer" (for `take_output`) or "null"; `stderr` may be "stdout" for where a descriptor or "pipe" goes.
    /// `tty` is `(rows, columns)`.
    #[staticmethod]
    #[pyo3(signature = (worker, args, *, env, cwd=Vec::new(), user=String::new(), tty=None, stdin=None,
        stdout=None, stderr=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keywords in Python; a struct would only repeat their names"
    )]
    fn start(
        py: Python<'_>,
        worker: Machine<'_>,
        args: Vec<Vec<u8>>,
        env: Vec<Vec<u8>>,
        cwd: Vec<u8>,
        user: String,
        tty: Option<(u16, u16)>,
        stdin: Option<Stream>,
        stdout: Option<Stream>,
        stderr: Option<Stream>,
    ) -> PyResult<Self> {
        descriptors::reserve_standard()?;
        let (source, stdin_pipe) = match stdin {
            None => (Source::None, None),
            Some(Stream::Bytes(bytes)) => (Source::Bytes(bytes), None),
            Some(Stream::Fd(fd)) => (Source::Fd(sys::duplicate(fd)?), None),
            Some(Stream::Word(word)) => match word.as_str() {
                "null" => (Source::None, None),
                "pipe" => {
                    let (reader, writer) = descriptors::pipe()?;
                    (Source::Pipe(reader), Some(OwnedFd::from(writer.release())))
                }
                _ => return Err(PyValueError::new_err(format!("{word:?} is not \"null\" or \"pipe\""))),
            },
        };
        let (stdout, stdout_pipe) = output(stdout)?;
        let (stderr, stderr_pipe) = match (&stderr, &stdout) {
            (Some(Stream::Word(word)), Sink::Fd(fd)) if word == "stdout" => (Sink::Fd(fd.try_clone()?), None),
            (Some(Stream::Word(word)), Sink::Pipe(pipe)) if word == "stdout" => {
                (Sink::Pipe(pipe.clone()), None)
            }
            (Some(Stream::Word(word)), _) if word == "stdout" => (Sink::Null, None),
            _ => output(stderr)?,
        };
        // The kernel would say so too, as a process that did not start.
        if let Some(longest) = args.iter().chain(&env).map(|word| word.len() + 1).max()
            && longest > MAX_WORD
        {
            return Err(errors::argument_too_long(py, longest - 1, MAX_WORD - 1));
        }
        let request = Request::Exec(agent::Exec {
            args: args.into_iter().map(Chunk).collect(),
            env: env.into_iter().map(Chunk).collect(),
            cwd: Chunk(cwd),
            user,
            tty: tty.map(|(rows, cols)| WindowSize { rows, cols }),
            stdin: !matches!(source, Source::None),
            timeout_ms: 0,
        });
        let mut bytes = Vec::new();
        frame::encode(&request, &mut bytes).map_err(|error| match error {
            // What execve(2) says of arguments and environment that are too long.
            frame::Error::TooLong { length } => errors::arguments_too_long(py, length),
            error => errors::agent(py, &error.to_string()),
        })?;
        let (stream, vm) = worker.open(py, REQUEST_PORT)?;
        let (pump, handle) = Pump::new(stream, vm, bytes, source, stdout, stderr)?;
        thread::Builder::new()
            .name("supermachine-exec".into())
            .stack_size(128 * 1024)
            .spawn(move || pump.run())?;
        let pipes = [stdin_pipe, stdout_pipe.map(OwnedFd::from), stderr_pipe.map(OwnedFd::from)]
            .map(|fd| fd.map(IntoRawFd::into_raw_fd));
        Ok(Self { handle, pipes })
    }

    /// The caller's ends of the pipes for stdin, stdout and stderr. The caller owns them: look once.
    #[getter]
    fn pipes(&self) -> (Option<RawFd>, Option<RawFd>, Option<RawFd>) {
        let [stdin, stdout, stderr] = self.pipes;
        (stdin, stdout, stderr)
    }

    /// Process id in the guest; `None` before it has started.
    #[getter]
    fn pid(&self) -> Option<u32> {
        self.handle.pid()
    }

    /// Waits until the process runs: its id in the guest, `None` at the time-out (seconds).
    #[pyo3(signature = (timeout=None))]
    fn wait_started(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<u32>> {
        let deadline = sys::deadline(timeout);
        match sys::wait_for(py, deadline, |slice| self.handle.started(slice))? {
            None => Ok(None),
            Some(Ok(pid)) => Ok(Some(pid)),
            Some(Err(outcome)) => Self::check(py, outcome, |_| None),
        }
    }

    /// The return code as `subprocess` has it (negative for a signal), once the process has ended and its output
    /// is where it belongs; `None` at the time-out (seconds). Raises what kept it from running or ended the VM.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        let deadline = sys::deadline(timeout);
        match sys::wait_for(py, deadline, |slice| self.handle.outcome(slice))? {
            None => Ok(None),
            Some(outcome) => Self::check(py, outcome, |status| Some(returncode(status))),
        }
    }

    /// Output in "buffer" streams so far, taken out: stdout and stderr.
    fn take_output<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
        let (stdout, stderr) = self.handle.take_output();
        (PyBytes::new(py, &stdout), PyBytes::new(py, &stderr))
    }

    /// Sends a Linux signal number to the process group.
    fn send_signal(&self, signal: i32) {
        self.handle.command(Command::Input(ExecInput::Signal(signal)));
    }

    /// Tells the terminal its size.
    fn resize(&self, rows: u16, columns: u16) {
        self.handle.command(Command::Input(ExecInput::Resize(WindowSize { rows, cols: columns })));
    }

    /// Closes the connection: the agent kills the process group, and `wait()` answers at once.
    fn close(&self) {
        self.handle.command(Command::Close);
    }

    /// A descriptor, owned by the caller, that reads as ended once `wait()` would not wait.
    fn done_fd(&self) -> PyResult<RawFd> {
        Ok(OwnedFd::from(self.handle.bell()?).into_raw_fd())
    }
}
