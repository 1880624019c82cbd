//! Vectors of integers whose lanes become wider or narrower, or one; and tables.

use super::asm::{RAX, X};
use super::block::Translator;
use super::sse::{self, Ps};
use super::stubs::Constant;
use crate::isa::insn::Reg;
use crate::isa::simd::{Across, Long, Three, Two};

/// What a long instruction works on.
#[derive(Clone, Copy)]
pub(super) struct Narrow {
    pub signed: bool,
    pub size: u8,
    /// The narrow lanes are those of upper halves.
    pub upper: bool,
}

impl Translator<'_> {
    /// The narrow lanes of `x` as wide ones into `to`, which may be `x`.
    fn widen(&mut self, narrow: Narrow, to: X, x: X) {
        let mut from = x;
        if narrow.upper {
            self.asm.vector_i(sse::PSHUFD, to, x, 0xee);
            from = to;
        }
        let table = if narrow.signed { sse::PMOVSX } else { sse::PMOVZX };
        self.asm.vector(table[usize::from(narrow.size)], to, from);
    }

    /// One lane of `x` to all lanes of XMM2.
    fn one_lane(&mut self, size: u8, x: X, lane: Option<u8>) -> X {
        match lane {
            None => x,
            Some(lane) => {
                self.broadcast(size, X(2), x, lane);
                X(2)
            }
        }
    }

    pub(super) fn long(&mut self, op: Long, narrow: Narrow, [d, n, m]: [Reg; 3], lane: Option<u8>) {
        let s = usize::from(narrow.size);
        let (x, y) = (self.read_vector(n), self.read_vector(m));
        let adds = matches!(op, Long::DifferenceAdd | Long::MulAdd | Long::MulSub);
        let narrows = matches!(op, Long::AddNarrow | Long::SubNarrow);
        let z = if adds || narrows && narrow.upper { self.read_vector(d) } else { x };
        let y = self.one_lane(narrow.size, y, lane);
        let r = self.write_vector(d);
        match op {
            Long::AddNarrow | Long::SubNarrow => {
                let table = if op == Long::AddNarrow { sse::PADD } else { sse::PSUB };
                self.asm.movaps(X(0), x);
                self.asm.vector(table[s + 1], X(0), y);
                self.asm.lane_shift(Ps::Rl, narrow.size + 1, X(0), 8 << s);
                return self.narrow(s, narrow.upper, r, z);
            }
            Long::Difference | Long::DifferenceAdd => {
                self.difference(narrow.signed, s, x, y);
                // It has no sign.
                self.widen(Narrow { signed: false, ..narrow }, X(0), X(0));
            }
            Long::AddWide | Long::SubWide => {
                self.widen(narrow, X(1), y);
                self.asm.movaps(X(0), x);
            }
            _ => {
                self.widen(narrow, X(0), x);
                self.widen(narrow, X(1), y);
            }
        }
        match op {
            Long::Add | Long::AddWide => self.asm.vector(sse::PADD[s + 1], X(0), X(1)),
            Long::Sub | Long::SubWide => self.asm.vector(sse::PSUB[s + 1], X(0), X(1)),
            Long::Mul | Long::MulAdd | Long::MulSub => {
                let op = match (s, narrow.signed) {
                    (0 | 1, _) => sse::PMULL[s],
                    (_, true) => sse::PMULDQ,
                    (_, false) => sse::PMULUDQ,
                };
                self.asm.vector(op, X(0), X(1));
            }
            _ => {}
        }
        if adds {
            self.asm.movaps(r, z);
            let table = if op == Long::MulSub { sse::PSUB } else { sse::PADD };
            self.asm.vector(table[s + 1], r, X(0));
        } else {
            self.asm.movaps(r, X(0));
        }
    }

    /// How far the lanes of two are apart, into XMM0. Uses XMM1.
    pub(super) fn difference(&mut self, signed: bool, s: usize, x: X, y: X) {
        let (max, min) = if signed { (sse::PMAXS, sse::PMINS) } else { (sse::PMAXU, sse::PMINU) };
        let a = &mut self.asm;
        a.movaps(X(0), x);
        a.vector(max[s], X(0), y);
        a.movaps(X(1), x);
        a.vector(min[s], X(1), y);
        a.vector(sse::PSUB[s], X(0), X(1));
    }

    /// MUL, MLA and MLS by a lane.
    pub(super) fn by_lane(&mut self, op: Three, size: u8, full: bool, [d, n, m]: [Reg; 3], lane: u8) {
        let s = usize::from(size);
        let (x, y) = (self.read_vector(n), self.read_vector(m));
        let z = if op == Three::Mul { x } else { self.read_vector(d) };
        let y = self.one_lane(size, y, Some(lane));
        let r = self.write_vector(d);
        self.asm.vector(sse::PMULL[s - 1], y, x);
        match op {
            Three::Mul => self.asm.movaps(r, y),
            _ => {
                self.asm.movaps(r, z);
                self.asm.vector(if op == Three::Mla { sse::PADD[s] } else { sse::PSUB[s] }, r, y);
            }
        }
        self.halve(full, r);
    }

    /// UADDLP and its kind: the even lanes and the odd ones of `x`, twice as wide, and `z` where it is given.
    pub(super) fn pair_sums(&mut self, op: Two, size: u8, r: X, x: X, z: Option<X>) {
        let right = if matches!(op, Two::PairSumsSigned | Two::PairSumsSignedAdd) { Ps::Ra } else { Ps::Rl };
        let bits = 8 << size;
        self.asm.movaps(X(0), x);
        self.shift_lanes(right, size + 1, bits);
        self.asm.movaps(X(2), X(0));
        self.asm.movaps(X(0), x);
        self.asm.lane_shift(Ps::Ll, size + 1, X(0), bits);
        self.shift_lanes(right, size + 1, bits);
        self.asm.vector(sse::PADD[usize::from(size) + 1], X(0), X(2));
        if let Some(z) = z {
            self.asm.vector(sse::PADD[usize::from(size) + 1], X(0), z);
        }
        self.asm.movaps(r, X(0));
    }

    /// USHL of lanes of 2 to 8 bytes: what is too far for one direction leaves nothing in it.
    pub(super) fn shift_by(&mut self, size: u8, r: X, x: X, y: X) {
        // The counts, of the lowest byte of each lane.
        self.asm.movaps(X(0), y);
        let wide = size == 3;
        if size == 1 {
            // As 4 bytes each, the lower and the upper half.
            for (half, upper) in [(X(2), false), (X(3), true)] {
                self.widen(Narrow { signed: false, size: 1, upper }, X(0), y);
                self.asm.lane_shift(Ps::Ll, 2, X(0), 24);
                self.asm.lane_shift(Ps::Ra, 2, X(0), 24);
                self.widen(Narrow { signed: false, size: 1, upper }, half, x);
                self.shift_both_ways(false, half, half);
                // What is above does not count.
                self.asm.lane_shift(Ps::Ll, 2, half, 16);
                self.asm.lane_shift(Ps::Rl, 2, half, 16);
            }
            self.asm.vector(sse::PACKUSDW, X(2), X(3));
            return self.asm.movaps(r, X(2));
        }
        self.asm.lane_shift(Ps::Ll, size, X(0), if wide { 56 } else { 24 });
        self.shift_lanes(Ps::Ra, size, if wide { 56 } else { 24 });
        self.shift_both_ways(wide, r, x);
    }

    /// Lanes of 4 or 8 bytes by the counts in XMM0, to the left and, where they are negative, to the right. Uses XMM1.
    fn shift_both_ways(&mut self, wide: bool, r: X, x: X) {
        let a = &mut self.asm;
        a.vector(sse::XORPS, X(1), X(1));
        a.vector(sse::PSUB[if wide { 3 } else { 2 }], X(1), X(0));
        a.shift_each(true, wide, X(0), x, X(0));
        a.shift_each(false, wide, X(1), x, X(1));
        a.vector(sse::POR, X(0), X(1));
        a.movaps(r, X(0));
    }

    /// False when the interpreter must do it.
    pub(super) fn across(&mut self, op: Across, size: u8, full: bool, d: Reg, n: Reg) -> bool {
        use Across::*;
        let s = usize::from(size);
        let table = match op {
            Umax => sse::PMAXU,
            Umin => sse::PMINU,
            Smax => sse::PMAXS,
            Smin => sse::PMINS,
            _ => return self.sum_across(op, size, full, d, n),
        };
        let x = self.read_vector(n);
        let r = self.write_vector(d);
        // The halves, the quarters, and so on.
        self.asm.vector_i(sse::PSHUFD, X(0), x, if full { 0x4e } else { 0x44 });
        if full {
            self.asm.vector(table[s], X(0), x);
        }
        self.fold(table[s], size);
        self.lowest(size, r, d);
        true
    }

    /// The lowest lane of XMM0 alone.
    fn lowest(&mut self, size: u8, r: X, d: Reg) {
        self.asm.mov_r(false, RAX, X(0));
        if size < 2 {
            self.asm.extend(size, false, false, RAX, RAX);
        }
        self.asm.mov_low_r(false, r, RAX);
        self.number(false, d);
    }

    /// Folds the lower half of XMM0 until its lowest lane of `1 << size` bytes is of all. Uses XMM1.
    fn fold(&mut self, op: sse::Op, size: u8) {
        let a = &mut self.asm;
        a.vector_i(sse::PSHUFD, X(1), X(0), 0xb1);
        a.vector(op, X(0), X(1));
        if size <= 1 {
            a.vector_i(sse::PSHUFLW, X(1), X(0), 0xb1);
            a.vector(op, X(0), X(1));
        }
        if size == 0 {
            a.movaps(X(1), X(0));
            a.lane_shift(Ps::Rl, 1, X(1), 8);
            a.vector(op, X(0), X(1));
        }
    }

    fn sum_across(&mut self, op: Across, size: u8, full: bool, d: Reg, n: Reg) -> bool {
        let signed = op == Across::SumLongSigned;
        if signed && size == 0 {
            return false;
        }
        let x = self.read_vector(n);
        let r = self.write_vector(d);
        let a = &mut self.asm;
        if size == 0 {
            a.vector(sse::XORPS, X(1), X(1));
            if full {
                a.movaps(X(0), x);
            } else {
                a.low_half(X(0), x);
            }
            a.vector(sse::PSADBW, X(0), X(1));
            a.vector_i(sse::PSHUFD, X(1), X(0), 0x4e);
            a.vector(sse::PADD[2], X(0), X(1));
            self.lowest(if op == Across::Sum { 0 } else { 1 }, r, d);
            return true;
        }
        if full {
            a.movaps(X(0), x);
        } else {
            a.low_half(X(0), x);
        }
        if op == Across::Sum {
            a.vector_i(sse::PSHUFD, X(1), X(0), 0x4e);
            a.vector(sse::PADD[usize::from(size)], X(0), X(1));
            self.fold(sse::PADD[usize::from(size)], size);
            self.lowest(size, r, d);
            return true;
        }
        // Twice as wide first.
        a.movaps(X(3), X(0));
        self.pair_sums(if signed { Two::PairSumsSigned } else { Two::PairSums }, size, X(0), X(3), None);
        let a = &mut self.asm;
        a.vector_i(sse::PSHUFD, X(1), X(0), 0x4e);
        if size == 1 {
            a.vector(sse::PADD[2], X(0), X(1));
            self.fold(sse::PADD[2], 2);
            self.lowest(2, r, d);
        } else {
            a.vector(sse::PADD[3], X(0), X(1));
            a.low_half(r, X(0));
            self.number(true, d);
        }
        true
    }

    /// TBL and TBX: of each register of the table what is in it, none of which has the same index.
    pub(super) fn tables(&mut self, keeps: bool, count: u8, full: bool, [d, n, m]: [Reg; 3]) {
        let y = self.read_vector(m);
        let mut tables = [X(0); 4];
        for (i, table) in (0..count).zip(&mut tables) {
            *table = self.read_vector((n + i) & 31);
        }
        let z = if keeps { self.read_vector(d) } else { y };
        let r = self.write_vector(d);
        self.asm.movaps(X(2), y);
        for (i, table) in (0..count).zip(tables) {
            if i != 0 {
                // The next sixteen.
                self.constant(sse::PSUB[0], X(2), Constant::Sixteens);
            }
            let to = if i == 0 { r } else { X(1) };
            self.asm.movaps(X(0), X(2));
            self.constant(sse::PADDUSB, X(0), Constant::Beyond);
            self.asm.movaps(to, table);
            self.asm.vector(sse::PSHUFB, to, X(0));
            if i != 0 {
                self.asm.vector(sse::POR, r, X(1));
            }
        }
        if keeps {
            // Where the index is beyond all, which is to say no smaller than their end.
            self.all_bytes(X(0), 16 * count);
            self.asm.vector(sse::PMAXU[0], X(0), y);
            self.asm.vector(sse::PCMPEQ[0], X(0), y);
            self.asm.vector(sse::PAND, X(0), z);
            self.asm.vector(sse::POR, r, X(0));
        }
        self.halve(full, r);
    }
}
