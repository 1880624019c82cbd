//! A virtual machine: memory slots, the interrupt controllers and the PIT in the kernel, the clock.

use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_enable_cap, kvm_irqchip,
    kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use super::cpuid::CpuModel;
use super::ioctl;
use super::vcpu::Vcpu;
use crate::Protection;
use crate::kvm::creation::create;
use crate::kvm::host;
use crate::kvm::kick::Kick;
use crate::kvm::memory_slots::MemorySlots;
use crate::kvm::{Error, Named, Result};

/// Three pages that Intel CPUs without unrestricted guest mode need, and one for their identity map, in the part of
/// guest physical memory that neither RAM nor devices take (Documentation/virt/kvm/api.rst, 4.34 and 4.58).
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;
/// CPUID entries that KVM may report.
const MOST_CPUID_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;
/// Version of the encoding of [`VmState`].
const VERSION: u32 = 1;
/// TSC frequencies that differ by less are one and the same, measured twice (kernel: tsc_tolerance_ppm).
const TSC_TOLERANCE_PPM: u64 = 250;

/// An x86_64 virtual machine on KVM.
pub struct Vm {
    pub(super) fd: VmFd,
    pub(super) kvm: &'static Kvm,
    pub(super) model: CpuModel,
    pub(super) vcpus: u32,
    /// Set when the time stamp counter must be scaled to the model's frequency.
    pub(super) scale_tsc: bool,
    /// What restored vCPUs add to their saved TSC offsets: from the first one that is restored.
    pub(super) tsc_delta: OnceLock<u64>,
    slots: MemorySlots,
    kicks: Vec<Arc<Kick>>,
}

/// What a snapshot holds of the machine outside its vCPUs; the structures are the kernel's own.
#[derive(Serialize, Deserialize)]
struct VmState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    /// kvmclock, in nanoseconds.
    clock: u64,
}

saved_structure!(VmState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    clock: u64
});

impl Vm {
    /// Makes a VM for `vcpus` vCPUs, without memory. `model` is the CPU of the snapshot that is to be restored, or
    /// `None` for the most that this host gives.
    pub fn new(vcpus: u32, model: Option<CpuModel>) -> Result<Arc<Self>> {
        let kvm = host::open()?;
        let most = kvm.get_max_vcpus();
        if vcpus == 0 || vcpus as usize > most {
            return Err(Error::TooManyVcpus { vcpus, most });
        }
        let fd = create(kvm)?;
        fd.set_identity_map_address(IDENTITY_MAP).named("KVM_SET_IDENTITY_MAP_ADDR")?;
        fd.set_tss_address(TSS).named("KVM_SET_TSS_ADDR")?;
        fd.create_irq_chip().named("KVM_CREATE_IRQCHIP")?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).named("KVM_CREATE_PIT2")?;

        for cap in [KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT] {
            // Lets the events of a vCPU be saved whole, where the kernel can.
            if fd.check_extension_raw(cap.into()) > 0 {
                let enable = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
                fd.enable_cap(&enable).named("KVM_ENABLE_CAP")?;
            }
        }

        let host_model = host_model(kvm, &fd)?;
        let model = match model {
            None => host_model.clone(),
            Some(model) => {
                model.check(&host_model)?;
                model
            }
        };
        let (saved, host) = (model.tsc_khz, host_model.tsc_khz);
        let scale_tsc = u64::from(saved.abs_diff(host)) * 1_000_000 > u64::from(host) * TSC_TOLERANCE_PPM;
        if scale_tsc && !kvm.check_extension(Cap::TscControl) {
            return Err(Error::TscFrequency { saved, host });
        }
        Ok(Arc::new(Self {
            fd,
            kvm,
            model,
            vcpus,
            scale_tsc,
            tsc_delta: OnceLock::new(),
            slots: MemorySlots::default(),
            kicks: (0..vcpus).map(|_| Arc::default()).collect(),
        }))
    }

    /// The CPU that the guest sees, for its snapshot.
    pub fn model(&self) -> &CpuModel {
        &self.model
    }

    /// Maps host memory at a guest physical address.
    ///
    /// # Safety
    /// `host` must be valid for `len` bytes (readable, and writable when `protection` says so) until the VM and all
    /// its vCPUs are gone. Addresses and length are multiples of 4 KiB.
    pub unsafe fn map(&self, host: NonNull<u8>, gpa: u64, len: u64, protection: Protection) -> Result<()> {
        // SAFETY: the caller promises the same.
        unsafe { self.slots.map(&self.fd, host, gpa, len, protection) }
    }

    /// Creates vCPU `index`, which is also its APIC id. It belongs to the calling thread.
    pub fn create_vcpu(self: &Arc<Self>, index: u32) -> Result<Vcpu> {
        Vcpu::new(self.clone(), index)
    }

    /// What makes vCPU `index` leave the guest.
    pub fn kick(&self, index: u32) -> Arc<Kick> {
        self.kicks[index as usize].clone()
    }

    /// Sets the level of an interrupt line: a pin of the IOAPIC, and of the PICs below 16.
    pub fn set_irq(&self, line: u32, level: bool) -> Result<()> {
        self.fd.set_irq_line(line, level).named("KVM_IRQ_LINE")
    }

    /// Interrupt controllers, PIT and clock, as a snapshot holds them. No vCPU may be running.
    pub fn save(&self) -> Result<Vec<u8>> {
        let state = VmState {
            pic_master: self.irqchip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: self.irqchip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: self.irqchip(KVM_IRQCHIP_IOAPIC)?,
            pit: self.fd.get_pit2().named("KVM_GET_PIT2")?,
            clock: self.fd.get_clock().named("KVM_GET_CLOCK")?.clock,
        };
        crate::kvm::encode(VERSION, &state)
    }

    /// Takes over what [`Vm::save`] gave. Every vCPU is restored by now: an interrupt that waits in the IOAPIC goes to
    /// a local APIC as soon as the IOAPIC is set.
    pub fn restore(&self, saved: &[u8]) -> Result<()> {
        let VmState { pic_master, pic_slave, ioapic, pit, clock } = crate::kvm::decode(VERSION, saved)?;
        for (chip, id) in [
            (pic_master, KVM_IRQCHIP_PIC_MASTER),
            (pic_slave, KVM_IRQCHIP_PIC_SLAVE),
            (ioapic, KVM_IRQCHIP_IOAPIC),
        ] {
            // The id says which part of the union KVM reads, so it is ours to say and not the file's.
            self.fd.set_irqchip(&kvm_irqchip { chip_id: id, ..chip }).named("KVM_SET_IRQCHIP")?;
        }
        self.fd.set_pit2(&pit).named("KVM_SET_PIT2")?;
        let clock = kvm_clock_data { clock, ..Default::default() };
        self.fd.set_clock(&clock).named("KVM_SET_CLOCK")
    }

    fn irqchip(&self, chip_id: u32) -> Result<kvm_irqchip> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.fd.get_irqchip(&mut chip).named("KVM_GET_IRQCHIP")?;
        Ok(chip)
    }
}

/// The most that this host gives the CPU of a guest; `vm` is any VM.
fn host_model(kvm: &Kvm, vm: &VmFd) -> Result<CpuModel> {
    let supported = kvm.get_supported_cpuid(MOST_CPUID_ENTRIES).named("KVM_GET_SUPPORTED_CPUID")?;
    let tsc_khz = match ioctl::tsc_khz(vm) {
        Some(khz) => khz,
        // A kernel before 5.18 says it of a vCPU only; and a VM's vCPUs cannot be taken away again.
        None => {
            create(kvm)?.create_vcpu(0).named("KVM_CREATE_VCPU")?.get_tsc_khz().named("KVM_GET_TSC_KHZ")?
        }
    };
    Ok(CpuModel::of_host(&supported, kvm.check_extension(Cap::TscDeadlineTimer), tsc_khz))
}
