//! Branches and exceptions (C4.1.94).

use super::{bits, sext, z};
use crate::isa::insn::{Exception, Insn};

/// From the start of the page, `distance` instructions from the one at `off`.
fn target(off: u16, distance: i64) -> i64 {
    i64::from(off) + distance * 4
}

pub(super) fn branch<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> T {
    to(Insn::B { link: i >> 31 == 1, to: target(off, sext(bits(i, 25, 0), 26)) })
}

/// CBZ and CBNZ.
pub(super) fn compare<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> T {
    to(Insn::Cbz {
        wide: i >> 31 == 1,
        nonzero: bits(i, 24, 24) == 1,
        t: z(i),
        to: target(off, sext(bits(i, 23, 5), 19)),
    })
}

/// TBZ and TBNZ.
pub(super) fn test<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> T {
    to(Insn::Tbz {
        bit: (bits(i, 31, 31) << 5 | bits(i, 23, 19)) as u8,
        nonzero: bits(i, 24, 24) == 1,
        t: z(i),
        to: target(off, sext(bits(i, 18, 5), 14)),
    })
}

pub(super) fn conditional<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let branch = Insn::Bcond { cond: bits(i, 3, 0) as u8, to: target(off, sext(bits(i, 23, 5), 19)) };
    (bits(i, 4, 4) == 0).then(|| to(branch))
}

pub(super) fn exception<T>(i: u32, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let kind = match (bits(i, 23, 21), bits(i, 4, 0)) {
        (0, 1) => Exception::Svc,
        (0, 2) => Exception::Hvc,
        (0, 3) => Exception::Smc,
        (1, 0) => Exception::Brk,
        _ => return None,
    };
    Some(to(Insn::Exception { kind, imm: bits(i, 20, 5) as u16 }))
}

/// Branches to a register, and ERET. Pointer authentication is not there, so only the plain forms.
pub(super) fn indirect<T>(i: u32, to: impl FnOnce(Insn) -> T) -> Option<T> {
    if bits(i, 20, 10) != 0b111_1100_0000 || bits(i, 4, 0) != 0 {
        return None;
    }
    Some(match bits(i, 24, 21) {
        kind @ 0..=2 => to(Insn::Indirect { link: kind == 1, ret: kind == 2, n: z(i >> 5) }),
        4 if bits(i, 9, 5) == 31 => to(Insn::Eret),
        _ => return None,
    })
}
