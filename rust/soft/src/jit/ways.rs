//! The ways into and out of machine code, which all blocks share.

/// Where each is, counted from the start of the code memory. A host's `stubs` says which registers "the operation" and
/// "the address" are in.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ways {
    /// `extern "C" fn(cpu, op, code)`: goes to `code`.
    pub enter: usize,
    /// Back to the run loop.
    pub leave: usize,
    /// To the interpreter, at the operation.
    pub exit: usize,
    /// The same where a block begins.
    pub cold: usize,
    /// To the run loop, at an offset of the page: the address.
    pub out: usize,
    /// On at the target of the near branch that the operation is.
    pub chain: usize,
    /// On at the address, which may have a tag and is not in the jump cache.
    pub unknown: usize,
    /// To the interpreter, at the operation of the jump cache that a register tells (see [`crate::cpu::Cpu::ops`]),
    /// where a block begins.
    pub interpreted: usize,
    /// Calls the handler of the operation; comes back when the block goes on.
    pub call: usize,
    /// Brings the flags that are in memory to the form that the host's code has them in.
    pub flags: usize,
}
