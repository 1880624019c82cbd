//! Advanced SIMD shifts by immediate and fixed-point conversions, which share their encoding.

use super::Handler;
use super::convert;
use super::lanes::*;
use super::softfloat::{Float, TO_ZERO};
use super::vector_int::Int;
use crate::Regs;

/// immh:immb
#[inline(always)]
fn immhb(i: u32) -> u32 {
    i >> 16 & 0x7f
}

/// The amount of a right shift of lanes of `bits` bits, 1 to `bits`.
#[inline(always)]
fn right(i: u32, bits: u32) -> u32 {
    2 * bits - immhb(i)
}

/// The amount of a left shift, 0 to `bits` − 1.
#[inline(always)]
fn left(i: u32, bits: u32) -> u32 {
    immhb(i) - bits
}

/// Right shifts by 1 to the width, truncating and rounding.
trait Shr: Int {
    fn trunc(self, n: u32) -> Self;
    fn round(self, n: u32) -> Self;
}

macro_rules! shr {
    ($($t:ty)*) => {$(
        impl Shr for $t {
            #[inline(always)]
            fn trunc(self, n: u32) -> Self {
                self >> (n - 1) >> 1
            }
            #[inline(always)]
            fn round(self, n: u32) -> Self {
                let x = self >> (n - 1);
                (x >> 1) + (x & 1)
            }
        }
    )*};
}

shr! { u8 u16 u32 u64 i8 i16 i32 i64 }

/// "Shift by immediate": `q` 0 or 1, or 2 for scalar. immh is not zero in the vector forms.
pub(super) fn decode(i: u32, q: u32) -> Option<Handler> {
    let (u, op, immh) = (i >> 29 & 1, i >> 11 & 31, i >> 19 & 15);
    if immh == 0 {
        return None;
    }
    let size = immh.ilog2();
    match (u, op) {
        (0, 0b00000) => any_d!(size, q, |r, i| {
            let n = right(i, S::BITS);
            un::<S, K>(r, i, |_, x| x.trunc(n));
        }),
        (1, 0b00000) => any_d!(size, q, |r, i| {
            let n = right(i, T::BITS);
            un::<T, K>(r, i, |_, x| x.trunc(n));
        }),
        (0, 0b00010) => any_d!(size, q, |r, i| {
            let n = right(i, S::BITS);
            un_acc::<S, K>(r, i, |_, d, x| d.wrapping_add(x.trunc(n)));
        }),
        (1, 0b00010) => any_d!(size, q, |r, i| {
            let n = right(i, T::BITS);
            un_acc::<T, K>(r, i, |_, d, x| d.wrapping_add(x.trunc(n)));
        }),
        (0, 0b00100) => any_d!(size, q, |r, i| {
            let n = right(i, S::BITS);
            un::<S, K>(r, i, |_, x| x.round(n));
        }),
        (1, 0b00100) => any_d!(size, q, |r, i| {
            let n = right(i, T::BITS);
            un::<T, K>(r, i, |_, x| x.round(n));
        }),
        (0, 0b00110) => any_d!(size, q, |r, i| {
            let n = right(i, S::BITS);
            un_acc::<S, K>(r, i, |_, d, x| d.wrapping_add(x.round(n)));
        }),
        (1, 0b00110) => any_d!(size, q, |r, i| {
            let n = right(i, T::BITS);
            un_acc::<T, K>(r, i, |_, d, x| d.wrapping_add(x.round(n)));
        }),
        // SRI
        (1, 0b01000) => any_d!(size, q, |r, i| {
            let n = right(i, T::BITS);
            let mask = T::MAX.trunc(n);
            un_acc::<T, K>(r, i, |_, d, x| d & !mask | x.trunc(n));
        }),
        (0, 0b01010) => any_d!(size, q, |r, i| {
            let n = left(i, T::BITS);
            un::<T, K>(r, i, |_, x| x << n);
        }),
        // SLI
        (1, 0b01010) => any_d!(size, q, |r, i| {
            let n = left(i, T::BITS);
            let mask = T::MAX << n;
            un_acc::<T, K>(r, i, |_, d, x| d & !mask | x << n);
        }),
        // SQSHLU, SQSHL, UQSHL
        (1, 0b01100) => any_all!(size, q, |r, i| {
            let n = left(i, T::BITS);
            un::<T, K>(r, i, |e, x| T::sat(e, (x as S).wide() << n));
        }),
        (0, 0b01110) => any_all!(size, q, |r, i| {
            let n = left(i, S::BITS);
            un::<S, K>(r, i, |e, x| S::sat(e, x.wide() << n));
        }),
        (1, 0b01110) => any_all!(size, q, |r, i| {
            let n = left(i, T::BITS);
            un::<T, K>(r, i, |e, x| T::sat(e, x.wide() << n));
        }),
        (0, 0b10000) if q < 2 => vec_nw!(size, q, |r, i| {
            let n = right(i, N::BITS);
            narrow::<W, N, K>(r, i, |_, x| x.trunc(n) as N);
        }),
        (0, 0b10001) if q < 2 => vec_nw!(size, q, |r, i| {
            let n = right(i, N::BITS);
            narrow::<W, N, K>(r, i, |_, x| x.round(n) as N);
        }),
        // SQSHRUN, SQRSHRUN
        (1, 0b10000) => any_nw!(size, q, |r, i| {
            let n = right(i, N::BITS);
            narrow::<WS, N, K>(r, i, |e, x| N::sat(e, x.trunc(n).wide()));
        }),
        (1, 0b10001) => any_nw!(size, q, |r, i| {
            let n = right(i, N::BITS);
            narrow::<WS, N, K>(r, i, |e, x| N::sat(e, x.round(n).wide()));
        }),
        (0, 0b10010) => any_nw!(size, q, |r, i| {
            let n = right(i, N::BITS);
            narrow::<WS, NS, K>(r, i, |e, x| NS::sat(e, x.trunc(n).wide()));
        }),
        (1, 0b10010) => any_nw!(size, q, |r, i| {
            let n = right(i, N::BITS);
            narrow::<W, N, K>(r, i, |e, x| N::sat(e, x.trunc(n).wide()));
        }),
        (0, 0b10011) => any_nw!(size, q, |r, i| {
            let n = right(i, N::BITS);
            narrow::<WS, NS, K>(r, i, |e, x| NS::sat(e, x.round(n).wide()));
        }),
        (1, 0b10011) => any_nw!(size, q, |r, i| {
            let n = right(i, N::BITS);
            narrow::<W, N, K>(r, i, |e, x| N::sat(e, x.round(n).wide()));
        }),
        // SSHLL, USHLL
        (0, 0b10100) if q < 2 => vec_nw!(size, q, |r, i| {
            let n = left(i, N::BITS);
            lengthen::<NS, WS, K>(r, i, |_, x| (x as WS) << n);
        }),
        (1, 0b10100) if q < 2 => vec_nw!(size, q, |r, i| {
            let n = left(i, N::BITS);
            lengthen::<N, W, K>(r, i, |_, x| (x as W) << n);
        }),
        (0, 0b11100) => any_fp!(size, q, |r, i| from_fixed::<T, K>(r, i, |x| x as S as i64 as u64, true)),
        (1, 0b11100) => any_fp!(size, q, |r, i| from_fixed::<T, K>(r, i, |x| x as u64, false)),
        (0, 0b11111) => any_fp!(size, q, |r, i| to_fixed::<T, K>(r, i, true)),
        (1, 0b11111) => any_fp!(size, q, |r, i| to_fixed::<T, K>(r, i, false)),
        _ => None,
    }
}

#[inline(always)]
fn from_fixed<T: Float, const K: u32>(r: &mut Regs, i: u32, extend: impl Fn(T) -> u64, signed: bool) {
    let fbits = right(i, T::BITS);
    un::<T, K>(r, i, |e, x| convert::from_fixed(e, extend(x), fbits, signed));
}

#[inline(always)]
fn to_fixed<T: Float, const K: u32>(r: &mut Regs, i: u32, signed: bool) {
    let fbits = right(i, T::BITS);
    un::<T, K>(r, i, |e, x| T::of(convert::to_fixed(e, x, fbits, TO_ZERO, T::BITS, signed)));
}
