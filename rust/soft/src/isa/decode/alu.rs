//! Data processing with immediates and registers (C4.1.93 and C4.1.95).

use super::{bits, d, s, sext, z};
use crate::isa::insn::{Alu, Constant, FlagOp, Insn, Operand, Select, Shift, Unary};

/// The value that a logical immediate's fields stand for (DecodeBitMasks, J1.1.3).
fn bit_masks(n: u32, imms: u32, immr: u32, wide: bool) -> Option<u64> {
    let len = 31 - (n << 6 | !imms & 0x3f).leading_zeros().min(31);
    if n << 6 | !imms & 0x3f == 0 || len < 1 || (!wide && n == 1) {
        return None;
    }
    let size = 1u32 << len;
    let levels = size - 1;
    let (ones, rotate) = (imms & levels, immr & levels);
    if ones == levels {
        return None;
    }
    let mask = u64::MAX >> (64 - size);
    let mut v = (1u64 << (ones + 1)) - 1;
    if rotate != 0 {
        v = (v >> rotate | v << (size - rotate)) & mask;
    }
    let mut width = size;
    while width < 64 {
        v |= v << width;
        width *= 2;
    }
    Some(if wide { v } else { v & 0xffff_ffff })
}

pub(super) fn immediate<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let wide = i >> 31 == 1;
    let narrow = |v: u64| if wide { v } else { v & 0xffff_ffff };
    Some(match bits(i, 25, 23) {
        0 | 1 => {
            let imm = sext(bits(i, 23, 5) << 2 | bits(i, 30, 29), 21);
            let offset = if wide { imm << 12 } else { imm + i64::from(off) };
            to(Insn::Adr { d: d(i), page: wide, offset })
        }
        2 => {
            let imm = u64::from(bits(i, 21, 10)) << if i >> 22 & 1 == 1 { 12 } else { 0 };
            let flags = i >> 29 & 1 == 1;
            let op = if i >> 30 & 1 == 1 { Alu::Sub } else { Alu::Add };
            let d = if flags { d(i) } else { s(i) };
            to(Insn::Alu { op, wide, flags, invert: false, d, n: s(i >> 5), m: Operand::Imm(imm) })
        }
        // Tags (3) are not there.
        4 => {
            let imm = bit_masks(bits(i, 22, 22), bits(i, 15, 10), bits(i, 21, 16), wide)?;
            let opc = bits(i, 30, 29);
            let op = [Alu::And, Alu::Orr, Alu::Eor, Alu::And][opc as usize];
            let d = if opc == 3 { d(i) } else { s(i) };
            if opc == 1 && bits(i, 9, 5) == 31 {
                return Some(to(Insn::Const { by: Constant::Orr, wide, d, value: imm }));
            }
            to(Insn::Alu { op, wide, flags: opc == 3, invert: false, d, n: z(i >> 5), m: Operand::Imm(imm) })
        }
        5 => {
            let shift = bits(i, 22, 21) as u8 * 16;
            if !wide && shift >= 32 {
                return None;
            }
            let value = u64::from(bits(i, 20, 5)) << shift;
            let (by, value) = match bits(i, 30, 29) {
                0 => (Constant::Movn { shift }, narrow(!value)),
                2 => (Constant::Movz { shift }, value),
                3 => return Some(to(Insn::Movk { d: d(i), shift, value, wide })),
                _ => return None,
            };
            to(Insn::Const { by, wide, d: d(i), value })
        }
        6 => return bitfield(i, wide, to),
        7 => {
            let from = bits(i, 15, 10) as u8;
            let valid = bits(i, 30, 29) == 0 && bits(i, 21, 21) == 0 && bits(i, 22, 22) == u32::from(wide);
            if !valid || !wide && from > 31 {
                return None;
            }
            let (d, n, m) = (d(i), z(i >> 5), z(i >> 16));
            if n == m {
                to(Insn::Shift { kind: Shift::Ror, wide, d, n, by: from })
            } else {
                to(Insn::Extract { wide, d, n, m, from })
            }
        }
        _ => return None,
    })
}

fn bitfield<T>(i: u32, wide: bool, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let (immr, imms, n) = (bits(i, 21, 16), bits(i, 15, 10), bits(i, 22, 22));
    let size = if wide { 64 } else { 32 };
    if n != u32::from(wide) || immr >= size || imms >= size {
        return None;
    }
    let (d, n) = (d(i), z(i >> 5));
    let opc = bits(i, 30, 29);
    let shift = |kind, by: u32| Insn::Shift { kind, wide, d, n, by: by as u8 };
    // What goes where: a field from `immr` comes down, or one from 0 goes up.
    let (from, up, width) =
        if imms >= immr { (immr, 0, imms - immr + 1) } else { (0, size - immr, imms + 1) };
    let (from, up, width) = (from as u8, up as u8, width as u8);
    Some(match opc {
        0 if imms == size - 1 => to(shift(Shift::Asr, immr)),
        2 if imms == size - 1 => to(shift(Shift::Lsr, immr)),
        2 if imms + 1 == immr => to(shift(Shift::Lsl, size - immr)),
        0 | 2 => to(Insn::Field { signed: opc == 0, wide, d, n, from, to: up, width }),
        1 => to(Insn::Insert { wide, d, n, from, to: up, width }),
        _ => return None,
    })
}

pub(super) fn register<T>(i: u32, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let wide = i >> 31 == 1;
    let (kind, amount) = (bits(i, 23, 22), bits(i, 15, 10) as u8);
    let op = bits(i, 30, 29);
    let flags = i >> 29 & 1 == 1;
    let sum = if i >> 30 & 1 == 1 { Alu::Sub } else { Alu::Add };
    let (rd, n, m) = (d(i), z(i >> 5), z(i >> 16));
    Some(match (bits(i, 28, 28), bits(i, 24, 21)) {
        (0, 0..=7) => {
            if !wide && amount > 31 {
                return None;
            }
            let op = [Alu::And, Alu::Orr, Alu::Eor, Alu::And][op as usize];
            let (invert, flags) = (bits(i, 21, 21) == 1, bits(i, 30, 29) == 3);
            if amount == 0 && kind == 0 {
                to(Insn::Alu { op, wide, flags, invert, d: rd, n, m: Operand::Reg(m) })
            } else {
                let m = Operand::Shifted(m, Shift::of(kind), amount);
                to(Insn::Alu { op, wide, flags, invert, d: rd, n, m })
            }
        }
        (0, 8 | 10 | 12 | 14) => {
            if kind == 3 || !wide && amount > 31 {
                return None;
            }
            if amount == 0 && kind == 0 {
                to(Insn::Alu { op: sum, wide, flags, invert: false, d: rd, n, m: Operand::Reg(m) })
            } else {
                let m = Operand::Shifted(m, Shift::of(kind), amount);
                to(Insn::Alu { op: sum, wide, flags, invert: false, d: rd, n, m })
            }
        }
        (0, 9 | 11 | 13 | 15) => {
            let shift = bits(i, 12, 10) as u8;
            if kind != 0 || shift > 4 {
                return None;
            }
            let m = Operand::Extended(m, bits(i, 15, 13) as u8, shift);
            let d = if flags { rd } else { s(i) };
            to(Insn::Alu { op: sum, wide, flags, invert: false, d, n: s(i >> 5), m })
        }
        (1, 0) if amount == 0 => to(Insn::Adc { sub: op >> 1 == 1, wide, flags, d: rd, n, m }),
        (1, 0) => return flag_manipulation(i, to),
        (1, 2) => {
            if op & 1 == 0 || bits(i, 10, 10) != 0 || bits(i, 4, 4) != 0 {
                return None;
            }
            let (add, cond, nzcv) = (op == 1, bits(i, 15, 12) as u8, bits(i, 3, 0) as u8);
            if bits(i, 11, 11) == 1 {
                let m = Operand::Imm(u64::from(bits(i, 20, 16)));
                to(Insn::Ccmp { add, wide, n, m, cond, nzcv })
            } else {
                to(Insn::Ccmp { add, wide, n, m: Operand::Reg(m), cond, nzcv })
            }
        }
        (1, 4) => {
            if op & 1 != 0 || bits(i, 11, 11) != 0 {
                return None;
            }
            let kind = [Select::Csel, Select::Csinc, Select::Csinv, Select::Csneg]
                [(op & 2 | bits(i, 10, 10)) as usize];
            to(Insn::Select { kind, wide, d: rd, n, m, cond: bits(i, 15, 12) as u8 })
        }
        (1, 6) if op == 0 => match amount {
            8..=11 => to(Insn::ShiftBy { kind: Shift::of(amount.into()), wide, d: rd, n, m }),
            2..=3 => to(Insn::Div { signed: amount == 3, wide, d: rd, n, m }),
            16..=23 if wide == (amount & 3 == 3) => {
                to(Insn::Crc32 { castagnoli: amount & 4 != 0, size: amount & 3, d: rd, n, m })
            }
            _ => return None,
        },
        (1, 6) if op == 2 && bits(i, 20, 16) == 0 => {
            let op = match (amount, wide) {
                (0, _) => Unary::Rbit,
                (1, _) => Unary::Rev16,
                (2, false) | (3, true) => Unary::Rev,
                (2, true) => Unary::Rev32,
                (4, _) => Unary::Clz,
                (5, _) => Unary::Cls,
                _ => return None,
            };
            to(Insn::Unary { op, wide, d: rd, n })
        }
        (1, 8..=15) => {
            if op != 0 {
                return None;
            }
            let a = z(i >> 10);
            let sub = bits(i, 15, 15) == 1;
            match (bits(i, 23, 21), wide) {
                (0, _) => to(Insn::Madd { wide, sub, d: rd, n, m, a }),
                (signed @ (1 | 5), true) => to(Insn::Maddl { signed: signed == 1, sub, d: rd, n, m, a }),
                (signed @ (2 | 6), true) if !sub => to(Insn::Mulh { signed: signed == 2, d: rd, n, m }),
                _ => return None,
            }
        }
        _ => return None,
    })
}

/// RMIF, SETF8 and SETF16.
fn flag_manipulation<T>(i: u32, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let n = z(i >> 5);
    let evaluates = bits(i, 20, 15) == 0 && bits(i, 4, 0) == 13;
    Some(match (bits(i, 31, 29), bits(i, 14, 10)) {
        (0b101, 1) if bits(i, 4, 4) == 0 => {
            to(Insn::Rmif { n, rotate: bits(i, 20, 15) as u8, mask: bits(i, 3, 0) as u8 })
        }
        (0b001, 2) if evaluates => to(Insn::Setf { bits: 8, n }),
        (0b001, 18) if evaluates => to(Insn::Setf { bits: 16, n }),
        _ => return None,
    })
}

/// CFINV, XAFLAG and AXFLAG, by `op2`.
pub(super) fn flag_operation(op2: u32) -> Insn {
    Insn::Flags { op: [FlagOp::Cfinv, FlagOp::Xaflag, FlagOp::Axflag][op2 as usize] }
}

#[cfg(test)]
mod tests {
    use super::bit_masks;

    /// What GNU as encodes for some masks.
    #[test]
    fn logical_immediates_are_those_of_the_assembler() {
        let of = |i: u32| bit_masks(i >> 22 & 1, i >> 10 & 63, i >> 16 & 63, i >> 31 == 1);
        assert_eq!(of(0x9200_f020), Some(0x5555_5555_5555_5555));
        assert_eq!(of(0x121d_6c20), Some(0x7fff_fff8));
        assert_eq!(of(0xb208_9c20), Some(0xff00_ff00_ff00_ff00));
        assert_eq!(of(0xd241_0420), Some(0x8000_0000_0000_0001));
    }

    #[test]
    fn masks_of_all_ones_do_not_exist() {
        assert_eq!(bit_masks(1, 63, 0, true), None);
        assert_eq!(bit_masks(0, 31, 0, false), None);
        assert_eq!(bit_masks(1, 3, 0, false), None);
    }
}
