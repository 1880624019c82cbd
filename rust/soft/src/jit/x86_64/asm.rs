//! An assembler for the few x86-64 instructions that the back end uses (Intel SDM, volume 2).

use crate::jit::flow::Uses;
pub(super) use crate::jit::registers::{General as R, Vector as X};

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
/// What it is for in all machine code.
pub(super) const FUEL: R = R13;
pub(super) const TLB: R = R14;
pub(super) const TAG: R = R15;

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
    pub(super) const O: Self = Self(0);
    pub(super) const B: Self = Self(2);
    pub(super) const AE: Self = Self(3);
    pub(super) const E: Self = Self(4);
    pub(super) const NE: Self = Self(5);
    pub(super) const BE: Self = Self(6);
    pub(super) const A: Self = Self(7);
    pub(super) const S: Self = Self(8);
    /// The parity flag, which says that numbers do not compare.
    pub(super) const P: Self = Self(10);
    pub(super) const GE: Self = Self(13);
    pub(super) const LE: Self = Self(14);
    pub(super) const G: Self = Self(15);

    pub(super) fn not(self) -> Self {
        Self(self.0 ^ 1)
    }
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
    /// What the block that is translated does with registers.
    pub uses: Uses,
}

impl Asm {
    pub(super) fn here(&self) -> usize {
        self.origin + self.buf.len()
    }

    pub(super) fn u8(&mut self, b: u8) {
        self.buf.push(b);
    }

    pub(super) fn i32(&mut self, v: i32) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    /// A few: one by one takes less time than a call for so many.
    fn bytes(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.u8(*b);
        }
    }

    /// Prefix, opcode bytes, and the operands as register field and register.
    pub(super) fn rr(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        self.rex(wide, reg, 0, rm, false);
        self.bytes(opcode);
        self.u8(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8, force: bool) {
        let rex = u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0 || force {
            self.u8(0x40 | rex);
        }
    }

    pub(super) fn rm(&mut self, wide: bool, opcode: &[u8], reg: u8, m: M) {
        self.rm_with(wide, opcode, reg, m, false);
    }

    /// A register and what is at a place in the code memory.
    pub(super) fn r_at(&mut self, opcode: &[u8], reg: u8, place: usize) {
        self.rex(false, reg, 0, 0, false);
        self.bytes(opcode);
        self.u8((reg & 7) << 3 | 5);
        self.rel32_to(place);
    }

    fn rm_with(&mut self, wide: bool, opcode: &[u8], reg: u8, m: M, force: bool) {
        self.rex(wide, reg, m.index.map_or(0, |(i, _)| i.0), m.base.0, force);
        self.bytes(opcode);
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

    pub(super) fn arith(&mut self, op: Arith, wide: bool, d: R, s: R) {
        self.rr(wide, &[(op as u8) << 3 | 1], s.0, d.0);
    }

    pub(super) fn arith_i(&mut self, op: Arith, wide: bool, d: R, imm: i32) {
        if let Ok(short) = i8::try_from(imm) {
            self.rr(wide, &[0x83], op as u8, d.0);
            self.u8(short as u8);
        } else {
            self.rr(wide, &[0x81], op as u8, d.0);
            self.i32(imm);
        }
    }

    /// `d` and what is in memory.
    pub(super) fn arith_m(&mut self, op: Arith, wide: bool, d: R, m: M) {
        self.rm(wide, &[(op as u8) << 3 | 3], d.0, m);
    }

    /// What is in memory (64 bits) and an immediate.
    pub(super) fn arith_mi(&mut self, op: Arith, m: M, imm: i32) {
        if let Ok(short) = i8::try_from(imm) {
            self.rm(true, &[0x83], op as u8, m);
            self.u8(short as u8);
        } else {
            self.rm(true, &[0x81], op as u8, m);
            self.i32(imm);
        }
    }

    pub(super) fn cmp_byte(&mut self, m: M, imm: u8) {
        self.rm(false, &[0x80], 7, m);
        self.u8(imm);
    }

    /// What is in memory, a byte, and an immediate.
    pub(super) fn byte_i(&mut self, op: Arith, m: M, imm: u8) {
        self.rm(false, &[0x80], op as u8, m);
        self.u8(imm);
    }

    pub(super) fn test(&mut self, wide: bool, a: R, b: R) {
        self.rr(wide, &[0x85], b.0, a.0);
    }

    pub(super) fn test_i(&mut self, wide: bool, a: R, imm: i32) {
        self.rr(wide, &[0xf7], 0, a.0);
        self.i32(imm);
    }

    /// What is in memory, a byte.
    pub(super) fn test_byte(&mut self, m: M, imm: u8) {
        self.rm(false, &[0xf6], 0, m);
        self.u8(imm);
    }

    /// What is in memory, 32 bits.
    pub(super) fn test_m(&mut self, m: M, imm: i32) {
        self.rm(false, &[0xf7], 0, m);
        self.i32(imm);
    }

    /// The low byte.
    pub(super) fn test_al(&mut self) {
        self.buf.extend_from_slice(&[0x84, 0xc0]);
    }

    pub(super) fn mov(&mut self, wide: bool, d: R, s: R) {
        self.rr(wide, &[0x89], s.0, d.0);
    }

    /// Leaves the flags alone, as every move does.
    pub(super) fn mov_i(&mut self, d: R, v: u64) {
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
    pub(super) fn load(&mut self, size: u8, signed: bool, wide: bool, d: R, m: M) {
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
    pub(super) fn extend(&mut self, size: u8, signed: bool, wide: bool, d: R, s: R) {
        let byte = size == 0 && s.0 >= 4;
        let mut both = |wide: bool, opcode: &[u8]| {
            // The low bytes of RSP to RDI exist with a prefix only.
            self.rex(wide, d.0, 0, s.0, byte);
            self.bytes(opcode);
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

    pub(super) fn store(&mut self, size: u8, m: M, s: R) {
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

    pub(super) fn store_byte_i(&mut self, m: M, v: u8) {
        self.rm(false, &[0xc6], 0, m);
        self.u8(v);
    }

    /// Stores 64 bits, sign-extended.
    pub(super) fn store_i(&mut self, m: M, v: i32) {
        self.rm(true, &[0xc7], 0, m);
        self.i32(v);
    }

    pub(super) fn lea(&mut self, wide: bool, d: R, m: M) {
        self.rm(wide, &[0x8d], d.0, m);
    }

    pub(super) fn shift_i(&mut self, op: Sh, wide: bool, d: R, by: u8) {
        if by != 0 {
            self.rr(wide, &[0xc1], op as u8, d.0);
            self.u8(by);
        }
    }

    /// By CL.
    pub(super) fn shift_cl(&mut self, op: Sh, wide: bool, d: R) {
        self.rr(wide, &[0xd3], op as u8, d.0);
    }

    /// An instruction of three operands: map, W, what is inverted between, prefix.
    fn vex(&mut self, map: u8, wide: bool, d: R, between: u8, s: R, prefix: u8) {
        self.u8(0xc4);
        self.u8((!d.0 >> 3 & 1) << 7 | 0x40 | (!s.0 >> 3 & 1) << 5 | map);
        self.u8(u8::from(wide) << 7 | (!between & 15) << 3 | prefix);
    }

    /// `s` turned right into `d`; the flags stay (BMI2, as the next).
    pub(super) fn rorx(&mut self, wide: bool, d: R, s: R, by: u8) {
        self.vex(3, wide, d, 0, s, 3);
        self.u8(0xf0);
        self.u8(0xc0 | (d.0 & 7) << 3 | s.0 & 7);
        self.u8(by);
    }

    /// Some of the bits of `s` in `d`, moved right, with anything above them: none of its highest `by` (of 32).
    pub(super) fn shifted_right(&mut self, bmi2: bool, d: R, s: R, by: u8) {
        if bmi2 {
            return self.rorx(false, d, s, by);
        }
        self.mov(false, d, s);
        self.shift_i(Sh::Shr, false, d, by);
    }

    /// `s` shifted by a register into `d`; the flags stay. There is no rotation among these.
    pub(super) fn shift_x(&mut self, op: Sh, wide: bool, d: R, s: R, by: R) {
        let prefix = match op {
            Sh::Shl => 1,
            Sh::Sar => 2,
            _ => 3,
        };
        debug_assert!(matches!(op, Sh::Shl | Sh::Shr | Sh::Sar), "a shift");
        self.vex(2, wide, d, by.0, s, prefix);
        self.u8(0xf7);
        self.u8(0xc0 | (d.0 & 7) << 3 | s.0 & 7);
    }

    /// Each lane of 4 or 8 bytes (`wide`) of `s` shifted left or right by that of `by`; what is too far is lost (AVX2).
    pub(super) fn shift_each(&mut self, left: bool, wide: bool, d: X, s: X, by: X) {
        self.vex(2, wide, R(d.0), s.0, R(by.0), 1);
        self.u8(if left { 0x47 } else { 0x45 });
        self.u8(0xc0 | (d.0 & 7) << 3 | by.0 & 7);
    }

    /// The four lowest halves to singles (F16C, as the next).
    pub(super) fn halves_to_singles(&mut self, d: X, s: X) {
        self.vex(2, false, R(d.0), 0, R(s.0), 1);
        self.u8(0x13);
        self.u8(0xc0 | (d.0 & 7) << 3 | s.0 & 7);
    }

    /// Four singles to halves, rounded to nearest; zeros above.
    pub(super) fn singles_to_halves(&mut self, d: X, s: X) {
        self.vex(3, false, R(s.0), 0, R(d.0), 1);
        self.u8(0x1d);
        self.u8(0xc0 | (s.0 & 7) << 3 | d.0 & 7);
        self.u8(0);
    }

    /// `m` and what is not in `n` into `d` (BMI1).
    pub(super) fn andn(&mut self, wide: bool, d: R, n: R, m: R) {
        self.vex(2, wide, d, n.0, m, 0);
        self.u8(0xf2);
        self.u8(0xc0 | (d.0 & 7) << 3 | m.0 & 7);
    }

    /// Right, filled from `s`.
    pub(super) fn shrd(&mut self, wide: bool, d: R, s: R, by: u8) {
        self.rr(wide, &[0x0f, 0xac], s.0, d.0);
        self.u8(by);
    }

    pub(super) fn not(&mut self, wide: bool, d: R) {
        self.rr(wide, &[0xf7], 2, d.0);
    }

    pub(super) fn neg(&mut self, wide: bool, d: R) {
        self.rr(wide, &[0xf7], 3, d.0);
    }

    pub(super) fn imul(&mut self, wide: bool, d: R, s: R) {
        self.rr(wide, &[0x0f, 0xaf], d.0, s.0);
    }

    pub(super) fn imul_i(&mut self, d: R, s: R, imm: i32) {
        self.rr(true, &[0x69], d.0, s.0);
        self.i32(imm);
    }

    /// RDX:RAX = RAX times `s`.
    pub(super) fn mul_high(&mut self, signed: bool, s: R) {
        self.rr(true, &[0xf7], if signed { 5 } else { 4 }, s.0);
    }

    /// RAX = RDX:RAX by `s`.
    pub(super) fn div(&mut self, signed: bool, wide: bool, s: R) {
        self.rr(wide, &[0xf7], if signed { 7 } else { 6 }, s.0);
    }

    /// The sign of RAX into RDX.
    pub(super) fn cqo(&mut self, wide: bool) {
        self.rex(wide, 0, 0, 0, false);
        self.u8(0x99);
    }

    pub(super) fn bswap(&mut self, wide: bool, d: R) {
        self.rex(wide, 0, 0, d.0, false);
        self.u8(0x0f);
        self.u8(0xc8 | d.0 & 7);
    }

    pub(super) fn lzcnt(&mut self, wide: bool, d: R, s: R) {
        self.u8(0xf3);
        self.rr(wide, &[0x0f, 0xbd], d.0, s.0);
    }

    /// CRC-32C of `1 << size` bytes of `s` on top of `d`; `s` is none of RSP, RBP, RSI and RDI for a byte.
    pub(super) fn crc32(&mut self, size: u8, d: R, s: R) {
        if size == 1 {
            self.u8(0x66);
        }
        self.u8(0xf2);
        self.rr(size == 3, &[0x0f, 0x38, if size == 0 { 0xf0 } else { 0xf1 }], d.0, s.0);
    }

    /// Bit `n` of `a` into the carry.
    pub(super) fn bt(&mut self, wide: bool, a: R, n: R) {
        self.rr(wide, &[0x0f, 0xa3], n.0, a.0);
    }

    pub(super) fn bt_i(&mut self, wide: bool, a: R, n: u8) {
        self.rr(wide, &[0x0f, 0xba], 4, a.0);
        self.u8(n);
    }

    pub(super) fn cmov(&mut self, cc: Cc, wide: bool, d: R, s: R) {
        self.rr(wide, &[0x0f, 0x40 | cc.0], d.0, s.0);
    }

    /// AL.
    pub(super) fn set_al(&mut self, cc: Cc) {
        self.buf.extend_from_slice(&[0x0f, 0x90 | cc.0, 0xc0]);
    }

    pub(super) fn lahf(&mut self) {
        self.u8(0x9f);
    }

    pub(super) fn cmc(&mut self) {
        self.u8(0xf5);
    }

    pub(super) fn push(&mut self, r: R) {
        self.rex(false, 0, 0, r.0, false);
        self.u8(0x50 | r.0 & 7);
    }

    pub(super) fn pop(&mut self, r: R) {
        self.rex(false, 0, 0, r.0, false);
        self.u8(0x58 | r.0 & 7);
    }

    pub(super) fn ret(&mut self) {
        self.u8(0xc3);
    }

    pub(super) fn jcc(&mut self, cc: Cc) -> Jump {
        self.buf.extend_from_slice(&[0x0f, 0x80 | cc.0]);
        self.i32(0);
        Jump(self.buf.len())
    }

    pub(super) fn jmp(&mut self) -> Jump {
        self.u8(0xe9);
        self.i32(0);
        Jump(self.buf.len())
    }

    /// The jump goes here.
    pub(super) fn land(&mut self, j: Jump) {
        let distance = (self.buf.len() - j.0) as i32;
        self.buf[j.0 - 4..j.0].copy_from_slice(&distance.to_le_bytes());
    }

    fn rel32_to(&mut self, to: usize) {
        let distance = to as i64 - (self.here() + 4) as i64;
        self.i32(distance as i32);
    }

    /// To a place in the code memory.
    pub(super) fn jmp_to(&mut self, to: usize) {
        self.u8(0xe9);
        self.rel32_to(to);
    }

    pub(super) fn jcc_to(&mut self, cc: Cc, to: usize) {
        self.buf.extend_from_slice(&[0x0f, 0x80 | cc.0]);
        self.rel32_to(to);
    }

    pub(super) fn call_to(&mut self, to: usize) {
        self.u8(0xe8);
        self.rel32_to(to);
    }

    pub(super) fn call(&mut self, r: R) {
        self.rr(false, &[0xff], 2, r.0);
    }

    pub(super) fn jmp_r(&mut self, r: R) {
        self.rr(false, &[0xff], 4, r.0);
    }

    /// An instruction of two bytes whose opcode is one less for bytes. `r` is one of RAX, RCX, RDX and RBX for a byte.
    fn locked(&mut self, size: u8, opcode: u8, r: R, m: M) {
        debug_assert!(size != 0 || r.0 < 4, "its low byte has no name");
        if size == 1 {
            self.u8(0x66);
        }
        self.u8(0xf0);
        self.rm(size == 3, &[0x0f, opcode - u8::from(size == 0)], r.0, m);
    }

    /// Stores `new` where RAX is, in one step; RAX becomes what was there, and the zero flag says whether it was
    /// stored.
    pub(super) fn compare_exchange(&mut self, size: u8, m: M, new: R) {
        self.locked(size, 0xb1, new, m);
    }

    /// Stores RCX:RBX where RDX:RAX is, 16 aligned bytes in one step; RDX:RAX become what was there, and the zero flag
    /// says whether they were stored.
    pub(super) fn compare_exchange_16(&mut self, m: M) {
        self.u8(0xf0);
        self.rm(true, &[0x0f, 0xc7], 1, m);
    }

    /// Adds in one step; the register becomes what was there.
    pub(super) fn exchange_add(&mut self, size: u8, m: M, r: R) {
        self.locked(size, 0xc1, r, m);
    }

    /// Changes places in one step.
    pub(super) fn exchange(&mut self, size: u8, m: M, r: R) {
        debug_assert!(size != 0 || r.0 < 4, "its low byte has no name");
        if size == 1 {
            self.u8(0x66);
        }
        self.rm(size == 3, &[if size == 0 { 0x86 } else { 0x87 }], r.0, m);
    }

    /// Orders all accesses before it and all behind it.
    pub(super) fn mfence(&mut self) {
        self.buf.extend_from_slice(&[0x0f, 0xae, 0xf0]);
    }

    pub(super) fn jmp_m(&mut self, m: M) {
        self.rm(false, &[0xff], 4, m);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the code below is, as GNU as writes it (Intel syntax), and what it makes of that.
    const EXPECTED: &str = "\
add rax, rcx|cmp r9d, ebp|sub r15, 127|and rdx, -4096|or eax, [rbx-128]|xor rcx, [rbx+624]|\
sub qword ptr [rbx+1000], 64|cmp byte ptr [rbx+4], 0|or byte ptr [rbx+4], 3|and byte ptr [rbx+4], 13|test rsi, rsi|test r8d, 0x40000000|test al, al|\
mov r12, rsi|mov ebp, r11d|mov r10d, 0xffffffff|mov r13, -5|movabs rax, 0x123456789abcdef0|\
movzx eax, byte ptr [r13]|movzx esi, word ptr [rax+2]|movsx rdi, byte ptr [r12+8]|movsx r9d, word ptr [rbp]|\
movsxd rax, dword ptr [rax]|mov ecx, [rbx+rcx*4+16]|mov r15, [r14]|\
movzx eax, bpl|movsx rcx, sil|movsxd rcx, r8d|\
mov byte ptr [rax], bpl|mov byte ptr [rax+1], cl|mov word ptr [r12], r9w|mov [rax+4], edi|mov [r13+8], r13|\
mov byte ptr [rbx+1], 2|mov qword ptr [rbx+8], -1|lea r8, [rsi+r15*1]|lea ebp, [r12+r13*8]|\
shl eax, 5|sar r14, 63|ror ebx, 7|rol r9, 32|shr rdx, cl|shrd r8, rsi, 9|not rcx|neg ebp|imul r9, rax|\
imul rax, rax, 0x10210000|mul rsi|imul r12|div r9|idiv ebp|cqo|cdq|bswap r10|bswap eax|lzcnt r11d, r9d|\
bt ecx, eax|bt r12, 40|cmovne r8, r15|cmovb ebp, ecx|setge al|lahf|cmc|push r12|push rbx|pop rbp|ret|\
call rax|jmp rdx|jmp [rdx+rcx*2]|crc32 eax, cl|crc32 eax, cx|crc32 eax, ecx|crc32 rax, r9|lock cmpxchg [rdx], cl|lock cmpxchg [rdx], cx|lock cmpxchg [rdx], ecx|lock cmpxchg [rdx], rcx|\
lock cmpxchg16b [r14]|lock xadd [rdx], al|lock xadd [rdx], ax|lock xadd [rdx], eax|lock xadd [rdx], rax|xchg [rax], cl|xchg [rax], cx|\
xchg [rax], ecx|xchg [rax], rcx|mfence|test byte ptr [rbx+600], 16|test dword ptr [rbx+596], 0x1c00000|\
rorx r12d, ebp, 7|rorx rcx, r9, 63|shlx eax, r9d, r15d|sarx r8, rsi, rcx|shrx rcx, rax, rbp|andn r8d, r15d, ecx|\
andn rax, rcx, r9";

    fn all() -> Vec<u8> {
        let mut asm = Asm::default();
        let a = &mut asm;
        a.arith(Arith::Add, true, RAX, RCX);
        a.arith(Arith::Cmp, false, R9, RBP);
        a.arith_i(Arith::Sub, true, R15, 127);
        a.arith_i(Arith::And, true, RDX, -4096);
        a.arith_m(Arith::Or, false, RAX, at(RBX, -128));
        a.arith_m(Arith::Xor, true, RCX, at(RBX, 624));
        a.arith_mi(Arith::Sub, at(RBX, 1000), 64);
        a.cmp_byte(at(RBX, 4), 0);
        a.byte_i(Arith::Or, at(RBX, 4), 3);
        a.byte_i(Arith::And, at(RBX, 4), 13);
        a.test(true, RSI, RSI);
        a.test_i(false, R8, 0x4000_0000);
        a.test_al();
        a.mov(true, R12, RSI);
        a.mov(false, RBP, R11);
        a.mov_i(R10, 0xffff_ffff);
        a.mov_i(R13, -5_i64 as u64);
        a.mov_i(RAX, 0x1234_5678_9abc_def0);
        a.load(0, false, false, RAX, at(R13, 0));
        a.load(1, false, false, RSI, at(RAX, 2));
        a.load(0, true, true, RDI, at(R12, 8));
        a.load(1, true, false, R9, at(RBP, 0));
        a.load(2, true, true, RAX, at(RAX, 0));
        a.load(2, false, false, RCX, indexed(RBX, RCX, 2, 16));
        a.load(3, false, true, R15, at(R14, 0));
        a.extend(0, false, false, RAX, RBP);
        a.extend(0, true, true, RCX, RSI);
        a.extend(2, true, true, RCX, R8);
        a.store(0, at(RAX, 0), RBP);
        a.store(0, at(RAX, 1), RCX);
        a.store(1, at(R12, 0), R9);
        a.store(2, at(RAX, 4), RDI);
        a.store(3, at(R13, 8), R13);
        a.store_byte_i(at(RBX, 1), 2);
        a.store_i(at(RBX, 8), -1);
        a.lea(true, R8, indexed(RSI, R15, 0, 0));
        a.lea(false, RBP, indexed(R12, R13, 3, 0));
        a.shift_i(Sh::Shl, false, RAX, 5);
        a.shift_i(Sh::Sar, true, R14, 63);
        a.shift_i(Sh::Ror, false, RBX, 7);
        a.shift_i(Sh::Rol, true, R9, 32);
        a.shift_cl(Sh::Shr, true, RDX);
        a.shrd(true, R8, RSI, 9);
        a.not(true, RCX);
        a.neg(false, RBP);
        a.imul(true, R9, RAX);
        a.imul_i(RAX, RAX, 0x1021_0000);
        a.mul_high(false, RSI);
        a.mul_high(true, R12);
        a.div(false, true, R9);
        a.div(true, false, RBP);
        a.cqo(true);
        a.cqo(false);
        a.bswap(true, R10);
        a.bswap(false, RAX);
        a.lzcnt(false, R11, R9);
        a.bt(false, RCX, RAX);
        a.bt_i(true, R12, 40);
        a.cmov(Cc::NE, true, R8, R15);
        a.cmov(Cc::B, false, RBP, RCX);
        a.set_al(Cc::GE);
        a.lahf();
        a.cmc();
        a.push(R12);
        a.push(RBX);
        a.pop(RBP);
        a.ret();
        a.call(RAX);
        a.jmp_r(RDX);
        a.jmp_m(indexed(RDX, RCX, 1, 0));
        for size in 0..3 {
            a.crc32(size, RAX, RCX);
        }
        a.crc32(3, RAX, R9);
        for size in 0..4 {
            a.compare_exchange(size, at(RDX, 0), RCX);
        }
        a.compare_exchange_16(at(R14, 0));
        for size in 0..4 {
            a.exchange_add(size, at(RDX, 0), RAX);
        }
        for size in 0..4 {
            a.exchange(size, at(RAX, 0), RCX);
        }
        a.mfence();
        a.test_byte(at(RBX, 600), 16);
        a.test_m(at(RBX, 596), 0x01c0_0000);
        a.rorx(false, R12, RBP, 7);
        a.rorx(true, RCX, R9, 63);
        a.shift_x(Sh::Shl, false, RAX, R9, R15);
        a.shift_x(Sh::Sar, true, R8, RSI, RCX);
        a.shift_x(Sh::Shr, true, RCX, RAX, RBP);
        a.andn(false, R8, R15, RCX);
        a.andn(true, RAX, RCX, R9);
        asm.buf
    }

    /// The disassembler's words for some code, an instruction a line.
    fn disassembled(code: &[u8]) -> Option<Vec<String>> {
        let name = format!("supermachine-asm-{}-{}", std::process::id(), code.len());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, code).ok()?;
        let out = std::process::Command::new("objdump")
            .args(["-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--no-show-raw-insn"])
            .arg(&file)
            .output();
        let _ = std::fs::remove_file(&file);
        let text = String::from_utf8(out.ok().filter(|o| o.status.success())?.stdout).ok()?;
        let lines = text.lines().filter_map(|line| line.split_once(":\t"));
        Some(lines.map(|(_, insn)| insn.to_owned()).collect())
    }

    /// Without what the two may write differently: white space, sizes that registers tell, bases of numbers.
    fn plain(insn: &str) -> String {
        let mut text = insn.split(" #").next().unwrap_or(insn).to_owned();
        for word in [
            "qword ptr",
            "dword ptr",
            "QWORD PTR",
            "DWORD PTR",
            "XMMWORD PTR",
            "OWORD PTR",
            "BYTE PTR",
            "WORD PTR",
            "byte ptr",
            "word ptr",
        ] {
            text = text.replace(word, "");
        }
        let mut out = String::new();
        let mut number = String::new();
        for c in text.chars().filter(|c| !c.is_whitespace()).chain([' ']) {
            let inside = out.ends_with(|p: char| p.is_alphanumeric());
            if c.is_ascii_digit() && !inside || !number.is_empty() && c.is_ascii_alphanumeric() {
                number.push(c);
                continue;
            }
            if !number.is_empty() {
                let value = match number.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
                    None => number.parse().unwrap(),
                };
                let negative = value as i64;
                out = match out.pop() {
                    Some('-') => format!("{out}+{}", negative.wrapping_neg() as u64),
                    Some(p) => format!("{out}{p}{value}"),
                    None => value.to_string(),
                };
                number.clear();
            }
            out.push(c);
        }
        let out = out.trim().replace("+0]", "]").replace(",+", ",");
        // A 64-bit negative number, whether as one or not.
        out.replace("[0+", "[")
    }

    /// Whether the disassembler reads the code as what is expected, separated by bars.
    pub(crate) fn check(code: &[u8], expected: &str) {
        let Some(found) = disassembled(code) else {
            assert!(std::env::var_os("CI").is_none(), "objdump is missing");
            return println!("SKIPPED: objdump is missing");
        };
        let wanted: Vec<&str> = expected.split('|').collect();
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!(plain(found), plain(wanted), "{found} / {wanted}");
        }
        assert_eq!(found.len(), wanted.len());
    }

    #[test]
    fn instructions_are_what_the_disassembler_says() {
        check(&all(), EXPECTED);
    }

    #[test]
    fn forward_jumps_land_where_they_are_told_to() {
        let mut a = Asm::default();
        let over = a.jcc(Cc::E);
        let end = a.jmp();
        a.land(over);
        a.ret();
        a.land(end);
        a.jmp_to(0);
        assert_eq!(a.buf, [0x0f, 0x84, 5, 0, 0, 0, 0xe9, 1, 0, 0, 0, 0xc3, 0xe9, 0xef, 0xff, 0xff, 0xff]);
    }
}
