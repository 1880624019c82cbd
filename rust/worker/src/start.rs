//! From the start command to a machine: opens every file, confines the process, and only then looks at what is in them
//! that a guest or a stranger may have written.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use supermachine_machine::arrival::Arrival;
use supermachine_machine::first_touch::FirstTouch;
use supermachine_machine::pages::PageMap;
use supermachine_machine::snapshot::{
    v8,
    v9::{self, Origin},
};
use supermachine_machine::{Config, Disk, Engine, Machine, Restore, begin, prepare};
use supermachine_proto::VERSION;
use supermachine_proto::worker::{self, Boot, ExitReason, PageRange, Source, Start};
use supermachine_snapshot::Digest32;
use supermachine_snapshot::boot_files::{self, BootFile};
use supermachine_snapshot::v8::{self as v8_format, Listener};
use supermachine_storage::scratch::Scratch;

use crate::arrival;
use crate::confine;
use crate::ended::Ended;
use crate::room::Room;
use crate::scratch;
use crate::shares::{Shares, Waits};
use crate::volumes::Volumes;

/// A machine that has not run yet, and what later snapshots of it need.
pub(crate) struct Built {
    pub machine: Machine,
    pub page_map: Option<PageMap>,
    /// BLAKE3 of the files that the guest booted, as they are on disk.
    pub kernel: Digest32,
    pub initramfs: Digest32,
    /// What it was restored from.
    pub origin: Option<Origin>,
    /// The listeners of a version 8 file, which a later one must have as well.
    pub listeners: Vec<Listener>,
    /// The disk that belongs to the machine.
    pub scratch: Option<Scratch>,
    pub volumes: Volumes,
    pub room: Room,
    /// Snapshot files in use: the lock on each lasts as long as it is open.
    pub leases: Vec<File>,
    /// Memory that is still on its way.
    pub arrival: Option<Arc<Arrival>>,
    /// Who waits for a lock in a share.
    pub waits: Option<Arc<Waits>>,
}

/// Makes the machine, saying after each step what has been done.
///
/// `own` is the file for what the guest writes to its root's disk; `volumes` are the files of those; `arriving` is where
/// is said what comes of memory that is on its way.
pub(crate) fn build(
    start: &Start,
    own: Option<File>,
    volumes: Vec<File>,
    arriving: Option<OwnedFd>,
    step: &mut impl FnMut(&str),
) -> Result<Built, Ended> {
    if start.version != VERSION {
        let message = format!("the worker speaks version {VERSION} and the API {}", start.version);
        return Err(Ended::bad(message));
    }
    let mut disks = Vec::new();
    for disk in &start.disks {
        let file = File::options().read(true).write(!disk.read_only).open(&disk.path);
        let file = file.map_err(|e| Ended::bad(format!("{} cannot be opened: {e}", disk.path.display())))?;
        disks.push(Disk { file, read_only: disk.read_only });
    }
    let shares = Shares::open(&start.shares)?;
    let page_map = PageMap::open();
    let engine = start.engine;
    let confine = || self::confine(engine, &shares, start.require_confinement);
    prepare(engine).map_err(|e| Ended::new(ExitReason::Engine, e.to_string()))?;
    let wanted = match (&start.scratch, own) {
        (None, _) => None,
        (Some(wanted), Some(own)) => Some((wanted, own)),
        (Some(_), None) => return Err(Ended::bad("the file for the root's disk did not come along")),
    };
    let mut built = match &start.source {
        Source::Boot(boot) => self::boot(engine, boot, disks, wanted, page_map, confine, step),
        Source::Restore(restore) => {
            self::restore(engine, restore, disks, wanted, arriving, page_map, confine, step)
        }
    }?;
    if let Some(scratch) = &built.scratch {
        scratch::insert(scratch, &built.machine, scratch::SLOT).map_err(|e| Ended::bad(e.to_string()))?;
        built.room.watch(scratch::SLOT, scratch.file(), scratch.bytes());
    }
    built.volumes = Volumes::insert(&built.machine, &start.volumes, volumes, &built.room)?;
    // Also without shares: what the guest and its server agree on when it boots is in every snapshot of it, and a guest
    // that is restored from one may have some. One of a version 8 file has no such device.
    built.waits = shares.waits();
    if let Some(server) = shares.server() {
        let _ = built.machine.set_file_server(server);
    }
    Ok(built)
}

fn boot(
    engine: Engine,
    boot: &Boot,
    disks: Vec<Disk>,
    wanted: Option<(&worker::Scratch, File)>,
    page_map: Option<PageMap>,
    confine: impl FnOnce() -> Result<(), Ended>,
    step: &mut impl FnMut(&str),
) -> Result<Built, Ended> {
    let read = |path: &Path| {
        let bytes = fs::read(path).map_err(|e| unreadable(path, e))?;
        Ok(BootFile { path: path.to_path_buf(), bytes })
    };
    let kernel = read(&boot.kernel)?;
    let none = boot.initramfs.as_os_str().is_empty();
    let initramfs = if none { BootFile::default() } else { read(&boot.initramfs)? };
    confine()?;
    let scratch = wanted.map(|(wanted, own)| scratch::make(own, wanted.bytes)).transpose()?;
    let (kernel, initramfs) =
        boot_files::contents(kernel, initramfs).map_err(|(path, e)| unreadable(&path, e))?;
    let machine = Machine::new(Config {
        engine,
        memory_bytes: boot.memory_bytes,
        vcpus: boot.vcpus,
        kernel: kernel.bytes,
        initramfs: initramfs.bytes,
        cmdline: boot.cmdline.clone(),
        disks,
    })
    .map_err(|e| Ended::bad(e.to_string()))?;
    step("machine");
    let (kernel, initramfs) = (kernel.digest, initramfs.digest);
    let (listeners, leases) = (Vec::new(), Vec::new());
    Ok(Built {
        machine,
        page_map,
        kernel,
        initramfs,
        origin: None,
        listeners,
        scratch,
        volumes: Volumes::default(),
        room: Room::default(),
        leases,
        arrival: None,
        waits: None,
    })
}

#[expect(clippy::too_many_arguments, reason = "what a start is told, once")]
fn restore(
    engine: Engine,
    restore: &worker::Restore,
    disks: Vec<Disk>,
    wanted: Option<(&worker::Scratch, File)>,
    arriving: Option<OwnedFd>,
    page_map: Option<PageMap>,
    confine: impl FnOnce() -> Result<(), Ended>,
    step: &mut impl FnMut(&str),
) -> Result<Built, Ended> {
    let leased = |path: &PathBuf| {
        let file = File::open(path).map_err(|e| unreadable(path, e))?;
        lease(&file).map_err(|e| unreadable(path, e))?;
        Ok(file)
    };
    let mut files = restore.files.iter().map(leased).collect::<Result<Vec<_>, Ended>>()?;
    let elsewhere = wanted.iter().flat_map(|(wanted, _)| &wanted.files).map(leased);
    let elsewhere = elsewhere.collect::<Result<Vec<_>, Ended>>()?;
    let leases = files.iter().chain(&elsewhere).map(File::try_clone).collect::<io::Result<_>>();
    let leases = leases.map_err(|e| Ended::bad(format!("a snapshot cannot be kept open: {e}")))?;
    confine()?;
    step("open");
    let refused = |e: supermachine_machine::Error| Ended::new(ExitReason::BadSnapshot, e.to_string());
    let mut generation = [0; 16];
    let entropy = &restore.identity.entropy.0;
    let fresh = entropy.get(entropy.len().saturating_sub(generation.len())..).unwrap_or_default();
    generation[..fresh.len()].copy_from_slice(fresh);
    if let [file] = &files[..]
        && is_v8(file)
    {
        let opened = files.swap_remove(0);
        let opened = v8::open(opened).map_err(refused)?;
        let listeners = opened.listeners().to_vec();
        let machine = v8::restore(engine, opened, disks, generation, &mut *step).map_err(refused)?;
        // The format does not say what its guest booted, and no diff builds on it. What the guest has not touched is the
        // file's all the same, so that a later snapshot must look at all of RAM.
        let (kernel, initramfs) = (Digest32::default(), Digest32::default());
        return Ok(Built {
            machine,
            page_map: None,
            kernel,
            initramfs,
            origin: None,
            listeners,
            scratch: None,
            volumes: Volumes::default(),
            room: Room::default(),
            leases,
            arrival: None,
            waits: None,
        });
    }
    let opened = v9::open(files, elsewhere).map_err(refused)?;
    if opened.engine != engine {
        let message = format!(
            "the snapshot was taken on the {} engine and cannot go on with {engine}; name its own engine",
            opened.engine
        );
        return Err(Ended::new(ExitReason::BadSnapshot, message));
    }
    let scratch = match (opened.disk, wanted) {
        (None, _) => None,
        (Some(disk), Some((_, own))) => Some(scratch::restored(own, disk)),
        (Some(_), None) => {
            return Err(Ended::bad("the snapshot has a disk, and no file came for what is written to it"));
        }
    };
    let (memory_bytes, mut memory, state) = (opened.memory_bytes, opened.backing, opened.state);
    if restore.arriving {
        if !memory.diffs.is_empty() {
            return Err(Ended::bad(
                "a snapshot that builds on others cannot be started before all of it is there",
            ));
        }
        let socket = arriving.ok_or_else(|| Ended::bad("nobody says what of the snapshot is there"))?;
        let followed = arrival::follow(socket, memory_bytes);
        memory.arrival =
            Some(followed.map_err(|e| Ended::new(ExitReason::SnapshotIncomplete, e.to_string()))?);
    }
    let arrival = memory.arrival.clone();
    if restore.note_order && engine == Engine::Soft {
        memory.noted = Some(Arc::new(FirstTouch::new(memory_bytes)));
    }
    let cpu_features = opened.cpu_features;
    let made = Restore { engine, memory_bytes, memory, state, cpu_features, disks, generation };
    let machine = Machine::restore(made, &mut *step).map_err(refused)?;
    let origin = opened.origin;
    let (kernel, initramfs) = (origin.kernel, origin.initramfs);
    let listeners = Vec::new();
    Ok(Built {
        machine,
        page_map,
        kernel,
        initramfs,
        origin: Some(origin),
        listeners,
        scratch,
        volumes: Volumes::default(),
        room: Room::default(),
        leases,
        arrival,
        waits: None,
    })
}

/// Whether a file is a version 8 snapshot, by how it begins.
fn is_v8(file: &File) -> bool {
    let mut start = [0; v8_format::MAGIC.len()];
    file.read_exact_at(&mut start, 0).is_ok() && start == v8_format::MAGIC
}

/// Keeps a snapshot from being deleted by who asks for the lock before deleting: it is shared with other VMs, and held
/// until the file is closed.
fn lease(file: &File) -> io::Result<()> {
    Ok(rustix::fs::flock(file, FlockOperation::NonBlockingLockShared)?)
}

/// Confines the process; what the engine waits for goes on beside what comes next.
fn confine(engine: Engine, shares: &Shares, required: bool) -> Result<(), Ended> {
    if let Some(missing) = confine::Walls::of_this_system().missing()
        && required
    {
        return Err(Ended::new(ExitReason::Unconfined, missing));
    }
    confine::confine(engine, &shares.reached()).map_err(|e| Ended::new(ExitReason::Engine, e.to_string()))?;
    begin(engine);
    Ok(())
}

fn unreadable(path: &Path, error: io::Error) -> Ended {
    Ended::bad(format!("{} cannot be read: {error}", path.display()))
}

/// The machine's view of a working set.
pub(crate) fn page_ranges(ranges: &[PageRange]) -> Vec<supermachine_machine::pages::Touched> {
    let run = |range: &PageRange| supermachine_machine::pages::Touched {
        pages: range.start..range.start.saturating_add(range.count),
        written: range.written,
    };
    ranges.iter().map(run).collect()
}
