//! A guest that was restored, with what it knew and had open of its shares.

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
use std::path::Path;

use common::{Client, SHARE, share};
use supermachine_fs::abi::{guest_open, op};
use supermachine_fs::{Session, Share, Stale, Why};

/// The first number of a session that comes after another.
const AGAIN: u64 = 1 << 40;

fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("share/directory/below")).unwrap();
    fs::write(place.path().join("share/directory/file"), "contents").unwrap();
    fs::write(place.path().join("share/other"), "other").unwrap();
    place
}

/// Has the guest go on with a session of its own.
fn restored(client: &mut Client, saved: Vec<u8>, shares: Vec<Share>) {
    client.session = Session::new(shares, 4096, AGAIN).unwrap();
    client.session.restore(saved);
}

/// One that is told of.
fn stale(path: &str, why: Why) -> Stale {
    Stale { share: 0, path: path.into(), why }
}

fn shared(place: &Path) -> Vec<Share> {
    vec![share(&place.join("share"), false)]
}

#[test]
fn what_was_open_and_known_goes_on() {
    let place = place();
    let mut client = Client::new(shared(place.path()));
    let directory = client.lookup(SHARE, b"directory").unwrap().0;
    let file = client.lookup(directory, b"file").unwrap().0;
    let handle = client.open(file, guest_open::RDWR).unwrap();
    let reads = client.open(file, 0).unwrap();
    let opened = client.call(op::OPENDIR, directory, &[0; 8]).unwrap();
    let listing = u64::from_le_bytes(opened[..8].try_into().unwrap());
    let saved = client.session.save();
    // The original goes on, and so does each that comes of it, also of one that has not used it.
    restored(&mut client, saved.clone(), shared(place.path()));
    assert_eq!(client.session.save(), saved);
    assert_eq!(client.read(file, handle, 0, 100).unwrap(), b"contents");
    assert_eq!(client.write(file, handle, 0, b"CON"), Ok(3));
    assert_eq!(client.write(file, reads, 0, b"x"), Err(libc::EBADF));
    assert_eq!(fs::read(place.path().join("share/directory/file")).unwrap(), b"CONtents");
    // struct fuse_read_in, the size being the third field.
    let wanted = [listing, 0, 4096, 0, 0].map(u64::to_le_bytes).concat();
    let listed = client.call(op::READDIR, directory, &wanted).unwrap();
    assert!(listed.windows(5).any(|name| name == b"below") && listed.windows(4).any(|name| name == b"file"));
    // The same file has the number that it had, and a new one another.
    assert_eq!(client.lookup(directory, b"file").unwrap().0, file);
    assert!(client.lookup(SHARE, b"other").unwrap().0 >= AGAIN >> 1);
    // What the guest forgets is forgotten.
    client.release(file, handle);
    assert_eq!(client.read(file, handle, 0, 1), Err(libc::ESTALE));
    client.forget(file, 2);
    assert_eq!(client.getattr(file), Err(libc::ESTALE));
}

#[test]
fn what_is_another_file_by_now_is_stale_and_nothing_else_is() {
    let place = place();
    let top = place.path().join("share");
    let mut client = Client::new(shared(place.path()));
    let directory = client.lookup(SHARE, b"directory").unwrap().0;
    let file = client.lookup(directory, b"file").unwrap().0;
    let other = client.lookup(SHARE, b"other").unwrap().0;
    let handles = (client.open(file, 0).unwrap(), client.open(other, 0).unwrap());
    let saved = client.session.save();
    fs::write(top.join("new"), "another").unwrap();
    fs::rename(top.join("new"), top.join("directory/file")).unwrap();
    restored(&mut client, saved.clone(), shared(place.path()));
    assert_eq!(client.session.stale(), []);
    assert_eq!(client.read(file, handles.0, 0, 100), Err(libc::ESTALE));
    assert_eq!(client.getattr(file), Err(libc::ESTALE));
    assert_eq!(client.read(other, handles.1, 0, 100).unwrap(), b"other");
    // It is told of that, and once.
    assert_eq!(client.session.stale(), [stale("directory/file", Why::Changed)]);
    assert_eq!(client.session.stale(), []);
    // A link has taken the place of a directory.
    fs::rename(top.join("directory"), place.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(place.path().join("moved"), top.join("directory")).unwrap();
    restored(&mut client, saved.clone(), shared(place.path()));
    assert_eq!(client.lookup(directory, b"below").err(), Some(libc::ESTALE));
    // Another directory is shared, or none, or it may not be written to.
    fs::create_dir_all(place.path().join("second/directory")).unwrap();
    fs::hard_link(top.join("other"), place.path().join("second/other")).unwrap();
    restored(&mut client, saved.clone(), vec![share(&place.path().join("second"), false)]);
    assert_eq!(client.read(other, handles.1, 0, 100), Err(libc::ESTALE));
    let both = |client: &mut Client| {
        let mut found = client.session.stale();
        found.sort_by(|one, other| one.path.cmp(&other.path));
        assert_eq!(found, [stale("directory/file", Why::OtherShare), stale("other", Why::OtherShare)]);
    };
    both(&mut client);
    restored(&mut client, saved.clone(), vec![]);
    both(&mut client);
    assert_eq!(client.getattr(other), Err(libc::ESTALE));
    let mut client = Client::new(shared(place.path()));
    let other = client.lookup(SHARE, b"other").unwrap().0;
    let handles = (client.open(other, guest_open::RDWR).unwrap(), client.open(other, 0).unwrap());
    let saved = client.session.save();
    restored(&mut client, saved, vec![share(&top, true)]);
    assert_eq!(client.read(other, handles.0, 0, 100), Err(libc::ESTALE));
    assert_eq!(client.read(other, handles.1, 0, 100).unwrap(), b"other");
    assert_eq!(client.session.stale(), [stale("other", Why::ReadOnly)]);
}

/// A snapshot is anybody's.
#[test]
fn nothing_outside_is_reached_by_what_is_said_to_have_been_known() {
    let place = place();
    fs::write(place.path().join("secret"), "secret").unwrap();
    let mut client = Client::new(shared(place.path()));
    let directory = client.lookup(SHARE, b"directory").unwrap().0;
    let file = client.lookup(directory, b"file").unwrap().0;
    let handle = client.open(file, guest_open::RDWR).unwrap();
    let saved = client.session.save();
    // Names of one length, so that the rest stays what it is.
    let at = saved.windows(4).position(|found| found == b"file").unwrap();
    for name in [&b"a/./"[..], b"..//", b"\0\0\0\0", b"../."] {
        let mut forged = saved.clone();
        forged[at..at + 4].copy_from_slice(name);
        restored(&mut client, forged, shared(place.path()));
        assert_eq!(client.read(file, handle, 0, 10), Err(libc::ESTALE));
        assert_eq!(client.getattr(file), Err(libc::ESTALE));
    }
    // A directory of another share, by the rules of this one.
    fs::create_dir_all(place.path().join("read/below")).unwrap();
    fs::write(place.path().join("read/below/file"), "read").unwrap();
    let both = || vec![share(&place.path().join("share"), false), share(&place.path().join("read"), true)];
    let mut other = Client::new(both());
    let inner = other.lookup(SHARE, b"directory").unwrap().0;
    let below = other.lookup(SHARE + 1, b"below").unwrap().0;
    let of_other = other.lookup(below, b"file").unwrap().0;
    let mut forged = other.session.save();
    // Its share's number stands behind its own.
    let id = postcard::to_stdvec(&of_other).unwrap();
    let found = forged.windows(id.len() + 1).position(|found| found == [&id[..], &[1]].concat()).unwrap();
    forged[found + id.len()] = 0;
    restored(&mut other, forged, both());
    assert_eq!(other.open(of_other, 0), Err(libc::ESTALE));
    assert!(other.getattr(below).is_ok());
    assert!(other.getattr(inner).is_ok());
    // Whatever it is made of: no panic, and no answer but the file's own or an error.
    let mut changed = 0;
    for at in 0..saved.len() {
        for flip in [1, 0x80, 0xff] {
            let mut forged = saved.clone();
            forged[at] ^= flip;
            restored(&mut client, forged, shared(place.path()));
            match client.read(file, handle, 0, 10) {
                Ok(read) => assert_eq!(read, b"contents"),
                Err(_) => changed += 1,
            }
        }
    }
    assert!(changed > 0);
    for length in 0..saved.len() {
        restored(&mut client, saved[..length].to_vec(), shared(place.path()));
        assert_eq!(client.read(file, handle, 0, 10), Err(libc::ESTALE));
    }
}
