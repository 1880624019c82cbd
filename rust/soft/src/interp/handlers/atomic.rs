//! Exclusives, atomics, acquire and release.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::memory::{OFFSET, address};
use crate::cpu::Cpu;
use crate::interp::op::{P, next};
use crate::mem::{As, Kind, Scalar};
use crate::state::{Monitor, PAIR_OF_WORDS};

/// An integer that the host can change atomically.
pub(crate) trait Atomic: Scalar + PartialEq {
    /// # Safety
    /// `p` is aligned and points at mapped guest memory.
    unsafe fn load(p: *mut Self) -> Self;
    /// Stores `new` where `old` is, and gives what was there.
    /// # Safety
    /// As for `load`, and writable.
    unsafe fn cas(p: *mut Self, old: Self, new: Self) -> Self;
    /// Applies operation `op` (LDADD, LDCLR, LDEOR, LDSET, LDSMAX, LDSMIN, LDUMAX, LDUMIN, then SWP).
    /// # Safety
    /// As for `cas`.
    unsafe fn rmw(p: *mut Self, op: u8, v: Self) -> Self;
}

macro_rules! atomics {
    ($($t:ident $i:ident $a:ident)*) => {$(
        impl Atomic for $t {
            unsafe fn load(p: *mut Self) -> Self {
                // SAFETY: the caller's.
                unsafe { $a::from_ptr(p) }.load(Ordering::SeqCst)
            }
            unsafe fn cas(p: *mut Self, old: Self, new: Self) -> Self {
                // SAFETY: the caller's.
                let a = unsafe { $a::from_ptr(p) };
                a.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|v| v)
            }
            #[inline(always)]
            unsafe fn rmw(p: *mut Self, op: u8, v: Self) -> Self {
                // SAFETY: the caller's.
                let a = unsafe { $a::from_ptr(p) };
                let o = Ordering::SeqCst;
                let update = |f: fn($t, $t) -> $t| a.fetch_update(o, o, |x| Some(f(x, v))).unwrap_or_else(|x| x);
                match op {
                    0 => a.fetch_add(v, o),
                    1 => a.fetch_and(!v, o),
                    2 => a.fetch_xor(v, o),
                    3 => a.fetch_or(v, o),
                    4 => update(|x, v| (x as $i).max(v as $i) as $t),
                    5 => update(|x, v| (x as $i).min(v as $i) as $t),
                    6 => a.fetch_max(v, o),
                    7 => a.fetch_min(v, o),
                    _ => a.swap(v, o),
                }
            }
        }
    )*};
}

atomics! { u8 i8 AtomicU8 u16 i16 AtomicU16 u32 i32 AtomicU32 u64 i64 AtomicU64 }

/// Compares and exchanges 16 aligned bytes; gives what was there.
///
/// # Safety
/// `p` is aligned to 16 bytes and points at mapped, writable guest memory.
unsafe fn cas128(p: *mut u8, old: u128, new: u128) -> u128 {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("cmpxchg16b") {
        // SAFETY: the feature is there; the rest is the caller's.
        return unsafe { cas128_x86(p, old, new) };
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: the caller's.
        unsafe { cas128_arm64(p, old, new) }
    }
    #[cfg(not(target_arch = "aarch64"))]
    {
        cas128_locked(p, old, new)
    }
}

/// # Safety
/// As for [`cas128`].
#[cfg(target_arch = "aarch64")]
unsafe fn cas128_arm64(p: *mut u8, old: u128, new: u128) -> u128 {
    let (lo, hi): (u64, u64);
    // SAFETY: the memory is there and may be written, by the caller. What is loaded is one value only once a store
    // after it has succeeded, which therefore comes in any case.
    unsafe {
        core::arch::asm!(
            "2:",
            "ldaxp {lo}, {hi}, [{p}]",
            "cmp {lo}, {old_lo}",
            "ccmp {hi}, {old_hi}, #0, eq",
            "csel {a}, {new_lo}, {lo}, eq",
            "csel {b}, {new_hi}, {hi}, eq",
            "stlxp {failed:w}, {a}, {b}, [{p}]",
            "cbnz {failed:w}, 2b",
            p = in(reg) p,
            old_lo = in(reg) old as u64,
            old_hi = in(reg) (old >> 64) as u64,
            new_lo = in(reg) new as u64,
            new_hi = in(reg) (new >> 64) as u64,
            lo = out(reg) lo,
            hi = out(reg) hi,
            a = out(reg) _,
            b = out(reg) _,
            failed = out(reg) _,
            options(nostack),
        );
    }
    u128::from(lo) | u128::from(hi) << 64
}

/// # Safety
/// As for [`cas128`], on a processor with CMPXCHG16B.
#[cfg(target_arch = "x86_64")]
unsafe fn cas128_x86(p: *mut u8, old: u128, new: u128) -> u128 {
    let (lo, hi): (u64, u64);
    // SAFETY: the instruction is there and the memory too, by the caller; RBX, which the compiler keeps for itself, is
    // put back.
    unsafe {
        core::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") p,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => lo,
            inout("rdx") (old >> 64) as u64 => hi,
            options(nostack),
        );
    }
    u128::from(lo) | u128::from(hi) << 64
}

/// For hosts without such an instruction within reach: atomic among those who come here, and each half by itself.
#[cfg(not(target_arch = "aarch64"))]
fn cas128_locked(p: *mut u8, old: u128, new: u128) -> u128 {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = supermachine_support::lock(&LOCK);
    let p = p.cast::<u64>();
    // SAFETY: `cas128`'s caller vouches for 16 aligned bytes.
    let (lo, hi) = unsafe { (AtomicU64::from_ptr(p), AtomicU64::from_ptr(p.add(1))) };
    let was = u128::from(lo.load(Ordering::SeqCst)) | u128::from(hi.load(Ordering::SeqCst)) << 64;
    if was == old {
        lo.store(new as u64, Ordering::SeqCst);
        hi.store((new >> 64) as u64, Ordering::SeqCst);
    }
    was
}

#[inline(always)]
fn place<T>(c: &mut Cpu, o: P, va: u64, kind: Kind) -> Option<*mut T> {
    let size = size_of::<T>() as u64;
    if va & (size - 1) == 0 {
        let p = if kind != Kind::Load { c.probe_write::<T>(va, false) } else { c.probe_read::<T>(va, false) };
        if p.is_some() {
            return p;
        }
    }
    c.atomic_ptr(o, va, size, kind).map(|p| p.cast())
}

/// LDAR, LDAPR, LDAPUR: address `b` plus `imm`. `S` is the type that extends, `W` the register's width.
pub(crate) fn load_acquire<T: Scalar, const W: u32>(c: &mut Cpu, o: P) {
    let va = address::<OFFSET>(c, o);
    let size = size_of::<T>() as u64;
    // A translated STLR before it is the host's, which orders no plain load behind it.
    #[cfg(target_arch = "aarch64")]
    fence(Ordering::SeqCst);
    let v = match c.load_fast::<T>(va, false) {
        Some(v) if va & (size - 1) == 0 => v,
        _ => {
            c.sync(o);
            if !c.check_align(va, size, false, true) {
                return;
            }
            let mut buf = [0; 8];
            let iss = 1 << 24
                | (size.trailing_zeros() << 22)
                | (o.a() as u32).min(31) << 16
                | u32::from(W == 64) << 15
                | 1 << 14;
            if c.read_slow(o, va, &mut buf[..size as usize], size, iss, As::Current).is_none() {
                return;
            }
            T::of(u64::from_le_bytes(buf))
        }
    };
    fence(Ordering::Acquire);
    c.set_x(o.a(), if W == 32 { u64::from(v.u() as u32) } else { v.u() });
    next(c, o);
}

/// STLR, STLUR. The fence behind orders it before a later load-acquire.
pub(crate) fn store_release<T: Scalar>(c: &mut Cpu, o: P) {
    let va = address::<OFFSET>(c, o);
    let size = size_of::<T>() as u64;
    fence(Ordering::Release);
    if va & (size - 1) != 0 || !c.store_fast::<T>(va, T::of(c.x(o.a())), false) {
        c.sync(o);
        if !c.check_align(va, size, true, true) {
            return;
        }
        let iss = 1 << 24
            | (size.trailing_zeros() << 22)
            | (o.a() as u32).min(31) << 16
            | u32::from(size == 8) << 15
            | 1 << 14;
        let bytes = c.x(o.a()).to_le_bytes();
        if c.write_slow(o, va, &bytes[..size as usize], size, iss, As::Current).is_none() {
            return;
        }
    }
    fence(Ordering::SeqCst);
    next(c, o);
}

pub(crate) fn load_exclusive<T: Atomic>(c: &mut Cpu, o: P) {
    let va = c.x(o.b());
    let Some(p) = place::<T>(c, o, va, Kind::Load) else { return };
    // SAFETY: `place` gives aligned, mapped memory.
    let v = unsafe { T::load(p) }.u();
    c.state.monitor = Monitor { size: size_of::<T>() as u64, va, value: [v, 0] };
    c.set_x(o.a(), v);
    next(c, o);
}

/// Status in `c`.
pub(crate) fn store_exclusive<T: Atomic>(c: &mut Cpu, o: P) {
    let va = c.x(o.b());
    let m = std::mem::take(&mut c.state.monitor);
    let mut failed = 1;
    if m.size == size_of::<T>() as u64 && m.va == va {
        let Some(p) = place::<T>(c, o, va, Kind::Store) else { return };
        let old = T::of(m.value[0]);
        // SAFETY: `place` gives aligned, mapped, writable memory.
        failed = u64::from(unsafe { T::cas(p, old, T::of(c.x(o.a()))) } != old);
    }
    c.set_x(o.c(), failed);
    next(c, o);
}

/// LDXP: registers `a` and `d`.
pub(crate) fn load_exclusive_pair<const WIDE: bool>(c: &mut Cpu, o: P) {
    let va = c.x(o.b());
    let value = if WIDE {
        let Some(p) = place::<u128>(c, o, va, Kind::Load) else { return };
        let p = p.cast::<u64>();
        // Each half by itself: the store notices when they did not belong together.
        // SAFETY: `place` gives 16 aligned, mapped bytes.
        unsafe { [u64::load(p), u64::load(p.add(1))] }
    } else {
        let Some(p) = place::<u64>(c, o, va, Kind::Load) else { return };
        // SAFETY: `place` gives aligned, mapped memory.
        let v = unsafe { u64::load(p) };
        [v & 0xffff_ffff, v >> 32]
    };
    c.state.monitor = Monitor { size: if WIDE { 16 } else { PAIR_OF_WORDS }, va, value };
    c.set_x(o.a(), value[0]);
    c.set_x(o.d(), value[1]);
    next(c, o);
}

pub(crate) fn store_exclusive_pair<const WIDE: bool>(c: &mut Cpu, o: P) {
    let va = c.x(o.b());
    let m = std::mem::take(&mut c.state.monitor);
    let mut failed = 1;
    if m.va == va && m.size == if WIDE { 16 } else { PAIR_OF_WORDS } {
        let (x, y) = (c.x(o.a()), c.x(o.d()));
        if WIDE {
            let Some(p) = place::<u128>(c, o, va, Kind::Store) else { return };
            let old = u128::from(m.value[0]) | u128::from(m.value[1]) << 64;
            // SAFETY: `place` gives 16 aligned, mapped, writable bytes.
            let was = unsafe { cas128(p.cast(), old, u128::from(x) | u128::from(y) << 64) };
            failed = u64::from(was != old);
        } else {
            let Some(p) = place::<u64>(c, o, va, Kind::Store) else { return };
            let old = m.value[0] | m.value[1] << 32;
            // SAFETY: `place` gives aligned, mapped, writable memory.
            failed = u64::from(unsafe { u64::cas(p, old, u64::from(x as u32) | y << 32) } != old);
        }
    }
    c.set_x(o.c(), failed);
    next(c, o);
}

/// LDADD and its kind, SWP: operation `d`, operand `c`, result to `a`.
pub(crate) fn rmw<T: Atomic, const OP: u8>(c: &mut Cpu, o: P) {
    let va = c.x(o.b());
    let Some(p) = place::<T>(c, o, va, Kind::Both) else { return };
    // SAFETY: `place` gives aligned, mapped, writable memory.
    let old = unsafe { T::rmw(p, OP, T::of(c.x(o.c()))) };
    c.set_x(o.a(), old.u());
    next(c, o);
}

/// CAS: compares with `c`, which takes what was there; stores `a`.
pub(crate) fn cas<T: Atomic>(c: &mut Cpu, o: P) {
    let va = c.x(o.b());
    let Some(p) = place::<T>(c, o, va, Kind::Both) else { return };
    // SAFETY: `place` gives aligned, mapped, writable memory.
    let was = unsafe { T::cas(p, T::of(c.x(o.c())), T::of(c.x(o.a()))) };
    // The register compared with is never the discard register, and reading 31 as zero is the decoder's affair.
    c.set_x(o.d(), was.u());
    next(c, o);
}

/// CASP: compares with the pair from `c` (result to `d` and the next), stores the pair from `a`.
pub(crate) fn casp<const WIDE: bool>(c: &mut Cpu, o: P) {
    let va = c.x(o.b());
    let (s, t) = (o.c(), o.a());
    let pair = |c: &Cpu, n: usize| -> [u64; 2] {
        // Register 31 as the second of a pair is the zero register.
        [c.x(n), if n == 30 { 0 } else { c.x(n + 1) }]
    };
    let (old, new) = (pair(c, s), pair(c, t));
    let was = if WIDE {
        let Some(p) = place::<u128>(c, o, va, Kind::Both) else { return };
        let join = |v: [u64; 2]| u128::from(v[0]) | u128::from(v[1]) << 64;
        // SAFETY: `place` gives 16 aligned, mapped, writable bytes.
        let was = unsafe { cas128(p.cast(), join(old), join(new)) };
        [was as u64, (was >> 64) as u64]
    } else {
        let Some(p) = place::<u64>(c, o, va, Kind::Both) else { return };
        let join = |v: [u64; 2]| u64::from(v[0] as u32) | v[1] << 32;
        // SAFETY: `place` gives aligned, mapped, writable memory.
        let was = unsafe { u64::cas(p, join(old), join(new)) };
        [was & 0xffff_ffff, was >> 32]
    };
    c.set_x(s, was[0]);
    if s != 30 {
        c.set_x(s + 1, was[1]);
    }
    next(c, o);
}

pub(crate) fn clrex(c: &mut Cpu, o: P) {
    c.state.monitor.size = 0;
    next(c, o);
}

/// DMB.
pub(crate) fn dmb(c: &mut Cpu, o: P) {
    fence(Ordering::SeqCst);
    next(c, o);
}

/// DMB ISHLD: earlier loads before what follows.
pub(crate) fn dmb_ld(c: &mut Cpu, o: P) {
    fence(Ordering::Acquire);
    next(c, o);
}

/// DMB ISHST: earlier stores before later ones.
pub(crate) fn dmb_st(c: &mut Cpu, o: P) {
    fence(Ordering::Release);
    next(c, o);
}
