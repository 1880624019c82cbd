//! Where a machine's parts are in guest physical memory.

use std::ops::Range;

/// Where things are in a machine's guest physical memory, and how many of them there may be.
pub struct AddressMap {
    /// The architecture, as the kernel names it.
    pub architecture: &'static str,
    /// Where RAM begins.
    pub ram_base: u64,
    /// virtio-mmio windows, one after the other.
    pub virtio_base: u64,
    /// Bytes from one window to the next.
    pub virtio_stride: u64,
    /// Windows that there are.
    pub virtio_max: usize,
    /// As [`supermachine_proto::limits`] has it.
    pub max_vcpus: u32,
    /// The UART's registers, where it is in memory.
    pub uart: Option<Range<u64>>,
    /// Address and bytes of the page that holds the VM generation id, where the guest can find it.
    pub generation: Option<(u64, u64)>,
}
