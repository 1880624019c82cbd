//! From the start command to a machine: opens every file, confines the process, and only then looks at what is in them
//! that a guest or a stranger may have written.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FlockOperation;
use supermachine_machine::arrival::Arrival;
use supermachine_machine::first_touch::FirstTouch;
use supermachine_machine::pages::PageMap;
use supermachine_machine::snapshot::{
    v8,
    v9::{self, OpenedDisk, Origin},
};
use supermachine_machine::{Config, Disk, Engine, Ground, Machine, Restore, State, begin, prepare};
use supermachine_proto::VERSION;
use supermachine_proto::worker::{self, Boot, ExitReason, PageRange, Source, Start};
use supermachine_snapshot::Digest32;
use supermachine_snapshot::boot_files::{self, BootFile};
use supermachine_snapshot::v8::{self as v8_format, Listener};
use supermachine_storage::scratch::Scratch;

use crate::arrival;
use crate::code;
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
    /// What shares have to be done beside, if anything.
    pub waits: Option<Arc<Waits>>,
}

/// What came along with a start.
#[derive(Default)]
pub(crate) struct Came {
    /// The file for what the guest writes to its root's disk.
    own: Option<File>,
    /// The files of the volumes.
    volumes: Vec<File>,
    /// Where is said what comes of memory that is on its way.
    arriving: Option<OwnedFd>,
    /// The network's.
    pub link: Option<OwnedFd>,
}

impl Came {
    pub(crate) fn with(start: &Start, descriptors: Vec<OwnedFd>) -> Self {
        let mut came = descriptors.into_iter();
        let own = start.scratch.as_ref().and_then(|_| came.next()).map(File::from);
        let volumes = came.by_ref().take(start.volume_files()).map(File::from).collect();
        let arriving = match &start.source {
            Source::Restore(restore) if restore.arriving => came.next(),
            _ => None,
        };
        Self { own, volumes, arriving, link: came.next() }
    }
}

/// Makes the machine, saying after each step what has been done; the `link` is left.
pub(crate) fn build(start: &Start, came: &mut Came, step: &mut dyn FnMut(&str)) -> Result<Built, Ended> {
    check_version(start)?;
    let disks = open_disks(start)?;
    let shares = Shares::open(&start.shares)?;
    let page_map = PageMap::open();
    let engine = start.engine;
    let confine = || self::confine(engine, &shares, start.require_confinement);
    prepare(engine).map_err(|e| Ended::new(ExitReason::Engine, e.to_string()))?;
    let built = match &start.source {
        Source::Boot(boot) => {
            let wanted = start.scratch.as_ref().map(|scratch| own(came).map(|own| (scratch.bytes, own)));
            self::boot(engine, boot, disks, wanted.transpose()?, page_map, confine, step)
        }
        Source::Restore(restore) => self::restore(start, restore, disks, came, page_map, confine, step),
    }?;
    furnish(built, start, came, shares)
}

fn check_version(start: &Start) -> Result<(), Ended> {
    if start.version == VERSION {
        return Ok(());
    }
    Err(Ended::bad(format!("the worker speaks version {VERSION} and the API {}", start.version)))
}

fn open_disks(start: &Start) -> Result<Vec<Disk>, Ended> {
    let open = |disk: &worker::Disk| {
        let file = File::options().read(true).write(!disk.read_only).open(&disk.path);
        let file = file.map_err(|e| Ended::bad(format!("{} cannot be opened: {e}", disk.path.display())))?;
        Ok(Disk { file, read_only: disk.read_only })
    };
    start.disks.iter().map(open).collect()
}

fn own(came: &mut Came) -> Result<File, Ended> {
    came.own.take().ok_or_else(|| Ended::bad("the file for the root's disk did not come along"))
}

/// Gives the machine what stands behind its devices.
fn furnish(mut built: Built, start: &Start, came: &mut Came, shares: Shares) -> Result<Built, Ended> {
    if let Some(scratch) = &built.scratch {
        scratch::insert(scratch, &built.machine, scratch::SLOT).map_err(|e| Ended::bad(e.to_string()))?;
        built.room.watch(scratch::SLOT, scratch.file(), scratch.bytes());
    }
    let volumes = std::mem::take(&mut came.volumes);
    built.volumes = Volumes::insert(&built.machine, &start.volumes, volumes, &built.room)?;
    // Also without shares: what the guest and its server agree on when it boots is in every snapshot of it, and a guest
    // that is restored from one may have some. One of a version 8 file has no such device.
    let waits = shares.waits();
    if let Some(server) = shares.server() {
        let _ = built.machine.set_file_server(server);
    }
    built.waits = waits.filter(|waits| !waits.is_idle());
    Ok(built)
}

fn boot(
    engine: Engine,
    boot: &Boot,
    disks: Vec<Disk>,
    wanted: Option<(u64, File)>,
    page_map: Option<PageMap>,
    confine: impl FnOnce() -> Result<(), Ended>,
    step: &mut dyn FnMut(&str),
) -> Result<Built, Ended> {
    let read = |path: &Path| {
        let bytes = fs::read(path).map_err(|e| unreadable(path, e))?;
        Ok(BootFile { path: path.to_path_buf(), bytes })
    };
    let kernel = read(&boot.kernel)?;
    let none = boot.initramfs.as_os_str().is_empty();
    let initramfs = if none { BootFile::default() } else { read(&boot.initramfs)? };
    confine()?;
    let scratch = wanted.map(|(bytes, own)| scratch::make(own, bytes)).transpose()?;
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

/// The files of a snapshot, each with a lock on it.
struct Files {
    /// The chain's.
    chain: Vec<File>,
    /// Those that have its disk, where the chain has not.
    elsewhere: Vec<File>,
    leases: Vec<File>,
}

impl Files {
    fn open(start: &Start, restore: &worker::Restore) -> Result<Self, Ended> {
        let chain = restore.files.iter().map(|path| leased(path)).collect::<Result<Vec<_>, Ended>>()?;
        let elsewhere = start.scratch.iter().flat_map(|scratch| &scratch.files).map(|path| leased(path));
        let elsewhere = elsewhere.collect::<Result<Vec<_>, Ended>>()?;
        let leases = chain.iter().chain(&elsewhere).map(File::try_clone).collect::<io::Result<_>>();
        let leases = leases.map_err(|e| Ended::bad(format!("a snapshot cannot be kept open: {e}")))?;
        Ok(Self { chain, elsewhere, leases })
    }
}

fn refused(error: supermachine_machine::Error) -> Ended {
    Ended::new(ExitReason::BadSnapshot, error.to_string())
}

/// A new VM generation id, of what is fresh.
fn generation(restore: &worker::Restore) -> [u8; 16] {
    let mut generation = [0; 16];
    let entropy = &restore.identity.entropy.0;
    let fresh = entropy.get(entropy.len().saturating_sub(generation.len())..).unwrap_or_default();
    generation[..fresh.len()].copy_from_slice(fresh);
    generation
}

fn restore(
    start: &Start,
    restore: &worker::Restore,
    disks: Vec<Disk>,
    came: &mut Came,
    page_map: Option<PageMap>,
    confine: impl FnOnce() -> Result<(), Ended>,
    step: &mut dyn FnMut(&str),
) -> Result<Built, Ended> {
    let engine = start.engine;
    let Files { mut chain, elsewhere, leases } = Files::open(start, restore)?;
    let code = BesideIt::open(restore, &chain);
    confine()?;
    step("open");
    if let [file] = &chain[..]
        && is_v8(file)
    {
        let opened = chain.swap_remove(0);
        let opened = v8::open(opened).map_err(refused)?;
        let listeners = opened.listeners().to_vec();
        let machine = v8::restore(engine, opened, disks, generation(restore), &mut *step).map_err(refused)?;
        // The format does not say what its guest booted, and no diff builds on it. What the guest has not touched is
        // the file's all the same, so that a later snapshot must look at all of RAM.
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
    let mut opened = open_v9(engine, chain, elsewhere)?;
    let memory = &mut opened.backing;
    if restore.arriving {
        if !memory.diffs.is_empty() {
            return Err(Ended::bad(
                "a snapshot that builds on others cannot be started before all of it is there",
            ));
        }
        let socket =
            came.arriving.take().ok_or_else(|| Ended::bad("nobody says what of the snapshot is there"))?;
        let followed = arrival::follow(socket, opened.memory_bytes);
        memory.arrival =
            Some(followed.map_err(|e| Ended::new(ExitReason::SnapshotIncomplete, e.to_string()))?);
    }
    if restore.note_order && engine == Engine::Soft {
        memory.noted = Some(Arc::new(FirstTouch::new(opened.memory_bytes)));
    }
    let laid = Laid::of(engine, opened, disks, leases, step)?;
    // Without it the guest's code is decoded as it runs.
    if code.is_some_and(|code| !restore.arriving && code.take(&laid)) {
        step("code");
    }
    laid.raise(restore, came, page_map, step)
}

fn open_v9(engine: Engine, chain: Vec<File>, elsewhere: Vec<File>) -> Result<v9::Opened, Ended> {
    let opened = v9::open(chain, elsewhere).map_err(refused)?;
    if opened.engine != engine {
        let message = format!(
            "the snapshot was taken on the {} engine and cannot go on with {engine}; name its own engine",
            opened.engine
        );
        return Err(Ended::new(ExitReason::BadSnapshot, message));
    }
    Ok(opened)
}

/// The file of decoded code beside a snapshot, and what the snapshot's files are to the system.
struct BesideIt {
    file: File,
    state: Vec<u8>,
}

impl BesideIt {
    /// Opened, where there is one that can be believed; before the process is confined.
    fn open(restore: &worker::Restore, chain: &[File]) -> Option<Self> {
        let file = code::open(&restore.code)?;
        Some(Self { file, state: code::state(chain).ok()? })
    }

    /// Has the machine go by it; whether it does.
    fn take(self, laid: &Laid) -> bool {
        let key = code::key(&laid.origin.id, &self.state);
        key.is_some_and(|key| laid.ground.set_baked(self.file, &key).is_ok())
    }
}

/// A snapshot that is open and mapped: all of a restore that is the same for every machine of it.
pub(crate) struct Laid {
    ground: Ground,
    state: State,
    cpu_features: Vec<String>,
    disk: Option<OpenedDisk>,
    origin: Origin,
    disks: Vec<Disk>,
    leases: Vec<File>,
    arrival: Option<Arc<Arrival>>,
}

impl Laid {
    fn of(
        engine: Engine,
        opened: v9::Opened,
        disks: Vec<Disk>,
        leases: Vec<File>,
        step: &mut dyn FnMut(&str),
    ) -> Result<Self, Ended> {
        let v9::Opened { memory_bytes, backing, state, cpu_features, disk, origin, .. } = opened;
        let arrival = backing.arrival.clone();
        let ground = Ground::new(engine, memory_bytes, backing, &state, step).map_err(refused)?;
        Ok(Self { ground, state, cpu_features, disk, origin, disks, leases, arrival })
    }

    /// For a template: confines the process, which runs no guest and starts no thread, and decodes the code that the
    /// guest has run. A clone cannot look at its page tables, which are another process's; what it has touched is
    /// noted.
    #[cfg(target_os = "linux")]
    pub(crate) fn for_clones(start: &Start) -> Result<Self, Ended> {
        check_version(start)?;
        let Source::Restore(restore) = &start.source else {
            return Err(Ended::bad("a template is of a snapshot"));
        };
        if start.engine != Engine::Soft || !start.shares.is_empty() || restore.arriving {
            return Err(Ended::bad(
                "a template is for the soft engine, without shares, and with all memory there",
            ));
        }
        walls(start.require_confinement)?;
        let disks = open_disks(start)?;
        let Files { chain, elsewhere, leases } = Files::open(start, restore)?;
        let code = BesideIt::open(restore, &chain);
        confine::confine_template().map_err(|e| Ended::new(ExitReason::Unconfined, e.to_string()))?;
        let mut opened = open_v9(start.engine, chain, elsewhere)?;
        opened.backing.noted = Some(Arc::new(FirstTouch::unordered(opened.memory_bytes)));
        let places = std::mem::take(&mut opened.code);
        let laid = Self::of(start.engine, opened, disks, leases, &mut |_| {})?;
        if let Some(code) = code {
            code.take(&laid);
        }
        laid.ground.decode_ahead(&places);
        Ok(laid)
    }

    /// In a template's copy: makes the machine, after the process has been confined as a worker is.
    #[cfg(target_os = "linux")]
    pub(crate) fn build(
        self,
        start: &Start,
        came: &mut Came,
        step: &mut dyn FnMut(&str),
    ) -> Result<Built, Ended> {
        check_version(start)?;
        let Source::Restore(restore) = &start.source else {
            return Err(Ended::bad("a template makes machines of its snapshot alone"));
        };
        if !start.shares.is_empty() || restore.arriving {
            return Err(Ended::bad("a template's machine has no shares, and all of its memory"));
        }
        prepare(start.engine).map_err(|e| Ended::new(ExitReason::Engine, e.to_string()))?;
        let shares = Shares::open(&[])?;
        confine::confine_clone().map_err(|e| Ended::new(ExitReason::Engine, e.to_string()))?;
        step("open");
        let built = self.raise(restore, came, None, step)?;
        furnish(built, start, came, shares)
    }

    /// Makes the machine.
    fn raise(
        self,
        restore: &worker::Restore,
        came: &mut Came,
        page_map: Option<PageMap>,
        step: &mut dyn FnMut(&str),
    ) -> Result<Built, Ended> {
        let Self { ground, state, cpu_features, disk, origin, disks, leases, arrival } = self;
        if let Some(read_ahead) = ground.read_ahead(page_ranges(&restore.working_set)) {
            // Without it the guest waits for the disk more often.
            let _ = std::thread::Builder::new().name("read ahead".into()).spawn(read_ahead);
        }
        let scratch = match (disk, came.own.take()) {
            (None, _) => None,
            (Some(disk), Some(own)) => Some(scratch::restored(own, disk)),
            (Some(_), None) => {
                return Err(Ended::bad(
                    "the snapshot has a disk, and no file came for what is written to it",
                ));
            }
        };
        let made = Restore { ground, state, cpu_features, disks, generation: generation(restore) };
        let machine = Machine::restore(made, &mut *step).map_err(refused)?;
        let (kernel, initramfs) = (origin.kernel, origin.initramfs);
        Ok(Built {
            machine,
            page_map,
            kernel,
            initramfs,
            origin: Some(origin),
            listeners: Vec::new(),
            scratch,
            volumes: Volumes::default(),
            room: Room::default(),
            leases,
            arrival,
            waits: None,
        })
    }
}

/// Whether a file is a version 8 snapshot, by how it begins.
fn is_v8(file: &File) -> bool {
    let mut start = [0; v8_format::MAGIC.len()];
    file.read_exact_at(&mut start, 0).is_ok() && start == v8_format::MAGIC
}

/// Opens a file of a snapshot, with a lock on it.
pub(crate) fn leased(path: &Path) -> Result<File, Ended> {
    let file = File::open(path).map_err(|e| unreadable(path, e))?;
    lease(&file).map_err(|e| unreadable(path, e))?;
    Ok(file)
}

/// Keeps a snapshot from being deleted by who asks for the lock before deleting: it is shared with other VMs, and held
/// until the file is closed.
fn lease(file: &File) -> io::Result<()> {
    Ok(rustix::fs::flock(file, FlockOperation::NonBlockingLockShared)?)
}

/// Refuses a system that has not everything to confine the process with, where that is `required`.
fn walls(required: bool) -> Result<(), Ended> {
    match confine::Walls::of_this_system().missing() {
        Some(missing) if required => Err(Ended::new(ExitReason::Unconfined, missing)),
        _ => Ok(()),
    }
}

/// Confines the process; what the engine waits for goes on beside what comes next.
fn confine(engine: Engine, shares: &Shares, required: bool) -> Result<(), Ended> {
    walls(required)?;
    confine::confine(engine, &shares.reached()).map_err(|e| Ended::new(ExitReason::Engine, e.to_string()))?;
    begin(engine);
    Ok(())
}

/// The same for a process that runs no guest, and reaches nothing but what it has open.
pub(crate) fn confine_alone(required: bool) -> Result<(), Ended> {
    walls(required)?;
    confine::confine(Engine::Soft, &[]).map_err(|e| Ended::new(ExitReason::Unconfined, e.to_string()))
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
