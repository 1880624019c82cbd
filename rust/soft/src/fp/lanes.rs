//! Vector registers as lanes, and the loops over them that all vector handlers share.
//!
//! A handler's shape is a constant `K`: 64 or 128 for the vector length in bits, 0 for the scalar forms, which work on
//! the lowest lane. Lanes beyond the shape are written as zero, as the architecture says.

use crate::Regs;

/// Floating-point control and status while an instruction runs.
pub(super) struct Env {
    /// FPCR.
    pub cr: u32,
    /// FPSR, to which the cumulative flags are added.
    pub sr: u32,
}

impl Env {
    /// Sets FPSR.QC, bit 27, when `sat`.
    #[inline(always)]
    pub(super) fn qc(&mut self, sat: bool) {
        self.sr |= u32::from(sat) << 27;
    }
}

/// One lane of a vector register.
pub(super) trait Elem: Copy + Default + PartialEq + PartialOrd + 'static {
    const N: usize;
    const BITS: u32;
    type V: Copy + std::ops::IndexMut<usize, Output = Self>;
    fn split(v: u128) -> Self::V;
    fn join(v: Self::V) -> u128;
    fn zero() -> Self::V;
}

macro_rules! elem {
    ($($t:ty, $n:literal, $b:literal;)*) => {$(
        impl Elem for $t {
            const N: usize = $n;
            const BITS: u32 = $b;
            type V = [$t; $n];
            #[allow(unnecessary_transmutes, reason = "only so for bytes")]
            #[inline(always)]
            fn split(v: u128) -> Self::V {
                // SAFETY: both types are 16 bytes of plain integers.
                unsafe { std::mem::transmute(v) }
            }
            #[allow(unnecessary_transmutes, reason = "only so for bytes")]
            #[inline(always)]
            fn join(v: Self::V) -> u128 {
                // SAFETY: both types are 16 bytes of plain integers.
                unsafe { std::mem::transmute(v) }
            }
            #[inline(always)]
            fn zero() -> Self::V {
                [0; $n]
            }
        }
    )*};
}

elem! {
    u8, 16, 8; u16, 8, 16; u32, 4, 32; u64, 2, 64;
    i8, 16, 8; i16, 8, 16; i32, 4, 32; i64, 2, 64;
}

#[cfg(target_endian = "big")]
compile_error!("lane order is taken from the host's byte order, which must be little-endian");

#[inline(always)]
pub(super) fn rd(i: u32) -> usize {
    (i & 31) as usize
}

#[inline(always)]
pub(super) fn rn(i: u32) -> usize {
    (i >> 5 & 31) as usize
}

#[inline(always)]
pub(super) fn rm(i: u32) -> usize {
    (i >> 16 & 31) as usize
}

#[inline(always)]
pub(super) fn ra(i: u32) -> usize {
    (i >> 10 & 31) as usize
}

/// General register `n` for reading, 31 being zero.
#[inline(always)]
pub(super) fn xr(n: usize) -> usize {
    if n == 31 { Regs::ZERO } else { n }
}

/// General register `n` for writing, 31 being nowhere.
#[inline(always)]
pub(super) fn xw(n: usize) -> usize {
    if n == 31 { Regs::SINK } else { n }
}

#[inline(always)]
pub(super) fn lanes<T: Elem>(k: u32) -> usize {
    if k == 0 { 1 } else { (k / T::BITS) as usize }
}

#[inline(always)]
pub(super) fn env(r: &Regs) -> Env {
    Env { cr: r.fpcr, sr: r.fpsr }
}

/// Vector register `n` as lanes, straight from memory: through a `u128` they would come by way of general registers.
#[inline(always)]
pub(super) fn load<T: Elem>(r: &Regs, n: usize) -> T::V {
    let from: &u128 = &r.v[n];
    // SAFETY: a `T::V` is 16 bytes of plain integers, aligned no stricter than `u128`.
    unsafe { std::ptr::from_ref(from).cast::<T::V>().read() }
}

/// The reverse of [`load`].
#[inline(always)]
pub(super) fn store<T: Elem>(r: &mut Regs, n: usize, v: T::V) {
    let to: &mut u128 = &mut r.v[n];
    // SAFETY: as in `load`.
    unsafe { std::ptr::from_mut(to).cast::<T::V>().write(v) }
}

/// Vd = f(Vn)
#[inline(always)]
pub(super) fn un<T: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, T) -> T) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let mut d = T::zero();
    for x in 0..lanes::<T>(K) {
        d[x] = f(&mut e, n[x]);
    }
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Vd = f(Vn, Vm)
#[inline(always)]
pub(super) fn bin<T: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, T, T) -> T) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let m = load::<T>(r, rm(i));
    let mut d = T::zero();
    for x in 0..lanes::<T>(K) {
        d[x] = f(&mut e, n[x], m[x]);
    }
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Vd = f(Vd, Vn)
#[inline(always)]
pub(super) fn un_acc<T: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, T, T) -> T) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let a = load::<T>(r, rd(i));
    let mut d = T::zero();
    for x in 0..lanes::<T>(K) {
        d[x] = f(&mut e, a[x], n[x]);
    }
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Vd = f(Vd, Vn, Vm)
#[inline(always)]
pub(super) fn tern<T: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, T, T, T) -> T) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let m = load::<T>(r, rm(i));
    let a = load::<T>(r, rd(i));
    let mut d = T::zero();
    for x in 0..lanes::<T>(K) {
        d[x] = f(&mut e, a[x], n[x], m[x]);
    }
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Vd = f(pairs of Vn, then pairs of Vm)
#[inline(always)]
pub(super) fn pair<T: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, T, T) -> T) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let m = load::<T>(r, rm(i));
    let mut d = T::zero();
    let h = lanes::<T>(K) / 2;
    for x in 0..h {
        d[x] = f(&mut e, n[2 * x], n[2 * x + 1]);
        d[h + x] = f(&mut e, m[2 * x], m[2 * x + 1]);
    }
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Vd<0> = f(Vn<0>, Vn<1>)
#[inline(always)]
pub(super) fn pair_scalar<T: Elem>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, T, T) -> T) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let mut d = T::zero();
    d[0] = f(&mut e, n[0], n[1]);
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// The index in the H:L:M bits of a by-element instruction, and the register that it is in.
#[inline(always)]
pub(super) fn indexed<T: Elem>(r: &Regs, i: u32) -> T {
    let (l, m, h) = (i >> 21 & 1, i >> 20 & 1, i >> 11 & 1);
    let (reg, index) = match T::BITS {
        16 => (i >> 16 & 15, h << 2 | l << 1 | m),
        32 => (i >> 16 & 31, h << 1 | l),
        _ => (i >> 16 & 31, h),
    };
    load::<T>(r, reg as usize)[index as usize]
}

/// Vd = f(Vd, Vn, Vm<index>)
#[inline(always)]
pub(super) fn by_elem<T: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, T, T, T) -> T) {
    let mut e = env(r);
    let n = load::<T>(r, rn(i));
    let m: T = indexed(r, i);
    let a = load::<T>(r, rd(i));
    let mut d = T::zero();
    for x in 0..lanes::<T>(K) {
        d[x] = f(&mut e, a[x], n[x], m);
    }
    store::<T>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// First narrow lane that a widening instruction reads: the "2" forms (`K` = 128) take the upper half.
#[inline(always)]
fn upper<W: Elem>(k: u32) -> usize {
    if k == 128 { W::N } else { 0 }
}

/// Wide Vd = f(Vd, Vn, Vm), Vn and Vm narrow. `K` as said at [`upper`]; 0 is the scalar form.
#[inline(always)]
pub(super) fn long<N: Elem, W: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, W, N, N) -> W) {
    let mut e = env(r);
    let n = load::<N>(r, rn(i));
    let m = load::<N>(r, rm(i));
    let a = load::<W>(r, rd(i));
    let mut d = W::zero();
    let off = upper::<W>(K);
    for x in 0..if K == 0 { 1 } else { W::N } {
        d[x] = f(&mut e, a[x], n[off + x], m[off + x]);
    }
    store::<W>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Wide Vd = f(Vd, Vn, Vm<index>), Vn and Vm narrow.
#[inline(always)]
pub(super) fn long_elem<N: Elem, W: Elem, const K: u32>(
    r: &mut Regs,
    i: u32,
    f: impl Fn(&mut Env, W, N, N) -> W,
) {
    let mut e = env(r);
    let n = load::<N>(r, rn(i));
    let m: N = indexed(r, i);
    let a = load::<W>(r, rd(i));
    let mut d = W::zero();
    let off = upper::<W>(K);
    for x in 0..if K == 0 { 1 } else { W::N } {
        d[x] = f(&mut e, a[x], n[off + x], m);
    }
    store::<W>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Wide Vd = f(wide Vn, narrow Vm)
#[inline(always)]
pub(super) fn wide<N: Elem, W: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(W, N) -> W) {
    let n = load::<W>(r, rn(i));
    let m = load::<N>(r, rm(i));
    let mut d = W::zero();
    let off = upper::<W>(K);
    for x in 0..W::N {
        d[x] = f(n[x], m[off + x]);
    }
    store::<W>(r, rd(i), d);
}

/// Wide Vd = f(narrow Vn)
#[inline(always)]
pub(super) fn lengthen<N: Elem, W: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, N) -> W) {
    let mut e = env(r);
    let n = load::<N>(r, rn(i));
    let mut d = W::zero();
    let off = upper::<W>(K);
    for x in 0..W::N {
        d[x] = f(&mut e, n[off + x]);
    }
    store::<W>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Narrow Vd = f(wide Vn): lower half and zeros (`K` = 64), upper half beside what was there (128), or one lane (0).
#[inline(always)]
pub(super) fn narrow<W: Elem, N: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(&mut Env, W) -> N) {
    let mut e = env(r);
    let n = load::<W>(r, rn(i));
    let mut d = if K == 128 { load::<N>(r, rd(i)) } else { N::zero() };
    let off = upper::<W>(K);
    for x in 0..if K == 0 { 1 } else { W::N } {
        d[off + x] = f(&mut e, n[x]);
    }
    store::<N>(r, rd(i), d);
    r.fpsr = e.sr;
}

/// Narrow Vd = f(wide Vn, wide Vm), halves as [`narrow`].
#[inline(always)]
pub(super) fn narrow2<W: Elem, N: Elem, const K: u32>(r: &mut Regs, i: u32, f: impl Fn(W, W) -> N) {
    let n = load::<W>(r, rn(i));
    let m = load::<W>(r, rm(i));
    let mut d = if K == 128 { load::<N>(r, rd(i)) } else { N::zero() };
    let off = upper::<W>(K);
    for x in 0..W::N {
        d[off + x] = f(n[x], m[x]);
    }
    store::<N>(r, rd(i), d);
}

/// Defines, for one arm of a size choice, what its body may name: the lane types `T` (unsigned) and `S` (signed) and
/// the shape `K`.
macro_rules! arm {
    ($u:ty, $s:ty, $k:literal, $body:expr) => {{
        #[allow(dead_code, reason = "not every shape uses it")]
        type T = $u;
        #[allow(dead_code, reason = "not every shape uses it")]
        type S = $s;
        #[allow(dead_code, reason = "not every shape uses it")]
        const K: u32 = $k;
        #[allow(clippy::unnecessary_cast, reason = "only so for some sizes")]
        let h: crate::fp::Handler = $body;
        Some(h)
    }};
}

/// Instantiates a handler by element size (0 to 3) and vector length; 64-bit lanes only in the long form.
macro_rules! vec_all {
    ($size:expr, $q:expr, $body:expr) => {
        match ($size, $q) {
            (0, 0) => arm!(u8, i8, 64, $body),
            (0, _) => arm!(u8, i8, 128, $body),
            (1, 0) => arm!(u16, i16, 64, $body),
            (1, _) => arm!(u16, i16, 128, $body),
            (2, 0) => arm!(u32, i32, 64, $body),
            (2, _) => arm!(u32, i32, 128, $body),
            (3, 1) => arm!(u64, i64, 128, $body),
            _ => None,
        }
    };
}

/// As `vec_all`, without 64-bit lanes.
macro_rules! vec_bhs {
    ($size:expr, $q:expr, $body:expr) => {
        match ($size, $q) {
            (0, 0) => arm!(u8, i8, 64, $body),
            (0, _) => arm!(u8, i8, 128, $body),
            (1, 0) => arm!(u16, i16, 64, $body),
            (1, _) => arm!(u16, i16, 128, $body),
            (2, 0) => arm!(u32, i32, 64, $body),
            (2, _) => arm!(u32, i32, 128, $body),
            _ => None,
        }
    };
}

/// 16- and 32-bit lanes, vector (`$q` 0 or 1) or scalar (2).
macro_rules! any_hs {
    ($size:expr, $q:expr, $body:expr) => {
        match ($size, $q) {
            (1, 0) => arm!(u16, i16, 64, $body),
            (1, 1) => arm!(u16, i16, 128, $body),
            (1, _) => arm!(u16, i16, 0, $body),
            (2, 0) => arm!(u32, i32, 64, $body),
            (2, 1) => arm!(u32, i32, 128, $body),
            (2, _) => arm!(u32, i32, 0, $body),
            _ => None,
        }
    };
}

/// All sizes, vector (`$q` 0 or 1) or scalar (2).
macro_rules! any_all {
    ($size:expr, $q:expr, $body:expr) => {
        match ($size, $q) {
            (0, 2) => arm!(u8, i8, 0, $body),
            (1, 2) => arm!(u16, i16, 0, $body),
            (2, 2) => arm!(u32, i32, 0, $body),
            (3, 2) => arm!(u64, i64, 0, $body),
            (s, q) => vec_all!(s, q, $body),
        }
    };
}

/// All sizes as vectors, and the scalar form (2) of 64-bit lanes only.
macro_rules! any_d {
    ($size:expr, $q:expr, $body:expr) => {
        match ($size, $q) {
            (3, 2) => arm!(u64, i64, 0, $body),
            (_, 2) => None,
            (s, q) => vec_all!(s, q, $body),
        }
    };
}

/// Floating-point lanes: size 1, 2, 3 for half, single, double; vector (`$q` 0 or 1) or scalar (2).
macro_rules! any_fp {
    ($size:expr, $q:expr, $body:expr) => {
        match ($size, $q) {
            (1, 0) => arm!(u16, i16, 64, $body),
            (1, 1) => arm!(u16, i16, 128, $body),
            (1, _) => arm!(u16, i16, 0, $body),
            (2, 0) => arm!(u32, i32, 64, $body),
            (2, 1) => arm!(u32, i32, 128, $body),
            (2, _) => arm!(u32, i32, 0, $body),
            (3, 1) => arm!(u64, i64, 128, $body),
            (3, 2) => arm!(u64, i64, 0, $body),
            _ => None,
        }
    };
}

/// Widening and narrowing: `N`/`NS` the narrow lanes, `W`/`WS` the wide ones, by narrow size; `$q` 2 is the scalar
/// form.
macro_rules! arm_nw {
    ($n:ty, $ns:ty, $w:ty, $ws:ty, $k:literal, $body:expr) => {{
        #[allow(dead_code, reason = "not every shape uses it")]
        type N = $n;
        #[allow(dead_code, reason = "not every shape uses it")]
        type NS = $ns;
        #[allow(dead_code, reason = "not every shape uses it")]
        type W = $w;
        #[allow(dead_code, reason = "not every shape uses it")]
        type WS = $ws;
        #[allow(dead_code, reason = "not every shape uses it")]
        const K: u32 = $k;
        #[allow(clippy::unnecessary_cast, reason = "only so for some sizes")]
        let h: crate::fp::Handler = $body;
        Some(h)
    }};
}

macro_rules! vec_nw {
    ($size:expr, $q:expr, $body:expr) => {
        match ($size, $q) {
            (0, 0) => arm_nw!(u8, i8, u16, i16, 64, $body),
            (0, 1) => arm_nw!(u8, i8, u16, i16, 128, $body),
            (1, 0) => arm_nw!(u16, i16, u32, i32, 64, $body),
            (1, 1) => arm_nw!(u16, i16, u32, i32, 128, $body),
            (2, 0) => arm_nw!(u32, i32, u64, i64, 64, $body),
            (2, 1) => arm_nw!(u32, i32, u64, i64, 128, $body),
            _ => None,
        }
    };
}

macro_rules! any_nw {
    ($size:expr, $q:expr, $body:expr) => {
        match ($size, $q) {
            (0, 2) => arm_nw!(u8, i8, u16, i16, 0, $body),
            (1, 2) => arm_nw!(u16, i16, u32, i32, 0, $body),
            (2, 2) => arm_nw!(u32, i32, u64, i64, 0, $body),
            (s, q) => vec_nw!(s, q, $body),
        }
    };
}

pub(crate) use {any_all, any_d, any_fp, any_hs, any_nw, arm, arm_nw, vec_all, vec_bhs, vec_nw};
