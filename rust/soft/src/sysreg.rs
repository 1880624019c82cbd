//! System registers, system instructions and the generic timer (Arm ARM, D24 and C5).

use crate::cpu::Cpu;
use crate::debug::{self, BREAKPOINTS, WATCHPOINTS};
use crate::fp;
use crate::id::SysReg;
use crate::mmu::{Access, Fault, Translation};
use crate::pmu;
use crate::vm::{COUNTER_HZ, Request};

/// Interrupts of the timers (Arm BSA): virtual and physical.
const PPI_VIRTUAL: u32 = 27;
const PPI_PHYSICAL: u32 = 30;

/// CTR_EL0: data cleaned to the point of unification by hardware (IDC), PIPT; 4 KiB instruction lines, as that is what
/// is invalidated at once; 64-byte data lines.
const CTR: u64 = 1 << 31 | 1 << 28 | 4 << 24 | 4 << 20 | 4 << 16 | 3 << 14 | 10;
/// DC ZVA clears 64 bytes.
pub(crate) const ZVA_BYTES: u64 = 64;
const DCZID: u64 = 4;

/// System registers with their values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sys {
    pub mpidr: u64,
    pub sctlr: u64,
    pub cpacr: u64,
    pub tcr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub mair: u64,
    pub amair: u64,
    pub vbar: u64,
    pub contextidr: u64,
    pub tpidr_el1: u64,
    pub spsr: u64,
    pub elr: u64,
    pub esr: u64,
    pub far: u64,
    pub par: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub cntkctl: u64,
    pub csselr: u64,
    pub keys: [u64; 10],
    pub afsr: [u64; 2],
    pub actlr: u64,
    pub cntv_ctl: u64,
    pub cntv_cval: u64,
    pub cntp_ctl: u64,
    pub cntp_cval: u64,
}

impl Sys {
    pub(crate) fn new(index: u32) -> Self {
        Self {
            mpidr: 1 << 31 | u64::from(index),
            // RES1 bits of an EL1 without later extensions, and SPAN.
            sctlr: 0x30d0_0980,
            ..Self::default()
        }
    }
}

const fn id(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    SysReg::new(op0, op1, crn, crm, op2).0
}

/// Whether the FP module knows an instruction, which is what the ID registers say about it.
fn has(insn: u32) -> u64 {
    u64::from(fp::decode(insn).is_some())
}

/// ID registers and others that never change.
pub(crate) fn constant(r: u16) -> Option<u64> {
    // Half precision: FADD Hd, Hn, Hm.
    let half = has(0x1ee2_2820);
    Some(match r {
        // MIDR_EL1: implementer 0, for software.
        0xc000 => 0x000f_0530,
        // REVIDR_EL1, AIDR_EL1
        0xc006 | 0xc807 => 0,
        // ID_AA64PFR0_EL1: AArch64 only, GICv3 registers, CSV2 and CSV3.
        0xc020 => {
            let fp = if half == 1 { 0x11 << 16 } else { 0 };
            0x11 | fp | 1 << 24 | 1 << 56 | 1 << 60
        }
        // ID_AA64DFR0_EL1: Armv8.0 debug; one breakpoint compares contexts.
        0xc028 => 6 | pmu::VERSION << 8 | (BREAKPOINTS as u64 - 1) << 12 | (WATCHPOINTS as u64 - 1) << 20,
        // ID_AA64ISAR0_EL1
        0xc030 => {
            let aes = has(0x4e28_4820) + has(0x0ee0_e020) * has(0x4e28_4820);
            let sha1 = has(0x5e00_0020);
            let sha2 = has(0x5e02_4020);
            let sha512 = has(0xce62_8020) * sha2;
            let sha3 = has(0xce02_0c20);
            let rdm = has(0x2e82_8420);
            let dot = has(0x0e82_9420);
            let fhm = has(0x0e22_ec20);
            aes << 4
                | sha1 << 8
                | (sha2 + sha512) << 12
                | 1 << 16
                | 2 << 20
                | rdm << 28
                | sha3 << 32
                | dot << 44
                | fhm << 48
                | 2 << 52
        }
        // ID_AA64ISAR1_EL1: DC CVAP, JSCVT, FCMA, LRCPC2, FRINTTS, SB.
        0xc031 => {
            let jscvt = has(0x1e7e_0020);
            let fcma = has(0x2e82_c420);
            let frint = has(0x1e68_4020);
            1 | jscvt << 12 | fcma << 16 | 2 << 20 | frint << 32 | 1 << 36
        }
        // ID_AA64MMFR0_EL1: 40-bit addresses, 8-bit ASIDs, 4 KiB granule only.
        0xc038 => 2 | 0xf << 24,
        // ID_AA64MMFR1_EL1: PAN.
        0xc039 => 1 << 20,
        // The rest of the ID space reads as zero (D23.3.1); 32-bit ones included.
        0xc008..=0xc03f => 0,
        // CLIDR_EL1: one level of separate caches, unified at it.
        0xc801 => 1 << 27 | 1 << 21 | 1 << 24 | 3,
        // CCSIDR_EL1: 32 KiB, four ways, 64-byte lines.
        0xc800 => 127 << 13 | 3 << 3 | 2,
        // CTR_EL0, DCZID_EL0, CNTFRQ_EL0
        0xd801 => CTR,
        0xd807 => DCZID,
        0xdf00 => COUNTER_HZ,
        // RVBAR_EL1, ISR_EL1 is elsewhere; RNDR has no constant.
        0xc601 => 0,
        _ => return None,
    })
}

/// What no level that there is may write.
fn read_only(r: u16) -> bool {
    matches!(r, 0xc000..=0xc03f | 0xc800..=0xc807 | 0xd801 | 0xd807 | 0xdf00..=0xdf02)
}

/// What an access to a system register came to.
pub(crate) enum Sysop {
    Done,
    Undefined,
    /// To EL1 with EC 0x18.
    Trap,
    /// To EL1 with EC 7: FP is not enabled.
    FpTrap,
    /// A data abort of cache maintenance at this address.
    Fault(u64, Fault),
}

impl Cpu {
    /// The state that snapshots hold.
    pub(crate) fn sys_state(&self, r: SysReg) -> Option<u64> {
        Some(match r {
            SysReg::SP_EL0 => self.state.read_sp(0),
            SysReg::SP_EL1 => self.state.read_sp(1),
            SysReg::CNTV_CTL_EL0 => self.timer_ctl(true),
            SysReg::CNTP_CTL_EL0 => self.timer_ctl(false),
            SysReg::MPIDR_EL1 => self.state.sys.mpidr,
            r if debug::is_debug(r.0) => self.debug_state(r)?,
            r if pmu::is_pmu(r.0) => self.pmu.read(r.0, self.instructions(), self.state.el)?,
            r => *self.field_ref(r.0).or(None)?,
        })
        .or_else(|| constant(r.0))
    }

    pub(crate) fn set_sys_state(&mut self, r: SysReg, v: u64) -> Option<()> {
        match r {
            SysReg::SP_EL0 => self.state.write_sp(0, v),
            SysReg::SP_EL1 => self.state.write_sp(1, v),
            SysReg::MPIDR_EL1 => self.state.sys.mpidr = v | 1 << 31,
            r if debug::is_debug(r.0) => self.set_debug_state(r, v)?,
            r if pmu::is_pmu(r.0) => {
                self.pmu.restore(r.0, v, self.instructions(), self.state.el)?;
            }
            r => {
                if constant(r.0).is_some() {
                    return Some(());
                }
                *self.field(r.0)? = v;
                self.flush_tlb();
                self.regime();
                self.update_timers();
            }
        }
        Some(())
    }

    fn field_ref(&self, r: u16) -> Option<&u64> {
        let s = &self.state.sys;
        Some(match SysReg(r) {
            SysReg::SCTLR_EL1 => &s.sctlr,
            SysReg::CPACR_EL1 => &s.cpacr,
            SysReg::TCR_EL1 => &s.tcr,
            SysReg::TTBR0_EL1 => &s.ttbr0,
            SysReg::TTBR1_EL1 => &s.ttbr1,
            SysReg::MAIR_EL1 => &s.mair,
            SysReg::AMAIR_EL1 => &s.amair,
            SysReg::VBAR_EL1 => &s.vbar,
            SysReg::CONTEXTIDR_EL1 => &s.contextidr,
            SysReg::TPIDR_EL1 => &s.tpidr_el1,
            SysReg::SPSR_EL1 => &s.spsr,
            SysReg::ELR_EL1 => &s.elr,
            SysReg::ESR_EL1 => &s.esr,
            SysReg::FAR_EL1 => &s.far,
            SysReg::PAR_EL1 => &s.par,
            SysReg::TPIDR_EL0 => &s.tpidr_el0,
            SysReg::TPIDRRO_EL0 => &s.tpidrro_el0,
            SysReg::CNTKCTL_EL1 => &s.cntkctl,
            SysReg::CSSELR_EL1 => &s.csselr,
            SysReg::CNTV_CTL_EL0 => &s.cntv_ctl,
            SysReg::CNTV_CVAL_EL0 => &s.cntv_cval,
            SysReg::CNTP_CTL_EL0 => &s.cntp_ctl,
            SysReg::CNTP_CVAL_EL0 => &s.cntp_cval,
            SysReg(r) => match r {
                0xc081 => &s.actlr,
                0xc288 => &s.afsr[0],
                0xc289 => &s.afsr[1],
                0xc108..=0xc10b => &s.keys[r as usize - 0xc108],
                0xc110..=0xc113 => &s.keys[r as usize - 0xc110 + 4],
                0xc118..=0xc119 => &s.keys[r as usize - 0xc118 + 8],
                _ => return None,
            },
        })
    }

    fn field(&mut self, r: u16) -> Option<&mut u64> {
        let s = &mut self.state.sys;
        Some(match SysReg(r) {
            SysReg::SCTLR_EL1 => &mut s.sctlr,
            SysReg::CPACR_EL1 => &mut s.cpacr,
            SysReg::TCR_EL1 => &mut s.tcr,
            SysReg::TTBR0_EL1 => &mut s.ttbr0,
            SysReg::TTBR1_EL1 => &mut s.ttbr1,
            SysReg::MAIR_EL1 => &mut s.mair,
            SysReg::AMAIR_EL1 => &mut s.amair,
            SysReg::VBAR_EL1 => &mut s.vbar,
            SysReg::CONTEXTIDR_EL1 => &mut s.contextidr,
            SysReg::TPIDR_EL1 => &mut s.tpidr_el1,
            SysReg::SPSR_EL1 => &mut s.spsr,
            SysReg::ELR_EL1 => &mut s.elr,
            SysReg::ESR_EL1 => &mut s.esr,
            SysReg::FAR_EL1 => &mut s.far,
            SysReg::PAR_EL1 => &mut s.par,
            SysReg::TPIDR_EL0 => &mut s.tpidr_el0,
            SysReg::TPIDRRO_EL0 => &mut s.tpidrro_el0,
            SysReg::CNTKCTL_EL1 => &mut s.cntkctl,
            SysReg::CSSELR_EL1 => &mut s.csselr,
            SysReg::CNTV_CTL_EL0 => &mut s.cntv_ctl,
            SysReg::CNTV_CVAL_EL0 => &mut s.cntv_cval,
            SysReg::CNTP_CTL_EL0 => &mut s.cntp_ctl,
            SysReg::CNTP_CVAL_EL0 => &mut s.cntp_cval,
            SysReg(r) => match r {
                0xc081 => &mut s.actlr,
                0xc288 => &mut s.afsr[0],
                0xc289 => &mut s.afsr[1],
                0xc108..=0xc10b => &mut s.keys[r as usize - 0xc108],
                0xc110..=0xc113 => &mut s.keys[r as usize - 0xc110 + 4],
                0xc118..=0xc119 => &mut s.keys[r as usize - 0xc118 + 8],
                _ => return None,
            },
        })
    }

    /// Whether EL0 may access what its encoding (op1 = 3) lets it; `Some` is what happens instead.
    fn el0_bar(&self, r: u16, write: bool) -> Option<Sysop> {
        if self.state.el != 0 {
            return None;
        }
        if r >> 11 & 7 != 3 || write && read_only(r) {
            return Some(Sysop::Undefined);
        }
        let s = &self.state.sys;
        let barred = match r {
            0xdcf0 if write => return Some(Sysop::Undefined),
            r if pmu::is_pmu(r) => !self.pmu.is_open(r, write),
            // CTR_EL0: SCTLR_EL1.UCT.
            0xd801 => s.sctlr >> 15 & 1 == 0,
            // CNTPCT, CNTVCT, CNTFRQ.
            0xdf01 => s.cntkctl & 1 == 0,
            0xdf02 => s.cntkctl & 2 == 0,
            0xdf00 => s.cntkctl & 3 == 0,
            // CNTP_* and CNTV_*.
            0xdf10..=0xdf12 => s.cntkctl >> 9 & 1 == 0,
            0xdf18..=0xdf1a => s.cntkctl >> 8 & 1 == 0,
            // DAIF: SCTLR_EL1.UMA.
            0xda11 => s.sctlr >> 9 & 1 == 0,
            0xde83 if write => return Some(Sysop::Undefined),
            // What only EL1 has in this space.
            _ => false,
        };
        barred.then_some(Sysop::Trap)
    }

    /// MRS: the value, or what happens instead.
    pub(crate) fn mrs(&mut self, r: u16) -> Result<u64, Sysop> {
        if debug::is_debug(r) {
            return self.debug_read(r);
        }
        if let Some(bar) = self.el0_bar(r, false) {
            return Err(bar);
        }
        Ok(match r {
            // MPIDR_EL1
            0xc005 => self.state.sys.mpidr,
            // SP_EL0, SP_EL1 (from EL2 only)
            0xc208 if self.state.spsel => self.state.read_sp(0),
            // SPSel, CurrentEL, PAN
            0xc210 => u64::from(self.state.spsel),
            0xc212 => u64::from(self.state.el) << 2,
            0xc213 => u64::from(self.state.pan) << 22,
            // NZCV, DAIF, FPCR, FPSR
            0xda10 => u64::from(self.nzcv()),
            0xda11 => u64::from(self.state.daif) << 6,
            0xda20 | 0xda21 if self.fp_trap => return Err(Sysop::FpTrap),
            0xda20 => u64::from(self.state.regs.fpcr),
            0xda21 => u64::from(self.state.regs.fpsr),
            // CNTPCT, CNTVCT and their self-synchronised forms
            0xdf01 => self.vm.counter(),
            0xdf02 => self.virtual_counter(),
            // Timers
            0xdf11 => self.timer_ctl(false),
            0xdf19 => self.timer_ctl(true),
            0xdf10 => u64::from(self.state.sys.cntp_cval.wrapping_sub(self.vm.counter()) as u32),
            0xdf18 => u64::from(self.state.sys.cntv_cval.wrapping_sub(self.virtual_counter()) as u32),
            r if pmu::is_pmu(r) => {
                self.pmu.read(r, self.reached_instructions(), self.state.el).ok_or(Sysop::Undefined)?
            }
            // ISR_EL1
            0xc608 => {
                let g = &self.vm.gic;
                u64::from(g.irq_pending(self.index)) << 7 | u64::from(g.fiq_pending(self.index)) << 6
            }
            _ => {
                if let Some(v) = self.field_ref(r) {
                    *v
                } else if let Some(v) = constant(r) {
                    v
                } else if let Some(v) = self.vm.gic.icc_read(self.index, r) {
                    v
                } else {
                    return Err(Sysop::Undefined);
                }
            }
        })
    }

    /// MSR (register).
    pub(crate) fn msr(&mut self, r: u16, v: u64) -> Sysop {
        if debug::is_debug(r) {
            return self.debug_write(r, v);
        }
        if let Some(bar) = self.el0_bar(r, true) {
            return bar;
        }
        match r {
            0xc208 if self.state.spsel => self.state.write_sp(0, v),
            0xc210 => self.set_spsel(v & 1 == 1),
            0xc213 => self.set_pan(v >> 22 & 1 == 1),
            0xda10 => self.set_nzcv(v as u32 & 0xf000_0000),
            0xda11 => self.state.daif = (v >> 6 & 15) as u8,
            0xda20 | 0xda21 if self.fp_trap => return Sysop::FpTrap,
            0xda20 => self.state.set_fpcr(v),
            0xda21 => self.state.set_fpsr(v),
            0xdf11 => {
                self.state.sys.cntp_ctl = v & 3;
                self.update_timers();
            }
            0xdf19 => {
                self.state.sys.cntv_ctl = v & 3;
                self.update_timers();
            }
            0xdf12 => {
                self.state.sys.cntp_cval = v;
                self.update_timers();
            }
            0xdf1a => {
                self.state.sys.cntv_cval = v;
                self.update_timers();
            }
            0xdf10 => {
                self.state.sys.cntp_cval = self.vm.counter().wrapping_add(v as i32 as u64);
                self.update_timers();
            }
            0xdf18 => {
                self.state.sys.cntv_cval = self.virtual_counter().wrapping_add(v as i32 as u64);
                self.update_timers();
            }
            r if pmu::is_pmu(r) => {
                let now = self.reached_instructions();
                if self.pmu.write(r, v, now, self.state.el).is_none() {
                    return Sysop::Undefined;
                }
                self.tell_overflow();
            }
            r if read_only(r) => return Sysop::Undefined,
            _ => {
                if self.state.el == 0 && !matches!(SysReg(r), SysReg::TPIDR_EL0) {
                    return Sysop::Undefined;
                }
                let Some(f) = self.field(r) else {
                    let known = self.vm.gic.icc_write(self.index, r, v);
                    return if known { Sysop::Done } else { Sysop::Undefined };
                };
                let old = std::mem::replace(f, v);
                match SysReg(r) {
                    SysReg::SCTLR_EL1 => {
                        // M, A, WXN and what else may be behind cached translations.
                        if old != v {
                            self.flush_tlb();
                        }
                        self.regime();
                    }
                    SysReg::CPACR_EL1 => self.regime(),
                    SysReg::TCR_EL1 => {
                        if old != v {
                            self.flush_tlb();
                        }
                        self.regime();
                    }
                    SysReg::TTBR0_EL1 | SysReg::TTBR1_EL1 => self.address_space_changed(),
                    SysReg::CONTEXTIDR_EL1 => self.context_changed(),
                    SysReg::VBAR_EL1 => self.state.sys.vbar = v & !0x7ff,
                    _ => {}
                }
            }
        }
        Sysop::Done
    }

    fn walk_without_pan(&mut self, va: u64, access: Access, el0: bool) -> Result<Translation, Fault> {
        let pan = std::mem::replace(&mut self.state.pan, false);
        let translation = self.walk(va, access, el0);
        self.state.pan = pan;
        translation
    }

    pub(crate) fn virtual_counter(&self) -> u64 {
        self.vm.counter().wrapping_sub(self.timer_offset)
    }

    /// CNTV_CTL_EL0 or CNTP_CTL_EL0 with ISTATUS.
    fn timer_ctl(&self, virt: bool) -> u64 {
        let (ctl, cval, now) = if virt {
            (self.state.sys.cntv_ctl, self.state.sys.cntv_cval, self.virtual_counter())
        } else {
            (self.state.sys.cntp_ctl, self.state.sys.cntp_cval, self.vm.counter())
        };
        ctl & 3 | u64::from(ctl & 1 == 1 && now >= cval) << 2
    }

    /// Brings the timers' interrupt lines and the next deadline up to date.
    pub(crate) fn update_timers(&mut self) {
        let (v, p) = (self.timer_ctl(true), self.timer_ctl(false));
        self.vm.gic.set_ppi(self.index, PPI_VIRTUAL, v & 7 == 5 && !self.timer_mask);
        self.vm.gic.set_ppi(self.index, PPI_PHYSICAL, p & 7 == 5);
        // Only timers that are on, not masked and not yet due have a deadline.
        let virt = (v == 1).then(|| self.state.sys.cntv_cval.saturating_add(self.timer_offset));
        let phys = (p == 1).then_some(self.state.sys.cntp_cval);
        let at = match (virt, phys) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.deadline = at.unwrap_or(u64::MAX);
    }

    /// Has the interrupt line of the performance monitor follow its overflows.
    fn tell_overflow(&mut self) {
        let level = self.pmu.interrupt();
        if level != self.pmu.line {
            self.pmu.line = level;
            self.vm.gic.set_ppi(self.index, pmu::PPI, level);
        }
    }

    /// What the performance monitor has counted at the level that is left, before the vCPU goes on at `el`.
    #[cold]
    pub(crate) fn count_at_another_level(&mut self, el: u8) {
        self.pmu.advance(self.instructions(), self.state.el);
        self.pmu.plan(el);
        self.tell_overflow();
    }

    /// A counter may have overflowed.
    #[cold]
    pub(crate) fn look_for_overflow(&mut self) {
        self.count_at_another_level(self.state.el);
    }

    /// The interrupt controller's state may have come anew.
    pub(crate) fn tell_overflow_again(&mut self) {
        self.pmu.plan(self.state.el);
        self.pmu.line = false;
        self.tell_overflow();
    }

    /// Brings the timers up to date if one has become due, and lets go of what was held for long enough.
    pub(crate) fn look_at_deadline(&mut self) {
        let now = self.vm.counter();
        if now >= self.deadline {
            self.update_timers();
        }
        if now >= self.held_until {
            self.let_go();
        }
    }

    /// SYS: cache, TLB and address translation instructions.
    pub(crate) fn sys_op(&mut self, r: u16, v: u64) -> Sysop {
        let (crn, crm, op1, op2) = (r >> 7 & 15, r >> 3 & 15, r >> 11 & 7, r & 7);
        if self.state.el == 0 {
            // IC IVAU; DC CVAC, CVAU, CVAP and CIVAC.
            if !matches!((op1, crn, crm, op2), (3, 7, 5, 1) | (3, 7, 10 | 11 | 12 | 14, 1)) {
                return Sysop::Undefined;
            }
            // SCTLR_EL1.UCI.
            if self.state.sys.sctlr >> 26 & 1 == 0 {
                return Sysop::Trap;
            }
        }
        match (op1, crn, crm, op2) {
            // IC IALLUIS, IALLU
            (0, 7, 1, 0) => self.everywhere(Request::Code),
            (0, 7, 5, 0) => self.flush_code(),
            // IC IVAU
            (3, 7, 5, 1) => {
                let el0 = self.state.el == 0;
                let t = self.walk(v, Access::Read, el0).or_else(|_| self.walk(v, Access::Execute, el0));
                // EL1 may not be able to read what it maintains: PAN is not for such instructions.
                match t.or_else(|_| self.walk_without_pan(v, Access::Read, el0)) {
                    Ok(t) => self.everywhere(Request::CodePage(t.pa)),
                    Err(fault) => return Sysop::Fault(v, fault),
                }
            }
            // DC by set and way: caches are always clean.
            (0, 7, 6 | 10 | 14, 2) => {}
            // DC by address, IVAC and CVAC, CVAU, CVAP, CIVAC: there is only whether the address is one (C5.3).
            (0, 7, 6, 1) | (3, 7, 10 | 11 | 12 | 14, 1) => {
                let access = if op1 == 0 { Access::Write } else { Access::Read };
                if let Err(fault) = self.walk_without_pan(v, access, self.state.el == 0) {
                    return Sysop::Fault(v, fault);
                }
            }
            // AT S1E1R, S1E1W, S1E0R, S1E0W
            (0, 7, 8, 0..=3) => {
                let access = if op2 & 1 == 1 { Access::Write } else { Access::Read };
                self.state.sys.par = match self.walk_without_pan(v, access, op2 & 2 != 0) {
                    Ok(t) => {
                        let attr = self.state.sys.mair >> (8 * (t.attributes & 7)) & 0xff;
                        t.pa & 0xff_ffff_f000 | attr << 56 | (t.attributes >> 3) << 7 | 1 << 11
                    }
                    Err(f) => 1 | u64::from(f.0) << 1 | 1 << 11,
                };
            }
            // TLBI, inner shareable and local
            (0, 8, 3, 0) => self.everywhere(Request::TlbAll),
            (0, 8, 7, 0) => self.flush_tlb(),
            (0, 8, 3, 1 | 3 | 5 | 7) => self.everywhere(Request::TlbVa(v << 12)),
            (0, 8, 7, 1 | 3 | 5 | 7) => self.flush_tlb_va(v << 12),
            (0, 8, 3, 2) => self.everywhere(Request::TlbAsid(v >> 48 & 0xff)),
            (0, 8, 7, 2) => self.flush_tlb_asid(v >> 48 & 0xff),
            _ => return Sysop::Undefined,
        }
        Sysop::Done
    }
}

const _: () =
    assert!(id(3, 3, 14, 0, 2) == 0xdf02 && id(3, 0, 4, 1, 0) == 0xc208 && id(2, 0, 1, 0, 4) == 0x8084);
