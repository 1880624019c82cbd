//! Hints, barriers and system registers (C4.1.94, "System instructions" and neighbours).

use super::{Block, Decoded, END, ON, bits, d, z};
use crate::exec::{alu, atomic, system as x};
use crate::id::SysReg;
use crate::op::Handler;

/// DC ZVA, as SYS names it.
const DC_ZVA: u32 = 1 << 14 | 3 << 11 | 7 << 7 | 4 << 3 | 1;

pub(super) fn system(block: &mut Block, i: u32) -> Decoded {
    let (l, op0, op1) = (bits(i, 21, 21), bits(i, 20, 19), bits(i, 18, 16));
    let (crn, crm, op2, rt) = (bits(i, 15, 12), bits(i, 11, 8), bits(i, 7, 5), bits(i, 4, 0));
    let id = i >> 5 & 0xffff;
    match (l, op0) {
        (0, 0) => pseudo(block, op1, crn, crm, op2, rt),
        (0, 1) => {
            if id == DC_ZVA {
                block.op(x::dc_zva, z(rt), 0, 0, 0, u64::from(id));
                return ON;
            }
            block.op(x::sys, z(rt), 0, 0, 0, u64::from(id));
            END
        }
        // SYSL: none.
        (1, 0 | 1) => None,
        (1, _) => {
            let f: Handler = match SysReg(id as u16) {
                SysReg::TPIDR_EL0 => x::mrs_tpidr0,
                SysReg::TPIDR_EL1 => x::mrs_tpidr1,
                SysReg::SP_EL0 => x::mrs_sp0,
                SysReg(0xda10) => x::mrs_nzcv,
                _ => x::mrs,
            };
            block.op(f, d(rt), 0, 0, 0, u64::from(id));
            ON
        }
        _ => {
            let f: Handler = match SysReg(id as u16) {
                SysReg::TPIDR_EL0 => x::msr_tpidr0,
                SysReg(0xda10) => x::msr_nzcv,
                _ => {
                    block.op(x::msr, z(rt), 0, 0, 0, u64::from(id));
                    return END;
                }
            };
            block.op(f, z(rt), 0, 0, 0, u64::from(id));
            ON
        }
    }
}

fn pseudo(block: &mut Block, op1: u32, crn: u32, crm: u32, op2: u32, rt: u32) -> Decoded {
    if rt != 31 {
        return None;
    }
    let mut op = |f: Handler, a: u32, b: u32| block.op(f, a as u8, b as u8, 0, 0, 0);
    match (op1, crn, op2) {
        (3, 2, _) => match (crm, op2) {
            (0, 1) => op(x::hint_yield, 0, 0),
            (0, 2) => op(x::wfe, 0, 0),
            (0, 3) => op(x::wfi, 0, 0),
            _ => {
                op(alu::nop, 0, 0);
                return ON;
            }
        },
        (3, 3, 2) => {
            op(atomic::clrex, 0, 0);
            return ON;
        }
        (3, 3, 4) => {
            op(x::dsb, 0, 0);
            return ON;
        }
        (3, 3, 5) => {
            op(
                if crm & 3 == 1 {
                    atomic::dmb_ld
                } else if crm & 3 == 2 {
                    atomic::dmb_st
                } else {
                    atomic::dmb
                },
                0,
                0,
            );
            return ON;
        }
        (3, 3, 6) => op(x::isb, 0, 0),
        // SB
        (3, 3, 7) if crm == 0 => {
            op(alu::nop, 0, 0);
            return ON;
        }
        // CFINV, XAFLAG, AXFLAG
        (0, 4, 0..=2) if crm == 0 => {
            op([alu::cfinv, alu::xaflag, alu::axflag][op2 as usize], 0, 0);
            return ON;
        }
        (0, 4, 4) => op(x::msr_imm, 1, crm),
        (0, 4, 5) => op(x::msr_imm, 0, crm),
        (3, 4, 6) => {
            op(x::msr_imm, 2, crm);
            return ON;
        }
        (3, 4, 7) => op(x::msr_imm, 3, crm),
        _ => return None,
    }
    END
}
