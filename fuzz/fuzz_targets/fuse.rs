//! Requests to the file server, as a hostile guest makes them up.
//!
//! The input is a row of requests, each an opcode, a node id, a length and so many bytes of arguments; the first byte
//! says how much room answers have. One opcode stands for a restore. Beside the shares lies a file that must stay as it
//! is; one share keeps owners of its own, where the file system has attributes, and has a quota, beyond which it must
//! not grow.
#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use supermachine_fs::abi::{IN_HEADER, OUT_HEADER};
use supermachine_fs::{Cache, Served, Session, Share};
use vm_memory::VolatileSlice;

const SECRET: &[u8] = b"not the guest's";
/// No opcode: the guest is captured and restored, from a snapshot in which somebody has changed bytes.
const RESTORED: u8 = 255;
const QUOTA: u64 = 256 << 10;
/// What the host's file system may take beside for what one request makes.
const SLACK: u64 = 64 << 10;

static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let place = std::env::temp_dir().join(format!("fuzz-fuse-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("secret"), SECRET).unwrap();
    place
});

/// Bytes that all in a directory takes on the disk.
fn taken(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let of = |entry: fs::DirEntry| {
        let found = entry.metadata().unwrap();
        found.blocks() * 512 + if found.is_dir() { taken(&entry.path()) } else { 0 }
    };
    entries.map(of).sum()
}

fuzz_target!(|data: &[u8]| {
    let share = PLACE.join("share");
    let _ = fs::remove_dir_all(&share);
    fs::create_dir_all(share.join("directory")).unwrap();
    fs::write(share.join("file"), "contents").unwrap();
    std::os::unix::fs::symlink("../secret", share.join("link")).unwrap();
    let owned = PLACE.join("owned");
    let _ = fs::remove_dir_all(&owned);
    fs::create_dir(&owned).unwrap();
    fs::write(owned.join("file"), "contents").unwrap();
    let limited = || Share::open(&owned, false, Cache::Auto).unwrap().with_quota(QUOTA);
    let mut before = taken(&owned);
    let shares = || {
        vec![
            Share::open(&share, false, Cache::Auto).unwrap(),
            Share::open(&share.join("directory"), true, Cache::Always).unwrap(),
            limited().with_owners_of_its_own().unwrap_or_else(|_| limited()),
        ]
    };
    let mut session = Session::new(shares(), 64, 0).unwrap();
    let Some((room, mut data)) = data.split_first() else { return };
    let room = usize::from(*room) * 64;
    while let [opcode, node, length, rest @ ..] = data {
        let length = rest.len().min(usize::from(*length));
        let (args, rest) = rest.split_at(length);
        data = rest;
        if *opcode == RESTORED {
            let mut saved = session.save();
            for change in args.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
                if let Some(byte) = saved.get_mut(at) {
                    *byte = change[2];
                }
            }
            // What it has made grow so far counts no more.
            before = taken(&owned);
            session = Session::new(shares(), 64, 0).unwrap();
            session.restore(saved);
            continue;
        }
        let mut request = vec![];
        request.extend(((IN_HEADER + args.len()) as u32).to_le_bytes());
        request.extend(u32::from(*opcode).to_le_bytes());
        request.extend(7_u64.to_le_bytes());
        request.extend(u64::from(*node).to_le_bytes());
        request.resize(IN_HEADER, 0);
        request.extend(args);
        let mut answer = vec![0; room];
        let (middle, end) = (request.len() / 2, room / 3);
        let served = {
            let (first, second) = request.split_at_mut(middle);
            let (third, fourth) = answer.split_at_mut(end);
            session.serve(
                &[VolatileSlice::from(first), second.into()],
                &[VolatileSlice::from(third), fourth.into()],
            )
        };
        if let Served::Answered(length) = served {
            assert!(length == 0 || (OUT_HEADER..=room).contains(&length));
        }
    }
    drop(session);
    assert_eq!(fs::read(PLACE.join("secret")).unwrap(), SECRET);
    assert!(taken(&owned) <= before + QUOTA + SLACK);
    // Only the three names that this target makes.
    assert_eq!(fs::read_dir(&*PLACE).unwrap().count(), 3);
});
