//! The instruction set: from words to named instructions, and to text (Arm ARM, C4.1).

mod decode;
pub(crate) mod insn;
pub(crate) mod simd;
mod text;

pub(crate) use decode::{decode, decode_with};
pub use text::disassemble;
