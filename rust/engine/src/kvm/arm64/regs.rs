//! Registers by KVM's ids (Documentation/virt/kvm/api.rst, 4.68), and all of them as a snapshot holds them.

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64,
    KVM_REG_SIZE_U128, KVM_REG_SIZE_U512, KVM_REG_SIZE_U2048, RegList,
};
use kvm_ioctls::{VcpuFd, reg_size};

use crate::arm64::{Reg, SimdReg, SysReg};
use crate::kvm::{Error, Named, Result};

/// Where core registers are in the kernel's `struct kvm_regs`, in 32-bit words: general registers, SP_EL0, PC and
/// PSTATE; SP_EL1, ELR_EL1 and five SPSRs with padding; vector registers, FPSR and FPCR.
const PC: u64 = 64;
const PSTATE: u64 = 66;
const VECTOR: u64 = 84;
const FPSR: u64 = 212;
const FPCR: u64 = 213;

/// Registers that a vCPU may list: as many as kvm-bindings has room for.
const MOST: usize = 500;
/// The virtual timer's counter, control and compare value. In the ids of the first and last KVM has exchanged CNTVCT
/// and CNTV_CVAL, which is its interface now (arch/arm64/include/uapi/asm/kvm.h).
pub(crate) const TIMER_COUNT: u64 = system(SysReg::new(3, 3, 14, 3, 2));

/// Registers of the Scalable Vector Extension: their kind, and the bytes that KVM exchanges one of the vector registers
/// in, however long vectors are.
const SVE: u64 = 0x15 << 16;
const SVE_BYTES: usize = 256;
/// The set of vector lengths that the guest may choose from. It goes first and once: it settles what the other
/// registers of the extension are (Documentation/virt/kvm/api.rst, 4.68 and 4.119).
pub(crate) const SVE_LENGTHS: u64 = KVM_REG_ARM64 | SVE | KVM_REG_SIZE_U512 | 0xffff;

/// The id of a system register.
pub(crate) const fn system(register: SysReg) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | register.0 as u64
}

const fn core(size: u64, word: u64) -> u64 {
    KVM_REG_ARM64 | size | KVM_REG_ARM_CORE as u64 | word
}

/// The id of a general or control register.
pub(crate) fn general(register: Reg) -> u64 {
    match register {
        Reg::PC => core(KVM_REG_SIZE_U64, PC),
        Reg::CPSR => core(KVM_REG_SIZE_U64, PSTATE),
        Reg::FPSR => core(KVM_REG_SIZE_U32, FPSR),
        Reg::FPCR => core(KVM_REG_SIZE_U32, FPCR),
        Reg(n) => core(KVM_REG_SIZE_U64, 2 * u64::from(n)),
    }
}

/// The id of a vector register of a vCPU without scalable vectors.
fn vector(register: SimdReg) -> u64 {
    core(KVM_REG_SIZE_U128, VECTOR + 4 * u64::from(register.0))
}

/// The id of a scalable vector register, whose low 128 bits are the vector register of its number.
fn scalable(register: SimdReg) -> u64 {
    KVM_REG_ARM64 | SVE | KVM_REG_SIZE_U2048 | u64::from(register.0) << 5
}

/// Reads a vector register, of a vCPU with scalable vectors or without.
pub(crate) fn get_vector(vcpu: &VcpuFd, register: SimdReg, sve: bool) -> Result<u128> {
    if !sve {
        return get(vcpu, vector(register));
    }
    let mut bytes = [0; SVE_BYTES];
    vcpu.get_one_reg(scalable(register), &mut bytes).named("KVM_GET_ONE_REG")?;
    let (low, _) = bytes.split_first_chunk().expect("it is longer than its low part");
    Ok(u128::from_le_bytes(*low))
}

/// Writes a vector register; what is above its 128 bits is cleared, as instructions that write one do.
pub(crate) fn set_vector(vcpu: &VcpuFd, register: SimdReg, value: u128, sve: bool) -> Result<()> {
    if !sve {
        return set(vcpu, vector(register), value);
    }
    let mut bytes = [0; SVE_BYTES];
    bytes[..16].copy_from_slice(&value.to_le_bytes());
    vcpu.set_one_reg(scalable(register), &bytes).named("KVM_SET_ONE_REG").map(drop)
}

/// Reads a register of up to 128 bits.
pub(crate) fn get(vcpu: &VcpuFd, id: u64) -> Result<u128> {
    let mut bytes = [0; 16];
    vcpu.get_one_reg(id, &mut bytes).named("KVM_GET_ONE_REG")?;
    Ok(u128::from_le_bytes(bytes))
}

/// Writes a register of up to 128 bits.
pub(crate) fn set(vcpu: &VcpuFd, id: u64, value: u128) -> Result<()> {
    vcpu.set_one_reg(id, &value.to_le_bytes()[..reg_size(id).min(16)]).named("KVM_SET_ONE_REG").map(drop)
}

/// Every register that the vCPU lists, but the counter, which is time and not state.
pub(crate) fn save(vcpu: &VcpuFd) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut list = RegList::new(MOST).map_err(|e| Error::State(format!("a list of registers: {e:?}")))?;
    vcpu.get_reg_list(&mut list).named("KVM_GET_REG_LIST")?;
    let ids = list.as_slice().iter().filter(|id| **id != TIMER_COUNT);
    ids.map(|id| {
        let mut bytes = vec![0; reg_size(*id)];
        vcpu.get_one_reg(*id, &mut bytes).named("KVM_GET_ONE_REG")?;
        Ok((*id, bytes))
    })
    .collect()
}

/// Chooses the vector lengths that a snapshot's guest may have; the vCPU is not finalised yet.
pub(crate) fn restore_lengths(vcpu: &VcpuFd, registers: &[(u64, Vec<u8>)]) -> Result<()> {
    match registers.iter().find(|(id, _)| *id == SVE_LENGTHS) {
        Some(lengths) => restore(vcpu, std::slice::from_ref(lengths)),
        None => Ok(()),
    }
}

/// Sets every register. One that does not take its value is no matter when it has it: what identifies the CPU is
/// read-only, and so are the vector lengths by now.
pub(crate) fn restore(vcpu: &VcpuFd, registers: &[(u64, Vec<u8>)]) -> Result<()> {
    for (id, bytes) in registers {
        if *id == TIMER_COUNT || bytes.len() != reg_size(*id) {
            return Err(Error::State(format!("register {id:#x} in {} bytes", bytes.len())));
        }
        if vcpu.set_one_reg(*id, bytes).is_err() {
            let mut now = vec![0; bytes.len()];
            let read = vcpu.get_one_reg(*id, &mut now);
            if read.is_err() || now != *bytes {
                return Err(Error::Register { id: *id, saved: hex(bytes), host: hex(&now) });
            }
        }
    }
    Ok(())
}

/// A little-endian number as people write it.
fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}
