//! A root that nothing is written to, but by way of what is mounted in it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::shares;

static READ_ONLY: AtomicBool = AtomicBool::new(false);

/// Files that the guest's names are in, which can be written to all the same, as in docker's containers.
const NAMES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// Makes the root read-only. EBUSY where a file in it is open for writing.
pub(crate) fn make_read_only() -> io::Result<()> {
    let root = OwnedFd::from(File::open("/")?);
    if !READ_ONLY.load(Ordering::SeqCst) {
        for name in NAMES {
            // A mount of its own. What an image lacks, or has as a link to elsewhere, goes without.
            let path = Path::new("/").join(name);
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
                let _ = shares::open_tree(&root, name).and_then(|tree| shares::move_mount(&tree, &path));
            }
        }
    }
    shares::set_read_only(&root, true)?;
    READ_ONLY.store(true, Ordering::SeqCst);
    Ok(())
}

/// Does what the agent itself must write to the root for: places for mounts, the guest's names. Where a root that is
/// read-only cannot be so again, because a process has opened a file meanwhile, it is tried no more.
pub(crate) fn writable<T>(work: impl FnOnce() -> T) -> T {
    let root = READ_ONLY.load(Ordering::SeqCst).then(|| File::open("/").map(Into::into));
    if let Some(Ok(root)) = &root {
        let _ = shares::set_read_only(root, false);
    }
    let done = work();
    if let Some(Ok(root)) = &root {
        let _ = shares::set_read_only(root, true);
    }
    done
}
