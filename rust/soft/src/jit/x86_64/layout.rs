//! Where the state of the CPU is, as machine code reaches it.

use std::mem::offset_of;

use super::asm::{M, RBX, at};
use crate::Regs;
use crate::cpu::{Cpu, Jump};
use crate::interp::op::Op;
use crate::mem::TlbEntry;

/// RBX points so far into the CPU's state, which brings most of the registers within a byte's reach.
pub(super) const BIAS: i32 = 128;

const fn cpu(offset: usize) -> M {
    at(RBX, offset as i32 - BIAS)
}

/// A general register.
pub(super) fn x(g: u8) -> M {
    cpu(offset_of!(Cpu, state.regs) + offset_of!(Regs, x) + 8 * g as usize)
}

/// A vector register.
pub(super) fn v(g: u8) -> M {
    cpu(offset_of!(Cpu, state.regs) + offset_of!(Regs, v) + 16 * g as usize)
}

pub(super) const REGS: M = cpu(offset_of!(Cpu, state.regs));
pub(super) const NZCV: M = cpu(offset_of!(Cpu, state.regs) + offset_of!(Regs, nzcv));
pub(super) const FPCR: M = cpu(offset_of!(Cpu, state.regs) + offset_of!(Regs, fpcr));
pub(super) const FPSR: M = cpu(offset_of!(Cpu, state.regs) + offset_of!(Regs, fpsr));
pub(super) const FLAGS: M = cpu(offset_of!(Cpu, state.flags));
pub(super) const COMPARED: [M; 2] =
    [cpu(offset_of!(Cpu, state.compared)), cpu(offset_of!(Cpu, state.compared) + 8)];
pub(super) const PAGE: M = cpu(offset_of!(Cpu, page));
pub(super) const KEY: M = cpu(offset_of!(Cpu, key));
pub(super) const TLB: M = cpu(offset_of!(Cpu, tlb));
pub(super) const TAG: M = cpu(offset_of!(Cpu, tag));
pub(super) const FUEL: M = cpu(offset_of!(Cpu, fuel));
pub(super) const FP_TRAP: M = cpu(offset_of!(Cpu, fp_trap));
pub(super) const PC: M = cpu(offset_of!(Cpu, state.pc));
pub(super) const PATCH: M = cpu(offset_of!(Cpu, patch));
pub(super) const JUMPS: M = cpu(offset_of!(Cpu, jumps));

pub(super) const OP_HANDLER: i32 = offset_of!(Op, f) as i32;
/// A branch's target, 16 bits.
pub(super) const OP_TARGET: i32 = offset_of!(Op, c) as i32;
pub(super) const OP_IMM: i32 = offset_of!(Op, imm) as i32;

pub(super) const JUMP_KEY: i32 = offset_of!(Jump, key) as i32;
pub(super) const JUMP_OP: i32 = offset_of!(Jump, op) as i32;

pub(super) const TLB_READ: i32 = offset_of!(TlbEntry, read) as i32;
pub(super) const TLB_WRITE: i32 = offset_of!(TlbEntry, write) as i32;
pub(super) const TLB_ADDEND: i32 = offset_of!(TlbEntry, addend) as i32;

// What the code does with shifts and masks.
const _: () = assert!(size_of::<Jump>() == 16 && crate::cpu::JUMPS == 4096);
const _: () = assert!(size_of::<TlbEntry>() == 32 && crate::mem::TLB_SIZE == 1024);
const _: () = assert!(offset_of!(Op, d) == offset_of!(Op, c) + 1);
