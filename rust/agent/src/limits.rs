//! What processes of the guest may use: as much as docker's containers may on a host of their own. The guest is its
//! user's, and its host bounds it as a whole.

use std::io;
use std::os::unix::fs::PermissionsExt;

use crate::sys;

/// Descriptors of a process: what docker's packages give containers (`LimitNOFILE=infinity` is fs.nr_open).
const DESCRIPTORS: libc::rlim_t = 1 << 20;

/// What the kernel would have stricter than docker's containers have it (moby, daemon/oci_linux.go), or by so little
/// memory that watching a source tree fails (inotify(7)).
const SETTINGS: [(&str, &str); 4] = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("fs/inotify/max_user_watches", "1048576"),
    ("fs/inotify/max_user_instances", "1024"),
];

/// Devices that act within the network or mount namespace of who opens them, so that any user may.
const FOR_ALL: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// Sets the limits of this process, which all that it starts inherit, and the kernel's. A kernel without a setting or
/// a device goes without.
pub(crate) fn set() -> io::Result<()> {
    limit(libc::RLIMIT_NOFILE, DESCRIPTORS)?;
    limit(libc::RLIMIT_NPROC, libc::RLIM_INFINITY)?;
    for (name, value) in SETTINGS {
        let _ = sys::write_file(&format!("/proc/sys/{name}"), value.as_bytes());
    }
    for device in FOR_ALL {
        let _ = std::fs::set_permissions(device, PermissionsExt::from_mode(0o666));
    }
    Ok(())
}

fn limit(resource: libc::__rlimit_resource_t, value: libc::rlim_t) -> io::Result<()> {
    let limits = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the call reads `limits` only.
    sys::check(unsafe { libc::setrlimit(resource, &limits) }).map(drop)
}
