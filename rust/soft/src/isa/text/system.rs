//! System instructions as text.

use std::fmt;

use super::{R, SINK, Text, ZERO};
use crate::id::SysReg;
use crate::isa::insn::{Barrier, Exception, Insn, Pstate};

/// Hints by number.
const HINTS: [(u8, &str); 28] = [
    (0, "nop"),
    (1, "yield"),
    (2, "wfe"),
    (3, "wfi"),
    (4, "sev"),
    (5, "sevl"),
    (6, "dgh"),
    (7, "xpaclri"),
    (8, "pacia1716"),
    (10, "pacib1716"),
    (12, "autia1716"),
    (14, "autib1716"),
    (16, "esb"),
    (17, "psb csync"),
    (18, "tsb csync"),
    (20, "csdb"),
    (24, "paciaz"),
    (25, "paciasp"),
    (26, "pacibz"),
    (27, "pacibsp"),
    (28, "autiaz"),
    (29, "autiasp"),
    (30, "autibz"),
    (31, "autibsp"),
    (32, "bti"),
    (34, "bti c"),
    (36, "bti j"),
    (38, "bti jc"),
];

/// Options of DSB and DMB.
const OPTIONS: [&str; 16] = [
    "", "oshld", "oshst", "osh", "", "nshld", "nshst", "nsh", "", "ishld", "ishst", "ish", "", "ld", "st",
    "sy",
];

/// Registers that guests name and snapshots do not hold.
const REGISTERS: [(SysReg, &str); 32] = [
    (SysReg::new(3, 3, 4, 2, 0), "nzcv"),
    (SysReg::DAIF, "daif"),
    (SysReg::FPCR, "fpcr"),
    (SysReg::new(3, 3, 4, 4, 1), "fpsr"),
    (SysReg::new(3, 0, 4, 2, 0), "spsel"),
    (SysReg::new(3, 0, 4, 2, 2), "currentel"),
    (SysReg::new(3, 0, 4, 2, 3), "pan"),
    (SysReg::new(3, 0, 0, 0, 0), "midr_el1"),
    (SysReg::new(3, 0, 0, 0, 6), "revidr_el1"),
    (SysReg::new(3, 0, 0, 4, 0), "id_aa64pfr0_el1"),
    (SysReg::new(3, 0, 0, 4, 1), "id_aa64pfr1_el1"),
    (SysReg::new(3, 0, 0, 5, 0), "id_aa64dfr0_el1"),
    (SysReg::new(3, 0, 0, 6, 0), "id_aa64isar0_el1"),
    (SysReg::new(3, 0, 0, 6, 1), "id_aa64isar1_el1"),
    (SysReg::new(3, 0, 0, 7, 0), "id_aa64mmfr0_el1"),
    (SysReg::new(3, 0, 0, 7, 1), "id_aa64mmfr1_el1"),
    (SysReg::new(3, 0, 0, 7, 2), "id_aa64mmfr2_el1"),
    (SysReg::new(3, 0, 5, 1, 0), "afsr0_el1"),
    (SysReg::new(3, 0, 5, 1, 1), "afsr1_el1"),
    (SysReg::new(3, 1, 0, 0, 0), "ccsidr_el1"),
    (SysReg::new(3, 1, 0, 0, 1), "clidr_el1"),
    (SysReg::new(3, 3, 0, 0, 1), "ctr_el0"),
    (SysReg::new(3, 3, 0, 0, 7), "dczid_el0"),
    (SysReg::new(3, 3, 14, 0, 0), "cntfrq_el0"),
    (SysReg::new(3, 3, 14, 0, 1), "cntpct_el0"),
    (SysReg::new(3, 3, 14, 0, 2), "cntvct_el0"),
    (SysReg::new(3, 3, 14, 3, 0), "cntv_tval_el0"),
    (SysReg::new(3, 3, 14, 2, 0), "cntp_tval_el0"),
    (SysReg::new(2, 0, 1, 0, 4), "oslar_el1"),
    (SysReg::new(2, 0, 1, 1, 4), "oslsr_el1"),
    (SysReg::new(2, 0, 1, 3, 4), "osdlr_el1"),
    (SysReg::new(2, 3, 0, 1, 0), "mdccsr_el0"),
];

/// What SYS has names for.
const OPERATIONS: [(SysReg, &str); 38] = [
    (SysReg::new(1, 0, 7, 1, 0), "ic ialluis"),
    (SysReg::new(1, 0, 7, 5, 0), "ic iallu"),
    (SysReg::new(1, 3, 7, 5, 1), "ic ivau"),
    (SysReg::new(1, 3, 7, 4, 1), "dc zva"),
    (SysReg::new(1, 0, 7, 6, 1), "dc ivac"),
    (SysReg::new(1, 0, 7, 6, 2), "dc isw"),
    (SysReg::new(1, 3, 7, 10, 1), "dc cvac"),
    (SysReg::new(1, 0, 7, 10, 2), "dc csw"),
    (SysReg::new(1, 3, 7, 11, 1), "dc cvau"),
    (SysReg::new(1, 3, 7, 12, 1), "dc cvap"),
    (SysReg::new(1, 3, 7, 14, 1), "dc civac"),
    (SysReg::new(1, 0, 7, 14, 2), "dc cisw"),
    (SysReg::new(1, 0, 7, 8, 0), "at s1e1r"),
    (SysReg::new(1, 0, 7, 8, 1), "at s1e1w"),
    (SysReg::new(1, 0, 7, 8, 2), "at s1e0r"),
    (SysReg::new(1, 0, 7, 8, 3), "at s1e0w"),
    (SysReg::new(1, 0, 7, 9, 0), "at s1e1rp"),
    (SysReg::new(1, 0, 7, 9, 1), "at s1e1wp"),
    (SysReg::new(1, 0, 8, 3, 0), "tlbi vmalle1is"),
    (SysReg::new(1, 0, 8, 3, 1), "tlbi vae1is"),
    (SysReg::new(1, 0, 8, 3, 2), "tlbi aside1is"),
    (SysReg::new(1, 0, 8, 3, 3), "tlbi vaae1is"),
    (SysReg::new(1, 0, 8, 3, 5), "tlbi vale1is"),
    (SysReg::new(1, 0, 8, 3, 7), "tlbi vaale1is"),
    (SysReg::new(1, 0, 8, 7, 0), "tlbi vmalle1"),
    (SysReg::new(1, 0, 8, 7, 1), "tlbi vae1"),
    (SysReg::new(1, 0, 8, 7, 2), "tlbi aside1"),
    (SysReg::new(1, 0, 8, 7, 3), "tlbi vaae1"),
    (SysReg::new(1, 0, 8, 7, 5), "tlbi vale1"),
    (SysReg::new(1, 0, 8, 7, 7), "tlbi vaale1"),
    (SysReg::new(1, 0, 8, 1, 0), "tlbi vmalle1os"),
    (SysReg::new(1, 0, 8, 1, 1), "tlbi vae1os"),
    (SysReg::new(1, 0, 8, 1, 2), "tlbi aside1os"),
    (SysReg::new(1, 0, 8, 1, 3), "tlbi vaae1os"),
    (SysReg::new(1, 0, 8, 1, 5), "tlbi vale1os"),
    (SysReg::new(1, 0, 8, 1, 7), "tlbi vaale1os"),
    (SysReg::new(1, 0, 8, 2, 1), "tlbi rvae1is"),
    (SysReg::new(1, 0, 8, 6, 1), "tlbi rvae1"),
];

/// A system register: its name, or its encoding as assemblers take it.
struct Register(u16);

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let register = SysReg(self.0);
        if let Some((_, name)) = REGISTERS.iter().find(|(known, _)| *known == register) {
            return f.write_str(name);
        }
        if let Some(name) = register.name() {
            return f.write_str(&name.to_ascii_lowercase());
        }
        let [op0, op1, crn, crm, op2] = fields(self.0);
        write!(f, "s{op0}_{op1}_c{crn}_c{crm}_{op2}")
    }
}

/// The five fields of an encoding.
fn fields(encoding: u16) -> [u16; 5] {
    [encoding >> 14, encoding >> 11 & 7, encoding >> 7 & 15, encoding >> 3 & 15, encoding & 7]
}

impl Text {
    pub(super) fn system(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.insn {
            Insn::Hint { number } => match HINTS.iter().find(|(known, _)| *known == number) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "hint #{number:#x}"),
            },
            Insn::Exception { kind, imm } => {
                let name = match kind {
                    Exception::Svc => "svc",
                    Exception::Hvc => "hvc",
                    Exception::Smc => "smc",
                    Exception::Brk => "brk",
                };
                write!(f, "{name} #{imm:#x}")
            }
            Insn::Eret => f.write_str("eret"),
            Insn::Barrier { kind, option } => barrier(f, kind, option),
            Insn::Sb => f.write_str("sb"),
            Insn::Clrex { option: 15 } => f.write_str("clrex"),
            Insn::Clrex { option } => write!(f, "clrex #{option:#x}"),
            Insn::Mrs { t, register } => write!(f, "mrs {}, {}", R(t, true), Register(register)),
            Insn::Msr { t, register } => write!(f, "msr {}, {}", Register(register), R(t, true)),
            Insn::MsrImm { field, imm } => {
                let name = match field {
                    Pstate::SpSel => "spsel",
                    Pstate::Pan => "pan",
                    Pstate::DaifSet => "daifset",
                    Pstate::DaifClr => "daifclr",
                };
                write!(f, "msr {name}, #{imm:#x}")
            }
            Insn::Sys { t, op } => {
                match OPERATIONS.iter().find(|(known, _)| known.0 == op) {
                    Some((_, name)) => f.write_str(name)?,
                    None => {
                        let [_, op1, crn, crm, op2] = fields(op);
                        write!(f, "sys #{op1}, C{crn}, C{crm}, #{op2}")?;
                    }
                }
                if t == ZERO || t == SINK { Ok(()) } else { write!(f, ", {}", R(t, true)) }
            }
            _ => Ok(()),
        }
    }
}

fn barrier(f: &mut fmt::Formatter, kind: Barrier, option: u8) -> fmt::Result {
    let name = match kind {
        Barrier::Isb if option == 15 => return f.write_str("isb"),
        Barrier::Isb => return write!(f, "isb #{option:#x}"),
        Barrier::Dsb if option == 0 => return f.write_str("ssbb"),
        Barrier::Dsb if option == 4 => return f.write_str("pssbb"),
        Barrier::Dsb => "dsb",
        Barrier::Dmb => "dmb",
    };
    match OPTIONS[usize::from(option & 15)] {
        "" => write!(f, "{name} #{option:#04x}"),
        text => write!(f, "{name} {text}"),
    }
}
