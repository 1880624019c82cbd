//! Bytes that wait. Memory is taken when there are some and given back when there are none.

#![allow(unsafe_code, reason = "readv(2), writev(2) and recv(2) into memory of its own")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::limits;

const FIRST: usize = if cfg!(miri) { 64 } else { 16 * 1024 };

#[derive(Default)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Ring {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that it takes.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that it takes without more memory.
    pub(crate) fn room(&self) -> usize {
        self.bytes.len() - self.len
    }

    /// `length` bytes from `offset` on, in two pieces.
    pub(crate) fn slices(&self, offset: usize, length: usize) -> [&[u8]; 2] {
        let length = length.min(self.len.saturating_sub(offset));
        if length == 0 {
            return [&[], &[]];
        }
        let start = (self.start + offset) % self.bytes.len();
        let first = length.min(self.bytes.len() - start);
        [&self.bytes[start..start + first], &self.bytes[..length - first]]
    }

    /// Forgets the first `length` bytes.
    pub(crate) fn consume(&mut self, length: usize) {
        let length = length.min(self.len);
        self.len -= length;
        if self.len == 0 {
            *self = Self::default();
        } else {
            self.start = (self.start + length) % self.bytes.len();
        }
    }

    /// Makes room for `more` bytes, to at most [`limits::RING`] in all; whether they fit.
    pub(crate) fn reserve(&mut self, more: usize) -> bool {
        let wanted = self.len + more;
        if wanted > limits::RING {
            return false;
        }
        if wanted > self.bytes.len() {
            let mut bytes = vec![0; wanted.next_power_of_two().max(FIRST)].into_boxed_slice();
            let [first, second] = self.slices(0, self.len);
            bytes[..first.len()].copy_from_slice(first);
            bytes[first.len()..self.len].copy_from_slice(second);
            (self.bytes, self.start) = (bytes, 0);
        }
        true
    }

    /// The free memory behind the bytes, in two pieces.
    fn free(&mut self) -> [&mut [u8]; 2] {
        let capacity = self.bytes.len();
        if capacity == self.len {
            return [&mut [], &mut []];
        }
        let end = (self.start + self.len) % capacity;
        if end < self.start {
            return [&mut self.bytes[end..self.start], &mut []];
        }
        let (before, after) = self.bytes.split_at_mut(end);
        [after, &mut before[..self.start]]
    }

    /// Appends `length` bytes that `fill` writes; there must be room.
    pub(crate) fn append(&mut self, length: usize, mut fill: impl FnMut(usize, &mut [u8])) {
        let [first, second] = self.free();
        let at = length.min(first.len());
        fill(0, &mut first[..at]);
        fill(at, &mut second[..length - at]);
        self.len += length;
    }

    /// Reads from `fd` into the free memory.
    pub(crate) fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let spans = self
            .free()
            .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() });
        // SAFETY: both pieces are memory of this ring's, which nobody else uses during the call.
        let n = check(unsafe { libc::readv(fd.as_raw_fd(), spans.as_ptr(), 2) })?;
        self.len += n;
        Ok(n)
    }

    /// Writes to `fd` what there is, as far as it takes it.
    pub(crate) fn write_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        while self.len > 0 {
            let spans = self.slices(0, self.len).map(|piece| libc::iovec {
                iov_base: piece.as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            });
            let n = send(fd, &spans)?;
            self.consume(n);
        }
        Ok(())
    }
}

/// writev(2) to a socket that does not wait: a confined worker may not name who it sends to. The process ignores
/// SIGPIPE.
pub(crate) fn send(fd: BorrowedFd<'_>, spans: &[libc::iovec]) -> io::Result<usize> {
    if spans.iter().all(|span| span.iov_len == 0) {
        // Of no bytes Linux makes a datagram for write(2) alone.
        // SAFETY: nothing is read.
        return check(unsafe { libc::write(fd.as_raw_fd(), std::ptr::dangling(), 0) });
    }
    // The kernel takes so many at once (UIO_MAXIOV).
    let count = libc::c_int::try_from(spans.len().min(1024)).expect("at most 1024");
    // SAFETY: the spans are memory that the caller vouches for; the call only reads it.
    check(unsafe { libc::writev(fd.as_raw_fd(), spans.as_ptr(), count) })
}

/// recv(2) that does not wait.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are the buffer's.
    check(unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) })
}

/// Has the other end see a reset when the socket is closed. One that has no such option stays as it is.
pub(crate) fn linger_never(socket: BorrowedFd<'_>) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    #[expect(clippy::cast_possible_truncation, reason = "eight bytes")]
    let length = size_of_val(&linger) as libc::socklen_t;
    // SAFETY: pointer and length are those of `linger`.
    unsafe {
        let value = (&raw const linger).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, length);
    }
}

fn check(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_appended_comes_out_around_the_end_and_through_growth() {
        let (mut ring, mut next, mut taken) = (Ring::default(), 0_u32, 0_u32);
        let byte = |n: u32| n.to_le_bytes()[0];
        // More than one ring of the first size, then less than what is taken, so that the end comes round.
        for (more, less) in
            [(FIRST, 3), (FIRST / 2, FIRST), (5, FIRST / 2), (FIRST, 7), (3 * FIRST, 4 * FIRST)]
        {
            assert!(ring.reserve(more));
            ring.append(more, |_, piece| {
                for b in piece {
                    *b = byte(next);
                    next += 1;
                }
            });
            let less = less.min(ring.len());
            let [first, second] = ring.slices(0, less);
            assert_eq!(first.len() + second.len(), less);
            for b in first.iter().chain(second) {
                assert_eq!(*b, byte(taken));
                taken += 1;
            }
            ring.consume(less);
        }
        assert_eq!(u32::try_from(ring.len()), Ok(next - taken));
    }

    #[test]
    #[cfg_attr(miri, ignore = "no ioctl on a socket there, which makes it one that does not wait")]
    fn bytes_come_out_as_they_went_in_around_the_end_and_through_growth() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut ring, mut out) = (Ring::default(), Vec::new());
        for chunk in bytes.chunks(7001) {
            theirs.write_all(chunk).unwrap();
            assert!(ring.reserve(chunk.len()));
            while ring.read_from(ours.as_fd()).is_ok() {}
            // Leaves some, so that the start moves on.
            let take = ring.len() * 2 / 3;
            let [first, second] = ring.slices(0, take);
            out.extend([first, second].concat());
            ring.consume(take);
        }
        out.extend(ring.slices(0, ring.len()).concat());
        ring.consume(ring.len());
        assert!(out == bytes);
        assert_eq!(ring.capacity(), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "no ioctl on a socket there, which makes it one that does not wait")]
    fn a_ring_has_a_limit_and_is_written_as_far_as_the_socket_takes_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ring = Ring::default();
        assert!(ring.reserve(limits::RING) && !ring.reserve(limits::RING + 1));
        ring.append(limits::RING, |at, piece| piece.iter_mut().zip(at..).for_each(|(b, n)| *b = n as u8));
        let error = ring.write_to(ours.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let left = ring.len();
        assert!(left > 0 && left < limits::RING);
        let mut got = vec![0; limits::RING - left];
        theirs.read_exact(&mut got).unwrap();
        assert!(got.iter().zip(0..).all(|(b, n)| *b == n as u8));
    }
}
