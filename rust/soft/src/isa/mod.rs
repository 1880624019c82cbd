//! The instruction set: from words to named instructions, and to text (Arm ARM, C4.1).

mod decode;
pub(crate) mod insn;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "machine code is made on one kind of host")
)]
pub(crate) mod simd;
mod text;

pub(crate) use decode::{decode, decode_with};
pub use text::disassemble;
