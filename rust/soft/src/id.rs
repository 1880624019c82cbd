//! Register ids as Hypervisor.framework numbers them (hv_vcpu_types.h, hv_gic_types.h of the macOS 15 SDK).

use serde::{Deserialize, Serialize};

/// `hv_reg_t`: X0…X30 are 0…30, then PC, FPCR, FPSR, CPSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reg(pub u32);

impl Reg {
    /// X29, the frame pointer.
    pub const FP: Self = Self(29);
    /// X30, the link register.
    pub const LR: Self = Self(30);
    /// The address of the next instruction.
    pub const PC: Self = Self(31);
    /// Floating-point control.
    pub const FPCR: Self = Self(32);
    /// Floating-point status.
    pub const FPSR: Self = Self(33);
    /// PSTATE, in the form of SPSR_EL1.
    pub const CPSR: Self = Self(34);

    /// X`n`, `n` from 0 to 30.
    pub const fn x(n: u32) -> Self {
        assert!(n < 31);
        Self(n)
    }
}

/// `hv_simd_fp_reg_t`: Q0…Q31 are 0…31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SimdReg(pub u32);

/// `hv_sys_reg_t`: the register's encoding, `op0 << 14 | op1 << 11 | CRn << 7 | CRm << 3 | op2` (Arm ARM, C5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SysReg(pub u16);

impl SysReg {
    /// The id of the register that MRS and MSR name by these five fields.
    pub const fn new(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> Self {
        Self(op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
    }
}

macro_rules! sys_regs {
    ($($name:ident = $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal;)*) => {
        impl SysReg {
            $(#[doc = concat!("op0 ", $op0, ", op1 ", $op1, ", CRn ", $crn, ", CRm ", $crm, ", op2 ", $op2, ".")]
            pub const $name: Self = Self::new($op0, $op1, $crn, $crm, $op2);)*

            /// Those that a snapshot holds, in the order in which it holds them.
            pub const SNAPSHOT: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];

            /// Arm's name of a register of [`SysReg::SNAPSHOT`].
            pub(crate) fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

sys_regs! {
    MPIDR_EL1 = 3 0 0 0 5;
    SCTLR_EL1 = 3 0 1 0 0;
    CPACR_EL1 = 3 0 1 0 2;
    TCR_EL1 = 3 0 2 0 2;
    TTBR0_EL1 = 3 0 2 0 0;
    TTBR1_EL1 = 3 0 2 0 1;
    MAIR_EL1 = 3 0 10 2 0;
    AMAIR_EL1 = 3 0 10 3 0;
    VBAR_EL1 = 3 0 12 0 0;
    CONTEXTIDR_EL1 = 3 0 13 0 1;
    TPIDR_EL1 = 3 0 13 0 4;
    SPSR_EL1 = 3 0 4 0 0;
    ELR_EL1 = 3 0 4 0 1;
    SP_EL0 = 3 0 4 1 0;
    SP_EL1 = 3 4 4 1 0;
    ESR_EL1 = 3 0 5 2 0;
    FAR_EL1 = 3 0 6 0 0;
    PAR_EL1 = 3 0 7 4 0;
    TPIDR_EL0 = 3 3 13 0 2;
    TPIDRRO_EL0 = 3 3 13 0 3;
    CNTKCTL_EL1 = 3 0 14 1 0;
    CSSELR_EL1 = 3 2 0 0 0;
    MDSCR_EL1 = 2 0 0 2 2;
    APIAKEYLO_EL1 = 3 0 2 1 0;
    APIAKEYHI_EL1 = 3 0 2 1 1;
    APIBKEYLO_EL1 = 3 0 2 1 2;
    APIBKEYHI_EL1 = 3 0 2 1 3;
    APDAKEYLO_EL1 = 3 0 2 2 0;
    APDAKEYHI_EL1 = 3 0 2 2 1;
    APDBKEYLO_EL1 = 3 0 2 2 2;
    APDBKEYHI_EL1 = 3 0 2 2 3;
    APGAKEYLO_EL1 = 3 0 2 3 0;
    APGAKEYHI_EL1 = 3 0 2 3 1;
    CNTV_CTL_EL0 = 3 3 14 3 1;
    CNTV_CVAL_EL0 = 3 3 14 3 2;
    CNTP_CTL_EL0 = 3 3 14 2 1;
    CNTP_CVAL_EL0 = 3 3 14 2 2;
}

impl SysReg {
    /// Whether the debug unit is locked.
    pub const OSLSR_EL1: Self = Self::new(2, 0, 1, 1, 4);
    /// What a debugger has claimed.
    pub const DBGCLAIMCLR_EL1: Self = Self::new(2, 0, 7, 9, 6);

    /// Breakpoints' and watchpoints' value and control registers (DBGBVR<n>_EL1 to DBGWCR<n>_EL1), as many as there can
    /// be, and what else the debug unit keeps but MDSCR_EL1: its lock and the debugger's claim on it.
    pub const DEBUG: [Self; 66] = {
        let mut all = [Self::OSLSR_EL1; 66];
        let mut n = 0;
        while n < 64 {
            all[n] = Self::new(2, 0, 0, n as u16 / 4, 4 + n as u16 % 4);
            n += 1;
        }
        all[65] = Self::DBGCLAIMCLR_EL1;
        all
    };

    /// What DC ZVA zeroes.
    pub const DCZID_EL0: Self = Self::new(3, 3, 0, 0, 7);
    /// The exception mask, in bits 9 to 6.
    pub const DAIF: Self = Self::new(3, 3, 4, 2, 1);
    /// How floating point is done.
    pub const FPCR: Self = Self::new(3, 3, 4, 4, 0);

    /// The performance monitor's control register.
    pub const PMCR_EL0: Self = Self::new(3, 3, 9, 12, 0);

    /// What the performance monitor keeps: PMCR_EL0, PMSELR_EL0, PMUSERENR_EL0, PMCCFILTR_EL0, PMEVTYPER<n>_EL0,
    /// PMCCNTR_EL0, PMEVCNTR<n>_EL0, PMCNTENSET_EL0, PMINTENSET_EL1 and PMOVSSET_EL0.
    pub const PMU: [Self; 20] = {
        let mut all = [Self::PMCR_EL0; 20];
        all[1] = Self::new(3, 3, 9, 12, 5);
        all[2] = Self::new(3, 3, 9, 14, 0);
        all[3] = Self::new(3, 3, 14, 15, 7);
        all[4] = Self::new(3, 3, 9, 13, 0);
        all[5] = Self::new(3, 3, 9, 12, 1);
        all[6] = Self::new(3, 0, 9, 14, 1);
        all[7] = Self::new(3, 3, 9, 14, 3);
        let mut n = 0;
        while n < 6 {
            all[8 + n] = Self::new(3, 3, 14, 12, n as u16);
            all[14 + n] = Self::new(3, 3, 14, 8, n as u16);
            n += 1;
        }
        all
    };

    /// The value of one of [`SysReg::DEBUG`] or [`SysReg::PMU`] in a new vCPU: OSLSR_EL1 says that there is a lock,
    /// PMCR_EL0 that there are six event counters of 64 bits.
    pub fn at_rest(self) -> u64 {
        match self {
            Self::OSLSR_EL1 => 8,
            Self::PMCR_EL0 => 6 << 11 | 3 << 6,
            _ => 0,
        }
    }
}

/// `hv_gic_icc_reg_t`: the encoding of the ICC system register, as [`SysReg`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IccReg(pub u16);

macro_rules! icc_regs {
    ($($name:ident = $crn:literal $crm:literal $op2:literal;)*) => {
        impl IccReg {
            $(#[doc = concat!("ICC_", stringify!($name), ": CRn ", $crn, ", CRm ", $crm, ", op2 ", $op2, ".")]
            pub const $name: Self = Self(SysReg::new(3, 0, $crn, $crm, $op2).0);)*
        }
    };
}

icc_regs! {
    PMR_EL1 = 4 6 0;
    BPR0_EL1 = 12 8 3;
    BPR1_EL1 = 12 12 3;
    AP0R0_EL1 = 12 8 4;
    AP1R0_EL1 = 12 9 0;
    RPR_EL1 = 12 11 3;
    CTLR_EL1 = 12 12 4;
    SRE_EL1 = 12 12 5;
    IGRPEN0_EL1 = 12 12 6;
    IGRPEN1_EL1 = 12 12 7;
}

/// `hv_gic_redistributor_reg_t`: the offset from the redistributor's base (SGI frame at 0x10000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RedistReg(pub u32);
