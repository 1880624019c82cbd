//! A worker does not outlive the process that it works for.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Worker, start};

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

fn lives(process: &str) -> bool {
    let stat = std::fs::read_to_string(PathBuf::from("/proc").join(process).join("stat")).unwrap_or_default();
    // What nobody has waited for is still listed.
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
#[cfg(target_os = "linux")]
fn a_worker_ends_with_its_owner_though_another_process_holds_the_control_socket() {
    if std::env::var_os(OWNER).is_some() {
        return own();
    }
    let name = "a_worker_ends_with_its_owner_though_another_process_holds_the_control_socket";
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find(|line| line.starts_with("owns ")).unwrap();
    let [_, worker, holder] = said.split(' ').collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert!(lives(worker) && lives(holder));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while lives(worker) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let outlived = lives(worker);
    let held = lives(holder);
    Command::new("kill").args(["-9", holder]).status().unwrap();
    assert!(held, "nobody held the socket, so its end was told");
    assert!(!outlived, "the worker lives on without its owner");
}
