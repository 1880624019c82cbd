//! The guest's place on its network: address, route and name server, and connections that did not come along.

use std::fs::{self, File};
use std::io;
use std::mem::zeroed;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use supermachine_proto::agent::{INTERFACE, Network};

use crate::{network_v6, sys};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long the kernel may take to see that the link is up. Programs would lose what they send before.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_micros(200);

/// What the kernel is asked by.
static SOCKET: OnceLock<OwnedFd> = OnceLock::new();

/// The place that the guest had on its network when its processes stood still, with nothing lacking.
static COMPLETE: Mutex<Option<Network>> = Mutex::new(None);
/// The kernel's table of routes: interface, destination and gateway first, in the machine's order of bytes.
const ROUTES: &str = "/proc/net/route";
/// The same, open.
static TABLE: OnceLock<File> = OnceLock::new();
const MAX_ROUTES: usize = 4096;

/// Opens what the route is looked for in.
pub(crate) fn prepare() {
    if let Ok(table) = File::open(ROUTES) {
        let _ = TABLE.set(table);
    }
}

/// Looks whether the guest has its place while its processes stand still, so that a clone with the same has nothing to do.
pub(crate) fn look() {
    let known = sys::lock(&WRITTEN).clone();
    *sys::lock(&COMPLETE) = known.filter(|network| SOCKET.get().is_some_and(|socket| has(socket, network)));
}

/// Its processes go on, and may change it.
pub(crate) fn leave() {
    *sys::lock(&COMPLETE) = None;
}

fn has(socket: &OwnedFd, network: &Network) -> bool {
    let runs = libc::IFF_UP | libc::IFF_RUNNING;
    let mut routes = [0; MAX_ROUTES];
    let length = TABLE.get().and_then(|table| table.read_at(&mut routes, 0).ok()).unwrap_or(0);
    let gateway = u32::from_ne_bytes(network.gateway.octets());
    let route = format!("{INTERFACE}\t{:08X}\t{gateway:08X}\t", 0);
    flags(socket).is_ok_and(|flags| flags & runs == runs)
        && own_address(socket) == Some(network.address)
        && routes[..length].split(|byte| *byte == b'\n').any(|line| line.starts_with(route.as_bytes()))
}

/// Takes the place that the host says, or none; after a restore `anew`.
pub(crate) fn assume(network: Option<&Network>, anew: bool) -> io::Result<()> {
    let complete = sys::lock(&COMPLETE).take();
    if anew && complete.is_some() && complete.as_ref() == network {
        return Ok(());
    }
    let socket = match SOCKET.get() {
        Some(socket) => socket,
        None => {
            let made = datagram_socket()?;
            SOCKET.get_or_init(|| made)
        }
    };
    let Some(network) = network else {
        // A guest of a machine without the device has nothing to take down.
        if let Ok(flags) = flags(socket)
            && flags & libc::IFF_UP != 0
        {
            set_address(socket, libc::SIOCSIFADDR, Ipv4Addr::UNSPECIFIED)?;
            set_flags(socket, flags & !libc::IFF_UP)?;
            network_v6::assume(None, true, || index(socket));
        }
        return name_server(None, anew);
    };
    // The place from before a restore is the same.
    let flags_before = flags(socket)?;
    let (up, mut runs) = (flags_before & libc::IFF_UP != 0, flags_before & libc::IFF_RUNNING != 0);
    if !up || own_address(socket) != Some(network.address) {
        set_address(socket, libc::SIOCSIFADDR, network.address)?;
        let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix)).unwrap_or(0);
        set_address(socket, libc::SIOCSIFNETMASK, Ipv4Addr::from_bits(mask))?;
        // The call sets all of them: without those that are there the interface would lose MULTICAST.
        set_flags(socket, flags_before | libc::IFF_UP)?;
        runs = false;
    }
    add_default_route(socket, network.gateway)?;
    let end = Instant::now() + PATIENCE;
    while !runs && flags(socket)? & libc::IFF_RUNNING == 0 && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
    network_v6::assume(network.v6.as_ref(), !up, || index(socket));
    name_server(Some(network), anew)
}

/// The first line of what this agent writes.
fn first_line(server: Ipv4Addr) -> String {
    format!("nameserver {server}\n")
}

fn lines(network: &Network) -> String {
    let mut lines = first_line(network.gateway);
    if !network.search.is_empty() {
        lines += &format!("search {}\n", network.search.join(" "));
    }
    if network.ndots != 1 {
        lines += &format!("options ndots:{}\n", network.ndots);
    }
    lines
}

/// What the image has there.
static IMAGES: Mutex<Vec<u8>> = Mutex::new(Vec::new());
/// The network whose name server this agent has named there last.
static WRITTEN: Mutex<Option<Network>> = Mutex::new(None);
const MAX_BYTES: u64 = 64 * 1024;

/// Names the guest's name server in place of those that the image names, as docker does, and gives the image's back to a
/// guest without a network. What somebody has written since the boot stays.
fn name_server(network: Option<&Network>, anew: bool) -> io::Result<()> {
    let mut written = sys::lock(&WRITTEN);
    if anew && written.as_ref() == network {
        return Ok(());
    }
    let wanted = network.map(lines).unwrap_or_default();
    let found = sys::read_file(RESOLV_CONF, MAX_BYTES).unwrap_or_default();
    let ours = found.starts_with(first_line(Network::default().gateway).as_bytes());
    let mut images = sys::lock(&IMAGES);
    if !anew {
        images.clone_from(&found);
    }
    match network {
        Some(_) if (ours || found == *images) && found != wanted.as_bytes() => write(wanted.as_bytes()),
        None if ours => write(&images),
        _ => {}
    }
    *written = network.cloned();
    Ok(())
}

/// Writes the file, in place of a link to nowhere if need be. An image in which that cannot be done goes without.
fn write(contents: &[u8]) {
    if fs::create_dir_all("/etc").and_then(|()| sys::write_file(RESOLV_CONF, contents)).is_err()
        && fs::symlink_metadata(RESOLV_CONF).is_ok_and(|found| found.is_symlink())
        && fs::remove_file(RESOLV_CONF).is_ok()
    {
        let _ = sys::write_file(RESOLV_CONF, contents);
    }
}

fn datagram_socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers; the kernel has just made the descriptor for us.
    unsafe {
        let fd = sys::check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A request about the interface.
fn request() -> libc::ifreq {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE.bytes()) {
        [*to] = sys::chars([from]);
    }
    request
}

fn address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all zeros is a valid sockaddr_in, which is as long as a sockaddr and may stand for one.
    unsafe {
        let mut internet: libc::sockaddr_in = zeroed();
        internet.sin_family = sys::short(libc::AF_INET);
        internet.sin_addr.s_addr = u32::from_ne_bytes(address.octets());
        std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(internet)
    }
}

fn set_address(socket: &OwnedFd, command: libc::c_ulong, value: Ipv4Addr) -> io::Result<()> {
    let mut request = request();
    request.ifr_ifru.ifru_addr = address(value);
    // SAFETY: the ioctl reads the request.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), command as _, &raw mut request) }).map(drop)
}

fn own_address(socket: &OwnedFd) -> Option<Ipv4Addr> {
    let mut request = request();
    // SAFETY: the ioctl writes an address into the request, of IPv4 for a socket of that family.
    unsafe {
        sys::check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFADDR as _, &raw mut request)).ok()?;
        let address = std::mem::transmute::<libc::sockaddr, libc::sockaddr_in>(request.ifr_ifru.ifru_addr);
        Some(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()))
    }
}

fn flags(socket: &OwnedFd) -> io::Result<i32> {
    let mut request = request();
    // SAFETY: the ioctl writes the flags into the request.
    unsafe {
        sys::check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request))?;
        Ok(request.ifr_ifru.ifru_flags.into())
    }
}

/// The number by which netlink knows the interface.
fn index(socket: &OwnedFd) -> io::Result<i32> {
    let mut request = request();
    // SAFETY: the ioctl writes the number into the request.
    unsafe {
        sys::check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &raw mut request))?;
        Ok(request.ifr_ifru.ifru_ifindex)
    }
}

fn set_flags(socket: &OwnedFd, flags: i32) -> io::Result<()> {
    let mut request = request();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "they came from such a field, whose top bit is a flag too"
    )]
    let flags = flags as i16;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the ioctl reads the request.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })
        .map(drop)
}

fn add_default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all zeros is a valid rtentry; the ioctl reads it.
    let added = unsafe {
        let mut route: libc::rtentry = zeroed();
        route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = address(gateway);
        route.rt_flags = (libc::RTF_UP | libc::RTF_GATEWAY) as _;
        sys::check(libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw mut route))
    };
    match added {
        // The one from before a restore.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}
