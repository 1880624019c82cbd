//! A worker process with a real guest, as the API drives it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use supermachine_proto::agent::{
    Chunk, Configure, FileCommand, FileReply, Identity, REQUEST_PORT, Request, Root,
};
use supermachine_proto::engine::Engine;
use supermachine_proto::worker::{Boot, Command, Event, Source, Start};
use supermachine_proto::{VERSION, frame};

pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) struct Worker {
    pub process: Child,
    pub control: UnixStream,
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
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(DEADLINE)).unwrap();
        let process = Process::new(env!("CARGO_BIN_EXE_supermachine-worker"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .envs(environment.iter().copied())
            .spawn()
            .unwrap();
        let mut worker = Self { process, control };
        worker.send(&Command::Start(Box::new(start)));
        worker
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
