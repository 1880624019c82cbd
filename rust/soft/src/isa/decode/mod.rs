//! From instruction words to instructions (Arm ARM, C4.1).
//!
//! Each part of the encoding space gives what it has found to `to`. That is a call for each kind of instruction, so
//! that what the interpreter makes of one is compiled into the place where its kind is known: a match on [`Insn`] in
//! `to` costs nothing there.

mod alu;
mod branch;
mod memory;
mod simd;
mod system;

use super::insn::{Insn, Reg};
use crate::Regs;

/// What `to` makes of the instruction `i` at offset `off` of its page; `None` for an unallocated encoding.
#[inline]
pub(crate) fn decode_with<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> Option<T> {
    match bits(i, 28, 25) {
        0b1000 | 0b1001 => alu::immediate(i, off, to),
        0b1010 | 0b1011 => branch::branch_or_system(i, off, to),
        0b0100 | 0b0110 | 0b1100 | 0b1110 => memory::load_store(i, off, to),
        0b0101 | 0b1101 => alu::register(i, to),
        0b0111 | 0b1111 => Some(to(simd::vector(i))),
        _ => None,
    }
}

/// The instruction `i` at offset `off` of its page.
pub(crate) fn decode(i: u32, off: u16) -> Insn {
    decode_with(i, off, |insn| insn).unwrap_or(Insn::Undefined)
}

/// Whether `i` is a B.
pub(crate) fn always_branches(i: u32) -> bool {
    bits(i, 31, 26) == 0b000101
}

/// Whether `i` is a branch that is taken or not: B.cond, CBZ, TBZ and their opposites.
fn may_branch(i: u32) -> bool {
    bits(i, 31, 24) == 0x54 || bits(i, 30, 26) == 0b01101
}

/// Where in its page `i` at offset `off` goes on, if it is a branch without a link that may go there.
pub(crate) fn branch_in_page(i: u32, off: u16) -> Option<usize> {
    let distance = match () {
        () if always_branches(i) => sext(bits(i, 25, 0), 26),
        () if !may_branch(i) => return None,
        () if bits(i, 31, 24) != 0x54 && bits(i, 25, 25) == 1 => sext(bits(i, 18, 5), 14),
        () => sext(bits(i, 23, 5), 19),
    };
    let to = i64::from(off) + 4 * distance;
    (0..4096).contains(&to).then_some(to as usize)
}

/// Register number as a source where 31 is zero.
pub(super) fn z(n: u32) -> Reg {
    if n & 31 == 31 { Regs::ZERO as Reg } else { n as Reg & 31 }
}

/// Register number as a destination where 31 is nothing.
pub(super) fn d(n: u32) -> Reg {
    if n & 31 == 31 { Regs::SINK as Reg } else { n as Reg & 31 }
}

/// Register number where 31 is the stack pointer, or that of a vector register.
fn s(n: u32) -> Reg {
    n as Reg & 31
}

/// Bits `hi` to `lo`.
pub(super) fn bits(i: u32, hi: u32, lo: u32) -> u32 {
    i >> lo & (u32::MAX >> (31 - (hi - lo)))
}

/// `bits` low bits of `v`, sign-extended.
fn sext(v: u32, bits: u32) -> i64 {
    i64::from((v << (32 - bits)) as i32 >> (32 - bits))
}
