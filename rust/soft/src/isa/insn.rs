//! Instructions by name: what a back end makes machine code of.
//!
//! Registers are by the decoder's index (see [`crate::Regs`]): 31 is the stack pointer, 32 reads as zero, 33 takes what
//! goes nowhere. An instruction that is not here is [`Insn::Other`], and left to the interpreter's operation.

use crate::decode::{bit_masks, bits, d, s, sext, z};

/// A register by the decoder's index.
pub(crate) type Reg = u8;

/// Kinds of shifts, as instructions number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Lsl,
    Lsr,
    Asr,
    Ror,
}

impl Shift {
    fn of(kind: u32) -> Self {
        [Self::Lsl, Self::Lsr, Self::Asr, Self::Ror][kind as usize & 3]
    }
}

/// The second operand of an arithmetic or logical instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Imm(u64),
    Reg(Reg),
    Shifted(Reg, Shift, u8),
    /// UXTB to SXTX, and a shift left.
    Extended(Reg, u8, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alu {
    Add,
    Sub,
    And,
    Orr,
    Eor,
}

/// How the address of a load or store is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// Base and offset.
    Offset(Reg, i64),
    /// The base takes the sum, before or after.
    Pre(Reg, i64),
    Post(Reg, i64),
    /// Base, index, how the index is extended (UXTW 2, SXTW 6, all of it otherwise), shift left.
    Index(Reg, Reg, u8, u8),
    /// From the page of PC.
    Page(i64),
}

/// A register that is loaded or stored: how many bytes (as a power of two), and whether a load extends the sign, to 64
/// bits or to 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub store: bool,
    pub size: u8,
    pub signed: bool,
    pub wide: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Select {
    Csel,
    Csinc,
    Csinv,
    Csneg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Rbit,
    Rev16,
    /// The bytes of each 32 bits.
    Rev32,
    Rev,
    Clz,
    Cls,
}

/// Lane-wise operations on vector registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    And,
    Bic,
    Orr,
    Eor,
    Add,
    Sub,
}

/// One instruction. `wide` says that it is of 64 bits; distances of branches count from the start of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Insn {
    Nop,
    /// MOVZ, MOVN, and ORR of an immediate with zero.
    Const {
        d: Reg,
        value: u64,
    },
    Movk {
        d: Reg,
        shift: u8,
        value: u64,
        wide: bool,
    },
    /// Page of PC plus `offset`.
    Adr {
        d: Reg,
        offset: i64,
    },
    Alu {
        op: Alu,
        wide: bool,
        flags: bool,
        invert: bool,
        d: Reg,
        n: Reg,
        m: Operand,
    },
    Adc {
        sub: bool,
        wide: bool,
        flags: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// Shift by an immediate.
    Shift {
        kind: Shift,
        wide: bool,
        d: Reg,
        n: Reg,
        by: u8,
    },
    ShiftBy {
        kind: Shift,
        wide: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// UBFM and SBFM that are no shift: `width` bits from `from` on go to bit `to`, zeros or the sign above them.
    Field {
        signed: bool,
        wide: bool,
        d: Reg,
        n: Reg,
        from: u8,
        to: u8,
        width: u8,
    },
    /// BFM: those bits are put into `d`.
    Insert {
        wide: bool,
        d: Reg,
        n: Reg,
        from: u8,
        to: u8,
        width: u8,
    },
    Extract {
        wide: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        from: u8,
    },
    Madd {
        wide: bool,
        sub: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        a: Reg,
    },
    /// 32 by 32 bits.
    Maddl {
        signed: bool,
        sub: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        a: Reg,
    },
    Mulh {
        signed: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    Div {
        signed: bool,
        wide: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    Unary {
        op: Unary,
        wide: bool,
        d: Reg,
        n: Reg,
    },
    Select {
        kind: Select,
        wide: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        cond: u8,
    },
    /// CCMP, and CCMN where `add`.
    Ccmp {
        add: bool,
        wide: bool,
        n: Reg,
        m: Operand,
        cond: u8,
        nzcv: u8,
    },
    Mem {
        access: Access,
        t: Reg,
        address: Address,
    },
    /// Load-acquire and store-release are not here: they order.
    Pair {
        access: Access,
        t: Reg,
        u: Reg,
        address: Address,
    },
    /// Of vector registers; `size` up to 4.
    Vmem {
        store: bool,
        size: u8,
        t: Reg,
        address: Address,
    },
    Vpair {
        store: bool,
        size: u8,
        t: Reg,
        u: Reg,
        address: Address,
    },
    /// Lanes of `1 << size` bytes; 64 bits of the registers, or all 128 where `full`.
    Lanes {
        op: Lanes,
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// FMOV between a general register and the low half of a vector register.
    FromVector {
        wide: bool,
        d: Reg,
        n: Reg,
    },
    ToVector {
        wide: bool,
        d: Reg,
        n: Reg,
    },
    /// FMOV of a scalar, 4 or 8 bytes.
    Fmov {
        wide: bool,
        d: Reg,
        n: Reg,
    },
    B {
        link: bool,
        to: i64,
    },
    Bcond {
        cond: u8,
        to: i64,
    },
    Cbz {
        wide: bool,
        nonzero: bool,
        t: Reg,
        to: i64,
    },
    Tbz {
        bit: u8,
        nonzero: bool,
        t: Reg,
        to: i64,
    },
    /// BR, BLR and RET.
    Indirect {
        link: bool,
        n: Reg,
    },
    /// Left to the interpreter.
    Other,
}

/// The instruction `i` at offset `off` of its page. What the decoder takes for undefined is [`Insn::Other`].
pub(crate) fn decode(i: u32, off: u16) -> Insn {
    let known = match bits(i, 28, 25) {
        0b1000 | 0b1001 => immediate(i, off),
        0b1010 | 0b1011 => branch(i, off),
        0b0100 | 0b0110 | 0b1100 | 0b1110 => load_store(i, off),
        0b0101 | 0b1101 => register(i),
        0b0111 | 0b1111 => vector(i),
        _ => None,
    };
    known.unwrap_or(Insn::Other)
}

fn immediate(i: u32, off: u16) -> Option<Insn> {
    let wide = i >> 31 == 1;
    let narrow = |v: u64| if wide { v } else { v & 0xffff_ffff };
    Some(match bits(i, 25, 23) {
        0 | 1 => {
            let imm = sext(bits(i, 23, 5) << 2 | bits(i, 30, 29), 21);
            Insn::Adr { d: d(i), offset: if wide { imm << 12 } else { imm + i64::from(off) } }
        }
        2 => {
            let imm = u64::from(bits(i, 21, 10)) << if i >> 22 & 1 == 1 { 12 } else { 0 };
            let flags = i >> 29 & 1 == 1;
            let op = if i >> 30 & 1 == 1 { Alu::Sub } else { Alu::Add };
            let d = if flags { d(i) } else { s(i) };
            Insn::Alu { op, wide, flags, invert: false, d, n: s(i >> 5), m: Operand::Imm(imm) }
        }
        4 => {
            let imm = bit_masks(bits(i, 22, 22), bits(i, 15, 10), bits(i, 21, 16), wide)?;
            let opc = bits(i, 30, 29);
            let op = [Alu::And, Alu::Orr, Alu::Eor, Alu::And][opc as usize];
            let d = if opc == 3 { d(i) } else { s(i) };
            if opc == 1 && bits(i, 9, 5) == 31 {
                return Some(Insn::Const { d, value: imm });
            }
            Insn::Alu { op, wide, flags: opc == 3, invert: false, d, n: z(i >> 5), m: Operand::Imm(imm) }
        }
        5 => {
            let shift = bits(i, 22, 21) * 16;
            if !wide && shift >= 32 {
                return None;
            }
            let value = u64::from(bits(i, 20, 5)) << shift;
            match bits(i, 30, 29) {
                0 => Insn::Const { d: d(i), value: narrow(!value) },
                2 => Insn::Const { d: d(i), value },
                3 => Insn::Movk { d: d(i), shift: shift as u8, value, wide },
                _ => return None,
            }
        }
        6 => return bitfield(i, wide),
        7 => {
            let from = bits(i, 15, 10) as u8;
            let valid = bits(i, 30, 29) == 0 && bits(i, 21, 21) == 0 && bits(i, 22, 22) == u32::from(wide);
            if !valid || !wide && from > 31 {
                return None;
            }
            let (d, n, m) = (d(i), z(i >> 5), z(i >> 16));
            if n == m {
                Insn::Shift { kind: Shift::Ror, wide, d, n, by: from }
            } else {
                Insn::Extract { wide, d, n, m, from }
            }
        }
        _ => return None,
    })
}

fn bitfield(i: u32, wide: bool) -> Option<Insn> {
    let (immr, imms, n) = (bits(i, 21, 16), bits(i, 15, 10), bits(i, 22, 22));
    let size = if wide { 64 } else { 32 };
    if n != u32::from(wide) || immr >= size || imms >= size {
        return None;
    }
    let (d, n) = (d(i), z(i >> 5));
    let opc = bits(i, 30, 29);
    let shift = |kind, by: u32| Insn::Shift { kind, wide, d, n, by: by as u8 };
    // What goes where: a field from `immr` comes down, or one from 0 goes up.
    let (from, to, width) =
        if imms >= immr { (immr, 0, imms - immr + 1) } else { (0, size - immr, imms + 1) };
    let (from, to, width) = (from as u8, to as u8, width as u8);
    Some(match opc {
        0 if imms == size - 1 => shift(Shift::Asr, immr),
        2 if imms == size - 1 => shift(Shift::Lsr, immr),
        2 if imms + 1 == immr => shift(Shift::Lsl, size - immr),
        0 | 2 => Insn::Field { signed: opc == 0, wide, d, n, from, to, width },
        1 => Insn::Insert { wide, d, n, from, to, width },
        _ => return None,
    })
}

fn register(i: u32) -> Option<Insn> {
    let wide = i >> 31 == 1;
    let (kind, amount) = (bits(i, 23, 22), bits(i, 15, 10) as u8);
    let op = bits(i, 30, 29);
    let flags = i >> 29 & 1 == 1;
    let sum = if i >> 30 & 1 == 1 { Alu::Sub } else { Alu::Add };
    let operand = if amount == 0 && kind != 3 {
        Operand::Reg(z(i >> 16))
    } else {
        Operand::Shifted(z(i >> 16), Shift::of(kind), amount)
    };
    Some(match (bits(i, 28, 28), bits(i, 24, 21)) {
        (0, 0..=7) => {
            if !wide && amount > 31 {
                return None;
            }
            let kind = [Alu::And, Alu::Orr, Alu::Eor, Alu::And][op as usize];
            let invert = bits(i, 21, 21) == 1;
            Insn::Alu { op: kind, wide, flags: op == 3, invert, d: d(i), n: z(i >> 5), m: operand }
        }
        (0, 8 | 10 | 12 | 14) => {
            if kind == 3 || !wide && amount > 31 {
                return None;
            }
            Insn::Alu { op: sum, wide, flags, invert: false, d: d(i), n: z(i >> 5), m: operand }
        }
        (0, 9 | 11 | 13 | 15) => {
            let shift = bits(i, 12, 10) as u8;
            if kind != 0 || shift > 4 {
                return None;
            }
            let m = Operand::Extended(z(i >> 16), bits(i, 15, 13) as u8, shift);
            let d = if flags { d(i) } else { s(i) };
            Insn::Alu { op: sum, wide, flags, invert: false, d, n: s(i >> 5), m }
        }
        (1, 0) if bits(i, 15, 10) == 0 => {
            Insn::Adc { sub: op >> 1 == 1, wide, flags, d: d(i), n: z(i >> 5), m: z(i >> 16) }
        }
        (1, 2) => {
            if op & 1 == 0 || bits(i, 10, 10) != 0 || bits(i, 4, 4) != 0 {
                return None;
            }
            let m = if bits(i, 11, 11) == 1 {
                Operand::Imm(u64::from(bits(i, 20, 16)))
            } else {
                Operand::Reg(z(i >> 16))
            };
            let (cond, nzcv) = (bits(i, 15, 12) as u8, bits(i, 3, 0) as u8);
            Insn::Ccmp { add: op == 1, wide, n: z(i >> 5), m, cond, nzcv }
        }
        (1, 4) => {
            if op & 1 != 0 || bits(i, 11, 11) != 0 {
                return None;
            }
            let kind = [Select::Csel, Select::Csinc, Select::Csinv, Select::Csneg]
                [(op & 2 | bits(i, 10, 10)) as usize];
            Insn::Select { kind, wide, d: d(i), n: z(i >> 5), m: z(i >> 16), cond: bits(i, 15, 12) as u8 }
        }
        (1, 6) if op == 0 => {
            let (d, n, m) = (d(i), z(i >> 5), z(i >> 16));
            match bits(i, 15, 10) {
                by @ 8..=11 => Insn::ShiftBy { kind: Shift::of(by), wide, d, n, m },
                by @ 2..=3 => Insn::Div { signed: by == 3, wide, d, n, m },
                _ => return None,
            }
        }
        (1, 6) if op == 2 && bits(i, 20, 16) == 0 => {
            let op = match (bits(i, 15, 10), wide) {
                (0, _) => Unary::Rbit,
                (1, _) => Unary::Rev16,
                (2, false) | (3, true) => Unary::Rev,
                (2, true) => Unary::Rev32,
                (4, _) => Unary::Clz,
                (5, _) => Unary::Cls,
                _ => return None,
            };
            Insn::Unary { op, wide, d: d(i), n: z(i >> 5) }
        }
        (1, 8..=15) => {
            if op != 0 {
                return None;
            }
            let (d, n, m, a) = (d(i), z(i >> 5), z(i >> 16), z(i >> 10));
            let sub = bits(i, 15, 15) == 1;
            match (bits(i, 23, 21), wide) {
                (0, _) => Insn::Madd { wide, sub, d, n, m, a },
                (signed @ (1 | 5), true) => Insn::Maddl { signed: signed == 1, sub, d, n, m, a },
                (signed @ (2 | 6), true) if !sub => Insn::Mulh { signed: signed == 2, d, n, m },
                _ => return None,
            }
        }
        _ => return None,
    })
}

fn branch(i: u32, off: u16) -> Option<Insn> {
    let to = |distance: i64| i64::from(off) + distance * 4;
    Some(match bits(i, 31, 29) {
        0 | 4 => Insn::B { link: i >> 31 == 1, to: to(sext(bits(i, 25, 0), 26)) },
        1 | 5 if bits(i, 25, 25) == 0 => {
            let to = to(sext(bits(i, 23, 5), 19));
            Insn::Cbz { wide: i >> 31 == 1, nonzero: bits(i, 24, 24) == 1, t: z(i), to }
        }
        1 | 5 => {
            let bit = (bits(i, 31, 31) << 5 | bits(i, 23, 19)) as u8;
            Insn::Tbz { bit, nonzero: bits(i, 24, 24) == 1, t: z(i), to: to(sext(bits(i, 18, 5), 14)) }
        }
        2 if bits(i, 25, 24) == 0 && bits(i, 4, 4) == 0 => {
            let to = to(sext(bits(i, 23, 5), 19));
            match bits(i, 3, 0) {
                14.. => Insn::B { link: false, to },
                cond => Insn::Bcond { cond: cond as u8, to },
            }
        }
        6 if bits(i, 25, 25) == 1 && bits(i, 20, 10) == 0b111_1100_0000 && bits(i, 4, 0) == 0 => {
            match bits(i, 24, 21) {
                kind @ 0..=2 => Insn::Indirect { link: kind == 1, n: z(i >> 5) },
                _ => return None,
            }
        }
        // Hints, but for those that wait; and SB.
        6 if i & 0xffff_f01f == 0xd503_201f && !(1..=3).contains(&bits(i, 11, 5)) => Insn::Nop,
        _ => return None,
    })
}

fn load_store(i: u32, off: u16) -> Option<Insn> {
    let is_vector = bits(i, 26, 26) == 1;
    let (size, opc, base) = (bits(i, 31, 30), bits(i, 23, 22), s(i >> 5));
    match (bits(i, 29, 28), bits(i, 24, 24)) {
        (1, 0) => {
            let address = Address::Page(i64::from(off) + sext(bits(i, 23, 5), 19) * 4);
            let access = |size, signed, wide| Access { store: false, size, signed, wide };
            Some(match (size, is_vector) {
                (0, false) => Insn::Mem { access: access(2, false, false), t: d(i), address },
                (1, false) => Insn::Mem { access: access(3, false, true), t: d(i), address },
                (2, false) => Insn::Mem { access: access(2, true, true), t: d(i), address },
                (_, false) => Insn::Nop,
                (3, true) => return None,
                (size, true) => Insn::Vmem { store: false, size: size as u8 + 2, t: i as u8 & 31, address },
            })
        }
        (2, _) => pair(i, is_vector),
        (3, 1) => {
            let scale = if is_vector && opc >> 1 == 1 { 4 } else { size };
            one(i, is_vector, Address::Offset(base, i64::from(bits(i, 21, 10)) << scale))
        }
        (3, _) if bits(i, 21, 21) == 0 => {
            let imm = sext(bits(i, 20, 12), 9);
            let address = match bits(i, 11, 10) {
                0 => Address::Offset(base, imm),
                1 => Address::Post(base, imm),
                // With EL0's rights.
                2 => return None,
                _ => Address::Pre(base, imm),
            };
            one(i, is_vector, address)
        }
        (3, _) if bits(i, 11, 10) == 2 => {
            let option = bits(i, 15, 13);
            if option & 2 == 0 {
                return None;
            }
            let scale = if is_vector && opc >> 1 == 1 { 4 } else { size };
            let shift = if bits(i, 12, 12) == 1 { scale as u8 } else { 0 };
            one(i, is_vector, Address::Index(base, z(i >> 16), option as u8, shift))
        }
        _ => None,
    }
}

fn one(i: u32, is_vector: bool, address: Address) -> Option<Insn> {
    let (size, opc) = (bits(i, 31, 30) as u8, bits(i, 23, 22));
    if is_vector {
        let (store, size) = match (size, opc) {
            (size, 0 | 1) => (opc == 0, size),
            (0, _) => (opc == 2, 4),
            _ => return None,
        };
        return Some(Insn::Vmem { store, size, t: i as u8 & 31, address });
    }
    let plain = !matches!(address, Address::Pre(..) | Address::Post(..));
    let (store, signed, wide) = match (size, opc) {
        (_, 0) => (true, false, size == 3),
        (_, 1) => (false, false, size == 3),
        (3, 2) if plain => return Some(Insn::Nop),
        (0..=2, 2) => (false, true, true),
        (0..=1, 3) => (false, true, false),
        _ => return None,
    };
    let access = Access { store, size, signed, wide };
    Some(Insn::Mem { access, t: if store { z(i) } else { d(i) }, address })
}

fn pair(i: u32, is_vector: bool) -> Option<Insn> {
    let (opc, store) = (bits(i, 31, 30), bits(i, 22, 22) == 0);
    let kind = bits(i, 24, 23);
    if opc == 3 || kind == 0 && opc == 1 && !is_vector {
        return None;
    }
    let scale = if is_vector { 2 + opc } else { 2 + (opc >> 1) };
    let imm = sext(bits(i, 21, 15), 7) << scale;
    let base = s(i >> 5);
    let address = match kind {
        0 | 2 => Address::Offset(base, imm),
        1 => Address::Post(base, imm),
        _ => Address::Pre(base, imm),
    };
    if is_vector {
        let (t, u) = (i as u8 & 31, (i >> 10) as u8 & 31);
        return Some(Insn::Vpair { store, size: scale as u8, t, u, address });
    }
    if opc == 1 && store {
        return None;
    }
    let access = Access { store, size: scale as u8, signed: opc == 1, wide: opc != 0 };
    let register = if store { z } else { d };
    Some(Insn::Pair { access, t: register(i), u: register(i >> 10), address })
}

fn vector(i: u32) -> Option<Insn> {
    let (d, n, m) = (i as u8 & 31, (i >> 5) as u8 & 31, (i >> 16) as u8 & 31);
    let (full, size) = (bits(i, 30, 30) == 1, bits(i, 23, 22) as u8);
    let op = match i & 0xbf20_fc00 {
        // AND, BIC, ORR; EOR. ORN and the selecting forms are not here.
        0x0e20_1c00 => [Lanes::And, Lanes::Bic, Lanes::Orr].get(size as usize).copied(),
        0x2e20_1c00 if size == 0 => Some(Lanes::Eor),
        0x0e20_8400 if full || size != 3 => Some(Lanes::Add),
        0x2e20_8400 if full || size != 3 => Some(Lanes::Sub),
        _ => None,
    };
    if let Some(op) = op {
        return Some(Insn::Lanes { op, size, full, d, n, m });
    }
    Some(match i & 0xffff_fc00 {
        0x1e26_0000 => Insn::FromVector { wide: false, d: self::d(i), n },
        0x9e66_0000 => Insn::FromVector { wide: true, d: self::d(i), n },
        0x1e27_0000 => Insn::ToVector { wide: false, d, n: z(i >> 5) },
        0x9e67_0000 => Insn::ToVector { wide: true, d, n: z(i >> 5) },
        0x1e20_4000 => Insn::Fmov { wide: false, d, n },
        0x1e60_4000 => Insn::Fmov { wide: true, d, n },
        _ => return None,
    })
}
