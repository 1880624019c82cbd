//! The main job on the engine for Macs, over a software Hypervisor.framework: an image's program runs in a guest of its
//! own, on one vCPU and on several, and goes on in a clone to the same result.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{DEADLINE, Worker, boot, files, identity, read, send_with_fd, start};
use supermachine_image::{Layer, Limits, convert};
use supermachine_proto::agent::{
    Chunk, Configure, Exec, ExecOutput, ExitStatus, FileCommand, FileReply, Request, Root,
};
use supermachine_proto::engine::Engine;
use supermachine_proto::frame;
use supermachine_proto::worker::{Boot, Capture, Command, Disk, Event, Restore, Source, Start};

/// The image that ships with the project, as a disk in `place`.
fn disk(place: &Path) -> PathBuf {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/busybox.oci.tar");
    let mut archive = tar::Archive::new(File::open(archive).unwrap());
    let (layer, disk) = (place.join("layer"), place.join("disk"));
    let mut longest = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.size() > longest.len() as u64 {
            longest.clear();
            entry.read_to_end(&mut longest).unwrap();
        }
    }
    std::fs::write(&layer, &longest).unwrap();
    let length = longest.len() as u64;
    let layers = [Layer { path: layer, offset: 0, length, digest: None, diff_id: None, compression: None }];
    convert(&layers, &disk, &Limits::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    disk
}

fn starting(disk: &Path, vcpus: u32) -> Start {
    let root = Root::Overlay { device: "/dev/vda".into(), fs: "erofs".into() };
    let configure = Configure { root, ..boot().configure };
    let disks = vec![Disk { path: disk.into(), read_only: true }];
    let source = Source::Boot(Box::new(Boot { vcpus, configure, ..boot() }));
    Start { engine: Engine::Hvf, source, disks, ..start() }
}

/// Runs a script in the guest: its output and how it ended.
fn run(worker: &mut Worker, script: &str) -> (String, ExitStatus) {
    let mut stream = worker.connect();
    let args = ["sh", "-c", script].map(|arg| Chunk::from(arg.as_bytes().to_vec())).into();
    frame::write(&mut stream, &Request::Exec(Exec { args, ..Exec::default() })).unwrap();
    let mut output = Vec::new();
    loop {
        match frame::read(&mut stream).unwrap().unwrap() {
            ExecOutput::Stdout(Chunk(bytes)) => output.extend(bytes),
            ExecOutput::Exited(status) => return (String::from_utf8(output).unwrap(), status),
            ExecOutput::Stderr(_) | ExecOutput::Started { .. } | ExecOutput::StdinConsumed(_) => {}
            ExecOutput::Failed { message, .. } => panic!("{message}"),
        }
    }
}

#[test]
fn programs_of_an_image_run_on_one_to_four_vcpus() {
    let place = tempfile::tempdir().unwrap();
    let disk = disk(place.path());
    for vcpus in 1..=4 {
        let mut worker = Worker::ready(starting(&disk, vcpus));
        let script = "echo $(nproc) $(uname -m) | tr a-z A-Z; exit 3";
        assert_eq!(run(&mut worker, script), (format!("{vcpus} AARCH64\n"), ExitStatus::Code(3)));
        // Everybody at once.
        let sums = "for n in 1 2 3 4; do (seq 20000 | sha256sum) & done; wait";
        let (output, status) = run(&mut worker, sums);
        assert_eq!(status, ExitStatus::Code(0));
        let lines: Vec<_> = output.lines().collect();
        assert!(lines.len() == 4 && lines.iter().all(|line| *line == lines[0]), "{output}");
        assert_eq!(run(&mut worker, "kill -TERM $$").1, ExitStatus::Signal(15));
    }
}

/// Four chains at once in which each link is the digest of the one before, in the background; their ends are in a file,
/// which appears whole.
const CHAINS: &str = "chain() { link=seed$1; n=0; while [ $n -lt 60 ]; do link=$(echo $link $n | sha256sum); \
                      n=$((n + 1)); done; echo $link >/tmp/end.$1; }; \
                      (for k in 1 2 3 4; do chain $k & done; wait; cat /tmp/end.* >/tmp/part; mv /tmp/part /tmp/end) \
                      >/dev/null 2>&1 &";

/// What the chains come to.
fn end(worker: &mut Worker) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    let mut stream: UnixStream = worker.files();
    let stat = FileCommand::Stat { path: Chunk::from(b"/tmp/end".to_vec()), follow: true };
    while !matches!(files(&mut stream, &stat), FileReply::Stat(_)) {
        assert!(Instant::now() < deadline, "the chains do not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    read(&mut stream, "/tmp/end")
}

#[test]
fn what_a_guest_computes_does_not_depend_on_where_it_was_captured() {
    let place = tempfile::tempdir().unwrap();
    let disk = disk(place.path());
    let mut undisturbed = Worker::ready(starting(&disk, 2));
    run(&mut undisturbed, CHAINS);
    let expected = end(&mut undisturbed);
    assert_eq!(expected.split(|byte| *byte == b'\n').filter(|line| line.len() > 64).count(), 4);
    drop(undisturbed);

    for vcpus in 1..=4 {
        let mut worker = Worker::ready(starting(&disk, vcpus));
        run(&mut worker, CHAINS);
        // Either format, each taken of a guest that came from the other.
        for generation in 0..4 {
            let path = place.path().join(format!("snapshot{vcpus}-{generation}"));
            let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            let mut bytes = Vec::new();
            let v8 = generation % 2 == 1;
            let request = Capture {
                diff: false,
                image: None,
                api: Chunk::default(),
                v8,
                disk_elsewhere: false,
                code: false,
                volume_mark: [0; 16],
            };
            frame::encode(&Command::Capture(Box::new(request)), &mut bytes).unwrap();
            send_with_fd(&worker.control, &bytes, &file).unwrap();
            let event = worker.event();
            assert!(matches!(event, Event::Captured(_)), "{event:?}");
            let restore = Restore {
                files: vec![path],
                identity: identity("clone"),
                working_set: vec![],
                arriving: false,
                code: PathBuf::new(),
                note_order: false,
            };
            let source = Source::Restore(Box::new(restore));
            worker = Worker::ready(Start { source, ..starting(&disk, vcpus) });
        }
        assert_eq!(end(&mut worker), expected, "{vcpus} vCPUs");
    }
}
