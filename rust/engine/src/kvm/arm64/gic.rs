//! The virtual GICv3: made, and its state read and written by device attributes
//! (Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use crate::arm64::{IccReg, VmConfig};
use crate::kvm::host::Unusable;
use crate::kvm::{Error, Named, Result};

/// Version of the encoding of [`GicState`].
const VERSION: u32 = 1;
/// INTIDs, private ones included; a multiple of 32.
const INTIDS: u32 = 128;
const PRIVATE: u32 = 32;

/// Distributor registers (Arm IHI 0069, 12.9): offset, and how many INTIDs a 32-bit register holds.
const GICD_CTLR: u32 = 0;
const GICD_STATUSR: u32 = 0x10;
const IGROUPR: u32 = 0x80;
const ISENABLER: u32 = 0x100;
const ISPENDR: u32 = 0x200;
const ISACTIVER: u32 = 0x300;
const IPRIORITYR: u32 = 0x400;
const ICFGR: u32 = 0xc00;
const GICD_IROUTER: u32 = 0x6000;
/// From a set register to its clear register.
const CLEAR: u32 = 0x80;
/// Redistributor registers (12.11): control frame, and where the frame of private interrupts begins.
const GICR_CTLR: u32 = 0;
const GICR_STATUSR: u32 = 0x10;
const GICR_WAKER: u32 = 0x14;
const GICR_PROPBASER: u32 = 0x70;
const GICR_PENDBASER: u32 = 0x78;
const SGI_BASE: u32 = 0x1_0000;

/// CPU interface registers in the order in which they go back: what gates the others, priorities and masks, delivery.
const ICC: [IccReg; 9] = [
    IccReg::SRE_EL1,
    IccReg::CTLR_EL1,
    IccReg::PMR_EL1,
    IccReg::BPR0_EL1,
    IccReg::BPR1_EL1,
    IccReg::AP0R0_EL1,
    IccReg::AP1R0_EL1,
    IccReg::IGRPEN0_EL1,
    IccReg::IGRPEN1_EL1,
];

/// What a snapshot holds: offsets or ids with values, all in the order in which they go back.
#[derive(Serialize, Deserialize)]
struct GicState {
    distributor: Vec<(u32, u32)>,
    redistributors: Vec<Vec<(u32, u32)>>,
    cpu_interfaces: Vec<Vec<(u16, u64)>>,
    /// Line levels, 32 to a word: of each vCPU's private interrupts, then of the shared ones.
    private_levels: Vec<u32>,
    shared_levels: Vec<(u32, u32)>,
}

saved_structure!(GicState {
    distributor: Vec<(u32, u32)>,
    redistributors: Vec<Vec<(u32, u32)>>,
    cpu_interfaces: Vec<Vec<(u16, u64)>>,
    private_levels: Vec<u32>,
    shared_levels: Vec<(u32, u32)>
});

/// The device.
pub(crate) struct Gic {
    fd: DeviceFd,
    vcpus: u32,
}

impl Gic {
    /// Makes and initialises it; all vCPUs exist.
    pub(crate) fn new(vm: &VmFd, config: &VmConfig) -> Result<Self> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
        let fd = match vm.create_device(&mut device) {
            Err(error) if error.errno() == libc::ENODEV => return Err(Unusable::no_gicv3().into()),
            made => made.named("KVM_CREATE_DEVICE for a GICv3")?,
        };
        let gic = Self { fd, vcpus: config.vcpus };
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, INTIDS)?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST.into(), config.gicd_base)?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST.into(), config.gicr_base)?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0_u32)?;
        Ok(gic)
    }

    pub(crate) fn redist(&self, vcpu: u32, offset: u32) -> Result<u32> {
        self.get(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, affinity(vcpu) | u64::from(offset))
    }

    pub(crate) fn set_redist(&self, vcpu: u32, offset: u32, value: u32) -> Result<()> {
        self.set(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, affinity(vcpu) | u64::from(offset), value)
    }

    pub(crate) fn icc(&self, vcpu: u32, register: IccReg) -> Result<u64> {
        self.get(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, affinity(vcpu) | u64::from(register.0))
    }

    pub(crate) fn set_icc(&self, vcpu: u32, register: IccReg, value: u64) -> Result<()> {
        self.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, affinity(vcpu) | u64::from(register.0), value)
    }

    /// All of its state. No vCPU may be running.
    pub(crate) fn save(&self) -> Result<Vec<u8>> {
        let dist = |offset| -> Result<(u32, u32)> {
            Ok((offset, self.get(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset.into())?))
        };
        let mut state = GicState {
            distributor: distributor().into_iter().map(dist).collect::<Result<_>>()?,
            redistributors: Vec::new(),
            cpu_interfaces: Vec::new(),
            private_levels: Vec::new(),
            shared_levels: Vec::new(),
        };
        for vcpu in 0..self.vcpus {
            let redist = |offset| -> Result<(u32, u32)> { Ok((offset, self.redist(vcpu, offset)?)) };
            state.redistributors.push(redistributor().into_iter().map(redist).collect::<Result<_>>()?);
            // Not every CPU has every one of them: the active priorities depend on how many there are.
            let icc = |register: &IccReg| Some((register.0, self.icc(vcpu, *register).ok()?));
            state.cpu_interfaces.push(ICC.iter().filter_map(icc).collect());
            state.private_levels.push(self.get(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, affinity(vcpu))?);
        }
        for first in (PRIVATE..INTIDS).step_by(32) {
            state.shared_levels.push((first, self.get(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, first.into())?));
        }
        crate::kvm::encode(VERSION, &state)
    }

    /// Takes over what [`Gic::save`] gave.
    pub(crate) fn restore(&self, saved: &[u8]) -> Result<()> {
        let state: GicState = crate::kvm::decode(VERSION, saved)?;
        let vcpus = self.vcpus as usize;
        if [state.redistributors.len(), state.cpu_interfaces.len(), state.private_levels.len()] != [vcpus; 3]
        {
            return Err(Error::State(format!("its GIC is not one of {vcpus} vCPUs")));
        }
        let known = |offset: &u32| distributor().contains(offset);
        if !state.distributor.iter().all(|(offset, _)| known(offset)) {
            return Err(Error::State("its GIC has a distributor register that none has".into()));
        }
        for (vcpu, registers) in (0..).zip(&state.redistributors) {
            if !registers.iter().all(|(offset, _)| redistributor().contains(offset)) {
                return Err(Error::State("its GIC has a redistributor register that none has".into()));
            }
            for (offset, value) in registers {
                if is_set_register(offset.wrapping_sub(SGI_BASE)) {
                    self.set_redist(vcpu, offset + CLEAR, u32::MAX)?;
                }
                self.set_redist(vcpu, *offset, *value)?;
            }
        }
        for (offset, value) in &state.distributor {
            if is_set_register(*offset) {
                self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, u64::from(offset + CLEAR), u32::MAX)?;
            }
            self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, u64::from(*offset), *value)?;
        }
        for (vcpu, level) in (0..).zip(&state.private_levels) {
            self.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, affinity(vcpu), *level)?;
        }
        for (first, level) in &state.shared_levels {
            self.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, u64::from(*first), *level)?;
        }
        for (vcpu, registers) in (0..).zip(&state.cpu_interfaces) {
            for (id, value) in registers {
                self.set_icc(vcpu, IccReg(*id), *value)?;
            }
        }
        Ok(())
    }

    fn get<T: Default>(&self, group: u32, attr: u64) -> Result<T> {
        let mut value = T::default();
        let addr = std::ptr::from_mut(&mut value) as u64;
        let mut attribute = kvm_device_attr { flags: 0, group, attr, addr };
        // SAFETY: the address is that of a value as large as the attributes of the group are, by each caller's choice.
        unsafe { self.fd.get_device_attr(&mut attribute) }.named("KVM_GET_DEVICE_ATTR of the GIC")?;
        Ok(value)
    }

    fn set<T>(&self, group: u32, attr: u64, value: T) -> Result<()> {
        let addr = std::ptr::from_ref(&value) as u64;
        let attribute = kvm_device_attr { flags: 0, group, attr, addr };
        self.fd.set_device_attr(&attribute).named("KVM_SET_DEVICE_ATTR of the GIC")
    }
}

/// Whether writing zeros here changes nothing, so that bits are cleared elsewhere first.
fn is_set_register(offset: u32) -> bool {
    [ISENABLER, ISPENDR, ISACTIVER].iter().any(|first| (*first..first + CLEAR).contains(&offset))
}

/// How attributes name a vCPU: the affinity that KVM gives it, sixteen to a cluster.
fn affinity(vcpu: u32) -> u64 {
    (u64::from(vcpu & 15) | u64::from(vcpu >> 4) << 8) << 32
}

/// Offsets of the distributor's registers for shared interrupts: trigger modes before what is pending.
fn distributor() -> Vec<u32> {
    let mut offsets = vec![GICD_CTLR, GICD_STATUSR];
    let mut each = |first: u32, intids: u32| {
        offsets.extend((PRIVATE / intids..INTIDS / intids).map(|n| first + 4 * n));
    };
    each(ICFGR, 16);
    each(IGROUPR, 32);
    each(IPRIORITYR, 4);
    for first in [ISENABLER, ISPENDR, ISACTIVER] {
        each(first, 32);
    }
    // 64 bits each, 32 at a time.
    offsets.extend((PRIVATE..INTIDS).flat_map(|n| [GICD_IROUTER + 8 * n, GICD_IROUTER + 8 * n + 4]));
    offsets
}

/// Offsets of a redistributor's registers, in the order that [`distributor`] has.
fn redistributor() -> Vec<u32> {
    let mut offsets = vec![GICR_STATUSR, GICR_WAKER];
    for base in [GICR_PROPBASER, GICR_PENDBASER] {
        offsets.extend([base, base + 4]);
    }
    offsets.push(GICR_CTLR);
    offsets.extend([ICFGR, ICFGR + 4, IGROUPR].map(|offset| SGI_BASE + offset));
    offsets.extend((0..PRIVATE / 4).map(|n| SGI_BASE + IPRIORITYR + 4 * n));
    offsets.extend([ISENABLER, ISPENDR, ISACTIVER].map(|offset| SGI_BASE + offset));
    offsets
}
