//! Where the state of the CPU is, as machine code reaches it: offsets from [`super::CPU`].

use std::mem::offset_of;

use crate::cpu::Cpu;
use crate::jit::layout::offsets;

const fn cpu(offset: usize) -> u32 {
    offset as u32
}

offsets! { cpu: cpu -> u32, others: u32 }

pub(super) const MONITOR_SIZE: u32 = cpu(offset_of!(Cpu, state.monitor.size));
pub(super) const MONITOR_VA: u32 = cpu(offset_of!(Cpu, state.monitor.va));
pub(super) const MONITOR_VALUE: u32 = cpu(offset_of!(Cpu, state.monitor.value));
