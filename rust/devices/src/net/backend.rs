//! The seam between virtio-net and whatever is at the other end of its cable.

use std::time::Instant;

use vm_memory::VolatileSlice;

use crate::Broken;
use crate::poller::Event;

/// What virtio-net's header says of a frame (virtio 1.2, 5.1.6), without the fields that say nothing more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The checksum of the transport protocol covers the pseudo header alone. It is to be made over the bytes from
    /// `checksum_start` on and put `checksum_offset` bytes after that.
    pub needs_checksum: bool,
    /// The transport checksum has been checked, or need not be. Meaningful in frames for the guest.
    pub checksum_valid: bool,
    /// The first byte that the checksum covers, counted from the frame's start. Meaningful with `needs_checksum`.
    pub checksum_start: u16,
    /// Where the checksum is, counted from `checksum_start`.
    pub checksum_offset: u16,
    /// What segments the frame stands for.
    pub segments: Segments,
    /// Bytes of headers up to the payload; a hint. 0 with [`Segments::None`].
    pub header_bytes: u16,
    /// Bytes of payload in each segment. 0 with [`Segments::None`].
    pub segment_bytes: u16,
}

/// Kinds of frames that stand for several TCP segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Segments {
    /// The frame is sent as it is.
    #[default]
    None,
    /// TCP in IPv4 (VIRTIO_NET_HDR_GSO_TCPV4).
    TcpV4,
    /// TCP in IPv6 (VIRTIO_NET_HDR_GSO_TCPV6).
    TcpV6,
}

/// What the driver takes in frames for the guest. A frame that asks for more than this is not delivered.
///
/// In the other direction there is no choice: the features are negotiated at the guest's boot, before it is known what
/// the cable will be plugged into, so every backend takes frames of up to 64 KiB with any [`Header`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames with [`Header::needs_checksum`] or [`Header::checksum_valid`].
    pub checksum: bool,
    /// Frames with [`Segments::TcpV4`].
    pub tcp_v4: bool,
    /// Frames with [`Segments::TcpV6`].
    pub tcp_v6: bool,
}

/// The largest frame: what one IP packet of 65,535 bytes is with its Ethernet header.
pub const MAX_FRAME: usize = 65_535 + 14;

/// The other end of the cable: a user-space stack, for one. All calls come with the transport's lock held, on the vCPU
/// that notified or on the device's I/O thread. None may block, and what a backend keeps for the guest is bounded by
/// it.
///
/// A backend is plugged in by [`super::Host::attach`], where it gets the poller for its sockets.
pub trait Backend: Send {
    /// A driver is up and takes these. Comes first; again when the driver has started over, or the guest was restored:
    /// nothing of what was under way then is known to it any more.
    fn start(&mut self, offloads: Offloads);

    /// A frame of the guest's: Ethernet header and payload, where they lie in guest memory. The guest may change them
    /// at any time, so they are copied out of or given to the kernel, and nothing is looked at twice. They are the
    /// guest's again when this returns. What cannot be taken is dropped, as cables do.
    fn transmit(
        &mut self,
        header: &Header,
        frame: &[VolatileSlice<'_>],
        guest: &mut dyn Receiver,
    ) -> Result<(), Broken>;

    /// The guest has room for frames again, or a batch of [`Backend::transmit`]s is over. Comes after each of its
    /// notifications.
    fn pump(&mut self, guest: &mut dyn Receiver) -> Result<(), Broken>;

    /// A socket of the backend's is ready, says the poller, by its token.
    fn ready(&mut self, event: Event, guest: &mut dyn Receiver) -> Result<(), Broken>;

    /// When [`Backend::expired`] is to be called; `None` when no timer runs. Asked after each other call.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has come.
    fn expired(&mut self, _guest: &mut dyn Receiver) -> Result<(), Broken> {
        Ok(())
    }
}

/// The guest's receive queue.
pub trait Receiver {
    /// Whether there is room for a frame of [`MAX_FRAME`] bytes. While there is not, [`Backend::pump`] comes when there
    /// is.
    fn has_room(&mut self) -> Result<bool, Broken>;

    /// Puts a frame of these pieces into the guest's memory; `false` when there is no room for it now, and nothing has
    /// been taken. An error is the guest's breach of the rules: to be handed on.
    fn send(&mut self, header: &Header, pieces: &[&[u8]]) -> Result<bool, Broken>;
}

/// A cable that is plugged into nothing.
pub struct Null;

impl Backend for Null {
    fn start(&mut self, _offloads: Offloads) {}

    fn transmit(&mut self, _: &Header, _: &[VolatileSlice<'_>], _: &mut dyn Receiver) -> Result<(), Broken> {
        Ok(())
    }

    fn pump(&mut self, _: &mut dyn Receiver) -> Result<(), Broken> {
        Ok(())
    }

    fn ready(&mut self, _: Event, _: &mut dyn Receiver) -> Result<(), Broken> {
        Ok(())
    }
}
