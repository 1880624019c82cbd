//! The register file that instruction handlers work on.

/// General, vector and status registers of one vCPU at one exception level.
///
/// Index 31 of `x` is the current stack pointer, [`Regs::ZERO`] always reads zero and [`Regs::SINK`] takes writes that
/// go nowhere: the decoder turns register number 31 into one of the three, so that no handler has to look.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Regs {
    pub x: [u64; 34],
    /// Condition flags as in PSTATE: N bit 31, Z 30, C 29, V 28; other bits zero.
    pub nzcv: u32,
    pub fpcr: u32,
    pub fpsr: u32,
    pub v: [u128; 32],
}

impl Regs {
    pub const SP: usize = 31;
    pub const ZERO: usize = 32;
    pub const SINK: usize = 33;
}

impl Default for Regs {
    fn default() -> Self {
        Self { x: [0; 34], nzcv: 0, fpcr: 0, fpsr: 0, v: [0; 32] }
    }
}
