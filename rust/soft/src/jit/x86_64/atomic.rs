//! Exclusives, atomics, acquire and release, on the host's own.
//!
//! Addresses that are not aligned, or that the TLB does not know, go aside to the interpreter's operation, which does all
//! of the instruction. The host orders loads before what follows, and stores before later stores, by itself.

use super::asm::{Arith, Cc, Jump, RAX, RCX, RDX, at};
use super::block::{NO_REG, Translator};
use super::layout;
use crate::Regs;
use crate::isa::insn::{Access, Insn, Reg, Rmw};

impl Translator<'_> {
    /// False when the interpreter must do it.
    pub(super) fn atomic(&mut self, insn: Insn) -> bool {
        match insn {
            Insn::LoadAcquire { access, t, n, offset, .. } => self.load_acquire(access, t, n, offset),
            Insn::StoreRelease { access, t, n, offset, .. } => self.store_release(access, t, n, offset),
            Insn::LoadExclusive { size, t, n, .. } => self.load_exclusive(size, t, n),
            Insn::StoreExclusive { size, s, t, n, .. } => self.store_exclusive(size, s, t, n),
            Insn::Cas { size, s, to, t, n, .. } => self.cas(size, s, to, t, n),
            Insn::Rmw { op, size, s, t, n, .. } => return self.read_modify_write(op, size, s, t, n),
            Insn::Clrex { .. } => self.asm.store_i(layout::MONITOR_SIZE, 0),
            _ => return false,
        }
        true
    }

    /// The host's address of `1 << size` bytes at register `n` and an offset into RAX, and the jumps where there is none.
    fn place(&mut self, store: bool, size: u8, n: Reg, offset: i64) -> [Option<Jump>; 3] {
        let base = self.read(n);
        self.asm.lea(true, RAX, at(base, offset as i32));
        let unaligned = (size != 0).then(|| {
            self.asm.test_i(false, RAX, (1 << size) - 1);
            self.asm.jcc(Cc::NE)
        });
        let missing = self.translate(store, false, 1 << size);
        [unaligned, Some(missing), None]
    }

    fn load_acquire(&mut self, access: Access, t: Reg, n: Reg, offset: i64) {
        self.will_write(t);
        self.read(n);
        let before = self.cache;
        let aside = self.place(false, access.size, n, offset);
        let r = self.write_over(t);
        self.asm.load(access.size, access.signed, access.wide, r, at(RAX, 0));
        self.slow(aside, before, [t, NO_REG, NO_REG]);
    }

    fn store_release(&mut self, access: Access, t: Reg, n: Reg, offset: i64) {
        self.read(n);
        let v = self.read(t);
        let before = self.cache;
        let aside = self.place(true, access.size, n, offset);
        // Orders it before later loads too.
        self.asm.mov(true, RDX, v);
        self.asm.xchg(access.size, at(RAX, 0), RDX);
        self.slow(aside, before, [NO_REG; 3]);
    }

    fn load_exclusive(&mut self, size: u8, t: Reg, n: Reg) {
        self.will_write(t);
        let base = self.read(n);
        let before = self.cache;
        let aside = self.place(false, size, n, 0);
        self.asm.load(size, false, true, RCX, at(RAX, 0));
        self.asm.store_i(layout::MONITOR_SIZE, 1 << size);
        self.asm.store(3, layout::MONITOR_VA, base);
        self.asm.store(3, layout::MONITOR_VALUE[0], RCX);
        self.asm.store_i(layout::MONITOR_VALUE[1], 0);
        let r = self.write_over(t);
        self.asm.mov(true, r, RCX);
        self.slow(aside, before, [t, NO_REG, NO_REG]);
    }

    fn store_exclusive(&mut self, size: u8, s: Reg, t: Reg, n: Reg) {
        self.will_write(s);
        let base = self.read(n);
        let v = self.read(t);
        let before = self.cache;
        let aside = self.place(true, size, n, 0);
        let a = &mut self.asm;
        a.mov(true, RDX, RAX);
        a.load(3, false, true, RCX, layout::MONITOR_SIZE);
        a.store_i(layout::MONITOR_SIZE, 0);
        a.arith_i(Arith::Cmp, true, RCX, 1 << size);
        let open = a.jcc(Cc::NE);
        a.arith_m(Arith::Cmp, true, base, layout::MONITOR_VA);
        let elsewhere = a.jcc(Cc::NE);
        a.load(3, false, true, RAX, layout::MONITOR_VALUE[0]);
        a.cmpxchg(size, at(RDX, 0), v);
        a.land(open);
        a.land(elsewhere);
        a.mov_i(RAX, 0);
        a.set_al(Cc::NE);
        let r = self.write(s);
        self.asm.mov(false, r, RAX);
        self.slow(aside, before, [s, NO_REG, NO_REG]);
    }

    fn cas(&mut self, size: u8, s: Reg, to: Reg, t: Reg, n: Reg) {
        self.will_write(to);
        self.read(n);
        let (old, new) = (self.read(s), self.read(t));
        let before = self.cache;
        let aside = self.place(true, size, n, 0);
        self.asm.mov(true, RDX, RAX);
        self.asm.mov(true, RAX, old);
        self.asm.cmpxchg(size, at(RDX, 0), new);
        let r = self.write_over(to);
        self.asm.extend(size, false, true, r, RAX);
        self.slow(aside, before, [to, NO_REG, NO_REG]);
    }

    fn read_modify_write(&mut self, op: Rmw, size: u8, s: Reg, t: Reg, n: Reg) -> bool {
        if matches!(op, Rmw::Smax | Rmw::Smin | Rmw::Umax | Rmw::Umin) {
            return false;
        }
        self.will_write(t);
        self.read(n);
        let v = self.read(s);
        let before = self.cache;
        let aside = self.place(true, size, n, 0);
        let arith = match op {
            Rmw::Clr => Arith::And,
            Rmw::Eor => Arith::Xor,
            _ => Arith::Or,
        };
        let a = &mut self.asm;
        match op {
            Rmw::Add | Rmw::Swp => {
                a.mov(true, RDX, v);
                if op == Rmw::Add {
                    a.xadd(size, at(RAX, 0), RDX);
                } else {
                    a.xchg(size, at(RAX, 0), RDX);
                }
            }
            _ if t == Regs::SINK as Reg => {
                a.mov(true, RDX, v);
                if op == Rmw::Clr {
                    a.not(true, RDX);
                }
                a.locked_arith(arith, size, at(RAX, 0), RDX);
            }
            _ => {
                a.mov(true, RCX, RAX);
                a.load(size, false, true, RAX, at(RCX, 0));
                let again = a.here();
                a.mov(true, RDX, v);
                if op == Rmw::Clr {
                    a.not(true, RDX);
                }
                a.arith(arith, true, RDX, RAX);
                a.cmpxchg(size, at(RCX, 0), RDX);
                a.jcc_to(Cc::NE, again);
                a.mov(true, RDX, RAX);
            }
        }
        let r = self.write_over(t);
        self.asm.extend(size, false, true, r, RDX);
        self.slow(aside, before, [t, NO_REG, NO_REG]);
        true
    }
}
