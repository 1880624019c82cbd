//! Where things are in guest physical memory, and which interrupts they raise. Part of the snapshot's contract: a
//! change here makes older snapshots unusable.

use supermachine_proto::limits::MAX_VCPUS_ARM64;

use crate::AddressMap;

/// GICv3 distributor, 64 KiB.
pub const GICD_BASE: u64 = 0x0800_0000;
/// Bytes of it.
pub const GICD_SIZE: u64 = 0x1_0000;
/// GICv3 redistributors, 128 KiB for each vCPU.
pub const GICR_BASE: u64 = 0x080A_0000;
/// Bytes from one to the next.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// PL011 UART: the earliest console, until the virtio console is up.
pub const PL011_BASE: u64 = 0x0900_0000;
/// Bytes of its registers.
pub const PL011_SIZE: u64 = 0x1000;
/// The page that holds the VM generation id (16 bytes), read-only memory for the guest.
pub const VMGENID_BASE: u64 = 0x0901_0000;
/// Bytes of it that the guest is told of.
pub const VMGENID_SIZE: u64 = 0x1000;
/// What is mapped there: one page of the largest size that an engine maps.
pub const VMGENID_MAPPED: u64 = 0x4000;
/// SPI of the VM generation id (interrupt specifier 0 1 1: edge, rising).
pub const VMGENID_SPI: u32 = 1;
/// virtio-mmio windows, one after the other.
pub const VIRTIO_BASE: u64 = 0x0A00_0000;
/// Bytes from one to the next.
pub const VIRTIO_STRIDE: u64 = 0x200;
/// SPI of the first virtio-mmio device; the n-th has this plus n.
pub const VIRTIO_SPI: u32 = 16;
/// virtio-mmio devices at most.
pub const VIRTIO_MAX: usize = 32;
/// Guest RAM.
pub const RAM_BASE: u64 = 0x4000_0000;

/// The parts of this that the rest of the machine goes by.
pub static MAP: AddressMap = AddressMap {
    architecture: "aarch64",
    ram_base: RAM_BASE,
    virtio_base: VIRTIO_BASE,
    virtio_stride: VIRTIO_STRIDE,
    virtio_max: VIRTIO_MAX,
    max_vcpus: MAX_VCPUS_ARM64,
    uart: Some(PL011_BASE..PL011_BASE + PL011_SIZE),
    generation: Some((VMGENID_BASE, VMGENID_MAPPED)),
};

/// INTID of shared peripheral interrupt `spi` (Arm IHI 0069, 2.2.1).
pub const fn spi_intid(spi: u32) -> u32 {
    32 + spi
}
