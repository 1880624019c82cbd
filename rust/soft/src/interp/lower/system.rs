//! Hints, barriers and system registers.

use crate::id::SysReg;
use crate::interp::block::{Block, Flow};
use crate::interp::handlers::{alu, atomic, system as x};
use crate::interp::op::Handler;
use crate::isa::insn::{Barrier, Pstate, Reg};

/// DC ZVA, as SYS names it.
pub(crate) const DC_ZVA: u16 = 1 << 14 | 3 << 11 | 7 << 7 | 4 << 3 | 1;

/// Whether MSR of a register at EL1 keeps the value and does nothing else: a block goes on behind it.
pub(crate) fn is_kept(register: u16) -> bool {
    matches!(
        SysReg(register),
        SysReg::SP_EL0
            | SysReg::TPIDR_EL1
            | SysReg::TPIDRRO_EL0
            | SysReg::SPSR_EL1
            | SysReg::ELR_EL1
            | SysReg::ESR_EL1
            | SysReg::FAR_EL1
    )
}

const NZCV: SysReg = SysReg::new(3, 3, 4, 2, 0);

impl Block {
    pub(super) fn hint(&mut self, number: u8) -> Flow {
        match number {
            1 => self.end(x::hint_yield, 0, 0, 0),
            2 => self.end(x::wfe, 0, 0, 0),
            3 => self.end(x::wfi, 0, 0, 0),
            _ => self.on(alu::nop, [0; 4], 0),
        }
    }

    pub(super) fn barrier(&mut self, kind: Barrier, option: u8) -> Flow {
        let f: Handler = match (kind, option & 3) {
            (Barrier::Isb, _) => return self.end(x::isb, 0, 0, 0),
            (Barrier::Dsb, _) => x::dsb,
            (Barrier::Dmb, 1) => atomic::dmb_ld,
            (Barrier::Dmb, 2) => atomic::dmb_st,
            (Barrier::Dmb, _) => atomic::dmb,
        };
        self.on(f, [0; 4], 0)
    }

    pub(super) fn mrs(&mut self, t: Reg, register: u16) -> Flow {
        let f: Handler = match SysReg(register) {
            SysReg::TPIDR_EL0 => x::mrs_tpidr0,
            SysReg::TPIDR_EL1 => x::mrs_tpidr1,
            SysReg::SP_EL0 => x::mrs_sp0,
            NZCV => x::mrs_nzcv,
            _ => x::mrs,
        };
        self.on(f, [t, 0, 0, 0], u64::from(register))
    }

    pub(super) fn msr(&mut self, t: Reg, register: u16) -> Flow {
        let f: Handler = match SysReg(register) {
            SysReg::TPIDR_EL0 => x::msr_tpidr0,
            NZCV => x::msr_nzcv,
            _ if is_kept(register) => x::msr_kept,
            _ => return self.end(x::msr, t, 0, u64::from(register)),
        };
        self.on(f, [t, 0, 0, 0], u64::from(register))
    }

    pub(super) fn msr_imm(&mut self, field: Pstate, imm: u8) -> Flow {
        self.op(x::msr_imm, [field as u8, imm, 0, 0], 0);
        // Masking more lets nothing in that would need a look.
        if field == Pstate::DaifSet { Flow::On } else { Flow::End }
    }

    pub(super) fn sys(&mut self, t: Reg, op: u16) -> Flow {
        if op == DC_ZVA {
            return self.on(x::dc_zva, [t, 0, 0, 0], u64::from(op));
        }
        self.end(x::sys, t, 0, u64::from(op))
    }
}
