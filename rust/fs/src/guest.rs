//! A request and the room for its answer, as they lie in guest memory. The guest may change them at any time: what
//! decides something is copied once, and file contents go by without being looked at.

#![allow(unsafe_code, reason = "preadv(2) and pwritev(2) straight to guest memory")]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, VolatileSlice};

/// The kernel's own limit (UIO_MAXIOV).
const MAX_PARTS: usize = 1024;

/// Bytes in all of the parts.
pub(crate) fn length<B: BitmapSlice>(parts: &[VolatileSlice<'_, B>]) -> usize {
    parts.iter().map(VolatileSlice::len).fold(0, usize::saturating_add)
}

/// Copies from the start of the parts; how many bytes there were.
pub(crate) fn read<B: BitmapSlice>(parts: &[VolatileSlice<'_, B>], to: &mut [u8]) -> usize {
    let mut done = 0;
    for part in parts {
        if done == to.len() {
            break;
        }
        let count = part.len().min(to.len() - done);
        done += part.read(&mut to[done..done + count], 0).unwrap_or(0);
    }
    done
}

/// Copies to the start of the parts; how many bytes found room.
pub(crate) fn write<B: BitmapSlice>(parts: &[VolatileSlice<'_, B>], from: &[u8]) -> usize {
    let mut done = 0;
    for part in parts {
        if done == from.len() {
            break;
        }
        done += part.write(&from[done..], 0).unwrap_or(0);
    }
    done
}

/// The parts without their first `skip` bytes, and no more than `most` bytes of them, for one system call.
fn window<B: BitmapSlice>(
    parts: &[VolatileSlice<'_, B>],
    mut skip: usize,
    mut most: usize,
) -> Vec<libc::iovec> {
    let mut window = Vec::with_capacity(parts.len().min(MAX_PARTS));
    for part in parts {
        let start = skip.min(part.len());
        skip -= start;
        let count = (part.len() - start).min(most);
        if count == 0 {
            continue;
        }
        most -= count;
        let Ok(part) = part.subslice(start, count) else { break };
        window.push(libc::iovec { iov_base: part.ptr_guard_mut().as_ptr().cast(), iov_len: count });
        if window.len() == MAX_PARTS {
            break;
        }
    }
    window
}

/// Why the last call failed.
pub(crate) fn errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn count(window: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(window.len()).expect("there are at most MAX_PARTS")
}

/// Reads from a file into the parts, beyond their first `skip` bytes; how many bytes the file had.
pub(crate) fn read_file<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    parts: &[VolatileSlice<'_, B>],
    skip: usize,
    most: usize,
    offset: u64,
) -> Result<usize, Errno> {
    let parts = window(parts, skip, most);
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: each part is memory that its slice keeps mapped and writable, and no reference to it exists: guest memory
    // is only ever reached by pointers. The count is at most MAX_PARTS.
    let read = unsafe { libc::preadv(file.as_raw_fd(), parts.as_ptr(), count(&parts), offset) };
    usize::try_from(read).map_err(|_| errno())
}

/// Writes the parts, beyond their first `skip` bytes, to a file; how many bytes it took.
pub(crate) fn write_file<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    parts: &[VolatileSlice<'_, B>],
    skip: usize,
    most: usize,
    offset: u64,
) -> Result<usize, Errno> {
    let parts = window(parts, skip, most);
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: as in `read_file`; the call only reads the memory.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr(), count(&parts), offset) };
    usize::try_from(written).map_err(|_| errno())
}
