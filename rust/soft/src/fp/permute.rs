//! Advanced SIMD that moves lanes about: DUP, INS, UMOV, SMOV, TBL, TBX, ZIP, UZP, TRN, EXT, modified immediates.

use super::Handler;
use super::lanes::*;
use super::scalar::expand_imm;
use crate::Regs;

#[inline(always)]
fn keep(i: u32) -> u128 {
    if i >> 30 & 1 == 1 { u128::MAX } else { u64::MAX as u128 }
}

/// "Copy". The lowest set bit of imm5 is the element size, what is above it the index.
pub(super) fn copy(i: u32) -> Option<Handler> {
    let (q, op, imm5, imm4) = (i >> 30 & 1, i >> 29 & 1, i >> 16 & 31, i >> 11 & 15);
    let size = imm5.trailing_zeros();
    if size > 3 {
        return None;
    }
    if op == 1 {
        // INS (element)
        return if q == 1 {
            by_size(size, ins_elem::<u8>, ins_elem::<u16>, ins_elem::<u32>, ins_elem::<u64>)
        } else {
            None
        };
    }
    match imm4 {
        0b0000 => vec_all!(size, q, |r, i| {
            let x = load::<T>(r, rn(i))[index::<T>(i)];
            fill::<T, K>(r, i, x);
        }),
        0b0001 => vec_all!(size, q, |r, i| fill::<T, K>(r, i, r.x[xr(rn(i))] as T)),
        0b0011 if q == 1 => vec_all!(size, 1, |r, i| {
            let mut d = load::<T>(r, rd(i));
            d[index::<T>(i)] = r.x[xr(rn(i))] as T;
            store::<T>(r, rd(i), d);
            let _ = K;
        }),
        // SMOV
        0b0101 if size < 2 + q => Some(match (size, q) {
            (0, 0) => |r, i| r.x[xw(rd(i))] = get::<i8>(r, i) as u32 as u64,
            (1, 0) => |r, i| r.x[xw(rd(i))] = get::<i16>(r, i) as u32 as u64,
            (0, _) => |r, i| r.x[xw(rd(i))] = get::<i8>(r, i) as u64,
            (1, _) => |r, i| r.x[xw(rd(i))] = get::<i16>(r, i) as u64,
            _ => |r, i| r.x[xw(rd(i))] = get::<i32>(r, i) as u64,
        }),
        // UMOV
        0b0111 if (size == 3) == (q == 1) => Some(match size {
            0 => |r, i| r.x[xw(rd(i))] = get::<u8>(r, i) as u64,
            1 => |r, i| r.x[xw(rd(i))] = get::<u16>(r, i) as u64,
            2 => |r, i| r.x[xw(rd(i))] = get::<u32>(r, i) as u64,
            _ => |r, i| r.x[xw(rd(i))] = get::<u64>(r, i),
        }),
        _ => None,
    }
}

fn by_size(size: u32, b: Handler, h: Handler, s: Handler, d: Handler) -> Option<Handler> {
    [b, h, s, d].get(size as usize).copied()
}

/// Lane index in imm5.
#[inline(always)]
fn index<T: Elem>(i: u32) -> usize {
    (i >> 16 & 31) as usize / (T::BITS as usize / 8 * 2)
}

#[inline(always)]
fn get<T: Elem>(r: &Regs, i: u32) -> T {
    load::<T>(r, rn(i))[index::<T>(i)]
}

#[inline(always)]
fn fill<T: Elem, const K: u32>(r: &mut Regs, i: u32, x: T) {
    let mut d = T::zero();
    for n in 0..lanes::<T>(K) {
        d[n] = x;
    }
    store::<T>(r, rd(i), d);
}

fn ins_elem<T: Elem>(r: &mut Regs, i: u32) {
    let from = (i >> 11 & 15) as usize / (T::BITS as usize / 8);
    let mut d = load::<T>(r, rd(i));
    d[index::<T>(i)] = load::<T>(r, rn(i))[from];
    store::<T>(r, rd(i), d);
}

/// Scalar DUP.
pub(super) fn scalar_copy(i: u32) -> Option<Handler> {
    if i >> 29 & 1 == 1 || i >> 11 & 15 != 0 {
        return None;
    }
    by_size(
        (i >> 16 & 31).trailing_zeros(),
        |r, i| r.v[rd(i)] = get::<u8>(r, i) as u128,
        |r, i| r.v[rd(i)] = get::<u16>(r, i) as u128,
        |r, i| r.v[rd(i)] = get::<u32>(r, i) as u128,
        |r, i| r.v[rd(i)] = get::<u64>(r, i) as u128,
    )
}

/// TBL and TBX with a table of `L` registers.
fn table<const L: usize, const EXTEND: bool>(r: &mut Regs, i: u32) {
    let mut bytes = [0u8; 64];
    for n in 0..L {
        bytes[16 * n..16 * n + 16].copy_from_slice(&r.v[(rn(i) + n) & 31].to_le_bytes());
    }
    let index = r.v[rm(i)].to_le_bytes();
    let old = r.v[rd(i)].to_le_bytes();
    let mut d = [0u8; 16];
    for n in 0..16 {
        let from = index[n] as usize;
        let other = if EXTEND { old[n] } else { 0 };
        d[n] = if from < 16 * L { bytes[from & 63] } else { other };
    }
    r.v[rd(i)] = u128::from_le_bytes(d) & keep(i);
}

pub(super) fn table_lookup(i: u32) -> Option<Handler> {
    if i >> 22 & 3 != 0 {
        return None;
    }
    Some(match (i >> 13 & 3, i >> 12 & 1) {
        (0, 0) => table::<1, false>,
        (1, 0) => table::<2, false>,
        (2, 0) => table::<3, false>,
        (_, 0) => table::<4, false>,
        (0, _) => table::<1, true>,
        (1, _) => table::<2, true>,
        (2, _) => table::<3, true>,
        _ => table::<4, true>,
    })
}

/// UZP, TRN and ZIP: `op` 1, 2, 3; `PART` 0 for the first form, 1 for the second.
#[inline(always)]
fn permute<T: Elem, const K: u32, const OP: u32, const PART: usize>(r: &mut Regs, i: u32) {
    let n = load::<T>(r, rn(i));
    let m = load::<T>(r, rm(i));
    let mut d = T::zero();
    let half = lanes::<T>(K) / 2;
    for x in 0..half {
        match OP {
            1 => {
                d[x] = n[2 * x + PART];
                d[half + x] = m[2 * x + PART];
            }
            2 => {
                d[2 * x] = n[2 * x + PART];
                d[2 * x + 1] = m[2 * x + PART];
            }
            _ => {
                d[2 * x] = n[half * PART + x];
                d[2 * x + 1] = m[half * PART + x];
            }
        }
    }
    store::<T>(r, rd(i), d);
}

pub(super) fn zip(i: u32) -> Option<Handler> {
    let (q, size) = (i >> 30 & 1, i >> 22 & 3);
    match i >> 12 & 7 {
        1 => vec_all!(size, q, |r, i| permute::<T, K, 1, 0>(r, i)),
        2 => vec_all!(size, q, |r, i| permute::<T, K, 2, 0>(r, i)),
        3 => vec_all!(size, q, |r, i| permute::<T, K, 3, 0>(r, i)),
        5 => vec_all!(size, q, |r, i| permute::<T, K, 1, 1>(r, i)),
        6 => vec_all!(size, q, |r, i| permute::<T, K, 2, 1>(r, i)),
        7 => vec_all!(size, q, |r, i| permute::<T, K, 3, 1>(r, i)),
        _ => None,
    }
}

pub(super) fn ext(i: u32) -> Option<Handler> {
    if i >> 22 & 3 != 0 {
        return None;
    }
    match i >> 30 & 1 {
        0 if i >> 14 & 1 == 1 => None,
        0 => Some(|r, i| {
            let both = r.v[rn(i)] as u64 as u128 | r.v[rm(i)] << 64;
            r.v[rd(i)] = (both >> (8 * (i >> 11 & 7))) as u64 as u128;
        }),
        _ => Some(|r, i| {
            let n = 8 * (i >> 11 & 15);
            let (low, high) = (r.v[rn(i)], r.v[rm(i)]);
            r.v[rd(i)] = if n == 0 { low } else { low >> n | high << (128 - n) };
        }),
    }
}

/// AdvSIMDExpandImm, without the floating-point forms: 64 bits of it, repeated.
fn expand(cmode: u32, op: u32, imm8: u32) -> u64 {
    let imm = u64::from(imm8);
    let twice = |x: u64| x << 32 | x;
    match cmode {
        0b0000..=0b0111 => twice(imm << (8 * (cmode >> 1))),
        0b1000..=0b1011 => (imm << (8 * (cmode >> 1 & 1))) * 0x0001_0001_0001_0001,
        0b1100 => twice(imm << 8 | 0xff),
        0b1101 => twice(imm << 16 | 0xffff),
        _ if op == 0 => imm * 0x0101_0101_0101_0101,
        _ => (0..8).fold(0, |x, n| x | if imm >> n & 1 == 1 { 0xff << (8 * n) } else { 0 }),
    }
}

#[inline(always)]
fn imm8(i: u32) -> u32 {
    i >> 11 & 0xe0 | i >> 5 & 31
}

#[inline(always)]
fn immediate(i: u32) -> u128 {
    let x = expand(i >> 12 & 15, i >> 29 & 1, imm8(i)) as u128;
    x << 64 | x
}

/// "Modified immediate": MOVI, MVNI, ORR, BIC, FMOV.
pub(super) fn modified_immediate(i: u32) -> Option<Handler> {
    let (q, op, cmode, o2) = (i >> 30 & 1, i >> 29 & 1, i >> 12 & 15, i >> 11 & 1);
    if o2 == 1 {
        return (op == 0 && cmode == 15).then_some(|r, i| {
            let x = expand_imm::<u16>(imm8(i)) as u128;
            r.v[rd(i)] = (x * 0x0001_0001_0001_0001_0001_0001_0001_0001) & keep(i);
        });
    }
    Some(match (cmode, op) {
        (15, 0) => |r, i| {
            let x = expand_imm::<u32>(imm8(i)) as u128;
            r.v[rd(i)] = (x * 0x0000_0001_0000_0001_0000_0001_0000_0001) & keep(i);
        },
        (15, _) if q == 0 => return None,
        (15, _) => |r, i| {
            let x = expand_imm::<u64>(imm8(i)) as u128;
            r.v[rd(i)] = x << 64 | x;
        },
        // Odd modes below 12 combine with what is there.
        (0..=11, 0) if cmode & 1 == 1 => |r, i| r.v[rd(i)] = (r.v[rd(i)] | immediate(i)) & keep(i),
        (0..=11, _) if cmode & 1 == 1 => |r, i| r.v[rd(i)] = r.v[rd(i)] & !immediate(i) & keep(i),
        (14, _) | (_, 0) => |r, i| r.v[rd(i)] = immediate(i) & keep(i),
        _ => |r, i| r.v[rd(i)] = !immediate(i) & keep(i),
    })
}
