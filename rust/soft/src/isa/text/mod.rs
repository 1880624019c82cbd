//! Instructions as text, in the assembler's syntax and with the aliases that GNU objdump prefers.

mod memory;
mod simd;
mod system;

use std::fmt;

use super::insn::{Alu, Constant, FlagOp, Insn, Lanes, Operand, Reg, Select, Unary};
use crate::Regs;

const SP: Reg = Regs::SP as Reg;
const ZERO: Reg = Regs::ZERO as Reg;
const SINK: Reg = Regs::SINK as Reg;

/// The instruction `word` at `address`, as an assembler writes it; `.inst` and the word where it is unallocated or
/// (many of floating point and SIMD) has no name here.
///
/// What an encoding says without effect is not shown: an immediate of 0 that is shifted, and a shift by 0 of a byte's
/// index.
#[must_use]
pub fn disassemble(word: u32, address: u64) -> String {
    let insn = super::decode(word, (address & 0xfff) as u16);
    let text = Text { insn, word, page: address & !0xfff };
    let text = text.to_string();
    if text.is_empty() { format!(".inst {word:#010x}") } else { text }
}

/// An instruction of a page. Nothing for what has no name.
struct Text {
    insn: Insn,
    word: u32,
    page: u64,
}

/// A general register.
struct R(Reg, bool);

impl fmt::Display for R {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match *self {
            R(SP, true) => f.write_str("sp"),
            R(SP, false) => f.write_str("wsp"),
            R(ZERO | SINK, true) => f.write_str("xzr"),
            R(ZERO | SINK, false) => f.write_str("wzr"),
            R(n, true) => write!(f, "x{n}"),
            R(n, false) => write!(f, "w{n}"),
        }
    }
}

const CONDITIONS: [&str; 16] =
    ["eq", "ne", "cs", "cc", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le", "al", "nv"];

const SHIFTS: [&str; 4] = ["lsl", "lsr", "asr", "ror"];
const EXTENSIONS: [&str; 8] = ["uxtb", "uxth", "uxtw", "uxtx", "sxtb", "sxth", "sxtw", "sxtx"];

/// The names of sums, and of logical operations with their inverted forms.
fn alu_name(op: Alu, flags: bool, invert: bool) -> &'static str {
    match (op, flags, invert) {
        (Alu::Add, false, _) => "add",
        (Alu::Add, true, _) => "adds",
        (Alu::Sub, false, _) => "sub",
        (Alu::Sub, true, _) => "subs",
        (Alu::And, false, false) => "and",
        (Alu::And, false, true) => "bic",
        (Alu::And, true, false) => "ands",
        (Alu::And, true, true) => "bics",
        (Alu::Orr, _, false) => "orr",
        (Alu::Orr, _, true) => "orn",
        (Alu::Eor, _, false) => "eor",
        (Alu::Eor, _, true) => "eon",
    }
}

/// Whether MOVZ or MOVN makes this value, so that ORR is not shown as MOV (MoveWidePreferred).
fn fits_move_wide(value: u64, wide: bool) -> bool {
    let one_part = |v: u64| (0..4).any(|n| v & !(0xffff << (16 * n)) == 0);
    let inverse = if wide { !value } else { !value & 0xffff_ffff };
    one_part(value) || one_part(inverse)
}

impl Text {
    fn target(&self, to: i64) -> u64 {
        self.page.wrapping_add(to as u64)
    }

    fn constant(&self, f: &mut fmt::Formatter, by: Constant, wide: bool, d: Reg, value: u64) -> fmt::Result {
        let r = R(d, wide);
        let part = |v: u64, shift: u8| v >> shift & 0xffff;
        match by {
            Constant::Movz { shift } if value == 0 && shift != 0 => {
                write!(f, "movz {r}, #0x0, lsl #{shift}")
            }
            Constant::Movn { shift }
                if part(!value, shift) == 0 && shift != 0 || !wide && part(!value, shift) == 0xffff =>
            {
                write!(f, "movn {r}, #{:#x}", part(!value, shift))?;
                shifted(f, shift)
            }
            Constant::Orr if fits_move_wide(value, wide) => {
                write!(f, "orr {r}, {}, #{value:#x}", R(ZERO, wide))
            }
            _ => write!(f, "mov {r}, #{value:#x}"),
        }
    }

    fn alu(
        f: &mut fmt::Formatter,
        op: Alu,
        wide: bool,
        flags: bool,
        invert: bool,
        [d, n]: [Reg; 2],
        m: Operand,
    ) -> fmt::Result {
        let name = alu_name(op, flags, invert);
        let (rd, rn) = (R(d, wide), R(n, wide));
        let sum = matches!(op, Alu::Add | Alu::Sub);
        if sum && !flags && m == Operand::Imm(0) && (d == SP || n == SP) {
            return write!(f, "mov {rd}, {rn}");
        }
        match (op, flags, invert) {
            (Alu::Add, true, _) if d == SINK => write!(f, "cmn {rn}")?,
            (Alu::Sub, true, _) if d == SINK => write!(f, "cmp {rn}")?,
            (Alu::And, true, false) if d == SINK => write!(f, "tst {rn}")?,
            (Alu::Sub, false, _) if n == ZERO => write!(f, "neg {rd}")?,
            (Alu::Sub, true, _) if n == ZERO => write!(f, "negs {rd}")?,
            (Alu::Orr, _, true) if n == ZERO => write!(f, "mvn {rd}")?,
            (Alu::Orr, _, false) if n == ZERO && matches!(m, Operand::Reg(_)) => write!(f, "mov {rd}")?,
            _ => write!(f, "{name} {rd}, {rn}")?,
        }
        match m {
            Operand::Imm(v) if sum && v > 0xfff => write!(f, ", #{:#x}, lsl #12", v >> 12),
            Operand::Imm(v) => write!(f, ", #{v:#x}"),
            Operand::Reg(m) => write!(f, ", {}", R(m, wide)),
            Operand::Shifted(m, kind, by) => {
                write!(f, ", {}, {} #{by}", R(m, wide), SHIFTS[kind as usize])
            }
            Operand::Extended(m, option, by) => {
                write!(f, ", {}", R(m, wide && option & 3 == 3))?;
                // Where the stack pointer is used this is how a plain register is encoded.
                let plain = option == if wide { 3 } else { 2 } && (n == SP || d == SP);
                match (plain, by) {
                    (true, 0) => Ok(()),
                    (true, _) => write!(f, ", lsl #{by}"),
                    (false, 0) => write!(f, ", {}", EXTENSIONS[usize::from(option)]),
                    (false, _) => write!(f, ", {} #{by}", EXTENSIONS[usize::from(option)]),
                }
            }
        }
    }

    fn field(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Insn::Field { signed, wide, d, n, from, to, width } = self.insn else { return Ok(()) };
        let (rd, rn) = (R(d, wide), R(n, wide));
        let s = if signed { 's' } else { 'u' };
        let whole = from == 0 && to == 0 && (signed || !wide);
        match width {
            8 if whole => write!(f, "{s}xtb {rd}, {}", R(n, false)),
            16 if whole => write!(f, "{s}xth {rd}, {}", R(n, false)),
            32 if whole => write!(f, "{s}xtw {rd}, {}", R(n, false)),
            _ if to > 0 => write!(f, "{s}bfiz {rd}, {rn}, #{to}, #{width}"),
            _ => write!(f, "{s}bfx {rd}, {rn}, #{from}, #{width}"),
        }
    }

    fn select(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Insn::Select { kind, wide, d, n, m, cond } = self.insn else { return Ok(()) };
        let (rd, rn, rm) = (R(d, wide), R(n, wide), R(m, wide));
        let (holds, fails) = (CONDITIONS[usize::from(cond)], CONDITIONS[usize::from(cond ^ 1)]);
        let same = n == m && cond < 14;
        match kind {
            Select::Csinc if same && n == ZERO => write!(f, "cset {rd}, {fails}"),
            Select::Csinv if same && n == ZERO => write!(f, "csetm {rd}, {fails}"),
            Select::Csinc if same => write!(f, "cinc {rd}, {rn}, {fails}"),
            Select::Csinv if same => write!(f, "cinv {rd}, {rn}, {fails}"),
            Select::Csneg if same => write!(f, "cneg {rd}, {rn}, {fails}"),
            _ => {
                let name = ["csel", "csinc", "csinv", "csneg"][kind as usize];
                write!(f, "{name} {rd}, {rn}, {rm}, {holds}")
            }
        }
    }

    fn multiply(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.insn {
            Insn::Madd { wide, sub, d, n, m, a } => {
                let [rd, rn, rm, ra] = [d, n, m, a].map(|r| R(r, wide));
                match (a == ZERO, sub) {
                    (true, false) => write!(f, "mul {rd}, {rn}, {rm}"),
                    (true, true) => write!(f, "mneg {rd}, {rn}, {rm}"),
                    (false, false) => write!(f, "madd {rd}, {rn}, {rm}, {ra}"),
                    (false, true) => write!(f, "msub {rd}, {rn}, {rm}, {ra}"),
                }
            }
            Insn::Maddl { signed, sub, d, n, m, a } => {
                let (rd, rn, rm, ra) = (R(d, true), R(n, false), R(m, false), R(a, true));
                let s = if signed { 's' } else { 'u' };
                match (a == ZERO, sub) {
                    (true, false) => write!(f, "{s}mull {rd}, {rn}, {rm}"),
                    (true, true) => write!(f, "{s}mnegl {rd}, {rn}, {rm}"),
                    (false, false) => write!(f, "{s}maddl {rd}, {rn}, {rm}, {ra}"),
                    (false, true) => write!(f, "{s}msubl {rd}, {rn}, {rm}, {ra}"),
                }
            }
            _ => Ok(()),
        }
    }

    fn integer(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.insn {
            Insn::Const { by, wide, d, value } => self.constant(f, by, wide, d, value),
            Insn::Movk { d, shift, value, wide } => {
                write!(f, "movk {}, #{:#x}", R(d, wide), value >> shift)?;
                shifted(f, shift)
            }
            Insn::Adr { d, page, offset } => {
                let name = if page { "adrp" } else { "adr" };
                write!(f, "{name} {}, {:#x}", R(d, true), self.target(offset))
            }
            Insn::Alu { op, wide, flags, invert, d, n, m } => {
                Self::alu(f, op, wide, flags, invert, [d, n], m)
            }
            Insn::Adc { sub, wide, flags, d, n, m } => {
                let (rd, rn, rm) = (R(d, wide), R(n, wide), R(m, wide));
                let s = if flags { "s" } else { "" };
                match (sub, n == ZERO) {
                    (true, true) => write!(f, "ngc{s} {rd}, {rm}"),
                    (true, false) => write!(f, "sbc{s} {rd}, {rn}, {rm}"),
                    (false, _) => write!(f, "adc{s} {rd}, {rn}, {rm}"),
                }
            }
            Insn::Shift { kind, wide, d, n, by } => {
                write!(f, "{} {}, {}, #{by}", SHIFTS[kind as usize], R(d, wide), R(n, wide))
            }
            Insn::ShiftBy { kind, wide, d, n, m } => {
                write!(f, "{} {}, {}, {}", SHIFTS[kind as usize], R(d, wide), R(n, wide), R(m, wide))
            }
            Insn::Field { .. } => self.field(f),
            Insn::Insert { wide, d, n, from, to, width } => {
                let (rd, rn) = (R(d, wide), R(n, wide));
                match (to, n) {
                    (0, _) => write!(f, "bfxil {rd}, {rn}, #{from}, #{width}"),
                    (_, ZERO) => write!(f, "bfc {rd}, #{to}, #{width}"),
                    _ => write!(f, "bfi {rd}, {rn}, #{to}, #{width}"),
                }
            }
            Insn::Extract { wide, d, n, m, from } => {
                write!(f, "extr {}, {}, {}, #{from}", R(d, wide), R(n, wide), R(m, wide))
            }
            Insn::Madd { .. } | Insn::Maddl { .. } => self.multiply(f),
            Insn::Mulh { signed, d, n, m } => {
                let s = if signed { 's' } else { 'u' };
                write!(f, "{s}mulh {}, {}, {}", R(d, true), R(n, true), R(m, true))
            }
            Insn::Div { signed, wide, d, n, m } => {
                let s = if signed { 's' } else { 'u' };
                write!(f, "{s}div {}, {}, {}", R(d, wide), R(n, wide), R(m, wide))
            }
            Insn::Crc32 { castagnoli, size, d, n, m } => {
                let c = if castagnoli { "c" } else { "" };
                let size_name = ['b', 'h', 'w', 'x'][usize::from(size)];
                write!(f, "crc32{c}{size_name} {}, {}, {}", R(d, false), R(n, false), R(m, size == 3))
            }
            Insn::Rmif { n, rotate, mask } => write!(f, "rmif {}, #{rotate}, #{mask}", R(n, true)),
            Insn::Setf { bits, n } => write!(f, "setf{bits} {}", R(n, false)),
            Insn::Flags { op } => f.write_str(match op {
                FlagOp::Cfinv => "cfinv",
                FlagOp::Xaflag => "xaflag",
                FlagOp::Axflag => "axflag",
            }),
            Insn::Unary { op, wide, d, n } => {
                let name = match op {
                    Unary::Rbit => "rbit",
                    Unary::Rev16 => "rev16",
                    Unary::Rev32 => "rev32",
                    Unary::Rev => "rev",
                    Unary::Clz => "clz",
                    Unary::Cls => "cls",
                };
                write!(f, "{name} {}, {}", R(d, wide), R(n, wide))
            }
            Insn::Select { .. } => self.select(f),
            Insn::Ccmp { add, wide, n, m, cond, nzcv } => {
                let name = if add { "ccmn" } else { "ccmp" };
                write!(f, "{name} {}, ", R(n, wide))?;
                match m {
                    Operand::Imm(v) => write!(f, "#{v:#x}")?,
                    Operand::Reg(m) | Operand::Shifted(m, ..) | Operand::Extended(m, ..) => {
                        write!(f, "{}", R(m, wide))?;
                    }
                }
                write!(f, ", #{nzcv:#x}, {}", CONDITIONS[usize::from(cond)])
            }
            _ => Ok(()),
        }
    }

    fn branch(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.insn {
            Insn::B { link, to } => {
                write!(f, "{} {:#x}", if link { "bl" } else { "b" }, self.target(to))
            }
            Insn::Bcond { cond, to } => {
                write!(f, "b.{} {:#x}", CONDITIONS[usize::from(cond)], self.target(to))
            }
            Insn::Cbz { wide, nonzero, t, to } => {
                let name = if nonzero { "cbnz" } else { "cbz" };
                write!(f, "{name} {}, {:#x}", R(t, wide), self.target(to))
            }
            Insn::Tbz { bit, nonzero, t, to } => {
                let name = if nonzero { "tbnz" } else { "tbz" };
                write!(f, "{name} {}, #{bit}, {:#x}", R(t, bit > 31), self.target(to))
            }
            Insn::Indirect { ret: true, n: 30, .. } => f.write_str("ret"),
            Insn::Indirect { link, ret, n } => {
                let name = if ret {
                    "ret"
                } else if link {
                    "blr"
                } else {
                    "br"
                };
                write!(f, "{name} {}", R(n, true))
            }
            _ => Ok(()),
        }
    }

    fn simd(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.insn {
            Insn::Lanes { op, size, full, d, n, m } => {
                let logical = matches!(op, Lanes::And | Lanes::Bic | Lanes::Orr | Lanes::Eor);
                let of = memory::arrangement(if logical { 0 } else { size }, full);
                let name = match op {
                    Lanes::And => "and",
                    Lanes::Bic => "bic",
                    Lanes::Orr if n == m => return write!(f, "mov v{d}.{of}, v{n}.{of}"),
                    Lanes::Orr => "orr",
                    Lanes::Eor => "eor",
                    Lanes::Add => "add",
                    Lanes::Sub => "sub",
                };
                write!(f, "{name} v{d}.{of}, v{n}.{of}, v{m}.{of}")
            }
            Insn::FromVector { wide, d, n } => {
                write!(f, "fmov {}, {}{n}", R(d, wide), if wide { 'd' } else { 's' })
            }
            Insn::ToVector { wide, d, n } => {
                write!(f, "fmov {}{d}, {}", if wide { 'd' } else { 's' }, R(n, wide))
            }
            Insn::Fmov { wide, d, n } => {
                let of = if wide { 'd' } else { 's' };
                write!(f, "fmov {of}{d}, {of}{n}")
            }
            _ => Ok(()),
        }
    }
}

/// The shift of a 16-bit part.
fn shifted(f: &mut fmt::Formatter, shift: u8) -> fmt::Result {
    if shift == 0 { Ok(()) } else { write!(f, ", lsl #{shift}") }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.insn {
            Insn::Const { .. }
            | Insn::Movk { .. }
            | Insn::Adr { .. }
            | Insn::Alu { .. }
            | Insn::Adc { .. }
            | Insn::Shift { .. }
            | Insn::ShiftBy { .. }
            | Insn::Field { .. }
            | Insn::Insert { .. }
            | Insn::Extract { .. }
            | Insn::Madd { .. }
            | Insn::Maddl { .. }
            | Insn::Mulh { .. }
            | Insn::Div { .. }
            | Insn::Crc32 { .. }
            | Insn::Rmif { .. }
            | Insn::Setf { .. }
            | Insn::Flags { .. }
            | Insn::Unary { .. }
            | Insn::Select { .. }
            | Insn::Ccmp { .. } => self.integer(f),
            Insn::Mem { .. }
            | Insn::Unprivileged { .. }
            | Insn::Prfm { .. }
            | Insn::LoadAcquire { .. }
            | Insn::StoreRelease { .. }
            | Insn::LoadExclusive { .. }
            | Insn::StoreExclusive { .. }
            | Insn::LoadExclusivePair { .. }
            | Insn::StoreExclusivePair { .. }
            | Insn::Cas { .. }
            | Insn::Casp { .. }
            | Insn::Rmw { .. }
            | Insn::Structures { .. }
            | Insn::Pair { .. }
            | Insn::Vmem { .. }
            | Insn::Vpair { .. } => self.memory(f),
            Insn::B { .. }
            | Insn::Bcond { .. }
            | Insn::Cbz { .. }
            | Insn::Tbz { .. }
            | Insn::Indirect { .. } => self.branch(f),
            Insn::Hint { .. }
            | Insn::Exception { .. }
            | Insn::Eret
            | Insn::Barrier { .. }
            | Insn::Sb
            | Insn::Clrex { .. }
            | Insn::Mrs { .. }
            | Insn::Msr { .. }
            | Insn::MsrImm { .. }
            | Insn::Sys { .. } => self.system(f),
            Insn::Lanes { .. } | Insn::FromVector { .. } | Insn::ToVector { .. } | Insn::Fmov { .. } => {
                self.simd(f)
            }
            Insn::Simd => match super::simd::decode(self.word) {
                Some(insn) => simd::simd(f, self.word, insn),
                None => Ok(()),
            },
            Insn::Undefined => Ok(()),
        }
    }
}
