//! Which instructions make pairs with their neighbours (see `exec::pairs`): by their words, so that the decoder proper
//! need not know. Each class here is one that the decoder gives that very handler.

use super::bits;
use crate::exec::pairs::{Narrow, Wide};
use crate::op::Handler;

/// The parts that an operation can have in pairs.
#[derive(Clone, Copy, Default)]
pub(super) struct Half(Option<Narrow>, Option<Wide>);

impl Half {
    pub const NONE: Self = Self(None, None);

    const fn narrow(n: Narrow) -> Self {
        Self(Some(n), None)
    }

    const fn wide(w: Wide) -> Self {
        Self(None, Some(w))
    }

    /// The handler for this one and `second` behind it.
    pub fn and(self, second: Self) -> Option<Handler> {
        if let (Some(a), Some(b)) = (self.0, second.0) {
            return Some(a.and(b));
        }
        match (self.1, second.1) {
            (Some(a), Some(b)) => Some(a.and(b)),
            _ => None,
        }
    }

    /// What the instruction `i`, which is a valid one, can be.
    pub fn of(i: u32) -> Self {
        let (amount, invert) = (bits(i, 15, 10), bits(i, 21, 21) == 1);
        // In loads and stores of one register.
        let (scaled, opc) = (bits(i, 24, 24) == 1, bits(i, 23, 22));
        let unscaled = bits(i, 21, 21) == 0 && bits(i, 11, 10) == 0;
        match i >> 24 {
            0x0b if bits(i, 23, 21) == 0 && amount == 0 => Self::narrow(Narrow::Add),
            0x8b if bits(i, 23, 21) == 0 && amount == 0 => Self::wide(Wide::Add),
            0x0a if amount == 0 => Self::narrow(if invert { Narrow::Bic } else { Narrow::And }),
            0x2a if amount == 0 && !invert && bits(i, 9, 5) != 31 => Self::narrow(Narrow::Orr),
            0xaa if amount == 0 && !invert && bits(i, 9, 5) == 31 => Self::wide(Wide::Mov),
            0x4a => match (amount, bits(i, 23, 22)) {
                (0, _) if invert => Self::NONE,
                (0, _) => Self::narrow(Narrow::Eor),
                (_, 1) => Self::narrow(Narrow::EorLsr),
                (_, 3) => Self::narrow(Narrow::EorRor),
                _ => Self::NONE,
            },
            // EXTR of one register is a rotation.
            0x13 if bits(i, 23, 21) == 0b100 && bits(i, 9, 5) == bits(i, 20, 16) => Self::narrow(Narrow::Ror),
            0x12 | 0x52 if bits(i, 23, 23) == 1 => Self(Some(Narrow::Mov), Some(Wide::MovImm32)),
            0x72 if bits(i, 23, 23) == 1 => Self::narrow(Narrow::Movk),
            0x92 | 0xd2 if bits(i, 23, 23) == 1 => Self::wide(Wide::MovImm),
            0x92 => Self::wide(Wide::AndImm),
            0xb2 if bits(i, 23, 23) == 0 && bits(i, 9, 5) == 31 => Self::wide(Wide::MovImm),
            0x91 | 0xd1 if bits(i, 23, 23) == 0 => Self::wide(Wide::AddImm),
            // UBFM: a left shift when the field ends just below where it rotates to, a mask when it does not rotate.
            0xd3 => match (bits(i, 21, 16), amount) {
                (_, 63) => Self::NONE,
                (immr, imms) if imms + 1 == immr => Self::wide(Wide::Lsl),
                (0, _) => Self::wide(Wide::AndImm),
                _ => Self::NONE,
            },
            0x10 | 0x30 | 0x50 | 0x70 | 0x90 | 0xb0 | 0xd0 | 0xf0 => Self::wide(Wide::Adr),
            0xf8 | 0xf9 if scaled || unscaled => match opc {
                0 => Self::wide(Wide::Store),
                1 => Self::wide(Wide::Load),
                _ => Self::NONE,
            },
            0xb8 | 0xb9 if scaled || unscaled => match opc {
                0 => Self(Some(Narrow::Store), Some(Wide::Store32)),
                1 => Self(Some(Narrow::Load), Some(Wide::Load32)),
                _ => Self::NONE,
            },
            0x39 if opc == 1 => Self::wide(Wide::Load8),
            0xa9 => match opc {
                0 => Self::wide(Wide::StorePair),
                1 => Self::wide(Wide::LoadPair),
                2 => Self::wide(Wide::Push),
                _ => Self::NONE,
            },
            0xa8 if opc == 3 => Self::wide(Wide::Pop),
            _ => Self::NONE,
        }
    }
}
