//! Acquire and release, exclusives and atomics, by the host's.

use super::asm::{Arith, Asm, Cc, Jump, R, RAX, RBX, RCX, RDX, Sh, at};
use super::block::{NO_REG, Translator};
use super::layout;
use crate::Regs;
use crate::isa::insn::{Access, Address, Barrier, Reg, Rmw};
use crate::state::PAIR_OF_WORDS;

impl Translator<'_> {
    /// Looks up where `1 << size` bytes at a register and an offset are, as `translate`, but for what is aligned.
    fn aligned(&mut self, n: Reg, offset: i64, size: u8, store: bool) -> [Option<Jump>; 3] {
        self.address(Address::Unscaled(n, offset));
        let odd = (size > 0).then(|| {
            self.asm.test_i(false, RAX, (1 << size) - 1);
            self.asm.jcc(Cc::NE)
        });
        [odd, Some(self.translate(store, 1 << size)), None]
    }

    /// LDAR and its kind: the host's loads are in order with what comes later.
    pub(super) fn load_acquire(&mut self, access: Access, t: Reg, n: Reg, offset: i64) {
        self.will_write(t);
        self.read(n);
        let before = self.cache;
        let aside = self.aligned(n, offset, access.size, false);
        let to = self.write_over(t);
        self.asm.load(access.size, access.signed, access.wide, to, at(RAX, 0));
        self.slow(aside, before, [t, NO_REG, NO_REG]);
    }

    /// STLR and its kind: an exchange is before any load behind it.
    pub(super) fn store_release(&mut self, access: Access, t: Reg, n: Reg, offset: i64) {
        let value = self.read(t);
        self.read(n);
        let before = self.cache;
        let aside = self.aligned(n, offset, access.size, true);
        self.asm.mov(true, RCX, value);
        self.asm.exchange(access.size, at(RAX, 0), RCX);
        self.slow(aside, before, [NO_REG; 3]);
    }

    /// CAS. A place that may be written may be read.
    pub(super) fn compare_and_swap(&mut self, size: u8, s: Reg, to: Reg, t: Reg, n: Reg) {
        self.will_write(to);
        let (old, new) = (self.read(s), self.read(t));
        self.read(n);
        let before = self.cache;
        let aside = self.aligned(n, 0, size, true);
        self.asm.mov(true, RDX, RAX);
        self.asm.mov(true, RAX, old);
        self.asm.mov(true, RCX, new);
        self.asm.compare_exchange(size, at(RDX, 0), RCX);
        self.found(size, to);
        self.slow(aside, before, [to, NO_REG, NO_REG]);
    }

    /// LDADD and its kind, and SWP.
    pub(super) fn read_modify_write(&mut self, op: Rmw, size: u8, s: Reg, t: Reg, n: Reg) {
        self.will_write(t);
        let operand = self.read(s);
        self.read(n);
        let before = self.cache;
        let aside = self.aligned(n, 0, size, true);
        let a = &mut self.asm;
        a.mov(true, RDX, RAX);
        match op {
            Rmw::Add | Rmw::Swp => {
                a.mov(true, RAX, operand);
                if op == Rmw::Add {
                    a.exchange_add(size, at(RDX, 0), RAX);
                } else {
                    a.exchange(size, at(RDX, 0), RAX);
                }
            }
            Rmw::Clr => self.replace(size, |a| {
                a.mov(true, RCX, operand);
                a.not(true, RCX);
                a.arith(Arith::And, true, RCX, RAX);
            }),
            Rmw::Eor | Rmw::Set => self.replace(size, |a| {
                let op = if op == Rmw::Eor { Arith::Xor } else { Arith::Or };
                a.mov(true, RCX, operand);
                a.arith(op, true, RCX, RAX);
            }),
            Rmw::Smax | Rmw::Smin | Rmw::Umax | Rmw::Umin => self.replace(size, |a| {
                // When what is there stays.
                let (signed, stays) = match op {
                    Rmw::Smax => (true, Cc::GE),
                    Rmw::Smin => (true, Cc::LE),
                    Rmw::Umax => (false, Cc::AE),
                    _ => (false, Cc::BE),
                };
                let wide = size == 3;
                if size < 2 {
                    a.extend(size, signed, false, RAX, RAX);
                    a.extend(size, signed, false, RCX, operand);
                } else {
                    a.mov(wide, RCX, operand);
                }
                a.arith(Arith::Cmp, wide, RAX, RCX);
                a.cmov(stays, wide, RCX, RAX);
            }),
        }
        self.found(size, t);
        self.slow(aside, before, [t, NO_REG, NO_REG]);
    }

    /// What is at RDX is replaced in one step by what `f` makes of it: in RCX, of RAX, which has what was there in the
    /// end.
    fn replace(&mut self, size: u8, f: impl Fn(&mut Asm)) {
        let a = &mut self.asm;
        a.load(size, false, false, RAX, at(RDX, 0));
        let again = a.here();
        f(a);
        a.compare_exchange(size, at(RDX, 0), RCX);
        a.jcc_to(Cc::NE, again);
    }

    /// What was in memory, in RAX, goes to a register.
    fn found(&mut self, size: u8, to: Reg) {
        let r = self.write_over(to);
        if size == 3 {
            self.asm.mov(true, r, RAX);
        } else {
            self.asm.extend(size, false, false, r, RAX);
        }
    }

    /// LDXR and LDAXR: what was loaded is noted, as the interpreter does.
    pub(super) fn load_exclusive(&mut self, size: u8, t: Reg, n: Reg) {
        self.will_write(t);
        let base = self.read(n);
        let before = self.cache;
        let aside = self.aligned(n, 0, size, false);
        self.asm.load(size, false, false, RAX, at(RAX, 0));
        self.asm.store(3, layout::MONITOR_VALUE[0], RAX);
        self.asm.store_i(layout::MONITOR_VALUE[1], 0);
        self.note(base, 1 << size);
        let r = self.write_over(t);
        self.asm.mov(true, r, RAX);
        self.slow(aside, before, [t, NO_REG, NO_REG]);
    }

    /// Notes where an exclusive load was made, and of which size.
    fn note(&mut self, base: R, size: i32) {
        self.asm.store(3, layout::MONITOR_VA, base);
        self.asm.store_i(layout::MONITOR_SIZE, size);
    }

    /// Looks up where an exclusive store goes: it goes aside where that is elsewhere than the load was, and fails
    /// there.
    fn noted(&mut self, base: R, size: i32, bytes: i32) -> [Option<Jump>; 3] {
        self.asm.arith_mi(Arith::Cmp, layout::MONITOR_SIZE, size);
        let other = self.asm.jcc(Cc::NE);
        self.asm.arith_m(Arith::Cmp, true, base, layout::MONITOR_VA);
        let elsewhere = self.asm.jcc(Cc::NE);
        self.asm.mov(true, RAX, base);
        let missing = self.translate(true, bytes);
        self.asm.store_i(layout::MONITOR_SIZE, 0);
        [Some(other), Some(elsewhere), Some(missing)]
    }

    /// The zero flag says whether an exclusive store was made; `s` takes it.
    fn status(&mut self, s: Reg) {
        self.asm.set_al(Cc::NE);
        let r = self.write_over(s);
        self.asm.extend(0, false, false, r, RAX);
    }

    /// STXR and STLXR: a comparison with what was noted, which is before and behind everything.
    pub(super) fn store_exclusive(&mut self, size: u8, s: Reg, t: Reg, n: Reg) {
        self.will_write(s);
        let (value, base) = (self.read(t), self.read(n));
        let before = self.cache;
        let aside = self.noted(base, 1 << size, 1 << size);
        self.asm.mov(true, RDX, RAX);
        self.asm.load(3, false, true, RAX, layout::MONITOR_VALUE[0]);
        self.asm.mov(true, RCX, value);
        self.asm.compare_exchange(size, at(RDX, 0), RCX);
        self.status(s);
        self.slow(aside, before, [s, NO_REG, NO_REG]);
    }

    /// LDXP and LDAXP. Of two of 8 bytes each is loaded by itself: the store notices when they did not belong together.
    pub(super) fn load_exclusive_pair(&mut self, wide: bool, t: Reg, u: Reg, n: Reg) {
        self.will_write(t);
        self.will_write(u);
        let base = self.read(n);
        let before = self.cache;
        let aside = self.aligned(n, 0, if wide { 4 } else { 3 }, false);
        let a = &mut self.asm;
        if wide {
            a.load(3, false, true, RCX, at(RAX, 0));
            a.load(3, false, true, RDX, at(RAX, 8));
        } else {
            a.load(3, false, true, RDX, at(RAX, 0));
            a.mov(false, RCX, RDX);
            a.shift_i(Sh::Shr, true, RDX, 32);
        }
        a.store(3, layout::MONITOR_VALUE[0], RCX);
        a.store(3, layout::MONITOR_VALUE[1], RDX);
        self.note(base, if wide { 16 } else { PAIR_OF_WORDS as i32 });
        for (g, value) in [(t, RCX), (u, RDX)] {
            let r = self.write_over(g);
            self.asm.mov(true, r, value);
        }
        self.slow(aside, before, [t, u, NO_REG]);
    }

    /// STXP and STLXP. False when the interpreter must do it.
    pub(super) fn store_exclusive_pair(&mut self, wide: bool, s: Reg, [t, u]: [Reg; 2], n: Reg) -> bool {
        if wide && !self.features.cx16 {
            return false;
        }
        self.will_write(s);
        let place = self.cache.keep(&mut self.asm);
        let (low, high, base) = (self.read(t), self.read(u), self.read(n));
        let before = self.cache;
        let aside = self.noted(base, if wide { 16 } else { PAIR_OF_WORDS as i32 }, if wide { 16 } else { 8 });
        self.asm.mov(true, place, RAX);
        self.asm.load(3, false, true, RAX, layout::MONITOR_VALUE[0]);
        self.asm.load(3, false, true, RDX, layout::MONITOR_VALUE[1]);
        if !wide {
            self.join(RAX, RDX);
        }
        self.exchange_pair(wide, place, [low, high]);
        self.cache.give_back(place);
        self.status(s);
        self.slow(aside, before, [s, NO_REG, NO_REG]);
        true
    }

    pub(super) fn clear_exclusive(&mut self) {
        self.asm.store_i(layout::MONITOR_SIZE, 0);
    }

    /// CASP. False when the interpreter must do it.
    pub(super) fn compare_and_swap_pair(&mut self, wide: bool, s: Reg, t: Reg, n: Reg) -> bool {
        if wide && !self.features.cx16 {
            return false;
        }
        // Register 31 as the second of a pair reads as zero.
        let second = |g: Reg, none: usize| if g == 30 { none as Reg } else { g + 1 };
        let to = [s, second(s, Regs::SINK)];
        for g in to {
            self.will_write(g);
        }
        let place = self.cache.keep(&mut self.asm);
        let old = [s, second(s, Regs::ZERO)].map(|g| self.read(g));
        let new = [t, second(t, Regs::ZERO)].map(|g| self.read(g));
        self.read(n);
        let before = self.cache;
        let size = if wide { 4 } else { 3 };
        let aside = self.aligned(n, 0, size, true);
        self.asm.mov(true, place, RAX);
        self.asm.mov(wide, RAX, old[0]);
        self.asm.mov(true, RDX, old[1]);
        if !wide {
            self.join(RAX, RDX);
        }
        self.exchange_pair(wide, place, new);
        self.cache.give_back(place);
        if !wide {
            self.asm.mov(true, RDX, RAX);
            self.asm.shift_i(Sh::Shr, true, RDX, 32);
            self.asm.mov(false, RAX, RAX);
        }
        for (g, value) in to.into_iter().zip([RAX, RDX]) {
            let r = self.write_over(g);
            self.asm.mov(true, r, value);
        }
        self.slow(aside, before, [to[0], to[1], NO_REG]);
        true
    }

    /// The low half of `high` becomes the upper half of `low`, which has none.
    fn join(&mut self, low: R, high: R) {
        self.asm.shift_i(Sh::Shl, true, high, 32);
        self.asm.arith(Arith::Or, true, low, high);
    }

    /// Stores a pair at `place` where RAX, or RDX:RAX, is; those become what was there. Uses RCX.
    fn exchange_pair(&mut self, wide: bool, place: R, [low, high]: [R; 2]) {
        if wide {
            self.asm.mov(true, RCX, high);
            // Nothing here looks at the CPU's state.
            self.asm.push(RBX);
            self.asm.mov(true, RBX, low);
            self.asm.compare_exchange_16(at(place, 0));
            self.asm.pop(RBX);
        } else {
            self.asm.mov(true, RDX, high);
            self.asm.mov(false, RCX, low);
            self.join(RCX, RDX);
            self.asm.compare_exchange(3, at(place, 0), RCX);
        }
    }

    /// DMB: the host keeps all orders but that of a load behind a store. False when the interpreter must do it.
    pub(super) fn barrier(&mut self, kind: Barrier, option: u8) -> bool {
        match (kind, option & 3) {
            (Barrier::Dmb, 1 | 2) => {}
            (Barrier::Dmb, _) => self.asm.mfence(),
            (Barrier::Dsb, _) => {
                // What others were asked to do, the interpreter waits for.
                self.asm.cmp_byte(layout::BROADCAST, 0);
                self.exit_when(Cc::NE);
                self.asm.mfence();
            }
            _ => return false,
        }
        true
    }
}
