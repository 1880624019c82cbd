//! The virtio-mmio transport and the devices behind it: balloon, blk, console, fs, net, rng, vsock; and a UART for the earliest output.
//!
//! A guest that breaks the rules of its device gets that device marked as needing a reset ([`Broken`]); the host goes on.

#![deny(unsafe_code)]

pub mod balloon;
pub mod blk;
pub mod bus;
mod chain;
pub mod console;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod persist;
pub mod pl011;
pub mod poller;
pub mod rng;
pub mod tail;
pub mod vsock;

pub use bus::{BusDevice, MmioDevice};
pub use mmio::{Device, IrqLine, Transport};

/// Guest memory as devices see it.
pub type Memory = vm_memory::GuestMemoryMmap<()>;

/// What a guest did that its device cannot go on from.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("queue {queue} lies outside guest memory or its ring indices are impossible")]
    Queue { queue: usize },
    #[error("a descriptor chain is malformed: {0}")]
    Chain(String),
    #[error("the guest left its {what} behind")]
    Overrun { what: &'static str },
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
