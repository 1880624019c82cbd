//! Data processing with immediates and registers.

use super::{Handler, ones, wide, widths};
use crate::Regs;
use crate::interp::block::{Block, Flow, Last};
use crate::interp::handlers::alu as x;
use crate::isa::insn::{Alu, Operand, Reg, Shift, Unary};

impl Block {
    #[inline(always)]
    pub(super) fn alu(
        &mut self,
        op: Alu,
        wide: bool,
        flags: bool,
        invert: bool,
        registers: [Reg; 2],
        m: Operand,
    ) -> Flow {
        match m {
            Operand::Imm(imm) => self.alu_immediate(op, wide, flags, registers, imm),
            Operand::Reg(m) => self.alu_register(op, wide, flags, invert, registers, m),
            Operand::Shifted(m, kind, by) => {
                let kind = kind as usize;
                match op {
                    Alu::Add | Alu::Sub => {
                        self.sum_shifted(op == Alu::Sub, wide, flags, registers, m, kind, by)
                    }
                    _ => self.logical_shifted(op, wide, flags, invert, registers, m, kind, by),
                }
            }
            Operand::Extended(m, option, by) => {
                let f = match (op, flags) {
                    (Alu::Sub, false) => widths!(x::sub_ext),
                    (Alu::Sub, true) => widths!(x::subs_ext),
                    (_, false) => widths!(x::add_ext),
                    (_, true) => widths!(x::adds_ext),
                };
                self.on(super::wide(wide, f), registers[0], registers[1], m, by, u64::from(option))
            }
        }
    }

    fn alu_immediate(&mut self, op: Alu, w: bool, flags: bool, [d, n]: [Reg; 2], imm: u64) -> Flow {
        let (f, imm) = match (op, flags) {
            (Alu::Add, false) => (widths!(x::add_imm), imm),
            (Alu::Sub, false) => (widths!(x::add_imm), imm.wrapping_neg()),
            (Alu::Add, true) => (widths!(x::adds_imm), imm),
            (Alu::Sub, true) => {
                self.now = Last::SubsImm { wide: w };
                (widths!(x::subs_imm), imm)
            }
            (Alu::And, false) => (widths!(x::and_imm), imm),
            (Alu::And, true) => (widths!(x::ands_imm), imm),
            (Alu::Orr, _) => (widths!(x::orr_imm), imm),
            (Alu::Eor, _) => (widths!(x::eor_imm), imm),
        };
        self.on(wide(w, f), d, n, 0, 0, imm)
    }

    fn alu_register(
        &mut self,
        op: Alu,
        w: bool,
        flags: bool,
        invert: bool,
        [d, n]: [Reg; 2],
        m: Reg,
    ) -> Flow {
        let f = match (op, invert, flags) {
            (Alu::Add, _, false) => widths!(x::add),
            (Alu::Add, _, true) => widths!(x::adds),
            (Alu::Sub, _, false) => widths!(x::sub),
            (Alu::Sub, _, true) => {
                self.now = Last::Subs { wide: w };
                widths!(x::subs)
            }
            (Alu::And, _, true) => return self.logical_shifted(op, w, flags, invert, [d, n], m, 0, 0),
            (Alu::And, false, _) => widths!(x::and),
            (Alu::And, true, _) => widths!(x::bic),
            (Alu::Orr, false, _) if n == Regs::ZERO as Reg => widths!(x::mov),
            (Alu::Orr, false, _) => widths!(x::orr),
            (Alu::Orr, true, _) => widths!(x::orn),
            (Alu::Eor, false, _) => widths!(x::eor),
            (Alu::Eor, true, _) => widths!(x::eon),
        };
        self.on(wide(w, f), d, n, m, 0, 0)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of the instruction")]
    fn sum_shifted(
        &mut self,
        sub: bool,
        w: bool,
        flags: bool,
        [d, n]: [Reg; 2],
        m: Reg,
        kind: usize,
        by: u8,
    ) -> Flow {
        macro_rules! by_kind {
            ($($f:ident)*) => {
                [$([widths!(x::$f, 0), widths!(x::$f, 1), widths!(x::$f, 2)]),*]
            };
        }
        static BY: [[[Handler; 2]; 3]; 4] = by_kind!(add_shift adds_shift sub_shift subs_shift);
        let f = BY[usize::from(sub) << 1 | usize::from(flags)][kind.min(2)];
        self.on(wide(w, f), d, n, m, by, 0)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of the instruction")]
    fn logical_shifted(
        &mut self,
        op: Alu,
        w: bool,
        flags: bool,
        invert: bool,
        [d, n]: [Reg; 2],
        m: Reg,
        kind: usize,
        by: u8,
    ) -> Flow {
        macro_rules! by_kind {
            ($($f:ident)*) => {
                [$([widths!(x::$f, 0), widths!(x::$f, 1), widths!(x::$f, 2), widths!(x::$f, 3)]),*]
            };
        }
        static BY: [[[Handler; 2]; 4]; 4] = by_kind!(and_shift orr_shift eor_shift ands_shift);
        let row = match op {
            _ if flags => 3,
            Alu::Orr => 1,
            Alu::Eor => 2,
            _ => 0,
        };
        self.on(wide(w, BY[row][kind & 3]), d, n, m, by, if invert { u64::MAX } else { 0 })
    }

    pub(super) fn shift(&mut self, kind: Shift, w: bool, d: Reg, n: Reg, by: u8) -> Flow {
        let f = [widths!(x::lsl_imm), widths!(x::lsr_imm), widths!(x::asr_imm), widths!(x::ror_imm)];
        self.on(wide(w, f[kind as usize]), d, n, 0, by, 0)
    }

    pub(super) fn field(
        &mut self,
        signed: bool,
        w: bool,
        [d, n]: [Reg; 2],
        from: u8,
        to: u8,
        width: u8,
    ) -> Flow {
        if signed {
            // In 64 bits: the field goes to the top, then comes down with its sign.
            let up = 64 - from - width;
            return match (from, to, width) {
                (0, 0, 8) => self.on(wide(w, widths!(x::sxtb)), d, n, 0, 0, 0),
                (0, 0, 16) => self.on(wide(w, widths!(x::sxth)), d, n, 0, 0, 0),
                (0, 0, 32) => self.on(wide(w, widths!(x::sxtw)), d, n, 0, 0, 0),
                _ => self.on(wide(w, widths!(x::sbf)), d, n, up, 64 - width - to, 0),
            };
        }
        let mask = ones(width);
        match (from, to) {
            (0, 0) => self.on(wide(w, widths!(x::and_imm)), d, n, 0, 0, mask),
            (_, 0) => self.on(wide(w, widths!(x::ubfx)), d, n, 0, from, mask),
            _ => self.on(wide(w, widths!(x::ubfiz)), d, n, 0, to, mask),
        }
    }

    pub(super) fn unary(&mut self, op: Unary, w: bool, d: Reg, n: Reg) -> Flow {
        let f = match op {
            Unary::Rbit => widths!(x::rbit),
            Unary::Rev16 => widths!(x::rev16),
            Unary::Rev32 => widths!(x::rev32),
            Unary::Rev => widths!(x::rev),
            Unary::Clz => widths!(x::clz),
            Unary::Cls => widths!(x::cls),
        };
        self.on(wide(w, f), d, n, 0, 0, 0)
    }

    pub(super) fn ccmp(&mut self, add: bool, w: bool, n: Reg, m: Operand, cond: u8, nzcv: u8) -> Flow {
        let pick = |with_add, without| wide(w, if add { with_add } else { without });
        match m {
            Operand::Reg(m) => {
                self.on(pick(widths!(x::ccmp, true), widths!(x::ccmp, false)), nzcv, n, m, cond, 0)
            }
            Operand::Imm(imm) => {
                let f = pick(widths!(x::ccmp_imm, true), widths!(x::ccmp_imm, false));
                self.on(f, nzcv, n, 0, cond, imm)
            }
            // There are no such forms.
            Operand::Shifted(..) | Operand::Extended(..) => self.undefined(),
        }
    }
}
