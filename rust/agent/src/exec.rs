//! One process of the host's: its pipes or terminal, its signals, its time, its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use supermachine_proto::agent::{Chunk, Exec, ExecInput, ExecOutput, ExitStatus, STDIN_WINDOW, WindowSize};
use supermachine_proto::frame::{self, Decoder, MAX_DATA};

use crate::init::Place;
use crate::reaper::Exit;
use crate::spawn::{self, Failure, Origin};
use crate::{drain, freeze, spare, sys, user};

/// Output that waits for the host; beyond it the process waits.
const MAX_WAITING: usize = 256 * 1024;
/// Enough for what most processes say.
const FIRST_BUFFER: usize = 4 << 10;
/// How long output of those that a process leaves behind is waited for.
const ORPHANS: Duration = Duration::from_millis(100);
/// How long a process whose output has ended is looked at alone: most have ended, and the rest of their output with them.
const LIKELY_END: Duration = Duration::from_millis(1);
/// What a terminal takes for the end of input: control-D.
const VEOF: u8 = 4;

/// A process and what joins it to the host.
struct Session {
    host: File,
    /// Which of the guest's lives the host's end belongs to.
    life: u64,
    decoder: Decoder,
    /// What is read goes through it. It grows with what there is at a time, up to MAX_DATA.
    buffer: Vec<u8>,
    /// Bytes for the host.
    out: VecDeque<u8>,
    pid: i32,
    exit: Arc<Exit>,
    stdin: Option<File>,
    input: VecDeque<u8>,
    input_ended: bool,
    stdout: Option<File>,
    stderr: Option<File>,
    tty: bool,
    kill_at: Option<Instant>,
    timed_out: bool,
    /// When no more output is waited for; set once the process has ended.
    drained_at: Option<Instant>,
    /// Whether one of its outputs has ended just now.
    hung_up: bool,
    /// Ends of pipes that nothing is at the other end of. To close them takes time that the host would wait for.
    ended: Vec<OwnedFd>,
}

/// Serves a connection until its process has ended and everything is told.
pub(crate) fn serve(host: File, request: &Exec) {
    let mut host = Some(host);
    match start(&mut host, request) {
        Ok(mut session) => {
            match session.run() {
                Ok(()) => session.leave_output(),
                // The guest is a clone of the one whose host this was: the process goes on, and nobody reads it.
                Err(_) if freeze::has_moved(session.life) => {
                    session.run_alone();
                    session.leave_output();
                }
                // The host is gone, and its processes with it.
                Err(_) => {
                    sys::kill(-session.pid, libc::SIGKILL);
                    session.leave_output();
                }
            }
        }
        Err(Failure { kind, message }) => {
            if let Some(mut host) = host {
                drop(frame::write(&mut host, &ExecOutput::Failed { kind, message }));
            }
        }
    }
}

/// Takes the host when the process runs.
fn start(host: &mut Option<File>, request: &Exec) -> Result<Session, Failure> {
    let kill_at =
        (request.timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(request.timeout_ms));
    let (stdin, stdout, stderr, pid, exit);
    let mut ended = Vec::new();
    let place = spawn::place(request)?;
    let can_wait = request.tty.is_none() && matches!(place, Place::Plain);
    if let Some(size) = request.tty {
        let (ours, theirs) = terminal(size)?;
        (pid, exit) = spawn::spawn(request, place, &Origin::New([&theirs; 3]))?;
        sys::set_nonblocking(&ours)?;
        stdin = Some(ours.try_clone()?);
        (stdout, stderr) = (Some(ours), None);
    } else if let Some(spare) = can_wait.then(spare::take).flatten() {
        match spawn::spawn(request, place, &Origin::Waiting(&spare)) {
            Ok(started) => (pid, exit) = started,
            Err(failure) => {
                spare::give_back(spare);
                return Err(failure);
            }
        }
        let [input, output, errors] = spare.ours;
        stdin = if request.stdin {
            Some(input.into())
        } else {
            ended.push(input);
            None
        };
        (stdout, stderr) = (Some(output.into()), Some(errors.into()));
    } else {
        let (theirs, ours) = match request.stdin {
            true => sys::pipe().map(|(theirs, ours)| (Some(theirs), Some(ours)))?,
            false => (None, None),
        };
        let (output, errors) = (sys::pipe()?, sys::pipe()?);
        let input = match &theirs {
            Some(theirs) => theirs,
            None => nothing()?,
        };
        for ours in [ours.as_ref(), Some(&output.0), Some(&errors.0)].into_iter().flatten() {
            sys::set_nonblocking(ours)?;
        }
        (pid, exit) = spawn::spawn(request, place, &Origin::New([input, &output.1, &errors.1]))?;
        stdin = ours.map(File::from);
        (stdout, stderr) = (Some(output.0.into()), Some(errors.0.into()));
    }
    let Some(host) = host.take() else { return Err(io::Error::from(io::ErrorKind::NotConnected).into()) };
    sys::set_nonblocking(&host)?;
    let mut session = Session {
        host,
        life: freeze::life(),
        decoder: Decoder::default(),
        buffer: vec![0; FIRST_BUFFER],
        out: VecDeque::new(),
        pid,
        exit,
        stdin,
        input: VecDeque::new(),
        input_ended: false,
        stdout,
        stderr,
        tty: request.tty.is_some(),
        kill_at,
        timed_out: false,
        drained_at: None,
        hung_up: false,
        ended,
    };
    session.tell(&ExecOutput::Started { pid: pid.cast_unsigned() });
    Ok(session)
}

/// Does what a restored guest's first command would have to do otherwise.
pub(crate) fn prepare() {
    user::prepare();
    spare::prepare();
}

/// What a process without input reads; it stays open.
pub(crate) fn nothing() -> io::Result<&'static OwnedFd> {
    static NOTHING: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(nothing) = NOTHING.get() {
        return Ok(nothing);
    }
    let opened = File::open("/dev/null")?.into();
    Ok(NOTHING.get_or_init(|| opened))
}

/// A new pseudo-terminal: our end and the process's.
fn terminal(size: WindowSize) -> io::Result<(File, OwnedFd)> {
    let ours = File::options().read(true).write(true).open("/dev/ptmx")?;
    let unlocked = 0_i32;
    // SAFETY: TIOCSPTLCK reads the integer; TIOCGPTPEER takes flags and makes a descriptor, which is then ours.
    let theirs = unsafe {
        sys::check(libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        OwnedFd::from_raw_fd(sys::check(libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER as _, flags))?)
    };
    resize(&ours, size);
    Ok((ours, theirs))
}

fn resize(terminal: &File, size: WindowSize) {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads the structure.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) };
}

impl Session {
    fn run(&mut self) -> Result<(), frame::Error> {
        self.flush()?;
        while !self.is_over() {
            let likely_end = std::mem::take(&mut self.hung_up) && self.drained_at.is_none();
            let can_take = self.out.len() < MAX_WAITING;
            let wanted = |file: &Option<File>, events: i16, when: bool| match file {
                Some(file) if when => libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 },
                _ => libc::pollfd { fd: -1, events: 0, revents: 0 },
            };
            let host = libc::POLLIN | if self.out.is_empty() { 0 } else { libc::POLLOUT };
            let ended = self.drained_at.is_some();
            let mut fds = [
                libc::pollfd { fd: self.host.as_raw_fd(), events: host, revents: 0 },
                wanted(&self.stdin, libc::POLLOUT, !self.input.is_empty()),
                wanted(&self.stdout, libc::POLLIN, can_take && !likely_end),
                wanted(&self.stderr, libc::POLLIN, can_take && !likely_end),
                libc::pollfd {
                    fd: if ended { -1 } else { self.exit.event.as_raw_fd() },
                    events: libc::POLLIN,
                    revents: 0,
                },
            ];
            if !can_take {
                // The host is slow: that is no reason to lose what the process has written.
                self.drained_at = self.drained_at.map(|_| Instant::now() + ORPHANS);
            }
            let look = likely_end.then(|| Instant::now() + LIKELY_END);
            let next = [self.kill_at, self.drained_at, look].into_iter().flatten().min();
            sys::poll(&mut fds, next.map(|at| at.saturating_duration_since(Instant::now())))?;
            let ready = fds.map(|fd| fd.revents != 0);
            self.step(ready)?;
        }
        let status = self.status();
        self.tell(&ExecOutput::Exited(status));
        self.finish()
    }

    /// Takes what the process writes, so that it does not wait for a reader, until it has ended.
    fn run_alone(&mut self) {
        while self.drained_at.is_none() {
            let wanted = |file: &Option<File>| libc::pollfd {
                fd: file.as_ref().map_or(-1, AsRawFd::as_raw_fd),
                events: libc::POLLIN,
                revents: 0,
            };
            let exit = libc::pollfd { fd: self.exit.event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let mut fds = [wanted(&self.stdout), wanted(&self.stderr), exit];
            let wait = self.kill_at.map(|at| at.saturating_duration_since(Instant::now()));
            if sys::poll(&mut fds, wait).is_err() {
                return;
            }
            let [stdout, stderr, ended] = fds.map(|fd| fd.revents != 0);
            // Nothing for the host is read from its socket or written to it any more.
            let _ = self.step([false, false, stdout, stderr, ended]);
            self.out.clear();
        }
    }

    /// Those that the process has left behind may go on to write. A terminal ends with its process, as a hang-up.
    fn leave_output(&mut self) {
        if !self.tty {
            drain::add([self.stdout.take(), self.stderr.take()].into_iter().flatten());
        }
    }

    fn step(&mut self, [host, stdin, stdout, stderr, ended]: [bool; 5]) -> Result<(), frame::Error> {
        if host {
            self.flush()?;
            self.hear()?;
        }
        if stdin {
            self.feed();
        }
        if stdout {
            self.read_output(false);
        }
        if stderr {
            self.read_output(true);
        }
        if ended && self.exit.status().is_some() {
            self.drained_at = Some(Instant::now() + ORPHANS);
            self.kill_at = None;
        }
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            self.kill_at = None;
            self.timed_out = true;
            sys::kill(-self.pid, libc::SIGKILL);
        }
        self.flush()
    }

    /// Whether the process has ended and its output with it, or long enough ago.
    fn is_over(&self) -> bool {
        let Some(at) = self.drained_at else { return false };
        self.stdout.is_none() && self.stderr.is_none() || at <= Instant::now()
    }

    fn status(&self) -> ExitStatus {
        let status = process::ExitStatus::from_raw(self.exit.status().unwrap_or_default());
        match status.signal() {
            Some(libc::SIGKILL) if self.timed_out => ExitStatus::TimedOut,
            Some(signal) => ExitStatus::Signal(signal),
            None => ExitStatus::Code(status.code().unwrap_or_default()),
        }
    }

    fn tell(&mut self, message: &ExecOutput) {
        let mut bytes = Vec::new();
        // Every message here fits a frame: data come in parts of at most MAX_DATA.
        if frame::encode(message, &mut bytes).is_ok() {
            self.out.extend(bytes);
        }
    }

    /// Sends what the host takes.
    fn flush(&mut self) -> Result<(), frame::Error> {
        while !self.out.is_empty() {
            match self.host.write(self.out.as_slices().0) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends everything that is left, however long the host takes.
    fn finish(&mut self) -> Result<(), frame::Error> {
        loop {
            self.flush()?;
            if self.out.is_empty() {
                return Ok(());
            }
            let mut fds = [libc::pollfd { fd: self.host.as_raw_fd(), events: libc::POLLOUT, revents: 0 }];
            sys::poll(&mut fds, None)?;
        }
    }

    /// Reads and obeys what the host has sent. The end of the connection is an error.
    fn hear(&mut self) -> Result<(), frame::Error> {
        match self.host.read(&mut self.buffer) {
            Ok(0) => return Err(frame::Error::Truncated),
            Ok(n) => self.decoder.push(&self.buffer[..n]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(message) = self.decoder.next()? {
            match message {
                ExecInput::Stdin(data) => {
                    if self.input.len() + data.0.len() > STDIN_WINDOW as usize {
                        return Err(frame::Error::TooLong { length: self.input.len() + data.0.len() });
                    }
                    match self.stdin {
                        Some(_) => self.input.extend(data.0),
                        None => self.consumed(data.0.len()),
                    }
                }
                ExecInput::StdinEnd => self.input_ended = true,
                ExecInput::Signal(signal) if self.drained_at.is_none() => sys::kill(-self.pid, signal),
                ExecInput::Signal(_) => {}
                ExecInput::Resize(size) => {
                    if let Some(terminal) = self.stdout.as_ref().filter(|_| self.tty) {
                        resize(terminal, size);
                    }
                }
            }
        }
        self.feed();
        Ok(())
    }

    fn consumed(&mut self, bytes: usize) {
        if bytes > 0 {
            self.tell(&ExecOutput::StdinConsumed(sys::length(bytes)));
        }
    }

    /// Gives the process what it takes of its input.
    fn feed(&mut self) {
        let mut taken = 0;
        while let (Some(stdin), false) = (&mut self.stdin, self.input.is_empty()) {
            match stdin.write(self.input.as_slices().0) {
                Ok(n) => {
                    self.input.drain(..n);
                    taken += n;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The process has closed its end: it wants no more.
                Err(_) => {
                    taken += self.input.len();
                    self.input.clear();
                    self.stdin = None;
                }
            }
        }
        self.consumed(taken);
        if self.input_ended && self.input.is_empty() {
            self.input_ended = false;
            match self.tty {
                // A terminal stays open; its reader is told that the input ends.
                true => self.input.push_back(VEOF),
                false => self.stdin = None,
            }
        }
    }

    fn read_output(&mut self, errors: bool) {
        let file = if errors { &mut self.stderr } else { &mut self.stdout };
        let Some(pipe) = file else { return };
        match pipe.read(&mut self.buffer) {
            Ok(n @ 1..) => {
                let data = Chunk::from(self.buffer[..n].to_vec());
                if n == self.buffer.len() && n < MAX_DATA {
                    self.buffer.resize(2 * n, 0);
                }
                self.tell(&if errors { ExecOutput::Stderr(data) } else { ExecOutput::Stdout(data) });
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The end; a terminal says EIO when its last process is gone.
            Ok(0) | Err(_) => {
                self.ended.extend(file.take().map(OwnedFd::from));
                self.hung_up = true;
            }
        }
    }
}
