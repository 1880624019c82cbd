//! The instruction set: from words to named instructions (Arm ARM, C4.1).

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "machine code is made on one kind of host")
)]

pub(crate) mod insn;
