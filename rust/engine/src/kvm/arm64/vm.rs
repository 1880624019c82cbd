//! A virtual machine. KVM initialises the GIC for the vCPUs that there are, so all are made with the machine and handed
//! to their threads later.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SPI, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use supermachine_support::lock;

use super::gic::Gic;
use super::vcpu::KvmVcpu;
use crate::Protection;
use crate::arm64::{Canceller, Vcpu, Vm, VmConfig};
use crate::kvm::creation::create;
use crate::kvm::host;
use crate::kvm::kick::Kick;
use crate::kvm::memory_slots::MemorySlots;
use crate::kvm::{Error, Named, Result};

/// What vCPUs share with their machine.
pub(crate) struct Shared {
    fd: VmFd,
    pub(super) gic: Gic,
    pub(super) kicks: Vec<Arc<Kick>>,
    /// Whether vCPUs have scalable vectors.
    pub(super) sve: bool,
}

/// An arm64 virtual machine on KVM.
pub struct KvmVm {
    shared: Arc<Shared>,
    slots: MemorySlots,
    /// Those that no thread has asked for yet.
    waiting: Mutex<Vec<Option<VcpuFd>>>,
}

impl KvmVm {
    /// A machine with all its vCPUs and a GICv3 at the places that `config` says.
    pub fn new(config: &VmConfig) -> Result<Self> {
        let kvm = host::open()?;
        let most = kvm.get_max_vcpus();
        if config.vcpus == 0 || config.vcpus as usize > most {
            return Err(Error::TooManyVcpus { vcpus: config.vcpus, most });
        }
        let fd = create(kvm)?;
        let mut init = kvm_vcpu_init::default();
        fd.get_preferred_target(&mut init).named("KVM_ARM_PREFERRED_TARGET")?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        if kvm.check_extension(Cap::ArmPtrAuthAddress) && kvm.check_extension(Cap::ArmPtrAuthGeneric) {
            // KVM gives both or none.
            init.features[0] |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
        }
        let sve = kvm.check_extension(Cap::ArmSve);
        if sve {
            init.features[0] |= 1 << KVM_ARM_VCPU_SVE;
        }
        let mut waiting = Vec::new();
        for index in 0..config.vcpus {
            let vcpu = fd.create_vcpu(index.into()).named("KVM_CREATE_VCPU")?;
            let mut init = init;
            if index > 0 {
                // The guest starts it by PSCI.
                init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
            }
            vcpu.vcpu_init(&init).named("KVM_ARM_VCPU_INIT")?;
            waiting.push(Some(vcpu));
        }
        let gic = Gic::new(&fd, config)?;
        let kicks = (0..config.vcpus).map(|_| Arc::default()).collect();
        Ok(Self {
            shared: Arc::new(Shared { fd, gic, kicks, sve }),
            slots: MemorySlots::default(),
            waiting: Mutex::new(waiting),
        })
    }
}

impl Vm for KvmVm {
    unsafe fn map(&self, host: NonNull<u8>, gpa: u64, len: u64, protection: Protection) -> crate::Result<()> {
        // SAFETY: the caller promises the same.
        Ok(unsafe { self.slots.map(&self.shared.fd, host, gpa, len, protection) }?)
    }

    fn create_vcpu(&self, index: u32) -> crate::Result<Box<dyn Vcpu>> {
        let mut waiting = lock(&self.waiting);
        let fd = waiting.get_mut(index as usize).and_then(Option::take);
        let fd = fd.ok_or_else(|| Error::State(format!("vCPU {index} is not there or was made before")))?;
        Ok(Box::new(KvmVcpu::new(self.shared.clone(), fd, index)))
    }

    fn canceller(&self, index: u32) -> crate::Result<Canceller> {
        let kick = self.shared.kicks[index as usize].clone();
        Ok(Arc::new(move || kick.request()))
    }

    fn set_spi(&self, intid: u32, level: bool) {
        // It fails for no INTID that the GIC has.
        let _ = self.shared.fd.set_irq_line(KVM_ARM_IRQ_TYPE_SPI << 24 | intid, level);
    }

    fn gic_state(&self) -> crate::Result<Vec<u8>> {
        Ok(self.shared.gic.save()?)
    }

    fn set_gic_state(&self, state: &[u8]) -> crate::Result<()> {
        Ok(self.shared.gic.restore(state)?)
    }

    fn host_counter(&self) -> u64 {
        host_counter()
    }

    fn serves_psci(&self) -> bool {
        true
    }
}

/// The host's counter, which virtual counters are offset from.
pub(crate) fn host_counter() -> u64 {
    let count;
    // SAFETY: reads a counter that Linux lets user space read; the barrier keeps it from being read early.
    unsafe { std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nostack)) };
    count
}
