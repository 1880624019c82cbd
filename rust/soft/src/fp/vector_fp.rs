//! Floating-point Advanced SIMD: "three same" and its extra forms, "two-register miscellaneous", across lanes,
//! pairwise, by element; the scalar forms of each. Sizes are 1, 2, 3 for half, single, double.

use super::Handler;
use super::arith::{self, Arith};
use super::convert;
use super::estimate;
use super::lanes::*;
use super::scalar::{CURRENT, mode};
use super::softfloat::*;
use crate::Regs;

/// "Three same" with the operation `a`:`op`, `op` being the low three bits of the opcode.
pub(super) fn three_same(u: u32, a: u32, op: u32, size: u32, q: u32) -> Option<Handler> {
    match (u, a, op) {
        (0, 0, 3) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, mulx)),
        (0, 0, 4) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, arith::cmeq)),
        (1, 0, 4) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, arith::cmge)),
        (1, 1, 4) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, arith::cmgt)),
        (1, 0, 5) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, |e, a, b| arith::cmge(e, abs(a), abs(b)))),
        (1, 1, 5) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, |e, a, b| arith::cmgt(e, abs(a), abs(b)))),
        (0, 0, 7) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, estimate::frecps)),
        (0, 1, 7) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, estimate::frsqrts)),
        (1, 1, 2) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, arith::abd)),
        _ if q == 2 => None,
        (0, 0, 0) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, arith::maxnm)),
        (0, 1, 0) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, arith::minnm)),
        (0, 0, 1) => any_fp!(size, q, |r, i| tern::<T, K>(r, i, T::fma)),
        (0, 1, 1) => any_fp!(size, q, |r, i| tern::<T, K>(r, i, |e, d, a, b| T::fma(e, d, neg(a), b))),
        (0, 0, 2) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, T::fadd)),
        (0, 1, 2) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, T::fsub)),
        (0, 0, 6) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, arith::max)),
        (0, 1, 6) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, arith::min)),
        (1, 0, 0) => any_fp!(size, q, |r, i| pair::<T, K>(r, i, arith::maxnm)),
        (1, 1, 0) => any_fp!(size, q, |r, i| pair::<T, K>(r, i, arith::minnm)),
        (1, 0, 2) => any_fp!(size, q, |r, i| pair::<T, K>(r, i, T::fadd)),
        (1, 0, 3) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, T::fmul)),
        (1, 0, 6) => any_fp!(size, q, |r, i| pair::<T, K>(r, i, arith::max)),
        (1, 1, 6) => any_fp!(size, q, |r, i| pair::<T, K>(r, i, arith::min)),
        (1, 0, 7) => any_fp!(size, q, |r, i| bin::<T, K>(r, i, T::fdiv)),
        _ => None,
    }
}

/// FMLAL and its relatives (FEAT_FHM): sums in single, factors in half, from the lower or upper half of the vector.
fn mul_add_long(r: &mut Regs, i: u32, subtract: bool, upper: bool, by_element: bool) {
    let mut e = env(r);
    let count = if i >> 30 & 1 == 1 { 4 } else { 2 };
    let off = if upper { count } else { 0 };
    let n = load::<u16>(r, rn(i));
    let m = if by_element { [indexed::<u16>(r, i); 8] } else { load::<u16>(r, rm(i)) };
    let mut d = load::<u32>(r, rd(i));
    for x in 0..4 {
        let a = if subtract { neg(n[(off + x) & 7]) } else { n[(off + x) & 7] };
        d[x] = if x < count { mul_add_half(&mut e, d[x], a, m[(off + x) & 7]) } else { 0 };
    }
    store::<u32>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// FPMulAddH
fn mul_add_half(e: &mut Env, a: u32, b: u16, c: u16) -> u32 {
    /// The same NaN, signalling or not, as a single.
    fn widen(x: u16) -> u32 {
        if is_nan(x) { u32::from(x & 0x8000) << 16 | 0x7f80_0000 | u32::from(x & 0x3ff) << 13 } else { 0 }
    }
    let (z, x, y) = (unpack(e, a), unpack(e, b), unpack(e, c));
    if z.nan() || x.nan() || y.nan() {
        let out = nans(e, &[a, widen(b), widen(c)]).unwrap_or_default();
        if z.class == Class::Quiet && ((x.inf() && y.zero()) || (x.zero() && y.inf())) {
            return invalid(e);
        }
        return out;
    }
    fused(e, z, x, y)
}

/// FMLAL, FMLSL, FMLAL2, FMLSL2 of the "three same" group.
pub(super) fn three_same_long(i: u32) -> Option<Handler> {
    let (u, a, op) = (i >> 29 & 1, i >> 23 & 1, i >> 11 & 31);
    if i >> 22 & 1 == 1 {
        return None;
    }
    Some(match (u, op, a) {
        (0, 0b11101, 0) => |r, i| mul_add_long(r, i, false, false, false),
        (0, 0b11101, _) => |r, i| mul_add_long(r, i, true, false, false),
        (1, 0b11001, 0) => |r, i| mul_add_long(r, i, false, true, false),
        (1, 0b11001, _) => |r, i| mul_add_long(r, i, true, true, false),
        _ => return None,
    })
}

/// FCADD: adds Vm rotated by 90 or, with `BACK`, 270 degrees.
#[inline(always)]
fn complex_add<T: Arith, const K: u32, const BACK: bool>(r: &mut Regs, i: u32) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let m = load::<T>(r, rm(i));
    let mut d = T::zero();
    for x in 0..lanes::<T>(K) / 2 {
        let (re, im) = (2 * x, 2 * x + 1);
        let (a, b) = if BACK { (m[im], neg(m[re])) } else { (neg(m[im]), m[re]) };
        d[re] = T::fadd(&mut e, n[re], a);
        d[im] = T::fadd(&mut e, n[im], b);
    }
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// FCMLA with the rotation `rot` × 90 degrees; the complex number of Vm given by lane pair.
#[inline(always)]
fn complex_mul<T: Arith, const K: u32>(
    r: &mut Regs,
    i: u32,
    rot: u32,
    factor: impl Fn(&T::V, usize) -> (T, T),
) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let m = load::<T>(r, if K == 0 { 0 } else { rm(i) });
    let a = load::<T>(r, rd(i));
    let mut d = T::zero();
    for x in 0..lanes::<T>(K) / 2 {
        let (re, im) = (2 * x, 2 * x + 1);
        let (mr, mi) = factor(&m, x);
        let (p, q, s) = match rot {
            0 => (mr, mi, n[re]),
            1 => (neg(mi), mr, n[im]),
            2 => (neg(mr), neg(mi), n[re]),
            _ => (mi, neg(mr), n[im]),
        };
        d[re] = T::fma(&mut e, a[re], s, p);
        d[im] = T::fma(&mut e, a[im], s, q);
    }
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// "Three same extra", complex numbers (FEAT_FCMA).
pub(super) fn three_same_extra(i: u32, q: u32) -> Option<Handler> {
    let (u, size, op) = (i >> 29 & 1, i >> 22 & 3, i >> 11 & 15);
    if u == 0 || q == 2 {
        return None;
    }
    match op {
        0b1000..=0b1011 => any_fp!(size, q, |r, i| {
            complex_mul::<T, K>(r, i, i >> 11 & 3, |m, x| (m[2 * x], m[2 * x + 1]));
        }),
        0b1100 => any_fp!(size, q, |r, i| complex_add::<T, K, false>(r, i)),
        0b1110 => any_fp!(size, q, |r, i| complex_add::<T, K, true>(r, i)),
        _ => None,
    }
}

#[inline(always)]
fn rint<T: Float, const K: u32>(r: &mut Regs, i: u32, rm: u32, exact: bool) {
    un::<T, K>(r, i, |e, x| {
        let rm = mode(e, rm);
        convert::round_int(e, x, rm, exact)
    });
}

#[inline(always)]
fn rint_n<T: Float, const K: u32>(r: &mut Regs, i: u32, rm: u32, bits: u32) {
    un::<T, K>(r, i, |e, x| {
        let rm = mode(e, rm);
        convert::round_int_n(e, x, rm, bits)
    });
}

#[inline(always)]
fn to_int<T: Float, const K: u32>(r: &mut Regs, i: u32, rm: u32, signed: bool) {
    un::<T, K>(r, i, |e, x| T::of(convert::to_fixed(e, x, 0, rm, T::BITS, signed)));
}

/// "Two-register miscellaneous" with the operation `a`:`op`.
pub(super) fn two_misc(u: u32, a: u32, op: u32, size: u32, q: u32) -> Option<Handler> {
    match (u, a, op) {
        (0, 1, 0b01100) => any_fp!(size, q, |r, i| un::<T, K>(r, i, |e, x| arith::cmgt(e, x, 0))),
        (0, 1, 0b01101) => any_fp!(size, q, |r, i| un::<T, K>(r, i, |e, x| arith::cmeq(e, x, 0))),
        (0, 1, 0b01110) => any_fp!(size, q, |r, i| un::<T, K>(r, i, |e, x| arith::cmgt(e, 0, x))),
        (1, 1, 0b01100) => any_fp!(size, q, |r, i| un::<T, K>(r, i, |e, x| arith::cmge(e, x, 0))),
        (1, 1, 0b01101) => any_fp!(size, q, |r, i| un::<T, K>(r, i, |e, x| arith::cmge(e, 0, x))),
        (0, 0, 0b11010) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, NEAREST, true)),
        (1, 0, 0b11010) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, NEAREST, false)),
        (0, 0, 0b11011) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, MINUS, true)),
        (1, 0, 0b11011) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, MINUS, false)),
        (0, 0, 0b11100) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, TIES_AWAY, true)),
        (1, 0, 0b11100) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, TIES_AWAY, false)),
        (0, 1, 0b11010) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, PLUS, true)),
        (1, 1, 0b11010) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, PLUS, false)),
        (0, 1, 0b11011) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, TO_ZERO, true)),
        (1, 1, 0b11011) => any_fp!(size, q, |r, i| to_int::<T, K>(r, i, TO_ZERO, false)),
        (0, 0, 0b11101) => any_fp!(size, q, |r, i| un::<T, K>(r, i, |e, x| {
            convert::from_fixed(e, x as S as i64 as u64, 0, true)
        })),
        (1, 0, 0b11101) => {
            any_fp!(size, q, |r, i| un::<T, K>(r, i, |e, x| { convert::from_fixed(e, x as u64, 0, false) }))
        }
        (0, 1, 0b11101) => any_fp!(size, q, |r, i| un::<T, K>(r, i, estimate::frecpe)),
        (1, 1, 0b11101) => any_fp!(size, q, |r, i| un::<T, K>(r, i, estimate::frsqrte)),
        (0, 1, 0b11111) if q == 2 => any_fp!(size, q, |r, i| un::<T, K>(r, i, estimate::frecpx)),
        (1, 0, 0b10110) if size == 3 => Some(match q {
            0 => |r, i| narrow::<u64, u32, 64>(r, i, |e, x| convert::convert(e, TO_ODD, x)),
            1 => |r, i| narrow::<u64, u32, 128>(r, i, |e, x| convert::convert(e, TO_ODD, x)),
            _ => |r, i| narrow::<u64, u32, 0>(r, i, |e, x| convert::convert(e, TO_ODD, x)),
        }),
        _ if q == 2 => None,
        (0, 1, 0b01111) => any_fp!(size, q, |r, i| un::<T, K>(r, i, |_, x| abs(x))),
        (1, 1, 0b01111) => any_fp!(size, q, |r, i| un::<T, K>(r, i, |_, x| neg(x))),
        (0, 0, 0b11000) => any_fp!(size, q, |r, i| rint::<T, K>(r, i, NEAREST, false)),
        (0, 0, 0b11001) => any_fp!(size, q, |r, i| rint::<T, K>(r, i, MINUS, false)),
        (0, 1, 0b11000) => any_fp!(size, q, |r, i| rint::<T, K>(r, i, PLUS, false)),
        (0, 1, 0b11001) => any_fp!(size, q, |r, i| rint::<T, K>(r, i, TO_ZERO, false)),
        (1, 0, 0b11000) => any_fp!(size, q, |r, i| rint::<T, K>(r, i, TIES_AWAY, false)),
        (1, 0, 0b11001) => any_fp!(size, q, |r, i| rint::<T, K>(r, i, CURRENT, true)),
        (1, 1, 0b11001) => any_fp!(size, q, |r, i| rint::<T, K>(r, i, CURRENT, false)),
        (0, 0, 0b11110) if size > 1 => any_fp!(size, q, |r, i| rint_n::<T, K>(r, i, TO_ZERO, 32)),
        (1, 0, 0b11110) if size > 1 => any_fp!(size, q, |r, i| rint_n::<T, K>(r, i, CURRENT, 32)),
        (0, 0, 0b11111) if size > 1 => any_fp!(size, q, |r, i| rint_n::<T, K>(r, i, TO_ZERO, 64)),
        (1, 0, 0b11111) if size > 1 => any_fp!(size, q, |r, i| rint_n::<T, K>(r, i, CURRENT, 64)),
        (1, 1, 0b11111) => any_fp!(size, q, |r, i| un::<T, K>(r, i, T::fsqrt)),
        (0, 0, 0b10110 | 0b10111) if size > 1 => Some(precision(op == 0b10111, size, q)),
        _ => None,
    }
}

/// FCVTN and, with `longer`, FCVTL; `size` is that of the wider format.
fn precision(longer: bool, size: u32, q: u32) -> Handler {
    fn shorten<A: Float, B: Float, const K: u32>(r: &mut Regs, i: u32) {
        narrow::<A, B, K>(r, i, |e, x| {
            let rm = rmode(e);
            convert::convert(e, rm, x)
        });
    }
    fn widen<A: Float, B: Float, const K: u32>(r: &mut Regs, i: u32) {
        lengthen::<A, B, K>(r, i, |e, x| convert::convert(e, NEAREST, x));
    }
    match (longer, size, q) {
        (false, 2, 0) => shorten::<u32, u16, 64>,
        (false, 2, _) => shorten::<u32, u16, 128>,
        (false, _, 0) => shorten::<u64, u32, 64>,
        (false, _, _) => shorten::<u64, u32, 128>,
        (true, 2, 0) => widen::<u16, u32, 64>,
        (true, 2, _) => widen::<u16, u32, 128>,
        (true, _, 0) => widen::<u32, u64, 64>,
        (true, _, _) => widen::<u32, u64, 128>,
    }
}

/// Vd<0> = f over all lanes, by halves (Arm ARM, Reduce).
#[inline(always)]
fn reduce<T: Float, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, T, T) -> T) {
    let mut e = env(r);
    let mut v = load::<T>(r, rn(i));
    let mut count = lanes::<T>(K);
    // By halves means that neighbours meet first.
    while count > 1 {
        count /= 2;
        for x in 0..count {
            v[x] = f(&mut e, v[2 * x], v[2 * x + 1]);
        }
    }
    r.v[rd(i)] = v[0].bits() as u128;
    r.fpsr = e.sr;
}

/// FMAXV and its relatives.
pub(super) fn across_lanes(i: u32, q: u32) -> Option<Handler> {
    let (u, a, op) = (i >> 29 & 1, i >> 23 & 1, i >> 12 & 31);
    if i >> 22 & 1 == 1 {
        return None;
    }
    macro_rules! by_format {
        ($f:path) => {
            match (u, q) {
                (0, 0) => Some(|r, i| reduce::<u16, 64>(r, i, $f)),
                (0, _) => Some(|r, i| reduce::<u16, 128>(r, i, $f)),
                (_, 1) => Some(|r, i| reduce::<u32, 128>(r, i, $f)),
                _ => None,
            }
        };
    }
    match (op, a) {
        (0b01100, 0) => by_format!(arith::maxnm),
        (0b01100, _) => by_format!(arith::minnm),
        (0b01111, 0) => by_format!(arith::max),
        (0b01111, _) => by_format!(arith::min),
        _ => None,
    }
}

/// FADDP, FMAXP and their relatives of two lanes to a scalar.
pub(super) fn scalar_pairwise(i: u32) -> Option<Handler> {
    let (u, a, sz, op) = (i >> 29 & 1, i >> 23 & 1, i >> 22 & 1, i >> 12 & 31);
    let size = match (u, sz) {
        (0, 0) => 1,
        (0, _) => return None,
        (_, sz) => 2 + sz,
    };
    match (op, a) {
        (0b01100, 0) => any_fp!(size, 2, |r, i| pair_scalar::<T>(r, i, arith::maxnm)),
        (0b01100, _) => any_fp!(size, 2, |r, i| pair_scalar::<T>(r, i, arith::minnm)),
        (0b01101, 0) => any_fp!(size, 2, |r, i| pair_scalar::<T>(r, i, T::fadd)),
        (0b01111, 0) => any_fp!(size, 2, |r, i| pair_scalar::<T>(r, i, arith::max)),
        (0b01111, _) => any_fp!(size, 2, |r, i| pair_scalar::<T>(r, i, arith::min)),
        _ => None,
    }
}

/// Floating point by element: `q` 0 or 1, or 2 for scalar.
pub(super) fn by_element(i: u32, q: u32) -> Option<Handler> {
    let (u, size, op) = (i >> 29 & 1, i >> 22 & 3, i >> 12 & 15);
    let (h, l) = (i >> 11 & 1, i >> 21 & 1);
    if u == 1 && op & 9 == 1 {
        return complex_by_element(size, q, h, l);
    }
    if size == 2 && q < 2 {
        match (u, op) {
            (0, 0b0000) => return Some(|r, i| mul_add_long(r, i, false, false, true)),
            (0, 0b0100) => return Some(|r, i| mul_add_long(r, i, true, false, true)),
            (1, 0b1000) => return Some(|r, i| mul_add_long(r, i, false, true, true)),
            (1, 0b1100) => return Some(|r, i| mul_add_long(r, i, true, true, true)),
            _ => {}
        }
    }
    let size = match size {
        0 => 1,
        2 => 2,
        3 if l == 0 => 3,
        _ => return None,
    };
    match (u, op) {
        (0, 0b0001) => any_fp!(size, q, |r, i| by_elem::<T, K>(r, i, T::fma)),
        (0, 0b0101) => any_fp!(size, q, |r, i| by_elem::<T, K>(r, i, |e, d, a, b| T::fma(e, d, neg(a), b))),
        (0, 0b1001) => any_fp!(size, q, |r, i| by_elem::<T, K>(r, i, |e, _, a, b| T::fmul(e, a, b))),
        (1, 0b1001) => any_fp!(size, q, |r, i| by_elem::<T, K>(r, i, |e, _, a, b| mulx(e, a, b))),
        _ => None,
    }
}

/// FCMLA by element, of complex halves or singles.
fn complex_by_element(size: u32, q: u32, h: u32, l: u32) -> Option<Handler> {
    fn rot(i: u32) -> u32 {
        i >> 13 & 3
    }
    Some(match (size, q) {
        (1, 0) if h == 0 => |r, i| {
            let x = (i >> 21 & 1) as usize;
            complex_mul::<u16, 64>(r, i, rot(i), |m, _| (m[2 * x], m[2 * x + 1]));
        },
        (1, 1) => |r, i| {
            let x = (i >> 10 & 2 | i >> 21 & 1) as usize;
            complex_mul::<u16, 128>(r, i, rot(i), |m, _| (m[2 * x], m[2 * x + 1]));
        },
        (2, 1) if l == 0 => |r, i| {
            let x = (i >> 11 & 1) as usize;
            complex_mul::<u32, 128>(r, i, rot(i), |m, _| (m[2 * x], m[2 * x + 1]));
        },
        _ => return None,
    })
}
