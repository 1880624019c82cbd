//! Which instructions make pairs with their neighbours (see `exec::pairs`): by their words, so that the decoder proper
//! need not know. Each class here is one that the decoder gives that very handler.

use super::bits;
use crate::exec::pairs::Half;

/// What the instruction `i`, which is a valid one, can be in a pair.
pub(super) fn half(i: u32) -> Option<Half> {
    let (amount, invert) = (bits(i, 15, 10), bits(i, 21, 21) == 1);
    // Moves are logical operations with register 31, and some forms of arithmetic have bit 23 for something else.
    let (zero, high) = (bits(i, 9, 5) == 31, bits(i, 23, 23) == 1);
    // In loads and stores of one register.
    let opc = bits(i, 23, 22);
    let plain = bits(i, 24, 24) == 1 || bits(i, 21, 21) == 0 && bits(i, 11, 10) == 0;
    let index = bits(i, 24, 21) == 0b0011 && bits(i, 11, 10) == 2 && bits(i, 14, 13) == 3;
    Some(match i >> 24 {
        0x0b if bits(i, 23, 21) == 0 && amount == 0 => Half::Add32,
        0x8b if bits(i, 23, 21) == 0 && amount == 0 => Half::Add,
        0x0a if amount == 0 && invert => Half::Bic32,
        0x0a if amount == 0 => Half::And32,
        0x2a if amount == 0 && !invert => {
            if zero {
                Half::Mov32
            } else {
                Half::Orr32
            }
        }
        0xaa if amount == 0 && !invert && zero => Half::Mov,
        0x4a if amount == 0 && !invert => Half::Eor32,
        0x4a if amount != 0 && opc == 1 => Half::EorLsr32,
        0x4a if amount != 0 && opc == 3 => Half::EorRor32,
        0x11 | 0x51 if !high => Half::AddImm32,
        0x91 | 0xd1 if !high => Half::AddImm,
        0x12 | 0x52 if high => Half::MovImm32,
        0x72 if high => Half::Movk32,
        0x92 | 0xd2 if high => Half::MovImm,
        0xb2 if !high && zero => Half::MovImm,
        0x92 => Half::AndImm,
        // EXTR of one register is a rotation.
        0x13 if bits(i, 23, 21) == 0b100 && bits(i, 9, 5) == bits(i, 20, 16) => Half::Ror32,
        // UBFM: a left shift when the field ends just below where it rotates to, a mask when it does not rotate.
        0xd3 => match (bits(i, 21, 16), amount) {
            (_, 63) => return None,
            (immr, imms) if imms + 1 == immr => Half::Lsl,
            (0, _) => Half::AndImm,
            _ => return None,
        },
        0x10 | 0x30 | 0x50 | 0x70 | 0x90 | 0xb0 | 0xd0 | 0xf0 => Half::Adr,
        0xf8 | 0xf9 if opc == 0 && plain => Half::Store,
        0xf8 | 0xf9 if opc == 1 && plain => Half::Load,
        0xb8 | 0xb9 if opc == 0 && plain => Half::Store32,
        0xb8 | 0xb9 if opc == 1 && plain => Half::Load32,
        0xf8 if index => Half::LoadIndex,
        0xb8 if index => Half::LoadIndex32,
        0x39 if opc == 1 => Half::Load8,
        0xa9 => match opc {
            0 => Half::StorePair,
            1 => Half::LoadPair,
            2 => Half::Push,
            _ => return None,
        },
        0xa8 if opc == 3 => Half::Pop,
        _ => return None,
    })
}
