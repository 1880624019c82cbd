//! Volumes: disks in slots of the machine, mounted when the host says so, stopped while a snapshot is taken.
//!
//! What is seen of one is a directory in its file system, so that nobody finds what a file system has at its top.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use supermachine_proto::agent::VolumeMount;

use crate::{fill, mounts, shares, sys};

/// How long the kernel may take to see a disk that has come into a slot.
const PATIENCE: Duration = Duration::from_secs(5);
/// include/uapi/linux/fs.h
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;
/// fs/ext4/ext4.h: adds groups up to so many blocks.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// A volume that is mounted.
struct Attached {
    device: String,
    target: PathBuf,
    top: File,
}

static ATTACHED: Mutex<Vec<Attached>> = Mutex::new(Vec::new());

fn attached() -> MutexGuard<'static, Vec<Attached>> {
    sys::lock(&ATTACHED)
}

/// Where they are mounted.
pub(crate) fn places() -> Vec<PathBuf> {
    attached().iter().map(|volume| volume.target.clone()).collect()
}

/// Unmounts them all.
pub(crate) fn detach_all() {
    for volume in attached().drain(..).rev() {
        // The directory that is seen, and the file system below it.
        let _ = shares::detach(&volume.target).and_then(|()| shares::detach(&volume.target));
    }
}

/// The directory that is seen of the volume on a device; `None` where there is none on it.
pub(crate) fn top_of(device: &str) -> io::Result<Option<File>> {
    attached().iter().find(|volume| volume.device == device).map(|volume| volume.top.try_clone()).transpose()
}

/// Mounts one.
pub(crate) fn mount(volume: &VolumeMount, target: &Path) -> io::Result<()> {
    let top = mount_device(volume, target)?;
    attached().push(Attached { device: volume.device.clone(), target: target.into(), top });
    Ok(())
}

fn mount_device(volume: &VolumeMount, target: &Path) -> io::Result<File> {
    wait_for(&volume.device, volume.bytes)?;
    fs::create_dir_all(target)?;
    let image = File::open(target)?;
    let place = target.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    sys::mount(&volume.device, place, "ext4", 0, mounts::EXT4_OPTIONS)?;
    let grown = if volume.read_only { Ok(()) } else { extend(&volume.device, target, volume.bytes) };
    let mounted = grown.and_then(|()| show(volume, target, &image));
    if mounted.is_err() {
        let _ = shares::detach(target);
    }
    mounted
}

/// Has the file system of one that is mounted take in all of its disk, which has become so large.
pub(crate) fn grow(device: &str, bytes: u64) -> io::Result<()> {
    wait_for(device, bytes)?;
    let top = top_of(device)?.ok_or(io::ErrorKind::NotFound)?;
    resize(&top, bytes)
}

/// As [`grow`], where the disk became larger while no guest had it.
fn extend(device: &str, place: &Path, bytes: u64) -> io::Result<()> {
    // The superblock's count of blocks, in two halves: of the kernel's cache, since it has just read it.
    let mut superblock = [0; 1024];
    File::open(device)?.read_exact_at(&mut superblock, 1024)?;
    let half =
        |at: usize| superblock[at..at + 4].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let top = File::open(place)?;
    if (half(336) << 32 | half(4)) < bytes / block_size(&top)? {
        resize(&top, bytes).map_err(|e| io::Error::new(e.kind(), format!("it cannot grow: {e}")))?;
    }
    Ok(())
}

fn block_size(top: &File) -> io::Result<u64> {
    Ok(sys::block_bytes(&sys::file_system(top)?))
}

fn resize(top: &File, bytes: u64) -> io::Result<()> {
    let blocks = bytes / block_size(top)?;
    // SAFETY: the request reads the number that it is given, which outlives it.
    sys::check(unsafe { libc::ioctl(top.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) }).map(drop)
}

/// Has the directory seen, filled with what the image has at its place if it is new.
fn show(volume: &VolumeMount, target: &Path, image: &File) -> io::Result<File> {
    fill::once(image, target)?;
    let top = File::open(target.join(fill::VISIBLE))?;
    let tree = shares::open_tree(&OwnedFd::from(File::open(target)?), fill::VISIBLE)?;
    if volume.read_only {
        shares::set_read_only(&tree, true)?;
    }
    shares::move_mount(&tree, target)?;
    Ok(top)
}

/// Waits until the kernel knows the disk by its size; it is told by an interrupt when the guest goes on.
fn wait_for(device: &str, bytes: u64) -> io::Result<()> {
    let path = format!("/sys/class/block/{}/size", device.trim_start_matches("/dev/"));
    let end = Instant::now() + PATIENCE;
    loop {
        let sectors = fs::read_to_string(&path)?;
        if sectors.trim().parse() == Ok(bytes / 512) {
            return Ok(());
        }
        if Instant::now() >= end {
            let message = format!("{device} has {} sectors and not those of the volume", sectors.trim());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Has all that was written reach the volumes, and nothing more until [`thaw`]. One whose disk fails, or is gone, is left as
/// it is: that is nothing to end the guest for.
pub(crate) fn freeze() {
    attached().iter().for_each(|volume| drop(control(volume, FIFREEZE)));
}

/// Lets them be written to again. One that was not stopped stays as it is, as does one whose disk is gone.
pub(crate) fn thaw() {
    attached().iter().for_each(|volume| drop(control(volume, FITHAW)));
}

fn control(volume: &Attached, request: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these requests take no argument.
    sys::check(unsafe { libc::ioctl(volume.top.as_raw_fd(), request as _, 0) }).map(drop)
}
