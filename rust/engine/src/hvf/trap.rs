//! Exceptions that the framework leaves to the machine and that no device is behind: system registers that it traps,
//! and fetches from where there is no memory.

use super::ids;
use crate::Result;
use crate::arm64::{Reg, SysReg, Vcpu};

/// ESR_EL1: exception classes and the bit for a 32-bit instruction (Arm ARM, D24.2.40).
const EC_UNKNOWN: u64 = 0;
const EC_FETCH_BELOW: u64 = 0x20;
const EC_FETCH_SAME: u64 = 0x21;
const IL: u64 = 1 << 25;
/// Synchronous external abort, not on a table walk.
const EXTERNAL: u64 = 0x10;

/// PSTATE: flags that an exception keeps, EL1h with all interrupts masked, PAN (Arm ARM, D1.3.3).
const FLAGS: u64 = 0xf << 28;
const EL1H_MASKED: u64 = 0x3c5;
const PAN: u64 = 1 << 22;
/// SCTLR_EL1.SPAN: an exception leaves PAN alone.
const SPAN: u64 = 1 << 23;

/// OSLSR_EL1.OSLM: there is an OS lock (Arm ARM, D24.3.20). It is never held here.
const OSLSR: (u16, u64) = (SysReg::new(2, 0, 1, 1, 4).0, 8);
/// LORSA_EL1 to LORC_EL1 and LORID_EL1: limited ordering regions, none of them.
const LOR: u16 = SysReg::new(3, 0, 10, 4, 0).0;

/// Serves an MRS or MSR that trapped (EC 0x18), and goes on after it. MDSCR_EL1, breakpoints and watchpoints are the
/// framework's, which may leave the access to us all the same; other debug registers read as zero and ignore writes,
/// and so do a performance monitor's, which a guest that booted on the software CPU takes to be there; any other
/// register is undefined, as the guest's ID registers say.
pub(super) fn system_register<V: Vcpu + ?Sized>(vcpu: &mut V, syndrome: u64) -> Result<()> {
    let field = |low: u32, bits: u32| (syndrome >> low & ((1 << bits) - 1)) as u16;
    let (op0, op1, crn, crm, op2) = (field(20, 2), field(14, 3), field(10, 4), field(1, 4), field(17, 3));
    let register = SysReg::new(op0, op1, crn, crm, op2).0;
    let debug = op0 == 2 && op1 == 0;
    let monitor = op0 == 3 && (crn == 9 && (12..=14).contains(&crm) || op1 == 3 && crn == 14 && crm >= 8);
    if !debug && !monitor && register & !7 != LOR {
        return undefined(vcpu);
    }
    let kept = debug && ids::system(SysReg(register)).is_ok();
    // 31 is XZR.
    let general = (field(5, 5) != 31).then(|| Reg::x(field(5, 5).into()));
    if syndrome & 1 == 1 {
        let value = match register {
            _ if kept => vcpu.sys_reg(SysReg(register))?,
            register if register == OSLSR.0 => OSLSR.1,
            _ => 0,
        };
        if let Some(general) = general {
            vcpu.set_reg(general, value)?;
        }
    } else if kept {
        let value = general.map_or(Ok(0), |general| vcpu.reg(general))?;
        vcpu.set_sys_reg(SysReg(register), value)?;
    }
    skip(vcpu)
}

/// On to the next instruction.
pub(super) fn skip<V: Vcpu + ?Sized>(vcpu: &mut V) -> Result<()> {
    let pc = vcpu.reg(Reg::PC)?;
    vcpu.set_reg(Reg::PC, pc.wrapping_add(4))
}

/// Has the guest take an undefined-instruction exception.
pub(super) fn undefined<V: Vcpu + ?Sized>(vcpu: &mut V) -> Result<()> {
    exception(vcpu, EC_UNKNOWN << 26 | IL)
}

/// Has the guest take an abort for a fetch from where nothing is.
pub(super) fn instruction_abort<V: Vcpu + ?Sized>(vcpu: &mut V, address: u64) -> Result<()> {
    let class = if from_el0(vcpu.reg(Reg::CPSR)?) { EC_FETCH_BELOW } else { EC_FETCH_SAME };
    vcpu.set_sys_reg(SysReg::FAR_EL1, address)?;
    exception(vcpu, class << 26 | IL | EXTERNAL)
}

fn from_el0(cpsr: u64) -> bool {
    cpsr & 0xf == 0
}

/// Enters the guest's handler of synchronous exceptions (Arm ARM, D1.3.1).
fn exception<V: Vcpu + ?Sized>(vcpu: &mut V, syndrome: u64) -> Result<()> {
    let (cpsr, pc) = (vcpu.reg(Reg::CPSR)?, vcpu.reg(Reg::PC)?);
    let vector = match cpsr {
        cpsr if from_el0(cpsr) => 0x400,
        cpsr if cpsr & 1 == 1 => 0x200,
        _ => 0,
    };
    let handler = vcpu.sys_reg(SysReg::VBAR_EL1)?.wrapping_add(vector);
    let pan = if vcpu.sys_reg(SysReg::SCTLR_EL1)? & SPAN == 0 { PAN } else { cpsr & PAN };
    vcpu.set_sys_reg(SysReg::SPSR_EL1, cpsr)?;
    vcpu.set_sys_reg(SysReg::ELR_EL1, pc)?;
    vcpu.set_sys_reg(SysReg::ESR_EL1, syndrome)?;
    vcpu.set_reg(Reg::CPSR, cpsr & FLAGS | pan | EL1H_MASKED)?;
    vcpu.set_reg(Reg::PC, handler)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;
    use crate::arm64::VmConfig;
    use crate::create_arm64_vm;

    fn vcpu() -> Box<dyn Vcpu> {
        let config = VmConfig { vcpus: 1, gicd_base: 0x800_0000, gicr_base: 0x80a_0000 };
        let mut vcpu = create_arm64_vm(Engine::Soft, config).unwrap().create_vcpu(0).unwrap();
        vcpu.set_sys_reg(SysReg::VBAR_EL1, 0x4000_0800).unwrap();
        vcpu.set_reg(Reg::PC, 0x1000).unwrap();
        vcpu.set_reg(Reg::x(5), 77).unwrap();
        vcpu
    }

    /// ISS of an MRS (or MSR) of the register with X`rt` (Arm ARM, D24.2.40, EC 0x18).
    fn access(fields: [u64; 5], rt: u64, read: bool) -> u64 {
        let [op0, op1, crn, crm, op2] = fields;
        0x18 << 26 | IL | op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1 | u64::from(read)
    }

    #[test]
    fn debug_registers_are_there_and_empty() {
        let mut vcpu = vcpu();
        // OSLAR_EL1 ← X5, X5 ← OSLSR_EL1, X5 ← MDRAR_EL1, XZR ← OSDLR_EL1, X5 ← LORID_EL1.
        system_register(&mut *vcpu, access([2, 0, 1, 0, 4], 5, false)).unwrap();
        assert_eq!((vcpu.reg(Reg::x(5)).unwrap(), vcpu.reg(Reg::PC).unwrap()), (77, 0x1004));
        system_register(&mut *vcpu, access([2, 0, 1, 1, 4], 5, true)).unwrap();
        assert_eq!(vcpu.reg(Reg::x(5)).unwrap(), 8);
        system_register(&mut *vcpu, access([2, 0, 1, 0, 0], 5, true)).unwrap();
        assert_eq!(vcpu.reg(Reg::x(5)).unwrap(), 0);
        system_register(&mut *vcpu, access([2, 0, 1, 3, 4], 31, true)).unwrap();
        vcpu.set_reg(Reg::x(5), 1).unwrap();
        system_register(&mut *vcpu, access([3, 0, 10, 4, 7], 5, true)).unwrap();
        assert_eq!((vcpu.reg(Reg::x(5)).unwrap(), vcpu.reg(Reg::PC).unwrap()), (0, 0x1014));
    }

    #[test]
    fn breakpoints_that_trap_are_kept() {
        let mut vcpu = vcpu();
        // DBGBVR1_EL1 and DBGWVR1_EL1 ← X5, MDSCR_EL1 ← X6, and back into others.
        vcpu.set_reg(Reg::x(5), 0x4000).unwrap();
        vcpu.set_reg(Reg::x(6), 1 << 15).unwrap();
        for (fields, from) in [([2, 0, 0, 1, 4], 5), ([2, 0, 0, 1, 6], 5), ([2, 0, 0, 2, 2], 6)] {
            let register = SysReg::new(2, 0, 0, fields[3] as u16, fields[4] as u16);
            system_register(&mut *vcpu, access(fields, from, false)).unwrap();
            let wrote = vcpu.reg(Reg::x(from as u32)).unwrap();
            assert_eq!(vcpu.sys_reg(register).unwrap(), wrote);
            system_register(&mut *vcpu, access(fields, 7, true)).unwrap();
            assert_eq!(vcpu.reg(Reg::x(7)).unwrap(), wrote);
            // From XZR.
            system_register(&mut *vcpu, access(fields, 31, false)).unwrap();
            assert_eq!(vcpu.sys_reg(register).unwrap(), 0);
        }
    }

    #[test]
    fn a_performance_monitor_counts_nothing() {
        let mut vcpu = vcpu();
        // PMCR_EL0 ← X5, PMEVCNTR0_EL0 ← X5, X5 ← PMCCNTR_EL0.
        system_register(&mut *vcpu, access([3, 3, 9, 12, 0], 5, false)).unwrap();
        system_register(&mut *vcpu, access([3, 3, 14, 8, 0], 5, false)).unwrap();
        system_register(&mut *vcpu, access([3, 3, 9, 13, 0], 5, true)).unwrap();
        assert_eq!((vcpu.reg(Reg::x(5)).unwrap(), vcpu.reg(Reg::PC).unwrap()), (0, 0x100c));
    }

    #[test]
    fn what_no_id_register_announces_is_undefined_in_the_guest() {
        let mut vcpu = vcpu();
        vcpu.set_reg(Reg::CPSR, 0x8000_0005).unwrap();
        // AMCR_EL0, at EL1h.
        system_register(&mut *vcpu, access([3, 3, 13, 2, 0], 5, true)).unwrap();
        assert_eq!(vcpu.reg(Reg::x(5)).unwrap(), 77);
        assert_eq!(vcpu.reg(Reg::PC).unwrap(), 0x4000_0800 + 0x200);
        assert_eq!(vcpu.reg(Reg::CPSR).unwrap(), 0x8000_03c5);
        assert_eq!(vcpu.sys_reg(SysReg::ELR_EL1).unwrap(), 0x1000);
        assert_eq!(vcpu.sys_reg(SysReg::SPSR_EL1).unwrap(), 0x8000_0005);
        assert_eq!(vcpu.sys_reg(SysReg::ESR_EL1).unwrap(), IL);
    }

    #[test]
    fn a_fetch_from_nowhere_aborts_and_sets_pan() {
        let mut vcpu = vcpu();
        let sctlr = vcpu.sys_reg(SysReg::SCTLR_EL1).unwrap();
        vcpu.set_sys_reg(SysReg::SCTLR_EL1, sctlr & !SPAN).unwrap();
        vcpu.set_reg(Reg::CPSR, 0).unwrap();
        instruction_abort(&mut *vcpu, 0xdead_0000).unwrap();
        assert_eq!(vcpu.reg(Reg::PC).unwrap(), 0x4000_0800 + 0x400);
        assert_eq!(vcpu.reg(Reg::CPSR).unwrap(), PAN | EL1H_MASKED);
        assert_eq!(vcpu.sys_reg(SysReg::FAR_EL1).unwrap(), 0xdead_0000);
        assert_eq!(vcpu.sys_reg(SysReg::ESR_EL1).unwrap(), 0x20 << 26 | IL | EXTERNAL);
    }
}
