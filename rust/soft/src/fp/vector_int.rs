//! Integer Advanced SIMD with operands of one size: "three same", its extra forms, "two-register miscellaneous",
//! "across lanes", scalar pairwise; the scalar forms of each.

use super::Handler;
use super::estimate;
use super::lanes::*;
use crate::Regs;

/// Saturating and rounding arithmetic on lanes, in 128-bit integers so that no size overflows on the way.
pub(super) trait Int: Elem {
    const MIN: i128;
    const MAX: i128;
    fn wide(self) -> i128;
    /// The low bits of `x`.
    fn low(x: i128) -> Self;

    /// `x` brought into range, with QC when that changed it.
    #[inline(always)]
    fn sat(e: &mut Env, x: i128) -> Self {
        e.qc(x < Self::MIN || x > Self::MAX);
        Self::low(x.clamp(Self::MIN, Self::MAX))
    }
}

macro_rules! int {
    ($($t:ty)*) => {$(
        impl Int for $t {
            const MIN: i128 = <$t>::MIN as i128;
            const MAX: i128 = <$t>::MAX as i128;
            #[inline(always)]
            fn wide(self) -> i128 {
                self as i128
            }
            #[inline(always)]
            fn low(x: i128) -> Self {
                x as $t
            }
        }
    )*};
}

int! { u8 u16 u32 u64 i8 i16 i32 i64 }

/// SSHL and its relatives: `x` shifted left by `n`, right when that is negative, rounding and saturating at will.
#[inline(always)]
pub(super) fn shift<T: Int, const ROUND: bool, const SAT: bool>(e: &mut Env, x: T, n: i8) -> T {
    let x = x.wide();
    let n = i32::from(n);
    let out = if n >= 0 {
        if n >= T::BITS as i32 {
            // More than the width: zero, or out of range on the side of the sign.
            if x == 0 || !SAT {
                0
            } else if x > 0 {
                i128::MAX
            } else {
                i128::MIN
            }
        } else {
            x << n
        }
    } else {
        // Further right than the rounding bit changes nothing more.
        let n = n.unsigned_abs().min(T::BITS + 1);
        if ROUND { (x + (1 << (n - 1))) >> n } else { x >> n }
    };
    if SAT { T::sat(e, out) } else { T::low(out) }
}

/// SQDMULH and, rounding, SQRDMULH.
#[inline(always)]
pub(super) fn dmulh<T: Int, const ROUND: bool>(e: &mut Env, a: T, b: T) -> T {
    let round = if ROUND { 1i64 << (T::BITS - 1) } else { 0 };
    let product = (a.wide() as i64 * b.wide() as i64) as i128 * 2;
    T::sat(e, (product + round as i128) >> T::BITS)
}

/// SQRDMLAH and, subtracting, SQRDMLSH.
#[inline(always)]
pub(super) fn rdmlah<T: Int, const SUB: bool>(e: &mut Env, d: T, a: T, b: T) -> T {
    let product = (a.wide() as i64 * b.wide() as i64) as i128 * 2;
    let sum = (d.wide() << T::BITS) + if SUB { -product } else { product };
    T::sat(e, (sum + (1 << (T::BITS - 1))) >> T::BITS)
}

/// Carry-less product of bytes.
fn pmul(a: u8, b: u8) -> u8 {
    (0..8).fold(0, |p, n| if b >> n & 1 == 1 { p ^ a << n } else { p })
}

/// "Three same", integer: `q` 0 or 1, or 2 for scalar.
pub(super) fn three_same(i: u32, q: u32) -> Option<Handler> {
    let (u, size, op) = (i >> 29 & 1, i >> 22 & 3, i >> 11 & 31);
    // SQADD and the like take every size as scalars, SQDMULH halves and words, the rest of the scalars doublewords.
    match (u, op) {
        (0, 0b00001) => any_all!(size, q, |r, i| bin::<S, K>(r, i, |e, a, b| {
            e.qc(a.overflowing_add(b).1);
            a.saturating_add(b)
        })),
        (1, 0b00001) => any_all!(size, q, |r, i| bin::<T, K>(r, i, |e, a, b| {
            let (x, over) = a.overflowing_add(b);
            e.qc(over);
            if over { T::MAX } else { x }
        })),
        (0, 0b00101) => any_all!(size, q, |r, i| bin::<S, K>(r, i, |e, a, b| {
            e.qc(a.overflowing_sub(b).1);
            a.saturating_sub(b)
        })),
        (1, 0b00101) => any_all!(size, q, |r, i| bin::<T, K>(r, i, |e, a, b| {
            let (x, over) = a.overflowing_sub(b);
            e.qc(over);
            if over { 0 } else { x }
        })),
        (0, 0b00110) => any_d!(size, q, |r, i| bin::<S, K>(r, i, |_, a, b| -S::from(a > b))),
        (1, 0b00110) => any_d!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| T::from(a > b).wrapping_neg())),
        (0, 0b00111) => any_d!(size, q, |r, i| bin::<S, K>(r, i, |_, a, b| -S::from(a >= b))),
        (1, 0b00111) => any_d!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| T::from(a >= b).wrapping_neg())),
        (0, 0b01000) => {
            any_d!(size, q, |r, i| bin::<S, K>(r, i, |e, a, b| shift::<S, false, false>(e, a, b as i8)))
        }
        (1, 0b01000) => {
            any_d!(size, q, |r, i| bin::<T, K>(r, i, |e, a, b| shift::<T, false, false>(e, a, b as i8)))
        }
        (0, 0b01001) => {
            any_all!(size, q, |r, i| bin::<S, K>(r, i, |e, a, b| shift::<S, false, true>(e, a, b as i8)))
        }
        (1, 0b01001) => {
            any_all!(size, q, |r, i| bin::<T, K>(r, i, |e, a, b| shift::<T, false, true>(e, a, b as i8)))
        }
        (0, 0b01010) => {
            any_d!(size, q, |r, i| bin::<S, K>(r, i, |e, a, b| shift::<S, true, false>(e, a, b as i8)))
        }
        (1, 0b01010) => {
            any_d!(size, q, |r, i| bin::<T, K>(r, i, |e, a, b| shift::<T, true, false>(e, a, b as i8)))
        }
        (0, 0b01011) => {
            any_all!(size, q, |r, i| bin::<S, K>(r, i, |e, a, b| shift::<S, true, true>(e, a, b as i8)))
        }
        (1, 0b01011) => {
            any_all!(size, q, |r, i| bin::<T, K>(r, i, |e, a, b| shift::<T, true, true>(e, a, b as i8)))
        }
        (0, 0b10000) => any_d!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| a.wrapping_add(b))),
        (1, 0b10000) => any_d!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| a.wrapping_sub(b))),
        (0, 0b10001) => {
            any_d!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| T::from(a & b != 0).wrapping_neg()))
        }
        (1, 0b10001) => any_d!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| T::from(a == b).wrapping_neg())),
        (0, 0b10110) => any_hs!(size, q, |r, i| bin::<S, K>(r, i, dmulh::<S, false>)),
        (1, 0b10110) => any_hs!(size, q, |r, i| bin::<S, K>(r, i, dmulh::<S, true>)),
        _ if q == 2 => None,
        _ => three_same_vector(u, size, op, q),
    }
}

fn three_same_vector(u: u32, size: u32, op: u32, q: u32) -> Option<Handler> {
    match (u, op) {
        (0, 0b00000) => vec_bhs!(size, q, |r, i| bin::<S, K>(r, i, |_, a, b| (a & b) + ((a ^ b) >> 1))),
        (1, 0b00000) => vec_bhs!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| (a & b) + ((a ^ b) >> 1))),
        (0, 0b00010) => vec_bhs!(size, q, |r, i| bin::<S, K>(r, i, |_, a, b| (a | b) - ((a ^ b) >> 1))),
        (1, 0b00010) => vec_bhs!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| (a | b) - ((a ^ b) >> 1))),
        (0, 0b00100) => vec_bhs!(size, q, |r, i| bin::<S, K>(r, i, |_, a, b| {
            (a >> 1).wrapping_sub(b >> 1).wrapping_sub(!a & b & 1)
        })),
        (1, 0b00100) => vec_bhs!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| {
            (a >> 1).wrapping_sub(b >> 1).wrapping_sub(!a & b & 1)
        })),
        (_, 0b00011) => logical(u, size, q),
        (0, 0b01100) => vec_bhs!(size, q, |r, i| bin::<S, K>(r, i, |_, a, b| a.max(b))),
        (1, 0b01100) => vec_bhs!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| a.max(b))),
        (0, 0b01101) => vec_bhs!(size, q, |r, i| bin::<S, K>(r, i, |_, a, b| a.min(b))),
        (1, 0b01101) => vec_bhs!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| a.min(b))),
        (0, 0b01110) => vec_bhs!(size, q, |r, i| bin::<S, K>(r, i, |_, a, b| a.abs_diff(b) as S)),
        (1, 0b01110) => vec_bhs!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| a.abs_diff(b))),
        (0, 0b01111) => {
            vec_bhs!(size, q, |r, i| tern::<S, K>(r, i, |_, d, a, b| { d.wrapping_add(a.abs_diff(b) as S) }))
        }
        (1, 0b01111) => {
            vec_bhs!(size, q, |r, i| tern::<T, K>(r, i, |_, d, a, b| { d.wrapping_add(a.abs_diff(b)) }))
        }
        (0, 0b10010) => {
            vec_bhs!(size, q, |r, i| tern::<T, K>(r, i, |_, d, a, b| { d.wrapping_add(a.wrapping_mul(b)) }))
        }
        (1, 0b10010) => {
            vec_bhs!(size, q, |r, i| tern::<T, K>(r, i, |_, d, a, b| { d.wrapping_sub(a.wrapping_mul(b)) }))
        }
        (0, 0b10011) => vec_bhs!(size, q, |r, i| bin::<T, K>(r, i, |_, a, b| a.wrapping_mul(b))),
        (1, 0b10011) if size == 0 => Some(match q {
            0 => |r, i| bin::<u8, 64>(r, i, |_, a, b| pmul(a, b)),
            _ => |r, i| bin::<u8, 128>(r, i, |_, a, b| pmul(a, b)),
        }),
        (0, 0b10100) => vec_bhs!(size, q, |r, i| pair::<S, K>(r, i, |_, a, b| a.max(b))),
        (1, 0b10100) => vec_bhs!(size, q, |r, i| pair::<T, K>(r, i, |_, a, b| a.max(b))),
        (0, 0b10101) => vec_bhs!(size, q, |r, i| pair::<S, K>(r, i, |_, a, b| a.min(b))),
        (1, 0b10101) => vec_bhs!(size, q, |r, i| pair::<T, K>(r, i, |_, a, b| a.min(b))),
        (0, 0b10111) => vec_all!(size, q, |r, i| pair::<T, K>(r, i, |_, a, b| a.wrapping_add(b))),
        _ => None,
    }
}

fn logical(u: u32, size: u32, q: u32) -> Option<Handler> {
    #[inline(always)]
    fn bits(r: &mut Regs, i: u32, f: impl Fn(u128, u128, u128) -> u128) {
        let mask = if i >> 30 & 1 == 1 { u128::MAX } else { u64::MAX as u128 };
        r.v[rd(i)] = f(r.v[rd(i)], r.v[rn(i)], r.v[rm(i)]) & mask;
    }
    debug_assert!(q < 2);
    Some(match (u, size) {
        (0, 0) => |r, i| bits(r, i, |_, n, m| n & m),
        (0, 1) => |r, i| bits(r, i, |_, n, m| n & !m),
        (0, 2) => |r, i| bits(r, i, |_, n, m| n | m),
        (0, _) => |r, i| bits(r, i, |_, n, m| n | !m),
        (_, 0) => |r, i| bits(r, i, |_, n, m| n ^ m),
        (_, 1) => |r, i| bits(r, i, |d, n, m| m ^ ((m ^ n) & d)),
        (_, 2) => |r, i| bits(r, i, |d, n, m| d ^ ((d ^ n) & m)),
        (_, _) => |r, i| bits(r, i, |d, n, m| d ^ ((d ^ n) & !m)),
    })
}

/// "Three same extra", integer: SQRDMLAH, SQRDMLSH, SDOT, UDOT (FEAT_RDM, FEAT_DotProd).
pub(super) fn three_same_extra(i: u32, q: u32) -> Option<Handler> {
    let (u, size, op) = (i >> 29 & 1, i >> 22 & 3, i >> 11 & 15);
    match (u, op) {
        (1, 0) => any_hs!(size, q, |r, i| tern::<S, K>(r, i, rdmlah::<S, false>)),
        (1, 1) => any_hs!(size, q, |r, i| tern::<S, K>(r, i, rdmlah::<S, true>)),
        (0, 2) if size == 2 && q < 2 => Some(if q == 0 {
            |r, i| tern::<u32, 64>(r, i, |_, d, a, b| sdot(d, a, b))
        } else {
            |r, i| tern::<u32, 128>(r, i, |_, d, a, b| sdot(d, a, b))
        }),
        (1, 2) if size == 2 && q < 2 => Some(if q == 0 {
            |r, i| tern::<u32, 64>(r, i, |_, d, a, b| udot(d, a, b))
        } else {
            |r, i| tern::<u32, 128>(r, i, |_, d, a, b| udot(d, a, b))
        }),
        _ => None,
    }
}

/// Adds the four products of signed bytes.
#[inline(always)]
pub(super) fn sdot(d: u32, a: u32, b: u32) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    (0..4).fold(d, |d, n| d.wrapping_add((i32::from(a[n] as i8) * i32::from(b[n] as i8)) as u32))
}

#[inline(always)]
pub(super) fn udot(d: u32, a: u32, b: u32) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    (0..4).fold(d, |d, n| d.wrapping_add(u32::from(a[n]) * u32::from(b[n])))
}

/// "Two-register miscellaneous", integer: `q` 0 or 1, or 2 for scalar.
pub(super) fn two_misc(i: u32, q: u32) -> Option<Handler> {
    let (u, size, op) = (i >> 29 & 1, i >> 22 & 3, i >> 12 & 31);
    match (u, op) {
        (0, 0b00011) => any_all!(size, q, |r, i| un_acc::<S, K>(r, i, |e, d, n| {
            S::sat(e, d.wide() + (n as T).wide())
        })),
        (1, 0b00011) => any_all!(size, q, |r, i| un_acc::<T, K>(r, i, |e, d, n| {
            T::sat(e, d.wide() + (n as S).wide())
        })),
        (0, 0b00111) => any_all!(size, q, |r, i| un::<S, K>(r, i, |e, x| {
            e.qc(x == S::MIN);
            x.saturating_abs()
        })),
        (1, 0b00111) => any_all!(size, q, |r, i| un::<S, K>(r, i, |e, x| {
            e.qc(x == S::MIN);
            x.saturating_neg()
        })),
        (0, 0b01000) => any_d!(size, q, |r, i| un::<S, K>(r, i, |_, x| -S::from(x > 0))),
        (1, 0b01000) => any_d!(size, q, |r, i| un::<S, K>(r, i, |_, x| -S::from(x >= 0))),
        (0, 0b01001) => any_d!(size, q, |r, i| un::<S, K>(r, i, |_, x| -S::from(x == 0))),
        (1, 0b01001) => any_d!(size, q, |r, i| un::<S, K>(r, i, |_, x| -S::from(x <= 0))),
        (0, 0b01010) => any_d!(size, q, |r, i| un::<S, K>(r, i, |_, x| -S::from(x < 0))),
        (0, 0b01011) => any_d!(size, q, |r, i| un::<S, K>(r, i, |_, x| x.wrapping_abs())),
        (1, 0b01011) => any_d!(size, q, |r, i| un::<S, K>(r, i, |_, x| x.wrapping_neg())),
        (0, 0b10100) => any_nw!(size, q, |r, i| narrow::<WS, NS, K>(r, i, |e, x| NS::sat(e, x.wide()))),
        (1, 0b10100) => any_nw!(size, q, |r, i| narrow::<W, N, K>(r, i, |e, x| N::sat(e, x.wide()))),
        (1, 0b10010) => any_nw!(size, q, |r, i| narrow::<WS, N, K>(r, i, |e, x| N::sat(e, x.wide()))),
        _ if q == 2 => None,
        _ => two_misc_vector(u, size, op, q),
    }
}

fn two_misc_vector(u: u32, size: u32, op: u32, q: u32) -> Option<Handler> {
    match (u, op) {
        // REV64, REV32, REV16
        (0, 0b00000) if size < 3 => vec_bhs!(size, q, |r, i| reverse::<T, K>(r, i, 64)),
        (1, 0b00000) if size < 2 => vec_bhs!(size, q, |r, i| reverse::<T, K>(r, i, 32)),
        (0, 0b00001) if size < 1 => vec_bhs!(size, q, |r, i| reverse::<T, K>(r, i, 16)),
        (0, 0b00010) => vec_nw!(size, q, |r, i| add_pairs::<NS, WS, K>(r, i, |_, a, b| a as WS + b as WS)),
        (1, 0b00010) => vec_nw!(size, q, |r, i| add_pairs::<N, W, K>(r, i, |_, a, b| a as W + b as W)),
        (0, 0b00110) => {
            vec_nw!(size, q, |r, i| add_pairs::<NS, WS, K>(r, i, |d, a, b| d.wrapping_add(a as WS + b as WS)))
        }
        (1, 0b00110) => {
            vec_nw!(size, q, |r, i| add_pairs::<N, W, K>(r, i, |d, a, b| d.wrapping_add(a as W + b as W)))
        }
        (0, 0b00100) => vec_bhs!(size, q, |r, i| un::<S, K>(r, i, |_, x| {
            ((x ^ x >> (S::BITS - 1)).leading_zeros() - 1) as S
        })),
        (1, 0b00100) => vec_bhs!(size, q, |r, i| un::<T, K>(r, i, |_, x| x.leading_zeros() as T)),
        (0, 0b00101) if size == 0 => vec_bhs!(0, q, |r, i| un::<T, K>(r, i, |_, x| x.count_ones() as T)),
        (1, 0b00101) if size == 0 => vec_bhs!(0, q, |r, i| un::<T, K>(r, i, |_, x| !x)),
        (1, 0b00101) if size == 1 => vec_bhs!(0, q, |r, i| un::<T, K>(r, i, |_, x| x.reverse_bits())),
        (0, 0b10010) => vec_nw!(size, q, |r, i| narrow::<W, N, K>(r, i, |_, x| x as N)),
        (1, 0b10011) => vec_nw!(size, q, |r, i| lengthen::<N, W, K>(r, i, |_, x| (x as W) << N::BITS)),
        (0, 0b11100) if size == 2 => Some(match q {
            0 => |r, i| un::<u32, 64>(r, i, |_, x| estimate::urecpe(x)),
            _ => |r, i| un::<u32, 128>(r, i, |_, x| estimate::urecpe(x)),
        }),
        (1, 0b11100) if size == 2 => Some(match q {
            0 => |r, i| un::<u32, 64>(r, i, |_, x| estimate::ursqrte(x)),
            _ => |r, i| un::<u32, 128>(r, i, |_, x| estimate::ursqrte(x)),
        }),
        _ => None,
    }
}

/// Reverses the lanes within containers of `bits` bits.
#[inline(always)]
fn reverse<T: Elem, const K: u32>(r: &mut Regs, i: u32, bits: u32) {
    let n = load::<T>(r, rn(i));
    let mut d = T::zero();
    let flip = (bits / T::BITS - 1) as usize;
    for x in 0..lanes::<T>(K) {
        d[x] = n[x ^ flip];
    }
    store::<T>(r, rd(i), d);
}

/// Wide Vd = f(Vd, pairs of narrow Vn)
#[inline(always)]
fn add_pairs<N: Elem, W: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(W, N, N) -> W) {
    let n = load::<N>(r, rn(i));
    let a = load::<W>(r, rd(i));
    let mut d = W::zero();
    for x in 0..lanes::<W>(K) {
        d[x] = f(a[x], n[2 * x], n[2 * x + 1]);
    }
    store::<W>(r, rd(i), d);
}

/// Vd<0> = f over all lanes of Vn, taken to `W` first.
#[inline(always)]
fn across<T: Elem, W: Elem, const K: u32>(r: &mut Regs, i: u32, to: impl Fn(T) -> W, f: impl Fn(W, W) -> W) {
    let n = load::<T>(r, rn(i));
    let mut sum = to(n[0]);
    for x in 1..lanes::<T>(K) {
        sum = f(sum, to(n[x]));
    }
    let mut d = W::zero();
    d[0] = sum;
    store::<W>(r, rd(i), d);
}

/// "Across lanes", integer.
pub(super) fn across_lanes(i: u32, q: u32) -> Option<Handler> {
    let (u, size, op) = (i >> 29 & 1, i >> 22 & 3, i >> 12 & 31);
    if size == 3 || (size == 2 && q == 0) {
        return None;
    }
    match (u, op) {
        (0, 0b00011) => {
            vec_nw!(size, q, |r, i| across::<NS, WS, K>(r, i, |x| x as WS, |a, b| a.wrapping_add(b)))
        }
        (1, 0b00011) => {
            vec_nw!(size, q, |r, i| across::<N, W, K>(r, i, |x| x as W, |a, b| a.wrapping_add(b)))
        }
        (0, 0b01010) => vec_bhs!(size, q, |r, i| across::<S, S, K>(r, i, |x| x, |a, b| a.max(b))),
        (1, 0b01010) => vec_bhs!(size, q, |r, i| across::<T, T, K>(r, i, |x| x, |a, b| a.max(b))),
        (0, 0b11010) => vec_bhs!(size, q, |r, i| across::<S, S, K>(r, i, |x| x, |a, b| a.min(b))),
        (1, 0b11010) => vec_bhs!(size, q, |r, i| across::<T, T, K>(r, i, |x| x, |a, b| a.min(b))),
        (0, 0b11011) => vec_bhs!(size, q, |r, i| across::<T, T, K>(r, i, |x| x, |a, b| a.wrapping_add(b))),
        _ => None,
    }
}

/// Scalar ADDP.
pub(super) fn scalar_pairwise(i: u32) -> Option<Handler> {
    if i >> 29 & 1 == 0 && i >> 22 & 3 == 3 && i >> 12 & 31 == 0b11011 {
        return Some(|r, i| pair_scalar::<u64>(r, i, |_, a, b| a.wrapping_add(b)));
    }
    None
}
