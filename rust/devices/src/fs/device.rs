//! The device's queues.

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vm_memory::VolatileSlice;

use super::{Empty, Server};
use crate::mmio::{Device, Rings};
use crate::{Broken, chain};

/// A file system whose directory is empty until a server is given.
pub struct Fs {
    config: [u8; 40],
    server: Box<dyn Server>,
}

impl Fs {
    /// The guest mounts it by its tag, which is at most 36 bytes; the rest of a longer one is not shown.
    pub fn new(tag: &str) -> Self {
        // struct virtio_fs_config: tag, num_request_queues.
        let mut config = [0; 40];
        for (to, from) in config[..36].iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        config[36..].copy_from_slice(&1_u32.to_le_bytes());
        Self { config, server: Box::new(Empty) }
    }

    /// Has this serve from now on. The guest's session goes on: node and file handles that it has are the server's to know.
    pub fn set_server(&mut self, server: Box<dyn Server>) {
        self.server = server;
    }
}

impl Device for Fs {
    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    /// Urgent requests (FORGET, INTERRUPT), then all others.
    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 128]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn notify(&mut self, index: usize, rings: &mut Rings) -> Result<(), Broken> {
        let memory = rings.memory();
        loop {
            while let Some(chain) = rings.pop(index)? {
                let head = chain.head_index();
                let request = chain::readable(chain.clone(), &memory)?;
                let answer = chain::writable(chain, &memory)?;
                let room: usize = answer.iter().map(VolatileSlice::len).sum();
                let written = self.server.serve(&request, &answer).min(room);
                rings.push(index, head, written as u32)?;
            }
            if !rings.enable_notification(index)? {
                return Ok(());
            }
        }
    }

    fn reset(&mut self) {
        self.server.reset();
    }
}
