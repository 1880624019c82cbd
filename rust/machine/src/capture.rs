//! What a snapshot holds of a machine beside its RAM: taken while it is paused, and given back to a new one.

use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use supermachine_devices::state::TransportState;
use supermachine_engine::Engine;

use crate::bus::Window;
use crate::vcpus::{DEADLINE, Power};
use crate::{Error, Machine};

/// A machine's state, in the encodings of those that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What belongs to the machine as a whole.
    pub machine: Vec<u8>,
    /// The engine's.
    pub interrupt_controller: Vec<u8>,
    /// The engine's, one for each vCPU.
    pub vcpus: Vec<Vec<u8>>,
    /// Encode [`DeviceState`], in bus order.
    pub devices: Vec<Vec<u8>>,
}

impl State {
    /// Refuses a state that tells of the power of more vCPUs than it has, or of fewer.
    pub(crate) fn check_power(&self, power: &[Power]) -> Result<(), Error> {
        let (powers, vcpus) = (power.len(), self.vcpus.len());
        match powers == vcpus {
            true => Ok(()),
            false => {
                Err(refused("machine state", format!("it tells of {powers} vCPUs and there are {vcpus}")))
            }
        }
    }
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Virtio device id (virtio 1.2, 5).
    pub id: u32,
    /// The configuration space: what the guest believes of a disk's size, for one.
    pub config: Vec<u8>,
    pub transport: TransportState,
}

pub(crate) fn encode(part: &str, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    postcard::to_stdvec(value).map_err(|e| refused(part, e))
}

/// All of `bytes`, and no more, as a `T`.
pub(crate) fn decode<T: DeserializeOwned>(part: &str, bytes: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(bytes).map_err(|e| refused(part, e))? {
        (value, []) => Ok(value),
        (_, rest) => Err(refused(part, format!("it is followed by {} bytes", rest.len()))),
    }
}

pub(crate) fn refused(part: impl Into<String>, reason: impl ToString) -> Error {
    Error::State { part: part.into(), reason: reason.to_string() }
}

/// A machine that stands still: no vCPU runs, and no device touches guest memory. It goes on when this is dropped.
pub struct Paused<'m> {
    machine: &'m Machine,
    windows: Vec<MutexGuard<'m, dyn Window + 'static>>,
}

impl Machine {
    /// Brings every vCPU out of the guest and holds every device.
    pub fn pause(&self) -> Result<Paused<'_>, Error> {
        if !self.processors.pause(DEADLINE) {
            self.processors.resume();
            return Err(Error::Unresponsive);
        }
        // Devices serve a request whole under their lock, so that nothing is popped and unfinished now.
        let windows =
            self.devices.windows.iter().map(|window| window.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Paused { machine: self, windows: windows.collect() })
    }

    /// Takes over a snapshot's state; the vCPUs are paused and have not run.
    pub(crate) fn take_over(
        &self,
        state: &State,
        cpu_features: &[String],
        step: &mut impl FnMut(&str),
    ) -> Result<(), Error> {
        // All vCPUs exist once their threads wait: the interrupt controller's state names each of them.
        if !self.processors.pause(DEADLINE) {
            return Err(Error::Unresponsive);
        }
        self.processors.restore(state, cpu_features, step)?;
        for (n, (window, bytes)) in self.devices.windows.iter().zip(&state.devices).enumerate() {
            let part = format!("device {n}");
            let device: DeviceState = decode(&part, bytes)?;
            let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
            window.restore(&device).map_err(|reason| refused(part, reason))?;
        }
        self.processors.settle(state)?;
        step("vtimer");
        Ok(())
    }
}

impl Paused<'_> {
    /// Features of the CPU that the guest may rely on.
    pub fn cpu_features(&self) -> Result<Vec<String>, Error> {
        self.machine.processors.cpu_features()
    }

    /// Everything but the RAM.
    pub fn state(&self) -> Result<State, Error> {
        let devices = self.windows.iter().map(|window| encode("a device's state", &window.state()));
        let devices = devices.collect::<Result<_, _>>()?;
        Ok(State { devices, ..self.machine.processors.save()? })
    }

    /// The virtio device id of each device, in bus order.
    pub fn device_ids(&self) -> impl Iterator<Item = u32> {
        self.windows.iter().map(|window| window.id())
    }

    /// The engine that runs the machine.
    pub fn engine(&self) -> Engine {
        self.machine.engine
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
        self.windows.clear();
        self.machine.processors.resume();
    }
}

#[cfg(test)]
mod tests {
    use supermachine_devices::state::QueueState;

    use super::*;

    /// What is in files stays readable. When this no longer compiles, or fails, a saved structure has changed: read
    /// docs/concepts/snapshot-versioning.md before you change the expectation.
    #[test]
    fn the_encoding_of_a_device_stays() {
        let queue = QueueState {
            size: 16,
            ready: true,
            desc: 0x1000,
            avail: 0x2000,
            used: 0x3000,
            last_avail_idx: 7,
            next_used_idx: 6,
        };
        let transport =
            TransportState { driver_features: 0x81, status: 15, interrupt_status: 1, queues: vec![queue] };
        let device = DeviceState { id: 4, config: vec![1, 2], transport };
        let bytes = [4, 2, 1, 2, 0x81, 1, 15, 1, 1, 16, 1, 0x80, 0x20, 0x80, 0x40, 0x80, 0x60, 7, 6];
        assert_eq!(encode("", &device).unwrap(), bytes);
        assert_eq!(decode::<DeviceState>("", &bytes).unwrap(), device);
    }
}
