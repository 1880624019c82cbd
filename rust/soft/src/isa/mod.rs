//! The instruction set: from words to named instructions, and to text (Arm ARM, C4.1).

mod decode;
pub(crate) mod effects;
pub(crate) mod insn;
mod registers;
pub(crate) mod simd;
mod text;

pub(crate) use decode::{always_branches, branch_in_page, decode, decode_with};
pub use text::disassemble;
