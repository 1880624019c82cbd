//! virtio-rng (virtio 1.2, 5.4): the host's random numbers.

use std::io::Write;

use supermachine_support::entropy;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::mmio::{Device, Rings};
use crate::{Broken, chain};

/// Most bytes that one request gets; the guest asks again for more.
const MAX: usize = 4096;

/// An entropy source.
pub struct Rng;

impl Device for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn notify(&mut self, index: usize, rings: &mut Rings) -> Result<(), Broken> {
        let memory = rings.memory();
        loop {
            while let Some(chain) = rings.pop(index)? {
                let head = chain.head_index();
                let mut writer = chain.writer(&memory)?;
                let mut bytes = [0; MAX];
                let bytes = &mut bytes[..writer.available_bytes().min(MAX)];
                entropy(bytes)?;
                writer.write_all(bytes)?;
                rings.push(index, head, chain::told(bytes.len())?)?;
            }
            if !rings.enable_notification(index)? {
                return Ok(());
            }
        }
    }

    fn reset(&mut self) {}
}
