//! Starts a worker process, and follows it until it is gone.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::Shutdown;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use supermachine_support::lock;

use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::worker::{Command, Event, ExitReason};

use crate::descriptors::{self, Unshared};
use crate::process::Process;
use crate::state::{Exit, MAX_STALE, Shared};
use crate::sys::{self, Interest};

/// Bytes of the worker's own stderr that are kept, from the end.
const LOG_TAIL: usize = 16 * 1024;
/// How long a worker that has closed its control socket may take to exit before it is killed.
pub(crate) const REAP_GRACE: Duration = Duration::from_secs(2);
/// How long a worker may take to make room for a command.
const ROOM: Duration = Duration::from_secs(30);

/// The socket that commands a worker.
pub(crate) struct Control {
    socket: Unshared<UnixStream>,
    sending: Mutex<()>,
    process: Arc<Mutex<Process>>,
}

impl Control {
    /// Sends a command, with descriptors if there are any, eight at most. One that cannot be sent whole ends the VM:
    /// what follows would be read as part of it.
    pub(crate) fn send(&self, command: &Command, fds: &[BorrowedFd]) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame::encode(command, &mut bytes).map_err(io::Error::other)?;
        let _one = lock(&self.sending);
        let sent = match fds {
            [] => (&*self.socket).write_all(&bytes),
            fds => sys::send_with_fds(&self.socket, &bytes, fds),
        };
        sent.map_err(|error| {
            if error.kind() != io::ErrorKind::WouldBlock {
                return error;
            }
            self.hang_up();
            let message = format!("the VM's worker process took no command for {} seconds", ROOM.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, message)
        })
    }

    /// Ends the VM, as the end of its owner does.
    pub(crate) fn hang_up(&self) {
        // A process that is still to come would never be heard of, and not be reaped.
        if !lock(&self.process).give_up() {
            let _ = self.socket.shutdown(Shutdown::Both);
        }
    }
}

/// A worker process that runs.
pub(crate) struct Launched {
    pub control: Arc<Control>,
    pub process: Arc<Mutex<Process>>,
    pub shared: Arc<Shared>,
}

/// The socket to a worker, its process, and where its standard error is read.
type Born = (Unshared<UnixStream>, Process, Option<OwnedFd>);

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
        ExitReason::SnapshotIncomplete => "snapshot-incomplete",
        ExitReason::BadConfiguration => "bad-configuration",
        ExitReason::Engine => "engine",
        ExitReason::Unconfined => "unconfined",
    }
}

/// Starts the executable, tells it what to run, and has a thread follow it.
pub(crate) fn launch(
    path: PathBuf,
    environment: Vec<(OsString, OsString)>,
    start: &Command,
    fds: &[BorrowedFd],
) -> io::Result<Launched> {
    let (socket, mut child) = descriptors::pair_for(|theirs| {
        let mut command = std::process::Command::new(path);
        // A process group of its own: Ctrl-C on the terminal is for the guest's process, not for the VM.
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env_clear()
            .envs(environment)
            .process_group(0);
        command.spawn() // and the worker's end of the socket goes with `command`
    })?;
    let log = child.stderr.take().map(OwnedFd::from);
    let launched = follow((socket, Process::Started(child), log), None)?;
    // A worker that dies at once breaks the pipe; the monitor then tells why.
    match launched.control.send(start, fds) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(launched),
    }
}

/// The same by a template, which is told with the descriptors of a start and copies itself.
#[cfg(target_os = "linux")]
pub(crate) fn fork(template: &Launched, fork: &Command, fds: &[BorrowedFd]) -> io::Result<Launched> {
    let (socket, theirs) = descriptors::pair()?;
    sys::ask_for_credentials(&socket)?;
    let (log, theirs_log) = descriptors::pipe()?;
    let launched =
        follow((socket, Process::Awaited, Some(log.release().into())), Some(template.shared.clone()))?;
    let fds: Vec<_> = [theirs.as_fd(), theirs_log.as_fd()].into_iter().chain(fds.iter().copied()).collect();
    // A template that is gone closes the socket; the monitor then tells why.
    match template.control.send(fork, &fds) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(launched),
    }
}

/// Has a thread follow a worker, be it one that a template is still to make.
fn follow((socket, process, log): Born, template: Option<Arc<Shared>>) -> io::Result<Launched> {
    socket.set_write_timeout(Some(ROOM))?;
    let shared = Arc::new(Shared::new()?);
    let process = Arc::new(Mutex::new(process));
    let control = Arc::new(Control { socket, sending: Mutex::new(()), process: process.clone() });
    let launched = Launched { control: control.clone(), process: process.clone(), shared: shared.clone() };
    let spawned = thread::Builder::new()
        .name("supermachine-vm".into())
        .stack_size(128 * 1024)
        .spawn(move || monitor(&control.socket, log, &process, &shared, template.as_deref()));
    if let Err(error) = spawned {
        // Nobody else will.
        let mut process = lock(&launched.process);
        let _ = process.kill();
        let _ = process.wait();
        return Err(error);
    }
    Ok(launched)
}

/// Follows the worker until it is gone and reaped.
fn monitor(
    control: &UnixStream,
    mut log: Option<OwnedFd>,
    process: &Mutex<Process>,
    shared: &Shared,
    template: Option<&Shared>,
) {
    let mut tail = Vec::new();
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut trouble = None;
    loop {
        let interests = [
            Interest::when(true, control, libc::POLLIN),
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
        match first_or_next(control, process, &mut buffer) {
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
    let status = reap(process, grace);
    if let Some(open) = &log
        && sys::set_nonblocking(open).is_ok()
    {
        while drain(open, &mut buffer, &mut tail) {}
    }
    // Of one that was never made the template tells why, unless the system had no room for it.
    let template = template.filter(|_| status.is_none() && tail.is_empty() && !killed && !already);
    let of_template = template.and_then(|template| template.wait_exit(REAP_GRACE));
    shared.end(|state| of_template.unwrap_or_else(|| death(state.killed, trouble, status, &tail)));
}

/// What there is to read; of a template's copy the first bytes, which tell whose they are.
fn first_or_next(control: &UnixStream, process: &Mutex<Process>, buffer: &mut [u8]) -> io::Result<usize> {
    #[cfg(target_os = "linux")]
    if lock(process).is_awaited() {
        let (count, pid) = sys::read_with_credentials(control, buffer)?;
        if let Some(pid) = pid {
            lock(process).came(pid)?;
        }
        return Ok(count);
    }
    let _ = process;
    sys::read(control, buffer)
}

fn events_of(decoder: &mut Decoder, shared: &Shared) -> Result<(), frame::Error> {
    while let Some(event) = decoder.next::<Event>()? {
        match event {
            Event::Forked => shared.update(|_| ()),
            Event::Exited { reason, message, console_tail } => {
                shared.end(|_| Exit { reason: reason_name(reason), message, console_tail });
            }
            Event::Ready(timings) => shared.update(|state| state.ready = Some(timings)),
            Event::Stats(stats) => shared.update(|state| state.stats = Some(stats)),
            Event::Captured(captured) => shared.update(|state| {
                (state.capturing, state.captured) = (false, Some(Ok(captured)));
            }),
            Event::CaptureFailed { message } => shared.update(|state| {
                (state.capturing, state.captured) = (false, Some(Err(message)));
            }),
            Event::Shortage { message } => shared.update(|state| state.shortage = Some(message)),
            Event::Stale { share, path, why } => shared.update(|state| {
                if state.stale.len() < MAX_STALE {
                    state.stale.push((share, path, why));
                }
            }),
            Event::Code(places) => shared.update(|state| state.code = Some(places)),
            Event::WorkingSet(ranges) => shared.update(|state| state.working_set = Some(ranges)),
            Event::VolumeGrown { error } => {
                shared.update(|state| state.volume_grown = Some(error.map_or(Ok(()), Err)));
            }
        }
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
fn reap(process: &Mutex<Process>, grace: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + grace;
    loop {
        let mut process = lock(process);
        match process.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => {}
            Err(_) => return None,
        }
        if Instant::now() >= deadline {
            let _ = process.kill();
            return process.wait().ok();
        }
        drop(process);
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
