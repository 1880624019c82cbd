//! What answers at the guest physical addresses that no memory is mapped at.

use std::sync::{Arc, Mutex};

use supermachine_devices::{BusDevice, MmioDevice};

use supermachine_support::lock;

use crate::address_map::AddressMap;

/// A virtio device that the bus and a capture share.
pub type SharedDevice = Arc<Mutex<dyn MmioDevice>>;

/// The virtio-mmio windows and the UART. An address that nothing answers at reads as zeros and ignores writes.
#[derive(Clone)]
pub struct Bus {
    map: &'static AddressMap,
    virtio: Vec<SharedDevice>,
    uart: Option<Arc<Mutex<dyn BusDevice>>>,
}

impl Bus {
    /// `virtio` in the order of their windows.
    pub fn new(
        map: &'static AddressMap,
        virtio: Vec<SharedDevice>,
        uart: Option<Arc<Mutex<dyn BusDevice>>>,
    ) -> Self {
        Self { map, virtio, uart }
    }

    /// Fills `data` from a guest physical address: zeros where nothing is.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((registers, offset)) = self.find(address) {
            lock(registers).read(offset, data);
        }
    }

    /// Takes `data` at a guest physical address; it goes nowhere where nothing is.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((registers, offset)) = self.find(address) {
            lock(registers).write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&Mutex<dyn BusDevice>, u64)> {
        let AddressMap { virtio_base, virtio_stride, .. } = *self.map;
        if let Some(offset) = address.checked_sub(virtio_base) {
            let window = usize::try_from(offset / virtio_stride).ok()?;
            return Some((&**self.virtio.get(window)?, offset % virtio_stride));
        }
        let uart = self.map.uart.as_ref().filter(|uart| uart.contains(&address))?;
        Some((&**self.uart.as_ref()?, address - uart.start))
    }
}

#[cfg(test)]
mod tests {
    use supermachine_devices::persist::{DeviceState, Persist, RestoreError};

    use super::*;
    use crate::arm64::layout;

    /// Answers with its own number and the offset, and remembers the last write.
    struct Probe(u8, Vec<u8>);

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }

        fn write(&mut self, _: u64, data: &[u8]) {
            self.1 = data.to_vec();
        }
    }

    impl MmioDevice for Probe {
        fn save_backend(&self) -> Vec<u8> {
            unreachable!("the bus does not ask for it")
        }

        fn restore_backend(&mut self, _: Vec<u8>) {}

        fn resume(&mut self) {}

        fn id(&self) -> u32 {
            unreachable!("the bus does not ask for it")
        }
    }

    impl Persist for Probe {
        fn save(&self) -> DeviceState {
            unreachable!("the bus does not ask for it")
        }

        fn restore(&mut self, _: &DeviceState) -> Result<(), RestoreError> {
            unreachable!("the bus does not ask for it")
        }
    }

    #[test]
    fn addresses_find_their_device_and_holes_read_as_zeros() {
        let probes: Vec<_> = [10, 20, 30].map(|n| Arc::new(Mutex::new(Probe(n, vec![])))).into();
        let bus = Bus::new(&layout::MAP, vec![probes[0].clone(), probes[1].clone()], Some(probes[2].clone()));
        let read = |address| {
            let mut data = [0xff; 2];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(layout::VIRTIO_BASE + 4), [14; 2]);
        assert_eq!(read(layout::VIRTIO_BASE + layout::VIRTIO_STRIDE), [20; 2]);
        assert_eq!(read(layout::VIRTIO_BASE + 2 * layout::VIRTIO_STRIDE), [0; 2]);
        assert_eq!(read(layout::PL011_BASE + 1), [31; 2]);
        assert_eq!(read(layout::PL011_BASE + layout::PL011_SIZE), [0; 2]);
        assert_eq!(read(0), [0; 2]);
        bus.write(layout::VIRTIO_BASE + layout::VIRTIO_STRIDE + 8, &[5]);
        bus.write(u64::MAX, &[6]);
        assert_eq!(probes[1].lock().unwrap().1, [5]);
    }
}
