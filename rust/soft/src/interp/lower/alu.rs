//! Data processing with immediates and registers.

use super::{Handler, half, ones, plain, wide, widths};
use crate::Regs;
use crate::interp::block::{Block, Flow, Form, Last};
use crate::interp::handlers::alu as x;
use crate::interp::handlers::pairs::Half;
use crate::isa::insn::{Alu, Operand, Reg, Select, Shift, Unary};

/// Both widths of a handler that goes with no neighbour.
macro_rules! both {
    ($($f:ident)::+ $(, $k:expr)*) => {
        [plain($($f)::+::<u32 $(, $k)*>), plain($($f)::+::<u64 $(, $k)*>)]
    };
}

/// Of a handler that can be half of a pair in both widths.
macro_rules! halves {
    ($($f:ident)::+, $w:ident, $x:ident) => {
        [half($($f)::+::<u32>, Half::$w), half($($f)::+::<u64>, Half::$x)]
    };
}

/// Of a comparison, which takes the branch behind it with it.
macro_rules! compares {
    ($($f:ident)::+, $last:ident) => {
        [
            Form { f: $($f)::+::<u32>, half: None, last: Last::$last { wide: false } },
            Form { f: $($f)::+::<u64>, half: None, last: Last::$last { wide: true } },
        ]
    };
}

const AND_IMM: [Form; 2] = [plain(x::and_imm::<u32>), half(x::and_imm::<u64>, Half::AndImm)];
const ADD_IMM: [Form; 2] = halves!(x::add_imm, AddImm32, AddImm);

/// By [`Alu`], flags and width. A subtraction without flags is the addition of what is negative.
static IMMEDIATE: [[[Form; 2]; 2]; 5] = [
    [ADD_IMM, both!(x::adds_imm)],
    [ADD_IMM, compares!(x::subs_imm, SubsImm)],
    [AND_IMM, both!(x::ands_imm)],
    [both!(x::orr_imm), both!(x::orr_imm)],
    [both!(x::eor_imm), both!(x::eor_imm)],
];

/// The row of `REGISTER` behind those by [`Alu`].
const MOV: usize = 5;

/// By [`Alu`] or `MOV`, inversion, flags and width. `imm` says once more whether the second operand is inverted.
static REGISTER: [[[[Form; 2]; 2]; 2]; 6] = {
    let add = [halves!(x::add, Add32, Add), both!(x::adds)];
    let sub = [both!(x::sub), compares!(x::subs, Subs)];
    let ands = both!(x::ands_shift, 0);
    let mov = halves!(x::mov, Mov32, Mov);
    [
        [add, add],
        [sub, sub],
        [
            [[half(x::and::<u32>, Half::And32), plain(x::and::<u64>)], ands],
            [[half(x::bic::<u32>, Half::Bic32), plain(x::bic::<u64>)], ands],
        ],
        [[[half(x::orr::<u32>, Half::Orr32), plain(x::orr::<u64>)]; 2], [both!(x::orn); 2]],
        [[[half(x::eor::<u32>, Half::Eor32), plain(x::eor::<u64>)]; 2], [both!(x::eon); 2]],
        [[mov; 2]; 2],
    ]
};

/// By [`Alu`], flags, [`Shift`] and width; `imm` as above. Sums are not rotated.
static SHIFTED: [[[[Form; 2]; 4]; 2]; 5] = {
    macro_rules! by_kind {
        ($f:ident) => {
            [both!(x::$f, 0), both!(x::$f, 1), both!(x::$f, 2), both!(x::$f, 3)]
        };
    }
    macro_rules! sum_by_kind {
        ($f:ident) => {
            [both!(x::$f, 0), both!(x::$f, 1), both!(x::$f, 2), both!(x::$f, 2)]
        };
    }
    let ands = by_kind!(ands_shift);
    let (orr, mut eor) = (by_kind!(orr_shift), by_kind!(eor_shift));
    eor[Shift::Lsr as usize][0].half = Some(Half::EorLsr32);
    eor[Shift::Ror as usize][0].half = Some(Half::EorRor32);
    [
        [sum_by_kind!(add_shift), sum_by_kind!(adds_shift)],
        [sum_by_kind!(sub_shift), sum_by_kind!(subs_shift)],
        [by_kind!(and_shift), ands],
        [orr, orr],
        [eor, eor],
    ]
};

/// Handlers by condition (NV is AL) and width.
type ByCondition = [[Handler; 2]; 15];

macro_rules! conditional {
    ($f:ident $(, $k:literal)?) => {
        conditional!(@ $f [$($k)?] 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $f:ident $k:tt $($cond:literal)*) => {
        [$(conditional!(@one $f $k $cond)),*]
    };
    (@one $f:ident [$($k:literal)?] $cond:literal) => {
        [x::$f::<u32, $($k,)? $cond>, x::$f::<u64, $($k,)? $cond>]
    };
}

fn condition(cond: u8) -> usize {
    usize::from(cond).min(14)
}

/// All ones where the second operand is inverted.
fn inverted(invert: bool) -> u64 {
    u64::from(invert).wrapping_neg()
}

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
                self.alu_shifted(op, wide, flags, invert, registers, m, kind, by)
            }
            Operand::Extended(m, option, by) => {
                let f = match (op, flags) {
                    (Alu::Sub, false) => widths!(x::sub_ext),
                    (Alu::Sub, true) => widths!(x::subs_ext),
                    (_, false) => widths!(x::add_ext),
                    (_, true) => widths!(x::adds_ext),
                };
                self.on(super::wide(wide, f), [registers[0], registers[1], m, by], u64::from(option))
            }
        }
    }

    fn alu_immediate(&mut self, op: Alu, wide: bool, flags: bool, [d, n]: [Reg; 2], imm: u64) -> Flow {
        let negate = op == Alu::Sub && !flags;
        let form = &IMMEDIATE[op as usize][usize::from(flags)][usize::from(wide)];
        self.form(form, [d, n, 0, 0], if negate { imm.wrapping_neg() } else { imm })
    }

    fn alu_register(
        &mut self,
        op: Alu,
        wide: bool,
        flags: bool,
        invert: bool,
        [d, n]: [Reg; 2],
        m: Reg,
    ) -> Flow {
        let moves = op == Alu::Orr && !invert && n == Regs::ZERO as Reg;
        let row = if moves { MOV } else { op as usize };
        let form = &REGISTER[row][usize::from(invert)][usize::from(flags)][usize::from(wide)];
        self.form(form, [d, n, m, 0], inverted(invert))
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of the instruction")]
    fn alu_shifted(
        &mut self,
        op: Alu,
        wide: bool,
        flags: bool,
        invert: bool,
        [d, n]: [Reg; 2],
        m: Reg,
        kind: Shift,
        by: u8,
    ) -> Flow {
        let form = &SHIFTED[op as usize][usize::from(flags)][kind as usize][usize::from(wide)];
        self.form(form, [d, n, m, by], inverted(invert))
    }

    pub(super) fn shift(&mut self, kind: Shift, wide: bool, d: Reg, n: Reg, by: u8) -> Flow {
        static BY: [[Form; 2]; 4] = [
            [plain(x::lsl_imm::<u32>), half(x::lsl_imm::<u64>, Half::Lsl)],
            both!(x::lsr_imm),
            both!(x::asr_imm),
            [half(x::ror_imm::<u32>, Half::Ror32), plain(x::ror_imm::<u64>)],
        ];
        self.form(&BY[kind as usize][usize::from(wide)], [d, n, 0, by], 0)
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
                (0, 0, 8) => self.on(wide(w, widths!(x::sxtb)), [d, n, 0, 0], 0),
                (0, 0, 16) => self.on(wide(w, widths!(x::sxth)), [d, n, 0, 0], 0),
                (0, 0, 32) => self.on(wide(w, widths!(x::sxtw)), [d, n, 0, 0], 0),
                _ => self.on(wide(w, widths!(x::sbf)), [d, n, up, 64 - width - to], 0),
            };
        }
        let mask = ones(width);
        match (from, to) {
            (0, 0) => self.form(&AND_IMM[usize::from(w)], [d, n, 0, 0], mask),
            (_, 0) => self.on(wide(w, widths!(x::ubfx)), [d, n, 0, from], mask),
            _ => self.on(wide(w, widths!(x::ubfiz)), [d, n, 0, to], mask),
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
        self.on(wide(w, f), [d, n, 0, 0], 0)
    }

    pub(super) fn select(&mut self, kind: Select, wide: bool, [d, n, m]: [Reg; 3], cond: u8) -> Flow {
        static BY: [ByCondition; 4] =
            [conditional!(csel), conditional!(csinc), conditional!(csinv), conditional!(csneg)];
        self.on(BY[kind as usize][condition(cond)][usize::from(wide)], [d, n, m, 0], 0)
    }

    pub(super) fn ccmp(&mut self, add: bool, wide: bool, n: Reg, m: Operand, cond: u8, nzcv: u8) -> Flow {
        static REGISTER: [ByCondition; 2] = [conditional!(ccmp, false), conditional!(ccmp, true)];
        static IMMEDIATE: [ByCondition; 2] = [conditional!(ccmp_imm, false), conditional!(ccmp_imm, true)];
        let pick = |by: &[ByCondition; 2]| by[usize::from(add)][condition(cond)][usize::from(wide)];
        match m {
            Operand::Reg(m) => self.on(pick(&REGISTER), [nzcv, n, m, 0], 0),
            Operand::Imm(imm) => self.on(pick(&IMMEDIATE), [nzcv, n, 0, 0], imm),
            // There are no such forms.
            Operand::Shifted(..) | Operand::Extended(..) => self.undefined(),
        }
    }
}
