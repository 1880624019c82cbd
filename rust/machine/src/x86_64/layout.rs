//! Where things are in guest physical memory, and which interrupts they raise. Part of the snapshot's contract: a
//! change here makes older snapshots unusable.

use supermachine_proto::limits::MAX_VCPUS_X86_64;

use crate::AddressMap;

/// Segment descriptors of the vCPU that boots.
pub const GDT: u64 = 0x500;
/// Linux's boot parameters ("zero page").
pub const BOOT_PARAMS: u64 = 0x7000;
/// Page tables of the vCPU that boots, 24 KiB.
pub const PAGE_TABLES: u64 = 0x9000;
/// Entropy for the guest's random pool.
pub const RNG_SEED: u64 = 0x1_0000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes that a kernel takes, with the zero at its end (COMMAND_LINE_SIZE).
pub const MAX_CMDLINE: usize = 2048;
/// The MP table: in the last KiB of conventional memory, where the kernel looks for it (MP specification 1.4, 4).
pub const MP_TABLE: u64 = 0x9_fc00;
/// Bytes of it at most.
pub const MP_TABLE_SIZE: u64 = 0x400;
/// RAM goes on here after the video memory and the firmware of a PC.
pub const HIGH_RAM: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest: devices and interrupt controllers follow.
pub const HOLE: u64 = 3 << 30;
/// The rest of the RAM.
pub const FAR_RAM: u64 = 4 << 30;

/// virtio-mmio windows, one after the other.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Bytes from one to the next.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// IOAPIC pin of the first virtio-mmio device; the n-th has this plus n.
pub const VIRTIO_IRQ: u32 = 5;
/// virtio-mmio devices at most: the IOAPIC has 24 pins.
pub const VIRTIO_MAX: usize = (IOAPIC_PINS - VIRTIO_IRQ) as usize;
/// Of the one IOAPIC.
pub const IOAPIC_PINS: u32 = 24;
/// Where its registers are.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Where each vCPU finds its own.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The UART's ports: the earliest console, until the virtio console is up.
pub const UART: u16 = 0x3f8;

/// The parts of this that the rest of the machine goes by.
pub static MAP: AddressMap = AddressMap {
    architecture: "x86_64",
    ram_base: 0,
    virtio_base: VIRTIO_BASE,
    virtio_stride: VIRTIO_STRIDE,
    virtio_max: VIRTIO_MAX,
    max_vcpus: MAX_VCPUS_X86_64,
    uart: None,
    // Linux looks for it by ACPI alone, which this machine does not have; the guest's agent renews the random pool.
    generation: None,
};

/// Bytes of guest physical memory from 0 to the end of RAM. They are one mapping on the host and one part of a
/// snapshot; what lies in the hole is never touched and takes no room.
pub const fn span(memory_bytes: u64) -> u64 {
    if memory_bytes <= HOLE { memory_bytes } else { memory_bytes + (FAR_RAM - HOLE) }
}
