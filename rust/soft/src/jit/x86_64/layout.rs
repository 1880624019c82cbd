//! Where the state of the CPU is, as machine code reaches it.

use super::asm::{M, RBX, at};
use crate::jit::layout::offsets;

/// RBX points so far into the CPU's state, which brings most of the registers within a byte's reach.
pub(super) const BIAS: i32 = 128;

const fn cpu(offset: usize) -> M {
    at(RBX, offset as i32 - BIAS)
}

/// Whether debug events must be looked for.
pub(super) const DEBUG_ALERT: M = cpu(std::mem::offset_of!(crate::cpu::Cpu, debug.alert));
/// Whether a DSB has others to wait for.
pub(super) const BROADCAST: M = cpu(std::mem::offset_of!(crate::cpu::Cpu, broadcast));
/// Where it says what others have left.
pub(super) const LEFT_BY_OTHERS: M = cpu(std::mem::offset_of!(crate::cpu::Cpu, left_by_others));

offsets! { cpu: cpu -> M, others: i32 }
