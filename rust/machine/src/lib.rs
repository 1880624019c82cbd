//! A virtual machine: memory, devices, vCPUs and boot, over any engine.

#![deny(unsafe_code)]

mod address_map;
mod architecture;
pub mod arm64;
pub mod assembly;
mod builder;
pub mod bus;
mod machine;
pub mod memory;
pub mod pages;
mod pause;
pub mod snapshot;
mod state;
mod vcpus;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod x86_64;

pub use address_map::AddressMap;
pub use architecture::Architecture;
pub use machine::{Config, Disk, Machine, Restore};
pub use pause::Paused;
pub use state::State;
pub use supermachine_devices::blk::Backing as DiskBacking;
pub use supermachine_devices::fs::Server;
#[cfg(target_os = "linux")]
pub use supermachine_engine::kvm;
pub use supermachine_engine::{Engine, begin, interprets, prepare};
use supermachine_proto::limits::{MAX_MEMORY, MEMORY_STEP, MIN_MEMORY};

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
    #[error("the kernel is not an x86_64 vmlinux, as an ELF file: {reason}")]
    NotAVmlinux { reason: String },
    #[error("the kernel's command line is {bytes} bytes long; it may have {most}")]
    LongCmdline { bytes: usize, most: usize },
    #[error(
        "{memory} bytes of memory do not hold kernel, initramfs and the machine's description; they need {needed}"
    )]
    MemoryTooSmall { memory: u64, needed: u64 },
    #[error("{bytes} bytes of guest memory cannot be had: {reason}")]
    Memory { bytes: u64, reason: String },
    #[error("the device tree cannot be built: {0}")]
    DeviceTree(String),
    #[error(
        "{memory} bytes of guest memory are not between {} and {} MiB, in whole steps of {} MiB",
        MIN_MEMORY >> 20,
        MAX_MEMORY >> 20,
        MEMORY_STEP >> 20
    )]
    BadMemory { memory: u64 },
    #[error("{vcpus} vCPUs are asked for; a machine has from 1 to {most}")]
    BadVcpus { vcpus: u32, most: u32 },
    #[error("{disks} disks are asked for; a machine has at most {most}")]
    TooManyDisks { disks: usize, most: usize },
    #[error(
        "the machine comes from a snapshot of an older version and has no {what}; boot it, or bake it, again to have one"
    )]
    OldLayout { what: &'static str },
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
    #[error("the snapshot's device {device} cannot be taken over: {source}")]
    DeviceState { device: usize, source: supermachine_devices::persist::RestoreError },
    #[error("no snapshot file was given to restore from")]
    NoSnapshot,
    #[error(
        "a diff needs a snapshot that the machine was restored from, and this one was booted; take a whole snapshot"
    )]
    NoParent,
    #[error("the guest accessed {address:#x} from {pc:#x} with an instruction that devices do not serve")]
    UndecodedAccess { address: u64, pc: u64 },
}
