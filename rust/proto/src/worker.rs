//! What the API and a worker say to each other, over the socket pair the worker is born with.
//!
//! The API sends [`Command::Start`] and waits for [`Event::Ready`]. [`Command::Connect`] carries one end of a stream
//! socket pair as SCM_RIGHTS; the worker joins it to a guest vsock port and forwards bytes both ways, so that a
//! caller's own socket ends when the VM does. The worker ends the VM when the API's end of the control socket closes.
//! [`Command::Capture`] carries the open file that the snapshot is written to: a confined worker opens none itself,
//! and the API publishes the file once it has [`Event::Captured`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::agent::{Chunk, Configure, Identity};
use crate::engine::Engine;

/// API to worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// What comes along: for a guest with a disk of its own, an empty file, open for reading and writing
    /// ([`Start::scratch`]); a file for each of its volumes ([`Start::volumes`]); for one with a network the link, one end of a socket pair, whose other end is the policy
    /// process's ([`crate::netd`]).
    Start(Box<Start>),
    /// One stream socket comes along with this message. A refused connection shows as an end of stream on it.
    Connect {
        /// Of the guest's, over vsock.
        port: u32,
    },
    /// Clean shutdown; the VM is ended all the same after `grace_ms` and two seconds.
    Shutdown {
        /// Milliseconds that the guest's processes have after SIGTERM.
        grace_ms: u32,
    },
    /// Answered by [`Event::Stats`].
    Stats,
    /// Takes a snapshot into the file that comes along with this message: open for reading and writing, empty. The
    /// guest goes on afterwards. Answered by [`Event::Captured`] or [`Event::CaptureFailed`].
    Capture(Box<Capture>),
    /// Answered by [`Event::WorkingSet`].
    WorkingSet,
    /// Answered by [`Event::Code`].
    Code,
    /// Makes the volume in a slot larger. Answered by [`Event::VolumeGrown`].
    GrowVolume {
        /// As in [`VolumeSlot::slot`].
        slot: u32,
        /// What the disk has then; no less than it has now.
        bytes: u64,
    },
    /// In place of a start: the worker becomes a template, which has opened and mapped what is to be restored, runs no
    /// guest, and makes a copy of itself for each [`Command::Fork`]. Nothing comes along. Answered by [`Event::Ready`]
    /// without steps. For the soft engine, on Linux; without shares, and with all of the memory there.
    Template(Box<Start>),
    /// To a template: one more machine, in a process of its own whose parent is the template's. What comes along: the
    /// machine's end of its own control socket, on which [`Event::Forked`] is the first message; what it writes its standard
    /// error to; and what comes along with a start. The files are those that the template has.
    Fork(Box<Start>),
    /// In place of a start: the worker decodes code of a snapshot, of which it runs nothing, for who restores it. What it comes
    /// to is written to the empty file that comes along. Answered by [`Event::Exited`], as [`ExitReason::Shutdown`] when that
    /// has been done.
    Bake(Bake),
}

/// What code of a snapshot is decoded for later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bake {
    /// [`crate::VERSION`].
    pub version: u32,
    /// As [`Restore::files`]; of the soft engine.
    #[serde(with = "crate::path_bytes::list")]
    pub files: Vec<PathBuf>,
    /// Where code begins, as [`Event::Code`] says.
    pub places: Vec<u64>,
    /// As [`Start::require_confinement`].
    pub require_confinement: bool,
}

/// Everything a VM is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// [`crate::VERSION`].
    pub version: u32,
    /// What runs the guest.
    pub engine: Engine,
    /// A kernel or a snapshot.
    pub source: Source,
    /// In order: /dev/vda, /dev/vdb …; for a snapshot those that it was taken with.
    pub disks: Vec<Disk>,
    /// Directories and files of the host that the guest may be given, in the order in which [`crate::agent::Attach`] names
    /// them.
    pub shares: Vec<Share>,
    /// The disk of the guest's root. The file that its changes go to comes along with this message, before a link.
    pub scratch: Option<Scratch>,
    /// Disks that are put into slots. For each an open file that a lock is held on comes along after the root's, and for one
    /// that is only read an empty file after that.
    pub volumes: Vec<VolumeSlot>,
    /// Milliseconds from start to [`Event::Ready`]; the VM is ended after it.
    pub boot_timeout_ms: u64,
    /// Whether there is an agent to wait for. Without one [`Event::Ready`] comes as soon as the vCPUs run.
    pub agent: bool,
    /// Whether a system that has not everything to confine the worker with is refused.
    pub require_confinement: bool,
}

impl Start {
    /// Descriptors that come along for the volumes.
    pub fn volume_files(&self) -> usize {
        self.volumes.iter().map(|volume| if volume.read_only { 2 } else { 1 }).sum()
    }
}

/// A slot of the machine's that a volume is put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSlot {
    /// From 1 on: the first slot is for the root's disk.
    pub slot: u32,
    /// Whether the volume stays as it is: what the guest writes is gone with it.
    pub read_only: bool,
}

/// The guest's name for the disk in a slot, after that of its image.
pub fn slot_device(slot: u32) -> String {
    let letter = char::from_u32('b' as u32 + slot).unwrap_or('?');
    format!("/dev/vd{letter}")
}

/// The slots that volumes are put into.
pub const VOLUME_SLOTS: [u32; 3] = [1, 2, 3];

/// A disk that belongs to a guest: in its snapshots, and with every clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scratch {
    /// Bytes of the disk of a guest that boots; 0 for one that is restored, whose snapshot says it.
    pub bytes: u64,
    /// Files that have the disk of a snapshot that does not hold it ([`Capture::disk_elsewhere`]).
    #[serde(with = "crate::path_bytes::list")]
    pub files: Vec<PathBuf>,
}

/// Where the guest comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A guest that starts with its kernel.
    Boot(Box<Boot>),
    /// A guest that a snapshot was taken of.
    Restore(Box<Restore>),
}

/// A guest that starts with its kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Kernel: an arm64 Image or an x86_64 vmlinux, plain or compressed with zstd.
    #[serde(with = "crate::path_bytes")]
    pub kernel: PathBuf,
    /// Initramfs: a cpio archive, plain or compressed with zstd. Empty for none.
    #[serde(with = "crate::path_bytes")]
    pub initramfs: PathBuf,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// [`crate::limits::MIN_MEMORY`] to [`crate::limits::MAX_MEMORY`], in steps of [`crate::limits::MEMORY_STEP`].
    pub memory_bytes: u64,
    /// From 1 to what [`crate::limits::MAX_VCPUS`] says.
    pub vcpus: u32,
    /// What the agent is told.
    pub configure: Configure,
}

/// A guest that goes on where a snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Snapshot files: a full one, then those that each hold what changed since the one before.
    #[serde(with = "crate::path_bytes::list")]
    pub files: Vec<PathBuf>,
    /// Who the guest is from now on; a guest with an agent must confirm it before anything of the user's runs.
    pub identity: Identity,
    /// Pages to bring in before the guest asks for them.
    pub working_set: Vec<PageRange>,
    /// Whether the memory of the one file is still on its way: a socket of [`crate::arrival`] comes along then, after
    /// the files of the volumes. For the soft engine.
    pub arriving: bool,
    /// What [`Command::Bake`] has made of these files; empty for none. It is left where it is not, not the user's alone, or
    /// not made by this worker's build. Where it is taken, `code` is among the steps of the start.
    #[serde(with = "crate::path_bytes")]
    pub code: PathBuf,
    /// Whether to note in which order the guest first touches its pages, for [`Event::WorkingSet`]. Engines that see no
    /// page being touched leave it.
    pub note_order: bool,
}

/// What a snapshot is taken with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// Only what has changed since the snapshot that this VM was restored from.
    pub diff: bool,
    /// The image's digest, for who looks at the file.
    pub image: Option<String>,
    /// The API's own section, kept as it is.
    pub api: Chunk,
    /// In version 8 of the format, which has no room for what is above.
    pub v8: bool,
    /// The guest's disk stays where it is, in the files that its worker has it in: for clones that start at once.
    pub disk_elsewhere: bool,
    /// Whether it is for clones that start at once, and for nobody afterwards: the snapshot says which code the guest has
    /// run, and has no digest of RAM.
    pub code: bool,
    /// What the guest's volumes are known by from this moment on, for as long as nobody writes to them; zeros to leave them.
    pub volume_mark: [u8; 16],
}

/// Pages of guest RAM, in 4 KiB pages from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange {
    /// The first page.
    pub start: u64,
    /// How many there are, from 1 on.
    pub count: u64,
    /// Whether the guest wrote to them.
    pub written: bool,
}

/// An image that is a disk of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Of a file of whole sectors.
    #[serde(with = "crate::path_bytes")]
    pub path: PathBuf,
    /// Whether the guest sees a disk that cannot be written to.
    pub read_only: bool,
}

/// A directory or a file of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// As the API has resolved it.
    pub path: PathBuf,
    /// Whether the guest's writes fail with EROFS.
    pub read_only: bool,
    /// What the guest need not ask for anew.
    pub cache: ShareCache,
    /// Whose its files are to the guest.
    pub owner: ShareOwner,
    /// Bytes by which the guest may make it grow.
    pub quota_bytes: Option<u64>,
    /// Whether the guest's kernel may be told of what changes on the host.
    pub watch: bool,
}

/// Whose the files of a share are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareOwner {
    /// The host's user is the guest's.
    #[default]
    Map,
    /// As the guest sets them, kept beside each file.
    Virtual,
}

/// How long the guest goes by what it has seen of a share, without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareCache {
    /// A second.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// A day: for what nobody else changes.
    Always,
}

/// Worker to API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The guest serves requests.
    Ready(Timings),
    /// The last message: the VM is gone.
    Exited {
        /// Which of the reasons that the API tells apart.
        reason: ExitReason,
        /// The same for people.
        message: String,
        /// The end of what the guest has written to its console.
        console_tail: String,
    },
    /// Answers [`Command::Stats`].
    Stats(Stats),
    /// The file is written and synced; the guest goes on.
    Captured(Captured),
    /// No snapshot was taken; the guest goes on as if none had been asked for.
    CaptureFailed {
        /// What failed, for people.
        message: String,
    },
    /// Pages that the guest has touched since its restore, in at most [`crate::limits::MAX_WORKING_SET`] ranges that do
    /// not overlap: in the order of first touch where that was noted, else ascending; empty where the host cannot tell.
    WorkingSet(Vec<PageRange>),
    /// Answers [`Command::Code`]: where code begins that the guest has run, by its physical addresses, at most
    /// [`crate::limits::MAX_CODE`]. Nothing on engines that do not know.
    Code(Vec<u64>),
    /// The disk has become larger, and the guest's kernel is told; or it stays as it was, for a reason.
    VolumeGrown {
        /// `None` when it has become larger.
        error: Option<String>,
    },
    /// What the guest had open in a share when it was captured and has not any more: programs have ESTALE of it.
    Stale {
        /// The number of the share, as it was.
        share: u32,
        /// Beneath the share; empty for the share itself.
        #[serde(with = "crate::path_bytes")]
        path: PathBuf,
        /// What is wrong with it.
        why: StaleReason,
    },
    /// A command could not be served for want of something; the VM goes on. What is short, whose limit it is, and how it
    /// is raised.
    Shortage {
        /// A sentence with all three.
        message: String,
    },
    /// The first word of a template's copy: the process that has written it is the machine's. The kernel tells the receiver
    /// which that is (unix(7), SCM_CREDENTIALS).
    Forked,
}

/// Why something that was open is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StaleReason {
    /// It has no name any more, or another one, or its name stands for another file.
    Changed,
    /// It was open for writing, and the share may only be read now.
    ReadOnly,
    /// There is no such share, or it is another directory.
    OtherShare,
    /// The host does not let it be opened.
    Refused,
}

/// A snapshot that has been taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// The snapshot's id, 32 bytes.
    pub id: Chunk,
    /// Bytes of RAM in the file; the rest is holes.
    pub data_bytes: u64,
    /// Nanoseconds that no vCPU ran.
    pub pause_ns: u64,
    /// Steps, in nanoseconds from the command.
    pub steps: Vec<(String, u64)>,
}

/// Nanoseconds from the start of the worker process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Each by its name, in the order in which they were done.
    pub steps: Vec<(String, u64)>,
}

/// Counters of a running VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// How often vCPUs have left the guest, by the reason's name.
    pub exits: Vec<(String, u64)>,
    /// Of all vCPUs, where the engine counts them; otherwise 0.
    pub instructions: u64,
}

/// Why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// The guest powered off after being asked to.
    Shutdown,
    /// The guest powered off or reset of its own accord.
    GuestPowerOff,
    /// The guest reset of its own accord.
    GuestReset,
    /// The guest's kernel panicked.
    Panic,
    /// The agent did not answer in time, or said that it cannot go on.
    AgentTimeout,
    /// The agent said that it cannot go on.
    AgentFailed,
    /// A restored guest did not take on a new identity, so nothing of the user's was let run in it.
    RenewFailed,
    /// The snapshot cannot be used here: it is damaged, incomplete, or of another engine, CPU or set of devices.
    BadSnapshot,
    /// The rest of a snapshot that was still on its way did not come.
    SnapshotIncomplete,
    /// What was asked for cannot be had (a file is missing, memory is short …).
    BadConfiguration,
    /// The engine met something it cannot go on from.
    Engine,
    /// The system lacks what [`Start::require_confinement`] asks for.
    Unconfined,
}
