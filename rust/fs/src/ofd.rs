//! Locks of ranges that belong to an open file description (fcntl_locking(2), "Open file description locks").

#![allow(unsafe_code, reason = "fcntl(2) with a structure is a C call")]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// What a lock is of, and how: `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub start: u64,
    /// The last byte; `i64::MAX` for the end of the file, wherever that is.
    pub end: u64,
    pub kind: i32,
}

impl Range {
    #[allow(clippy::cast_possible_truncation, reason = "constants are c_int on Linux, c_short on macOS")]
    fn structure(&self) -> Result<libc::flock, Errno> {
        let number = |value: u64| i64::try_from(value).map_err(|_| Errno::INVAL);
        let (start, end) = (number(self.start)?, number(self.end)?);
        if end < start {
            return Err(Errno::INVAL);
        }
        // SAFETY: all zeros is a value of the structure.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = self.kind as _;
        lock.l_whence = libc::SEEK_SET as _;
        lock.l_start = start;
        // A length of zero means to the end.
        lock.l_len = if end == i64::MAX { 0 } else { end - start + 1 };
        Ok(lock)
    }
}

fn call(file: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> Result<(), Errno> {
    // SAFETY: the structure is valid for reads and writes, and both commands take one.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if done == 0 { Ok(()) } else { Err(crate::guest::errno()) }
}

/// Sets or removes a lock; EAGAIN where another's is in its way.
pub(crate) fn set(file: BorrowedFd<'_>, range: Range) -> Result<(), Errno> {
    match call(file, libc::F_OFD_SETLK, &mut range.structure()?) {
        Err(Errno::ACCESS) => Err(Errno::AGAIN),
        done => done,
    }
}

/// A lock that is in the way of this one.
pub(crate) fn conflict(file: BorrowedFd<'_>, range: Range) -> Result<Option<Range>, Errno> {
    let mut lock = range.structure()?;
    call(file, libc::F_OFD_GETLK, &mut lock)?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = lock.l_start.max(0);
    let end = if lock.l_len == 0 { i64::MAX } else { start.saturating_add(lock.l_len - 1) };
    Ok(Some(Range { start: start.cast_unsigned(), end: end.cast_unsigned(), kind: lock.l_type.into() }))
}
