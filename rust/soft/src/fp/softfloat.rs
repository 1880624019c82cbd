//! IEEE 754 arithmetic in integers, with Arm's choices: NaN propagation, flushing, tininess before rounding
//! (Arm ARM, J1 "shared/functions/float"). Complete for every mode; `arith` has the short cuts over the host's FPU.

use super::lanes::{Elem, Env};

/// FPSR cumulative flags.
pub(super) const IOC: u32 = 1;
pub(super) const DZC: u32 = 2;
pub(super) const OFC: u32 = 4;
pub(super) const UFC: u32 = 8;
pub(super) const IXC: u32 = 16;
pub(super) const IDC: u32 = 128;

/// FPCR controls.
pub(super) const FZ16: u32 = 1 << 19;
pub(super) const RMODE: u32 = 3 << 22;
pub(super) const FZ: u32 = 1 << 24;
pub(super) const DN: u32 = 1 << 25;
pub(super) const AHP: u32 = 1 << 26;

/// Rounding, 0 to 3 as FPCR.RMode encodes it.
pub(super) const NEAREST: u32 = 0;
pub(super) const PLUS: u32 = 1;
pub(super) const MINUS: u32 = 2;
pub(super) const TO_ZERO: u32 = 3;
pub(super) const TIES_AWAY: u32 = 4;
/// To odd, as FCVTXN rounds.
pub(super) const TO_ODD: u32 = 5;

#[inline(always)]
pub(super) fn rmode(e: &Env) -> u32 {
    e.cr >> 22 & 3
}

/// A floating-point format, carried as the integer of its encoding.
pub(super) trait Float: Elem + Ord {
    /// Width of the exponent and of the fraction.
    const E: u32;
    const F: u32;
    /// Control bit that flushes this format's denormals.
    const FLUSH: u32;
    fn bits(self) -> u64;
    /// The low bits of `b`.
    fn of(b: u64) -> Self;

    const BIAS: i32 = (1 << (Self::E - 1)) - 1;
    const SIGN: u64 = 1 << (Self::BITS - 1);
    const INF: u64 = ((1 << Self::E) - 1) << Self::F;
    const QUIET: u64 = 1 << (Self::F - 1);
    const FRAC: u64 = (1 << Self::F) - 1;
}

macro_rules! float {
    ($($t:ty, $e:literal, $f:literal, $z:expr;)*) => {$(
        impl Float for $t {
            const E: u32 = $e;
            const F: u32 = $f;
            const FLUSH: u32 = $z;
            #[inline(always)]
            fn bits(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn of(b: u64) -> Self {
                b as $t
            }
        }
    )*};
}

float! { u16, 5, 10, FZ16; u32, 8, 23, FZ; u64, 11, 52, FZ; }

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Zero,
    Finite,
    Inf,
    Quiet,
    Signalling,
}

/// A value taken apart: (−1)^sign × sig × 2^(exp − 63), `sig` with its top bit set when finite.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unpacked {
    pub class: Class,
    pub sign: bool,
    pub exp: i32,
    pub sig: u64,
}

impl Unpacked {
    pub(super) fn nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signalling)
    }
    pub(super) fn inf(&self) -> bool {
        self.class == Class::Inf
    }
    pub(super) fn zero(&self) -> bool {
        self.class == Class::Zero
    }
}

/// FPUnpackBase: `alt` for the alternative half format, which has neither infinities nor NaNs.
#[inline]
fn unpack_base<T: Float>(e: &mut Env, x: T, flush: bool, alt: bool) -> Unpacked {
    let b = x.bits();
    let sign = b & T::SIGN != 0;
    let biased = (b & T::INF) >> T::F;
    let frac = b & T::FRAC;
    let of = |class, exp, sig| Unpacked { class, sign, exp, sig };
    if biased == 0 {
        if frac == 0 {
            return of(Class::Zero, 0, 0);
        }
        if flush {
            if T::BITS != 16 {
                e.sr |= IDC;
            }
            return of(Class::Zero, 0, 0);
        }
        let lz = frac.leading_zeros();
        return of(Class::Finite, 1 - T::BIAS + 63 - T::F as i32 - lz as i32, frac << lz);
    }
    if biased == T::INF >> T::F && !alt {
        return match frac {
            0 => of(Class::Inf, 0, 0),
            f if f & T::QUIET != 0 => of(Class::Quiet, 0, 0),
            _ => of(Class::Signalling, 0, 0),
        };
    }
    of(Class::Finite, biased as i32 - T::BIAS, (frac | 1 << T::F) << (63 - T::F))
}

/// FPUnpack: for arithmetic.
#[inline]
pub(super) fn unpack<T: Float>(e: &mut Env, x: T) -> Unpacked {
    let flush = e.cr & T::FLUSH != 0;
    unpack_base(e, x, flush, false)
}

/// FPUnpackCV: for conversions between formats, where halves are not flushed and may be alternative.
#[inline]
pub(super) fn unpack_cv<T: Float>(e: &mut Env, x: T) -> Unpacked {
    let half = T::BITS == 16;
    let flush = !half && e.cr & FZ != 0;
    let alt = half && e.cr & AHP != 0;
    unpack_base(e, x, flush, alt)
}

pub(super) fn zero<T: Float>(sign: bool) -> T {
    T::of(if sign { T::SIGN } else { 0 })
}

pub(super) fn infinity<T: Float>(sign: bool) -> T {
    T::of(T::INF | if sign { T::SIGN } else { 0 })
}

pub(super) fn max_normal<T: Float>(sign: bool) -> T {
    T::of((T::INF - 1) | if sign { T::SIGN } else { 0 })
}

pub(super) fn default_nan<T: Float>() -> T {
    T::of(T::INF | T::QUIET)
}

/// The default NaN, and the invalid operation that led to it.
#[cold]
pub(super) fn invalid<T: Float>(e: &mut Env) -> T {
    e.sr |= IOC;
    default_nan()
}

#[inline(always)]
pub(super) fn neg<T: Float>(x: T) -> T {
    T::of(x.bits() ^ T::SIGN)
}

#[inline(always)]
pub(super) fn abs<T: Float>(x: T) -> T {
    T::of(x.bits() & !T::SIGN)
}

#[inline(always)]
pub(super) fn is_nan<T: Float>(x: T) -> bool {
    x.bits() & !T::SIGN > T::INF
}

#[inline(always)]
pub(super) fn is_snan<T: Float>(x: T) -> bool {
    is_nan(x) && x.bits() & T::QUIET == 0
}

#[inline(always)]
pub(super) fn is_qnan<T: Float>(x: T) -> bool {
    is_nan(x) && x.bits() & T::QUIET != 0
}

/// FPProcessNaN
pub(super) fn quieten<T: Float>(e: &mut Env, x: T) -> T {
    if is_snan(x) {
        e.sr |= IOC;
    }
    if e.cr & DN != 0 { default_nan() } else { T::of(x.bits() | T::QUIET) }
}

/// FPProcessNaNs: the NaN that the result is, if an operand is one: signalling ones first, then in operand order.
#[cold]
#[inline(never)]
pub(super) fn nans<T: Float>(e: &mut Env, ops: &[T]) -> Option<T> {
    let x = ops.iter().find(|&&x| is_snan(x)).or_else(|| ops.iter().find(|&&x| is_nan(x)))?;
    Some(quieten(e, *x))
}

#[inline(always)]
pub(super) fn shift_right_jam(x: u64, n: u32) -> u64 {
    match n {
        0 => x,
        1..=63 => x >> n | u64::from(x << (64 - n) != 0),
        _ => u64::from(x != 0),
    }
}

#[inline(always)]
fn shift_right_jam128(x: u128, n: u32) -> u128 {
    match n {
        0 => x,
        1..=127 => x >> n | u128::from(x << (128 - n) != 0),
        _ => u128::from(x != 0),
    }
}

/// FPRoundBase of a normalised `sig` whose lowest bit is sticky.
fn round_base<T: Float>(
    e: &mut Env,
    rm: u32,
    sign: bool,
    exp: i32,
    mut sig: u64,
    flush: bool,
    alt: bool,
) -> T {
    let min = 1 - T::BIAS;
    let tiny = exp < min;
    if tiny {
        if flush {
            e.sr |= UFC;
            return zero(sign);
        }
        sig = shift_right_jam(sig, (min - exp) as u32);
    }
    let drop = 63 - T::F;
    let mut mant = sig >> drop;
    let rest = sig << (64 - drop);
    let half = 1u64 << 63;
    if rest != 0 && tiny {
        e.sr |= UFC;
    }
    let (up, to_inf) = match rm {
        NEAREST => (rest > half || (rest == half && mant & 1 != 0), true),
        PLUS => (rest != 0 && !sign, !sign),
        MINUS => (rest != 0 && sign, sign),
        TIES_AWAY => (rest >= half, true),
        _ => (false, false),
    };
    mant += u64::from(up);
    if rm == TO_ODD && rest != 0 {
        mant |= 1;
    }
    // The mantissa carries its leading one into the exponent, and so may rounding.
    let biased = if tiny { 0 } else { (exp - min) as u64 };
    let s = if sign { T::SIGN } else { 0 };
    if biased >= 1 << T::E {
        return overflow(e, s, to_inf, alt);
    }
    let out = (biased << T::F) + mant;
    if out >= T::INF && (!alt || out >= T::SIGN) {
        return overflow(e, s, to_inf, alt);
    }
    if rest != 0 {
        e.sr |= IXC;
    }
    T::of(out | s)
}

#[cold]
fn overflow<T: Float>(e: &mut Env, s: u64, to_inf: bool, alt: bool) -> T {
    if alt {
        e.sr |= IOC;
        return T::of(s | (T::SIGN - 1));
    }
    e.sr |= OFC | IXC;
    T::of(s | if to_inf { T::INF } else { T::INF - 1 })
}

/// FPRound with the rounding `rm`: `sig` any number but zero, its lowest bit sticky.
pub(super) fn round_rm<T: Float>(e: &mut Env, rm: u32, sign: bool, exp: i32, sig: u64) -> T {
    let lz = sig.leading_zeros();
    let flush = e.cr & T::FLUSH != 0;
    round_base(e, rm, sign, exp - lz as i32, sig << lz, flush, false)
}

/// FPRound
pub(super) fn round<T: Float>(e: &mut Env, sign: bool, exp: i32, sig: u64) -> T {
    round_rm(e, rmode(e), sign, exp, sig)
}

/// FPRoundCV
pub(super) fn round_cv<T: Float>(e: &mut Env, rm: u32, sign: bool, exp: i32, sig: u64) -> T {
    let half = T::BITS == 16;
    let flush = !half && e.cr & FZ != 0;
    let alt = half && e.cr & AHP != 0;
    round_base(e, rm, sign, exp, sig, flush, alt)
}

/// Rounds `sig` × 2^(exp − 127).
fn round128<T: Float>(e: &mut Env, sign: bool, exp: i32, sig: u128) -> T {
    let lz = sig.leading_zeros();
    let sig = sig << lz;
    round(e, sign, exp - lz as i32, (sig >> 64) as u64 | u64::from(sig as u64 != 0))
}

/// The sign of an exact zero sum of operands with opposite signs.
fn zero_sum<T: Float>(e: &Env) -> T {
    zero(rmode(e) == MINUS)
}

pub(super) fn add<T: Float>(e: &mut Env, a: T, b: T) -> T {
    let (x, y) = (unpack(e, a), unpack(e, b));
    if x.nan() || y.nan() {
        return nans(e, &[a, b]).unwrap_or_default();
    }
    match (x.class, y.class) {
        (Class::Inf, Class::Inf) if x.sign != y.sign => return invalid(e),
        (Class::Inf, _) => return infinity(x.sign),
        (_, Class::Inf) => return infinity(y.sign),
        (Class::Zero, Class::Zero) if x.sign == y.sign => return zero(x.sign),
        (Class::Zero, Class::Zero) => return zero_sum(e),
        (Class::Zero, _) => return round(e, y.sign, y.exp, y.sig),
        (_, Class::Zero) => return round(e, x.sign, x.exp, x.sig),
        _ => {}
    }
    sum(e, x.sign, x.exp, (x.sig as u128) << 62, y.sign, y.exp, (y.sig as u128) << 62)
}

/// Rounded sum of two numbers sig × 2^(exp − 125), each below 2^126 and with trailing zeros enough that what the
/// alignment drops cannot be uncovered by cancellation.
fn sum<T: Float>(e: &mut Env, sx: bool, ex: i32, mx: u128, sy: bool, ey: i32, my: u128) -> T {
    let (sx, ex, mx, sy, ey, my) = if ex >= ey { (sx, ex, mx, sy, ey, my) } else { (sy, ey, my, sx, ex, mx) };
    let my = shift_right_jam128(my, (ex - ey) as u32);
    let (sign, sig) = if sx == sy {
        (sx, mx + my)
    } else if mx > my {
        (sx, mx - my)
    } else if my > mx {
        (sy, my - mx)
    } else {
        return zero_sum(e);
    };
    round128(e, sign, ex + 2, sig)
}

pub(super) fn sub<T: Float>(e: &mut Env, a: T, b: T) -> T {
    if is_nan(a) || is_nan(b) {
        unpack(e, a);
        unpack(e, b);
        return nans(e, &[a, b]).unwrap_or_default();
    }
    add(e, a, neg(b))
}

pub(super) fn mul<T: Float>(e: &mut Env, a: T, b: T) -> T {
    mul_inf_zero(e, a, b, false)
}

/// FMULX: infinity times zero is two.
pub(super) fn mulx<T: Float>(e: &mut Env, a: T, b: T) -> T {
    mul_inf_zero(e, a, b, true)
}

#[inline]
fn mul_inf_zero<T: Float>(e: &mut Env, a: T, b: T, extended: bool) -> T {
    let (x, y) = (unpack(e, a), unpack(e, b));
    if x.nan() || y.nan() {
        return nans(e, &[a, b]).unwrap_or_default();
    }
    let sign = x.sign != y.sign;
    if (x.inf() && y.zero()) || (x.zero() && y.inf()) {
        if extended {
            return T::of(((T::BIAS + 1) as u64) << T::F | if sign { T::SIGN } else { 0 });
        }
        return invalid(e);
    }
    if x.inf() || y.inf() {
        return infinity(sign);
    }
    if x.zero() || y.zero() {
        return zero(sign);
    }
    round128(e, sign, x.exp + y.exp + 1, x.sig as u128 * y.sig as u128)
}

pub(super) fn div<T: Float>(e: &mut Env, a: T, b: T) -> T {
    let (x, y) = (unpack(e, a), unpack(e, b));
    if x.nan() || y.nan() {
        return nans(e, &[a, b]).unwrap_or_default();
    }
    let sign = x.sign != y.sign;
    match (x.class, y.class) {
        (Class::Inf, Class::Inf) | (Class::Zero, Class::Zero) => return invalid(e),
        (Class::Inf, _) => return infinity(sign),
        (_, Class::Zero) => {
            e.sr |= DZC;
            return infinity(sign);
        }
        (Class::Zero, _) | (_, Class::Inf) => return zero(sign),
        _ => {}
    }
    // The quotient of the significands is in (1/2, 2), so q is in (2^62, 2^64).
    let n = (x.sig as u128) << 63;
    let (n, exp) = if x.sig >= y.sig { (n, x.exp - y.exp) } else { (n << 1, x.exp - y.exp - 1) };
    let q = (n / y.sig as u128) as u64;
    round(e, sign, exp, q | u64::from(q as u128 * y.sig as u128 != n))
}

pub(super) fn sqrt<T: Float>(e: &mut Env, a: T) -> T {
    let x = unpack(e, a);
    match x.class {
        Class::Quiet | Class::Signalling => return quieten(e, a),
        Class::Zero => return zero(x.sign),
        _ if x.sign => return invalid(e),
        Class::Inf => return infinity(false),
        Class::Finite => {}
    }
    // sig × 2^63 or 2^64, so that the exponent left is even; the root then has 64 bits.
    let n = if x.exp & 1 == 0 { (x.sig as u128) << 63 } else { (x.sig as u128) << 64 };
    let root = n.isqrt();
    round(e, false, x.exp >> 1, root as u64 | u64::from(root * root != n))
}

/// FPMulAdd: a + b × c with one rounding.
pub(super) fn mul_add<T: Float>(e: &mut Env, a: T, b: T, c: T) -> T {
    let (z, x, y) = (unpack(e, a), unpack(e, b), unpack(e, c));
    if z.nan() || x.nan() || y.nan() {
        let out = nans(e, &[a, b, c]).unwrap_or_default();
        if z.class == Class::Quiet && ((x.inf() && y.zero()) || (x.zero() && y.inf())) {
            return invalid(e);
        }
        return out;
    }
    fused(e, z, x, y)
}

/// z + x × y of operands none of which is a NaN.
pub(super) fn fused<T: Float>(e: &mut Env, z: Unpacked, x: Unpacked, y: Unpacked) -> T {
    let sign = x.sign != y.sign;
    let inf = x.inf() || y.inf();
    let nil = x.zero() || y.zero();
    if (inf && nil) || (inf && z.inf() && z.sign != sign) {
        return invalid(e);
    }
    if inf {
        return infinity(sign);
    }
    if z.inf() {
        return infinity(z.sign);
    }
    if nil {
        return match z.zero() {
            true if z.sign == sign => zero(sign),
            true => zero_sum(e),
            false => round(e, z.sign, z.exp, z.sig),
        };
    }
    let p = x.sig as u128 * y.sig as u128;
    let pe = x.exp + y.exp + 1;
    if z.zero() {
        return round128(e, sign, pe, p);
    }
    // At least 22 trailing zeros in p, so the shift by two drops nothing.
    sum(e, sign, pe, p >> 2, z.sign, z.exp, (z.sig as u128) << 62)
}

/// FPMax and FPMin of numbers and NaNs.
pub(super) fn max_min<T: Float, const MAX: bool>(e: &mut Env, a: T, b: T) -> T {
    let (x, y) = (unpack(e, a), unpack(e, b));
    if x.nan() || y.nan() {
        return nans(e, &[a, b]).unwrap_or_default();
    }
    let a = if x.zero() { zero(x.sign) } else { a };
    let b = if y.zero() { zero(y.sign) } else { b };
    if (order(a) >= order(b)) == MAX { a } else { b }
}

/// FPMaxNum and FPMinNum: a quiet NaN loses to a number.
pub(super) fn max_min_num<T: Float, const MAX: bool>(e: &mut Env, a: T, b: T) -> T {
    let low = infinity(MAX);
    let (qa, qb) = (is_qnan(a), is_qnan(b));
    // Unpacked before the replacement, for the denormal flag of the one that stays.
    if qa && !qb {
        return max_min::<T, MAX>(e, low, b);
    }
    if qb && !qa {
        return max_min::<T, MAX>(e, a, low);
    }
    max_min::<T, MAX>(e, a, b)
}

/// An integer that is ordered as the value of `x` (no NaN), −0 just below +0.
fn order<T: Float>(x: T) -> i64 {
    let m = (x.bits() & !T::SIGN) as i64;
    if x.bits() & T::SIGN != 0 { -1 - m } else { m }
}

/// How two numbers compare; `None` when one is a NaN. Invalid operation on signalling NaNs, on all with `all`.
pub(super) fn compare<T: Float>(e: &mut Env, a: T, b: T, all: bool) -> Option<std::cmp::Ordering> {
    let (x, y) = (unpack(e, a), unpack(e, b));
    if x.nan() || y.nan() {
        if all || is_snan(a) || is_snan(b) {
            e.sr |= IOC;
        }
        return None;
    }
    let a = if x.zero() { zero(false) } else { a };
    let b = if y.zero() { zero(false) } else { b };
    Some(order(a).cmp(&order(b)))
}
