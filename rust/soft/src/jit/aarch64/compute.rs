//! Integer data processing: the guest's own instructions.

use super::asm::{ZR, with};
use super::block::Translator;
use super::{CPU, OTHER, TEMP, layout};
use crate::id::SysReg;
use crate::interp::lower::system::is_kept;
use crate::isa::insn::{FlagOp, Insn, Operand, Pstate, Reg};
use crate::sysreg::constant;

/// Which registers an instruction has in its fields. What is 31 in a field stays so.
#[derive(Clone, Copy, Default)]
struct Fields {
    d: Option<Reg>,
    /// `d` is read too.
    keeps: bool,
    n: Option<Reg>,
    m: Option<Reg>,
    a: Option<Reg>,
}

const NONE: Fields = Fields { d: None, keeps: false, n: None, m: None, a: None };

impl Translator<'_> {
    /// Of an instruction that does nothing but compute with general registers and flags, if the host has it.
    fn fields(&self, insn: Insn) -> Option<Fields> {
        let register = |m: Operand| match m {
            Operand::Imm(_) => None,
            Operand::Reg(m) | Operand::Shifted(m, ..) | Operand::Extended(m, ..) => Some(m),
        };
        Some(match insn {
            Insn::Const { d, .. } => Fields { d: Some(d), ..NONE },
            Insn::Movk { d, .. } => Fields { d: Some(d), keeps: true, ..NONE },
            Insn::Alu { d, n, m, .. } => Fields { d: Some(d), n: Some(n), m: register(m), ..NONE },
            Insn::Shift { d, n, .. } | Insn::Field { d, n, .. } | Insn::Unary { d, n, .. } => {
                // EXTR of one register twice is a rotation.
                let m = (self.word() & 0x1f80_0000 == 0x1380_0000).then_some(n);
                Fields { d: Some(d), n: Some(n), m, ..NONE }
            }
            Insn::Insert { d, n, .. } => Fields { d: Some(d), keeps: true, n: Some(n), ..NONE },
            Insn::Crc32 { .. } if !self.features.crc => return None,
            Insn::Adc { d, n, m, .. }
            | Insn::ShiftBy { d, n, m, .. }
            | Insn::Extract { d, n, m, .. }
            | Insn::Mulh { d, n, m, .. }
            | Insn::Crc32 { d, n, m, .. }
            | Insn::Div { d, n, m, .. }
            | Insn::Select { d, n, m, .. } => Fields { d: Some(d), n: Some(n), m: Some(m), ..NONE },
            Insn::Madd { d, n, m, a, .. } | Insn::Maddl { d, n, m, a, .. } => {
                Fields { d: Some(d), n: Some(n), m: Some(m), a: Some(a), keeps: false }
            }
            Insn::Ccmp { n, m, .. } => Fields { n: Some(n), m: register(m), ..NONE },
            Insn::Rmif { n, .. } | Insn::Setf { n, .. } if self.features.flagm => {
                Fields { n: Some(n), ..NONE }
            }
            Insn::Flags { op: FlagOp::Cfinv } if self.features.flagm => NONE,
            _ => return None,
        })
    }

    /// False when the interpreter must do it.
    pub(super) fn compute(&mut self, insn: Insn) -> bool {
        match insn {
            Insn::Hint { .. } | Insn::Prfm { .. } | Insn::Sb => return true,
            Insn::Adr { d, offset, .. } => {
                let r = self.write(d);
                if d as usize <= crate::Regs::SP {
                    self.asm.load(3, r, CPU, layout::PAGE);
                    self.asm.add_i(r, r, offset);
                }
                return true;
            }
            Insn::Lanes { n, m, d, .. } => {
                self.read_vector(n);
                self.read_vector(m);
                self.write_vector(d);
                let word = self.word();
                self.asm.word(word);
                return true;
            }
            Insn::Fmov { n, d, .. } => {
                self.read_vector(n);
                self.write_vector(d);
                let word = self.word();
                self.asm.word(word);
                return true;
            }
            Insn::FromVector { d, n, .. } => {
                self.read_vector(n);
                let d = self.write(d);
                let word = with(self.word(), Some(d), None, None, None);
                self.asm.word(word);
                return true;
            }
            Insn::ToVector { d, n, .. } => {
                let n = self.read(n);
                self.write_vector(d);
                let word = with(self.word(), None, Some(n), None, None);
                self.asm.word(word);
                return true;
            }
            _ => {}
        }
        let Some(fields) = self.fields(insn) else { return false };
        let word = self.word();
        if insn.reads(word).flags {
            self.need_flags();
        }
        let [n, m, a] = [fields.n, fields.m, fields.a].map(|g| g.map(|g| self.read(g)));
        let d = match fields.d {
            Some(d) if fields.keeps => Some(self.update(d)),
            d => d.map(|d| self.write(d)),
        };
        self.asm.word(with(word, d, n, m, a));
        if insn.writes(word).flags {
            self.set_flags();
        }
        true
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
        // At EL0 most are undefined, and DAIF may be; SP_EL0 is where it is in use.
        let mut nonzero = Vec::new();
        match SysReg(register) {
            SysReg::TPIDR_EL0 | SysReg::DCZID_EL0 => {}
            SysReg::FPCR => self.fp_check(),
            _ => nonzero.push(layout::EL),
        }
        if SysReg(register) == SysReg::SP_EL0 {
            nonzero.push(layout::SPSEL);
        }
        self.exit_where_zero(&nonzero);
        let r = self.write(t);
        match (SysReg(register), known) {
            _ if r == ZR => {}
            (SysReg::DAIF, _) => {
                self.asm.load(0, r, CPU, place);
                self.asm.lsl_i(r, r, 6);
            }
            (SysReg::FPCR, _) => self.asm.load(2, r, CPU, place),
            (_, Some(value)) => self.asm.mov_i(r, value),
            _ => self.asm.load(3, r, CPU, place),
        }
        true
    }

    /// MSR of what is nothing but kept. False when the interpreter must do it.
    pub(super) fn msr(&mut self, t: Reg, register: u16) -> bool {
        let (place, nonzero): (_, &[u32]) = match SysReg(register) {
            SysReg::TPIDR_EL0 => (Some(layout::TPIDR_EL0), &[]),
            SysReg::SP_EL0 => (Some(layout::SP_EL0), &[layout::EL, layout::SPSEL]),
            _ if is_kept(register) => (layout::system(register), &[layout::EL]),
            _ => (None, &[]),
        };
        let Some(place) = place else { return false };
        let value = self.read(t);
        self.exit_where_zero(nonzero);
        self.asm.store(3, value, CPU, place);
        true
    }

    fn exit_where_zero(&mut self, places: &[u32]) {
        for place in places {
            self.asm.load(0, TEMP, CPU, *place);
            let zero = self.asm.cbz(false, false, TEMP);
            self.exit_by(zero);
        }
    }

    /// MSR DAIFSet: masking more lets nothing in that would need a look. False when the interpreter must do it.
    pub(super) fn msr_imm(&mut self, field: Pstate, imm: u8) -> bool {
        if field != Pstate::DaifSet {
            return false;
        }
        // At EL0 it may be refused.
        self.exit_where_zero(&[layout::EL]);
        self.asm.load(0, TEMP, CPU, layout::DAIF);
        self.asm.mov_i(OTHER, imm.into());
        self.asm.orr(TEMP, TEMP, OTHER);
        self.asm.store(0, TEMP, CPU, layout::DAIF);
        true
    }
}
