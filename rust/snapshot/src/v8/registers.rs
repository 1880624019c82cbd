//! The registers of version 8, in the order in which a writer stores them.
//!
//! Ids are those of Hypervisor.framework (hv_vcpu_types.h and hv_gic_types.h of the macOS 15 SDK): for system and ICC
//! registers the encoding `op0 << 14 | op1 << 11 | CRn << 7 | CRm << 3 | op2`, for the redistributor's their offset.

/// One register that a record may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Hypervisor.framework's number for it.
    pub id: u32,
    /// As Arm's manuals have it.
    pub name: &'static str,
    /// A record without it is refused. Of the others, a writer leaves out what it cannot read.
    pub required: bool,
}

/// The five kinds of registers, in the order of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// X0 to X30, PC, FPCR, FPSR and CPSR.
    General,
    /// Q0 to Q31.
    Simd,
    /// System registers of EL1 and EL0.
    System,
    /// The CPU interface of the GIC (ICC_*_EL1).
    Icc,
    /// The redistributor of the GIC, by the offset of the register.
    Redistributor,
}

impl Class {
    /// What a record may hold of this kind.
    pub fn table(self) -> &'static [Register] {
        match self {
            Class::General => &GENERAL,
            Class::Simd => &SIMD,
            Class::System => &SYSTEM,
            Class::Icc => &ICC,
            Class::Redistributor => &REDISTRIBUTOR,
        }
    }

    /// The register of this kind with this id.
    pub fn find(self, id: u32) -> Option<&'static Register> {
        self.table().iter().find(|register| register.id == id)
    }

    /// For messages.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Class::General => "general register",
            Class::Simd => "SIMD register",
            Class::System => "system register",
            Class::Icc => "ICC register",
            Class::Redistributor => "redistributor register",
        }
    }

    /// How often a record may have this id: X29 and X30 are stored again as FP and LR.
    pub(super) fn occurrences(self, id: u32) -> usize {
        self.table().iter().filter(|register| register.id == id).count()
    }
}

const fn must(id: u32, name: &'static str) -> Register {
    Register { id, name, required: true }
}

const fn may(id: u32, name: &'static str) -> Register {
    Register { id, name, required: false }
}

/// `hv_reg_t`.
pub static GENERAL: [Register; 37] = [
    must(0, "X0"),
    must(1, "X1"),
    must(2, "X2"),
    must(3, "X3"),
    must(4, "X4"),
    must(5, "X5"),
    must(6, "X6"),
    must(7, "X7"),
    must(8, "X8"),
    must(9, "X9"),
    must(10, "X10"),
    must(11, "X11"),
    must(12, "X12"),
    must(13, "X13"),
    must(14, "X14"),
    must(15, "X15"),
    must(16, "X16"),
    must(17, "X17"),
    must(18, "X18"),
    must(19, "X19"),
    must(20, "X20"),
    must(21, "X21"),
    must(22, "X22"),
    must(23, "X23"),
    must(24, "X24"),
    must(25, "X25"),
    must(26, "X26"),
    must(27, "X27"),
    must(28, "X28"),
    must(29, "X29"),
    must(30, "X30"),
    must(29, "FP"),
    must(30, "LR"),
    must(31, "PC"),
    must(34, "CPSR"),
    must(32, "FPCR"),
    must(33, "FPSR"),
];

/// `hv_simd_fp_reg_t`.
pub static SIMD: [Register; 32] = [
    must(0, "Q0"),
    must(1, "Q1"),
    must(2, "Q2"),
    must(3, "Q3"),
    must(4, "Q4"),
    must(5, "Q5"),
    must(6, "Q6"),
    must(7, "Q7"),
    must(8, "Q8"),
    must(9, "Q9"),
    must(10, "Q10"),
    must(11, "Q11"),
    must(12, "Q12"),
    must(13, "Q13"),
    must(14, "Q14"),
    must(15, "Q15"),
    must(16, "Q16"),
    must(17, "Q17"),
    must(18, "Q18"),
    must(19, "Q19"),
    must(20, "Q20"),
    must(21, "Q21"),
    must(22, "Q22"),
    must(23, "Q23"),
    must(24, "Q24"),
    must(25, "Q25"),
    must(26, "Q26"),
    must(27, "Q27"),
    must(28, "Q28"),
    must(29, "Q29"),
    must(30, "Q30"),
    must(31, "Q31"),
];

/// `hv_sys_reg_t`. Those that must be there are those without which no guest goes on.
pub static SYSTEM: [Register; 37] = [
    may(0xc005, "MPIDR_EL1"),
    must(0xc080, "SCTLR_EL1"),
    may(0xc082, "CPACR_EL1"),
    must(0xc102, "TCR_EL1"),
    must(0xc100, "TTBR0_EL1"),
    must(0xc101, "TTBR1_EL1"),
    must(0xc510, "MAIR_EL1"),
    may(0xc518, "AMAIR_EL1"),
    must(0xc600, "VBAR_EL1"),
    may(0xc681, "CONTEXTIDR_EL1"),
    may(0xc684, "TPIDR_EL1"),
    may(0xc200, "SPSR_EL1"),
    may(0xc201, "ELR_EL1"),
    may(0xc208, "SP_EL0"),
    may(0xe208, "SP_EL1"),
    may(0xc290, "ESR_EL1"),
    may(0xc300, "FAR_EL1"),
    may(0xc3a0, "PAR_EL1"),
    may(0xde82, "TPIDR_EL0"),
    may(0xde83, "TPIDRRO_EL0"),
    may(0xc708, "CNTKCTL_EL1"),
    may(0xd000, "CSSELR_EL1"),
    may(0x8012, "MDSCR_EL1"),
    may(0xc108, "APIAKEYLO_EL1"),
    may(0xc109, "APIAKEYHI_EL1"),
    may(0xc10a, "APIBKEYLO_EL1"),
    may(0xc10b, "APIBKEYHI_EL1"),
    may(0xc110, "APDAKEYLO_EL1"),
    may(0xc111, "APDAKEYHI_EL1"),
    may(0xc112, "APDBKEYLO_EL1"),
    may(0xc113, "APDBKEYHI_EL1"),
    may(0xc118, "APGAKEYLO_EL1"),
    may(0xc119, "APGAKEYHI_EL1"),
    may(0xdf19, "CNTV_CTL_EL0"),
    may(0xdf1a, "CNTV_CVAL_EL0"),
    may(0xdf11, "CNTP_CTL_EL0"),
    may(0xdf12, "CNTP_CVAL_EL0"),
];

/// `hv_gic_icc_reg_t`.
pub static ICC: [Register; 10] = [
    may(0xc230, "ICC_PMR_EL1"),
    may(0xc643, "ICC_BPR0_EL1"),
    may(0xc663, "ICC_BPR1_EL1"),
    may(0xc644, "ICC_AP0R0_EL1"),
    may(0xc648, "ICC_AP1R0_EL1"),
    may(0xc65b, "ICC_RPR_EL1"),
    may(0xc664, "ICC_CTLR_EL1"),
    may(0xc665, "ICC_SRE_EL1"),
    may(0xc666, "ICC_IGRPEN0_EL1"),
    may(0xc667, "ICC_IGRPEN1_EL1"),
];

/// `hv_gic_redistributor_reg_t`. One that is missing would be taken for zero and silence interrupts: all must be there.
pub static REDISTRIBUTOR: [Register; 13] = [
    must(0x10080, "GICR_IGROUPR0"),
    must(0x10100, "GICR_ISENABLER0"),
    must(0x10c04, "GICR_ICFGR1"),
    must(0x10200, "GICR_ISPENDR0"),
    must(0x10300, "GICR_ISACTIVER0"),
    must(0x10400, "GICR_IPRIORITYR0"),
    must(0x10404, "GICR_IPRIORITYR1"),
    must(0x10408, "GICR_IPRIORITYR2"),
    must(0x1040c, "GICR_IPRIORITYR3"),
    must(0x10410, "GICR_IPRIORITYR4"),
    must(0x10414, "GICR_IPRIORITYR5"),
    must(0x10418, "GICR_IPRIORITYR6"),
    must(0x1041c, "GICR_IPRIORITYR7"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_occur_once_but_for_the_frame_pointer_and_the_link_register() {
        for class in [Class::General, Class::Simd, Class::System, Class::Icc, Class::Redistributor] {
            for register in class.table() {
                let pair = class == Class::General && [29, 30].contains(&register.id);
                assert_eq!(class.occurrences(register.id), 1 + usize::from(pair), "{register:?}");
            }
        }
    }
}
