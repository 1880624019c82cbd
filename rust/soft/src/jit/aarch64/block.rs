//! From a block's instructions to machine code: control flow, ways out, and what goes to the interpreter.

use super::asm::{Asm, Jump, R, V, ZR};
use super::cache::Cache;
use super::stubs::Stubs;
use super::{ADDEND, ADDRESS, CPU, Features, JUMP, OTHER, TEMP, layout};
use crate::Regs;
use crate::cpu::JUMPS;
use crate::interp::block::End;
use crate::interp::lower::system::DC_ZVA;
use crate::isa::insn::{Insn, Reg};
use crate::jit::{Code, Input, Link, flow};

/// Where the flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    /// In memory, in whatever form.
    Memory,
    /// There, and in the host's.
    Both,
    /// In the host's alone.
    Host,
}

/// What is where at one place of a block.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub cache: Cache,
    pub flags: Flags,
    /// The host's FPSR has what the guest's would have got since the block began to use it.
    pub fpsr: bool,
}

impl State {
    /// Brings all to memory; the state stays. Uses `ADDRESS` and `TEMP`.
    fn store(&self, asm: &mut Asm) {
        self.cache.store(asm);
        if self.flags == Flags::Host {
            asm.read_nzcv(TEMP);
            asm.store(2, TEMP, CPU, layout::NZCV);
            asm.store(0, ZR, CPU, layout::FLAGS);
        }
        if self.fpsr {
            asm.read_fpsr(TEMP);
            asm.load(2, ADDRESS, CPU, layout::FPSR);
            asm.orr(TEMP, TEMP, ADDRESS);
            asm.store(2, TEMP, CPU, layout::FPSR);
        }
    }
}

/// Code behind the block's straight way.
#[expect(clippy::large_enum_variant, reason = "there are few at a time, and boxes would cost more")]
enum Aside {
    /// An access that the TLB does not know: the interpreter's operation does it, and the block goes on with what it
    /// has changed.
    Slow { from: [Option<Jump>; 3], back: usize, before: State, after: State, changed: [u8; 3], op: usize },
    /// The interpreter goes on at this operation.
    Exit { from: Jump, state: State, op: usize },
    /// A branch that is taken.
    Taken { from: Jump, state: State, op: usize, to: i64 },
}

pub(super) struct Translator<'a> {
    pub asm: Asm,
    pub state: State,
    /// Index of the operation at hand.
    pub at: usize,
    pub stubs: &'a Stubs,
    pub features: Features,
    pub input: &'a Input<'a>,
    /// FPCR has been looked at.
    pub modes_checked: bool,
    /// The loop that the block is, if it branches to its own begin: where that is, and the state there.
    around: Option<(usize, State)>,
    /// Whether anybody may still look at the flags that there are before each operation, and behind the last.
    flags_live: Vec<bool>,
    asides: Vec<Aside>,
    links: Vec<Link>,
    #[cfg(test)]
    left: Vec<usize>,
}

/// Makes the code of a block that begins at `origin` of the code memory.
pub(super) fn translate(input: &Input, origin: usize, stubs: &Stubs, features: Features) -> Code {
    let mut t = Translator {
        asm: Asm { buf: Vec::with_capacity(4096), origin },
        state: State { cache: Cache::new(), flags: Flags::Memory, fpsr: false },
        at: 0,
        stubs,
        features,
        input,
        modes_checked: false,
        around: None,
        flags_live: flow::flags_live(input),
        asides: Vec::new(),
        links: Vec::new(),
        #[cfg(test)]
        left: Vec::new(),
    };
    t.begin_loop();
    let last = input.ops.len() - 1;
    for at in 0..=last {
        t.at = at;
        t.state.cache.unpin();
        if Some(at) == input.check {
            t.fp_check();
        } else if at == last {
            t.end();
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
    pub(super) fn word(&self) -> u32 {
        self.input.words[self.at]
    }

    fn op_address(&self, op: usize) -> u64 {
        (&raw const self.input.ops[op]) as u64
    }

    /// Reads a guest register.
    pub(super) fn read(&mut self, g: Reg) -> R {
        if g as usize > Regs::SP { ZR } else { self.state.cache.read(&mut self.asm, g) }
    }

    /// A register for the new value of `g`. It may be one that the instruction at hand reads from.
    pub(super) fn write(&mut self, g: Reg) -> R {
        self.state.cache.unpin();
        if g as usize > Regs::SP { ZR } else { self.state.cache.write(&mut self.asm, g) }
    }

    /// The register of `g`, which the instruction reads and writes.
    pub(super) fn update(&mut self, g: Reg) -> R {
        if g as usize > Regs::SP { ZR } else { self.state.cache.update(&mut self.asm, g) }
    }

    pub(super) fn read_vector(&mut self, g: Reg) -> V {
        self.state.cache.read_vector(&mut self.asm, g)
    }

    pub(super) fn write_vector(&mut self, g: Reg) -> V {
        self.state.cache.write_vector(&mut self.asm, g)
    }

    /// Brings the flags to the host's.
    pub(super) fn need_flags(&mut self) {
        if self.state.flags == Flags::Memory {
            self.asm.bl_to(self.stubs.ways.flags);
            self.state.flags = Flags::Both;
        }
    }

    /// The instruction at hand has changed the host's flags, and those are the guest's.
    pub(super) fn set_flags(&mut self) {
        self.state.flags = if self.flags_live[self.at + 1] { Flags::Host } else { Flags::Memory };
    }

    fn store_all(&mut self) {
        self.state.store(&mut self.asm);
        self.state.cache.clean();
        if self.state.flags == Flags::Host {
            self.state.flags = Flags::Both;
        }
        self.state.fpsr = false;
    }

    /// Leaves by this jump for the interpreter at this operation, from where nothing has been done of it.
    pub(super) fn exit_by(&mut self, from: Jump) {
        self.asides.push(Aside::Exit { from, state: self.state, op: self.at });
    }

    /// Leaves where FP instructions trap.
    pub(super) fn fp_check(&mut self) {
        self.asm.load(0, TEMP, CPU, layout::FP_TRAP);
        let trapped = self.asm.cbz(false, true, TEMP);
        self.exit_by(trapped);
    }

    /// The host's FPSR begins to be the guest's. Leaves unless FPCR is as the host's; it changes at the ends of blocks
    /// only.
    pub(super) fn begin_fpsr(&mut self) {
        if !std::mem::replace(&mut self.modes_checked, true) {
            self.asm.load(2, TEMP, CPU, layout::FPCR);
            let other = self.asm.cbz(false, true, TEMP);
            self.exit_by(other);
        }
        if !std::mem::replace(&mut self.state.fpsr, true) {
            self.asm.write_fpsr(ZR);
        }
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
        self.asm.mov_i(ADDRESS, self.op_address(self.at));
        self.asm.bl_to(self.stubs.ways.call);
        let writes = self.input.insns[self.at].writes(self.word());
        self.state.cache.after_call(writes);
        self.state.flags = Flags::Memory;
    }

    /// A function of `fp` does it: registers and the instruction are all that it looks at.
    pub(super) fn call_fp(&mut self, f: u64) {
        let word = self.word();
        let (reads, writes) = (Insn::Simd.reads(word), Insn::Simd.writes(word));
        if reads.flags || writes.flags {
            return self.call_handler();
        }
        self.note_left();
        self.store_all();
        self.asm.mov_i(ADDEND, f);
        self.asm.mov_i(TEMP, word.into());
        self.asm.bl_to(self.stubs.fp);
        self.state.cache.after_call(writes);
        self.state.flags = Flags::Memory;
    }

    fn instruction(&mut self, insn: Insn) {
        match insn {
            Insn::Bcond { cond, to } => {
                self.need_flags();
                let from = self.asm.b_cond(cond);
                self.taken(from, to);
            }
            Insn::Cbz { wide, nonzero, t, to } => {
                let r = self.read(t);
                let from = self.asm.cbz(wide, nonzero, r);
                self.taken(from, to);
            }
            Insn::Tbz { bit, nonzero, t, to } => {
                let r = self.read(t);
                // TBZ does not reach as far as this may have to.
                self.asm.ubfx(TEMP, r, bit, 1);
                let from = self.asm.cbz(false, nonzero, TEMP);
                self.taken(from, to);
            }
            _ => {
                let done = match insn {
                    Insn::Mem { access, t, address } => self.memory(access, t, address),
                    Insn::Pair { access, t, u, address, .. } => self.pair(access, t, u, address),
                    Insn::Vmem { store, size, t, address } => {
                        self.vector_memory(store, size, t, None, address)
                    }
                    Insn::Vpair { store, size, t, u, address, .. } => {
                        self.vector_memory(store, size, t, Some(u), address)
                    }
                    Insn::Structures { word, single } => self.structures(word, single),
                    Insn::LoadAcquire { access, t, n, offset, .. } => self.load_acquire(access, t, n, offset),
                    Insn::StoreRelease { access, t, n, offset, .. } => {
                        self.store_release(access, t, n, offset)
                    }
                    Insn::Unprivileged { access, t, n, offset } => self.unprivileged(access, t, n, offset),
                    Insn::LoadExclusive { size, acquire, t, n } => self.load_exclusive(size, acquire, t, n),
                    Insn::StoreExclusive { size, release, s, t, n } => {
                        self.store_exclusive(size, release, s, t, n)
                    }
                    Insn::LoadExclusivePair { wide, acquire, t, u, n } => {
                        self.load_exclusive_pair(wide, acquire, t, u, n)
                    }
                    Insn::StoreExclusivePair { wide, s, t, u, n, .. } => {
                        self.store_exclusive_pair(wide, s, [t, u], n)
                    }
                    Insn::Casp { wide, s, t, n, .. } => self.compare_and_swap_pair(wide, s, t, n),
                    Insn::Sys { t, op: DC_ZVA } => self.zero(t),
                    Insn::Cas { size, s, to, t, n, .. } => self.compare_and_swap(size, s, to, t, n),
                    Insn::Rmw { size, s, t, n, .. } => self.read_modify_write(size, s, t, n),
                    Insn::Barrier { kind, option } => self.barrier(kind, option),
                    Insn::Mrs { t, register } => self.mrs(t, register),
                    Insn::Msr { t, register } => self.msr(t, register),
                    Insn::MsrImm { field, imm } => self.msr_imm(field, imm),
                    Insn::Clrex { .. } => self.clear_exclusive(),
                    Insn::Simd => return self.simd(),
                    _ => self.compute(insn),
                };
                if !done {
                    self.call_handler();
                }
            }
        }
    }

    fn taken(&mut self, from: Jump, to: i64) {
        self.asides.push(Aside::Taken { from, state: self.state, op: self.at, to });
    }

    /// The last operation of the block.
    fn end(&mut self) {
        match (self.input.end, self.input.insns[self.at]) {
            (End::Fall, _) => {
                self.store_all();
                let op = &self.input.ops[self.at];
                self.branch(self.at, i64::from(op.c) | i64::from(op.d) << 8);
            }
            (End::FallFar, _) => {
                self.store_all();
                self.branch(self.at, 4096);
            }
            (End::Instruction, Insn::B { link, to }) => {
                if !link && self.input.goes_around(to) {
                    let state = self.state;
                    return self.go_around(self.at, &state);
                }
                if link {
                    self.link();
                }
                self.store_all();
                self.branch(self.at, to);
            }
            (End::Instruction, Insn::Indirect { link, n, .. }) => self.indirect(link, n),
            _ => {
                self.note_left();
                self.store_all();
                self.asm.mov_i(ADDRESS, self.op_address(self.at));
                self.asm.b_to(self.stubs.ways.exit);
            }
        }
    }

    /// The return address to register 30.
    fn link(&mut self) {
        let r = self.write(30);
        self.asm.load(3, r, CPU, layout::PAGE);
        self.asm.add_i(r, r, i64::from(self.input.ops[self.at].off) + 4);
    }

    fn indirect(&mut self, link: bool, n: Reg) {
        let r = self.read(n);
        self.asm.mov(OTHER, r);
        if link {
            self.link();
        }
        self.store_all();
        self.asm.mov(ADDRESS, OTHER);
        self.spend(self.at);
        self.goto();
    }

    /// On at the address in `ADDRESS`, all state being in memory; `TEMP` is negative when there is no fuel left. The
    /// code is here and not shared, so that the host's predictor knows each branch by itself.
    fn goto(&mut self) {
        let a = &mut self.asm;
        let tired = a.tbz(63, true, TEMP);
        // The slot (see `Cpu::jump_slot`).
        a.lsr_i(TEMP, ADDRESS, 2);
        a.eor_lsr(TEMP, TEMP, ADDRESS, 12);
        a.low_bits(TEMP, TEMP, JUMPS.ilog2() as u8);
        a.load(3, JUMP, CPU, layout::JUMPS);
        a.add(JUMP, JUMP, TEMP, 4);
        a.load(3, ADDEND, JUMP, layout::JUMP_KEY);
        a.load(3, OTHER, CPU, layout::KEY);
        a.eor(ADDEND, ADDEND, OTHER);
        a.without_implied(OTHER, ADDRESS);
        a.eor(ADDEND, ADDEND, OTHER);
        let other = a.cbz(true, true, ADDEND);
        a.store(3, OTHER, CPU, layout::PAGE);
        a.load(3, ADDEND, JUMP, layout::JUMP_CODE);
        a.br(ADDEND);
        a.land(tired);
        a.land(other);
        a.b_to(self.stubs.ways.unknown);
    }

    /// Where the block is a loop, brings what it reads to registers before it.
    fn begin_loop(&mut self) {
        if let Some(registers) = flow::around(self.input) {
            self.state.cache.enter_loop(&mut self.asm, &registers);
            self.around = Some((self.asm.here(), self.state));
        }
    }

    /// Back to the begin of the block from this state. Nothing of it is in memory.
    fn go_around(&mut self, op: usize, state: &State) {
        let Some((begin, at_begin)) = self.around else {
            unreachable!("a block that branches to its begin is known to be a loop")
        };
        self.spend(op);
        let empty = self.asm.tbz(63, true, TEMP);
        let mut rest = *state;
        rest.cache = Cache::new();
        if !self.flags_live[0] {
            rest.flags = Flags::Memory;
        }
        rest.store(&mut self.asm);
        state.cache.loop_back(&mut self.asm, &at_begin.cache);
        self.asm.b_to(begin);
        self.asm.land(empty);
        state.store(&mut self.asm);
        self.asm.mov_i(ADDRESS, self.input.ops[0].off.into());
        self.asm.b_to(self.stubs.ways.out);
    }

    /// Takes the instructions up to an operation from the fuel; what is left is in `TEMP`.
    fn spend(&mut self, op: usize) {
        self.asm.load(3, TEMP, CPU, layout::FUEL);
        self.asm.add_i(TEMP, TEMP, -i64::from(self.input.ops[op].n));
        self.asm.store(3, TEMP, CPU, layout::FUEL);
    }

    /// A branch that is taken, all state being in memory.
    fn branch(&mut self, op: usize, to: i64) {
        if !(0..4096).contains(&to) {
            self.asm.load(3, ADDRESS, CPU, layout::PAGE);
            self.asm.add_i(ADDRESS, ADDRESS, to);
            self.spend(op);
            return self.goto();
        }
        self.spend(op);
        let empty = self.asm.tbz(63, true, TEMP);
        self.links.push(Link { at: self.asm.here(), to: to as u16 });
        let direct = self.asm.b();
        self.asm.land(direct);
        self.asm.mov_i(ADDRESS, self.op_address(op));
        self.asm.b_to(self.stubs.ways.chain);
        self.asm.land(empty);
        self.asm.mov_i(ADDRESS, to as u64);
        self.asm.b_to(self.stubs.ways.out);
    }

    /// What the machine code cannot do goes aside by these jumps; `before` is the state in which it does, `changed` the
    /// general registers that the instruction changes.
    pub(super) fn slow(&mut self, from: [Option<Jump>; 3], before: State, changed: [u8; 3]) {
        let back = self.asm.here();
        self.asides.push(Aside::Slow { from, back, before, after: self.state, changed, op: self.at });
    }

    fn emit_asides(&mut self) {
        for aside in std::mem::take(&mut self.asides) {
            match aside {
                Aside::Slow { from, back, before, after, changed, op } => {
                    for jump in from.into_iter().flatten() {
                        self.asm.land(jump);
                    }
                    before.store(&mut self.asm);
                    self.asm.mov_i(ADDRESS, self.op_address(op));
                    self.asm.bl_to(self.stubs.ways.call);
                    after.cache.reload(&mut self.asm, &before.cache, &changed);
                    if after.flags != Flags::Memory {
                        self.asm.bl_to(self.stubs.ways.flags);
                    }
                    if after.fpsr {
                        self.asm.write_fpsr(ZR);
                    }
                    self.asm.b_to(back);
                }
                Aside::Exit { from, state, op } => {
                    self.asm.land(from);
                    state.store(&mut self.asm);
                    self.asm.mov_i(ADDRESS, self.op_address(op));
                    self.asm.b_to(self.stubs.ways.exit);
                }
                Aside::Taken { from, state, op, to } => {
                    self.asm.land(from);
                    if self.input.goes_around(to) {
                        self.go_around(op, &state);
                        continue;
                    }
                    state.store(&mut self.asm);
                    self.branch(op, to);
                }
            }
        }
    }
}

/// What stands for no register among those that an access changes.
pub(super) const NO_REG: u8 = Regs::SINK as u8;
