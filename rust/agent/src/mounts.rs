//! Makes the root file system and what programs expect to find mounted in it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::OnceLock;

use libc::{MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY};
use supermachine_proto::agent::{Configure, Root};

use crate::sys;

/// What is read ahead of a file on a disk, in KiB, in place of the kernel's 128. A disk here is a file in the host's page
/// cache: a request costs more than what it reads, and a program's first start reads most of the program.
const READ_AHEAD_KIB: u32 = 1024;

/// When the image's root directory was changed last, in nanoseconds since 1970.
static IMAGE_TIME: OnceLock<i64> = OnceLock::new();

/// Why the guest cannot have its root.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be mounted: {error}")]
pub(crate) struct Error {
    what: String,
    error: io::Error,
}

fn named(what: &str) -> impl FnOnce(io::Error) -> Error + '_ {
    move |error| Error { what: what.into(), error }
}

/// Mounts everything; this process's root is the guest's afterwards.
pub(crate) fn mount_all(configure: &Configure) -> Result<(), Error> {
    let root = match &configure.root {
        Root::Initramfs => "",
        Root::Overlay { device, fs } => {
            overlay(device, fs, configure)?;
            "/root"
        }
    };
    // Processes are born into a control group one by one: without `favordynmods` each would wait for a grace period.
    let mounts: [(&str, &str, libc::c_ulong, &str); 7] = [
        ("/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
        ("/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
        ("/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "favordynmods"),
        ("/dev", "devtmpfs", MS_NOSUID, "mode=0755"),
        ("/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
        ("/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
        ("/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
    ];
    for (target, kind, flags, options) in mounts {
        let target = format!("{root}{target}");
        // An image may lack the directory; one that cannot be made shows in the mount that follows.
        let _ = fs::create_dir_all(&target);
        match sys::mount(kind, &target, kind, flags, options) {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => return Err(named(&target)(error)),
            _ => {}
        }
    }
    crate::shares::begin(root, READ_AHEAD_KIB);
    if !root.is_empty() {
        std::env::set_current_dir(root).map_err(named(root))?;
        sys::mount(".", "/", "", MS_MOVE, "").map_err(named("the root"))?;
        sys::chroot(".").map_err(named("the root"))?;
        std::env::set_current_dir("/").map_err(named("the root"))?;
    }
    for mount in &configure.mounts {
        fs::create_dir_all(&mount.target).map_err(named(&mount.target))?;
        let flags = if mount.read_only { MS_RDONLY } else { 0 };
        sys::mount(&mount.device, &mount.target, &mount.fs, flags, "").map_err(named(&mount.target))?;
        read_ahead(&mount.device);
    }
    if let Root::Overlay { device, .. } = &configure.root {
        read_ahead(device);
    }
    if let Some(device) = &configure.upper_device {
        read_ahead(device);
    }
    for directory in &configure.volumes {
        // As docker does: what is there keeps its owner and mode. What cannot be made (a file stands in its way, say)
        // is missed by who looks for it.
        let _ = fs::create_dir_all(directory);
    }
    let links = [("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")];
    for (target, name) in links.into_iter().chain([("pts/ptmx", "ptmx")]) {
        let path = Path::new("/dev").join(name);
        // devtmpfs has a ptmx of its own, which belongs to no mounted devpts.
        let _ = fs::remove_file(&path);
        let _ = symlink(target, path);
    }
    Ok(())
}

/// Gives the root directory the image's time back, which what was made in it has changed. An image without an entry
/// for it has none: it is as old as the guest then.
pub(crate) fn date_root() {
    let time = IMAGE_TIME.get().copied().unwrap_or_default();
    if time > 0 {
        let _ = sys::set_times(b"/", time, time);
    }
}

/// Has more read ahead from a disk; where that cannot be, it only takes longer.
fn read_ahead(device: &str) {
    let name = device.trim_start_matches("/dev/");
    let _ = fs::write(format!("/sys/block/{name}/queue/read_ahead_kb"), READ_AHEAD_KIB.to_string());
}

/// What disks' file systems are mounted with. What is removed gives its room back; block bitmaps are read when they are
/// needed, for there is one for each 128 MiB of a disk that is mostly empty; and inode tables are zeros already.
pub(crate) const EXT4_OPTIONS: &str = "discard,noinit_itable,no_prefetch_block_bitmaps";
/// And that of the root's beside. No crash of the guest is outlived by that, so nothing is written out for the sake of one.
/// Data stays ordered: with `data=writeback` ext4 discards each extent as it is freed, one request for each file that is removed,
/// and otherwise those of many at once, beside the program, when the journal is committed.
const ROOT_OPTIONS: &str = "noauto_da_alloc,nobarrier";

/// The read-only image below a writable disk or tmpfs, at /root.
fn overlay(device: &str, fs: &str, configure: &Configure) -> Result<(), Error> {
    for directory in ["/dev", "/lower", "/upper", "/root"] {
        let _ = fs::create_dir_all(directory);
    }
    // Found mounted where the kernel did it.
    let _ = sys::mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    sys::mount(device, "/lower", fs, MS_RDONLY, "").map_err(named(device))?;
    let mounted = match (&configure.upper_device, configure.upper_bytes) {
        (Some(device), _) => {
            sys::mount(device, "/upper", "ext4", 0, &format!("{EXT4_OPTIONS},{ROOT_OPTIONS}"))
        }
        (None, 0) => sys::mount("tmpfs", "/upper", "tmpfs", 0, "mode=0755"),
        (None, bytes) => sys::mount("tmpfs", "/upper", "tmpfs", 0, &format!("mode=0755,size={bytes}")),
    };
    mounted.map_err(named("the upper layer"))?;
    fs::create_dir("/upper/data")
        .and_then(|()| fs::create_dir("/upper/work"))
        .map_err(named("the upper layer"))?;
    // The root directory's own attributes are those of the upper layer's.
    if let Ok(metadata) = fs::metadata("/lower") {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        let _ = chown("/upper/data", Some(metadata.uid()), Some(metadata.gid()));
        let _ = fs::set_permissions("/upper/data", fs::Permissions::from_mode(metadata.mode() & 0o7777));
        let _ = IMAGE_TIME.set(metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec());
    }
    let options = "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work,redirect_dir=on";
    sys::mount("overlay", "/root", "overlay", 0, options).map_err(named("the root"))
}
