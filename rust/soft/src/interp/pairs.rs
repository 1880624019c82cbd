//! Which instructions make pairs with their neighbours (see `handlers::pairs`). Each kind here is one that `lower` gives
//! that very handler.

use super::handlers::pairs::Half;
use crate::Regs;
use crate::isa::insn::{Access, Address, Alu, Insn, Operand, Reg, Shift};

const LOAD_64: Access = Access { store: false, size: 3, signed: false, wide: true };
const STORE_64: Access = Access { store: true, ..LOAD_64 };
const LOAD_32: Access = Access { store: false, size: 2, signed: false, wide: false };
const STORE_32: Access = Access { store: true, ..LOAD_32 };
const LOAD_8: Access = Access { store: false, size: 0, signed: false, wide: false };

/// What an instruction can be in a pair.
#[inline(always)]
pub(super) fn half(insn: &Insn) -> Option<Half> {
    match *insn {
        Insn::Alu { op, wide, flags: false, invert, n, m, .. } => alu(op, wide, invert, n, m),
        Insn::Const { .. } => Some(Half::MovImm),
        Insn::Movk { wide: false, .. } => Some(Half::Movk32),
        Insn::Adr { .. } => Some(Half::Adr),
        Insn::Shift { kind: Shift::Lsl, wide: true, .. } => Some(Half::Lsl),
        Insn::Shift { kind: Shift::Ror, wide: false, .. } => Some(Half::Ror32),
        Insn::Field { signed: false, wide: true, from: 0, to: 0, .. } => Some(Half::AndImm),
        Insn::Mem { access, address, .. } => transfer(access, address),
        Insn::Pair { access, address, .. } => match (access, address) {
            (LOAD_64, Address::Offset(..)) => Some(Half::LoadPair),
            (STORE_64, Address::Offset(..)) => Some(Half::StorePair),
            (STORE_64, Address::Pre(..)) => Some(Half::Push),
            (LOAD_64, Address::Post(..)) => Some(Half::Pop),
            _ => None,
        },
        _ => None,
    }
}

fn alu(op: Alu, wide: bool, invert: bool, n: Reg, m: Operand) -> Option<Half> {
    Some(match (op, m) {
        (Alu::Add | Alu::Sub, Operand::Imm(_)) if wide => Half::AddImm,
        (Alu::Add | Alu::Sub, Operand::Imm(_)) => Half::AddImm32,
        (Alu::And, Operand::Imm(_)) if wide => Half::AndImm,
        (Alu::Add, Operand::Reg(_)) if wide => Half::Add,
        (Alu::Add, Operand::Reg(_)) => Half::Add32,
        (Alu::And, Operand::Reg(_)) if !wide && invert => Half::Bic32,
        (Alu::And, Operand::Reg(_)) if !wide => Half::And32,
        (Alu::Orr, Operand::Reg(_)) if !invert && n == Regs::ZERO as Reg => {
            if wide {
                Half::Mov
            } else {
                Half::Mov32
            }
        }
        (Alu::Orr, Operand::Reg(_)) if !wide && !invert => Half::Orr32,
        (Alu::Eor, Operand::Reg(_)) if !wide && !invert => Half::Eor32,
        (Alu::Eor, Operand::Shifted(_, Shift::Lsr, _)) if !wide && !invert => Half::EorLsr32,
        (Alu::Eor, Operand::Shifted(_, Shift::Ror, _)) if !wide && !invert => Half::EorRor32,
        _ => return None,
    })
}

fn transfer(access: Access, address: Address) -> Option<Half> {
    Some(match (access, address) {
        (LOAD_64, Address::Offset(..) | Address::Unscaled(..)) => Half::Load,
        (STORE_64, Address::Offset(..) | Address::Unscaled(..)) => Half::Store,
        (LOAD_32, Address::Offset(..) | Address::Unscaled(..)) => Half::Load32,
        (STORE_32, Address::Offset(..) | Address::Unscaled(..)) => Half::Store32,
        (LOAD_8, Address::Offset(..) | Address::Unscaled(..)) => Half::Load8,
        (LOAD_64, Address::Index(_, _, 3 | 7, _)) => Half::LoadIndex,
        (LOAD_32, Address::Index(_, _, 3 | 7, _)) => Half::LoadIndex32,
        _ => return None,
    })
}
