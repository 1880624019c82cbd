//! An assembler for the few x86-64 instructions that the back end uses (Intel SDM, volume 2).

/// A general register by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct R(pub u8);

pub(super) const RAX: R = R(0);
pub(super) const RCX: R = R(1);
pub(super) const RDX: R = R(2);
pub(super) const RBX: R = R(3);
pub(super) const RSP: R = R(4);
pub(super) const RBP: R = R(5);
pub(super) const RSI: R = R(6);
pub(super) const RDI: R = R(7);
pub(super) const R8: R = R(8);
pub(super) const R9: R = R(9);
pub(super) const R10: R = R(10);
pub(super) const R11: R = R(11);
pub(super) const R12: R = R(12);
pub(super) const R13: R = R(13);
pub(super) const R14: R = R(14);
pub(super) const R15: R = R(15);

/// A vector register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct X(pub u8);

/// A place in memory: base, index times `1 << scale`, displacement.
#[derive(Clone, Copy, Debug)]
pub(super) struct M {
    base: R,
    index: Option<(R, u8)>,
    disp: i32,
}

pub(super) const fn at(base: R, disp: i32) -> M {
    M { base, index: None, disp }
}

pub(super) const fn indexed(base: R, index: R, scale: u8, disp: i32) -> M {
    M { base, index: Some((index, scale)), disp }
}

/// Arithmetic with two operands, by its number in opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arith {
    Add = 0,
    Or = 1,
    Adc = 2,
    Sbb = 3,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts and rotations, likewise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sh {
    Rol = 0,
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// A condition, likewise; the one with the other low bit is its opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cc(pub u8);

impl Cc {
    pub const O: Self = Self(0);
    pub const B: Self = Self(2);
    pub const AE: Self = Self(3);
    pub const E: Self = Self(4);
    pub const NE: Self = Self(5);
    pub const A: Self = Self(7);
    pub const S: Self = Self(8);
    pub const GE: Self = Self(13);
    pub const G: Self = Self(15);

    pub fn not(self) -> Self {
        Self(self.0 ^ 1)
    }
}

/// Operations on two vector registers: prefix 66, then 0F and this byte.
pub(super) mod sse {
    pub const PAND: u8 = 0xdb;
    pub const PANDN: u8 = 0xdf;
    pub const POR: u8 = 0xeb;
    pub const PXOR: u8 = 0xef;
    /// By size of a lane.
    pub const PADD: [u8; 4] = [0xfc, 0xfd, 0xfe, 0xd4];
    pub const PSUB: [u8; 4] = [0xf8, 0xf9, 0xfa, 0xfb];
}

/// A forward jump that waits for its target.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(usize);

/// Code under construction. Distances are right wherever it is put, but for those that `rel32_to` makes.
#[derive(Default)]
pub(super) struct Asm {
    pub buf: Vec<u8>,
    /// Where the first byte will be, counted from the start of the code memory.
    pub origin: usize,
}

impl Asm {
    pub fn here(&self) -> usize {
        self.origin + self.buf.len()
    }

    fn u8(&mut self, b: u8) {
        self.buf.push(b);
    }

    fn i32(&mut self, v: i32) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    /// Prefix, opcode bytes, and the operands as register field and register.
    fn rr(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        self.rex(wide, reg, 0, rm, false);
        self.buf.extend_from_slice(opcode);
        self.u8(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8, force: bool) {
        let rex = u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0 || force {
            self.u8(0x40 | rex);
        }
    }

    fn rm(&mut self, wide: bool, opcode: &[u8], reg: u8, m: M) {
        self.rm_with(wide, opcode, reg, m, false);
    }

    fn rm_with(&mut self, wide: bool, opcode: &[u8], reg: u8, m: M, force: bool) {
        self.rex(wide, reg, m.index.map_or(0, |(i, _)| i.0), m.base.0, force);
        self.buf.extend_from_slice(opcode);
        let reg = (reg & 7) << 3;
        let base = m.base.0 & 7;
        // RBP and R13 have no form without a displacement.
        let mode = match m.disp {
            0 if base != 5 => 0,
            -128..=127 => 0x40,
            _ => 0x80,
        };
        match m.index {
            // RSP and R12 as a base need the second byte.
            None if base == 4 => {
                self.u8(mode | reg | 4);
                self.u8(0x24);
            }
            None => self.u8(mode | reg | base),
            Some((index, scale)) => {
                debug_assert!(index != RSP, "no index");
                self.u8(mode | reg | 4);
                self.u8(scale << 6 | (index.0 & 7) << 3 | base);
            }
        }
        match mode {
            0 => {}
            0x40 => self.u8(m.disp as u8),
            _ => self.i32(m.disp),
        }
    }

    pub fn arith(&mut self, op: Arith, wide: bool, d: R, s: R) {
        self.rr(wide, &[(op as u8) << 3 | 1], s.0, d.0);
    }

    pub fn arith_i(&mut self, op: Arith, wide: bool, d: R, imm: i32) {
        if let Ok(short) = i8::try_from(imm) {
            self.rr(wide, &[0x83], op as u8, d.0);
            self.u8(short as u8);
        } else {
            self.rr(wide, &[0x81], op as u8, d.0);
            self.i32(imm);
        }
    }

    /// `d` and what is in memory.
    pub fn arith_m(&mut self, op: Arith, wide: bool, d: R, m: M) {
        self.rm(wide, &[(op as u8) << 3 | 3], d.0, m);
    }

    /// What is in memory (64 bits) and an immediate.
    pub fn arith_mi(&mut self, op: Arith, m: M, imm: i32) {
        if let Ok(short) = i8::try_from(imm) {
            self.rm(true, &[0x83], op as u8, m);
            self.u8(short as u8);
        } else {
            self.rm(true, &[0x81], op as u8, m);
            self.i32(imm);
        }
    }

    pub fn cmp_byte(&mut self, m: M, imm: u8) {
        self.rm(false, &[0x80], 7, m);
        self.u8(imm);
    }

    pub fn test(&mut self, wide: bool, a: R, b: R) {
        self.rr(wide, &[0x85], b.0, a.0);
    }

    pub fn test_i(&mut self, wide: bool, a: R, imm: i32) {
        self.rr(wide, &[0xf7], 0, a.0);
        self.i32(imm);
    }

    /// The low byte.
    pub fn test_al(&mut self) {
        self.buf.extend_from_slice(&[0x84, 0xc0]);
    }

    pub fn mov(&mut self, wide: bool, d: R, s: R) {
        self.rr(wide, &[0x89], s.0, d.0);
    }

    /// Leaves the flags alone, as every move does.
    pub fn mov_i(&mut self, d: R, v: u64) {
        if let Ok(v) = u32::try_from(v) {
            self.rex(false, 0, 0, d.0, false);
            self.u8(0xb8 | d.0 & 7);
            self.i32(v as i32);
        } else if let Ok(v) = i32::try_from(v as i64) {
            self.rr(true, &[0xc7], 0, d.0);
            self.i32(v);
        } else {
            self.rex(true, 0, 0, d.0, false);
            self.u8(0xb8 | d.0 & 7);
            self.buf.extend_from_slice(&v.to_le_bytes());
        }
    }

    /// Loads `1 << size` bytes, zero-extended, or sign-extended to 64 bits (`wide`) or 32.
    pub fn load(&mut self, size: u8, signed: bool, wide: bool, d: R, m: M) {
        match (size, signed) {
            (0, false) => self.rm(false, &[0x0f, 0xb6], d.0, m),
            (1, false) => self.rm(false, &[0x0f, 0xb7], d.0, m),
            (0, true) => self.rm(wide, &[0x0f, 0xbe], d.0, m),
            (1, true) => self.rm(wide, &[0x0f, 0xbf], d.0, m),
            (2, true) if wide => self.rm(true, &[0x63], d.0, m),
            (2, _) => self.rm(false, &[0x8b], d.0, m),
            _ => self.rm(true, &[0x8b], d.0, m),
        }
    }

    /// Extends the low `1 << size` bytes of a register; see [`Asm::load`].
    pub fn extend(&mut self, size: u8, signed: bool, wide: bool, d: R, s: R) {
        let byte = size == 0 && s.0 >= 4;
        let mut both = |wide: bool, opcode: &[u8]| {
            // The low bytes of RSP to RDI exist with a prefix only.
            self.rex(wide, d.0, 0, s.0, byte);
            self.buf.extend_from_slice(opcode);
            self.u8(0xc0 | (d.0 & 7) << 3 | s.0 & 7);
        };
        match (size, signed) {
            (0, false) => both(false, &[0x0f, 0xb6]),
            (1, false) => both(false, &[0x0f, 0xb7]),
            (0, true) => both(wide, &[0x0f, 0xbe]),
            (1, true) => both(wide, &[0x0f, 0xbf]),
            (2, true) if wide => both(true, &[0x63]),
            (2, _) => both(false, &[0x8b]),
            _ => both(true, &[0x8b]),
        }
    }

    pub fn store(&mut self, size: u8, m: M, s: R) {
        match size {
            0 => self.rm_with(false, &[0x88], s.0, m, s.0 >= 4),
            1 => {
                self.u8(0x66);
                self.rm(false, &[0x89], s.0, m);
            }
            2 => self.rm(false, &[0x89], s.0, m),
            _ => self.rm(true, &[0x89], s.0, m),
        }
    }

    pub fn store_byte_i(&mut self, m: M, v: u8) {
        self.rm(false, &[0xc6], 0, m);
        self.u8(v);
    }

    /// Stores 64 bits, sign-extended.
    pub fn store_i(&mut self, m: M, v: i32) {
        self.rm(true, &[0xc7], 0, m);
        self.i32(v);
    }

    pub fn lea(&mut self, wide: bool, d: R, m: M) {
        self.rm(wide, &[0x8d], d.0, m);
    }

    pub fn shift_i(&mut self, op: Sh, wide: bool, d: R, by: u8) {
        if by != 0 {
            self.rr(wide, &[0xc1], op as u8, d.0);
            self.u8(by);
        }
    }

    /// By CL.
    pub fn shift_cl(&mut self, op: Sh, wide: bool, d: R) {
        self.rr(wide, &[0xd3], op as u8, d.0);
    }

    /// Right, filled from `s`.
    pub fn shrd(&mut self, wide: bool, d: R, s: R, by: u8) {
        self.rr(wide, &[0x0f, 0xac], s.0, d.0);
        self.u8(by);
    }

    pub fn not(&mut self, wide: bool, d: R) {
        self.rr(wide, &[0xf7], 2, d.0);
    }

    pub fn neg(&mut self, wide: bool, d: R) {
        self.rr(wide, &[0xf7], 3, d.0);
    }

    pub fn imul(&mut self, wide: bool, d: R, s: R) {
        self.rr(wide, &[0x0f, 0xaf], d.0, s.0);
    }

    pub fn imul_i(&mut self, d: R, s: R, imm: i32) {
        self.rr(true, &[0x69], d.0, s.0);
        self.i32(imm);
    }

    /// RDX:RAX = RAX times `s`.
    pub fn mul_high(&mut self, signed: bool, s: R) {
        self.rr(true, &[0xf7], if signed { 5 } else { 4 }, s.0);
    }

    /// RAX = RDX:RAX by `s`.
    pub fn div(&mut self, signed: bool, wide: bool, s: R) {
        self.rr(wide, &[0xf7], if signed { 7 } else { 6 }, s.0);
    }

    /// The sign of RAX into RDX.
    pub fn cqo(&mut self, wide: bool) {
        self.rex(wide, 0, 0, 0, false);
        self.u8(0x99);
    }

    pub fn bswap(&mut self, wide: bool, d: R) {
        self.rex(wide, 0, 0, d.0, false);
        self.u8(0x0f);
        self.u8(0xc8 | d.0 & 7);
    }

    pub fn lzcnt(&mut self, wide: bool, d: R, s: R) {
        self.u8(0xf3);
        self.rr(wide, &[0x0f, 0xbd], d.0, s.0);
    }

    /// Bit `n` of `a` into the carry.
    pub fn bt(&mut self, wide: bool, a: R, n: R) {
        self.rr(wide, &[0x0f, 0xa3], n.0, a.0);
    }

    pub fn bt_i(&mut self, wide: bool, a: R, n: u8) {
        self.rr(wide, &[0x0f, 0xba], 4, a.0);
        self.u8(n);
    }

    pub fn cmov(&mut self, cc: Cc, wide: bool, d: R, s: R) {
        self.rr(wide, &[0x0f, 0x40 | cc.0], d.0, s.0);
    }

    /// AL.
    pub fn set_al(&mut self, cc: Cc) {
        self.buf.extend_from_slice(&[0x0f, 0x90 | cc.0, 0xc0]);
    }

    pub fn lahf(&mut self) {
        self.u8(0x9f);
    }

    pub fn cmc(&mut self) {
        self.u8(0xf5);
    }

    pub fn push(&mut self, r: R) {
        self.rex(false, 0, 0, r.0, false);
        self.u8(0x50 | r.0 & 7);
    }

    pub fn pop(&mut self, r: R) {
        self.rex(false, 0, 0, r.0, false);
        self.u8(0x58 | r.0 & 7);
    }

    pub fn ret(&mut self) {
        self.u8(0xc3);
    }

    pub fn jcc(&mut self, cc: Cc) -> Jump {
        self.buf.extend_from_slice(&[0x0f, 0x80 | cc.0]);
        self.i32(0);
        Jump(self.buf.len())
    }

    pub fn jmp(&mut self) -> Jump {
        self.u8(0xe9);
        self.i32(0);
        Jump(self.buf.len())
    }

    /// The jump goes here.
    pub fn land(&mut self, j: Jump) {
        let distance = (self.buf.len() - j.0) as i32;
        self.buf[j.0 - 4..j.0].copy_from_slice(&distance.to_le_bytes());
    }

    fn rel32_to(&mut self, to: usize) {
        let distance = to as i64 - (self.here() + 4) as i64;
        self.i32(distance as i32);
    }

    /// To a place in the code memory.
    pub fn jmp_to(&mut self, to: usize) {
        self.u8(0xe9);
        self.rel32_to(to);
    }

    pub fn jcc_to(&mut self, cc: Cc, to: usize) {
        self.buf.extend_from_slice(&[0x0f, 0x80 | cc.0]);
        self.rel32_to(to);
    }

    pub fn call_to(&mut self, to: usize) {
        self.u8(0xe8);
        self.rel32_to(to);
    }

    pub fn call(&mut self, r: R) {
        self.rr(false, &[0xff], 2, r.0);
    }

    pub fn jmp_r(&mut self, r: R) {
        self.rr(false, &[0xff], 4, r.0);
    }

    /// 16 bytes from memory; there need be no alignment.
    pub fn movups(&mut self, d: X, m: M) {
        self.rm(false, &[0x0f, 0x10], d.0, m);
    }

    pub fn movups_to(&mut self, m: M, s: X) {
        self.rm(false, &[0x0f, 0x11], s.0, m);
    }

    /// 4 or 8 bytes from memory, zeros above.
    pub fn mov_low(&mut self, wide: bool, d: X, m: M) {
        self.u8(if wide { 0xf3 } else { 0x66 });
        self.rm(false, &[0x0f, if wide { 0x7e } else { 0x6e }], d.0, m);
    }

    /// A general register, zeros above.
    pub fn mov_low_r(&mut self, wide: bool, d: X, s: R) {
        self.u8(0x66);
        self.rr(wide, &[0x0f, 0x6e], d.0, s.0);
    }

    /// Clears the upper half.
    pub fn low_half(&mut self, d: X) {
        self.u8(0xf3);
        self.rr(false, &[0x0f, 0x7e], d.0, d.0);
    }

    pub fn vector(&mut self, opcode: u8, d: X, s: X) {
        self.u8(0x66);
        self.rr(false, &[0x0f, opcode], d.0, s.0);
    }
}

impl Asm {
    /// Stores a vector register, or its lower half and zeros.
    pub fn movups_to_vector(&mut self, full: bool, m: M, s: X) {
        if !full {
            self.low_half(s);
        }
        self.movups_to(m, s);
    }
}
