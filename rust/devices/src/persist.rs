//! What a snapshot holds of a device: of what it is, and of its transport and queues.

use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;
use virtio_queue::{Queue, QueueT};

use crate::Memory;

/// A device whose state a snapshot holds.
pub trait Persist {
    /// What a snapshot holds of it.
    fn save(&self) -> DeviceState;

    /// Takes over what [`Persist::save`] gave, with guest memory in place. Everything is checked before anything is
    /// taken.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Virtio device id (virtio 1.2, 5).
    pub id: u32,
    /// The configuration space: what the guest believes of a disk's size, for one.
    pub config: Vec<u8>,
    /// What the driver and the device have agreed on, and the queues.
    pub transport: TransportState,
}

saved_structure!(DeviceState { id: u32, config: Vec<u8>, transport: TransportState });

/// A transport, whatever its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Feature bits that the driver has accepted (virtio 1.2, 2.2).
    pub driver_features: u64,
    /// The device status field (virtio 1.2, 2.1).
    pub status: u32,
    /// InterruptStatus: bit 0 for a used buffer, bit 1 for a changed configuration (virtio 1.2, 4.2.2).
    pub interrupt_status: u32,
    /// In the order of their indices.
    pub queues: Vec<QueueState>,
}

saved_structure!(TransportState {
    driver_features: u64,
    status: u32,
    interrupt_status: u32,
    queues: Vec<QueueState>
});

/// One queue; addresses are guest physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries: a power of two (QueueNum).
    pub size: u16,
    /// Whether the driver has set it up (QueueReady).
    pub ready: bool,
    /// Of the descriptor table; a multiple of 16.
    pub desc: u64,
    /// Of the available ring; a multiple of 2.
    pub avail: u64,
    /// Of the used ring; a multiple of 4.
    pub used: u64,
    /// How many chains were taken from the available ring, modulo 2^16.
    pub last_avail_idx: u16,
    /// How many chains were put into the used ring, modulo 2^16.
    pub next_used_idx: u16,
}

saved_structure!(QueueState {
    size: u16,
    ready: bool,
    desc: u64,
    avail: u64,
    used: u64,
    last_avail_idx: u16,
    next_used_idx: u16
});

/// Why saved state was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The machine has something else at this place of its bus.
    #[error(
        "it is of type {found} with configuration {found_config:02x?}, and the machine has type {expected} with \
         {expected_config:02x?} there; a snapshot needs the devices and disks that it was taken with"
    )]
    OtherDevice {
        /// Virtio device id of the saved device.
        found: u32,
        /// Its configuration space.
        found_config: Vec<u8>,
        /// Virtio device id of the machine's.
        expected: u32,
        /// Its configuration space.
        expected_config: Vec<u8>,
    },
    /// The driver goes by features that this device has not.
    #[error("the saved driver accepted features {accepted:#x} of a device that offers {offered:#x}")]
    Features {
        /// Bits that the saved driver has accepted.
        accepted: u64,
        /// Bits that this device offers.
        offered: u64,
    },
    /// A device of this type has another number of queues.
    #[error("the saved device has {found} queues and this one {expected}")]
    QueueCount {
        /// Of the saved device.
        found: usize,
        /// Of this one.
        expected: usize,
    },
    /// A queue's size cannot be.
    #[error("queue {queue} has {size} entries; it must be a power of two and at most {max}")]
    QueueSize {
        /// Its index.
        queue: usize,
        /// Entries that it has.
        size: u16,
        /// Entries that this device lets it have.
        max: u16,
    },
    /// A queue's rings cannot be where they are.
    #[error("queue {queue} is misaligned or lies outside guest memory")]
    QueueAddress {
        /// Its index.
        queue: usize,
    },
    /// A queue's indices cannot be.
    #[error("queue {queue} has more chains in flight than entries, by its indices")]
    QueueIndex {
        /// Its index.
        queue: usize,
    },
}

impl QueueState {
    pub(crate) fn of(queue: &Queue) -> Self {
        Self {
            size: queue.size(),
            ready: queue.ready(),
            desc: queue.desc_table(),
            avail: queue.avail_ring(),
            used: queue.used_ring(),
            last_avail_idx: queue.next_avail(),
            next_used_idx: queue.next_used(),
        }
    }

    /// A queue in this state, checked against guest memory.
    pub(crate) fn queue(
        &self,
        index: usize,
        max: u16,
        event_idx: bool,
        memory: &Memory,
    ) -> Result<Queue, RestoreError> {
        let wrong_size = RestoreError::QueueSize { queue: index, size: self.size, max };
        let mut queue = Queue::new(max).map_err(|_| wrong_size.clone())?;
        queue.try_set_size(self.size).map_err(|_| wrong_size)?;
        let address = |_| RestoreError::QueueAddress { queue: index };
        queue.try_set_desc_table_address(vm_memory::GuestAddress(self.desc)).map_err(address)?;
        queue.try_set_avail_ring_address(vm_memory::GuestAddress(self.avail)).map_err(address)?;
        queue.try_set_used_ring_address(vm_memory::GuestAddress(self.used)).map_err(address)?;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(self.last_avail_idx);
        queue.set_next_used(self.next_used_idx);
        queue.set_ready(self.ready);
        if self.ready {
            if !queue.is_valid(memory) {
                return Err(RestoreError::QueueAddress { queue: index });
            }
            // The guest's own indices are in its memory: what it has offered, and what it has been given back.
            let offered = queue
                .avail_idx(memory, std::sync::atomic::Ordering::Acquire)
                .map_err(|_| RestoreError::QueueAddress { queue: index })?;
            let ahead = offered.0.wrapping_sub(self.last_avail_idx);
            let in_flight = self.last_avail_idx.wrapping_sub(self.next_used_idx);
            if ahead > self.size || in_flight > self.size {
                return Err(RestoreError::QueueIndex { queue: index });
            }
        }
        Ok(queue)
    }
}
