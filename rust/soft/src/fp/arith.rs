//! Arithmetic through the host's FPU where that gives the same bits and flags, else through `softfloat`.
//!
//! The short cut is taken when rounding is to nearest, nothing is flushed, and the result is normal (for sums: finite).
//! A finite result has no NaN or infinity among its operands, and one above the smallest normal number has not
//! underflowed, before or after rounding. What is left to find is inexactness: nothing to do when IXC is set already,
//! else by an error-free transformation or from the significands.

use super::lanes::Env;
use super::softfloat::{self as soft, *};

/// The arithmetic of a format; operands are encodings.
pub(super) trait Arith: Float {
    fn fadd(e: &mut Env, a: Self, b: Self) -> Self;
    fn fsub(e: &mut Env, a: Self, b: Self) -> Self;
    fn fmul(e: &mut Env, a: Self, b: Self) -> Self;
    fn fdiv(e: &mut Env, a: Self, b: Self) -> Self;
    fn fsqrt(e: &mut Env, a: Self) -> Self;
    /// a + b × c, rounded once.
    fn fma(e: &mut Env, a: Self, b: Self, c: Self) -> Self;
}

impl Arith for u16 {
    fn fadd(e: &mut Env, a: Self, b: Self) -> Self {
        soft::add(e, a, b)
    }
    fn fsub(e: &mut Env, a: Self, b: Self) -> Self {
        soft::sub(e, a, b)
    }
    fn fmul(e: &mut Env, a: Self, b: Self) -> Self {
        soft::mul(e, a, b)
    }
    fn fdiv(e: &mut Env, a: Self, b: Self) -> Self {
        soft::div(e, a, b)
    }
    fn fsqrt(e: &mut Env, a: Self) -> Self {
        soft::sqrt(e, a)
    }
    fn fma(e: &mut Env, a: Self, b: Self, c: Self) -> Self {
        soft::mul_add(e, a, b, c)
    }
}

/// Whether the host's FPU can serve at all.
#[inline(always)]
fn plain(e: &Env) -> bool {
    e.cr & (RMODE | FZ) == 0
}

/// Above the smallest normal number's binade, and finite.
#[inline(always)]
fn safe<T: Float>(r: T) -> bool {
    let exp = r.bits() & T::INF;
    exp > 1 << T::F && exp < T::INF
}

#[inline(always)]
fn inexact(e: &mut Env, yes: bool) {
    e.sr |= u32::from(yes) << 4;
}

// Out of line, so that handlers stay small and their fast paths keep to registers.
macro_rules! slow {
    ($name:ident, $f:path, $($a:ident),*) => {
        #[cold]
        #[inline(never)]
        fn $name<T: Float>(e: &mut Env, $($a: T),*) -> T {
            $f(e, $($a),*)
        }
    };
}

slow!(slow_add, soft::add, a, b);
slow!(slow_sub, soft::sub, a, b);
slow!(slow_mul, soft::mul, a, b);
slow!(slow_div, soft::div, a, b);
slow!(slow_sqrt, soft::sqrt, a);
slow!(slow_fma, soft::mul_add, a, b, c);

/// The integer significand of a double, zero's being zero.
#[inline(always)]
fn significand(x: u64) -> u64 {
    let frac = x & u64::FRAC;
    if x & u64::INF == 0 { frac } else { frac | 1 << 52 }
}

#[inline(always)]
fn odd_part(x: u128) -> u128 {
    x >> (x.trailing_zeros() & 127)
}

macro_rules! sums {
    ($u:ty, $f:ty) => {
        #[inline(always)]
        fn fadd(e: &mut Env, a: Self, b: Self) -> Self {
            let (x, y) = (<$f>::from_bits(a), <$f>::from_bits(b));
            let r = x + y;
            if plain(e) && r.is_finite() {
                if e.sr & IXC != 0 {
                    return r.to_bits();
                }
                let part = r - x;
                let error = (x - (r - part)) + (y - part);
                if error.is_finite() {
                    inexact(e, error != 0.0);
                    return r.to_bits();
                }
            }
            slow_add(e, a, b)
        }
        #[inline(always)]
        fn fsub(e: &mut Env, a: Self, b: Self) -> Self {
            let (x, y) = (<$f>::from_bits(a), <$f>::from_bits(b));
            let r = x - y;
            if plain(e) && r.is_finite() {
                if e.sr & IXC != 0 {
                    return r.to_bits();
                }
                let part = r - x;
                let error = (x - (r - part)) - (y + part);
                if error.is_finite() {
                    inexact(e, error != 0.0);
                    return r.to_bits();
                }
            }
            slow_sub(e, a, b)
        }
    };
}

impl Arith for u32 {
    sums!(u32, f32);
    #[inline(always)]
    fn fmul(e: &mut Env, a: Self, b: Self) -> Self {
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        let r = x * y;
        if plain(e) && safe(r.to_bits()) {
            inexact(e, f64::from(x) * f64::from(y) != f64::from(r));
            return r.to_bits();
        }
        slow_mul(e, a, b)
    }
    #[inline(always)]
    fn fdiv(e: &mut Env, a: Self, b: Self) -> Self {
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        let r = x / y;
        if plain(e) && safe(r.to_bits()) {
            inexact(e, f64::from(r) * f64::from(y) != f64::from(x));
            return r.to_bits();
        }
        slow_div(e, a, b)
    }
    #[inline(always)]
    fn fsqrt(e: &mut Env, a: Self) -> Self {
        let x = f32::from_bits(a);
        let r = x.sqrt();
        if plain(e) && safe(r.to_bits()) {
            inexact(e, f64::from(r) * f64::from(r) != f64::from(x));
            return r.to_bits();
        }
        slow_sqrt(e, a)
    }
    #[inline(always)]
    fn fma(e: &mut Env, a: Self, b: Self, c: Self) -> Self {
        // The product is exact in double; the sum, rounded to odd there, rounds to single as the exact one would.
        let z = f64::from(f32::from_bits(a));
        let p = f64::from(f32::from_bits(b)) * f64::from(f32::from_bits(c));
        let s = p + z;
        let part = s - p;
        let error = (p - (s - part)) + (z - part);
        let mut odd = s.to_bits();
        if error != 0.0 && odd & 1 == 0 {
            let away = (error > 0.0) == (s > 0.0);
            odd = if away { odd.wrapping_add(1) } else { odd.wrapping_sub(1) };
        }
        let s = f64::from_bits(odd);
        let r = s as f32;
        if plain(e) && safe(r.to_bits()) {
            inexact(e, f64::from(r) != s);
            return r.to_bits();
        }
        slow_fma(e, a, b, c)
    }
}

impl Arith for u64 {
    sums!(u64, f64);
    #[inline(always)]
    fn fmul(e: &mut Env, a: Self, b: Self) -> Self {
        let r = (f64::from_bits(a) * f64::from_bits(b)).to_bits();
        if plain(e) && safe(r) {
            if e.sr & IXC == 0 {
                let (x, y) = (significand(a), significand(b));
                let p = x as u128 * y as u128;
                inexact(e, 128 - p.leading_zeros() - p.trailing_zeros() > 53);
            }
            return r;
        }
        slow_mul(e, a, b)
    }
    #[inline(always)]
    fn fdiv(e: &mut Env, a: Self, b: Self) -> Self {
        let r = (f64::from_bits(a) / f64::from_bits(b)).to_bits();
        if plain(e) && safe(r) {
            if e.sr & IXC == 0 {
                let p = significand(r) as u128 * significand(b) as u128;
                inexact(e, odd_part(p) != odd_part(significand(a) as u128));
            }
            return r;
        }
        slow_div(e, a, b)
    }
    #[inline(always)]
    fn fsqrt(e: &mut Env, a: Self) -> Self {
        let r = f64::from_bits(a).sqrt().to_bits();
        if plain(e) && safe(r) {
            if e.sr & IXC == 0 {
                let p = significand(r) as u128 * significand(r) as u128;
                inexact(e, odd_part(p) != odd_part(significand(a) as u128));
            }
            return r;
        }
        slow_sqrt(e, a)
    }
    #[inline(always)]
    fn fma(e: &mut Env, a: Self, b: Self, c: Self) -> Self {
        if plain(e) && e.sr & IXC != 0 {
            let r = f64::from_bits(b).mul_add(f64::from_bits(c), f64::from_bits(a)).to_bits();
            if safe(r) {
                return r;
            }
        }
        slow_fma(e, a, b, c)
    }
}

/// An integer ordered as the number `x`, both zeros alike.
#[inline(always)]
fn key<T: Float>(x: T) -> i64 {
    let m = (x.bits() & !T::SIGN) as i64;
    if x.bits() & T::SIGN != 0 { -m } else { m }
}

#[inline(always)]
fn ordinary<T: Float>(e: &Env, a: T, b: T) -> bool {
    e.cr & T::FLUSH == 0 && !is_nan(a) && !is_nan(b)
}

/// As [`soft::compare`].
#[inline(always)]
pub(super) fn compare<T: Float>(e: &mut Env, a: T, b: T, all: bool) -> Option<std::cmp::Ordering> {
    if ordinary(e, a, b) {
        return Some(key(a).cmp(&key(b)));
    }
    soft::compare(e, a, b, all)
}

#[inline(always)]
fn mask<T: Float>(yes: bool) -> T {
    T::of(if yes { !0 } else { 0 })
}

/// FCMEQ: all ones where equal.
#[inline(always)]
pub(super) fn cmeq<T: Float>(e: &mut Env, a: T, b: T) -> T {
    mask(compare(e, a, b, false).is_some_and(|o| o.is_eq()))
}

#[inline(always)]
pub(super) fn cmge<T: Float>(e: &mut Env, a: T, b: T) -> T {
    mask(compare(e, a, b, true).is_some_and(|o| o.is_ge()))
}

#[inline(always)]
pub(super) fn cmgt<T: Float>(e: &mut Env, a: T, b: T) -> T {
    mask(compare(e, a, b, true).is_some_and(|o| o.is_gt()))
}

macro_rules! extremum {
    ($name:ident, $soft:path, $max:literal) => {
        #[inline(always)]
        pub(crate) fn $name<T: Float>(e: &mut Env, a: T, b: T) -> T {
            if ordinary(e, a, b) && key(a) != key(b) {
                return if (key(a) > key(b)) == $max { a } else { b };
            }
            $soft(e, a, b)
        }
    };
}

extremum!(max, soft::max_min::<T, true>, true);
extremum!(min, soft::max_min::<T, false>, false);
extremum!(maxnm, soft::max_min_num::<T, true>, true);
extremum!(minnm, soft::max_min_num::<T, false>, false);

/// FABD
#[inline(always)]
pub(super) fn abd<T: Arith>(e: &mut Env, a: T, b: T) -> T {
    abs(T::fsub(e, a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers whose sums and products are exact, inexact, tiny, huge.
    fn operand(seed: &mut u64) -> u64 {
        let mut next = || {
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            *seed
        };
        let (kind, x, shift) = (next(), next(), next());
        match kind % 6 {
            0 => x,
            1 => x & !0 << (shift % 64),
            2 => (x as i8 as f64).to_bits(),
            3 => (x & u64::FRAC) | 0x3ff << 52,
            4 => x & (u64::SIGN | u64::FRAC) >> (shift % 52),
            _ => (x & !u64::INF) | (shift % 4 + 0x3fe) << 52,
        }
    }

    /// Every short cut gives the bits and the flags of the integer arithmetic, with IXC clear and set before.
    #[test]
    fn short_cuts_equal_softfloat() {
        type Op<T> = (fn(&mut Env, T, T, T) -> T, fn(&mut Env, T, T, T) -> T);
        fn ops<T: Arith>() -> [Op<T>; 6] {
            [
                (|e, a, b, _| T::fadd(e, a, b), |e, a, b, _| soft::add(e, a, b)),
                (|e, a, b, _| T::fsub(e, a, b), |e, a, b, _| soft::sub(e, a, b)),
                (|e, a, b, _| T::fmul(e, a, b), |e, a, b, _| soft::mul(e, a, b)),
                (|e, a, b, _| T::fdiv(e, a, b), |e, a, b, _| soft::div(e, a, b)),
                (|e, a, _, _| T::fsqrt(e, a), |e, a, _, _| soft::sqrt(e, a)),
                (|e, a, b, c| T::fma(e, a, b, c), |e, a, b, c| soft::mul_add(e, a, b, c)),
            ]
        }
        fn check<T: Arith + std::fmt::LowerHex + std::fmt::Debug>(a: T, b: T, c: T) {
            for (n, (hard, exact)) in ops::<T>().into_iter().enumerate() {
                for sr in [0, IXC] {
                    let (mut x, mut y) = (Env { cr: 0, sr }, Env { cr: 0, sr });
                    let (p, q) = (hard(&mut x, a, b, c), exact(&mut y, a, b, c));
                    assert_eq!((p, x.sr), (q, y.sr), "op {n} of {a:x} {b:x} {c:x}");
                }
            }
        }
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        for _ in 0..200_000 {
            let (a, b, c) = (operand(&mut seed), operand(&mut seed), operand(&mut seed));
            check::<u64>(a, b, c);
            check::<u32>((a >> 32) as u32, (b >> 32) as u32, (c >> 32) as u32);
            check::<u32>(a as u32, b as u32, c as u32);
        }
    }
}
