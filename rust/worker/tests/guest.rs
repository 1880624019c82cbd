//! A worker as the API sees it: a real guest boots in it, serves requests, and ends.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use supermachine_proto::agent::{
    Chunk, Configure, Exec, ExecError, ExecOutput, FileCommand, FileReply, Identity, REQUEST_PORT, Request,
    Root,
};
use supermachine_proto::worker::{Command, Event, ExitReason, Start};
use supermachine_proto::{VERSION, frame};

const DEADLINE: Duration = Duration::from_secs(120);

struct Worker {
    process: Child,
    control: UnixStream,
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

fn start() -> Start {
    Start {
        version: VERSION,
        kernel: guest_file("Image.zst"),
        initramfs: guest_file("initramfs.cpio.zst"),
        cmdline: String::new(),
        memory_bytes: 256 << 20,
        vcpus: 1,
        disks: vec![],
        configure: Configure {
            identity: Identity {
                hostname: "tested".into(),
                machine_id: [1; 16],
                entropy: Chunk::from(vec![2; 64]),
                wall_clock_ns: 0,
            },
            root: Root::Initramfs,
            nameservers: vec![],
            upper_bytes: 0,
            mounts: vec![],
        },
        boot_timeout_ms: DEADLINE.as_millis() as u64,
        agent: true,
    }
}

impl Worker {
    fn spawn(start: Start) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(DEADLINE)).unwrap();
        let process = Process::new(env!("CARGO_BIN_EXE_supermachine-worker"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let mut worker = Self { process, control };
        worker.send(&Command::Start(Box::new(start)));
        worker
    }

    fn ready(start: Start) -> Self {
        let mut worker = Self::spawn(start);
        match worker.event() {
            Event::Ready(timings) => eprintln!("{timings:?}"),
            other => panic!("{other:?}"),
        }
        worker
    }

    fn send(&mut self, command: &Command) {
        frame::write(&mut self.control, command).unwrap();
    }

    fn event(&mut self) -> Event {
        frame::read(&mut self.control).unwrap().expect("the worker has a last word")
    }

    fn connect(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut bytes = Vec::new();
        frame::encode(&Command::Connect { port: REQUEST_PORT }, &mut bytes).unwrap();
        send_with_fd(&self.control, &bytes, theirs.as_raw_fd()).unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        ours
    }
}

fn send_with_fd(stream: &UnixStream, bytes: &[u8], fd: i32) -> io::Result<()> {
    let mut control = [0_u64; 8];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a valid msghdr; it then describes `bytes` and `control`, which outlive sendmsg.
    unsafe {
        let mut message: libc::msghdr = MaybeUninit::zeroed().assume_init();
        message.msg_iov = &mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        if libc::sendmsg(stream.as_raw_fd(), &message, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn files(stream: &mut UnixStream, command: &FileCommand) -> FileReply {
    frame::write(stream, command).unwrap();
    frame::read(stream).unwrap().unwrap()
}

#[test]
fn a_guest_boots_serves_requests_and_shuts_down() {
    let mut worker = Worker::ready(start());

    let mut stream = worker.connect();
    frame::write(&mut stream, &Request::Files).unwrap();
    let read =
        FileCommand::Read { path: Chunk::from(b"/proc/sys/kernel/hostname".to_vec()), offset: 0, length: 0 };
    assert_eq!(files(&mut stream, &read), FileReply::Data(Chunk::from(b"tested\n".to_vec())));
    assert_eq!(frame::read(&mut stream).unwrap(), Some(FileReply::Done));
    let stat = FileCommand::Stat { path: Chunk::from(b"/nowhere".to_vec()), follow: true };
    assert_eq!(files(&mut stream, &stat), FileReply::Failed { errno: libc::ENOENT });

    let mut stream = worker.connect();
    let args = vec![Chunk::from(b"no-such-program".to_vec())];
    frame::write(&mut stream, &Request::Exec(Exec { args, ..Exec::default() })).unwrap();
    let answer = frame::read(&mut stream).unwrap();
    assert!(matches!(answer, Some(ExecOutput::Failed { kind: ExecError::NotFound, .. })), "{answer:?}");

    worker.send(&Command::Shutdown { grace_ms: 1000 });
    let event = worker.event();
    assert!(
        matches!(event, Event::Exited { reason: ExitReason::GuestPowerOff | ExitReason::Shutdown, .. }),
        "{event:?}"
    );
    assert!(worker.process.wait().unwrap().success());
}

#[test]
fn every_waiter_sees_its_stream_end_when_the_worker_is_killed() {
    let mut worker = Worker::ready(start());
    let mut stream = worker.connect();
    frame::write(&mut stream, &Request::Files).unwrap();
    let list = FileCommand::Stat { path: Chunk::from(b"/".to_vec()), follow: true };
    assert!(matches!(files(&mut stream, &list), FileReply::Stat(_)));
    worker.process.kill().unwrap();
    assert!(frame::read::<FileReply>(&mut stream).unwrap().is_none());
    assert!(frame::read::<Event>(&mut worker.control).unwrap().is_none());
}

#[test]
fn what_cannot_be_started_is_said() {
    let said = |start: Start| match Worker::spawn(start).event() {
        Event::Exited { reason: ExitReason::BadConfiguration, message, .. } => message,
        other => panic!("{other:?}"),
    };
    assert!(said(Start { kernel: "/nowhere/Image".into(), ..start() }).contains("/nowhere/Image"));
    assert!(said(Start { kernel: "/dev/null".into(), ..start() }).contains("not an arm64 Image"));
    assert!(said(Start { memory_bytes: 1 << 20, ..start() }).contains("1048576 bytes"));
    assert!(said(Start { vcpus: 99, ..start() }).contains("99 vCPUs"));
    assert!(said(Start { version: VERSION + 1, ..start() }).contains("version"));
}

#[test]
fn a_kernel_without_its_init_is_a_panic_with_the_reason_in_the_console() {
    let mut worker = Worker::spawn(Start { initramfs: PathBuf::new(), ..start() });
    match worker.event() {
        Event::Exited { reason: ExitReason::Panic, console_tail, .. } => {
            assert!(console_tail.contains("Unable to mount root fs"), "{console_tail}");
        }
        other => panic!("{other:?}"),
    }
}
