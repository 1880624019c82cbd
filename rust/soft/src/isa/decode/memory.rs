//! Loads and stores (C4.1.96).

use super::{bits, d, s, sext, z};
use crate::isa::insn::{Access, Acquire, Address, Insn, Rmw};

pub(super) fn load_store<T>(i: u32, off: u16, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let is_vector = bits(i, 26, 26) == 1;
    let (size, opc, base) = (bits(i, 31, 30), bits(i, 23, 22), s(i >> 5));
    match (bits(i, 29, 28), bits(i, 24, 24)) {
        (0, single) if is_vector => {
            structures(i, single == 1).then(|| to(Insn::Structures { word: i, single: single == 1 }))
        }
        (0, 0) => exclusive(i).map(to),
        (1, 0) => literal(i, is_vector, Address::Page(i64::from(off) + sext(bits(i, 23, 5), 19) * 4), to),
        (1, 1) if !is_vector => unscaled_ordered(i).map(to),
        (2, _) => pair(i, is_vector, to),
        (3, 1) => {
            let scale = if is_vector && opc >> 1 == 1 { 4 } else { size };
            one(i, is_vector, Address::Offset(base, i64::from(bits(i, 21, 10)) << scale), to)
        }
        (3, _) if bits(i, 21, 21) == 0 => {
            let imm = sext(bits(i, 20, 12), 9);
            match bits(i, 11, 10) {
                0 => one(i, is_vector, Address::Unscaled(base, imm), to),
                1 => one(i, is_vector, Address::Post(base, imm), to),
                2 if is_vector => None,
                2 => {
                    let access = access(size, opc)?;
                    let t = if access.store { z(i) } else { d(i) };
                    Some(to(Insn::Unprivileged { access, t, n: base, offset: imm }))
                }
                _ => one(i, is_vector, Address::Pre(base, imm), to),
            }
        }
        (3, _) if bits(i, 11, 10) == 2 => {
            let option = bits(i, 15, 13);
            if option & 2 == 0 {
                return None;
            }
            let scale = if is_vector && opc >> 1 == 1 { 4 } else { size };
            let shift = if bits(i, 12, 12) == 1 { scale as u8 } else { 0 };
            one(i, is_vector, Address::Index(base, z(i >> 16), option as u8, shift), to)
        }
        (3, _) if bits(i, 11, 10) == 0 && !is_vector => atomic(i).map(to),
        _ => None,
    }
}

/// A general register's transfer by `size` and `opc`; `None` for those of a prefetch and for nothing.
fn access(size: u32, opc: u32) -> Option<Access> {
    let (store, signed, wide) = match (size, opc) {
        (_, 0) => (true, false, size == 3),
        (_, 1) => (false, false, size == 3),
        (0..=2, 2) => (false, true, true),
        (0..=1, 3) => (false, true, false),
        _ => return None,
    };
    Some(Access { store, size: size as u8, signed, wide })
}

#[inline(always)]
fn one<T>(i: u32, is_vector: bool, address: Address, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let (size, opc) = (bits(i, 31, 30), bits(i, 23, 22));
    if is_vector {
        let (store, size) = match (size as u8, opc) {
            (size, 0 | 1) => (opc == 0, size),
            (0, _) => (opc == 2, 4),
            _ => return None,
        };
        return Some(to(Insn::Vmem { store, size, t: s(i), address }));
    }
    if let Some(access) = access(size, opc) {
        return Some(to(Insn::Mem { access, t: if access.store { z(i) } else { d(i) }, address }));
    }
    let plain = !matches!(address, Address::Pre(..) | Address::Post(..));
    (size == 3 && opc == 2 && plain).then(|| to(Insn::Prfm { operation: s(i), address }))
}

fn literal<T>(i: u32, is_vector: bool, address: Address, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let access = |size, signed, wide| Access { store: false, size, signed, wide };
    Some(match (bits(i, 31, 30), is_vector) {
        (3, true) => return None,
        (size, true) => to(Insn::Vmem { store: false, size: size as u8 + 2, t: s(i), address }),
        (3, false) => to(Insn::Prfm { operation: s(i), address }),
        (size, false) => {
            let access =
                [access(2, false, false), access(3, false, true), access(2, true, true)][size as usize];
            to(Insn::Mem { access, t: d(i), address })
        }
    })
}

fn pair<T>(i: u32, is_vector: bool, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let (opc, store) = (bits(i, 31, 30), bits(i, 22, 22) == 0);
    let kind = bits(i, 24, 23);
    // The non-temporal form has no LDPSW.
    let nontemporal = kind == 0;
    if opc == 3 || nontemporal && opc == 1 && !is_vector {
        return None;
    }
    let scale = if is_vector { 2 + opc } else { 2 + (opc >> 1) };
    let imm = sext(bits(i, 21, 15), 7) << scale;
    let base = s(i >> 5);
    let address = match kind {
        0 | 2 => Address::Offset(base, imm),
        1 => Address::Post(base, imm),
        _ => Address::Pre(base, imm),
    };
    let size = scale as u8;
    if is_vector {
        return Some(to(Insn::Vpair { store, nontemporal, size, t: s(i), u: s(i >> 10), address }));
    }
    if opc == 1 && store {
        return None;
    }
    let access = Access { store, size, signed: opc == 1, wide: opc != 0 };
    let register = if store { z } else { d };
    Some(to(Insn::Pair { access, nontemporal, t: register(i), u: register(i >> 10), address }))
}

/// Whether a load or store of structures is allocated.
fn structures(i: u32, single: bool) -> bool {
    let post = bits(i, 23, 23) == 1;
    if bits(i, 31, 31) == 1 || (!post && bits(i, 20, 16) != 0) {
        return false;
    }
    let size = bits(i, 11, 10);
    if single {
        let (scale, lane) = (bits(i, 15, 14), bits(i, 12, 12));
        return match scale {
            1 => size & 1 == 0,
            2 => size & 2 == 0 && (size == 0 || lane == 0),
            3 => bits(i, 22, 22) == 1 && lane == 0,
            _ => true,
        };
    }
    if bits(i, 21, 21) != 0 {
        return false;
    }
    match bits(i, 15, 12) {
        0b0000 | 0b0100 | 0b1000 => size != 3 || bits(i, 30, 30) == 1,
        0b0010 | 0b0110 | 0b0111 | 0b1010 => true,
        _ => false,
    }
}

/// Exclusives, load-acquire and store-release, compare and swap.
fn exclusive(i: u32) -> Option<Insn> {
    let size = bits(i, 31, 30) as u8;
    let n = s(i >> 5);
    let ordered = bits(i, 15, 15) == 1;
    let by = if ordered { Acquire::Ordered } else { Acquire::Limited };
    let access = |store| Access { store, size, signed: false, wide: size == 3 };
    let swaps = bits(i, 14, 10) == 31;
    let (acquire, release) = (bits(i, 22, 22) == 1, ordered);
    Some(match (bits(i, 23, 23), bits(i, 22, 22), bits(i, 21, 21)) {
        (0, 0, 0) => Insn::StoreExclusive { size, release: ordered, s: d(i >> 16), t: z(i), n },
        (0, 1, 0) => Insn::LoadExclusive { size, acquire: ordered, t: d(i), n },
        (0, 0, 1) if size >= 2 => Insn::StoreExclusivePair {
            wide: size == 3,
            release: ordered,
            s: d(i >> 16),
            t: z(i),
            u: z(i >> 10),
            n,
        },
        (0, 1, 1) if size >= 2 => {
            Insn::LoadExclusivePair { wide: size == 3, acquire: ordered, t: d(i), u: d(i >> 10), n }
        }
        (0, _, 1) => {
            if !swaps || (i >> 16 | i) & 1 != 0 {
                return None;
            }
            Insn::Casp { wide: size == 1, acquire, release, s: s(i >> 16), t: s(i), n }
        }
        (1, 0, 0) => Insn::StoreRelease { access: access(true), by, t: z(i), n, offset: 0 },
        (1, 1, 0) => Insn::LoadAcquire { access: access(false), by, t: d(i), n, offset: 0 },
        _ if !swaps => return None,
        _ => Insn::Cas { size, acquire, release, s: z(i >> 16), to: d(i >> 16), t: z(i), n },
    })
}

/// LDAPUR and STLUR.
fn unscaled_ordered(i: u32) -> Option<Insn> {
    if bits(i, 21, 21) != 0 || bits(i, 11, 10) != 0 {
        return None;
    }
    let access = access(bits(i, 31, 30), bits(i, 23, 22))?;
    let (by, n, offset) = (Acquire::Unscaled, s(i >> 5), sext(bits(i, 20, 12), 9));
    Some(if access.store {
        Insn::StoreRelease { access, by, t: z(i), n, offset }
    } else {
        Insn::LoadAcquire { access, by, t: d(i), n, offset }
    })
}

/// LDADD and its kind, SWP, LDAPR.
fn atomic(i: u32) -> Option<Insn> {
    let (size, n) = (bits(i, 31, 30) as u8, s(i >> 5));
    let opc = bits(i, 14, 12);
    let (acquire, release) = (bits(i, 23, 23) == 1, bits(i, 22, 22) == 1);
    let op = match (bits(i, 15, 15), opc) {
        (0, 0) => Rmw::Add,
        (0, 1) => Rmw::Clr,
        (0, 2) => Rmw::Eor,
        (0, 3) => Rmw::Set,
        (0, 4) => Rmw::Smax,
        (0, 5) => Rmw::Smin,
        (0, 6) => Rmw::Umax,
        (0, _) => Rmw::Umin,
        (_, 0) => Rmw::Swp,
        (_, 4) if acquire && !release && bits(i, 20, 16) == 31 => {
            let access = Access { store: false, size, signed: false, wide: size == 3 };
            return Some(Insn::LoadAcquire { access, by: Acquire::Consistent, t: d(i), n, offset: 0 });
        }
        _ => return None,
    };
    Some(Insn::Rmw { op, size, acquire, release, s: z(i >> 16), t: d(i), n })
}
