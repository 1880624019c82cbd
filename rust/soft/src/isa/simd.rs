//! Instructions on vector registers by name: floating point, Advanced SIMD and cryptography (Arm ARM, C4.1, "Data
//! Processing -- Scalar Floating-Point and Advanced SIMD"). Those that are not here are left to the interpreter.

use super::decode::{bits, d, z};
use super::insn::Reg;
use crate::Regs;
use crate::fp;

/// Of one number; FMOV is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float1 {
    Abs,
    Neg,
    Sqrt,
    /// To an integral value.
    Round(Round),
    /// FRINTX: in the current mode, noting when the value changes; FRINTI does not note it.
    RoundExact,
    RoundCurrent,
    /// From the other size to this one.
    Convert,
}

/// How a number becomes an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Up,
    Down,
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float2 {
    Mul,
    Div,
    Add,
    Sub,
    Max,
    Min,
    MaxNum,
    MinNum,
    /// FNMUL.
    Nmul,
}

/// Lane by lane, of two registers and, for some, the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Three {
    Orn,
    Bsl,
    Bit,
    Bif,
    /// CMGT, CMHI, CMGE, CMHS, CMEQ, CMTST.
    Greater,
    Higher,
    GreaterEqual,
    HigherSame,
    Equal,
    Test,
    Smax,
    Smin,
    Umax,
    Umin,
    Mul,
    Mla,
    Mls,
    /// ADDP, UMAXP, UMINP: of neighbours, those of the first register first.
    AddPairs,
    UmaxPairs,
    UminPairs,
}

/// Lane by lane, of one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Two {
    Rev64,
    Rev32,
    Rev16,
    Not,
    Neg,
    Abs,
    /// Compared with zero.
    Greater,
    GreaterEqual,
    Equal,
    LessEqual,
    Less,
    /// XTN: the low halves of lanes twice as wide, `full` to the upper half.
    Narrow,
}

/// A shift of each lane by a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneShift {
    Left,
    Right,
    RightSigned,
    /// Added to the destination.
    RightAdd,
    RightSignedAdd,
    /// SLI and SRI: other bits of the destination stay.
    LeftInsert,
    RightInsert,
    /// USHLL and SSHLL: of lanes half as wide, `full` from the upper half; the size is that of the source.
    Widen,
    WidenSigned,
    /// SHRN: of lanes twice as wide, `full` to the upper half; the size is that of the result.
    Narrow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permute {
    Uzp1,
    Trn1,
    Zip1,
    Uzp2,
    Trn2,
    Zip2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crypto {
    Aese,
    Aesd,
    Aesmc,
    Aesimc,
    /// Of the low halves, or the upper ones.
    Pmull,
    Pmull2,
    Sha1c,
    Sha1p,
    Sha1m,
    Sha1su0,
    Sha1h,
    Sha1su1,
    Sha256h,
    Sha256h2,
    Sha256su0,
    Sha256su1,
}

/// One instruction. Registers are vector registers unless told otherwise. `double` says that numbers have 64 bits and
/// not 32; `size` is a lane's, in bytes as a power of two; `full` says that all 16 bytes are meant and not 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Simd {
    /// MOVI, MVNI, FMOV of an immediate.
    Const {
        d: Reg,
        value: u128,
    },
    Float1 {
        op: Float1,
        double: bool,
        d: Reg,
        n: Reg,
    },
    Float2 {
        op: Float2,
        double: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// `a` plus `n` times `m`, rounded once.
    Fma {
        double: bool,
        negate_addend: bool,
        negate_product: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        a: Reg,
    },
    /// FCMP and FCMPE, with zero where there is no `m`.
    Compare {
        double: bool,
        n: Reg,
        m: Option<Reg>,
    },
    /// FCSEL.
    Select {
        double: bool,
        cond: u8,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// `d` is a general register.
    ToInt {
        double: bool,
        wide: bool,
        signed: bool,
        round: Round,
        d: Reg,
        n: Reg,
    },
    /// `n` is a general register.
    FromInt {
        double: bool,
        wide: bool,
        signed: bool,
        d: Reg,
        n: Reg,
    },
    /// SCVTF of a scalar; the integer is as wide as the number.
    FromLane {
        double: bool,
        d: Reg,
        n: Reg,
    },
    Three {
        op: Three,
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    Two {
        op: Two,
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
    },
    /// ADDV.
    Sum {
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
    },
    Shift {
        op: LaneShift,
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
        by: u8,
    },
    Permute {
        op: Permute,
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// EXT.
    Extract {
        full: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        by: u8,
    },
    /// TBL with one register as the table.
    Table {
        full: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    Dup {
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
        lane: u8,
    },
    /// DUP to a scalar: the one lane.
    Lane {
        size: u8,
        d: Reg,
        n: Reg,
        lane: u8,
    },
    /// `n` is a general register.
    DupGeneral {
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
    },
    /// UMOV and SMOV; `d` is a general register.
    ToGeneral {
        signed: bool,
        wide: bool,
        size: u8,
        d: Reg,
        n: Reg,
        lane: u8,
    },
    /// INS; `n` is a general register.
    FromGeneral {
        size: u8,
        d: Reg,
        n: Reg,
        lane: u8,
    },
    /// INS of another lane.
    Insert {
        size: u8,
        d: Reg,
        n: Reg,
        to: u8,
        from: u8,
    },
    Crypto {
        op: Crypto,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// EOR3.
    Eor3 {
        d: Reg,
        n: Reg,
        m: Reg,
        a: Reg,
    },
}

impl Simd {
    /// The vector register that it writes.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "machine code is made on one kind of host")
    )]
    pub fn written(self) -> Option<Reg> {
        match self {
            Self::Compare { .. } | Self::ToInt { .. } | Self::ToGeneral { .. } => None,
            Self::Const { d, .. }
            | Self::Float1 { d, .. }
            | Self::Float2 { d, .. }
            | Self::Fma { d, .. }
            | Self::Select { d, .. }
            | Self::FromInt { d, .. }
            | Self::FromLane { d, .. }
            | Self::Three { d, .. }
            | Self::Two { d, .. }
            | Self::Sum { d, .. }
            | Self::Shift { d, .. }
            | Self::Permute { d, .. }
            | Self::Extract { d, .. }
            | Self::Table { d, .. }
            | Self::Dup { d, .. }
            | Self::Lane { d, .. }
            | Self::DupGeneral { d, .. }
            | Self::FromGeneral { d, .. }
            | Self::Insert { d, .. }
            | Self::Crypto { d, .. }
            | Self::Eor3 { d, .. } => Some(d),
        }
    }
}

fn rd(i: u32) -> Reg {
    i as u8 & 31
}

fn rn(i: u32) -> Reg {
    rd(i >> 5)
}

fn rm(i: u32) -> Reg {
    rd(i >> 16)
}

/// Bit 30.
fn full(i: u32) -> bool {
    i >> 30 & 1 == 1
}

/// The instruction `i`, when it has a name here and is allocated.
pub(crate) fn decode(i: u32) -> Option<Simd> {
    let is = |value: u32, mask: u32| i & mask == value;
    let handler = fp::decode(i)?;
    if is(0x1f00_0000, 0xff80_0000) {
        let (double, negate) = (bits(i, 22, 22) == 1, bits(i, 21, 21) == 1);
        let (negate_addend, negate_product) = (negate, negate != (bits(i, 15, 15) == 1));
        return Some(Simd::Fma {
            double,
            negate_addend,
            negate_product,
            d: rd(i),
            n: rn(i),
            m: rm(i),
            a: rd(i >> 10),
        });
    }
    if is(0x1e20_0000, 0x7fa0_0000) {
        return scalar(i, handler);
    }
    if is(0x0f00_0400, 0x9ff8_0400) {
        return constant(i, handler);
    }
    if is(0x0f00_0400, 0x9f80_0400) || is(0x5f40_0400, 0xdfc0_0400) {
        return shift(i);
    }
    if is(0x0e20_0400, 0x9f20_0400) {
        return three(i);
    }
    if is(0x4e28_0800, 0xff3e_0c00) {
        let op = [Crypto::Aese, Crypto::Aesd, Crypto::Aesmc, Crypto::Aesimc];
        return Some(Simd::Crypto { op: *op.get(bits(i, 14, 12) as usize - 4)?, d: rd(i), n: rn(i), m: 0 });
    }
    if is(0x0e20_0800, 0x9f3e_0c00) {
        return two(i);
    }
    if is(0x0e31_b800, 0xbf3f_fc00) {
        return Some(Simd::Sum { size: bits(i, 23, 22) as u8, full: full(i), d: rd(i), n: rn(i) });
    }
    if is(0x0e00_0400, 0x9fe0_8400) {
        return copy(i);
    }
    if is(0x5e00_0400, 0xffe0_fc00) {
        let size = bits(i, 20, 16).trailing_zeros() as u8;
        return Some(Simd::Lane { size, d: rd(i), n: rn(i), lane: (bits(i, 20, 16) >> (size + 1)) as u8 });
    }
    if is(0x0e00_0000, 0xbfe0_fc00) {
        return Some(Simd::Table { full: full(i), d: rd(i), n: rn(i), m: rm(i) });
    }
    if is(0x0e00_0800, 0xbf20_8c00) {
        use Permute::{Trn1, Trn2, Uzp1, Uzp2, Zip1, Zip2};
        let op = [None, Some(Uzp1), Some(Trn1), Some(Zip1), None, Some(Uzp2), Some(Trn2), Some(Zip2)];
        let op = op[bits(i, 14, 12) as usize]?;
        return Some(Simd::Permute {
            op,
            size: bits(i, 23, 22) as u8,
            full: full(i),
            d: rd(i),
            n: rn(i),
            m: rm(i),
        });
    }
    if is(0x2e00_0000, 0xbfe0_8400) {
        return Some(Simd::Extract {
            full: full(i),
            d: rd(i),
            n: rn(i),
            m: rm(i),
            by: bits(i, 14, 11) as u8,
        });
    }
    crypto(i)
}

fn crypto(i: u32) -> Option<Simd> {
    use Crypto::*;
    let op = match i & 0xffff_fc00 {
        0x5e28_0800 => Sha1h,
        0x5e28_1800 => Sha1su1,
        0x5e28_2800 => Sha256su0,
        0x5e21_d800 | 0x5e61_d800 => {
            return Some(Simd::FromLane { double: bits(i, 22, 22) == 1, d: rd(i), n: rn(i) });
        }
        _ => match i & 0xffe0_fc00 {
            0x0ee0_e000 => Pmull,
            0x4ee0_e000 => Pmull2,
            0x5e00_0000 => Sha1c,
            0x5e00_1000 => Sha1p,
            0x5e00_2000 => Sha1m,
            0x5e00_3000 => Sha1su0,
            0x5e00_4000 => Sha256h,
            0x5e00_5000 => Sha256h2,
            0x5e00_6000 => Sha256su1,
            _ if i & 0xffe0_8000 == 0xce00_0000 => {
                return Some(Simd::Eor3 { d: rd(i), n: rn(i), m: rm(i), a: rd(i >> 10) });
            }
            _ => return None,
        },
    };
    Some(Simd::Crypto { op, d: rd(i), n: rn(i), m: rm(i) })
}

/// What an instruction without operands gives, by the interpreter's own function.
fn constant(i: u32, handler: fp::Handler) -> Option<Simd> {
    // ORR and BIC change what is there.
    if i >> 28 & 1 == 0 && bits(i, 12, 12) == 1 && bits(i, 15, 12) < 12 {
        return None;
    }
    let mut regs = Regs::default();
    handler(&mut regs, i);
    Some(Simd::Const { d: rd(i), value: regs.v[rd(i) as usize] })
}

fn scalar(i: u32, handler: fp::Handler) -> Option<Simd> {
    let double = bits(i, 22, 22) == 1;
    let (n, m) = (rn(i), rm(i));
    if bits(i, 15, 10) == 0 {
        let (wide, signed) = (i >> 31 == 1, bits(i, 16, 16) == 0);
        let round = [Round::Nearest, Round::Up, Round::Down, Round::Zero][bits(i, 20, 19) as usize];
        return match (bits(i, 18, 17), round) {
            (0, _) => Some(Simd::ToInt { double, wide, signed, round, d: d(i), n }),
            (1, Round::Nearest) => Some(Simd::FromInt { double, wide, signed, d: rd(i), n: z(i >> 5) }),
            _ => None,
        };
    }
    if i >> 31 == 1 {
        return None;
    }
    match bits(i, 11, 10) {
        0 if bits(i, 12, 12) == 1 => constant(i, handler),
        0 if bits(i, 13, 13) == 1 => {
            let m = (bits(i, 3, 3) == 0).then_some(m);
            Some(Simd::Compare { double, n, m })
        }
        0 => {
            let op = match bits(i, 20, 15) {
                1 => Float1::Abs,
                2 => Float1::Neg,
                3 => Float1::Sqrt,
                4 | 5 => return Some(Simd::Float1 { op: Float1::Convert, double: !double, d: rd(i), n }),
                8 => Float1::Round(Round::Nearest),
                9 => Float1::Round(Round::Up),
                10 => Float1::Round(Round::Down),
                11 => Float1::Round(Round::Zero),
                14 => Float1::RoundExact,
                15 => Float1::RoundCurrent,
                _ => return None,
            };
            Some(Simd::Float1 { op, double, d: rd(i), n })
        }
        2 => {
            use Float2::{Add, Div, Max, MaxNum, Min, MinNum, Mul, Nmul, Sub};
            let op = [Mul, Div, Add, Sub, Max, Min, MaxNum, MinNum, Nmul];
            Some(Simd::Float2 { op: *op.get(bits(i, 15, 12) as usize)?, double, d: rd(i), n, m })
        }
        3 => Some(Simd::Select { double, cond: bits(i, 15, 12) as u8, d: rd(i), n, m }),
        _ => None,
    }
}

fn three(i: u32) -> Option<Simd> {
    let (unsigned, size) = (bits(i, 29, 29) == 1, bits(i, 23, 22) as u8);
    let op = match (bits(i, 15, 11), unsigned) {
        (3, false) if size == 3 => Three::Orn,
        (3, true) => [None, Some(Three::Bsl), Some(Three::Bit), Some(Three::Bif)][size as usize]?,
        (6, false) => Three::Greater,
        (6, true) => Three::Higher,
        (7, false) => Three::GreaterEqual,
        (7, true) => Three::HigherSame,
        (12, false) => Three::Smax,
        (12, true) => Three::Umax,
        (13, false) => Three::Smin,
        (13, true) => Three::Umin,
        (17, false) => Three::Test,
        (17, true) => Three::Equal,
        (18, false) => Three::Mla,
        (18, true) => Three::Mls,
        (19, false) => Three::Mul,
        (20, true) => Three::UmaxPairs,
        (21, true) => Three::UminPairs,
        (23, false) => Three::AddPairs,
        _ => return None,
    };
    Some(Simd::Three { op, size, full: full(i), d: rd(i), n: rn(i), m: rm(i) })
}

fn two(i: u32) -> Option<Simd> {
    let (unsigned, size) = (bits(i, 29, 29) == 1, bits(i, 23, 22) as u8);
    let op = match (bits(i, 16, 12), unsigned) {
        (0, false) => Two::Rev64,
        (0, true) => Two::Rev32,
        (1, false) => Two::Rev16,
        (5, true) if size == 0 => Two::Not,
        (8, false) => Two::Greater,
        (8, true) => Two::GreaterEqual,
        (9, false) => Two::Equal,
        (9, true) => Two::LessEqual,
        (10, false) => Two::Less,
        (11, false) => Two::Abs,
        (11, true) => Two::Neg,
        (18, false) => Two::Narrow,
        _ => return None,
    };
    Some(Simd::Two { op, size, full: full(i), d: rd(i), n: rn(i) })
}

fn shift(i: u32) -> Option<Simd> {
    let (unsigned, number) = (bits(i, 29, 29) == 1, bits(i, 22, 16));
    let size = (number >> 3).checked_ilog2()? as u8;
    let lane = 8 << size;
    let (left, right) = ((number - lane) as u8, (2 * lane - number) as u8);
    let scalar = bits(i, 28, 28) == 1;
    let (op, by) = match (bits(i, 15, 11), unsigned) {
        (0, false) => (LaneShift::RightSigned, right),
        (0, true) => (LaneShift::Right, right),
        (2, false) => (LaneShift::RightSignedAdd, right),
        (2, true) => (LaneShift::RightAdd, right),
        (8, true) => (LaneShift::RightInsert, right),
        (10, false) => (LaneShift::Left, left),
        (10, true) => (LaneShift::LeftInsert, left),
        (16, false) if !scalar => (LaneShift::Narrow, right),
        (20, false) if !scalar => (LaneShift::WidenSigned, left),
        (20, true) if !scalar => (LaneShift::Widen, left),
        _ => return None,
    };
    Some(Simd::Shift { op, size, full: full(i) && !scalar, d: rd(i), n: rn(i), by })
}

fn copy(i: u32) -> Option<Simd> {
    let (place, which) = (bits(i, 20, 16), bits(i, 14, 11));
    let size = place.trailing_zeros() as u8;
    let lane = (place >> (size + 1)) as u8;
    let full = full(i);
    Some(match (bits(i, 29, 29), which) {
        (0, 0) => Simd::Dup { size, full, d: rd(i), n: rn(i), lane },
        (0, 1) => Simd::DupGeneral { size, full, d: rd(i), n: z(i >> 5) },
        (0, 3) => Simd::FromGeneral { size, d: rd(i), n: z(i >> 5), lane },
        (0, 5) => Simd::ToGeneral { signed: true, wide: full, size, d: d(i), n: rn(i), lane },
        (0, 7) => Simd::ToGeneral { signed: false, wide: full, size, d: d(i), n: rn(i), lane },
        (1, from) => Simd::Insert { size, d: rd(i), n: rn(i), to: lane, from: (from >> size) as u8 },
        _ => return None,
    })
}
