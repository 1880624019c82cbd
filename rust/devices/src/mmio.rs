//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use supermachine_support::to_usize;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::chain::check;
use crate::persist::{DeviceState, Persist, QueueState, RestoreError, TransportState};
use crate::{Broken, Memory};

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "SMVM": whose devices these are; drivers do not look at it.
const VENDOR: u32 = 0x4d56_4d53;
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
/// Chains that one notification may bring. They are served on the vCPU that notified, so a guest that adds chains from
/// another vCPU for ever would keep it, and whoever wants to pause it, waiting.
const MAX_CHAINS: u32 = 1 << 20;

/// Sets the level of a device's interrupt.
pub type IrqLine = Arc<dyn Fn(bool) + Send + Sync>;

/// What a device is, beyond how it is reached. All calls come with the transport's lock held.
pub trait Device: Send {
    /// Virtio device id (virtio 1.2, 5).
    fn id(&self) -> u32;
    /// The most entries of each queue; powers of two.
    fn queue_sizes(&self) -> &'static [u16];
    /// Feature bits of the device's own; those of transport and ring are added.
    fn features(&self) -> u64;
    /// The device's configuration space.
    fn config(&self) -> &[u8];
    /// The guest has put something into queue `index`.
    fn notify(&mut self, index: usize, rings: &mut Rings) -> Result<(), Broken>;
    /// The driver is up, with these of [`Device::features`]; also when a snapshot's driver is taken over.
    fn start(&mut self, _features: u64) {}
    /// The driver starts over.
    fn reset(&mut self);
    /// Takes over the configuration space that a snapshot's driver knows; `false` when this is not the same device.
    fn restore_config(&mut self, saved: &[u8]) -> bool {
        self.config() == saved
    }
    /// What a snapshot is to hold of what stands behind the device, so that a restored guest has it again where that
    /// can be; empty for nothing.
    fn save_backend(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Takes over what [`Device::save_backend`] gave.
    fn restore_backend(&mut self, _saved: Vec<u8>) {}
    /// A restored guest is about to go on: what has changed since its snapshot is told to it.
    fn resume(&mut self, _rings: &mut Rings) {}
}

/// A device's queues in guest memory, and its interrupt.
pub struct Rings {
    memory: Memory,
    queues: Vec<Queue>,
    line: IrqLine,
    interrupt_status: u32,
    active: bool,
    /// Changes of the configuration space (virtio 1.2, 4.2.2).
    config_generation: u32,
    /// Chains left of [`MAX_CHAINS`].
    budget: u32,
    /// The line stays as it is until [`Transport::with_interrupt_last`] is done.
    holds_line: bool,
}

impl Rings {
    /// Takes the next chain of queue `index`; `None` when the guest has offered no more, or the driver is not up.
    pub fn pop(&mut self, index: usize) -> Result<Option<DescriptorChain<&Memory>>, Broken> {
        let queue = &mut self.queues[index];
        if !self.active || !queue.ready() {
            return Ok(None);
        }
        let mut chains = queue.iter(&self.memory).map_err(|_| Broken::Queue { queue: index })?;
        let Some(chain) = chains.next() else { return Ok(None) };
        self.budget = self.budget.checked_sub(1).ok_or(Broken::Overrun { what: "device's pace" })?;
        check(&self.memory, queue.desc_table(), queue.size(), chain.head_index())?;
        Ok(Some(chain))
    }

    /// Undoes the last [`Rings::pop`] of queue `index`.
    pub fn put_back(&mut self, index: usize) {
        self.queues[index].go_to_previous_position();
    }

    /// Whether a driver is up.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The memory that chains lie in; cheap to clone.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Chains that the guest has offered in queue `index`; none when the driver is not up.
    pub fn available(&self, index: usize) -> Result<usize, Broken> {
        let queue = &self.queues[index];
        if !self.active || !queue.ready() {
            return Ok(0);
        }
        let offered =
            queue.avail_idx(&self.memory, Ordering::Acquire).map_err(|_| Broken::Queue { queue: index })?;
        let waiting = offered.0.wrapping_sub(queue.next_avail());
        if waiting > queue.size() {
            return Err(Broken::Queue { queue: index });
        }
        Ok(waiting.into())
    }

    /// Gives several chains back, each with the length written, so that the driver sees all of them or none.
    pub fn push_all(&mut self, index: usize, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let Some(((head, length), first)) = chains.split_last() else { return Ok(()) };
        let queue = &mut self.queues[index];
        let broken = |_| Broken::Queue { queue: index };
        let before = queue.next_used();
        let mut next = before;
        // The elements first; the ring's index, which shows them, moves with the last one (virtio 1.2, 2.7.8).
        for (head, length) in first {
            let slot = u64::from(next % queue.size());
            next = next.wrapping_add(1);
            let element = u64::from(*head) | u64::from(*length) << 32;
            let at = GuestAddress(queue.used_ring() + 4 + 8 * slot);
            self.memory.write_obj(element.to_le(), at).map_err(|_| Broken::Queue { queue: index })?;
        }
        queue.set_next_used(next);
        if first.is_empty() || !queue.event_idx_enabled() {
            return self.push(index, *head, *length);
        }
        queue.add_used(&self.memory, *head, *length).map_err(broken)?;
        // virtio-queue has counted one chain; the driver's index may lie among the others.
        let last_alone = queue.needs_notification(&self.memory).map_err(broken)?;
        let at = GuestAddress(queue.avail_ring() + 4 + 2 * u64::from(queue.size()));
        let event =
            self.memory.load::<u16>(at, Ordering::Relaxed).map_err(|_| Broken::Queue { queue: index })?;
        let since = queue.next_used().wrapping_sub(u16::from_le(event)).wrapping_sub(1);
        if last_alone || since < queue.next_used().wrapping_sub(before) {
            self.interrupt(VIRTIO_MMIO_INT_VRING);
        }
        Ok(())
    }

    /// Tells the driver that the configuration space has changed, if a driver is up.
    pub fn config_changed(&mut self) {
        if self.active {
            self.config_generation = self.config_generation.wrapping_add(1);
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// Gives a chain back with `length` bytes written, and interrupts the guest if it wants that.
    pub fn push(&mut self, index: usize, head: u16, length: u32) -> Result<(), Broken> {
        let queue = &mut self.queues[index];
        let broken = |_| Broken::Queue { queue: index };
        queue.add_used(&self.memory, head, length).map_err(broken)?;
        // virtio-queue looks at the event index alone; without it the ring's flags say what the driver wants.
        let wanted = if queue.event_idx_enabled() {
            queue.needs_notification(&self.memory).map_err(broken)?
        } else {
            fence(Ordering::SeqCst);
            let flags = self.memory.load::<u16>(GuestAddress(queue.avail_ring()), Ordering::Relaxed);
            let flags = flags.map_err(|_| Broken::Queue { queue: index })?;
            u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt(VIRTIO_MMIO_INT_VRING);
        }
        Ok(())
    }

    /// Whether the driver says how far it has looked at queue `index`, so that [`Rings::tell_of_untold`] knows.
    pub fn says_what_it_saw(&self, index: usize) -> bool {
        self.queues[index].event_idx_enabled()
    }

    /// Gives a chain back with `length` bytes written, without an interrupt: the guest finds it when it next looks, and
    /// [`Rings::push`] counts it.
    pub fn push_untold(&mut self, index: usize, head: u16, length: u32) -> Result<(), Broken> {
        self.queues[index].add_used(&self.memory, head, length).map_err(|_| Broken::Queue { queue: index })
    }

    /// Interrupts the guest if it has not looked at all that queue `index` gave back.
    pub fn tell_of_untold(&mut self, index: usize) {
        let queue = &self.queues[index];
        if !self.active || !queue.ready() || !queue.event_idx_enabled() {
            return;
        }
        // "used_event": Linux has its own index there when it waits for an interrupt (virtio 1.2, 2.7.7).
        let at = GuestAddress(queue.avail_ring() + 4 + 2 * u64::from(queue.size()));
        let seen = self.memory.load::<u16>(at, Ordering::Relaxed);
        if seen.is_ok_and(|seen| u16::from_le(seen) != queue.next_used()) {
            self.interrupt(VIRTIO_MMIO_INT_VRING);
        }
    }

    /// Asks to be notified of new chains in queue `index`; `true` when some have come in the meantime.
    pub fn enable_notification(&mut self, index: usize) -> Result<bool, Broken> {
        let queue = &mut self.queues[index];
        if !self.active || !queue.ready() {
            return Ok(false);
        }
        queue.enable_notification(&self.memory).map_err(|_| Broken::Queue { queue: index })
    }

    /// Asks to be notified of the next chain that the guest adds to queue `index`, beyond those that are there.
    pub fn enable_notification_of_next(&mut self, index: usize) -> Result<(), Broken> {
        let queue = &mut self.queues[index];
        let broken = |_| Broken::Queue { queue: index };
        if !self.active || !queue.ready() || !queue.event_idx_enabled() {
            // Without the event index the guest notifies of every one, and always does.
            return Ok(());
        }
        let next =
            queue.avail_idx(&self.memory, Ordering::Acquire).map_err(|_| Broken::Queue { queue: index })?;
        // "avail_event", after the used ring's entries (virtio 1.2, 2.7.8).
        let at = GuestAddress(queue.used_ring() + 4 + 8 * u64::from(queue.size()));
        self.memory.store(next.0.to_le(), at, Ordering::Release).map_err(broken)?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn interrupt(&mut self, cause: u32) {
        let was_high = self.interrupt_status != 0;
        self.interrupt_status |= cause;
        if !was_high && !self.holds_line {
            (self.line)(true);
        }
    }
}

/// A device behind its register window.
pub struct Transport<D> {
    /// What is behind the registers.
    pub device: D,
    /// Its queues and its interrupt line.
    pub rings: Rings,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

impl<D: Device> Transport<D> {
    /// A device that is reset; `line` is told the level of its interrupt.
    pub fn new(device: D, memory: Memory, line: IrqLine) -> Self {
        let queues =
            device.queue_sizes().iter().map(|size| Queue::new(*size).expect("a power of two")).collect();
        Self {
            device,
            rings: Rings {
                memory,
                queues,
                line,
                interrupt_status: 0,
                active: false,
                config_generation: 0,
                budget: 0,
                holds_line: false,
            },
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
        }
    }

    /// Features that the driver has accepted.
    pub fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// Whether the guest broke the device; only a reset by its driver mends it.
    pub fn is_broken(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Does something with device and queues, as a notification would.
    pub fn with<T: Default>(&mut self, work: impl FnOnce(&mut D, &mut Rings) -> Result<T, Broken>) -> T {
        self.rings.budget = MAX_CHAINS;
        work(&mut self.device, &mut self.rings).unwrap_or_else(|_| {
            self.mark_broken();
            T::default()
        })
    }

    /// The same on a thread that is no vCPU's. The line goes up last: a vCPU that it wakes asks for the transport's
    /// lock at once, and would sleep again until this is done.
    pub fn with_interrupt_last<T: Default>(
        &mut self,
        work: impl FnOnce(&mut D, &mut Rings) -> Result<T, Broken>,
    ) -> T {
        let was_high = self.rings.interrupt_status != 0;
        self.rings.holds_line = true;
        let result = self.with(work);
        self.rings.holds_line = false;
        if !was_high && self.rings.interrupt_status != 0 {
            (self.rings.line)(true);
        }
        result
    }

    /// Reads `data.len()` bytes at `offset`: registers are 32 bits wide, the configuration space is bytes.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = self.device.config().get(to_usize(at)..).unwrap_or_default();
            for (to, from) in data.iter_mut().zip(config) {
                *to = *from;
            }
        } else if let (4, Ok(offset)) = (data.len(), u32::try_from(offset)) {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        }
    }

    /// Writes a register. The configuration spaces here are read-only.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let register = u32::try_from(offset).ok().filter(|_| offset < CONFIG);
        if let (Ok(value), Some(register)) = (data.try_into().map(u32::from_le_bytes), register) {
            self.set_register(register, value);
        }
    }

    fn register(&self, offset: u32) -> u32 {
        let queue = self.rings.queues.get(self.queue_select as usize);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(QueueT::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.rings.interrupt_status,
            VIRTIO_MMIO_STATUS => self.status,
            VIRTIO_MMIO_CONFIG_GENERATION => self.rings.config_generation,
            // No shared memory regions: length and base are all ones.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => {
                let shift = match self.driver_features_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                let kept = self.driver_features & !(0xffff_ffff << shift);
                self.driver_features = (kept | u64::from(value) << shift) & self.features();
            }
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.rings.interrupt_status &= !value;
                (self.rings.line)(self.rings.interrupt_status != 0);
            }
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.set_queue_register(offset, value),
        }
    }

    fn set_queue_register(&mut self, offset: u32, value: u32) {
        let event_idx = self.driver_features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        let Some(queue) = self.rings.queues.get_mut(self.queue_select as usize) else { return };
        // A queue in use does not move.
        if queue.ready() && offset != VIRTIO_MMIO_QUEUE_READY {
            return;
        }
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => {
                if u16::try_from(value).is_ok_and(|size| queue.try_set_size(size).is_ok()) {
                    return;
                }
                self.mark_broken();
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_READY => {
                queue.set_event_idx(event_idx);
                queue.set_ready(value == 1);
                if value == 1 && !queue.is_valid(&self.rings.memory) {
                    queue.set_ready(false);
                    self.mark_broken();
                }
            }
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut added = value & !self.status;
        let before = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        let version_1 = self.driver_features >> VIRTIO_F_VERSION_1 & 1 == 1;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0
            && !(version_1 && (self.status | value) & before == before)
        {
            // The driver reads the bit back to learn that its features are not accepted (virtio 1.2, 3.1.1).
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        self.status |= added;
        self.update_active();
    }

    fn reset(&mut self) {
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.rings.active = false;
        self.rings.interrupt_status = 0;
        (self.rings.line)(false);
        self.rings.queues.iter_mut().for_each(QueueT::reset);
        self.device.reset();
    }

    /// What the transport holds, for a snapshot. Devices serve each request where it is made, so nothing is
    /// unfinished between two calls.
    pub fn state(&self) -> TransportState {
        TransportState {
            driver_features: self.driver_features,
            status: self.status,
            interrupt_status: self.rings.interrupt_status,
            queues: self.rings.queues.iter().map(QueueState::of).collect(),
        }
    }

    /// Takes over what [`Transport::state`] gave, with the memory that belongs to it in place. Everything is checked
    /// first; nothing is changed when it is refused.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let offered = self.features();
        if state.driver_features & !offered != 0 {
            return Err(RestoreError::Features { accepted: state.driver_features, offered });
        }
        let expected = self.rings.queues.len();
        if state.queues.len() != expected {
            return Err(RestoreError::QueueCount { found: state.queues.len(), expected });
        }
        let event_idx = state.driver_features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        let mut queues = Vec::with_capacity(expected);
        for (index, (saved, queue)) in state.queues.iter().zip(&self.rings.queues).enumerate() {
            queues.push(saved.queue(index, queue.max_size(), event_idx, &self.rings.memory)?);
        }
        self.device.reset();
        self.rings.queues = queues;
        self.rings.interrupt_status = state.interrupt_status;
        self.driver_features = state.driver_features;
        self.status = state.status;
        self.update_active();
        (self.rings.line)(self.rings.interrupt_status != 0);
        Ok(())
    }

    fn update_active(&mut self) {
        let live = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        let was = self.rings.active;
        self.rings.active = self.status & live == live && !self.is_broken();
        if self.rings.active && !was {
            self.device.start(self.driver_features);
        }
    }

    fn notify(&mut self, index: usize) {
        if self.rings.active && index < self.rings.queues.len() {
            self.with(|device, rings| device.notify(index, rings));
        }
    }

    fn mark_broken(&mut self) {
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.rings.active = false;
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.rings.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn features(&self) -> u64 {
        self.device.features()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a half at a time")]
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

impl<D: Device> Persist for Transport<D> {
    fn save(&self) -> DeviceState {
        let (id, config) = (self.device.id(), self.device.config().to_vec());
        DeviceState { id, config, transport: self.state() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if state.id != self.device.id() || !self.device.restore_config(&state.config) {
            return Err(RestoreError::OtherDevice {
                found: state.id,
                found_config: state.config.clone(),
                expected: self.device.id(),
                expected_config: self.device.config().to_vec(),
            });
        }
        self.restore(&state.transport)
    }
}
