//! The worker process of one VM: started, told what to run, watched until it is gone.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use supermachine_netd::host::Search;
use supermachine_proto::agent::{Chunk, Configure, Identity, Network, Root};
use supermachine_proto::engine::Engine;
use supermachine_proto::limits::MAX_CODE;
use supermachine_proto::worker::{
    Bake, Boot, Capture, Command, Disk, PageRange, Restore, Scratch, Share, ShareCache, ShareOwner, Source,
    StaleReason, Start, VolumeSlot,
};
use supermachine_support::lock;

use crate::descriptors::{self, Unshared};
use crate::errors;
use crate::monitor::{self, Control, Launched, REAP_GRACE};
use crate::netd::{self, Door, Netd};
use crate::state::{Shared, State};
use crate::sys;

/// The guest's name for the first slot, which comes after the image's disk (`rust/machine/src/assembly.rs`).
const FIRST_SLOT: &str = "/dev/vdb";

/// How long a template may take to make a process; a few milliseconds, if nothing else runs.
const PID: Duration = Duration::from_secs(30);

/// The descriptor of a volume, that of an empty file where it is not to be changed, and the slot.
type VolumeTuple = (i32, Option<i32>, u32);

/// Number of a share, path there, reason.
type StaleTuple = (u32, OsString, &'static str);

fn slots_of(volumes: &[VolumeTuple]) -> Vec<VolumeSlot> {
    volumes
        .iter()
        .map(|(_, changes, slot)| VolumeSlot { slot: *slot, read_only: changes.is_some() })
        .collect()
}

fn descriptors_of(volumes: &[VolumeTuple]) -> impl Iterator<Item = i32> {
    volumes.iter().flat_map(|(volume, changes, _)| std::iter::once(*volume).chain(*changes))
}

fn engine_named(name: &str) -> PyResult<Engine> {
    Engine::from_name(name).ok_or_else(|| PyValueError::new_err(format!("{name:?} is not an engine")))
}

/// Who the guest is; the worker sets the clock as it tells the guest.
fn identity(
    hostname: String,
    machine_id: [u8; 16],
    entropy: Vec<u8>,
    network: Option<&netd::Settings>,
) -> Identity {
    let authority = network.map(netd::Settings::certificate).unwrap_or_default();
    let network = network.map(|settings| {
        let (usual, address) = (Network::default(), settings.guest());
        let Search { domains: search, ndots } = Search::read();
        // Names of machines on a segment have no dot, and are not to be looked for elsewhere first.
        let ndots = if address == usual.address { ndots } else { 0 };
        // So that the network holds the gateway as well.
        let common = (address.to_bits() ^ usual.gateway.to_bits()).leading_zeros();
        let prefix = u8::try_from(common).expect("at most 32").min(usual.prefix);
        Network { address, prefix, search, ndots, v6: settings.v6(), ..usual }
    });
    Identity { hostname, machine_id, entropy: Chunk(entropy), wall_clock_ns: 0, network, authority }
}

/// The process that owns one VM. In a process that was forked from this one, it is of a VM that has ended.
#[pyclass(frozen, weakref, module = "supermachine._core")]
pub struct Worker(Launched, Option<Netd>);

/// Makes connections to a guest, from any thread; holds no VM alive.
#[derive(Clone)]
pub struct Dialer {
    control: Arc<Control>,
    shared: Arc<Shared>,
    door: Option<Door>,
}

impl Dialer {
    /// A stream to a guest's vsock port. A refused one ends at once.
    pub fn open(&self, port: u32) -> io::Result<Unshared<UnixStream>> {
        let (ours, theirs) = descriptors::pair()?;
        self.control.send(&Command::Connect { port }, &[theirs.as_fd()])?;
        Ok(ours)
    }

    /// The way to its ports over its network, where it has one.
    pub fn door(&self) -> Option<&Door> {
        self.door.as_ref()
    }

    /// What tells how the VM fares.
    pub fn vm(&self) -> &Shared {
        &self.shared
    }
}

/// A connection's end that the worker took, and what tells how the VM fares.
pub(crate) type Connected = (Unshared<UnixStream>, Arc<Shared>);

impl Worker {
    /// Raises in a process that was forked from the VM's own.
    fn must_be_here(&self, py: Python<'_>) -> PyResult<()> {
        self.0.shared.elsewhere().map_or(Ok(()), |exit| Err(errors::vm_exited(py, &exit)))
    }

    fn send(&self, command: &Command) -> io::Result<()> {
        self.0.control.send(command, &[])
    }

    /// A stream to a guest's vsock port. A refused one ends at once.
    pub fn open(&self, py: Python<'_>, port: u32) -> PyResult<Connected> {
        self.must_be_here(py)?;
        let dialer = self.dialer();
        match py.detach(|| dialer.open(port)) {
            Ok(stream) => Ok((stream, dialer.shared)),
            Err(error) => Err(self.lost(py, &error)),
        }
    }

    fn network(&self) -> PyResult<&Netd> {
        let without = || PyValueError::new_err("the virtual machine was started without a network");
        self.1.as_ref().ok_or_else(without)
    }

    /// What makes connections without this object.
    pub fn dialer(&self) -> Dialer {
        let door = self.1.as_ref().map(Netd::door);
        Dialer { control: self.0.control.clone(), shared: self.0.shared.clone(), door }
    }

    fn start(
        py: Python<'_>,
        path: PathBuf,
        environment: Vec<(OsString, OsString)>,
        start: Start,
        network: Option<netd::Settings>,
        own: Vec<i32>,
        template: Option<&Self>,
    ) -> PyResult<Self> {
        descriptors::reserve_standard()?;
        let own = own.into_iter().map(sys::duplicate).collect::<io::Result<Vec<_>>>()?;
        py.detach(move || {
            let link = network.as_ref().map(|_| descriptors::pair()).transpose()?;
            let theirs = link.as_ref().map(|(_, theirs)| theirs.as_fd());
            let fds: Vec<_> = own.iter().map(AsFd::as_fd).chain(theirs).collect();
            let launched = Self::launched(path, environment, start, template, &fds)?;
            // Beside the worker, which is busy by now.
            let network = match (network, link) {
                (Some(settings), Some((link, _))) => Some(Netd::new(settings, link)?),
                _ => None,
            };
            Ok(Self(launched, network))
        })
    }

    #[cfg(target_os = "linux")]
    fn launched(
        path: PathBuf,
        environment: Vec<(OsString, OsString)>,
        start: Start,
        template: Option<&Self>,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Launched> {
        match template {
            Some(template) => monitor::fork(&template.0, &Command::Fork(Box::new(start)), fds),
            None => monitor::launch(path, environment, &Command::Start(Box::new(start)), fds),
        }
    }

    /// There are no templates.
    #[cfg(not(target_os = "linux"))]
    fn launched(
        path: PathBuf,
        environment: Vec<(OsString, OsString)>,
        start: Start,
        _: Option<&Self>,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Launched> {
        monitor::launch(path, environment, &Command::Start(Box::new(start)), fds)
    }

    /// Waits for the worker's answer; `None` at the time-out, an error when the VM has ended without one.
    fn answer<T: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        take: impl Fn(&mut State) -> Option<T> + Sync + Send,
    ) -> PyResult<Option<T>> {
        let found = sys::wait_for(py, sys::deadline(timeout), |slice| {
            self.0.shared.wait(slice, |state| match (take(state), &state.exit) {
                (Some(answer), _) => Some(Ok(answer)),
                (None, Some(exit)) => Some(Err(exit.clone())),
                (None, None) => None,
            })
        })?;
        found.transpose().map_err(|exit| errors::vm_exited(py, &exit))
    }

    /// The error for a control socket that does not work: how the VM ended, when it has.
    fn lost(&self, py: Python<'_>, error: &io::Error) -> PyErr {
        let broken = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        let exit = if broken { py.detach(|| self.0.shared.wait_exit(REAP_GRACE)) } else { None };
        match exit {
            Some(exit) => errors::vm_exited(py, &exit),
            None => PyErr::from(io::Error::new(error.kind(), error.to_string())),
        }
    }
}

/// A share, by the attributes of a Python object (`storage.shares.Mounted`).
#[derive(FromPyObject)]
struct ShareArguments {
    path: PathBuf,
    read_only: bool,
    /// How long the guest trusts what it has seen: "auto", "none" or "always".
    cache: String,
    /// Whose its files are: "map" or "virtual".
    owner: String,
    /// By how many it may grow.
    quota_bytes: Option<u64>,
    /// Whether `watch_share` may be asked for it.
    watch: bool,
}

fn shares(shares: Vec<ShareArguments>) -> PyResult<Vec<Share>> {
    let share = |ShareArguments { path, read_only, cache, owner, quota_bytes, watch }| {
        let cache = match &cache[..] {
            "auto" => ShareCache::Auto,
            "none" => ShareCache::None,
            "always" => ShareCache::Always,
            _ => {
                let message = format!("cache {cache:?} is none of auto, none and always");
                return Err(pyo3::exceptions::PyValueError::new_err(message));
            }
        };
        let owner = match &owner[..] {
            "map" => ShareOwner::Map,
            "virtual" => ShareOwner::Virtual,
            _ => {
                let message = format!("owner {owner:?} is neither map nor virtual");
                return Err(pyo3::exceptions::PyValueError::new_err(message));
            }
        };
        Ok(Share { path, read_only, cache, owner, quota_bytes, watch })
    };
    shares.into_iter().map(share).collect()
}

#[pymethods]
impl Worker {
    /// Starts the executable `path` and sends it the description of a VM that boots. `shares` are directories and files
    /// of the host that the guest may mount (`attach_shares`). `scratch` is for a root on a disk: the descriptor of an
    /// empty file that its changes go to, and the disk's bytes. `volume_disks` are `(descriptor, that of an empty file
    /// or None, slot)`: a volume that has the latter is not changed, and what is written goes there.
    #[staticmethod]
    #[pyo3(signature = (path, *, engine, kernel, initramfs, disks, memory_bytes, vcpus, hostname, machine_id, entropy,
        root_fs, volumes=Vec::new(), upper_bytes=0, cmdline=String::new(), boot_timeout_ms=60_000,
        agent=true, require_confinement=false, shares=Vec::new(), environment=Vec::new(), network=None, scratch=None,
        volume_disks=Vec::new()))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keywords in Python; a struct would only repeat their names"
    )]
    fn spawn(
        py: Python<'_>,
        path: PathBuf,
        engine: &str,
        kernel: PathBuf,
        initramfs: PathBuf,
        disks: Vec<(PathBuf, bool)>,
        memory_bytes: u64,
        vcpus: u32,
        hostname: String,
        machine_id: [u8; 16],
        entropy: Vec<u8>,
        root_fs: Option<String>,
        volumes: Vec<String>,
        upper_bytes: u64,
        cmdline: String,
        boot_timeout_ms: u64,
        agent: bool,
        require_confinement: bool,
        shares: Vec<ShareArguments>,
        environment: Vec<(OsString, OsString)>,
        network: Option<netd::Wanted>,
        scratch: Option<(i32, u64)>,
        volume_disks: Vec<VolumeTuple>,
    ) -> PyResult<Self> {
        let network = network.map(netd::Settings::new).transpose()?;
        let root = match root_fs {
            Some(fs) => Root::Overlay { device: "/dev/vda".into(), fs },
            None => Root::Initramfs,
        };
        let start = Start {
            version: supermachine_proto::VERSION,
            engine: engine_named(engine)?,
            source: Source::Boot(Box::new(Boot {
                kernel,
                initramfs,
                cmdline,
                memory_bytes,
                vcpus,
                configure: Configure {
                    identity: identity(hostname, machine_id, entropy, network.as_ref()),
                    root,
                    upper_bytes,
                    mounts: Vec::new(),
                    volumes,
                    upper_device: scratch.map(|_| FIRST_SLOT.into()),
                },
            })),
            disks: disks.into_iter().map(|(path, read_only)| Disk { path, read_only }).collect(),
            shares: self::shares(shares)?,
            scratch: scratch.map(|(_, bytes)| Scratch { bytes, files: Vec::new() }),
            volumes: slots_of(&volume_disks),
            boot_timeout_ms,
            agent,
            require_confinement,
        };
        let own = scratch.iter().map(|(own, _)| *own).chain(descriptors_of(&volume_disks)).collect();
        Self::start(py, path, environment, start, network, own, None)
    }

    /// Starts the executable `path` as a template of the VMs that go on where a snapshot was taken, for `restore`; it
    /// is ready when it has opened the files. `code` is as for `restore`. `scratch` is the paths of the files that have
    /// the disk where the snapshot does not. For the soft engine on Linux.
    #[staticmethod]
    #[pyo3(signature = (path, *, engine, files, disks, scratch=None, require_confinement=false, environment=Vec::new(),
        code=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keywords in Python; a struct would only repeat their names"
    )]
    fn template(
        py: Python<'_>,
        path: PathBuf,
        engine: &str,
        files: Vec<PathBuf>,
        disks: Vec<(PathBuf, bool)>,
        scratch: Option<Vec<PathBuf>>,
        require_confinement: bool,
        environment: Vec<(OsString, OsString)>,
        code: Option<PathBuf>,
    ) -> PyResult<Self> {
        let restore = Restore {
            files,
            identity: identity(String::new(), [0; 16], Vec::new(), None),
            working_set: Vec::new(),
            arriving: false,
            code: code.unwrap_or_default(),
            note_order: false,
        };
        let start = Start {
            version: supermachine_proto::VERSION,
            engine: engine_named(engine)?,
            source: Source::Restore(Box::new(restore)),
            disks: disks.into_iter().map(|(path, read_only)| Disk { path, read_only }).collect(),
            shares: Vec::new(),
            scratch: scratch.map(|files| Scratch { bytes: 0, files }),
            volumes: Vec::new(),
            boot_timeout_ms: 0,
            agent: false,
            require_confinement,
        };
        descriptors::reserve_standard()?;
        let command = Command::Template(Box::new(start));
        Ok(Self(py.detach(|| monitor::launch(path, environment, &command, &[]))?, None))
    }

    /// Starts the executable `path` as a process that decodes code of a snapshot, for `restore`, runs none of it, and
    /// ends; `wait` gives "shutdown" when that has been done. `places` are what `code` said, and `fd` is an empty file
    /// that is written to. For the soft engine on Linux.
    #[staticmethod]
    #[pyo3(signature = (path, *, files, places, fd, require_confinement=false))]
    fn bake(
        py: Python<'_>,
        path: PathBuf,
        files: Vec<PathBuf>,
        mut places: Vec<u64>,
        fd: i32,
        require_confinement: bool,
    ) -> PyResult<Self> {
        places.truncate(MAX_CODE);
        let bake = Bake { version: supermachine_proto::VERSION, files, places, require_confinement };
        descriptors::reserve_standard()?;
        let file = sys::duplicate(fd)?;
        let command = Command::Bake(bake);
        Ok(Self(py.detach(|| monitor::launch(path, Vec::new(), &command, &[file.as_fd()]))?, None))
    }

    /// Starts the executable `path` and sends it the description of a VM that goes on where a snapshot was taken.
    ///
    /// `files` are a whole snapshot and the diffs after it; `working_set` is `(first page, pages, written)` of what
    /// earlier clones touched. `scratch` is for a snapshot with a disk: the descriptor of an empty file that changes to
    /// it go to, and the paths of the files that have the disk where the snapshot does not. `arriving` is the
    /// descriptor of a socket that `arrival_message` is written to, for a snapshot whose memory is still on its way.
    /// With `note_order` `working_set` is in the order in which the guest touched its pages first, where the engine
    /// sees that. `code` is the path of what `bake` has made of these files; "code" is among the steps where it was
    /// taken. With a `template` it is that which makes the process, with the files that it has open: `path`,
    /// `files` and `disks` are not looked at.
    #[staticmethod]
    #[pyo3(signature = (path, *, engine, files, disks, hostname, machine_id, entropy, working_set=Vec::new(),
        boot_timeout_ms=60_000, agent=true, require_confinement=false, shares=Vec::new(), environment=Vec::new(),
        network=None, scratch=None, volume_disks=Vec::new(), arriving=None,
        note_order=false, code=None, template=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keywords in Python; a struct would only repeat their names"
    )]
    fn restore(
        py: Python<'_>,
        path: PathBuf,
        engine: &str,
        files: Vec<PathBuf>,
        disks: Vec<(PathBuf, bool)>,
        hostname: String,
        machine_id: [u8; 16],
        entropy: Vec<u8>,
        working_set: Vec<(u64, u64, bool)>,
        boot_timeout_ms: u64,
        agent: bool,
        require_confinement: bool,
        shares: Vec<ShareArguments>,
        environment: Vec<(OsString, OsString)>,
        network: Option<netd::Wanted>,
        scratch: Option<(i32, Vec<PathBuf>)>,
        volume_disks: Vec<VolumeTuple>,
        arriving: Option<i32>,
        note_order: bool,
        code: Option<PathBuf>,
        template: Option<PyRef<'_, Self>>,
    ) -> PyResult<Self> {
        let network = network.map(netd::Settings::new).transpose()?;
        let (own, disk_files) = scratch.unzip();
        let working_set = working_set.into_iter();
        let arriving = arriving.into_iter();
        let restore = Restore {
            files,
            identity: identity(hostname, machine_id, entropy, network.as_ref()),
            working_set: working_set
                .map(|(start, count, written)| PageRange { start, count, written })
                .collect(),
            arriving: arriving.len() > 0,
            code: code.unwrap_or_default(),
            note_order,
        };
        let start = Start {
            version: supermachine_proto::VERSION,
            engine: engine_named(engine)?,
            source: Source::Restore(Box::new(restore)),
            disks: disks.into_iter().map(|(path, read_only)| Disk { path, read_only }).collect(),
            shares: self::shares(shares)?,
            scratch: disk_files.map(|files| Scratch { bytes: 0, files }),
            volumes: slots_of(&volume_disks),
            boot_timeout_ms,
            agent,
            require_confinement,
        };
        let own = own.into_iter().chain(descriptors_of(&volume_disks)).chain(arriving).collect();
        let template = template.as_deref();
        if let Some(template) = template {
            template.must_be_here(py)?;
        }
        Self::start(py, path, environment, start, network, own, template)
    }

    /// Process id of the worker; waits for one that a template is to make. 0 where there never was one.
    #[getter]
    fn pid(&self, py: Python<'_>) -> u32 {
        if self.0.shared.elsewhere().is_some() {
            return lock(&self.0.process).pid().unwrap_or_default();
        }
        py.detach(|| {
            let there = |ended| lock(&self.0.process).pid().or(ended);
            let found = self.0.shared.wait(PID, |state| there(state.exit.as_ref().map(|_| 0)));
            found.unwrap_or_default()
        })
    }

    /// `(reason, message, console_tail)` once the VM has ended.
    #[getter]
    fn exit(&self) -> Option<(&'static str, String, String)> {
        self.0.shared.exit().map(|e| (e.reason, e.message, e.console_tail))
    }

    /// Waits until the guest serves requests: `(step, nanoseconds)` of each step of the start. `None` at the
    /// time-out (seconds). Raises `VMExited` when the VM ends first.
    #[pyo3(signature = (timeout=None))]
    fn wait_ready(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<(String, u64)>>> {
        self.must_be_here(py)?;
        let found = sys::wait_for(py, sys::deadline(timeout), |slice| {
            self.0.shared.wait(slice, |s| match (&s.exit, &s.ready) {
                (Some(exit), _) => Some(Err(exit.clone())),
                (None, Some(ready)) => Some(Ok(ready.steps.clone())),
                (None, None) => None,
            })
        })?;
        match found {
            Some(Ok(steps)) => Ok(Some(steps)),
            Some(Err(exit)) => Err(errors::vm_exited(py, &exit)),
            None => Ok(None),
        }
    }

    /// Waits for the end of the VM: `(reason, message, console_tail)`, `None` at the time-out (seconds).
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<(&'static str, String, String)>> {
        let exit = sys::wait_for(py, sys::deadline(timeout), |slice| self.0.shared.wait_exit(slice))?;
        Ok(exit.map(|e| (e.reason, e.message, e.console_tail)))
    }

    /// A stream socket to a vsock port of the guest, as a descriptor that the caller owns.
    fn connect(&self, py: Python<'_>, port: u32) -> PyResult<i32> {
        let (stream, _) = self.open(py, port)?;
        Ok(OwnedFd::from(stream.release()).into_raw_fd())
    }

    /// Asks for a clean shutdown; `wait()` tells when it is done. No error when the VM has ended already.
    fn shutdown(&self, py: Python<'_>, grace_ms: u32) -> PyResult<()> {
        if self.0.shared.elsewhere().is_some() {
            return Ok(());
        }
        match py.detach(|| self.send(&Command::Shutdown { grace_ms })) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Ends the worker process, and the VM with it, at once.
    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        if self.0.shared.elsewhere().is_some() {
            return Ok(());
        }
        py.detach(|| {
            self.0.shared.lock().killed = true;
            lock(&self.0.process).kill()
        })
        .map_err(PyErr::from)
    }

    /// Counters of the running VM: exits by kind and instructions executed. `None` at the time-out (seconds).
    #[pyo3(signature = (timeout=None))]
    #[allow(clippy::type_complexity, reason = "a pair of a list of pairs and a number, as Python sees it")]
    fn stats(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<(Vec<(String, u64)>, u64)>> {
        self.must_be_here(py)?;
        self.0.shared.lock().stats = None;
        py.detach(|| self.send(&Command::Stats)).map_err(|e| self.lost(py, &e))?;
        let stats = self.answer(py, timeout, |state| state.stats.take())?;
        Ok(stats.map(|stats| (stats.exits, stats.instructions)))
    }

    /// Takes a snapshot into the file behind `fd`, which is empty and open for reading and writing; the guest goes on.
    /// `(id, bytes of RAM in the file, nanoseconds that the guest stood still, steps)`; `None` at the time-out
    /// (seconds). With `v8` it is of version 8, whose id is empty and which keeps neither `image` nor `api`. With
    /// `disk_elsewhere` the disk is not in it but where it is; with `code` it says which code the guest has run, for a
    /// template, and nobody keeps it: it has no digest and no disk is waited for. Volumes are known by `volume_mark`
    /// from then on, until somebody writes to them. Raises OSError with what is wrong when no snapshot could be taken.
    #[pyo3(signature = (fd, *, diff=false, v8=false, image=None, api=Vec::new(), disk_elsewhere=false, code=false, volume_mark=[0; 16], timeout=None))]
    #[allow(
        clippy::type_complexity,
        clippy::too_many_arguments,
        reason = "a tuple and keywords, as Python sees them"
    )]
    fn capture(
        &self,
        py: Python<'_>,
        fd: i32,
        diff: bool,
        v8: bool,
        image: Option<String>,
        api: Vec<u8>,
        disk_elsewhere: bool,
        code: bool,
        volume_mark: [u8; 16],
        timeout: Option<f64>,
    ) -> PyResult<Option<(Vec<u8>, u64, u64, Vec<(String, u64)>)>> {
        self.must_be_here(py)?;
        let file = sys::duplicate(fd)?;
        // One at a time: answers do not say which capture they are of.
        let begin = |state: &mut State| (!state.capturing).then(|| state.capturing = true);
        if self.answer(py, timeout, begin)?.is_none() {
            return Ok(None);
        }
        self.0.shared.lock().captured = None;
        let request = Command::Capture(Box::new(Capture {
            diff,
            image,
            api: Chunk(api),
            v8,
            disk_elsewhere,
            code,
            volume_mark,
        }));
        let sent = py.detach(|| self.0.control.send(&request, &[file.as_fd()]));
        if let Err(error) = sent {
            self.0.shared.update(|state| state.capturing = false);
            return Err(self.lost(py, &error));
        }
        match self.answer(py, timeout, |state| state.captured.take())? {
            Some(Ok(done)) => Ok(Some((done.id.0, done.data_bytes, done.pause_ns, done.steps))),
            Some(Err(message)) => Err(PyOSError::new_err(message)),
            None => Ok(None),
        }
    }

    /// The pages of RAM that the guest has touched: `(first page, pages, whether written)`, in ascending order; empty
    /// where the host does not tell. `None` at the time-out (seconds).
    #[pyo3(signature = (timeout=None))]
    fn working_set(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<(u64, u64, bool)>>> {
        self.must_be_here(py)?;
        self.0.shared.lock().working_set = None;
        py.detach(|| self.send(&Command::WorkingSet)).map_err(|e| self.lost(py, &e))?;
        let ranges = self.answer(py, timeout, |state| state.working_set.take())?;
        Ok(ranges.map(|ranges| ranges.iter().map(|r| (r.start, r.count, r.written)).collect()))
    }

    /// Where the code begins that the guest has run, by its physical addresses; empty on engines that do not know.
    /// `None` at the time-out (seconds). A worker that the guest has taken over says what it likes.
    #[pyo3(signature = (timeout=None))]
    fn code(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<u64>>> {
        self.must_be_here(py)?;
        self.0.shared.lock().code = None;
        py.detach(|| self.send(&Command::Code)).map_err(|e| self.lost(py, &e))?;
        self.answer(py, timeout, |state| state.code.take())
    }

    /// Makes the volume in a slot, which is open for writing, larger; the guest's kernel hears of it. False at the
    /// time-out (seconds). Raises OSError with the reason when it stays as it is.
    #[pyo3(signature = (slot, size, timeout=None))]
    fn grow_volume(&self, py: Python<'_>, slot: u32, size: u64, timeout: Option<f64>) -> PyResult<bool> {
        self.must_be_here(py)?;
        self.0.shared.lock().volume_grown = None;
        let command = Command::GrowVolume { slot, bytes: size };
        py.detach(|| self.send(&command)).map_err(|e| self.lost(py, &e))?;
        match self.answer(py, timeout, |state| state.volume_grown.take())? {
            Some(Err(message)) => Err(PyOSError::new_err(message)),
            done => Ok(done.is_some()),
        }
    }

    /// What the guest had open in shares when it was captured and has not any more, from the one with this number on:
    /// `(share, path, reason)`. Empty at the time-out (seconds), and when there is no more and the VM has ended.
    #[pyo3(signature = (start=0, timeout=None))]
    fn stale(&self, py: Python<'_>, start: usize, timeout: Option<f64>) -> PyResult<Vec<StaleTuple>> {
        self.must_be_here(py)?;
        let name = |why: StaleReason| match why {
            StaleReason::Changed => "changed",
            StaleReason::ReadOnly => "read-only",
            StaleReason::OtherShare => "other-share",
            StaleReason::Refused => "refused",
        };
        let found = sys::wait_for(py, sys::deadline(timeout), |slice| {
            self.0.shared.wait(slice, |state| match state.stale.get(start..) {
                Some([]) | None => state.exit.is_some().then(Vec::new),
                Some(more) => {
                    Some(more.iter().map(|(share, path, why)| (*share, path.into(), name(*why))).collect())
                }
            })
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Process id of the network's policy process; `None` without a network, and before the guest's first flow.
    #[getter]
    fn network_pid(&self) -> Option<u32> {
        self.1.as_ref().and_then(Netd::pid)
    }

    /// Whether the guest has a network.
    #[getter]
    fn has_network(&self) -> bool {
        self.1.is_some()
    }

    /// The guest's address on its network; `None` without one.
    #[getter]
    fn network_address(&self) -> Option<String> {
        self.1.as_ref().map(|network| network.address().to_string())
    }

    /// The same of IPv6; ``None`` for a guest that has none.
    #[getter]
    fn network_address_v6(&self) -> Option<String> {
        Some(self.1.as_ref()?.address_v6()?.to_string())
    }

    /// The guest is on a private segment, under these names, which lead to addresses of IPv6 as well where `v6` says
    /// so.
    fn join_segment(&self, py: Python<'_>, segment: u64, names: Vec<String>, v6: bool) -> PyResult<()> {
        let network = self.network()?;
        let join = supermachine_proto::netd::Command::Join(network.member(segment, names, v6));
        Ok(py.detach(|| network.command(join, None))?)
    }

    /// Has this guest know one of another process on the segment, whose policy process has the other end of `link`;
    /// which stays the caller's to close. Raises ValueError for what is no address.
    fn meet_remote(
        &self,
        py: Python<'_>,
        segment: u64,
        address: &str,
        names: Vec<String>,
        link: RawFd,
    ) -> PyResult<()> {
        let network = self.network()?;
        let parsed = address.parse();
        let address =
            parsed.map_err(|_| PyValueError::new_err(format!("{address:?} is no guest's address")))?;
        let member = netd::member(segment, address, names, true);
        let link = Unshared::new(|| sys::duplicate(link))?;
        let meet = supermachine_proto::netd::Command::Meet(member);
        Ok(py.detach(|| network.command(meet, Some(link.as_fd())))?)
    }

    /// And off it again.
    fn leave_segment(&self, py: Python<'_>, segment: u64) -> PyResult<()> {
        let network = self.network()?;
        Ok(py.detach(|| network.command(supermachine_proto::netd::Command::Leave { segment }, None))?)
    }

    /// Has this guest and another one on the segment know each other, by these names.
    fn meet(
        &self,
        py: Python<'_>,
        segment: u64,
        names: Vec<String>,
        other: &Self,
        its: Vec<String>,
        v6: bool,
    ) -> PyResult<()> {
        let (own, other) = (self.network()?, other.network()?);
        let members = (own.member(segment, names, v6), other.member(segment, its, v6));
        Ok(py.detach(|| own.meet(members.0, other, members.1))?)
    }

    /// What the network's policy has denied, from number `start` on, and the number of the next one. Waits up to
    /// `timeout` seconds for what is on its way. Empty without a network.
    #[pyo3(signature = (start=0, timeout=None))]
    fn denials(&self, py: Python<'_>, start: u64, timeout: Option<f64>) -> PyResult<(Vec<netd::Told>, u64)> {
        let Some(network) = &self.1 else { return Ok((Vec::new(), start)) };
        network.sync(py, timeout)?;
        let (found, next) = network.denials(start);
        Ok((found, next))
    }

    /// Waits for the denial of this number; false at the time-out (seconds), and when there will be no more.
    #[pyo3(signature = (number, timeout=None))]
    fn wait_denial(&self, py: Python<'_>, number: u64, timeout: Option<f64>) -> PyResult<bool> {
        self.1.as_ref().map_or(Ok(false), |network| network.wait(py, number, timeout))
    }

    /// The network's open flows: protocol, the guest's port, name, address, port, nanoseconds since 1970. `None` at the
    /// time-out (seconds).
    #[pyo3(signature = (timeout=None))]
    fn flows(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<netd::Open>>> {
        self.1.as_ref().map_or(Ok(Some(Vec::new())), |network| network.flows(py, timeout))
    }

    /// Another policy from here on: preset, rules that allow, rules that deny.
    fn set_network_policy(
        &self,
        py: Python<'_>,
        preset: &str,
        allow: Vec<String>,
        deny: Vec<String>,
    ) -> PyResult<()> {
        let policy = netd::policy_of(preset, allow, deny)?;
        let network = self.network()?;
        Ok(py.detach(|| network.set_policy(policy))?)
    }

    /// A descriptor, owned by the caller, that reads as ended once the VM has ended.
    fn exit_fd(&self, py: Python<'_>) -> PyResult<i32> {
        self.must_be_here(py)?;
        Ok(self.0.shared.ended_fd()?.into_raw_fd())
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.0.shared.exit() {
            Some(exit) => format!("<Worker pid={} {}>", self.pid(py), exit.reason),
            None => format!("<Worker pid={}>", self.pid(py)),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Others hold the control socket as well, so closing it here would not tell the worker.
        if self.0.shared.elsewhere().is_none() {
            self.0.control.hang_up();
        }
    }
}

/// Raised by methods of an object whose other end has been closed by the caller.
pub(crate) fn closed(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} is closed"))
}
