//! A machine that stands still, for its state to be taken or given back.

#![allow(unsafe_code, reason = "guest memory is read while nothing writes to it")]

use std::sync::MutexGuard;

use supermachine_devices::MmioDevice;
use supermachine_devices::persist::DeviceState;
use supermachine_engine::Engine;
use supermachine_support::lock;

use crate::first_touch::FirstTouch;
use crate::state::{State, decode, encode};
use crate::vcpus::DEADLINE;
use crate::{Error, Machine};

/// A machine that stands still: no vCPU runs, and no device touches guest memory. It goes on when this is dropped.
pub struct Paused<'m> {
    machine: &'m Machine,
    devices: Vec<MutexGuard<'m, dyn MmioDevice + 'static>>,
}

impl Machine {
    /// Brings every vCPU out of the guest and holds every device.
    pub fn pause(&self) -> Result<Paused<'_>, Error> {
        if !self.vcpus.pause(DEADLINE) {
            self.vcpus.resume();
            return Err(Error::Unresponsive);
        }
        // Devices serve a request whole under their lock, so that nothing is popped and unfinished now.
        let devices = self.devices.in_bus_order.iter().map(|device| lock(device));
        Ok(Paused { machine: self, devices: devices.collect() })
    }

    /// Takes over a snapshot's state; the vCPUs are paused and have not run.
    pub(crate) fn restore_state(
        &self,
        state: &State,
        cpu_features: &[String],
        step: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        // All vCPUs exist once their threads wait: the interrupt controller's state names each of them.
        if !self.vcpus.pause(DEADLINE) {
            return Err(Error::Unresponsive);
        }
        self.vcpus.restore(state, cpu_features, step)?;
        for (n, (device, bytes)) in self.devices.in_bus_order.iter().zip(&state.devices).enumerate() {
            let part = format!("device {n}");
            let saved: DeviceState = decode(&part, bytes)?;
            lock(device).restore(&saved).map_err(|source| Error::DeviceState { device: n, source })?;
            if let Some(saved) = state.backends.get(n).filter(|saved| !saved.is_empty()) {
                lock(device).restore_backend(saved.clone());
            }
        }
        self.vcpus.restore_time(state)?;
        step("vtimer");
        Ok(())
    }
}

impl Paused<'_> {
    /// Features of the CPU that the guest may rely on.
    pub fn cpu_features(&self) -> Result<Vec<String>, Error> {
        self.machine.vcpus.cpu_features()
    }

    /// Where code begins that the engine has decoded, by guest physical addresses, what has run last in front; nothing
    /// where it decodes none.
    pub fn decoded(&self) -> Result<Vec<u64>, Error> {
        self.machine.vcpus.decoded()
    }

    /// Everything but the RAM.
    pub fn state(&self) -> Result<State, Error> {
        let devices = self.devices.iter().map(|device| encode("a device's state", &device.save()));
        let devices = devices.collect::<Result<_, _>>()?;
        let backends = self.devices.iter().map(|device| device.save_backend()).collect();
        Ok(State { devices, backends, ..self.machine.vcpus.save()? })
    }

    /// The virtio device id of each device, in bus order.
    pub fn device_ids(&self) -> impl Iterator<Item = u32> {
        self.devices.iter().map(|device| device.id())
    }

    /// The engine that runs the machine.
    pub fn engine(&self) -> Engine {
        self.machine.engine
    }

    /// What has noted which pages of RAM were touched since the restore, where something has.
    pub fn noted(&self) -> Option<&FirstTouch> {
        self.machine.memory.noted()
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &[u8] {
        // SAFETY: every vCPU is out of the guest and every device is held for as long as `self` lives, so nothing
        // writes to guest memory.
        unsafe { self.machine.memory.bytes() }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.devices.clear();
        self.machine.vcpus.resume();
    }
}
