//! Branches and exceptions (C4.1.94).

use super::{bits, sext, system, z};
use crate::isa::insn::{Exception, Insn};

pub(super) fn branch_or_system<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let target = |distance: i64| i64::from(off) + distance * 4;
    Some(match bits(i, 31, 29) {
        0 | 4 => to(Insn::B { link: i >> 31 == 1, to: target(sext(bits(i, 25, 0), 26)) }),
        1 | 5 if bits(i, 25, 25) == 0 => to(Insn::Cbz {
            wide: i >> 31 == 1,
            nonzero: bits(i, 24, 24) == 1,
            t: z(i),
            to: target(sext(bits(i, 23, 5), 19)),
        }),
        1 | 5 => to(Insn::Tbz {
            bit: (bits(i, 31, 31) << 5 | bits(i, 23, 19)) as u8,
            nonzero: bits(i, 24, 24) == 1,
            t: z(i),
            to: target(sext(bits(i, 18, 5), 14)),
        }),
        2 if bits(i, 25, 24) == 0 && bits(i, 4, 4) == 0 => {
            to(Insn::Bcond { cond: bits(i, 3, 0) as u8, to: target(sext(bits(i, 23, 5), 19)) })
        }
        6 if bits(i, 25, 24) == 0 => {
            let kind = match (bits(i, 23, 21), bits(i, 4, 0)) {
                (0, 1) => Exception::Svc,
                (0, 2) => Exception::Hvc,
                (0, 3) => Exception::Smc,
                (1, 0) => Exception::Brk,
                _ => return None,
            };
            to(Insn::Exception { kind, imm: bits(i, 20, 5) as u16 })
        }
        6 if bits(i, 25, 22) == 0b0100 => return system::system(i, to),
        // Pointer authentication is not there, so only the plain forms.
        6 if bits(i, 25, 25) == 1 && bits(i, 20, 10) == 0b111_1100_0000 && bits(i, 4, 0) == 0 => {
            match bits(i, 24, 21) {
                kind @ 0..=2 => to(Insn::Indirect { link: kind == 1, ret: kind == 2, n: z(i >> 5) }),
                4 if bits(i, 9, 5) == 31 => to(Insn::Eret),
                _ => return None,
            }
        }
        _ => return None,
    })
}
