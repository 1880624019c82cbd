//! Instructions on vector registers by name: floating point, Advanced SIMD and cryptography (Arm ARM, C4.1, "Data
//! Processing -- Scalar Floating-Point and Advanced SIMD"). Those that are not here are left to the interpreter.

use super::decode::{bits, d, z};
use super::insn::Reg;
use super::registers::Registers;
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
    /// FRINT32Z, FRINT32X and the same with 64: to an integral value of so many bits.
    Bounded {
        long: bool,
        current: bool,
    },
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
    /// To nearest, halves away from zero.
    Away,
}

/// Of two numbers; FNMUL is elsewhere.
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
}

/// Numbers lane by lane, of two registers and, for FMLA and FMLS, the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Floats2 {
    /// What there is of two single numbers as well.
    Each(Float2),
    /// FMULX.
    MulExtended,
    /// FABD.
    Difference,
    /// FMLA, FMLS.
    MulAdd,
    MulSub,
    Equal,
    GreaterEqual,
    Greater,
    /// FACGE, FACGT.
    AbsGreaterEqual,
    AbsGreater,
    /// FADDP and its kind: of neighbours, those of the first register first.
    AddPairs,
    MaxPairs,
    MinPairs,
    MaxNumPairs,
    MinNumPairs,
    /// FRECPS, FRSQRTS.
    ReciprocalStep,
    RootStep,
}

/// A comparison of numbers with zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatZero {
    Greater,
    GreaterEqual,
    Equal,
    LessEqual,
    Less,
}

/// Which lanes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Those of 8 bytes.
    Half,
    /// Those of 16.
    Full,
    /// The lowest alone, zeros above.
    Scalar,
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
    /// ADDP, UMAXP, UMINP, SMAXP, SMINP: of neighbours, those of the first register first.
    AddPairs,
    UmaxPairs,
    UminPairs,
    SmaxPairs,
    SminPairs,
    /// Of scalars; vectors have another name.
    Add,
    Sub,
    /// USHL and SSHL: by the lowest byte of each lane, to the right where it is negative.
    ShiftBy,
    ShiftBySigned,
    /// UABD, SABD; UABA and SABA add to the destination.
    Difference,
    DifferenceSigned,
    DifferenceAdd,
    DifferenceSignedAdd,
    /// URHADD.
    RoundedMean,
}

/// Of all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Across {
    /// ADDV; UADDLV and SADDLV, whose result is twice as wide.
    Sum,
    SumLong,
    SumLongSigned,
    Umax,
    Umin,
    Smax,
    Smin,
}

/// Lane by lane, of lanes as wide as the instruction's and ones twice as wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Long {
    /// UADDL, USUBL, UABDL, UABAL, UMULL, UMLAL, UMLSL: two narrow ones make a wide one.
    Add,
    Sub,
    Difference,
    DifferenceAdd,
    Mul,
    MulAdd,
    MulSub,
    /// UADDW, USUBW: a wide and a narrow one make a wide one.
    AddWide,
    SubWide,
    /// ADDHN, SUBHN: the upper half of what two wide ones make.
    AddNarrow,
    SubNarrow,
}

/// Lane by lane, of one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Two {
    Rev64,
    Rev32,
    Rev16,
    Not,
    /// CNT: how many bits of a byte are set.
    Count,
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
    /// UADDLP, SADDLP: of neighbours, twice as wide; UADALP and SADALP add to the destination.
    PairSums,
    PairSumsSigned,
    PairSumsAdd,
    PairSumsSignedAdd,
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
    /// FNMUL.
    NegatedMul {
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
    /// FCCMP and, where `signal`, FCCMPE.
    ConditionalCompare {
        double: bool,
        signal: bool,
        n: Reg,
        m: Reg,
        cond: u8,
        nzcv: u8,
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
    /// To and from fixed point with so many bits behind the point; the one register is a general register.
    ToFixed {
        double: bool,
        wide: bool,
        signed: bool,
        d: Reg,
        n: Reg,
        fraction: u8,
    },
    FromFixed {
        double: bool,
        wide: bool,
        signed: bool,
        d: Reg,
        n: Reg,
        fraction: u8,
    },
    /// FJCVTZS; `d` is a general register, and Z says whether the value was exact.
    Javascript {
        d: Reg,
        n: Reg,
    },
    /// FMOV from and to the upper half of a vector register; the other is a general register.
    FromUpper {
        d: Reg,
        n: Reg,
    },
    ToUpper {
        d: Reg,
        n: Reg,
    },
    /// FCVT to half precision and from it.
    ToHalf {
        double: bool,
        d: Reg,
        n: Reg,
    },
    FromHalf {
        double: bool,
        d: Reg,
        n: Reg,
    },
    /// SCVTF of a scalar; the integer is as wide as the number.
    FromLane {
        double: bool,
        d: Reg,
        n: Reg,
    },
    /// Lane by lane; none is a conversion to the other size.
    Floats1 {
        op: Float1,
        double: bool,
        shape: Shape,
        d: Reg,
        n: Reg,
    },
    /// `lane` says which lane of `m` is meant for all, where one is.
    Floats2 {
        op: Floats2,
        double: bool,
        shape: Shape,
        d: Reg,
        n: Reg,
        m: Reg,
        lane: Option<u8>,
    },
    FloatsZero {
        op: FloatZero,
        double: bool,
        shape: Shape,
        d: Reg,
        n: Reg,
    },
    /// FCVTZS and its kind, SCVTF and UCVTF, to and from integers as wide as the numbers.
    FloatsToInts {
        double: bool,
        signed: bool,
        round: Round,
        shape: Shape,
        d: Reg,
        n: Reg,
    },
    FloatsFromInts {
        double: bool,
        signed: bool,
        shape: Shape,
        d: Reg,
        n: Reg,
    },
    /// FCVTL: single to double, of the upper half where `upper`; FCVTN: double to single, to the upper half.
    Lengthen {
        upper: bool,
        d: Reg,
        n: Reg,
    },
    Shorten {
        upper: bool,
        d: Reg,
        n: Reg,
    },
    /// FADDP of the two lowest lanes to a scalar.
    AddPair {
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
    Across {
        op: Across,
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
    },
    /// ADDP of the two lanes to a scalar.
    PairSum {
        d: Reg,
        n: Reg,
    },
    /// `upper` says that the narrow lanes are those of upper halves; `lane` which lane of `m` is meant for all, where
    /// one is.
    Long {
        op: Long,
        signed: bool,
        size: u8,
        upper: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        lane: Option<u8>,
    },
    /// MUL, MLA and MLS by one lane of `m`.
    ByLane {
        op: Three,
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        lane: u8,
    },
    /// ORR and BIC of an immediate, which takes what is not in `value`.
    OrConst {
        full: bool,
        d: Reg,
        value: u128,
    },
    AndConst {
        d: Reg,
        value: u128,
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
    /// TBL and, where it `keeps` what no table has, TBX: `count` registers from `n` on are the table.
    Table {
        keeps: bool,
        count: u8,
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
    /// What it reads.
    pub(crate) fn reads(self) -> Registers {
        let none = Registers::NONE;
        match self {
            Self::Const { .. } => none,
            Self::Float1 { n, .. }
            | Self::Compare { n, m: None, .. }
            | Self::ToInt { n, .. }
            | Self::ToFixed { n, .. }
            | Self::Javascript { n, .. }
            | Self::FromUpper { n, .. }
            | Self::ToHalf { n, .. }
            | Self::FromHalf { n, .. }
            | Self::FromLane { n, .. }
            | Self::Floats1 { n, .. }
            | Self::FloatsZero { n, .. }
            | Self::FloatsToInts { n, .. }
            | Self::FloatsFromInts { n, .. }
            | Self::Lengthen { n, .. }
            | Self::Shorten { upper: false, n, .. }
            | Self::AddPair { n, .. }
            | Self::Across { n, .. }
            | Self::PairSum { n, .. }
            | Self::Dup { n, .. }
            | Self::Lane { n, .. }
            | Self::ToGeneral { n, .. } => none.v(n),
            Self::Floats2 { op, d, n, m, .. } => {
                let all = none.v(n).v(m);
                if matches!(op, Floats2::MulAdd | Floats2::MulSub) { all.v(d) } else { all }
            }
            Self::Float2 { n, m, .. }
            | Self::NegatedMul { n, m, .. }
            | Self::Compare { n, m: Some(m), .. }
            | Self::Permute { n, m, .. }
            | Self::Extract { n, m, .. } => none.v(n).v(m),
            Self::Table { keeps, count, d, n, m, .. } => {
                let all = none.v(m).structure(n, count);
                if keeps { all.v(d) } else { all }
            }
            Self::Long { op, upper, d, n, m, .. } => {
                let all = none.v(n).v(m);
                match op {
                    Long::DifferenceAdd | Long::MulAdd | Long::MulSub => all.v(d),
                    Long::AddNarrow | Long::SubNarrow if upper => all.v(d),
                    _ => all,
                }
            }
            Self::ByLane { op: Three::Mul, n, m, .. } => none.v(n).v(m),
            Self::ByLane { d, n, m, .. } => none.v(n).v(m).v(d),
            Self::OrConst { d, .. } | Self::AndConst { d, .. } => none.v(d),
            Self::Fma { n, m, a, .. } | Self::Eor3 { n, m, a, .. } => none.v(n).v(m).v(a),
            Self::ConditionalCompare { n, m, .. } | Self::Select { n, m, .. } => Registers::FLAGS.v(n).v(m),
            Self::FromInt { n, .. } | Self::FromFixed { n, .. } | Self::DupGeneral { n, .. } => none.x(n),
            // The rest of the register stays.
            Self::ToUpper { d, n } | Self::FromGeneral { d, n, .. } => none.x(n).v(d),
            Self::Insert { d, n, .. } | Self::Shorten { d, n, .. } => none.v(n).v(d),
            Self::Three { op, d, n, m, .. } => {
                let all = none.v(n).v(m);
                match op {
                    Three::Bsl
                    | Three::Bit
                    | Three::Bif
                    | Three::Mla
                    | Three::Mls
                    | Three::DifferenceAdd
                    | Three::DifferenceSignedAdd => all.v(d),
                    _ => all,
                }
            }
            Self::Two { op, full, d, n, .. } => match op {
                Two::Narrow if full => none.v(n).v(d),
                Two::PairSumsAdd | Two::PairSumsSignedAdd => none.v(n).v(d),
                _ => none.v(n),
            },
            Self::Shift { op, full, d, n, .. } => match op {
                LaneShift::RightAdd
                | LaneShift::RightSignedAdd
                | LaneShift::LeftInsert
                | LaneShift::RightInsert => none.v(n).v(d),
                LaneShift::Narrow if full => none.v(n).v(d),
                _ => none.v(n),
            },
            Self::Crypto { op, d, n, m } => match op {
                Crypto::Aesmc | Crypto::Aesimc | Crypto::Sha1h => none.v(n),
                Crypto::Aese | Crypto::Aesd | Crypto::Sha1su1 | Crypto::Sha256su0 => none.v(n).v(d),
                Crypto::Pmull | Crypto::Pmull2 => none.v(n).v(m),
                _ => none.v(n).v(m).v(d),
            },
        }
    }

    /// What it writes.
    pub(crate) fn writes(self) -> Registers {
        let none = Registers::NONE;
        match self {
            Self::Compare { .. } | Self::ConditionalCompare { .. } => Registers::FLAGS,
            Self::Javascript { d, .. } => Registers::FLAGS.x(d),
            Self::ToInt { d, .. }
            | Self::ToFixed { d, .. }
            | Self::FromUpper { d, .. }
            | Self::ToGeneral { d, .. } => none.x(d),
            Self::Const { d, .. }
            | Self::Float1 { d, .. }
            | Self::Float2 { d, .. }
            | Self::NegatedMul { d, .. }
            | Self::Fma { d, .. }
            | Self::Select { d, .. }
            | Self::FromInt { d, .. }
            | Self::FromFixed { d, .. }
            | Self::ToUpper { d, .. }
            | Self::ToHalf { d, .. }
            | Self::FromHalf { d, .. }
            | Self::FromLane { d, .. }
            | Self::Floats1 { d, .. }
            | Self::Floats2 { d, .. }
            | Self::FloatsZero { d, .. }
            | Self::FloatsToInts { d, .. }
            | Self::FloatsFromInts { d, .. }
            | Self::Lengthen { d, .. }
            | Self::Shorten { d, .. }
            | Self::AddPair { d, .. }
            | Self::Three { d, .. }
            | Self::Two { d, .. }
            | Self::Across { d, .. }
            | Self::PairSum { d, .. }
            | Self::Long { d, .. }
            | Self::ByLane { d, .. }
            | Self::OrConst { d, .. }
            | Self::AndConst { d, .. }
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
            | Self::Eor3 { d, .. } => none.v(d),
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
    if is(0x1e00_0000, 0x7fa0_0000) {
        let (double, wide) = (bits(i, 22, 22) == 1, i >> 31 == 1);
        let (signed, fraction) = (bits(i, 16, 16) == 0, 64 - bits(i, 15, 10) as u8);
        return Some(match bits(i, 18, 17) {
            0 => Simd::ToFixed { double, wide, signed, d: d(i), n: rn(i), fraction },
            _ => Simd::FromFixed { double, wide, signed, d: rd(i), n: z(i >> 5), fraction },
        });
    }
    if is(0x1e20_0000, 0x7fa0_0000) {
        return scalar(i, handler);
    }
    match i & 0xffff_fc00 {
        0x9eae_0000 => return Some(Simd::FromUpper { d: d(i), n: rn(i) }),
        0x9eaf_0000 => return Some(Simd::ToUpper { d: rd(i), n: z(i >> 5) }),
        0x1ee2_4000 | 0x1ee2_c000 => {
            return Some(Simd::FromHalf { double: bits(i, 15, 15) == 1, d: rd(i), n: rn(i) });
        }
        _ => {}
    }
    if is(0x0f00_0400, 0x9ff8_0400) {
        return constant(i, handler);
    }
    if is(0x0f00_0400, 0x9f80_0400) || is(0x5f40_0400, 0xdfc0_0400) {
        return shift(i);
    }
    if is(0x0e20_c400, 0x9f20_c400) || is(0x5e20_c400, 0xdf20_c400) {
        return floats2(i);
    }
    if is(0x0e20_0400, 0x9f20_0400) || is(0x5e20_0400, 0xdf20_0400) {
        return three(i);
    }
    if is(0x0e20_0000, 0x9f20_0c00) && bits(i, 15, 12) != 14 {
        return long(i);
    }
    if is(0x0f80_0000, 0x9f80_0400) || is(0x5f80_0000, 0xdf80_0400) {
        return floats_by_element(i).or_else(|| by_element(i));
    }
    if is(0x0f00_0000, 0x9f00_0400) {
        return by_element(i);
    }
    if is(0x4e28_0800, 0xff3e_0c00) {
        let op = [Crypto::Aese, Crypto::Aesd, Crypto::Aesmc, Crypto::Aesimc];
        return Some(Simd::Crypto { op: *op.get(bits(i, 14, 12) as usize - 4)?, d: rd(i), n: rn(i), m: 0 });
    }
    if is(0x0e20_0800, 0x9f3e_0c00) || is(0x5e20_0800, 0xdf3e_0c00) {
        return floats1(i).or_else(|| two(i)).or_else(|| crypto(i));
    }
    if is(0x7e30_d800, 0xffbf_fc00) {
        return Some(Simd::AddPair { double: bits(i, 22, 22) == 1, d: rd(i), n: rn(i) });
    }
    if is(0x5ef1_b800, 0xffff_fc00) {
        return Some(Simd::PairSum { d: rd(i), n: rn(i) });
    }
    if is(0x0e30_0800, 0x9f3e_0c00) {
        return across(i);
    }
    if is(0x0e00_0400, 0x9fe0_8400) {
        return copy(i);
    }
    if is(0x5e00_0400, 0xffe0_fc00) {
        let size = bits(i, 20, 16).trailing_zeros() as u8;
        return Some(Simd::Lane { size, d: rd(i), n: rn(i), lane: (bits(i, 20, 16) >> (size + 1)) as u8 });
    }
    if is(0x0e00_0000, 0xbfe0_8c00) {
        let (keeps, count) = (bits(i, 12, 12) == 1, bits(i, 14, 13) as u8 + 1);
        return Some(Simd::Table { keeps, count, full: full(i), d: rd(i), n: rn(i), m: rm(i) });
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
    let mut regs = Regs::default();
    // ORR and BIC change what is there.
    if i >> 28 & 1 == 0 && bits(i, 12, 12) == 1 && bits(i, 15, 12) < 12 {
        let clears = bits(i, 29, 29) == 1;
        regs.v[rd(i) as usize] = if clears { u128::MAX } else { 0 };
        handler(&mut regs, i);
        let (d, value) = (rd(i), regs.v[rd(i) as usize]);
        return Some(if clears {
            Simd::AndConst { d, value }
        } else {
            Simd::OrConst { full: full(i), d, value }
        });
    }
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
            (2, Round::Nearest) => Some(Simd::ToInt { double, wide, signed, round: Round::Away, d: d(i), n }),
            (3, Round::Zero) if double && !wide && signed => Some(Simd::Javascript { d: d(i), n }),
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
                7 => return Some(Simd::ToHalf { double, d: rd(i), n }),
                8 => Float1::Round(Round::Nearest),
                9 => Float1::Round(Round::Up),
                10 => Float1::Round(Round::Down),
                11 => Float1::Round(Round::Zero),
                12 => Float1::Round(Round::Away),
                14 => Float1::RoundExact,
                15 => Float1::RoundCurrent,
                op @ 16..=19 => Float1::Bounded { long: op >= 18, current: op & 1 == 1 },
                _ => return None,
            };
            Some(Simd::Float1 { op, double, d: rd(i), n })
        }
        1 => Some(Simd::ConditionalCompare {
            double,
            signal: bits(i, 4, 4) == 1,
            n,
            m,
            cond: bits(i, 15, 12) as u8,
            nzcv: bits(i, 3, 0) as u8,
        }),
        2 => {
            use Float2::{Add, Div, Max, MaxNum, Min, MinNum, Mul, Sub};
            match bits(i, 15, 12) {
                op @ 0..8 => {
                    let op = [Mul, Div, Add, Sub, Max, Min, MaxNum, MinNum][op as usize];
                    Some(Simd::Float2 { op, double, d: rd(i), n, m })
                }
                8 => Some(Simd::NegatedMul { double, d: rd(i), n, m }),
                _ => None,
            }
        }
        3 => Some(Simd::Select { double, cond: bits(i, 15, 12) as u8, d: rd(i), n, m }),
        _ => None,
    }
}

/// Of an instruction on numbers in vector registers.
fn shape(i: u32) -> Shape {
    match (bits(i, 28, 28), full(i)) {
        (1, _) => Shape::Scalar,
        (_, true) => Shape::Full,
        (_, false) => Shape::Half,
    }
}

fn floats2(i: u32) -> Option<Simd> {
    use Float2::{Add, Div, Max, MaxNum, Min, MinNum, Mul, Sub};
    use Floats2::*;
    let op = match (bits(i, 29, 29), bits(i, 23, 23), bits(i, 13, 11)) {
        (0, 0, 0) => Each(MaxNum),
        (0, 1, 0) => Each(MinNum),
        (0, 0, 1) => MulAdd,
        (0, 1, 1) => MulSub,
        (0, 0, 2) => Each(Add),
        (0, 1, 2) => Each(Sub),
        (0, 0, 3) => MulExtended,
        (0, 0, 4) => Equal,
        (0, 0, 6) => Each(Max),
        (0, 1, 6) => Each(Min),
        (0, 0, 7) => ReciprocalStep,
        (0, 1, 7) => RootStep,
        (1, 0, 0) => MaxNumPairs,
        (1, 1, 0) => MinNumPairs,
        (1, 0, 2) => AddPairs,
        (1, 1, 2) => Difference,
        (1, 0, 3) => Each(Mul),
        (1, 0, 4) => GreaterEqual,
        (1, 1, 4) => Greater,
        (1, 0, 5) => AbsGreaterEqual,
        (1, 1, 5) => AbsGreater,
        (1, 0, 6) => MaxPairs,
        (1, 1, 6) => MinPairs,
        (1, 0, 7) => Each(Div),
        // FMLAL and its kind, of half precision.
        _ => return None,
    };
    let double = bits(i, 22, 22) == 1;
    Some(Simd::Floats2 { op, double, shape: shape(i), d: rd(i), n: rn(i), m: rm(i), lane: None })
}

fn floats_by_element(i: u32) -> Option<Simd> {
    let op = match (bits(i, 29, 29), bits(i, 15, 12)) {
        (0, 0b0001) => Floats2::MulAdd,
        (0, 0b0101) => Floats2::MulSub,
        (0, 0b1001) => Floats2::Each(Float2::Mul),
        (1, 0b1001) => Floats2::MulExtended,
        _ => return None,
    };
    let double = bits(i, 22, 22) == 1;
    let high = bits(i, 11, 11) as u8;
    let lane = Some(if double { high } else { high << 1 | bits(i, 21, 21) as u8 });
    Some(Simd::Floats2 { op, double, shape: shape(i), d: rd(i), n: rn(i), m: rm(i), lane })
}

/// Two-register miscellaneous.
fn floats1(i: u32) -> Option<Simd> {
    let (double, shape) = (bits(i, 22, 22) == 1, shape(i));
    let (d, n) = (rd(i), rn(i));
    let one = |op| Some(Simd::Floats1 { op, double, shape, d, n });
    let zero = |op| Some(Simd::FloatsZero { op, double, shape, d, n });
    let to = |round, signed| Some(Simd::FloatsToInts { double, signed, round, shape, d, n });
    let from = |signed| Some(Simd::FloatsFromInts { double, signed, shape, d, n });
    let bounded = |long, current| one(Float1::Bounded { long, current });
    match (bits(i, 29, 29), bits(i, 23, 23), bits(i, 16, 12)) {
        (0, 1, 0b01100) => zero(FloatZero::Greater),
        (0, 1, 0b01101) => zero(FloatZero::Equal),
        (0, 1, 0b01110) => zero(FloatZero::Less),
        (1, 1, 0b01100) => zero(FloatZero::GreaterEqual),
        (1, 1, 0b01101) => zero(FloatZero::LessEqual),
        (u, 0, 0b11010) => to(Round::Nearest, u == 0),
        (u, 0, 0b11011) => to(Round::Down, u == 0),
        (u, 0, 0b11100) => to(Round::Away, u == 0),
        (u, 1, 0b11010) => to(Round::Up, u == 0),
        (u, 1, 0b11011) => to(Round::Zero, u == 0),
        // One of them has another name.
        (0, 0, 0b11101) if shape == Shape::Scalar => Some(Simd::FromLane { double, d, n }),
        (u, 0, 0b11101) => from(u == 0),
        (0, 1, 0b01111) => one(Float1::Abs),
        (1, 1, 0b01111) => one(Float1::Neg),
        (1, 1, 0b11111) => one(Float1::Sqrt),
        (0, 0, 0b11000) => one(Float1::Round(Round::Nearest)),
        (0, 0, 0b11001) => one(Float1::Round(Round::Down)),
        (0, 1, 0b11000) => one(Float1::Round(Round::Up)),
        (0, 1, 0b11001) => one(Float1::Round(Round::Zero)),
        (1, 0, 0b11000) => one(Float1::Round(Round::Away)),
        (1, 0, 0b11001) => one(Float1::RoundExact),
        (1, 1, 0b11001) => one(Float1::RoundCurrent),
        (u, 0, 0b11110) => bounded(false, u == 1),
        (u, 0, 0b11111) => bounded(true, u == 1),
        (0, 0, 0b10110) if double => Some(Simd::Shorten { upper: full(i), d, n }),
        (0, 0, 0b10111) if double => Some(Simd::Lengthen { upper: full(i), d, n }),
        _ => None,
    }
}

fn is_scalar(i: u32) -> bool {
    bits(i, 28, 28) == 1
}

fn across(i: u32) -> Option<Simd> {
    let op = match (bits(i, 16, 12), bits(i, 29, 29) == 1) {
        (3, true) => Across::SumLong,
        (3, false) => Across::SumLongSigned,
        (10, true) => Across::Umax,
        (10, false) => Across::Smax,
        (26, true) => Across::Umin,
        (26, false) => Across::Smin,
        (27, false) => Across::Sum,
        _ => return None,
    };
    Some(Simd::Across { op, size: bits(i, 23, 22) as u8, full: full(i), d: rd(i), n: rn(i) })
}

/// Three different.
fn long(i: u32) -> Option<Simd> {
    let unsigned = bits(i, 29, 29) == 1;
    let op = match bits(i, 15, 12) {
        0 => Long::Add,
        1 => Long::AddWide,
        2 => Long::Sub,
        3 => Long::SubWide,
        4 if !unsigned => Long::AddNarrow,
        5 => Long::DifferenceAdd,
        6 if !unsigned => Long::SubNarrow,
        7 => Long::Difference,
        8 => Long::MulAdd,
        10 => Long::MulSub,
        12 => Long::Mul,
        _ => return None,
    };
    Some(Simd::Long {
        op,
        signed: !unsigned,
        size: bits(i, 23, 22) as u8,
        upper: full(i),
        d: rd(i),
        n: rn(i),
        m: rm(i),
        lane: None,
    })
}

/// Integers by one lane.
fn by_element(i: u32) -> Option<Simd> {
    let (unsigned, size) = (bits(i, 29, 29) == 1, bits(i, 23, 22) as u8);
    let (high, middle, low) = (bits(i, 11, 11) as u8, bits(i, 21, 21) as u8, bits(i, 20, 20) as u8);
    let (m, lane) = match size {
        1 => (rm(i) & 15, high << 2 | middle << 1 | low),
        2 => (rm(i), high << 1 | middle),
        _ => return None,
    };
    let (d, n) = (rd(i), rn(i));
    if is_scalar(i) {
        return None;
    }
    let whole = match (bits(i, 15, 12), unsigned) {
        (0, true) => Some(Three::Mla),
        (4, true) => Some(Three::Mls),
        (8, false) => Some(Three::Mul),
        _ => None,
    };
    if let Some(op) = whole {
        return Some(Simd::ByLane { op, size, full: full(i), d, n, m, lane });
    }
    let op = match bits(i, 15, 12) {
        2 => Long::MulAdd,
        6 => Long::MulSub,
        10 => Long::Mul,
        _ => return None,
    };
    Some(Simd::Long { op, signed: !unsigned, size, upper: full(i), d, n, m, lane: Some(lane) })
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
        (20, false) => Three::SmaxPairs,
        (21, false) => Three::SminPairs,
        (23, false) => Three::AddPairs,
        (16, false) => Three::Add,
        (16, true) => Three::Sub,
        (8, true) => Three::ShiftBy,
        (8, false) => Three::ShiftBySigned,
        (14, true) => Three::Difference,
        (14, false) => Three::DifferenceSigned,
        (15, true) => Three::DifferenceAdd,
        (15, false) => Three::DifferenceSignedAdd,
        (2, true) => Three::RoundedMean,
        _ => return None,
    };
    // A scalar is as the one lane of a half.
    Some(Simd::Three { op, size, full: full(i) && !is_scalar(i), d: rd(i), n: rn(i), m: rm(i) })
}

fn two(i: u32) -> Option<Simd> {
    let (unsigned, size) = (bits(i, 29, 29) == 1, bits(i, 23, 22) as u8);
    let op = match (bits(i, 16, 12), unsigned) {
        (0, false) => Two::Rev64,
        (0, true) => Two::Rev32,
        (1, false) => Two::Rev16,
        (5, true) if size == 0 => Two::Not,
        (5, false) if size == 0 => Two::Count,
        (8, false) => Two::Greater,
        (8, true) => Two::GreaterEqual,
        (9, false) => Two::Equal,
        (9, true) => Two::LessEqual,
        (10, false) => Two::Less,
        (11, false) => Two::Abs,
        (11, true) => Two::Neg,
        (18, false) => Two::Narrow,
        (2, true) => Two::PairSums,
        (2, false) => Two::PairSumsSigned,
        (6, true) => Two::PairSumsAdd,
        (6, false) => Two::PairSumsSignedAdd,
        _ => return None,
    };
    Some(Simd::Two { op, size, full: full(i) && !is_scalar(i), d: rd(i), n: rn(i) })
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
