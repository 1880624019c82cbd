//! Loads and stores, by the software TLB.

use super::asm::{Arith, Cc, Jump, R, RAX, RCX, RDX, Sh, TAG, TLB, X, at, indexed};
use super::block::{NO_REG, Run, Translator};
use super::cache::Cache;
use super::layout;
use super::sse;
use crate::isa::insn::{Access, Address, Insn, Reg};
use crate::mem::TLB_SIZE;
use crate::sysreg::ZVA_BYTES;

/// Bytes from the first to the last of a run at most: the longer it is the more often it is in two pages, where each
/// access of it asks by itself.
const LONGEST: i64 = 64;
/// Operations of a run at most.
const MOST: usize = 16;

/// An access that may be in a run.
struct Part {
    store: bool,
    bytes: i64,
    /// What it loads into, of general registers.
    loads: [Option<Reg>; 2],
    address: Address,
}

impl Part {
    fn of(insn: Insn) -> Option<Self> {
        let loaded = |store: bool, r| (!store).then_some(r);
        let part = |store, size: u8, count: i64, loads, address| Self {
            store,
            bytes: count << size,
            loads,
            address,
        };
        Some(match insn {
            Insn::Mem { access: a, t, address } => {
                part(a.store, a.size, 1, [loaded(a.store, t), None], address)
            }
            Insn::Pair { access: a, t, u, address, .. } => {
                part(a.store, a.size, 2, [loaded(a.store, t), loaded(a.store, u)], address)
            }
            Insn::Vmem { store, size, address, .. } => part(store, size, 1, [None; 2], address),
            Insn::Vpair { store, size, address, .. } => part(store, size, 2, [None; 2], address),
            _ => return None,
        })
    }

    /// The base register, and how far from it, as it is behind what a run's first access makes of it.
    fn place(&self) -> Option<(Reg, i64)> {
        match self.address {
            Address::Offset(n, by) | Address::Unscaled(n, by) => Some((n, by)),
            Address::Pre(n, _) | Address::Post(n, _) => Some((n, 0)),
            _ => None,
        }
    }

    fn loads(&self, g: Reg) -> bool {
        self.loads.contains(&Some(g))
    }
}

/// Whether this may stand in a run: it computes with general registers, and has nothing to do with flags.
fn is_between(insn: Insn) -> bool {
    match insn {
        Insn::Alu { flags, .. } => !flags,
        Insn::Const { .. }
        | Insn::Movk { .. }
        | Insn::Adr { .. }
        | Insn::Shift { .. }
        | Insn::ShiftBy { .. }
        | Insn::Field { .. }
        | Insn::Insert { .. }
        | Insn::Extract { .. }
        | Insn::Madd { .. }
        | Insn::Maddl { .. } => true,
        _ => false,
    }
}

impl Translator<'_> {
    /// If a run begins with the operation at hand, looks up where it is.
    pub(super) fn begin_run(&mut self) {
        let input = self.input;
        let Some(first) = Part::of(input.insns[self.at]) else { return };
        let Some((n, at)) = first.place() else { return };
        if matches!(first.address, Address::Post(..)) || first.loads(n) {
            return;
        }
        let (mut low, mut high) = (at, at + first.bytes);
        // What may be written may be read.
        let mut store = first.store;
        let mut last = self.at;
        for op in (self.at + 1..input.ops.len() - 1).take(MOST - 1) {
            let insn = input.insns[op];
            if Some(op) == input.check {
                break;
            }
            let Some(part) = Part::of(insn) else {
                if is_between(insn) && !insn.writes(input.words[op]).has(n) {
                    continue;
                }
                break;
            };
            let Some((base, at)) = part.place() else { break };
            let (l, h) = (low.min(at), high.max(at + part.bytes));
            if base != n || matches!(part.address, Address::Pre(..)) || h - l > LONGEST {
                break;
            }
            (low, high, last) = (l, h, op);
            store |= part.store;
            if part.loads(n) || matches!(part.address, Address::Post(..)) {
                break;
            }
        }
        if last == self.at {
            return;
        }
        let moved = match first.address {
            Address::Pre(n, by) => {
                self.will_write(n);
                by
            }
            _ => 0,
        };
        let host = self.cache.keep(&mut self.asm);
        self.address(Address::Unscaled(n, moved + low));
        let (before, flags) = (self.cache, self.flags);
        let from = self.translate(store, (high - low) as i32);
        self.asm.mov(true, host, RAX);
        self.cache.unpin();
        self.run = Some(Run { ops: self.at..=last, low, host, from, before, flags });
    }

    /// Where an access is for the host; and where it is not in a run, by which jump it goes aside.
    fn locate(&mut self, store: bool, bytes: i32, address: Address) -> (R, i32, Option<Jump>) {
        if let Some(run) = &self.run {
            let by = match address {
                Address::Offset(_, by) | Address::Unscaled(_, by) => by,
                _ => 0,
            };
            return (run.host, (by - run.low) as i32, None);
        }
        self.address(address);
        (RAX, 0, Some(self.translate(store, bytes)))
    }

    /// An access has been made, which goes aside by this jump unless it is in a run.
    fn accessed(&mut self, missing: Option<Jump>, before: Cache, changed: [u8; 3]) {
        if missing.is_some() {
            return self.slow([missing, None, None], before, changed);
        }
        if let Some(run) = self.run.take_if(|run| *run.ops.end() == self.at) {
            self.cache.give_back(run.host);
            self.slow_run(run);
        }
    }

    /// The base register that an access writes.
    fn written_base(address: Address) -> Option<Reg> {
        match address {
            Address::Pre(n, _) | Address::Post(n, _) => Some(n),
            _ => None,
        }
    }

    /// The address that the access is at into RAX.
    pub(super) fn address(&mut self, address: Address) {
        match address {
            Address::Offset(n, by) | Address::Unscaled(n, by) | Address::Pre(n, by) => {
                let base = self.read(n);
                if by == 0 {
                    self.asm.mov(true, RAX, base);
                } else {
                    self.asm.lea(true, RAX, at(base, by as i32));
                }
            }
            Address::Post(n, _) => {
                let base = self.read(n);
                self.asm.mov(true, RAX, base);
            }
            Address::Index(n, m, option, by) => {
                let (base, mut index) = (self.read(n), self.read(m));
                if option == 2 || option == 6 {
                    self.asm.extend(2, option == 6, true, RAX, index);
                    index = RAX;
                }
                if by <= 3 {
                    self.asm.lea(true, RAX, indexed(base, index, by, 0));
                } else {
                    if index != RAX {
                        self.asm.mov(true, RAX, index);
                    }
                    self.asm.shift_i(Sh::Shl, true, RAX, by);
                    self.asm.arith(Arith::Add, true, RAX, base);
                }
            }
            Address::Page(offset) => {
                self.asm.load(3, false, true, RAX, layout::PAGE);
                self.asm.lea(true, RAX, at(RAX, offset as i32));
            }
        }
    }

    /// Looks `bytes` at RAX up in the TLB: RAX becomes the host's address; what is not there goes aside by the jump.
    pub(super) fn translate(&mut self, store: bool, bytes: i32) -> Jump {
        self.index();
        self.last_page(bytes);
        let a = &mut self.asm;
        a.arith(Arith::Or, true, RDX, TAG);
        a.arith_m(Arith::Cmp, true, RDX, indexed(TLB, RCX, 0, Self::tag(store)));
        let missing = a.jcc(Cc::NE);
        a.arith_m(Arith::Add, true, RAX, indexed(TLB, RCX, 0, layout::TLB_ADDEND));
        missing
    }

    /// The same with the rights of EL0.
    fn translate_as_user(&mut self, store: bool, bytes: i32) -> Jump {
        self.index();
        self.asm.arith_m(Arith::Add, true, RCX, layout::USER_TLB);
        self.last_page(bytes);
        let a = &mut self.asm;
        a.arith_m(Arith::Or, true, RDX, layout::USER_TAG);
        a.arith_m(Arith::Cmp, true, RDX, at(RCX, Self::tag(store)));
        let missing = a.jcc(Cc::NE);
        a.arith_m(Arith::Add, true, RAX, at(RCX, layout::TLB_ADDEND));
        missing
    }

    /// Where in the TLB the address in RAX belongs into RCX.
    fn index(&mut self) {
        // The page's number is at bit 12, and an entry has 32 bytes.
        self.asm.shifted_right(self.features.bmi2, RCX, RAX, 7);
        self.asm.arith_i(Arith::And, false, RCX, (TLB_SIZE as i32 - 1) << 5);
    }

    /// The page of the last of `bytes` at RAX into RDX.
    fn last_page(&mut self, bytes: i32) {
        self.asm.lea(true, RDX, at(RAX, bytes - 1));
        self.asm.arith_i(Arith::And, true, RDX, !0xfff);
    }

    /// Which of an entry's tags an access is held against.
    fn tag(store: bool) -> i32 {
        if store { layout::TLB_WRITE } else { layout::TLB_READ }
    }

    fn write_back(&mut self, address: Address) {
        if let Address::Pre(n, by) | Address::Post(n, by) = address {
            let base = self.update(n);
            self.asm.lea(true, base, at(base, by as i32));
        }
    }

    pub(super) fn memory(&mut self, access: Access, t: Reg, address: Address) {
        self.transfer(access, &[t], address);
    }

    pub(super) fn pair(&mut self, access: Access, t: Reg, u: Reg, address: Address) {
        self.transfer(access, &[t, u], address);
    }

    fn transfer(&mut self, access: Access, registers: &[Reg], address: Address) {
        let base = Self::written_base(address);
        if let Some(n) = base {
            self.will_write(n);
        }
        let mut values = [RAX; 2];
        for (r, value) in registers.iter().zip(&mut values) {
            if access.store {
                *value = self.read(*r);
            } else {
                self.will_write(*r);
            }
        }
        let bytes = (registers.len() as i32) << access.size;
        let (host, offset, missing) = self.locate(access.store, bytes, address);
        let before = self.cache;
        let place = |i: usize| at(host, offset + ((i as i32) << access.size));
        let mut changed = [NO_REG, NO_REG, base.unwrap_or(NO_REG)];
        if access.store {
            for (i, value) in values.iter().enumerate().take(registers.len()) {
                self.asm.store(access.size, place(i), *value);
            }
            self.write_back(address);
        } else {
            // A register that is loaded and the base too has what was loaded.
            self.write_back(address);
            for (i, r) in registers.iter().enumerate() {
                changed[i] = *r;
                let to: R = self.write_over(*r);
                self.asm.load(access.size, access.signed, access.wide, to, place(i));
            }
        }
        self.accessed(missing, before, changed);
    }

    /// LDTR, STTR and their kind, which the guest's kernel copies to and from its programs' memory with.
    pub(super) fn unprivileged(&mut self, access: Access, t: Reg, n: Reg, offset: i64) {
        let value = if access.store { self.read(t) } else { RAX };
        if !access.store {
            self.will_write(t);
        }
        self.address(Address::Unscaled(n, offset));
        let before = self.cache;
        let missing = self.translate_as_user(access.store, 1 << access.size);
        let mut changed = NO_REG;
        if access.store {
            self.asm.store(access.size, at(RAX, 0), value);
        } else {
            changed = t;
            let to = self.write_over(t);
            self.asm.load(access.size, access.signed, access.wide, to, at(RAX, 0));
        }
        self.slow([Some(missing), None, None], before, [changed, NO_REG, NO_REG]);
    }

    /// DC ZVA.
    pub(super) fn zero(&mut self, t: Reg) {
        let value = self.read(t);
        let before = self.cache;
        // Where EL0 may not (SCTLR_EL1.DZE), the interpreter looks who asks.
        self.asm.test_m(layout::SCTLR, 1 << 14);
        let refused = self.asm.jcc(Cc::E);
        self.asm.mov(true, RAX, value);
        self.asm.arith_i(Arith::And, true, RAX, -(ZVA_BYTES as i32));
        let missing = self.translate(true, ZVA_BYTES as i32);
        self.asm.vector(sse::XORPS, X(0), X(0));
        for place in (0..ZVA_BYTES as i32).step_by(16) {
            self.asm.movups_to(at(RAX, place), X(0));
        }
        self.slow([Some(refused), Some(missing), None], before, [NO_REG; 3]);
    }

    /// A register for a new value of `g`, be it one that the instruction reads or not: the address is made.
    pub(super) fn write_over(&mut self, g: Reg) -> R {
        self.cache.unpin();
        self.write(g)
    }

    pub(super) fn vector_memory(&mut self, store: bool, size: u8, t: Reg, u: Option<Reg>, address: Address) {
        let base = Self::written_base(address);
        if let Some(n) = base {
            self.will_write(n);
        }
        let mut values = [X(0); 2];
        for (r, value) in std::iter::once(t).chain(u).zip(&mut values) {
            if store {
                *value = self.read_vector(r);
            } else {
                self.will_write_vector(r);
            }
        }
        let count = 1 + i32::from(u.is_some());
        let (host, offset, missing) = self.locate(store, count << size, address);
        let before = self.cache;
        for (i, r) in std::iter::once(t).chain(u).enumerate() {
            let place = at(host, offset + ((i as i32) << size));
            let x = if store { values[i] } else { self.write_vector(r) };
            match (store, size) {
                (false, 4) => self.asm.movups(x, place),
                (false, 2 | 3) => {
                    self.asm.mov_low(size == 3, x, place);
                    self.number(size == 3, r);
                }
                (false, _) => {
                    self.asm.load(size, false, false, RCX, place);
                    self.asm.mov_low_r(false, x, RCX);
                    self.number(false, r);
                }
                (true, 4) => self.asm.movups_to(place, x),
                (true, 2 | 3) => self.asm.mov_low_to(size == 3, place, x),
                (true, _) => {
                    self.asm.mov_r(false, RCX, x);
                    self.asm.store(size, place, RCX);
                }
            }
        }
        self.write_back(address);
        self.accessed(missing, before, [NO_REG, NO_REG, base.unwrap_or(NO_REG)]);
    }
}
