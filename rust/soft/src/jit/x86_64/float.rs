//! Floating-point numbers, in the lowest lane of vector registers.
//!
//! The host computes where that gives the same bits and leaves FPSR as it is: rounding is to nearest and nothing is
//! flushed (looked at once in a block), IXC is set already when the result may be inexact, and the result is normal, or
//! for sums finite (`fp::arith` says why that is enough). All else goes aside to the interpreter's operation. The
//! host's MXCSR stays as Rust programs have it; its sticky flags are nobody's.

use super::asm::{Arith, Cc, Jump, RAX, RCX, RDX, X};
use super::block::{NO_REG, Translator};
use super::flags::{Kind, State};
use super::layout;
use super::sse::{self, Fma, Op};
use super::stubs::Constant;
use crate::interp::handlers::Flags;
use crate::isa::insn::Reg;
use crate::isa::simd::{Float1, Float2, Round, Shape, Simd};

/// FPCR's rounding mode and FZ.
const MODES: i32 = 0x01c0_0000;
/// FPSR.IXC.
const IXC: u8 = 1 << 4;
/// FPSR.IOC.
const IOC: u8 = 1;
/// FPCR.AHP.
const AHP: i32 = 1 << 26;

/// What a result must be for the host's to count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    Finite,
    /// Above the smallest normal numbers, and finite.
    Normal,
}

/// ROUNDSD's numbers, with no exception for inexact results.
pub(super) fn rounding(round: Round) -> u8 {
    8 | match round {
        Round::Nearest | Round::Away => 0,
        Round::Down => 1,
        Round::Up => 2,
        Round::Zero => 3,
    }
}

impl Translator<'_> {
    /// False when the interpreter must do it.
    pub(super) fn float(&mut self, insn: Simd) -> bool {
        match insn {
            // The host does not round so.
            Simd::Float1 { op: Float1::Round(Round::Away) | Float1::Bounded { .. }, .. }
            | Simd::ToInt { round: Round::Away, .. } => return false,
            Simd::Float1 { op, double, d, n } => self.float1(op, double, d, n),
            Simd::Float2 { op, double, d, n, m } => self.float2(op, double, d, n, m),
            Simd::NegatedMul { double, d, n, m } => {
                let (x, y) = (self.read_vector(n), self.read_vector(m));
                self.arithmetic(double, d, Range::Normal, |t, r| {
                    t.scalar(double, r, n, x);
                    t.asm.vector(sse::MUL[usize::from(double)], r, y);
                    t.constant(sse::XORPS, r, if double { Constant::Sign64 } else { Constant::Sign32 });
                });
            }
            Simd::Fma { double, negate_addend, negate_product, d, n, m, a } if self.features.fma => {
                let op = match (negate_addend, negate_product) {
                    (false, false) => Fma::Madd,
                    (false, true) => Fma::Nmadd,
                    (true, false) => Fma::Msub,
                    (true, true) => Fma::Nmsub,
                };
                let (x, y, z) = (self.read_vector(n), self.read_vector(m), self.read_vector(a));
                self.arithmetic(double, d, Range::Normal, |t, r| {
                    t.scalar(double, r, a, z);
                    t.asm.fma(op, double, r, x, y);
                });
            }
            Simd::Compare { double, n, m } => self.compare(double, n, m),
            Simd::ConditionalCompare { double, n, m, cond, nzcv, .. } => {
                self.conditional_compare(double, n, m, cond, nzcv);
            }
            Simd::Select { double, cond, d, n, m } => self.select_number(double, cond, d, n, m),
            Simd::ToInt { double, wide, signed, round, d, n } => {
                self.truncate(double, wide, signed, round, d, n)
            }
            Simd::Javascript { d, n } => self.javascript(d, n),
            Simd::FromHalf { double, d, n } if self.features.f16c => self.lengthen_half(double, d, n),
            Simd::ToHalf { double: false, d, n } if self.features.f16c => self.shorten_to_half(d, n),
            Simd::FromInt { double, wide, signed, d, n } => self.convert(double, wide, signed, d, n),
            Simd::FromLane { double, d, n } => self.convert_lane(double, true, d, n),
            Simd::FloatsFromInts { double, signed: false, shape: Shape::Scalar, d, n } => {
                self.convert_lane(double, false, d, n);
            }
            _ => return false,
        }
        true
    }

    /// The lowest lane of `x`, which holds `g`, into `r`, zeros above.
    pub(super) fn scalar(&mut self, double: bool, r: X, g: Reg, x: X) {
        if self.narrow[usize::from(double)] >> g & 1 == 1 {
            self.asm.movaps(r, x);
        } else if double {
            self.asm.low_half(r, x);
        } else if self.features.sse42 {
            self.asm.vector_i(sse::INSERTPS, r, x, 0b1110);
        } else {
            self.asm.mov_r(false, RAX, x);
            self.asm.mov_low_r(false, r, RAX);
        }
    }

    /// `r` was reserved and has the new value of `d`, a number.
    fn assign(&mut self, d: Reg, r: X, double: bool) {
        self.forget_vector(d);
        self.cache.assign_vector(d, r);
        self.number(double, d);
    }

    /// Notes that `d` holds a number with zeros above it.
    pub(super) fn number(&mut self, double: bool, d: Reg) {
        self.narrow[0] &= !(1 << d);
        self.narrow[1] |= 1 << d;
        if !double {
            self.narrow[0] |= 1 << d;
        }
    }

    /// Leaves unless rounding is to nearest and nothing is flushed. FPCR changes at the ends of blocks only.
    pub(super) fn exact_modes(&mut self) {
        if !std::mem::replace(&mut self.modes_checked, true) {
            self.asm.test_m(layout::FPCR, MODES);
            self.exit_when(Cc::NE);
        }
    }

    /// Goes aside when an inexact result would have to be noted.
    pub(super) fn inexact_is_known(&mut self) -> Jump {
        self.asm.test_byte(layout::FPSR, IXC);
        self.asm.jcc(Cc::E)
    }

    /// Goes aside when the number is not in this range. Uses RAX.
    fn check(&mut self, double: bool, range: Range, x: X) -> Jump {
        let a = &mut self.asm;
        a.mov_r(double, RAX, x);
        // The exponent comes to the top.
        let (one, top) = if double { (1_u32 << 21, 0x7ff) } else { (1 << 24, 0xff) };
        if double {
            a.shift_i(super::asm::Sh::Shr, true, RAX, 32);
        }
        a.arith(Arith::Add, false, RAX, RAX);
        match range {
            Range::Finite => a.arith_i(Arith::Cmp, false, RAX, (top * one) as i32),
            Range::Normal => {
                a.arith_i(Arith::Sub, false, RAX, (2 * one) as i32);
                a.arith_i(Arith::Cmp, false, RAX, ((top - 2) * one) as i32);
            }
        }
        a.jcc(Cc::AE)
    }

    /// An operation whose result may be inexact: `f` computes it. What it reads is in registers.
    fn arithmetic(&mut self, double: bool, d: Reg, range: Range, f: impl FnOnce(&mut Self, X)) {
        self.inexact(f, |t, r| t.check(double, range, r), |t, r| t.assign(d, r, double));
    }

    /// The same for what `check` looks at before `assign` gives it to its register.
    pub(super) fn inexact(
        &mut self,
        f: impl FnOnce(&mut Self, X),
        check: impl FnOnce(&mut Self, X) -> Jump,
        assign: impl FnOnce(&mut Self, X),
    ) {
        self.exact_modes();
        // First, since it may store another register to make room: what goes aside must find that done.
        let r = self.reserve_vector();
        let before = self.cache;
        let unknown = self.inexact_is_known();
        f(self, r);
        let outside = check(self, r);
        assign(self, r);
        self.slow([Some(unknown), Some(outside), None], before, [NO_REG; 3]);
    }

    fn float1(&mut self, op: Float1, double: bool, d: Reg, n: Reg) {
        let x = self.read_vector(n);
        let size = usize::from(double);
        match op {
            Float1::Abs | Float1::Neg => {
                let r = self.reserve_vector();
                self.scalar(double, r, n, x);
                let (op, which) = match (op, double) {
                    (Float1::Neg, true) => (sse::XORPS, Constant::Sign64),
                    (Float1::Neg, false) => (sse::XORPS, Constant::Sign32),
                    (_, true) => (sse::ANDPS, Constant::Rest64),
                    (_, false) => (sse::ANDPS, Constant::Rest32),
                };
                self.constant(op, r, which);
                self.assign(d, r, double);
            }
            Float1::Sqrt => self.arithmetic(double, d, Range::Normal, |t, r| {
                t.scalar(double, r, n, x);
                t.asm.vector(sse::SQRT[size], r, r);
            }),
            Float1::Round(_) | Float1::RoundExact | Float1::RoundCurrent | Float1::Bounded { .. } => {
                self.exact_modes();
                let round = if let Float1::Round(round) = op { round } else { Round::Nearest };
                let r = self.reserve_vector();
                let before = self.cache;
                let unknown = (op == Float1::RoundExact).then(|| self.inexact_is_known());
                self.scalar(double, r, n, x);
                self.asm.vector_i(sse::ROUND[size], r, r, rounding(round));
                let outside = self.check(double, Range::Finite, r);
                self.assign(d, r, double);
                self.slow([unknown, Some(outside), None], before, [NO_REG; 3]);
            }
            Float1::Convert if double => {
                self.exact_modes();
                let r = self.reserve_vector();
                let before = self.cache;
                self.asm.vector(sse::XORPS, r, r);
                self.asm.vector(sse::CONVERT[0], r, x);
                let outside = self.check(true, Range::Finite, r);
                self.assign(d, r, true);
                self.slow([Some(outside), None, None], before, [NO_REG; 3]);
            }
            Float1::Convert => self.arithmetic(false, d, Range::Normal, |t, r| {
                t.asm.vector(sse::XORPS, r, r);
                t.asm.vector(sse::CONVERT[1], r, x);
            }),
        }
    }

    fn float2(&mut self, op: Float2, double: bool, d: Reg, n: Reg, m: Reg) {
        let (x, y) = (self.read_vector(n), self.read_vector(m));
        let (code, range): ([Op; 2], _) = match op {
            Float2::Add => (sse::ADD, Range::Finite),
            Float2::Sub => (sse::SUB, Range::Finite),
            Float2::Mul => (sse::MUL, Range::Normal),
            Float2::Div => (sse::DIV, Range::Normal),
            Float2::Max | Float2::MaxNum => return self.extreme(true, double, d, (n, x), (m, y)),
            Float2::Min | Float2::MinNum => return self.extreme(false, double, d, (n, x), (m, y)),
        };
        self.arithmetic(double, d, range, |t, r| {
            t.scalar(double, r, n, x);
            t.asm.vector(code[usize::from(double)], r, y);
        });
    }

    /// The larger or the smaller of two numbers. Equal ones may be zeros of different signs.
    fn extreme(&mut self, max: bool, double: bool, d: Reg, (n, x): (Reg, X), (m, y): (Reg, X)) {
        let size = usize::from(double);
        self.exact_modes();
        let r = self.reserve_vector();
        let before = self.cache;
        self.scalar(double, r, n, x);
        self.scalar(double, X(0), m, y);
        self.asm.vector(sse::UCOMIS[size], r, X(0));
        let unordered = self.asm.jcc(Cc::P);
        let different = self.asm.jcc(Cc::NE);
        self.asm.vector(if max { sse::ANDPS } else { sse::ORPS }, r, X(0));
        let done = self.asm.jmp();
        self.asm.land(different);
        self.asm.vector(if max { sse::MAX[size] } else { sse::MIN[size] }, r, X(0));
        self.asm.land(done);
        self.assign(d, r, double);
        self.slow([Some(unordered), None, None], before, [NO_REG; 3]);
    }

    fn compare(&mut self, double: bool, n: Reg, m: Option<Reg>) {
        // Even where this leaves, the old flags are nobody's.
        self.flags = State::Memory;
        self.exact_modes();
        let x = self.read_vector(n);
        let y = match m {
            Some(m) => self.read_vector(m),
            None => {
                self.asm.vector(sse::XORPS, X(1), X(1));
                X(1)
            }
        };
        self.asm.vector(sse::UCOMIS[usize::from(double)], x, y);
        self.exit_when(Cc::P);
        self.set_flags(State::Numbers { double, n, m }, Kind::Numbers);
    }

    fn conditional_compare(&mut self, double: bool, n: Reg, m: Reg, cond: u8, nzcv: u8) {
        // Before the ways part. What the host's flags were is lost.
        self.exact_modes();
        self.host_flags = None;
        let (x, y) = (self.read_vector(n), self.read_vector(m));
        let parted = self.part(cond, nzcv);
        self.asm.vector(sse::UCOMIS[usize::from(double)], x, y);
        self.exit_when(Cc::P);
        let [greater, less, equal] = [0b0010, 0b1000, 0b0110].map(|nzcv: u64| nzcv << 28);
        self.asm.mov_i(RAX, greater);
        for (cc, value) in [(Cc::B, less), (Cc::E, equal)] {
            self.asm.mov_i(RCX, value);
            self.asm.cmov(cc, false, RAX, RCX);
        }
        self.join_compared(parted);
    }

    fn select_number(&mut self, double: bool, cond: u8, d: Reg, n: Reg, m: Reg) {
        let (x, y) = (self.read_vector(n), self.read_vector(m));
        if cond >= 14 {
            let r = self.reserve_vector();
            self.scalar(double, r, n, x);
            return self.assign(d, r, double);
        }
        let cc = self.condition(cond);
        self.asm.mov_r(double, RAX, x);
        self.asm.mov_r(double, RCX, y);
        self.asm.cmov(cc.not(), double, RAX, RCX);
        let r = self.reserve_vector();
        self.asm.mov_low_r(double, r, RAX);
        self.assign(d, r, double);
    }

    fn truncate(&mut self, double: bool, wide: bool, signed: bool, round: Round, d: Reg, n: Reg) {
        self.will_write(d);
        let mut x = self.read_vector(n);
        self.exact_modes();
        let unknown = self.inexact_is_known();
        let before = self.cache;
        if round != Round::Zero {
            self.asm.vector_i(sse::ROUND[usize::from(double)], X(0), x, rounding(round));
            x = X(0);
        }
        self.asm.truncate(double, wide || !signed, RAX, x);
        // What is out of range, and NaN, gives the smallest integer there is.
        let outside = match (wide, signed) {
            (_, true) => {
                self.asm.arith_i(Arith::Cmp, wide, RAX, 1);
                self.asm.jcc(Cc::O)
            }
            (true, false) => {
                self.asm.test(true, RAX, RAX);
                self.asm.jcc(Cc::S)
            }
            (false, false) => {
                self.asm.mov(false, RCX, RAX);
                self.asm.arith(Arith::Cmp, true, RAX, RCX);
                self.asm.jcc(Cc::NE)
            }
        };
        let r = self.write(d);
        self.asm.mov(wide, r, RAX);
        self.slow([Some(unknown), Some(outside), None], before, [d, NO_REG, NO_REG]);
    }

    fn convert(&mut self, double: bool, wide: bool, signed: bool, d: Reg, n: Reg) {
        let s = self.read(n);
        let exact = double && !wide;
        if !exact {
            self.exact_modes();
        }
        let r = self.reserve_vector();
        let before = self.cache;
        let unknown = (!exact).then(|| self.inexact_is_known());
        let mut outside = None;
        self.asm.vector(sse::XORPS, r, r);
        match (wide, signed) {
            (_, true) => self.asm.convert(double, wide, r, s),
            (false, false) => {
                self.asm.mov(false, RAX, s);
                self.asm.convert(double, true, r, RAX);
            }
            (true, false) => {
                self.asm.test(true, s, s);
                outside = Some(self.asm.jcc(Cc::S));
                self.asm.convert(double, true, r, s);
            }
        }
        self.assign(d, r, double);
        if unknown.is_some() || outside.is_some() {
            self.slow([unknown, outside, None], before, [NO_REG; 3]);
        }
    }

    /// An integer in the lowest lane, as wide as the number.
    fn convert_lane(&mut self, double: bool, signed: bool, d: Reg, n: Reg) {
        let x = self.read_vector(n);
        self.exact_modes();
        let r = self.reserve_vector();
        let before = self.cache;
        let unknown = self.inexact_is_known();
        self.asm.mov_r(double, RAX, x);
        let mut outside = None;
        if double && !signed {
            self.asm.test(true, RAX, RAX);
            outside = Some(self.asm.jcc(Cc::S));
        }
        self.asm.vector(sse::XORPS, r, r);
        // What has no sign has zeros above.
        self.asm.convert(double, double || !signed, r, RAX);
        self.assign(d, r, double);
        self.slow([Some(unknown), outside, None], before, [NO_REG; 3]);
    }

    /// Leaves where halves have no infinities.
    fn usual_halves(&mut self) {
        self.asm.test_m(layout::FPCR, AHP);
        self.exit_when(Cc::NE);
    }

    /// FCVT from a half, which every number has room for.
    fn lengthen_half(&mut self, double: bool, d: Reg, n: Reg) {
        self.usual_halves();
        let x = self.read_vector(n);
        let r = self.reserve_vector();
        let before = self.cache;
        self.asm.halves_to_singles(X(0), x);
        if double {
            self.asm.vector(sse::XORPS, r, r);
            self.asm.vector(sse::CONVERT[0], r, X(0));
        } else {
            self.asm.vector_i(sse::INSERTPS, r, X(0), 0b1110);
        }
        let outside = self.check(double, Range::Finite, r);
        self.assign(d, r, double);
        self.slow([Some(outside), None, None], before, [NO_REG; 3]);
    }

    /// FCVT of a single to a half. What is not normal then goes aside.
    fn shorten_to_half(&mut self, d: Reg, n: Reg) {
        self.exact_modes();
        self.usual_halves();
        let x = self.read_vector(n);
        let r = self.reserve_vector();
        let before = self.cache;
        let unknown = self.inexact_is_known();
        let a = &mut self.asm;
        a.singles_to_halves(X(0), x);
        a.mov_r(false, RAX, X(0));
        a.extend(1, false, false, RAX, RAX);
        a.mov(false, RCX, RAX);
        a.arith_i(Arith::And, false, RCX, 0x7fff);
        // From the second exponent up, as in `check`.
        a.arith_i(Arith::Sub, false, RCX, 2 << 10);
        a.arith_i(Arith::Cmp, false, RCX, 29 << 10);
        let outside = a.jcc(Cc::AE);
        a.mov_low_r(false, r, RAX);
        self.assign(d, r, false);
        self.slow([Some(unknown), Some(outside), None], before, [NO_REG; 3]);
    }

    /// FJCVTZS: Z says whether the integer is the number; other flags are clear.
    fn javascript(&mut self, d: Reg, n: Reg) {
        // Even where this leaves, the old flags are nobody's.
        self.flags = State::Memory;
        self.host_flags = None;
        self.exact_modes();
        let x = self.read_vector(n);
        let before = self.cache;
        let a = &mut self.asm;
        a.truncate(true, true, RAX, x);
        // What is out of range even then, and NaN, gives the smallest integer there is.
        a.arith_i(Arith::Cmp, true, RAX, 1);
        let far = a.jcc(Cc::O);
        a.extend(2, true, true, RCX, RAX);
        a.arith(Arith::Cmp, true, RCX, RAX);
        let outside = a.jcc(Cc::NE);
        a.vector(sse::XORPS, X(0), X(0));
        a.convert(true, false, X(0), RAX);
        a.mov_r(true, RCX, X(0));
        a.mov_r(true, RDX, x);
        a.arith(Arith::Cmp, true, RCX, RDX);
        a.mov_i(RDX, 1 << 30);
        let exact = a.jcc(Cc::E);
        // A part is lost, or it is the zero with a sign.
        let unknown = self.inexact_is_known();
        let a = &mut self.asm;
        let inside = a.jmp();
        a.land(outside);
        a.test_byte(layout::FPSR, IOC);
        let invalid = a.jcc(Cc::E);
        a.land(inside);
        a.mov_i(RDX, 0);
        a.land(exact);
        if self.flags_needed_after() {
            self.asm.store(2, layout::NZCV, RDX);
            self.asm.store_byte_i(layout::FLAGS, Flags::Known as u8);
            self.flags = State::Nzcv;
        }
        let r = self.write(d);
        self.asm.mov(false, r, RAX);
        self.slow([Some(far), Some(unknown), Some(invalid)], before, [d, NO_REG, NO_REG]);
    }
}
