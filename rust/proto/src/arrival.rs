//! What a worker and the API say to each other of a snapshot whose memory is still on its way, over a socket pair of its
//! own ([`crate::worker::Restore::arriving`]).
//!
//! The API first says which pages are missing, and then [`Arrived::Begin`]. From then on it says what has come to the
//! snapshot's file, until all has. The worker says which page its guest waits for.

use serde::{Deserialize, Serialize};

/// Stretches of one message at most, so that it always fits a frame.
pub const MAX_STRETCHES: usize = 8192;

/// API to worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arrived {
    /// These pages of RAM are not in the file yet: first page, number of pages. Before [`Arrived::Begin`] only.
    Missing(Vec<(u64, u64)>),
    /// All that is missing has been said.
    Begin,
    /// These pages are in the file now.
    Pages(Vec<(u64, u64)>),
    /// Nothing is missing any more. The last message.
    All,
    /// The rest will not come, and why. The last message.
    Lost(String),
}

/// Worker to API: a page of RAM that the guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// Its index, from 0 at the start of RAM, in pages of 4 KiB.
    pub page: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    #[test]
    fn the_longest_message_fits_a_frame() {
        let mut out = Vec::new();
        frame::encode(&Arrived::Pages(vec![(u64::MAX, u64::MAX); MAX_STRETCHES]), &mut out).unwrap();
    }
}
