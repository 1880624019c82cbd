//! Changes of the host's that the guest's agent does once more, and what it cannot do so.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Client, SHARE, named, share};
use supermachine_fs::abi::{op, set};
use supermachine_proto::echo::{ANNOUNCEMENT, Announcement, BEGIN, END, Step};

const ROOT: u64 = 1;
const AGENT: u32 = 77;
const OTHER: u32 = 78;
const UNDERSTOOD: Result<(), i32> = Err(libc::EALREADY);
const OWN: Result<(), i32> = Err(libc::ECANCELED);
const REFUSED: i32 = libc::EPERM;

/// Beside it, the agent's thread is known.
fn client(place: &Path) -> Client {
    let mut client = Client::new(vec![share(place, false).watched()]);
    client.thread = AGENT;
    assert_eq!(client.lookup(ROOT, BEGIN.to_bytes()).err(), Some(libc::EALREADY));
    client.thread = OTHER;
    client
}

fn announce(client: &mut Client, node: u64, step: Step, directory: bool, name: &[u8]) -> Result<(), i32> {
    let value = Announcement { step, directory, name }.encode();
    client.setxattr(node, ANNOUNCEMENT.to_bytes(), &value)
}

/// What the agent's thread does.
fn agent<T>(client: &mut Client, does: impl FnOnce(&mut Client) -> T) -> T {
    client.thread = AGENT;
    let done = does(client);
    client.thread = OTHER;
    done
}

#[test]
fn what_the_host_has_made_is_made_once_more() {
    let place = tempfile::tempdir().unwrap();
    let mut client = client(place.path());
    fs::write(place.path().join("file"), "contents").unwrap();
    fs::create_dir(place.path().join("new")).unwrap();
    // The guest may know it already.
    let known = client.lookup(SHARE, b"file").unwrap();
    agent(&mut client, |client| {
        assert_eq!(announce(client, SHARE, Step::Created, false, b"file"), UNDERSTOOD);
        assert_eq!(client.lookup(SHARE, b"file").err(), Some(libc::ENOENT));
        assert_eq!(client.mknod(SHARE, b"file", libc::S_IFREG | 0o600), Ok(known.0));
        // Once.
        assert_eq!(client.lookup(SHARE, b"file"), Ok(known));
        assert_eq!(client.mknod(SHARE, b"file", libc::S_IFREG | 0o600), Err(REFUSED));
        assert_eq!(announce(client, SHARE, Step::Created, true, b"new"), UNDERSTOOD);
        assert!(client.mkdir(SHARE, b"new", 0o700).is_ok());
        // Gone again before it could be told.
        assert_eq!(announce(client, SHARE, Step::Created, false, b"none"), Err(libc::ENOENT));
        assert_eq!(client.mknod(SHARE, b"none", libc::S_IFREG | 0o600), Err(REFUSED));
    });
    assert_eq!(fs::read_to_string(place.path().join("file")).unwrap(), "contents");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
}

#[test]
fn what_the_host_has_removed_is_removed_once_more_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let mut client = client(place.path());
    let path = place.path().join("file");
    fs::write(&path, "first").unwrap();
    let (known, _) = client.lookup(SHARE, b"file").unwrap();
    let handle = client.open(known, 0).unwrap();
    fs::remove_file(&path).unwrap();
    // Somebody has made another meanwhile: that one stays.
    fs::write(&path, "second one").unwrap();
    agent(&mut client, |client| {
        assert_eq!(announce(client, SHARE, Step::Removed, false, b"file"), UNDERSTOOD);
        let (node, attributes) = client.lookup(SHARE, b"file").unwrap();
        // It is the one that was, and as long as it was for who has it open.
        assert_eq!((node, attributes.size), (known, 5));
        assert_eq!(client.unlink(SHARE, b"file"), Ok(()));
        assert_eq!(client.unlink(SHARE, b"file"), Err(REFUSED));
        // What the guest did not know is told as well.
        assert_eq!(announce(client, SHARE, Step::Removed, true, b"directory"), UNDERSTOOD);
        assert_eq!(client.lookup(SHARE, b"directory").unwrap().1.mode & libc::S_IFMT, libc::S_IFDIR);
        assert_eq!(client.rmdir(SHARE, b"directory"), Ok(()));
        assert_eq!(client.lookup(SHARE, b"directory").err(), Some(libc::ENOENT));
    });
    assert_eq!(fs::read_to_string(&path).unwrap(), "second one");
    assert_eq!(client.read(known, handle, 0, 100).unwrap(), b"first");
    assert_ne!(client.lookup(SHARE, b"file").unwrap().0, known);
}

#[test]
fn what_the_host_has_renamed_is_renamed_once_more() {
    let place = tempfile::tempdir().unwrap();
    let mut client = client(place.path());
    fs::create_dir(place.path().join("d")).unwrap();
    fs::write(place.path().join("old"), "moved").unwrap();
    fs::write(place.path().join("d/new"), "replaced").unwrap();
    let (directory, _) = client.lookup(SHARE, b"d").unwrap();
    let (moved, _) = client.lookup(SHARE, b"old").unwrap();
    let (replaced, _) = client.lookup(directory, b"new").unwrap();
    fs::rename(place.path().join("old"), place.path().join("d/new")).unwrap();
    fs::write(place.path().join("old"), "another").unwrap();
    agent(&mut client, |client| {
        assert_eq!(announce(client, SHARE, Step::From, false, b"old"), UNDERSTOOD);
        assert_eq!(announce(client, directory, Step::To, false, b"new"), UNDERSTOOD);
        assert_eq!(client.lookup(SHARE, b"old").unwrap().0, moved);
        assert_eq!(client.lookup(directory, b"new").unwrap().0, replaced);
        assert_eq!(client.rename((SHARE, b"old"), (directory, b"new"), 0), Ok(()));
        assert_eq!(client.lookup(directory, b"new").unwrap().0, moved);
        assert_eq!(client.rename((SHARE, b"old"), (directory, b"new"), 0), Err(REFUSED));
    });
    assert_eq!(fs::read_to_string(place.path().join("old")).unwrap(), "another");
    assert_eq!(fs::read_to_string(place.path().join("d/new")).unwrap(), "moved");
}

#[test]
fn contents_and_attributes_stay_as_they_are() {
    let place = tempfile::tempdir().unwrap();
    let mut client = client(place.path());
    let path = place.path().join("file");
    fs::write(&path, "contents").unwrap();
    let (node, _) = client.lookup(SHARE, b"file").unwrap();
    let before = fs::metadata(&path).unwrap();
    agent(&mut client, |client| {
        for (kind, valid) in
            [(Step::Modified, set::SIZE), (Step::Attributes, set::MODE | set::ATIME | set::MTIME)]
        {
            let seen = client.getattr(node).unwrap();
            assert_eq!(announce(client, SHARE, kind, false, b"file"), UNDERSTOOD);
            // What another changes from here on is not told by this answer.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644 + u32::from(kind == Step::Modified)))
                .unwrap();
            assert_eq!(client.setattr(node, valid, 0, 0o777), Ok(seen));
            assert_eq!(client.setattr(node, valid, 0, 0o777), Err(REFUSED));
        }
        assert_eq!(announce(client, SHARE, Step::Written, false, b"file"), UNDERSTOOD);
        let handle = client.open(node, 1).unwrap();
        assert_eq!(client.write(node, handle, 0, b"x"), Err(REFUSED));
        client.release(node, handle);
        assert_eq!(client.open(node, 1), Err(REFUSED));
    });
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.len(), after.mtime(), after.mtime_nsec()), (8, before.mtime(), before.mtime_nsec()));
    assert_eq!(after.mode() & 0o777, 0o644);
}

#[test]
fn a_change_of_the_guest_s_own_is_not_told_twice() {
    let place = tempfile::tempdir().unwrap();
    let mut client = client(place.path());
    let (node, handle) = client.create(SHARE, b"file", 2, 0o600).unwrap();
    client.write(node, handle, 0, b"contents").unwrap();
    agent(&mut client, |client| {
        for kind in [Step::Created, Step::Modified, Step::Written, Step::Attributes] {
            assert_eq!(announce(client, SHARE, kind, false, b"file"), OWN, "{kind:?}");
        }
    });
    client.rename((SHARE, b"file"), (SHARE, b"other"), 0).unwrap();
    agent(&mut client, |client| {
        assert_eq!(announce(client, SHARE, Step::From, false, b"file"), UNDERSTOOD);
        assert_eq!(announce(client, SHARE, Step::To, false, b"other"), OWN);
    });
    client.unlink(SHARE, b"other").unwrap();
    agent(&mut client, |client| assert_eq!(announce(client, SHARE, Step::Removed, false, b"other"), OWN));
    // What the host does to the same names is told.
    fs::write(place.path().join("file"), "").unwrap();
    agent(&mut client, |client| {
        assert_eq!(announce(client, SHARE, Step::Created, false, b"file"), UNDERSTOOD);
        assert_eq!(announce(client, SHARE, Step::Written, false, b"file"), UNDERSTOOD);
        assert_eq!(announce(client, SHARE, Step::Removed, false, b"other"), UNDERSTOOD);
    });
}

#[test]
fn who_is_not_known_announces_nothing_and_who_is_changes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let mut client = client(place.path());
    fs::write(place.path().join("file"), "contents").unwrap();
    let (node, _) = client.lookup(SHARE, b"file").unwrap();
    assert_eq!(announce(&mut client, SHARE, Step::Removed, false, b"file"), Err(libc::EOPNOTSUPP));
    agent(&mut client, |client| {
        // Without an announcement, and by names that are none.
        assert_eq!(client.unlink(SHARE, b"file"), Err(REFUSED));
        assert_eq!(client.create(SHARE, b"new", 2, 0o600), Err(REFUSED));
        assert_eq!(client.link(node, SHARE, b"new"), Err(REFUSED));
        assert_eq!(client.setattr(node, set::SIZE, 0, 0), Err(REFUSED));
        for name in [&b".."[..], b"a/b", &[b'x'; 256], b"a\0b"] {
            assert_eq!(announce(client, SHARE, Step::Removed, false, name), Err(libc::EINVAL));
        }
        assert_eq!(client.setxattr(SHARE, ANNOUNCEMENT.to_bytes(), b"\x63\0file"), Err(libc::EINVAL));
        // Another name than the one that was announced.
        fs::write(place.path().join("other"), "").unwrap();
        assert_eq!(announce(client, SHARE, Step::Removed, false, b"gone"), UNDERSTOOD);
        assert_eq!(client.unlink(SHARE, b"other"), Err(REFUSED));
        assert_eq!(client.lookup(ROOT, END.to_bytes()).err(), Some(libc::ENOENT));
    });
    // Forgotten, it is as any is.
    agent(&mut client, |client| assert_eq!(client.unlink(SHARE, b"other"), Ok(())));
    assert_eq!(fs::read_to_string(place.path().join("file")).unwrap(), "contents");
    // No more threads than shares there may be.
    for thread in 1000..1000 + 64 {
        client.thread = thread;
        assert_eq!(client.lookup(ROOT, BEGIN.to_bytes()).err(), Some(libc::EALREADY));
    }
    client.thread = AGENT;
    assert_eq!(client.lookup(ROOT, BEGIN.to_bytes()).err(), Some(libc::EBUSY));
}

#[test]
fn a_share_that_is_not_watched_knows_no_thread() {
    let place = tempfile::tempdir().unwrap();
    let mut client = Client::new(vec![share(place.path(), false)]);
    assert_eq!(client.lookup(ROOT, BEGIN.to_bytes()).err(), Some(libc::ENOENT));
    fs::write(place.path().join("file"), "").unwrap();
    assert_eq!(announce(&mut client, SHARE, Step::Removed, false, b"file"), Err(libc::EOPNOTSUPP));
    assert_eq!(client.call(op::UNLINK, SHARE, &named(vec![], &[b"file"])), Ok(vec![]));
}
