//! Floating point, vectors and cryptography as text.

use std::fmt;

use super::memory::{arrangement, list};
use super::{CONDITIONS, R};
use crate::isa::insn::Reg;
use crate::isa::simd::{
    Across, Crypto, Float1, Float2, FloatZero, Floats2, LaneShift, Long, Permute, Round, Shape, Simd, Three,
    Two,
};

/// The letter of a lane's or a scalar's size.
fn letter(size: u8) -> char {
    ['b', 'h', 's', 'd'][usize::from(size & 3)]
}

/// A scalar of single or double precision.
struct S(Reg, bool);

impl fmt::Display for S {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{}", if self.1 { 'd' } else { 's' }, self.0)
    }
}

/// A whole vector with its lanes.
struct V(Reg, u8, bool);

impl fmt::Display for V {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "v{}.{}", self.0, arrangement(self.1, self.2))
    }
}

fn float1(op: Float1) -> &'static str {
    match op {
        Float1::Abs => "fabs",
        Float1::Neg => "fneg",
        Float1::Sqrt => "fsqrt",
        Float1::Round(Round::Nearest) => "frintn",
        Float1::Round(Round::Up) => "frintp",
        Float1::Round(Round::Down) => "frintm",
        Float1::Round(Round::Zero) => "frintz",
        Float1::Round(Round::Away) => "frinta",
        Float1::Bounded { long: false, current: false } => "frint32z",
        Float1::Bounded { long: false, current: true } => "frint32x",
        Float1::Bounded { long: true, current: false } => "frint64z",
        Float1::Bounded { long: true, current: true } => "frint64x",
        Float1::RoundExact => "frintx",
        Float1::RoundCurrent => "frinti",
        Float1::Convert => "fcvt",
    }
}

fn float2(op: Float2) -> &'static str {
    match op {
        Float2::Mul => "fmul",
        Float2::Div => "fdiv",
        Float2::Add => "fadd",
        Float2::Sub => "fsub",
        Float2::Max => "fmax",
        Float2::Min => "fmin",
        Float2::MaxNum => "fmaxnm",
        Float2::MinNum => "fminnm",
    }
}

/// The letter of how a number becomes an integer.
fn mode(round: Round) -> char {
    match round {
        Round::Nearest => 'n',
        Round::Up => 'p',
        Round::Down => 'm',
        Round::Zero => 'z',
        Round::Away => 'a',
    }
}

fn floats2(op: Floats2) -> &'static str {
    match op {
        Floats2::Each(op) => float2(op),
        Floats2::MulExtended => "fmulx",
        Floats2::Difference => "fabd",
        Floats2::MulAdd => "fmla",
        Floats2::MulSub => "fmls",
        Floats2::Equal => "fcmeq",
        Floats2::GreaterEqual => "fcmge",
        Floats2::Greater => "fcmgt",
        Floats2::AbsGreaterEqual => "facge",
        Floats2::AbsGreater => "facgt",
        Floats2::AddPairs => "faddp",
        Floats2::MaxPairs => "fmaxp",
        Floats2::MinPairs => "fminp",
        Floats2::MaxNumPairs => "fmaxnmp",
        Floats2::MinNumPairs => "fminnmp",
        Floats2::ReciprocalStep => "frecps",
        Floats2::RootStep => "frsqrts",
    }
}

/// Numbers in a vector register.
struct Floats(Reg, bool, Shape);

impl fmt::Display for Floats {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.2 {
            Shape::Scalar => S(self.0, self.1).fmt(f),
            shape => V(self.0, 2 + u8::from(self.1), shape == Shape::Full).fmt(f),
        }
    }
}

/// Instructions on numbers lane by lane.
fn floats(f: &mut fmt::Formatter, insn: Simd) -> fmt::Result {
    match insn {
        Simd::Floats1 { op, double, shape, d, n } => {
            write!(f, "{} {}, {}", float1(op), Floats(d, double, shape), Floats(n, double, shape))
        }
        Simd::Floats2 { op, double, shape, d, n, m, lane } => {
            let [d, n, whole] = [d, n, m].map(|r| Floats(r, double, shape));
            write!(f, "{} {d}, {n}, ", floats2(op))?;
            match lane {
                None => write!(f, "{whole}"),
                Some(lane) => write!(f, "v{m}.{}[{lane}]", letter(2 + u8::from(double))),
            }
        }
        Simd::FloatsZero { op, double, shape, d, n } => {
            let name = match op {
                FloatZero::Greater => "fcmgt",
                FloatZero::GreaterEqual => "fcmge",
                FloatZero::Equal => "fcmeq",
                FloatZero::LessEqual => "fcmle",
                FloatZero::Less => "fcmlt",
            };
            write!(f, "{name} {}, {}, #0.0", Floats(d, double, shape), Floats(n, double, shape))
        }
        Simd::FloatsToInts { double, signed, round, shape, d, n } => {
            let (mode, kind) = (mode(round), if signed { 's' } else { 'u' });
            write!(f, "fcvt{mode}{kind} {}, {}", Floats(d, double, shape), Floats(n, double, shape))
        }
        Simd::FloatsFromInts { double, signed, shape, d, n } => {
            let kind = if signed { 's' } else { 'u' };
            write!(f, "{kind}cvtf {}, {}", Floats(d, double, shape), Floats(n, double, shape))
        }
        Simd::Lengthen { upper, d, n } => {
            let second = if upper { "2" } else { "" };
            write!(f, "fcvtl{second} {}, {}", V(d, 3, true), V(n, 2, upper))
        }
        Simd::Shorten { upper, d, n } => {
            let second = if upper { "2" } else { "" };
            write!(f, "fcvtn{second} {}, {}", V(d, 2, upper), V(n, 3, true))
        }
        Simd::AddPair { double, d, n } => {
            write!(f, "faddp {}, v{n}.2{}", S(d, double), letter(2 + u8::from(double)))
        }
        _ => Ok(()),
    }
}

fn three(op: Three) -> &'static str {
    match op {
        Three::Orn => "orn",
        Three::Bsl => "bsl",
        Three::Bit => "bit",
        Three::Bif => "bif",
        Three::Greater => "cmgt",
        Three::Higher => "cmhi",
        Three::GreaterEqual => "cmge",
        Three::HigherSame => "cmhs",
        Three::Equal => "cmeq",
        Three::Test => "cmtst",
        Three::Smax => "smax",
        Three::Smin => "smin",
        Three::Umax => "umax",
        Three::Umin => "umin",
        Three::Mul => "mul",
        Three::Mla => "mla",
        Three::Mls => "mls",
        Three::AddPairs => "addp",
        Three::UmaxPairs => "umaxp",
        Three::UminPairs => "uminp",
        Three::SmaxPairs => "smaxp",
        Three::SminPairs => "sminp",
        Three::Add => "add",
        Three::Sub => "sub",
        Three::ShiftBy => "ushl",
        Three::ShiftBySigned => "sshl",
        Three::Difference => "uabd",
        Three::DifferenceSigned => "sabd",
        Three::DifferenceAdd => "uaba",
        Three::DifferenceSignedAdd => "saba",
        Three::RoundedMean => "urhadd",
    }
}

/// The name, and by how much the result's lane is wider.
fn across(op: Across) -> (&'static str, u8) {
    match op {
        Across::Sum => ("addv", 0),
        Across::SumLong => ("uaddlv", 1),
        Across::SumLongSigned => ("saddlv", 1),
        Across::Umax => ("umaxv", 0),
        Across::Umin => ("uminv", 0),
        Across::Smax => ("smaxv", 0),
        Across::Smin => ("sminv", 0),
    }
}

fn long(f: &mut fmt::Formatter, insn: Simd) -> fmt::Result {
    let Simd::Long { op, signed, size, upper, d, n, m, lane } = insn else { return Ok(()) };
    let (sign, name) = match op {
        Long::Add => (true, "addl"),
        Long::Sub => (true, "subl"),
        Long::Difference => (true, "abdl"),
        Long::DifferenceAdd => (true, "abal"),
        Long::Mul => (true, "mull"),
        Long::MulAdd => (true, "mlal"),
        Long::MulSub => (true, "mlsl"),
        Long::AddWide => (true, "addw"),
        Long::SubWide => (true, "subw"),
        Long::AddNarrow => (false, "addhn"),
        Long::SubNarrow => (false, "subhn"),
    };
    let sign = match (sign, signed) {
        (false, _) => "",
        (_, true) => "s",
        (_, false) => "u",
    };
    let [narrow, wide] = [|r: Reg, size, upper| V(r, size, upper), |r: Reg, size, _| V(r, size + 1, true)];
    let (to, from, by) = match op {
        Long::AddWide | Long::SubWide => (wide(d, size, upper), wide(n, size, upper), narrow(m, size, upper)),
        Long::AddNarrow | Long::SubNarrow => {
            (narrow(d, size, upper), wide(n, size, upper), wide(m, size, upper))
        }
        _ => (wide(d, size, upper), narrow(n, size, upper), narrow(m, size, upper)),
    };
    write!(f, "{sign}{name}{} {to}, {from}, ", if upper { "2" } else { "" })?;
    match lane {
        None => write!(f, "{by}"),
        Some(lane) => write!(f, "v{m}.{}[{lane}]", letter(size)),
    }
}

/// The name, and what stands behind the operands.
fn two(op: Two) -> (&'static str, &'static str) {
    match op {
        Two::Rev64 => ("rev64", ""),
        Two::Rev32 => ("rev32", ""),
        Two::Rev16 => ("rev16", ""),
        Two::Not => ("mvn", ""),
        Two::Count => ("cnt", ""),
        Two::Neg => ("neg", ""),
        Two::Abs => ("abs", ""),
        Two::Greater => ("cmgt", ", #0"),
        Two::GreaterEqual => ("cmge", ", #0"),
        Two::Equal => ("cmeq", ", #0"),
        Two::LessEqual => ("cmle", ", #0"),
        Two::Less => ("cmlt", ", #0"),
        Two::Narrow => ("xtn", ""),
        Two::PairSums => ("uaddlp", ""),
        Two::PairSumsSigned => ("saddlp", ""),
        Two::PairSumsAdd => ("uadalp", ""),
        Two::PairSumsSignedAdd => ("sadalp", ""),
    }
}

fn permute(op: Permute) -> &'static str {
    match op {
        Permute::Uzp1 => "uzp1",
        Permute::Trn1 => "trn1",
        Permute::Zip1 => "zip1",
        Permute::Uzp2 => "uzp2",
        Permute::Trn2 => "trn2",
        Permute::Zip2 => "zip2",
    }
}

/// The name and the kind of each operand: `q` and `s` scalars, or an arrangement.
fn crypto(op: Crypto) -> (&'static str, [&'static str; 3]) {
    match op {
        Crypto::Aese => ("aese", ["16b", "16b", ""]),
        Crypto::Aesd => ("aesd", ["16b", "16b", ""]),
        Crypto::Aesmc => ("aesmc", ["16b", "16b", ""]),
        Crypto::Aesimc => ("aesimc", ["16b", "16b", ""]),
        Crypto::Pmull => ("pmull", ["1q", "1d", "1d"]),
        Crypto::Pmull2 => ("pmull2", ["1q", "2d", "2d"]),
        Crypto::Sha1c => ("sha1c", ["q", "s", "4s"]),
        Crypto::Sha1p => ("sha1p", ["q", "s", "4s"]),
        Crypto::Sha1m => ("sha1m", ["q", "s", "4s"]),
        Crypto::Sha1su0 => ("sha1su0", ["4s", "4s", "4s"]),
        Crypto::Sha1h => ("sha1h", ["s", "s", ""]),
        Crypto::Sha1su1 => ("sha1su1", ["4s", "4s", ""]),
        Crypto::Sha256h => ("sha256h", ["q", "q", "4s"]),
        Crypto::Sha256h2 => ("sha256h2", ["q", "q", "4s"]),
        Crypto::Sha256su0 => ("sha256su0", ["4s", "4s", ""]),
        Crypto::Sha256su1 => ("sha256su1", ["4s", "4s", "4s"]),
    }
}

/// Shifts: of a scalar, of lanes of one size, and of lanes that become wider or narrower.
fn shift(f: &mut fmt::Formatter, scalar: bool, insn: Simd) -> fmt::Result {
    let Simd::Shift { op, size, full, d, n, by } = insn else { return Ok(()) };
    let second = if full { "2" } else { "" };
    let name = match op {
        LaneShift::Left => "shl",
        LaneShift::Right => "ushr",
        LaneShift::RightSigned => "sshr",
        LaneShift::RightAdd => "usra",
        LaneShift::RightSignedAdd => "ssra",
        LaneShift::LeftInsert => "sli",
        LaneShift::RightInsert => "sri",
        LaneShift::Widen | LaneShift::WidenSigned => {
            let s = if op == LaneShift::Widen { 'u' } else { 's' };
            let (to, from) = (V(d, size + 1, true), V(n, size, full));
            return match by {
                0 => write!(f, "{s}xtl{second} {to}, {from}"),
                _ => write!(f, "{s}shll{second} {to}, {from}, #{by}"),
            };
        }
        LaneShift::Narrow => {
            return write!(f, "shrn{second} {}, {}, #{by}", V(d, size, full), V(n, size + 1, true));
        }
    };
    if scalar {
        return write!(f, "{name} d{d}, d{n}, #{by}");
    }
    write!(f, "{name} {}, {}, #{by}", V(d, size, full), V(n, size, full))
}

/// Lanes that go to and fro.
fn copy(f: &mut fmt::Formatter, insn: Simd) -> fmt::Result {
    match insn {
        Simd::Dup { size, full, d, n, lane } => {
            write!(f, "dup {}, v{n}.{}[{lane}]", V(d, size, full), letter(size))
        }
        Simd::Lane { size, d, n, lane } => {
            write!(f, "mov {0}{d}, v{n}.{0}[{lane}]", letter(size))
        }
        Simd::DupGeneral { size, full, d, n } => {
            write!(f, "dup {}, {}", V(d, size, full), R(n, size == 3))
        }
        Simd::ToGeneral { signed, wide, size, d, n, lane } => {
            let name = match (signed, size) {
                (true, _) => "smov",
                (false, 2 | 3) => "mov",
                (false, _) => "umov",
            };
            write!(f, "{name} {}, v{n}.{}[{lane}]", R(d, wide), letter(size))
        }
        Simd::FromGeneral { size, d, n, lane } => {
            write!(f, "mov v{d}.{}[{lane}], {}", letter(size), R(n, size == 3))
        }
        Simd::Insert { size, d, n, to, from } => {
            write!(f, "mov v{d}.{0}[{to}], v{n}.{0}[{from}]", letter(size))
        }
        _ => Ok(()),
    }
}

/// Conversions from and to integers, and comparisons.
fn convert(f: &mut fmt::Formatter, word: u32, insn: Simd) -> fmt::Result {
    match insn {
        Simd::Compare { double, n, m } => {
            let name = if word >> 4 & 1 == 1 { "fcmpe" } else { "fcmp" };
            match m {
                Some(m) => write!(f, "{name} {}, {}", S(n, double), S(m, double)),
                None => write!(f, "{name} {}, #0.0", S(n, double)),
            }
        }
        Simd::ToInt { double, wide, signed, round, d, n } => {
            let (r, s) = (mode(round), if signed { 's' } else { 'u' });
            write!(f, "fcvt{r}{s} {}, {}", R(d, wide), S(n, double))
        }
        Simd::FromInt { double, wide, signed, d, n } => {
            write!(f, "{}cvtf {}, {}", if signed { 's' } else { 'u' }, S(d, double), R(n, wide))
        }
        Simd::FromLane { double, d, n } => write!(f, "scvtf {}, {}", S(d, double), S(n, double)),
        Simd::ConditionalCompare { double, signal, n, m, cond, nzcv } => {
            let (e, cond) = (if signal { "e" } else { "" }, CONDITIONS[usize::from(cond)]);
            write!(f, "fccmp{e} {}, {}, #{nzcv:#x}, {cond}", S(n, double), S(m, double))
        }
        Simd::ToFixed { double, wide, signed, d, n, fraction } => {
            let s = if signed { 's' } else { 'u' };
            write!(f, "fcvtz{s} {}, {}, #{fraction}", R(d, wide), S(n, double))
        }
        Simd::FromFixed { double, wide, signed, d, n, fraction } => {
            let s = if signed { 's' } else { 'u' };
            write!(f, "{s}cvtf {}, {}, #{fraction}", S(d, double), R(n, wide))
        }
        Simd::Javascript { d, n } => write!(f, "fjcvtzs {}, {}", R(d, false), S(n, true)),
        Simd::FromUpper { d, n } => write!(f, "fmov {}, v{n}.d[1]", R(d, true)),
        Simd::ToUpper { d, n } => write!(f, "fmov v{d}.d[1], {}", R(n, true)),
        Simd::ToHalf { double, d, n } => write!(f, "fcvt h{d}, {}", S(n, double)),
        Simd::FromHalf { double, d, n } => write!(f, "fcvt {}, h{n}", S(d, double)),
        _ => Ok(()),
    }
}

/// The instruction `insn`, whose word is `word`; nothing for constants, which are not kept as they were written.
pub(super) fn simd(f: &mut fmt::Formatter, word: u32, insn: Simd) -> fmt::Result {
    match insn {
        Simd::Const { .. } | Simd::OrConst { .. } | Simd::AndConst { .. } => Ok(()),
        Simd::Float1 { op: Float1::Convert, double, d, n } => {
            write!(f, "fcvt {}, {}", S(d, double), S(n, !double))
        }
        Simd::Float1 { op, double, d, n } => {
            write!(f, "{} {}, {}", float1(op), S(d, double), S(n, double))
        }
        Simd::Float2 { op, double, d, n, m } => {
            write!(f, "{} {}, {}, {}", float2(op), S(d, double), S(n, double), S(m, double))
        }
        Simd::NegatedMul { double, d, n, m } => {
            write!(f, "fnmul {}, {}, {}", S(d, double), S(n, double), S(m, double))
        }
        Simd::Fma { double, negate_addend, negate_product, d, n, m, a } => {
            let name = match (negate_addend, negate_product) {
                (false, false) => "fmadd",
                (false, true) => "fmsub",
                (true, true) => "fnmadd",
                (true, false) => "fnmsub",
            };
            let [d, n, m, a] = [d, n, m, a].map(|r| S(r, double));
            write!(f, "{name} {d}, {n}, {m}, {a}")
        }
        Simd::Select { double, cond, d, n, m } => {
            let [d, n, m] = [d, n, m].map(|r| S(r, double));
            write!(f, "fcsel {d}, {n}, {m}, {}", CONDITIONS[usize::from(cond)])
        }
        Simd::Compare { .. }
        | Simd::ConditionalCompare { .. }
        | Simd::ToInt { .. }
        | Simd::FromInt { .. }
        | Simd::ToFixed { .. }
        | Simd::FromFixed { .. }
        | Simd::Javascript { .. }
        | Simd::FromUpper { .. }
        | Simd::ToUpper { .. }
        | Simd::ToHalf { .. }
        | Simd::FromHalf { .. }
        | Simd::FromLane { .. } => convert(f, word, insn),
        Simd::Floats1 { .. }
        | Simd::Floats2 { .. }
        | Simd::FloatsZero { .. }
        | Simd::FloatsToInts { .. }
        | Simd::FloatsFromInts { .. }
        | Simd::Lengthen { .. }
        | Simd::Shorten { .. }
        | Simd::AddPair { .. } => floats(f, insn),
        Simd::Three { op, d, n, m, .. } if word >> 28 & 1 == 1 => {
            write!(f, "{} d{d}, d{n}, d{m}", three(op))
        }
        Simd::Three { op, size, full, d, n, m } => {
            let logical = matches!(op, Three::Orn | Three::Bsl | Three::Bit | Three::Bif);
            let [d, n, m] = [d, n, m].map(|r| V(r, if logical { 0 } else { size }, full));
            write!(f, "{} {d}, {n}, {m}", three(op))
        }
        Simd::Two { op: Two::Narrow, size, full, d, n } => {
            let second = if full { "2" } else { "" };
            write!(f, "xtn{second} {}, {}", V(d, size, full), V(n, size + 1, true))
        }
        Simd::Two { op, d, n, .. } if word >> 28 & 1 == 1 => {
            let (name, zero) = two(op);
            write!(f, "{name} d{d}, d{n}{zero}")
        }
        Simd::Two {
            op: op @ (Two::PairSums | Two::PairSumsSigned | Two::PairSumsAdd | Two::PairSumsSignedAdd),
            size,
            full,
            d,
            n,
        } => write!(f, "{} {}, {}", two(op).0, V(d, size + 1, full), V(n, size, full)),
        Simd::Two { op, size, full, d, n } => {
            let (name, zero) = two(op);
            write!(f, "{name} {}, {}{zero}", V(d, size, full), V(n, size, full))
        }
        Simd::Across { op, size, full, d, n } => {
            let (name, wider) = across(op);
            write!(f, "{name} {}{d}, {}", letter(size + wider), V(n, size, full))
        }
        Simd::PairSum { d, n } => write!(f, "addp d{d}, v{n}.2d"),
        Simd::Long { .. } => long(f, insn),
        Simd::ByLane { op, size, full, d, n, m, lane } => {
            let [d, n] = [d, n].map(|r| V(r, size, full));
            write!(f, "{} {d}, {n}, v{m}.{}[{lane}]", three(op), letter(size))
        }
        Simd::Shift { .. } => shift(f, word >> 28 & 1 == 1, insn),
        Simd::Permute { op, size, full, d, n, m } => {
            let [d, n, m] = [d, n, m].map(|r| V(r, size, full));
            write!(f, "{} {d}, {n}, {m}", permute(op))
        }
        Simd::Extract { full, d, n, m, by } => {
            let [d, n, m] = [d, n, m].map(|r| V(r, 0, full));
            write!(f, "ext {d}, {n}, {m}, #{by}")
        }
        Simd::Table { keeps, count, full, d, n, m } => {
            write!(f, "{} {}, ", if keeps { "tbx" } else { "tbl" }, V(d, 0, full))?;
            list(f, n.into(), count.into(), "16b")?;
            write!(f, ", {}", V(m, 0, full))
        }
        Simd::Dup { .. }
        | Simd::Lane { .. }
        | Simd::DupGeneral { .. }
        | Simd::ToGeneral { .. }
        | Simd::FromGeneral { .. }
        | Simd::Insert { .. } => copy(f, insn),
        Simd::Crypto { op, d, n, m } => {
            let (name, kinds) = crypto(op);
            f.write_str(name)?;
            let operands = [d, n, m].into_iter().zip(kinds).filter(|(_, kind)| !kind.is_empty());
            for (at, (r, kind)) in operands.enumerate() {
                f.write_str(if at == 0 { " " } else { ", " })?;
                match kind {
                    "q" | "s" => write!(f, "{kind}{r}")?,
                    _ => write!(f, "v{r}.{kind}")?,
                }
            }
            Ok(())
        }
        Simd::Eor3 { d, n, m, a } => {
            let [d, n, m, a] = [d, n, m, a].map(|r| V(r, 0, true));
            write!(f, "eor3 {d}, {n}, {m}, {a}")
        }
    }
}
