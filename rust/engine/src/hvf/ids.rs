//! Register ids, matched against the framework's own: a number that it does not have is an error here, and never
//! reaches it.

use applevisor_sys::{
    hv_gic_icc_reg_t as Icc, hv_gic_redistributor_reg_t as Redist, hv_reg_t as General,
    hv_simd_fp_reg_t as Simd, hv_sys_reg_t as Sys,
};

use super::error::{Error, Result};
use crate::arm64::{IccReg, RedistReg, Reg, SimdReg, SysReg};

macro_rules! table {
    ($name:ident: $kind:ident = $($id:ident)*) => {
        const $name: &[$kind] = &[$($kind::$id),*];
    };
}

table! { GENERAL: General =
    X0 X1 X2 X3 X4 X5 X6 X7 X8 X9 X10 X11 X12 X13 X14 X15 X16 X17 X18 X19 X20 X21 X22 X23 X24 X25 X26 X27 X28 X29 X30
    PC FPCR FPSR CPSR
}

table! { SIMD: Simd =
    Q0 Q1 Q2 Q3 Q4 Q5 Q6 Q7 Q8 Q9 Q10 Q11 Q12 Q13 Q14 Q15 Q16 Q17 Q18 Q19 Q20 Q21 Q22 Q23 Q24 Q25 Q26 Q27 Q28 Q29
    Q30 Q31
}

table! { SYSTEM: Sys =
    MPIDR_EL1 SCTLR_EL1 CPACR_EL1 TCR_EL1 TTBR0_EL1 TTBR1_EL1 MAIR_EL1 AMAIR_EL1 VBAR_EL1 CONTEXTIDR_EL1 TPIDR_EL1
    SPSR_EL1 ELR_EL1 SP_EL0 SP_EL1 ESR_EL1 FAR_EL1 PAR_EL1 TPIDR_EL0 TPIDRRO_EL0 CNTKCTL_EL1 CSSELR_EL1 MDSCR_EL1
    APIAKEYLO_EL1 APIAKEYHI_EL1 APIBKEYLO_EL1 APIBKEYHI_EL1 APDAKEYLO_EL1 APDAKEYHI_EL1 APDBKEYLO_EL1 APDBKEYHI_EL1
    APGAKEYLO_EL1 APGAKEYHI_EL1 CNTV_CTL_EL0 CNTV_CVAL_EL0 CNTP_CTL_EL0 CNTP_CVAL_EL0
    ID_AA64PFR0_EL1 ID_AA64PFR1_EL1 ID_AA64ISAR0_EL1 ID_AA64ISAR1_EL1 ID_AA64MMFR1_EL1 ID_AA64MMFR2_EL1
    DBGBVR0_EL1 DBGBCR0_EL1 DBGWVR0_EL1 DBGWCR0_EL1 DBGBVR1_EL1 DBGBCR1_EL1 DBGWVR1_EL1 DBGWCR1_EL1
    DBGBVR2_EL1 DBGBCR2_EL1 DBGWVR2_EL1 DBGWCR2_EL1 DBGBVR3_EL1 DBGBCR3_EL1 DBGWVR3_EL1 DBGWCR3_EL1
    DBGBVR4_EL1 DBGBCR4_EL1 DBGWVR4_EL1 DBGWCR4_EL1 DBGBVR5_EL1 DBGBCR5_EL1 DBGWVR5_EL1 DBGWCR5_EL1
    DBGBVR6_EL1 DBGBCR6_EL1 DBGWVR6_EL1 DBGWCR6_EL1 DBGBVR7_EL1 DBGBCR7_EL1 DBGWVR7_EL1 DBGWCR7_EL1
    DBGBVR8_EL1 DBGBCR8_EL1 DBGWVR8_EL1 DBGWCR8_EL1 DBGBVR9_EL1 DBGBCR9_EL1 DBGWVR9_EL1 DBGWCR9_EL1
    DBGBVR10_EL1 DBGBCR10_EL1 DBGWVR10_EL1 DBGWCR10_EL1 DBGBVR11_EL1 DBGBCR11_EL1 DBGWVR11_EL1 DBGWCR11_EL1
    DBGBVR12_EL1 DBGBCR12_EL1 DBGWVR12_EL1 DBGWCR12_EL1 DBGBVR13_EL1 DBGBCR13_EL1 DBGWVR13_EL1 DBGWCR13_EL1
    DBGBVR14_EL1 DBGBCR14_EL1 DBGWVR14_EL1 DBGWCR14_EL1 DBGBVR15_EL1 DBGBCR15_EL1 DBGWVR15_EL1 DBGWCR15_EL1
}

table! { ICC: Icc =
    PMR_EL1 BPR0_EL1 BPR1_EL1 AP0R0_EL1 AP1R0_EL1 RPR_EL1 CTLR_EL1 SRE_EL1 IGRPEN0_EL1 IGRPEN1_EL1
}

table! { REDISTRIBUTOR: Redist =
    TYPER PIDR2 IGROUPR0 ISENABLER0 ICENABLER0 ISPENDR0 ICPENDR0 ISACTIVER0 ICACTIVER0 IPRIORITYR0 IPRIORITYR1
    IPRIORITYR2 IPRIORITYR3 IPRIORITYR4 IPRIORITYR5 IPRIORITYR6 IPRIORITYR7 ICFGR0 ICFGR1
}

pub(super) fn general(register: Reg) -> Result<General> {
    find(GENERAL, |id| *id as u32 == register.0, "general register", &register)
}

pub(super) fn simd(register: SimdReg) -> Result<Simd> {
    find(SIMD, |id| *id as u32 == register.0, "vector register", &register)
}

pub(super) fn system(register: SysReg) -> Result<Sys> {
    find(SYSTEM, |id| *id as u32 == u32::from(register.0), "system register", &register)
}

pub(super) fn icc(register: IccReg) -> Result<Icc> {
    find(ICC, |id| *id as u32 == u32::from(register.0), "CPU interface register", &register)
}

pub(super) fn redistributor(register: RedistReg) -> Result<Redist> {
    find(REDISTRIBUTOR, |id| *id as u32 == register.0, "redistributor register", &register)
}

fn find<T: Copy>(
    table: &[T],
    is: impl Fn(&T) -> bool,
    what: &str,
    register: &dyn std::fmt::Debug,
) -> Result<T> {
    let found = table.iter().find(|id| is(id)).copied();
    found.ok_or_else(|| Error::UnknownRegister(format!("{what} {register:x?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arm64::state;

    #[test]
    fn every_register_of_a_snapshot_is_the_frameworks() {
        assert!(state::GENERAL.into_iter().all(|register| general(register).is_ok()));
        assert!((0..32).all(|n| simd(SimdReg(n)).is_ok()));
        assert!(state::SYSTEM.into_iter().all(|register| system(register).is_ok()));
        // But for the lock and the claim, which are the framework's own.
        assert_eq!(state::DEBUG.into_iter().filter(|register| system(*register).is_ok()).count(), 64);
        assert!(state::ICC.into_iter().all(|register| icc(register).is_ok()));
        assert!(state::REDISTRIBUTOR.into_iter().all(|register| redistributor(register).is_ok()));
        for clear in [0x1_0180, 0x1_0280, 0x1_0380] {
            assert!(redistributor(RedistReg(clear)).is_ok());
        }
    }

    #[test]
    fn other_ids_are_named() {
        assert!(general(Reg(35)).is_err() && general(Reg(u32::MAX)).is_err());
        assert!(simd(SimdReg(32)).is_err());
        assert!(icc(IccReg(0)).is_err());
        assert!(redistributor(RedistReg(0x1_0410 + 0x1_0000)).is_err());
        let error = system(SysReg(0xc006)).unwrap_err().to_string();
        assert_eq!(error, "Hypervisor.framework has no system register SysReg(c006); ids are its own");
    }
}
