//! Changes in real directories, as they are told.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use supermachine_proto::agent::{Change, ChangeKind as Kind};
use supermachine_storage::watch::{self, Changes, Tree};

fn tree(top: &Path, most: usize) -> std::io::Result<Tree<OwnedFd>> {
    Tree::new(watch::descriptor()?, fs::File::open(top)?.into(), most)
}

/// All that there is to be told: the system has queued it when a call that changes something returns.
fn all(tree: &mut Tree<OwnedFd>) -> Changes {
    let mut all = Changes::default();
    loop {
        let undecided = tree.is_undecided();
        let read = tree.read().unwrap();
        let done = read == Changes::default() && !undecided && !tree.is_undecided();
        all.changes.extend(read.changes);
        all.lost |= read.lost;
        all.unwatched |= read.unwatched;
        if done {
            return all;
        }
    }
}

fn texts(all: Changes) -> Vec<(Kind, String)> {
    let text = |Change { kind, path, to, .. }: Change| {
        let [path, to] = [path, to].map(|path| String::from_utf8(path.0).unwrap());
        (kind, if to.is_empty() { path } else { format!("{path} -> {to}") })
    };
    all.changes.into_iter().map(text).collect()
}

fn told(tree: &mut Tree<OwnedFd>) -> Vec<(Kind, String)> {
    let all = all(tree);
    assert!(!all.lost && !all.unwatched);
    texts(all)
}

fn is(kind: Kind, path: &str) -> (Kind, String) {
    (kind, path.into())
}

#[test]
fn each_kind_of_change_is_told_by_its_path() {
    let place = tempfile::tempdir().unwrap();
    let top = place.path();
    fs::create_dir_all(top.join("a/b")).unwrap();
    fs::write(top.join("a/b/file"), "one").unwrap();
    let mut tree = tree(top, 100).unwrap();
    assert_eq!(told(&mut tree), []);
    fs::write(top.join("a/b/file"), "two").unwrap();
    assert_eq!(told(&mut tree), [is(Kind::Modified, "a/b/file"), is(Kind::Written, "a/b/file")]);
    fs::set_permissions(top.join("a/b/file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(told(&mut tree), [is(Kind::Attributes, "a/b/file")]);
    fs::rename(top.join("a/b/file"), top.join("a/other")).unwrap();
    assert_eq!(told(&mut tree), [is(Kind::Renamed, "a/b/file -> a/other")]);
    fs::remove_file(top.join("a/other")).unwrap();
    assert_eq!(told(&mut tree), [is(Kind::Removed, "a/other")]);
    symlink("/", top.join("link")).unwrap();
    assert_eq!(told(&mut tree), [is(Kind::Created, "link")]);
    // A directory goes on being watched by its new name.
    fs::rename(top.join("a/b"), top.join("c")).unwrap();
    fs::write(top.join("c/file"), "").unwrap();
    assert_eq!(
        told(&mut tree),
        [is(Kind::Renamed, "a/b -> c"), is(Kind::Created, "c/file"), is(Kind::Written, "c/file")]
    );
}

#[test]
fn what_is_in_a_new_directory_is_told_once() {
    let place = tempfile::tempdir().unwrap();
    let mut tree = tree(place.path(), 100).unwrap();
    fs::create_dir_all(place.path().join("a/b")).unwrap();
    fs::File::create(place.path().join("a/b/file")).unwrap();
    let told = told(&mut tree);
    for path in ["a", "a/b", "a/b/file"] {
        assert_eq!(told.iter().filter(|told| **told == is(Kind::Created, path)).count(), 1, "{told:?}");
    }
}

#[test]
fn what_leaves_is_removed_and_watched_no_more() {
    let place = tempfile::tempdir().unwrap();
    let (top, outside) = (place.path().join("top"), place.path().join("outside"));
    fs::create_dir_all(top.join("a/b")).unwrap();
    fs::create_dir(&outside).unwrap();
    let mut tree = tree(&top, 100).unwrap();
    fs::rename(top.join("a"), outside.join("a")).unwrap();
    assert_eq!(told(&mut tree), [is(Kind::Removed, "a")]);
    fs::write(outside.join("a/b/secret"), "").unwrap();
    assert_eq!(told(&mut tree), []);
    // Nor is a directory that a link stands for.
    symlink(&outside, top.join("link")).unwrap();
    assert_eq!(told(&mut tree), [is(Kind::Created, "link")]);
    fs::write(outside.join("another"), "").unwrap();
    assert_eq!(told(&mut tree), []);
}

#[test]
fn limits_are_told() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("a/b/c")).unwrap();
    assert_eq!(tree(place.path(), 3).err().unwrap().kind(), std::io::ErrorKind::QuotaExceeded);
    let mut tree = tree(place.path(), 4).unwrap();
    fs::create_dir(place.path().join("d")).unwrap();
    let all = all(&mut tree);
    assert!(all.unwatched && !all.lost);
    assert_eq!(all.changes.len(), 1);
}

#[test]
fn what_the_system_has_dropped_is_told() {
    let place = tempfile::tempdir().unwrap();
    let mut tree = tree(place.path(), 100).unwrap();
    let most: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let file = fs::File::create(place.path().join("file")).unwrap();
    // Two kinds in turn, which the system does not join.
    for number in 0..=most {
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.set_len(number as u64).unwrap();
    }
    assert!(all(&mut tree).lost);
    drop(file);
    assert_eq!(told(&mut tree), [is(Kind::Written, "file")]);
}

#[test]
fn what_was_dropped_is_found_by_its_times() {
    let place = tempfile::tempdir().unwrap();
    let top = place.path();
    for name in ["kept/deep", "gone/below", "moved"] {
        fs::create_dir_all(top.join(name)).unwrap();
    }
    for name in ["old", "changed", "kept/deep/old", "kept/deep/changed", "kept/removed", "mode"] {
        fs::write(top.join(name), "old").unwrap();
    }
    let mut tree = tree(top, 100).unwrap();
    // Times of before and of now differ.
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(told(&mut tree), []);
    let most: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let file = fs::File::create(top.join("noise")).unwrap();
    for number in 0..=most {
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.set_len(number as u64).unwrap();
    }
    fs::write(top.join("changed"), "new").unwrap();
    fs::write(top.join("kept/deep/changed"), "new").unwrap();
    fs::write(top.join("kept/new"), "").unwrap();
    fs::remove_file(top.join("kept/removed")).unwrap();
    fs::set_permissions(top.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_dir_all(top.join("gone")).unwrap();
    fs::rename(top.join("moved"), top.join("kept/renamed")).unwrap();
    fs::create_dir_all(top.join("new/below")).unwrap();
    fs::write(top.join("new/below/file"), "").unwrap();
    let all = all(&mut tree);
    assert!(all.lost && !all.unwatched);
    let found: Vec<_> =
        texts(all).into_iter().filter(|(_, path)| !matches!(&path[..], "noise" | "")).collect();
    let mut expected = vec![
        is(Kind::Modified, "changed"),
        is(Kind::Written, "changed"),
        is(Kind::Modified, "kept/deep/changed"),
        is(Kind::Written, "kept/deep/changed"),
        is(Kind::Created, "kept/new"),
        is(Kind::Modified, "kept/new"),
        is(Kind::Written, "kept/new"),
        is(Kind::Attributes, "mode"),
        is(Kind::Attributes, "kept"),
        is(Kind::Created, "kept/renamed"),
        is(Kind::Created, "new"),
        is(Kind::Created, "new/below"),
        is(Kind::Created, "new/below/file"),
        is(Kind::Removed, "gone/below"),
        is(Kind::Removed, "gone"),
        is(Kind::Removed, "moved"),
    ];
    let before = |one, other| {
        let at = |wanted| found.iter().position(|found| *found == wanted);
        assert!(at(one) < at(other), "{found:?}");
    };
    before(is(Kind::Removed, "gone/below"), is(Kind::Removed, "gone"));
    before(is(Kind::Created, "new"), is(Kind::Created, "new/below"));
    let mut found = found.clone();
    found.sort_by_key(|(kind, path)| (path.clone(), *kind as u8));
    expected.sort_by_key(|(kind, path)| (path.clone(), *kind as u8));
    assert_eq!(found, expected);
    // It goes on, by the names that directories have now.
    fs::write(top.join("kept/renamed/file"), "").unwrap();
    fs::write(top.join("new/below/file"), "x").unwrap();
    let told = told(&mut tree);
    assert!(told.contains(&is(Kind::Created, "kept/renamed/file")), "{told:?}");
    assert!(told.contains(&is(Kind::Modified, "new/below/file")), "{told:?}");
}

#[test]
fn a_single_file_is_watched() {
    let place = tempfile::NamedTempFile::new().unwrap();
    let mut tree = tree(place.path(), 1).unwrap();
    fs::write(place.path(), "one").unwrap();
    assert_eq!(told(&mut tree), [is(Kind::Modified, ""), is(Kind::Written, "")]);
}
