//! Memory that programs use as a directory: what the host asks for, and /dev/shm.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use libc::{MS_NODEV, MS_NOSUID, MS_REMOUNT};
use supermachine_proto::agent::TmpfsMount;

use crate::{shares, sys};

const SHM: &str = "/dev/shm";

/// Where there are some, but for /dev/shm.
static MOUNTED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn mounted() -> MutexGuard<'static, Vec<PathBuf>> {
    sys::lock(&MOUNTED)
}

/// Mounts one.
pub(crate) fn mount(wanted: &TmpfsMount, target: &std::path::Path) -> io::Result<()> {
    let mut options = wanted.options.clone();
    match fs::metadata(target) {
        // As runc does: what is there keeps its mode.
        Ok(found) if !options.split(',').any(|option| option.starts_with("mode=")) => {
            options = format!("mode={:o},{options}", found.permissions().mode() & 0o7777);
        }
        Ok(_) => {}
        Err(_) => fs::create_dir_all(target)?,
    }
    let place = target.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    sys::mount("tmpfs", place, "tmpfs", wanted.flags as _, options.trim_end_matches(','))?;
    mounted().push(target.into());
    Ok(())
}

/// Gives /dev/shm room for so many bytes.
pub(crate) fn resize_shm(bytes: u64) -> io::Result<()> {
    sys::mount("tmpfs", SHM, "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV, &format!("size={bytes}"))
}

/// One that lies within a share or a volume which is taken away, with what it holds.
pub(crate) struct Kept {
    pub target: PathBuf,
    tree: OwnedFd,
}

/// Those that lie within these places, and would go with what is mounted there.
pub(crate) fn inside(places: &[PathBuf]) -> Vec<Kept> {
    let within = |target: &&PathBuf| places.iter().any(|place| target.starts_with(place));
    let kept = |target: &PathBuf| {
        let root = OwnedFd::from(File::open("/").ok()?);
        let tree = shares::open_tree(&root, target.to_str()?.trim_start_matches('/')).ok()?;
        Some(Kept { target: target.clone(), tree })
    };
    mounted().iter().filter(within).filter_map(kept).collect()
}

impl Kept {
    pub(crate) fn mount(&self) -> io::Result<()> {
        fs::create_dir_all(&self.target)?;
        shares::move_mount(&self.tree, &self.target)
    }
}
