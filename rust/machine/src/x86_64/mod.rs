//! The x86_64 machine, on KVM.

#![allow(unsafe_code, reason = "guest memory is mapped into an engine's VM")]

pub mod boot;
pub mod layout;
pub mod mptable;
pub mod serial;
mod vcpu;

use std::ptr::NonNull;
use std::sync::Arc;

use supermachine_support::to_usize;

use supermachine_devices::IrqLine;
use supermachine_devices::tail::Tail;
use supermachine_engine::Protection;
use supermachine_engine::kvm::x86_64::Vm;

use self::serial::Serial;
use self::vcpu::X86;
use crate::Error;
use crate::builder::{Load, MachineBuilder};
use crate::bus::{Bus, SharedDevice};
use crate::memory::Memory;
use crate::power::{EntryPoint, Power};
use crate::vcpus::{VcpuSet, Vcpus};

/// An x86_64 machine that is being made.
pub struct X86Builder {
    vm: Arc<Vm>,
    vcpus: u32,
}

impl X86Builder {
    /// `machine` is that part of a snapshot's state, for a machine that is restored.
    pub fn new(vcpus: u32, memory: &Memory, machine: Option<&[u8]>) -> Result<Self, Error> {
        let engine = |e: supermachine_engine::kvm::Error| Error::Engine(e.into());
        let vm = Vm::new(vcpus, machine.map(vcpu::model).transpose()?).map_err(engine)?;
        let (host, bytes) = memory.host();
        let far = layout::FAR_RAM..bytes.max(layout::FAR_RAM);
        for range in [0..bytes.min(layout::HOLE), far] {
            if range.is_empty() {
                continue;
            }
            // SAFETY: the range begins inside the mapping, which is not at address 0.
            let at = unsafe { NonNull::new_unchecked(host.as_ptr().add(to_usize(range.start))) };
            // SAFETY: the mapping is `memory`'s, which the machine keeps until its vCPU threads have ended.
            unsafe { vm.map(at, range.start, range.end - range.start, Protection::ReadWriteExecute) }
                .map_err(engine)?;
        }
        Ok(Self { vm, vcpus })
    }
}

impl MachineBuilder for X86Builder {
    fn irq_line(&self, place: usize) -> IrqLine {
        let place = u32::try_from(place).expect("the address map has few places");
        let (vm, irq) = (self.vm.clone(), layout::VIRTIO_IRQ + place);
        // It fails for no line that the IOAPIC has.
        Arc::new(move |level| drop(vm.set_irq(irq, level)))
    }

    fn load(&self, memory: &Memory, load: &Load) -> Result<EntryPoint, Error> {
        let pc = boot::load(&memory.ram, self.vcpus, load)?;
        Ok(EntryPoint { pc, context: layout::BOOT_PARAMS })
    }

    fn start(self: Box<Self>, devices: Vec<SharedDevice>, tail: Tail) -> Result<Arc<dyn VcpuSet>, Error> {
        let bus = Bus::new(&layout::MAP, devices, None);
        // All vCPUs run; KVM keeps those back that the guest has not started.
        Ok(Vcpus::start(X86::new(self.vm, bus, Serial(tail)), self.vcpus, Power::On)?)
    }
}
