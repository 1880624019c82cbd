//! What makes this guest different from every other that runs the same image.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, OnceLock};

use supermachine_proto::agent::{HOST_NAMES, Identity, Network};

use crate::sys;

/// include/uapi/linux/random.h
const RNDADDENTROPY: u64 = 0x4008_5203;
const RNDRESEEDCRNG: u64 = 0x5207;
const MAX_ENTROPY: usize = 64;

/// struct rand_pool_info with room for what the host sends.
#[repr(C)]
struct PoolInfo {
    bits: i32,
    bytes: i32,
    buffer: [u8; MAX_ENTROPY],
}

/// The kernel's generator, open: to find it takes a restored guest longer than to feed it.
static RANDOM: OnceLock<File> = OnceLock::new();

/// Takes on the identity but for its time; every step must have worked before anything of the user's runs.
pub(crate) fn assume(identity: &Identity) -> io::Result<()> {
    add_entropy(&identity.entropy.0)?;
    sys::set_hostname(&identity.hostname)?;
    // What an image has there and is no file is nobody's machine id.
    if fs::metadata("/etc/machine-id").is_ok_and(|found| found.is_file()) {
        let digits: String = identity.machine_id.iter().map(|byte| format!("{byte:02x}")).collect();
        sys::write_file("/etc/machine-id", (digits + "\n").as_bytes())?;
    }
    Ok(())
}

/// Credits the kernel's pool with the host's bytes and has it reseed from them at once.
fn add_entropy(entropy: &[u8]) -> io::Result<()> {
    let bytes = i32::try_from(entropy.len()).ok().filter(|_| entropy.len() <= MAX_ENTROPY);
    let Some(bytes) = bytes else { return Err(io::Error::from_raw_os_error(libc::EINVAL)) };
    let mut info = PoolInfo { bits: 8 * bytes, bytes, buffer: [0; MAX_ENTROPY] };
    info.buffer[..entropy.len()].copy_from_slice(entropy);
    let device = match RANDOM.get() {
        Some(device) => device,
        None => {
            let opened = File::open("/dev/urandom")?;
            RANDOM.get_or_init(|| opened)
        }
    };
    // SAFETY: RNDADDENTROPY reads the structure, whose `bytes` do not exceed its buffer; RNDRESEEDCRNG takes nothing.
    unsafe {
        sys::check(libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const info))?;
        sys::check(libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _)).map(drop)
    }
}

/// The files with the guest's host name in them that this agent has written, and with what.
static NAMED: Mutex<Vec<(&str, String)>> = Mutex::new(Vec::new());

/// Writes the files that name hosts, where the image leaves them empty or out. An image in which that cannot be done (a
/// link to nowhere stands there, say) goes without.
pub(crate) fn write_hosts(hostname: &str) {
    let mut named = sys::lock(&NAMED);
    for (path, contents) in naming(hostname) {
        if write_where_empty(path, &contents).unwrap_or(false) {
            named.push((path, contents));
        }
    }
}

/// Puts a new host name into the files that hold the one before, where they are still as this agent wrote them.
pub(crate) fn rename_hosts(hostname: &str) -> io::Result<()> {
    let mut named = sys::lock(&NAMED);
    for (path, new) in naming(hostname) {
        if let Some((_, old)) = named.iter_mut().find(|(found, _)| *found == path) {
            sys::exchange(path, old.as_bytes(), new.as_bytes())?;
            *old = new;
        }
    }
    Ok(())
}

/// The files that hold the host name, as they are when the image has none of its own.
fn naming(hostname: &str) -> [(&'static str, String); 2] {
    let (gateway, names) = (Network::default().gateway, HOST_NAMES.join(" "));
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n{gateway}\t{names}\n"
    );
    [("/etc/hosts", hosts), ("/etc/hostname", format!("{hostname}\n"))]
}

fn write_where_empty(path: &str, contents: &str) -> io::Result<bool> {
    if contents.is_empty() || fs::metadata(path).map_or(0, |file| file.len()) != 0 {
        return Ok(false);
    }
    fs::create_dir_all("/etc")?;
    sys::write_file(path, contents.as_bytes())?;
    Ok(true)
}
