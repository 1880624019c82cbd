//! LD1 to LD4 and ST1 to ST4.
//!
//! What lies in memory one structure behind the other is sorted by shuffles of whole registers; each element is loaded
//! or stored by one access in the end, as is asked for.

use super::asm::{Arith, RAX, RCX, X, at};
use super::block::{NO_REG, Translator};
use super::sse;
use super::stubs::Constant;
use crate::isa::insn::{Address, Reg};

/// Which registers an instruction transfers, and what of each.
struct Structures {
    store: bool,
    full: bool,
    /// An element's, in bytes as a power of two.
    size: u8,
    first: Reg,
    /// Registers, and how many of them a structure spans.
    count: u8,
    span: u8,
    /// One element each, and which.
    lane: Option<u8>,
    /// That one to all lanes.
    replicate: bool,
}

impl Structures {
    fn new(word: u32, single: bool) -> Self {
        let bits = |high: u32, low: u32| (word >> low & ((1 << (high - low + 1)) - 1)) as u8;
        let (store, full, first) = (bits(22, 22) == 0, bits(30, 30) == 1, bits(4, 0));
        if !single {
            let (count, span) = match bits(15, 12) {
                0b0000 => (4, 4),
                0b0010 => (4, 1),
                0b0100 => (3, 3),
                0b0110 => (3, 1),
                0b0111 => (1, 1),
                0b1000 => (2, 2),
                _ => (2, 1),
            };
            return Self {
                store,
                full,
                size: bits(11, 10),
                first,
                count,
                span,
                lane: None,
                replicate: false,
            };
        }
        let count = (bits(13, 13) << 1 | bits(21, 21)) + 1;
        let (q, s, low) = (bits(30, 30), bits(12, 12), bits(11, 10));
        let (size, lane, replicate) = match bits(15, 14) {
            0 => (0, q << 3 | s << 2 | low, false),
            1 => (1, q << 2 | s << 1 | low >> 1, false),
            2 if low & 1 == 0 => (2, q << 1 | s, false),
            2 => (3, q, false),
            _ => (low, 0, true),
        };
        Self { store, full, size, first, count, span: count, lane: Some(lane), replicate }
    }

    /// Bytes in memory.
    fn total(&self) -> u8 {
        match (self.lane, self.full) {
            (Some(_), _) => self.count << self.size,
            (None, true) => self.count * 16,
            (None, false) => self.count * 8,
        }
    }

    fn register(&self, i: u8) -> Reg {
        (self.first + i) & 31
    }
}

impl Translator<'_> {
    pub(super) fn structures(&mut self, word: u32, single: bool) {
        let all = Structures::new(word, single);
        let moves = word >> 23 & 1 == 1;
        let (n, m) = ((word >> 5 & 31) as Reg, (word >> 16 & 31) as Reg);
        if moves {
            self.will_write(n);
        }
        // A load of one lane leaves the others.
        let reads = all.store || all.lane.is_some() && !all.replicate;
        let mut values = [X(0); 4];
        for (r, value) in (0..all.count).map(|i| all.register(i)).zip(&mut values) {
            if reads {
                *value = self.read_vector(r);
            }
            if !all.store {
                self.will_write_vector(r);
            }
        }
        self.address(Address::Unscaled(n, 0));
        let by = (moves && m != 31).then(|| self.read(m));
        let before = self.cache;
        let missing = self.translate(all.store, all.total().into());
        match (all.lane, all.store) {
            (Some(lane), _) => self.lanes_of_structures(&all, lane, values),
            (None, true) if all.span == 1 => {
                for (i, value) in (0..all.count).zip(values) {
                    self.store_part(all.full, i, value);
                }
            }
            (None, true) => self.interleave(&all, values),
            (None, false) if all.span == 1 => {
                for i in 0..all.count {
                    let x = self.write_vector(all.register(i));
                    self.load_part(all.full, i, x);
                }
            }
            (None, false) => self.sort(&all),
        }
        if !all.store && all.lane.is_none() && !all.full {
            for i in 0..all.count {
                self.number(true, all.register(i));
            }
        }
        if moves {
            let base = self.update(n);
            match by {
                Some(by) => self.asm.arith(Arith::Add, true, base, by),
                None => self.asm.lea(true, base, at(base, all.total().into())),
            }
        }
        self.slow([Some(missing), None, None], before, [NO_REG, NO_REG, if moves { n } else { NO_REG }]);
    }

    /// Loads the 16 bytes, or the 8, with this number.
    fn load_part(&mut self, full: bool, i: u8, x: X) {
        if full {
            self.asm.movups(x, at(RAX, 16 * i32::from(i)));
        } else {
            self.asm.mov_low(true, x, at(RAX, 8 * i32::from(i)));
        }
    }

    fn store_part(&mut self, full: bool, i: u8, x: X) {
        if full {
            self.asm.movups_to(at(RAX, 16 * i32::from(i)), x);
        } else {
            self.asm.mov_low_to(true, at(RAX, 8 * i32::from(i)), x);
        }
    }

    /// One element of each register.
    fn lanes_of_structures(&mut self, all: &Structures, lane: u8, values: [X; 4]) {
        for (i, value) in (0..all.count).zip(values) {
            let place = at(RAX, i32::from(i) << all.size);
            if all.store {
                self.asm.lane_to(all.size, RCX, value, lane);
                self.asm.store(all.size, place, RCX);
                continue;
            }
            self.asm.load(all.size, false, true, RCX, place);
            let r = self.write_vector(all.register(i));
            if all.replicate {
                self.asm.mov_low_r(all.size == 3, r, RCX);
                self.broadcast(all.size, r, r, 0);
                self.halve(all.full, r);
            } else {
                self.asm.movaps(r, value);
                self.asm.lane_from(all.size, r, RCX, lane);
            }
        }
    }

    /// LD2 to LD4.
    fn sort(&mut self, all: &Structures) {
        match all.count {
            2 => self.sort_pairs(all),
            3 => {
                let parts = if all.full { 3 } else { 2 };
                for i in 0..3 {
                    let r = self.write_vector(all.register(i));
                    self.gather(all, i, r, parts, |t, part| {
                        if all.full || part == 0 {
                            t.asm.movups(X(0), at(RAX, 16 * i32::from(part)));
                        } else {
                            t.asm.mov_low(true, X(0), at(RAX, 16));
                        }
                        X(0)
                    });
                    self.halve(all.full, r);
                }
            }
            _ => self.sort_fours(all),
        }
    }

    /// Puts together what belongs to `r`, with number `i`, of several parts, which `part` gives.
    fn gather(&mut self, all: &Structures, i: u8, r: X, parts: u8, part: impl Fn(&mut Self, u8) -> X) {
        let shuffles = self.stubs.triples(all.store, all.size) + 48 * usize::from(i);
        for n in 0..parts {
            let from = part(self, n);
            let to = if n == 0 { r } else { X(1) };
            self.asm.movaps(to, from);
            self.asm.vector_at(sse::PSHUFB, to, shuffles + 16 * usize::from(n));
            if n != 0 {
                self.asm.vector(sse::POR, r, to);
            }
        }
    }

    fn sort_pairs(&mut self, all: &Structures) {
        let [x, y] = [0, 1].map(|i| self.write_vector(all.register(i)));
        // The first ones come to the lower half, the second ones to the upper.
        let parts: u8 = if all.full { 2 } else { 1 };
        for part in 0..parts {
            self.asm.movups(X(part), at(RAX, 16 * i32::from(part)));
            match all.size {
                0 => self.constant(sse::PSHUFB, X(part), Constant::Pairs8),
                1 => self.constant(sse::PSHUFB, X(part), Constant::Pairs16),
                2 => self.asm.vector_i(sse::PSHUFD, X(part), X(part), 0xd8),
                _ => {}
            }
        }
        let a = &mut self.asm;
        if all.full {
            a.movaps(x, X(0));
            a.movaps(y, X(0));
            a.vector(sse::PUNPCKL[3], x, X(1));
            a.vector(sse::PUNPCKH[3], y, X(1));
        } else {
            a.low_half(x, X(0));
            a.movaps(y, X(0));
            a.byte_shift(false, y, 8);
        }
    }

    fn sort_fours(&mut self, all: &Structures) {
        let [x, y, z, w] = [0, 1, 2, 3].map(|i| self.write_vector(all.register(i)));
        // What belongs to one register comes together, 4 bytes of each.
        let parts: u8 = if all.full { 4 } else { 2 };
        for part in 0..parts {
            self.asm.movups(X(part), at(RAX, 16 * i32::from(part)));
            match all.size {
                0 => self.constant(sse::PSHUFB, X(part), Constant::Fours8),
                1 => self.constant(sse::PSHUFB, X(part), Constant::Fours16),
                _ => {}
            }
        }
        let a = &mut self.asm;
        if all.size == 3 {
            // Two structures of two parts each.
            for (low, high, part) in [(x, y, 0), (z, w, 1)] {
                a.movaps(low, X(part));
                a.movaps(high, X(part));
                a.vector(sse::PUNPCKL[3], low, X(part + 2));
                a.vector(sse::PUNPCKH[3], high, X(part + 2));
            }
            return;
        }
        // Of the first two parts: two registers' 8 bytes each.
        for (low, r) in [(true, x), (false, z)] {
            a.movaps(r, X(0));
            a.vector(if low { sse::PUNPCKL[2] } else { sse::PUNPCKH[2] }, r, X(1));
        }
        if !all.full {
            for (low, high) in [(x, y), (z, w)] {
                a.movaps(high, low);
                a.byte_shift(false, high, 8);
                a.low_half(low, low);
            }
            return;
        }
        a.movaps(X(0), X(2));
        a.vector(sse::PUNPCKL[2], X(0), X(3));
        a.vector(sse::PUNPCKH[2], X(2), X(3));
        for (low, high, rest) in [(x, y, X(0)), (z, w, X(2))] {
            a.movaps(high, low);
            a.vector(sse::PUNPCKL[3], low, rest);
            a.vector(sse::PUNPCKH[3], high, rest);
        }
    }

    /// ST2 to ST4.
    fn interleave(&mut self, all: &Structures, values: [X; 4]) {
        let s = usize::from(all.size);
        match all.count {
            2 => {
                self.store_zipped(s, all.full, 0, [values[0], values[1]]);
            }
            3 => {
                let parts = if all.full { 3 } else { 2 };
                for part in 0..parts {
                    self.gather(all, part, X(0), 3, |_, n| values[usize::from(n)]);
                    self.store_part_of_16(all.full || part == 0, part);
                }
            }
            _ if s == 3 => {
                for part in 0..4 {
                    let from = usize::from(part) % 2 * 2;
                    let zip = if part < 2 { sse::PUNPCKL[3] } else { sse::PUNPCKH[3] };
                    self.asm.movaps(X(0), values[from]);
                    self.asm.vector(zip, X(0), values[from + 1]);
                    self.store_part(true, part, X(0));
                }
            }
            _ => {
                let halves = if all.full { 2 } else { 1 };
                for (half, table) in [sse::PUNPCKL, sse::PUNPCKH].into_iter().enumerate().take(halves) {
                    for (to, from) in [(X(1), 0), (X(2), 2)] {
                        self.asm.movaps(to, values[from]);
                        self.asm.vector(table[s], to, values[from + 1]);
                    }
                    self.store_zipped(s + 1, true, 2 * half as u8, [X(1), X(2)]);
                }
            }
        }
    }

    /// Stores the elements of two registers by turns, from this part on.
    fn store_zipped(&mut self, s: usize, full: bool, part: u8, [x, y]: [X; 2]) {
        self.asm.movaps(X(0), x);
        self.asm.vector(sse::PUNPCKL[s], X(0), y);
        self.store_part(true, part, X(0));
        if full {
            self.asm.movaps(X(0), x);
            self.asm.vector(sse::PUNPCKH[s], X(0), y);
            self.store_part(true, part + 1, X(0));
        }
    }

    /// Stores XMM0, or its lower half, behind so many times 16 bytes.
    fn store_part_of_16(&mut self, whole: bool, part: u8) {
        let place = at(RAX, 16 * i32::from(part));
        if whole {
            self.asm.movups_to(place, X(0));
        } else {
            self.asm.mov_low_to(true, place, X(0));
        }
    }
}
