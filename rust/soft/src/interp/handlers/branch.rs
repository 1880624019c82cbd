//! Branches.

use super::{Word, compare};
use crate::cpu::{Cpu, is_canonical};
use crate::interp::op::{P, goto, jump, next};

/// Inside the page.
pub(crate) fn b(c: &mut Cpu, o: P) {
    jump(c, o);
}

pub(crate) fn bl(c: &mut Cpu, o: P) {
    c.set_x(30, (c.page | o.off()).wrapping_add(4));
    jump(c, o);
}

/// To another page, `imm` from this one.
pub(crate) fn b_far(c: &mut Cpu, o: P) {
    let to = c.page.wrapping_add(o.imm());
    goto(c, o, to);
}

pub(crate) fn bl_far(c: &mut Cpu, o: P) {
    let to = c.page.wrapping_add(o.imm());
    c.set_x(30, (c.page | o.off()).wrapping_add(4));
    goto(c, o, to);
}

/// On at an address from a register.
#[inline(always)]
fn indirect(c: &mut Cpu, o: P, to: u64) {
    if is_canonical(to) { goto(c, o, to) } else { untagged(c, o, to) }
}

/// An address as PC takes it has no tag in its top byte any more (D8.8.1).
#[cold]
#[inline(never)]
fn untagged(c: &mut Cpu, o: P, to: u64) {
    c.fuel -= o.n();
    c.state.pc = untag(c, to);
}

pub(crate) fn untag(c: &Cpu, to: u64) -> u64 {
    if to >> 55 & 1 == 0 {
        if c.state.sys.tcr >> 37 & 1 == 1 { to & ((1 << 56) - 1) } else { to }
    } else if c.state.sys.tcr >> 38 & 1 == 1 {
        to | 0xff << 56
    } else {
        to
    }
}

pub(crate) fn br(c: &mut Cpu, o: P) {
    let to = c.x(o.b());
    indirect(c, o, to);
}

pub(crate) fn blr(c: &mut Cpu, o: P) {
    let to = c.x(o.b());
    c.set_x(30, (c.page | o.off()).wrapping_add(4));
    indirect(c, o, to);
}

/// Takes the branch when `taken`: inside the page, or by `imm`.
#[inline(always)]
fn branch<const FAR: bool>(c: &mut Cpu, o: P, taken: bool) {
    if !taken {
        next(c, o);
    } else if FAR {
        b_far(c, o);
    } else {
        jump(c, o);
    }
}

pub(crate) fn b_cond<const FAR: bool, const COND: u32>(c: &mut Cpu, o: P) {
    let taken = c.holds(COND);
    branch::<FAR>(c, o, taken);
}

pub(crate) fn cbz<T: Word, const FAR: bool, const NZ: bool>(c: &mut Cpu, o: P) {
    let taken = (c.w::<T>(o.a()).u() == 0) != NZ;
    branch::<FAR>(c, o, taken);
}

/// Bit `b` of register `a`.
pub(crate) fn tbz<const FAR: bool, const NZ: bool>(c: &mut Cpu, o: P) {
    let taken = (c.x(o.a()) >> o.b() & 1 == 1) == NZ;
    branch::<FAR>(c, o, taken);
}

/// SUBS with an immediate, and the conditional branch that follows it.
pub(crate) fn subs_imm_b<T: Word, const FAR: bool, const COND: u32>(c: &mut Cpu, o: P) {
    let (x, y) = (c.w::<T>(o.b()), T::of(o.imm()));
    c.set_w(o.a(), x.sub(y));
    c.set_compared(x, y);
    branch::<FAR>(c, o.succ(), compare(COND, x, y));
}

pub(crate) fn subs_b<T: Word, const FAR: bool, const COND: u32>(c: &mut Cpu, o: P) {
    let (x, y) = (c.w::<T>(o.b()), c.w::<T>(o.c()));
    c.set_w(o.a(), x.sub(y));
    c.set_compared(x, y);
    branch::<FAR>(c, o.succ(), compare(COND, x, y));
}
