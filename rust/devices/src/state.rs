//! What a snapshot holds of a transport and its queues.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use crate::Memory;

/// A transport, whatever its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub driver_features: u64,
    pub status: u32,
    pub interrupt_status: u32,
    pub queues: Vec<QueueState>,
}

/// One queue; addresses are guest physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    pub size: u16,
    pub ready: bool,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub last_avail_idx: u16,
    pub next_used_idx: u16,
}

/// Why saved state was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("the saved driver accepted features {accepted:#x} of a device that offers {offered:#x}")]
    Features { accepted: u64, offered: u64 },
    #[error("the saved device has {found} queues and this one {expected}")]
    QueueCount { found: usize, expected: usize },
    #[error("queue {queue} has {size} entries; it must be a power of two and at most {max}")]
    QueueSize { queue: usize, size: u16, max: u16 },
    #[error("queue {queue} is misaligned or lies outside guest memory")]
    QueueAddress { queue: usize },
    #[error("queue {queue} has more chains in flight than entries, by its indices")]
    QueueIndex { queue: usize },
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
