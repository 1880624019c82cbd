//! Snapshot files: looked into, verified, packed, published.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use supermachine_snapshot::publish::Publication;
use supermachine_snapshot::ram::Watch;
use supermachine_snapshot::{Digest32, Error, Format, Result, export, open, v8, v9};
use supermachine_support::to_usize;

use crate::errors;
use crate::sys::SIGNAL_INTERVAL_MS;

/// Kind, index, version, whether it is required, data.
type SectionTuple = (String, u32, u32, bool, Vec<u8>);

/// What is in a file, but for RAM.
#[derive(IntoPyObject)]
pub(crate) struct SnapshotDict {
    /// Whether the file is an export.
    export: bool,
    file_bytes: u64,
    /// What it takes on disk.
    disk_bytes: u64,
    /// Where RAM begins, in the snapshot.
    ram_offset: u64,
    /// Bytes of the disk that belongs to the machine, and how many of them the file holds.
    disk: Option<(u64, u64)>,
    v8: Option<V8Dict>,
    v9: Option<V9Dict>,
}

#[derive(IntoPyObject)]
pub(crate) struct V9Dict {
    id: String,
    minor: u32,
    ram_digest: String,
    identity: IdentityDict,
    sections: Vec<SectionTuple>,
    present: Option<Vec<(u64, u64)>>,
}

#[derive(IntoPyObject, FromPyObject)]
#[pyo3(from_item_all)]
pub struct IdentityDict {
    architecture: String,
    engine: String,
    engine_version: u32,
    cpu_features: Vec<String>,
    kernel: String,
    initramfs: String,
    image: Option<String>,
    devices: Vec<String>,
    vcpus: u32,
    memory_bytes: u64,
    ram_gpa: u64,
    parent: Option<String>,
    created_unix_ns: u64,
}

#[derive(IntoPyObject, FromPyObject)]
#[pyo3(from_item_all)]
pub struct V8Dict {
    captured_mach_time: u64,
    captured_cntvct: u64,
    gic_blob: Vec<u8>,
    vcpus: Vec<VcpuDict>,
    devices: Vec<DeviceDict>,
    /// Cid, peer's port, VM's port, family, type of socket.
    listeners: Vec<(u64, u32, u32, u16, u16)>,
    memory_bytes: u64,
    ram_gpa: u64,
}

#[derive(IntoPyObject, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct VcpuDict {
    vtimer_offset: u64,
    gp: Vec<(u32, u64)>,
    simd: Vec<(u32, u128)>,
    sys: Vec<(u32, u64)>,
    icc: Vec<(u32, u64)>,
    redist: Vec<(u32, u64)>,
}

#[derive(IntoPyObject, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct DeviceDict {
    driver_features: (u32, u32),
    status: u32,
    interrupt_status: u32,
    /// Size, ready, addresses of descriptors, available and used ring, next index of either ring.
    queues: Vec<(u16, bool, u64, u64, u64, u16, u16)>,
}

/// Reads everything but RAM of a snapshot, or of an export of one.
#[pyfunction]
pub(crate) fn read_snapshot(py: Python<'_>, path: PathBuf) -> PyResult<SnapshotDict> {
    py.detach(|| read(&path)).map_err(|error| raise(py, &path, &error))
}

fn read(path: &Path) -> Result<SnapshotDict> {
    let file = open(path)?;
    let found = file.metadata().map_err(|error| Error::Io { action: "look at", source: error })?;
    let export = (Format::of(&file)? == Format::Export).then(|| export::Export::open(&file)).transpose()?;
    let source: &dyn supermachine_snapshot::Source = match &export {
        Some(export) => export,
        None => &file,
    };
    let (mut old, mut new, mut disk) = (None, None, None);
    let ram_offset = match Format::of(source)? {
        Format::V8 => {
            let (snapshot, ram_offset) = v8::Snapshot::read_with_ram_offset(source)?;
            old = Some(snapshot.into());
            ram_offset
        }
        Format::V9 | Format::Export => {
            let snapshot = v9::Snapshot::read(source)?;
            new = Some(V9Dict::from(&snapshot));
            disk = snapshot.disk().map(|disk| (disk.bytes, disk.held_bytes()));
            snapshot.ram_offset()
        }
    };
    Ok(SnapshotDict {
        export: export.is_some(),
        file_bytes: found.len(),
        disk_bytes: found.blocks() * 512,
        ram_offset,
        disk,
        v8: old,
        v9: new,
    })
}

/// Reads and checks all of a snapshot, or of an export of one. Gives its id, which version 8 does not have.
#[pyfunction]
pub(crate) fn verify_snapshot(py: Python<'_>, path: PathBuf) -> PyResult<Option<String>> {
    watched(py, &path, |watch| export::verify(&open(&path)?, watch)).map(text)
}

/// Packs a snapshot into a file at `out`. Gives the length of it.
#[pyfunction]
pub(crate) fn export_snapshot(py: Python<'_>, path: PathBuf, out: PathBuf, replace: bool) -> PyResult<u64> {
    watched(py, &path, |watch| {
        let source = open(&path)?;
        publish(&out, replace, |file| export::write(&source, file, watch))
    })
}

/// Unpacks an export, or copies a snapshot, to a new snapshot at `out`. Gives its id, which version 8 does not have.
#[pyfunction]
pub(crate) fn import_snapshot(
    py: Python<'_>,
    path: PathBuf,
    out: PathBuf,
    replace: bool,
) -> PyResult<Option<String>> {
    watched(py, &path, |watch| {
        let source = open(&path)?;
        publish(&out, replace, |file| export::read(&source, file, watch))
    })
    .map(text)
}

/// Writes the whole snapshot that a whole one and the diffs after it amount to. Gives its id.
#[pyfunction]
pub(crate) fn flatten_snapshots(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    out: PathBuf,
    replace: bool,
) -> PyResult<String> {
    watched(py, &out, |watch| {
        let files = paths.iter().map(|path| open(path)).collect::<Result<Vec<File>>>()?;
        let files: Vec<&File> = files.iter().collect();
        publish(&out, replace, |file| v9::flatten_watched(&files, file, watch))
    })
    .map(|summary| summary.id.to_string())
}

/// Writes a version 8 snapshot with this RAM.
#[pyfunction]
pub(crate) fn write_snapshot_v8(
    py: Python<'_>,
    path: PathBuf,
    state: V8Dict,
    ram: PyBackedBytes,
    replace: bool,
) -> PyResult<()> {
    let state = v8::Snapshot::from(state);
    py.detach(|| publish(&path, replace, |file| state.write(file, &ram)))
        .map_err(|error| raise(py, &path, &error))
}

/// The disk of a snapshot that tests write: its bytes, what is held and what is zeros, and what is held, one after
/// another.
type DiskTuple = (u64, Vec<(u64, u64)>, Vec<(u64, u64)>, Vec<u8>);

struct WrittenDisk(DiskTuple);

impl v9::DiskContents for WrittenDisk {
    fn bytes(&self) -> u64 {
        self.0.0
    }

    fn present(&self) -> v9::Extents {
        self.0.1.iter().map(|(start, end)| *start..*end).collect()
    }

    fn zeros(&self) -> v9::Extents {
        self.0.2.iter().map(|(start, end)| *start..*end).collect()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let mut before = 0;
        for (start, end) in &self.0.1 {
            if (*start..*end).contains(&offset) {
                before += offset - start;
                break;
            }
            before += end - start;
        }
        let held = self.0.3.get(to_usize(before)..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(held.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Writes a version 9 snapshot with this RAM; with `present`, byte ranges, a diff. `disk` are the bytes of a disk, the
/// byte ranges of it that are held and those that are zeros, and what is held. Gives its id.
#[pyfunction]
#[pyo3(signature = (path, identity, sections, ram, present, replace, disk=None))]
#[allow(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn write_snapshot_v9(
    py: Python<'_>,
    path: PathBuf,
    identity: IdentityDict,
    sections: Vec<SectionTuple>,
    ram: PyBackedBytes,
    present: Option<Vec<(u64, u64)>>,
    replace: bool,
    disk: Option<DiskTuple>,
) -> PyResult<String> {
    let write = || {
        let sections = sections.into_iter().map(section).collect();
        let metadata = v9::Metadata { identity: identity.try_into()?, sections };
        publish(&path, replace, |file| {
            let mut writer = v9::Writer::begin(file, &metadata)?;
            if let Some(disk) = disk {
                writer.set_disk(Box::new(WrittenDisk(disk)))?;
            }
            match present {
                None => writer.write_ram(&ram)?,
                Some(ranges) => {
                    let ranges: Vec<_> = ranges.into_iter().map(|(start, end)| start..end).collect();
                    writer.write_ram_pages(&ram, &ranges)?;
                }
            }
            writer.finish()
        })
    };
    match py.detach(write) {
        Ok(summary) => Ok(summary.id.to_string()),
        Err(error) => Err(raise(py, &path, &error)),
    }
}

/// Names of a version 8 file's devices, which it has no types of, by how many queues each has.
#[pyfunction]
pub(crate) fn device_names_v8(queues: Vec<usize>) -> Vec<&'static str> {
    supermachine_snapshot::layout::names_v8(&queues)
}

/// Refuses a name that is taken before all the work, and not only after it.
pub(crate) fn not_taken(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) => Err(Error::Exists { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

fn publish<T>(path: &Path, replace: bool, write: impl FnOnce(&File) -> Result<T>) -> Result<T> {
    if !replace {
        not_taken(path)?;
    }
    let publication = Publication::begin(path)?;
    let value = write(publication.file())?;
    publication.commit(replace)?;
    Ok(value)
}

/// Does something long without the GIL, and ends it when a signal's handler raises an exception.
pub(crate) fn watched<T: Send>(
    py: Python<'_>,
    path: &Path,
    work: impl FnOnce(Watch) -> Result<T> + Send,
) -> PyResult<T> {
    // Files are made by what has no business with standard streams.
    crate::descriptors::reserve_standard()?;
    let mut raised = None;
    let mut looked = Instant::now();
    let result = py.detach(|| {
        work(&mut |_| {
            if looked.elapsed() < Duration::from_millis(SIGNAL_INTERVAL_MS) {
                return ControlFlow::Continue(());
            }
            looked = Instant::now();
            match Python::attach(|py| py.check_signals()) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    raised = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
    });
    match raised {
        Some(error) => Err(error),
        None => result.map_err(|error| raise(py, path, &error)),
    }
}

pub(crate) fn raise(py: Python<'_>, path: &Path, error: &Error) -> PyErr {
    use std::io::ErrorKind::{NotFound, PermissionDenied};

    let class = match error {
        Error::Exists { .. } => "SnapshotExists",
        Error::DiskFull { .. } => "DiskFull",
        Error::NoDirectory { .. } => "SnapshotNotFound",
        Error::Path { source, .. } if source.kind() == NotFound => "SnapshotNotFound",
        Error::Path { source, .. } | Error::Io { source, .. } if source.kind() == PermissionDenied => {
            "SnapshotDenied"
        }
        // What an export cannot be unpacked to.
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::InvalidData => "SnapshotDamaged",
        Error::Path { .. } | Error::Io { .. } | Error::WrittenDiffers { .. } => "SnapshotError",
        Error::Checksum { .. } | Error::RamDigest { .. } | Error::Cut { .. } => "SnapshotDamaged",
        _ => "BadSnapshot",
    };
    let message = match error {
        Error::Path { .. } | Error::Exists { .. } | Error::NoDirectory { .. } => error.to_string(),
        _ => format!("{}: {error}", path.display()),
    };
    errors::instance(py, class, &message, |_| Ok(()))
}

fn text(id: Option<Digest32>) -> Option<String> {
    id.map(|id| id.to_string())
}

fn section((kind, index, version, required, data): SectionTuple) -> v9::Section {
    v9::Section { kind, index, version, required, data }
}

impl From<&v9::Snapshot> for V9Dict {
    fn from(snapshot: &v9::Snapshot) -> Self {
        let tuple = |s: &v9::Section| (s.kind.clone(), s.index, s.version, s.required, s.data.clone());
        let present = snapshot.present_extents();
        Self {
            id: snapshot.id().to_string(),
            minor: snapshot.minor(),
            ram_digest: snapshot.ram_digest().to_string(),
            identity: snapshot.identity().clone().into(),
            sections: snapshot.sections().iter().map(tuple).collect(),
            present: present.map(|extents| extents.iter().map(|e| (e.start, e.end)).collect()),
        }
    }
}

impl From<v9::Identity> for IdentityDict {
    fn from(identity: v9::Identity) -> Self {
        Self {
            architecture: identity.architecture,
            engine: identity.engine,
            engine_version: identity.engine_version,
            cpu_features: identity.cpu_features,
            kernel: identity.kernel.to_string(),
            initramfs: identity.initramfs.to_string(),
            image: identity.image,
            devices: identity.devices,
            vcpus: identity.vcpus,
            memory_bytes: identity.memory_bytes,
            ram_gpa: identity.ram_gpa,
            parent: text(identity.parent),
            created_unix_ns: identity.created_unix_ns,
        }
    }
}

impl TryFrom<IdentityDict> for v9::Identity {
    type Error = Error;

    fn try_from(dict: IdentityDict) -> Result<Self> {
        Ok(Self {
            architecture: dict.architecture,
            engine: dict.engine,
            engine_version: dict.engine_version,
            cpu_features: dict.cpu_features,
            kernel: dict.kernel.parse()?,
            initramfs: dict.initramfs.parse()?,
            image: dict.image,
            devices: dict.devices,
            vcpus: dict.vcpus,
            memory_bytes: dict.memory_bytes,
            ram_gpa: dict.ram_gpa,
            parent: dict.parent.as_deref().map(str::parse).transpose()?,
            created_unix_ns: dict.created_unix_ns,
        })
    }
}

impl From<v8::Snapshot> for V8Dict {
    fn from(snapshot: v8::Snapshot) -> Self {
        let vcpu = |vcpu: v8::Vcpu| VcpuDict {
            vtimer_offset: vcpu.vtimer_offset,
            gp: vcpu.gp,
            simd: vcpu.simd,
            sys: vcpu.sys,
            icc: vcpu.icc,
            redist: vcpu.redist,
        };
        let queue =
            |q: v8::Queue| (q.size, q.ready, q.desc, q.avail, q.used, q.last_avail_idx, q.next_used_idx);
        let device = |device: v8::Device| DeviceDict {
            driver_features: device.driver_features.into(),
            status: device.status,
            interrupt_status: device.interrupt_status,
            queues: device.queues.into_iter().map(queue).collect(),
        };
        let listener = |l: v8::Listener| (l.cid, l.peer_port, l.vm_port, l.family, l.socktype);
        Self {
            captured_mach_time: snapshot.captured_mach_time,
            captured_cntvct: snapshot.captured_cntvct,
            gic_blob: snapshot.gic_blob,
            vcpus: snapshot.vcpus.into_iter().map(vcpu).collect(),
            devices: snapshot.devices.into_iter().map(device).collect(),
            listeners: snapshot.listeners.into_iter().map(listener).collect(),
            memory_bytes: snapshot.memory_bytes,
            ram_gpa: snapshot.ram_gpa,
        }
    }
}

impl From<V8Dict> for v8::Snapshot {
    fn from(dict: V8Dict) -> Self {
        let vcpu = |vcpu: VcpuDict| v8::Vcpu {
            vtimer_offset: vcpu.vtimer_offset,
            gp: vcpu.gp,
            simd: vcpu.simd,
            sys: vcpu.sys,
            icc: vcpu.icc,
            redist: vcpu.redist,
        };
        let queue = |(size, ready, desc, avail, used, last_avail_idx, next_used_idx)| v8::Queue {
            size,
            ready,
            desc,
            avail,
            used,
            last_avail_idx,
            next_used_idx,
        };
        let device = |device: DeviceDict| v8::Device {
            driver_features: device.driver_features.into(),
            status: device.status,
            interrupt_status: device.interrupt_status,
            queues: device.queues.into_iter().map(queue).collect(),
        };
        let listener = |(cid, peer_port, vm_port, family, socktype)| v8::Listener {
            cid,
            peer_port,
            vm_port,
            family,
            socktype,
        };
        Self {
            captured_mach_time: dict.captured_mach_time,
            captured_cntvct: dict.captured_cntvct,
            gic_blob: dict.gic_blob,
            vcpus: dict.vcpus.into_iter().map(vcpu).collect(),
            devices: dict.devices.into_iter().map(device).collect(),
            listeners: dict.listeners.into_iter().map(listener).collect(),
            memory_bytes: dict.memory_bytes,
            ram_gpa: dict.ram_gpa,
        }
    }
}
