//! The arm64 machine, on any engine that runs arm64 guests.

#![allow(unsafe_code, reason = "guest memory is mapped into an engine's VM")]

pub mod boot;
pub mod fdt;
pub mod layout;
pub mod psci;
mod vcpu;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use supermachine_devices::IrqLine;
use supermachine_devices::pl011::Pl011;
use supermachine_devices::tail::Tail;
use supermachine_engine::arm64::{Vm, VmConfig};
use supermachine_engine::{Engine, Protection};
use supermachine_support::side_work::Slot;

use self::fdt::Description;
use self::vcpu::Arm64;
pub(crate) use self::vcpu::Common;
use crate::Error;
use crate::builder::{Load, MachineBuilder, NO_SPARE_DEVICES};
use crate::bus::{Bus, SharedDevice};
use crate::memory::Memory;
use crate::power::{EntryPoint, Power};
use crate::vcpus::{VcpuSet, Vcpus};

/// What every guest gets on its command line. `panic=-1` turns a panic into a reset at once; the UART shows what goes
/// wrong before the virtio console is there. Each of its characters is three exits, of which all that the kernel says
/// at boot was 23,700 of 24,500, and a tenth of the software CPU's time: `quiet` comes first, to be heeded first.
const CMDLINE: &str = "quiet earlycon=pl011,mmio32,0x9000000 console=hvc0 panic=-1";

/// An arm64 machine that is being made.
pub struct Arm64Builder {
    vm: Arc<dyn Vm>,
    vcpus: u32,
}

impl Arm64Builder {
    /// A VM of this engine, with guest memory mapped and no vCPUs.
    pub fn new(engine: Engine, vcpus: u32, memory: &Memory) -> Result<Self, Error> {
        let (gicd_base, gicr_base) = (layout::GICD_BASE, layout::GICR_BASE);
        let vm = supermachine_engine::create_arm64_vm(engine, VmConfig { vcpus, gicd_base, gicr_base })?;
        let (ram, bytes) = memory.host();
        // SAFETY: the mapping is `memory`'s, which the machine keeps until its vCPU threads have ended.
        unsafe { vm.map(ram, layout::RAM_BASE, bytes, Protection::ReadWriteExecute)? };
        if let Some(presence) = memory.presence()
            && !vm.set_presence(presence)
        {
            return Err(Error::NeedsAllMemory { engine });
        }
        if let Some(generation) = memory.generation_host() {
            let (at, size) = (layout::VMGENID_BASE, layout::VMGENID_MAPPED);
            // SAFETY: as above.
            unsafe { vm.map(generation, at, size, Protection::Read)? };
        }
        Ok(Self { vm, vcpus })
    }
}

impl MachineBuilder for Arm64Builder {
    fn irq_line(&self, place: usize) -> IrqLine {
        let place = u32::try_from(place).expect("the address map has few places");
        let (vm, intid) = (self.vm.clone(), layout::spi_intid(layout::VIRTIO_SPI + place));
        Arc::new(move |level| vm.set_spi(intid, level))
    }

    fn side_work(&self) -> Option<Arc<Slot>> {
        self.vm.side_work()
    }

    fn load(&self, memory: &Memory, load: &Load) -> Result<EntryPoint, Error> {
        let cmdline = format!("{CMDLINE} {NO_SPARE_DEVICES} {}", load.cmdline);
        let description = Description {
            vcpus: self.vcpus,
            memory_bytes: load.memory_bytes,
            cmdline: cmdline.trim_end(),
            initramfs: None,
            virtio_devices: load.virtio_devices,
            pmu: self.vm.has_pmu(),
            rng_seed: load.rng_seed,
        };
        boot::load(&memory.ram, load.kernel, load.initramfs, description)
    }

    fn decode_ahead(&self, places: &[u64]) {
        self.vm.decode_ahead(places);
    }

    fn bake(&self, places: &[u64], key: &[u8; 32]) -> Vec<u8> {
        self.vm.bake(places, key)
    }

    fn set_baked(&self, file: File, key: &[u8; 32]) -> io::Result<()> {
        self.vm.set_baked(file, key)
    }

    fn start(self: Box<Self>, devices: Vec<SharedDevice>, tail: Tail) -> Result<Arc<dyn VcpuSet>, Error> {
        let bus = Bus::new(&layout::MAP, devices, Some(Arc::new(Mutex::new(Pl011(tail)))));
        // An engine that serves PSCI keeps those back itself that the guest has not started.
        let power = if self.vm.serves_psci() { Power::On } else { Power::Off };
        Ok(Vcpus::start(Arm64::new(self.vm, bus), self.vcpus, power)?)
    }
}
