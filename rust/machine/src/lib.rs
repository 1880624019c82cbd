//! A virtual machine: memory, devices, vCPUs and boot, over any engine.

pub mod boot;
pub mod fdt;
pub mod layout;
pub mod memory;
pub mod psci;

/// Why a machine could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel is not an arm64 Image (no \"ARM\\x64\" header, or sizes in it that no kernel has)")]
    NotAKernel,
    #[error("{memory} bytes of memory do not hold kernel, initramfs and device tree; they need {needed}")]
    MemoryTooSmall { memory: u64, needed: u64 },
    #[error("{bytes} bytes of guest memory cannot be had: {reason}")]
    Memory { bytes: u64, reason: String },
    #[error("the device tree cannot be built: {0}")]
    DeviceTree(String),
}
