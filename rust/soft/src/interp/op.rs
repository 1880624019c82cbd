//! Decoded operations: what a block of guest code becomes, and how one operation hands over to the next.

use crate::cpu::Cpu;

/// Runs one operation and, unless the block ends or something has to be looked at first, the rest of its block.
///
/// A handler ends with [`next`] or one of its kind in tail position, which optimised builds compile to a jump. Where
/// they do not, the depth is bounded by [`FUEL`] and the operations of a block.
pub(crate) type Handler = fn(&mut Cpu, P);

/// Instructions that may run before the run loop looks at interrupts and requests; the block they end in goes on to
/// its end.
pub(crate) const FUEL: i64 = 1024;

/// One decoded instruction. What `a` to `d` and `imm` mean is between the decoder and the handler; register indexes
/// are those of [`crate::Regs`].
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub f: Handler,
    pub a: u8,
    pub b: u8,
    pub c: u8,
    pub d: u8,
    /// Offset of the instruction in its page.
    pub off: u16,
    /// Instructions of the block up to and including this one.
    pub n: u16,
    pub imm: u64,
}

/// Points at an operation inside a block.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct P(*const Op);

impl P {
    pub(crate) const NULL: Self = Self(std::ptr::null());

    /// # Safety
    /// `op` is null or points into a block of the code cache, and is used only while that block lives.
    #[inline(always)]
    pub(crate) unsafe fn new(op: *const Op) -> Self {
        Self(op)
    }

    #[inline(always)]
    fn op(&self) -> &Op {
        // SAFETY: a `P` that is given to a handler points at a live operation (see `new`); handlers get no other.
        unsafe { &*self.0 }
    }

    #[inline(always)]
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    #[inline(always)]
    pub(crate) fn a(self) -> usize {
        self.op().a as usize
    }

    #[inline(always)]
    pub(crate) fn b(self) -> usize {
        self.op().b as usize
    }

    #[inline(always)]
    pub(crate) fn c(self) -> usize {
        self.op().c as usize
    }

    #[inline(always)]
    pub(crate) fn d(self) -> usize {
        self.op().d as usize
    }

    #[inline(always)]
    pub(crate) fn off(self) -> u64 {
        u64::from(self.op().off)
    }

    #[inline(always)]
    pub(crate) fn n(self) -> i64 {
        i64::from(self.op().n)
    }

    #[inline(always)]
    pub(crate) fn imm(self) -> u64 {
        self.op().imm
    }

    /// The instruction word, for operations that keep it.
    #[inline(always)]
    pub(crate) fn insn(self) -> u32 {
        self.op().imm as u32
    }

    /// Offset in the page of a branch's target.
    #[inline(always)]
    pub(crate) fn target(self) -> u64 {
        u64::from(self.op().c) | u64::from(self.op().d) << 8
    }

    /// Where a branch inside its page goes: the first operation there, or null before the first time.
    #[inline(always)]
    pub(crate) fn chain(self) -> P {
        P(self.op().imm as usize as *const Op)
    }

    /// Remembers where a branch inside its page goes.
    pub(crate) fn set_chain(self, to: P) {
        // SAFETY: operations live in the code cache's own memory, which nothing else refers to while the run loop
        // (the only caller) is between two blocks.
        unsafe { (*self.0.cast_mut()).imm = to.0 as usize as u64 };
    }

    /// Where the operation is.
    pub(crate) fn address(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn copy(self) -> Op {
        *self.op()
    }

    /// Whether this is its handler.
    pub(crate) fn has(self, f: Handler) -> bool {
        std::ptr::fn_addr_eq(self.op().f, f)
    }

    /// Gives the operation machine code, which `f` goes to.
    pub(crate) fn set_code(self, f: Handler, code: u64) {
        let op = self.0.cast_mut();
        // SAFETY: as in `set_chain`; the only callers are the run loop and what stands between two blocks like it.
        unsafe {
            (*op).f = f;
            (*op).imm = code;
        }
    }

    /// The operation after this one in the block.
    #[inline(always)]
    pub(crate) fn succ(self) -> P {
        // SAFETY: every block ends with an operation that does not ask for the one after it.
        P(unsafe { self.0.add(1) })
    }
}

/// Goes on with the operation after `o`.
#[inline(always)]
pub(crate) fn next(c: &mut Cpu, o: P) {
    run(c, o.succ());
}

/// Runs `o` and what follows it.
#[inline(always)]
pub(crate) fn run(c: &mut Cpu, o: P) {
    (o.op().f)(c, o);
}

/// Goes on at `o`'s target in the same page.
#[inline(always)]
pub(crate) fn jump(c: &mut Cpu, o: P) {
    c.fuel -= o.n();
    let to = o.chain();
    if to.is_null() || c.fuel < 0 {
        return jump_slow(c, o);
    }
    run(c, to);
}

#[cold]
#[inline(never)]
fn jump_slow(c: &mut Cpu, o: P) {
    c.state.pc = c.page | o.target();
    if o.chain().is_null() {
        c.patch = o;
    }
}

/// Goes on at any address.
#[inline(always)]
pub(crate) fn goto(c: &mut Cpu, o: P, to: u64) {
    c.fuel -= o.n();
    match c.jump_cache(to) {
        Some(op) if c.fuel >= 0 => {
            c.page = to & !0xfff;
            run(c, op);
        }
        _ => c.state.pc = to,
    }
}

/// Ends the block after this instruction, so that the run loop looks around.
#[inline(always)]
pub(crate) fn leave(c: &mut Cpu, o: P) {
    c.fuel -= o.n();
    c.state.pc = (c.page | o.off()).wrapping_add(4);
}
