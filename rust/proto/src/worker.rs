//! What the API and a worker say to each other, over the socket pair the worker is born with.
//!
//! The API sends [`Command::Start`] and waits for [`Event::Ready`]. [`Command::Connect`] carries one end of a stream
//! socket pair as SCM_RIGHTS; the worker joins it to a guest vsock port and forwards bytes both ways, so that a
//! caller's own socket ends when the VM does. The worker ends the VM when the API's end of the control socket closes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::agent::Configure;

/// API to worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    Start(Box<Start>),
    /// One stream socket comes along with this message. A refused connection shows as an end of stream on it.
    Connect {
        port: u32,
    },
    /// Clean shutdown; the VM is ended all the same after `grace_ms` and two seconds.
    Shutdown {
        grace_ms: u32,
    },
    /// Answered by [`Event::Stats`].
    Stats,
}

/// Everything a VM is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// [`crate::VERSION`].
    pub version: u32,
    /// Kernel: an arm64 Image, plain or compressed with zstd.
    pub kernel: PathBuf,
    /// Initramfs: a cpio archive, plain or compressed with zstd. Empty for none.
    pub initramfs: PathBuf,
    /// Added to the kernel's command line.
    pub cmdline: String,
    pub memory_bytes: u64,
    pub vcpus: u32,
    /// In order: /dev/vda, /dev/vdb …
    pub disks: Vec<Disk>,
    pub configure: Configure,
    /// Milliseconds from start to [`Event::Ready`]; the VM is ended after it.
    pub boot_timeout_ms: u64,
    /// Whether there is an agent to wait for. Without one [`Event::Ready`] comes as soon as the vCPUs run.
    pub agent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub path: PathBuf,
    pub read_only: bool,
}

/// Worker to API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The guest serves requests.
    Ready(Timings),
    /// The last message: the VM is gone.
    Exited {
        reason: ExitReason,
        message: String,
        console_tail: String,
    },
    Stats(Stats),
}

/// Nanoseconds from the start of the worker process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    pub steps: Vec<(String, u64)>,
}

/// Counters of a running VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub exits: Vec<(String, u64)>,
    pub instructions: u64,
}

/// Why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// The guest powered off after being asked to.
    Shutdown,
    /// The guest powered off or reset of its own accord.
    GuestPowerOff,
    GuestReset,
    /// The guest's kernel panicked.
    Panic,
    /// The agent did not answer in time, or said that it cannot go on.
    AgentTimeout,
    AgentFailed,
    /// What was asked for cannot be had (a file is missing, memory is short …).
    BadConfiguration,
    /// The engine met something it cannot go on from.
    Engine,
}
