//! Exceptions, system registers, barriers and hints.

use std::sync::atomic::{Ordering, fence};

use super::vector;
use crate::Regs;
use crate::cpu::Cpu;
use crate::interp::op::{P, goto, jump, leave, next};
use crate::sysreg::{Sysop, ZVA_BYTES};
use crate::vcpu::Exit;

pub(crate) fn undefined(c: &mut Cpu, o: P) {
    c.undefined(o);
}

/// `imm` is the immediate.
pub(crate) fn svc(c: &mut Cpu, o: P) {
    leave(c, o);
    // The instruction is complete, as software step sees it.
    c.state.ss = false;
    c.exception(0x15, o.imm(), None);
}

pub(crate) fn hvc(c: &mut Cpu, o: P) {
    if c.state.el == 0 {
        return c.undefined(o);
    }
    leave(c, o);
    c.exit = Some(Exit::Hvc { immediate: o.imm() as u16 });
}

pub(crate) fn smc(c: &mut Cpu, o: P) {
    if c.state.el == 0 {
        return c.undefined(o);
    }
    c.fuel -= o.n();
    c.sync(o);
    c.exit = Some(Exit::Smc { immediate: o.imm() as u16 });
}

pub(crate) fn brk(c: &mut Cpu, o: P) {
    c.raise(o, 0x3c, o.imm());
}

pub(crate) fn eret(c: &mut Cpu, o: P) {
    if c.state.el == 0 {
        return c.undefined(o);
    }
    c.fuel -= o.n();
    c.eret();
}

pub(crate) fn wfi(c: &mut Cpu, o: P) {
    // SCTLR_EL1.nTWI.
    if c.state.el == 0 && c.state.sys.sctlr >> 16 & 1 == 0 {
        return c.raise(o, 1, 1 << 24 | 0xe << 20);
    }
    leave(c, o);
    c.wait();
}

pub(crate) fn wfe(c: &mut Cpu, o: P) {
    // SCTLR_EL1.nTWE.
    if c.state.el == 0 && c.state.sys.sctlr >> 18 & 1 == 0 {
        return c.raise(o, 1, 1 << 24 | 0xe << 20 | 1);
    }
    leave(c, o);
    c.wait_event();
}

pub(crate) fn hint_yield(c: &mut Cpu, o: P) {
    leave(c, o);
    std::thread::yield_now();
}

/// DSB: what was asked of other vCPUs has happened after it.
pub(crate) fn dsb(c: &mut Cpu, o: P) {
    fence(Ordering::SeqCst);
    if c.broadcast {
        leave(c, o);
        return c.synchronize();
    }
    next(c, o);
}

/// ISB: a new block begins after it.
pub(crate) fn isb(c: &mut Cpu, o: P) {
    leave(c, o);
}

/// What ends a block that has no branch at its end: on to the instruction after `off`, in this page.
pub(crate) fn fall(c: &mut Cpu, o: P) {
    jump(c, o);
}

/// The same at the page's end.
pub(crate) fn fall_far(c: &mut Cpu, o: P) {
    let to = c.page.wrapping_add(0x1000);
    goto(c, o, to);
}

/// MRS of `imm` to `a`.
pub(crate) fn mrs(c: &mut Cpu, o: P) {
    c.sync(o);
    match c.mrs(o.imm() as u16) {
        Ok(v) => {
            c.set_x(o.a(), v);
            next(c, o);
        }
        Err(e) => refuse(c, o, e, true),
    }
}

/// MSR of `a` to `imm`.
pub(crate) fn msr(c: &mut Cpu, o: P) {
    c.sync(o);
    match c.msr(o.imm() as u16, c.x(o.a())) {
        Sysop::Done => leave(c, o),
        e => refuse(c, o, e, false),
    }
}

/// The same where nothing else depends on the register.
pub(crate) fn msr_kept(c: &mut Cpu, o: P) {
    c.sync(o);
    match c.msr(o.imm() as u16, c.x(o.a())) {
        Sysop::Done => next(c, o),
        e => refuse(c, o, e, false),
    }
}

/// SYS with `a`.
pub(crate) fn sys(c: &mut Cpu, o: P) {
    c.sync(o);
    match c.sys_op(o.imm() as u16, c.x(o.a())) {
        Sysop::Done => leave(c, o),
        e => refuse(c, o, e, false),
    }
}

#[cold]
fn refuse(c: &mut Cpu, o: P, e: Sysop, read: bool) {
    match e {
        Sysop::Trap => {
            let r = o.imm();
            let rt = if o.a() > 30 { 31 } else { o.a() as u64 };
            // ESR_EL1's ISS for EC 0x18 wants the fields in another order.
            let iss = (r >> 14 & 3) << 20
                | (r & 7) << 17
                | (r >> 11 & 7) << 14
                | (r >> 7 & 15) << 10
                | rt << 5
                | (r >> 3 & 15) << 1
                | u64::from(read);
            c.raise(o, 0x18, iss);
        }
        Sysop::FpTrap => vector::trap(c, o),
        Sysop::Fault(va, fault) => {
            // CM, and WnR as for every cache maintenance instruction (D24.2.40).
            c.sync(o);
            c.data_abort(va, fault, true);
            c.state.sys.esr |= 1 << 8;
        }
        Sysop::Done | Sysop::Undefined => c.undefined(o),
    }
}

pub(crate) fn mrs_tpidr0(c: &mut Cpu, o: P) {
    c.set_x(o.a(), c.state.sys.tpidr_el0);
    next(c, o);
}

/// EL1 only: its per-CPU offset.
pub(crate) fn mrs_tpidr1(c: &mut Cpu, o: P) {
    if c.state.el == 0 {
        return c.undefined(o);
    }
    c.set_x(o.a(), c.state.sys.tpidr_el1);
    next(c, o);
}

/// At EL1h, where Linux keeps the current task.
pub(crate) fn mrs_sp0(c: &mut Cpu, o: P) {
    if c.state.el == 0 || !c.state.spsel {
        return c.undefined(o);
    }
    c.set_x(o.a(), c.state.sp[0]);
    next(c, o);
}

pub(crate) fn mrs_nzcv(c: &mut Cpu, o: P) {
    c.set_x(o.a(), u64::from(c.nzcv()));
    next(c, o);
}

pub(crate) fn msr_nzcv(c: &mut Cpu, o: P) {
    c.set_nzcv(c.x(o.a()) as u32 & 0xf000_0000);
    next(c, o);
}

pub(crate) fn msr_tpidr0(c: &mut Cpu, o: P) {
    c.state.sys.tpidr_el0 = c.x(o.a());
    next(c, o);
}

/// MSR DAIFSet, DAIFClr, SPSel, PAN (immediate): which in `a`, immediate in `b`.
pub(crate) fn msr_imm(c: &mut Cpu, o: P) {
    let v = o.b() as u8;
    if o.a() >= 2 && c.state.el == 0 && c.state.sys.sctlr >> 9 & 1 == 0 {
        // SCTLR_EL1.UMA; DAIF's encoding, as for the register.
        let op2 = if o.a() == 2 { 6 } else { 7 };
        let iss = op2 << 17 | 3 << 14 | 4 << 10 | 31 << 5 | u64::from(v) << 1;
        return c.raise(o, 0x18, iss);
    }
    if o.a() < 2 && c.state.el == 0 {
        return c.undefined(o);
    }
    match o.a() {
        0 => c.set_spsel(v & 1 == 1),
        1 => c.set_pan(v & 1 == 1),
        2 => {
            // Masking more lets nothing in that would need a look.
            c.state.daif |= v;
            return next(c, o);
        }
        _ => c.state.daif &= !v,
    }
    leave(c, o);
}

/// DC ZVA of the block around `a`.
pub(crate) fn dc_zva(c: &mut Cpu, o: P) {
    // SCTLR_EL1.DZE.
    if c.state.el == 0 && c.state.sys.sctlr >> 14 & 1 == 0 {
        return refuse(c, o, Sysop::Trap, false);
    }
    let va = c.x(o.a());
    let block = va & !(ZVA_BYTES - 1);
    if c.store_fast::<[u8; ZVA_BYTES as usize]>(block, [0; ZVA_BYTES as usize], false)
        || c.zero_slow(o, va).is_some()
    {
        next(c, o);
    }
}

const _: () = assert!(Regs::SINK < 34);
