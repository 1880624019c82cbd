//! virtio-fs (virtio 1.2, 5.11): one queue for urgent requests and one for all others.
//!
//! The device is the front; [`Server`] is the seam; what serves directories of the host is another crate's.

mod device;
mod empty;

use vm_memory::VolatileSlice;

pub use device::Fs;
pub use empty::Empty;

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// So many bytes of the answer are written; who asked waits for them.
    Answered(usize),
    /// There is no answer, and nobody waits (FUSE_FORGET): the guest need not be interrupted for it.
    Unawaited,
    /// Not served yet (FUSE_SETLKW): the guest waits, and the same request is to be served again later.
    Later,
}

/// Serves FUSE requests (the kernel's include/uapi/linux/fuse.h). All calls come with the transport's lock held, on the
/// vCPU that notified. None may wait for the guest, and what a server keeps for the guest is bounded by it.
pub trait Server: Send {
    /// Serves one request that lies in guest memory in these pieces, header first; how many bytes of `answer`, header
    /// first, it has written. 0 for a request that has no header to answer to.
    ///
    /// The guest may change both at any time: nothing of the request is looked at twice, and nothing is read back from
    /// `answer`. They are the guest's again when this returns.
    fn serve(&mut self, request: &[VolatileSlice<'_>], answer: &[VolatileSlice<'_>]) -> Served;

    /// Whether requests that are to be served later may succeed now, by what has been served since the last call.
    fn has_news(&mut self) -> bool {
        false
    }

    /// What a snapshot is to hold of what the guest knows; empty for nothing.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// A restored guest goes on with what [`Server::save`] gave; it may be anybody's, and is not to be trusted.
    fn restore(&mut self, _saved: Vec<u8>) {}

    /// The driver starts over, and FUSE_INIT comes next: nothing that was open is known to it.
    fn reset(&mut self) {}
}

/// Copies from the start of the pieces; how many bytes there were.
fn copy(from: &[VolatileSlice<'_>], to: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in from {
        done += slice.copy_to(&mut to[done..]);
    }
    done
}
