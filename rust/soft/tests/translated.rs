//! The tests of the CPU once more, with all code translated.

mod cpu;
mod debug;
