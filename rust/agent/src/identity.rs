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
        let digits = format!("{:032x}", u128::from_be_bytes(identity.machine_id));
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

/// A file that holds the guest's host name, and what is around it there.
struct Naming {
    path: &'static str,
    before: String,
    after: String,
}

/// What such a file was when the guest's processes stood still, which change it no more until they go on.
enum Seen {
    Unknown,
    /// As this agent wrote it; open, as to find it and to read it takes a restored guest longer than to write it.
    Ours(File),
    Theirs,
}

/// A file that this agent has written, and the host name in it.
struct Named {
    naming: Naming,
    hostname: String,
    seen: Seen,
}

impl Naming {
    fn with(&self, hostname: &str) -> Vec<u8> {
        [&*self.before, hostname, &*self.after].concat().into_bytes()
    }
}

static NAMED: Mutex<Vec<Named>> = Mutex::new(Vec::new());

/// Writes the files that name hosts, where the image leaves them empty or out. An image in which that cannot be done (a
/// link to nowhere stands there, say) goes without.
pub(crate) fn write_hosts(hostname: &str) {
    let mut named = sys::lock(&NAMED);
    for naming in namings() {
        if write_where_empty(naming.path, &naming.with(hostname)).unwrap_or(false) {
            named.push(Named { naming, hostname: hostname.into(), seen: Seen::Unknown });
        }
    }
}

/// Puts a new host name into the files that hold the one before, where they are still as this agent wrote them.
pub(crate) fn rename_hosts(hostname: &str) -> io::Result<()> {
    for Named { naming, hostname: known, seen } in &mut *sys::lock(&NAMED) {
        let (before, after) = (naming.with(known), naming.with(hostname));
        match std::mem::replace(seen, Seen::Unknown) {
            Seen::Theirs => {}
            Seen::Ours(file) if sys::replace(&file, before.len() as u64, &after).is_ok() => {}
            Seen::Ours(_) | Seen::Unknown => sys::exchange(naming.path, &before, &after)?,
        }
        hostname.clone_into(known);
    }
    Ok(())
}

/// Looks at them while the guest's processes stand still.
pub(crate) fn look_at_hosts() {
    for Named { naming, hostname, seen } in &mut *sys::lock(&NAMED) {
        *seen = match sys::open_with(naming.path, &naming.with(hostname)) {
            Ok(Some(file)) => Seen::Ours(file),
            Ok(None) => Seen::Theirs,
            Err(_) => Seen::Unknown,
        };
    }
}

/// They go on, and may change them.
pub(crate) fn leave_hosts() {
    sys::lock(&NAMED).iter_mut().for_each(|named| named.seen = Seen::Unknown);
}

/// The files that hold the host name, as they are when the image has none of its own.
fn namings() -> impl Iterator<Item = Naming> {
    let (gateway, names) = (Network::default().gateway, HOST_NAMES.join(" "));
    let hosts = Naming {
        path: "/etc/hosts",
        before: "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t".into(),
        after: format!("\n{gateway}\t{names}\n"),
    };
    [hosts, Naming { path: "/etc/hostname", before: String::new(), after: "\n".into() }].into_iter()
}

fn write_where_empty(path: &str, contents: &[u8]) -> io::Result<bool> {
    if fs::metadata(path).map_or(0, |file| file.len()) != 0 {
        return Ok(false);
    }
    fs::create_dir_all("/etc")?;
    sys::write_file(path, contents)?;
    Ok(true)
}
