//! Vectors of integers, by SSE4.2's instructions.

use super::asm::{RAX, X};
use super::block::Translator;
use super::sse::{self, Op, Ps};
use super::stubs::Constant;
use super::wide::Narrow;
use crate::isa::insn::{Lanes, Reg};
use crate::isa::simd::{LaneShift, Permute, Simd, Three, Two};

impl Translator<'_> {
    /// False when the interpreter must do it.
    pub(super) fn vector(&mut self, insn: Simd) -> bool {
        if !self.features.sse42 {
            return false;
        }
        match insn {
            Simd::Const { d, value } => {
                let r = self.write_vector(d);
                self.load_const(r, value);
                if value >> 64 == 0 {
                    self.number(value >> 32 != 0, d);
                }
                true
            }
            Simd::OrConst { d, value, .. } | Simd::AndConst { d, value } => {
                let z = self.read_vector(d);
                let r = self.write_vector(d);
                self.load_const(X(0), value);
                self.asm.movaps(r, z);
                if let Simd::OrConst { full, .. } = insn {
                    self.asm.vector(sse::POR, r, X(0));
                    self.halve(full, r);
                } else {
                    self.asm.vector(sse::PAND, r, X(0));
                }
                true
            }
            Simd::Across { op, size, full, d, n } => self.across(op, size, full, d, n),
            Simd::PairSum { d, n } => {
                let x = self.read_vector(n);
                let r = self.write_vector(d);
                self.asm.vector_i(sse::PSHUFD, r, x, 0x4e);
                self.asm.vector(sse::PADD[3], r, x);
                self.asm.low_half(r, r);
                self.number(true, d);
                true
            }
            Simd::Long { op, signed, size, upper, d, n, m, lane } => {
                self.long(op, Narrow { signed, size, upper }, [d, n, m], lane);
                true
            }
            Simd::ByLane { op, size, full, d, n, m, lane } => {
                self.by_lane(op, size, full, [d, n, m], lane);
                true
            }
            Simd::Three { op, size, full, d, n, m } => self.three(op, size, full, d, n, m),
            Simd::Two { op, size, full, d, n } => self.two(op, size, full, d, n),
            Simd::Shift { op, size, full, d, n, by } => self.lane_shift(op, size, full, d, n, by),
            Simd::Permute { op, size, full, d, n, m } => {
                self.permute(op, size, full, d, n, m);
                true
            }
            Simd::Extract { full, d, n, m, by } => {
                let (x, y) = (self.read_vector(n), self.read_vector(m));
                let r = self.write_vector(d);
                if full {
                    self.asm.movaps(r, y);
                    self.asm.vector_i(sse::PALIGNR, r, x, by);
                } else {
                    self.asm.movaps(r, x);
                    self.asm.vector(sse::PUNPCKL[3], r, y);
                    self.asm.byte_shift(false, r, by);
                    self.asm.low_half(r, r);
                }
                true
            }
            Simd::Table { keeps, count, full, d, n, m } => {
                self.tables(keeps, count, full, [d, n, m]);
                true
            }
            Simd::Dup { size, full, d, n, lane } => {
                let x = self.read_vector(n);
                let r = self.write_vector(d);
                self.broadcast(size, r, x, lane);
                self.halve(full, r);
                true
            }
            Simd::Lane { size: 3, d, n, lane } => {
                let x = self.read_vector(n);
                let r = self.write_vector(d);
                self.asm.movaps(r, x);
                if lane == 1 {
                    self.asm.byte_shift(false, r, 8);
                }
                self.asm.low_half(r, r);
                self.number(true, d);
                true
            }
            Simd::Lane { size: 2, d, n, lane } => {
                let x = self.read_vector(n);
                let r = self.write_vector(d);
                // That lane to the lowest, zeros above.
                self.asm.vector_i(sse::INSERTPS, r, x, lane << 6 | 0b1110);
                self.number(false, d);
                true
            }
            Simd::DupGeneral { size, full, d, n } => {
                let s = self.read(n);
                let r = self.write_vector(d);
                self.asm.mov_low_r(size == 3, r, s);
                self.broadcast(size, r, r, 0);
                self.halve(full, r);
                true
            }
            Simd::ToGeneral { signed, wide, size, d, n, lane } => {
                self.will_write(d);
                let x = self.read_vector(n);
                let r = self.write(d);
                if lane == 0 && size >= 2 {
                    self.asm.mov_r(size == 3, r, x);
                } else {
                    self.asm.lane_to(size, r, x, lane);
                }
                if signed {
                    self.asm.extend(size, true, wide, r, r);
                }
                true
            }
            Simd::FromUpper { d, n } => {
                self.vector(Simd::ToGeneral { signed: false, wide: true, size: 3, d, n, lane: 1 })
            }
            Simd::ToUpper { d, n } => self.vector(Simd::FromGeneral { size: 3, d, n, lane: 1 }),
            Simd::FromGeneral { size, d, n, lane } => {
                let (z, s) = (self.read_vector(d), self.read(n));
                let r = self.write_vector(d);
                self.asm.movaps(r, z);
                self.asm.lane_from(size, r, s, lane);
                true
            }
            Simd::Insert { size, d, n, to, from } => {
                let (z, x) = (self.read_vector(d), self.read_vector(n));
                let r = self.write_vector(d);
                self.asm.movaps(r, z);
                if (size, to, from) == (3, 1, 0) {
                    self.asm.vector(sse::PUNPCKL[3], r, x);
                } else {
                    self.asm.lane_to(size, RAX, x, from);
                    self.asm.lane_from(size, r, RAX, to);
                }
                true
            }
            Simd::Crypto { op, d, n, m } => self.crypto(op, d, n, m),
            Simd::Eor3 { d, n, m, a } => {
                let (x, y, z) = (self.read_vector(n), self.read_vector(m), self.read_vector(a));
                let r = self.write_vector(d);
                self.asm.movaps(r, x);
                self.asm.vector(sse::PXOR, r, y);
                self.asm.vector(sse::PXOR, r, z);
                true
            }
            _ => false,
        }
    }

    fn load_const(&mut self, r: X, value: u128) {
        if value == 0 {
            self.asm.vector(sse::XORPS, r, r);
        } else if value == u128::MAX {
            self.asm.vector(sse::PCMPEQ[2], r, r);
        } else {
            self.asm.mov_i(RAX, value as u64);
            self.asm.mov_low_r(true, r, RAX);
            match (value >> 64) as u64 {
                0 => {}
                high if high == value as u64 => self.asm.vector(sse::PUNPCKL[3], r, r),
                high => {
                    self.asm.mov_i(RAX, high);
                    self.asm.lane_from(3, r, RAX, 1);
                }
            }
        }
    }

    /// Nothing above the lower half unless `full`.
    pub(super) fn halve(&mut self, full: bool, r: X) {
        if !full {
            self.asm.low_half(r, r);
        }
    }

    fn invert(&mut self, r: X) {
        self.asm.vector(sse::PCMPEQ[2], X(3), X(3));
        self.asm.vector(sse::PXOR, r, X(3));
    }

    pub(super) fn lanes(&mut self, op: Lanes, size: u8, full: bool, d: Reg, n: Reg, m: Reg) {
        self.will_write_vector(d);
        let (x, y) = (self.read_vector(n), self.read_vector(m));
        let r = self.write_vector(d);
        if op == Lanes::Orr && n == m {
            if full {
                self.asm.movaps(r, x);
                if d != n {
                    self.copies[d as usize] = Some(n);
                }
            } else {
                self.asm.low_half(r, x);
            }
            return;
        }
        let (x, y, op) = match op {
            Lanes::Bic => (y, x, sse::PANDN),
            Lanes::And => (x, y, sse::PAND),
            Lanes::Orr => (x, y, sse::POR),
            Lanes::Eor => (x, y, sse::PXOR),
            Lanes::Add => (x, y, sse::PADD[size as usize]),
            Lanes::Sub => (x, y, sse::PSUB[size as usize]),
        };
        self.asm.movaps(r, x);
        self.asm.vector(op, r, y);
        self.halve(full, r);
    }

    fn three(&mut self, op: Three, size: u8, full: bool, d: Reg, n: Reg, m: Reg) -> bool {
        let s = size as usize;
        let extreme = |table: &[Op; 3]| table.get(s).copied();
        let direct = match op {
            Three::Equal => Some(sse::PCMPEQ[s]),
            Three::Greater => Some(sse::PCMPGT[s]),
            Three::Smax => extreme(&sse::PMAXS),
            Three::Smin => extreme(&sse::PMINS),
            Three::Umax => extreme(&sse::PMAXU),
            Three::Umin => extreme(&sse::PMINU),
            Three::Add => Some(sse::PADD[s]),
            Three::Sub => Some(sse::PSUB[s]),
            Three::RoundedMean => sse::PAVG.get(s).copied(),
            Three::Mul => s.checked_sub(1).and_then(|s| sse::PMULL.get(s).copied()),
            _ => None,
        };
        let multiplies = matches!(op, Three::Mla | Three::Mls);
        let pairs = matches!(op, Three::AddPairs | Three::UmaxPairs | Three::UminPairs);
        match op {
            Three::Smax | Three::Smin | Three::Umax | Three::Umin | Three::Mul | Three::RoundedMean
                if direct.is_none() =>
            {
                return false;
            }
            Three::SmaxPairs | Three::SminPairs | Three::ShiftBySigned => return false,
            Three::ShiftBy if !self.features.avx2 || s == 0 => return false,
            _ if multiplies && !(1..=2).contains(&s) => return false,
            Three::UmaxPairs | Three::UminPairs if s != 0 => return false,
            _ => {}
        }
        let (x, y) = (self.read_vector(n), self.read_vector(m));
        let adds = matches!(op, Three::DifferenceAdd | Three::DifferenceSignedAdd);
        let z = if multiplies || adds || matches!(op, Three::Bsl | Three::Bit | Three::Bif) {
            self.read_vector(d)
        } else {
            x
        };
        let r = self.write_vector(d);
        if let Some(op) = direct {
            self.asm.movaps(r, x);
            self.asm.vector(op, r, y);
            self.halve(full, r);
            return true;
        }
        if pairs {
            self.pairs(op, s, full, r, x, y);
            return true;
        }
        match op {
            Three::Orn => {
                self.asm.movaps(r, y);
                self.invert(r);
                self.asm.vector(sse::POR, r, x);
            }
            // Where `mask` has ones the first, else the second.
            Three::Bsl => self.choose(r, z, x, y),
            Three::Bit => self.choose(r, y, x, z),
            Three::Bif => self.choose(r, y, z, x),
            Three::GreaterEqual => {
                self.asm.movaps(r, y);
                self.asm.vector(sse::PCMPGT[s], r, x);
                self.invert(r);
            }
            Three::Higher | Three::HigherSame if s == 3 => {
                self.asm.movaps(X(0), x);
                self.asm.movaps(X(1), y);
                self.constant(sse::PXOR, X(0), Constant::Signs);
                self.constant(sse::PXOR, X(1), Constant::Signs);
                if op == Three::Higher {
                    self.asm.vector(sse::PCMPGT[3], X(0), X(1));
                    self.asm.movaps(r, X(0));
                } else {
                    self.asm.vector(sse::PCMPGT[3], X(1), X(0));
                    self.asm.movaps(r, X(1));
                    self.invert(r);
                }
            }
            Three::ShiftBy => self.shift_by(size, r, x, y),
            Three::Difference
            | Three::DifferenceSigned
            | Three::DifferenceAdd
            | Three::DifferenceSignedAdd => {
                let signed = matches!(op, Three::DifferenceSigned | Three::DifferenceSignedAdd);
                self.difference(signed, s, x, y);
                if adds {
                    self.asm.vector(sse::PADD[s], X(0), z);
                }
                self.asm.movaps(r, X(0));
            }
            Three::HigherSame => {
                self.asm.movaps(r, y);
                self.asm.vector(sse::PMAXU[s], r, x);
                self.asm.vector(sse::PCMPEQ[s], r, x);
            }
            Three::Higher => {
                self.asm.movaps(r, x);
                self.asm.vector(sse::PMAXU[s], r, y);
                self.asm.vector(sse::PCMPEQ[s], r, y);
                self.invert(r);
            }
            Three::Test => {
                self.asm.movaps(r, x);
                self.asm.vector(sse::PAND, r, y);
                self.asm.vector(sse::XORPS, X(0), X(0));
                self.asm.vector(sse::PCMPEQ[s], r, X(0));
                self.invert(r);
            }
            _ => {
                self.asm.movaps(X(0), x);
                self.asm.vector(sse::PMULL[s - 1], X(0), y);
                self.asm.movaps(r, z);
                self.asm.vector(if op == Three::Mla { sse::PADD[s] } else { sse::PSUB[s] }, r, X(0));
            }
        }
        self.halve(full, r);
        true
    }

    /// `mask` chooses `ones` by its ones and `zeros` by its zeros.
    fn choose(&mut self, r: X, mask: X, ones: X, zeros: X) {
        self.asm.movaps(X(0), mask);
        self.asm.movaps(X(1), mask);
        self.asm.vector(sse::PAND, X(0), ones);
        self.asm.vector(sse::PANDN, X(1), zeros);
        self.asm.vector(sse::POR, X(0), X(1));
        self.asm.movaps(r, X(0));
    }

    /// Neighbours of `x` and `y` one behind the other; where only lower halves count, all of them come to `x`'s place.
    fn pairs(&mut self, op: Three, s: usize, full: bool, r: X, x: X, y: X) {
        let (mut x, mut y) = (x, y);
        if !full {
            self.asm.movaps(X(3), x);
            self.asm.vector(sse::PUNPCKL[3], X(3), y);
            (x, y) = (X(3), X(3));
        }
        match s {
            0 => {
                let a = &mut self.asm;
                for (half, odd, from) in [(X(0), X(1), x), (X(2), X(1), y)] {
                    a.movaps(half, from);
                    a.movaps(odd, from);
                    a.lane_shift(Ps::Ll, 1, half, 8);
                    a.lane_shift(Ps::Rl, 1, half, 8);
                    a.lane_shift(Ps::Rl, 1, odd, 8);
                    match op {
                        Three::AddPairs => {
                            a.vector(sse::PADD[0], half, odd);
                        }
                        Three::UmaxPairs => a.vector(sse::PMAXU[0], half, odd),
                        _ => a.vector(sse::PMINU[0], half, odd),
                    }
                }
                a.vector(sse::PACKUSWB, X(0), X(2));
                a.movaps(r, X(0));
            }
            1 | 2 => {
                self.asm.movaps(X(0), x);
                self.asm.vector(sse::PHADD[s - 1], X(0), y);
                self.asm.movaps(r, X(0));
            }
            _ => {
                self.asm.movaps(X(0), x);
                self.asm.movaps(X(1), x);
                self.asm.vector(sse::PUNPCKL[3], X(0), y);
                self.asm.vector(sse::PUNPCKH[3], X(1), y);
                self.asm.vector(sse::PADD[3], X(0), X(1));
                self.asm.movaps(r, X(0));
            }
        }
        self.halve(full, r);
    }

    fn two(&mut self, op: Two, size: u8, full: bool, d: Reg, n: Reg) -> bool {
        let s = size as usize;
        if op == Two::Abs && s == 3 || matches!(op, Two::Rev64 | Two::Rev32) && s > 2 {
            return false;
        }
        let x = self.read_vector(n);
        let adds = matches!(op, Two::PairSumsAdd | Two::PairSumsSignedAdd);
        let z = if op == Two::Narrow && full || adds { self.read_vector(d) } else { x };
        let r = self.write_vector(d);
        match op {
            Two::Rev64 if s == 2 => self.asm.vector_i(sse::PSHUFD, r, x, 0xb1),
            Two::Rev64 | Two::Rev32 if s == 1 => {
                let order = if op == Two::Rev64 { 0x1b } else { 0xb1 };
                self.asm.vector_i(sse::PSHUFLW, r, x, order);
                self.asm.vector_i(sse::PSHUFHW, r, r, order);
            }
            Two::Rev64 | Two::Rev32 | Two::Rev16 => {
                self.asm.movaps(r, x);
                let order = match op {
                    Two::Rev64 => Constant::Rev64,
                    Two::Rev32 => Constant::Rev32,
                    _ => Constant::Rev16,
                };
                self.constant(sse::PSHUFB, r, order);
            }
            Two::Not => {
                self.asm.movaps(r, x);
                self.invert(r);
            }
            Two::Count => {
                // Of each half of a byte, by a table.
                self.asm.movaps(X(0), x);
                self.asm.movaps(X(1), x);
                self.asm.lane_shift(Ps::Rl, 1, X(1), 4);
                for (half, counts) in [(X(0), r), (X(1), X(2))] {
                    self.constant(sse::PAND, half, Constant::LowHalves);
                    self.asm.vector(sse::XORPS, counts, counts);
                    self.constant(sse::XORPS, counts, Constant::BitCounts);
                    self.asm.vector(sse::PSHUFB, counts, half);
                }
                self.asm.vector(sse::PADD[0], r, X(2));
            }
            Two::Neg => {
                self.asm.vector(sse::XORPS, X(0), X(0));
                self.asm.vector(sse::PSUB[s], X(0), x);
                self.asm.movaps(r, X(0));
            }
            Two::Abs => self.asm.vector(sse::PABS[s], r, x),
            Two::Greater | Two::Equal | Two::LessEqual => {
                self.asm.vector(sse::XORPS, X(0), X(0));
                self.asm.movaps(r, x);
                let compare = if op == Two::Equal { sse::PCMPEQ[s] } else { sse::PCMPGT[s] };
                self.asm.vector(compare, r, X(0));
                if op == Two::LessEqual {
                    self.invert(r);
                }
            }
            Two::Less | Two::GreaterEqual => {
                self.asm.vector(sse::XORPS, X(0), X(0));
                self.asm.vector(sse::PCMPGT[s], X(0), x);
                self.asm.movaps(r, X(0));
                if op == Two::GreaterEqual {
                    self.invert(r);
                }
            }
            Two::PairSums | Two::PairSumsSigned | Two::PairSumsAdd | Two::PairSumsSignedAdd => {
                self.pair_sums(op, size, r, x, adds.then_some(z));
            }
            Two::Narrow => {
                self.asm.movaps(X(0), x);
                self.narrow(s, full, r, z);
                return true;
            }
        }
        self.halve(full, r);
        true
    }

    /// The lower halves of lanes of XMM0, twice as wide as `s`: to the lower half of `r`, or to the upper one above
    /// what `z` has in its lower half.
    pub(super) fn narrow(&mut self, s: usize, full: bool, r: X, z: X) {
        let a = &mut self.asm;
        match s {
            0 => {
                a.lane_shift(Ps::Ll, 1, X(0), 8);
                a.lane_shift(Ps::Rl, 1, X(0), 8);
                a.vector(sse::PACKUSWB, X(0), X(0));
            }
            1 => {
                a.lane_shift(Ps::Ll, 2, X(0), 16);
                a.lane_shift(Ps::Ra, 2, X(0), 16);
                a.vector(sse::PACKSSDW, X(0), X(0));
            }
            _ => a.vector_i(sse::PSHUFD, X(0), X(0), 0x08),
        }
        if full {
            a.movaps(r, z);
            a.vector(sse::PUNPCKL[3], r, X(0));
        } else {
            a.low_half(r, X(0));
        }
    }

    fn lane_shift(&mut self, op: LaneShift, size: u8, full: bool, d: Reg, n: Reg, by: u8) -> bool {
        use LaneShift::*;
        let lane = 8_u8 << size;
        if size == 0 && matches!(op, LeftInsert | RightInsert) {
            return false;
        }
        let reads =
            matches!(op, RightAdd | RightSignedAdd | LeftInsert | RightInsert) || op == Narrow && full;
        let x = self.read_vector(n);
        let z = if reads { self.read_vector(d) } else { x };
        let r = self.write_vector(d);
        match op {
            Widen | WidenSigned => {
                let table = if op == Widen { sse::PMOVZX } else { sse::PMOVSX };
                let mut from = x;
                if full {
                    self.asm.vector_i(sse::PSHUFD, X(0), x, 0xee);
                    from = X(0);
                }
                self.asm.vector(table[size as usize], r, from);
                if by != 0 {
                    self.asm.lane_shift(Ps::Ll, size + 1, r, by);
                }
                return true;
            }
            Narrow => {
                self.asm.movaps(X(0), x);
                self.asm.lane_shift(Ps::Rl, size + 1, X(0), by);
                self.narrow(size as usize, full, r, z);
                return true;
            }
            _ => {}
        }
        self.asm.movaps(X(0), x);
        match op {
            Left | LeftInsert => self.shift_lanes(Ps::Ll, size, by),
            Right | RightAdd | RightInsert => self.shift_lanes(Ps::Rl, size, by),
            _ => self.shift_lanes(Ps::Ra, size, by),
        }
        match op {
            RightAdd | RightSignedAdd => self.asm.vector(sse::PADD[size as usize], X(0), z),
            LeftInsert | RightInsert => {
                // What the shift has left empty stays.
                self.asm.vector(sse::PCMPEQ[2], X(1), X(1));
                let shift = if op == LeftInsert { Ps::Rl } else { Ps::Ll };
                self.asm.lane_shift(shift, size, X(1), lane - by);
                self.asm.vector(sse::PAND, X(1), z);
                self.asm.vector(sse::POR, X(0), X(1));
            }
            _ => {}
        }
        self.asm.movaps(r, X(0));
        self.halve(full, r);
        true
    }

    /// Shifts the lanes of XMM0, by their length at most.
    pub(super) fn shift_lanes(&mut self, op: Ps, size: u8, by: u8) {
        match (op, size) {
            (Ps::Ra, 3) => {
                // There is none: the signs come from a comparison.
                self.asm.vector(sse::XORPS, X(1), X(1));
                self.asm.vector(sse::PCMPGT[3], X(1), X(0));
                self.asm.lane_shift(Ps::Rl, 3, X(0), by);
                self.asm.lane_shift(Ps::Ll, 3, X(1), 64 - by);
                self.asm.vector(sse::POR, X(0), X(1));
            }
            (Ps::Ra, 0) => {
                let by = by.min(7);
                self.shift_lanes(Ps::Rl, 0, by);
                // Extends the sign, which is at bit 7 - by now.
                self.all_bytes(X(1), 0x80 >> by);
                self.asm.vector(sse::PXOR, X(0), X(1));
                self.asm.vector(sse::PSUB[0], X(0), X(1));
            }
            (_, 0) => {
                self.asm.lane_shift(op, 1, X(0), by);
                let left = if op == Ps::Ll { 0xff_u32 << by } else { 0xff_u32 >> by };
                self.all_bytes(X(1), left as u8);
                self.asm.vector(sse::PAND, X(0), X(1));
            }
            _ => self.asm.lane_shift(op, size, X(0), by),
        }
    }

    pub(super) fn all_bytes(&mut self, x: X, byte: u8) {
        self.asm.mov_i(RAX, u64::from(byte) * 0x0101_0101);
        self.asm.mov_low_r(false, x, RAX);
        self.asm.vector_i(sse::PSHUFD, x, x, 0);
    }

    fn permute(&mut self, op: Permute, size: u8, full: bool, d: Reg, n: Reg, m: Reg) {
        let s = size as usize;
        let (x, y) = (self.read_vector(n), self.read_vector(m));
        let r = self.write_vector(d);
        match op {
            Permute::Zip1 | Permute::Zip2 => {
                let upper = op == Permute::Zip2 && full;
                self.asm.movaps(r, x);
                self.asm.vector(if upper { sse::PUNPCKH[s] } else { sse::PUNPCKL[s] }, r, y);
                if op == Permute::Zip2 && !full {
                    self.asm.byte_shift(false, r, 8);
                }
            }
            Permute::Trn1 | Permute::Trn2 if s == 3 => {
                self.asm.movaps(r, x);
                let table = if op == Permute::Trn1 { sse::PUNPCKL } else { sse::PUNPCKH };
                self.asm.vector(table[3], r, y);
            }
            Permute::Trn1 | Permute::Trn2 => {
                let bits = 8 << size;
                let a = &mut self.asm;
                a.movaps(X(0), x);
                a.movaps(X(1), y);
                if op == Permute::Trn1 {
                    a.lane_shift(Ps::Ll, size + 1, X(0), bits);
                    a.lane_shift(Ps::Rl, size + 1, X(0), bits);
                    a.lane_shift(Ps::Ll, size + 1, X(1), bits);
                } else {
                    a.lane_shift(Ps::Rl, size + 1, X(0), bits);
                    a.lane_shift(Ps::Rl, size + 1, X(1), bits);
                    a.lane_shift(Ps::Ll, size + 1, X(1), bits);
                }
                a.vector(sse::POR, X(0), X(1));
                a.movaps(r, X(0));
            }
            Permute::Uzp1 | Permute::Uzp2 => {
                let upper = op == Permute::Uzp2;
                let a = &mut self.asm;
                a.movaps(X(0), x);
                if full {
                    a.movaps(X(1), y);
                } else {
                    a.vector(sse::PUNPCKL[3], X(0), y);
                    a.movaps(X(1), X(0));
                }
                match s {
                    3 => a.vector(if upper { sse::PUNPCKH[3] } else { sse::PUNPCKL[3] }, X(0), X(1)),
                    2 => a.vector_i(sse::SHUFPS, X(0), X(1), if upper { 0xdd } else { 0x88 }),
                    _ => {
                        for half in [X(0), X(1)] {
                            // PACKSSDW keeps what is a sign-extended half, PACKUSWB what is a byte.
                            let bits = 8 << size;
                            if !upper {
                                a.lane_shift(Ps::Ll, size + 1, half, bits);
                            }
                            a.lane_shift(if s == 1 { Ps::Ra } else { Ps::Rl }, size + 1, half, bits);
                        }
                        a.vector(if s == 1 { sse::PACKSSDW } else { sse::PACKUSWB }, X(0), X(1));
                    }
                }
                a.movaps(r, X(0));
            }
        }
        self.halve(full, r);
    }

    /// A lane of `x` to all lanes of `r`.
    pub(super) fn broadcast(&mut self, size: u8, r: X, x: X, lane: u8) {
        let a = &mut self.asm;
        match size {
            3 => a.vector_i(sse::PSHUFD, r, x, if lane == 0 { 0x44 } else { 0xee }),
            2 => a.vector_i(sse::PSHUFD, r, x, lane * 0x55),
            1 if lane < 4 => {
                a.vector_i(sse::PSHUFLW, r, x, lane * 0x55);
                a.vector_i(sse::PSHUFD, r, r, 0);
            }
            1 => {
                a.vector_i(sse::PSHUFHW, r, x, (lane - 4) * 0x55);
                a.vector_i(sse::PSHUFD, r, r, 0xaa);
            }
            _ => {
                a.movaps(r, x);
                a.byte_shift(false, r, lane);
                a.vector(sse::PUNPCKL[0], r, r);
                a.vector_i(sse::PSHUFLW, r, r, 0);
                a.vector_i(sse::PSHUFD, r, r, 0);
            }
        }
    }
}
