//! A guest is captured while it goes on, and restored in another worker as a guest with an identity of its own.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::path::{Path, PathBuf};

use common::{Worker, boot, captured, contents, restoring, start, whole, write};
use supermachine_proto::agent::Chunk;
use supermachine_proto::engine::Engine;
use supermachine_proto::worker::{Boot, Capture, Captured, Event, ExitReason, Source, Start};

/// Takes a snapshot of a running guest into `path`.
fn capture(worker: &mut Worker, path: &Path, diff: bool) -> Captured {
    let request = Capture { diff, ..whole() };
    match captured(worker, path, request) {
        Event::Captured(captured) => captured,
        other => panic!("{other:?}"),
    }
}

fn captured_and_restored(engine: Engine, vcpus: u32) {
    let restoring = |files: &[PathBuf], hostname| Start { engine, ..restoring(files, hostname) };
    let place = tempfile::tempdir().unwrap();
    let [base, diff] = ["base", "diff"].map(|name| place.path().join(name));
    let source = Source::Boot(Box::new(Boot { vcpus, ..boot() }));
    let mut original = Worker::ready(Start { engine, source, ..start() });
    write(&mut original, "/state", "before");
    let captured = capture(&mut original, &base, false);
    assert_eq!(captured.id.0.len(), 32);
    assert!(captured.data_bytes > 1 << 20 && captured.data_bytes < 128 << 20, "{captured:?}");
    write(&mut original, "/state", "after");
    assert_eq!(contents(&mut original, "/state"), "after");

    let mut clone = Worker::ready(restoring(std::slice::from_ref(&base), "first"));
    assert_eq!(contents(&mut clone, "/state"), "before");
    assert_eq!(contents(&mut clone, "/proc/sys/kernel/hostname"), "first\n");
    write(&mut clone, "/state", "in the clone");
    let changed = capture(&mut clone, &diff, true);
    // Elsewhere the host does not tell which pages were written to.
    #[cfg(target_os = "linux")]
    assert!(changed.data_bytes < captured.data_bytes, "{changed:?} {captured:?}");
    #[cfg(not(target_os = "linux"))]
    let _ = changed;

    let mut other = Worker::ready(restoring(&[base, diff], "second"));
    assert_eq!(contents(&mut other, "/state"), "in the clone");
    assert_eq!(contents(&mut other, "/proc/sys/kernel/hostname"), "second\n");
    assert_eq!(contents(&mut original, "/state"), "after");
    let random = "/proc/sys/kernel/random/uuid";
    assert_ne!(contents(&mut clone, random), contents(&mut other, random));

    // A clone of a clone that is captured whole has lost nothing.
    let whole = place.path().join("whole");
    capture(&mut other, &whole, false);
    let mut last = Worker::ready(restoring(&[whole], "third"));
    assert_eq!(contents(&mut last, "/state"), "in the clone");
}

#[test]
fn a_guest_goes_on_after_its_capture_and_again_in_its_clones() {
    captured_and_restored(Engine::Soft, 1);
}

#[test]
fn a_guest_of_two_vcpus_goes_on_in_its_clones() {
    captured_and_restored(Engine::Soft, 2);
}

/// The engine for Macs, over a software Hypervisor.framework.
#[test]
fn a_guest_of_the_hvf_engine_goes_on_in_its_clones() {
    captured_and_restored(Engine::Hvf, 1);
}

#[test]
fn a_guest_of_the_hvf_engine_with_four_vcpus_goes_on_in_its_clones() {
    captured_and_restored(Engine::Hvf, 4);
}

/// A file of the format in the field is decoded by a program that was written from its description alone, encoded by it
/// again, and restored.
fn field_format(engine: Engine, vcpus: u32) {
    let place = tempfile::tempdir().unwrap();
    let [ours, theirs, bare] = ["ours", "theirs", "bare"].map(|name| place.path().join(name));
    let source = Source::Boot(Box::new(Boot { vcpus, ..boot() }));
    let mut original = Worker::ready(Start { engine, source, ..start() });
    write(&mut original, "/state", "before");
    let request = Capture { api: Chunk::default(), v8: true, ..whole() };
    assert!(matches!(captured(&mut original, &ours, request.clone()), Event::Captured(_)));
    let refused = captured(&mut original, &place.path().join("diff"), Capture { diff: true, ..request });
    assert!(matches!(&refused, Event::CaptureFailed { .. }), "{refused:?}");
    write(&mut original, "/state", "after");

    let oracle = |arguments: &[&std::ffi::OsStr]| {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/snapshot/recode_v8.py");
        let output = std::process::Command::new("python3").arg(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = oracle(&["recode".as_ref(), ours.as_os_str(), theirs.as_os_str()]);
    assert_eq!(said, format!("vcpus {vcpus} devices 10 memory {} ram_gpa 0x40000000\n", 256 << 20));
    assert!(std::fs::read(&ours).unwrap() == std::fs::read(&theirs).unwrap(), "the bytes differ");
    // As other writers have it: what they cannot read is left out.
    oracle(&["bare".as_ref(), ours.as_os_str(), bare.as_os_str()]);

    for (file, hostname) in [(theirs, "recoded"), (bare, "bare")] {
        let mut clone = Worker::ready(Start { engine, ..restoring(&[file], hostname) });
        assert_eq!(contents(&mut clone, "/state"), "before");
        assert_eq!(contents(&mut clone, "/proc/sys/kernel/hostname"), format!("{hostname}\n"));
    }
    assert_eq!(contents(&mut original, "/state"), "after");
}

#[test]
fn files_of_the_field_go_out_and_in() {
    field_format(Engine::Soft, 1);
}

#[test]
fn files_of_the_field_go_out_and_in_on_the_hvf_engine() {
    field_format(Engine::Hvf, 2);
}

#[test]
fn a_snapshot_of_one_engine_is_refused_by_another() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("whole");
    capture(&mut Worker::ready(start()), &path, false);
    let other = Start { engine: Engine::Hvf, ..restoring(&[path], "x") };
    match Worker::spawn(other).event() {
        Event::Exited { reason: ExitReason::BadSnapshot, message, .. } => {
            assert!(message.contains("soft engine") && message.contains("hvf"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_that_cannot_be_used_is_refused_by_what_is_wrong_with_it() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("cut");
    std::fs::write(&path, b"SMSNAP").unwrap();
    let said = |start: Start| match Worker::spawn(start).event() {
        Event::Exited { reason, message, .. } => (reason, message),
        other => panic!("{other:?}"),
    };
    let (reason, message) = said(restoring(&[path], "x"));
    assert_eq!(reason, ExitReason::BadSnapshot, "{message}");
    let (reason, message) = said(restoring(&["/nowhere/snapshot".into()], "x"));
    assert_eq!(reason, ExitReason::BadConfiguration);
    assert!(message.contains("/nowhere/snapshot"), "{message}");
    assert_eq!(said(restoring(&[], "x")).0, ExitReason::BadSnapshot);
}
