//! A worker as the API sees it: a real guest boots in it, serves requests, and ends.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::path::PathBuf;

use common::{Worker, boot, files, read, start};
use supermachine_proto::agent::{Chunk, Exec, ExecError, ExecOutput, FileCommand, FileReply, Request};
use supermachine_proto::engine::Engine;
use supermachine_proto::worker::{Boot, Command, Event, ExitReason, Source, Start};
use supermachine_proto::{VERSION, frame};

#[test]
fn a_guest_boots_serves_requests_and_shuts_down() {
    boots_serves_and_shuts_down(Engine::Soft, 1);
}

/// The engine for Macs, over a software Hypervisor.framework.
#[test]
fn a_guest_of_the_hvf_engine_boots_serves_requests_and_shuts_down() {
    for vcpus in 1..=4 {
        boots_serves_and_shuts_down(Engine::Hvf, vcpus);
    }
}

fn boots_serves_and_shuts_down(engine: Engine, vcpus: u32) {
    let source = Source::Boot(Box::new(Boot { vcpus, ..boot() }));
    let mut worker = Worker::ready(Start { engine, source, ..start() });

    let mut stream = worker.files();
    assert_eq!(read(&mut stream, "/proc/sys/kernel/hostname"), b"tested\n");
    let online = match vcpus {
        1 => "0\n".into(),
        more => format!("0-{}\n", more - 1),
    };
    assert_eq!(read(&mut stream, "/sys/devices/system/cpu/online"), online.as_bytes());
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
fn what_is_asked_of_a_guest_that_is_not_ready_is_asked_when_it_is() {
    let mut worker = Worker::spawn(start());
    let mut streams = [worker.files(), worker.files()];
    let command = FileCommand::Stat { path: Chunk::from(b"/".to_vec()), follow: true };
    for stream in &mut streams {
        assert!(matches!(files(stream, &command), FileReply::Stat(_)));
    }
    worker.wait_ready();
    assert!(matches!(files(&mut worker.files(), &command), FileReply::Stat(_)));

    let mut worker = Worker::spawn(Start { boot_timeout_ms: 1, ..start() });
    let mut stream = worker.files();
    // Reset, for what was asked was never read.
    assert!(frame::read::<FileReply>(&mut stream).is_err());
    let event = worker.event();
    assert!(matches!(event, Event::Exited { reason: ExitReason::AgentTimeout, .. }), "{event:?}");
}

#[test]
fn every_waiter_sees_its_stream_end_when_the_worker_is_killed() {
    let mut worker = Worker::ready(start());
    let mut stream = worker.files();
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
    let booting = |boot: Boot| Start { source: Source::Boot(Box::new(boot)), ..start() };
    assert!(said(booting(Boot { kernel: "/nowhere/Image".into(), ..boot() })).contains("/nowhere/Image"));
    assert!(said(booting(Boot { kernel: "/dev/null".into(), ..boot() })).contains("not an arm64 Image"));
    assert!(said(booting(Boot { memory_bytes: 1 << 20, ..boot() })).contains("1048576 bytes"));
    assert!(said(booting(Boot { vcpus: 99, ..boot() })).contains("99 vCPUs"));
    assert!(said(Start { version: VERSION + 1, ..start() }).contains("version"));
}

#[test]
fn a_kernel_without_its_init_is_a_panic_with_the_reason_in_the_console() {
    let mut worker = Worker::spawn(Start {
        source: Source::Boot(Box::new(Boot { initramfs: PathBuf::new(), ..boot() })),
        ..start()
    });
    match worker.event() {
        Event::Exited { reason: ExitReason::Panic, console_tail, .. } => {
            assert!(console_tail.contains("Unable to mount root fs"), "{console_tail}");
        }
        other => panic!("{other:?}"),
    }
}
