//! virtio-balloon (virtio 1.2, 5.5) for free page reporting alone: it never asks the guest for memory, and gives the
//! host back what the guest says it does not use.

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use crate::mmio::{Device, Rings};
use crate::{Broken, chain};

/// Feature bit (virtio 1.2, 5.5.3).
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
/// Inflate and deflate come first; without statistics and hints, reporting is the third (Linux counts those that it
/// has).
const REPORTING: usize = 2;

/// Gives so many bytes from a guest physical address on back to the host. The range lies in guest memory; the guest
/// does not care what it holds afterwards.
pub type Release = Box<dyn Fn(u64, u64) + Send>;

/// A balloon without air.
pub struct Balloon(Release);

impl Balloon {
    /// A balloon that gives reported pages back by `release`, which is called on the vCPU that reports them.
    pub fn new(release: Release) -> Self {
        Self(release)
    }
}

impl Device for Balloon {
    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    /// Linux reports up to 32 ranges in one chain.
    fn queue_sizes(&self) -> &'static [u16] {
        &[4, 4, 32]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_REPORTING
    }

    /// struct virtio_balloon_config: num_pages and actual, both 0 for ever.
    fn config(&self) -> &[u8] {
        &[0; 8]
    }

    fn notify(&mut self, index: usize, rings: &mut Rings) -> Result<(), Broken> {
        let memory = rings.memory();
        loop {
            while let Some(chain) = rings.pop(index)? {
                let head = chain.head_index();
                if index == REPORTING {
                    // The guest gets the chain back, and uses the pages, after all of them are given back.
                    for (address, length) in chain::ranges(chain, &memory)? {
                        (self.0)(address, length);
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
