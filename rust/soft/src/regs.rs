//! The register file that instruction handlers work on.

/// General, vector and status registers of one vCPU at one exception level.
///
/// Index 31 of `x` is the current stack pointer, [`Regs::ZERO`] always reads zero and [`Regs::SINK`] takes writes that
/// go nowhere: the decoder turns register number 31 into one of the three, so that no handler has to look.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Regs {
    /// X0 to X30, and the three above.
    pub x: [u64; 34],
    /// Condition flags as in PSTATE: N bit 31, Z 30, C 29, V 28; other bits zero.
    pub nzcv: u32,
    /// FPCR, with those bits alone that this CPU has.
    pub fpcr: u32,
    /// FPSR, with those bits alone that this CPU has.
    pub fpsr: u32,
    /// Q0 to Q31.
    pub v: [u128; 32],
}

impl Regs {
    /// Index of the current stack pointer.
    pub const SP: usize = 31;
    /// Index of what reads as zero.
    pub const ZERO: usize = 32;
    /// Index of what takes writes.
    pub const SINK: usize = 33;
}

impl Default for Regs {
    fn default() -> Self {
        Self { x: [0; 34], nzcv: 0, fpcr: 0, fpsr: 0, v: [0; 32] }
    }
}
