//! Conversions: between formats, to and from integers and fixed point, and to integral values.

use super::lanes::Env;
use super::softfloat::*;

/// FCVT between formats, with the rounding `rm`.
pub(super) fn convert<A: Float, B: Float>(e: &mut Env, rm: u32, x: A) -> B {
    let u = unpack_cv(e, x);
    let alt = B::BITS == 16 && e.cr & AHP != 0;
    match u.class {
        Class::Quiet | Class::Signalling => {
            if alt || u.class == Class::Signalling {
                e.sr |= IOC;
            }
            if alt {
                return zero(u.sign);
            }
            if e.cr & DN != 0 {
                return default_nan();
            }
            let f = x.bits() & A::FRAC;
            let f = if A::F > B::F { f >> (A::F - B::F) } else { f << (B::F - A::F) };
            let s = if u.sign { B::SIGN } else { 0 };
            B::of(s | B::INF | B::QUIET | f)
        }
        Class::Inf if alt => {
            e.sr |= IOC;
            B::of(if u.sign { 2 * B::SIGN - 1 } else { B::SIGN - 1 })
        }
        Class::Inf => infinity(u.sign),
        Class::Zero => zero(u.sign),
        Class::Finite => round_cv(e, rm, u.sign, u.exp, u.sig),
    }
}

/// Magnitude of `u` × 2^`fbits` rounded to an integer, and whether that was inexact; `None` from 2^64 up.
fn integer(u: &Unpacked, fbits: i32, rm: u32) -> Option<(u64, bool)> {
    let exp = u.exp + fbits;
    if exp > 63 {
        return None;
    }
    let (int, rest) = match 63 - exp {
        0 => (u.sig, 0),
        n @ 1..=63 => (u.sig >> n, u.sig << (64 - n)),
        64 => (0, u.sig),
        _ => (0, 1),
    };
    let half = 1 << 63;
    let up = match rm {
        NEAREST => rest > half || (rest == half && int & 1 != 0),
        PLUS => rest != 0 && !u.sign,
        MINUS => rest != 0 && u.sign,
        TIES_AWAY => rest >= half,
        _ => false,
    };
    // No carry out: a 64-bit integer part has no fraction.
    Some((int + u64::from(up), rest != 0))
}

/// FPToFixed: x × 2^fbits as an integer of `bits` bits, saturating; the result is in the low bits.
pub(super) fn to_fixed<T: Float>(e: &mut Env, x: T, fbits: u32, rm: u32, bits: u32, signed: bool) -> u64 {
    let u = unpack(e, x);
    let mask = u64::MAX >> (64 - bits);
    let saturated = |e: &mut Env, low: bool| {
        e.sr |= IOC;
        match (signed, low) {
            (true, true) => 1 << (bits - 1),
            (true, false) => mask >> 1,
            (false, true) => 0,
            (false, false) => mask,
        }
    };
    match u.class {
        Class::Quiet | Class::Signalling => {
            e.sr |= IOC;
            return 0;
        }
        Class::Zero => return 0,
        Class::Inf => return saturated(e, u.sign),
        Class::Finite => {}
    }
    let Some((int, inexact)) = integer(&u, fbits as i32, rm) else {
        return saturated(e, u.sign);
    };
    let limit = match (signed, u.sign) {
        (true, true) => 1 << (bits - 1),
        (true, false) => mask >> 1,
        (false, true) => 0,
        (false, false) => mask,
    };
    if int > limit {
        return saturated(e, u.sign);
    }
    if inexact {
        e.sr |= IXC;
    }
    if u.sign { int.wrapping_neg() & mask } else { int }
}

/// FixedToFP: the integer `x` (sign-extended when `signed`) × 2^−fbits.
pub(super) fn from_fixed<T: Float>(e: &mut Env, x: u64, fbits: u32, signed: bool) -> T {
    let sign = signed && (x as i64) < 0;
    let mag = if sign { x.wrapping_neg() } else { x };
    if mag == 0 {
        return zero(false);
    }
    round(e, sign, 63 - fbits as i32, mag)
}

/// FPRoundInt
pub(super) fn round_int<T: Float>(e: &mut Env, x: T, rm: u32, exact: bool) -> T {
    let u = unpack(e, x);
    match u.class {
        Class::Quiet | Class::Signalling => return quieten(e, x),
        Class::Inf => return x,
        Class::Zero => return zero(u.sign),
        Class::Finite => {}
    }
    if u.exp >= T::F as i32 {
        return x;
    }
    let (int, inexact) = integer(&u, 0, rm).unwrap_or((0, false));
    if inexact && exact {
        e.sr |= IXC;
    }
    if int == 0 { zero(u.sign) } else { round_rm(e, TO_ZERO, u.sign, 63, int) }
}

/// FPRoundIntN: to an integral value that fits `bits` bits, signed.
pub(super) fn round_int_n<T: Float>(e: &mut Env, x: T, rm: u32, bits: u32) -> T {
    let u = unpack(e, x);
    if u.zero() {
        return zero(u.sign);
    }
    let limit = (1u64 << (bits - 1)) - u64::from(!u.sign);
    let int = if u.class == Class::Finite { integer(&u, 0, rm) } else { None };
    match int {
        Some((int, inexact)) if int <= limit => {
            if inexact {
                e.sr |= IXC;
            }
            if int == 0 { zero(u.sign) } else { round_rm(e, TO_ZERO, u.sign, 63, int) }
        }
        _ => {
            e.sr |= IOC;
            T::of(T::SIGN | ((T::BIAS + bits as i32 - 1) as u64) << T::F)
        }
    }
}

/// FPToFixedJS: JavaScript's ToInt32; the result and whether it was exact (PSTATE.Z).
pub(super) fn to_fixed_js(e: &mut Env, x: u64) -> (u32, bool) {
    let u = unpack(e, x);
    match u.class {
        Class::Zero => return (0, x == 0),
        Class::Finite => {}
        _ => {
            e.sr |= IOC;
            return (0, false);
        }
    }
    let (mag, inexact) = match u.exp {
        // The lowest bit of a double's significand is worth 2^(exp − 52): at 2^32 or more nothing is left.
        84.. => (None, false),
        64..=83 => (Some(u.sig << (u.exp - 63)), false),
        _ => match integer(&u, 0, TO_ZERO) {
            Some((int, inexact)) => (Some(int), inexact),
            None => (None, false),
        },
    };
    let big = u.exp > 63;
    let mag = mag.unwrap_or(0);
    let out = if u.sign { mag.wrapping_neg() } else { mag } as u32;
    if big || mag > 0x7fff_ffff + u64::from(u.sign) {
        e.sr |= IOC;
        return (out, false);
    }
    if inexact {
        e.sr |= IXC;
    }
    (out, !inexact)
}
