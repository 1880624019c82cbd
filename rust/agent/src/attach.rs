//! What the host gives a guest beside its image, each thing mounted after what it lies within.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use supermachine_proto::agent::{Attach, AttachReply, ShareMount, TmpfsMount, VolumeMount};

use crate::{root, shares, sys, tmpfs, volumes};

/// One request at a time; what the last one that was done has had mounted.
static TURN: Mutex<Option<Attach>> = Mutex::new(None);

/// What is to be mounted.
enum Mount<'a> {
    Volume(&'a VolumeMount),
    Share(&'a ShareMount),
    Tmpfs(&'a TmpfsMount),
    /// A tmpfs that was in what is gone now.
    Kept(tmpfs::Kept),
}

/// Mounts what the host names.
pub(crate) fn attach(wanted: &Attach) -> AttachReply {
    let mut last = sys::lock(&TURN);
    // A restored guest that is given the same shares keeps them: for its programs nothing has happened.
    if last.as_ref() == Some(wanted) && wanted.volumes.is_empty() && wanted.tmpfs.is_empty() {
        return AttachReply::Done;
    }
    *last = None;
    match root::writable(|| mount_all(wanted)).and_then(|()| finish(wanted)) {
        Ok(()) => {
            *last = Some(wanted.clone());
            AttachReply::Done
        }
        Err(message) => AttachReply::Failed { message },
    }
}

/// Has the file system of a volume take in all of its disk.
pub(crate) fn grow(device: &str, bytes: u64) -> AttachReply {
    let _turn = sys::lock(&TURN);
    match volumes::grow(device, bytes) {
        Ok(()) => AttachReply::Done,
        Err(e) => {
            AttachReply::Failed { message: format!("the file system on {device} cannot be made larger: {e}") }
        }
    }
}

/// Takes away what shares and volumes there are, whose file systems are whole then.
pub(crate) fn end() {
    let mut last = sys::lock(&TURN);
    *last = None;
    shares::detach_all();
    volumes::detach_all();
}

fn mount_all(wanted: &Attach) -> Result<(), String> {
    let kept = tmpfs::inside(&[shares::places(), volumes::places()].concat());
    shares::detach_all();
    volumes::detach_all();
    let session = (!wanted.shares.is_empty()).then(|| shares::session(wanted)).transpose()?;
    let mut mounts: Vec<(PathBuf, Mount)> = Vec::new();
    mounts.extend(wanted.volumes.iter().map(|volume| (path(&volume.target.0), Mount::Volume(volume))));
    mounts.extend(wanted.shares.iter().map(|share| (path(&share.target.0), Mount::Share(share))));
    mounts.extend(wanted.tmpfs.iter().map(|memory| (path(&memory.target.0), Mount::Tmpfs(memory))));
    mounts.extend(kept.into_iter().map(|kept| (kept.target.clone(), Mount::Kept(kept))));
    // Those of one depth stay in the order in which they were named.
    mounts.sort_by_key(|(target, _)| target.components().count());
    for (target, mount) in mounts {
        let (what, mounted) = match (mount, &session) {
            (Mount::Volume(volume), _) => ("volume", volumes::mount(volume, &target)),
            (Mount::Share(share), Some(session)) => ("share", session.mount(share, &target)),
            (Mount::Share(_), None) => continue,
            (Mount::Tmpfs(memory), _) => ("tmpfs", tmpfs::mount(memory, &target)),
            (Mount::Kept(kept), _) => ("tmpfs", kept.mount()),
        };
        mounted.map_err(|e| format!("a {what} cannot be mounted at {}: {e}", target.display()))?;
    }
    Ok(())
}

fn finish(wanted: &Attach) -> Result<(), String> {
    if wanted.shm_bytes > 0 {
        tmpfs::resize_shm(wanted.shm_bytes)
            .map_err(|e| format!("/dev/shm cannot be made {} bytes large: {e}", wanted.shm_bytes))?;
    }
    if wanted.read_only_root {
        root::make_read_only().map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => {
                "the root cannot be made read-only: a process has a file in it open for writing".into()
            }
            _ => format!("the root cannot be made read-only: {e}"),
        })?;
    }
    Ok(())
}

fn path(bytes: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(bytes)).to_path_buf()
}
