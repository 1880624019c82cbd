//! Which machine there is for a guest, and what depends on it while a machine is made.

use std::ops::Range;
use std::sync::Arc;

use supermachine_devices::Line;
use supermachine_devices::tail::Tail;
use supermachine_engine::Engine;

use crate::arm64::{self, Arm64Board};
use crate::memory::Memory;
use crate::vcpus::{Entry, Processors};
use crate::{Error, SharedWindow};

/// Where things are in a machine's guest physical memory, and how many of them there may be.
pub struct Map {
    /// The architecture, as the kernel names it.
    pub architecture: &'static str,
    pub ram_base: u64,
    /// virtio-mmio windows, one after the other.
    pub virtio_base: u64,
    pub virtio_stride: u64,
    pub virtio_max: usize,
    pub max_vcpus: u32,
    /// The UART's registers, where it is in memory.
    pub uart: Option<Range<u64>>,
    /// Address and bytes of the page that holds the VM generation id, where the guest can find it.
    pub generation: Option<(u64, u64)>,
}

/// What guests this machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Arm64,
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    X86_64,
}

impl Architecture {
    /// What the engine's guests are on this host.
    pub fn of(engine: Engine) -> Self {
        match engine {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Engine::Kvm => Self::X86_64,
            _ => Self::Arm64,
        }
    }

    pub fn map(self) -> &'static Map {
        match self {
            Self::Arm64 => &arm64::layout::MAP,
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::X86_64 => &crate::x86_64::layout::MAP,
        }
    }

    /// Bytes of guest physical memory, from the start of RAM, that hold this much RAM.
    pub fn span(self, memory_bytes: u64) -> u64 {
        match self {
            Self::Arm64 => memory_bytes,
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::X86_64 => crate::x86_64::layout::span(memory_bytes),
        }
    }

    /// Makes the engine's VM with this memory in it. `machine` is that part of a snapshot's state.
    pub(crate) fn board(
        self,
        engine: Engine,
        vcpus: u32,
        memory: &Memory,
        machine: Option<&[u8]>,
    ) -> Result<Box<dyn Board>, Error> {
        match self {
            Self::Arm64 => {
                let _ = machine;
                Ok(Box::new(Arm64Board::new(engine, vcpus, memory)?))
            }
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::X86_64 => Ok(Box::new(crate::x86_64::X86Board::new(vcpus, memory, machine)?)),
        }
    }
}

/// On every guest's command line: drivers that would make a device at boot which nobody has asked for (dummy0, ifb0,
/// nbd0, zram0) do so on request only.
pub(crate) const NO_SPARE_DEVICES: &str =
    "dummy.numdummies=0 ifb.numifbs=0 nbd.nbds_max=0 zram.num_devices=0";

/// What a guest boots.
pub(crate) struct Load<'a> {
    pub kernel: &'a [u8],
    pub initramfs: &'a [u8],
    /// The user's part of the command line.
    pub cmdline: &'a str,
    pub memory_bytes: u64,
    pub virtio_devices: usize,
    pub rng_seed: [u8; 32],
}

/// A machine that is being made: its VM and memory are there, its vCPUs are not.
pub(crate) trait Board {
    /// The interrupt of a virtio window.
    fn line(&self, window: usize) -> Line;

    /// Puts into memory what the guest boots; where the first vCPU starts.
    fn load(&self, memory: &Memory, load: &Load) -> Result<Entry, Error>;

    /// Starts the vCPU threads, all paused.
    fn start(self: Box<Self>, windows: Vec<SharedWindow>, tail: Tail) -> Result<Arc<dyn Processors>, Error>;
}
