//! What the host changes in shares, told to the programs of this guest that watch files (inotify(7)).
//!
//! The kernel tells of what is done by way of its own file systems. So each change is done here once more, by a system call
//! that the file server knows for an echo: it answers as if that had changed what is changed already, and does nothing on
//! the host. A thread that has made itself known to the server can change nothing there in any other way, and only root
//! reaches the place where that is done.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use supermachine_proto::agent::{AttachReply, Change, ChangeKind, Changes, Chunk};
use supermachine_proto::echo::{ANNOUNCEMENT, Announcement, BEGIN, END, OWN, Step, UNDERSTOOD};
use supermachine_proto::frame;

use crate::{freeze, shares, sys};

/// include/uapi/linux/openat2.h
#[repr(C)]
struct How {
    flags: u64,
    mode: u64,
    resolve: u64,
}
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;

/// Tells of the changes that come, until the connection ends or the guest has become another one.
pub(crate) fn serve(mut connection: File) -> Result<(), frame::Error> {
    let life = freeze::life();
    if shares::root().is_none_or(|root| understood(access(root, BEGIN)).is_err()) {
        let message = "the machine has no share that is watched, or too many are".into();
        return frame::write(&mut connection, &AttachReply::Failed { message });
    }
    let served = follow(&mut connection, life);
    if let Some(root) = shares::root() {
        // The number of this thread may be another program's next.
        drop(access(root, END));
    }
    served
}

fn follow(connection: &mut File, life: u64) -> Result<(), frame::Error> {
    frame::write(connection, &AttachReply::Done)?;
    while let Some(Changes { share, changes }) = frame::read(connection)? {
        for change in &changes {
            // A snapshot never falls between an announcement and what is announced.
            let Some(turn) = freeze::turn(life) else { return Ok(()) };
            // What cannot be told is gone by now, mostly, and the next change says so.
            let _ = tell(share, change);
            drop(turn);
        }
        frame::write(connection, &AttachReply::Done)?;
    }
    Ok(())
}

/// Whether the server has understood.
fn understood(said: io::Result<()>) -> io::Result<()> {
    match said {
        Err(error) if error.raw_os_error() == Some(UNDERSTOOD) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Asks for a name in the session's root.
fn access(root: &OwnedFd, name: &CStr) -> io::Result<()> {
    // SAFETY: the string is NUL-terminated, and the call writes nothing.
    sys::check(unsafe { libc::faccessat(root.as_raw_fd(), name.as_ptr(), libc::F_OK, 0) }).map(drop)
}

/// The path by which a descriptor is reached.
fn through(fd: &OwnedFd) -> io::Result<CString> {
    sys::c_string(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A directory of a share, and a name in it; an empty one for the share itself.
struct Place {
    directory: OwnedFd,
    name: CString,
}

impl Place {
    fn of(share: u32, path: &[u8]) -> io::Result<Self> {
        let root = shares::root().ok_or(io::ErrorKind::NotFound)?;
        let mut whole = share.to_string().into_bytes();
        let name = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => {
                whole.push(b'/');
                whole.extend_from_slice(&path[..at]);
                &path[at + 1..]
            }
            None => path,
        };
        let how = How {
            flags: (libc::O_PATH | libc::O_CLOEXEC).cast_unsigned().into(),
            mode: 0,
            resolve: RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
        };
        let (whole, how) = (sys::c_string(whole)?, &raw const how);
        let (root, size) = (root.as_raw_fd(), size_of::<How>());
        // SAFETY: the string is NUL-terminated, and pointer and size are those of the structure.
        let fd = unsafe { libc::syscall(libc::SYS_openat2, root, whole.as_ptr(), how, size) };
        let fd = sys::check(i32::try_from(fd).unwrap_or(-1))?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self { directory: unsafe { OwnedFd::from_raw_fd(fd) }, name: sys::c_string(name)? })
    }

    /// Says what comes next.
    fn announce(&self, step: Step, directory: bool) -> io::Result<()> {
        let value = Announcement { step, directory, name: self.name.as_bytes() }.encode();
        let path = through(&self.directory)?;
        let (path, name, value, size) = (path.as_ptr(), ANNOUNCEMENT.as_ptr(), &value[..], value.len());
        // SAFETY: the strings are NUL-terminated, and pointer and length are those of the value.
        understood(
            sys::check(unsafe { libc::setxattr(path, name, value.as_ptr().cast(), size, 0) }).map(drop),
        )
    }

    /// Stands for what is there; links are not followed.
    fn open(&self) -> io::Result<OwnedFd> {
        if self.name.is_empty() {
            return self.directory.try_clone();
        }
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the string is NUL-terminated.
        let fd = sys::check(unsafe { libc::openat(self.directory.as_raw_fd(), self.name.as_ptr(), flags) })?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Has the kernel tell of one change.
fn tell(share: u32, change: &Change) -> io::Result<()> {
    let Change { kind, directory, path: Chunk(path), to: Chunk(to) } = change;
    let place = Place::of(share, path);
    match kind {
        ChangeKind::Created => created(&place?),
        ChangeKind::Removed => removed(&place?, *directory),
        ChangeKind::Renamed => {
            let to = Place::of(share, to);
            let (Ok(from), Ok(to)) = (&place, &to) else {
                return place.and_then(|from| removed(&from, *directory)).or_else(|_| created(&to?));
            };
            match renamed(from, to, *directory) {
                // It has another name again, say.
                Err(error) if error.raw_os_error() != Some(OWN) => {
                    let _ = removed(from, *directory);
                    created(to)
                }
                done => done,
            }
        }
        ChangeKind::Modified => modified(&place?),
        ChangeKind::Written => written(&place?),
        ChangeKind::Attributes => attributes(&place?),
    }
}

fn created(place: &Place) -> io::Result<()> {
    let Ok(file) = place.open() else {
        // It is gone again. Where this guest has made it, the server has heard of that now.
        return place.announce(Step::Created, false);
    };
    let kind = u32::from(refreshed(&file)?.stx_mode) & libc::S_IFMT;
    place.announce(Step::Created, kind == libc::S_IFDIR)?;
    let (directory, name) = (place.directory.as_raw_fd(), place.name.as_ptr());
    // SAFETY: the strings are NUL-terminated.
    let done = unsafe {
        match kind {
            libc::S_IFDIR => libc::mkdirat(directory, name, 0o700),
            libc::S_IFLNK => libc::symlinkat(c"-".as_ptr(), directory, name),
            kind => libc::mknodat(directory, name, kind | 0o600, 0),
        }
    };
    sys::check(done).map(drop)
}

fn removed(place: &Place, directory: bool) -> io::Result<()> {
    place.announce(Step::Removed, directory)?;
    let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: the string is NUL-terminated.
    sys::check(unsafe { libc::unlinkat(place.directory.as_raw_fd(), place.name.as_ptr(), flags) }).map(drop)
}

fn renamed(from: &Place, to: &Place, directory: bool) -> io::Result<()> {
    from.announce(Step::From, directory)?;
    to.announce(Step::To, directory)?;
    let (old, new) = (from.directory.as_raw_fd(), to.directory.as_raw_fd());
    // SAFETY: the strings are NUL-terminated.
    sys::check(unsafe { libc::renameat(old, from.name.as_ptr(), new, to.name.as_ptr()) }).map(drop)
}

fn modified(place: &Place) -> io::Result<()> {
    let file = place.open()?;
    let found = refreshed(&file)?;
    regular(&found)?;
    place.announce(Step::Modified, false)?;
    let path = through(&file)?;
    // SAFETY: the string is NUL-terminated.
    sys::check(unsafe { libc::truncate(path.as_ptr(), found.stx_size.cast_signed()) }).map(drop)
}

fn written(place: &Place) -> io::Result<()> {
    let file = place.open()?;
    // A FIFO's reader would meet its end.
    regular(&refreshed(&file)?)?;
    place.announce(Step::Written, false)?;
    File::options().write(true).open(OsStr::from_bytes(through(&file)?.as_bytes())).map(drop)
}

fn attributes(place: &Place) -> io::Result<()> {
    let file = place.open()?;
    refreshed(&file)?;
    place.announce(Step::Attributes, false)?;
    let now = std::ptr::null();
    // SAFETY: the string is NUL-terminated, and no times are given.
    sys::check(unsafe { libc::utimensat(file.as_raw_fd(), c"".as_ptr(), now, libc::AT_EMPTY_PATH) }).map(drop)
}

fn regular(found: &libc::statx) -> io::Result<()> {
    let kind = u32::from(found.stx_mode) & libc::S_IFMT;
    if kind == libc::S_IFREG { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// What the host says of a file now: the kernel has its attributes, and drops the contents that it has of an older state.
fn refreshed(file: &OwnedFd) -> io::Result<libc::statx> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC;
    // SAFETY: the string is NUL-terminated, and the kernel fills the structure, which may be all zeros.
    unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        let basic = libc::STATX_BASIC_STATS;
        sys::check(libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, basic, &raw mut found))?;
        Ok(found)
    }
}
