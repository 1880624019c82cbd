//! The virtio-mmio transport and the devices behind it: balloon, blk, console, fs, net, rng, vsock; and a UART for the
//! earliest output.
//!
//! A guest that breaks the rules of its device gets that device marked as needing a reset ([`Broken`]); the host goes
//! on.

pub mod balloon;
pub mod blk;
pub mod bus;
mod chain;
pub mod console;
pub mod fs;
pub mod memory;
pub mod mmio;
pub mod net;
pub mod persist;
pub mod pl011;
pub mod poller;
pub mod rng;
pub mod tail;
pub mod vsock;

pub use bus::{BusDevice, MmioDevice};
pub use memory::Memory;
pub use mmio::{Device, IrqLine, Transport};

/// What a guest did that its device cannot go on from.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A queue's registers, or what its rings say.
    #[error("queue {queue} lies outside guest memory or its ring indices are impossible")]
    Queue {
        /// Its index in the device.
        queue: usize,
    },
    /// What a queue offers is no chain of descriptors (virtio 1.2, 2.7.5).
    #[error("a descriptor chain is malformed: {0}")]
    Chain(String),
    /// More was offered than there is room to offer.
    #[error("the guest left its {what} behind")]
    Overrun {
        /// A request or a stream, by its name.
        what: &'static str,
    },
}

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Chain(error.to_string())
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Chain(error.to_string())
    }
}
