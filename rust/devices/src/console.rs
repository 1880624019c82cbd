//! virtio-console (virtio 1.2, 5.3): one port, output only.

use std::io::Read;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use crate::Broken;
use crate::mmio::{Device, Rings};
use crate::tail::Tail;

const TRANSMIT: usize = 1;

/// The guest's /dev/hvc0.
pub struct Console(pub Tail);

impl Device for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    /// Small: the driver fills the receive queue with a page for each entry at boot.
    fn queue_sizes(&self) -> &'static [u16] {
        &[4, 16]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn notify(&mut self, index: usize, rings: &mut Rings) -> Result<(), Broken> {
        if index != TRANSMIT {
            return Ok(());
        }
        let memory = rings.memory();
        loop {
            while let Some(chain) = rings.pop(index)? {
                let head = chain.head_index();
                let mut reader = chain.reader(&memory)?;
                let mut bytes = [0; 4096];
                loop {
                    match reader.read(&mut bytes)? {
                        0 => break,
                        n => self.0.push(&bytes[..n]),
                    }
                }
                rings.push(index, head, 0)?;
            }
            if !rings.enable_notification(index)? {
                return Ok(());
            }
        }
    }

    fn reset(&mut self) {}
}
