//! The device's queues.

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vm_memory::VolatileSlice;

use super::{Empty, Served, Server};
use crate::mmio::{Device, Rings};
use crate::{Broken, chain};

/// Urgent requests (FORGET, INTERRUPT), then all others. Linux has a request in 4 entries fewer than this at most, one
/// for each page: so much that 1 MiB is moved at once.
const QUEUE_SIZES: [u16; 2] = [16, 512];
/// Answers that nobody waits for and the guest has not been interrupted for, at most. Linux takes them out of the ring
/// when it is interrupted for another one; until then each keeps some hundred bytes of its memory.
const MAX_UNTOLD: u16 = 8;
/// Requests that are to be served later at most, and bytes of each that are kept: more than a FUSE_SETLKW has.
const MAX_LATER: usize = QUEUE_SIZES[1] as usize;
const LATER: usize = 128;

/// A file system whose directory is empty until a server is given.
pub struct Fs {
    config: [u8; 40],
    server: Box<dyn Server>,
    /// What a restored guest knows, until there is a server to tell.
    saved: Vec<u8>,
    /// No more than a queue has entries.
    later: Vec<Later>,
    /// Answers in each queue that the guest was not interrupted for.
    untold: [u16; 2],
}

/// A request that is to be served again.
struct Later {
    queue: usize,
    head: u16,
    request: Vec<u8>,
    /// Address and length of the buffers for its answer.
    answer: Vec<(u64, u64)>,
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
        Self { config, server: Box::new(Empty), saved: Vec::new(), later: Vec::new(), untold: [0; 2] }
    }

    /// Has this serve from now on. The guest's session goes on: of node and file handles that it has from before a
    /// restore the server is told.
    pub fn set_server(&mut self, server: Box<dyn Server>) {
        self.server = server;
        self.server.restore(std::mem::take(&mut self.saved));
    }

    /// Serves again what was to be served later; whether there is still something.
    pub fn retry(&mut self, rings: &mut Rings) -> Result<bool, Broken> {
        let memory = rings.memory();
        for mut later in std::mem::take(&mut self.later) {
            let answer = chain::slices_of(&later.answer, &memory)?;
            match self.server.serve(&[VolatileSlice::from(&mut later.request[..])], &answer) {
                Served::Later => self.later.push(later),
                served => self.done(later.queue, later.head, served, &answer, rings)?,
            }
        }
        Ok(!self.later.is_empty())
    }

    /// Gives a chain back.
    fn done(
        &mut self,
        queue: usize,
        head: u16,
        served: Served,
        answer: &[VolatileSlice<'_>],
        rings: &mut Rings,
    ) -> Result<(), Broken> {
        let untold = &mut self.untold[queue];
        match served {
            Served::Unawaited if *untold < MAX_UNTOLD => {
                *untold += 1;
                rings.push_untold(queue, head, 0)
            }
            Served::Unawaited => {
                *untold = 0;
                rings.push(queue, head, 0)
            }
            Served::Answered(written) => {
                *untold = 0;
                let room: usize = answer.iter().map(VolatileSlice::len).sum();
                rings.push(queue, head, chain::told(written.min(room))?)
            }
            Served::Later => Ok(()),
        }
    }
}

impl Device for Fs {
    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
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
                let answer = chain::writable(chain.clone(), &memory)?;
                match self.server.serve(&request, &answer) {
                    Served::Later if self.later.len() >= MAX_LATER => {
                        return Err(Broken::Overrun { what: "queue, by requests that wait" });
                    }
                    Served::Later => {
                        let mut bytes = vec![0; LATER];
                        let length = super::copy(&request, &mut bytes);
                        bytes.truncate(length);
                        let answer = chain::ranges(chain, &memory)?;
                        self.later.push(Later { queue: index, head, request: bytes, answer });
                    }
                    served => self.done(index, head, served, &answer, rings)?,
                }
            }
            if !self.later.is_empty() && self.server.has_news() {
                self.retry(rings)?;
            }
            if !rings.enable_notification(index)? {
                return Ok(());
            }
        }
    }

    fn save_backend(&self) -> Vec<u8> {
        if self.saved.is_empty() { self.server.save() } else { self.saved.clone() }
    }

    fn restore_backend(&mut self, saved: Vec<u8>) {
        self.saved = saved;
    }

    fn reset(&mut self) {
        self.saved.clear();
        self.later.clear();
        self.untold = [0; 2];
        self.server.reset();
    }

    fn resume(&mut self, rings: &mut Rings) {
        // What the guest was not told of before the snapshot is not counted any more.
        (0..QUEUE_SIZES.len()).for_each(|queue| rings.tell_of_untold(queue));
    }
}
