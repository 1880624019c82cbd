//! Where the state of the CPU is, as machine code reaches it: offsets from [`super::CPU`].

use crate::jit::layout::offsets;

const fn cpu(offset: usize) -> u32 {
    offset as u32
}

offsets! { cpu: cpu -> u32, others: u32 }
