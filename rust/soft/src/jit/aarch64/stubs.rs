//! Code that all blocks share: the ways in and out.

use super::asm::{Asm, LR, R};
use super::{ADDEND, ADDRESS, CPU, OTHER, TAG, TEMP, TLB, layout};
use crate::jit::Entries;
use crate::jit::ways::Ways;

/// Code that all blocks share. Operations and addresses are in `ADDRESS`, the slot of the jump cache in `TEMP`.
#[derive(Clone, Copy)]
pub(super) struct Stubs {
    pub ways: Ways,
    /// Calls `fp`'s function `ADDEND` for the instruction `TEMP`.
    pub fp: usize,
}

/// Bytes of the stack that machine code has: the registers that calls preserve, and a return address.
const FRAME: i32 = 176;
const RETURN: u32 = 160;

/// Loads what `enter` has saved, in pairs, and gives the stack back.
fn restore(a: &mut Asm) {
    for n in 0..4 {
        a.restore_pair(true, 8 + 2 * n, 9 + 2 * n, 96 + 16 * i32::from(n), false);
    }
    for n in 0..5 {
        a.restore_pair(false, 19 + 2 * n, 20 + 2 * n, 16 + 16 * i32::from(n), false);
    }
    a.restore_pair(false, 29, 30, FRAME, true);
}

/// What other code may have changed.
fn regime(a: &mut Asm) {
    a.load(3, TLB, CPU, layout::TLB);
    a.load(3, TAG, CPU, layout::TAG);
}

impl Stubs {
    pub(super) fn emit(a: &mut Asm, entries: &Entries) -> Self {
        let mut s = Ways { enter: a.here(), ..Ways::default() };
        a.save_pair(false, 29, 30, -FRAME, true);
        for n in 0..5 {
            a.save_pair(false, 19 + 2 * n, 20 + 2 * n, 16 + 16 * i32::from(n), false);
        }
        for n in 0..4 {
            a.save_pair(true, 8 + 2 * n, 9 + 2 * n, 96 + 16 * i32::from(n), false);
        }
        a.mov(CPU, R(0));
        regime(a);
        a.br(R(2));

        s.leave = a.here();
        restore(a);
        a.ret();

        let away = |a: &mut Asm, to: u64| {
            let at = a.here();
            a.mov(R(0), CPU);
            a.mov(R(1), ADDRESS);
            restore(a);
            a.mov_i(TEMP, to);
            a.br(TEMP);
            at
        };
        s.exit = away(a, entries.exit);
        s.cold = away(a, entries.cold);

        s.out = a.here();
        a.load(3, TEMP, CPU, layout::PAGE);
        a.orr(ADDRESS, ADDRESS, TEMP);
        a.store(3, ADDRESS, CPU, layout::PC);
        a.b_to(s.leave);
        s.unknown = away(a, entries.unknown);

        s.chain = a.here();
        a.load(3, TEMP, ADDRESS, layout::OP_IMM);
        let known = a.cbz(true, true, TEMP);
        a.store(3, ADDRESS, CPU, layout::PATCH);
        a.load(1, ADDRESS, ADDRESS, layout::OP_TARGET);
        a.b_to(s.out);
        a.land(known);
        a.mov(ADDRESS, TEMP);
        // In the machine code of the operation if it has some, or in the interpreter.
        a.mov_i(TEMP, entries.compiled);
        a.load(3, ADDEND, ADDRESS, layout::OP_HANDLER);
        a.eor(ADDEND, ADDEND, TEMP);
        let compiled = a.cbz(true, false, ADDEND);
        a.b_to(s.cold);
        a.land(compiled);
        a.load(3, TEMP, ADDRESS, layout::OP_IMM);
        a.br(TEMP);

        s.interpreted = a.here();
        a.load(3, OTHER, CPU, layout::JUMP_OPS);
        a.add(OTHER, OTHER, TEMP, 3);
        a.load(3, ADDRESS, OTHER, 0);
        a.b_to(s.cold);

        s.call = a.here();
        a.store(3, LR, SP_BASE, RETURN);
        a.mov(R(0), CPU);
        a.mov(R(1), ADDRESS);
        a.mov_i(TEMP, entries.call);
        a.blr(TEMP);
        a.load(3, LR, SP_BASE, RETURN);
        regime(a);
        let on = a.tbz(0, true, R(0));
        a.b_to(s.leave);
        a.land(on);
        a.ret();

        let fp = a.here();
        a.store(3, LR, SP_BASE, RETURN);
        a.mov(R(0), CPU);
        a.mov(R(1), TEMP);
        a.mov(R(2), ADDEND);
        a.mov_i(TEMP, entries.fp);
        a.blr(TEMP);
        a.load(3, LR, SP_BASE, RETURN);
        a.ret();

        s.flags = a.here();
        a.load(0, TEMP, CPU, layout::FLAGS);
        let compared = a.cbz(false, true, TEMP);
        a.load(2, TEMP, CPU, layout::NZCV);
        a.write_nzcv(TEMP);
        a.ret();
        a.land(compared);
        a.load(3, ADDEND, CPU, layout::COMPARED[0]);
        a.load(3, OTHER, CPU, layout::COMPARED[1]);
        let wide = a.tbz(1, true, TEMP);
        a.cmp(false, ADDEND, OTHER);
        a.ret();
        a.land(wide);
        a.cmp(true, ADDEND, OTHER);
        a.ret();
        Self { ways: s, fp }
    }
}

/// Loads and stores have the stack pointer where others have zero.
const SP_BASE: R = super::asm::SP;
