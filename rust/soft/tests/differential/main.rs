//! The software CPU against QEMU's, instruction for instruction: random sequences from random states must leave the
//! same registers, flags and memory, interpreted and translated. And whole programs, translated, against the
//! interpreter.
//!
//! `SUPERMACHINE_DIFF_SEED` sets the seed of the random run (it is printed), `SUPERMACHINE_DIFF_COUNT` the number of
//! sequences in each run.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod base;
mod blocks;
mod fp;
mod machine;
mod oracle;
mod random;

use std::time::{SystemTime, UNIX_EPOCH};

/// The seed of runs that are to be the same everywhere.
const FIXED_SEED: u64 = 0x5eed;

fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(parsed.unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// A seed that differs from run to run unless the environment sets it; printed, so that a failure can be repeated.
fn random_seed() -> u64 {
    let seed = env_number("SUPERMACHINE_DIFF_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64));
    println!("SUPERMACHINE_DIFF_SEED={seed:#x}");
    seed
}

/// Sequences in one run.
fn count() -> usize {
    env_number("SUPERMACHINE_DIFF_COUNT").unwrap_or(50_000) as usize
}
