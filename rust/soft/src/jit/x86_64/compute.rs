//! Integer data processing, and moves to and from vector registers.

use super::asm::{Arith, Cc, R, RAX, RCX, RDX, Sh, X, at, indexed};
use super::block::Translator;
use super::flags::{Kind, Source, State, kind_of};
use super::layout;
use super::sse;
use super::stubs::{Constant, nzcv_from_host, set_nzcv};
use crate::Regs;
use crate::id::SysReg;
use crate::interp::lower::system::is_kept;
use crate::isa::insn::{Alu, Barrier, Insn, Operand, Pstate, Reg, Select, Shift, Unary};
use crate::sysreg::constant;

const ZERO: Reg = Regs::ZERO as Reg;
const SINK: Reg = Regs::SINK as Reg;

fn host(kind: Shift) -> Sh {
    match kind {
        Shift::Lsl => Sh::Shl,
        Shift::Lsr => Sh::Shr,
        Shift::Asr => Sh::Sar,
        Shift::Ror => Sh::Ror,
    }
}

fn arith(op: Alu) -> Arith {
    match op {
        Alu::Add => Arith::Add,
        Alu::Sub => Arith::Sub,
        Alu::And => Arith::And,
        Alu::Orr => Arith::Or,
        Alu::Eor => Arith::Xor,
    }
}

/// An immediate as the host's instructions take it, or `None`.
fn short(v: u64, wide: bool) -> Option<i32> {
    if wide { i32::try_from(v as i64).ok() } else { Some(v as u32 as i32) }
}

/// A second operand where it is.
#[derive(Clone, Copy)]
enum Second {
    Imm(i32),
    /// Of this guest register.
    Held(R, Reg),
    /// In RCX.
    Made,
}

impl Translator<'_> {
    /// False when the interpreter must do it.
    pub(super) fn compute(&mut self, insn: Insn) -> bool {
        match insn {
            Insn::Hint { .. } | Insn::Prfm { .. } | Insn::Sb => {}
            Insn::Const { d, value, .. } => {
                self.will_write(d);
                let r = self.write(d);
                self.asm.mov_i(r, value);
                self.known[d as usize] = Some(value);
            }
            Insn::Movk { d, shift, value, wide } => self.movk(d, shift, value, wide),
            Insn::Adr { d, offset, .. } => {
                self.will_write(d);
                let r = self.write(d);
                self.asm.load(3, false, true, r, layout::PAGE);
                match i32::try_from(offset) {
                    Ok(offset) => self.asm.lea(true, r, at(r, offset)),
                    Err(_) => {
                        self.asm.mov_i(RAX, offset as u64);
                        self.asm.lea(true, r, indexed(r, RAX, 0, 0));
                    }
                }
            }
            Insn::Alu { op, wide, flags: true, invert, d, n, m } => self.alu_flags(op, wide, invert, d, n, m),
            Insn::Alu { op, wide, invert, d, n, m, .. } => self.alu(op, wide, invert, d, n, m),
            Insn::Adc { sub, wide, flags, d, n, m } => self.adc(sub, wide, flags, d, n, m),
            Insn::Shift { kind, wide, d, n, by } => {
                self.will_write(d);
                if kind == Shift::Ror && self.features.bmi2 {
                    let s = self.read(n);
                    let r = self.write(d);
                    self.asm.rorx(wide, r, s, by);
                    return true;
                }
                let r = self.copy(wide, d, n);
                if by == 0 && !wide {
                    // No shift clears the upper half then.
                    self.asm.mov(false, r, r);
                }
                self.asm.shift_i(host(kind), wide, r, by);
            }
            Insn::ShiftBy { kind, wide, d, n, m } if kind != Shift::Ror && self.features.bmi2 => {
                self.will_write(d);
                let (s, by) = (self.read(n), self.read(m));
                let r = self.write(d);
                self.asm.shift_x(host(kind), wide, r, s, by);
            }
            Insn::ShiftBy { kind, wide, d, n, m } => {
                self.will_write(d);
                let by = self.read(m);
                self.asm.mov(true, RCX, by);
                let r = self.copy(wide, d, n);
                self.asm.shift_cl(host(kind), wide, r);
            }
            Insn::Field { signed, wide, d, n, from, to, width } => {
                self.will_write(d);
                if to == 0 && from == 0 && width.is_power_of_two() && width >= 8 {
                    let s = self.read(n);
                    let r = self.write(d);
                    self.asm.extend(width.trailing_zeros() as u8 - 3, signed, wide, r, s);
                } else {
                    let r = self.copy(wide, d, n);
                    self.field(signed, wide, r, from, to, width);
                }
            }
            Insn::Insert { wide, d, n, from, to, width } => {
                self.will_write(d);
                let s = self.read(n);
                self.asm.mov(wide, RAX, s);
                self.field(false, wide, RAX, from, to, width);
                let r = self.update(d);
                let mask = !(u64::MAX >> (64 - width) << to);
                match short(mask, wide) {
                    Some(mask) => self.asm.arith_i(Arith::And, wide, r, mask),
                    None => {
                        self.asm.mov_i(RCX, mask);
                        self.asm.arith(Arith::And, wide, r, RCX);
                    }
                }
                self.asm.arith(Arith::Or, wide, r, RAX);
            }
            Insn::Extract { wide, d, n, m, from } => {
                self.will_write(d);
                let high = self.read(n);
                let low = self.read(m);
                let r = self.write(d);
                self.asm.mov(wide, r, low);
                if from != 0 {
                    self.asm.shrd(wide, r, high, from);
                }
            }
            Insn::Madd { wide, sub, d, n, m, a } => {
                let (x, y) = (self.read(n), self.read(m));
                self.asm.mov(wide, RAX, x);
                self.asm.imul(wide, RAX, y);
                self.accumulate(wide, sub, d, a);
            }
            Insn::Maddl { signed, sub, d, n, m, a } => {
                let (x, y) = (self.read(n), self.read(m));
                self.asm.extend(2, signed, true, RAX, x);
                self.asm.extend(2, signed, true, RCX, y);
                self.asm.imul(true, RAX, RCX);
                self.accumulate(true, sub, d, a);
            }
            Insn::Mulh { signed, d, n, m } => {
                self.will_write(d);
                let (x, y) = (self.read(n), self.read(m));
                self.asm.mov(true, RAX, x);
                self.asm.mul_high(signed, y);
                let r = self.write(d);
                self.asm.mov(true, r, RDX);
            }
            Insn::Crc32 { castagnoli: true, size, d, n, m } if self.features.sse42 => {
                self.will_write(d);
                let (x, y) = (self.read(n), self.read(m));
                self.asm.mov(false, RAX, x);
                self.asm.mov(true, RCX, y);
                self.asm.crc32(size, RAX, RCX);
                let r = self.write(d);
                self.asm.mov(false, r, RAX);
            }
            Insn::Crc32 { castagnoli: false, size, d, n, m }
                if self.features.sse42 && self.features.clmul =>
            {
                self.crc32(size, d, n, m);
            }
            Insn::Div { signed, wide, d, n, m } => self.div(signed, wide, d, n, m),
            Insn::Unary { op, wide, d, n } => return self.unary(op, wide, d, n),
            Insn::Select { kind, wide, d, n, m, cond } => self.select(kind, wide, d, n, m, cond),
            Insn::Ccmp { add, wide, n, m, cond, nzcv } => self.ccmp(add, wide, n, m, cond, nzcv),
            Insn::Lanes { op, size, full, d, n, m } => self.lanes(op, size, full, d, n, m),
            Insn::FromVector { wide, d, n } => {
                self.will_write(d);
                let x = self.read_vector(n);
                let r = self.write(d);
                self.asm.mov_r(wide, r, x);
            }
            Insn::ToVector { wide, d, n } => {
                self.will_write_vector(d);
                let r = self.read(n);
                let x = self.write_vector(d);
                self.asm.mov_low_r(wide, x, r);
                self.number(wide, d);
            }
            Insn::Fmov { wide, d, n } => {
                self.will_write_vector(d);
                let x = self.read_vector(n);
                let r = self.write_vector(d);
                self.scalar(wide, r, n, x);
                self.number(wide, d);
            }
            _ => return false,
        }
        true
    }

    /// CRC-32 of `1 << size` bytes, by two multiplications without carries (Barrett's reduction): with V those bytes
    /// and the CRC so far as a polynomial, P that of CRC-32 and Q the quotient of V x^32 by P, the new CRC is what Q P
    /// has below x^32. Q is what V times the quotient of x^96 by P has from x^64 on. Lowest bits are highest powers.
    fn crc32(&mut self, size: u8, d: Reg, n: Reg, m: Reg) {
        self.will_write(d);
        let (x, y) = (self.read(n), self.read(m));
        let bits = 8 << size;
        let a = &mut self.asm;
        a.mov(false, RAX, x);
        a.arith(Arith::Xor, true, RAX, y);
        // What counts comes to the top.
        a.shift_i(Sh::Shl, true, RAX, 64 - bits);
        a.mov_low_r(true, X(0), RAX);
        let constants = self.stubs.constant(Constant::Crc32);
        let a = &mut self.asm;
        a.vector_i_at(sse::PCLMULQDQ, X(0), constants, 0x00);
        a.vector_i_at(sse::PCLMULQDQ, X(0), constants, 0x10);
        a.lane_to(2, RAX, X(0), 2);
        if bits < 32 {
            // Those of the CRC so far that were not counted in.
            a.mov(false, RCX, x);
            a.shift_i(Sh::Shr, false, RCX, bits);
            a.arith(Arith::Xor, false, RAX, RCX);
        }
        let r = self.write(d);
        self.asm.mov(false, r, RAX);
    }

    /// MRS of what is there to be read. False when the interpreter must do it.
    pub(super) fn mrs(&mut self, t: Reg, register: u16) -> bool {
        let known = constant(register);
        let place = match SysReg(register) {
            SysReg::TPIDR_EL0 => layout::TPIDR_EL0,
            SysReg::SP_EL0 => layout::SP_EL0,
            SysReg::DAIF => layout::DAIF,
            SysReg::FPCR => layout::FPCR,
            _ => match layout::system(register) {
                Some(place) => place,
                None if known.is_some() => layout::PC,
                None => return false,
            },
        };
        match SysReg(register) {
            SysReg::TPIDR_EL0 | SysReg::DCZID_EL0 => {}
            SysReg::FPCR => self.fp_check(),
            // Most are undefined at EL0; SP_EL0 is where it is in use.
            _ => self.at_el1(),
        }
        if SysReg(register) == SysReg::SP_EL0 {
            self.asm.cmp_byte(layout::SPSEL, 0);
            self.exit_when(Cc::E);
        }
        self.will_write(t);
        let r = self.write(t);
        match (SysReg(register), known) {
            (SysReg::DAIF, _) => {
                self.asm.load(0, false, false, r, place);
                self.asm.shift_i(Sh::Shl, false, r, 6);
            }
            (SysReg::FPCR, _) => self.asm.load(2, false, false, r, place),
            (_, Some(value)) => self.asm.mov_i(r, value),
            _ => self.asm.load(3, false, true, r, place),
        }
        true
    }

    /// Leaves at EL0, where it may be refused.
    fn at_el1(&mut self) {
        self.asm.cmp_byte(layout::EL, 0);
        self.exit_when(Cc::E);
    }

    /// MSR DAIFSet: masking more lets nothing in that would need a look. False when the interpreter must do it.
    pub(super) fn msr_imm(&mut self, field: Pstate, imm: u8) -> bool {
        if field != Pstate::DaifSet {
            return false;
        }
        self.at_el1();
        self.asm.byte_i(Arith::Or, layout::DAIF, imm);
        true
    }

    /// MSR of what is nothing but kept. False when the interpreter must do it.
    pub(super) fn msr(&mut self, t: Reg, register: u16) -> bool {
        let place = match SysReg(register) {
            SysReg::TPIDR_EL0 => Some(layout::TPIDR_EL0),
            SysReg::SP_EL0 => Some(layout::SP_EL0),
            _ if is_kept(register) => layout::system(register),
            _ => None,
        };
        let Some(place) = place else { return false };
        let value = self.read(t);
        if SysReg(register) != SysReg::TPIDR_EL0 {
            self.at_el1();
        }
        if SysReg(register) == SysReg::SP_EL0 {
            self.asm.cmp_byte(layout::SPSEL, 0);
            self.exit_when(Cc::E);
        }
        self.asm.store(3, place, value);
        true
    }

    /// What the run loop looks around after, as more may come in then: where there is nothing to look at the block goes
    /// on behind it. False when the interpreter must do it.
    pub(super) fn lets_in(&mut self, insn: Insn) -> bool {
        match insn {
            Insn::Barrier { kind: Barrier::Isb, .. } => self.undisturbed(),
            Insn::MsrImm { field: Pstate::DaifClr, imm } => {
                self.at_el1();
                self.undisturbed();
                self.asm.byte_i(Arith::And, layout::DAIF, !imm);
            }
            Insn::Msr { t, register } if SysReg(register) == SysReg::DAIF => {
                let value = self.read(t);
                self.at_el1();
                self.undisturbed();
                self.asm.mov(false, RAX, value);
                self.asm.shift_i(Sh::Shr, false, RAX, 6);
                self.asm.arith_i(Arith::And, false, RAX, 15);
                self.asm.store(0, layout::DAIF, RAX);
            }
            _ => return false,
        }
        true
    }

    /// Leaves where others have left something, or debug events must be looked for.
    fn undisturbed(&mut self) {
        self.asm.cmp_byte(layout::DEBUG_ALERT, 0);
        self.exit_when(Cc::NE);
        self.asm.load(3, false, true, RAX, layout::LEFT_BY_OTHERS);
        self.asm.load(2, false, false, RAX, at(RAX, 0));
        self.asm.test(false, RAX, RAX);
        self.exit_when(Cc::NE);
    }

    /// A register for `d` that starts out with the value of `n`.
    fn copy(&mut self, wide: bool, d: Reg, n: Reg) -> R {
        if d == n {
            return self.update(d);
        }
        let s = self.read(n);
        let r = self.write(d);
        self.asm.mov(wide, r, s);
        r
    }

    /// In place: takes the field out and puts it where it goes, with zeros or its sign above and zeros below.
    fn field(&mut self, signed: bool, wide: bool, r: R, from: u8, to: u8, width: u8) {
        let size = if wide { 64 } else { 32 };
        self.asm.shift_i(Sh::Shl, wide, r, size - from - width);
        let down = if to == 0 { size - width } else { size - width - to };
        self.asm.shift_i(if signed { Sh::Sar } else { Sh::Shr }, wide, r, down);
        if !wide && size == from + width && down == 0 {
            // Nothing has cleared the upper half.
            self.asm.mov(false, r, r);
        }
    }

    fn movk(&mut self, d: Reg, shift: u8, value: u64, wide: bool) {
        self.will_write(d);
        let mask = !(0xffff << shift);
        if let Some(old) = self.known[d as usize] {
            let new = old & mask | value;
            let new = if wide { new } else { new & 0xffff_ffff };
            let r = self.write(d);
            self.asm.mov_i(r, new);
            self.known[d as usize] = Some(new);
            return;
        }
        let r = self.update(d);
        match short(mask, wide) {
            Some(mask) => self.asm.arith_i(Arith::And, wide, r, mask),
            None => {
                self.asm.mov_i(RAX, mask);
                self.asm.arith(Arith::And, wide, r, RAX);
            }
        }
        match short(value, wide) {
            Some(value) => self.asm.arith_i(Arith::Or, wide, r, value),
            None => {
                self.asm.mov_i(RAX, value);
                self.asm.arith(Arith::Or, wide, r, RAX);
            }
        }
    }

    /// `d` becomes `a` plus or minus RAX.
    fn accumulate(&mut self, wide: bool, sub: bool, d: Reg, a: Reg) {
        self.will_write_keeping_rax(d);
        if a == ZERO {
            let r = self.write(d);
            if sub {
                self.asm.neg(wide, RAX);
            }
            self.asm.mov(wide, r, RAX);
            return;
        }
        let r = self.copy(wide, d, a);
        self.asm.arith(if sub { Arith::Sub } else { Arith::Add }, wide, r, RAX);
    }

    /// As `will_write` where RAX has a value.
    fn will_write_keeping_rax(&mut self, g: Reg) {
        if self.flags.depends_on(g) {
            self.asm.mov(true, RDX, RAX);
            self.will_write(g);
            self.asm.mov(true, RAX, RDX);
        }
    }

    /// Makes a second operand ready; uses RCX alone.
    fn second(&mut self, m: Operand, wide: bool, invert: bool) -> Second {
        match m {
            Operand::Imm(v) => match short(v, wide) {
                Some(v) => return Second::Imm(v),
                None => self.asm.mov_i(RCX, v),
            },
            Operand::Reg(m) if !invert => return Second::Held(self.read(m), m),
            Operand::Reg(r) | Operand::Shifted(r, ..) | Operand::Extended(r, ..) => {
                let s = self.read(r);
                self.shifted(m, wide, RCX, s);
            }
        }
        if invert {
            self.asm.not(wide, RCX);
        }
        Second::Made
    }

    /// The operand's register, which is in `s`, shifted or extended into `r`.
    fn shifted(&mut self, m: Operand, wide: bool, r: R, s: R) {
        match m {
            Operand::Shifted(_, Shift::Ror, by) if self.features.bmi2 => self.asm.rorx(wide, r, s, by),
            Operand::Shifted(_, kind, by) => {
                self.asm.mov(wide, r, s);
                self.asm.shift_i(host(kind), wide, r, by);
            }
            Operand::Extended(_, option, by) => {
                self.asm.extend(option & 3, option & 4 != 0, true, r, s);
                self.asm.shift_i(Sh::Shl, true, r, by);
            }
            Operand::Imm(_) | Operand::Reg(_) => self.asm.mov(wide, r, s),
        }
    }

    fn apply(&mut self, op: Arith, wide: bool, r: R, second: Second) {
        match second {
            Second::Imm(v) => self.asm.arith_i(op, wide, r, v),
            Second::Held(s, _) => self.asm.arith(op, wide, r, s),
            Second::Made => self.asm.arith(op, wide, r, RCX),
        }
    }

    fn alu(&mut self, op: Alu, wide: bool, invert: bool, d: Reg, n: Reg, operand: Operand) {
        self.will_write(d);
        match (op, operand) {
            (Alu::Orr, Operand::Reg(m)) if n == ZERO && !invert => {
                let s = self.read(m);
                let r = self.write(d);
                return self.asm.mov(wide, r, s);
            }
            (Alu::Add | Alu::Sub, Operand::Imm(v)) if d != n => {
                let v = if op == Alu::Add { v as i32 } else { -(v as i32) };
                let s = self.read(n);
                let r = self.write(d);
                return self.asm.lea(wide, r, at(s, v));
            }
            (Alu::Add, Operand::Reg(m)) if d != n && d != m => {
                let (x, y) = (self.read(n), self.read(m));
                let r = self.write(d);
                return self.asm.lea(wide, r, indexed(x, y, 0, 0));
            }
            (Alu::Add, Operand::Shifted(m, Shift::Lsl, by @ 1..=3)) => {
                let (x, y) = (self.read(n), self.read(m));
                let r = self.write(d);
                return self.asm.lea(wide, r, indexed(x, y, by, 0));
            }
            (Alu::And, Operand::Reg(m)) if invert && self.features.bmi1 => {
                let (x, y) = (self.read(n), self.read(m));
                let r = self.write(d);
                return self.asm.andn(wide, r, y, x);
            }
            // Made where the result comes to be.
            (_, Operand::Shifted(m, ..) | Operand::Extended(m, ..)) if d != n && op != Alu::Sub => {
                let (x, y) = (self.read(n), self.read(m));
                let r = self.write(d);
                self.shifted(operand, wide, r, y);
                if invert {
                    self.asm.not(wide, r);
                }
                return self.asm.arith(arith(op), wide, r, x);
            }
            _ => {}
        }
        // Here, as the operand may use it.
        let second = self.second(operand, wide, invert);
        let op = arith(op);
        if d == n {
            let r = self.update(d);
            return self.apply(op, wide, r, second);
        }
        if let Second::Held(r, m) = second
            && m == d
            && op != Arith::Sub
        {
            let x = self.read(n);
            self.update(d);
            return self.asm.arith(op, wide, r, x);
        }
        let x = self.read(n);
        let r = self.write(d);
        match second {
            Second::Made if op != Arith::Sub => {
                self.asm.mov(wide, r, RCX);
                self.asm.arith(op, wide, r, x);
            }
            _ => {
                self.asm.mov(wide, r, x);
                self.apply(op, wide, r, second);
            }
        }
    }

    fn alu_flags(&mut self, op: Alu, wide: bool, invert: bool, d: Reg, n: Reg, m: Operand) {
        // The old flags are nobody's any more: nothing can leave between here and the new ones.
        self.flags = State::Memory;
        if !self.flags_needed_after() {
            self.host_flags = None;
            if d != SINK {
                self.alu(op, wide, invert, d, n, m);
            }
            return;
        }
        let second = self.second(m, wide, invert);
        let x = self.read(n);
        let (kind, op) = match op {
            Alu::Add => (Kind::Add, Arith::Add),
            Alu::Sub => (Kind::Sub, Arith::Sub),
            _ => (Kind::And, Arith::And),
        };
        let b = match second {
            Second::Imm(v) => Some(Source::Imm(v)),
            Second::Held(_, m) => Some(Source::Reg(m)),
            Second::Made => None,
        };
        // Whether the operands are there afterwards.
        let kept = d != n && b != Some(Source::Reg(d));
        let pending = |b| State::Pending { kind, wide, a: Source::Reg(n), b };
        match (b, kind) {
            (Some(b), _) if kept => {
                if d != SINK {
                    let r = self.write(d);
                    self.asm.mov(wide, r, x);
                    self.apply(op, wide, r, second);
                } else if kind == Kind::Add {
                    self.asm.mov(wide, RAX, x);
                    self.apply(op, wide, RAX, second);
                } else if let (Kind::And, Source::Imm(v)) = (kind, b) {
                    self.asm.test_i(wide, x, v);
                } else if let (Kind::And, Second::Held(y, _)) = (kind, second) {
                    self.asm.test(wide, x, y);
                } else {
                    self.apply(Arith::Cmp, wide, x, second);
                }
                self.set_flags(pending(b), kind);
            }
            (_, Kind::Sub) => {
                self.asm.store(3, layout::COMPARED[0], x);
                match second {
                    Second::Imm(v) => self.asm.store_i(layout::COMPARED[1], v),
                    Second::Held(y, _) => self.asm.store(3, layout::COMPARED[1], y),
                    Second::Made => self.asm.store(3, layout::COMPARED[1], RCX),
                }
                self.asm.store_byte_i(layout::FLAGS, kind_of(wide));
                self.into(Arith::Sub, wide, d, n, x, second);
                self.set_flags(State::Compared(wide), Kind::Sub);
            }
            (_, Kind::And) if d != SINK => {
                self.into(op, wide, d, n, x, second);
                let result = Source::Reg(d);
                self.set_flags(State::Pending { kind, wide, a: result, b: result }, kind);
            }
            _ => {
                self.into(op, wide, d, n, x, second);
                nzcv_from_host(&mut self.asm);
                set_nzcv(&mut self.asm);
                self.flags = State::Nzcv;
                self.host_flags = None;
            }
        }
    }

    /// `d` becomes `n` (which is in `x`) and the second operand; the host's flags are those of it.
    fn into(&mut self, op: Arith, wide: bool, d: Reg, n: Reg, x: R, second: Second) {
        if d == n {
            let r = self.update(d);
            return self.apply(op, wide, r, second);
        }
        // Another than the operands are in.
        let r = self.write(d);
        self.asm.mov(wide, r, x);
        self.apply(op, wide, r, second);
    }

    fn adc(&mut self, sub: bool, wide: bool, flags: bool, d: Reg, n: Reg, m: Reg) {
        self.need_nzcv();
        let (x, y) = (self.read(n), self.read(m));
        let r = self.write(d);
        self.asm.mov(wide, r, x);
        self.asm.load(2, false, false, RAX, layout::NZCV);
        self.asm.bt_i(false, RAX, 29);
        if sub {
            self.asm.cmc();
        }
        self.asm.arith(if sub { Arith::Sbb } else { Arith::Adc }, wide, r, y);
        if flags {
            if sub {
                self.asm.cmc();
            }
            nzcv_from_host(&mut self.asm);
            set_nzcv(&mut self.asm);
        }
    }

    fn div(&mut self, signed: bool, wide: bool, d: Reg, n: Reg, m: Reg) {
        self.will_write(d);
        let (x, y) = (self.read(n), self.read(m));
        let r = self.write(d);
        self.asm.mov_i(r, 0);
        self.asm.test(wide, y, y);
        let zero = self.asm.jcc(Cc::E);
        let mut negated = None;
        if signed {
            // The host faults where the quotient has no place.
            self.asm.arith_i(Arith::Cmp, wide, y, -1);
            let other = self.asm.jcc(Cc::NE);
            self.asm.mov(wide, r, x);
            self.asm.neg(wide, r);
            negated = Some(self.asm.jmp());
            self.asm.land(other);
        }
        self.asm.mov(wide, RAX, x);
        if signed {
            self.asm.cqo(wide);
        } else {
            self.asm.mov_i(RDX, 0);
        }
        self.asm.div(signed, wide, y);
        self.asm.mov(wide, r, RAX);
        if let Some(j) = negated {
            self.asm.land(j);
        }
        self.asm.land(zero);
    }

    fn unary(&mut self, op: Unary, wide: bool, d: Reg, n: Reg) -> bool {
        match (op, wide) {
            (Unary::Clz, _) if self.features.lzcnt => {
                self.will_write(d);
                let s = self.read(n);
                let r = self.write(d);
                self.asm.lzcnt(wide, r, s);
            }
            (Unary::Rev, _) => {
                self.will_write(d);
                let r = self.copy(wide, d, n);
                self.asm.bswap(wide, r);
            }
            (Unary::Rev16, false) | (Unary::Rev32, true) => {
                self.will_write(d);
                let r = self.copy(wide, d, n);
                self.asm.bswap(wide, r);
                self.asm.shift_i(Sh::Rol, wide, r, if wide { 32 } else { 16 });
            }
            (Unary::Rev16, true) => {
                self.will_write(d);
                let s = self.read(n);
                self.asm.mov_i(RCX, 0x00ff_00ff_00ff_00ff);
                self.asm.mov(true, RAX, s);
                self.asm.shift_i(Sh::Shr, true, RAX, 8);
                self.asm.arith(Arith::And, true, RAX, RCX);
                let r = self.copy(true, d, n);
                self.asm.arith(Arith::And, true, r, RCX);
                self.asm.shift_i(Sh::Shl, true, r, 8);
                self.asm.arith(Arith::Or, true, r, RAX);
            }
            (Unary::Cls, _) if self.features.lzcnt => {
                self.will_write(d);
                let s = self.read(n);
                let r = self.write(d);
                // What is like the sign becomes zero; the sign itself does not count.
                self.asm.mov(wide, RAX, s);
                self.asm.shift_i(Sh::Sar, wide, RAX, if wide { 63 } else { 31 });
                self.asm.arith(Arith::Xor, wide, RAX, s);
                self.asm.lzcnt(wide, RAX, RAX);
                self.asm.lea(wide, r, at(RAX, -1));
            }
            (Unary::Rbit, _) => {
                self.will_write(d);
                let r = self.copy(wide, d, n);
                self.asm.bswap(wide, r);
                for (by, mask) in
                    [(4, 0x0f0f_0f0f_0f0f_0f0f), (2, 0x3333_3333_3333_3333), (1, 0x5555_5555_5555_5555)]
                {
                    self.asm.mov_i(RCX, if wide { mask } else { mask & 0xffff_ffff });
                    self.asm.mov(wide, RAX, r);
                    self.asm.arith(Arith::And, wide, RAX, RCX);
                    self.asm.shift_i(Sh::Shl, wide, RAX, by);
                    self.asm.shift_i(Sh::Shr, wide, r, by);
                    self.asm.arith(Arith::And, wide, r, RCX);
                    self.asm.arith(Arith::Or, wide, r, RAX);
                }
            }
            _ => return false,
        }
        true
    }

    fn select(&mut self, kind: Select, wide: bool, d: Reg, n: Reg, m: Reg, cond: u8) {
        self.will_write(d);
        if cond >= 14 {
            let s = self.read(n);
            let r = self.write(d);
            return self.asm.mov(wide, r, s);
        }
        if (kind, n, m) == (Select::Csinc, ZERO, ZERO) {
            let cc = self.condition(cond);
            self.asm.set_al(cc.not());
            let r = self.write(d);
            return self.asm.extend(0, false, false, r, RAX);
        }
        let (x, y) = (self.read(n), self.read(m));
        let r = self.write(d);
        match kind {
            Select::Csel => self.asm.mov(wide, r, y),
            Select::Csinc => self.asm.lea(wide, r, at(y, 1)),
            Select::Csinv => {
                self.asm.mov(wide, r, y);
                self.asm.not(wide, r);
            }
            Select::Csneg => {
                self.asm.mov(wide, r, y);
                self.asm.neg(wide, r);
                self.host_flags = None;
            }
        }
        let cc = self.condition(cond);
        self.asm.cmov(cc, wide, r, x);
    }

    fn ccmp(&mut self, add: bool, wide: bool, n: Reg, m: Operand, cond: u8, nzcv: u8) {
        // Before the ways part.
        let x = self.read(n);
        let second = match m {
            Operand::Imm(v) => Second::Imm(v as i32),
            Operand::Reg(m) => Second::Held(self.read(m), m),
            _ => unreachable!("there is no other form"),
        };
        let parted = self.part(cond, nzcv);
        if add {
            self.asm.mov(wide, RAX, x);
            self.apply(Arith::Add, wide, RAX, second);
        } else {
            self.apply(Arith::Cmp, wide, x, second);
            self.asm.cmc();
        }
        nzcv_from_host(&mut self.asm);
        self.join_compared(parted);
    }
}
