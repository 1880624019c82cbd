//! One CPU: what it keeps, how it finds code, and the loop that runs blocks of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use supermachine_support::side_work::SideWork;

use crate::baked;
use crate::code::{CodeCache, PageRef};
use crate::debug::Debug;
use crate::interp::op::{self, FUEL, P};
use crate::jit::{self, Jit};
use crate::mem::{EL0_TAG, EL1_TAG, Tlb, TlbEntry, set_bits, zeroed};
use crate::mmu::{Access, Fault, PA_BITS};
use crate::pmu::Pmu;
use crate::state::State;
use crate::vcpu::Exit;
use crate::vm::{Region, Shared, VcpuShared};

/// A program of Debian's Python runs some 12,000 blocks, but a larger table costs each restore its memory.
pub(crate) const JUMPS: usize = 8192;

/// Where the machine code is for a virtual address. The key is the address, with [`Cpu::key`] in place of [`IMPLIED`]:
/// no key is zero, which is what an empty slot has.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Jump {
    pub key: u64,
    /// What goes to the operation where it has no machine code.
    pub code: u64,
}

/// Bits of an instruction's address that its slot tells together with the bits above.
pub(crate) const IMPLIED: u64 = 0xffc;
const _: () = assert!(JUMPS > IMPLIED as usize >> 2);

/// In the keys of EL1's code.
const EL1_KEY: u64 = el0_key(0x100);

/// In those of EL0's, by address space (8 bits).
const fn el0_key(asid: u64) -> u64 {
    (asid + 1) << 2
}

/// In the key of what had to make room in its own slot and is in the one beside.
pub(crate) const BESIDE: u64 = 0x800;
const _: () = assert!(EL1_KEY & BESIDE == 0 && (EL1_KEY | BESIDE) & !IMPLIED == 0);

const FETCHES: usize = 512;

/// How far a direct branch reaches (B and BL; Arm ARM C6.2).
const REACH: u64 = 1 << 27;

/// Whether the 16 bits are equal that no address of 48 bits uses.
#[inline(always)]
pub(crate) fn is_canonical(va: u64) -> bool {
    (va >> 48).wrapping_add(1) & 0xfffe == 0
}

/// Whether an instruction here may go on at an address that is not canonical, without one in a register.
fn at_an_edge(va: u64) -> bool {
    is_canonical(va) && !(is_canonical(va.wrapping_add(REACH)) && is_canonical(va.wrapping_sub(REACH)))
}

/// Times round the run loop between two looks at the clock: with [`FUEL`] instructions each some 10 to 25 µs.
const LAPS: u32 = 8;

/// How many times as long machine code runs between two looks of the run loop; each counts as so many of `LAPS`. An
/// instruction of the interpreter's in the middle of it counts as so many.
pub(crate) const LONGER: i64 = 4;

/// A page that code is fetched from: where its memory and its decoded code are.
#[derive(Clone, Copy)]
pub(crate) struct Fetch {
    key: u64,
    pub host: *const u8,
    pub page: PageRef,
}

const NO_FETCH: Fetch = Fetch { key: 1, host: std::ptr::null(), page: PageRef::NONE };

/// The aligned ones of these guest physical addresses that there is memory at, each with the memory of its page.
fn code_at<'a>(memory: &'a [Region], places: &'a [u64]) -> impl Iterator<Item = (u64, *const u8)> + 'a {
    let host = |pa: u64| memory.iter().find(|region| region.holds(pa))?.host(pa & !0xfff, false);
    let aligned = places.iter().filter(|pa| **pa & 3 == 0);
    aligned.filter_map(move |pa| Some((*pa, host(*pa)?.cast_const())))
}

#[repr(C)]
pub(crate) struct Cpu {
    /// What the architecture knows; all else here is how it is worked on.
    pub state: State,
    /// Virtual page of the block that runs.
    pub page: u64,
    /// Makes keys of EL0's address spaces differ from EL1's and from each other: some of [`IMPLIED`].
    pub key: u64,
    pub tlb: *const TlbEntry,
    pub tag: u64,
    pub utlb: *const TlbEntry,
    pub utag: u64,
    /// Instructions until the run loop looks around; below zero when it is time.
    pub fuel: i64,
    /// Instructions of the block up to the one that has been noted by `sync`.
    pub reached: i64,
    /// All that `fuel` has ever been filled up by.
    granted: u64,
    /// Whether FP instructions trap (CPACR_EL1.FPEN and the exception level).
    pub fp_trap: bool,
    pub exit: Option<Exit>,
    /// A branch whose target should be remembered once it is known.
    pub patch: P,
    pub tlbs: [Tlb; 2],
    pub jumps: Box<[Jump; JUMPS]>,
    /// The operation of each of `jumps`, in the code cache.
    pub ops: Box<[P; JUMPS]>,
    /// One bit for each of `jumps` that has been written to since the last flush.
    jumps_used: [u64; JUMPS / 64],
    /// One bit for each (hashed) page that may have entries in `jumps`, and for each beside it in its block mapping.
    jump_pages: [u64; 64],
    /// Each of these pages has its bit in `jump_pages` and goes with `jumps`.
    fetches: Box<[Fetch; FETCHES]>,
    /// One bit for each of them that has been written to since the last flush.
    fetches_used: [u64; FETCHES / 64],
    pub code: CodeCache,
    /// The VM's memory as of the last run, so that translations take no lock.
    pub memory: Vec<Region>,
    pub vm: Arc<Shared>,
    pub me: Arc<VcpuShared>,
    pub index: u32,
    pub pa_bits: u32,
    pub timer_offset: u64,
    pub timer_mask: bool,
    /// The counter's value when the next timer is due; the largest for none. Nobody else looks at it: the run loop does
    /// now and then, and sleep ends with it.
    pub deadline: u64,
    /// Times round the run loop since it looked.
    laps: u32,
    /// Requests to others whose completion the next DSB waits for.
    pub broadcast: bool,
    /// What others have left: see [`Cpu::pending`]. In what `me` points at.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "one back end looks at it"))]
    pub left_by_others: *const AtomicU32,
    pub waits: u32,
    pub debug: Debug,
    pub pmu: Pmu,
    /// Of the instruction that software step let run last: whether it was an exclusive load.
    pub stepped: Option<bool>,
    pub jit: Option<Box<Jit>>,
    /// The address of the way into machine code.
    pub code_entry: u64,
    /// Whether the operation that machine code has called came to its end.
    pub resumed: bool,
    /// What this vCPU does besides, and until which value of the counter it alone does.
    pub held: Option<Arc<dyn SideWork>>,
    pub held_until: u64,
    /// Looks of the run loop; instructions that handlers have done for machine code since the last, and at most between
    /// two.
    #[cfg(test)]
    pub looks: u64,
    #[cfg(test)]
    pub handled_since: u64,
    #[cfg(test)]
    pub handled_at_once: u64,
}

impl Cpu {
    pub(crate) fn new(vm: Arc<Shared>, index: u32) -> Box<Self> {
        let me = vm.vcpus[index as usize].clone();
        let left_by_others = &raw const me.pending;
        let jit = vm.jit(index);
        let mut cpu = Box::new(Self {
            state: State::new(index),
            page: 0,
            key: 0,
            tlb: std::ptr::null(),
            tag: 0,
            utlb: std::ptr::null(),
            utag: 0,
            fuel: 0,
            reached: 0,
            granted: 0,
            fp_trap: true,
            exit: None,
            patch: P::NULL,
            tlbs: [Tlb::new(), Tlb::new()],
            // SAFETY: zeros are slots with nothing in them.
            jumps: unsafe { zeroed() },
            // SAFETY: zeros are null pointers.
            ops: unsafe { zeroed() },
            jumps_used: [0; JUMPS / 64],
            jump_pages: [0; 64],
            fetches: Box::new([NO_FETCH; FETCHES]),
            fetches_used: [0; FETCHES / 64],
            code: CodeCache::new(vm.vcpus.len()),
            memory: Vec::new(),
            vm,
            me,
            index,
            pa_bits: PA_BITS,
            timer_offset: 0,
            timer_mask: false,
            deadline: u64::MAX,
            laps: 0,
            broadcast: false,
            left_by_others,
            waits: 0,
            debug: Debug::default(),
            pmu: Pmu::default(),
            stepped: None,
            code_entry: jit.as_ref().map_or(0, |jit| jit.entry()),
            jit,
            resumed: false,
            held: None,
            held_until: 0,
            #[cfg(test)]
            looks: 0,
            #[cfg(test)]
            handled_since: 0,
            #[cfg(test)]
            handled_at_once: 0,
        });
        if let Some(baked) = cpu.vm.baked() {
            cpu.code.set_baked(baked);
        }
        cpu.regime();
        cpu
    }

    /// Has hot code be translated from now on, where something does: for one that was made ahead. Before the first run.
    pub(crate) fn begin_translating(&mut self) {
        self.jit = self.vm.jit(self.index);
        self.code_entry = self.jit.as_ref().map_or(0, |jit| jit.entry());
    }

    /// Decodes the code at these guest physical addresses, as far as there is memory, after what another process has
    /// decoded. Before the first run.
    pub(crate) fn decode_ahead(&mut self, places: &[u64]) {
        self.code.lay_all();
        self.code.decode_ahead(code_at(&self.vm.memory(), places));
    }

    /// The same for other processes, as a file; page by page, in the order in which the first places of each come.
    pub(crate) fn bake(&mut self, places: &[u64], key: &baked::Key) -> Vec<u8> {
        let mut order = HashMap::new();
        for pa in places {
            let next = order.len();
            order.entry(pa >> 12).or_insert(next);
        }
        let mut places = places.to_vec();
        places.sort_by_key(|pa| order[&(pa >> 12)]);
        self.code.bake(code_at(&self.vm.memory(), &places), key)
    }

    /// Instructions run so far.
    pub(crate) fn instructions(&self) -> u64 {
        self.granted.wrapping_add_signed(-self.fuel)
    }

    /// Instructions run up to the one that `sync` has noted, which is in the middle of a block.
    pub(crate) fn reached_instructions(&self) -> u64 {
        self.instructions().wrapping_add_signed(self.reached)
    }

    /// Runs until an exit.
    pub(crate) fn run(&mut self) -> Exit {
        self.me.enter();
        let exit = self.run_inner();
        self.me.leave();
        // A device is served soon; of anything else it is not known when the vCPU comes back.
        if !matches!(exit, Exit::DataAbort(_)) {
            self.let_go();
        }
        exit
    }

    fn run_inner(&mut self) -> Exit {
        self.update_timers();
        self.tell_overflow_again();
        self.regime();
        if self.memory.is_empty() {
            self.memory = self.vm.memory();
        }
        loop {
            #[cfg(test)]
            {
                self.looks += 1;
                self.handled_since = 0;
            }
            self.laps += 1;
            if self.laps >= LAPS {
                self.laps = 0;
                self.look_at_deadline();
            }
            if self.instructions() >= self.pmu.due {
                self.look_for_overflow();
            }
            if self.pending() != 0
                && let Some(exit) = self.attend()
            {
                return exit;
            }
            if let Some(exit) = self.exit.take() {
                return exit;
            }
            if self.debug.alert && self.debugged() {
                continue;
            }
            if self.state.il {
                self.exception(0x0e, 0, None);
            }
            if at_an_edge(self.state.pc) {
                self.patch = P::NULL;
                if let Some(fetch) = self.fetchable() {
                    self.run_one(fetch);
                }
                continue;
            }
            let Some(op) = self.find() else { continue };
            self.page = self.state.pc & !0xfff;
            if self.jit.is_some() {
                self.sample(op, self.fuel < 0);
            }
            let mut fuel = FUEL;
            if jit::is_compiled(op) && self.pmu.due == u64::MAX {
                // Machine code is several times as fast, and there is nothing to translate where all has been. Where
                // instructions are sampled an overflow is found as soon as ever.
                fuel *= LONGER;
                self.laps += LONGER as u32 - 1;
            }
            self.refuel(fuel);
            op::run(self, op);
        }
    }

    /// Sets how many instructions may run before the run loop looks around.
    fn refuel(&mut self, fuel: i64) {
        self.granted = self.granted.wrapping_add_signed(fuel - self.fuel);
        self.fuel = fuel;
    }

    /// The run loop looks around so many instructions earlier.
    pub(crate) fn forgo(&mut self, instructions: i64) {
        self.fuel -= instructions;
        self.granted = self.granted.wrapping_add_signed(-instructions);
    }

    /// A handler does an instruction in the middle of machine code.
    pub(crate) fn handled(&mut self) {
        self.forgo(LONGER - 1);
        #[cfg(test)]
        {
            self.handled_since += 1;
            self.handled_at_once = self.handled_at_once.max(self.handled_since);
        }
    }

    /// From machine code the interpreter takes over for more than an instruction: it runs no longer than without.
    pub(crate) fn interpreted(&mut self) {
        if self.fuel > FUEL {
            self.forgo(self.fuel - FUEL);
        }
    }

    /// Where software step or a breakpoint may have a say: takes their exceptions or else runs one instruction. False
    /// when code can run as ever.
    fn debugged(&mut self) -> bool {
        let stepping = self.stepping();
        if stepping && !self.state.ss {
            self.step_exception();
            return true;
        }
        if self.state.il || !stepping && !self.breaks_in_page() {
            return false;
        }
        self.patch = P::NULL;
        let Some(fetch) = self.fetchable() else { return true };
        if self.breaks_here() {
            self.breakpoint_exception();
            return true;
        }
        let insn = self.run_one(fetch);
        let unfinished = matches!(self.exit, Some(Exit::DataAbort(_) | Exit::Smc { .. }));
        if stepping && !unfinished {
            // An exception has cleared it, and nothing was stepped then. LDXR and its kind; CASP is beside them.
            let exclusive = insn & 0x3fc0_0000 == 0x0840_0000 && insn & 0x8020_0000 != 0x0020_0000;
            self.stepped = std::mem::take(&mut self.state.ss).then_some(exclusive);
        }
        true
    }

    /// Runs the instruction at PC alone, and tells its word.
    fn run_one(&mut self, fetch: Fetch) -> u32 {
        let (op, insn) = self.code.decode_one(self.state.pc, fetch.host);
        self.page = self.state.pc & !0xfff;
        // None is left after the instruction, so that no branch goes on by itself.
        self.refuel(0);
        op::run(self, op);
        // The operation is gone with the next one: nothing may remember it.
        self.patch = P::NULL;
        insn
    }

    /// The block at PC; `None` when fetching took an exception.
    fn find(&mut self) -> Option<P> {
        let mut patch = std::mem::replace(&mut self.patch, P::NULL);
        // An interrupt may have come between the branch and here.
        if !patch.is_null() && self.state.pc != self.page | patch.target() {
            patch = P::NULL;
        }
        let pc = self.state.pc;
        if patch.is_null()
            && let Some(slot) = self.known_slot(pc)
        {
            let op = self.ops[slot];
            if slot != Self::jump_slot(pc) {
                self.remember(pc, op);
            }
            return Some(op);
        }
        let fetch = self.fetchable()?;
        self.code.look_at(fetch.page);
        let op = match self.code.get(fetch.page, pc) {
            Some(op) => op,
            None => self.code.decode(fetch.page, pc, fetch.host),
        };
        if !patch.is_null() && !jit::is_compiled(patch) {
            patch.set_chain(op);
        }
        self.remember(pc, op);
        Some(op)
    }

    /// The block at PC, if it has been decoded and nothing is to be looked at before it: what [`Self::find`] and the
    /// run loop would come to.
    pub(crate) fn find_decoded(&mut self) -> Option<P> {
        let pc = self.state.pc;
        if self.fuel < 0 || self.debug.alert || self.state.il || pc & 3 != 0 || at_an_edge(pc) {
            return None;
        }
        let page = self.known_fetch(pc)?.page;
        let op = self.code.get(page, pc)?;
        self.code.look_at(page);
        self.remember(pc, op);
        Some(op)
    }

    /// Branches to `va` go to this operation from now on. What had its slot goes beside, unless it is itself from
    /// there.
    fn remember(&mut self, va: u64, op: P) {
        let (slot, key) = (Self::jump_slot(va), self.key_of(va));
        let known = self.jumps[slot];
        if known.key != 0 && known.key != key && known.key & BESIDE == 0 {
            let beside = Jump { key: known.key | BESIDE, ..known };
            self.set_jump(slot ^ 1, beside, self.ops[slot]);
        }
        let code = self.jit.as_ref().map_or(0, |jit| jit.code(op));
        self.set_jump(slot, Jump { key, code }, op);
    }

    fn set_jump(&mut self, slot: usize, jump: Jump, op: P) {
        self.jumps_used[slot / 64] |= 1 << (slot % 64);
        self.jumps[slot] = jump;
        self.ops[slot] = op;
    }

    /// Where `va` is in the jump cache: in its slot, or in the one beside.
    fn known_slot(&self, va: u64) -> Option<usize> {
        let (slot, key) = (Self::jump_slot(va), self.key_of(va));
        let places = [(slot, key), (slot ^ 1, key | BESIDE)];
        places.into_iter().find(|(slot, key)| self.jumps[*slot].key == *key).map(|(slot, _)| slot)
    }

    /// Branches to `va` go to the machine code that the operation there has by now.
    pub(crate) fn follow_code(&mut self, va: u64, op: P) {
        if let Some(jit) = &self.jit
            && let Some(slot) = self.known_slot(va)
            && self.ops[slot].address() == op.address()
        {
            self.jumps[slot].code = jit.code(op);
        }
    }

    /// The page that PC is in, to decode there; `None` when an exception was taken or room had to be made.
    fn fetchable(&mut self) -> Option<Fetch> {
        let pc = self.state.pc;
        if pc & 3 != 0 {
            self.state.sys.far = pc;
            self.exception(0x22, 0, None);
            return None;
        }
        if self.code.is_full() || self.jit.as_ref().is_some_and(|jit| jit.is_full()) {
            self.flush_code();
            return None;
        }
        self.fetch(pc)
    }

    /// The page that PC is in; `None` when fetching took an exception.
    fn fetch(&mut self, pc: u64) -> Option<Fetch> {
        self.look_up(pc).map_err(|fault| self.instruction_abort(pc, fault)).ok()
    }

    /// The page at this address, where code can be fetched; nothing happens where it cannot.
    pub(crate) fn look_up(&mut self, address: u64) -> Result<Fetch, Fault> {
        if let Some(known) = self.known_fetch(address) {
            return Ok(known);
        }
        let number = (address >> 12) as usize;
        let t = self.walk(address, Access::Execute, self.state.el == 0)?;
        let host = self.host(t.pa & !0xfff, false).ok_or(Fault::EXTERNAL)?;
        let fetch = Fetch { key: address & !0xfff | self.key, host, page: self.code.page(t.pa) };
        let at = number % FETCHES;
        self.fetches[at] = fetch;
        self.fetches_used[at / 64] |= 1 << (at % 64);
        let bit = number & 4095;
        match t.level {
            3 => self.jump_pages[bit >> 6] |= 1 << (bit & 63),
            2 => self.jump_pages[bit >> 9 << 3..(bit >> 9 << 3) + 8].fill(u64::MAX),
            _ => self.jump_pages = [u64::MAX; 64],
        }
        Ok(fetch)
    }

    /// The page at this address, if it is known that code can be fetched there.
    fn known_fetch(&self, address: u64) -> Option<Fetch> {
        let known = self.fetches[(address >> 12) as usize % FETCHES];
        (known.key == address & !0xfff | self.key && is_canonical(address)).then_some(known)
    }

    #[inline(always)]
    fn jump_slot(va: u64) -> usize {
        ((va >> 2) ^ (va >> 12)) as usize & (JUMPS - 1)
    }

    #[inline(always)]
    fn key_of(&self, va: u64) -> u64 {
        va & !IMPLIED | self.key
    }

    /// The operation at `va`, if it is known.
    #[inline(always)]
    pub(crate) fn jump_cache(&self, va: u64) -> Option<P> {
        let slot = Self::jump_slot(va);
        (self.jumps[slot].key == self.key_of(va)).then_some(self.ops[slot])
    }

    pub(crate) fn flush_jumps(&mut self) {
        for slot in set_bits(&self.jumps_used) {
            self.jumps[slot].key = 0;
        }
        self.jumps_used = [0; JUMPS / 64];
        self.jump_pages = [0; 64];
        for at in set_bits(&self.fetches_used) {
            self.fetches[at] = NO_FETCH;
        }
        self.fetches_used = [0; FETCHES / 64];
        self.patch = P::NULL;
        self.code.tick();
    }

    /// Forgets all decoded code.
    pub(crate) fn flush_code(&mut self) {
        self.code.clear();
        if let Some(jit) = &mut self.jit {
            jit.clear();
        }
        self.flush_jumps();
    }

    /// Forgets the decoded code of one physical page.
    pub(crate) fn flush_code_page(&mut self, pa: u64) {
        if let Some(page) = self.code.remove(pa) {
            if let Some(jit) = &mut self.jit {
                jit.forget(page);
            }
            self.flush_jumps();
        }
    }

    pub(crate) fn flush_tlb(&mut self) {
        self.tlbs[0].flush();
        self.tlbs[1].flush();
        self.flush_jumps();
    }

    pub(crate) fn flush_tlb_va(&mut self, va: u64) {
        self.tlbs[0].flush_va(va);
        self.tlbs[1].flush_va(va);
        let bit = (va >> 12) as usize & 4095;
        if self.jump_pages[bit >> 6] >> (bit & 63) & 1 == 1 {
            self.flush_jumps();
        }
    }

    pub(crate) fn flush_tlb_asid(&mut self, asid: u64) {
        self.tlbs[0].flush_asid(asid);
        if self.tlbs[1].low {
            self.tlbs[1].flush();
        }
        self.flush_jumps_of(asid);
    }

    /// Forgets jumps of EL0 in an address space, and those of EL1 in the lower half.
    fn flush_jumps_of(&mut self, asid: u64) {
        let theirs = |key: u64| match key & IMPLIED & !BESIDE {
            EL1_KEY => key >> 55 & 1 == 0,
            other => other == el0_key(asid),
        };
        for slot in set_bits(&self.jumps_used) {
            if theirs(self.jumps[slot].key) {
                self.jumps[slot].key = 0;
            }
        }
        for at in set_bits(&self.fetches_used) {
            if theirs(self.fetches[at].key) {
                self.fetches[at] = NO_FETCH;
            }
        }
        self.patch = P::NULL;
    }

    /// Follows a change of TTBR0, TCR or ASID.
    pub(crate) fn address_space_changed(&mut self) {
        if self.tlbs[1].low {
            self.tlbs[1].flush();
            self.flush_jumps();
        }
        self.regime();
    }

    /// Recomputes what follows from the exception level, the ASID and the FP trap.
    pub(crate) fn regime(&mut self) {
        let asid = self.state.asid();
        self.utlb = self.tlbs[0].entries.as_ptr();
        self.utag = EL0_TAG | asid;
        if self.state.el == 0 {
            self.tlb = self.utlb;
            self.tag = self.utag;
            self.key = el0_key(asid);
        } else {
            self.tlb = self.tlbs[1].entries.as_ptr();
            self.tag = EL1_TAG;
            self.key = EL1_KEY;
        }
        let fpen = self.state.sys.cpacr >> 20 & 3;
        self.fp_trap = if self.state.el == 0 { fpen != 3 } else { fpen & 1 == 0 };
    }

    pub(crate) fn set_pan(&mut self, pan: bool) {
        if pan && !self.state.pan && self.tlbs[1].low {
            self.tlbs[1].flush();
        }
        self.state.pan = pan;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Translation;
    use crate::vm::{Vm, VmConfig};

    #[test]
    fn keys_differ() {
        let all: Vec<u64> =
            (0..256).map(el0_key).chain([EL1_KEY]).flat_map(|key| [key, key | BESIDE]).collect();
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert!(all.iter().all(|key| key & !IMPLIED == 0 && *key != 0));
    }

    /// Two addresses with the same slot of the jump cache.
    const SAME: [u64; 2] = [0x1020, 0x9000];

    fn with_jumps(asid: u64, el: u8) -> Box<Cpu> {
        let config = VmConfig { translation: Translation::Off, ..VmConfig::default() };
        let mut cpu = Vm::new(config).expect("a machine").bare_cpu();
        cpu.state.el = el;
        cpu.state.sys.ttbr0 = asid << 48;
        cpu.regime();
        for va in SAME {
            cpu.remember(va, P::NULL);
        }
        let slot = Cpu::jump_slot(SAME[1]);
        assert_eq!(SAME.map(|va| cpu.known_slot(va)), [Some(slot ^ 1), Some(slot)]);
        cpu
    }

    #[test]
    fn what_went_beside_goes_with_its_address_space() {
        for el in [0, 1] {
            let mut cpu = with_jumps(255, el);
            // Of another address space EL0's stay; EL1's of the lower half go with any.
            cpu.flush_tlb_asid(254);
            assert_eq!(SAME.map(|va| cpu.known_slot(va).is_some()), [el == 0; 2]);
            let mut cpu = with_jumps(255, el);
            cpu.flush_tlb_asid(255);
            assert_eq!(SAME.map(|va| cpu.known_slot(va)), [None; 2]);
            let mut cpu = with_jumps(255, el);
            cpu.flush_jumps();
            assert_eq!(SAME.map(|va| cpu.known_slot(va)), [None; 2]);
        }
    }

    #[test]
    fn what_is_beside_is_of_its_own_address_space() {
        for el in [0, 1] {
            let mut cpu = with_jumps(255, el);
            for (other_el, asid) in [(0, 254), (0, 0), (1 - el, 255)] {
                cpu.state.el = other_el;
                cpu.state.sys.ttbr0 = asid << 48;
                cpu.regime();
                assert_eq!(SAME.map(|va| cpu.known_slot(va)), [None; 2], "EL{other_el} {asid}");
            }
        }
    }
}
