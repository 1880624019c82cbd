//! A frame in the guest's memory, and frames for it.

#![allow(unsafe_code, reason = "frames lie in guest memory")]

use std::marker::PhantomData;

/// A frame of the guest's, where it lies. The guest may change it at any time, so it is only ever copied out of or
/// given to the kernel, and nothing is looked at twice.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    spans: &'a [libc::iovec],
    skip: usize,
    len: usize,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Frame<'a> {
    /// The bytes of all `spans` but the first `skip`.
    ///
    /// # Safety
    /// Each span is memory that can be read for as long as `'a`, whoever else writes to it.
    pub unsafe fn new(spans: &'a [libc::iovec], skip: usize) -> Self {
        let total: usize = spans.iter().map(|span| span.iov_len).sum();
        Self { spans, skip, len: total.saturating_sub(skip), memory: PhantomData }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes from `at` on, `length` at most.
    pub fn part(&self, at: usize, length: usize) -> Self {
        let at = at.min(self.len);
        Self { skip: self.skip + at, len: length.min(self.len - at), ..*self }
    }

    /// Copies the first bytes; how many.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        let wanted = to.len().min(self.len);
        self.each(wanted, |span| {
            // SAFETY: the span is readable by the promise to `new`, and the target has room for it: the spans together
            // are as long as `wanted`.
            unsafe {
                let target = to.as_mut_ptr().add(done);
                std::ptr::copy_nonoverlapping(span.iov_base.cast::<u8>(), target, span.iov_len);
            }
            done += span.iov_len;
        });
        done
    }

    /// The bytes in memory of our own.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(&mut bytes);
        bytes
    }

    /// The memory of these bytes, for the kernel to read from.
    pub(crate) fn spans(&self) -> Vec<libc::iovec> {
        let mut spans = Vec::with_capacity(self.spans.len());
        self.each(self.len, |span| spans.push(span));
        spans
    }

    fn each(&self, length: usize, mut found: impl FnMut(libc::iovec)) {
        let (mut skip, mut left) = (self.skip, length);
        for span in self.spans {
            if left == 0 {
                break;
            }
            let from = skip.min(span.iov_len);
            skip -= from;
            let n = left.min(span.iov_len - from);
            if n > 0 {
                // SAFETY: `from` lies inside the span.
                let base = unsafe { span.iov_base.cast::<u8>().add(from) };
                found(libc::iovec { iov_base: base.cast(), iov_len: n });
                left -= n;
            }
        }
    }
}

/// What virtio-net's header says of a frame (virtio 1.2, 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The transport checksum covers the pseudo header only, and is to be made where the two offsets say.
    pub needs_checksum: bool,
    /// Where the checksum begins, counted from the frame's start.
    pub checksum_start: u16,
    /// Where it is put, counted from `checksum_start`.
    pub checksum_offset: u16,
    /// Bytes of headers, and of payload in each segment that it stands for; 0 for a frame that is one segment.
    pub header_bytes: u16,
    /// Bytes of payload in each segment; 0 for a frame that is one segment.
    pub segment: u16,
    /// Of IPv6.
    pub v6: bool,
}

/// Takes frames for the guest.
pub trait Output {
    /// Whether the guest has room for a frame of the largest size.
    fn has_room(&mut self) -> bool;

    /// Takes a frame of these pieces; `false` when there is no room for it now, and nothing has been taken.
    fn send(&mut self, header: &Header, pieces: &[&[u8]]) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_bytes_of_the_spans_wherever_they_are_cut() {
        let memory: [&[u8]; 4] = [b"ab", b"", b"cdefg", b"h"];
        let all = memory.concat();
        let spans = memory
            .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() });
        for skip in 0..=all.len() + 1 {
            // SAFETY: the spans are slices that live as long as the frame.
            let frame = unsafe { Frame::new(&spans, skip) };
            let rest = all.get(skip..).unwrap_or_default();
            assert_eq!((frame.len(), frame.is_empty()), (rest.len(), rest.is_empty()));
            for at in 0..=all.len() + 1 {
                for length in 0..=all.len() + 1 {
                    let part = frame.part(at, length);
                    let wanted: Vec<u8> = rest.iter().skip(at).take(length).copied().collect();
                    assert_eq!(part.to_vec(), wanted);
                    let lengths = part.spans().iter().map(|span| span.iov_len).sum::<usize>();
                    assert_eq!(lengths, wanted.len());
                    let mut fewer = [0; 3];
                    let n = part.copy_to(&mut fewer);
                    assert_eq!(fewer[..n], wanted[..wanted.len().min(3)]);
                }
            }
        }
    }
}
