//! Reciprocal and reciprocal square root: estimates (Arm ARM, "RecipEstimate" and "RecipSqrtEstimate"), steps,
//! exponent.

use super::lanes::Env;
use super::softfloat::*;

/// 9 bits in, 9 bits out.
fn recip_table(a: u32) -> u32 {
    let a = a * 2 + 1;
    let b = (1 << 19) / a;
    b.div_ceil(2)
}

fn rsqrt_table(a: u32) -> u32 {
    let a = if a < 256 { a * 2 + 1 } else { ((a >> 1 << 1) + 1) * 2 };
    // The least b from 512 with a (b + 1)² ≥ 2^28.
    let mut b = ((1u32 << 28) / a).isqrt().saturating_sub(2).max(512);
    while a * (b + 1) * (b + 1) < 1 << 28 {
        b += 1;
    }
    b.div_ceil(2)
}

pub(super) fn urecpe(x: u32) -> u32 {
    if x >> 31 == 0 { !0 } else { recip_table(x >> 23) << 23 }
}

pub(super) fn ursqrte(x: u32) -> u32 {
    if x >> 30 == 0 { !0 } else { rsqrt_table(x >> 23) << 23 }
}

/// The fraction of `x` at bit 51, as the pseudocode has it for all formats.
fn fraction<T: Float>(x: T) -> u64 {
    (x.bits() & T::FRAC) << (52 - T::F)
}

fn assemble<T: Float>(sign: bool, exp: i32, fraction: u64) -> T {
    let s = if sign { T::SIGN } else { 0 };
    T::of(s | (exp as u64) << T::F | fraction >> (52 - T::F))
}

pub(super) fn frecpe<T: Float>(e: &mut Env, x: T) -> T {
    let u = unpack(e, x);
    match u.class {
        Class::Quiet | Class::Signalling => return quieten(e, x),
        Class::Inf => return zero(u.sign),
        Class::Zero => {
            e.sr |= DZC;
            return infinity(u.sign);
        }
        Class::Finite => {}
    }
    if u.exp < -1 - T::BIAS {
        e.sr |= OFC | IXC;
        let to_inf = match rmode(e) {
            NEAREST => true,
            PLUS => !u.sign,
            MINUS => u.sign,
            _ => false,
        };
        return if to_inf { infinity(u.sign) } else { max_normal(u.sign) };
    }
    if e.cr & T::FLUSH != 0 && u.exp >= T::BIAS - 1 {
        e.sr |= UFC;
        return zero(u.sign);
    }
    let mut f = fraction(x);
    let mut exp = ((x.bits() & T::INF) >> T::F) as i32;
    if exp == 0 {
        if f >> 51 == 0 {
            exp = -1;
            f <<= 2;
        } else {
            f <<= 1;
        }
        f &= (1 << 52) - 1;
    }
    let scaled = 1 << 8 | (f >> 44) as u32;
    let mut out = 2 * T::BIAS - 1 - exp;
    let mut f = u64::from(recip_table(scaled) & 0xff) << 44;
    if out == 0 {
        f = 1 << 51 | f >> 1;
    } else if out == -1 {
        f = 1 << 50 | f >> 2;
        out = 0;
    }
    assemble(u.sign, out, f)
}

pub(super) fn frsqrte<T: Float>(e: &mut Env, x: T) -> T {
    let u = unpack(e, x);
    match u.class {
        Class::Quiet | Class::Signalling => return quieten(e, x),
        Class::Zero => {
            e.sr |= DZC;
            return infinity(u.sign);
        }
        _ if u.sign => return invalid(e),
        Class::Inf => return zero(false),
        Class::Finite => {}
    }
    // Normalised, so denormals need no loop of their own.
    let exp = u.exp + T::BIAS;
    let f = u.sig << 1 >> 12;
    let scaled = if exp & 1 == 0 { 1 << 8 | f >> 44 } else { 1 << 7 | f >> 45 };
    let out = (3 * T::BIAS - 1 - exp).div_euclid(2);
    assemble(false, out, u64::from(rsqrt_table(scaled as u32) & 0xff) << 44)
}

pub(super) fn frecpx<T: Float>(e: &mut Env, x: T) -> T {
    let u = unpack(e, x);
    if u.nan() {
        return quieten(e, x);
    }
    let exp = x.bits() & T::INF;
    let sign = x.bits() & T::SIGN;
    T::of(sign | if exp == 0 || u.zero() { T::INF - (1 << T::F) } else { !exp & T::INF })
}

/// FPRecipStepFused: 2 − a × b
pub(super) fn frecps<T: Float>(e: &mut Env, a: T, b: T) -> T {
    step(e, a, b, Unpacked { class: Class::Finite, sign: false, exp: 1, sig: 1 << 63 }, 0)
}

/// FPRSqrtStepFused: (3 − a × b) / 2
pub(super) fn frsqrts<T: Float>(e: &mut Env, a: T, b: T) -> T {
    step(e, a, b, Unpacked { class: Class::Finite, sign: false, exp: 1, sig: 3 << 62 }, -1)
}

fn step<T: Float>(e: &mut Env, a: T, b: T, mut from: Unpacked, scale: i32) -> T {
    let a = neg(a);
    let (mut x, y) = (unpack(e, a), unpack(e, b));
    if x.nan() || y.nan() {
        return nans(e, &[a, b]).unwrap_or_default();
    }
    // Halved before the one rounding: both addends have exponents to spare.
    from.exp += scale;
    x.exp += scale;
    if (x.inf() && y.zero()) || (x.zero() && y.inf()) {
        return round(e, false, from.exp, from.sig);
    }
    fused(e, from, x, y)
}
