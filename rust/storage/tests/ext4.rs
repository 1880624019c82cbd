//! What other implementations say of file systems made here: e2fsck and debugfs of e2fsprogs.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use supermachine_storage::BLOCK;
use supermachine_storage::ext4::{self, Error, Identity, Life, MAX_BYTES, MIN_BYTES};

const IDENTITY: Identity = Identity { uuid: *b"0123456789abcdef", created: 1_700_000_000 };

fn made(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    ext4::make(file.as_file(), bytes, &IDENTITY).unwrap();
    file
}

/// That of a disk which ends with its machine.
fn passing(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    ext4::write(bytes, &IDENTITY, Life::Passing, &mut |data, offset| {
        file.as_file().write_all_at(data, offset)
    })
    .unwrap();
    file
}

/// What e2fsck finds; it changes nothing.
fn check(file: &tempfile::NamedTempFile) {
    let done = Command::new("e2fsck").args(["-f", "-n"]).arg(file.path()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn copies_in_two_groups_are_whole() {
    let file = made(1 << 40);
    let descriptors = |group: u64| {
        let mut found = vec![0; 128 * BLOCK as usize];
        file.as_file().read_exact_at(&mut found, (group * 32768 + 1) * BLOCK).unwrap();
        found
    };
    for group in [1, 3] {
        assert!(descriptors(group) == descriptors(0));
        let superblock = format!("superblock={}", group * 32768);
        let done = Command::new("dumpe2fs")
            .args(["-h", "-o", &superblock, "-o", "blocksize=4096"])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(done.status.success() && done.stdout.starts_with(b"Filesystem volume name:"), "{done:?}");
    }
}

fn debugfs(file: &tempfile::NamedTempFile, command: &str) -> String {
    let done = Command::new("debugfs").args(["-w", "-R", command]).arg(file.path()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}");
    said
}

#[test]
fn any_size_passes_e2fsck() {
    let group = 32768 * BLOCK;
    for bytes in [
        MIN_BYTES,
        MIN_BYTES + 5 * BLOCK + 17,
        group - BLOCK,
        group,
        // The last group too small, just large enough, and whole.
        group + BLOCK,
        group + 579 * BLOCK,
        group + 580 * BLOCK,
        2 * group,
        1 << 30,
        64 * group + 600 * BLOCK,
        65 * group,
        16 << 30,
    ] {
        check(&made(bytes));
        check(&passing(bytes));
    }
}

#[test]
fn a_terabyte_costs_next_to_nothing() {
    let file = made(1 << 40);
    let metadata = file.as_file().metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 40);
    assert!(metadata.blocks() * 512 <= 2 << 20, "{}", metadata.blocks() * 512);
    let said = debugfs(&file, "stats");
    assert!(said.contains("Block count:              268435456"), "{said}");
}

#[test]
fn a_disk_that_ends_with_its_machine_has_no_checksums_but_of_descriptors() {
    let said = debugfs(&passing(64 << 30), "stats");
    let line = said.lines().find(|line| line.starts_with("Filesystem features:")).unwrap();
    assert!(line.contains("uninit_bg") && !line.contains("metadata_csum"), "{line}");
    assert!(
        said.lines().any(|line| line.starts_with("Mount options:") && line.ends_with("dioread_lock")),
        "{said}"
    );
    assert!(debugfs(&made(64 << 30), "stats").contains("metadata_csum"));
}

#[test]
fn files_can_be_written_to_it() {
    for file in [made(1 << 30), passing(1 << 30)] {
        takes_files(&file);
    }
}

fn takes_files(file: &tempfile::NamedTempFile) {
    let contents = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(contents.path(), vec![7; 3 << 20]).unwrap();
    debugfs(file, "mkdir directory");
    debugfs(file, &format!("write {} directory/file", contents.path().display()));
    check(file);
    let copy = tempfile::NamedTempFile::new().unwrap();
    debugfs(file, &format!("dump directory/file {}", copy.path().display()));
    assert_eq!(std::fs::read(copy.path()).unwrap(), vec![7; 3 << 20]);
}

#[test]
fn the_same_identity_gives_the_same_bytes() {
    let (one, other) = (made(MIN_BYTES), made(MIN_BYTES));
    assert!(std::fs::read(one.path()).unwrap() == std::fs::read(other.path()).unwrap());
}

#[test]
fn what_was_in_the_file_is_gone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0xff; 20 << 20]).unwrap();
    ext4::make(file.as_file(), MIN_BYTES, &IDENTITY).unwrap();
    assert!(std::fs::read(file.path()).unwrap() == std::fs::read(made(MIN_BYTES).path()).unwrap());
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let file: File = tempfile::tempfile().unwrap();
    for bytes in [0, MIN_BYTES - 1, MAX_BYTES + 1, u64::MAX] {
        assert!(matches!(ext4::make(&file, bytes, &IDENTITY), Err(Error::Size { .. })));
    }
    assert_eq!(file.metadata().unwrap().len(), 0);
}
