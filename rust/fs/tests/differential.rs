//! The same operations on a share and on a plain directory: the same results, and the same tree in the end.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]

mod common;

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{Client, SHARE, share};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use supermachine_fs::abi::op;

#[derive(Clone, Debug)]
enum Step {
    Create {
        path: Vec<u8>,
        exclusive: bool,
        mode: u32,
    },
    Write {
        path: Vec<u8>,
        offset: u64,
        data: Vec<u8>,
        append: bool,
    },
    Read {
        path: Vec<u8>,
        offset: u64,
        size: u32,
    },
    Truncate {
        path: Vec<u8>,
        size: u64,
    },
    MakeDir {
        path: Vec<u8>,
        mode: u32,
    },
    MakeFifo {
        path: Vec<u8>,
    },
    Symlink {
        path: Vec<u8>,
        target: Vec<u8>,
    },
    ReadLink {
        path: Vec<u8>,
    },
    Link {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Unlink {
        path: Vec<u8>,
    },
    RemoveDir {
        path: Vec<u8>,
    },
    Rename {
        from: Vec<u8>,
        to: Vec<u8>,
        flags: u32,
    },
    Chmod {
        path: Vec<u8>,
        mode: u32,
    },
    Stat {
        path: Vec<u8>,
    },
    List {
        path: Vec<u8>,
        room: u32,
        plus: bool,
    },
    PunchHole {
        path: Vec<u8>,
        offset: u64,
        length: u64,
    },
    Seek {
        path: Vec<u8>,
        offset: u64,
        hole: bool,
    },
    SetXattr {
        path: Vec<u8>,
        value: Vec<u8>,
    },
    GetXattr {
        path: Vec<u8>,
    },
    /// Opens a file, removes its name, and uses it.
    Orphan {
        path: Vec<u8>,
        data: Vec<u8>,
    },
    /// As a program on the host would.
    HostWrite {
        path: Vec<u8>,
        data: Vec<u8>,
    },
    HostRename {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    HostRemove {
        path: Vec<u8>,
    },
}

/// What both sides say of a step.
type Outcome = Result<Vec<u8>, i32>;

fn paths() -> impl Strategy<Value = Vec<u8>> {
    let long: &[u8] = &[b'l'; 255];
    let names = prop::sample::select(vec![&b"a"[..], b"b", b"c", b"\xff name", long]);
    prop::collection::vec(names, 1..3).prop_map(|names| names.join(&b'/'))
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), 0_usize..9000).prop_map(|(byte, length)| vec![byte; length])
}

fn steps() -> impl Strategy<Value = Step> {
    let offset = 0_u64..20_000;
    let mode = prop::sample::select(vec![0o644_u32, 0o600, 0o755, 0o1777, 0o4755]);
    prop_oneof![
        4 => (paths(), any::<bool>(), mode.clone())
            .prop_map(|(path, exclusive, mode)| Step::Create { path, exclusive, mode }),
        4 => (paths(), offset.clone(), bytes(), any::<bool>())
            .prop_map(|(path, offset, data, append)| Step::Write { path, offset, data, append }),
        3 => (paths(), offset.clone(), 0_u32..70_000).prop_map(|(path, offset, size)| Step::Read { path, offset, size }),
        1 => (paths(), offset.clone()).prop_map(|(path, size)| Step::Truncate { path, size }),
        4 => (paths(), mode.clone()).prop_map(|(path, mode)| Step::MakeDir { path, mode }),
        1 => paths().prop_map(|path| Step::MakeFifo { path }),
        1 => (paths(), paths()).prop_map(|(path, target)| Step::Symlink { path, target }),
        1 => paths().prop_map(|path| Step::ReadLink { path }),
        2 => (paths(), paths()).prop_map(|(from, to)| Step::Link { from, to }),
        2 => paths().prop_map(|path| Step::Unlink { path }),
        1 => paths().prop_map(|path| Step::RemoveDir { path }),
        4 => (paths(), paths(), prop::sample::select(vec![0_u32, 0, 1, 2]))
            .prop_map(|(from, to, flags)| Step::Rename { from, to, flags }),
        1 => (paths(), mode).prop_map(|(path, mode)| Step::Chmod { path, mode }),
        3 => paths().prop_map(|path| Step::Stat { path }),
        2 => (paths(), prop::sample::select(vec![700_u32, 4096, 65_536]), any::<bool>())
            .prop_map(|(path, room, plus)| Step::List { path, room, plus }),
        1 => (paths(), offset.clone(), 1_u64..9000)
            .prop_map(|(path, offset, length)| Step::PunchHole { path, offset, length }),
        1 => (paths(), offset, any::<bool>()).prop_map(|(path, offset, hole)| Step::Seek { path, offset, hole }),
        1 => (paths(), bytes()).prop_map(|(path, value)| Step::SetXattr { path, value: value[..value.len().min(200)].into() }),
        1 => paths().prop_map(|path| Step::GetXattr { path }),
        2 => (paths(), bytes()).prop_map(|(path, data)| Step::Orphan { path, data }),
        1 => (paths(), bytes()).prop_map(|(path, data)| Step::HostWrite { path, data }),
        1 => (paths(), paths()).prop_map(|(from, to)| Step::HostRename { from, to }),
        1 => paths().prop_map(|path| Step::HostRemove { path }),
    ]
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A guest's kernel that has nothing cached.
struct Guest(Client);

impl Guest {
    fn parent<'a>(&mut self, path: &'a [u8]) -> Result<(u64, &'a [u8]), i32> {
        let (parent, name) = split(path);
        let parent = self.0.walk(SHARE, parent)?;
        Ok((parent, name))
    }

    fn opened<T>(
        &mut self,
        path: &[u8],
        flags: u32,
        use_it: impl FnOnce(&mut Client, u64, u64) -> Result<T, i32>,
    ) -> Result<T, i32> {
        let node = self.0.walk(SHARE, path)?;
        let kind = self.0.getattr(node)?.mode & libc::S_IFMT;
        // What the guest's kernel would say without asking.
        if kind == libc::S_IFLNK {
            return Err(libc::ELOOP);
        }
        let handle = self.0.open(node, flags)?;
        let done = use_it(&mut self.0, node, handle);
        self.0.release(node, handle);
        done
    }

    fn run(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Create { path, exclusive, mode } => {
                let (parent, name) = self.parent(path)?;
                let flags = if *exclusive { 0o202 } else { 0o2 };
                // The kernel looks first: only an absent file is created.
                if !exclusive && self.0.lookup(parent, name).is_ok() {
                    return self.opened(path, 0o2, |_, _, _| Ok(vec![]));
                }
                let (node, handle) = self.0.create(parent, name, flags, *mode)?;
                self.0.release(node, handle);
                Ok(vec![])
            }
            Step::Write { path, offset, data, append } => {
                let flags = if *append { 0o2001 } else { 0o1 };
                self.opened(path, flags, |client, node, handle| {
                    let written = client.write_as(node, handle, *offset, data, (0, flags));
                    written.map(|count| count.to_le_bytes().into())
                })
            }
            Step::Read { path, offset, size } => {
                self.opened(path, 0, |client, node, handle| client.read(node, handle, *offset, *size))
            }
            Step::Truncate { path, size } => {
                let node = self.0.walk(SHARE, path)?;
                self.0.setattr(node, 1 << 3, *size, 0).map(|_| vec![])
            }
            Step::MakeDir { path, mode } => {
                let (parent, name) = self.parent(path)?;
                self.0.mkdir(parent, name, *mode).map(|_| vec![])
            }
            Step::MakeFifo { path } => {
                let (parent, name) = self.parent(path)?;
                self.0.mknod(parent, name, libc::S_IFIFO | 0o644).map(|_| vec![])
            }
            Step::Symlink { path, target } => {
                let (parent, name) = self.parent(path)?;
                self.0.symlink(parent, name, target).map(|_| vec![])
            }
            Step::ReadLink { path } => {
                let node = self.0.walk(SHARE, path)?;
                if self.0.getattr(node)?.mode & libc::S_IFMT != libc::S_IFLNK {
                    return Err(libc::EINVAL);
                }
                self.0.readlink(node)
            }
            Step::Link { from, to } => {
                let node = self.0.walk(SHARE, from)?;
                let (parent, name) = self.parent(to)?;
                self.0.link(node, parent, name).map(|_| vec![])
            }
            Step::Unlink { path } => {
                let (parent, name) = self.parent(path)?;
                self.0.unlink(parent, name).map(|()| vec![])
            }
            Step::RemoveDir { path } => {
                let (parent, name) = self.parent(path)?;
                self.0.rmdir(parent, name).map(|()| vec![])
            }
            Step::Rename { from, to, flags } => {
                let (from, to) = (self.parent(from)?, self.parent(to)?);
                self.0.rename(from, to, *flags).map(|()| vec![])
            }
            Step::Chmod { path, mode } => {
                let node = self.0.walk(SHARE, path)?;
                self.0.setattr(node, 1, 0, *mode).map(|_| vec![])
            }
            Step::Stat { path } => {
                let node = self.0.walk(SHARE, path)?;
                let found = self.0.getattr(node)?;
                let size = if found.mode & libc::S_IFMT == libc::S_IFDIR { 0 } else { found.size };
                Ok(format!("{size} {:o} {}", found.mode, found.nlink).into())
            }
            Step::List { path, room, plus } => {
                let node = self.0.walk(SHARE, path)?;
                let mut names = self.0.list(node, *room, *plus)?;
                names.sort();
                Ok(names.join(&b'/'))
            }
            Step::PunchHole { path, offset, length } => self.opened(path, 0o2, |client, node, handle| {
                client.call(op::FALLOCATE, node, &args!(handle, *offset, *length, 3_u32, 0_u32))
            }),
            Step::Seek { path, offset, hole } => self.opened(path, 0, |client, node, handle| {
                let whence = if *hole { libc::SEEK_HOLE } else { libc::SEEK_DATA };
                client.call(op::LSEEK, node, &args!(handle, *offset, whence, 0_u32))
            }),
            Step::SetXattr { path, value } => {
                let node = self.0.walk(SHARE, path)?;
                let kind = self.0.getattr(node)?.mode & libc::S_IFMT;
                // Others have none of users' (xattr(7)), which the guest's kernel knows.
                if kind != libc::S_IFREG && kind != libc::S_IFDIR {
                    return Err(libc::EPERM);
                }
                self.0.setxattr(node, b"user.value", value).map(|()| vec![])
            }
            Step::GetXattr { path } => {
                let node = self.0.walk(SHARE, path)?;
                self.0.getxattr(node, b"user.value")
            }
            Step::Orphan { path, data } => {
                let (parent, name) = self.parent(path)?;
                self.opened(path, 0o2, |client, node, handle| {
                    client.unlink(parent, name)?;
                    client.write(node, handle, 3, data)?;
                    client.setattr(node, 1 << 3, 5, 0)?;
                    let size = client.getattr(node)?.size;
                    let nlink = client.getattr(node)?.nlink;
                    let mut read = client.read(node, handle, 0, 100)?;
                    read.extend(format!("{size} {nlink}").bytes());
                    Ok(read)
                })
            }
            Step::HostWrite { .. } | Step::HostRename { .. } | Step::HostRemove { .. } => unreachable!(),
        }
    }
}

/// The same by system calls.
struct Plain(PathBuf);

fn errno(error: Errno) -> i32 {
    error.raw_os_error()
}

fn io_errno(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

impl Plain {
    fn at(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.0.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Without following a link anywhere, as lookups do.
    fn open(&self, path: &[u8], flags: OFlags, mode: u32) -> Result<fs::File, i32> {
        let path = self.at(path);
        if let Ok(found) = fs::symlink_metadata(&path) {
            let kind = found.mode() & libc::S_IFMT;
            if flags.contains(OFlags::EXCL) {
                return Err(libc::EEXIST);
            }
            match kind {
                libc::S_IFIFO => return Err(libc::ENXIO),
                libc::S_IFDIR if !flags.contains(OFlags::DIRECTORY) => return Err(libc::EISDIR),
                _ => {}
            }
        }
        let fd = rustix::fs::openat(CWD, &path, flags | OFlags::NOFOLLOW, mode.into()).map_err(errno)?;
        Ok(OwnedFd::into(fd))
    }

    fn run(&self, step: &Step) -> Outcome {
        let none = |_| vec![];
        // A link on the way is no directory to who does not follow it.
        match step {
            Step::Create { path, exclusive, mode } => {
                let exclusive = if *exclusive { OFlags::EXCL } else { OFlags::empty() };
                self.open(path, OFlags::RDWR | OFlags::CREATE | exclusive, *mode).map(|_| vec![])
            }
            Step::Write { path, offset, data, append } => {
                let append = if *append { OFlags::APPEND } else { OFlags::empty() };
                let file = self.open(path, OFlags::WRONLY | append, 0)?;
                let count = file.write_at(data, *offset).map_err(io_errno)?;
                Ok((count as u32).to_le_bytes().into())
            }
            Step::Read { path, offset, size } => {
                let mut buffer = vec![0; *size as usize];
                let file = self.open(path, OFlags::RDONLY, 0)?;
                let count = file.read_at(&mut buffer, *offset).map_err(io_errno)?;
                buffer.truncate(count);
                Ok(buffer)
            }
            Step::Truncate { path, size } => {
                let found = fs::symlink_metadata(self.at(path)).map_err(io_errno)?.mode() & libc::S_IFMT;
                match found {
                    libc::S_IFREG => {
                        rustix::fs::ftruncate(self.open(path, OFlags::WRONLY, 0)?, *size).map_err(errno)?
                    }
                    libc::S_IFDIR => return Err(libc::EISDIR),
                    _ => return Err(libc::EINVAL),
                }
                Ok(vec![])
            }
            Step::MakeDir { path, mode } => {
                rustix::fs::mkdirat(CWD, self.at(path), (*mode).into()).map(none).map_err(errno)
            }
            Step::MakeFifo { path } => {
                let mode = Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(CWD, self.at(path), FileType::Fifo, mode, 0).map(none).map_err(errno)
            }
            Step::Symlink { path, target } => {
                let target = CString::new(target.clone()).unwrap();
                rustix::fs::symlinkat(target, CWD, self.at(path)).map(none).map_err(errno)
            }
            Step::ReadLink { path } => rustix::fs::readlinkat(CWD, self.at(path), vec![])
                .map(|target| target.into_bytes())
                .map_err(errno),
            Step::Link { from, to } => {
                rustix::fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())
                    .map(none)
                    .map_err(errno)
            }
            Step::Unlink { path } => fs::remove_file(self.at(path)).map(none).map_err(io_errno),
            Step::RemoveDir { path } => fs::remove_dir(self.at(path)).map(none).map_err(io_errno),
            Step::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits(*flags).unwrap();
                rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)
                    .map(none)
                    .map_err(errno)
            }
            Step::Chmod { path, mode } => {
                let found = fs::symlink_metadata(self.at(path)).map_err(io_errno)?;
                if found.is_symlink() {
                    return Err(libc::EOPNOTSUPP);
                }
                rustix::fs::chmodat(CWD, self.at(path), (*mode).into(), AtFlags::empty())
                    .map(none)
                    .map_err(errno)
            }
            Step::Stat { path } => {
                let found = fs::symlink_metadata(self.at(path)).map_err(io_errno)?;
                let size = if found.is_dir() { 0 } else { found.size() };
                Ok(format!("{size} {:o} {}", found.mode(), found.nlink()).into())
            }
            Step::List { path, .. } => {
                let found = fs::symlink_metadata(self.at(path)).map_err(io_errno)?;
                if !found.is_dir() {
                    return Err(libc::ENOTDIR);
                }
                let entries = fs::read_dir(self.at(path)).map_err(io_errno)?;
                let mut names: Vec<_> =
                    entries.map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect();
                names.extend([b".".to_vec(), b"..".to_vec()]);
                names.sort();
                Ok(names.join(&b'/'))
            }
            Step::PunchHole { path, offset, length } => {
                let file = self.open(path, OFlags::RDWR, 0)?;
                let mode = rustix::fs::FallocateFlags::from_bits(3).unwrap();
                rustix::fs::fallocate(file, mode, *offset, *length).map(none).map_err(errno)
            }
            Step::Seek { path, offset, hole } => {
                let file = self.open(path, OFlags::RDONLY, 0)?;
                let from = if *hole {
                    rustix::fs::SeekFrom::Hole(*offset)
                } else {
                    rustix::fs::SeekFrom::Data(*offset)
                };
                rustix::fs::seek(file, from).map(|at| at.to_le_bytes().into()).map_err(errno)
            }
            Step::SetXattr { path, value } => {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(self.at(path), "user.value", value, flags).map(none).map_err(errno)
            }
            Step::GetXattr { path } => {
                let mut value = vec![0; 65536];
                match rustix::fs::lgetxattr(self.at(path), "user.value", &mut value[..]) {
                    Ok(length) => Ok(value[..length].into()),
                    Err(Errno::PERM) => Err(libc::ENODATA),
                    Err(error) => Err(errno(error)),
                }
            }
            Step::Orphan { path, data } => {
                let file = self.open(path, OFlags::RDWR, 0)?;
                fs::remove_file(self.at(path)).map_err(io_errno)?;
                file.write_at(data, 3).map_err(io_errno)?;
                file.set_len(5).map_err(io_errno)?;
                let found = file.metadata().map_err(io_errno)?;
                let mut read = vec![0; 100];
                let count = file.read_at(&mut read, 0).map_err(io_errno)?;
                read.truncate(count);
                read.extend(format!("{} {}", found.size(), found.nlink()).bytes());
                Ok(read)
            }
            Step::HostWrite { path, data } => {
                self.open(path, OFlags::WRONLY | OFlags::CREATE, 0o644)?
                    .write_at(data, 0)
                    .map_err(io_errno)?;
                Ok(vec![])
            }
            Step::HostRename { from, to } => {
                fs::rename(self.at(from), self.at(to)).map(none).map_err(io_errno)
            }
            Step::HostRemove { path } => {
                let path = self.at(path);
                let found = fs::symlink_metadata(&path).map_err(io_errno)?;
                let removed = if found.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                removed.map(none).map_err(io_errno)
            }
        }
    }

    /// Whether a directory on the way to the path is a link.
    fn leads_through_a_link(&self, path: &[u8]) -> bool {
        let (parent, _) = split(path);
        !parent.is_empty() && fs::symlink_metadata(self.at(parent)).is_ok_and(|found| found.is_symlink())
    }
}

/// Every file below a directory: its kind, mode, size and contents.
fn tree(at: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut entries: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let contents = match metadata.mode() & libc::S_IFMT {
            libc::S_IFREG => format!("{:?}", fs::read(&path).unwrap()),
            libc::S_IFLNK => format!("{:?}", fs::read_link(&path).unwrap()),
            _ => String::new(),
        };
        found.push(format!(
            "{:?} {:o} {} {contents}",
            path.file_name().unwrap(),
            metadata.mode(),
            metadata.nlink()
        ));
        if metadata.is_dir() {
            found.extend(tree(&path));
        }
    }
    found
}

fn paths_of(step: &Step) -> Vec<&[u8]> {
    match step {
        Step::Link { from, to } | Step::Rename { from, to, .. } | Step::HostRename { from, to } => {
            vec![from, to]
        }
        Step::Create { path, .. }
        | Step::Write { path, .. }
        | Step::Read { path, .. }
        | Step::Truncate { path, .. }
        | Step::MakeDir { path, .. }
        | Step::MakeFifo { path }
        | Step::Symlink { path, .. }
        | Step::ReadLink { path }
        | Step::Unlink { path }
        | Step::RemoveDir { path }
        | Step::Chmod { path, .. }
        | Step::Stat { path }
        | Step::List { path, .. }
        | Step::PunchHole { path, .. }
        | Step::Seek { path, .. }
        | Step::SetXattr { path, .. }
        | Step::GetXattr { path }
        | Step::Orphan { path, .. }
        | Step::HostWrite { path, .. }
        | Step::HostRemove { path } => vec![path],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_share_behaves_like_a_directory(steps in prop::collection::vec(steps(), 1..60)) {
        let (shared, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut guest = Guest(Client::new(vec![share(shared.path(), false)]));
        let (host, plain) = (Plain(shared.path().into()), Plain(plain.path().into()));
        for step in &steps {
            // The guest's kernel follows links; these paths are no test of the server.
            if paths_of(step).iter().any(|path| plain.leads_through_a_link(path)) {
                continue;
            }
            let there = match step {
                Step::HostWrite { .. } | Step::HostRename { .. } | Step::HostRemove { .. } => host.run(step),
                step => guest.run(step),
            };
            let here = plain.run(step);
            // The order in which two reasons are found is the kernel's own.
            if there.is_err() && here.is_err() {
                continue;
            }
            prop_assert_eq!(there, here, "{:?}", step);
        }
        prop_assert_eq!(tree(&host.0), tree(&plain.0));
    }
}

/// Appending is a write's own business: a program may change its mind, and pages of a mapping have a place.
#[test]
fn what_is_appended_goes_to_the_end_and_mapped_pages_to_their_place() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("file");
    let mut client = Client::new(vec![share(place.path(), false)]);
    let append = 0o2000;
    let (node, handle) = client.create(SHARE, b"file", 0o2 | append, 0o644).unwrap();
    client.write_as(node, handle, 0, b"guest ", (0, append)).unwrap();
    // What somebody else has appended meanwhile is not written over.
    fs::write(&path, "guest host ").unwrap();
    client.write_as(node, handle, 6, b"guest", (0, append)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"guest host guest");
    client.write_as(node, handle, 0, b"MAPPED", (1, append)).unwrap();
    client.write_as(node, handle, 6, b"HOST", (0, 0)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"MAPPEDHOST guest");
    client.write_as(node, handle, 0, b"!", (0, append)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"MAPPEDHOST guest!");
}

#[test]
fn large_directories_are_listed_whole() {
    let place = tempfile::tempdir().unwrap();
    for number in 0..3000 {
        fs::write(place.path().join(format!("{number:0200}")), "").unwrap();
    }
    let mut client = Client::new(vec![share(place.path(), false)]);
    for (room, plus) in [(4096, false), (4096, true), (128 * 1024, true), (500, true)] {
        let mut names = client.list(SHARE, room, plus).unwrap();
        assert_eq!(names.len(), 3002);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 3002);
    }
}

#[test]
fn a_megabyte_goes_in_one_request() {
    let place = tempfile::tempdir().unwrap();
    let mut client = Client::new(vec![share(place.path(), false)]);
    let (node, handle) = client.create(SHARE, b"file", 0o2, 0o644).unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|byte: u32| ((byte * 7) >> 3) as u8).collect();
    // The test's request is in many small parts, and one call takes 1024 of them: what is left is asked for again.
    let mut written = 0;
    while written < data.len() {
        written += client.write(node, handle, written as u64, &data[written..]).unwrap() as usize;
    }
    assert_eq!(client.read(node, handle, 0, 1 << 20).unwrap(), data);
    assert_eq!(fs::read(place.path().join("file")).unwrap(), data);
}

/// Hard links are one file, whichever of the names goes.
#[test]
fn a_file_is_known_by_its_other_name() {
    let place = tempfile::tempdir().unwrap();
    let mut client = Client::new(vec![share(place.path(), false)]);
    let (node, handle) = client.create(SHARE, b"first", 0o2, 0o644).unwrap();
    client.release(node, handle);
    assert_eq!(client.link(node, SHARE, b"second"), Ok(node));
    client.unlink(SHARE, b"second").unwrap();
    assert_eq!(client.getattr(node).unwrap().nlink, 1);
    client.link(node, SHARE, b"third").unwrap();
    client.create(SHARE, b"other", 0o2, 0o644).unwrap();
    client.rename((SHARE, b"other"), (SHARE, b"third"), 0).unwrap();
    assert_eq!(client.getattr(node).unwrap().nlink, 1);
    client.rename((SHARE, b"first"), (SHARE, b"moved"), 0).unwrap();
    let handle = client.open(node, 0o2).unwrap();
    client.write(node, handle, 0, b"data").unwrap();
    assert_eq!(fs::read(place.path().join("moved")).unwrap(), b"data");
}

/// Also one that the host has made.
#[test]
fn a_name_of_the_hosts_stays_when_the_other_goes() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("first"), "data").unwrap();
    let mut client = Client::new(vec![share(place.path(), false)]);
    let node = client.lookup(SHARE, b"first").unwrap().0;
    fs::hard_link(place.path().join("first"), place.path().join("second")).unwrap();
    assert_eq!(client.lookup(SHARE, b"second").unwrap().0, node);
    // What the guest knows by both names was seen last by the one that goes.
    client.unlink(SHARE, b"second").unwrap();
    let handle = client.open(node, 0).unwrap();
    assert_eq!(client.read(node, handle, 0, 10).unwrap(), b"data");
}
