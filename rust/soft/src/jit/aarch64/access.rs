//! Loads and stores, by the software TLB. None of this changes the flags.

use super::asm::{Jump, LR, R, ZR};
use super::block::{NO_REG, Translator};
use super::{ADDEND, ADDRESS, CPU, OTHER, TAG, TEMP, TLB, layout};
use crate::Regs;
use crate::isa::insn::{Access, Address, Barrier, Reg};
use crate::mem::TLB_SIZE;
use crate::state::PAIR_OF_WORDS;
use crate::sysreg::ZVA_BYTES;

/// The base register that an access writes.
fn written_base(address: Address) -> Option<Reg> {
    match address {
        Address::Pre(n, _) | Address::Post(n, _) => Some(n),
        _ => None,
    }
}

/// Which load or store, as `Asm::indexed` numbers them.
fn opc(access: Access) -> u32 {
    match (access.store, access.signed, access.wide) {
        (true, ..) => 0,
        (_, false, _) => 1,
        (_, _, true) => 2,
        (_, _, false) => 3,
    }
}

impl Translator<'_> {
    /// The address that the access is at into `ADDRESS`.
    fn address(&mut self, address: Address) {
        match address {
            Address::Offset(n, by) | Address::Unscaled(n, by) | Address::Pre(n, by) => {
                let base = self.read(n);
                self.asm.add_i(ADDRESS, base, by);
            }
            Address::Post(n, _) => {
                let base = self.read(n);
                self.asm.mov(ADDRESS, base);
            }
            Address::Index(n, m, option, by) => {
                let (base, index) = (self.read(n), self.read(m));
                let option = if option == 2 || option == 6 { option } else { 3 };
                self.asm.add_extended(ADDRESS, base, index, option, by);
            }
            Address::Page(offset) => {
                self.asm.load(3, ADDRESS, CPU, layout::PAGE);
                self.asm.add_i(ADDRESS, ADDRESS, offset);
            }
        }
    }

    /// Looks `bytes` at `ADDRESS` up in the TLB: `ADDEND` becomes what makes it the host's; what is not there goes
    /// aside by the jump.
    fn translate(&mut self, store: bool, bytes: u32) -> Jump {
        self.translate_by(store, bytes, TLB, TAG)
    }

    /// The same by another TLB.
    fn translate_by(&mut self, store: bool, bytes: u32, tlb: R, tag: R) -> Jump {
        let a = &mut self.asm;
        a.ubfx(ADDEND, ADDRESS, 12, TLB_SIZE.ilog2() as u8);
        a.add(OTHER, tlb, ADDEND, 5);
        if bytes == 1 {
            a.mov(TEMP, ADDRESS);
        } else {
            a.add_i(TEMP, ADDRESS, i64::from(bytes) - 1);
        }
        a.bfxil(TEMP, tag, 12);
        a.load(3, ADDEND, OTHER, if store { layout::TLB_WRITE } else { layout::TLB_READ });
        a.eor(TEMP, TEMP, ADDEND);
        let missing = a.cbz(true, true, TEMP);
        a.load(3, ADDEND, OTHER, layout::TLB_ADDEND);
        missing
    }

    /// The same, after which `ADDRESS` is the host's.
    fn translate_whole(&mut self, store: bool, bytes: u32) -> Jump {
        let missing = self.translate(store, bytes);
        self.asm.add(ADDRESS, ADDRESS, ADDEND, 0);
        missing
    }

    fn write_back(&mut self, address: Address) {
        if let Address::Pre(n, by) | Address::Post(n, by) = address {
            let base = self.update(n);
            self.asm.add_i(base, base, by);
        }
    }

    /// False when the interpreter must do it, here and below.
    pub(super) fn memory(&mut self, access: Access, t: Reg, address: Address) -> bool {
        self.transfer(access, t, address, false)
    }

    /// LDTR and STTR: by the TLB of EL0.
    pub(super) fn unprivileged(&mut self, access: Access, t: Reg, n: Reg, offset: i64) -> bool {
        self.transfer(access, t, Address::Unscaled(n, offset), true)
    }

    fn transfer(&mut self, access: Access, t: Reg, address: Address, unprivileged: bool) -> bool {
        let value = access.store.then(|| self.read(t));
        self.address(address);
        let before = self.state;
        let (mut tlb, mut tag) = (TLB, TAG);
        if unprivileged {
            (tlb, tag) = (OTHER, LR);
            self.asm.load(3, tlb, CPU, layout::USER_TLB);
            self.asm.load(3, tag, CPU, layout::USER_TAG);
        }
        let missing = self.translate_by(access.store, 1 << access.size, tlb, tag);
        let base = written_base(address).unwrap_or(NO_REG);
        let opc = opc(access);
        let changed = match value {
            Some(r) => {
                self.asm.indexed(access.size, opc, r, ADDRESS, ADDEND);
                self.write_back(address);
                [base, NO_REG, NO_REG]
            }
            None => {
                // A register that is loaded and the base too has what was loaded.
                self.write_back(address);
                let r = self.write(t);
                self.asm.indexed(access.size, opc, r, ADDRESS, ADDEND);
                [base, t, NO_REG]
            }
        };
        self.slow([Some(missing), None, None], before, changed);
        true
    }

    pub(super) fn pair(&mut self, access: Access, t: Reg, u: Reg, address: Address) -> bool {
        let base = written_base(address);
        // Not for the host: one register twice, or the base among those that are transferred.
        if !access.store && t == u || base.is_some_and(|n| n == t || n == u) {
            return false;
        }
        if access.store {
            self.read(t);
            self.read(u);
        }
        self.address(address);
        let before = self.state;
        let missing = self.translate_whole(access.store, 2 << access.size);
        self.write_back(address);
        let registers = [t, u].map(|g| if access.store { self.read(g) } else { self.write_beside(g) });
        let opc = if access.size == 3 { 2 } else { u32::from(access.signed) };
        self.asm.pair(access.store, opc, registers[0], registers[1], ADDRESS);
        let [a, b] = if access.store { [NO_REG; 2] } else { [t, u] };
        self.slow([Some(missing), None, None], before, [a, b, base.unwrap_or(NO_REG)]);
        true
    }

    /// As `write`, for one of several registers that an instruction writes.
    fn write_beside(&mut self, g: Reg) -> R {
        if g as usize > crate::Regs::SP { ZR } else { self.state.cache.write(&mut self.asm, g) }
    }

    /// Looks up where `1 << size` bytes at a register and an offset are, as `translate_whole`, but for what is aligned.
    fn aligned(&mut self, n: Reg, offset: i64, size: u8, store: bool) -> [Option<Jump>; 3] {
        self.address(Address::Unscaled(n, offset));
        let odd = (size > 0).then(|| {
            self.asm.low_bits(TEMP, ADDRESS, size);
            self.asm.cbz(false, true, TEMP)
        });
        [odd, Some(self.translate_whole(store, 1 << size)), None]
    }

    /// LDAR and its kind.
    pub(super) fn load_acquire(&mut self, access: Access, t: Reg, n: Reg, offset: i64) -> bool {
        self.read(n);
        let before = self.state;
        let aside = self.aligned(n, offset, access.size, false);
        let r = self.write(t);
        self.asm.load_acquire(access.size, r, ADDRESS);
        if access.signed {
            self.asm.sign_extend(access.size, access.wide, r, r);
        }
        self.slow(aside, before, [t, NO_REG, NO_REG]);
        true
    }

    /// STLR and its kind.
    pub(super) fn store_release(&mut self, access: Access, t: Reg, n: Reg, offset: i64) -> bool {
        let value = self.read(t);
        self.read(n);
        let before = self.state;
        let aside = self.aligned(n, offset, access.size, true);
        self.asm.store_release(access.size, value, ADDRESS);
        self.slow(aside, before, [NO_REG; 3]);
        true
    }

    /// CAS. A place that may be written may be read.
    pub(super) fn compare_and_swap(&mut self, size: u8, s: Reg, to: Reg, t: Reg, n: Reg) -> bool {
        if !self.features.lse {
            return false;
        }
        let new = self.read(t);
        self.read(s);
        self.read(n);
        let before = self.state;
        let aside = self.aligned(n, 0, size, true);
        let old = self.update(s);
        let word = super::asm::with(self.word(), Some(new), Some(ADDRESS), Some(old), None);
        self.asm.word(word);
        self.slow(aside, before, [to, NO_REG, NO_REG]);
        true
    }

    /// LDADD and its kind, and SWP.
    pub(super) fn read_modify_write(&mut self, size: u8, s: Reg, t: Reg, n: Reg) -> bool {
        if !self.features.lse {
            return false;
        }
        let operand = self.read(s);
        self.read(n);
        let before = self.state;
        let aside = self.aligned(n, 0, size, true);
        let r = self.write(t);
        let word = super::asm::with(self.word(), Some(r), Some(ADDRESS), Some(operand), None);
        self.asm.word(word);
        self.slow(aside, before, [t, NO_REG, NO_REG]);
        true
    }

    /// LDXR and LDAXR: what was loaded is noted, as the interpreter does.
    pub(super) fn load_exclusive(&mut self, size: u8, acquire: bool, t: Reg, n: Reg) -> bool {
        let base = self.read(n);
        let before = self.state;
        let aside = self.aligned(n, 0, size, false);
        let a = &mut self.asm;
        a.store(3, base, CPU, layout::MONITOR_VA);
        a.mov_i(TEMP, 1 << size);
        a.store(3, TEMP, CPU, layout::MONITOR_SIZE);
        if acquire {
            a.load_acquire(size, OTHER, ADDRESS);
        } else {
            a.load(size, OTHER, ADDRESS, 0);
        }
        a.store(3, OTHER, CPU, layout::MONITOR_VALUE[0]);
        a.store(3, ZR, CPU, layout::MONITOR_VALUE[1]);
        let r = self.write(t);
        self.asm.mov(r, OTHER);
        self.slow(aside, before, [t, NO_REG, NO_REG]);
        true
    }

    /// STXR and STLXR: a comparison with what was noted. One that fails at once is the interpreter's.
    pub(super) fn store_exclusive(&mut self, size: u8, release: bool, s: Reg, t: Reg, n: Reg) -> bool {
        if !self.features.lse {
            return false;
        }
        let (value, base) = (self.read(t), self.read(n));
        let before = self.state;
        let a = &mut self.asm;
        a.load(3, TEMP, CPU, layout::MONITOR_SIZE);
        a.add_i(TEMP, TEMP, -(1 << size));
        let other = a.cbz(true, true, TEMP);
        a.mov(ADDRESS, base);
        a.load(3, TEMP, CPU, layout::MONITOR_VA);
        a.eor(TEMP, TEMP, ADDRESS);
        let elsewhere = a.cbz(true, true, TEMP);
        let missing = self.translate_whole(true, 1 << size);
        let a = &mut self.asm;
        a.store(3, ZR, CPU, layout::MONITOR_SIZE);
        a.load(3, OTHER, CPU, layout::MONITOR_VALUE[0]);
        a.mov(TEMP, OTHER);
        a.compare_and_swap(size, release, OTHER, value, ADDRESS);
        a.eor(TEMP, TEMP, OTHER);
        let same = a.cbz(true, false, TEMP);
        a.mov_i(TEMP, 1);
        a.land(same);
        let r = self.write(s);
        self.asm.mov(r, TEMP);
        self.slow([Some(other), Some(elsewhere), Some(missing)], before, [s, NO_REG, NO_REG]);
        true
    }

    pub(super) fn clear_exclusive(&mut self) -> bool {
        self.asm.store(3, ZR, CPU, layout::MONITOR_SIZE);
        true
    }

    /// LDXP and LDAXP. Of two of 8 bytes each is loaded by itself: the store notices when they did not belong together.
    pub(super) fn load_exclusive_pair(&mut self, wide: bool, acquire: bool, t: Reg, u: Reg, n: Reg) -> bool {
        let base = self.read(n);
        let before = self.state;
        let aside = self.aligned(n, 0, if wide { 4 } else { 3 }, false);
        let a = &mut self.asm;
        a.store(3, base, CPU, layout::MONITOR_VA);
        a.mov_i(TEMP, if wide { 16 } else { PAIR_OF_WORDS });
        a.store(3, TEMP, CPU, layout::MONITOR_SIZE);
        let load = |a: &mut super::asm::Asm, r| {
            if acquire { a.load_acquire(3, r, ADDRESS) } else { a.load(3, r, ADDRESS, 0) }
        };
        load(a, OTHER);
        if wide {
            a.add_i(ADDRESS, ADDRESS, 8);
            load(a, ADDEND);
        } else {
            a.lsr_i(ADDEND, OTHER, 32);
            a.low_bits(OTHER, OTHER, 32);
        }
        a.store(3, OTHER, CPU, layout::MONITOR_VALUE[0]);
        a.store(3, ADDEND, CPU, layout::MONITOR_VALUE[1]);
        for (g, value) in [(t, OTHER), (u, ADDEND)] {
            let r = self.write(g);
            self.asm.mov(r, value);
        }
        self.slow(aside, before, [t, u, NO_REG]);
        true
    }

    /// STXP and STLXP.
    pub(super) fn store_exclusive_pair(&mut self, wide: bool, s: Reg, [t, u]: [Reg; 2], n: Reg) -> bool {
        if !wide && !self.features.lse {
            return false;
        }
        let old = [0; 2].map(|_| self.state.cache.keep(&mut self.asm));
        let (new, base) = ([t, u].map(|g| self.read(g)), self.read(n));
        let before = self.state;
        let size = if wide { 16 } else { PAIR_OF_WORDS };
        let a = &mut self.asm;
        a.load(3, TEMP, CPU, layout::MONITOR_SIZE);
        a.add_i(TEMP, TEMP, -(size as i64));
        let other = a.cbz(true, true, TEMP);
        a.mov(ADDRESS, base);
        a.load(3, TEMP, CPU, layout::MONITOR_VA);
        a.eor(TEMP, TEMP, ADDRESS);
        let elsewhere = a.cbz(true, true, TEMP);
        let missing = self.translate_whole(true, if wide { 16 } else { 8 });
        let a = &mut self.asm;
        a.store(3, ZR, CPU, layout::MONITOR_SIZE);
        a.load(3, old[0], CPU, layout::MONITOR_VALUE[0]);
        a.load(3, old[1], CPU, layout::MONITOR_VALUE[1]);
        self.swap_pair(wide, old, new);
        for r in old {
            self.state.cache.give_back(r);
        }
        let r = self.write(s);
        self.asm.mov(r, TEMP);
        self.slow([Some(other), Some(elsewhere), Some(missing)], before, [s, NO_REG, NO_REG]);
        true
    }

    /// CASP.
    pub(super) fn compare_and_swap_pair(&mut self, wide: bool, s: Reg, t: Reg, n: Reg) -> bool {
        if !wide && !self.features.lse {
            return false;
        }
        // Register 31 as the second of a pair reads as zero.
        let second = |g: Reg| if g == 30 { Regs::ZERO as Reg } else { g + 1 };
        let (old, new) = ([s, second(s)].map(|g| self.read(g)), [t, second(t)].map(|g| self.read(g)));
        self.read(n);
        let before = self.state;
        let aside = self.aligned(n, 0, if wide { 4 } else { 3 }, true);
        self.swap_pair(wide, old, new);
        let to = [s, if s == 30 { NO_REG } else { s + 1 }];
        for (g, value) in to.into_iter().zip([OTHER, ADDEND]) {
            let r = self.write(g);
            self.asm.mov(r, value);
        }
        self.slow(aside, before, [to[0], to[1], NO_REG]);
        true
    }

    /// Stores a pair at `ADDRESS` where the old one is, before and behind everything: `OTHER` and `ADDEND` become what
    /// was there, and `TEMP` zero if it was stored.
    fn swap_pair(&mut self, wide: bool, old: [R; 2], new: [R; 2]) {
        let a = &mut self.asm;
        if wide {
            let again = a.here();
            a.load_exclusive_pair(OTHER, ADDEND, ADDRESS);
            a.eor(TEMP, OTHER, old[0]);
            a.eor(LR, ADDEND, old[1]);
            a.orr(TEMP, TEMP, LR);
            let different = a.cbz(true, true, TEMP);
            a.store_exclusive_pair(TEMP, new[0], new[1], ADDRESS);
            a.cbnz_to(TEMP, again);
            let done = a.b();
            a.land(different);
            // What was loaded is one value only where a store after it succeeds.
            a.store_exclusive_pair(TEMP, OTHER, ADDEND, ADDRESS);
            a.cbnz_to(TEMP, again);
            a.mov_i(TEMP, 1);
            a.land(done);
            return;
        }
        for (to, [low, high]) in [(OTHER, old), (ADDEND, new)] {
            a.low_bits(to, low, 32);
            a.add(to, to, high, 32);
        }
        a.mov(LR, OTHER);
        a.compare_and_swap_ordered(OTHER, ADDEND, ADDRESS);
        a.eor(TEMP, LR, OTHER);
        let same = a.cbz(true, false, TEMP);
        a.mov_i(TEMP, 1);
        a.land(same);
        a.lsr_i(ADDEND, OTHER, 32);
        a.low_bits(OTHER, OTHER, 32);
    }

    /// DC ZVA.
    pub(super) fn zero(&mut self, t: Reg) -> bool {
        let value = self.read(t);
        let before = self.state;
        let a = &mut self.asm;
        // Where EL0 may not (SCTLR_EL1.DZE), the interpreter looks who asks.
        a.load(3, TEMP, CPU, layout::SCTLR);
        a.ubfx(TEMP, TEMP, 14, 1);
        let refused = a.cbz(true, false, TEMP);
        a.without_low_bits(ADDRESS, value, ZVA_BYTES.ilog2() as u8);
        let missing = self.translate_whole(true, ZVA_BYTES as u32);
        for _ in 0..ZVA_BYTES / 16 {
            self.asm.pair(true, 2, ZR, ZR, ADDRESS);
            self.asm.add_i(ADDRESS, ADDRESS, 16);
        }
        self.slow([Some(refused), Some(missing), None], before, [NO_REG; 3]);
        true
    }

    /// DMB, of the domain that threads of one process are in.
    pub(super) fn barrier(&mut self, kind: Barrier, option: u8) -> bool {
        if kind != Barrier::Dmb {
            return false;
        }
        let option = match option & 3 {
            0 => 3,
            option => u32::from(option),
        };
        self.asm.word(0xd503_30bf | (8 | option) << 8);
        true
    }

    pub(super) fn vector_memory(
        &mut self,
        store: bool,
        size: u8,
        t: Reg,
        u: Option<Reg>,
        address: Address,
    ) -> bool {
        if !store && u == Some(t) {
            return false;
        }
        if store {
            self.read_vector(t);
            u.map(|u| self.read_vector(u));
        }
        self.address(address);
        let before = self.state;
        let count = 1 + u32::from(u.is_some());
        let missing = if u.is_some() {
            self.translate_whole(store, count << size)
        } else {
            self.translate(store, 1 << size)
        };
        let registers =
            [Some(t), u].map(|g| g.map(|g| if store { self.read_vector(g) } else { self.write_vector(g) }));
        match registers {
            [Some(t), Some(u)] => self.asm.pair_vector(store, size, t, u, ADDRESS),
            [Some(t), None] => self.asm.indexed_vector(store, size, t, ADDRESS, ADDEND),
            _ => unreachable!("the first is always there"),
        }
        self.write_back(address);
        self.slow(
            [Some(missing), None, None],
            before,
            [NO_REG, NO_REG, written_base(address).unwrap_or(NO_REG)],
        );
        true
    }

    /// LD1 to LD4 and ST1 to ST4: vector registers are where the guest has them.
    pub(super) fn structures(&mut self, word: u32, single: bool) -> bool {
        let insn = self.input.insns[self.at];
        let (reads, writes) = (insn.reads(word), insn.writes(word));
        let store = word >> 22 & 1 == 0;
        let count = if single {
            ((word >> 13 & 1) << 1 | (word >> 21 & 1)) + 1
        } else {
            match word >> 12 & 15 {
                0b0000 | 0b0010 => 4,
                0b0100 | 0b0110 => 3,
                0b0111 => 1,
                _ => 2,
            }
        };
        let each = if single {
            let size = word >> 10 & 3;
            match word >> 14 & 3 {
                0 => 1,
                1 => 2,
                2 => 4 << (size & 1),
                _ => 1 << size,
            }
        } else {
            8 << (word >> 30 & 1)
        };
        let bytes = count * each;
        let n = (word >> 5 & 31) as Reg;
        for v in (0..32).filter(|v| reads.has_vector(*v)) {
            self.read_vector(v);
        }
        let base = self.read(n);
        let writes_back = word >> 23 & 1 == 1;
        let by = (word >> 16 & 31) as Reg;
        if writes_back && by != 31 {
            self.read(by);
        }
        self.asm.mov(ADDRESS, base);
        let before = self.state;
        let missing = self.translate_whole(store, bytes);
        for v in (0..32).filter(|v| writes.has_vector(*v)) {
            self.write_vector(v);
        }
        let plain = word & !(1 << 23 | 31 << 16);
        self.asm.word(super::asm::with(plain, None, Some(ADDRESS), None, None));
        let mut changed = NO_REG;
        if writes_back {
            changed = n;
            let base = self.update(n);
            if by == 31 {
                self.asm.add_i(base, base, bytes.into());
            } else {
                let by = self.read(by);
                self.asm.add(base, base, by, 0);
            }
        }
        self.slow([Some(missing), None, None], before, [changed, NO_REG, NO_REG]);
        true
    }
}
