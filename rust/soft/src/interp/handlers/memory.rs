//! Loads and stores of general registers.

use crate::cpu::Cpu;
use crate::interp::op::{P, next};
use crate::mem::{As, Scalar};

/// How the address is made from base `b`.
pub(crate) const OFFSET: u8 = 0;
/// The base takes the sum, before or after.
pub(crate) const PRE: u8 = 1;
pub(crate) const POST: u8 = 2;
/// Register `c` shifted left by `d`.
pub(crate) const INDEX: u8 = 3;
/// The low half of register `c`, zero-extended or sign-extended, shifted left by `d`.
pub(crate) const UXTW: u8 = 4;
pub(crate) const SXTW: u8 = 7;
/// As OFFSET, with EL0's rights.
pub(crate) const USER: u8 = 5;
/// Relative to the page of PC.
pub(crate) const LITERAL: u8 = 6;

#[inline(always)]
pub(crate) fn address<const M: u8>(c: &Cpu, o: P) -> u64 {
    let base = if M == LITERAL { c.page } else { c.x(o.b()) };
    match M {
        POST => base,
        INDEX => base.wrapping_add(c.x(o.c()) << o.d()),
        UXTW => base.wrapping_add(u64::from(c.x(o.c()) as u32) << o.d()),
        SXTW => base.wrapping_add((c.x(o.c()) as i32 as u64) << o.d()),
        _ => base.wrapping_add(o.imm()),
    }
}

#[inline(always)]
pub(crate) fn write_back<const M: u8>(c: &mut Cpu, o: P) {
    if M == PRE || M == POST {
        c.set_x(o.b(), c.x(o.b()).wrapping_add(o.imm()));
    }
}

/// `T` is what is in memory, `W` (bits) how wide the register is.
#[inline(always)]
fn extended<T: Scalar, const W: u32>(v: T) -> u64 {
    if W == 32 { u64::from(v.u() as u32) } else { v.u() }
}

/// What [`load`] does when the TLB knows the page; false when it does not.
#[inline(always)]
pub(crate) fn load_now<T: Scalar, const W: u32, const M: u8>(c: &mut Cpu, o: P) -> bool {
    let va = address::<M>(c, o);
    let Some(v) = c.load_fast::<T>(va, M == USER) else { return false };
    write_back::<M>(c, o);
    c.set_x(o.a(), extended::<T, W>(v));
    true
}

pub(crate) fn load<T: Scalar, const W: u32, const M: u8>(c: &mut Cpu, o: P) {
    if load_now::<T, W, M>(c, o) { next(c, o) } else { load_slow::<T, W, M>(c, o) }
}

/// ISV, SAS, SSE, SRT and SF of a syndrome.
fn syndrome(size: usize, signed: bool, register: usize, wide: bool) -> u32 {
    let register = if register > 30 { 31 } else { register as u32 };
    1 << 24 | size.trailing_zeros() << 22 | u32::from(signed) << 21 | register << 16 | u32::from(wide) << 15
}

#[cold]
#[inline(never)]
fn load_slow<T: Scalar, const W: u32, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let size = size_of::<T>();
    let signed = T::of(u64::MAX).u() == u64::MAX && size < 8;
    let iss = if M == PRE || M == POST { 0 } else { syndrome(size, signed, o.a(), W == 64) };
    let mut buf = [0; 8];
    let user = if M == USER { As::User } else { As::Current };
    if c.read_slow(o, va, &mut buf[..size], size as u64, iss, user).is_some() {
        write_back::<M>(c, o);
        c.set_x(o.a(), extended::<T, W>(T::of(u64::from_le_bytes(buf))));
        next(c, o);
    }
}

/// What [`store`] does when the TLB knows the page.
#[inline(always)]
pub(crate) fn store_now<T: Scalar, const M: u8>(c: &mut Cpu, o: P) -> bool {
    let va = address::<M>(c, o);
    let done = c.store_fast::<T>(va, T::of(c.x(o.a())), M == USER);
    if done {
        write_back::<M>(c, o);
    }
    done
}

pub(crate) fn store<T: Scalar, const M: u8>(c: &mut Cpu, o: P) {
    if store_now::<T, M>(c, o) { next(c, o) } else { store_slow::<T, M>(c, o) }
}

#[cold]
#[inline(never)]
fn store_slow<T: Scalar, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let size = size_of::<T>();
    let iss = if M == PRE || M == POST { 0 } else { syndrome(size, false, o.a(), size == 8) };
    let bytes = c.x(o.a()).to_le_bytes();
    let user = if M == USER { As::User } else { As::Current };
    if c.write_slow(o, va, &bytes[..size], size as u64, iss, user).is_some() {
        write_back::<M>(c, o);
        next(c, o);
    }
}

/// What [`load_pair`] does when the TLB knows the page.
#[inline(always)]
pub(crate) fn load_pair_now<T: Scalar, const M: u8>(c: &mut Cpu, o: P) -> bool {
    let va = address::<M>(c, o);
    let Some([x, y]) = c.load_fast::<[T; 2]>(va, false) else { return false };
    write_back::<M>(c, o);
    c.set_x(o.a(), x.u());
    c.set_x(o.d(), y.u());
    true
}

/// Registers `a` and `d`. `T` is u32, u64 or i32 (LDPSW).
pub(crate) fn load_pair<T: Scalar, const M: u8>(c: &mut Cpu, o: P) {
    if load_pair_now::<T, M>(c, o) { next(c, o) } else { load_pair_slow::<T, M>(c, o) }
}

#[cold]
#[inline(never)]
fn load_pair_slow<T: Scalar, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let size = size_of::<T>();
    let mut buf = [0; 16];
    if c.read_slow(o, va, &mut buf[..2 * size], size as u64, 0, As::Current).is_some() {
        write_back::<M>(c, o);
        let v = u128::from_le_bytes(buf);
        c.set_x(o.a(), T::of(v as u64).u());
        c.set_x(o.d(), T::of((v >> (8 * size)) as u64).u());
        next(c, o);
    }
}

/// What [`store_pair`] does when the TLB knows the page.
#[inline(always)]
pub(crate) fn store_pair_now<T: Scalar, const M: u8>(c: &mut Cpu, o: P) -> bool {
    let va = address::<M>(c, o);
    let value = [T::of(c.x(o.a())), T::of(c.x(o.d()))];
    let done = c.store_fast::<[T; 2]>(va, value, false);
    if done {
        write_back::<M>(c, o);
    }
    done
}

pub(crate) fn store_pair<T: Scalar, const M: u8>(c: &mut Cpu, o: P) {
    if store_pair_now::<T, M>(c, o) { next(c, o) } else { store_pair_slow::<T, M>(c, o) }
}

#[cold]
#[inline(never)]
fn store_pair_slow<T: Scalar, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let size = size_of::<T>();
    let mask = if size == 8 { u64::MAX } else { 0xffff_ffff };
    let v = u128::from(c.x(o.a()) & mask) | u128::from(c.x(o.d()) & mask) << (8 * size);
    if c.write_slow(o, va, &v.to_le_bytes()[..2 * size], size as u64, 0, As::Current).is_some() {
        write_back::<M>(c, o);
        next(c, o);
    }
}
