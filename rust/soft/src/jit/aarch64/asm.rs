//! An assembler for the few A64 instructions that the back end makes itself (Arm ARM, C6.2 and C7.2). What the guest's
//! instructions become is mostly those themselves, with other registers: see [`with`].

pub(super) use crate::jit::registers::{General as R, Vector as V};

impl R {
    /// In the fields of an instruction where Rd, Rn, Ra and Rm are.
    pub(super) fn d(self) -> u32 {
        self.0.into()
    }

    pub(super) fn n(self) -> u32 {
        u32::from(self.0) << 5
    }

    fn a(self) -> u32 {
        u32::from(self.0) << 10
    }

    pub(super) fn m(self) -> u32 {
        u32::from(self.0) << 16
    }
}

pub(super) const ZR: R = R(31);
/// The stack pointer, where an instruction reads 31 so.
pub(super) const SP: R = R(31);
pub(super) const LR: R = R(30);

/// A forward branch that waits for its target.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(usize);

/// Code under construction.
#[derive(Default)]
pub(super) struct Asm {
    pub buf: Vec<u8>,
    /// Where the first byte will be, counted from the start of the code memory.
    pub origin: usize,
}

/// A guest's instruction with these registers in its fields Rd, Rn, Rm and Ra, and the others as they are.
pub(super) fn with(word: u32, d: Option<R>, n: Option<R>, m: Option<R>, a: Option<R>) -> u32 {
    let mut word = word;
    for (shift, r) in [(0, d), (5, n), (16, m), (10, a)] {
        if let Some(r) = r {
            word = word & !(31 << shift) | u32::from(r.0) << shift;
        }
    }
    word
}

/// The distance of a branch of 26 bits.
pub(super) fn branch(from: usize, to: usize) -> u32 {
    0x1400_0000 | ((to as i64 - from as i64) >> 2) as u32 & 0x03ff_ffff
}

impl Asm {
    pub(super) fn here(&self) -> usize {
        self.origin + self.buf.len()
    }

    pub(super) fn word(&mut self, word: u32) {
        self.buf.extend_from_slice(&word.to_le_bytes());
    }

    /// A constant, by as few of MOVZ, MOVN and MOVK as it takes.
    pub(super) fn mov_i(&mut self, d: R, v: u64) {
        let parts = |v: u64| (0..4).map(move |n| ((v >> (16 * n)) as u32 & 0xffff, n));
        let inverted = parts(v).filter(|p| p.0 == 0xffff).count() > parts(v).filter(|p| p.0 == 0).count();
        let (first, rest) = if inverted { (0x9280_0000, 0xffff) } else { (0xd280_0000, 0) };
        let mut opcode = first;
        for (part, n) in parts(v).filter(|p| p.0 != rest) {
            let part = if inverted && opcode == first { part ^ 0xffff } else { part };
            self.word(opcode | n << 21 | part << 5 | d.d());
            opcode = 0xf280_0000;
        }
        if opcode == first {
            self.word(first | d.d());
        }
    }

    pub(super) fn mov(&mut self, d: R, s: R) {
        self.word(0xaa00_03e0 | s.m() | d.d());
    }

    /// `d` becomes `n` plus a constant. Neither may be 31.
    pub(super) fn add_i(&mut self, d: R, n: R, v: i64) {
        let (opcode, size) = if v < 0 { (0xd100_0000, v.unsigned_abs()) } else { (0x9100_0000, v as u64) };
        if size >= 1 << 24 {
            // What the constant is made in is neither operand: it is not in the pool.
            debug_assert!(n != super::LONG);
            self.mov_i(super::LONG, v as u64);
            return self.word(0x8b00_0000 | super::LONG.m() | n.n() | d.d());
        }
        let (high, low) = ((size >> 12) as u32, size as u32 & 0xfff);
        let mut from = n;
        if high != 0 {
            self.word(opcode | 1 << 22 | high << 10 | n.n() | d.d());
            from = d;
        }
        if low != 0 || high == 0 && d != n {
            self.word(opcode | low << 10 | from.n() | d.d());
        }
    }

    /// `d` becomes `n` plus `m` shifted left.
    pub(super) fn add(&mut self, d: R, n: R, m: R, by: u8) {
        self.word(0x8b00_0000 | m.m() | u32::from(by) << 10 | n.n() | d.d());
    }

    /// The same with `m` extended: 2 and 6 from 32 bits, 3 whole.
    pub(super) fn add_extended(&mut self, d: R, n: R, m: R, option: u8, by: u8) {
        self.word(0x8b20_0000 | m.m() | u32::from(option) << 13 | u32::from(by) << 10 | n.n() | d.d());
    }

    pub(super) fn orr(&mut self, d: R, n: R, m: R) {
        self.word(0xaa00_0000 | m.m() | n.n() | d.d());
    }

    pub(super) fn eor(&mut self, d: R, n: R, m: R) {
        self.word(0xca00_0000 | m.m() | n.n() | d.d());
    }

    /// `d` becomes `n` xor `m` shifted right.
    pub(super) fn eor_lsr(&mut self, d: R, n: R, m: R, by: u8) {
        self.word(0xca40_0000 | m.m() | u32::from(by) << 10 | n.n() | d.d());
    }

    /// The lowest `bits` bits.
    pub(super) fn low_bits(&mut self, d: R, n: R, bits: u8) {
        self.word(0x9240_0000 | u32::from(bits - 1) << 10 | n.n() | d.d());
    }

    /// All but [`crate::cpu::IMPLIED`].
    pub(super) fn without_implied(&mut self, d: R, n: R) {
        self.word(0x9274_d600 | n.n() | d.d());
    }

    pub(super) fn without_low_bits(&mut self, d: R, n: R, bits: u8) {
        let (rotate, last) = (u32::from(64 - bits), u32::from(63 - bits));
        self.word(0x9240_0000 | rotate << 16 | last << 10 | n.n() | d.d());
    }

    pub(super) fn lsr_i(&mut self, d: R, n: R, by: u8) {
        self.word(0xd340_fc00 | u32::from(by) << 16 | n.n() | d.d());
    }

    pub(super) fn lsl_i(&mut self, d: R, n: R, by: u8) {
        let (rotate, last) = (u32::from(64 - by), u32::from(63 - by));
        self.word(0xd340_0000 | rotate << 16 | last << 10 | n.n() | d.d());
    }

    /// `width` bits from bit `from` on.
    pub(super) fn ubfx(&mut self, d: R, n: R, from: u8, width: u8) {
        self.word(0xd340_0000 | u32::from(from) << 16 | u32::from(from + width - 1) << 10 | n.n() | d.d());
    }

    /// The lowest `width` bits of `d` become those of `n`.
    pub(super) fn bfxil(&mut self, d: R, n: R, width: u8) {
        self.word(0xb340_0000 | u32::from(width - 1) << 10 | n.n() | d.d());
    }

    /// The sign of the lowest `8 << size` bits to the others, of 64 bits or 32.
    pub(super) fn sign_extend(&mut self, size: u8, wide: bool, d: R, n: R) {
        let opcode = if wide { 0x9340_0000 } else { 0x1300_0000 };
        self.word(opcode | ((8 << size) - 1) << 10 | n.n() | d.d());
    }

    pub(super) fn cmp(&mut self, wide: bool, n: R, m: R) {
        self.word(0x6b00_0000 | u32::from(wide) << 31 | m.m() | n.n() | ZR.d());
    }

    /// Loads `1 << size` bytes, zeros above, from a base and an offset that is a multiple of that.
    pub(super) fn load(&mut self, size: u8, t: R, base: R, offset: u32) {
        self.scaled(0x3940_0000, size, t.d(), base, offset);
    }

    pub(super) fn store(&mut self, size: u8, t: R, base: R, offset: u32) {
        self.scaled(0x3900_0000, size, t.d(), base, offset);
    }

    /// All 16 bytes of a vector register.
    pub(super) fn load_q(&mut self, t: V, base: R, offset: u32) {
        self.word(0x3dc0_0000 | (offset / 16) << 10 | base.n() | u32::from(t.0));
    }

    pub(super) fn store_q(&mut self, t: V, base: R, offset: u32) {
        self.word(0x3d80_0000 | (offset / 16) << 10 | base.n() | u32::from(t.0));
    }

    fn scaled(&mut self, opcode: u32, size: u8, t: u32, base: R, offset: u32) {
        debug_assert!(offset & ((1 << size) - 1) == 0 && offset >> size < 4096);
        self.word(opcode | u32::from(size) << 30 | (offset >> size) << 10 | base.n() | t);
    }

    /// A load or store at base plus index: `opc` says which (0 stores, 1 loads, 2 and 3 load with the sign to 64 and to
    /// 32 bits).
    pub(super) fn indexed(&mut self, size: u8, opc: u32, t: R, base: R, index: R) {
        self.word(0x3820_6800 | u32::from(size) << 30 | opc << 22 | index.m() | base.n() | t.d());
    }

    /// The same of a vector register, of up to 16 bytes.
    pub(super) fn indexed_vector(&mut self, store: bool, size: u8, t: V, base: R, index: R) {
        let opc = u32::from(!store) | u32::from(size >> 2) << 1;
        let size = u32::from(size & 3);
        self.word(0x3c20_6800 | size << 30 | opc << 22 | index.m() | base.n() | u32::from(t.0));
    }

    /// Two registers at a place: `opc` 0 is of 4 bytes, 1 of 4 bytes with their sign, 2 of 8.
    pub(super) fn pair(&mut self, store: bool, opc: u32, t: R, u: R, base: R) {
        self.word(0x2900_0000 | opc << 30 | u32::from(!store) << 22 | u.a() | base.n() | t.d());
    }

    /// Two vector registers of `1 << size` bytes, from 4 on.
    pub(super) fn pair_vector(&mut self, store: bool, size: u8, t: V, u: V, base: R) {
        let (t, u) = (u32::from(t.0), u32::from(u.0));
        self.word(0x2d00_0000 | u32::from(size - 2) << 30 | u32::from(!store) << 22 | u << 10 | base.n() | t);
    }

    /// Two registers of 8 bytes below or above the stack pointer, of the general ones or of the vector registers' low
    /// halves; with `push` the stack pointer moves first.
    pub(super) fn save_pair(&mut self, vector: bool, t: u8, u: u8, offset: i32, push: bool) {
        let opcode = if vector { 0x6d00_0000 } else { 0xa900_0000 } | u32::from(push) << 23;
        self.frame(opcode, t, u, offset);
    }

    /// Loads them again; with `pop` the stack pointer moves after it.
    pub(super) fn restore_pair(&mut self, vector: bool, t: u8, u: u8, offset: i32, pop: bool) {
        let opcode = match (vector, pop) {
            (true, _) => 0x6d40_0000,
            (false, false) => 0xa940_0000,
            (false, true) => 0xa8c0_0000,
        };
        self.frame(opcode, t, u, offset);
    }

    fn frame(&mut self, opcode: u32, t: u8, u: u8, offset: i32) {
        let offset = (offset / 8) as u32 & 0x7f;
        self.word(opcode | offset << 15 | u32::from(u) << 10 | SP.n() | u32::from(t));
    }

    /// LDAR and STLR of `1 << size` bytes.
    pub(super) fn load_acquire(&mut self, size: u8, t: R, base: R) {
        self.word(0x08df_fc00 | u32::from(size) << 30 | base.n() | t.d());
    }

    pub(super) fn store_release(&mut self, size: u8, t: R, base: R) {
        self.word(0x089f_fc00 | u32::from(size) << 30 | base.n() | t.d());
    }

    /// CAS of `1 << size` bytes, CASL with `release`: `s` is compared and takes what was there, `t` is stored.
    pub(super) fn compare_and_swap(&mut self, size: u8, release: bool, s: R, t: R, base: R) {
        let release = u32::from(release) << 15;
        self.word(0x08a0_7c00 | u32::from(size) << 30 | release | s.m() | base.n() | t.d());
    }

    /// CASAL of 8 bytes, likewise.
    pub(super) fn compare_and_swap_ordered(&mut self, s: R, t: R, base: R) {
        self.word(0xc8e0_fc00 | s.m() | base.n() | t.d());
    }

    /// LDAXP of two of 8 bytes.
    pub(super) fn load_exclusive_pair(&mut self, t: R, u: R, base: R) {
        self.word(0xc87f_8000 | u.a() | base.n() | t.d());
    }

    /// STLXP; `s` becomes zero where it was done.
    pub(super) fn store_exclusive_pair(&mut self, s: R, t: R, u: R, base: R) {
        self.word(0xc820_8000 | s.m() | u.a() | base.n() | t.d());
    }

    pub(super) fn read_nzcv(&mut self, t: R) {
        self.word(0xd53b_4200 | t.d());
    }

    pub(super) fn write_nzcv(&mut self, t: R) {
        self.word(0xd51b_4200 | t.d());
    }

    pub(super) fn read_fpsr(&mut self, t: R) {
        self.word(0xd53b_4420 | t.d());
    }

    pub(super) fn write_fpsr(&mut self, t: R) {
        self.word(0xd51b_4420 | t.d());
    }

    fn forward(&mut self, word: u32) -> Jump {
        self.word(word);
        Jump(self.buf.len() - 4)
    }

    pub(super) fn b(&mut self) -> Jump {
        self.forward(0x1400_0000)
    }

    pub(super) fn b_cond(&mut self, cond: u8) -> Jump {
        self.forward(0x5400_0000 | u32::from(cond))
    }

    /// Branches where a register is zero, or where it is not.
    pub(super) fn cbz(&mut self, wide: bool, nonzero: bool, t: R) -> Jump {
        self.forward(0x3400_0000 | u32::from(wide) << 31 | u32::from(nonzero) << 24 | t.d())
    }

    /// Branches where a bit is clear, or where it is set; no further than 32 KiB.
    pub(super) fn tbz(&mut self, bit: u8, set: bool, t: R) -> Jump {
        let bit = u32::from(bit);
        self.forward(0x3600_0000 | (bit & 32) << 26 | (bit & 31) << 19 | u32::from(set) << 24 | t.d())
    }

    /// The branch goes here.
    pub(super) fn land(&mut self, jump: Jump) {
        let distance = ((self.buf.len() - jump.0) / 4) as u32;
        let place = &mut self.buf[jump.0..jump.0 + 4];
        let word = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
        let (limit, shift) = match word >> 24 {
            0x14..=0x17 => (1 << 25, 0),
            0x36 | 0x37 | 0xb6 | 0xb7 => (1 << 13, 5),
            _ => (1 << 18, 5),
        };
        assert!(distance < limit, "a block's code is shorter than a branch reaches");
        place.copy_from_slice(&(word | distance << shift).to_le_bytes());
    }

    /// Back to a place near by where the low half of a register is not zero.
    pub(super) fn cbnz_to(&mut self, t: R, to: usize) {
        let distance = (to as i64 - self.here() as i64) >> 2;
        self.word(0x3500_0000 | (distance as u32 & 0x7ffff) << 5 | t.d());
    }

    pub(super) fn b_to(&mut self, to: usize) {
        let word = branch(self.here(), to);
        self.word(word);
    }

    pub(super) fn bl_to(&mut self, to: usize) {
        let word = branch(self.here(), to) | 1 << 31;
        self.word(word);
    }

    pub(super) fn br(&mut self, n: R) {
        self.word(0xd61f_0000 | n.n());
    }

    pub(super) fn blr(&mut self, n: R) {
        self.word(0xd63f_0000 | n.n());
    }

    pub(super) fn ret(&mut self) {
        self.word(0xd65f_0000 | LR.n());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each function here at least once, with registers whose fields cannot be taken for each other's.
    fn all() -> Vec<u8> {
        let mut a = Asm::default();
        for v in [0, 0xffff_0000_0000_0000, 0x1234_0000_5678, u64::MAX, !0x1234_0000, 0xffff_8000_1234_ffff] {
            a.mov_i(R(3), v);
        }
        a.mov(R(4), R(21));
        for v in [0, 1, -4095, 0x1000, -0x12_3456, 0x12_3456_7000, -0x12_3456_7000] {
            a.add_i(R(5), R(22), v);
        }
        a.add(R(6), R(23), R(9), 5);
        a.add_extended(R(6), R(23), R(9), 2, 3);
        a.add_extended(R(6), R(23), R(9), 6, 0);
        a.add_extended(R(6), R(23), ZR, 3, 2);
        a.orr(R(7), R(24), R(10));
        a.eor(R(7), R(24), R(10));
        a.eor_lsr(R(7), R(24), R(10), 12);
        a.low_bits(R(8), R(25), 12);
        a.low_bits(R(8), R(25), 1);
        a.lsr_i(R(9), R(26), 2);
        a.lsl_i(R(9), R(26), 6);
        a.without_low_bits(R(8), R(25), 6);
        a.compare_and_swap_ordered(R(14), R(7), R(16));
        a.load_exclusive_pair(R(14), R(7), R(16));
        a.store_exclusive_pair(R(17), R(14), R(7), R(16));
        a.without_implied(R(8), R(25));
        a.ubfx(R(9), R(26), 12, 10);
        a.ubfx(R(9), R(26), 63, 1);
        a.bfxil(R(9), R(26), 12);
        a.sign_extend(0, false, R(10), R(27));
        a.sign_extend(2, true, R(10), R(27));
        a.cmp(false, R(11), R(28));
        a.cmp(true, R(11), R(28));
        for size in 0..4 {
            a.load(size, R(12), R(28), 504);
            a.store(size, R(12), R(28), 504);
            a.indexed(size, 0, R(13), R(16), R(15));
            a.indexed(size, 1, R(13), R(16), R(15));
            a.load_acquire(size, R(14), R(16));
            a.store_release(size, R(14), R(16));
            a.compare_and_swap(size, size & 1 == 0, R(14), R(7), R(16));
        }
        a.indexed(0, 2, R(13), R(16), R(15));
        a.indexed(2, 2, R(13), R(16), R(15));
        a.indexed(1, 3, R(13), R(16), R(15));
        a.load_q(V(17), R(28), 800);
        a.store_q(V(17), R(28), 800);
        for size in 0..5 {
            a.indexed_vector(false, size, V(18), R(16), R(15));
            a.indexed_vector(true, size, V(18), R(16), R(15));
        }
        for opc in 0..3 {
            a.pair(false, opc, R(19), R(7), R(16));
        }
        a.pair(true, 0, R(19), R(7), R(16));
        a.pair(true, 2, R(19), R(7), R(16));
        for size in 2..5 {
            a.pair_vector(false, size, V(20), V(8), R(16));
            a.pair_vector(true, size, V(20), V(8), R(16));
        }
        a.save_pair(false, 29, 30, -176, true);
        a.save_pair(false, 19, 20, 16, false);
        a.save_pair(true, 8, 9, 96, false);
        a.restore_pair(true, 8, 9, 96, false);
        a.restore_pair(false, 19, 20, 16, false);
        a.restore_pair(false, 29, 30, 176, true);
        a.read_nzcv(R(17));
        a.write_nzcv(R(17));
        a.read_fpsr(R(17));
        a.write_fpsr(ZR);
        a.br(R(15));
        a.blr(R(17));
        a.ret();
        a.word(with(0x0b02_0020, Some(R(19)), Some(R(7)), Some(R(25)), None));
        a.word(with(0x9b02_0c20, Some(R(19)), Some(R(7)), Some(R(25)), Some(R(12))));
        a.buf
    }

    const EXPECTED: &str = "\
        mov x3, #0x0|mov x3, #0xffff000000000000|mov x3, #0x5678|movk x3, #0x1234, lsl #32|\
        mov x3, #0xffffffffffffffff|mov x3, #0xffffffffedcbffff|mov x3, #0xffffffff1234ffff|\
        movk x3, #0x8000, lsl #32|mov x4, x21|add x5, x22, #0x0|add x5, x22, #0x1|sub x5, x22, #0xfff|\
        add x5, x22, #0x1, lsl #12|sub x5, x22, #0x123, lsl #12|sub x5, x5, #0x456|mov x14, #0x7000|\
        movk x14, #0x3456, lsl #16|movk x14, #0x12, lsl #32|add x5, x22, x14|mov x14, #0xffffffffffff9000|\
        movk x14, #0xcba9, lsl #16|movk x14, #0xffed, lsl #32|add x5, x22, x14|add x6, x23, x9, lsl #5|\
        add x6, x23, w9, uxtw #3|add x6, x23, w9, sxtw|add x6, x23, xzr, uxtx #2|orr x7, x24, x10|\
        eor x7, x24, x10|eor x7, x24, x10, lsr #12|and x8, x25, #0xfff|and x8, x25, #0x1|\
        lsr x9, x26, #2|lsl x9, x26, #6|and x8, x25, #0xffffffffffffffc0|casal x14, x7, [x16]|ldaxp x14, x7, [x16]|stlxp w17, x14, x7, [x16]|and x8, x25, #0xfffffffffffff003|ubfx x9, x26, #12, #10|\
        lsr x9, x26, #63|bfxil x9, x26, #0, #12|sxtb w10, w27|sxtw x10, w27|cmp w11, w28|cmp x11, x28|\
        ldrb w12, [x28, #504]|strb w12, [x28, #504]|strb w13, [x16, x15]|ldrb w13, [x16, x15]|\
        ldarb w14, [x16]|stlrb w14, [x16]|caslb w14, w7, [x16]|ldrh w12, [x28, #504]|strh w12, [x28, #504]|\
        strh w13, [x16, x15]|ldrh w13, [x16, x15]|ldarh w14, [x16]|stlrh w14, [x16]|cash w14, w7, [x16]|\
        ldr w12, [x28, #504]|str w12, [x28, #504]|str w13, [x16, x15]|ldr w13, [x16, x15]|ldar w14, [x16]|\
        stlr w14, [x16]|casl w14, w7, [x16]|ldr x12, [x28, #504]|str x12, [x28, #504]|str x13, [x16, x15]|\
        ldr x13, [x16, x15]|ldar x14, [x16]|stlr x14, [x16]|cas x14, x7, [x16]|ldrsb x13, [x16, x15]|\
        ldrsw x13, [x16, x15]|ldrsh w13, [x16, x15]|ldr q17, [x28, #800]|str q17, [x28, #800]|\
        ldr b18, [x16, x15]|str b18, [x16, x15]|ldr h18, [x16, x15]|str h18, [x16, x15]|ldr s18, [x16, x15]|\
        str s18, [x16, x15]|ldr d18, [x16, x15]|str d18, [x16, x15]|ldr q18, [x16, x15]|str q18, [x16, x15]|\
        ldp w19, w7, [x16]|ldpsw x19, x7, [x16]|ldp x19, x7, [x16]|stp w19, w7, [x16]|stp x19, x7, [x16]|\
        ldp s20, s8, [x16]|stp s20, s8, [x16]|ldp d20, d8, [x16]|stp d20, d8, [x16]|ldp q20, q8, [x16]|\
        stp q20, q8, [x16]|stp x29, x30, [sp, #-176]!|stp x19, x20, [sp, #16]|stp d8, d9, [sp, #96]|\
        ldp d8, d9, [sp, #96]|ldp x19, x20, [sp, #16]|ldp x29, x30, [sp], #176|mrs x17, nzcv|msr nzcv, x17|\
        mrs x17, fpsr|msr fpsr, xzr|br x15|blr x17|ret|add w19, w7, w25|madd x19, x7, x25, x12";

    /// The disassembler's words for some code, an instruction a line.
    fn disassembled(code: &[u8]) -> Option<Vec<String>> {
        let name = format!("supermachine-a64-{}-{}", std::process::id(), code.len());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, code).ok()?;
        let out = std::process::Command::new("aarch64-linux-gnu-objdump")
            .args(["-D", "-b", "binary", "-m", "aarch64", "--no-show-raw-insn"])
            .arg(&file)
            .output();
        let _ = std::fs::remove_file(&file);
        let text = String::from_utf8(out.ok().filter(|o| o.status.success())?.stdout).ok()?;
        let lines = text.lines().filter_map(|line| line.split_once(":\t"));
        let plain = |insn: &str| insn.split("\t//").next().unwrap_or(insn).trim().replace('\t', " ");
        Some(lines.map(|(_, insn)| plain(insn)).collect())
    }

    #[test]
    fn instructions_are_what_the_disassembler_says() {
        let Some(found) = disassembled(&all()) else {
            assert!(std::env::var_os("CI").is_none(), "aarch64-linux-gnu-objdump is missing");
            return println!("SKIPPED: aarch64-linux-gnu-objdump is missing");
        };
        let wanted: Vec<&str> = EXPECTED.split('|').collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn branches_land_where_they_are_told_to() {
        let mut a = Asm { buf: Vec::new(), origin: 0x100 };
        let jumps =
            [a.b(), a.b_cond(1), a.cbz(true, true, R(5)), a.tbz(63, true, R(6)), a.tbz(3, false, R(7))];
        a.ret();
        for jump in jumps {
            a.land(jump);
        }
        a.b_to(0x100);
        a.bl_to(0x40);
        a.cbnz_to(R(17), 0x100);
        let words: Vec<u32> = a.buf.chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        // b, b.ne, cbnz x5, tbnz x6 #63, tbz w7 #3 to the same place; ret; b and bl back.
        assert_eq!(
            words,
            [
                0x1400_0006,
                0x5400_00a1,
                0xb500_0085,
                0xb7f8_0066,
                0x3618_0047,
                0xd65f_03c0,
                0x17ff_fffa,
                0x97ff_ffc9,
                0x35ff_ff11
            ]
        );
    }
}
