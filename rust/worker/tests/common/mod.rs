//! A worker process with a real guest, as the API drives it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use supermachine_proto::agent::{
    Chunk, Configure, FileCommand, FileReply, Identity, REQUEST_PORT, Request, Root, WriteMode,
};
use supermachine_proto::engine::Engine;
use supermachine_proto::worker::{Bake, Boot, Capture, Command, Event, ExitReason, Restore, Source, Start};
use supermachine_proto::{VERSION, frame};
use supermachine_support::descriptors;

pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) struct Worker {
    pub process: Running,
    pub control: UnixStream,
}

/// A process that this one waits for.
pub(crate) enum Running {
    Started(Child),
    /// Made by a template.
    Copy(Pid),
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        match self {
            Self::Started(child) => child.id(),
            Self::Copy(pid) => pid.as_raw_nonzero().get() as u32,
        }
    }

    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match self {
            Self::Started(child) => child.kill(),
            Self::Copy(pid) => Ok(kill_process(*pid, Signal::KILL)?),
        }
    }

    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Started(child) => child.wait(),
            Self::Copy(pid) => {
                let waited = waitpid(Some(*pid), WaitOptions::empty())?;
                Ok(ExitStatus::from_raw(waited.map_or(0, |(_, status)| status.as_raw())))
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn guest_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/aarch64").join(name)
}

/// The guest files that ship with the project, on the initramfs as its root.
pub(crate) fn boot() -> Boot {
    Boot {
        kernel: guest_file("Image.zst"),
        initramfs: guest_file("initramfs.cpio.zst"),
        cmdline: String::new(),
        memory_bytes: 256 << 20,
        vcpus: 1,
        configure: Configure {
            identity: identity("tested"),
            root: Root::Initramfs,
            upper_bytes: 0,
            mounts: vec![],
            volumes: vec![],
            upper_device: None,
        },
    }
}

pub(crate) fn identity(hostname: &str) -> Identity {
    Identity {
        hostname: hostname.into(),
        machine_id: [1; 16],
        entropy: Chunk::from(vec![2; 64]),
        wall_clock_ns: 0,
        network: None,
        authority: String::new(),
    }
}

pub(crate) fn start() -> Start {
    Start {
        version: VERSION,
        engine: Engine::Soft,
        source: Source::Boot(Box::new(boot())),
        disks: vec![],
        shares: vec![],
        scratch: None,
        volumes: vec![],
        boot_timeout_ms: DEADLINE.as_millis() as u64,
        agent: true,
        require_confinement: false,
    }
}

impl Worker {
    pub(crate) fn spawn(start: Start) -> Self {
        Self::spawn_with(start, &[])
    }

    /// With these variables in the worker's environment.
    pub(crate) fn spawn_with(start: Start, environment: &[(&str, &Path)]) -> Self {
        Self::told(&Command::Start(Box::new(start)), environment)
    }

    /// When it has decoded code of snapshot `files` for others, into the empty file `to`.
    #[cfg(target_os = "linux")]
    pub(crate) fn bake(program: impl AsRef<std::ffi::OsStr>, files: &[PathBuf], places: Vec<u64>, to: &File) {
        let bake = Bake { version: VERSION, files: files.into(), places, require_confinement: false };
        let mut bytes = Vec::new();
        frame::encode(&Command::Bake(bake), &mut bytes).unwrap();
        let mut worker = Self::program(program.as_ref(), &[]);
        send_with_fd(&worker.control, &bytes, to).unwrap();
        let end = worker.event();
        assert!(matches!(end, Event::Exited { reason: ExitReason::Shutdown, .. }), "{end:?}");
    }

    /// A template of what this start restores, when it is ready.
    pub(crate) fn template(start: Start) -> Self {
        let mut template = Self::told(&Command::Template(Box::new(start)), &[]);
        template.wait_ready();
        template
    }

    /// One of a template's copies.
    #[cfg(target_os = "linux")]
    pub(crate) fn fork(template: &Self, start: Start) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(DEADLINE)).unwrap();
        rustix::net::sockopt::set_socket_passcred(&control, true).unwrap();
        let mut bytes = Vec::new();
        frame::encode(&Command::Fork(Box::new(start)), &mut bytes).unwrap();
        let log = io::stderr();
        descriptors::send(&template.control, &bytes, &[theirs.as_fd(), log.as_fd()]).unwrap();
        drop(theirs);
        let mut first = Vec::new();
        frame::encode(&Event::Forked, &mut first).unwrap();
        let mut room = vec![0; first.len()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut told = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&control, &mut [IoSliceMut::new(&mut room)], &mut told, RecvFlags::empty()).unwrap();
        assert_eq!(room, first);
        let Some(RecvAncillaryMessage::ScmCredentials(who)) = told.drain().next() else { panic!("nobody") };
        Self { process: Running::Copy(who.pid), control }
    }

    fn told(command: &Command, environment: &[(&str, &Path)]) -> Self {
        let mut worker = Self::program(env!("CARGO_BIN_EXE_supermachine-worker").as_ref(), environment);
        worker.send(command);
        worker
    }

    fn program(program: &std::ffi::OsStr, environment: &[(&str, &Path)]) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(DEADLINE)).unwrap();
        let process = Process::new(program)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .envs(environment.iter().copied())
            .spawn()
            .unwrap();
        Self { process: Running::Started(process), control }
    }

    pub(crate) fn ready(start: Start) -> Self {
        let mut worker = Self::spawn(start);
        worker.wait_ready();
        worker
    }

    pub(crate) fn wait_ready(&mut self) {
        match self.event() {
            Event::Ready(timings) => eprintln!("{timings:?}"),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn send(&mut self, command: &Command) {
        frame::write(&mut self.control, command).unwrap();
    }

    pub(crate) fn event(&mut self) -> Event {
        frame::read(&mut self.control).unwrap().expect("the worker has a last word")
    }

    /// A connection on which file commands are served.
    pub(crate) fn files(&mut self) -> UnixStream {
        let mut stream = self.connect();
        frame::write(&mut stream, &Request::Files).unwrap();
        stream
    }

    pub(crate) fn connect(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut bytes = Vec::new();
        frame::encode(&Command::Connect { port: REQUEST_PORT }, &mut bytes).unwrap();
        send_with_fd(&self.control, &bytes, &theirs).unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        ours
    }
}

pub(crate) fn send_with_fd(stream: &UnixStream, bytes: &[u8], fd: impl AsFd) -> io::Result<()> {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty())?;
    Ok(())
}

pub(crate) fn files(stream: &mut UnixStream, command: &FileCommand) -> FileReply {
    frame::write(stream, command).unwrap();
    frame::read(stream).unwrap().unwrap()
}

/// The whole of a small file.
pub(crate) fn read(stream: &mut UnixStream, path: &str) -> Vec<u8> {
    let path = Chunk::from(path.as_bytes().to_vec());
    let reply = files(stream, &FileCommand::Read { path, offset: 0, length: 0, holes: false });
    let FileReply::Data(data) = reply else { panic!("{reply:?}") };
    assert_eq!(frame::read(stream).unwrap(), Some(FileReply::Done));
    data.0
}

/// A request for all of a guest.
pub(crate) fn whole() -> Capture {
    Capture {
        diff: false,
        image: None,
        api: Chunk::from(b"ours".to_vec()),
        v8: false,
        disk_elsewhere: false,
        code: true,
        volume_mark: [0; 16],
    }
}

/// What comes of a capture into a new file at `path`.
pub(crate) fn captured(worker: &mut Worker, path: &Path, request: Capture) -> Event {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let mut bytes = Vec::new();
    frame::encode(&Command::Capture(Box::new(request)), &mut bytes).unwrap();
    send_with_fd(&worker.control, &bytes, &file).unwrap();
    worker.event()
}

/// Takes a snapshot of a running guest into a new file at `path`.
pub(crate) fn snapshot_of(worker: &mut Worker, path: &Path) {
    assert!(matches!(captured(worker, path, whole()), Event::Captured(_)));
}

/// A guest that goes on from these files.
pub(crate) fn restoring(files: &[PathBuf], hostname: &str) -> Start {
    let restore = Restore {
        files: files.into(),
        identity: identity(hostname),
        working_set: vec![],
        arriving: false,
        code: PathBuf::new(),
        note_order: false,
    };
    Start { source: Source::Restore(Box::new(restore)), ..start() }
}

/// Where the code begins that a worker's guest has run.
#[cfg(target_os = "linux")]
pub(crate) fn code_of(worker: &mut Worker) -> Vec<u64> {
    worker.send(&Command::Code);
    match worker.event() {
        Event::Code(places) => places,
        other => panic!("{other:?}"),
    }
}

/// A guest that goes on from these files, with their decoded code.
#[cfg(target_os = "linux")]
pub(crate) fn going_by(files: &[PathBuf], code: &Path) -> Start {
    let mut start = restoring(files, "decoded");
    if let Source::Restore(restore) = &mut start.source {
        restore.code = code.into();
    }
    start
}

pub(crate) fn write(worker: &mut Worker, path: &str, text: &str) {
    let mut stream = worker.files();
    let path = Chunk::from(path.as_bytes().to_vec());
    let open = FileCommand::Write { path, mode: 0o600, how: WriteMode::Truncate };
    assert_eq!(files(&mut stream, &open), FileReply::Done);
    frame::write(&mut stream, &FileCommand::WriteData(Chunk::from(text.as_bytes().to_vec()))).unwrap();
    assert_eq!(files(&mut stream, &FileCommand::WriteEnd), FileReply::Done);
}

pub(crate) fn contents(worker: &mut Worker, path: &str) -> String {
    String::from_utf8(read(&mut worker.files(), path)).unwrap()
}

/// Starts a test of this program again, with the variable set: a process that owns others, and what it says behind
/// "owns".
pub(crate) fn owner(test: &str, variable: &str) -> (Child, Vec<String>) {
    let mut owner = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(variable, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find(|line| line.starts_with("owns ")).unwrap();
    (owner, said.split(' ').skip(1).map(str::to_owned).collect())
}

/// Whether a process runs.
pub(crate) fn lives(process: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // What nobody has waited for is still listed.
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Waits until none of them runs; whether that is soon.
pub(crate) fn end_soon(processes: &[String]) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while processes.iter().any(|process| lives(process)) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    !processes.iter().any(|process| lives(process))
}
