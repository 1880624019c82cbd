//! What a guest keeps of a file's contents from one time that it opens it to the next.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, SHARE};
use supermachine_fs::abi::{op, opened};
use supermachine_fs::{Cache, Share};

/// Whether the guest keeps them when it opens a file anew.
fn keeps(client: &mut Client, node: u64) -> bool {
    let answer = client.call(op::OPEN, node, &args!(0_u32, 0_u32)).unwrap();
    client.release(node, u64::from_le_bytes(answer[..8].try_into().unwrap()));
    u32::from_le_bytes(answer[8..12].try_into().unwrap()) & opened::KEEP_CACHE != 0
}

#[test]
fn contents_are_kept_while_a_file_is_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("file");
    std::fs::write(&path, "contents").unwrap();
    let of = |cache| Client::new(vec![Share::open(place.path(), false, cache).unwrap()]);
    let (mut auto, mut none) = (of(Cache::Auto), of(Cache::None));
    let (one, other) = (auto.lookup(SHARE, b"file").unwrap().0, none.lookup(SHARE, b"file").unwrap().0);
    // What has just been made may change once more in the same tick of the file system's clock.
    assert!(!keeps(&mut auto, one) && !keeps(&mut auto, one));
    let end = Instant::now() + Duration::from_secs(60);
    while !keeps(&mut auto, one) {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!keeps(&mut none, other) && !keeps(&mut none, other));
    // Another program changes it, and leaves its size and time as they were.
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, "CONTENTS").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    assert!(!keeps(&mut auto, one) && !keeps(&mut auto, one));
}

/// Of the flags with which a directory is opened, those that say what the guest keeps of its names.
fn names(client: &mut Client, node: u64) -> u32 {
    let answer = client.call(op::OPENDIR, node, &[0; 8]).unwrap();
    client
        .call(op::RELEASEDIR, node, &answer[..8].iter().copied().chain([0; 16]).collect::<Vec<_>>())
        .unwrap();
    u32::from_le_bytes(answer[8..12].try_into().unwrap()) & (opened::KEEP_CACHE | opened::CACHE_DIR)
}

#[test]
fn names_are_kept_for_a_second_while_a_directory_is_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("directory")).unwrap();
    let of = |cache| Client::new(vec![Share::open(place.path(), false, cache).unwrap()]);
    let (mut auto, mut none) = (of(Cache::Auto), of(Cache::None));
    let (one, other) =
        (auto.lookup(SHARE, b"directory").unwrap().0, none.lookup(SHARE, b"directory").unwrap().0);
    let kept = opened::KEEP_CACHE | opened::CACHE_DIR;
    // What has just been made may change once more in the same tick of the file system's clock.
    assert_eq!([names(&mut auto, one), names(&mut auto, one)], [opened::CACHE_DIR; 2]);
    let end = Instant::now() + Duration::from_secs(60);
    while names(&mut auto, one) != kept {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!([names(&mut none, other), names(&mut none, other)], [0; 2]);
    std::fs::write(place.path().join("directory/file"), "").unwrap();
    assert_eq!(names(&mut auto, one), opened::CACHE_DIR);
    // After a second it asks for all of it at once, with what the names stand for.
    while names(&mut auto, one) != kept {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_millis(1001));
    assert_eq!(names(&mut auto, one), opened::CACHE_DIR);
}
