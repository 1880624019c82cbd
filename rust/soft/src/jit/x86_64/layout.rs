//! Where the state of the CPU is, as machine code reaches it.

use super::asm::{M, RBX, at};
use crate::jit::layout::offsets;

/// RBX points so far into the CPU's state, which brings most of the registers within a byte's reach.
pub(super) const BIAS: i32 = 128;

const fn cpu(offset: usize) -> M {
    at(RBX, offset as i32 - BIAS)
}

offsets! { cpu: cpu -> M, others: i32 }
