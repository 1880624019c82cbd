//! Copies a directory of the image into a volume, with owners, modes, times, links and special files, as docker does for a
//! volume that is new. Extended attributes are not copied.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::sys;

/// How deep a tree may be; an image's is not.
const MAX_DEPTH: u32 = 128;

/// The directory of a volume that is seen, and what it is called while it is filled.
pub(crate) const VISIBLE: &str = "volume";
const UNFINISHED: &str = "volume.new";

/// Makes the directory that is seen of the volume whose top is at `place`, with what is in the image's directory, unless it is
/// there.
pub(crate) fn once(image: &File, place: &Path) -> io::Result<()> {
    let (visible, unfinished) = (place.join(VISIBLE), place.join(UNFINISHED));
    if sys::exists_now(&visible)? {
        return Ok(());
    }
    // What somebody was killed amid is begun anew.
    if sys::exists_now(&unfinished)? {
        fs::remove_dir_all(&unfinished)?;
    }
    copy(&PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd())), &unfinished)?;
    sys::sync();
    fs::rename(&unfinished, &visible)
}

/// Copies the directory `from` to a new one at `to`.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    directory(from, to, &mut HashMap::new(), 0)
}

type Links = HashMap<(u64, u64), PathBuf>;

fn directory(from: &Path, to: &Path, links: &mut Links, depth: u32) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("a directory of the image is too deep to be copied"));
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        one(&entry.path(), &to.join(entry.file_name()), links, depth)?;
    }
    // `from` may be a link of /proc to an open directory.
    attributes(&fs::metadata(from)?, to)
}

fn one(from: &Path, to: &Path, links: &mut Links, depth: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(from)?;
    let kind = found.file_type();
    if kind.is_dir() {
        return directory(from, to, links, depth + 1);
    }
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, Some(found.uid()), Some(found.gid()));
    }
    if found.nlink() > 1 {
        if let Some(first) = links.get(&(found.dev(), found.ino())) {
            return fs::hard_link(first, to);
        }
        links.insert((found.dev(), found.ino()), to.to_owned());
    }
    if kind.is_file() {
        io::copy(&mut File::open(from)?, &mut File::create_new(to)?)?;
    } else if kind.is_socket() {
        return Ok(());
    } else {
        let path = sys::c_string(to.as_os_str().as_bytes())?;
        // SAFETY: the string is NUL-terminated and outlives the call.
        sys::check(unsafe { libc::mknod(path.as_ptr(), found.mode(), found.rdev()) })?;
    }
    attributes(&found, to)
}

fn attributes(found: &fs::Metadata, to: &Path) -> io::Result<()> {
    chown(to, Some(found.uid()), Some(found.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    let (accessed, modified) =
        (nanoseconds(found.atime(), found.atime_nsec()), nanoseconds(found.mtime(), found.mtime_nsec()));
    sys::set_times(to.as_os_str().as_bytes(), accessed, modified)
}
