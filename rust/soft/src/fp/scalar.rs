//! Scalar floating point: arithmetic, moves, comparisons, conversions (Arm ARM C4.1, "Data Processing -- Scalar
//! Floating-Point").

use super::Handler;
use super::arith::{self, Arith};
use super::convert;
use super::lanes::*;
use super::softfloat::{self as soft, *};
use crate::Regs;
use std::cmp::Ordering;

/// Rounding from FPCR, where a rounding is a constant.
pub(super) const CURRENT: u32 = 7;

#[inline(always)]
pub(super) fn mode(e: &Env, rm: u32) -> u32 {
    if rm == CURRENT { rmode(e) } else { rm }
}

/// Instantiates by the `ftype` field: `T` is the format.
macro_rules! by_type {
    ($ftype:expr, $body:expr) => {
        match $ftype {
            0 => arm!(u32, i32, 0, $body),
            1 => arm!(u64, i64, 0, $body),
            3 => arm!(u16, i16, 0, $body),
            _ => None,
        }
    };
}

pub(super) fn decode(i: u32) -> Option<Handler> {
    let ftype = i >> 22 & 3;
    if i >> 24 & 1 == 1 {
        return (i >> 29 == 0).then(|| three_source(i, ftype)).flatten();
    }
    if i >> 21 & 1 == 0 {
        // M is bit 31's neighbour: sf may be set, S may not.
        return (i >> 29 & 3 == 0).then(|| fixed(i, ftype)).flatten();
    }
    if i >> 29 & 3 != 0 {
        return None;
    }
    if i >> 10 & 0x3f == 0 {
        return integer(i, ftype);
    }
    if i >> 31 != 0 {
        return None;
    }
    match i >> 10 & 3 {
        1 => conditional_compare(ftype),
        2 => two_source(i, ftype),
        3 => by_type!(ftype, |r, i| {
            let n = if holds(r.nzcv, i >> 12 & 15) { rn(i) } else { rm(i) };
            r.v[rd(i)] = load::<T>(r, n)[0] as u128;
        }),
        _ if i >> 12 & 1 == 1 => (i >> 5 & 31 == 0).then(|| immediate(ftype)).flatten(),
        _ if i >> 13 & 1 == 1 => compare(i, ftype),
        _ if i >> 14 & 1 == 1 => one_source(i, ftype),
        _ => None,
    }
}

/// The condition `cond` of the flags (Arm ARM, ConditionHolds).
#[inline(always)]
fn holds(nzcv: u32, cond: u32) -> bool {
    let (n, z, c, v) = (nzcv >> 31, nzcv >> 30 & 1, nzcv >> 29 & 1, nzcv >> 28 & 1);
    let yes = match cond >> 1 {
        0 => z == 1,
        1 => c == 1,
        2 => n == 1,
        3 => v == 1,
        4 => c == 1 && z == 0,
        5 => n == v,
        6 => n == v && z == 0,
        _ => return true,
    };
    yes != (cond & 1 == 1)
}

fn three_source(i: u32, ftype: u32) -> Option<Handler> {
    #[inline(always)]
    fn fma<T: Arith>(r: &mut Regs, i: u32, negate_addend: bool, negate_product: bool) {
        let mut e = env(r);
        let a = load::<T>(r, ra(i))[0];
        let n = load::<T>(r, rn(i))[0];
        let m = load::<T>(r, rm(i))[0];
        let a = if negate_addend { neg(a) } else { a };
        let n = if negate_product { neg(n) } else { n };
        r.v[rd(i)] = T::fma(&mut e, a, n, m).bits() as u128;
        r.fpsr = e.sr;
    }
    match i >> 20 & 2 | i >> 15 & 1 {
        0 => by_type!(ftype, |r, i| fma::<T>(r, i, false, false)),
        1 => by_type!(ftype, |r, i| fma::<T>(r, i, false, true)),
        2 => by_type!(ftype, |r, i| fma::<T>(r, i, true, true)),
        _ => by_type!(ftype, |r, i| fma::<T>(r, i, true, false)),
    }
}

fn two_source(i: u32, ftype: u32) -> Option<Handler> {
    match i >> 12 & 15 {
        0 => by_type!(ftype, |r, i| bin::<T, K>(r, i, T::fmul)),
        1 => by_type!(ftype, |r, i| bin::<T, K>(r, i, T::fdiv)),
        2 => by_type!(ftype, |r, i| bin::<T, K>(r, i, T::fadd)),
        3 => by_type!(ftype, |r, i| bin::<T, K>(r, i, T::fsub)),
        4 => by_type!(ftype, |r, i| bin::<T, K>(r, i, arith::max)),
        5 => by_type!(ftype, |r, i| bin::<T, K>(r, i, arith::min)),
        6 => by_type!(ftype, |r, i| bin::<T, K>(r, i, arith::maxnm)),
        7 => by_type!(ftype, |r, i| bin::<T, K>(r, i, arith::minnm)),
        8 => by_type!(ftype, |r, i| bin::<T, K>(r, i, |e, a, b| neg(T::fmul(e, a, b)))),
        _ => None,
    }
}

fn one_source(i: u32, ftype: u32) -> Option<Handler> {
    /// FCVT, in the current rounding mode.
    fn fcvt<A: Float, B: Float>(r: &mut Regs, i: u32) {
        let mut e = env(r);
        let rm = rmode(&e);
        let x = load::<A>(r, rn(i))[0];
        r.v[rd(i)] = convert::convert::<A, B>(&mut e, rm, x).bits() as u128;
        r.fpsr = e.sr;
    }
    fn single_to_double(r: &mut Regs, i: u32) {
        let x = r.v[rn(i)] as u32;
        if !(1..=0xfe).contains(&(x >> 23 & 0xff)) {
            return fcvt::<u32, u64>(r, i);
        }
        r.v[rd(i)] = f64::from(f32::from_bits(x)).to_bits() as u128;
    }
    #[inline(always)]
    fn rint<T: Float>(r: &mut Regs, i: u32, rm: u32, exact: bool) {
        un::<T, 0>(r, i, |e, x| {
            let rm = mode(e, rm);
            convert::round_int(e, x, rm, exact)
        });
    }
    match i >> 15 & 0x3f {
        0 => by_type!(ftype, |r, i| un::<T, K>(r, i, |_, x| x)),
        1 => by_type!(ftype, |r, i| un::<T, K>(r, i, |_, x| soft::abs(x))),
        2 => by_type!(ftype, |r, i| un::<T, K>(r, i, |_, x| neg(x))),
        3 => by_type!(ftype, |r, i| un::<T, K>(r, i, T::fsqrt)),
        op @ (4 | 5 | 7) => Some(match (ftype, op) {
            (0, 5) => single_to_double,
            (0, 7) => fcvt::<u32, u16>,
            (1, 4) => fcvt::<u64, u32>,
            (1, 7) => fcvt::<u64, u16>,
            (3, 4) => fcvt::<u16, u32>,
            (3, 5) => fcvt::<u16, u64>,
            _ => return None,
        }),
        8 => by_type!(ftype, |r, i| rint::<T>(r, i, NEAREST, false)),
        9 => by_type!(ftype, |r, i| rint::<T>(r, i, PLUS, false)),
        10 => by_type!(ftype, |r, i| rint::<T>(r, i, MINUS, false)),
        11 => by_type!(ftype, |r, i| rint::<T>(r, i, TO_ZERO, false)),
        12 => by_type!(ftype, |r, i| rint::<T>(r, i, TIES_AWAY, false)),
        14 => by_type!(ftype, |r, i| rint::<T>(r, i, CURRENT, true)),
        15 => by_type!(ftype, |r, i| rint::<T>(r, i, CURRENT, false)),
        op @ 16..=19 if ftype < 2 => match op {
            16 => by_type!(ftype, |r, i| un::<T, K>(r, i, |e, x| convert::round_int_n(e, x, TO_ZERO, 32))),
            17 => by_type!(ftype, |r, i| un::<T, K>(r, i, |e, x| {
                let rm = rmode(e);
                convert::round_int_n(e, x, rm, 32)
            })),
            18 => by_type!(ftype, |r, i| un::<T, K>(r, i, |e, x| convert::round_int_n(e, x, TO_ZERO, 64))),
            _ => by_type!(ftype, |r, i| un::<T, K>(r, i, |e, x| {
                let rm = rmode(e);
                convert::round_int_n(e, x, rm, 64)
            })),
        },
        _ => None,
    }
}

/// The flags of a comparison, in NZCV's place.
#[inline(always)]
fn flags(o: Option<Ordering>) -> u32 {
    match o {
        Some(Ordering::Equal) => 0b0110 << 28,
        Some(Ordering::Less) => 0b1000 << 28,
        Some(Ordering::Greater) => 0b0010 << 28,
        None => 0b0011 << 28,
    }
}

#[inline(always)]
fn set_flags<T: Float>(r: &mut Regs, i: u32, with_zero: bool, all: bool) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i))[0];
    let m = if with_zero { T::default() } else { load::<T>(r, rm(i))[0] };
    r.nzcv = flags(arith::compare(&mut e, n, m, all));
    r.fpsr = e.sr;
}

fn compare(i: u32, ftype: u32) -> Option<Handler> {
    if i >> 14 & 3 != 0 || i & 7 != 0 {
        return None;
    }
    match i >> 3 & 3 {
        0 => by_type!(ftype, |r, i| set_flags::<T>(r, i, false, false)),
        1 => by_type!(ftype, |r, i| set_flags::<T>(r, i, true, false)),
        2 => by_type!(ftype, |r, i| set_flags::<T>(r, i, false, true)),
        _ => by_type!(ftype, |r, i| set_flags::<T>(r, i, true, true)),
    }
}

fn conditional_compare(ftype: u32) -> Option<Handler> {
    by_type!(ftype, |r, i| {
        if holds(r.nzcv, i >> 12 & 15) {
            set_flags::<T>(r, i, false, i & 16 != 0);
        } else {
            r.nzcv = i << 28;
        }
    })
}

/// VFPExpandImm
pub(super) fn expand_imm<T: Float>(imm8: u32) -> T {
    let imm = u64::from(imm8);
    let b = imm >> 6 & 1;
    let exp = (b ^ 1) << (T::E - 1) | if b == 1 { ((1 << (T::E - 3)) - 1) << 2 } else { 0 } | imm >> 4 & 3;
    T::of((imm >> 7) << (T::BITS - 1) | exp << T::F | (imm & 15) << (T::F - 4))
}

fn immediate(ftype: u32) -> Option<Handler> {
    by_type!(ftype, |r, i| r.v[rd(i)] = expand_imm::<T>(i >> 13 & 0xff) as u128)
}

#[inline(always)]
fn put(r: &mut Regs, i: u32, sf: bool, x: u64) {
    r.x[xw(rd(i))] = if sf { x } else { x & 0xffff_ffff };
}

#[inline(always)]
fn to_int<T: Float>(r: &mut Regs, i: u32, fbits: u32, rm: u32, signed: bool) {
    let mut e = env(r);
    let x = load::<T>(r, rn(i))[0];
    let sf = i >> 31 == 1;
    if rm == TO_ZERO && fbits == 0 && T::BITS > 16 && e.cr & FZ == 0 {
        // The host truncates as well; NaNs and what is out of range fail the comparison.
        let v = if T::BITS == 64 { f64::from_bits(x.bits()) } else { f32::from_bits(x.bits() as u32).into() };
        let limit = if sf { 9_223_372_036_854_775_808.0 } else { 2_147_483_648.0 };
        if v.abs() < limit && (signed || v >= 0.0) {
            let out = v as i64;
            r.fpsr |= u32::from(out as f64 != v) << 4;
            return put(r, i, sf, out as u64);
        }
    }
    let rm = mode(&e, rm);
    let out = convert::to_fixed(&mut e, x, fbits, rm, if sf { 64 } else { 32 }, signed);
    r.fpsr = e.sr;
    put(r, i, sf, out);
}

#[inline(always)]
fn from_int<T: Float>(r: &mut Regs, i: u32, fbits: u32, signed: bool) {
    let mut e = env(r);
    let x = r.x[xr(rn(i))];
    let x = match (i >> 31 == 1, signed) {
        (true, _) => x,
        (false, true) => x as i32 as u64,
        (false, false) => x as u32 as u64,
    };
    r.v[rd(i)] = convert::from_fixed::<T>(&mut e, x, fbits, signed).bits() as u128;
    r.fpsr = e.sr;
}

/// Conversions between floating point and integers, and FMOV to and from general registers.
fn integer(i: u32, ftype: u32) -> Option<Handler> {
    let sf = i >> 31 == 1;
    let op = i >> 16 & 7;
    Some(match (i >> 19 & 3, op) {
        (0, 2) => return by_type!(ftype, |r, i| from_int::<T>(r, i, 0, true)),
        (0, 3) => return by_type!(ftype, |r, i| from_int::<T>(r, i, 0, false)),
        (0, 4) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, TIES_AWAY, true)),
        (0, 5) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, TIES_AWAY, false)),
        (0, 0) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, NEAREST, true)),
        (0, 1) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, NEAREST, false)),
        (1, 0) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, PLUS, true)),
        (1, 1) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, PLUS, false)),
        (2, 0) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, MINUS, true)),
        (2, 1) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, MINUS, false)),
        (3, 0) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, TO_ZERO, true)),
        (3, 1) => return by_type!(ftype, |r, i| to_int::<T>(r, i, 0, TO_ZERO, false)),
        (3, 6) if !sf && ftype == 1 => |r, i| {
            let mut e = env(r);
            let (out, exact) = convert::to_fixed_js(&mut e, r.v[rn(i)] as u64);
            r.fpsr = e.sr;
            r.nzcv = u32::from(exact) << 30;
            put(r, i, false, u64::from(out));
        },
        (0, 6) => match (sf, ftype) {
            (_, 3) => |r, i| put(r, i, false, r.v[rn(i)] as u16 as u64),
            (false, 0) => |r, i| put(r, i, false, r.v[rn(i)] as u64),
            (true, 1) => |r, i| put(r, i, true, r.v[rn(i)] as u64),
            _ => return None,
        },
        (0, 7) => match (sf, ftype) {
            (_, 3) => |r, i| r.v[rd(i)] = r.x[xr(rn(i))] as u16 as u128,
            (false, 0) => |r, i| r.v[rd(i)] = r.x[xr(rn(i))] as u32 as u128,
            (true, 1) => |r, i| r.v[rd(i)] = r.x[xr(rn(i))] as u128,
            _ => return None,
        },
        (1, 6) if sf && ftype == 2 => |r, i| put(r, i, true, (r.v[rn(i)] >> 64) as u64),
        (1, 7) if sf && ftype == 2 => |r, i| {
            let low = r.v[rd(i)] as u64 as u128;
            r.v[rd(i)] = low | (r.x[xr(rn(i))] as u128) << 64;
        },
        _ => return None,
    })
}

/// Conversions between floating point and fixed point; the scale field is 64 − fbits.
fn fixed(i: u32, ftype: u32) -> Option<Handler> {
    if i >> 31 == 0 && i >> 15 & 1 == 0 {
        return None;
    }
    match i >> 16 & 31 {
        0b00010 => by_type!(ftype, |r, i| from_int::<T>(r, i, 64 - (i >> 10 & 63), true)),
        0b00011 => by_type!(ftype, |r, i| from_int::<T>(r, i, 64 - (i >> 10 & 63), false)),
        0b11000 => by_type!(ftype, |r, i| to_int::<T>(r, i, 64 - (i >> 10 & 63), TO_ZERO, true)),
        0b11001 => by_type!(ftype, |r, i| to_int::<T>(r, i, 64 - (i >> 10 & 63), TO_ZERO, false)),
        _ => None,
    }
}
