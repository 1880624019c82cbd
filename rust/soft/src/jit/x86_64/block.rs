//! From a block's instructions to machine code: control flow, ways out, and what goes to the interpreter.

use super::Features;
use super::asm::{Arith, Asm, Cc, Jump, R, RAX, RCX, RDI, RDX, RSI, Sh, X, at};
use super::cache::Cache;
use super::flags::{self, Kind, State};
use super::layout;
use super::sse;
use super::stubs::{Constant, Stubs};
use crate::Regs;
use crate::interp::block::End;
use crate::isa::insn::{Insn, Reg};
use crate::isa::simd::{self, Simd};
use crate::jit::{Code, Entries, Input, Link};

/// Code behind the block's straight way.
#[expect(clippy::large_enum_variant, reason = "there are few at a time, and boxes would cost more")]
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
    /// The interpreter goes on at this operation.
    Exit { from: Jump, cache: Cache, flags: State, op: usize },
    /// A branch that is taken.
    Taken { from: Jump, cache: Cache, flags: State, op: usize, to: i64 },
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
    input: &'a Input<'a>,
    entries: &'a Entries,
    asides: Vec<Aside>,
    links: Vec<Link>,
}

/// Makes the code of a block that begins at `origin` of the code memory.
pub(super) fn translate(
    input: &Input,
    origin: usize,
    stubs: &Stubs,
    entries: &Entries,
    features: Features,
) -> Code {
    let mut t = Translator {
        asm: Asm { buf: Vec::with_capacity(4096), origin },
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
        input,
        entries,
        asides: Vec::new(),
        links: Vec::new(),
    };
    let last = input.ops.len() - 1;
    for at in 0..=last {
        t.at = at;
        t.cache.unpin();
        if std::mem::take(&mut t.skip) {
            continue;
        }
        if Some(at) == input.check {
            t.fp_check();
        } else if at == last {
            t.end();
        } else {
            t.instruction(input.insns[at]);
        }
    }
    t.emit_asides();
    Code { bytes: t.asm.buf, links: t.links }
}

impl Translator<'_> {
    fn op_address(&self, op: usize) -> u64 {
        (&raw const self.input.ops[op]) as u64
    }

    /// Reads a guest register.
    pub fn read(&mut self, g: Reg) -> R {
        self.cache.read(&mut self.asm, g)
    }

    /// A register for the new value of `g`. Flags that depend on the old one have been seen to: `will_write`.
    pub fn write(&mut self, g: Reg) -> R {
        self.known[g as usize] = None;
        self.cache.write(&mut self.asm, g)
    }

    pub fn read_vector(&mut self, g: Reg) -> X {
        self.cache.read_vector(&mut self.asm, g)
    }

    /// A register for the new value of `g`: none that the instruction reads from.
    pub fn write_vector(&mut self, g: Reg) -> X {
        self.forget_vector(g);
        self.cache.write_vector(&mut self.asm, g)
    }

    /// Nothing is known of the new value of `g`.
    pub fn forget_vector(&mut self, g: Reg) {
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
    pub fn constant(&mut self, op: sse::Op, r: X, which: Constant) {
        let place = self.stubs.constant(which);
        self.asm.vector_at(op, r, place);
    }

    /// The next instruction of the block, if it is one of these and not the last.
    pub fn following(&self) -> Option<Simd> {
        let next = self.at + 1;
        if next + 1 < self.input.ops.len() { simd::decode(self.input.words[next]) } else { None }
    }

    /// Whether the next instruction has been done too.
    pub fn skip_following(&mut self, yes: bool) {
        self.skip = yes;
    }

    pub fn update(&mut self, g: Reg) -> R {
        self.known[g as usize] = None;
        self.cache.update(&mut self.asm, g)
    }

    fn store_all(&mut self) {
        self.cache.store(&mut self.asm);
        self.cache.clean();
        self.store_flags();
    }

    /// Leaves for the interpreter at this operation, from where nothing has been done of it.
    pub fn exit_when(&mut self, cc: Cc) {
        let from = self.asm.jcc(cc);
        self.asides.push(Aside::Exit { from, cache: self.cache, flags: self.flags, op: self.at });
    }

    fn fp_check(&mut self) {
        self.asm.cmp_byte(layout::FP_TRAP, 0);
        self.exit_when(Cc::NE);
    }

    /// The operation's own handler does it.
    pub fn call_handler(&mut self) {
        self.store_all();
        self.asm.mov_i(RSI, self.op_address(self.at));
        self.asm.call_to(self.stubs.call);
        self.cache = Cache::new();
        self.known = [None; 34];
        self.narrow = [0; 2];
        self.copies = [None; 32];
        self.flags = State::Memory;
    }

    /// A function of `fp` does it: registers and the instruction are all that it looks at.
    fn call_fp(&mut self, f: u64, insn: u32) {
        // Comparisons, selections and conversions read or write flags or general registers, as the handler knows.
        let scalar = insn >> 24 & 0x5f == 0x1e;
        let op = insn >> 10 & 0x3f;
        if scalar && insn >> 21 & 1 == 1 && (op & 1 == 1 || op == 0 || op == 8) {
            return self.call_handler();
        }
        // Conversions of fixed-point numbers, and copies of elements.
        let general = scalar && insn >> 21 & 1 == 0 || insn & 0x9fe0_8400 == 0x0e00_0400;
        let d = (insn & 31) as Reg;
        if general {
            self.will_write(d);
        }
        // Or a vector register, which the number does not tell.
        self.will_write_vector(d);
        self.forget_vector(d);
        self.cache.store(&mut self.asm);
        self.cache.clean();
        self.asm.lea(true, RDI, layout::REGS);
        self.asm.mov_i(RSI, u64::from(insn));
        self.asm.mov_i(RDX, f);
        self.asm.mov_i(RAX, self.entries.fp);
        self.asm.call(RAX);
        self.cache.after_call(general.then_some(d));
        if general {
            self.known[d as usize] = None;
        }
        self.host_flags = None;
    }

    fn instruction(&mut self, insn: Insn) {
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
            Insn::Vmem { store, size, t, address } => self.vector_memory(store, size, t, None, address),
            Insn::Vpair { store, size, t, u, address, .. } => {
                self.vector_memory(store, size, t, Some(u), address);
            }
            _ => {
                if !self.compute(insn) {
                    self.call_handler();
                }
            }
        }
    }

    /// False when the interpreter must do it.
    fn simd(&mut self, insn: Simd) -> bool {
        if let Some(d) = insn.written() {
            self.will_write_vector(d);
        }
        self.float(insn) || self.vector(insn)
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
        self.asides.push(Aside::Taken { from, cache: self.cache, flags: self.flags, op: self.at, to });
    }

    /// The last operation of the block.
    fn end(&mut self) {
        match (self.input.end, self.input.insns[self.at]) {
            (End::Fall, _) => {
                self.store_all();
                let to = i64::from(self.input.ops[self.at].c) | i64::from(self.input.ops[self.at].d) << 8;
                self.branch(self.at, to);
            }
            (End::FallFar, _) => {
                self.store_all();
                self.branch(self.at, 4096);
            }
            (End::Instruction, Insn::B { link, to }) => {
                if link {
                    self.link();
                }
                self.store_all();
                self.branch(self.at, to);
            }
            (End::Instruction, Insn::Indirect { link, n, .. }) => self.indirect(link, n),
            _ => {
                self.store_all();
                self.asm.mov_i(RSI, self.op_address(self.at));
                self.asm.jmp_to(self.stubs.exit);
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
        // Addresses with a tag are the interpreter's.
        self.asm.mov(true, RCX, RAX);
        self.asm.shift_i(Sh::Sar, true, RCX, 55);
        self.asm.arith_i(Arith::Add, false, RCX, 1);
        self.asm.arith_i(Arith::Cmp, false, RCX, 1);
        self.exit_when(Cc::A);
        if link {
            self.link();
        }
        self.cache.store(&mut self.asm);
        self.spend(self.at);
        self.asm.jmp_to(self.stubs.goto);
    }

    /// Takes the instructions up to an operation from the fuel; the sign flag says that none is left.
    fn spend(&mut self, op: usize) {
        self.asm.arith_mi(Arith::Sub, layout::FUEL, i32::from(self.input.ops[op].n));
    }

    /// A branch that is taken, all state being in memory.
    fn branch(&mut self, op: usize, to: i64) {
        if !(0..4096).contains(&to) {
            self.asm.load(3, false, true, RAX, layout::PAGE);
            self.asm.lea(true, RAX, at(RAX, to as i32));
            self.spend(op);
            return self.asm.jmp_to(self.stubs.goto);
        }
        self.spend(op);
        let empty = self.asm.jcc(Cc::S);
        let direct = self.asm.jmp();
        self.links.push(Link { at: self.asm.here() - 4, to: to as u16 });
        self.asm.land(direct);
        self.asm.mov_i(RSI, self.op_address(op));
        self.asm.jmp_to(self.stubs.chain);
        self.asm.land(empty);
        self.asm.mov_i(RAX, to as u64);
        self.asm.jmp_to(self.stubs.out);
    }

    /// What the machine code cannot do goes aside by these jumps; `before` is the state in which it does, `changed` the
    /// general registers that the instruction changes.
    pub fn slow(&mut self, from: [Option<Jump>; 3], before: Cache, changed: [u8; 3]) {
        let back = self.asm.here();
        let (flags, after, op) = (self.flags, self.cache, self.at);
        self.asides.push(Aside::Slow { from, back, before, flags, after, changed, op });
    }

    fn emit_asides(&mut self) {
        for aside in std::mem::take(&mut self.asides) {
            match aside {
                Aside::Slow { from, back, before, flags, after, changed, op } => {
                    for jump in from.into_iter().flatten() {
                        self.asm.land(jump);
                    }
                    before.store(&mut self.asm);
                    flags::store(&mut self.asm, &before, flags);
                    self.asm.mov_i(RSI, self.op_address(op));
                    self.asm.call_to(self.stubs.call);
                    after.reload(&mut self.asm, &before, &changed);
                    self.asm.jmp_to(back);
                }
                Aside::Exit { from, cache, flags, op } => {
                    self.asm.land(from);
                    cache.store(&mut self.asm);
                    flags::store(&mut self.asm, &cache, flags);
                    self.asm.mov_i(RSI, self.op_address(op));
                    self.asm.jmp_to(self.stubs.exit);
                }
                Aside::Taken { from, cache, flags, op, to } => {
                    self.asm.land(from);
                    cache.store(&mut self.asm);
                    flags::store(&mut self.asm, &cache, flags);
                    self.branch(op, to);
                }
            }
        }
    }
}

/// What stands for no register among those that an access changes.
pub(super) const NO_REG: u8 = Regs::SINK as u8;
