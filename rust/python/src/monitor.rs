//! Starts a worker process, and follows it until it is gone.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use supermachine_support::lock;

use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::worker::{Command, Event, ExitReason};

use crate::descriptors::{self, Unshared};
use crate::state::{Exit, Shared};
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
}

impl Control {
    /// Sends a command, with descriptors if there are any, eight at most. One that cannot be sent whole ends the VM: what
    /// follows would be read as part of it.
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
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A worker process that runs.
pub(crate) struct Launched {
    pub control: Arc<Control>,
    pub child: Arc<Mutex<Child>>,
    pub pid: u32,
    pub shared: Arc<Shared>,
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
    let shared = Arc::new(Shared::new()?);
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
    socket.set_write_timeout(Some(ROOM))?;
    let control = Arc::new(Control { socket, sending: Mutex::new(()) });
    let pid = child.id();
    let log = child.stderr.take();
    let child = Arc::new(Mutex::new(child));
    let launched = Launched { control: control.clone(), child: child.clone(), pid, shared: shared.clone() };
    let spawned = thread::Builder::new()
        .name("supermachine-vm".into())
        .stack_size(128 * 1024)
        .spawn(move || monitor(&control.socket, log, &child, &shared));
    if let Err(error) = spawned {
        // Nobody else will.
        let mut child = lock(&launched.child);
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    // A worker that dies at once breaks the pipe; the monitor then tells why.
    match launched.control.send(start, fds) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(launched),
    }
}

/// Follows the worker until it is gone and reaped.
fn monitor(control: &UnixStream, log: Option<ChildStderr>, child: &Mutex<Child>, shared: &Shared) {
    let mut log = log.map(OwnedFd::from);
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
        match sys::read(control, &mut buffer) {
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
    shared.end(|state| death(state.killed, trouble, status, &tail));
}

fn events_of(decoder: &mut Decoder, shared: &Shared) -> Result<(), frame::Error> {
    while let Some(event) = decoder.next::<Event>()? {
        match event {
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
fn reap(child: &Mutex<Child>, grace: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + grace;
    loop {
        let mut child = lock(child);
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
