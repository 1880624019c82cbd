//! What is said to the kernel by address, so that a filter of system calls can hold it.
//!
//! A filter sees the arguments of a call and not what they point to: it cannot tell a name in a share from
//! "/etc/passwd", nor how `openat2` is to open it. Landlock refuses to open, make and remove what is outside of the
//! shares, but has no say in attributes (modes, owners, sizes, times), nor in descriptors that only stand for a file
//! (O_PATH). So these are had by two texts in a page that can be read alone: an empty path, for calls that then work on
//! the descriptor, and how a path is opened beneath a directory. The filter lets these calls through with these
//! addresses, and lets nobody change, move or replace the page; it lies below all other memory, which makes that one
//! comparison for each call that could.

#![allow(unsafe_code, reason = "a page at a chosen address, and calls by addresses in it")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, ResolveFlags};
use rustix::io::Errno;

use crate::guest::errno;

/// The largest page that Linux has, and the lowest address that it usually gives out (vm.mmap_min_addr).
const LENGTH: usize = 64 << 10;
/// Where it is at most.
const HIGHEST: usize = 16 << 20;
/// fchmodat2(2), of Linux 6.6; the number is the same on every architecture.
pub const FCHMODAT2: i64 = 452;

/// `struct open_how` of openat2(2).
#[repr(C)]
struct How {
    flags: u64,
    mode: u64,
    resolve: u64,
}

#[repr(C)]
struct Page {
    how: How,
    empty: u8,
}

/// The addresses that a filter is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// `struct open_how` for a descriptor that stands for what lies beneath a directory.
    pub how: u64,
    /// The fourth argument of openat2(2), which goes with `how` as the third: its size in bytes.
    pub how_bytes: u64,
    /// The empty path.
    pub empty: u64,
    /// The first address behind the page, below which nothing is to be changed.
    pub end: u64,
}

impl Sealed {
    /// Of this process. It is made once, and stays.
    pub fn get() -> Result<Self, Errno> {
        let page = page()?;
        Ok(Self {
            how: &raw const page.how as u64,
            how_bytes: size_of::<How>() as u64,
            empty: &raw const page.empty as u64,
            end: (&raw const *page as usize + LENGTH) as u64,
        })
    }
}

fn page() -> Result<&'static Page, Errno> {
    static PAGE: OnceLock<Result<usize, Errno>> = OnceLock::new();
    let address = (*PAGE.get_or_init(make))?;
    // SAFETY: a page with this content, which nobody writes to and which is there as long as the process.
    Ok(unsafe { &*std::ptr::with_exposed_provenance(address) })
}

/// Maps the page and fills it.
fn make() -> Result<usize, Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    for address in (LENGTH..HIGHEST).step_by(LENGTH) {
        let wanted = std::ptr::without_provenance_mut(address);
        // SAFETY: a new mapping, which takes the place of none.
        let page = unsafe { libc::mmap(wanted, LENGTH, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            continue;
        }
        if page != wanted {
            // A kernel before 4.17 takes the address for a hint.
            // SAFETY: the mapping that has just been made.
            unsafe { libc::munmap(page, LENGTH) };
            continue;
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let how = How { flags: flags.cast_unsigned().into(), mode: 0, resolve: resolve.bits() };
        // SAFETY: the new page, which is longer than the value and aligned to more; nobody else knows of it.
        unsafe { page.cast::<Page>().write(Page { how, empty: 0 }) };
        // SAFETY: the same page.
        if unsafe { libc::mprotect(page, LENGTH, libc::PROT_READ) } != 0 {
            return Err(errno());
        }
        return Ok(page.expose_provenance());
    }
    Err(Errno::NOMEM)
}

/// The empty path, for calls that take a descriptor and flags (AT_EMPTY_PATH).
pub(crate) fn empty() -> Result<&'static CStr, Errno> {
    CStr::from_bytes_with_nul(std::slice::from_ref(&page()?.empty)).map_err(|_| Errno::INVAL)
}

/// Stands for a file without opening it: a FIFO is not joined, a device not touched.
pub(crate) fn open_path(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let how = &raw const page()?.how;
    let directory = directory.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a string and a structure of this length, both of which are there.
    let fd = unsafe { libc::syscall(libc::SYS_openat2, directory, name.as_ptr(), how, size_of::<How>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(errno)?;
    // SAFETY: a descriptor that has just been made, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the mode of what a descriptor stands for; `NOSYS` where the kernel can do so only for one that is open.
pub(crate) fn chmod(file: impl AsFd, mode: Mode) -> Result<(), Errno> {
    let (file, path) = (file.as_fd().as_raw_fd(), empty()?.as_ptr());
    // SAFETY: the kernel reads an empty string.
    let done = unsafe { libc::syscall(FCHMODAT2, file, path, mode.as_raw_mode(), libc::AT_EMPTY_PATH) };
    if done == 0 { Ok(()) } else { Err(errno()) }
}
