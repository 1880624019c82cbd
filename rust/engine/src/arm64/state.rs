//! What a snapshot holds of a vCPU with the shape of Hypervisor.framework, and the order in which it goes back.
//!
//! The registers are those of the snapshot format in the field (version 8), so that its files can be made from this
//! state and turned into it.

use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use super::{IccReg, RedistReg, Reg, SimdReg, SysReg, Vcpu};
use crate::Result;

/// Version of the encoding that [`VcpuState::encode`] gives.
pub const VERSION: u32 = 1;

/// General registers, in the order of the snapshot format; X29 and X30 occur twice there, by either name.
pub const GENERAL: [Reg; 37] = {
    let mut registers = [Reg::PC; 37];
    let mut n = 0;
    let mut number = 0;
    while n < 31 {
        registers[n] = Reg::x(number);
        n += 1;
        number += 1;
    }
    let rest = [Reg::FP, Reg::LR, Reg::PC, Reg::CPSR, Reg::FPCR, Reg::FPSR];
    while n < registers.len() {
        registers[n] = rest[n - 31];
        n += 1;
    }
    registers
};

/// System registers, in the order of the snapshot format.
pub const SYSTEM: [SysReg; 37] = SysReg::SNAPSHOT;

/// Registers of the debug unit, which are saved behind those, and only what differs from a new vCPU's: a guest that is
/// not debugged has none of them in its files.
pub const DEBUG: [SysReg; 66] = SysReg::DEBUG;

/// Registers of the performance monitor, likewise behind those of the debug unit.
pub const PMU: [SysReg; 20] = SysReg::PMU;

/// System registers without which a guest cannot go on: a failure to set one is an error.
pub const ESSENTIAL: [SysReg; 6] = [
    SysReg::SCTLR_EL1,
    SysReg::TCR_EL1,
    SysReg::TTBR0_EL1,
    SysReg::TTBR1_EL1,
    SysReg::MAIR_EL1,
    SysReg::VBAR_EL1,
];

/// CPU interface registers, in the order of the snapshot format.
pub const ICC: [IccReg; 10] = [
    IccReg::PMR_EL1,
    IccReg::BPR0_EL1,
    IccReg::BPR1_EL1,
    IccReg::AP0R0_EL1,
    IccReg::AP1R0_EL1,
    IccReg::RPR_EL1,
    IccReg::CTLR_EL1,
    IccReg::SRE_EL1,
    IccReg::IGRPEN0_EL1,
    IccReg::IGRPEN1_EL1,
];

/// GICR_IGROUPR0, GICR_ISENABLER0, GICR_ICFGR1, GICR_ISPENDR0, GICR_ISACTIVER0 (Arm IHI 0069, 12.11).
const IGROUPR0: RedistReg = RedistReg(0x1_0080);
const ISENABLER0: RedistReg = RedistReg(0x1_0100);
const ICFGR1: RedistReg = RedistReg(0x1_0c04);
const ISPENDR0: RedistReg = RedistReg(0x1_0200);
const ISACTIVER0: RedistReg = RedistReg(0x1_0300);
const IPRIORITYR0: u32 = 0x1_0400;
/// From a set register to its clear register.
const CLEAR: u32 = 0x80;

/// Redistributor registers, in the order of the snapshot format.
pub const REDISTRIBUTOR: [RedistReg; 13] = [
    IGROUPR0,
    ISENABLER0,
    ICFGR1,
    ISPENDR0,
    ISACTIVER0,
    RedistReg(IPRIORITYR0),
    RedistReg(IPRIORITYR0 + 4),
    RedistReg(IPRIORITYR0 + 8),
    RedistReg(IPRIORITYR0 + 12),
    RedistReg(IPRIORITYR0 + 16),
    RedistReg(IPRIORITYR0 + 20),
    RedistReg(IPRIORITYR0 + 24),
    RedistReg(IPRIORITYR0 + 28),
];

/// INTID of the virtual timer, a private interrupt (Arm BSA, 3.8.3).
const VTIMER_PPI: u32 = 27;
/// CNTV_CTL_EL0 (Arm ARM, D24.12.18).
const TIMER_ENABLE: u64 = 1;
const TIMER_IMASK: u64 = 2;

/// Why saved state was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no state of a vCPU's.
    #[error("a vCPU's saved state cannot be decoded: {0}")]
    Encoding(postcard::Error),
    /// More bytes follow it.
    #[error("a vCPU's saved state ends {0} bytes before its data does")]
    Trailing(usize),
    /// A register that every vCPU has.
    #[error("a vCPU's saved state lacks {0}")]
    Missing(String),
    /// A register that no vCPU has.
    #[error("a vCPU's saved state holds {0}, which no snapshot does")]
    Unknown(String),
    /// A value that its register does not take.
    #[error("{register} cannot be restored: {reason}")]
    Register {
        /// By Arm's name, or its id.
        register: String,
        /// What the engine says of it.
        reason: String,
    },
}

/// The registers of one vCPU, by Hypervisor.framework's ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// What was taken from the host's counter to make CNTVCT_EL0.
    pub vtimer_offset: u64,
    /// X0 to X30, PC, FPCR, FPSR and CPSR.
    pub general: Vec<(Reg, u64)>,
    /// Q0 to Q31.
    pub simd: Vec<(SimdReg, u128)>,
    /// Those of EL1 and EL0.
    pub system: Vec<(SysReg, u64)>,
    /// The GIC's CPU interface.
    pub icc: Vec<(IccReg, u64)>,
    /// The vCPU's redistributor, with its private interrupts.
    pub redistributor: Vec<(RedistReg, u64)>,
}

saved_structure!(VcpuState {
    vtimer_offset: u64,
    general: Vec<(Reg, u64)>,
    simd: Vec<(SimdReg, u128)>,
    system: Vec<(SysReg, u64)>,
    icc: Vec<(IccReg, u64)>,
    redistributor: Vec<(RedistReg, u64)>
});

/// The guest's virtual time as a vCPU goes back to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// One offset for all vCPUs of a machine: what is taken from the host's counter to make CNTVCT_EL0.
    pub vtimer_offset: u64,
    /// CNTVCT_EL0 as the restore began, in ticks.
    pub virtual_count: u64,
}

impl Clock {
    /// Lets the virtual counter go on from `captured_cntvct`, wherever the host's counter is.
    pub fn resuming(captured_cntvct: u64, host_counter: u64) -> Self {
        Self { vtimer_offset: host_counter.wrapping_sub(captured_cntvct), virtual_count: captured_cntvct }
    }
}

/// One step of a restore. A step relies on those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Translation, exceptions, keys and timers' registers.
    System,
    /// ICC_SRE_EL1, which gates the other CPU interface registers.
    IccEnable,
    /// Priorities and masks.
    IccState,
    /// ICC_IGRPEN0/1_EL1: delivery, only once priorities and masks are back.
    IccGroups,
    /// Q0 to Q31.
    Simd,
    /// Groups, trigger modes and priorities of private interrupts.
    RedistributorConfig,
    /// Their enabled, pending and active bits: cleared, then set, since a write of zeros to a set register does
    /// nothing and reset state would shine through.
    RedistributorBits,
    /// The coherent offset, before it is decided whether a deadline has passed.
    VtimerOffset,
    /// Has the engine look at the timer again.
    VtimerUnmask,
    /// A deadline that has passed fires at once.
    VtimerDeadline,
    /// PC and CPSR complete the vCPU.
    General,
}

/// The order that works (snapshot format reference, "Restore order of one vCPU").
pub const ORDER: [Step; 11] = [
    Step::System,
    Step::IccEnable,
    Step::IccState,
    Step::IccGroups,
    Step::Simd,
    Step::RedistributorConfig,
    Step::RedistributorBits,
    Step::VtimerOffset,
    Step::VtimerUnmask,
    Step::VtimerDeadline,
    Step::General,
];

impl VcpuState {
    /// Reads every register of a vCPU that is out of the guest. System and CPU interface registers that this engine
    /// does not have are left out, but for the essential ones.
    pub fn capture<V: Vcpu + ?Sized>(vcpu: &V) -> Result<Self> {
        let mut state = Self { vtimer_offset: vcpu.vtimer_offset(), ..Self::default() };
        for register in GENERAL {
            state.general.push((register, vcpu.reg(register)?));
        }
        for n in 0..32 {
            state.simd.push((SimdReg(n), vcpu.simd_reg(SimdReg(n))?));
        }
        for register in SYSTEM {
            match vcpu.sys_reg(register) {
                Ok(value) => state.system.push((register, value)),
                Err(error) if ESSENTIAL.contains(&register) => return Err(error),
                Err(_) => {}
            }
        }
        for register in DEBUG.into_iter().chain(PMU) {
            // An engine has as many as its CPU.
            if let Ok(value) = vcpu.sys_reg(register)
                && value != register.at_rest()
            {
                state.system.push((register, value));
            }
        }
        for register in ICC {
            if let Ok(value) = vcpu.icc_reg(register) {
                state.icc.push((register, value));
            }
        }
        for register in REDISTRIBUTOR {
            state.redistributor.push((register, vcpu.redist_reg(register)?));
        }
        Ok(state)
    }

    /// Checks that every register is known and none is there twice or missing that must be there.
    pub fn check(&self) -> std::result::Result<(), Error> {
        let Self { general, simd, system, icc, redistributor, .. } = self;
        exact("general register", general, &GENERAL)?;
        exact("vector register", simd, &(0..32).map(SimdReg).collect::<Vec<_>>())?;
        known("system register", system, &[&SYSTEM[..], &DEBUG, &PMU].concat())?;
        known("CPU interface register", icc, &ICC)?;
        exact("redistributor register", redistributor, &REDISTRIBUTOR)?;
        match ESSENTIAL.iter().find(|register| !system.iter().any(|(id, _)| id == *register)) {
            Some(register) => Err(Error::Missing(format!("system register {register:?}"))),
            None => Ok(()),
        }
    }

    /// The encoding that a snapshot holds.
    pub fn encode(&self) -> Result<Vec<u8>> {
        postcard::to_stdvec(self).map_err(|e| Error::Encoding(e).into())
    }

    /// The state that [`VcpuState::encode`] gave, checked.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (state, rest) = postcard::take_from_bytes::<Self>(bytes).map_err(Error::Encoding)?;
        if !rest.is_empty() {
            return Err(Error::Trailing(rest.len()).into());
        }
        state.check()?;
        Ok(state)
    }

    /// Puts everything back, in the order that works.
    pub fn restore<V: Vcpu + ?Sized>(&self, vcpu: &mut V, clock: Clock) -> Result<()> {
        self.restore_in_order(vcpu, clock, &ORDER)
    }

    /// Takes these steps in this order: for tests that show what the order is good for.
    pub fn restore_in_order<V: Vcpu + ?Sized>(
        &self,
        vcpu: &mut V,
        clock: Clock,
        steps: &[Step],
    ) -> Result<()> {
        steps.iter().try_for_each(|step| self.take(*step, vcpu, clock))
    }

    fn take<V: Vcpu + ?Sized>(&self, step: Step, vcpu: &mut V, clock: Clock) -> Result<()> {
        match step {
            Step::System => {
                for (register, value) in &self.system {
                    match vcpu.set_sys_reg(*register, *value) {
                        Err(error) if ESSENTIAL.contains(register) => return Err(error),
                        // Read-only on this engine, and so the same as it was.
                        _ => {}
                    }
                }
            }
            Step::IccEnable => self.set_icc(vcpu, |register| register == IccReg::SRE_EL1)?,
            Step::IccState => self.set_icc(vcpu, |register| {
                // RPR follows from the active priorities and is read-only (Arm IHI 0069, 12.2.19).
                ![IccReg::SRE_EL1, IccReg::RPR_EL1, IccReg::IGRPEN0_EL1, IccReg::IGRPEN1_EL1]
                    .contains(&register)
            })?,
            Step::IccGroups => {
                self.set_icc(vcpu, |register| [IccReg::IGRPEN0_EL1, IccReg::IGRPEN1_EL1].contains(&register))?
            }
            Step::Simd => {
                for (register, value) in &self.simd {
                    vcpu.set_simd_reg(*register, *value)?;
                }
            }
            Step::RedistributorConfig => {
                for (register, value) in &self.redistributor {
                    if ![ISENABLER0, ISPENDR0, ISACTIVER0].contains(register) {
                        vcpu.set_redist_reg(*register, *value)?;
                    }
                }
            }
            Step::RedistributorBits => {
                for set in [ISENABLER0, ISPENDR0, ISACTIVER0] {
                    if let Some((_, value)) = self.redistributor.iter().find(|(id, _)| *id == set) {
                        vcpu.set_redist_reg(RedistReg(set.0 + CLEAR), u32::MAX.into())?;
                        vcpu.set_redist_reg(set, *value)?;
                    }
                }
            }
            Step::VtimerOffset => vcpu.set_vtimer_offset(clock.vtimer_offset)?,
            Step::VtimerUnmask => vcpu.set_vtimer_mask(false)?,
            Step::VtimerDeadline => {
                // A deadline that has not passed stays: the engine's timer meets it. One that has is due now, and the
                // engine may have dropped its edge with the mask.
                let live = self.system(SysReg::CNTV_CTL_EL0).unwrap_or(0) & (TIMER_ENABLE | TIMER_IMASK);
                let deadline = self.system(SysReg::CNTV_CVAL_EL0).unwrap_or(u64::MAX);
                if live == TIMER_ENABLE && deadline <= clock.virtual_count {
                    vcpu.set_redist_reg(ISPENDR0, 1 << VTIMER_PPI)?;
                }
            }
            Step::General => {
                for (register, value) in &self.general {
                    vcpu.set_reg(*register, *value)?;
                }
            }
        }
        Ok(())
    }

    /// A saved system register's value.
    pub fn system(&self, register: SysReg) -> Option<u64> {
        self.system.iter().find(|(id, _)| *id == register).map(|(_, value)| *value)
    }

    fn set_icc<V: Vcpu + ?Sized>(&self, vcpu: &mut V, which: impl Fn(IccReg) -> bool) -> Result<()> {
        for (register, value) in &self.icc {
            if which(*register) {
                vcpu.set_icc_reg(*register, *value)?;
            }
        }
        Ok(())
    }
}

/// All of `expected`, in that order, and nothing else.
fn exact<R: PartialEq + std::fmt::Debug, T>(
    what: &str,
    found: &[(R, T)],
    expected: &[R],
) -> std::result::Result<(), Error> {
    known(what, found, expected)?;
    for (n, register) in expected.iter().enumerate() {
        if found.get(n).is_none_or(|(id, _)| id != register) {
            return Err(Error::Missing(format!("{what} {register:?} in place {n}")));
        }
    }
    Ok(())
}

/// Nothing but what `expected` holds, and nothing more often.
fn known<R: PartialEq + std::fmt::Debug, T>(
    what: &str,
    found: &[(R, T)],
    expected: &[R],
) -> std::result::Result<(), Error> {
    for (id, _) in found {
        let times = found.iter().filter(|(other, _)| other == id).count();
        let allowed = expected.iter().filter(|other| *other == id).count();
        match (allowed, times > allowed) {
            (0, _) => return Err(Error::Unknown(format!("{what} {id:?}"))),
            (_, true) => return Err(Error::Unknown(format!("{what} {id:?} more than once"))),
            _ => {}
        }
    }
    Ok(())
}
