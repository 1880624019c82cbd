//! The device's two queues.

use std::sync::Arc;
use std::time::Instant;

use supermachine_support::to_usize;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::backend::{Backend, Header, MAX_FRAME, Null, Offloads, Receiver, Segments};
use super::header;
use crate::Broken;
use crate::chain;
use crate::mmio::{Device, Rings};
use crate::poller::{Event, Poller};

#[expect(
    clippy::cast_possible_truncation,
    reason = "the header's constants are u32, whatever field they are for"
)]
const LINK_UP: u8 = VIRTIO_NET_S_LINK_UP as u8;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// The least bytes of a buffer that a driver with VIRTIO_NET_F_MRG_RXBUF should give (virtio 1.2, 5.1.6.3.1).
const LEAST_BUFFER: usize = 1526;

/// A network card whose cable is unplugged until a backend is attached.
pub struct Net {
    config: [u8; 12],
    backend: Box<dyn Backend>,
    attached: bool,
    features: u64,
    /// The I/O thread's, while there is one; and when that wakes by itself.
    poller: Option<Arc<Poller>>,
    wakes_at: Option<Instant>,
    taken: Taken,
}

impl Net {
    pub(super) fn new(mac: [u8; 6], mtu: u16) -> Self {
        // struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu.
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac);
        config[8..10].copy_from_slice(&1_u16.to_le_bytes());
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        Self {
            config,
            backend: Box::new(Null),
            attached: false,
            features: 0,
            poller: None,
            wakes_at: None,
            taken: Taken::default(),
        }
    }

    /// Whether a cable is plugged in, as the guest is told (VIRTIO_NET_S_LINK_UP).
    pub fn is_link_up(&self) -> bool {
        u32::from(self.config[6]) & VIRTIO_NET_S_LINK_UP != 0
    }

    /// Plugs the cable into this; `None` unplugs it.
    pub(super) fn plug(
        &mut self,
        backend: Option<Box<dyn Backend>>,
        rings: &mut Rings,
    ) -> Result<(), Broken> {
        self.attached = backend.is_some();
        self.backend = backend.unwrap_or_else(|| Box::new(Null));
        if rings.is_active() {
            let offloads = self.offloads();
            self.backend.start(offloads);
        }
        self.show_link(rings);
        self.serve(rings, |backend, guest| backend.pump(guest))
    }

    fn show_link(&mut self, rings: &mut Rings) {
        if self.attached != self.is_link_up() {
            self.config[6] = if self.attached { LINK_UP } else { 0 };
            rings.config_changed();
        }
    }

    pub(super) fn ready(&mut self, event: Event, rings: &mut Rings) -> Result<(), Broken> {
        self.serve(rings, |backend, guest| backend.ready(event, guest))
    }

    pub(super) fn set_poller(&mut self, poller: Option<Arc<Poller>>) {
        self.poller = poller;
    }

    /// The I/O thread is about to wait; when it shall wake at the latest.
    pub(super) fn sleeps(&mut self) -> Option<Instant> {
        self.wakes_at = self.backend.deadline();
        self.wakes_at
    }

    /// The I/O thread has woken: it asks for a deadline by itself before it waits again.
    pub(super) fn wakes(&mut self) {
        self.wakes_at = Some(Instant::now());
    }

    /// Tells the backend that its deadline has come, if it has.
    pub(super) fn expire(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        match self.backend.deadline() {
            Some(deadline) if deadline <= Instant::now() => {
                self.serve(rings, |backend, guest| backend.expired(guest))
            }
            _ => Ok(()),
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features >> feature & 1 == 1
    }

    fn offloads(&self) -> Offloads {
        Offloads {
            checksum: self.has(VIRTIO_NET_F_GUEST_CSUM),
            tcp_v4: self.has(VIRTIO_NET_F_GUEST_TSO4),
            tcp_v6: self.has(VIRTIO_NET_F_GUEST_TSO6),
        }
    }

    fn serve(
        &mut self,
        rings: &mut Rings,
        work: impl FnOnce(&mut dyn Backend, &mut dyn Receiver) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        let (offloads, mergeable) = (self.offloads(), self.has(VIRTIO_NET_F_MRG_RXBUF));
        let mut queue = ReceiveQueue { rings, offloads, mergeable, taken: &mut self.taken };
        work(&mut *self.backend, &mut queue)?;
        // The I/O thread sleeps until a deadline that was later, or none.
        if let (Some(deadline), Some(poller)) = (self.backend.deadline(), &self.poller)
            && self.wakes_at.is_none_or(|wakes_at| deadline < wakes_at)
        {
            self.wakes_at = Some(deadline);
            poller.wake();
        }
        Ok(())
    }

    fn transmit(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        let memory = rings.memory();
        loop {
            while let Some(chain) = rings.pop(TRANSMIT)? {
                let head = chain.head_index();
                let mut frame = chain::readable(chain, &memory)?;
                let mut bytes = [0; header::BYTES];
                chain::take(&mut frame, &mut bytes)?;
                let header = header::decode(&bytes)?;
                let length: usize = frame.iter().map(VolatileSlice::len).sum();
                // What cannot be a frame goes the way of all that a cable cannot carry.
                if (14..=MAX_FRAME).contains(&length) {
                    self.serve(rings, |backend, guest| backend.transmit(&header, &frame, guest))?;
                }
                rings.push(TRANSMIT, head, 0)?;
            }
            if !rings.enable_notification(TRANSMIT)? {
                return Ok(());
            }
        }
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256]
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
        ]
        .iter()
        .fold(0, |bits, bit| bits | 1 << bit)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn start(&mut self, features: u64) {
        self.features = features;
        let offloads = self.offloads();
        self.backend.start(offloads);
    }

    /// The link is as the guest knows it until it goes on: one that is attached by then has never been down.
    fn restore_config(&mut self, saved: &[u8]) -> bool {
        let same = saved.len() == self.config.len()
            && saved[..6] == self.config[..6]
            && saved[7..] == self.config[7..];
        if same {
            self.config.copy_from_slice(saved);
        }
        same
    }

    fn resume(&mut self, rings: &mut Rings) {
        self.show_link(rings);
    }

    fn notify(&mut self, index: usize, rings: &mut Rings) -> Result<(), Broken> {
        if index == TRANSMIT {
            self.transmit(rings)?;
        }
        self.serve(rings, |backend, guest| backend.pump(guest))
    }

    fn reset(&mut self) {
        self.features = 0;
    }
}

/// The receive queue as the backend sees it.
struct ReceiveQueue<'a> {
    rings: &'a mut Rings,
    offloads: Offloads,
    /// A frame may lie in several buffers.
    mergeable: bool,
    taken: &'a mut Taken,
}

/// The buffers of one frame. Kept from frame to frame for their memory alone.
#[derive(Default)]
struct Taken {
    /// By their heads, each with a number of bytes.
    chains: Vec<(u16, u32)>,
    /// Addresses and lengths of all their parts.
    ranges: Vec<(u64, u64)>,
}

impl Receiver for ReceiveQueue<'_> {
    fn has_room(&mut self) -> Result<bool, Broken> {
        let large = self.mergeable && (self.offloads.tcp_v4 || self.offloads.tcp_v6);
        let needed = if large { (header::BYTES + MAX_FRAME).div_ceil(LEAST_BUFFER) } else { 1 };
        loop {
            if self.rings.available(RECEIVE)? >= needed {
                return Ok(true);
            }
            // Asked for one by one: a driver that refills slowly costs an exit for each buffer until there is enough.
            self.rings.enable_notification_of_next(RECEIVE)?;
            if self.rings.available(RECEIVE)? < needed {
                return Ok(false);
            }
        }
    }

    fn send(&mut self, header: &Header, pieces: &[&[u8]]) -> Result<bool, Broken> {
        let refused = match header.segments {
            Segments::None => (header.needs_checksum || header.checksum_valid) && !self.offloads.checksum,
            Segments::TcpV4 => !self.offloads.tcp_v4,
            Segments::TcpV6 => !self.offloads.tcp_v6,
        };
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if refused || length > MAX_FRAME {
            // The driver does not take it, now or later.
            return Ok(true);
        }
        let memory = self.rings.memory();
        let Taken { chains, ranges } = &mut *self.taken;
        chains.clear();
        ranges.clear();
        let mut room = 0;
        while room < header::BYTES + length {
            let chain = if chains.is_empty() || self.mergeable { self.rings.pop(RECEIVE)? } else { None };
            let Some(chain) = chain else {
                chains.iter().for_each(|_| self.rings.put_back(RECEIVE));
                if !chains.is_empty() && !self.mergeable {
                    return Err(Broken::Chain(
                        "a buffer for frames is smaller than the frames it asks for".into(),
                    ));
                }
                self.rings.enable_notification_of_next(RECEIVE)?;
                return Ok(false);
            };
            let head = chain.head_index();
            let bytes = chain::add_ranges(chain, &memory, ranges)?;
            if chains.is_empty() && bytes < header::BYTES {
                return Err(Broken::Chain("a buffer for frames does not hold their header".into()));
            }
            // What is in it lies in the frame from here on.
            chains.push((head, chain::told(room)?));
            room += bytes;
        }
        let end = chain::told(header::BYTES + length)?;
        let header = header::encode(header, u16::try_from(chains.len()).expect("a queue has fewer"));
        let mut places = ranges.iter().copied().filter(|(_, length)| *length > 0);
        let mut place = (0, 0);
        for mut piece in std::iter::once(&header[..]).chain(pieces.iter().copied()) {
            while !piece.is_empty() {
                if place.1 == 0 {
                    place = places.next().expect("there is room for all of it");
                }
                let n = piece.len().min(to_usize(place.1));
                let written = memory.write_slice(&piece[..n], GuestAddress(place.0));
                written.map_err(|_| Broken::Chain("a buffer lies outside guest memory".into()))?;
                piece = &piece[n..];
                place = (place.0 + n as u64, place.1 - n as u64);
            }
        }
        // From where each begins, how much is in each.
        let mut next = end;
        for (_, begin) in chains.iter_mut().rev() {
            (*begin, next) = (next - *begin, *begin);
        }
        self.rings.push_all(RECEIVE, chains)?;
        Ok(true)
    }
}
