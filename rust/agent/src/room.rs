//! How much of a disk a guest may still fill, where the host's has room for less.
//!
//! ext4 has clusters that it gives to nobody (`reserved_clusters`). With as many of them as the host lacks, a write that the host
//! would have no room for fails with ENOSPC when it is made, as on any full disk, before anything is promised. A block device could
//! only fail what was promised, long after, and the file system's own journal with it.

use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard};

use crate::{sys, volumes};

/// Devices that are limited, and what their file systems keep back without that.
static LIMITED: Mutex<Vec<(String, u64)>> = Mutex::new(Vec::new());

fn limited() -> MutexGuard<'static, Vec<(String, u64)>> {
    sys::lock(&LIMITED)
}

/// Has the file system on a device give out so many bytes and no more; `u64::MAX` for all that it has.
pub(crate) fn set(device: &str, bytes: u64) -> io::Result<()> {
    let mut limited = limited();
    let known = limited.iter().find(|(found, _)| found == device).map(|(_, usual)| *usual);
    let usual = match known {
        Some(usual) => usual,
        None => read(device, "reserved_clusters")?,
    };
    let keep = if bytes == u64::MAX { usual } else { usual.max(lacking(device, bytes)?) };
    fs::write(attribute(device, "reserved_clusters"), keep.to_string())?;
    limited.retain(|(found, _)| found != device);
    if bytes != u64::MAX {
        limited.push((device.into(), usual));
    }
    Ok(())
}

/// In a guest that is another one now, whose host may have room: nothing is limited.
pub(crate) fn lift() {
    for (device, usual) in limited().drain(..) {
        let _ = fs::write(attribute(&device, "reserved_clusters"), usual.to_string());
    }
}

/// Clusters, of those that can be given out or are for what is still to be written, beyond so many bytes.
fn lacking(device: &str, bytes: u64) -> io::Result<u64> {
    let top = match volumes::top_of(device)? {
        Some(top) => top,
        // The root's: an overlay says what its upper layer has.
        None => fs::File::open("/")?,
    };
    let found = sys::file_system(&top)?;
    let waiting = read(device, "delayed_allocation_blocks")?;
    // No more than all but one, which ext4 takes.
    let most = (found.f_blocks as u64).saturating_sub(1);
    Ok((found.f_bfree as u64 + waiting).saturating_sub(bytes / sys::block_bytes(&found)).min(most))
}

fn attribute(device: &str, name: &str) -> String {
    format!("/sys/fs/ext4/{}/{name}", device.trim_start_matches("/dev/"))
}

fn read(device: &str, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(attribute(device, name))?;
    text.trim().parse().map_err(io::Error::other)
}
