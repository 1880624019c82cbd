//! What a device is to the bus that it is on.

use crate::persist::Persist;
use crate::pl011::Pl011;
use crate::{Device, Transport};

/// A window of registers.
pub trait BusDevice: Send {
    /// Fills `data` from the registers at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` into the registers at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A virtio device in its window, whose state a snapshot holds.
pub trait MmioDevice: BusDevice + Persist {
    /// Virtio device id (virtio 1.2, 5).
    fn id(&self) -> u32;

    /// What a snapshot may hold beside [`Persist::save`]: of what stands behind the device. Empty for nothing.
    fn save_backend(&self) -> Vec<u8>;

    /// Takes it over; a restore does without it.
    fn restore_backend(&mut self, saved: Vec<u8>);

    /// Tells a restored guest, which is about to run, what has changed since its snapshot.
    fn resume(&mut self);
}

impl<D: Device> BusDevice for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }
}

impl<D: Device> MmioDevice for Transport<D> {
    fn id(&self) -> u32 {
        self.device.id()
    }

    fn save_backend(&self) -> Vec<u8> {
        self.device.save_backend()
    }

    fn restore_backend(&mut self, saved: Vec<u8>) {
        self.device.restore_backend(saved);
    }

    fn resume(&mut self) {
        self.with(|device, rings| {
            device.resume(rings);
            Ok(())
        });
    }
}

impl BusDevice for Pl011 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }
}
