//! One CPU: what it keeps, how it finds code, and the loop that runs blocks of it.

use std::sync::Arc;

use crate::code::{CodeCache, PageRef};
use crate::debug::Debug;
use crate::interp::op::{self, FUEL, P};
use crate::jit::{self, Jit};
use crate::mem::{EL1_TAG, Tlb, TlbEntry, set_bits};
use crate::mmu::{Access, Fault, PA_BITS};
use crate::state::State;
use crate::vcpu::Exit;
use crate::vm::{Region, Shared, VcpuShared};

pub(crate) const JUMPS: usize = 4096;

/// Where code at a virtual address starts in the code cache.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Jump {
    pub key: u64,
    pub op: P,
}

/// An odd key is no instruction's.
const NO_JUMP: Jump = Jump { key: 1, op: P::NULL };

const FETCHES: usize = 64;

/// A page that code is fetched from: where its memory and its decoded code are.
#[derive(Clone, Copy)]
pub(crate) struct Fetch {
    key: u64,
    pub host: *const u8,
    pub page: PageRef,
}

const NO_FETCH: Fetch = Fetch { key: 1, host: std::ptr::null(), page: PageRef::NONE };

#[repr(C)]
pub(crate) struct Cpu {
    /// What the architecture knows; all else here is how it is worked on.
    pub state: State,
    /// Virtual page of the block that runs.
    pub page: u64,
    /// Makes jump-cache keys of EL0's address spaces differ from EL1's and from each other.
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
    /// One bit for each of `jumps` that has been written to since the last flush.
    jumps_used: [u64; JUMPS / 64],
    /// One bit for each (hashed) page that has entries in `jumps`.
    jump_pages: [u64; 64],
    /// Each of these pages has its bit in `jump_pages` and goes with `jumps`.
    fetches: Box<[Fetch; FETCHES]>,
    pub code: CodeCache,
    /// The VM's memory as of the last run, so that translations take no lock.
    pub memory: Vec<Region>,
    pub vm: Arc<Shared>,
    pub me: Arc<VcpuShared>,
    pub index: u32,
    pub pa_bits: u32,
    pub timer_offset: u64,
    pub timer_mask: bool,
    /// Requests to others whose completion the next DSB waits for.
    pub broadcast: bool,
    pub waits: u32,
    pub debug: Debug,
    /// Of the instruction that software step let run last: whether it was an exclusive load.
    pub stepped: Option<bool>,
    pub jit: Option<Box<Jit>>,
    /// The address of the way into machine code.
    pub code_entry: u64,
    /// Whether the operation that machine code has called came to its end.
    pub resumed: bool,
}

impl Cpu {
    pub fn new(vm: Arc<Shared>, index: u32) -> Box<Self> {
        let me = vm.vcpus[index as usize].clone();
        let jit = vm.jit(index);
        let jumps = vec![NO_JUMP; JUMPS].into_boxed_slice();
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
            jumps: jumps.try_into().unwrap_or_else(|_| unreachable!("the length is right")),
            jumps_used: [0; JUMPS / 64],
            jump_pages: [0; 64],
            fetches: Box::new([NO_FETCH; FETCHES]),
            code: CodeCache::new(vm.vcpus.len()),
            memory: Vec::new(),
            vm,
            me,
            index,
            pa_bits: PA_BITS,
            timer_offset: 0,
            timer_mask: false,
            broadcast: false,
            waits: 0,
            debug: Debug::default(),
            stepped: None,
            code_entry: jit.as_ref().map_or(0, |jit| jit.entry()),
            jit,
            resumed: false,
        });
        cpu.regime();
        cpu
    }

    /// Instructions run so far.
    pub fn instructions(&self) -> u64 {
        self.granted.wrapping_add_signed(-self.fuel)
    }

    /// Runs until an exit.
    pub fn run(&mut self) -> Exit {
        self.me.enter();
        let exit = self.run_inner();
        self.me.leave();
        exit
    }

    fn run_inner(&mut self) -> Exit {
        self.update_timers();
        self.regime();
        if self.memory.is_empty() {
            self.memory = self.vm.memory();
        }
        loop {
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
            let Some(op) = self.find() else { continue };
            self.page = self.state.pc & !0xfff;
            if self.jit.is_some() {
                self.sample(op, self.fuel < 0);
            }
            self.refuel(FUEL);
            op::run(self, op);
        }
    }

    /// Sets how many instructions may run before the run loop looks around.
    fn refuel(&mut self, fuel: i64) {
        self.granted = self.granted.wrapping_add_signed(fuel - self.fuel);
        self.fuel = fuel;
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
        let (op, insn) = self.code.decode_one(self.state.pc, fetch.host);
        self.page = self.state.pc & !0xfff;
        // None is left after the instruction, so that no branch goes on by itself.
        self.refuel(0);
        op::run(self, op);
        // The operation is gone with the next one: nothing may remember it.
        self.patch = P::NULL;
        let unfinished = matches!(self.exit, Some(Exit::DataAbort(_) | Exit::Smc { .. }));
        if stepping && !unfinished {
            // An exception has cleared it, and nothing was stepped then. LDXR and its kind; CASP is beside them.
            let exclusive = insn & 0x3fc0_0000 == 0x0840_0000 && insn & 0x8020_0000 != 0x0020_0000;
            self.stepped = std::mem::take(&mut self.state.ss).then_some(exclusive);
        }
        true
    }

    /// The block at PC; `None` when fetching took an exception.
    fn find(&mut self) -> Option<P> {
        let mut patch = std::mem::replace(&mut self.patch, P::NULL);
        // An interrupt may have come between the branch and here.
        if !patch.is_null() && self.state.pc != self.page | patch.target() {
            patch = P::NULL;
        }
        if let Some(op) = self.jump_cache(self.state.pc)
            && patch.is_null()
        {
            return Some(op);
        }
        let pc = self.state.pc;
        let fetch = self.fetchable()?;
        let op = match self.code.get(fetch.page, pc) {
            Some(op) => op,
            None => self.code.decode(fetch.page, pc, fetch.host),
        };
        if !patch.is_null() && !jit::is_compiled(patch) {
            patch.set_chain(op);
        }
        let slot = Self::jump_slot(pc);
        self.jumps_used[slot / 64] |= 1 << (slot % 64);
        self.jumps[slot] = Jump { key: pc ^ self.key, op };
        Some(op)
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
        let number = (pc >> 12) as usize;
        let key = (pc & !0xfff) ^ self.key;
        let known = self.fetches[number % FETCHES];
        if known.key == key {
            return Some(known);
        }
        let t = match self.walk(pc, Access::Execute, self.state.el == 0) {
            Ok(t) => t,
            Err(fault) => {
                self.instruction_abort(pc, fault);
                return None;
            }
        };
        let Some(host) = self.host(t.pa & !0xfff, false) else {
            self.instruction_abort(pc, Fault::EXTERNAL);
            return None;
        };
        let fetch = Fetch { key, host, page: self.code.page(t.pa) };
        self.fetches[number % FETCHES] = fetch;
        self.jump_pages[(number & 4095) >> 6] |= 1 << (number & 63);
        Some(fetch)
    }

    /// The page at this address, if code was fetched there lately.
    pub fn fetched(&self, address: u64) -> Option<Fetch> {
        let known = self.fetches[(address >> 12) as usize % FETCHES];
        (known.key == (address & !0xfff) ^ self.key).then_some(known)
    }

    #[inline(always)]
    fn jump_slot(va: u64) -> usize {
        ((va >> 2) ^ (va >> 12)) as usize & (JUMPS - 1)
    }

    #[inline(always)]
    pub fn jump_cache(&self, va: u64) -> Option<P> {
        let e = &self.jumps[Self::jump_slot(va)];
        (e.key == va ^ self.key).then_some(e.op)
    }

    pub fn flush_jumps(&mut self) {
        for slot in set_bits(&self.jumps_used) {
            self.jumps[slot] = NO_JUMP;
        }
        self.jumps_used = [0; JUMPS / 64];
        self.jump_pages = [0; 64];
        self.fetches.fill(NO_FETCH);
        self.patch = P::NULL;
    }

    /// Forgets all decoded code.
    pub fn flush_code(&mut self) {
        self.code.clear();
        if let Some(jit) = &mut self.jit {
            jit.clear();
        }
        self.flush_jumps();
    }

    /// Forgets the decoded code of one physical page.
    pub fn flush_code_page(&mut self, pa: u64) {
        if let Some(page) = self.code.remove(pa) {
            if let Some(jit) = &mut self.jit {
                jit.forget(page);
            }
            self.flush_jumps();
        }
    }

    pub fn flush_tlb(&mut self) {
        self.tlbs[0].flush();
        self.tlbs[1].flush();
        self.flush_jumps();
    }

    pub fn flush_tlb_va(&mut self, va: u64) {
        self.tlbs[0].flush_va(va);
        self.tlbs[1].flush_va(va);
        let bit = (va >> 12) as usize & 4095;
        // A block mapping covers more pages than the one that is named.
        let around = &self.jump_pages[bit >> 9 << 3..(bit >> 9 << 3) + 8];
        if around.iter().any(|w| *w != 0) {
            self.flush_jumps();
        }
    }

    pub fn flush_tlb_asid(&mut self, asid: u64) {
        self.tlbs[0].flush_asid(asid);
        if self.tlbs[1].low {
            self.tlbs[1].flush();
        }
        self.flush_jumps();
    }

    /// Follows a change of TTBR0, TCR or ASID.
    pub fn address_space_changed(&mut self) {
        if self.tlbs[1].low {
            self.tlbs[1].flush();
            self.flush_jumps();
        }
        self.regime();
    }

    /// Recomputes what follows from the exception level, the ASID and the FP trap.
    pub fn regime(&mut self) {
        let asid = self.state.asid();
        self.utlb = self.tlbs[0].entries.as_ptr();
        self.utag = asid;
        if self.state.el == 0 {
            self.tlb = self.utlb;
            self.tag = asid;
            self.key = (asid + 1) << 48;
        } else {
            self.tlb = self.tlbs[1].entries.as_ptr();
            self.tag = EL1_TAG;
            self.key = 0;
        }
        let fpen = self.state.sys.cpacr >> 20 & 3;
        self.fp_trap = if self.state.el == 0 { fpen != 3 } else { fpen & 1 == 0 };
    }

    pub fn set_pan(&mut self, pan: bool) {
        if pan && !self.state.pan && self.tlbs[1].low {
            self.tlbs[1].flush();
        }
        self.state.pan = pan;
    }
}
