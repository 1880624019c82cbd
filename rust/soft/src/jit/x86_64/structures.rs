//! LD1 and ST1, whose elements are in memory as they are in registers.

use super::asm::{Arith, RAX, RCX, at};
use super::block::{NO_REG, Translator};
use crate::isa::insn::Reg;

/// The register that is `r` behind the first.
fn register(word: u32, r: u32) -> Reg {
    ((word + r) & 31) as Reg
}

impl Translator<'_> {
    /// By the encoding; false when the interpreter must do it.
    pub(super) fn structures(&mut self, word: u32, single: bool) -> bool {
        if !self.features.sse42 {
            return false;
        }
        let load = word >> 22 & 1 == 1;
        let size = (word >> 10 & 3) as u8;
        let full = word >> 30 & 1 == 1;
        if single {
            return self.one_lane(word, load, full, size);
        }
        let count = match word >> 12 & 15 {
            0b0111 => 1,
            0b1010 => 2,
            0b0110 => 3,
            0b0010 => 4,
            _ => return false,
        };
        let bytes = if full { 16 } else { 8 };
        let registers = (0..count).map(|r| register(word, r));
        self.structure(
            word,
            load,
            bytes * count as i32,
            |t| {
                for (i, r) in registers.enumerate() {
                    let place = at(RAX, i as i32 * bytes);
                    match (load, full) {
                        (true, true) => {
                            let x = t.write_vector(r);
                            t.asm.movups(x, place);
                        }
                        (true, false) => {
                            let x = t.write_vector(r);
                            t.asm.mov_low(true, x, place);
                            t.number(true, r);
                        }
                        (false, full) => {
                            let x = t.read_vector(r);
                            if full {
                                t.asm.movups_to(place, x);
                            } else {
                                t.asm.mov_low_to(true, place, x);
                            }
                        }
                    }
                }
            },
            (0..count).map(|r| register(word, r)),
        );
        true
    }

    /// LD1 and ST1 of one lane, and LD1R.
    fn one_lane(&mut self, word: u32, load: bool, full: bool, size: u8) -> bool {
        let (opcode, s) = (word >> 13 & 7, (word >> 12 & 1) as u8);
        if opcode & 1 != 0 || word >> 21 & 1 != 0 {
            return false;
        }
        let q = u8::from(full);
        let (element, lane) = match opcode >> 1 {
            0 => (0, q << 3 | s << 2 | size),
            1 => (1, q << 2 | s << 1 | size >> 1),
            2 if size & 1 == 0 => (2, q << 1 | s),
            2 => (3, q),
            _ => (size, 0),
        };
        let replicate = opcode >> 1 == 3;
        let r = register(word, 0);
        self.structure(
            word,
            load,
            1 << element,
            |t| {
                let place = at(RAX, 0);
                if replicate {
                    t.asm.load(element, false, true, RCX, place);
                    let x = t.write_vector(r);
                    t.asm.mov_low_r(true, x, RCX);
                    t.broadcast(element, x, x, 0);
                    t.halve(full, x);
                } else if load {
                    t.asm.load(element, false, true, RCX, place);
                    let z = t.read_vector(r);
                    let x = t.write_vector(r);
                    t.asm.movaps(x, z);
                    t.asm.lane_from(element, x, RCX, lane);
                } else {
                    let x = t.read_vector(r);
                    t.asm.lane_to(element, RCX, x, lane);
                    t.asm.store(element, place, RCX);
                }
            },
            std::iter::once(r),
        );
        true
    }

    /// A transfer of `bytes` from or to the base register, which is RAX in `f`, of these vector registers.
    fn structure(
        &mut self,
        word: u32,
        load: bool,
        bytes: i32,
        f: impl FnOnce(&mut Self),
        registers: impl Iterator<Item = Reg>,
    ) {
        let n = (word >> 5 & 31) as Reg;
        let post = (word >> 23 & 1 == 1).then_some((word >> 16 & 31) as Reg);
        if post.is_some() {
            self.will_write(n);
        }
        if load {
            registers.for_each(|r| self.will_write_vector(r));
        }
        let step = post.filter(|m| *m != 31).map(|m| self.read(m));
        let base = self.read(n);
        self.asm.mov(true, RAX, base);
        let before = self.cache;
        let missing = self.translate(!load, false, bytes);
        f(self);
        let mut changed = [NO_REG; 3];
        if post.is_some() {
            changed[0] = n;
            let base = self.update(n);
            match step {
                Some(step) => self.asm.arith(Arith::Add, true, base, step),
                None => self.asm.lea(true, base, at(base, bytes)),
            }
        }
        self.slow([Some(missing), None, None], before, changed);
    }
}
