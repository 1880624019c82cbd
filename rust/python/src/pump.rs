//! Moves the bytes of one running process between its connection and the caller's descriptors or buffers.
//!
//! One thread per process polls everything at once. A reader that does not read holds back only its own stream
//! up to [`HELD`] bytes; beyond that the connection is not read either, and the guest's process blocks on its
//! pipe as it would here.

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::pybacked::PyBackedBytes;
use supermachine_proto::agent::{Chunk, ExecInput, ExecOutput, ExitStatus, STDIN_WINDOW};
use supermachine_proto::frame::{self, Decoder, MAX_DATA};
use supermachine_support::lock;

use crate::descriptors::{self, Unshared};
use crate::state::{Exit, Shared};
use crate::sys::{self, Interest};

/// Bytes of one output stream that are held for a reader that does not read.
const HELD: usize = 1024 * 1024;
/// Bytes that poll(2)'s POLLOUT promises to take from a blocking descriptor (PIPE_BUF on Linux; 512 on macOS is
/// the least POSIX allows, but its pipes take this many as well).
const SURE_WRITE: usize = 4096;
/// Characters of an agent's message that are kept.
const MESSAGE: usize = 4096;

/// Where an output stream goes.
pub(crate) enum Sink {
    /// Nowhere.
    Null,
    /// Into memory, for whoever takes it.
    Buffer,
    /// To a descriptor of the caller's.
    Fd(OwnedFd),
    /// The writing end of a pipe made here, which is non-blocking.
    Pipe(Arc<Unshared<PipeWriter>>),
}

/// Where stdin comes from.
pub(crate) enum Source {
    None,
    Bytes(PyBackedBytes),
    /// A descriptor of the caller's.
    Fd(OwnedFd),
    /// The reading end of a pipe made here.
    Pipe(Unshared<PipeReader>),
}

/// How a process ended, as far as the host can know.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Exited(ExitStatus),
    Failed {
        kind: &'static str,
        message: String,
    },
    /// The VM ended first.
    VmExited(Exit),
    /// The connection ended, the VM goes on.
    Lost(String),
    /// The worker had no descriptor left for the connection.
    Shortage(String),
}

#[derive(Default)]
struct Progress {
    pid: Option<u32>,
    outcome: Option<Outcome>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    commands: VecDeque<Command>,
    /// Who waits with poll(2) has the first of them; the second is closed with the outcome.
    bell: Option<(PipeReader, Unshared<PipeWriter>)>,
}

/// What a caller can ask of a running pump.
pub(crate) enum Command {
    Input(ExecInput),
    /// Close the connection; the agent kills the process group.
    Close,
}

/// The caller's side of a pump.
pub(crate) struct Handle {
    progress: Mutex<Progress>,
    changed: Condvar,
    /// Wakes the pump; none any more once the outcome is known.
    wake: Mutex<Option<Unshared<PipeWriter>>>,
    vm: Arc<Shared>,
}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait<T>(&self, timeout: Duration, mut ready: impl FnMut(&mut Progress) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut progress = self.lock();
        loop {
            if let Some(value) = ready(&mut progress) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            progress = self.changed.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The outcome, once it is known and the caller's descriptors have all output.
    pub(crate) fn outcome(&self, timeout: Duration) -> Option<Outcome> {
        if let Some(exit) = self.vm.elsewhere() {
            return Some(Outcome::VmExited(exit));
        }
        self.wait(timeout, |p| p.outcome.clone())
    }

    /// The process id in the guest, or the outcome when it came first.
    pub(crate) fn started(&self, timeout: Duration) -> Option<Result<u32, Outcome>> {
        if let Some(exit) = self.vm.elsewhere() {
            return Some(Err(Outcome::VmExited(exit)));
        }
        self.wait(timeout, |p| match (p.pid, &p.outcome) {
            (Some(pid), _) => Some(Ok(pid)),
            (None, Some(outcome)) => Some(Err(outcome.clone())),
            (None, None) => None,
        })
    }

    /// Process id in the guest, once it has one.
    pub(crate) fn pid(&self) -> Option<u32> {
        if self.vm.elsewhere().is_some() { None } else { self.lock().pid }
    }

    /// Output collected so far, taken out: stdout and stderr.
    pub(crate) fn take_output(&self) -> (Vec<u8>, Vec<u8>) {
        if self.vm.elsewhere().is_some() {
            return Default::default();
        }
        let mut progress = self.lock();
        (std::mem::take(&mut progress.stdout), std::mem::take(&mut progress.stderr))
    }

    /// Queues a command. Without effect once the process has ended.
    pub(crate) fn command(&self, command: Command) {
        if self.vm.elsewhere().is_some() {
            return;
        }
        if let Some(wake) = &*lock(&self.wake) {
            self.lock().commands.push_back(command);
            // A full pipe wakes the pump as well as one byte more would.
            let _ = (&**wake).write(&[1]);
        }
    }

    /// A pipe that ends when the outcome is known.
    pub(crate) fn bell(&self) -> io::Result<PipeReader> {
        if let Some(exit) = self.vm.elsewhere() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, exit.message));
        }
        let mut progress = self.lock();
        if let Some((reader, _)) = &progress.bell {
            return reader.try_clone();
        }
        let (reader, writer) = descriptors::pipe()?;
        let reader = reader.release();
        if progress.outcome.is_none() {
            progress.bell = Some((reader.try_clone()?, writer));
        }
        Ok(reader)
    }
}

/// An output stream's sink, with what is held for it.
struct Out {
    sink: Sink,
    held: VecDeque<u8>,
    regular: bool,
    /// Whether bytes that find no room are dropped: a diagnostic that cannot be printed ends no process.
    diagnostics: bool,
    broken: bool,
    signalled: bool,
}

impl Out {
    fn new(sink: Sink, diagnostics: bool) -> Self {
        let regular = matches!(&sink, Sink::Fd(fd) if sys::is_regular(fd));
        Self { sink, held: VecDeque::new(), regular, diagnostics, broken: false, signalled: false }
    }

    fn interest(&self) -> Interest {
        match &self.sink {
            Sink::Fd(fd) => Interest::when(!self.held.is_empty(), fd, libc::POLLOUT),
            Sink::Pipe(pipe) => Interest::when(!self.held.is_empty(), &**pipe, libc::POLLOUT),
            Sink::Null | Sink::Buffer => Interest::none(),
        }
    }

    /// Whether a write may wait for a reader.
    fn may_block(&self) -> bool {
        matches!(self.sink, Sink::Fd(_)) && !self.regular
    }

    /// Writes what the descriptor takes without blocking.
    fn flush(&mut self) {
        let fd = match &self.sink {
            Sink::Fd(fd) => fd.as_fd(),
            Sink::Pipe(pipe) => pipe.as_fd(),
            Sink::Null | Sink::Buffer => return,
        };
        let may_block = self.may_block();
        while !self.held.is_empty() {
            let most = if may_block { SURE_WRITE } else { MAX_DATA };
            let (front, _) = self.held.as_slices();
            match sys::write(&fd, &front[..front.len().min(most)]) {
                Ok(n @ 1..) => drop(self.held.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What is not open for writing is as one that is closed, and that is as /dev/null.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
                    self.sink = Sink::Null;
                    self.held.clear();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.broken = true;
                    self.held.clear();
                }
                // There is no room, or the file takes nothing, as /proc/PID/mem of a process that is gone.
                Ok(_) | Err(_) => {
                    self.broken = !self.diagnostics;
                    self.held.clear();
                }
            }
            // POLLOUT has promised one write only to a descriptor that blocks.
            if may_block {
                return;
            }
        }
    }
}

/// One process's pump; [`Pump::run`] is its thread.
pub(crate) struct Pump {
    stream: Unshared<UnixStream>,
    handle: Arc<Handle>,
    vm: Arc<Shared>,
    wake: Unshared<PipeReader>,
    decoder: Decoder,
    outgoing: VecDeque<u8>,
    source: Source,
    source_position: usize,
    /// Bytes of stdin that may still be sent.
    window: usize,
    stdout: Out,
    stderr: Out,
    ended: Option<Outcome>,
    closing: bool,
    /// Whether the process runs. Before it does, nothing is taken from a descriptor of the caller's: who has no process
    /// for it would have lost it.
    started: bool,
}

impl Pump {
    /// A pump over a connection, with the first message already encoded in `request`.
    pub(crate) fn new(
        stream: Unshared<UnixStream>,
        vm: Arc<Shared>,
        request: Vec<u8>,
        source: Source,
        stdout: Sink,
        stderr: Sink,
    ) -> io::Result<(Self, Arc<Handle>)> {
        stream.set_nonblocking(true)?;
        let (wake, waker) = descriptors::pipe()?;
        sys::set_nonblocking(&wake)?;
        sys::set_nonblocking(&waker)?;
        let handle = Arc::new(Handle {
            progress: Mutex::default(),
            changed: Condvar::new(),
            wake: Mutex::new(Some(waker)),
            vm: vm.clone(),
        });
        let pump = Self {
            stream,
            handle: handle.clone(),
            vm,
            wake,
            decoder: Decoder::default(),
            outgoing: request.into(),
            source,
            source_position: 0,
            window: STDIN_WINDOW as usize,
            stdout: Out::new(stdout, false),
            stderr: Out::new(stderr, true),
            ended: None,
            closing: false,
            started: false,
        };
        Ok((pump, handle))
    }

    /// Moves bytes until the process has ended and its output is delivered.
    pub(crate) fn run(mut self) {
        let mut buffer = vec![0; MAX_DATA];
        loop {
            let reading =
                self.ended.is_none() && self.stdout.held.len() < HELD && self.stderr.held.len() < HELD;
            if self.ended.is_some() && self.stdout.held.is_empty() && self.stderr.held.is_empty() {
                break;
            }
            // A VM that has ended delivers what it sent and no more; a reader that stands still must not keep
            // those who wait from hearing of it.
            if self.ended.is_none() && !reading && self.vm.exit().is_some() {
                self.end(None);
            }
            let mut stream_events = if reading { libc::POLLIN } else { 0 };
            if !self.outgoing.is_empty() && self.ended.is_none() {
                stream_events |= libc::POLLOUT;
            }
            let interests = [
                Interest::when(stream_events != 0, &*self.stream, stream_events),
                Interest::when(true, &self.wake, libc::POLLIN),
                match &self.source {
                    Source::Fd(fd) => Interest::when(self.started && self.may_send(), fd, libc::POLLIN),
                    Source::Pipe(pipe) => Interest::when(self.may_send(), pipe, libc::POLLIN),
                    Source::None | Source::Bytes(_) => Interest::none(),
                },
                self.stdout.interest(),
                self.stderr.interest(),
            ];
            let timeout = (!reading).then_some(Duration::from_millis(50));
            let Ok([stream, wake, source, out, err]) = sys::poll(interests, timeout) else {
                self.end(Some("poll failed".to_owned()));
                break;
            };
            if wake != 0 {
                let _ = sys::read(&self.wake, &mut buffer);
            }
            self.take_commands();
            if out != 0 {
                self.stdout.flush();
            }
            if err != 0 {
                self.stderr.flush();
            }
            if reading && stream & !libc::POLLOUT != 0 {
                self.receive(&mut buffer);
            }
            if self.ended.is_some() {
                self.publish();
                continue;
            }
            self.feed(source != 0, &mut buffer);
            self.transmit();
        }
        self.publish();
        // The pipes end here, after the outcome is known: whoever reads to the end finds it at once.
    }

    fn may_send(&self) -> bool {
        self.ended.is_none() && self.window > 0 && self.outgoing.len() < 2 * MAX_DATA
    }

    fn take_commands(&mut self) {
        let commands = std::mem::take(&mut self.handle.lock().commands);
        for command in commands {
            match command {
                Command::Input(input) => self.post(&input),
                Command::Close => {
                    self.closing = true;
                    let _ = self.stream.shutdown(std::net::Shutdown::Both);
                }
            }
        }
    }

    fn post(&mut self, input: &ExecInput) {
        let mut bytes = Vec::new();
        // An input is at most MAX_DATA and some bytes, which always fits a frame.
        if frame::encode(input, &mut bytes).is_ok() {
            self.outgoing.extend(bytes);
        }
    }

    fn feed(&mut self, readable: bool, buffer: &mut [u8]) {
        while self.may_send() {
            let most = self.window.min(MAX_DATA);
            match &mut self.source {
                Source::None => return,
                Source::Bytes(bytes) => {
                    let rest = &bytes[self.source_position..];
                    if rest.is_empty() {
                        self.source = Source::None;
                        self.post(&ExecInput::StdinEnd);
                        return;
                    }
                    let part = rest[..rest.len().min(most)].to_vec();
                    self.source_position += part.len();
                    self.window -= part.len();
                    self.post(&ExecInput::Stdin(Chunk(part)));
                }
                Source::Fd(_) | Source::Pipe(_) => {
                    if !readable {
                        return;
                    }
                    let fd = match &self.source {
                        Source::Fd(fd) => fd.as_fd(),
                        Source::Pipe(pipe) => pipe.as_fd(),
                        Source::None | Source::Bytes(_) => return,
                    };
                    match sys::read(&fd, &mut buffer[..most]) {
                        Ok(n) if n > 0 => {
                            self.window -= n;
                            let part = buffer[..n].to_vec();
                            self.post(&ExecInput::Stdin(Chunk(part)));
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        _ => {
                            self.source = Source::None;
                            self.post(&ExecInput::StdinEnd);
                        }
                    }
                    return;
                }
            }
        }
    }

    fn transmit(&mut self) {
        while !self.outgoing.is_empty() {
            let (front, _) = self.outgoing.as_slices();
            match (&*self.stream).write(front) {
                Ok(n) => drop(self.outgoing.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The reading side tells what became of the connection, with what was sent before it.
                Err(_) => return self.outgoing.clear(),
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        match sys::read(&*self.stream, buffer) {
            Ok(0) => return self.end(None),
            Ok(n) => self.decoder.push(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.end(None),
        }
        loop {
            match self.decoder.next::<ExecOutput>() {
                Ok(Some(message)) => self.handle_message(message),
                Ok(None) => return,
                Err(error) => return self.end(Some(error.to_string())),
            }
            if self.ended.is_some() {
                return;
            }
        }
    }

    fn handle_message(&mut self, message: ExecOutput) {
        match message {
            ExecOutput::Started { pid } => {
                self.started = true;
                self.handle.update(|p| p.pid = Some(pid));
            }
            ExecOutput::Stdout(chunk) => self.output(false, &chunk.0),
            ExecOutput::Stderr(chunk) => self.output(true, &chunk.0),
            ExecOutput::StdinConsumed(n) => {
                self.window = self.window.saturating_add(n as usize).min(STDIN_WINDOW as usize);
            }
            ExecOutput::Exited(status) if is_possible(status) => self.ended = Some(Outcome::Exited(status)),
            ExecOutput::Exited(status) => self.end(Some(format!("no process ends with {status:?}"))),
            ExecOutput::Failed { kind, message } => {
                let message = message.chars().take(MESSAGE).collect();
                self.ended = Some(Outcome::Failed { kind: kind_name(kind), message });
            }
        }
    }

    fn output(&mut self, stderr: bool, bytes: &[u8]) {
        let out = if stderr { &mut self.stderr } else { &mut self.stdout };
        match out.sink {
            Sink::Null => {}
            Sink::Buffer => {
                // Nobody waits for output alone, so nobody is woken.
                let mut progress = self.handle.lock();
                let buffer = if stderr { &mut progress.stderr } else { &mut progress.stdout };
                buffer.extend_from_slice(bytes);
            }
            Sink::Fd(_) | Sink::Pipe(_) => {
                if !out.broken {
                    out.held.extend(bytes);
                    if !out.may_block() {
                        out.flush();
                    }
                }
                if out.broken && !out.signalled {
                    // What the kernel does to a process that writes to a pipe nobody reads.
                    out.signalled = true;
                    self.post(&ExecInput::Signal(libc::SIGPIPE));
                }
            }
        }
    }

    /// The connection has ended without an outcome: finds out why.
    fn end(&mut self, trouble: Option<String>) {
        let outcome = match (trouble, self.closing) {
            (Some(trouble), _) => Outcome::Lost(format!("the agent broke the protocol: {trouble}")),
            (None, true) => Outcome::Exited(ExitStatus::Signal(libc::SIGKILL)),
            (None, false) => match self.vm.reason_of_exit() {
                Some(exit) => Outcome::VmExited(exit),
                None => match self.vm.shortage() {
                    Some(lacking) => Outcome::Shortage(lacking),
                    None => Outcome::Lost("the agent closed the connection of a running process".to_owned()),
                },
            },
        };
        self.ended = Some(outcome);
    }

    /// Tells the outcome as soon as nothing that a caller could look at is missing. A pipe made here may still
    /// hold output: whoever has the other end reads it, before or after.
    fn publish(&mut self) {
        let waiting = |out: &Out| !out.held.is_empty() && matches!(out.sink, Sink::Fd(_));
        let dead = matches!(self.ended, Some(Outcome::VmExited(_)));
        if !dead && (waiting(&self.stdout) || waiting(&self.stderr)) {
            return;
        }
        let Some(outcome) = self.ended.clone() else { return };
        self.handle.update(|p| {
            if p.outcome.is_none() {
                p.outcome = Some(outcome);
                p.bell = None;
                p.commands.clear();
            }
        });
        lock(&self.handle.wake).take();
    }
}

/// Whether a process can end like that: wait(2) has eight bits for a status, and signal(7) has 64 signals.
fn is_possible(status: ExitStatus) -> bool {
    match status {
        ExitStatus::Code(code) => (0..=255).contains(&code),
        ExitStatus::Signal(signal) => (1..=64).contains(&signal),
        ExitStatus::TimedOut => true,
    }
}

fn kind_name(kind: supermachine_proto::agent::ExecError) -> &'static str {
    use supermachine_proto::agent::ExecError;
    match kind {
        ExecError::NotFound => "not-found",
        ExecError::NotExecutable => "not-executable",
        ExecError::UnknownUser => "unknown-user",
        ExecError::BadDirectory => "bad-directory",
        ExecError::Invalid => "invalid",
        ExecError::Other => "other",
    }
}
