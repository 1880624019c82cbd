//! The worker process of one VM: started, told what to run, watched until it is gone.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use supermachine_proto::agent::{Chunk, Configure, Identity, Root};
use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::worker::{
    Boot, Capture, Captured, Command, Disk, Engine, Event, ExitReason, PageRange, Restore, Source, Start,
    Stats, Timings,
};

use crate::errors;
use crate::sys::{self, Interest};

/// Bytes of the worker's own stderr that are kept, from the end.
const LOG_TAIL: usize = 16 * 1024;

/// How long a worker that has closed its control socket may take to exit before it is killed.
const REAP_GRACE: Duration = Duration::from_secs(2);

/// How a VM ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// One of the names that [`reason_name`] gives, or "killed" or "crashed" for the worker process itself.
    pub reason: &'static str,
    pub message: String,
    pub console_tail: String,
}

#[derive(Default)]
struct State {
    ready: Option<Timings>,
    exit: Option<Exit>,
    stats: Option<Stats>,
    captured: Option<Result<Captured, String>>,
    /// Whether a capture is under way, be it that nobody waits for its answer any more.
    capturing: bool,
    working_set: Option<Vec<PageRange>>,
    /// Whether [`Worker::kill`] asked for the end.
    killed: bool,
    /// Closed when the VM ends, so that event loops can watch the other end.
    bells: Vec<io::PipeWriter>,
}

/// What the monitor thread and every client of one VM share.
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// How the VM ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.lock().exit.clone()
    }

    /// Waits for the end of the VM.
    pub fn wait_exit(&self, timeout: Duration) -> Option<Exit> {
        self.wait(timeout, |s| s.exit.clone())
    }

    fn wait<T>(&self, timeout: Duration, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The name that Python sees for a reason.
fn reason_name(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Shutdown => "shutdown",
        ExitReason::GuestPowerOff => "guest-power-off",
        ExitReason::GuestReset => "guest-reset",
        ExitReason::Panic => "panic",
        ExitReason::AgentTimeout => "agent-timeout",
        ExitReason::AgentFailed => "agent-failed",
        ExitReason::RenewFailed => "renew-failed",
        ExitReason::BadSnapshot => "bad-snapshot",
        ExitReason::BadConfiguration => "bad-configuration",
        ExitReason::Engine => "engine",
    }
}

fn engine_named(name: &str) -> PyResult<Engine> {
    match name {
        "hvf" => Ok(Engine::Hvf),
        "kvm" => Ok(Engine::Kvm),
        "soft" => Ok(Engine::Soft),
        _ => Err(PyValueError::new_err(format!("{name:?} is not an engine"))),
    }
}

/// Who the guest is; the worker sets the clock as it tells the guest.
fn identity(hostname: String, machine_id: [u8; 16], entropy: Vec<u8>) -> Identity {
    Identity { hostname, machine_id, entropy: Chunk(entropy), wall_clock_ns: 0 }
}

/// The process that owns one VM.
#[pyclass(frozen, module = "supermachine._core")]
pub struct Worker {
    control: Arc<Mutex<UnixStream>>,
    child: Arc<Mutex<Child>>,
    pid: u32,
    shared: Arc<Shared>,
}

/// Makes connections to a guest, from any thread; holds no VM alive.
#[derive(Clone)]
pub struct Dialer {
    control: Arc<Mutex<UnixStream>>,
    shared: Arc<Shared>,
}

impl Dialer {
    /// A stream to a guest's vsock port. A refused one ends at once.
    pub fn open(&self, port: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut bytes = Vec::new();
        frame::encode(&Command::Connect { port }, &mut bytes).map_err(io::Error::other)?;
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        sys::send_with_fd(&control, &bytes, &theirs)?;
        Ok(ours)
    }

    /// A pipe that ends when the VM does.
    pub fn bell(&self) -> io::Result<io::PipeReader> {
        let (reader, writer) = io::pipe()?;
        let mut state = self.shared.lock();
        if state.exit.is_none() {
            state.bells.push(writer);
        }
        Ok(reader)
    }
}

/// A connection's end that the worker took, and what tells how the VM fares.
pub type Connected = (UnixStream, Arc<Shared>);

impl Worker {
    fn send(&self, command: &Command) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame::encode(command, &mut bytes).map_err(io::Error::other)?;
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        control.write_all(&bytes)
    }

    /// A stream to a guest's vsock port. A refused one ends at once.
    pub fn open(&self, py: Python<'_>, port: u32) -> PyResult<Connected> {
        let dialer = self.dialer();
        match py.detach(|| dialer.open(port)) {
            Ok(stream) => Ok((stream, self.shared.clone())),
            Err(error) => Err(self.lost(py, &error)),
        }
    }

    /// What makes connections without this object.
    pub fn dialer(&self) -> Dialer {
        Dialer { control: self.control.clone(), shared: self.shared.clone() }
    }

    /// Waits for the worker's answer; `None` at the time-out, an error when the VM has ended without one.
    fn answer<T: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        take: impl Fn(&mut State) -> Option<T> + Sync + Send,
    ) -> PyResult<Option<T>> {
        let found = sys::wait_for(py, sys::deadline(timeout), |slice| {
            self.shared.wait(slice, |state| match (take(state), &state.exit) {
                (Some(answer), _) => Some(Ok(answer)),
                (None, Some(exit)) => Some(Err(exit.clone())),
                (None, None) => None,
            })
        })?;
        found.transpose().map_err(|exit| errors::vm_exited(py, &exit))
    }

    /// The error for a control socket that does not work: how the VM ended, when it has.
    fn lost(&self, py: Python<'_>, error: &io::Error) -> PyErr {
        let broken = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        let exit = if broken { py.detach(|| self.shared.wait_exit(REAP_GRACE)) } else { None };
        match exit {
            Some(exit) => errors::vm_exited(py, &exit),
            None => PyErr::from(io::Error::new(error.kind(), error.to_string())),
        }
    }
}

#[pymethods]
impl Worker {
    /// Starts the executable `path` and sends it the description of a VM that boots.
    #[staticmethod]
    #[pyo3(signature = (path, *, engine, kernel, initramfs, disks, memory_bytes, vcpus, hostname, machine_id, entropy,
        root_fs, nameservers, volumes=Vec::new(), upper_bytes=0, cmdline=String::new(), boot_timeout_ms=60_000,
        agent=true, environment=Vec::new()))]
    #[allow(clippy::too_many_arguments)] // keywords in Python; a struct would only repeat their names
    fn spawn(
        py: Python<'_>,
        path: PathBuf,
        engine: &str,
        kernel: PathBuf,
        initramfs: PathBuf,
        disks: Vec<(PathBuf, bool)>,
        memory_bytes: u64,
        vcpus: u32,
        hostname: String,
        machine_id: [u8; 16],
        entropy: Vec<u8>,
        root_fs: Option<String>,
        nameservers: Vec<String>,
        volumes: Vec<String>,
        upper_bytes: u64,
        cmdline: String,
        boot_timeout_ms: u64,
        agent: bool,
        environment: Vec<(OsString, OsString)>,
    ) -> PyResult<Self> {
        let root = match root_fs {
            Some(fs) => Root::Overlay { device: "/dev/vda".into(), fs },
            None => Root::Initramfs,
        };
        let start = Start {
            version: supermachine_proto::VERSION,
            engine: engine_named(engine)?,
            source: Source::Boot(Box::new(Boot {
                kernel,
                initramfs,
                cmdline,
                memory_bytes,
                vcpus,
                configure: Configure {
                    identity: identity(hostname, machine_id, entropy),
                    root,
                    nameservers,
                    upper_bytes,
                    mounts: Vec::new(),
                    volumes,
                },
            })),
            disks: disks.into_iter().map(|(path, read_only)| Disk { path, read_only }).collect(),
            boot_timeout_ms,
            agent,
        };
        py.detach(move || launch(path, environment, &Command::Start(Box::new(start)))).map_err(PyErr::from)
    }

    /// Starts the executable `path` and sends it the description of a VM that goes on where a snapshot was taken.
    ///
    /// `files` are a whole snapshot and the diffs after it; `working_set` is `(first page, pages, written)` of what
    /// earlier clones touched.
    #[staticmethod]
    #[pyo3(signature = (path, *, engine, files, disks, hostname, machine_id, entropy, working_set=Vec::new(),
        boot_timeout_ms=60_000, agent=true, environment=Vec::new()))]
    #[allow(clippy::too_many_arguments)] // keywords in Python; a struct would only repeat their names
    fn restore(
        py: Python<'_>,
        path: PathBuf,
        engine: &str,
        files: Vec<PathBuf>,
        disks: Vec<(PathBuf, bool)>,
        hostname: String,
        machine_id: [u8; 16],
        entropy: Vec<u8>,
        working_set: Vec<(u64, u64, bool)>,
        boot_timeout_ms: u64,
        agent: bool,
        environment: Vec<(OsString, OsString)>,
    ) -> PyResult<Self> {
        let working_set = working_set.into_iter();
        let restore = Restore {
            files,
            identity: identity(hostname, machine_id, entropy),
            working_set: working_set
                .map(|(start, count, written)| PageRange { start, count, written })
                .collect(),
        };
        let start = Start {
            version: supermachine_proto::VERSION,
            engine: engine_named(engine)?,
            source: Source::Restore(Box::new(restore)),
            disks: disks.into_iter().map(|(path, read_only)| Disk { path, read_only }).collect(),
            boot_timeout_ms,
            agent,
        };
        py.detach(move || launch(path, environment, &Command::Start(Box::new(start)))).map_err(PyErr::from)
    }

    /// Process id of the worker.
    #[getter]
    fn pid(&self) -> u32 {
        self.pid
    }

    /// `(reason, message, console_tail)` once the VM has ended.
    #[getter]
    fn exit(&self) -> Option<(&'static str, String, String)> {
        self.shared.exit().map(|e| (e.reason, e.message, e.console_tail))
    }

    /// Waits until the guest serves requests: `(step, nanoseconds)` of each step of the start. `None` at the
    /// time-out (seconds). Raises `VMExited` when the VM ends first.
    #[pyo3(signature = (timeout=None))]
    fn wait_ready(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<(String, u64)>>> {
        let found = sys::wait_for(py, sys::deadline(timeout), |slice| {
            self.shared.wait(slice, |s| match (&s.exit, &s.ready) {
                (Some(exit), _) => Some(Err(exit.clone())),
                (None, Some(ready)) => Some(Ok(ready.steps.clone())),
                (None, None) => None,
            })
        })?;
        match found {
            Some(Ok(steps)) => Ok(Some(steps)),
            Some(Err(exit)) => Err(errors::vm_exited(py, &exit)),
            None => Ok(None),
        }
    }

    /// Waits for the end of the VM: `(reason, message, console_tail)`, `None` at the time-out (seconds).
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<(&'static str, String, String)>> {
        let exit = sys::wait_for(py, sys::deadline(timeout), |slice| self.shared.wait_exit(slice))?;
        Ok(exit.map(|e| (e.reason, e.message, e.console_tail)))
    }

    /// A stream socket to a vsock port of the guest, as a descriptor that the caller owns.
    fn connect(&self, py: Python<'_>, port: u32) -> PyResult<i32> {
        let (stream, _) = self.open(py, port)?;
        Ok(OwnedFd::from(stream).into_raw_fd())
    }

    /// Asks for a clean shutdown; `wait()` tells when it is done. No error when the VM has ended already.
    fn shutdown(&self, py: Python<'_>, grace_ms: u32) -> PyResult<()> {
        match py.detach(|| self.send(&Command::Shutdown { grace_ms })) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Ends the worker process, and the VM with it, at once.
    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            self.shared.lock().killed = true;
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            child.kill()
        })
        .map_err(PyErr::from)
    }

    /// Counters of the running VM: exits by kind and instructions executed. `None` at the time-out (seconds).
    #[pyo3(signature = (timeout=None))]
    #[allow(clippy::type_complexity)] // a pair of a list of pairs and a number, as Python sees it
    fn stats(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<(Vec<(String, u64)>, u64)>> {
        self.shared.lock().stats = None;
        py.detach(|| self.send(&Command::Stats)).map_err(|e| self.lost(py, &e))?;
        let stats = self.answer(py, timeout, |state| state.stats.take())?;
        Ok(stats.map(|stats| (stats.exits, stats.instructions)))
    }

    /// Takes a snapshot into the file behind `fd`, which is empty and open for reading and writing; the guest goes on.
    /// `(id, bytes of RAM in the file, nanoseconds that the guest stood still, steps)`; `None` at the time-out
    /// (seconds). With `v8` it is of version 8, whose id is empty and which keeps neither `image` nor `api`. Raises
    /// OSError with what is wrong when no snapshot could be taken.
    #[pyo3(signature = (fd, *, diff=false, v8=false, image=None, api=Vec::new(), timeout=None))]
    #[allow(clippy::type_complexity, clippy::too_many_arguments)] // a tuple and keywords, as Python sees them
    fn capture(
        &self,
        py: Python<'_>,
        fd: i32,
        diff: bool,
        v8: bool,
        image: Option<String>,
        api: Vec<u8>,
        timeout: Option<f64>,
    ) -> PyResult<Option<(Vec<u8>, u64, u64, Vec<(String, u64)>)>> {
        let file = sys::duplicate(fd)?;
        // One at a time: answers do not say which capture they are of.
        let begin = |state: &mut State| (!state.capturing).then(|| state.capturing = true);
        if self.answer(py, timeout, begin)?.is_none() {
            return Ok(None);
        }
        self.shared.lock().captured = None;
        let request = Command::Capture(Box::new(Capture { diff, image, api: Chunk(api), v8 }));
        let sent = py.detach(|| -> io::Result<()> {
            let mut bytes = Vec::new();
            frame::encode(&request, &mut bytes).map_err(io::Error::other)?;
            let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            sys::send_with_fd(&control, &bytes, &file)
        });
        if let Err(error) = sent {
            self.shared.update(|state| state.capturing = false);
            return Err(self.lost(py, &error));
        }
        match self.answer(py, timeout, |state| state.captured.take())? {
            Some(Ok(done)) => Ok(Some((done.id.0, done.data_bytes, done.pause_ns, done.steps))),
            Some(Err(message)) => Err(PyOSError::new_err(message)),
            None => Ok(None),
        }
    }

    /// The pages of RAM that the guest has touched: `(first page, pages, whether written)`, in ascending order; empty
    /// where the host does not tell. `None` at the time-out (seconds).
    #[pyo3(signature = (timeout=None))]
    fn working_set(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<(u64, u64, bool)>>> {
        self.shared.lock().working_set = None;
        py.detach(|| self.send(&Command::WorkingSet)).map_err(|e| self.lost(py, &e))?;
        let ranges = self.answer(py, timeout, |state| state.working_set.take())?;
        Ok(ranges.map(|ranges| ranges.iter().map(|r| (r.start, r.count, r.written)).collect()))
    }

    /// A descriptor, owned by the caller, that reads as ended once the VM has ended.
    fn exit_fd(&self) -> PyResult<i32> {
        Ok(OwnedFd::from(self.dialer().bell()?).into_raw_fd())
    }

    fn __repr__(&self) -> String {
        match self.shared.exit() {
            Some(exit) => format!("<Worker pid={} {}>", self.pid, exit.reason),
            None => format!("<Worker pid={}>", self.pid),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The monitor holds a duplicate of the control socket, so closing ours is not enough to tell the worker.
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = control.shutdown(std::net::Shutdown::Both);
    }
}

fn launch(path: PathBuf, environment: Vec<(OsString, OsString)>, start: &Command) -> io::Result<Worker> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = std::process::Command::new(path);
    // A process group of its own: Ctrl-C on the terminal is for the guest's process, not for the VM.
    command
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env_clear()
        .envs(environment)
        .process_group(0);
    let mut child = command.spawn()?;
    drop(command); // holds the worker's end of the control socket
    let pid = child.id();
    let log = child.stderr.take();
    let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
    let worker = Worker {
        control: Arc::new(Mutex::new(ours.try_clone()?)),
        child: Arc::new(Mutex::new(child)),
        pid,
        shared: shared.clone(),
    };
    let child = worker.child.clone();
    thread::Builder::new()
        .name("supermachine-vm".into())
        .stack_size(128 * 1024)
        .spawn(move || monitor(ours, log, &child, &shared))?;
    // A worker that dies at once breaks the pipe; the monitor then tells why.
    match worker.send(start) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(worker),
    }
}

/// Follows the worker until it is gone and reaped.
fn monitor(control: UnixStream, log: Option<ChildStderr>, child: &Mutex<Child>, shared: &Shared) {
    let mut log = log.map(OwnedFd::from);
    let mut tail = Vec::new();
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut trouble = None;
    loop {
        let interests = [
            Interest::when(true, &control, libc::POLLIN),
            log.as_ref().map_or(Interest::none(), |l| Interest::when(true, l, libc::POLLIN)),
        ];
        let Ok([events, log_events]) = sys::poll(interests, None) else { break };
        if log_events != 0
            && let Some(open) = &log
            && !drain(open, &mut buffer, &mut tail)
        {
            log = None;
        }
        if events == 0 {
            continue;
        }
        match sys::read(&control, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => decoder.push(&buffer[..n]),
        }
        if let Err(error) = events_of(&mut decoder, shared) {
            trouble = Some(format!("the worker broke the protocol: {error}"));
            break;
        }
    }
    // Without the control socket there is no VM: whoever waits is told after the process is reaped, which tells
    // why, and that takes no longer than the grace period.
    let (already, killed) = (shared.exit().is_some(), shared.lock().killed);
    let grace = match (killed, already) {
        (true, _) => Duration::ZERO,
        (false, true) => REAP_GRACE,
        (false, false) => Duration::from_millis(60),
    };
    let status = reap(child, grace);
    if let Some(open) = &log
        && sys::set_nonblocking(open).is_ok()
    {
        while drain(open, &mut buffer, &mut tail) {}
    }
    shared.update(|state| {
        if state.exit.is_none() {
            state.exit = Some(death(state.killed, trouble, status, &tail));
        }
        state.bells.clear();
    });
}

fn events_of(decoder: &mut Decoder, shared: &Shared) -> Result<(), frame::Error> {
    while let Some(event) = decoder.next::<Event>()? {
        shared.update(|state| match event {
            Event::Ready(timings) => state.ready = Some(timings),
            Event::Stats(stats) => state.stats = Some(stats),
            Event::Captured(captured) => {
                (state.capturing, state.captured) = (false, Some(Ok(captured)));
            }
            Event::CaptureFailed { message } => {
                (state.capturing, state.captured) = (false, Some(Err(message)));
            }
            Event::WorkingSet(ranges) => state.working_set = Some(ranges),
            Event::Exited { reason, message, console_tail } => {
                state.exit = Some(Exit { reason: reason_name(reason), message, console_tail });
                state.bells.clear();
            }
        });
    }
    Ok(())
}

/// Appends what there is to read to `tail`, keeping its last bytes. False at the end or when nothing is there.
fn drain(log: &OwnedFd, buffer: &mut [u8], tail: &mut Vec<u8>) -> bool {
    match sys::read(log, buffer) {
        Ok(n) if n > 0 => {
            tail.extend_from_slice(&buffer[..n]);
            let excess = tail.len().saturating_sub(LOG_TAIL);
            tail.drain(..excess);
            true
        }
        _ => false,
    }
}

/// Waits for the process, at first politely, then with SIGKILL.
fn reap(child: &Mutex<Child>, grace: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + grace;
    loop {
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => {}
            Err(_) => return None,
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            return child.wait().ok();
        }
        drop(child);
        thread::sleep(Duration::from_millis(1));
    }
}

/// What to say of a worker that ended without a word.
fn death(killed: bool, trouble: Option<String>, status: Option<ExitStatus>, log: &[u8]) -> Exit {
    let (reason, mut message) = match (killed, trouble, status) {
        (true, _, _) => ("killed", "the VM was killed".to_owned()),
        (_, Some(trouble), _) => ("crashed", trouble),
        (_, _, Some(status)) => match (status.signal(), status.code()) {
            (Some(signal), _) => ("crashed", format!("the VM's worker process was ended by signal {signal}")),
            (_, code) => {
                ("crashed", format!("the VM's worker process exited with status {}", code.unwrap_or(-1)))
            }
        },
        (_, _, None) => ("crashed", "the VM's worker process is gone".to_owned()),
    };
    let log = String::from_utf8_lossy(log);
    let log = log.trim();
    if reason == "crashed" && !log.is_empty() {
        message = format!("{message}; it said: {log}");
    }
    Exit { reason, message, console_tail: String::new() }
}

/// Raised by methods of an object whose other end has been closed by the caller.
pub fn closed(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} is closed"))
}
