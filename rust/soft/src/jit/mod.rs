//! Machine code for blocks that run often, beside the interpreter.
//!
//! A block's machine code is one more handler of its first operation ([`enter`]), and keeps the interpreter's contract:
//! at every way out all registers are in memory, and the interpreter goes on at the operation that could not be done.
//! So whatever is not translated is simply interpreted, exceptions are precise, and code that the guest has changed
//! goes as decoded operations do (see [`Jit::forget`]). Nothing of this is in a snapshot.
//!
//! What a block does is read from guest memory anew when it is translated ([`crate::isa`]); its operations are decoded
//! again with it, each by itself, for the ways out.

#![cfg_attr(
    not(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux")),
    allow(dead_code, reason = "elsewhere nothing is translated")
)]

/// On other hosts for its tests alone.
#[cfg(any(target_arch = "aarch64", test))]
#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "other hosts cannot run what it makes"))]
mod aarch64;
mod cache;
mod flow;
mod layout;
#[cfg(all(test, target_arch = "x86_64"))]
mod left;
pub(crate) mod memory;
mod registers;
#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux"))]
mod turns;
mod ways;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::collections::HashMap;

use crate::cpu::Cpu;
use crate::fp;
use crate::interp::block::{Block, End};
use crate::interp::handlers::branch::untag;
use crate::interp::op::{Handler, Op, P};
use crate::isa::{self, insn::Insn};
use memory::Share;
use ways::Ways;

/// What one sample of the run loop weighs, and one entry from other machine code; and what makes a block worth
/// translating.
const SAMPLE: u8 = 64;
const ENTRY: u8 = 2;
const HOT: u8 = SAMPLE;
/// Instructions that a vCPU runs before anything is translated: what a restored guest answers with runs once.
const WARM: u64 = 4_000_000;
/// Room that the code of one block may need.
const BLOCK_BYTES: usize = 64 << 10;
/// Counters of heat: blocks share them by their addresses, which makes some warm early.
const HEATS: usize = 1 << 16;

/// Which code is translated to the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// None: the interpreter does everything.
    Off,
    /// What runs often.
    Hot,
    /// All, for tests.
    Always,
}

impl Translation {
    /// What `SUPERMACHINE_JIT` says: `0` for none, `always` for all; hot code else.
    pub fn from_environment() -> Self {
        match std::env::var("SUPERMACHINE_JIT").as_deref() {
            Ok("0") => Self::Off,
            Ok("always") => Self::Always,
            _ => Self::Hot,
        }
    }
}

/// What machine code calls.
pub(crate) struct Entries {
    /// `extern "C" fn(cpu, op)`: the interpreter goes on at the operation.
    pub exit: u64,
    /// The same for the first operation of a block that has no machine code.
    pub cold: u64,
    /// `extern "C" fn(cpu, address)`: the run loop goes on there.
    pub unknown: u64,
    /// `extern "C" fn(cpu, op) -> bool`: the operation alone is done; whether the block goes on.
    pub call: u64,
    /// `extern "C" fn(cpu, insn, handler)`.
    pub fp: u64,
    /// The handler of operations that have machine code, whose address is in `imm` then.
    pub compiled: u64,
}

/// A block to translate: an operation, an instruction and its word at each index.
pub(crate) struct Input<'a> {
    pub ops: &'a [Op],
    pub insns: &'a [Insn],
    pub words: &'a [u32],
    /// Which operation is the check for the FP trap.
    pub check: Option<usize>,
    /// What the last operation is.
    pub end: End,
    /// The instruction at an offset of the block's page.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "one back end looks at it"))]
    pub word_at: &'a dyn Fn(u16) -> u32,
}

impl Input<'_> {
    /// The function that does operation `at`, if it is one of FP and SIMD data processing.
    pub(crate) fn fp_handler(&self, at: usize) -> Option<u64> {
        (self.words[at] >> 25 & 7 == 7 && at + 1 < self.ops.len()).then_some(self.ops[at].imm)
    }

    /// Where the last operation goes on that is no instruction.
    pub(crate) fn falls_to(&self) -> i64 {
        let last = &self.ops[self.ops.len() - 1];
        i64::from(last.c) | i64::from(last.d) << 8
    }

    /// Whether a branch goes to the begin of the block.
    pub(crate) fn goes_around(&self, to: i64) -> bool {
        to == i64::from(self.ops[0].off)
    }
}

/// A jump to another block of the page: where its 4 bytes are that tell the distance, and the target's offset.
pub(crate) struct Link {
    pub at: usize,
    pub to: u16,
}

/// Machine code of a block, and the jumps in it that can go directly to other blocks.
pub(crate) struct Code {
    pub bytes: Vec<u8>,
    pub links: Vec<Link>,
    /// The operations that the interpreter's handlers do.
    #[cfg(test)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "the test is for one kind of host"))]
    pub left: Vec<usize>,
}

/// What makes machine code for a kind of host.
pub(crate) trait Host: Sized {
    /// Whether blocks may go on behind a B: it stands in the middle then, and there is nothing to do for it.
    const FOLLOWS: bool = false;
    /// Code that all blocks share, for the start of the code memory; `None` where this machine cannot run what would be
    /// made.
    fn new(entries: &Entries) -> Option<(Self, Vec<u8>)>;
    /// What the code that all blocks share has.
    fn ways(&self) -> &Ways;
    /// The code of a block at `origin` of the code memory.
    fn translate(&self, block: &Input, origin: usize) -> Code;
    /// The 4 bytes that make the jump at `link` go to `target`.
    fn link(&self, link: &Link, target: usize) -> [u8; 4];
}

#[cfg(target_arch = "x86_64")]
type ThisHost = x86_64::X86;
#[cfg(target_arch = "aarch64")]
type ThisHost = aarch64::Arm64;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod none {
    use super::{Code, Entries, Host, Input, Link, Ways};

    /// No back end.
    pub(crate) enum NoHost {}

    impl Host for NoHost {
        fn new(_: &Entries) -> Option<(Self, Vec<u8>)> {
            None
        }
        fn ways(&self) -> &Ways {
            match *self {}
        }
        fn translate(&self, _: &Input, _: usize) -> Code {
            match *self {}
        }
        fn link(&self, _: &Link, _: usize) -> [u8; 4] {
            match *self {}
        }
    }
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type ThisHost = none::NoHost;

/// Whether there is a back end for this kind of host.
pub(crate) const TRANSLATES: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Machine code of a page.
#[derive(Default)]
struct Page {
    /// Where blocks' code is, by their offset in the page.
    blocks: HashMap<u16, usize>,
    /// Jumps to blocks that have none yet.
    waiting: HashMap<u16, Vec<Link>>,
}

/// One vCPU's machine code.
pub(crate) struct Jit {
    host: ThisHost,
    share: Share,
    always: bool,
    /// Where blocks' code begins, and where the next block's goes.
    first: usize,
    next: usize,
    /// By the identity of the page in the decoder's cache.
    pages: HashMap<usize, Page>,
    /// Operations that machine code goes on at.
    ops: Vec<Box<[Op]>>,
    /// Those of code that is gone: a handler may still be looking at one.
    retired: Vec<Box<[Op]>>,
    block: Block,
    /// Offsets in the page and instructions there.
    words: Vec<(u16, u32)>,
    insns: Vec<Insn>,
    /// Empty until something is warm.
    heat: Vec<u8>,
    /// An operation that runs by itself, and [`resume`].
    single: Box<[Op; 2]>,
}

impl Jit {
    pub(crate) fn new(mut share: Share, translation: Translation) -> Option<Box<Self>> {
        let entries = Entries {
            exit: exit as *const () as u64,
            cold: cold as *const () as u64,
            unknown: unknown as *const () as u64,
            call: call as *const () as u64,
            fp: call_fp as *const () as u64,
            compiled: enter as *const () as u64,
        };
        let (host, shared) = ThisHost::new(&entries)?;
        if translation == Translation::Off || share.len() < 2 * BLOCK_BYTES {
            return None;
        }
        share.write(0, &shared);
        let first = shared.len().next_multiple_of(64);
        let resume = Op { f: resume, a: 0, b: 0, c: 0, d: 0, off: 0, n: 0, imm: 0 };
        Some(Box::new(Self {
            host,
            share,
            always: translation == Translation::Always,
            first,
            next: first,
            pages: HashMap::new(),
            ops: Vec::new(),
            retired: Vec::new(),
            block: Block::default(),
            words: Vec::new(),
            insns: Vec::new(),
            heat: Vec::new(),
            single: Box::new([resume; 2]),
        }))
    }

    /// The address of the way into machine code.
    pub(crate) fn entry(&self) -> u64 {
        self.share.address(self.host.ways().enter)
    }

    /// Whether another block might have no room.
    pub(crate) fn is_full(&self) -> bool {
        self.next + BLOCK_BYTES > self.share.len()
    }

    /// Makes a block warmer; whether it is hot.
    fn warm(&mut self, op: P, by: u8) -> bool {
        self.heat.resize(HEATS, 0);
        let heat = &mut self.heat[op.address() / size_of::<Op>() % HEATS];
        *heat = heat.saturating_add(by);
        *heat >= HOT
    }

    /// Where a branch to the operation goes: its machine code, or what leads to the interpreter.
    pub(crate) fn code(&self, op: P) -> u64 {
        if is_compiled(op) { op.imm() } else { self.share.address(self.host.ways().interpreted) }
    }

    /// Forgets the code of a page. It is not run any more: no block of another page jumps there directly.
    pub(crate) fn forget(&mut self, page: usize) {
        self.pages.remove(&page);
    }

    /// Forgets all code.
    pub(crate) fn clear(&mut self) {
        self.next = self.first;
        self.pages.clear();
        self.retired.append(&mut self.ops);
        self.heat.clear();
    }

    /// Makes machine code of the block that begins with `head`, at this offset of a page whose memory is at `host`. No
    /// handler of machine code's operations may be running.
    pub(crate) fn compile(&mut self, head: P, page: usize, first: usize, host: *const u8) {
        if self.is_full() {
            return;
        }
        self.retired.clear();
        let word_at = |off: u16| {
            assert!(off < 4096 && off.is_multiple_of(4));
            // SAFETY: `host` is a mapped page of guest memory and `off` an aligned offset in it.
            u32::from_le(unsafe { host.add(off.into()).cast::<u32>().read_volatile() })
        };
        let (words, block) = (&mut self.words, &mut self.block);
        words.clear();
        block.decode_plain(first, ThisHost::FOLLOWS, |off| {
            let word = word_at(off as u16);
            words.push((off as u16, word));
            word
        });
        let ops: Box<[Op]> = block.ops.as_slice().into();
        self.insns.clear();
        let mut by_op = Vec::with_capacity(ops.len());
        let mut read = 0;
        for op in &ops {
            // There may be more than one for a word.
            while words[read].0 != op.off {
                read += 1;
            }
            let word = words[read].1;
            by_op.push(word);
            self.insns.push(isa::decode(word, op.off));
        }
        let input = Input {
            ops: &ops,
            insns: &self.insns,
            words: &by_op,
            check: block.check,
            end: block.end,
            word_at: &word_at,
        };
        let code = self.host.translate(&input, self.next);
        if code.bytes.len() > BLOCK_BYTES {
            return;
        }
        let at = self.next;
        self.share.write(at, &code.bytes);
        self.next = (at + code.bytes.len()).next_multiple_of(16);
        self.ops.push(ops);
        let known = self.pages.entry(page).or_default();
        known.blocks.insert(first as u16, at);
        for link in known.waiting.remove(&(first as u16)).unwrap_or_default() {
            self.share.write(link.at, &self.host.link(&link, at));
        }
        for link in code.links {
            match known.blocks.get(&link.to) {
                Some(target) => self.share.write(link.at, &self.host.link(&link, *target)),
                None => known.waiting.entry(link.to).or_default().push(link),
            }
        }
        head.set_code(enter, self.share.address(at));
    }
}

impl Cpu {
    /// The run loop has come to the block `op` at PC; `tired` when the fuel was used up before it.
    pub(crate) fn sample(&mut self, op: P, tired: bool) {
        let warm = self.instructions() >= WARM;
        let Some(jit) = &mut self.jit else { return };
        if jit.always || tired && warm && jit.warm(op, SAMPLE) {
            self.compile(op, self.state.pc);
        }
    }

    /// Makes machine code of the block `op` at this address, unless it has some.
    fn compile(&mut self, op: P, address: u64) {
        if op.has(enter) {
            return;
        }
        let Ok(fetch) = self.look_up(address) else { return };
        if let Some(jit) = &mut self.jit {
            jit.compile(op, fetch.page.identity(), (address & 0xfff) as usize, fetch.host);
        }
        self.follow_code(address, op);
    }
}

/// Whether an operation has machine code.
pub(crate) fn is_compiled(op: P) -> bool {
    op.has(enter)
}

/// The handler of operations with machine code.
fn enter(c: &mut Cpu, o: P) {
    // SAFETY: `enter` is the handler of an operation only while its `imm` is the address of machine code for it, and
    // `code_entry` that of the way there, which takes these arguments and keeps to the C calling convention.
    unsafe {
        let way = std::mem::transmute::<usize, extern "C" fn(*mut Cpu, P, u64)>(c.code_entry as usize);
        way(c, o, o.imm());
    }
}

/// The interpreter goes on at `o`.
extern "C" fn exit(c: *mut Cpu, o: P) {
    // SAFETY: machine code gives back the CPU that it was given, and an operation that lives.
    let c = unsafe { &mut *c };
    c.interpreted();
    crate::interp::op::run(c, o);
}

/// On at an address from a register that the jump cache does not have, by way of the run loop if need be.
extern "C" fn unknown(c: *mut Cpu, to: u64) {
    // SAFETY: as in `exit`.
    let cpu = unsafe { &mut *c };
    cpu.state.pc = untag(cpu, to);
    if let Some(op) = cpu.find_decoded() {
        cpu.page = cpu.state.pc & !0xfff;
        cold(c, op);
    }
}

/// The same where a block begins that has no machine code.
extern "C" fn cold(c: *mut Cpu, o: P) {
    // SAFETY: as in `exit`.
    let c = unsafe { &mut *c };
    let address = c.page | o.off();
    if is_compiled(o) {
        c.follow_code(address, o);
    } else if let Some(jit) = &mut c.jit
        && jit.warm(o, ENTRY)
    {
        c.compile(o, address);
    }
    if !is_compiled(o) {
        c.interpreted();
    }
    crate::interp::op::run(c, o);
}

/// Does `o` alone; whether the block goes on after it.
extern "C" fn call(c: *mut Cpu, o: P) -> bool {
    // SAFETY: as in `exit`.
    let c = unsafe { &mut *c };
    let Some(jit) = &mut c.jit else { return false };
    jit.single[0] = o.copy();
    let handler: Handler = jit.single[0].f;
    // SAFETY: the operation stays until the next call, and the one behind it ends the block.
    let o = unsafe { P::new(jit.single.as_ptr()) };
    c.handled();
    c.resumed = false;
    handler(c, o);
    c.resumed
}

/// Stands behind the operation that `call` does.
fn resume(c: &mut Cpu, _: P) {
    c.resumed = true;
}

extern "C" fn call_fp(c: *mut Cpu, insn: u32, f: usize) {
    // SAFETY: as in `exit`.
    let c = unsafe { &mut *c };
    c.handled();
    // SAFETY: it is the function that the decoder put into the operation.
    let f = unsafe { std::mem::transmute::<usize, fp::Handler>(f) };
    f(&mut c.state.regs, insn);
}
