//! struct virtio_net_hdr_v1 (virtio 1.2, 5.1.6).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::{Header, Segments};
use crate::Broken;

pub(super) const BYTES: usize = 12;

/// The guest's header of a frame.
pub(super) fn decode(bytes: &[u8; BYTES]) -> Result<Header, Broken> {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let segments = match u32::from(bytes[1]) & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => Segments::None,
        VIRTIO_NET_HDR_GSO_TCPV4 => Segments::TcpV4,
        VIRTIO_NET_HDR_GSO_TCPV6 => Segments::TcpV6,
        kind => {
            return Err(Broken::Chain(format!("a frame is to be segmented in a way not offered: {kind}")));
        }
    };
    let several = segments != Segments::None;
    if several && word(4) == 0 {
        return Err(Broken::Chain("a frame is to be cut into segments of no bytes".into()));
    }
    let flags = u32::from(bytes[0]);
    Ok(Header {
        needs_checksum: flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0,
        checksum_valid: flags & VIRTIO_NET_HDR_F_DATA_VALID != 0,
        checksum_start: word(6),
        checksum_offset: word(8),
        segments,
        header_bytes: if several { word(2) } else { 0 },
        segment_bytes: if several { word(4) } else { 0 },
    })
}

/// The header of a frame for the guest that lies in so many of its buffers.
pub(super) fn encode(header: &Header, buffers: u16) -> [u8; BYTES] {
    let checksum = if header.needs_checksum {
        VIRTIO_NET_HDR_F_NEEDS_CSUM
    } else if header.checksum_valid {
        VIRTIO_NET_HDR_F_DATA_VALID
    } else {
        0
    };
    let kind = match header.segments {
        Segments::None => VIRTIO_NET_HDR_GSO_NONE,
        Segments::TcpV4 => VIRTIO_NET_HDR_GSO_TCPV4,
        Segments::TcpV6 => VIRTIO_NET_HDR_GSO_TCPV6,
    };
    let mut bytes = [0; BYTES];
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the header's constants are u32, whatever field they are for"
    )]
    let start = [checksum as u8, kind as u8];
    bytes[..2].copy_from_slice(&start);
    let words =
        [header.header_bytes, header.segment_bytes, header.checksum_start, header.checksum_offset, buffers];
    for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
