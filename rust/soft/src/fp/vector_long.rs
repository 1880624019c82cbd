//! Integer Advanced SIMD that widens or narrows ("three different"), and integer instructions by element.

use super::Handler;
use super::crypto;
use super::lanes::*;
use super::vector_int::{Int, dmulh, rdmlah, sdot, udot};

/// SQDMULL: the doubled product, saturated.
#[inline(always)]
fn dmull<N: Int, W: Int>(e: &mut Env, a: N, b: N) -> W {
    W::sat(e, a.wide() * b.wide() * 2)
}

#[inline(always)]
fn dmlal<N: Int, W: Int>(e: &mut Env, d: W, a: N, b: N) -> W {
    let p: W = dmull(e, a, b);
    W::sat(e, d.wide() + p.wide())
}

#[inline(always)]
fn dmlsl<N: Int, W: Int>(e: &mut Env, d: W, a: N, b: N) -> W {
    let p: W = dmull(e, a, b);
    W::sat(e, d.wide() - p.wide())
}

fn pmull8(a: u8, b: u8) -> u16 {
    (0..8).fold(0, |p, n| if b >> n & 1 == 1 { p ^ (a as u16) << n } else { p })
}

/// "Three different": `q` 0 or 1, or 2 for scalar.
pub(super) fn three_different(i: u32, q: u32) -> Option<Handler> {
    let (u, size, op) = (i >> 29 & 1, i >> 22 & 3, i >> 12 & 15);
    match (u, op) {
        (0, 0b1001) if size > 0 => any_nw!(size, q, |r, i| long::<NS, WS, K>(r, i, dmlal)),
        (0, 0b1011) if size > 0 => any_nw!(size, q, |r, i| long::<NS, WS, K>(r, i, dmlsl)),
        (0, 0b1101) if size > 0 => {
            any_nw!(size, q, |r, i| long::<NS, WS, K>(r, i, |e, _, a, b| dmull(e, a, b)))
        }
        _ if q == 2 => None,
        _ => three_different_vector(u, size, op, q),
    }
}

fn three_different_vector(u: u32, size: u32, op: u32, q: u32) -> Option<Handler> {
    match (u, op) {
        (0, 0b0000) => vec_nw!(size, q, |r, i| long::<NS, WS, K>(r, i, |_, _, a, b| a as WS + b as WS)),
        (1, 0b0000) => vec_nw!(size, q, |r, i| long::<N, W, K>(r, i, |_, _, a, b| a as W + b as W)),
        (0, 0b0001) => vec_nw!(size, q, |r, i| wide::<NS, WS, K>(r, i, |a, b| a.wrapping_add(b as WS))),
        (1, 0b0001) => vec_nw!(size, q, |r, i| wide::<N, W, K>(r, i, |a, b| a.wrapping_add(b as W))),
        (0, 0b0010) => vec_nw!(size, q, |r, i| long::<NS, WS, K>(r, i, |_, _, a, b| a as WS - b as WS)),
        (1, 0b0010) => {
            vec_nw!(size, q, |r, i| long::<N, W, K>(r, i, |_, _, a, b| (a as W).wrapping_sub(b as W)))
        }
        (0, 0b0011) => vec_nw!(size, q, |r, i| wide::<NS, WS, K>(r, i, |a, b| a.wrapping_sub(b as WS))),
        (1, 0b0011) => vec_nw!(size, q, |r, i| wide::<N, W, K>(r, i, |a, b| a.wrapping_sub(b as W))),
        // ADDHN, RADDHN, SUBHN, RSUBHN
        (0, 0b0100) => {
            vec_nw!(size, q, |r, i| narrow2::<W, N, K>(r, i, |a, b| { (a.wrapping_add(b) >> N::BITS) as N }))
        }
        (1, 0b0100) => vec_nw!(size, q, |r, i| narrow2::<W, N, K>(r, i, |a, b| {
            (a.wrapping_add(b).wrapping_add(1 << (N::BITS - 1)) >> N::BITS) as N
        })),
        (0, 0b0110) => {
            vec_nw!(size, q, |r, i| narrow2::<W, N, K>(r, i, |a, b| { (a.wrapping_sub(b) >> N::BITS) as N }))
        }
        (1, 0b0110) => vec_nw!(size, q, |r, i| narrow2::<W, N, K>(r, i, |a, b| {
            (a.wrapping_sub(b).wrapping_add(1 << (N::BITS - 1)) >> N::BITS) as N
        })),
        (0, 0b0101) => vec_nw!(size, q, |r, i| long::<NS, W, K>(r, i, |_, d, a, b| {
            d.wrapping_add(a.abs_diff(b) as W)
        })),
        (1, 0b0101) => vec_nw!(size, q, |r, i| long::<N, W, K>(r, i, |_, d, a, b| {
            d.wrapping_add(a.abs_diff(b) as W)
        })),
        (0, 0b0111) => vec_nw!(size, q, |r, i| long::<NS, W, K>(r, i, |_, _, a, b| a.abs_diff(b) as W)),
        (1, 0b0111) => vec_nw!(size, q, |r, i| long::<N, W, K>(r, i, |_, _, a, b| a.abs_diff(b) as W)),
        (0, 0b1000) => vec_nw!(size, q, |r, i| long::<NS, WS, K>(r, i, |_, d, a, b| {
            d.wrapping_add(a as WS * b as WS)
        })),
        (1, 0b1000) => {
            vec_nw!(size, q, |r, i| long::<N, W, K>(r, i, |_, d, a, b| { d.wrapping_add(a as W * b as W) }))
        }
        (0, 0b1010) => vec_nw!(size, q, |r, i| long::<NS, WS, K>(r, i, |_, d, a, b| {
            d.wrapping_sub(a as WS * b as WS)
        })),
        (1, 0b1010) => {
            vec_nw!(size, q, |r, i| long::<N, W, K>(r, i, |_, d, a, b| { d.wrapping_sub(a as W * b as W) }))
        }
        (0, 0b1100) => vec_nw!(size, q, |r, i| long::<NS, WS, K>(r, i, |_, _, a, b| a as WS * b as WS)),
        (1, 0b1100) => vec_nw!(size, q, |r, i| long::<N, W, K>(r, i, |_, _, a, b| a as W * b as W)),
        (0, 0b1110) if size == 0 => Some(match q {
            0 => |r, i| long::<u8, u16, 64>(r, i, |_, _, a, b| pmull8(a, b)),
            _ => |r, i| long::<u8, u16, 128>(r, i, |_, _, a, b| pmull8(a, b)),
        }),
        (0, 0b1110) if size == 3 => Some(crypto::pmull(q == 1)),
        _ => None,
    }
}

/// Integer by element: `q` 0 or 1, or 2 for scalar.
pub(super) fn by_element(i: u32, q: u32) -> Option<Handler> {
    let (u, size, op) = (i >> 29 & 1, i >> 22 & 3, i >> 12 & 15);
    if size == 0 || size == 3 {
        return None;
    }
    match (u, op) {
        (0, 0b0011) => any_nw!(size, q, |r, i| long_elem::<NS, WS, K>(r, i, dmlal)),
        (0, 0b0111) => any_nw!(size, q, |r, i| long_elem::<NS, WS, K>(r, i, dmlsl)),
        (0, 0b1011) => any_nw!(size, q, |r, i| long_elem::<NS, WS, K>(r, i, |e, _, a, b| dmull(e, a, b))),
        (0, 0b1100) => {
            any_hs!(size, q, |r, i| by_elem::<S, K>(r, i, |e, _, a, b| dmulh::<S, false>(e, a, b)))
        }
        (0, 0b1101) => any_hs!(size, q, |r, i| by_elem::<S, K>(r, i, |e, _, a, b| dmulh::<S, true>(e, a, b))),
        (1, 0b1101) => any_hs!(size, q, |r, i| by_elem::<S, K>(r, i, rdmlah::<S, false>)),
        (1, 0b1111) => any_hs!(size, q, |r, i| by_elem::<S, K>(r, i, rdmlah::<S, true>)),
        _ if q == 2 => None,
        (1, 0b0000) => {
            vec_bhs!(size, q, |r, i| by_elem::<T, K>(r, i, |_, d, a, b| d.wrapping_add(a.wrapping_mul(b))))
        }
        (1, 0b0100) => {
            vec_bhs!(size, q, |r, i| by_elem::<T, K>(r, i, |_, d, a, b| d.wrapping_sub(a.wrapping_mul(b))))
        }
        (0, 0b1000) => vec_bhs!(size, q, |r, i| by_elem::<T, K>(r, i, |_, _, a, b| a.wrapping_mul(b))),
        (0, 0b0010) => vec_nw!(size, q, |r, i| long_elem::<NS, WS, K>(r, i, |_, d, a, b| {
            d.wrapping_add(a as WS * b as WS)
        })),
        (1, 0b0010) => vec_nw!(size, q, |r, i| long_elem::<N, W, K>(r, i, |_, d, a, b| {
            d.wrapping_add(a as W * b as W)
        })),
        (0, 0b0110) => vec_nw!(size, q, |r, i| long_elem::<NS, WS, K>(r, i, |_, d, a, b| {
            d.wrapping_sub(a as WS * b as WS)
        })),
        (1, 0b0110) => vec_nw!(size, q, |r, i| long_elem::<N, W, K>(r, i, |_, d, a, b| {
            d.wrapping_sub(a as W * b as W)
        })),
        (0, 0b1010) => vec_nw!(size, q, |r, i| long_elem::<NS, WS, K>(r, i, |_, _, a, b| a as WS * b as WS)),
        (1, 0b1010) => vec_nw!(size, q, |r, i| long_elem::<N, W, K>(r, i, |_, _, a, b| a as W * b as W)),
        (_, 0b1110) if size == 2 => Some(match (u, q) {
            (0, 0) => |r, i| by_elem::<u32, 64>(r, i, |_, d, a, b| sdot(d, a, b)),
            (0, _) => |r, i| by_elem::<u32, 128>(r, i, |_, d, a, b| sdot(d, a, b)),
            (_, 0) => |r, i| by_elem::<u32, 64>(r, i, |_, d, a, b| udot(d, a, b)),
            _ => |r, i| by_elem::<u32, 128>(r, i, |_, d, a, b| udot(d, a, b)),
        }),
        _ => None,
    }
}
