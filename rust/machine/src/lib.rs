//! A virtual machine: memory, devices, vCPUs and boot, over any engine.

pub mod boot;
pub mod bus;
mod capture;
pub mod fdt;
pub mod layout;
mod machine;
pub mod memory;
pub mod pages;
pub mod psci;
pub mod snapshot;
pub mod v8;
pub mod vcpu;

pub use capture::{Paused, State};
pub use machine::{Config, Disk, Machine, Restore};
pub use supermachine_engine::Engine;

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself; a panicking kernel does.
    Reset,
    /// [`Machine::stop`] was asked for it.
    Requested,
    /// The engine or a device met something that it cannot go on from.
    Engine(String),
}

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
    #[error(
        "{memory} bytes of guest memory are not between {} and {} MiB, in whole steps of 2 MiB",
        layout::MIN_MEMORY >> 20,
        layout::MAX_MEMORY >> 20
    )]
    BadMemory { memory: u64 },
    #[error("{vcpus} vCPUs are asked for; a machine has from 1 to {}", layout::MAX_VCPUS)]
    BadVcpus { vcpus: u32 },
    #[error("{disks} disks are asked for; a machine has at most {}", layout::VIRTIO_MAX - 3)]
    TooManyDisks { disks: usize },
    #[error("a vCPU thread cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("a device cannot be made: {0}")]
    Device(#[from] std::io::Error),
    #[error(transparent)]
    Engine(#[from] supermachine_engine::Error),
    #[error("the vCPUs did not leave the guest in time, or the machine has stopped")]
    Unresponsive,
    #[error(
        "the CPU lacks what the snapshot's guest may rely on: {missing}; restore it on a CPU like the one that it was \
         taken on, or take a new one here"
    )]
    CpuFeatures { missing: String },
    #[error("the snapshot's {part} cannot be taken over: {reason}")]
    State { part: String, reason: String },
    #[error(transparent)]
    Snapshot(supermachine_snapshot::Error),
    #[error("no snapshot file was given to restore from")]
    NoSnapshot,
    #[error(
        "a diff needs a snapshot that the machine was restored from, and this one was booted; take a whole snapshot"
    )]
    NoParent,
    #[error("the guest accessed {address:#x} from {pc:#x} with an instruction that devices do not serve")]
    UndecodedAccess { address: u64, pc: u64 },
}
