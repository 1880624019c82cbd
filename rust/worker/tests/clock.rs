//! A guest's wall clock follows the host's when that moves: after the host's sleep, and when it was set.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{DEADLINE, Worker, files, start};
use supermachine_proto::agent::{Chunk, FileCommand, FileReply, WriteMode};
use supermachine_proto::engine::Engine;
use supermachine_proto::frame;
use supermachine_proto::worker::Start;

/// A host that sleeps on demand: what clock_gettime(2) says in a process that this is preloaded into, with the seconds
/// in the file CLOCK_SHIFT added to the clocks that a sleep does not stop.
const HOST: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *shift;

__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("CLOCK_SHIFT"), O_RDONLY | O_CLOEXEC);
    shift = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_BOOTTIME)) time->tv_sec += *shift;
    return failed;
}
"#;

/// Compiles the host.
fn library(place: &Path) -> PathBuf {
    let (source, library) = (place.join("host.c"), place.join("host.so"));
    std::fs::write(&source, HOST).unwrap();
    let done = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(done.success());
    library
}

/// What time it is in the guest, in seconds since 1970: that of a file that is written now.
fn guest_time(stream: &mut UnixStream) -> i64 {
    let path = || Chunk::from(b"/now".to_vec());
    let open = FileCommand::Write { path: path(), mode: 0o600, how: WriteMode::Truncate };
    assert_eq!(files(stream, &open), FileReply::Done);
    frame::write(stream, &FileCommand::WriteData(Chunk::from(b"now".to_vec()))).unwrap();
    assert_eq!(files(stream, &FileCommand::WriteEnd), FileReply::Done);
    match files(stream, &FileCommand::Stat { path: path(), follow: true }) {
        FileReply::Stat(stat) => stat.mtime_ns / 1_000_000_000,
        other => panic!("{other:?}"),
    }
}

fn host_time() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

const HOUR: i64 = 3600;

fn followed(engine: Engine) {
    let place = tempfile::tempdir().unwrap();
    let (library, path) = (library(place.path()), place.path().join("shift"));
    let shift = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let set = |seconds: i64| shift.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    set(0);
    let environment = [("LD_PRELOAD", library.as_path()), ("CLOCK_SHIFT", path.as_path())];
    let mut worker = Worker::spawn_with(Start { engine, ..start() }, &environment);
    worker.wait_ready();
    let mut idle = worker.files();
    let off = |stream: &mut UnixStream| guest_time(stream) - host_time();
    assert!(off(&mut idle).abs() < HOUR / 2);

    // Who comes right after the sleep finds the right time.
    set(HOUR);
    assert!((off(&mut worker.files()) - HOUR).abs() < HOUR / 2);
    // So does who was there before it and asks for nothing new, after a while. Back goes as well.
    set(-HOUR);
    let end = Instant::now() + DEADLINE;
    while (off(&mut idle) + HOUR).abs() > HOUR / 2 {
        assert!(Instant::now() < end, "the guest's clock stays where it was");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_follows_the_hosts_clock() {
    followed(Engine::Soft);
}

#[test]
fn a_guest_of_the_hvf_engine_follows_the_hosts_clock() {
    followed(Engine::Hvf);
}
