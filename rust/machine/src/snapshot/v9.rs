//! A machine in a version 9 snapshot: which sections it is, and how it comes back from a chain of files.

use std::fs::File;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use supermachine_engine::Engine;
use supermachine_snapshot::v9::{self, DiskContents, Identity, Metadata, Section, Writer};
use supermachine_snapshot::{Digest32, layout, ram};
use supermachine_support::saved_structure;

use crate::Error;
use crate::architecture::Architecture;
use crate::first_touch::FirstTouch;
use crate::memory::{Backing, Diff};
use crate::pages::{self, PAGE, PageMap};
use crate::pause::Paused;
use crate::state::{State, decode, encode, refused};

/// Kinds of sections. [`API`] is its writer's own and optional.
const MACHINE: &str = "machine";
const INTERRUPT_CONTROLLER: &str = "gic";
const VCPU: &str = "vcpu";
const DEVICE: &str = "device";
/// The kind of [`About::api`]'s section.
pub const API: &str = "api";
const DISK_ELSEWHERE: &str = "disk-elsewhere";
/// Optional: what stands behind the device of this index, where there is something to hold.
const BACKEND: &str = "backend";
/// Optional: where the code begins that its guest has run, for who decodes it ahead. A hint, by guest physical
/// addresses.
const CODE: &str = "code";
const KNOWN: [&str; 8] = [MACHINE, INTERRUPT_CONTROLLER, VCPU, DEVICE, API, DISK_ELSEWHERE, BACKEND, CODE];
/// Places in it at most.
const MOST_CODE: usize = 1 << 16;
/// Version of the sections' encodings.
const VERSION: u32 = 1;

/// What a snapshot says of where its guest comes from.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// BLAKE3 of the files that the guest booted.
    pub kernel: Digest32,
    /// The same of the initramfs; zeros where there was none.
    pub initramfs: Digest32,
    /// Digest of the image that is the guest's root.
    pub image: Option<String>,
    /// The API's own.
    pub api: Vec<u8>,
    /// Whether to say which code the guest has run.
    pub code: bool,
}

/// The disk that belongs to a machine, at the moment of a capture.
pub enum Disk {
    /// The snapshot is to hold it.
    Held(Box<dyn DiskContents>),
    /// For clones that start at once: it stays where it is.
    Elsewhere(Elsewhere),
}

/// A disk whose contents are in files that whoever restores it has open already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Length of the disk.
    pub bytes: u64,
    /// Each file's device and inode.
    pub files: Vec<(u64, u64)>,
    /// In ascending order: bytes of the disk, the file that has them, and where they begin there.
    pub pieces: Vec<(Range<u64>, u32, u64)>,
}

saved_structure!(Elsewhere { bytes: u64, files: Vec<(u64, u64)>, pieces: Vec<(Range<u64>, u32, u64)> });

/// The disk of a machine that is restored. What is in no piece is zeros.
pub struct OpenedDisk {
    /// Length of the disk.
    pub bytes: u64,
    /// Opened for reading.
    pub files: Vec<File>,
    /// As in [`Elsewhere`], by the numbers of `files`.
    pub pieces: Vec<(Range<u64>, usize, u64)>,
}

/// A chain of snapshot files, checked and ready for [`crate::Machine::restore`].
pub struct Opened {
    /// What runs the guest: the one that it was captured on.
    pub engine: Engine,
    /// Of RAM.
    pub memory_bytes: u64,
    /// The chain's files.
    pub backing: Backing,
    /// Of everything but memory.
    pub state: State,
    /// Those that the guest may rely on.
    pub cpu_features: Vec<String>,
    /// Where it had one of its own.
    pub disk: Option<OpenedDisk>,
    /// Where code begins that its guest has run, as far as it says, by guest physical addresses. Not checked.
    pub code: Vec<u64>,
    /// What its own snapshots say and build on.
    pub origin: Origin,
}

/// Where a restored machine comes from: what its own snapshots build on.
#[derive(Debug)]
pub struct Origin {
    /// BLAKE3 of the kernel that the guest booted.
    pub kernel: Digest32,
    /// BLAKE3 of the initramfs that it booted.
    pub initramfs: Digest32,
    /// Id of the last file of the chain.
    pub id: Digest32,
    /// The chain's files, and where in each its RAM is.
    files: Vec<(File, Range<u64>)>,
}

/// How much of RAM a snapshot holds. Found out while the machine runs: files of a chain may have many holes.
pub enum Scope {
    /// All of it; what the guest has not touched is as the files of its origin have it, in these bytes from the start
    /// of RAM, and zeros elsewhere.
    Whole {
        /// In ascending order.
        below: Vec<Range<u64>>,
    },
    /// What has changed since the snapshot with this id.
    Diff {
        /// As [`Origin::id`] has it.
        parent: Digest32,
    },
}

impl Scope {
    /// A diff, or a whole snapshot, of a machine that was restored from `origin`.
    pub fn of(origin: Option<&Origin>, diff: bool) -> Result<Self, Error> {
        let Some(Origin { id, files, .. }) = origin else {
            return if diff { Err(Error::NoParent) } else { Ok(Self::Whole { below: Vec::new() }) };
        };
        if diff {
            return Ok(Self::Diff { parent: *id });
        }
        let mut below = Vec::new();
        for (file, ram) in files {
            for extent in ram::data_extents(file, ram.clone()) {
                let extent = extent.map_err(bad)?;
                below.push(extent.start - ram.start..extent.end - ram.start);
            }
        }
        Ok(Self::Whole { below })
    }
}

fn bad(error: supermachine_snapshot::Error) -> Error {
    Error::Snapshot(error)
}

/// Opens a chain: a whole snapshot, then the diffs that each build on the one before. `disks` are the files that have
/// the disk of one that does not hold it.
pub fn open(files: Vec<File>, disks: Vec<File>) -> Result<Opened, Error> {
    let snapshots = files.iter().map(v9::Snapshot::open).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let pieces = v9::layers(&snapshots.iter().collect::<Vec<_>>()).map_err(bad)?;
    let last = snapshots.last().ok_or(Error::NoSnapshot)?;
    last.require_known(&KNOWN).map_err(bad)?;
    let identity = last.identity();
    let engine = Engine::from_name(&identity.engine).ok_or_else(|| Error::State {
        part: "identity".into(),
        reason: format!("its engine is {:?}, which this version does not have", identity.engine),
    })?;
    let map = Architecture::of(engine).map();
    if (identity.architecture.as_str(), identity.ram_gpa) != (map.architecture, map.ram_base) {
        let (architecture, ram) = (&identity.architecture, identity.ram_gpa);
        return Err(Error::State {
            part: "identity".into(),
            reason: format!(
                "its guest is {architecture} with RAM at {ram:#x}; the {engine} engine's machine here is {} with RAM at {:#x}",
                map.architecture, map.ram_base
            ),
        });
    }
    let state = state_of(last, identity.vcpus)?;
    let disk = match last.section(DISK_ELSEWHERE, 0) {
        Some(section) => Some(elsewhere(&section.data, disks)?),
        None => held(&files, &snapshots)?,
    };
    let mut kept = Vec::new();
    for (file, snapshot) in files.iter().zip(&snapshots) {
        let start = snapshot.ram_offset();
        kept.push((file.try_clone()?, start..start + snapshot.identity().memory_bytes));
    }
    let origin =
        Origin { kernel: identity.kernel, initramfs: identity.initramfs, id: last.id(), files: kept };
    let (memory_bytes, cpu_features) = (identity.memory_bytes, identity.cpu_features.clone());
    let code = match last.section(CODE, 0) {
        Some(section) if section.version == VERSION => decode(CODE, &section.data).unwrap_or_default(),
        _ => Vec::new(),
    };

    let mut files = files.into_iter();
    let base = files.next().ok_or(Error::NoSnapshot)?;
    let diffs = files.zip(snapshots.iter().skip(1)).enumerate().map(|(n, (file, snapshot))| {
        let extents = pieces.iter().filter(|piece| piece.layer == n + 1).map(|piece| piece.ram.clone());
        Diff { file, offset: snapshot.ram_offset(), extents: extents.collect() }
    });
    let backing = Backing {
        base,
        offset: snapshots[0].ram_offset(),
        diffs: diffs.collect(),
        arrival: None,
        noted: None,
    };
    Ok(Opened { engine, memory_bytes, backing, state, cpu_features, disk, code, origin })
}

/// The disk that a chain holds.
fn held(files: &[File], snapshots: &[v9::Snapshot]) -> Result<Option<OpenedDisk>, Error> {
    let Some((bytes, pieces)) = v9::disk_layers(&snapshots.iter().collect::<Vec<_>>()) else {
        return Ok(None);
    };
    let files = files.iter().map(File::try_clone).collect::<Result<_, _>>()?;
    let pieces = pieces.into_iter().map(|piece| (piece.disk, piece.layer, piece.at));
    Ok(Some(OpenedDisk { bytes, files, pieces: pieces.collect() }))
}

/// The disk that is in other files, which are known by what the host knows them by.
fn elsewhere(data: &[u8], files: Vec<File>) -> Result<OpenedDisk, Error> {
    let said: Elsewhere = decode(DISK_ELSEWHERE, data)?;
    let known = files.iter().map(identity_of).collect::<Result<Vec<_>, _>>()?;
    let number = |file: u32| {
        let found = said.files.get(file as usize).and_then(|wanted| known.iter().position(|it| it == wanted));
        found.ok_or_else(|| refused(DISK_ELSEWHERE, "a file of the disk was not given"))
    };
    let pieces = said.pieces.iter().map(|(disk, file, at)| Ok((disk.clone(), number(*file)?, *at)));
    let pieces = pieces.collect::<Result<Vec<_>, Error>>()?;
    let mut end = 0;
    for (disk, ..) in &pieces {
        if disk.start < end || disk.end <= disk.start || disk.end > said.bytes {
            return Err(refused(DISK_ELSEWHERE, "its pieces are not in order"));
        }
        end = disk.end;
    }
    Ok(OpenedDisk { bytes: said.bytes, files, pieces })
}

/// What the host knows a file by; by the descriptor alone, so that a confined process may ask.
pub fn identity_of(file: &File) -> std::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "the types differ between systems")]
    let identity = (stat.st_dev as u64, stat.st_ino as u64);
    Ok(identity)
}

/// Length of a file, in the same way.
pub fn length_of(file: &File) -> std::io::Result<u64> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or_default())
}

fn state_of(snapshot: &v9::Snapshot, vcpus: u32) -> Result<State, Error> {
    let section = |kind: &str, index: u32| {
        let refused = |reason: String| Error::State { part: format!("section {kind} {index}"), reason };
        match snapshot.section(kind, index) {
            None => Err(refused("it is not there".into())),
            Some(section) if section.version != VERSION => Err(refused(format!(
                "it has version {}, and this release reads version {VERSION}",
                section.version
            ))),
            Some(section) => Ok(section.data.clone()),
        }
    };
    let devices = number(snapshot.sections().iter().filter(|section| section.kind == DEVICE).count());
    let backend = |index| match snapshot.section(BACKEND, index) {
        Some(section) if section.version == VERSION => section.data.clone(),
        _ => Vec::new(),
    };
    Ok(State {
        machine: section(MACHINE, 0)?,
        interrupt_controller: section(INTERRUPT_CONTROLLER, 0)?,
        vcpus: (0..vcpus).map(|index| section(VCPU, index)).collect::<Result<_, _>>()?,
        devices: (0..devices).map(|index| section(DEVICE, index)).collect::<Result<_, _>>()?,
        backends: (0..devices).map(backend).collect(),
    })
}

/// Of a vCPU or a device.
fn number(number: usize) -> u32 {
    u32::try_from(number).expect("machines have few vCPUs and devices")
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes all that needs the machine to stand still. [`Writer::finish`] does the rest while the machine goes on.
pub fn write(
    paused: &Paused,
    file: &File,
    about: About,
    page_map: Option<&PageMap>,
    scope: &Scope,
    disk: Option<Disk>,
) -> Result<Writer, Error> {
    let state = paused.state()?;
    let parent = match scope {
        Scope::Whole { .. } => None,
        Scope::Diff { parent } => Some(*parent),
    };
    let memory = paused.ram();
    let map = Architecture::of(paused.engine()).map();
    let identity = Identity {
        architecture: map.architecture.into(),
        engine: paused.engine().to_string(),
        engine_version: VERSION,
        cpu_features: paused.cpu_features()?,
        kernel: about.kernel,
        initramfs: about.initramfs,
        image: about.image,
        devices: paused.device_ids().map(layout::name).collect(),
        vcpus: number(state.vcpus.len()),
        memory_bytes: memory.len() as u64,
        ram_gpa: map.ram_base,
        parent,
        created_unix_ns: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanoseconds),
    };
    let section = |kind: &str, index: usize, required: bool, data: Vec<u8>| Section {
        kind: kind.into(),
        index: number(index),
        version: VERSION,
        required,
        data,
    };
    let mut sections = vec![
        section(MACHINE, 0, true, state.machine),
        section(INTERRUPT_CONTROLLER, 0, true, state.interrupt_controller),
    ];
    sections.extend(state.vcpus.into_iter().enumerate().map(|(n, data)| section(VCPU, n, true, data)));
    sections.extend(state.devices.into_iter().enumerate().map(|(n, data)| section(DEVICE, n, true, data)));
    let backends = state.backends.into_iter().enumerate().filter(|(_, data)| !data.is_empty());
    sections.extend(backends.map(|(n, data)| section(BACKEND, n, false, data)));
    sections.push(section(API, 0, false, about.api));
    if about.code {
        let mut places = paused.decoded()?;
        places.truncate(MOST_CODE);
        sections.push(section(CODE, 0, false, encode(CODE, &places)?));
    }
    if let Some(Disk::Elsewhere(disk)) = &disk {
        sections.push(section(DISK_ELSEWHERE, 0, true, encode(DISK_ELSEWHERE, disk)?));
    }
    let mut writer = Writer::begin(file, &Metadata { identity, sections }).map_err(bad)?;
    if let Some(Disk::Held(contents)) = disk {
        writer.set_disk(contents).map_err(bad)?;
    }

    let touched = match page_map {
        Some(map) => Some(map.touched(memory.as_ptr() as u64, memory.len() as u64 / PAGE)?),
        // What vCPUs and devices have touched is all that can be other than in the files below.
        None => paused.noted().map(FirstTouch::touched),
    };
    let bytes = |pages: &Range<u64>| pages.start * PAGE..pages.end * PAGE;
    match (scope, touched) {
        (Scope::Whole { .. }, None) => writer.write_ram(memory),
        (Scope::Whole { below }, Some(touched)) => {
            let there = touched.iter().map(|run| bytes(&run.pages));
            writer.write_ram_within(memory, &pages::union(there, below.iter().cloned()))
        }
        (Scope::Diff { .. }, Some(touched)) => {
            let written = touched.iter().filter(|run| run.written).map(|run| bytes(&run.pages));
            writer.write_ram_pages(memory, &written.collect::<Vec<_>>())
        }
        // Nobody tells what was written, so everything may have been.
        (Scope::Diff { .. }, None) => {
            writer.write_ram_pages(memory, std::slice::from_ref(&(0..memory.len() as u64)))
        }
    }
    .map_err(bad)?;
    Ok(writer)
}
