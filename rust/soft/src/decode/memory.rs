//! Loads and stores (C4.1.96).

use super::{Block, Decoded, END, ON, bits, d, s, sext, z};
use crate::exec::memory::{INDEX, LITERAL, OFFSET, POST, PRE, SXTW, USER, UXTW};
use crate::exec::{alu, atomic as at, memory as x, vector as v};
use crate::op::Handler;

macro_rules! by_mode {
    ($mode:expr, $m:ident => $f:expr) => {
        match $mode {
            OFFSET => {
                const $m: u8 = OFFSET;
                $f
            }
            PRE => {
                const $m: u8 = PRE;
                $f
            }
            POST => {
                const $m: u8 = POST;
                $f
            }
            INDEX => {
                const $m: u8 = INDEX;
                $f
            }
            UXTW => {
                const $m: u8 = UXTW;
                $f
            }
            SXTW => {
                const $m: u8 = SXTW;
                $f
            }
            USER => {
                const $m: u8 = USER;
                $f
            }
            _ => {
                const $m: u8 = LITERAL;
                $f
            }
        }
    };
}

/// The handler for a general register, `None` for a prefetch.
fn general(size: u32, opc: u32, mode: u8) -> Option<Option<Handler>> {
    let f: Handler = by_mode!(mode, M => match (size, opc) {
        (0, 0) => x::store::<u8, M>,
        (1, 0) => x::store::<u16, M>,
        (2, 0) => x::store::<u32, M>,
        (3, 0) => x::store::<u64, M>,
        (0, 1) => x::load::<u8, 32, M>,
        (1, 1) => x::load::<u16, 32, M>,
        (2, 1) => x::load::<u32, 32, M>,
        (3, 1) => x::load::<u64, 64, M>,
        (0, 2) => x::load::<i8, 64, M>,
        (1, 2) => x::load::<i16, 64, M>,
        (2, 2) => x::load::<i32, 64, M>,
        (0, 3) => x::load::<i8, 32, M>,
        (1, 3) => x::load::<i16, 32, M>,
        (3, 2) => return Some(None),
        _ => return None,
    });
    Some(Some(f))
}

fn vector(size: u32, opc: u32, mode: u8) -> Option<Handler> {
    Some(by_mode!(mode, M => match (size, opc) {
        (0, 0) => v::store::<u8, M>,
        (1, 0) => v::store::<u16, M>,
        (2, 0) => v::store::<u32, M>,
        (3, 0) => v::store::<u64, M>,
        (0, 2) => v::store::<u128, M>,
        (0, 1) => v::load::<u8, M>,
        (1, 1) => v::load::<u16, M>,
        (2, 1) => v::load::<u32, M>,
        (3, 1) => v::load::<u64, M>,
        (0, 3) => v::load::<u128, M>,
        _ => return None,
    }))
}

/// Picks a handler by access size.
macro_rules! sized {
    ($size:expr, $f:ident $(, $k:expr)*) => {
        match $size {
            0 => at::$f::<u8 $(, $k)*>,
            1 => at::$f::<u16 $(, $k)*>,
            2 => at::$f::<u32 $(, $k)*>,
            _ => at::$f::<u64 $(, $k)*>,
        }
    };
}

impl Block {
    pub(super) fn load_store(&mut self, i: u32) -> Decoded {
        let is_vector = bits(i, 26, 26) == 1;
        match (bits(i, 29, 28), bits(i, 24, 24)) {
            (0, 0) if is_vector => self.structures(i, v::multiple),
            (0, 1) if is_vector => self.structures(i, v::single),
            (0, 0) => self.exclusive(i),
            (1, 0) => self.literal(i, is_vector),
            (1, 1) => self.release_unscaled(i, is_vector),
            (2, _) => self.pair(i, is_vector),
            (3, 1) => {
                let (size, opc) = (bits(i, 31, 30), bits(i, 23, 22));
                let scale = if is_vector && opc >> 1 == 1 { 4 } else { size };
                self.one(i, is_vector, OFFSET, 0, 0, u64::from(bits(i, 21, 10)) << scale)
            }
            (3, _) if bits(i, 21, 21) == 0 => {
                let imm = sext(bits(i, 20, 12), 9) as u64;
                let mode = match bits(i, 11, 10) {
                    0 => OFFSET,
                    1 => POST,
                    2 if is_vector => return None,
                    2 => USER,
                    _ => PRE,
                };
                self.one(i, is_vector, mode, 0, 0, imm)
            }
            (3, _) if bits(i, 11, 10) == 2 => {
                let (size, opc, option) = (bits(i, 31, 30), bits(i, 23, 22), bits(i, 15, 13));
                if option & 2 == 0 {
                    return None;
                }
                let scale = if is_vector && opc >> 1 == 1 { 4 } else { size };
                let shift = if bits(i, 12, 12) == 1 { scale as u8 } else { 0 };
                let mode = [UXTW, INDEX, SXTW, INDEX][(option >> 1 & 2 | option & 1) as usize];
                self.one(i, is_vector, mode, z(i >> 16), shift, u64::from(option))
            }
            (3, _) if bits(i, 11, 10) == 0 && !is_vector => self.atomic(i),
            _ => None,
        }
    }

    fn one(&mut self, i: u32, is_vector: bool, mode: u8, c: u8, shift: u8, imm: u64) -> Decoded {
        let (size, opc, rn) = (bits(i, 31, 30), bits(i, 23, 22), s(i >> 5));
        if is_vector {
            let f = vector(size, opc, mode)?;
            self.fp();
            self.op(f, i as u8 & 31, rn, c, shift, imm);
            return ON;
        }
        match general(size, opc, mode)? {
            // At EL0 the rights are the current ones, so that the mode makes no difference there.
            Some(f) => {
                let rt = if opc == 0 { z(i) } else { d(i) };
                self.op(f, rt, rn, c, shift, imm);
            }
            None if mode == PRE || mode == POST || mode == USER => return None,
            None => self.op(alu::nop, 0, 0, 0, 0, 0),
        }
        ON
    }

    fn literal(&mut self, i: u32, is_vector: bool) -> Decoded {
        let imm = (i64::from(self.off) + sext(bits(i, 23, 5), 19) * 4) as u64;
        match (bits(i, 31, 30), is_vector) {
            (0, false) => self.op(x::load::<u32, 32, LITERAL>, d(i), 0, 0, 0, imm),
            (1, false) => self.op(x::load::<u64, 64, LITERAL>, d(i), 0, 0, 0, imm),
            (2, false) => self.op(x::load::<i32, 64, LITERAL>, d(i), 0, 0, 0, imm),
            (3, true) => return None,
            (_, false) => self.op(alu::nop, 0, 0, 0, 0, 0),
            (size, true) => {
                self.fp();
                let f: Handler = match size {
                    0 => v::load::<u32, LITERAL>,
                    1 => v::load::<u64, LITERAL>,
                    _ => v::load::<u128, LITERAL>,
                };
                self.op(f, i as u8 & 31, 0, 0, 0, imm);
            }
        }
        ON
    }

    fn pair(&mut self, i: u32, is_vector: bool) -> Decoded {
        let (opc, load) = (bits(i, 31, 30), bits(i, 22, 22) == 1);
        // The non-temporal form has no write-back.
        let mode = match bits(i, 24, 23) {
            0 | 2 => OFFSET,
            1 => POST,
            _ => PRE,
        };
        let (rt, rn, rt2) = (i, s(i >> 5), i >> 10);
        let imm = sext(bits(i, 21, 15), 7);
        if opc == 3 || (bits(i, 24, 23) == 0 && opc == 1 && !is_vector) {
            return None;
        }
        if is_vector {
            let f: Handler = by_mode!(mode, M => match (opc, load) {
                (0, false) => v::store_pair::<u32, M>,
                (1, false) => v::store_pair::<u64, M>,
                (_, false) => v::store_pair::<u128, M>,
                (0, true) => v::load_pair::<u32, M>,
                (1, true) => v::load_pair::<u64, M>,
                (_, true) => v::load_pair::<u128, M>,
            });
            self.fp();
            self.op(f, rt as u8 & 31, rn, 0, rt2 as u8 & 31, (imm << (2 + opc)) as u64);
            return ON;
        }
        let scale = if opc == 2 { 3 } else { 2 };
        let f: Handler = by_mode!(mode, M => match (opc, load) {
            (0, false) => x::store_pair::<u32, M>,
            (2, false) => x::store_pair::<u64, M>,
            (0, true) => x::load_pair::<u32, M>,
            (1, true) => x::load_pair::<i32, M>,
            (2, true) => x::load_pair::<u64, M>,
            _ => return None,
        });
        let (a, b) = if load { (d(rt), d(rt2)) } else { (z(rt), z(rt2)) };
        self.op(f, a, rn, 0, b, (imm << scale) as u64);
        ON
    }

    fn structures(&mut self, i: u32, f: Handler) -> Decoded {
        let post = bits(i, 23, 23) == 1;
        if bits(i, 31, 31) == 1 || (!post && bits(i, 20, 16) != 0) {
            return None;
        }
        let size = bits(i, 11, 10);
        if bits(i, 24, 24) == 0 {
            // Multiple structures.
            if bits(i, 21, 21) != 0 {
                return None;
            }
            match bits(i, 15, 12) {
                0b0000 | 0b0100 | 0b1000 if size == 3 && bits(i, 30, 30) == 0 => return None,
                0b0000 | 0b0010 | 0b0100 | 0b0110 | 0b0111 | 0b1000 | 0b1010 => {}
                _ => return None,
            }
        } else {
            let (scale, lane) = (bits(i, 15, 14), bits(i, 12, 12));
            match scale {
                1 if size & 1 == 1 => return None,
                2 if size & 2 == 2 || (size == 1 && lane == 1) => return None,
                3 if bits(i, 22, 22) == 0 || lane == 1 => return None,
                _ => {}
            }
        }
        self.fp();
        self.op(f, 0, 0, 0, 0, u64::from(i));
        ON
    }

    /// Exclusives, load-acquire and store-release, compare and swap.
    fn exclusive(&mut self, i: u32) -> Decoded {
        let size = bits(i, 31, 30);
        let (rt, rn, rt2, rs) = (i, s(i >> 5), i >> 10, i >> 16);
        match (bits(i, 23, 23), bits(i, 22, 22), bits(i, 21, 21)) {
            (0, 0, 0) => {
                let f: Handler = sized!(size, store_exclusive);
                self.op(f, z(rt), rn, d(rs), 0, 0);
            }
            (0, 1, 0) => {
                let f: Handler = sized!(size, load_exclusive);
                self.op(f, d(rt), rn, 0, 0, 0);
            }
            (0, 0, 1) if size >= 2 => {
                let f: Handler = if size == 3 {
                    at::store_exclusive_pair::<true>
                } else {
                    at::store_exclusive_pair::<false>
                };
                self.op(f, z(rt), rn, d(rs), z(rt2), 0);
            }
            (0, 1, 1) if size >= 2 => {
                let f: Handler = if size == 3 {
                    at::load_exclusive_pair::<true>
                } else {
                    at::load_exclusive_pair::<false>
                };
                self.op(f, d(rt), rn, 0, d(rt2), 0);
            }
            // CASP
            (0, _, 1) => {
                if bits(i, 14, 10) != 31 || (rs | rt) & 1 != 0 {
                    return None;
                }
                let f: Handler = if size == 1 { at::casp::<true> } else { at::casp::<false> };
                self.op(f, s(rt), rn, s(rs), 0, 0);
            }
            (1, 0, 0) => {
                let f: Handler = sized!(size, store_release);
                self.op(f, z(rt), rn, 0, 0, 0);
            }
            (1, 1, 0) => {
                let f: Handler = if size == 3 {
                    at::load_acquire::<u64, 64>
                } else {
                    match size {
                        0 => at::load_acquire::<u8, 32>,
                        1 => at::load_acquire::<u16, 32>,
                        _ => at::load_acquire::<u32, 32>,
                    }
                };
                self.op(f, d(rt), rn, 0, 0, 0);
            }
            // CAS
            _ => {
                if bits(i, 14, 10) != 31 {
                    return None;
                }
                let f: Handler = sized!(size, cas);
                self.op(f, z(rt), rn, z(rs), d(rs), 0);
            }
        }
        ON
    }

    /// LDAPUR and STLUR.
    fn release_unscaled(&mut self, i: u32, is_vector: bool) -> Decoded {
        if is_vector || bits(i, 21, 21) != 0 || bits(i, 11, 10) != 0 {
            return None;
        }
        let f: Handler = match (bits(i, 31, 30), bits(i, 23, 22)) {
            (0, 0) => at::store_release::<u8>,
            (1, 0) => at::store_release::<u16>,
            (2, 0) => at::store_release::<u32>,
            (3, 0) => at::store_release::<u64>,
            (0, 1) => at::load_acquire::<u8, 32>,
            (1, 1) => at::load_acquire::<u16, 32>,
            (2, 1) => at::load_acquire::<u32, 32>,
            (3, 1) => at::load_acquire::<u64, 64>,
            (0, 2) => at::load_acquire::<i8, 64>,
            (1, 2) => at::load_acquire::<i16, 64>,
            (2, 2) => at::load_acquire::<i32, 64>,
            (0, 3) => at::load_acquire::<i8, 32>,
            (1, 3) => at::load_acquire::<i16, 32>,
            _ => return None,
        };
        let rt = if bits(i, 23, 22) == 0 { z(i) } else { d(i) };
        self.op(f, rt, s(i >> 5), 0, 0, sext(bits(i, 20, 12), 9) as u64);
        ON
    }

    /// LDADD and its kind, SWP, LDAPR.
    fn atomic(&mut self, i: u32) -> Decoded {
        let (size, rn) = (bits(i, 31, 30), s(i >> 5));
        let (o3, opc) = (bits(i, 15, 15), bits(i, 14, 12));
        if o3 == 1 && opc == 4 && bits(i, 23, 22) == 2 && bits(i, 20, 16) == 31 {
            let f: Handler = match size {
                0 => at::load_acquire::<u8, 32>,
                1 => at::load_acquire::<u16, 32>,
                2 => at::load_acquire::<u32, 32>,
                _ => at::load_acquire::<u64, 64>,
            };
            self.op(f, d(i), rn, 0, 0, 0);
            return ON;
        }
        macro_rules! operation {
            ($($n:literal)*) => {
                match o3 << 3 | opc {
                    $($n => sized!(size, rmw, $n),)*
                    _ => return None,
                }
            };
        }
        let f: Handler = operation!(0 1 2 3 4 5 6 7 8);
        self.op(f, d(i), rn, z(i >> 16), 0, 0);
        ON
    }
}

const _: Decoded = END;
