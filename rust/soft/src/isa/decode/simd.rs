//! Data processing with vector registers: what has a name of its own, which is what the translator does itself.

use super::z;
use crate::isa::insn::{Insn, Lanes};

pub(super) fn vector(i: u32) -> Insn {
    let (d, n, m) = (i as u8 & 31, (i >> 5) as u8 & 31, (i >> 16) as u8 & 31);
    let (full, size) = (super::bits(i, 30, 30) == 1, super::bits(i, 23, 22) as u8);
    let op = match i & 0xbf20_fc00 {
        // AND, BIC, ORR; EOR. ORN and the selecting forms are not here.
        0x0e20_1c00 => [Lanes::And, Lanes::Bic, Lanes::Orr].get(size as usize).copied(),
        0x2e20_1c00 if size == 0 => Some(Lanes::Eor),
        0x0e20_8400 if full || size != 3 => Some(Lanes::Add),
        0x2e20_8400 if full || size != 3 => Some(Lanes::Sub),
        _ => None,
    };
    if let Some(op) = op {
        return Insn::Lanes { op, size, full, d, n, m };
    }
    match i & 0xffff_fc00 {
        0x1e26_0000 => Insn::FromVector { wide: false, d: super::d(i), n },
        0x9e66_0000 => Insn::FromVector { wide: true, d: super::d(i), n },
        0x1e27_0000 => Insn::ToVector { wide: false, d, n: z(i >> 5) },
        0x9e67_0000 => Insn::ToVector { wide: true, d, n: z(i >> 5) },
        0x1e20_4000 => Insn::Fmov { wide: false, d, n },
        0x1e60_4000 => Insn::Fmov { wide: true, d, n },
        _ => Insn::Simd,
    }
}
