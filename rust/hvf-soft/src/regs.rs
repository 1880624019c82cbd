//! A vCPU's general and system registers and its virtual timer.

use supermachine_soft::id::{RedistReg, Reg, SysReg};

use crate::vcpu::mine;
use crate::{HV_BAD_ARGUMENT, HV_ILLEGAL_GUEST_STATE, HV_SUCCESS, Return, put};

/// `hv_reg_t` ends with CPSR.
const LAST_REG: u32 = Reg::CPSR.0;
const MPIDR_FIXED: u64 = 1 << 31;
/// Aff3 and Aff2 to Aff0.
const MPIDR_AFFINITY: u64 = 0xff << 32 | 0xff_ffff;
/// GICR_ISPENDR0, and the virtual timer's interrupt in it (Documented: HV_GIC_INT_EL1_VIRTUAL_TIMER is 27).
const ISPENDR0: RedistReg = RedistReg(0x1_0200);
const VTIMER: u64 = 1 << 27;
/// CNTV_CTL_EL0: enabled, not masked, and its condition met.
const DUE: u64 = 5;

/// What a complete vCPU's PC and CPSR rely on.
const REGIME: [SysReg; 6] = [
    SysReg::SCTLR_EL1,
    SysReg::TCR_EL1,
    SysReg::TTBR0_EL1,
    SysReg::TTBR1_EL1,
    SysReg::MAIR_EL1,
    SysReg::VBAR_EL1,
];

/// What tells of the CPU and cannot be set.
const FEATURES: [SysReg; 6] = [
    SysReg::new(3, 0, 0, 4, 0),
    SysReg::new(3, 0, 0, 4, 1),
    SysReg::new(3, 0, 0, 6, 0),
    SysReg::new(3, 0, 0, 6, 1),
    SysReg::new(3, 0, 0, 7, 1),
    SysReg::new(3, 0, 0, 7, 2),
];

/// Whether `hv_sys_reg_t` has it, as far as this CPU does.
fn known(register: u32) -> Option<SysReg> {
    let register = u16::try_from(register).ok().map(SysReg)?;
    let compared = register != SysReg::OSLSR_EL1
        && register != SysReg::DBGCLAIMCLR_EL1
        && SysReg::DEBUG.contains(&register);
    (SysReg::SNAPSHOT.contains(&register) || FEATURES.contains(&register) || compared).then_some(register)
}

/// Documented: a general register; the owning thread calls. Assumed: an id that the type does not have is a bad
/// argument.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_reg(vcpu: u64, register: u32, value: *mut u64) -> Return {
    mine(vcpu, |mine| match mine.vcpu.reg(Reg(register)) {
        // SAFETY: the caller's pointer, as documented.
        Ok(found) if register <= LAST_REG => unsafe { put(value, found) },
        _ => HV_BAD_ARGUMENT,
    })
}

/// Documented: as above. Assumed: PC completes a vCPU, see [`hv_vcpu_set_sys_reg`]; a mode that EL1 does not have is
/// illegal guest state.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_reg(vcpu: u64, register: u32, value: u64) -> Return {
    mine(vcpu, |mine| {
        if register > LAST_REG {
            return HV_BAD_ARGUMENT;
        }
        match mine.vcpu.set_reg(Reg(register), value) {
            Ok(()) => {
                mine.complete |= Reg(register) == Reg::PC;
                HV_SUCCESS
            }
            Err(_) => HV_ILLEGAL_GUEST_STATE,
        }
    })
}

/// Documented: a system register; the owning thread calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_sys_reg(vcpu: u64, register: u32, value: *mut u64) -> Return {
    mine(vcpu, |mine| match known(register).map(|register| mine.vcpu.sys_reg(register)) {
        // SAFETY: the caller's pointer, as documented.
        Some(Ok(found)) => unsafe { put(value, found) },
        _ => HV_BAD_ARGUMENT,
    })
}

/// Documented: as above; hv_gic_create: the affinity is the caller's to set in MPIDR_EL1. Measured: bit 31 of MPIDR is
/// one whatever is set. Assumed: affinity 0 is the vCPU's place in the order of creation, others are zero; ID registers
/// are read-only; and the registers of the translation regime are not changed under a vCPU that is complete (its PC set
/// and not yet run), which no order that works does.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_sys_reg(vcpu: u64, register: u32, value: u64) -> Return {
    mine(vcpu, |mine| {
        let Some(register) = known(register) else { return HV_BAD_ARGUMENT };
        let mut value = value;
        if register == SysReg::MPIDR_EL1 {
            if value & MPIDR_AFFINITY != u64::from(mine.index) {
                return HV_BAD_ARGUMENT;
            }
            mine.affinity_set = true;
            value = value & MPIDR_AFFINITY | MPIDR_FIXED;
        }
        if FEATURES.contains(&register) {
            return HV_BAD_ARGUMENT;
        }
        if mine.complete && REGIME.contains(&register) {
            return HV_ILLEGAL_GUEST_STATE;
        }
        match mine.vcpu.set_sys_reg(register, value) {
            Ok(()) => HV_SUCCESS,
            Err(_) => HV_BAD_ARGUMENT,
        }
    })
}

/// Documented: whether the virtual timer is masked.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_vtimer_mask(vcpu: u64, masked: *mut bool) -> Return {
    // SAFETY: the caller's pointer, as documented.
    mine(vcpu, |mine| unsafe { put(masked, mine.vcpu.vtimer_mask()) })
}

/// Documented: masks or unmasks the virtual timer. Assumed: unmasking one that was masked has the framework look at the
/// timer, and make its interrupt pending when it is due; one that was not masked is not looked at.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_vtimer_mask(vcpu: u64, masked: bool) -> Return {
    mine(vcpu, |mine| {
        let look = mine.vcpu.vtimer_mask() && !masked;
        let set = mine.vcpu.set_vtimer_mask(masked).and_then(|()| {
            let due = mine.vcpu.sys_reg(SysReg::CNTV_CTL_EL0)? & 7 == DUE;
            if look && due { mine.vcpu.set_redist_reg(ISPENDR0, VTIMER) } else { Ok(()) }
        });
        if set.is_ok() { HV_SUCCESS } else { HV_BAD_ARGUMENT }
    })
}

/// Documented: what is taken from mach_absolute_time to make CNTVCT_EL0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_vtimer_offset(vcpu: u64, offset: *mut u64) -> Return {
    // SAFETY: the caller's pointer, as documented.
    mine(vcpu, |mine| unsafe { put(offset, mine.vcpu.vtimer_offset()) })
}

/// Documented: sets it.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_vtimer_offset(vcpu: u64, offset: u64) -> Return {
    mine(vcpu, |mine| match mine.vcpu.set_vtimer_offset(offset) {
        Ok(()) => HV_SUCCESS,
        Err(_) => HV_BAD_ARGUMENT,
    })
}
