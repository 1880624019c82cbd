//! Which registers an instruction reads and which it writes.

use super::insn::{Insn, Reg};
pub(crate) use super::registers::Registers;
use super::simd::{self, Simd};
use crate::{Regs, fp};

const NONE: Registers = Registers::NONE;

/// Of LD1 to LD4 and ST1 to ST4: whether it loads, how many registers, whether one lane of each and the rest stays.
fn structure(word: u32, single: bool) -> (bool, u8, bool) {
    let load = word >> 22 & 1 == 1;
    if single {
        let count = ((word >> 13 & 1) << 1 | (word >> 21 & 1)) as u8 + 1;
        return (load, count, word >> 14 & 3 != 3);
    }
    let count = match word >> 12 & 15 {
        0b0000 | 0b0010 => 4,
        0b0100 | 0b0110 => 3,
        0b0111 => 1,
        _ => 2,
    };
    (load, count, false)
}

impl Insn {
    /// Whether the instruction does nothing but compute: it ends no block, touches no memory and no system register but
    /// FPSR, and cannot fault unless FP is disabled. `word` is its encoding.
    pub(crate) fn is_plain(self, word: u32) -> bool {
        match self {
            // YIELD, WFE and WFI wait.
            Self::Hint { number } => !(1..=3).contains(&number),
            Self::Const { .. }
            | Self::Movk { .. }
            | Self::Adr { .. }
            | Self::Alu { .. }
            | Self::Adc { .. }
            | Self::Shift { .. }
            | Self::ShiftBy { .. }
            | Self::Field { .. }
            | Self::Insert { .. }
            | Self::Extract { .. }
            | Self::Madd { .. }
            | Self::Maddl { .. }
            | Self::Mulh { .. }
            | Self::Crc32 { .. }
            | Self::Rmif { .. }
            | Self::Setf { .. }
            | Self::Div { .. }
            | Self::Unary { .. }
            | Self::Select { .. }
            | Self::Ccmp { .. }
            | Self::Prfm { .. }
            | Self::Sb
            | Self::Flags { .. }
            | Self::Lanes { .. }
            | Self::FromVector { .. }
            | Self::ToVector { .. }
            | Self::Fmov { .. } => true,
            Self::Simd => fp::decode(word).is_some(),
            _ => false,
        }
    }

    /// What it reads. `word` is its encoding.
    pub(crate) fn reads(self, word: u32) -> Registers {
        match self {
            Self::Hint { .. }
            | Self::Const { .. }
            | Self::Adr { .. }
            | Self::Prfm { .. }
            | Self::Sb
            | Self::Barrier { .. }
            | Self::Clrex { .. }
            | Self::B { .. } => NONE,
            Self::Movk { d, .. } => NONE.x(d),
            Self::Alu { n, m, .. } => NONE.x(n).operand(m),
            Self::Adc { n, m, .. } => Registers::FLAGS.x(n).x(m),
            Self::Shift { n, .. } | Self::Field { n, .. } | Self::Unary { n, .. } => NONE.x(n),
            Self::Insert { d, n, .. } => NONE.x(d).x(n),
            Self::ShiftBy { n, m, .. }
            | Self::Extract { n, m, .. }
            | Self::Mulh { n, m, .. }
            | Self::Crc32 { n, m, .. }
            | Self::Div { n, m, .. } => NONE.x(n).x(m),
            Self::Madd { n, m, a, .. } | Self::Maddl { n, m, a, .. } => NONE.x(n).x(m).x(a),
            // Some flags stay.
            Self::Rmif { n, .. } | Self::Setf { n, .. } => Registers::FLAGS.x(n),
            Self::Select { n, m, .. } => Registers::FLAGS.x(n).x(m),
            Self::Ccmp { n, m, .. } => Registers::FLAGS.x(n).operand(m),
            Self::Flags { .. } | Self::Bcond { .. } => Registers::FLAGS,
            Self::Mem { access, t, address } => {
                let all = NONE.address(address);
                if access.store { all.x(t) } else { all }
            }
            Self::Pair { access, t, u, address, .. } => {
                let all = NONE.address(address);
                if access.store { all.x(t).x(u) } else { all }
            }
            Self::Unprivileged { access, t, n, .. } => {
                if access.store {
                    NONE.x(n).x(t)
                } else {
                    NONE.x(n)
                }
            }
            Self::LoadAcquire { n, .. }
            | Self::LoadExclusive { n, .. }
            | Self::LoadExclusivePair { n, .. } => NONE.x(n),
            Self::StoreRelease { t, n, .. } | Self::StoreExclusive { t, n, .. } => NONE.x(n).x(t),
            Self::StoreExclusivePair { t, u, n, .. } => NONE.x(n).x(t).x(u),
            Self::Cas { s, t, n, .. } => NONE.x(n).x(s).x(t),
            Self::Rmw { s, n, .. } => NONE.x(n).x(s),
            Self::Casp { s, t, n, .. } => NONE.x(n).x(s).x(pair_end(s)).x(t).x(pair_end(t)),
            Self::Structures { word, single } => {
                let n = (word >> 5 & 31) as Reg;
                let all = if word >> 23 & 1 == 1 { NONE.x(index(word >> 16)) } else { NONE }.x(n);
                match structure(word, single) {
                    (true, _, false) => all,
                    (_, count, _) => all.structure((word & 31) as Reg, count),
                }
            }
            Self::Vmem { store, t, address, .. } => {
                let all = NONE.address(address);
                if store { all.v(t) } else { all }
            }
            Self::Vpair { store, t, u, address, .. } => {
                let all = NONE.address(address);
                if store { all.v(t).v(u) } else { all }
            }
            Self::Lanes { n, m, .. } => NONE.v(n).v(m),
            Self::FromVector { n, .. } | Self::Fmov { n, .. } => NONE.v(n),
            Self::ToVector { n, .. } => NONE.x(n),
            Self::Cbz { t, .. } | Self::Tbz { t, .. } => NONE.x(t),
            Self::Indirect { n, .. } => NONE.x(n),
            Self::Simd => simd::decode(word).map_or_else(|| unnamed_reads(word), Simd::reads),
            Self::Exception { .. }
            | Self::Eret
            | Self::Mrs { .. }
            | Self::Msr { .. }
            | Self::MsrImm { .. }
            | Self::Sys { .. }
            | Self::Undefined => Registers::ALL,
        }
    }

    /// What it writes, where it does not fault. `word` is its encoding.
    pub(crate) fn writes(self, word: u32) -> Registers {
        match self {
            Self::Const { d, .. }
            | Self::Movk { d, .. }
            | Self::Adr { d, .. }
            | Self::Shift { d, .. }
            | Self::ShiftBy { d, .. }
            | Self::Field { d, .. }
            | Self::Insert { d, .. }
            | Self::Extract { d, .. }
            | Self::Madd { d, .. }
            | Self::Maddl { d, .. }
            | Self::Mulh { d, .. }
            | Self::Crc32 { d, .. }
            | Self::Div { d, .. }
            | Self::Unary { d, .. }
            | Self::Select { d, .. }
            | Self::FromVector { d, .. } => NONE.x(d),
            Self::Alu { flags, d, .. } | Self::Adc { flags, d, .. } => Registers { flags, ..NONE }.x(d),
            Self::Rmif { .. } | Self::Setf { .. } | Self::Ccmp { .. } | Self::Flags { .. } => {
                Registers::FLAGS
            }
            Self::Mem { access, t, address } => {
                let all = NONE.base(address);
                if access.store { all } else { all.x(t) }
            }
            Self::Pair { access, t, u, address, .. } => {
                let all = NONE.base(address);
                if access.store { all } else { all.x(t).x(u) }
            }
            Self::Unprivileged { access, t, .. } => {
                if access.store {
                    NONE
                } else {
                    NONE.x(t)
                }
            }
            Self::LoadAcquire { t, .. } | Self::LoadExclusive { t, .. } | Self::Rmw { t, .. } => NONE.x(t),
            Self::LoadExclusivePair { t, u, .. } => NONE.x(t).x(u),
            Self::StoreExclusive { s, .. } | Self::StoreExclusivePair { s, .. } => NONE.x(s),
            Self::Cas { to, .. } => NONE.x(to),
            Self::Casp { s, .. } => NONE.x(s).x(pair_end(s)),
            Self::Structures { word, single } => {
                let n = (word >> 5 & 31) as Reg;
                let all = if word >> 23 & 1 == 1 { NONE.x(n) } else { NONE };
                match structure(word, single) {
                    (true, count, _) => all.structure((word & 31) as Reg, count),
                    _ => all,
                }
            }
            Self::Vmem { store, t, address, .. } => {
                let all = NONE.base(address);
                if store { all } else { all.v(t) }
            }
            Self::Vpair { store, t, u, address, .. } => {
                let all = NONE.base(address);
                if store { all } else { all.v(t).v(u) }
            }
            Self::Lanes { d, .. } | Self::ToVector { d, .. } | Self::Fmov { d, .. } => NONE.v(d),
            Self::B { link, .. } | Self::Indirect { link, .. } => {
                if link {
                    NONE.x(30)
                } else {
                    NONE
                }
            }
            Self::Mrs { t, .. } => NONE.x(t),
            Self::Simd => simd::decode(word).map_or_else(|| unnamed_writes(word), Simd::writes),
            Self::Hint { .. }
            | Self::Prfm { .. }
            | Self::StoreRelease { .. }
            | Self::Bcond { .. }
            | Self::Cbz { .. }
            | Self::Tbz { .. }
            | Self::Barrier { .. }
            | Self::Sb
            | Self::Clrex { .. } => NONE,
            Self::Exception { .. }
            | Self::Eret
            | Self::Msr { .. }
            | Self::MsrImm { .. }
            | Self::Sys { .. }
            | Self::Undefined => Registers::ALL,
        }
    }
}

/// A general register of which 31 is nothing to read.
fn index(n: u32) -> Reg {
    super::decode::z(n)
}

/// The second register of a pair.
fn pair_end(r: Reg) -> Reg {
    if r + 1 >= 31 { Regs::SINK as Reg } else { r + 1 }
}

/// Whether an encoding is a conversion between scalar floating point and a general register, and which way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conversion {
    None,
    /// FCVTNS and its kind, and FMOV.
    ToGeneral,
    FromGeneral,
}

fn conversion(word: u32) -> Conversion {
    let conversion = word >> 24 & 0x5f == 0x1e && (word >> 21 & 1 == 0 || word >> 10 & 0x3f == 0);
    match (conversion, word >> 16 & 7) {
        (false, _) => Conversion::None,
        (_, 0b010 | 0b011 | 0b111) => Conversion::FromGeneral,
        _ => Conversion::ToGeneral,
    }
}

/// More than what an instruction without a name reads: any vector register.
fn unnamed_reads(word: u32) -> Registers {
    // Comparisons and selections, of half precision, look at the flags.
    let flags = word >> 24 & 0x5f == 0x1e && word >> 21 & 1 == 1 && word >> 10 & 1 == 1;
    let all = Registers { vector: u32::MAX, flags, ..NONE };
    if conversion(word) == Conversion::FromGeneral { all.x(index(word >> 5)) } else { all }
}

/// What an instruction without a name writes.
fn unnamed_writes(word: u32) -> Registers {
    let scalar = word >> 24 & 0x5f == 0x1e && word >> 21 & 1 == 1;
    let op = word >> 10 & 0x3f;
    if scalar && (op & 0xf == 0b1000 || op & 3 == 1) {
        return Registers::FLAGS;
    }
    match conversion(word) {
        Conversion::ToGeneral => NONE.x(super::decode::d(word)),
        _ => NONE.v((word & 31) as Reg),
    }
}
