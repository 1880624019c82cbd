//! One VM's life: from the start command to the event that says why it ended.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use supermachine_support::{elapsed_ns, lock};

use supermachine_machine::arrival::Arrival;
use supermachine_machine::{Machine, Stop};
use supermachine_proto::agent::{BOOT_PORT, BootCommand, BootEvent};
use supermachine_proto::limits::{MAX_CODE, MAX_WORKING_SET};
use supermachine_proto::worker::{
    Capture, Command, Event, ExitReason, PageRange, Source, Start, Stats, Timings, slot_device,
};

use crate::bake;
use crate::begun::Begun;
use crate::boot::{AgentEvent, BootChannel, Greeting};
use crate::capture::Subject;
use crate::clock::{self, WallClock};
use crate::control::{self, Commands, Events, Opening};
use crate::ended::Ended;
use crate::network::Cable;
use crate::owner::{self, Owner};
use crate::room::{self, Room};
use crate::start::{self, Built, Came};
#[cfg(target_os = "linux")]
use crate::template;
use crate::volumes::Volumes;

/// How long a guest may take to power off beyond the grace that its processes get.
const POWER_OFF: Duration = Duration::from_secs(2);
/// How long the end of a machine may take before the process ends without it.
const END: Duration = Duration::from_secs(2);
/// Connections that may wait for the guest's clock to be set, or for its device to be free.
const MAX_WAITING: usize = 4096;
/// How long the thread that makes them stays when none comes.
const CONNECTS_FOR: Duration = Duration::from_secs(1);
/// How long a guest's file system may take to grow: the kernel writes each group's descriptor.
const GROWN: Duration = Duration::from_secs(60);
/// How long a guest that ended before it was ready is listened to.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// What the console of a kernel says that panics.
const PANIC: &str = "Kernel panic";
const ASKED: &str = "the host asked for it";

/// What threads of the session share.
struct Session {
    machine: Arc<Machine>,
    /// What snapshots are taken of; held while one is taken.
    subject: Mutex<Subject>,
    restored: bool,
    boot: BootChannel,
    wall_clock: WallClock,
    room: Room,
    volumes: Volumes,
    /// Whether one is being made larger because another process wishes it.
    growing: AtomicBool,
    events: Events,
    ready: AtomicBool,
    /// The reason that the API is told in place of what made the vCPUs stop.
    verdict: Mutex<Option<Ended>>,
    /// Whether the guest was asked to power off.
    asked: AtomicBool,
    /// Whether the last word has been said.
    said: AtomicBool,
    /// Whether the end has begun, and has its time.
    ending: AtomicBool,
    /// To the thread that makes connections that have to wait, once there is one.
    waiting: Mutex<Option<mpsc::SyncSender<(u32, OwnedFd)>>>,
    /// Connections that were asked for before the guest was ready; none any more once it is. So what a guest is started
    /// for is at its door when it opens.
    early: Mutex<Option<Vec<(u32, OwnedFd)>>>,
    started: Instant,
    steps: Mutex<Vec<(String, u64)>>,
}

/// Serves the control socket until the VM has ended; a template's, and then that of each copy, which returns here as
/// well.
pub(crate) fn run(control: UnixStream) -> io::Result<()> {
    let started = Instant::now();
    let owner = Owner::of(&control)?;
    if !owner.wait_for_words() {
        return Ok(());
    }
    let events = Events::new(control.try_clone()?);
    let mut commands = Commands::new(control);
    match commands.opening() {
        Ok(Some(Opening::Start(start, came))) => {
            let begun = Begun { started, came: Came::with(&start, came), start, commands, events, owner };
            live(begun, start::build)
        }
        #[cfg(target_os = "linux")]
        Ok(Some(Opening::Template(start))) => match template::serve(&start, commands, events, owner)? {
            None => Ok(()),
            Some((begun, laid)) => live(begun, |start, came, step| laid.build(start, came, step)),
        },
        #[cfg(not(target_os = "linux"))]
        Ok(Some(Opening::Template(_))) => {
            let message = "templates are there on Linux alone".into();
            let reason = ExitReason::BadConfiguration;
            events.send(&Event::Exited { reason, message, console_tail: String::new() });
            Ok(())
        }
        Ok(Some(Opening::Bake(bake, file))) => {
            let Ended { reason, message } = bake::serve(&bake, file.into());
            events.send(&Event::Exited { reason, message, console_tail: String::new() });
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// From the machine's start to its end.
fn live(
    Begun { started, start, mut came, commands, events, owner }: Begun,
    build: impl FnOnce(&Start, &mut Came, &mut dyn FnMut(&str)) -> Result<Built, Ended>,
) -> io::Result<()> {
    let mut steps = Vec::new();
    let built = build(&start, &mut came, &mut |name| steps.push((name.to_owned(), elapsed_ns(started))));
    let Built {
        machine,
        page_map,
        kernel,
        initramfs,
        origin,
        listeners,
        scratch,
        volumes,
        room,
        leases,
        arrival,
        waits,
    } = match built {
        Ok(built) => built,
        Err(Ended { reason, message }) => {
            events.send(&Event::Exited { reason, message, console_tail: String::new() });
            return Ok(());
        }
    };
    owner.end_with_it()?;
    let session = Arc::new(Session {
        machine: Arc::new(machine),
        // Not what its origin says: a file of version 8 is none that diffs build on.
        restored: matches!(start.source, Source::Restore(_)),
        subject: Mutex::new(Subject {
            kernel,
            initramfs,
            page_map,
            origin,
            listeners,
            scratch,
            volumes: volumes.clone(),
            agent: start.agent,
        }),
        boot: BootChannel::default(),
        wall_clock: WallClock::default(),
        room,
        volumes,
        growing: AtomicBool::new(false),
        events,
        ready: AtomicBool::new(false),
        verdict: Mutex::new(None),
        asked: AtomicBool::new(false),
        said: AtomicBool::new(false),
        ending: AtomicBool::new(false),
        waiting: Mutex::new(None),
        early: Mutex::new(Some(Vec::new())),
        started,
        steps: Mutex::new(steps),
    });
    if let Some(waits) = waits {
        session.spawn("files", move |session| {
            waits.serve(&session.machine, |event| session.events.send(event));
        });
    }
    if let Some(arrival) = arrival {
        session.spawn("missing memory", move |session| session.end_without(&arrival));
    }
    session.run(*start, commands, came.link);
    drop(leases);
    Ok(())
}

impl Session {
    fn run(self: &Arc<Self>, start: Start, commands: Commands, link: Option<OwnedFd>) {
        let boot_deadline = self.started + Duration::from_millis(start.boot_timeout_ms);
        let timeout = start.boot_timeout_ms;
        self.spawn("control", move |session| session.serve_commands(commands));
        self.plug(&start, link);
        if start.agent {
            // The device lets one through at a time; one more may come before the end of the last is seen here.
            let (sender, connections) = mpsc::sync_channel(1);
            let session = Arc::downgrade(self);
            let accept = Box::new(move |fd: io::Result<OwnedFd>| match fd {
                Ok(fd) => drop(sender.try_send(UnixStream::from(fd))),
                Err(error) => {
                    if let Some(session) = session.upgrade() {
                        let message = format!("the guest's agent cannot be connected: {error}");
                        session.end(Ended::new(ExitReason::Engine, message));
                    }
                }
            });
            self.machine.vsock().listen(BOOT_PORT, accept);
            let (greeting, working_set) = match start.source {
                Source::Boot(boot) => (Greeting::Configure(boot.configure), Vec::new()),
                Source::Restore(restore) => (Greeting::Renew(restore.identity), restore.working_set),
            };
            self.spawn("boot", move |session| {
                let heard = |event| session.heard(event);
                session.boot.serve(&connections, &greeting, heard);
            });
            self.prefault(&working_set);
        }
        self.machine.start();
        if !start.agent {
            self.heard(AgentEvent::Ready);
        }

        let stop = self.watch(boot_deadline, timeout);
        self.bound_the_end();
        // Every connection ends, so that whoever waits on one wakes, before the last word is said.
        drop(lock(&self.early).take());
        self.machine.close();
        if !self.ready.load(Ordering::Acquire) {
            self.hear_out();
        }
        let console_tail = self.machine.console_tail();
        let verdict = lock(&self.verdict).take();
        let Ended { reason, message } =
            verdict.unwrap_or_else(|| outcome(stop, self.asked.load(Ordering::Acquire), &console_tail));
        self.say_last(Ended { reason, message }, console_tail);
    }

    /// Says how the VM ended, once.
    fn say_last(&self, Ended { reason, message }: Ended, console_tail: String) {
        if !self.said.swap(true, Ordering::AcqRel) {
            self.events.send(&Event::Exited { reason, message, console_tail });
        }
    }

    /// Whatever the guest keeps the machine's threads at, the process ends soon.
    fn bound_the_end(self: &Arc<Self>) {
        if self.ending.swap(true, Ordering::AcqRel) {
            return;
        }
        let bounded = self.try_spawn("end", |session| {
            thread::sleep(END);
            session.end_now();
        });
        if bounded.is_err() {
            // Nobody would see to it that it ends.
            self.end_now();
        }
    }

    /// Says the last word, whatever the machine's threads are at.
    fn end_now(&self) -> ! {
        let verdict = lock(&self.verdict).take();
        let ended = verdict.unwrap_or_else(|| Ended::new(ExitReason::Shutdown, ASKED));
        self.say_last(ended, self.machine.console_tail());
        owner::exit(0)
    }

    /// Makes the connections that could not be made at once, until none has come for a while.
    fn connect_those_that_wait(&self, waiting: &mpsc::Receiver<(u32, OwnedFd)>) {
        loop {
            let next = waiting.recv_timeout(CONNECTS_FOR).ok().or_else(|| {
                let mut to_here = lock(&self.waiting);
                // Whoever sends holds the lock: one that came just now is here.
                let last = waiting.try_recv().ok();
                if last.is_none() {
                    *to_here = None;
                }
                last
            });
            let Some((port, fd)) = next else { return };
            self.wall_clock.follow(&self.boot);
            self.machine.vsock().connect(port, fd);
        }
    }

    /// Makes a connection once the guest is ready.
    fn connect_when_ready(self: &Arc<Self>, port: u32, fd: OwnedFd) {
        if let Some(early) = &mut *lock(&self.early) {
            // Beyond what may wait it closes, which its other end sees.
            if early.len() < MAX_WAITING {
                early.push((port, fd));
            }
            return;
        }
        self.connect(port, fd);
    }

    /// Makes a connection, without waiting for the guest or for what it keeps busy.
    fn connect(self: &Arc<Self>, port: u32, fd: OwnedFd) {
        let fd = match self.wall_clock.is_right() {
            true => match self.machine.vsock().try_connect(port, fd) {
                None => return,
                Some(fd) => fd,
            },
            false => fd,
        };
        let mut waiting = lock(&self.waiting);
        if waiting.is_none() {
            let (sender, to_connect) = mpsc::sync_channel(MAX_WAITING);
            let connects = move |session: Arc<Self>| session.connect_those_that_wait(&to_connect);
            *waiting = self.try_spawn("connect", connects).is_ok().then_some(sender);
        }
        // Beyond what may wait it closes, which its other end sees; as it does without a thread.
        if let Some(waiting) = &*waiting {
            let _ = waiting.try_send((port, fd));
        }
    }

    /// Plugs the network card's cable in, where the guest has a network.
    fn plug(self: &Arc<Self>, start: &Start, link: Option<OwnedFd>) {
        let identity = match &start.source {
            Source::Boot(boot) => &boot.configure.identity,
            Source::Restore(restore) => &restore.identity,
        };
        let plugged = match (&identity.network, link) {
            (None, _) => return,
            (Some(place), Some(link)) => self.machine.network().map_err(io::Error::other).and_then(|card| {
                card.attach(|poller| Cable::new(place, link, poller).map(|cable| Box::new(cable) as Box<_>))
            }),
            (Some(_), None) => Err(io::Error::other("the link to its policy process is missing")),
        };
        if let Err(error) = plugged {
            self.end(Ended::new(ExitReason::Engine, format!("the guest cannot have a network: {error}")));
        }
    }

    /// Waits for the end of the machine, and does meanwhile what nobody asks for: ends a guest that is not ready in
    /// time, keeps its clock, tells it of room on the host's disks, and makes volumes larger when other processes wish
    /// it.
    fn watch(self: &Arc<Self>, boot_deadline: Instant, timeout_ms: u64) -> Stop {
        loop {
            let left = boot_deadline.saturating_duration_since(Instant::now());
            let ready = self.ready.load(Ordering::Acquire);
            if !ready && left.is_zero() {
                let message = format!("the guest was not ready within {timeout_ms} ms");
                let reason = if self.restored { ExitReason::RenewFailed } else { ExitReason::AgentTimeout };
                self.end(Ended::new(reason, message));
            }
            let slice = if ready || left.is_zero() { clock::INTERVAL } else { left.min(clock::INTERVAL) };
            if let Some(stop) = self.machine.wait(Some(slice)) {
                return stop;
            }
            self.machine.vsock().tell_of_packets();
            if self.wall_clock.has_moved() {
                let _ = self.try_spawn("clock", |session| session.wall_clock.follow(&session.boot));
            }
            if ready {
                self.look_at_room(room::ANY);
                self.look_at_wishes();
            }
        }
    }

    /// Tells the guest what room there is, where that is less than `near`. What cannot be done now is done at the next
    /// look.
    fn look_at_room(self: &Arc<Self>, near: u64) {
        if self.room.has_changed(near) {
            let _ = self.try_spawn("room", |session| session.room.tell(&session.boot));
        }
    }

    /// Grants what other processes wish of volumes.
    fn look_at_wishes(self: &Arc<Self>) {
        let Some((slot, bytes)) = self.volumes.wish() else { return };
        if self.growing.swap(true, Ordering::AcqRel) {
            return;
        }
        let granted = self.try_spawn("wish", move |session| {
            let grown = lock(&session.subject).volumes.grow(&session.machine, &session.room, slot, bytes);
            let command = BootCommand::Grow { device: slot_device(slot), bytes };
            let done = grown.is_ok() && session.boot.ask(&command, &BootEvent::Grown { done: true }, GROWN);
            session.volumes.answer(slot, done);
            session.growing.store(false, Ordering::Release);
        });
        if granted.is_err() {
            self.volumes.answer(slot, false);
            self.growing.store(false, Ordering::Release);
        }
    }

    /// Starts a thread of what no VM goes without: it ends where there is none to be had.
    fn spawn(self: &Arc<Self>, name: &str, body: impl FnOnce(Arc<Self>) + Send + 'static) {
        if let Err(message) = self.try_spawn(name, body) {
            self.end(Ended::new(ExitReason::Engine, message));
        }
    }

    /// Starts a thread of what can be refused, or left for later; the error says why there is none.
    fn try_spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(Arc<Self>) + Send + 'static,
    ) -> Result<(), String> {
        let session = self.clone();
        let spawned = thread::Builder::new().name(name.into()).spawn(move || body(session));
        spawned.map(drop).map_err(|error| format!("a thread cannot be started: {error}"))
    }

    /// Ends the VM; the first verdict stands.
    fn end(self: &Arc<Self>, ended: Ended) {
        lock(&self.verdict).get_or_insert(ended);
        self.bound_the_end();
        self.machine.stop(Stop::Requested);
    }

    /// Ends the VM when the rest of its memory will not come.
    fn end_without(self: &Arc<Self>, arrival: &Arrival) {
        if let Err(why) = arrival.outcome() {
            let message = format!("the rest of its snapshot did not come: {why}");
            self.end(Ended::new(ExitReason::SnapshotIncomplete, message));
            // Those that wait for it go on no earlier: nothing runs without what it needs.
            arrival.release();
        }
    }

    /// An agent that cannot go on says so and powers off: its words may still be on their way to the boot thread.
    fn hear_out(&self) {
        let end = Instant::now() + LAST_WORDS;
        while lock(&self.verdict).is_none() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn step(&self, name: &str) {
        let at = elapsed_ns(self.started);
        lock(&self.steps).push((name.into(), at));
    }

    fn heard(self: &Arc<Self>, event: AgentEvent) {
        match event {
            AgentEvent::Connected => {
                if !self.ready.load(Ordering::Acquire) {
                    self.step("agent");
                }
                self.wall_clock.told();
            }
            AgentEvent::Ready if self.ready.swap(true, Ordering::AcqRel) => {}
            AgentEvent::Ready => {
                self.step("ready");
                let early = lock(&self.early).take();
                early.into_iter().flatten().for_each(|(port, fd)| self.connect(port, fd));
                let steps = lock(&self.steps).clone();
                self.events.send(&Event::Ready(Timings { steps }));
                self.look_at_room(room::URGENT);
            }
            AgentEvent::Failed(message) if self.restored && !self.ready.load(Ordering::Acquire) => {
                self.end(Ended::new(ExitReason::RenewFailed, message));
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
            Command::Start(_) | Command::Template(_) | Command::Bake(_) => {
                self.end(Ended::bad("a VM was asked to start twice"));
            }
            Command::Fork(_) => self.end(Ended::bad("a VM that runs was asked to copy itself")),
            Command::Connect { port } => match fd {
                Some(fd) => self.connect_when_ready(port, fd),
                // Its other end has been closed, which the API sees; the VM goes on.
                None => self.events.send(&Event::Shortage { message: control::out_of_files() }),
            },
            Command::Shutdown { grace_ms } => {
                self.asked.store(true, Ordering::Release);
                let asked = self.boot.send(&BootCommand::Shutdown { grace_ms });
                let grace =
                    if asked { Duration::from_millis(grace_ms.into()) + POWER_OFF } else { Duration::ZERO };
                let waits = self.try_spawn("shutdown", move |session| {
                    if session.machine.wait(Some(grace)).is_none() {
                        session.end(Ended::new(ExitReason::Shutdown, ASKED));
                    }
                });
                if waits.is_err() {
                    self.end(Ended::new(ExitReason::Shutdown, ASKED));
                }
            }
            Command::Stats => {
                let (exits, instructions) = self.machine.stats();
                self.events.send(&Event::Stats(Stats { exits, instructions }));
            }
            Command::Capture(request) => match fd {
                Some(fd) => {
                    let begun =
                        self.try_spawn("capture", move |session| session.capture(*request, &fd.into()));
                    if let Err(message) = begun {
                        self.events.send(&Event::CaptureFailed { message });
                    }
                }
                None => self.events.send(&Event::CaptureFailed { message: control::out_of_files() }),
            },
            // It waits for a capture that is under way, which waits for the guest.
            Command::WorkingSet => {
                let looks = self.try_spawn("working set", |session| {
                    let ranges = session.working_set();
                    session.events.send(&Event::WorkingSet(ranges));
                });
                if looks.is_err() {
                    self.events.send(&Event::WorkingSet(Vec::new()));
                }
            }
            Command::Code => {
                let looks =
                    self.try_spawn("code", |session| session.events.send(&Event::Code(session.code())));
                if looks.is_err() {
                    self.events.send(&Event::Code(Vec::new()));
                }
            }
            // As does this, for a volume is not marked and grown at once.
            Command::GrowVolume { slot, bytes } => {
                let grows = self.try_spawn("volume", move |session| {
                    let grown =
                        lock(&session.subject).volumes.grow(&session.machine, &session.room, slot, bytes);
                    let error = grown.err().map(|error| error.to_string());
                    session.events.send(&Event::VolumeGrown { error });
                });
                if let Err(message) = grows {
                    self.events.send(&Event::VolumeGrown { error: Some(message) });
                }
            }
        }
    }

    fn capture(&self, request: Capture, file: &File) {
        let subject = lock(&self.subject);
        self.events.send(&match subject.capture(&self.machine, &self.boot, request, file) {
            Ok(captured) => Event::Captured(captured),
            Err(error) => Event::CaptureFailed { message: error.to_string() },
        });
    }

    /// The pages that the guest has touched; the host's page tables tell.
    fn working_set(&self) -> Vec<PageRange> {
        let subject = lock(&self.subject);
        let touched = subject.page_map.as_ref().and_then(|map| self.machine.touched(map).ok());
        let ranges = touched.unwrap_or_default().into_iter().take(MAX_WORKING_SET).map(|run| PageRange {
            start: run.pages.start,
            count: run.pages.end - run.pages.start,
            written: run.written,
        });
        ranges.collect()
    }

    /// Where the code begins that the guest has run; it stands still for the moment that it takes to look.
    fn code(&self) -> Vec<u64> {
        let _one = lock(&self.subject);
        let mut places = self.machine.pause().and_then(|paused| paused.decoded()).unwrap_or_default();
        places.truncate(MAX_CODE);
        places
    }

    /// Brings in what earlier clones needed.
    fn prefault(&self, working_set: &[PageRange]) {
        if !working_set.is_empty() && self.machine.prefault(&start::page_ranges(working_set)) {
            self.step("prefault");
        }
    }
}

/// What a stop means to the user.
fn outcome(stop: Stop, asked: bool, console_tail: &str) -> Ended {
    match stop {
        // Some guests cannot power off, and reset themselves instead.
        Stop::PowerOff | Stop::Reset if asked && !console_tail.contains(PANIC) => {
            Ended::new(ExitReason::Shutdown, ASKED)
        }
        Stop::PowerOff => Ended::new(ExitReason::GuestPowerOff, "the guest powered off"),
        Stop::Reset if console_tail.contains(PANIC) => {
            Ended::new(ExitReason::Panic, "the guest's kernel panicked")
        }
        Stop::Reset => Ended::new(ExitReason::GuestReset, "the guest asked for a reset"),
        Stop::Engine(message) => Ended::new(ExitReason::Engine, message),
        Stop::Requested => Ended::new(ExitReason::Shutdown, ASKED),
    }
}
