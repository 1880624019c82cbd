//! What a snapshot holds of a machine beside its RAM, and how it is encoded.

use serde::{Serialize, de::DeserializeOwned};

use crate::Error;
use crate::power::Power;

/// A machine's state, in the encodings of those that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What belongs to the machine as a whole.
    pub machine: Vec<u8>,
    /// The engine's.
    pub interrupt_controller: Vec<u8>,
    /// The engine's, one for each vCPU.
    pub vcpus: Vec<Vec<u8>>,
    /// Encode [`supermachine_devices::persist::DeviceState`], in bus order.
    pub devices: Vec<Vec<u8>>,
    /// Of what stands behind some of them, in the same order; empty for nothing. A restore does without it.
    pub backends: Vec<Vec<u8>>,
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

#[cfg(test)]
mod tests {
    use supermachine_devices::persist::{DeviceState, QueueState, TransportState};

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

    /// As above, for what no golden file has: a vCPU that is off or about to start.
    #[test]
    fn the_encoding_of_power_stays() {
        let power = vec![Power::Off, Power::Starting { entry: 0x80, context: 3 }, Power::On];
        let bytes = [3, 0, 1, 0x80, 1, 3, 2];
        assert_eq!(encode("", &power).unwrap(), bytes);
        assert_eq!(decode::<Vec<Power>>("", &bytes).unwrap(), power);
    }

    #[test]
    fn the_encoding_of_a_disk_elsewhere_stays() {
        let disk =
            crate::snapshot::v9::Elsewhere { bytes: 9, files: vec![(1, 2)], pieces: vec![(3..4, 0, 5)] };
        let bytes = [9, 1, 1, 2, 1, 3, 4, 0, 5];
        assert_eq!(encode("", &disk).unwrap(), bytes);
        assert_eq!(decode::<crate::snapshot::v9::Elsewhere>("", &bytes).unwrap(), disk);
    }
}
