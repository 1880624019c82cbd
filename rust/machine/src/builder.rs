//! How an architecture's machine is made.

use std::fs::File;
use std::io;
use std::sync::Arc;

use supermachine_devices::IrqLine;
use supermachine_devices::tail::Tail;
use supermachine_support::side_work::Slot;

use crate::Error;
use crate::bus::SharedDevice;
use crate::memory::Memory;
use crate::power::EntryPoint;
use crate::vcpus::VcpuSet;

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
pub(crate) trait MachineBuilder {
    /// The interrupt of the virtio device in this place on the bus.
    fn irq_line(&self, place: usize) -> IrqLine;

    /// Where vCPUs that sleep find work of other threads, if they can do any.
    fn side_work(&self) -> Option<Arc<Slot>> {
        None
    }

    /// Puts into memory what the guest boots; where the first vCPU starts.
    fn load(&self, memory: &Memory, load: &Load) -> Result<EntryPoint, Error>;

    /// Decodes the code at these guest physical addresses; for engines that decode any.
    fn decode_ahead(&self, places: &[u64]) {
        let _ = places;
    }

    /// The same for other processes; nothing on engines that decode nothing.
    fn bake(&self, places: &[u64], key: &[u8; 32]) -> Vec<u8> {
        let _ = (places, key);
        Vec::new()
    }

    /// Has vCPUs take what another process has decoded.
    fn set_baked(&self, file: File, key: &[u8; 32]) -> io::Result<()> {
        let _ = (file, key);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Starts the vCPU threads, all paused.
    fn start(self: Box<Self>, devices: Vec<SharedDevice>, tail: Tail) -> Result<Arc<dyn VcpuSet>, Error>;
}
