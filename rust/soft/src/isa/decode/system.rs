//! Hints, barriers and system registers (C4.1.94, "System instructions" and neighbours).

use super::{alu, bits, d, z};
use crate::isa::insn::{Barrier, Insn, Pstate};

pub(super) fn system<T>(i: u32, to: impl FnOnce(Insn) -> T) -> Option<T> {
    let register = (i >> 5) as u16;
    Some(match (bits(i, 21, 21), bits(i, 20, 19)) {
        (0, 0) => to(pseudo(i)?),
        (0, 1) => to(Insn::Sys { t: z(i), op: register }),
        // SYSL: none.
        (1, 0 | 1) => return None,
        (1, _) => to(Insn::Mrs { t: d(i), register }),
        _ => to(Insn::Msr { t: z(i), register }),
    })
}

fn pseudo(i: u32) -> Option<Insn> {
    if bits(i, 4, 0) != 31 {
        return None;
    }
    let (crm, op2) = (bits(i, 11, 8), bits(i, 7, 5));
    let imm = crm as u8;
    Some(match (bits(i, 18, 16), bits(i, 15, 12), op2) {
        (3, 2, _) => Insn::Hint { number: (crm << 3 | op2) as u8 },
        (3, 3, 2) => Insn::Clrex { option: imm },
        (3, 3, 4) => Insn::Barrier { kind: Barrier::Dsb, option: imm },
        (3, 3, 5) => Insn::Barrier { kind: Barrier::Dmb, option: imm },
        (3, 3, 6) => Insn::Barrier { kind: Barrier::Isb, option: imm },
        (3, 3, 7) if crm == 0 => Insn::Sb,
        (0, 4, 0..=2) if crm == 0 => alu::flag_operation(op2),
        (0, 4, 4) => Insn::MsrImm { field: Pstate::Pan, imm },
        (0, 4, 5) => Insn::MsrImm { field: Pstate::SpSel, imm },
        (3, 4, 6) => Insn::MsrImm { field: Pstate::DaifSet, imm },
        (3, 4, 7) => Insn::MsrImm { field: Pstate::DaifClr, imm },
        _ => return None,
    })
}
