//! Loads and stores as text.

use std::fmt;

use super::{EXTENSIONS, R, SINK, Text, ZERO};
use crate::isa::insn::{Access, Acquire, Address, Insn, Reg, Rmw};

/// What the letters before a vector register's number are, by size.
const VECTORS: [char; 5] = ['b', 'h', 's', 'd', 'q'];

/// Lanes of `1 << size` bytes in 64 bits of a register or in all.
pub(super) fn arrangement(size: u8, full: bool) -> &'static str {
    ["8b", "16b", "4h", "8h", "2s", "4s", "1d", "2d"][usize::from(size & 3) << 1 | usize::from(full)]
}

/// The end of a name: B or H, with S before it for a load that extends the sign.
fn suffix(access: Access) -> &'static str {
    match (access.size, access.signed) {
        (0, false) => "b",
        (1, false) => "h",
        (0, true) => "sb",
        (1, true) => "sh",
        (2, true) => "sw",
        _ => "",
    }
}

fn size_suffix(size: u8) -> &'static str {
    ["b", "h", "", ""][usize::from(size & 3)]
}

fn al(acquire: bool, release: bool) -> &'static str {
    match (acquire, release) {
        (false, false) => "",
        (true, false) => "a",
        (false, true) => "l",
        (true, true) => "al",
    }
}

/// Where an access is; `page` for what counts from PC's.
struct Place(Address, u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            Address::Offset(n, 0) | Address::Unscaled(n, 0) => write!(f, "[{}]", R(n, true)),
            Address::Offset(n, by) | Address::Unscaled(n, by) => write!(f, "[{}, #{by}]", R(n, true)),
            Address::Pre(n, by) => write!(f, "[{}, #{by}]!", R(n, true)),
            Address::Post(n, by) => write!(f, "[{}], #{by}", R(n, true)),
            Address::Index(n, m, option, by) => {
                let (rn, rm) = (R(n, true), R(m, option & 1 == 1));
                match (option, by) {
                    (3, 0) => write!(f, "[{rn}, {rm}]"),
                    (3, _) => write!(f, "[{rn}, {rm}, lsl #{by}]"),
                    (_, 0) => write!(f, "[{rn}, {rm}, {}]", EXTENSIONS[usize::from(option)]),
                    _ => write!(f, "[{rn}, {rm}, {} #{by}]", EXTENSIONS[usize::from(option)]),
                }
            }
            Address::Page(offset) => write!(f, "{:#x}", self.1.wrapping_add(offset as u64)),
        }
    }
}

/// "ldr" or "str", "ldur" or "stur".
fn one(store: bool, address: Address) -> &'static str {
    match (store, address) {
        (false, Address::Unscaled(..)) => "ldur",
        (true, Address::Unscaled(..)) => "stur",
        (false, _) => "ldr",
        (true, _) => "str",
    }
}

fn two(store: bool, nontemporal: bool) -> &'static str {
    match (store, nontemporal) {
        (false, false) => "ldp",
        (false, true) => "ldnp",
        (true, false) => "stp",
        (true, true) => "stnp",
    }
}

/// Vector registers from `first` on, as many as `count`, in braces.
pub(super) fn list(f: &mut fmt::Formatter, first: u32, count: u32, of: &str) -> fmt::Result {
    let last = (first + count - 1) & 31;
    if count > 2 && last > first {
        return write!(f, "{{v{first}.{of}-v{last}.{of}}}");
    }
    f.write_str("{")?;
    for n in 0..count {
        write!(f, "{}v{}.{of}", if n == 0 { "" } else { ", " }, (first + n) & 31)?;
    }
    f.write_str("}")
}

/// LD1 to LD4 and their kind (C4.1.96, "Advanced SIMD load/store multiple structures" and its neighbours).
fn structures(f: &mut fmt::Formatter, i: u32, single: bool) -> fmt::Result {
    let name = if i >> 22 & 1 == 1 { "ld" } else { "st" };
    let (q, size) = (i >> 30 & 1, (i >> 10 & 3) as u8);
    let bytes = if single {
        let (opcode, s) = (i >> 13 & 7, i >> 12 & 1);
        let count = ((opcode & 1) << 1 | i >> 21 & 1) + 1;
        let size = u32::from(size);
        let (of, lane) = match opcode >> 1 {
            0 => (0, q << 3 | s << 2 | size),
            1 => (1, q << 2 | s << 1 | size >> 1),
            2 if size & 1 == 0 => (2, q << 1 | s),
            2 => (3, q),
            _ => {
                let of = arrangement(size as u8, q == 1);
                write!(f, "{name}{count}r ")?;
                list(f, i & 31, count, of)?;
                return place(f, i, count << size);
            }
        };
        write!(f, "{name}{count} ")?;
        list(f, i & 31, count, ["b", "h", "s", "d"][of])?;
        write!(f, "[{lane}]")?;
        count << of
    } else {
        let (span, count) = match i >> 12 & 15 {
            0b0000 => (4, 4),
            0b0010 => (1, 4),
            0b0100 => (3, 3),
            0b0110 => (1, 3),
            0b0111 => (1, 1),
            0b1000 => (2, 2),
            _ => (1, 2),
        };
        write!(f, "{name}{span} ")?;
        list(f, i & 31, count, arrangement(size, q == 1))?;
        count * (8 << q)
    };
    place(f, i, bytes)
}

/// Where structures of so many bytes are.
fn place(f: &mut fmt::Formatter, i: u32, bytes: u32) -> fmt::Result {
    write!(f, ", [{}]", R((i >> 5 & 31) as Reg, true))?;
    match (i >> 23 & 1, i >> 16 & 31) {
        (0, _) => Ok(()),
        (_, 31) => write!(f, ", #{bytes}"),
        (_, m) => write!(f, ", x{m}"),
    }
}

/// A prefetch's operation.
fn prefetch(f: &mut fmt::Formatter, operation: u8) -> fmt::Result {
    let (kind, level) = (operation >> 3, operation >> 1 & 3);
    if kind == 3 || level == 3 {
        return write!(f, "#{operation:#04x}");
    }
    let kind = ["pld", "pli", "pst"][usize::from(kind)];
    write!(f, "{kind}l{}{}", level + 1, if operation & 1 == 0 { "keep" } else { "strm" })
}

impl Text {
    pub(super) fn memory(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let at = |address| Place(address, self.page);
        match self.insn {
            Insn::Mem { access, t, address } => {
                let name = one(access.store, address);
                write!(f, "{name}{} {}, {}", suffix(access), R(t, access.wide), at(address))
            }
            Insn::Unprivileged { access, t, n, offset } => {
                let name = if access.store { "sttr" } else { "ldtr" };
                let place = at(Address::Offset(n, offset));
                write!(f, "{name}{} {}, {place}", suffix(access), R(t, access.wide))
            }
            Insn::Prfm { operation, address } => {
                let name = if matches!(address, Address::Unscaled(..)) { "prfum" } else { "prfm" };
                write!(f, "{name} ")?;
                prefetch(f, operation)?;
                write!(f, ", {}", at(address))
            }
            Insn::Pair { access, nontemporal, t, u, address } => {
                let name = two(access.store, nontemporal);
                let (rt, ru) = (R(t, access.wide), R(u, access.wide));
                write!(f, "{name}{} {rt}, {ru}, {}", suffix(access), at(address))
            }
            Insn::Vmem { store, size, t, address } => {
                let of = VECTORS[usize::from(size)];
                write!(f, "{} {of}{t}, {}", one(store, address), at(address))
            }
            Insn::Vpair { store, nontemporal, size, t, u, address } => {
                let of = VECTORS[usize::from(size)];
                write!(f, "{} {of}{t}, {of}{u}, {}", two(store, nontemporal), at(address))
            }
            Insn::Structures { word, single } => structures(f, word, single),
            _ => self.atomic(f),
        }
    }

    fn atomic(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.insn {
            Insn::LoadAcquire { access, by, t, n, offset } => {
                let name = match by {
                    Acquire::Ordered => "ldar",
                    Acquire::Limited => "ldlar",
                    Acquire::Consistent => "ldapr",
                    Acquire::Unscaled => "ldapur",
                };
                let place = Place(Address::Offset(n, offset), 0);
                write!(f, "{name}{} {}, {place}", suffix(access), R(t, access.wide))
            }
            Insn::StoreRelease { access, by, t, n, offset } => {
                let name = match by {
                    Acquire::Limited => "stllr",
                    Acquire::Unscaled => "stlur",
                    Acquire::Ordered | Acquire::Consistent => "stlr",
                };
                let place = Place(Address::Offset(n, offset), 0);
                write!(f, "{name}{} {}, {place}", suffix(access), R(t, access.wide))
            }
            Insn::LoadExclusive { size, acquire, t, n } => {
                let name = if acquire { "ldaxr" } else { "ldxr" };
                write!(f, "{name}{} {}, [{}]", size_suffix(size), R(t, size == 3), R(n, true))
            }
            Insn::StoreExclusive { size, release, s, t, n } => {
                let name = if release { "stlxr" } else { "stxr" };
                let (rs, rt) = (R(s, false), R(t, size == 3));
                write!(f, "{name}{} {rs}, {rt}, [{}]", size_suffix(size), R(n, true))
            }
            Insn::LoadExclusivePair { wide, acquire, t, u, n } => {
                let name = if acquire { "ldaxp" } else { "ldxp" };
                write!(f, "{name} {}, {}, [{}]", R(t, wide), R(u, wide), R(n, true))
            }
            Insn::StoreExclusivePair { wide, release, s, t, u, n } => {
                let name = if release { "stlxp" } else { "stxp" };
                let (rt, ru) = (R(t, wide), R(u, wide));
                write!(f, "{name} {}, {rt}, {ru}, [{}]", R(s, false), R(n, true))
            }
            Insn::Cas { size, acquire, release, s, t, n, .. } => {
                let (rs, rt) = (R(s, size == 3), R(t, size == 3));
                let order = al(acquire, release);
                write!(f, "cas{order}{} {rs}, {rt}, [{}]", size_suffix(size), R(n, true))
            }
            Insn::Casp { wide, acquire, release, s, t, n } => {
                let [s, s1, t, t1] = [s, s + 1, t, t + 1].map(|r| R(if r == 31 { ZERO } else { r }, wide));
                write!(f, "casp{} {s}, {s1}, {t}, {t1}, [{}]", al(acquire, release), R(n, true))
            }
            Insn::Rmw { op, size, acquire, release, s, t, n } => {
                let name = match op {
                    Rmw::Add => "add",
                    Rmw::Clr => "clr",
                    Rmw::Eor => "eor",
                    Rmw::Set => "set",
                    Rmw::Smax => "smax",
                    Rmw::Smin => "smin",
                    Rmw::Umax => "umax",
                    Rmw::Umin => "umin",
                    Rmw::Swp => "swp",
                };
                let (order, end) = (al(acquire, release), size_suffix(size));
                let (rs, rt, rn) = (R(s, size == 3), R(t, size == 3), R(n, true));
                match op {
                    Rmw::Swp => write!(f, "{name}{order}{end} {rs}, {rt}, [{rn}]"),
                    _ if t == SINK && !acquire => write!(f, "st{name}{order}{end} {rs}, [{rn}]"),
                    _ => write!(f, "ld{name}{order}{end} {rs}, {rt}, [{rn}]"),
                }
            }
            _ => Ok(()),
        }
    }
}
