//! Registers by KVM's ids (Documentation/virt/kvm/api.rst, 4.68), and all of them as a snapshot holds them.

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64,
    KVM_REG_SIZE_U128, RegList,
};
use kvm_ioctls::{VcpuFd, reg_size};

use crate::arm64::{Reg, SimdReg, SysReg};
use crate::kvm::{Error, Named, Result};

/// Where core registers are in the kernel's `struct kvm_regs`, in 32-bit words: general registers, SP_EL0, PC and PSTATE;
/// SP_EL1, ELR_EL1 and five SPSRs with padding; vector registers, FPSR and FPCR.
const PC: u64 = 64;
const PSTATE: u64 = 66;
const VECTOR: u64 = 84;
const FPSR: u64 = 212;
const FPCR: u64 = 213;

/// Registers that a vCPU may list: as many as kvm-bindings has room for.
const MOST: usize = 500;
/// The virtual timer's counter, control and compare value. In the ids of the first and last KVM has exchanged CNTVCT and
/// CNTV_CVAL, which is its interface now (arch/arm64/include/uapi/asm/kvm.h).
pub const TIMER_COUNT: u64 = system(SysReg::new(3, 3, 14, 3, 2));

/// The id of a system register.
pub const fn system(register: SysReg) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | register.0 as u64
}

const fn core(size: u64, word: u64) -> u64 {
    KVM_REG_ARM64 | size | KVM_REG_ARM_CORE as u64 | word
}

/// The id of a general or control register.
pub fn general(register: Reg) -> u64 {
    match register {
        Reg::PC => core(KVM_REG_SIZE_U64, PC),
        Reg::CPSR => core(KVM_REG_SIZE_U64, PSTATE),
        Reg::FPSR => core(KVM_REG_SIZE_U32, FPSR),
        Reg::FPCR => core(KVM_REG_SIZE_U32, FPCR),
        Reg(n) => core(KVM_REG_SIZE_U64, 2 * u64::from(n)),
    }
}

/// The id of a vector register.
pub fn vector(register: SimdReg) -> u64 {
    core(KVM_REG_SIZE_U128, VECTOR + 4 * u64::from(register.0))
}

/// Reads a register of up to 128 bits.
pub fn get(vcpu: &VcpuFd, id: u64) -> Result<u128> {
    let mut bytes = [0; 16];
    vcpu.get_one_reg(id, &mut bytes).named("KVM_GET_ONE_REG")?;
    Ok(u128::from_le_bytes(bytes))
}

/// Writes a register of up to 128 bits.
pub fn set(vcpu: &VcpuFd, id: u64, value: u128) -> Result<()> {
    vcpu.set_one_reg(id, &value.to_le_bytes()[..reg_size(id).min(16)]).named("KVM_SET_ONE_REG").map(drop)
}

/// Every register that the vCPU lists, but the counter, which is time and not state.
pub fn save(vcpu: &VcpuFd) -> Result<Vec<(u64, Vec<u8>)>> {
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

/// Sets every register. One that does not take its value is no matter when it has it: what identifies the CPU is
/// read-only.
pub fn restore(vcpu: &VcpuFd, registers: &[(u64, Vec<u8>)]) -> Result<()> {
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
