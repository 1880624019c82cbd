//! Restores go by code that another process has decoded, and only by code of which nobody else could have made them
//! run.

#![cfg(target_os = "linux")]
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use common::{Worker, boot, code_of, contents, going_by, restoring, snapshot_of, start, write};
use supermachine_proto::worker::{Boot, Event, Source, Start};

const PROGRAM: &str = env!("CARGO_BIN_EXE_supermachine-worker");

/// A snapshot, and what a guest of it has run by its first answer.
fn snapshot(vcpus: u32, path: &Path) -> (Vec<PathBuf>, Vec<u64>) {
    let source = Source::Boot(Box::new(Boot { vcpus, ..boot() }));
    let mut original = Worker::ready(Start { source, ..start() });
    write(&mut original, "/state", "before");
    snapshot_of(&mut original, path);
    let mut first = Worker::ready(restoring(&[path.into()], "first"));
    assert_eq!(contents(&mut first, "/state"), "before");
    (vec![path.into()], code_of(&mut first))
}

fn baked(program: &Path, files: &[PathBuf], places: &[u64], code: &Path) {
    let file = File::options().write(true).create_new(true).mode(0o600).open(code).unwrap();
    Worker::bake(program, files, places.into(), &file);
}

/// Whether a restored guest, which answers as it did before, went by the file.
fn goes_by(files: &[PathBuf], code: &Path) -> bool {
    let mut worker = Worker::spawn(going_by(files, code));
    let Event::Ready(timings) = worker.event() else { panic!("it is not ready") };
    assert_eq!(contents(&mut worker, "/state"), "before");
    timings.steps.iter().any(|(name, _)| name == "code")
}

fn taken(vcpus: u32) {
    let place = tempfile::tempdir().unwrap();
    let (files, places) = snapshot(vcpus, &place.path().join("whole"));
    assert!(places.len() > 1000, "{}", places.len());
    let code = place.path().join("code");
    baked(Path::new(PROGRAM), &files, &places, &code);
    assert!(fs::metadata(&code).unwrap().len() > 100_000);
    for _ in 0..2 {
        assert!(goes_by(&files, &code));
    }
    // Copies of a template have it, and so has what is taken of them.
    let template = Worker::template(going_by(&files, &code));
    let mut copy = Worker::fork(&template, restoring(&[], "copy"));
    copy.wait_ready();
    assert_eq!(contents(&mut copy, "/state"), "before");
    write(&mut copy, "/state", "after");
    let again = place.path().join("again");
    snapshot_of(&mut copy, &again);
    let mut last = Worker::ready(going_by(&[again], &code));
    assert_eq!(contents(&mut last, "/state"), "after");
}

#[test]
fn a_restore_goes_by_decoded_code() {
    taken(1);
}

#[test]
fn all_vcpus_go_by_it() {
    taken(2);
}

#[test]
fn what_others_could_have_made_is_left() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let (files, places) = snapshot(1, &at("whole"));
    let code = at("code");
    baked(Path::new(PROGRAM), &files, &places, &code);
    assert!(goes_by(&files, &code));
    assert!(!goes_by(&files, &at("missing")));

    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&code, Permissions::from_mode(mode)).unwrap();
        assert!(!goes_by(&files, &code), "{mode:o}");
    }
    fs::set_permissions(&code, Permissions::from_mode(0o600)).unwrap();
    symlink(&code, at("link")).unwrap();
    assert!(!goes_by(&files, &at("link")));
    fs::hard_link(&code, at("second")).unwrap();
    assert!(!goes_by(&files, &code));
    fs::remove_file(at("second")).unwrap();
    assert!(!goes_by(&files, place.path()));
    let pipe = at("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(!goes_by(&files, &pipe));
    // Who is root here can give it to somebody else.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&code, Some(12345), None).unwrap();
        assert!(!goes_by(&files, &code));
        std::os::unix::fs::chown(&code, Some(0), None).unwrap();
    }
    assert!(goes_by(&files, &code));
}

#[test]
fn what_is_not_of_this_build_this_snapshot_or_whole_is_left() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let (files, places) = snapshot(1, &at("whole"));
    let code = at("code");
    baked(Path::new(PROGRAM), &files, &places, &code);
    let good = fs::read(&code).unwrap();
    let left = |bytes: &[u8], what: &str| {
        fs::write(&code, bytes).unwrap();
        assert!(!goes_by(&files, &code), "{what}");
    };
    left(&[], "nothing");
    left(&good[..40], "a part of the header");
    left(&good[..good.len() - 1], "all but a byte");
    left(&[&good[..], &[0]].concat(), "a byte more");
    left(&[0x5a; 4096], "something else");
    let mut damaged = good.clone();
    damaged[70] ^= 1;
    left(&damaged, "another page");
    // Damage to operations is seen when the guest first runs in their page; what it runs then is decoded.
    let mut damaged = good.clone();
    let from = damaged.len() / 2;
    damaged[from..].fill(0xa5);
    fs::write(&code, damaged).unwrap();
    assert!(goes_by(&files, &code));

    // The same program of another build.
    let (other, other_code) = (at("other"), at("other code"));
    fs::copy(PROGRAM, &other).unwrap();
    let id = build_id(Path::new(PROGRAM));
    let program = fs::read(PROGRAM).unwrap();
    let found = program.windows(id.len()).position(|bytes| bytes == id).unwrap();
    let file = File::options().write(true).open(&other).unwrap();
    file.write_all_at(&[!id[0]], found as u64).unwrap();
    drop(file);
    baked(&other, &files, &places, &other_code);
    assert!(!goes_by(&files, &other_code));

    // The same snapshot in another file, and that file once it may have been changed.
    fs::write(&code, &good).unwrap();
    assert!(goes_by(&files, &code));
    fs::copy(&files[0], at("copy")).unwrap();
    assert!(!goes_by(&[at("copy")], &code));
    File::options().write(true).open(&files[0]).unwrap().set_modified(SystemTime::now()).unwrap();
    assert!(!goes_by(&files, &code));
}

/// The description of the note that the linker has made (elf(5)).
fn build_id(program: &Path) -> Vec<u8> {
    let bytes = fs::read(program).unwrap();
    let head = [4_u32, 20, 3].map(u32::to_ne_bytes).concat();
    let note = [&head[..], b"GNU\0"].concat();
    let at =
        bytes.windows(note.len()).position(|bytes| bytes == note).expect("SHA-1, as the linker makes it");
    bytes[at + note.len()..at + note.len() + 20].to_vec()
}

#[test]
fn places_may_be_anything() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let (files, places) = snapshot(1, &at("whole"));
    let (lowest, highest) = (places.iter().min().unwrap() & !0xfff, places.iter().max().unwrap() & !0xfff);
    let mut word = 7_u64;
    let mut wild: Vec<u64> = (0..20_000)
        .map(|n| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match n % 3 {
                0 => word,
                1 => lowest + (word >> 20) % (highest - lowest),
                _ => places[(word >> 33) as usize % places.len()] + (word & 0xfff),
            }
        })
        .collect();
    wild.extend([0, 1, u64::MAX, u64::MAX - 3]);
    let code = at("code");
    baked(Path::new(PROGRAM), &files, &wild, &code);
    assert!(fs::metadata(&code).unwrap().len() < 6 << 20);
    assert!(goes_by(&files, &code));
    baked(Path::new(PROGRAM), &files, &[], &at("none"));
    assert!(goes_by(&files, &at("none")));
}
