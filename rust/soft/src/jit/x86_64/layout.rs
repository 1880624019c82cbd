//! Where the state of the CPU is, as machine code reaches it.

use super::asm::{M, RBX, at};
use crate::jit::layout::offsets;

/// RBX points so far into the CPU's state, which brings most of the registers within a byte's reach.
pub(super) const BIAS: i32 = 128;

const fn cpu(offset: usize) -> M {
    at(RBX, offset as i32 - BIAS)
}

/// SCTLR_EL1.
pub(super) const SCTLR: M = cpu(std::mem::offset_of!(crate::cpu::Cpu, state.sys.sctlr));

offsets! { cpu: cpu -> M, others: i32 }
