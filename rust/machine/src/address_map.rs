//! Where a machine's parts are in guest physical memory.

use std::ops::Range;

/// Where things are in a machine's guest physical memory, and how many of them there may be.
pub struct AddressMap {
    /// The architecture, as the kernel names it.
    pub architecture: &'static str,
    pub ram_base: u64,
    /// virtio-mmio windows, one after the other.
    pub virtio_base: u64,
    pub virtio_stride: u64,
    pub virtio_max: usize,
    pub max_vcpus: u32,
    /// The UART's registers, where it is in memory.
    pub uart: Option<Range<u64>>,
    /// Address and bytes of the page that holds the VM generation id, where the guest can find it.
    pub generation: Option<(u64, u64)>,
}
