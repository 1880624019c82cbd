//! Datagrams that the guest sends in pieces (RFC 791, 3.2; RFC 8200, 4.5).

use std::net::IpAddr;
use std::time::Instant;

use crate::frame::Frame;
use crate::limits;
use crate::wire::{Ip, Writer};

/// Pieces of one datagram at most; one that comes in more is lost.
const PIECES: usize = 128;

struct Partial {
    key: (IpAddr, IpAddr, u8, u32),
    since: Instant,
    /// Each piece with its offset.
    pieces: Vec<(usize, Vec<u8>)>,
    /// Bytes of the whole, once the last piece is there.
    total: Option<usize>,
}

/// Those that are being put together.
#[derive(Default)]
pub(crate) struct Fragments(Vec<Partial>);

impl Fragments {
    /// Takes a fragment; the whole frame when it was the last that was missing.
    pub(crate) fn add(&mut self, ip: &Ip, frame: Frame<'_>, now: Instant) -> Option<Vec<u8>> {
        let (id, offset, more) = ip.fragment?;
        self.expire(now);
        let key = (ip.source, ip.destination, ip.protocol, id);
        let end = offset + ip.length;
        if end > limits::DATAGRAM + 8 || (more && !ip.length.is_multiple_of(8)) || ip.length == 0 {
            return None;
        }
        let at = match self.0.iter().position(|partial| partial.key == key) {
            Some(at) => at,
            None => {
                if self.0.len() >= limits::REASSEMBLIES {
                    self.0.remove(0);
                }
                self.0.push(Partial { key, since: now, pieces: Vec::new(), total: None });
                self.0.len() - 1
            }
        };
        let partial = &mut self.0[at];
        let overlaps = partial.pieces.iter().any(|(from, bytes)| offset < from + bytes.len() && *from < end);
        let contradicts = partial.total.is_some_and(|total| end > total || (!more && end != total));
        if overlaps || contradicts || partial.pieces.len() >= PIECES {
            // Pieces that overlap are how filters are deceived (RFC 5722): all of it is dropped.
            self.0.remove(at);
            return None;
        }
        partial.pieces.push((offset, frame.part(ip.at, ip.length).to_vec()));
        if !more {
            partial.total = Some(end);
        }
        let have: usize = partial.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        if partial.total != Some(have) {
            return None;
        }
        let mut pieces = self.0.remove(at).pieces;
        pieces.sort_unstable_by_key(|(offset, _)| *offset);
        let writer = Writer::ip(Default::default(), (ip.source, ip.destination), ip.protocol, have, 0, 0);
        let mut whole = writer.bytes().to_vec();
        pieces.iter().for_each(|(_, bytes)| whole.extend(bytes));
        Some(whole)
    }

    /// Forgets what has taken too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.0.retain(|partial| partial.since + limits::REASSEMBLY > now);
    }
}
