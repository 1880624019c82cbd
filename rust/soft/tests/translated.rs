//! The tests of the CPU once more, with all code translated.

#![allow(clippy::duplicate_mod, reason = "both files have their machine")]

mod cpu;
mod debug;
mod pmu;
