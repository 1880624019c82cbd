//! What a guest cannot do, whoever helps it from the host's side.

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
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Client, SHARE, share};
use supermachine_fs::abi::op;
use supermachine_fs::{Cache, Error, Session, Share};

const SECRET: &[u8] = b"not the guest's";

/// A directory with a share in it, and a secret beside the share.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("share")).unwrap();
    fs::write(place.path().join("secret"), SECRET).unwrap();
    place
}

#[test]
fn names_are_single_components() {
    let place = place();
    let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
    for name in [&b".."[..], b".", b"", b"../secret", b"/etc/passwd", b"a/b"] {
        assert_eq!(client.lookup(SHARE, name), Err(libc::EINVAL), "{name:?}");
        assert_eq!(client.mkdir(SHARE, name, 0o755), Err(libc::EINVAL), "{name:?}");
        assert_eq!(client.create(SHARE, name, 0o2, 0o644), Err(libc::EINVAL), "{name:?}");
        assert_eq!(client.unlink(SHARE, name), Err(libc::EINVAL), "{name:?}");
        assert_eq!(client.rename((SHARE, b"x"), (SHARE, name), 0), Err(libc::EINVAL), "{name:?}");
    }
    assert_eq!(client.lookup(SHARE, &[b'n'; 256]), Err(libc::ENAMETOOLONG));
}

#[test]
fn symbolic_links_are_not_followed() {
    let place = place();
    symlink("../secret", place.path().join("share/link")).unwrap();
    symlink("..", place.path().join("share/up")).unwrap();
    let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
    let (link, attributes) = client.lookup(SHARE, b"link").unwrap();
    assert_eq!(attributes.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(client.readlink(link).unwrap(), b"../secret");
    assert_eq!(client.open(link, 0), Err(libc::ENXIO));
    assert_eq!(client.setattr(link, 1 << 3, 0, 0), Err(libc::EINVAL));
    assert_eq!(client.setattr(link, 1, 0, 0o777), Err(libc::EOPNOTSUPP));
    let up = client.lookup(SHARE, b"up").unwrap().0;
    assert_eq!(client.lookup(up, b"secret"), Err(libc::ENOTDIR));
    assert_eq!(client.list(up, 4096, false), Err(libc::ENOTDIR));
    assert_eq!(fs::read(place.path().join("secret")).unwrap(), SECRET);
}

#[test]
fn a_known_name_that_becomes_a_link_is_stale() {
    let place = place();
    let at = |name: &str| place.path().join("share").join(name);
    fs::create_dir(at("directory")).unwrap();
    fs::write(at("directory/secret"), "harmless").unwrap();
    fs::write(at("file"), "harmless").unwrap();
    let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
    let file = client.lookup(SHARE, b"file").unwrap().0;
    let inner = client.walk(SHARE, b"directory/secret").unwrap();
    fs::remove_file(at("file")).unwrap();
    symlink("../secret", at("file")).unwrap();
    fs::remove_dir_all(at("directory")).unwrap();
    symlink("..", at("directory")).unwrap();
    assert_eq!(client.open(file, 0), Err(libc::ESTALE));
    assert_eq!(client.getattr(file), Err(libc::ESTALE));
    assert_eq!(client.open(inner, 0), Err(libc::ESTALE));
    assert_eq!(client.setattr(inner, 1 << 3, 0, 0), Err(libc::ESTALE));
    assert_eq!(fs::read(place.path().join("secret")).unwrap(), SECRET);
}

/// Another program exchanges a directory and a link to what is outside, as fast as it can.
#[test]
fn an_adversary_on_the_host_gains_nothing() {
    let place = place();
    let at = |name: &str| place.path().join("share").join(name);
    fs::create_dir(at("one")).unwrap();
    fs::write(at("one/secret"), "harmless").unwrap();
    symlink("..", at("two")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (one, two) = (at("one"), at("two"));
            while !done.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &one,
                    rustix::fs::CWD,
                    &two,
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
            }
        });
        let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
        let mut served = 0;
        for _ in 0..20_000 {
            let Ok((directory, _)) = client.lookup(SHARE, b"one") else { continue };
            let _ = client
                .create(directory, b"planted", 0o2, 0o644)
                .map(|(node, handle)| client.release(node, handle));
            let _ = client.unlink(directory, b"secret2");
            if let Ok((file, _)) = client.lookup(directory, b"secret") {
                if let Ok(handle) = client.open(file, 0o2) {
                    served += 1;
                    assert_eq!(client.read(file, handle, 0, 100).unwrap(), b"harmless");
                    client.write(file, handle, 0, b"harmless").unwrap();
                    client.release(file, handle);
                }
                client.forget(file, 1);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(served > 0);
    });
    assert_eq!(fs::read(place.path().join("secret")).unwrap(), SECRET);
    assert!(!place.path().join("planted").exists());
}

#[test]
fn fifos_and_devices_are_seen_and_never_opened() {
    let place = place();
    let path = place.path().join("share/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
    let (fifo, attributes) = client.lookup(SHARE, b"fifo").unwrap();
    assert_eq!(attributes.mode & libc::S_IFMT, libc::S_IFIFO);
    // Would wait for a writer.
    assert_eq!(client.open(fifo, 0), Err(libc::ENXIO));
    assert_eq!(client.create(SHARE, b"fifo", 0o1, 0o644), Err(libc::ENXIO));
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        assert_eq!(client.mknod(SHARE, b"device", kind | 0o666), Err(libc::EPERM));
    }
    client.mknod(SHARE, b"socket", libc::S_IFSOCK | 0o600).unwrap();
    assert!(fs::symlink_metadata(place.path().join("share/socket")).unwrap().file_type().is_socket());
    // A share must be a directory or a file in the first place.
    assert!(matches!(Share::open(&path, true, Cache::Auto), Err(Error::Kind)));
}

#[test]
fn a_read_only_share_stays_as_it_is() {
    let place = place();
    let at = |name: &str| place.path().join("share").join(name);
    fs::write(at("file"), "contents").unwrap();
    fs::create_dir(at("directory")).unwrap();
    let writable = tempfile::tempdir().unwrap();
    let shares = vec![share(&place.path().join("share"), true), share(writable.path(), false)];
    let mut client = Client::new(shares);
    let file = client.lookup(SHARE, b"file").unwrap().0;
    let refused = Err(libc::EROFS);
    assert_eq!(client.create(SHARE, b"new", 0o2, 0o644).map(drop), refused);
    assert_eq!(client.create(SHARE, b"file", 0, 0o644).map(drop), refused);
    assert_eq!(client.mkdir(SHARE, b"new", 0o755).map(drop), refused);
    assert_eq!(client.mknod(SHARE, b"new", 0o644).map(drop), refused);
    assert_eq!(client.symlink(SHARE, b"new", b"x").map(drop), refused);
    assert_eq!(client.unlink(SHARE, b"file"), refused);
    assert_eq!(client.rmdir(SHARE, b"directory"), refused);
    assert_eq!(client.rename((SHARE, b"file"), (SHARE, b"new"), 0), refused);
    assert_eq!(client.rename((SHARE, b"file"), (SHARE + 1, b"new"), 0), refused);
    assert_eq!(client.rename((SHARE + 1, b"file"), (SHARE, b"new"), 0), refused);
    assert_eq!(client.link(file, SHARE, b"new").map(drop), refused);
    assert_eq!(client.link(file, SHARE + 1, b"new").map(drop), Err(libc::EXDEV));
    assert_eq!(client.setattr(file, 1, 0, 0o777).map(drop), refused);
    assert_eq!(client.setattr(file, 1 << 3, 0, 0).map(drop), refused);
    assert_eq!(client.setxattr(file, b"user.a", b"b"), refused);
    for flags in [0o1, 0o2, 0o1000, 0o1 | 0o2000] {
        assert_eq!(client.open(file, flags), Err(libc::EROFS), "{flags:o}");
    }
    let handle = client.open(file, 0).unwrap();
    assert_eq!(client.read(file, handle, 0, 100).unwrap(), b"contents");
    assert_eq!(client.write(file, handle, 0, b"x").map(drop), refused);
    assert_eq!(
        client.call(op::FALLOCATE, file, &args!(handle, 0_u64, 1_u64 << 20, 0_u32, 0_u32)).map(drop),
        refused
    );
    assert_eq!(fs::read_dir(at("")).unwrap().count(), 2);
    // The session's own root has no room for more.
    assert_eq!(client.mkdir(1, b"new", 0o755).map(drop), refused);
}

#[test]
fn nothing_moves_between_shares() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(one.path().join("file"), "x").unwrap();
    let mut client = Client::new(vec![share(one.path(), false), share(other.path(), false)]);
    let file = client.lookup(SHARE, b"file").unwrap().0;
    assert_eq!(client.rename((SHARE, b"file"), (SHARE + 1, b"file"), 0), Err(libc::EXDEV));
    assert_eq!(client.link(file, SHARE + 1, b"file"), Err(libc::EXDEV));
}

/// Writes so many bytes to a file's start, in requests that take what they take; how many there was room for, and why
/// not more.
fn fill(client: &mut Client, (node, handle): (u64, u64), length: usize) -> (usize, Option<i32>) {
    let data = vec![7; length];
    let mut written = 0;
    while written < length {
        match client.write(node, handle, written as u64, &data[written..length.min(written + (64 << 10))]) {
            Ok(more) => written += more as usize,
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

/// By a guest's own arithmetic, which need not be a kernel's.
#[test]
fn a_quota_holds_whatever_is_asked() {
    let place = tempfile::tempdir().unwrap();
    let mut client = Client::new(vec![share(place.path(), false).with_quota(1 << 20)]);
    let first = client.create(SHARE, b"file", 0o2, 0o644).unwrap();
    let (written, refused) = fill(&mut client, first, 2 << 20);
    assert!((900 << 10..=1 << 20).contains(&written), "{written}");
    assert_eq!(refused, Some(libc::ENOSPC));
    let (node, handle) = first;
    for (at, length) in [(1_u64 << 21, 1_u64 << 20), (0, u64::MAX >> 1), (u64::MAX - 1, 2)] {
        let allocate = args!(handle, at, length, 0_u32, 0_u32);
        assert!(client.call(op::FALLOCATE, node, &allocate).is_err());
    }
    let copy = args!(handle, 0_u64, node, handle, 1_u64 << 22, 1_u64 << 19, 0_u64);
    assert!(client.call(op::COPY_FILE_RANGE, node, &copy).is_err());
    assert_eq!(client.mkdir(SHARE, b"directory", 0o755), Err(libc::ENOSPC));
    // What is on the disk is written over, a hole costs nothing, and what is given back is there again.
    assert_eq!(fill(&mut client, first, 900 << 10), (900 << 10, None));
    client.setattr(node, 1 << 3, 1 << 40, 0).unwrap();
    client.setattr(node, 1 << 3, 0, 0).unwrap();
    assert_eq!(fill(&mut client, first, 256 << 10), (256 << 10, None));
    // Names of one file are one file, and one that is open is there until it is closed.
    client.link(node, SHARE, b"other").unwrap();
    client.unlink(SHARE, b"file").unwrap();
    client.unlink(SHARE, b"other").unwrap();
    let second = client.create(SHARE, b"second", 0o2, 0o644).unwrap();
    let (written, refused) = fill(&mut client, second, 900 << 10);
    assert_eq!((written <= 768 << 10, refused), (true, Some(libc::ENOSPC)));
    client.release(node, handle);
    assert_eq!(fill(&mut client, second, 900 << 10), (900 << 10, None));
    assert!(fs::metadata(place.path().join("second")).unwrap().blocks() * 512 <= 1 << 20);
}

#[test]
fn a_mode_has_sixteen_bits_however_it_is_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let Ok(owned) = share(place.path(), false).with_owners_of_its_own() else { return };
    let mut client = Client::new(vec![owned]);
    assert_eq!(client.mknod(SHARE, b"pipe", 0x10000 | libc::S_IFIFO | 0o600), Err(libc::EINVAL));
    assert!(std::fs::read_dir(place.path()).unwrap().next().is_none());
    let pipe = client.mknod(SHARE, b"pipe", libc::S_IFIFO | 0o600).unwrap();
    assert_eq!(client.getattr(pipe).unwrap().mode, libc::S_IFIFO | 0o600);
}

#[test]
fn a_share_without_attributes_keeps_no_owners() {
    let share = Share::open("/proc/self".as_ref(), true, Cache::Auto).unwrap();
    assert!(matches!(share.with_owners_of_its_own(), Err(Error::Owners(_))));
}

#[test]
fn shares_within_shares_keep_their_own_rules() {
    let place = place();
    fs::create_dir(place.path().join("share/inner")).unwrap();
    let shares =
        vec![share(&place.path().join("share"), false), share(&place.path().join("share/inner"), true)];
    let mut client = Client::new(shares);
    let inner = client.lookup(SHARE, b"inner").unwrap().0;
    assert_ne!(inner, SHARE + 1);
    assert_eq!(client.mkdir(SHARE + 1, b"new", 0o755), Err(libc::EROFS));
    client.mkdir(inner, b"new", 0o755).unwrap();
}

#[test]
fn a_file_can_be_shared() {
    let place = place();
    let mut client = Client::new(vec![share(&place.path().join("secret"), false)]);
    let (node, attributes) = client.lookup(1, b"0").unwrap();
    assert_eq!((node, attributes.size), (SHARE, SECRET.len() as u64));
    let handle = client.open(SHARE, 0o2).unwrap();
    assert_eq!(client.read(SHARE, handle, 0, 1000).unwrap(), SECRET);
    assert_eq!(client.lookup(SHARE, b"x"), Err(libc::ENOTDIR));
    assert_eq!(client.lookup(1, b"1"), Err(libc::ENOENT));
    assert_eq!(client.list(1, 4096, true).unwrap(), vec![b"0".to_vec()]);
}

#[test]
fn what_is_deleted_on_the_host_is_freed() {
    let place = place();
    let path = place.path().join("share/file");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
    let node = client.lookup(SHARE, b"file").unwrap().0;
    client.setattr(node, 1, 0, 0o600).unwrap();
    let handle = client.open(node, 0).unwrap();
    fs::remove_file(&path).unwrap();
    // What is open stays, with all that can be asked of it.
    assert_eq!(client.getattr(node).unwrap().nlink, 0);
    assert_eq!(client.read(node, handle, 0, 10).unwrap(), [1; 10]);
    client.release(node, handle);
    assert_eq!(client.getattr(node), Err(libc::ESTALE));
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let deleted = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    let deleted = deleted
        .filter(|path| path.starts_with(place.path()) && path.to_string_lossy().ends_with("(deleted)"));
    assert_eq!(deleted.count(), 0);
}

#[test]
fn set_user_id_goes_when_a_file_is_written() {
    let place = place();
    let path = place.path().join("share/program");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
    let node = client.lookup(SHARE, b"program").unwrap().0;
    let handle = client.open(node, 0o1).unwrap();
    let mut write = args!(handle, 0_u64, 3_u32, 4_u32, 0_u64, 0_u32, 0_u32);
    write.extend_from_slice(b"new");
    client.call(op::WRITE, node, &write).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn attributes_of_the_hosts_kernel_are_not_shared() {
    let place = place();
    fs::write(place.path().join("share/file"), "").unwrap();
    let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
    let file = client.lookup(SHARE, b"file").unwrap().0;
    for (name, absent) in [
        (&b"security.capability"[..], libc::ENODATA),
        (b"trusted.overlay.opaque", libc::ENODATA),
        (b"system.nfs4_acl", libc::EOPNOTSUPP),
    ] {
        assert_eq!(client.setxattr(file, name, b"x"), Err(libc::EOPNOTSUPP));
        assert_eq!(client.getxattr(file, name), Err(absent));
    }
    client.setxattr(file, b"user.colour", b"green").unwrap();
    assert_eq!(client.getxattr(file, b"user.colour").unwrap(), b"green");
    let list = client.call(op::LISTXATTR, file, &args!(65536_u32, 0_u32)).unwrap();
    assert_eq!(list, b"user.colour\0");
}

/// As many files as there are must not need as many descriptors.
#[test]
fn descriptors_are_bounded() {
    let place = place();
    let limit = 512;
    let shares = vec![share(&place.path().join("share"), false)];
    let mut client = Client::new(vec![]);
    client.session = Session::new(shares, limit, 0).unwrap();
    let mut nodes = vec![];
    for number in 0..4 * limit {
        let directory = client.mkdir(SHARE, number.to_string().as_bytes(), 0o755).unwrap();
        let (file, handle) = client.create(directory, b"file", 0o2, 0o644).unwrap();
        client.release(file, handle);
        nodes.push((directory, file));
    }
    // Of this test's share alone: others run beside it.
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let open = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    assert!((open.filter(|path| path.starts_with(place.path())).count() as u64) < limit);
    for (directory, file) in nodes {
        assert!(client.getattr(file).is_ok() && client.lookup(directory, b"file").is_ok());
    }
    // What is open is limited as well, with the error that says so.
    let file = client.lookup(SHARE, b"0").and_then(|(node, _)| client.lookup(node, b"file")).unwrap().0;
    let refused = (0..=limit).find_map(|_| client.open(file, 0).err());
    assert_eq!(refused, Some(libc::ENFILE));
    assert!(client.lookup(SHARE, b"1").is_ok());
}

/// What one user of the guest's has open leaves the others as much, and what is closed can be had again.
#[test]
fn one_user_does_not_take_what_all_may_have_open() {
    let place = place();
    let mut client = Client::new(vec![share(&place.path().join("share"), false)]);
    let (file, _) = client.create(SHARE, b"file", 0o2, 0o644).unwrap();
    client.user = 1000;
    let held: Vec<u64> = std::iter::from_fn(|| client.open(file, 0).ok()).collect();
    assert!(held.len() >= 512, "{}", held.len());
    assert_eq!(client.open(file, 0), Err(libc::ENFILE));
    assert_eq!(client.call(op::OPENDIR, SHARE, &args!(0_u32, 0_u32)), Err(libc::ENFILE));
    assert_eq!(client.create(SHARE, b"other", 0o2, 0o644), Err(libc::ENFILE));
    assert!(!place.path().join("share/other").exists());
    client.user = 1001;
    let others: Vec<u64> = (0..held.len() / 2).map(|_| client.open(file, 0).unwrap()).collect();
    client.user = 1000;
    client.release(file, held[0]);
    assert!(client.open(file, 0).is_ok());
    assert_eq!(client.open(file, 0), Err(libc::ENFILE));
    // Root can end whom it likes, and has what is left.
    client.user = 0;
    assert!((0..others.len() / 2).all(|_| client.open(file, 0).is_ok()));
}

/// A guest that was restored keeps numbers that the new session has never given.
#[test]
fn numbers_of_before_a_restore_are_stale() {
    let place = place();
    fs::write(place.path().join("share/file"), "contents").unwrap();
    let mut before = Client::new(vec![share(&place.path().join("share"), false)]);
    let old = before.lookup(SHARE, b"file").unwrap().0;
    let handle = before.open(old, 0).unwrap();
    let again = 1 << 40;
    let session = Session::new(vec![share(&place.path().join("share"), false)], 4096, again).unwrap();
    before.session = session;
    assert_eq!(before.getattr(old), Err(libc::ESTALE));
    assert_eq!(before.read(old, handle, 0, 10), Err(libc::ESTALE));
    let new = before.lookup(SHARE, b"file").unwrap().0;
    assert_ne!(new, old);
    let handle = before.open(new, 0).unwrap();
    assert_eq!(before.read(new, handle, 0, 10).unwrap(), b"contents");
    // And one without any shares says so.
    before.session = Session::new(vec![], 4096, again).unwrap();
    assert_eq!(before.getattr(SHARE), Err(libc::ESTALE));
    assert_eq!(before.lookup(1, b"0"), Err(libc::ENOENT));
}
