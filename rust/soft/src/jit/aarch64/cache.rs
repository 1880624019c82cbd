//! Which host registers hold the guest's.

use super::asm::{Asm, R, V};
use super::{CPU, layout};
use crate::jit::cache::Moves;

pub(super) type Cache = crate::jit::cache::Cache<Asm>;

impl Moves for Asm {
    /// 18 is the platform's, on some.
    const POOL: &'static [u8] =
        &[19, 20, 21, 22, 23, 24, 25, 29, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
    const VECTORS: &'static [u8] = &[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27,
        28, 29, 30, 31,
    ];
    const PRESERVED: u32 = 0x2000_0000 | 0x03f8_0000;
    const IN_LOOPS: usize = 16;

    /// Instructions that name several vector registers by the first of them then need no other care.
    fn own_vector(g: u8) -> Option<u8> {
        Some(g)
    }

    fn load(&mut self, to: R, g: u8) {
        Self::load(self, 3, to, CPU, layout::x(g));
    }

    fn store(&mut self, g: u8, from: R) {
        Self::store(self, 3, from, CPU, layout::x(g));
    }

    fn load_vector(&mut self, to: V, g: u8) {
        self.load_q(to, CPU, layout::v(g));
    }

    fn store_vector(&mut self, g: u8, from: V) {
        self.store_q(from, CPU, layout::v(g));
    }
}
