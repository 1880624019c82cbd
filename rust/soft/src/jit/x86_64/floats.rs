//! Floating-point numbers, lane by lane: as those in the lowest lane (`float`), with each lane's result looked at.

use super::asm::{Arith, Cc, Jump, RAX, X};
use super::block::{NO_REG, Translator};
use super::float::{Range, rounding};
use super::sse::{self, Fma};
use super::stubs::Constant;
use crate::isa::insn::Reg;
use crate::isa::simd::{Float1, Float2, FloatZero, Floats2, Round, Shape, Simd};

/// Lanes of which type an instruction is about.
#[derive(Clone, Copy)]
struct Lanes {
    double: bool,
    shape: Shape,
}

impl Lanes {
    /// The index into tables by type.
    fn index(self) -> usize {
        usize::from(self.double)
    }

    /// A bit for each lane that counts.
    fn mask(self) -> i32 {
        match (self.shape, self.double) {
            (Shape::Scalar, _) => 1,
            (Shape::Full, false) => 15,
            _ => 3,
        }
    }

    fn exponents(self) -> Constant {
        if self.double { Constant::Exponents64 } else { Constant::Exponents32 }
    }
}

/// A comparison: its number for the host, and whether the operands change places.
type Comparison = (u8, bool);

const EQUAL: Comparison = (0, false);
const GREATER: Comparison = (1, true);
const GREATER_EQUAL: Comparison = (2, true);

impl Translator<'_> {
    /// False when the interpreter must do it.
    pub(super) fn floats(&mut self, insn: Simd) -> bool {
        if !self.features.sse42 {
            return false;
        }
        match insn {
            Simd::Floats1 { op, double, shape, d, n } => self.floats1(op, Lanes { double, shape }, d, n),
            Simd::Floats2 { op, double, shape, d, n, m, lane } => {
                self.floats2(op, Lanes { double, shape }, d, n, m, lane)
            }
            Simd::FloatsZero { op, double, shape, d, n } => {
                let lanes = Lanes { double, shape };
                let (comparison, turned) = match op {
                    FloatZero::Equal => (EQUAL, false),
                    FloatZero::Greater => (GREATER, false),
                    FloatZero::GreaterEqual => (GREATER_EQUAL, false),
                    FloatZero::Less => (GREATER, true),
                    FloatZero::LessEqual => (GREATER_EQUAL, true),
                };
                self.exact_modes();
                let x = self.read_vector(n);
                self.asm.vector(sse::XORPS, X(1), X(1));
                let operands = if turned { (X(1), x) } else { (x, X(1)) };
                self.compare_lanes(lanes, comparison, d, operands);
                true
            }
            Simd::FloatsToInts { double: false, signed: true, round: Round::Zero, shape, d, n } => {
                self.truncate_lanes(Lanes { double: false, shape }, d, n);
                true
            }
            Simd::FloatsFromInts { double: false, signed: true, shape, d, n } => {
                let lanes = Lanes { double: false, shape };
                self.exact_modes();
                let x = self.read_vector(n);
                let r = self.reserve_vector();
                let before = self.cache;
                let unknown = self.inexact_is_known();
                self.asm.vector(sse::CVTDQ2PS, r, x);
                self.assign_lanes(lanes, d, r);
                self.slow([Some(unknown), None, None], before, [NO_REG; 3]);
                true
            }
            Simd::Lengthen { upper, d, n } => {
                let lanes = Lanes { double: true, shape: Shape::Full };
                self.exact_modes();
                let x = self.read_vector(n);
                let r = self.reserve_vector();
                let before = self.cache;
                if upper {
                    self.asm.vector_i(sse::PSHUFD, X(0), x, 0xee);
                }
                self.asm.vector(sse::CVTPS2PD, r, if upper { X(0) } else { x });
                let outside = self.check_lanes(lanes, Range::Finite, r);
                self.assign_lanes(lanes, d, r);
                self.slow([Some(outside), None, None], before, [NO_REG; 3]);
                true
            }
            Simd::Shorten { upper, d, n } => {
                // Two lanes, whose results stand in the lower half first.
                let lanes = Lanes { double: false, shape: Shape::Half };
                self.exact_modes();
                let x = self.read_vector(n);
                let z = if upper { self.read_vector(d) } else { x };
                self.inexact(
                    |t, r| t.asm.vector(sse::CVTPD2PS, r, x),
                    |t, r| t.check_lanes(lanes, Range::Normal, r),
                    |t, r| {
                        if upper {
                            t.asm.movaps(X(0), z);
                            t.asm.vector(sse::PUNPCKL[3], X(0), r);
                            t.asm.movaps(r, X(0));
                        }
                        t.forget_vector(d);
                        t.cache.assign_vector(d, r);
                    },
                );
                true
            }
            Simd::AddPair { double, d, n } => {
                let lanes = Lanes { double, shape: Shape::Scalar };
                let x = self.read_vector(n);
                self.lane_arithmetic(lanes, d, Range::Finite, |t, r| {
                    // The second lane to the lowest.
                    t.asm.vector_i(sse::PSHUFD, X(0), x, if double { 0xee } else { 0x55 });
                    t.asm.movaps(r, x);
                    t.asm.vector(sse::ADD[usize::from(double)], r, X(0));
                });
                true
            }
            _ => false,
        }
    }

    /// `r` was reserved and has the new lanes of `d`.
    fn assign_lanes(&mut self, lanes: Lanes, d: Reg, r: X) {
        match (lanes.shape, lanes.double) {
            (Shape::Full, _) => {}
            (Shape::Scalar, false) => self.asm.vector_i(sse::INSERTPS, r, r, 0b1110),
            _ => self.asm.low_half(r, r),
        }
        self.forget_vector(d);
        self.cache.assign_vector(d, r);
        if lanes.shape == Shape::Scalar {
            self.number(lanes.double, d);
        }
    }

    /// Goes aside unless all lanes are in this range. Uses RAX, XMM0 and XMM1.
    fn check_lanes(&mut self, lanes: Lanes, range: Range, x: X) -> Jump {
        let (mask, exponents) = (lanes.mask(), lanes.exponents());
        // Doubles by their upper halves, whose comparisons tell the signs that are looked at.
        self.asm.movaps(X(0), x);
        self.constant(sse::ANDPS, X(0), exponents);
        self.asm.movaps(X(1), X(0));
        self.constant(sse::PCMPEQ[2], X(0), exponents);
        if range == Range::Finite {
            self.asm.signs(lanes.double, RAX, X(0));
            self.asm.test_i(false, RAX, mask);
            return self.asm.jcc(Cc::NE);
        }
        let smallest = if lanes.double { Constant::Smallest64 } else { Constant::Smallest32 };
        self.constant(sse::PCMPGT[2], X(1), smallest);
        self.asm.vector(sse::ANDNPS, X(0), X(1));
        self.asm.signs(lanes.double, RAX, X(0));
        if lanes.mask() != 15 && !(lanes.double && lanes.mask() == 3) {
            self.asm.arith_i(Arith::And, false, RAX, mask);
        }
        self.asm.arith_i(Arith::Cmp, false, RAX, mask);
        self.asm.jcc(Cc::NE)
    }

    /// Goes aside when lanes of the two do not compare. Uses RAX and XMM0.
    fn ordered(&mut self, lanes: Lanes, (x, y): (X, X)) -> Jump {
        self.asm.movaps(X(0), x);
        self.asm.vector_i(sse::CMPP[lanes.index()], X(0), y, 3);
        self.asm.signs(lanes.double, RAX, X(0));
        self.asm.test_i(false, RAX, lanes.mask());
        self.asm.jcc(Cc::NE)
    }

    /// An operation whose results may be inexact: `f` computes them. What it reads is in registers.
    fn lane_arithmetic(&mut self, lanes: Lanes, d: Reg, range: Range, f: impl FnOnce(&mut Self, X)) {
        self.inexact(f, |t, r| t.check_lanes(lanes, range, r), |t, r| t.assign_lanes(lanes, d, r));
    }

    fn floats1(&mut self, op: Float1, lanes: Lanes, d: Reg, n: Reg) -> bool {
        let round = match op {
            Float1::Abs | Float1::Neg | Float1::Sqrt | Float1::RoundExact | Float1::RoundCurrent => {
                Round::Nearest
            }
            Float1::Round(Round::Away) | Float1::Bounded { .. } | Float1::Convert => return false,
            Float1::Round(round) => round,
        };
        let x = self.read_vector(n);
        match op {
            Float1::Abs | Float1::Neg => {
                let r = self.reserve_vector();
                self.asm.movaps(r, x);
                let (op, which) = match (op, lanes.double) {
                    (Float1::Neg, true) => (sse::XORPS, Constant::Signs),
                    (Float1::Neg, false) => (sse::XORPS, Constant::Signs32),
                    (_, true) => (sse::ANDPS, Constant::Rests64),
                    (_, false) => (sse::ANDPS, Constant::Rests32),
                };
                self.constant(op, r, which);
                self.assign_lanes(lanes, d, r);
            }
            Float1::Sqrt => self.lane_arithmetic(lanes, d, Range::Normal, |t, r| {
                t.asm.vector(sse::SQRTP[lanes.index()], r, x);
            }),
            _ => {
                self.exact_modes();
                let r = self.reserve_vector();
                let before = self.cache;
                let unknown = (op == Float1::RoundExact).then(|| self.inexact_is_known());
                self.asm.vector_i(sse::ROUNDP[lanes.index()], r, x, rounding(round));
                let outside = self.check_lanes(lanes, Range::Finite, r);
                self.assign_lanes(lanes, d, r);
                self.slow([unknown, Some(outside), None], before, [NO_REG; 3]);
            }
        }
        true
    }

    fn floats2(&mut self, op: Floats2, lanes: Lanes, d: Reg, n: Reg, m: Reg, lane: Option<u8>) -> bool {
        use Floats2::*;
        let s = lanes.index();
        let fused = matches!(op, MulAdd | MulSub);
        let whole = lanes.shape == Shape::Full;
        match op {
            MulAdd | MulSub if !self.features.fma => return false,
            AddPairs if !whole => return false,
            MaxPairs | MinPairs | MaxNumPairs | MinNumPairs | ReciprocalStep | RootStep => return false,
            _ => {}
        }
        self.exact_modes();
        let (x, mut y) = (self.read_vector(n), self.read_vector(m));
        let z = if fused { self.read_vector(d) } else { x };
        if let Some(lane) = lane {
            let order = if lanes.double { 0x44 + 0xaa * lane } else { 0x55 * lane };
            self.asm.vector_i(sse::PSHUFD, X(2), y, order);
            y = X(2);
        }
        let (code, range) = match op {
            Each(Float2::Add) => (sse::ADDP, Range::Finite),
            Each(Float2::Sub) | Difference => (sse::SUBP, Range::Finite),
            AddPairs => (sse::HADDP, Range::Finite),
            Each(Float2::Mul) | MulExtended => (sse::MULP, Range::Normal),
            Each(Float2::Div) => (sse::DIVP, Range::Normal),
            MulAdd | MulSub => {
                let op = if op == MulAdd { Fma::Madd } else { Fma::Nmadd };
                self.lane_arithmetic(lanes, d, Range::Normal, |t, r| {
                    t.asm.movaps(r, z);
                    t.asm.fma_lanes(op, lanes.double, r, x, y);
                });
                return true;
            }
            Each(op) => {
                self.extreme_lanes(matches!(op, Float2::Max | Float2::MaxNum), lanes, d, (x, y));
                return true;
            }
            _ => {
                let comparison = match op {
                    Equal => EQUAL,
                    Greater | AbsGreater => GREATER,
                    _ => GREATER_EQUAL,
                };
                let mut operands = (x, y);
                if matches!(op, AbsGreater | AbsGreaterEqual) {
                    let rests = if lanes.double { Constant::Rests64 } else { Constant::Rests32 };
                    for (from, to) in [(x, X(1)), (y, X(3))] {
                        self.asm.movaps(to, from);
                        self.constant(sse::ANDPS, to, rests);
                    }
                    operands = (X(1), X(3));
                }
                self.compare_lanes(lanes, comparison, d, operands);
                return true;
            }
        };
        self.lane_arithmetic(lanes, d, range, |t, r| {
            t.asm.movaps(r, x);
            t.asm.vector(code[s], r, y);
            if op == Difference {
                t.constant(sse::ANDPS, r, if lanes.double { Constant::Rests64 } else { Constant::Rests32 });
            }
        });
        true
    }

    /// All ones where the comparison holds. FPCR has been looked at.
    fn compare_lanes(&mut self, lanes: Lanes, (number, turned): Comparison, d: Reg, operands: (X, X)) {
        let (x, y) = if turned { (operands.1, operands.0) } else { operands };
        let r = self.reserve_vector();
        let before = self.cache;
        let unordered = self.ordered(lanes, operands);
        self.asm.movaps(r, x);
        self.asm.vector_i(sse::CMPP[lanes.index()], r, y, number);
        self.assign_lanes(lanes, d, r);
        self.slow([Some(unordered), None, None], before, [NO_REG; 3]);
    }

    /// The larger or the smaller ones. Of equal ones the host gives its second operand, and zeros have signs.
    fn extreme_lanes(&mut self, max: bool, lanes: Lanes, d: Reg, (x, y): (X, X)) {
        let r = self.reserve_vector();
        let before = self.cache;
        let unordered = self.ordered(lanes, (x, y));
        let code = if max { sse::MAXP } else { sse::MINP }[lanes.index()];
        self.asm.movaps(r, x);
        self.asm.vector(code, r, y);
        self.asm.movaps(X(0), y);
        self.asm.vector(code, X(0), x);
        self.asm.vector(if max { sse::ANDPS } else { sse::ORPS }, r, X(0));
        self.assign_lanes(lanes, d, r);
        self.slow([Some(unordered), None, None], before, [NO_REG; 3]);
    }

    /// FCVTZS of singles. What is out of range, and NaN, gives the smallest integer there is.
    fn truncate_lanes(&mut self, lanes: Lanes, d: Reg, n: Reg) {
        let x = self.read_vector(n);
        self.exact_modes();
        let r = self.reserve_vector();
        let before = self.cache;
        let unknown = self.inexact_is_known();
        self.asm.vector(sse::CVTTPS2DQ, r, x);
        self.asm.movaps(X(0), r);
        self.constant(sse::PCMPEQ[2], X(0), Constant::Signs32);
        self.asm.signs(false, RAX, X(0));
        self.asm.test_i(false, RAX, lanes.mask());
        let outside = self.asm.jcc(Cc::NE);
        self.assign_lanes(lanes, d, r);
        self.slow([Some(unknown), Some(outside), None], before, [NO_REG; 3]);
    }
}
