//! The base instruction set and all memory accesses, on a whole vCPU.

use supermachine_soft::{Translation, disassemble};

use crate::machine::Machine;
use crate::oracle::{BASE, BATCH, INSNS, MEMORY, Oracle, Request, State};
use crate::random::Random;
use crate::{FIXED_SEED, count, fp, random_seed};

/// x0 to x19 are for any use; x20 to x24 hold addresses, x25 to x28 small offsets.
const FREE: u64 = 20;
const POINTERS: std::ops::Range<usize> = 20..25;
const OFFSETS: std::ops::Range<usize> = 25..29;

/// Data-processing classes of Arm ARM C4.1: fixed bits and their mask.
const DATA: &[(&str, u32, u32)] = &[
    ("add/subtract immediate", 0x1100_0000, 0x1f80_0000),
    ("logical immediate", 0x1200_0000, 0x1f80_0000),
    ("move wide", 0x1280_0000, 0x1f80_0000),
    ("bitfield", 0x1300_0000, 0x1f80_0000),
    ("extract", 0x1380_0000, 0x1f80_0000),
    ("logical shifted", 0x0a00_0000, 0x1f00_0000),
    ("add/subtract shifted", 0x0b00_0000, 0x1f20_0000),
    ("add/subtract extended", 0x0b20_0000, 0x1f20_0000),
    ("add/subtract with carry", 0x1a00_0000, 0x1fe0_fc00),
    ("conditional compare", 0x3a40_0000, 0x3fe0_0410),
    ("conditional select", 0x1a80_0000, 0x3fe0_0800),
    ("divide", 0x1ac0_0800, 0x7fe0_f800),
    ("variable shift", 0x1ac0_2000, 0x7fe0_f000),
    ("CRC32", 0x1ac0_4000, 0x7fe0_e000),
    ("1-source", 0x5ac0_0000, 0x7fff_c000),
    ("3-source", 0x1b00_0000, 0x7f00_0000),
];

/// A pattern's name, for reports.
pub(crate) fn class_name(i: u32) -> String {
    let data = DATA.iter().find(|(_, bits, mask)| i & mask == *bits).map(|c| c.0);
    match (data, i >> 25 & 15) {
        (Some(name), _) => name.into(),
        (None, 4 | 6 | 12 | 14) => "load/store".into(),
        (None, 10 | 11) => "branch".into(),
        (None, 7 | 15) => fp::class_name(i),
        _ => "?".into(),
    }
}

/// The instruction as text, or else what class it is of.
pub(crate) fn told(i: u32, at: u64) -> String {
    let text = disassemble(i, at);
    if text.starts_with(".inst") { class_name(i) } else { text }
}

/// Whether an instruction of [`DATA`] is allocated.
fn allocated(i: u32) -> bool {
    let (sf, n, opc) = (i >> 31, i >> 22 & 1, i >> 29 & 3);
    let (immr, imms) = (i >> 16 & 63, i >> 10 & 63);
    let op31 = i >> 21 & 7;
    match i >> 24 & 31 {
        0x0b if i >> 21 & 1 == 1 => i >> 22 & 3 == 0 && imms & 7 <= 4,
        0x0a => sf == 1 || imms < 32,
        0x0b => i >> 22 & 3 != 3 && (sf == 1 || imms < 32),
        0x12 if i >> 23 & 1 == 1 => opc != 1 && (sf == 1 || immr < 32),
        0x12 => n <= sf && (imms < 31 || n == 1 && imms != 63),
        0x13 if i >> 23 & 1 == 1 => opc == 0 && i >> 21 & 1 == 0 && n == sf && (sf == 1 || imms < 32),
        0x13 => opc != 3 && n == sf && (sf == 1 || immr < 32 && imms < 32),
        0x1a if i & 0x5fe0_e000 == 0x1ac0_4000 => opc == 0 && (i >> 10 & 3 == 3) == (sf == 1),
        0x1a if i & 0x7fe0_0000 == 0x5ac0_0000 => imms <= 5 && immr & 31 == 0 && (sf == 1 || imms != 3),
        0x1b => match op31 {
            0 => true,
            2 | 6 => sf == 1 && i >> 15 & 1 == 0,
            1 | 5 => sf == 1,
            _ => false,
        },
        _ => true,
    }
}

/// What the generator knows of the registers that hold addresses.
pub(crate) struct Writer<'a> {
    pub r: &'a mut Random,
    pub pointer: [u64; 32],
    pub code: Vec<u32>,
}

impl Writer<'_> {
    /// A register for data: x0 to x19 or the zero register.
    fn data(&mut self) -> u32 {
        if self.r.one_in(10) { 31 } else { self.r.below(FREE) as u32 }
    }

    fn vector(&mut self) -> u32 {
        self.r.below(32) as u32
    }

    /// A register that holds an address: 31 is the stack pointer.
    fn base(&mut self) -> u32 {
        if self.r.one_in(6) { 31 } else { self.r.pick(&[20, 21, 22, 23, 24]) }
    }

    /// Whether `len` bytes at `at` are within the sequence's memory.
    fn inside(at: u64, len: u64) -> bool {
        at >= BASE && at + len <= BASE + MEMORY as u64
    }

    pub(crate) fn data_processing(&mut self) {
        loop {
            let &(_, bits, mask) = &DATA[self.r.below(DATA.len() as u64) as usize];
            let i = bits | self.r.next() as u32 & !mask;
            if !allocated(i) && !self.r.one_in(200) {
                continue;
            }
            // Rd is free or 31; but 31 as the stack pointer would lose the address there.
            let (rd, sp) = (i & 31, i & 0x1f80_0000 == 0x1100_0000 || i & 0x1f20_0000 == 0x0b20_0000);
            let sp = (sp && i >> 29 & 1 == 0) || (i & 0x1f80_0000 == 0x1200_0000 && i >> 29 & 3 != 3);
            let compares = i & 0x3fe0_0410 == 0x3a40_0000;
            let reads = [i >> 5 & 31, i >> 16 & 31, i >> 10 & 31];
            if reads.iter().any(|n| matches!(n, 29 | 30))
                || (!compares && ((rd >= FREE as u32 && rd != 31) || (rd == 31 && sp)))
            {
                continue;
            }
            self.code.push(i);
            return;
        }
    }

    /// Forward, over one to four instructions.
    pub(crate) fn branch(&mut self, room: usize) {
        let n = 1 + self.r.below(4.min(room as u64)) as u32;
        let rt = self.data();
        let (op, sf) = (self.r.next() as u32 & 1, self.r.next() as u32 & 1);
        let bit = self.r.next() as u32;
        self.code.push(match self.r.below(4) {
            0 => 0x1400_0000 | n,
            1 => 0x5400_0000 | n << 5 | bit & 15,
            2 => 0x3400_0000 | sf << 31 | op << 24 | n << 5 | rt,
            _ => 0x3600_0000 | sf << 31 | op << 24 | (bit & 31) << 19 | n << 5 | rt,
        });
        // Nothing that moves an address may be jumped over.
        for _ in 0..n {
            self.data_processing();
        }
    }

    /// Loads and stores of one register: all addressing modes.
    pub(crate) fn single(&mut self) {
        let (size, v, opc) = (self.r.below(4) as u32, self.r.below(2) as u32, self.r.below(4) as u32);
        let scale = if v == 1 { size | (opc >> 1) << 2 } else { size };
        if scale > 4 || (v == 0 && (size == 3 && opc > 1 || size == 2 && opc == 3)) {
            return;
        }
        let rn = self.base();
        let rt = if v == 1 { self.vector() } else { self.data() };
        let at = self.pointer[rn as usize];
        let common = size << 30 | v << 26 | opc << 22 | rn << 5 | rt;
        let imm9 = self.r.below(512) as i64 - 256;
        let field = (imm9 as u32 & 511) << 12;
        let moved = at.wrapping_add(imm9 as u64);
        let len = 1 << scale;
        match self.r.below(5) {
            0 if Self::inside(moved, len) => self.code.push(0x3800_0000 | common | field),
            1 if Self::inside(at, len) && Self::inside(moved, 16) => {
                self.code.push(0x3800_0400 | common | field);
                self.pointer[rn as usize] = moved;
            }
            2 if Self::inside(moved, len.max(16)) => {
                self.code.push(0x3800_0c00 | common | field);
                self.pointer[rn as usize] = moved;
            }
            3 => {
                let rm = self.r.pick(&[25, 26, 27, 28, 31]);
                let (option, s) = (self.r.pick(&[2, 3, 6, 7]), self.r.below(2) as u32);
                let x = if rm == 31 { 0 } else { self.pointer[rm as usize] };
                let x = match option {
                    2 => x as u32 as u64,
                    6 => x as i32 as u64,
                    _ => x,
                };
                if Self::inside(at.wrapping_add(x << (s * scale)), len) {
                    self.code.push(0x3820_0800 | common | rm << 16 | option << 13 | s << 12);
                }
            }
            _ => {
                let imm12 = self.r.below(64);
                if Self::inside(at + (imm12 << scale), len) {
                    self.code.push(0x3900_0000 | common | (imm12 as u32) << 10);
                }
            }
        }
    }

    /// LDP and STP, non-temporal and SIMD ones too.
    pub(crate) fn pair(&mut self) {
        let (opc, v, l) = (self.r.below(4) as u32, self.r.below(2) as u32, self.r.below(2) as u32);
        let mode = self.r.below(4) as u32;
        if opc == 3 || (v == 0 && opc == 1 && (l == 0 || mode == 0)) {
            return;
        }
        let scale = if v == 1 { 2 + opc } else { 2 + (opc >> 1) };
        let rn = self.base();
        let (rt, rt2) = if v == 1 { (self.vector(), self.vector()) } else { (self.data(), self.data()) };
        if l == 1 && rt == rt2 {
            return;
        }
        let imm7 = self.r.below(128) as i64 - 64;
        let at = self.pointer[rn as usize];
        let moved = at.wrapping_add((imm7 << scale) as u64);
        let used = if mode == 1 { at } else { moved };
        if !Self::inside(used, 2 << scale) || !Self::inside(moved, 16) {
            return;
        }
        if mode & 1 == 1 {
            self.pointer[rn as usize] = moved;
        }
        self.code.push(
            0x2800_0000
                | opc << 30
                | v << 26
                | mode << 23
                | l << 22
                | (imm7 as u32 & 127) << 15
                | rt2 << 10
                | rn << 5
                | rt,
        );
    }

    /// `most` loads or stores by one base register, as of a structure's fields or a function's saved registers, and
    /// what computes between them: the first may move the base before it, the last behind it.
    pub(crate) fn run(&mut self, most: u64) {
        let (rn, kind, vectors) = (self.base(), self.r.below(3) as u32, self.r.one_in(4));
        for n in 0..most {
            // Stores, loads, or some of both.
            let load = if kind == 2 { self.r.below(2) as u32 } else { kind };
            let at = self.pointer[rn as usize];
            let (pair, size) = (self.r.one_in(2), self.r.pick(&[3, 3, 3, 2]));
            let bytes = (if pair { 2 } else { 1 }) << size;
            let mode = match n {
                0 if self.r.one_in(3) => 3,
                n if n + 1 == most && self.r.one_in(3) => 1,
                _ => 2,
            };
            let reach = if pair { 48 } else { 31 };
            let by = (self.r.below(2 * reach) as i64 - reach as i64) >> size << size;
            let by = if mode == 2 && !pair { by.abs() } else { by };
            let moved = at.wrapping_add(by as u64);
            let used = if mode == 1 { at } else { moved };
            if !Self::inside(used, bytes) || !Self::inside(moved, 16) {
                continue;
            }
            let (v, registers) = if vectors {
                (1 << 26, [self.vector(), self.vector()])
            } else {
                (0, [self.data(), self.data()])
            };
            if load == 1 && pair && registers[0] == registers[1] {
                continue;
            }
            let common = v | load << 22 | rn << 5 | registers[0];
            self.code.push(match (pair, mode) {
                (true, _) => {
                    let opc = if vectors { size - 2 } else { (size - 2) << 1 };
                    let imm7 = (by >> size) as u32 & 127;
                    0x2800_0000 | opc << 30 | mode << 23 | imm7 << 15 | registers[1] << 10 | common
                }
                (false, 2) => 0x3900_0000 | size << 30 | ((by >> size) as u32) << 10 | common,
                (false, mode) => {
                    0x3800_0400 | size << 30 | (by as u32 & 511) << 12 | (mode & 2) << 10 | common
                }
            });
            if mode != 2 {
                self.pointer[rn as usize] = moved;
            }
            if self.r.one_in(3) {
                let (rd, rm) = (self.free(), self.data());
                let i = self.r.pick(&[0x8b00_0000, 0x0b00_0000, 0xaa00_0000, 0x9b00_0000]);
                self.code.push(i | rm << 16 | rd << 5 | rd);
            }
        }
    }

    /// A base register with an address aligned for `len` bytes.
    fn aligned(&mut self, len: u64) -> Option<u32> {
        let rn = self.base();
        let at = self.pointer[rn as usize];
        (at.is_multiple_of(len) && Self::inside(at, len)).then_some(rn)
    }

    /// LDXR and STXR in a pair, LDAR, STLR, LDAPR, CAS, CASP, and the LSE read-modify-writes.
    pub(crate) fn atomic(&mut self) {
        let size = self.r.below(4) as u32;
        let pair = self.r.one_in(4) && size > 1;
        let Some(rn) = self.aligned(if pair { 2 << size } else { 1 << size }) else { return };
        let (rt, rt2, rs) = (self.data(), self.data(), self.data());
        let o = self.r.below(2) as u32;
        let l = self.r.below(2) as u32;
        match self.r.below(7) {
            6 => self.release_unscaled(size),
            0 => {
                let pair = u32::from(pair);
                let second = if pair == 1 { rt2 } else { 31 };
                if rs == rt || rs == second || rs == 31 || pair == 1 && rt == rt2 {
                    return;
                }
                let op = 0x0800_0000 | size << 30 | pair << 21 | o << 15 | second << 10 | rn << 5 | rt;
                self.code.push(op | 1 << 22 | 31 << 16);
                if self.r.one_in(3) {
                    self.data_processing();
                }
                if self.r.one_in(8) {
                    // CLREX
                    self.code.push(0xd503_3f5f);
                }
                self.code.push(op | rs << 16);
            }
            1 => self.code.push(0x089f_fc00 | size << 30 | l << 22 | rn << 5 | rt),
            2 => self.code.push(0x38bf_c000 | size << 30 | rn << 5 | rt),
            3 => self.code.push(0x08a0_7c00 | size << 30 | l << 22 | rs << 16 | o << 15 | rn << 5 | rt),
            4 if pair => {
                let (rs, rt) = (rs & 0x1e, rt & 0x1e);
                if rs < FREE as u32 && rt < FREE as u32 {
                    self.code
                        .push(0x0820_7c00 | (size & 1) << 30 | l << 22 | rs << 16 | o << 15 | rn << 5 | rt);
                }
            }
            _ => {
                let op = self.r.below(9) as u32;
                let ar = self.r.below(4) as u32;
                self.code.push(0x3820_0000 | size << 30 | ar << 22 | rs << 16 | op << 12 | rn << 5 | rt);
            }
        }
    }

    /// LDAPUR and STLUR (FEAT_LRCPC2), at aligned addresses.
    fn release_unscaled(&mut self, size: u32) {
        let opc = self.r.below(4) as u32;
        if size == 3 && opc > 1 || size == 2 && opc == 3 {
            return;
        }
        let (rn, rt) = (self.base(), self.data());
        let imm9 = self.r.below(512) as i64 - 256;
        let at = self.pointer[rn as usize].wrapping_add(imm9 as u64);
        if at.is_multiple_of(1 << size) && Self::inside(at, 1 << size) {
            let field = (imm9 as u32 & 511) << 12;
            self.code.push(0x1900_0000 | size << 30 | opc << 22 | field | rn << 5 | rt);
        }
    }

    /// MRS of NZCV, FPCR, FPSR; MSR of NZCV.
    pub(crate) fn flags(&mut self) {
        let rt = self.data();
        let i = self.r.pick(&[0xd53b_4200, 0xd53b_4400, 0xd53b_4420, 0xd51b_4200]);
        self.code.push(i | rt);
    }

    /// LD1 to LD4, ST1 to ST4: several structures, one, or one to all lanes.
    pub(crate) fn structures(&mut self) {
        let rn = self.base();
        let at = self.pointer[rn as usize];
        let post = self.r.below(2) as u32;
        let (q, l, size) = (self.r.below(2) as u32, self.r.below(2) as u32, self.r.below(4) as u32);
        let rt = self.vector();
        // By an offset register, or by what was transferred (31).
        let rm = if post == 0 { 0 } else { self.r.pick(&[25, 26, 27, 28, 31]) };
        let (op, len) = if self.r.one_in(2) {
            let opcode = self.r.pick(&[0, 2, 4, 6, 7, 8, 10]);
            let regs = match opcode {
                0 | 2 => 4,
                4 | 6 => 3,
                7 => 1,
                _ => 2,
            };
            if size == 3 && q == 0 && matches!(opcode, 0 | 4 | 8) {
                return;
            }
            (0x0c00_0000 | opcode << 12 | size << 10, regs * (8u64 << q))
        } else {
            let (opcode, r, s) = (self.r.below(8) as u32, self.r.below(2) as u32, self.r.below(2) as u32);
            let regs = u64::from((opcode & 1) << 1 | r) + 1;
            let bytes = match (opcode >> 1, size) {
                (0, _) => 1,
                (1, 0 | 2) => 2,
                (2, 0) => 4,
                (2, 1) if s == 0 => 8,
                (3, _) if l == 1 && s == 0 => 1 << size,
                _ => return,
            };
            (0x0d00_0000 | r << 21 | opcode << 13 | s << 12 | size << 10, regs * bytes)
        };
        let step = if rm == 31 { len } else { self.pointer[rm as usize] };
        let moved = at.wrapping_add(step);
        if !Self::inside(at, len) || (post == 1 && !Self::inside(moved, 16)) {
            return;
        }
        if post == 1 {
            self.pointer[rn as usize] = moved;
        }
        self.code.push(op | q << 30 | l << 22 | post << 23 | rm << 16 | rn << 5 | rt);
    }

    /// A register that may be lost: not the zero register, which some instructions take for the stack pointer.
    fn free(&mut self) -> u32 {
        self.r.below(FREE) as u32
    }

    /// Neighbours that compilers write often, and that an implementation may run as one: register moves, sums,
    /// shifts, masks and constants without the odd operands that random fields have, loads and stores among them.
    pub(crate) fn frequent(&mut self) {
        for _ in 0..2 + self.r.below(3) {
            let (rd, rn, rm) = (self.free(), self.data(), self.data());
            let (sf, amount) = ((self.r.next() as u32 & 1) << 31, self.r.below(32) as u32);
            let (imm12, imm16) = ((self.r.next() as u32 & 0xfff) << 10, (self.r.next() as u32 & 0xffff) << 5);
            let registers = rm << 16 | rn << 5 | rd;
            let i = match self.r.below(13) {
                0 | 1 => 0x0b00_0000 | sf | registers,
                2 => self.r.pick(&[0x0a00_0000, 0x0a20_0000, 0x2a00_0000, 0x4a00_0000]) | sf | registers,
                3 => self.r.pick(&[0x4a40_0000, 0x4ac0_0000]) | amount << 10 | registers,
                4 => 0xaa00_03e0 | rm << 16 | rd,
                5 => 0x1380_0000 | amount << 10 | (registers & !(31 << 16)) | rn << 16,
                6 => {
                    self.r.pick(&[0x1280_0000, 0x5280_0000, 0x7280_0000, 0x9280_0000, 0xd280_0000])
                        | imm16
                        | rd
                }
                7 => self.r.pick(&[0x9100_0000, 0xd100_0000]) | imm12 | (rn % FREE as u32) << 5 | rd,
                8 => {
                    // LSL by a number, and the mask of so many low bits.
                    let shift = 1 + self.r.below(63) as u32;
                    let field =
                        if self.r.one_in(2) { shift << 16 | (shift - 1) << 10 } else { (shift - 1) << 10 };
                    0xd340_0000 | field | rn << 5 | rd
                }
                9 => {
                    0x9240_0000
                        | (self.r.below(63) as u32) << 10
                        | (self.r.below(64) as u32) << 16
                        | rn << 5
                        | rd
                }
                10 => {
                    self.pair();
                    continue;
                }
                _ => {
                    self.single();
                    continue;
                }
            };
            self.code.push(i);
        }
    }

    /// What depends on the program counter, so that what is left of it does not: differences of two addresses,
    /// literals, and a branch to a register.
    fn relative(&mut self) {
        let (a, b) = (self.r.below(10) as u32, 10 + self.r.below(10) as u32);
        match self.r.below(3) {
            0 => {
                for rd in [a, b] {
                    let imm = self.r.next() as u32;
                    self.code.push(0x1000_0000 | (imm & 3) << 29 | (imm >> 2 & 0x7ffff) << 5 | rd);
                }
                self.code.push(0xcb00_0000 | b << 16 | a << 5 | a);
                self.code.push(0xd280_0000 | b);
            }
            1 => {
                let (opc, v) = (self.r.below(3) as u32, self.r.below(2) as u32);
                let words = if v == 0 && opc == 2 { 1 } else { 1 << opc };
                let rt = if v == 1 { self.vector() } else { self.data() };
                self.code.push(0x1800_0000 | opc << 30 | v << 26 | 2 << 5 | rt);
                self.code.push(0x1400_0000 | (words + 1));
                for _ in 0..words {
                    let word = self.r.next() as u32;
                    self.code.push(word);
                }
            }
            _ => {
                self.code.push(0x1000_0000 | 3 << 5 | b);
                self.code.push(0xd61f_0000 | b << 5);
                self.data_processing();
                self.code.push(0xd280_0000 | b);
            }
        }
    }

    /// Arithmetic, comparisons and conversions of numbers, of few registers.
    pub(crate) fn number(&mut self) {
        let ftype = (self.r.next() as u32 & 1) << 22;
        let [d, n, m] = [0; 3].map(|_| self.r.below(6) as u32);
        let registers = m << 16 | n << 5 | d;
        let (x, sf) = (self.free(), (self.r.next() as u32 & 1) << 31);
        let i = match self.r.below(14) {
            12 => {
                // FJCVTZS.
                self.code.push(0x1e7e_0000 | n << 5 | x);
                return;
            }
            // FCVT to halves and from them.
            13 => {
                self.code
                    .push(self.r.pick(&[0x1e23_c000, 0x1e63_c000, 0x1ee2_4000, 0x1ee2_c000]) | n << 5 | d);
                return;
            }
            0..=3 => 0x1e20_0800 | (self.r.below(9) as u32) << 12 | registers,
            4 => 0x1e20_4000 | self.r.pick(&[1, 2, 3, 8, 9, 10, 11, 14, 15]) << 15 | n << 5 | d,
            5 => 0x1e22_4000 | (1 - (ftype >> 22)) << 15 | n << 5 | d,
            6 | 7 => {
                0x1f00_0000 | self.r.pick(&[0, 1 << 15, 1 << 21, 1 << 21 | 1 << 15]) | d << 10 | registers
            }
            8 => 0x1e20_2000 | self.r.pick(&[0, 8, 16, 24]) | m << 16 | n << 5,
            9 => 0x1e20_0c00 | (self.r.below(16) as u32) << 12 | registers,
            10 => 0x1e22_0000 | sf | (self.r.next() as u32 & 1) << 16 | x << 5 | d,
            _ => {
                0x1e20_0000
                    | sf
                    | (self.r.below(4) as u32) << 19
                    | (self.r.next() as u32 & 1) << 16
                    | n << 5
                    | x
            }
        };
        self.code.push(i | ftype);
    }

    /// The same lane by lane: two registers, by element, one register, and a scalar's forms.
    pub(crate) fn numbers(&mut self) {
        let (q, double) = (self.r.next() as u32 & 1, self.r.next() as u32 & 1);
        let scalar = self.r.one_in(4);
        // Of doubles there are two lanes or one.
        let q = if scalar { 1 << 30 | 1 << 28 } else { (q | double) << 30 };
        let [d, n, m] = [0; 3].map(|_| self.r.below(6) as u32);
        let operands = q | double << 22 | n << 5 | d;
        let u = |yes: bool| u32::from(yes) << 29;
        let i = match self.r.below(8) {
            0..=3 => {
                let all = [
                    (false, 0, 0),
                    (false, 1, 0),
                    (false, 0, 1),
                    (false, 1, 1),
                    (false, 0, 2),
                    (false, 1, 2),
                    (false, 0, 3),
                    (false, 0, 4),
                    (false, 0, 6),
                    (false, 1, 6),
                    (true, 0, 2),
                    (true, 1, 2),
                    (true, 0, 3),
                    (true, 0, 4),
                    (true, 1, 4),
                    (true, 0, 5),
                    (true, 1, 5),
                    (true, 0, 7),
                ];
                let of_scalars =
                    [(false, 0, 3), (false, 0, 4), (true, 0, 4), (true, 1, 4), (true, 1, 5), (true, 1, 2)];
                let (unsigned, a, op) = if scalar { self.r.pick(&of_scalars) } else { self.r.pick(&all) };
                0x0e20_c400 | u(unsigned) | a << 23 | op << 11 | m << 16
            }
            4 => {
                let (unsigned, op) = self.r.pick(&[(false, 1), (false, 5), (false, 9), (true, 9)]);
                let lane = self.r.next() as u32;
                let low = if double == 1 { 0 } else { lane & 1 };
                0x0f80_0000 | u(unsigned) | op << 12 | (lane >> 1 & 1) << 11 | low << 21 | m << 16
            }
            5 if !scalar => {
                let all = [
                    (false, 1, 15),
                    (true, 1, 15),
                    (true, 1, 31),
                    (false, 0, 24),
                    (false, 1, 25),
                    (true, 0, 25),
                ];
                let (unsigned, a, op) = self.r.pick(&all);
                0x0e20_0800 | u(unsigned) | a << 23 | op << 12
            }
            6 if !scalar => {
                // FCVTN and FCVTL, of either half.
                let upper = (self.r.next() as u32 & 1) << 30;
                self.code.push(0x0e61_6800 | upper | (self.r.next() as u32 & 1) << 12 | n << 5 | d);
                return;
            }
            7 if scalar => {
                self.code.push(0x7e30_d800 | double << 22 | n << 5 | d);
                return;
            }
            _ => {
                let all = [
                    (false, 1, 12),
                    (false, 1, 13),
                    (false, 1, 14),
                    (true, 1, 12),
                    (true, 1, 13),
                    (false, 1, 27),
                    (false, 0, 29),
                    (true, 0, 29),
                ];
                let (unsigned, a, op) = self.r.pick(&all);
                0x0e20_0800 | u(unsigned) | a << 23 | op << 12
            }
        };
        self.code.push(i | operands);
    }

    /// Neighbours that programs write and an implementation may run as one.
    pub(crate) fn neighbours(&mut self) {
        let [d, n, m, k] = [0; 4].map(|_| self.r.below(8) as u32);
        match self.r.below(4) {
            0 => {
                // AESE and AESMC, AESD and AESIMC.
                let decrypt = (self.r.next() as u32 & 1) << 12;
                self.code.extend([0x4e28_4800 | decrypt | n << 5 | d, 0x4e28_6800 | decrypt | d << 5 | d]);
            }
            1 => {
                // MOV, SHA256H, SHA256H2.
                self.code.push(0x4ea0_1c00 | d << 16 | d << 5 | k);
                self.code.push(0x5e00_4000 | m << 16 | n << 5 | d);
                self.code.push(0x5e00_5000 | m << 16 | k << 5 | n);
            }
            2 => {
                // FCMP, and what asks for its flags.
                self.number();
                self.code.push(0x1e60_2000 | m << 16 | n << 5);
                let (cond, x) = ((self.r.below(16) as u32) << 12, self.free());
                self.code.push(match self.r.below(3) {
                    0 => 0x1e60_0c00 | cond | m << 16 | n << 5 | d,
                    1 => 0x9a80_0000 | cond | x << 5 | x,
                    _ => 0xd53b_4200 | x,
                });
            }
            _ => {
                // FCMP, a change of what was compared, a conditional branch.
                self.code.push(0x1e20_2000 | m << 16 | n << 5);
                self.number();
                self.code.push(0x5400_0040 | self.r.next() as u32 & 15);
                self.number();
            }
        }
    }

    pub(crate) fn floating(&mut self) {
        let i = fp::any(self.r);
        // Results in general registers go where no address is.
        if !fp::writes_general(i) || i & 31 == 31 || (i & 31) < FREE as u32 {
            self.code.push(i);
        }
    }
}

/// A state to begin with, and what its registers with addresses hold.
pub(crate) fn state(r: &mut Random) -> (State, [u64; 32]) {
    let mut s = State::new();
    s.x = std::array::from_fn(|_| r.integer(64));
    s.v = std::array::from_fn(|_| r.vector());
    s.nzcv = r.next() & 0xf000_0000;
    s.fpcr = r.fpcr() & !(1 << 24);
    s.fpsr = r.fpsr();
    s.memory = std::array::from_fn(|_| r.next() as u8);
    let mut pointer = [0; 32];
    for n in POINTERS {
        let align = r.pick(&[1, 8, 16, 16]);
        s.x[n] = BASE + r.below(MEMORY as u64 - 64) / align * align;
        pointer[n] = s.x[n];
    }
    for n in OFFSETS {
        s.x[n] = (r.below(129) as i64 - 64) as u64;
        pointer[n] = s.x[n];
    }
    pointer[31] = s.sp;
    (s, pointer)
}

/// What sequences are made of mostly.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mix {
    General,
    /// Vector registers: numbers and vectors, their loads and stores, and what looks at their comparisons.
    Vectors,
}

fn request(r: &mut Random, mix: Mix) -> Request {
    let (mut s, pointer) = state(r);
    if mix == Mix::Vectors && !r.one_in(4) {
        // As programs have them: machine code computes itself then.
        s.fpcr = 0;
        s.fpsr |= u64::from(!r.one_in(8)) << 4;
    }
    let length = 1 + r.below(11) as usize;
    let mut w = Writer { r, pointer, code: Vec::new() };
    while w.code.len() < length {
        if mix == Mix::Vectors && !w.r.one_in(4) {
            match w.r.below(8) {
                0 => w.neighbours(),
                1 | 2 => w.number(),
                3 | 4 => w.numbers(),
                _ => w.floating(),
            }
            continue;
        }
        match w.r.below(18) {
            0 | 1 => w.single(),
            2 => w.pair(),
            3 | 4 => w.atomic(),
            5 => w.structures(),
            6 => w.branch(4),
            7 => w.floating(),
            8 => w.flags(),
            9 => {
                let most = 2 + w.r.below(2);
                w.run(most);
            }
            10 | 11 => w.frequent(),
            12 => w.relative(),
            _ => w.data_processing(),
        }
    }
    let code = w.code;
    assert!(code.len() <= INSNS);
    Request::new(s, &code)
}

/// The shortest prefix that diverges.
fn report(oracle: &mut Oracle, request: &Request, translation: Translation) -> String {
    let code = request.code();
    let line = |(n, i): (usize, &u32)| format!("  {:#x}: {i:#010x} {}\n", 4 * n, told(*i, 4 * n as u64));
    let listing: String = code.iter().enumerate().map(line).collect();
    for len in 1..=code.len() {
        // Branches in a prefix stay inside by nops.
        let mut part = code[..len].to_vec();
        part.resize(code.len(), 0xd503_201f);
        let prefix = Request::new(request.state.clone(), &part);
        let theirs = &oracle.run(std::slice::from_ref(&prefix))[0];
        let mine = Machine::new(translation).run(&prefix);
        if mine != *theirs {
            let i = code[len - 1];
            let mut part = code[..len - 1].to_vec();
            part.resize(code.len(), 0xd503_201f);
            let before = Machine::new(translation).run(&Request::new(request.state.clone(), &part));
            let x = |n: u32| match n {
                31 => before.sp,
                n => before.x.get(n as usize).copied().unwrap_or(0),
            };
            return format!(
                "{translation:?}, at {i:#010x} ({}), nzcv {:#x}, d {:#x}, n {:#x}, m {:#x}\n{}{listing}",
                told(i, 4 * (len as u64 - 1)),
                before.nzcv,
                x(i & 31),
                x(i >> 5 & 31),
                x(i >> 16 & 31),
                mine.difference(theirs),
            );
        }
    }
    format!("not repeatable\n{listing}")
}

fn sequences(mix: Mix, seed: u64, count: usize) {
    let Some(mut oracle) = Oracle::start_or_skip("max") else { return };
    let mut machines = [Translation::Off, Translation::Always].map(|t| (t, Machine::new(t)));
    let mut r = Random(seed);
    let mut left = count;
    let mut failures = Vec::new();
    let mut completed = 0;
    while left > 0 && failures.len() < 20 {
        let batch: Vec<Request> = (0..left.min(BATCH)).map(|_| request(&mut r, mix)).collect();
        left -= batch.len();
        for (request, theirs) in batch.iter().zip(oracle.run(&batch)) {
            completed += usize::from(theirs.signal == 0);
            for (translation, machine) in &mut machines {
                let mine = machine.run(request);
                if mine != theirs && failures.len() < 20 {
                    let first = format!("{translation:?}, after others:\n{}", mine.difference(&theirs));
                    failures.push(first + &report(&mut oracle, request, *translation));
                }
            }
        }
    }
    assert!(failures.is_empty(), "seed {seed:#x}:\n{}", failures.join("\n"));
    // An unallocated instruction ends its sequence; most have none.
    assert!(completed * 2 > count, "only {completed} of {count} sequences ran to their ends");
}

#[test]
fn sequences_of_a_fixed_seed() {
    sequences(Mix::General, FIXED_SEED, count());
}

#[test]
fn sequences_of_a_random_seed() {
    sequences(Mix::General, random_seed(), count());
}

#[test]
fn vectors_of_a_fixed_seed() {
    sequences(Mix::Vectors, FIXED_SEED, count());
}

#[test]
fn vectors_of_a_random_seed() {
    sequences(Mix::Vectors, random_seed(), count());
}
