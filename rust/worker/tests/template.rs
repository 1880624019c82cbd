//! A template makes machines by copying itself, and each of them is a machine of its own.

#![cfg(target_os = "linux")]
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use common::{Worker, boot, contents, end_soon, lives, restoring, snapshot_of, start, write};
use supermachine_proto::agent::Chunk;
use supermachine_proto::worker::{Boot, Command, Event, ExitReason, Source, Start};

const OWNER: &str = "SUPERMACHINE_TEST_TEMPLATES_OWNER";

/// A snapshot of a guest with as many vCPUs that has run something.
fn snapshot(vcpus: u32, path: &Path) {
    let source = Source::Boot(Box::new(Boot { vcpus, ..boot() }));
    let mut original = Worker::ready(Start { source, ..start() });
    write(&mut original, "/state", "before");
    snapshot_of(&mut original, path);
}

/// With entropy of its own.
fn forking(hostname: &str) -> Start {
    let mut start = restoring(&[], hostname);
    if let Source::Restore(restore) = &mut start.source {
        restore.identity.entropy = Chunk::from(hostname.bytes().cycle().take(64).collect::<Vec<_>>());
    }
    start
}

fn status(process: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
}

/// What a process's descriptors are of.
fn descriptors(process: u32) -> BTreeSet<String> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let of = descriptors.map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
    of.map(|path| path.to_string_lossy().into_owned()).collect()
}

fn copies(vcpus: u32) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("whole");
    snapshot(vcpus, &path);
    let template = Worker::template(restoring(std::slice::from_ref(&path), "template"));
    // No lock of another thread's could be held in a copy.
    assert_eq!(status(template.process.id(), "Threads:"), "1");

    let mut first = Worker::fork(&template, forking("first"));
    let mut second = Worker::fork(&template, forking("second"));
    first.wait_ready();
    second.wait_ready();
    for (worker, name) in [(&mut first, "first"), (&mut second, "second")] {
        assert_eq!(contents(worker, "/state"), "before");
        assert_eq!(contents(worker, "/proc/sys/kernel/hostname"), format!("{name}\n"));
        write(worker, "/state", name);
    }
    let random = "/proc/sys/kernel/random/uuid";
    assert_ne!(contents(&mut first, random), contents(&mut second, random));
    // Each is this process's child, and neither has a socket or a poller that the other or the template has.
    let parent = std::process::id().to_string();
    let own = |process: u32| {
        let all = descriptors(process).into_iter();
        all.filter(|name| name.starts_with("socket:")).collect::<BTreeSet<_>>()
    };
    let (a, b, c) = (first.process.id(), second.process.id(), template.process.id());
    assert_eq!((status(a, "PPid:"), status(b, "PPid:")), (parent.clone(), parent));
    assert!(!own(a).is_empty() && !own(c).is_empty());
    assert!(own(a).is_disjoint(&own(b)) && own(a).is_disjoint(&own(c)) && own(b).is_disjoint(&own(c)));

    // A copy goes on without the template, and the template without a copy.
    first.process.kill().unwrap();
    assert_eq!(first.process.wait().unwrap().signal(), Some(9));
    // Who has been waited for is not waited for again.
    std::mem::forget(first);
    let mut third = Worker::fork(&template, forking("third"));
    third.wait_ready();
    drop(template);
    assert_eq!(contents(&mut second, "/state"), "second");
    assert_eq!(contents(&mut third, "/state"), "before");

    // A capture of one has all that it has, also what only its own guest has written.
    let again = place.path().join("again");
    snapshot_of(&mut second, &again);
    let mut last = Worker::ready(restoring(&[again], "last"));
    assert_eq!(contents(&mut last, "/state"), "second");
    assert_eq!(contents(&mut last, "/proc/sys/kernel/hostname"), "last\n");
}

#[test]
fn copies_are_machines_of_their_own() {
    copies(1);
}

#[test]
fn copies_have_all_vcpus() {
    copies(2);
}

#[test]
fn a_copy_ends_when_its_own_control_socket_does() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("whole");
    snapshot(1, &path);
    let template = Worker::template(restoring(std::slice::from_ref(&path), "template"));
    let mut copies = ["one", "two"].map(|name| Worker::fork(&template, forking(name)));
    copies.iter_mut().for_each(Worker::wait_ready);
    let [mut one, mut two] = copies;
    one.control.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(one.process.wait().unwrap().success());
    assert_eq!(contents(&mut two, "/state"), "before");
    std::mem::forget(one);
}

/// The owner's part: a template and two copies. Tells the ids of all and waits to be killed.
fn own() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("whole");
    snapshot(1, &path);
    let template = Worker::template(restoring(std::slice::from_ref(&path), "template"));
    let mut copies = ["one", "two"].map(|name| Worker::fork(&template, forking(name)));
    copies.iter_mut().for_each(Worker::wait_ready);
    println!("\nowns {} {} {}", template.process.id(), copies[0].process.id(), copies[1].process.id());
    std::thread::sleep(common::DEADLINE);
}

#[test]
fn template_and_copies_end_with_their_owner() {
    if std::env::var_os(OWNER).is_some() {
        return own();
    }
    let (mut owner, owned) = common::owner("template_and_copies_end_with_their_owner", OWNER);
    assert!(owned.len() == 3 && owned.iter().all(|process| lives(process)));
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(end_soon(&owned), "{owned:?}");
}

#[test]
fn what_a_template_cannot_be_of_is_refused() {
    let said = |start: Start| {
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(common::DEADLINE)).unwrap();
        let process = std::process::Command::new(env!("CARGO_BIN_EXE_supermachine-worker"))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let mut worker = Worker { process: common::Running::Started(process), control };
        worker.send(&Command::Template(Box::new(start)));
        match worker.event() {
            Event::Exited { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(said(start()), ExitReason::BadConfiguration);
    let engine = supermachine_proto::engine::Engine::Hvf;
    assert_eq!(said(Start { engine, ..restoring(&[], "x") }), ExitReason::BadConfiguration);
    assert_eq!(said(restoring(&["/nowhere/snapshot".into()], "x")), ExitReason::BadConfiguration);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("cut");
    fs::write(&path, b"SMSNAP").unwrap();
    assert_eq!(said(restoring(&[path], "x")), ExitReason::BadSnapshot);
}
