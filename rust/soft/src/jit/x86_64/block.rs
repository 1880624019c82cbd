//! From a block's instructions to machine code: control flow, ways out, and what goes to the interpreter.

use std::ops::RangeInclusive;

use super::Features;
use super::asm::{Arith, Asm, Cc, FUEL, Jump, R, RAX, RBX, RCX, RDI, RDX, RSI, X, at, indexed};
use super::cache::Cache;
use super::flags::{self, Kind, State};
use super::layout;
use super::sse;
use super::stubs::{Constant, Stubs};
use crate::Regs;
use crate::cpu::{IMPLIED, JUMPS};
use crate::interp::block::End;
use crate::interp::lower::system::DC_ZVA;
use crate::isa;
use crate::isa::insn::{Insn, Reg};
use crate::isa::simd::{self, Simd};
use crate::jit::{Code, Input, Link, flow};

/// Code behind the block's straight way.
enum Aside {
    /// An access that the TLB does not know, or a result that the host's may not be: the interpreter's operation does
    /// it, and the block goes on with what it has changed.
    Slow {
        from: [Option<Jump>; 3],
        back: usize,
        before: Cache,
        flags: State,
        after: Cache,
        changed: [u8; 3],
        op: usize,
    },
    /// Accesses of a run, of which one is unknown to the TLB or in another page: each asks the TLB by itself.
    Run {
        from: Jump,
        back: usize,
        before: Cache,
        flags: State,
        after: Cache,
        ops: RangeInclusive<usize>,
        host: R,
    },
    /// The interpreter goes on at this operation.
    Exit { from: Jump, cache: Cache, flags: State, op: usize },
}

/// A branch that is taken: code behind the block's straight way, too.
struct Taken {
    from: Jump,
    cache: Cache,
    flags: State,
    op: usize,
    to: i64,
}

/// Loads and stores by one base register, none of which is far from the others, and between them what does nothing but
/// compute with general registers: the TLB is asked once for all.
pub(super) struct Run {
    pub ops: RangeInclusive<usize>,
    /// Where the first byte is for the guest, from the base on; and for the host.
    pub low: i64,
    pub host: R,
    /// Where the ways part, and in which state.
    pub from: Jump,
    pub before: Cache,
    pub flags: State,
}

pub(super) struct Translator<'a> {
    pub asm: Asm,
    pub cache: Cache,
    pub flags: State,
    /// For which instruction the host's flags are those of the guest, and after what.
    pub host_flags: Option<(usize, Kind)>,
    /// Index of the operation at hand.
    pub at: usize,
    pub stubs: &'a Stubs,
    pub features: Features,
    /// What is known of registers' values.
    pub known: [Option<u64>; 34],
    /// Vector registers that have nothing above their lowest 32 and 64 bits, one bit each.
    pub narrow: [u32; 2],
    /// Of which vector register each is a copy.
    pub copies: [Option<Reg>; 32],
    /// FPCR has been looked at.
    pub modes_checked: bool,
    /// The next instruction has been done with the one before it.
    skip: bool,
    /// The run of accesses that the operation at hand is in.
    pub run: Option<Run>,
    /// Accesses are translated each by itself.
    apart: bool,
    /// The loop that the block is, if it branches to its own begin: where that is, and the state there.
    around: Option<(usize, Cache)>,
    /// Whether anybody may still look at the flags that there are before each operation, and behind the last.
    flags_live: Vec<bool>,
    pub input: &'a Input<'a>,
    asides: Vec<Aside>,
    taken: Vec<Taken>,
    links: Vec<Link>,
    #[cfg(test)]
    left: Vec<usize>,
}

/// Bytes that most instructions take, ways aside included.
const BYTES: usize = 128;

/// Makes the code of a block that begins at `origin` of the code memory.
pub(super) fn translate(input: &Input, origin: usize, stubs: &Stubs, features: Features) -> Code {
    let mut t = Translator {
        asm: Asm {
            buf: Vec::with_capacity(BYTES * (input.ops.len() + 4)),
            origin,
            uses: flow::Uses::new(input),
        },
        cache: Cache::new(),
        flags: State::Memory,
        host_flags: None,
        at: 0,
        stubs,
        features,
        known: [None; 34],
        narrow: [0; 2],
        copies: [None; 32],
        modes_checked: false,
        skip: false,
        run: None,
        apart: false,
        around: None,
        flags_live: flow::flags_live(input),
        input,
        asides: Vec::with_capacity(input.ops.len()),
        taken: Vec::new(),
        links: Vec::new(),
        #[cfg(test)]
        left: Vec::new(),
    };
    t.begin_loop();
    let last = input.ops.len() - 1;
    for at in 0..=last {
        (t.at, t.asm.uses.at) = (at, at);
        t.cache.unpin();
        if std::mem::take(&mut t.skip) {
            continue;
        }
        if Some(at) == input.check {
            t.fp_check();
        } else if at == last {
            t.end();
        } else if let Insn::B { link: false, .. } = input.insns[at] {
            // What it goes to comes next.
            t.keep_host_flags();
        } else {
            t.instruction(input.insns[at]);
        }
    }
    t.emit_asides();
    Code {
        bytes: t.asm.buf,
        links: t.links,
        #[cfg(test)]
        left: t.left,
    }
}

impl Translator<'_> {
    /// Whether the flags that the instruction at hand finds are looked at by it or later.
    pub(super) fn flags_needed(&self) -> bool {
        self.flags_live[self.at]
    }

    /// Whether those that it leaves are.
    pub(super) fn flags_needed_after(&self) -> bool {
        self.flags_live[self.at + 1]
    }

    fn op_address(&self, op: usize) -> u64 {
        (&raw const self.input.ops[op]) as u64
    }

    /// Reads a guest register.
    pub(super) fn read(&mut self, g: Reg) -> R {
        self.cache.read(&mut self.asm, g)
    }

    /// A register for the new value of `g`. Flags that depend on the old one have been seen to: `will_write`.
    pub(super) fn write(&mut self, g: Reg) -> R {
        self.known[g as usize] = None;
        self.cache.write(&mut self.asm, g)
    }

    pub(super) fn read_vector(&mut self, g: Reg) -> X {
        self.cache.read_vector(&mut self.asm, g)
    }

    /// A register for the new value of `g`: none that the instruction reads from.
    pub(super) fn write_vector(&mut self, g: Reg) -> X {
        self.forget_vector(g);
        self.cache.write_vector(&mut self.asm, g)
    }

    /// Nothing is known of the new value of `g`.
    pub(super) fn forget_vector(&mut self, g: Reg) {
        for narrow in &mut self.narrow {
            *narrow &= !(1 << g);
        }
        for (n, copy) in self.copies.iter_mut().enumerate() {
            if *copy == Some(g) || n == usize::from(g) {
                *copy = None;
            }
        }
    }

    /// An instruction with a constant as its second operand.
    pub(super) fn constant(&mut self, op: sse::Op, r: X, which: Constant) {
        let place = self.stubs.constant(which);
        self.asm.vector_at(op, r, place);
    }

    /// The next instruction of the block, if it is one of these and not the last.
    pub(super) fn following(&self) -> Option<Simd> {
        let next = self.at + 1;
        if next + 1 < self.input.ops.len() { simd::decode(self.input.words[next]) } else { None }
    }

    /// Whether the next instruction has been done too.
    pub(super) fn skip_following(&mut self, yes: bool) {
        self.skip = yes;
    }

    /// A register for what will be a vector register's value: see [`Cache::reserve_vector`].
    pub(super) fn reserve_vector(&mut self) -> X {
        self.cache.reserve_vector(&mut self.asm)
    }

    pub(super) fn update(&mut self, g: Reg) -> R {
        self.known[g as usize] = None;
        self.cache.update(&mut self.asm, g)
    }

    fn store_all(&mut self) {
        self.cache.store(&mut self.asm);
        self.cache.clean();
        self.store_flags();
    }

    /// Leaves for the interpreter at this operation, from where nothing has been done of it.
    pub(super) fn exit_when(&mut self, cc: Cc) {
        let from = self.asm.jcc(cc);
        self.asides.push(Aside::Exit { from, cache: self.cache, flags: self.flags, op: self.at });
    }

    /// Leaves where FP instructions trap.
    pub(super) fn fp_check(&mut self) {
        self.asm.cmp_byte(layout::FP_TRAP, 0);
        self.exit_when(Cc::NE);
    }

    /// The operation at hand is not translated.
    fn note_left(&mut self) {
        #[cfg(test)]
        self.left.push(self.at);
    }

    /// The operation's own handler does it.
    pub(super) fn call_handler(&mut self) {
        self.note_left();
        self.store_all();
        self.asm.mov_i(RSI, self.op_address(self.at));
        self.asm.call_to(self.stubs.ways.call);
        let writes = self.input.insns[self.at].writes(self.input.words[self.at]);
        self.cache.after_call(writes);
        for (g, known) in self.known.iter_mut().enumerate() {
            if writes.has(g as Reg) {
                *known = None;
            }
        }
        for g in (0..32).filter(|g| writes.has_vector(*g)) {
            self.forget_vector(g);
        }
        self.host_flags = None;
        if writes.flags {
            self.flags = State::Memory;
        }
    }

    /// A function of `fp` does it: registers and the instruction are all that it looks at.
    fn call_fp(&mut self, f: u64, insn: u32) {
        let (reads, writes) = (Insn::Simd.reads(insn), Insn::Simd.writes(insn));
        if reads.flags || writes.flags {
            return self.call_handler();
        }
        self.note_left();
        let general = (0..31).find(|g| writes.has(*g));
        if let Some(d) = general {
            self.will_write(d);
            self.known[d as usize] = None;
        }
        if let Some(d) = (0..32).find(|g| writes.has_vector(*g)) {
            self.will_write_vector(d);
            self.forget_vector(d);
        }
        self.cache.store(&mut self.asm);
        self.cache.clean();
        self.asm.lea(true, RDI, at(RBX, -layout::BIAS));
        self.asm.mov_i(RSI, u64::from(insn));
        self.asm.mov_i(RDX, f);
        self.asm.call_to(self.stubs.fp);
        self.cache.after_call(writes);
        self.host_flags = None;
    }

    fn instruction(&mut self, insn: Insn) {
        if self.run.is_none() && !self.apart {
            self.begin_run();
        }
        match insn {
            Insn::Simd => {
                let named = simd::decode(self.input.words[self.at]);
                if !named.is_some_and(|insn| self.simd(insn)) {
                    self.interpret();
                }
            }
            Insn::Bcond { cond, to } => {
                let cc = self.condition(cond);
                self.branch_when(cc, to);
            }
            Insn::Cbz { wide, nonzero, t, to } => {
                let r = self.read(t);
                self.asm.test(wide, r, r);
                self.branch_when(if nonzero { Cc::NE } else { Cc::E }, to);
            }
            Insn::Tbz { bit, nonzero, t, to } => {
                let r = self.read(t);
                let set = if bit < 32 {
                    self.asm.test_i(false, r, (1_u32 << bit) as i32);
                    Cc::NE
                } else {
                    self.asm.bt_i(true, r, bit);
                    Cc::B
                };
                self.branch_when(if nonzero { set } else { set.not() }, to);
            }
            Insn::Mem { access, t, address } => self.memory(access, t, address),
            Insn::Pair { access, t, u, address, .. } => self.pair(access, t, u, address),
            Insn::Structures { word, single } if self.features.sse42 => self.structures(word, single),
            Insn::Sys { t, op: DC_ZVA } => self.zero(t),
            Insn::Unprivileged { access, t, n, offset } => self.unprivileged(access, t, n, offset),
            Insn::Vmem { store, size, t, address } => self.vector_memory(store, size, t, None, address),
            Insn::Vpair { store, size, t, u, address, .. } => {
                self.vector_memory(store, size, t, Some(u), address);
            }
            Insn::LoadAcquire { access, t, n, offset, .. } => self.load_acquire(access, t, n, offset),
            Insn::StoreRelease { access, t, n, offset, .. } => self.store_release(access, t, n, offset),
            Insn::LoadExclusive { size, t, n, .. } => self.load_exclusive(size, t, n),
            Insn::StoreExclusive { size, s, t, n, .. } => self.store_exclusive(size, s, t, n),
            Insn::LoadExclusivePair { wide, t, u, n, .. } => self.load_exclusive_pair(wide, t, u, n),
            Insn::Cas { size, s, to, t, n, .. } => self.compare_and_swap(size, s, to, t, n),
            Insn::Rmw { op, size, s, t, n, .. } => self.read_modify_write(op, size, s, t, n),
            Insn::Clrex { .. } => self.clear_exclusive(),
            _ => {
                let done = match insn {
                    Insn::StoreExclusivePair { wide, s, t, u, n, .. } => {
                        self.store_exclusive_pair(wide, s, [t, u], n)
                    }
                    Insn::Casp { wide, s, t, n, .. } => self.compare_and_swap_pair(wide, s, t, n),
                    Insn::Barrier { kind, option } => self.barrier(kind, option),
                    Insn::Mrs { t, register } => self.mrs(t, register),
                    Insn::Msr { t, register } => self.msr(t, register),
                    Insn::MsrImm { field, imm } => self.msr_imm(field, imm),
                    _ => self.compute(insn),
                };
                if !done {
                    self.call_handler();
                }
            }
        }
    }

    /// False when the interpreter must do it.
    fn simd(&mut self, insn: Simd) -> bool {
        let writes = insn.writes();
        for d in (0..32).filter(|d| writes.has_vector(*d)) {
            self.will_write_vector(d);
        }
        self.float(insn) || self.floats(insn) || self.vector(insn)
    }

    /// The interpreter's function does it.
    fn interpret(&mut self) {
        match self.input.fp_handler(self.at) {
            Some(f) => self.call_fp(f, self.input.words[self.at]),
            None => self.call_handler(),
        }
    }

    fn branch_when(&mut self, cc: Cc, to: i64) {
        let from = self.asm.jcc(cc);
        self.taken.push(Taken { from, cache: self.cache, flags: self.flags, op: self.at, to });
    }

    /// The last operation of the block.
    fn end(&mut self) {
        match (self.input.end, self.input.insns[self.at]) {
            (End::Fall, _) => {
                let to = self.input.falls_to();
                if self.input.goes_around(to) {
                    let (cache, flags) = (self.cache, self.flags);
                    return self.go_around(self.at, &cache, flags);
                }
                self.leave(to);
            }
            (End::FallFar, _) => self.leave(4096),
            (End::Instruction, Insn::B { link, to }) => {
                if !link && self.input.goes_around(to) {
                    let (cache, flags) = (self.cache, self.flags);
                    return self.go_around(self.at, &cache, flags);
                }
                if link {
                    self.link();
                }
                self.leave(to);
            }
            (End::Instruction, Insn::Indirect { link, n, .. }) => self.indirect(link, n),
            (End::Instruction, insn) if self.lets_in(insn) => self.go_on(),
            _ => {
                self.note_left();
                self.store_all();
                self.asm.mov_i(RSI, self.op_address(self.at));
                self.asm.jmp_to(self.stubs.ways.exit);
            }
        }
    }

    /// The return address to register 30.
    fn link(&mut self) {
        self.will_write(30);
        let r = self.write(30);
        self.asm.load(3, false, true, r, layout::PAGE);
        self.asm.lea(true, r, at(r, i32::from(self.input.ops[self.at].off) + 4));
    }

    fn indirect(&mut self, link: bool, n: Reg) {
        self.store_flags();
        let r = self.read(n);
        self.asm.mov(true, RAX, r);
        if link {
            self.link();
        }
        self.cache.store(&mut self.asm);
        self.spend(self.at);
        self.goto();
    }

    /// On at the address in RAX, all state being in memory; the sign flag says that there is no fuel left. The code is
    /// here and not shared, so that the host's predictor knows each branch by itself.
    fn goto(&mut self) {
        let unknown = self.stubs.ways.unknown;
        let a = &mut self.asm;
        a.jcc_to(Cc::S, unknown);
        // Four times the slot (see `Cpu::jump_slot`).
        a.shifted_right(self.features.bmi2, RCX, RAX, 10);
        a.arith(Arith::Xor, false, RCX, RAX);
        a.arith_i(Arith::And, false, RCX, 4 * (JUMPS as i32 - 1));
        a.load(3, false, true, RDX, layout::JUMPS);
        // No register holds anything of the guest's.
        a.mov(true, RSI, RAX);
        a.arith_i(Arith::And, true, RSI, !(IMPLIED as i32));
        a.load(3, false, true, RDI, layout::KEY);
        a.arith(Arith::Or, true, RDI, RSI);
        a.arith_m(Arith::Cmp, true, RDI, indexed(RDX, RCX, 2, layout::JUMP_KEY));
        a.jcc_to(Cc::NE, self.stubs.beside);
        // What is in a slot is aligned: this is the page.
        a.store(3, layout::PAGE, RSI);
        a.jmp_m(indexed(RDX, RCX, 2, layout::JUMP_CODE));
    }

    /// Where the block is a loop, brings what it reads to registers before it.
    fn begin_loop(&mut self) {
        if let Some(registers) = flow::around(self.input) {
            self.asm.uses.around = true;
            self.cache.enter_loop(&mut self.asm, &registers);
            self.around = Some((self.asm.here(), self.cache));
        }
    }

    /// Back to the begin of the block from this state. Nothing of it is in memory.
    fn go_around(&mut self, op: usize, cache: &Cache, flags: State) {
        let Some((begin, at_begin)) = self.around else {
            unreachable!("a block that branches to its begin is known to be a loop")
        };
        if self.flags_live[0] {
            flags::store(&mut self.asm, cache, flags);
        }
        self.spend(op);
        let empty = self.asm.jcc(Cc::S);
        cache.loop_back(&mut self.asm, &at_begin);
        self.asm.jmp_to(begin);
        self.asm.land(empty);
        if !self.flags_live[0] {
            flags::store(&mut self.asm, cache, flags);
        }
        cache.store(&mut self.asm);
        self.asm.mov_i(RAX, u64::from(self.input.ops[0].off));
        self.asm.jmp_to(self.stubs.ways.out);
    }

    /// Takes the instructions up to an operation from the fuel; the sign flag says that none is left.
    fn spend(&mut self, op: usize) {
        self.asm.arith_i(Arith::Sub, true, FUEL, i32::from(self.input.ops[op].n));
    }

    /// The end of the block, which goes on there.
    fn leave(&mut self, to: i64) {
        let (cache, flags) = (self.cache, self.flags);
        self.branch(self.at, to, &cache, flags);
    }

    /// On behind the last instruction, whose operation is no branch that could be chained.
    fn go_on(&mut self) {
        let to = i64::from(self.input.ops[self.at].off) + 4;
        self.cache.store(&mut self.asm);
        self.store_flags();
        self.spend(self.at);
        let mut ways = None;
        if to < 4096 {
            let empty = self.asm.jcc(Cc::S);
            let direct = self.asm.jmp();
            self.links.push(Link { at: self.asm.here() - 4, to: to as u16 });
            self.asm.land(direct);
            ways = Some(empty);
        }
        self.asm.load(3, false, true, RAX, layout::PAGE);
        self.asm.lea(true, RAX, at(RAX, to as i32));
        self.goto();
        if let Some(empty) = ways {
            self.asm.land(empty);
            self.asm.mov_i(RAX, to as u64);
            self.asm.jmp_to(self.stubs.ways.out);
        }
    }

    /// Whether flags are nobody's at an offset of the page: the instructions there do nothing but compute and give new
    /// ones.
    fn sets_flags(&self, to: i64) -> bool {
        // Words that are looked at.
        const MOST: u16 = 8;
        let Ok(to) = u16::try_from(to) else { return false };
        for off in (to..4096).step_by(4).take(MOST.into()) {
            let word = (self.input.word_at)(off);
            let insn = isa::decode(word, off);
            // Those that may trap, for FP is disabled, leave with the flags that they find.
            let traps = word >> 25 & 7 == 7;
            if traps || !insn.is_plain(word) || insn.reads(word).flags {
                return false;
            }
            if insn.writes(word).flags {
                return true;
            }
        }
        false
    }

    /// A branch that is taken from this state.
    fn branch(&mut self, op: usize, to: i64, cache: &Cache, flags: State) {
        cache.store(&mut self.asm);
        // Where the block there asks for none they are stored only for the ways to elsewhere.
        let late = flags.is_nowhere() && self.sets_flags(to);
        if !late {
            flags::store(&mut self.asm, cache, flags);
        }
        if !(0..4096).contains(&to) {
            self.asm.load(3, false, true, RAX, layout::PAGE);
            self.asm.lea(true, RAX, at(RAX, to as i32));
            self.spend(op);
            return self.goto();
        }
        self.spend(op);
        let empty = self.asm.jcc(Cc::S);
        let direct = self.asm.jmp();
        self.links.push(Link { at: self.asm.here() - 4, to: to as u16 });
        self.asm.land(direct);
        if late {
            flags::store(&mut self.asm, cache, flags);
        }
        self.asm.mov_i(RSI, self.op_address(op));
        self.asm.jmp_to(self.stubs.ways.chain);
        self.asm.land(empty);
        if late {
            flags::store(&mut self.asm, cache, flags);
        }
        self.asm.mov_i(RAX, to as u64);
        self.asm.jmp_to(self.stubs.ways.out);
    }

    /// What the machine code cannot do goes aside by these jumps; `before` is the state in which it does, `changed` the
    /// general registers that the instruction changes.
    pub(super) fn slow(&mut self, from: [Option<Jump>; 3], before: Cache, changed: [u8; 3]) {
        let back = self.asm.here();
        let (flags, after, op) = (self.flags, self.cache, self.at);
        self.asides.push(Aside::Slow { from, back, before, flags, after, changed, op });
    }

    /// The run that the operation at hand is the last of is done: the ways part at `from` in the state `before`.
    pub(super) fn slow_run(&mut self, run: Run) {
        let (back, after) = (self.asm.here(), self.cache);
        let Run { from, before, flags, ops, host, .. } = run;
        self.asides.push(Aside::Run { from, back, before, flags, after, ops, host });
    }

    /// What a run does, each access by itself, from the state in which it begins.
    fn do_apart(&mut self, ops: RangeInclusive<usize>, before: Cache, flags: State, host: R) {
        self.cache = before;
        self.cache.give_back(host);
        // What changes a register that they depend on would store them, once here and once on the straight way.
        self.flags = flags::store(&mut self.asm, &self.cache, flags);
        self.host_flags = None;
        self.known = [None; 34];
        self.narrow = [0; 2];
        self.copies = [None; 32];
        self.apart = true;
        for op in ops {
            (self.at, self.asm.uses.at) = (op, op);
            self.cache.unpin();
            self.instruction(self.input.insns[op]);
        }
        self.apart = false;
        self.cache.store(&mut self.asm);
    }

    fn emit_asides(&mut self) {
        // What is taken often comes first.
        for Taken { from, cache, flags, op, to } in std::mem::take(&mut self.taken) {
            self.asm.land(from);
            if self.input.goes_around(to) {
                self.go_around(op, &cache, flags);
            } else {
                self.branch(op, to, &cache, flags);
            }
        }
        // Runs that are done apart have ways aside of their own.
        while !self.asides.is_empty() {
            self.emit_some();
        }
        debug_assert!(self.taken.is_empty(), "what is done aside does not branch");
    }

    fn emit_some(&mut self) {
        for aside in std::mem::take(&mut self.asides) {
            match aside {
                Aside::Slow { from, back, before, flags, after, changed, op } => {
                    for jump in from.into_iter().flatten() {
                        self.asm.land(jump);
                    }
                    before.store(&mut self.asm);
                    flags::store(&mut self.asm, &before, flags);
                    self.asm.mov_i(RSI, self.op_address(op));
                    self.asm.call_to(self.stubs.ways.call);
                    after.reload(&mut self.asm, &before, &changed);
                    self.asm.jmp_to(back);
                }
                Aside::Run { from, back, before, flags, after, ops, host } => {
                    self.asm.land(from);
                    self.do_apart(ops, before, flags, host);
                    after.reload_all(&mut self.asm);
                    self.asm.jmp_to(back);
                }
                Aside::Exit { from, cache, flags, op } => {
                    self.asm.land(from);
                    cache.store(&mut self.asm);
                    flags::store(&mut self.asm, &cache, flags);
                    self.asm.mov_i(RSI, self.op_address(op));
                    self.asm.jmp_to(self.stubs.ways.exit);
                }
            }
        }
    }
}

/// What stands for no register among those that an access changes.
pub(super) const NO_REG: u8 = Regs::SINK as u8;
