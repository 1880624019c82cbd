//! Kernels and initramfs as a stranger may name them, into a small guest's memory: the Image of arm64 guests.
//!
//! Two bytes say how long the initramfs is; the rest is the kernel.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use supermachine_machine::arm64::fdt::Description;
use supermachine_machine::arm64::{boot, layout};
use supermachine_machine::memory::Memory;

const MEMORY_BYTES: u64 = 32 << 20;

static MEMORY: LazyLock<Memory> = LazyLock::new(|| Memory::new(&layout::MAP, MEMORY_BYTES).unwrap());

fuzz_target!(|data: &[u8]| {
    let Some((length, kernel)) = data.split_first_chunk() else { return };
    let initramfs = vec![0; u16::from_le_bytes(*length).into()];
    let description = Description {
        vcpus: 1,
        memory_bytes: MEMORY_BYTES,
        cmdline: "",
        initramfs: None,
        virtio_devices: 12,
        pmu: true,
        rng_seed: [7; 32],
    };
    let end = layout::RAM_BASE + MEMORY_BYTES;
    if let Ok(entry) = boot::load(&MEMORY.ram, kernel, &initramfs, description) {
        assert!((layout::RAM_BASE..end).contains(&entry.pc));
        assert!((entry.pc + kernel.len() as u64..end).contains(&entry.context));
    }
});
