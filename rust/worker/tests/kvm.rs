//! Guests of the host's architecture on KVM, where this host has one that is fast enough.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Worker, boot, identity, read, send_with_fd, start};
use supermachine_machine::kvm::probe;
use supermachine_proto::agent::Chunk;
use supermachine_proto::engine::Engine;
use supermachine_proto::frame;
use supermachine_proto::worker::{
    Boot, Capture, Captured, Command, Event, ExitReason, Restore, Source, Start,
};

const PATIENCE: Duration = Duration::from_secs(400);

/// `false`, said aloud, where tests with KVM cannot run.
fn kvm_here() -> bool {
    match probe::measure().and_then(probe::Measurement::judge) {
        Ok(_) => true,
        Err(reason) => {
            eprintln!("SKIPPED: {reason}");
            false
        }
    }
}

fn on_kvm(source: Source) -> Start {
    Start { engine: Engine::Kvm, source, boot_timeout_ms: PATIENCE.as_millis() as u64, ..start() }
}

fn booting(vcpus: u32) -> Start {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest").join(std::env::consts::ARCH);
    let kernel = place.join(if cfg!(target_arch = "x86_64") { "vmlinux.zst" } else { "Image.zst" });
    let initramfs = place.join("initramfs.cpio.zst");
    on_kvm(Source::Boot(Box::new(Boot { kernel, initramfs, vcpus, ..boot() })))
}

fn restoring(file: &Path, hostname: &str) -> Start {
    let files: Vec<PathBuf> = vec![file.into()];
    on_kvm(Source::Restore(Box::new(Restore {
        files,
        identity: identity(hostname),
        working_set: vec![],
        arriving: false,
        code: PathBuf::new(),
        note_order: false,
    })))
}

fn ready(start: Start) -> Worker {
    let mut worker = Worker::spawn(start);
    worker.control.set_read_timeout(Some(PATIENCE)).unwrap();
    match worker.event() {
        Event::Ready(timings) => eprintln!("{timings:?}"),
        other => panic!("{other:?}"),
    }
    worker.send(&Command::Stats);
    match worker.event() {
        Event::Stats(stats) => eprintln!("{stats:?}"),
        other => panic!("{other:?}"),
    }
    worker
}

fn capture(worker: &mut Worker, path: &Path) -> Captured {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let mut bytes = Vec::new();
    let request = Capture {
        diff: false,
        v8: false,
        image: None,
        api: Chunk::from(vec![]),
        disk_elsewhere: false,
        code: false,
        volume_mark: [0; 16],
    };
    frame::encode(&Command::Capture(Box::new(request)), &mut bytes).unwrap();
    send_with_fd(&worker.control, &bytes, &file).unwrap();
    match worker.event() {
        Event::Captured(captured) => captured,
        other => panic!("{other:?}"),
    }
}

fn contents(worker: &mut Worker, path: &str) -> String {
    String::from_utf8(read(&mut worker.files(), path)).unwrap()
}

fn seconds(worker: &mut Worker, path: &str) -> f64 {
    contents(worker, path).split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_guest_boots_is_captured_goes_on_and_is_restored() {
    if !kvm_here() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("snapshot");
    let mut original = ready(booting(2));
    assert!(contents(&mut original, "/proc/version").contains("Linux version 6.12"));
    assert_eq!(contents(&mut original, "/sys/devices/system/cpu/online"), "0-1\n");
    let captured = capture(&mut original, &path);
    assert!(captured.data_bytes > 1 << 20 && captured.data_bytes < 128 << 20, "{captured:?}");
    let uptime = seconds(&mut original, "/proc/uptime");

    let mut first = ready(restoring(&path, "first"));
    let mut second = ready(restoring(&path, "second"));
    for (clone, name) in [(&mut first, "first\n"), (&mut second, "second\n")] {
        assert_eq!(contents(clone, "/proc/sys/kernel/hostname"), name);
        assert_eq!(contents(clone, "/sys/devices/system/cpu/online"), "0-1\n");
        // The clock goes on from the capture; it neither starts anew nor leaps.
        let clone_uptime = seconds(clone, "/proc/uptime");
        assert!(clone_uptime > uptime / 2.0, "{clone_uptime} s after {uptime} s");
    }
    let random = "/proc/sys/kernel/random/uuid";
    assert_ne!(contents(&mut first, random), contents(&mut second, random));

    original.send(&Command::Shutdown { grace_ms: 1000 });
    match original.event() {
        Event::Exited { reason: ExitReason::Shutdown, .. } => {}
        other => panic!("{other:?}"),
    }
}
