//! From instructions to operations: which handler, and what it finds in its operation.

mod alu;
mod branch;
mod memory;
pub(crate) mod system;

use super::block::{Block, Flow, Form, Last};
use super::handlers::pairs::Half;
use super::handlers::{alu as x, system as sys, vector};
use super::op::Handler;
use crate::fp;
use crate::isa::insn::Insn;

/// Which of two handlers: for 32 bits, for 64.
fn wide(wide: bool, [w, x]: [Handler; 2]) -> Handler {
    if wide { x } else { w }
}

/// A handler that goes with no neighbour.
const fn plain(f: Handler) -> Form {
    Form { f, half: None, last: Last::Other }
}

/// One that can be half of a pair.
const fn half(f: Handler, half: Half) -> Form {
    Form { f, half: Some(half), last: Last::Other }
}

/// The 32-bit and the 64-bit form of a handler.
macro_rules! widths {
    ($($f:ident)::+) => {
        [$($f)::+::<u32>, $($f)::+::<u64>]
    };
    ($($f:ident)::+, $($k:expr),+) => {
        [$($f)::+::<u32, $({ $k }),+>, $($f)::+::<u64, $({ $k }),+>]
    };
}
use widths;

impl Block {
    /// Adds the operations of one instruction, whose word is `word`; whether the block goes on behind it.
    ///
    /// It is a match on what the caller knows where it is inlined, see [`crate::isa::decode_with`].
    #[inline(always)]
    pub(super) fn lower(&mut self, insn: Insn, word: u32) -> Flow {
        match insn {
            Insn::Hint { number } => self.hint(number),
            Insn::Prfm { .. } | Insn::Sb => self.on(x::nop, [0; 4], 0),
            Insn::Const { d, value, .. } => {
                self.form(&half(x::mov_imm::<u64>, Half::MovImm), [d, 0, 0, 0], value)
            }
            Insn::Movk { d, shift, value, wide } => {
                static BY: [Form; 2] = [half(x::movk::<u32>, Half::Movk32), plain(x::movk::<u64>)];
                self.form(&BY[usize::from(wide)], [d, 0, 0, shift], value)
            }
            Insn::Adr { d, offset, .. } => self.form(&half(x::adr, Half::Adr), [d, 0, 0, 0], offset as u64),
            Insn::Alu { op, wide, flags, invert, d, n, m } => self.alu(op, wide, flags, invert, [d, n], m),
            Insn::Adc { sub, wide: w, flags, d, n, m } => {
                let by = [widths!(x::adc), widths!(x::adcs), widths!(x::sbc), widths!(x::sbcs)];
                self.on(wide(w, by[usize::from(sub) << 1 | usize::from(flags)]), [d, n, m, 0], 0)
            }
            Insn::Shift { kind, wide: w, d, n, by } => self.shift(kind, w, d, n, by),
            Insn::ShiftBy { kind, wide: w, d, n, m } => {
                let by = [widths!(x::lslv), widths!(x::lsrv), widths!(x::asrv), widths!(x::rorv)];
                self.on(wide(w, by[kind as usize]), [d, n, m, 0], 0)
            }
            Insn::Field { signed, wide, d, n, from, to, width } => {
                self.field(signed, wide, [d, n], from, to, width)
            }
            Insn::Insert { wide: w, d, n, from, to, width } => {
                // Rotated to where it goes, and there masked.
                let rotate = if to == 0 { from } else { if w { 64 - to } else { 32 - to } };
                self.on(wide(w, widths!(x::bfm)), [d, n, 0, rotate], ones(width) << to)
            }
            Insn::Extract { wide: w, d, n, m, from } => {
                self.on(wide(w, widths!(x::extr)), [d, n, m, from], 0)
            }
            Insn::Madd { wide: w, sub, d, n, m, a } => {
                let f = wide(w, if sub { widths!(x::msub) } else { widths!(x::madd) });
                self.on(f, [d, n, m, a], 0)
            }
            Insn::Maddl { signed, sub, d, n, m, a } => {
                let f: Handler = match (signed, sub) {
                    (true, false) => x::maddl::<true, false>,
                    (true, true) => x::maddl::<true, true>,
                    (false, false) => x::maddl::<false, false>,
                    (false, true) => x::maddl::<false, true>,
                };
                self.on(f, [d, n, m, a], 0)
            }
            Insn::Mulh { signed, d, n, m } => {
                self.on(if signed { x::mulh::<true> } else { x::mulh::<false> }, [d, n, m, 0], 0)
            }
            Insn::Div { signed, wide: w, d, n, m } => {
                let f = wide(w, if signed { widths!(x::sdiv) } else { widths!(x::udiv) });
                self.on(f, [d, n, m, 0], 0)
            }
            Insn::Crc32 { castagnoli, size, d, n, m } => self.on(
                if castagnoli { x::crc32::<true> } else { x::crc32::<false> },
                [d, n, m, 1 << size],
                0,
            ),
            Insn::Rmif { n, rotate, mask } => self.on(x::rmif, [mask, n, 0, rotate], 0),
            Insn::Setf { bits, n } => self.on(x::setf, [0, n, 0, bits], 0),
            Insn::Flags { op } => self.on([x::cfinv, x::xaflag, x::axflag][op as usize], [0; 4], 0),
            Insn::Unary { op, wide, d, n } => self.unary(op, wide, d, n),
            Insn::Select { kind, wide, d, n, m, cond } => self.select(kind, wide, [d, n, m], cond),
            Insn::Ccmp { add, wide, n, m, cond, nzcv } => self.ccmp(add, wide, n, m, cond, nzcv),
            Insn::Mem { access, t, address } => self.memory(access, t, address),
            Insn::Unprivileged { access, t, n, offset } => self.unprivileged(access, t, n, offset),
            Insn::Pair { access, t, u, address, .. } => self.pair(access, t, u, address),
            Insn::Vmem { store, size, t, address } => self.vector_memory(store, size, t, address),
            Insn::Vpair { store, size, t, u, address, .. } => self.vector_pair(store, size, t, u, address),
            Insn::Structures { word, single } => self.structures(word, single),
            Insn::LoadAcquire { access, t, n, offset, .. } => self.load_acquire(access, t, n, offset),
            Insn::StoreRelease { access, t, n, offset, .. } => self.store_release(access.size, t, n, offset),
            Insn::LoadExclusive { size, t, n, .. } => self.load_exclusive(size, t, n),
            Insn::StoreExclusive { size, s, t, n, .. } => self.store_exclusive(size, s, t, n),
            Insn::LoadExclusivePair { wide, t, u, n, .. } => self.load_exclusive_pair(wide, t, u, n),
            Insn::StoreExclusivePair { wide, s, t, u, n, .. } => self.store_exclusive_pair(wide, s, t, u, n),
            Insn::Cas { size, s, to, t, n, .. } => self.cas(size, s, to, t, n),
            Insn::Casp { wide, s, t, n, .. } => self.casp(wide, s, t, n),
            Insn::Rmw { op, size, s, t, n, .. } => self.rmw(op, size, s, t, n),
            Insn::B { link, to } => self.b(link, to),
            Insn::Bcond { cond, to } => self.b_cond(cond, to),
            Insn::Cbz { wide, nonzero, t, to } => self.cbz(wide, nonzero, t, to),
            Insn::Tbz { bit, nonzero, t, to } => self.tbz(bit, nonzero, t, to),
            Insn::Indirect { link, n, .. } => self.indirect(link, n),
            Insn::Exception { kind, imm } => {
                self.end([sys::svc, sys::hvc, sys::smc, sys::brk][kind as usize], 0, 0, u64::from(imm))
            }
            Insn::Eret => self.end(sys::eret, 0, 0, 0),
            Insn::Barrier { kind, option } => self.barrier(kind, option),
            Insn::Clrex { .. } => self.on(super::handlers::atomic::clrex, [0; 4], 0),
            Insn::Mrs { t, register } => self.mrs(t, register),
            Insn::Msr { t, register } => self.msr(t, register),
            Insn::MsrImm { field, imm } => self.msr_imm(field, imm),
            Insn::Sys { t, op } => self.sys(t, op),
            // Whatever has a name: what it does is in `fp`.
            Insn::Simd
            | Insn::Lanes { .. }
            | Insn::FromVector { .. }
            | Insn::ToVector { .. }
            | Insn::Fmov { .. } => self.simd(word),
            Insn::Undefined => self.undefined(),
        }
    }

    /// Adds an operation behind which the block goes on.
    fn on(&mut self, f: Handler, operands: [u8; 4], imm: u64) -> Flow {
        self.op(f, operands, imm);
        Flow::On
    }

    /// Adds the last operation of the block.
    fn end(&mut self, f: Handler, a: u8, b: u8, imm: u64) -> Flow {
        self.op(f, [a, b, 0, 0], imm);
        Flow::End
    }

    pub(super) fn undefined(&mut self) -> Flow {
        self.end(sys::undefined, 0, 0, 0)
    }

    fn simd(&mut self, word: u32) -> Flow {
        let Some(f) = fp::decode(word) else { return self.undefined() };
        self.fp();
        // FCMP, FCCMP, FCSEL and FJCVTZS, with some neighbours.
        let flags = word >> 24 & 0x1f == 0b11110 && word >> 21 & 1 == 1 && {
            let op = word >> 10 & 0x3f;
            op & 1 == 1 || op == 0 || op == 0b1000
        };
        let process = if flags { vector::process_flags } else { vector::process };
        self.on(process, word.to_le_bytes(), f as usize as u64)
    }
}

fn ones(n: u8) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}
