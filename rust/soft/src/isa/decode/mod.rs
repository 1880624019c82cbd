//! From instruction words to instructions (Arm ARM, C4.1).
//!
//! Each part of the encoding space (see [`Class`]) gives what it has found to `to`. That is a call for each kind of instruction, so that
//! what the interpreter makes of one is compiled into the place where its kind is known: a match on [`Insn`] in `to` costs
//! nothing there.

mod alu;
mod branch;
mod memory;
mod simd;
mod system;

use super::insn::{Insn, Reg};
use crate::Regs;

/// Parts of the encoding space that bits 31 to 21 tell apart.
#[derive(Clone, Copy)]
enum Class {
    Unallocated,
    Adr,
    SumImmediate,
    LogicalImmediate,
    MoveWide,
    Bitfield,
    Extract,
    LogicalRegister,
    SumShifted,
    SumExtended,
    Carry,
    ConditionalCompare,
    ConditionalSelect,
    TwoSource,
    OneSource,
    ThreeSource,
    Branch,
    CompareBranch,
    TestBranch,
    ConditionalBranch,
    Exception,
    System,
    Indirect,
    Structures,
    Exclusive,
    OrderedUnscaled,
    Literal,
    Pair,
    /// Loads and stores of one register: at a multiple of its size, as the low bits say, at an index or atomic.
    Scaled,
    Unscaled,
    IndexedOrAtomic,
    Simd,
}

impl Class {
    /// The class of an instruction whose bits from 21 on are those of `i`.
    const fn of(i: u32) -> Self {
        match bits(i, 28, 25) {
            0b1000 | 0b1001 => match bits(i, 25, 23) {
                0 | 1 => Self::Adr,
                2 => Self::SumImmediate,
                4 => Self::LogicalImmediate,
                5 => Self::MoveWide,
                6 => Self::Bitfield,
                7 => Self::Extract,
                // Tags are not there.
                _ => Self::Unallocated,
            },
            0b1010 | 0b1011 => match (bits(i, 31, 29), bits(i, 25, 24)) {
                (0 | 4, _) => Self::Branch,
                (1 | 5, 0 | 1) => Self::CompareBranch,
                (1 | 5, _) => Self::TestBranch,
                (2, 0) => Self::ConditionalBranch,
                (6, 0) => Self::Exception,
                (6, 1) if bits(i, 23, 22) == 0 => Self::System,
                (6, 2 | 3) => Self::Indirect,
                _ => Self::Unallocated,
            },
            0b0100 | 0b0110 | 0b1100 | 0b1110 => {
                let is_vector = bits(i, 26, 26) == 1;
                match (bits(i, 29, 28), bits(i, 24, 24)) {
                    (0, _) if is_vector => Self::Structures,
                    (0, 0) => Self::Exclusive,
                    (1, 0) => Self::Literal,
                    (1, 1) if !is_vector => Self::OrderedUnscaled,
                    (2, _) => Self::Pair,
                    (3, 1) => Self::Scaled,
                    (3, _) if bits(i, 21, 21) == 0 => Self::Unscaled,
                    (3, _) => Self::IndexedOrAtomic,
                    _ => Self::Unallocated,
                }
            }
            0b0101 | 0b1101 => match (bits(i, 28, 28), bits(i, 24, 21)) {
                (0, 0..=7) => Self::LogicalRegister,
                (0, 8 | 10 | 12 | 14) => Self::SumShifted,
                (0, _) => Self::SumExtended,
                (_, 0) => Self::Carry,
                (_, 2) => Self::ConditionalCompare,
                (_, 4) => Self::ConditionalSelect,
                (_, 6) if bits(i, 30, 29) == 0 => Self::TwoSource,
                (_, 6) if bits(i, 30, 29) == 2 => Self::OneSource,
                (_, 8..=15) => Self::ThreeSource,
                _ => Self::Unallocated,
            },
            0b0111 | 0b1111 => Self::Simd,
            _ => Self::Unallocated,
        }
    }
}

/// By bits 31 to 21: one look in place of several branches, which nothing predicts in code that is new.
static CLASSES: [Class; 1 << 11] = {
    let mut classes = [Class::Unallocated; 1 << 11];
    let mut top = 0;
    while top < classes.len() {
        classes[top] = Class::of((top as u32) << 21);
        top += 1;
    }
    classes
};

/// What `to` makes of the instruction `i` at offset `off` of its page; `None` for an unallocated encoding.
#[inline]
pub(crate) fn decode_with<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> Option<T> {
    match CLASSES[i as usize >> 21] {
        Class::Unallocated => None,
        Class::Adr => Some(alu::adr(i, off, to)),
        Class::SumImmediate => Some(alu::sum_immediate(i, to)),
        Class::LogicalImmediate => alu::logical_immediate(i, to),
        Class::MoveWide => alu::move_wide(i, to),
        Class::Bitfield => alu::bitfield(i, to),
        Class::Extract => alu::extract(i, to),
        Class::LogicalRegister => alu::logical_register(i, to),
        Class::SumShifted => alu::sum_shifted(i, to),
        Class::SumExtended => alu::sum_extended(i, to),
        Class::Carry => alu::carry(i, to),
        Class::ConditionalCompare => alu::conditional_compare(i, to),
        Class::ConditionalSelect => alu::conditional_select(i, to),
        Class::TwoSource => alu::two_source(i, to),
        Class::OneSource => alu::one_source(i, to),
        Class::ThreeSource => alu::three_source(i, to),
        Class::Branch => Some(branch::branch(i, off, to)),
        Class::CompareBranch => Some(branch::compare(i, off, to)),
        Class::TestBranch => Some(branch::test(i, off, to)),
        Class::ConditionalBranch => branch::conditional(i, off, to),
        Class::Exception => branch::exception(i, to),
        Class::System => system::system(i, to),
        Class::Indirect => branch::indirect(i, to),
        Class::Structures => memory::structures(i, to),
        Class::Exclusive => memory::exclusive(i).map(to),
        Class::OrderedUnscaled => memory::ordered_unscaled(i).map(to),
        Class::Literal => memory::literal(i, off, to),
        Class::Pair => memory::pair(i, to),
        Class::Scaled => memory::scaled(i, to),
        Class::Unscaled => memory::unscaled(i, to),
        Class::IndexedOrAtomic => memory::indexed_or_atomic(i, to),
        Class::Simd => Some(to(simd::vector(i))),
    }
}

/// The instruction `i` at offset `off` of its page.
pub(crate) fn decode(i: u32, off: u16) -> Insn {
    decode_with(i, off, |insn| insn).unwrap_or(Insn::Undefined)
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
pub(super) const fn bits(i: u32, hi: u32, lo: u32) -> u32 {
    i >> lo & (u32::MAX >> (31 - (hi - lo)))
}

/// `bits` low bits of `v`, sign-extended.
fn sext(v: u32, bits: u32) -> i64 {
    i64::from((v << (32 - bits)) as i32 >> (32 - bits))
}
