//! One VM's life: from the start command to the event that says why it ended.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use supermachine_machine::{Config, Disk, Engine, Machine, Stop};
use supermachine_proto::VERSION;
use supermachine_proto::agent::{BOOT_PORT, BootCommand};
use supermachine_proto::worker::{Command, Event, ExitReason, Start, Stats, Timings};

use crate::boot::{AgentEvent, BootChannel};
use crate::confine;
use crate::control::{Commands, Events};

/// What zstd may decompress a kernel or an initramfs to.
const MAX_BOOT_FILE: usize = 256 << 20;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// How long a guest may take to power off beyond the grace that its processes get.
const POWER_OFF: Duration = Duration::from_secs(2);

/// Why a VM ended, as the API is told.
struct Ended {
    reason: ExitReason,
    message: String,
}

impl Ended {
    fn new(reason: ExitReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(ExitReason::BadConfiguration, message)
    }
}

/// What threads of the session share.
struct Session {
    machine: Arc<Machine>,
    boot: BootChannel,
    events: Events,
    ready: AtomicBool,
    /// The reason that the API is told in place of what made the vCPUs stop.
    verdict: Mutex<Option<Ended>>,
    started: Instant,
    steps: Mutex<Vec<(String, u64)>>,
}

/// Serves the control socket until the VM has ended.
pub fn run(control: UnixStream) -> io::Result<()> {
    let started = Instant::now();
    let events = Events::new(control.try_clone()?);
    let mut commands = Commands::new(control);
    let start = match commands.next() {
        Ok(Some((Command::Start(start), _))) => start,
        Ok(None) => return Ok(()),
        Ok(Some(_)) => return Err(io::Error::other("the first command is not a start")),
        Err(error) => return Err(io::Error::other(error)),
    };
    let machine = match build(&start) {
        Ok(machine) => Arc::new(machine),
        Err(Ended { reason, message }) => {
            events.send(&Event::Exited { reason, message, console_tail: String::new() });
            return Ok(());
        }
    };
    let session = Arc::new(Session {
        machine,
        boot: BootChannel::default(),
        events,
        ready: AtomicBool::new(false),
        verdict: Mutex::new(None),
        started,
        steps: Mutex::default(),
    });
    session.step("machine");
    session.run(*start, commands);
    Ok(())
}

impl Session {
    fn run(self: &Arc<Self>, start: Start, commands: Commands) {
        let boot_deadline = self.started + Duration::from_millis(start.boot_timeout_ms);
        let timeout = start.boot_timeout_ms;
        self.spawn("control", move |session| session.serve_commands(commands));
        if start.agent {
            let (sender, connections) = mpsc::channel();
            self.machine
                .vsock()
                .listen(BOOT_PORT, Box::new(move |fd| drop(sender.send(UnixStream::from(fd)))));
            self.spawn("boot", move |session| {
                let heard = |event| session.heard(event);
                session.boot.serve(&connections, &start.configure, heard);
            });
        }
        self.machine.start();
        if !start.agent {
            self.heard(AgentEvent::Ready);
        }

        let left = boot_deadline.saturating_duration_since(Instant::now());
        let stop = self.machine.wait(Some(left)).or_else(|| {
            if !self.ready.load(Ordering::Acquire) {
                let message = format!("the guest was not ready within {timeout} ms");
                self.end(Ended::new(ExitReason::AgentTimeout, message));
            }
            self.machine.wait(None)
        });
        // Every connection ends, so that whoever waits on one wakes, before the last word is said.
        self.machine.close();
        let console_tail = self.machine.console_tail();
        let verdict = self.verdict.lock().unwrap_or_else(|e| e.into_inner()).take();
        let Ended { reason, message } = verdict.unwrap_or_else(|| outcome(stop, &console_tail));
        self.events.send(&Event::Exited { reason, message, console_tail });
    }

    fn spawn(self: &Arc<Self>, name: &str, body: impl FnOnce(Arc<Self>) + Send + 'static) {
        let session = self.clone();
        let spawned = thread::Builder::new().name(name.into()).spawn(move || body(session));
        if let Err(error) = spawned {
            self.end(Ended::new(ExitReason::Engine, format!("a thread cannot be started: {error}")));
        }
    }

    /// Ends the VM; the first verdict stands.
    fn end(&self, ended: Ended) {
        self.verdict.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(ended);
        self.machine.stop(Stop::Requested);
    }

    fn step(&self, name: &str) {
        let nanoseconds = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.steps.lock().unwrap_or_else(|e| e.into_inner()).push((name.into(), nanoseconds));
    }

    fn heard(&self, event: AgentEvent) {
        match event {
            AgentEvent::Connected => self.step("agent"),
            AgentEvent::Ready => {
                self.step("ready");
                self.ready.store(true, Ordering::Release);
                let steps = self.steps.lock().unwrap_or_else(|e| e.into_inner()).clone();
                self.events.send(&Event::Ready(Timings { steps }));
            }
            AgentEvent::Failed(message) => self.end(Ended::new(ExitReason::AgentFailed, message)),
        }
    }

    fn serve_commands(self: Arc<Self>, mut commands: Commands) {
        loop {
            match commands.next() {
                Ok(Some((command, fd))) => self.serve(command, fd),
                // The API is gone, or speaks another language: there is nobody to run the VM for.
                Ok(None) => {
                    return self.end(Ended::new(ExitReason::Shutdown, "the host closed the control socket"));
                }
                Err(error) => return self.end(Ended::bad(format!("the control socket failed: {error}"))),
            }
        }
    }

    fn serve(self: &Arc<Self>, command: Command, fd: Option<OwnedFd>) {
        match command {
            Command::Start(_) => self.end(Ended::bad("a VM was asked to start twice")),
            Command::Connect { port } => match fd {
                Some(fd) => self.machine.vsock().connect(port, fd),
                None => self.end(Ended::bad("a connect command came without its socket")),
            },
            Command::Shutdown { grace_ms } => {
                let asked = self.boot.send(&BootCommand::Shutdown { grace_ms });
                let grace =
                    if asked { Duration::from_millis(grace_ms.into()) + POWER_OFF } else { Duration::ZERO };
                self.spawn("shutdown", move |session| {
                    session.machine.wait(Some(grace));
                    session.end(Ended::new(ExitReason::Shutdown, "the host asked for it"));
                });
            }
            Command::Stats => {
                let (exits, instructions) = self.machine.stats();
                self.events.send(&Event::Stats(Stats { exits, instructions }));
            }
        }
    }
}

/// Opens every file, confines the process, and makes the machine.
fn build(start: &Start) -> Result<Machine, Ended> {
    if start.version != VERSION {
        let message = format!("the worker speaks version {VERSION} and the API {}", start.version);
        return Err(Ended::bad(message));
    }
    let kernel = boot_file(&start.kernel)?;
    let initramfs = match start.initramfs.as_os_str().is_empty() {
        true => Vec::new(),
        false => boot_file(&start.initramfs)?,
    };
    let mut disks = Vec::new();
    for disk in &start.disks {
        let file = File::options().read(true).write(!disk.read_only).open(&disk.path);
        let file = file.map_err(|e| Ended::bad(format!("{} cannot be opened: {e}", disk.path.display())))?;
        disks.push(Disk { file, read_only: disk.read_only });
    }
    confine::confine().map_err(|e| Ended::new(ExitReason::Engine, e.to_string()))?;
    let (memory_bytes, vcpus, cmdline) = (start.memory_bytes, start.vcpus, start.cmdline.clone());
    let engine = Engine::Soft;
    Machine::new(Config { engine, memory_bytes, vcpus, kernel, initramfs, cmdline, disks })
        .map_err(|e| Ended::bad(e.to_string()))
}

/// A kernel or initramfs, decompressed when it is compressed.
fn boot_file(path: &Path) -> Result<Vec<u8>, Ended> {
    let failed = |e: io::Error| Ended::bad(format!("{} cannot be read: {e}", path.display()));
    let bytes = fs::read(path).map_err(failed)?;
    if !bytes.starts_with(&ZSTD_MAGIC) {
        return Ok(bytes);
    }
    let size = zstd::bulk::Decompressor::upper_bound(&bytes).unwrap_or(MAX_BOOT_FILE).min(MAX_BOOT_FILE);
    zstd::bulk::decompress(&bytes, size).map_err(failed)
}

/// What a stop means to the user.
fn outcome(stop: Option<Stop>, console_tail: &str) -> Ended {
    match stop {
        Some(Stop::PowerOff) => Ended::new(ExitReason::GuestPowerOff, "the guest powered off"),
        Some(Stop::Reset) if console_tail.contains("Kernel panic") => {
            Ended::new(ExitReason::Panic, "the guest's kernel panicked")
        }
        Some(Stop::Reset) => Ended::new(ExitReason::GuestReset, "the guest asked for a reset"),
        Some(Stop::Engine(message)) => Ended::new(ExitReason::Engine, message),
        Some(Stop::Requested) | None => Ended::new(ExitReason::Shutdown, "the host asked for it"),
    }
}
