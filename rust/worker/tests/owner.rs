//! A worker does not outlive the process that it works for.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use common::{Worker, end_soon, lives, start};

const OWNER: &str = "SUPERMACHINE_TEST_OWNER";

/// The owner's part: a worker, and a process that holds the owner's end of the control socket open. Tells the ids of
/// both and waits to be killed.
fn own() {
    let worker = Worker::ready(start());
    let socket = OwnedFd::from(worker.control.try_clone().unwrap());
    let mut holder =
        Command::new("sleep").arg("600").stdin(Stdio::from(socket)).stdout(Stdio::null()).spawn().unwrap();
    println!("\nowns {} {}", worker.process.id(), holder.id());
    holder.wait().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_worker_ends_with_its_owner_though_another_process_holds_the_control_socket() {
    if std::env::var_os(OWNER).is_some() {
        return own();
    }
    let name = "a_worker_ends_with_its_owner_though_another_process_holds_the_control_socket";
    let (mut owner, owned) = common::owner(name, OWNER);
    let [worker, holder] = &owned[..] else { panic!("{owned:?}") };
    assert!(lives(worker) && lives(holder));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let ended = end_soon(&owned[..1]);
    let held = lives(holder);
    Command::new("kill").args(["-9", holder]).status().unwrap();
    assert!(held, "nobody held the socket, so its end was told");
    assert!(ended, "the worker lives on without its owner");
}
