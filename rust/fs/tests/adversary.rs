//! Every operation of the guest's while another program renames, exchanges for links to what is outside, and removes
//! what the operation is about.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Client, SHARE, named, share};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use supermachine_fs::abi::op;

const SECRET: &[u8] = b"not the guest's";
/// Tries of each operation against each adversary.
const TRIES: usize = 150;

/// What a guest has found before it asks.
struct Found {
    directory: u64,
    file: u64,
    link: u64,
    handle: u64,
    listing: u64,
}

/// What it asks then, by opcode: of which node, with which arguments.
fn request(opcode: u32, found: &Found, n: usize) -> Option<(u64, Vec<u8>)> {
    let Found { directory, file, link, handle, listing } = *found;
    let new = format!("new{n}").into_bytes();
    let words = |count: usize| vec![0_u8; 8 * count];
    Some(match opcode {
        op::LOOKUP => (directory, named(vec![], &[b"file"])),
        op::GETATTR => (file, words(2)),
        op::SETATTR => {
            // Mode, owner, group, size, times: each alone.
            let (valid, own) = ([1_u32, 2, 4, 8, 0x30, 0x180][n % 6], rustix::process::getuid().as_raw());
            let mut args = args!(valid, 0_u32, 0_u64, 3_u64, 0_u64, 7_u64, 7_u64, 0_u64, 0_u32, 0_u32, 0_u32);
            args.extend(args!(0o600_u32, 0_u32, own, own, 0_u32));
            ([file, directory][n / 6 % 2], args)
        }
        op::READLINK => (link, vec![]),
        op::SYMLINK => (directory, named(vec![], &[&new, b"target"])),
        op::MKNOD => (directory, named(args!(libc::S_IFIFO | 0o600, 0_u32, 0_u32, 0_u32), &[&new])),
        op::MKDIR => (directory, named(args!(0o700_u32, 0_u32), &[&new])),
        op::UNLINK => (directory, named(vec![], &[[&b"file"[..], b"victim"][n % 2]])),
        op::RMDIR => (directory, named(vec![], &[b"empty"])),
        op::RENAME => (directory, named(args!(SHARE), &[[&b"file"[..], b"victim"][n % 2], &new])),
        op::RENAME2 => (SHARE, named(args!(directory, (n % 2) as u32 * 2, 0_u32), &[b"spare", b"file"])),
        op::LINK => (directory, named(args!(file), &[&new])),
        op::OPEN => (file, args!([0_u32, 1, 2, 0o1001][n % 4], 0_u32)),
        op::CREATE => {
            let name = [&new[..], b"file", b"link"][n % 3];
            (directory, named(args!(0o1102_u32, 0o600_u32, 0_u32, 0_u32), &[name]))
        }
        op::TMPFILE => (directory, named(args!(0o2_u32, 0o600_u32, 0_u32, 0_u32), &[b""])),
        op::READ => (file, args!(handle, 0_u64, 100_u32, 0_u32, 0_u64, 0_u64)),
        op::WRITE => {
            let mut args = args!(handle, 0_u64, 5_u32, 0_u32, 0_u64, 0_u64);
            args.extend(b"wrote");
            (file, args)
        }
        op::STATFS => (file, vec![]),
        op::LISTXATTR => (file, args!(4096_u32, 0_u32)),
        op::FSYNC => (file, args!(handle, 0_u64)),
        op::FSYNCDIR => (directory, args!(listing, 0_u64)),
        op::SETXATTR => {
            (file, [named(args!(1_u32, 0_u32, 0_u32, 0_u32), &[b"user.planted"]), vec![b'x']].concat())
        }
        op::GETXATTR => (file, named(args!(4096_u32, 0_u32), &[b"user.secret"])),
        op::REMOVEXATTR => (file, named(vec![], &[b"user.secret"])),
        op::FLUSH => (file, args!(handle, 0_u64, 1_u64)),
        op::OPENDIR => (directory, words(1)),
        op::READDIR | op::READDIRPLUS => (directory, args!(listing, 0_u64, 4096_u32, 0_u32, 0_u64, 0_u64)),
        op::GETLK | op::SETLK | op::SETLKW => {
            (file, args!(handle, 1_u64, 0_u64, 9_u64, libc::F_RDLCK as u32, 1_u32, 0_u32, 0_u32))
        }
        op::FALLOCATE => (file, args!(handle, 0_u64, 4096_u64, 0_u64)),
        op::LSEEK => (file, args!(handle, 0_u64, 4_u32, 0_u32)),
        op::COPY_FILE_RANGE => (file, args!(handle, 0_u64, file, handle, 100_u64, 5_u64, 0_u64)),
        // Of numbers alone: nothing on the host is named by them.
        op::FORGET
        | op::BATCH_FORGET
        | op::RELEASE
        | op::RELEASEDIR
        | op::INTERRUPT
        | op::INIT
        | op::DESTROY => {
            return None;
        }
        _ => panic!("opcode {opcode} has no case here"),
    })
}

/// All opcodes that the server knows.
fn opcodes() -> BTreeSet<u32> {
    let source = include_str!("../src/abi.rs");
    let module = source.split_once("pub mod op {").unwrap().1.split_once('}').unwrap().0;
    module
        .lines()
        .filter_map(|line| line.trim().strip_suffix(';')?.rsplit_once("= ")?.1.parse().ok())
        .collect()
}

/// What is outside, with all that an operation could change.
fn outside(place: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    for name in ["", "file", "victim", "empty", "link"] {
        let path = place.join("outside").join(name);
        let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        let what = (found.mode(), found.uid(), found.gid(), found.nlink(), found.size());
        seen.push(format!("{name} {times:?} {what:?}"));
    }
    let mut names: Vec<_> =
        fs::read_dir(place.join("outside")).unwrap().map(|found| found.unwrap().file_name()).collect();
    names.sort();
    seen.push(format!("{names:?} {:?}", fs::read(place.join("outside/file")).unwrap()));
    seen
}

fn fill(directory: &Path, contents: &[u8]) {
    let _ = fs::create_dir(directory);
    let _ = fs::create_dir(directory.join("empty"));
    let _ = fs::write(directory.join("file"), contents);
    let _ = fs::write(directory.join("victim"), contents);
    let _ = symlink("file", directory.join("link"));
}

/// Makes anew what operations have removed, without following what the adversary puts there.
fn refill(share: &Path) {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(share.join("directory"), flags, Mode::empty()) else { return };
    let _ = rustix::fs::mkdirat(&directory, "empty", Mode::RWXU);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for name in ["file", "victim"] {
        if let Ok(file) = rustix::fs::openat(&directory, name, flags, Mode::RUSR | Mode::WUSR) {
            let _ = rustix::io::write(&file, b"harmless");
        }
    }
    let _ = rustix::fs::symlinkat("file", &directory, "link");
}

/// What the adversary does, over and over, in the share.
type Attack = fn(&Path);

fn exchange(one: &Path, other: &Path) {
    let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
}

const ATTACKS: [(&str, Attack); 4] = [
    ("a directory becomes a link", |share| exchange(&share.join("directory"), &share.join("evil"))),
    ("a file becomes a link", |share| exchange(&share.join("directory/file"), &share.join("evil file"))),
    ("a directory moves away, and another takes its name", |share| {
        exchange(&share.join("directory"), &share.join("elsewhere"));
    }),
    ("all is removed, and made anew", |share| {
        let _ = fs::remove_dir_all(share.join("directory"));
        fill(&share.join("directory"), b"harmless");
    }),
];

#[test]
fn an_adversary_gains_nothing_in_any_operation() {
    for (name, attack) in ATTACKS {
        for opcode in opcodes() {
            let place = tempfile::tempdir().unwrap();
            let top = place.path().join("share");
            fill(&place.path().join("outside"), SECRET);
            fs::create_dir(&top).unwrap();
            fill(&top.join("directory"), b"harmless");
            fill(&top.join("elsewhere"), b"harmless");
            symlink("../outside", top.join("evil")).unwrap();
            symlink("../../outside/file", top.join("evil file")).unwrap();
            let before = outside(place.path());
            race(&top, opcode, attack);
            assert_eq!(outside(place.path()), before, "{name}, opcode {opcode}");
        }
    }
}

/// Asks while the adversary is at work.
fn race(top: &Path, opcode: u32, attack: Attack) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                attack(top);
            }
        });
        // However this thread ends, so does the other.
        let _ended = Ended(&done);
        let mut client = Client::new(vec![share(top, false)]);
        for n in 0..TRIES {
            refill(top);
            let _ = fs::write(top.join("spare"), "harmless");
            let Ok((directory, _)) = client.lookup(SHARE, b"directory") else { continue };
            let Ok((file, _)) = client.lookup(directory, b"file") else { continue };
            let link = client.lookup(directory, b"link").map_or(file, |found| found.0);
            let handle = client.open(file, 2).unwrap_or(0);
            let listing = client
                .call(op::OPENDIR, directory, &[0; 8])
                .map_or(0, |answer| u64::from_le_bytes(answer[..8].try_into().unwrap()));
            let found = Found { directory, file, link, handle, listing };
            let Some((node, args)) = request(opcode, &found, n) else { break };
            if let Ok(answer) = client.call(opcode, node, &args) {
                assert!(!answer.windows(SECRET.len()).any(|part| part == SECRET), "opcode {opcode}");
                if matches!(opcode, op::OPEN | op::CREATE) {
                    let (at, node) = if opcode == op::OPEN { (0, file) } else { (128, number(&answer, 0)) };
                    let opened = number(&answer, at);
                    let _ = client.write(node, opened, 0, b"wrote");
                    let read = client.read(node, opened, 0, 100).unwrap_or_default();
                    assert!(!read.windows(SECRET.len()).any(|part| part == SECRET), "opcode {opcode}");
                    client.release(node, opened);
                }
            }
            client.release(file, handle);
            let _ = client.call(op::RELEASEDIR, directory, &args!(listing, 0_u64, 0_u64));
        }
    });
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
