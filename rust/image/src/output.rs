//! The file that becomes the image: written under another name, published whole or not at all.

#![allow(unsafe_code, reason = "calls of the kernel that the standard library has not")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A temporary file beside the final one, removed unless published.
///
/// It is locked (flock(2)) for as long as its writer lives, so that a later run can tell what kill -9 left behind
/// from what another process is writing.
pub(crate) struct Output {
    pub file: File,
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Output {
    pub(crate) fn create(target: &Path) -> Result<Self, Error> {
        let Some(name) = target.file_name() else {
            let e = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
            return Err(Error::io("create", target, e));
        };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".partial-");
        let directory = directory_of(target);
        remove_stale(directory, &prefix);
        loop {
            let mut name = prefix.clone();
            name.push(format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
            let temporary = directory.join(name);
            match File::options().read(true).write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    let output = Self { file, temporary, target: target.to_owned(), published: false };
                    // Another run may have seen the file before the lock and removed it; then take a new name.
                    if lock(&output.file) && output.temporary.exists() {
                        return Ok(output);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create", &temporary, e)),
            }
        }
    }

    /// A nameless file in the same directory for what must wait until the data is written.
    pub(crate) fn spool(&self) -> Result<File, Error> {
        let mut path = self.temporary.clone().into_os_string();
        path.push("-spool");
        let path = PathBuf::from(path);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        Ok(file)
    }

    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn publish(mut self) -> Result<(), Error> {
        self.file.sync_all().map_err(|e| Error::io("write", &self.target, e))?;
        fs::rename(&self.temporary, &self.target).map_err(|e| Error::io("rename to", &self.target, e))?;
        self.published = true;
        // Not every file system can sync a directory; the image is whole either way.
        let _ = File::open(directory_of(&self.target)).and_then(|d| d.sync_all());
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn lock(file: &File) -> bool {
    file.try_lock().is_ok()
}

/// Removes temporaries of this target whose writer is gone. Best effort: what cannot be removed does no harm.
fn remove_stale(directory: &Path, prefix: &std::ffi::OsStr) {
    let Ok(files) = fs::read_dir(directory) else { return };
    for file in files.flatten() {
        if file.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes())
            && file.file_type().is_ok_and(|t| t.is_file())
            && let Ok(open) = File::options().write(true).open(file.path())
            && lock(&open)
        {
            let _ = fs::remove_file(file.path());
        }
    }
}

/// Frees blocks of 4 KiB inside a file. Only room is at stake, so failure is ignored.
pub(crate) fn punch_hole(file: &File, block: u32, blocks: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(u64::from(block) * 4096), i64::try_from(blocks * 4096))
    else {
        return;
    };
    if length == 0 {
        return;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: the descriptor is open for the call's duration, and no memory is passed.
    unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            length,
        );
    }
    #[cfg(target_os = "macos")]
    {
        let hole = libc::fpunchhole_t { fp_flags: 0, reserved: 0, fp_offset: offset, fp_length: length };
        // SAFETY: the descriptor is open, and F_PUNCHHOLE reads one fpunchhole_t that lives through the call.
        unsafe {
            libc::fcntl(file.as_raw_fd(), libc::F_PUNCHHOLE, &hole);
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    let _ = (file.as_raw_fd(), offset, length);
}
