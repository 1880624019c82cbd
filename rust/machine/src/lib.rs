//! A virtual machine: memory, devices, vCPUs and boot, over any engine.

#![cfg_attr(
    test,
    allow(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "tests make small numbers and bytes of counters"
    )
)]

mod address_map;
mod architecture;
pub mod arm64;
pub mod arrival;
pub mod assembly;
mod builder;
pub mod bus;
pub mod first_touch;
mod machine;
pub mod memory;
pub mod pages;
mod pause;
mod power;
pub mod snapshot;
mod state;
mod vcpus;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod x86_64;

pub use address_map::AddressMap;
pub use architecture::Architecture;
pub use assembly::Disk;
pub use machine::{Config, Ground, Machine, Restore};
pub use pause::Paused;
pub use state::State;
pub use supermachine_devices::blk::Backing as DiskBacking;
pub use supermachine_devices::fs::{Served, Server};
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
    /// It has no header of an arm64 Image (Documentation/arch/arm64/booting.rst).
    #[error("the kernel is not an arm64 Image (no \"ARM\\x64\" header, or sizes in it that no kernel has)")]
    NotAKernel,
    /// It cannot be loaded as an x86_64 kernel.
    #[error("the kernel is not an x86_64 vmlinux, as an ELF file: {reason}")]
    NotAVmlinux {
        /// What the loader said.
        reason: String,
    },
    /// Memory is still on its way, and the engine cannot wait for it.
    #[error("the {engine} engine starts a guest when all of its memory is there; the soft engine may before")]
    NeedsAllMemory {
        /// Which was asked for.
        engine: Engine,
    },
    /// It is longer than the kernel takes.
    #[error("the kernel's command line is {bytes} bytes long; it may have {most}")]
    LongCmdline {
        /// What it has.
        bytes: usize,
        /// What it may have.
        most: usize,
    },
    /// What is loaded at the start does not fit RAM.
    #[error(
        "{memory} bytes of memory do not hold kernel, initramfs and the machine's description; they need {needed}"
    )]
    MemoryTooSmall {
        /// Bytes of RAM.
        memory: u64,
        /// Bytes that they take.
        needed: u64,
    },
    /// mmap(2) has refused it.
    #[error("{bytes} bytes of guest memory cannot be had: {reason}")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// Of what the tree's writer complains.
    #[error("the device tree cannot be built: {0}")]
    DeviceTree(String),
    /// It is outside of [`supermachine_proto::limits`].
    #[error(
        "{memory} bytes of guest memory are not between {} and {} MiB, in whole steps of {} MiB",
        MIN_MEMORY >> 20,
        MAX_MEMORY >> 20,
        MEMORY_STEP >> 20
    )]
    BadMemory {
        /// What was asked for, in bytes.
        memory: u64,
    },
    /// None, or more than the architecture's machine has.
    #[error("{vcpus} vCPUs are asked for; a machine has from 1 to {most}")]
    BadVcpus {
        /// As many as were asked for.
        vcpus: u32,
        /// As many as there may be.
        most: u32,
    },
    /// The bus has no place for them.
    #[error("{disks} disks are asked for; a machine has at most {most}")]
    TooManyDisks {
        /// As many as were asked for.
        disks: usize,
        /// As many as there may be.
        most: usize,
    },
    /// What was asked for came with a later layout of devices.
    #[error(
        "the machine comes from a snapshot of an older version and has no {what}; boot it, or bake it, again to have one"
    )]
    OldLayout {
        /// The device.
        what: &'static str,
    },
    /// What the system said.
    #[error("a vCPU thread cannot be started: {0}")]
    Thread(std::io::Error),
    /// What the system said.
    #[error("a device cannot be made: {0}")]
    Device(#[from] std::io::Error),
    /// The engine could not.
    #[error(transparent)]
    Engine(#[from] supermachine_engine::Error),
    /// It was waited for as long as a guest may take.
    #[error("the vCPUs did not leave the guest in time, or the machine has stopped")]
    Unresponsive,
    /// Features are missing, or are others.
    #[error(
        "the CPU lacks what the snapshot's guest may rely on: {missing}; restore it on a CPU like the one that it was \
         taken on, or take a new one here"
    )]
    CpuFeatures {
        /// Their names, separated by commas.
        missing: String,
    },
    /// A section of the snapshot, or of the device list, that does not fit.
    #[error("the snapshot's {part} cannot be taken over: {reason}")]
    State {
        /// Which.
        part: String,
        /// Why not.
        reason: String,
    },
    /// The file is none, or is damaged.
    #[error(transparent)]
    Snapshot(supermachine_snapshot::Error),
    /// A device of the snapshot's is not the machine's.
    #[error("the snapshot's device {device} cannot be taken over: {source}")]
    DeviceState {
        /// Its place on the bus, from 0.
        device: usize,
        /// Why not.
        source: supermachine_devices::persist::RestoreError,
    },
    /// A chain of no files.
    #[error("no snapshot file was given to restore from")]
    NoSnapshot,
    /// A diff of nothing.
    #[error(
        "a diff needs a snapshot that the machine was restored from, and this one was booted; take a whole snapshot"
    )]
    NoParent,
    /// A pair, a vector or an atomic access to registers of a device.
    #[error("the guest accessed {address:#x} from {pc:#x} with an instruction that devices do not serve")]
    UndecodedAccess {
        /// Guest physical.
        address: u64,
        /// Of the instruction.
        pc: u64,
    },
}
