//! The lock of a volume: one machine at a time, held by the open file, so that it ends with whoever has it open.

#![allow(unsafe_code, reason = "locks of open file descriptions are a C call")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes the lock; `false` when another machine has it. Machines that only read share it.
#[allow(clippy::cast_possible_truncation, reason = "constants are c_int on Linux, c_short on macOS")]
pub fn acquire(file: &File, shared: bool) -> io::Result<bool> {
    // SAFETY: all zeros is a valid flock: from the start, to the end.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if shared { libc::F_RDLCK } else { libc::F_WRLCK } as _;
    lock.l_whence = libc::SEEK_SET as _;
    // SAFETY: the call reads `lock`, which outlives it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::acquire;

    #[test]
    fn one_at_a_time_and_gone_with_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, other) = (file.reopen().unwrap(), file.reopen().unwrap());
        assert!(acquire(&one, false).unwrap());
        assert!(!acquire(&other, false).unwrap());
        assert!(!acquire(&other, true).unwrap());
        let kept = one.try_clone().unwrap();
        drop(one);
        assert!(!acquire(&other, false).unwrap());
        drop(kept);
        assert!(acquire(&other, true).unwrap());
        let reader = file.reopen().unwrap();
        assert!(acquire(&reader, true).unwrap());
        assert!(!acquire(&reader, false).unwrap());
    }
}
