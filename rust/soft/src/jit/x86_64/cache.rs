//! Which host registers hold the guest's.

use super::asm::{Asm, M, R, R8, R9, R10, R11, R12, RBP, RDI, RSI, X};
use super::layout;
use crate::jit::cache::Moves;

pub(super) type Cache = crate::jit::cache::Cache<Asm>;

/// The place of a guest register in memory.
pub(super) fn home(g: u8) -> M {
    layout::x(g)
}

impl Moves for Asm {
    const POOL: &'static [u8] = &[RBP.0, R12.0, RSI.0, RDI.0, R8.0, R9.0, R10.0, R11.0];
    const VECTORS: &'static [u8] = &[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const PRESERVED: u32 = 1 << RBP.0 | 1 << R12.0;
    const IN_LOOPS: usize = 6;

    fn wanted_last(&self, vector: bool, of: u64, clean: u64) -> Option<u8> {
        Some(self.uses.last(vector, of, clean))
    }

    fn load(&mut self, to: R, g: u8) {
        Self::load(self, 3, false, true, to, home(g));
    }

    fn store(&mut self, g: u8, from: R) {
        Self::store(self, 3, home(g), from);
    }

    fn load_vector(&mut self, to: X, g: u8) {
        self.movups(to, layout::v(g));
    }

    fn store_vector(&mut self, g: u8, from: X) {
        self.movups_to(layout::v(g), from);
    }
}
