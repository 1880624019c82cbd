//! The tests of the CPU once more, with all code translated.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![allow(clippy::duplicate_mod, reason = "both files have their machine")]

mod cpu;
mod debug;
mod pmu;
