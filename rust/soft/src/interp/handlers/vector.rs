//! Loads and stores of SIMD and floating-point registers, and the way to data processing with them.

use super::memory::{address, write_back};
use crate::cpu::Cpu;
use crate::fp;
use crate::interp::op::{P, next};
use crate::mem::As;

/// A part of a vector register, from its low end.
pub(crate) trait Part: Copy {
    fn of(v: u128) -> Self;
    fn v(self) -> u128;
}

macro_rules! parts {
    ($($t:ident)*) => {$(
        impl Part for $t {
            #[inline(always)]
            fn of(v: u128) -> Self { v as $t }
            #[inline(always)]
            fn v(self) -> u128 { self as u128 }
        }
    )*};
}

parts! { u8 u16 u32 u64 u128 }

/// Traps when FP is not enabled. Put before the first FP operation of a block.
pub(crate) fn check(c: &mut Cpu, o: P) {
    if c.fp_trap {
        return trap(c, o);
    }
    next(c, o);
}

/// FP is not enabled: EC 7; CV set, COND always.
pub(crate) fn trap(c: &mut Cpu, o: P) {
    c.raise(o, 7, 1 << 24 | 0xe << 20);
}

/// A data processing instruction: `imm` is the handler, `a` to `d` the encoding.
pub(crate) fn process(c: &mut Cpu, o: P) {
    let insn = u32::from_le_bytes([o.a() as u8, o.b() as u8, o.c() as u8, o.d() as u8]);
    // SAFETY: the decoder puts an `fp::Handler` into `imm` of these operations.
    let f = unsafe { std::mem::transmute::<usize, fp::Handler>(o.imm() as usize) };
    f(&mut c.state.regs, insn);
    next(c, o);
}

/// The same for those that read or write flags.
pub(crate) fn process_flags(c: &mut Cpu, o: P) {
    c.set_nzcv(c.nzcv());
    process(c, o);
}

pub(crate) fn load<T: Part, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    match c.load_fast::<T>(va, false) {
        Some(v) => {
            write_back::<M>(c, o);
            c.set_v(o.a(), v.v());
            next(c, o);
        }
        None => load_slow::<T, M>(c, o),
    }
}

#[cold]
#[inline(never)]
fn load_slow<T: Part, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let size = size_of::<T>();
    let mut buf = [0; 16];
    if c.read_slow(o, va, &mut buf[..size], size as u64, 0, As::Current).is_some() {
        write_back::<M>(c, o);
        c.set_v(o.a(), u128::from_le_bytes(buf));
        next(c, o);
    }
}

pub(crate) fn store<T: Part, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    if c.store_fast::<T>(va, T::of(c.v(o.a())), false) {
        write_back::<M>(c, o);
        return next(c, o);
    }
    store_slow::<T, M>(c, o);
}

#[cold]
#[inline(never)]
fn store_slow<T: Part, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let size = size_of::<T>();
    let bytes = c.v(o.a()).to_le_bytes();
    if c.write_slow(o, va, &bytes[..size], size as u64, 0, As::Current).is_some() {
        write_back::<M>(c, o);
        next(c, o);
    }
}

/// Registers `a` and `d`.
pub(crate) fn load_pair<T: Part, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    match c.load_fast::<[T; 2]>(va, false) {
        Some([x, y]) => {
            write_back::<M>(c, o);
            c.set_v(o.a(), x.v());
            c.set_v(o.d(), y.v());
            next(c, o);
        }
        None => load_pair_slow::<T, M>(c, o),
    }
}

#[cold]
#[inline(never)]
fn load_pair_slow<T: Part, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let size = size_of::<T>();
    let mut buf = [0; 32];
    if c.read_slow(o, va, &mut buf[..2 * size], size as u64, 0, As::Current).is_some() {
        write_back::<M>(c, o);
        c.set_v(o.a(), part(&buf[..size]));
        c.set_v(o.d(), part(&buf[size..2 * size]));
        next(c, o);
    }
}

fn part(bytes: &[u8]) -> u128 {
    let mut v = [0; 16];
    v[..bytes.len()].copy_from_slice(bytes);
    u128::from_le_bytes(v)
}

pub(crate) fn store_pair<T: Part, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let value = [T::of(c.v(o.a())), T::of(c.v(o.d()))];
    if c.store_fast::<[T; 2]>(va, value, false) {
        write_back::<M>(c, o);
        return next(c, o);
    }
    store_pair_slow::<T, M>(c, o);
}

#[cold]
#[inline(never)]
fn store_pair_slow<T: Part, const M: u8>(c: &mut Cpu, o: P) {
    let va = address::<M>(c, o);
    let size = size_of::<T>();
    let mut buf = [0; 32];
    buf[..size].copy_from_slice(&c.v(o.a()).to_le_bytes()[..size]);
    buf[size..2 * size].copy_from_slice(&c.v(o.d()).to_le_bytes()[..size]);
    if c.write_slow(o, va, &buf[..2 * size], size as u64, 0, As::Current).is_some() {
        write_back::<M>(c, o);
        next(c, o);
    }
}

/// What loads and stores of structures of `total` bytes at `va` do to their base.
fn post_index(c: &mut Cpu, i: u32, va: u64, total: u64) {
    let (rn, rm) = (i as usize >> 5 & 31, i as usize >> 16 & 31);
    if i >> 23 & 1 == 1 {
        let step = if rm == 31 { total } else { c.x(rm) };
        c.set_x(rn, va.wrapping_add(step));
    }
}

/// LD1 of `N` registers when the TLB knows the page; `imm` is the encoding.
pub(crate) fn load_whole<T: Part, const N: usize>(c: &mut Cpu, o: P) {
    let i = o.insn();
    let va = c.x(i as usize >> 5 & 31);
    let Some(values) = c.load_fast::<[T; N]>(va, false) else { return multiple(c, o) };
    for (r, value) in values.into_iter().enumerate() {
        c.set_v(i as usize + r, value.v());
    }
    post_index(c, i, va, size_of::<[T; N]>() as u64);
    next(c, o);
}

/// ST1, likewise.
pub(crate) fn store_whole<T: Part, const N: usize>(c: &mut Cpu, o: P) {
    let i = o.insn();
    let va = c.x(i as usize >> 5 & 31);
    let values: [T; N] = std::array::from_fn(|r| T::of(c.v(i as usize + r)));
    if !c.store_fast(va, values, false) {
        return multiple(c, o);
    }
    post_index(c, i, va, size_of::<[T; N]>() as u64);
    next(c, o);
}

/// LD1 to LD4 and ST1 to ST4 with whole registers; `imm` is the encoding.
pub(crate) fn multiple(c: &mut Cpu, o: P) {
    let i = o.insn();
    let (rt, rn) = (i as usize & 31, i as usize >> 5 & 31);
    let esize = 1usize << (i >> 10 & 3);
    let bytes = if i >> 30 & 1 == 1 { 16 } else { 8 };
    // Registers in all, and how many an element structure spans.
    let (regs, span) = match i >> 12 & 15 {
        0b0000 => (4, 4),
        0b0010 => (4, 1),
        0b0100 => (3, 3),
        0b0110 => (3, 1),
        0b0111 => (1, 1),
        0b1000 => (2, 2),
        _ => (2, 1),
    };
    let total = regs * bytes;
    let va = c.x(rn);
    // Where in memory byte `b` of register `r` is.
    let at = |r: usize, b: usize| {
        if span == 1 { r * bytes + b } else { (b / esize * span + r) * esize + b % esize }
    };
    let mut buf = [0u8; 64];
    if i >> 22 & 1 == 1 {
        if c.read_bytes(o, va, &mut buf[..total], esize as u64).is_none() {
            return;
        }
        for r in 0..regs {
            let mut v = [0; 16];
            for (b, byte) in v[..bytes].iter_mut().enumerate() {
                *byte = buf[at(r, b)];
            }
            c.set_v(rt + r, u128::from_le_bytes(v));
        }
    } else {
        for r in 0..regs {
            for (b, byte) in c.v(rt + r).to_le_bytes()[..bytes].iter().enumerate() {
                buf[at(r, b)] = *byte;
            }
        }
        if c.write_bytes(o, va, &buf[..total], esize as u64).is_none() {
            return;
        }
    }
    post_index(c, i, va, total as u64);
    next(c, o);
}

/// LD1 to LD4 and ST1 to ST4 with one lane, and LD1R to LD4R; `imm` is the encoding.
pub(crate) fn single(c: &mut Cpu, o: P) {
    let i = o.insn();
    let (rt, rn) = (i as usize & 31, i as usize >> 5 & 31);
    let (q, s, size) = (i as usize >> 30 & 1, i as usize >> 12 & 1, i as usize >> 10 & 3);
    let opcode = i as usize >> 13 & 7;
    let span = ((opcode & 1) << 1 | (i as usize >> 21 & 1)) + 1;
    let replicate = opcode >> 1 == 3;
    let (esize, lane) = match opcode >> 1 {
        0 => (1, q << 3 | s << 2 | size),
        1 => (2, q << 2 | s << 1 | size >> 1),
        2 if size & 1 == 0 => (4, q << 1 | s),
        2 => (8, q),
        _ => (1 << size, 0),
    };
    let total = span * esize;
    let va = c.x(rn);
    let mut buf = [0u8; 32];
    if i >> 22 & 1 == 1 {
        if c.read_bytes(o, va, &mut buf[..total], esize as u64).is_none() {
            return;
        }
        for r in 0..span {
            let reg = (rt + r) & 31;
            let element = &buf[r * esize..(r + 1) * esize];
            let mut v = c.v(reg).to_le_bytes();
            if replicate {
                v = [0; 16];
                for lane in v[..8 << q].chunks_exact_mut(esize) {
                    lane.copy_from_slice(element);
                }
            } else {
                v[lane * esize..(lane + 1) * esize].copy_from_slice(element);
            }
            c.set_v(reg, u128::from_le_bytes(v));
        }
    } else {
        for r in 0..span {
            let v = c.v(rt + r).to_le_bytes();
            buf[r * esize..(r + 1) * esize].copy_from_slice(&v[lane * esize..(lane + 1) * esize]);
        }
        if c.write_bytes(o, va, &buf[..total], esize as u64).is_none() {
            return;
        }
    }
    post_index(c, i, va, total as u64);
    next(c, o);
}
