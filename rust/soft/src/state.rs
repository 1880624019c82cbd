//! The architectural state of a vCPU, by Arm's terms: what the guest can see, what a snapshot holds, and nothing else.

use crate::Regs;
use crate::interp::handlers::{Flags, sub_flags};
use crate::sysreg::Sys;

/// Bits of PSTATE.DAIF.
pub(crate) const DAIF_I: u8 = 2;
pub(crate) const DAIF_F: u8 = 1;

/// What an exclusive load remembers: the local monitor.
#[derive(Clone, Copy, Default)]
pub(crate) struct Monitor {
    /// 0 when open.
    pub size: u64,
    pub va: u64,
    pub value: [u64; 2],
}

/// The monitor's size where two registers of 4 bytes were loaded, which no store of 8 bytes follows.
pub(crate) const PAIR_OF_WORDS: u64 = 8 | 1;

/// Registers, PSTATE and system registers.
///
/// Machine code knows where these are (`jit/*/layout.rs`). The debug registers are in [`crate::debug::Debug`], those
/// of the interrupt controller in [`crate::gic`].
#[repr(C)]
pub(crate) struct State {
    /// General, vector and FP status registers. `nzcv` in here counts when `flags` says so, and the stack pointer is
    /// the one in use.
    pub regs: Regs,
    /// PSTATE.NZCV, or what it is to be worked out of.
    pub flags: Flags,
    pub compared: [u64; 2],
    pub pc: u64,
    /// SP_EL0 and SP_EL1, but for the one in use.
    pub sp: [u64; 2],
    /// PSTATE.EL, SP, DAIF (as in a register, shifted down), PAN.
    pub el: u8,
    pub spsel: bool,
    pub daif: u8,
    pub pan: bool,
    /// PSTATE.IL: the next instruction is an illegal-state exception.
    pub il: bool,
    /// PSTATE.SS: the next instruction runs before software step has its exception.
    pub ss: bool,
    pub monitor: Monitor,
    pub sys: Sys,
}

impl State {
    /// Of vCPU `index` at reset: EL1h, everything masked.
    pub(crate) fn new(index: u32) -> Self {
        Self {
            regs: Regs::default(),
            flags: Flags::Known,
            compared: [0; 2],
            pc: 0,
            sp: [0; 2],
            el: 1,
            spsel: true,
            daif: 15,
            pan: false,
            il: false,
            ss: false,
            monitor: Monitor::default(),
            sys: Sys::new(index),
        }
    }

    #[inline(always)]
    pub(crate) fn nzcv(&self) -> u32 {
        let [a, b] = self.compared;
        match self.flags {
            Flags::Known => self.regs.nzcv,
            Flags::Sub32 => sub_flags(a as u32, b as u32).1,
            Flags::Sub64 => sub_flags(a, b).1,
        }
    }

    #[inline(always)]
    pub(crate) fn set_nzcv(&mut self, v: u32) {
        self.regs.nzcv = v;
        self.flags = Flags::Known;
    }

    pub(crate) fn asid(&self) -> u64 {
        let ttbr = if self.sys.tcr >> 22 & 1 == 1 { self.sys.ttbr1 } else { self.sys.ttbr0 };
        ttbr >> 48 & 0xff
    }

    pub(crate) fn sp_index(&self) -> usize {
        usize::from(self.el == 1 && self.spsel)
    }

    pub(crate) fn read_sp(&self, which: usize) -> u64 {
        if which == self.sp_index() { self.regs.x[Regs::SP] } else { self.sp[which] }
    }

    pub(crate) fn write_sp(&mut self, which: usize, value: u64) {
        self.sp[which] = value;
        if which == self.sp_index() {
            self.regs.x[Regs::SP] = value;
        }
    }

    /// PSTATE as SPSR_EL1 holds it.
    pub(crate) fn pstate(&self) -> u64 {
        let mode = match (self.el, self.spsel) {
            (0, _) => 0,
            (_, false) => 4,
            (_, true) => 5,
        };
        u64::from(self.nzcv())
            | u64::from(self.pan) << 22
            | u64::from(self.ss) << 21
            | u64::from(self.il) << 20
            | u64::from(self.daif) << 6
            | mode
    }

    pub(crate) fn set_fpcr(&mut self, v: u64) {
        // AHP, DN, FZ, RMode, FZ16.
        self.regs.fpcr = v as u32 & 0x07c8_0000;
    }

    pub(crate) fn set_fpsr(&mut self, v: u64) {
        self.regs.fpsr = v as u32 & 0x0800_009f;
    }
}
