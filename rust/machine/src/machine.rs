//! The machine as its owner sees it: made from a configuration, started, watched, stopped.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use supermachine_devices::blk::Backing as DiskBacking;
use supermachine_devices::pl011::Pl011;
use supermachine_devices::tail::Tail;
use supermachine_devices::{Device, Transport, fs, net, vsock};
use supermachine_engine::Engine;
use supermachine_proto::limits::{MAX_MEMORY, MEMORY_STEP, MIN_MEMORY};

use crate::assembly::{self, Devices, Layout};
use crate::board::{Architecture, Board, Load};
use crate::bus::{Registers, Window};
use crate::capture::{DeviceState, State};
use crate::memory::{Backing, Memory};
use crate::pages::{self, PAGE, PageMap, Touched};
use crate::vcpus::Processors;
use crate::{Error, Stop, v8};

/// Pages between two that are read which are read as well: that takes less time than asking for each of them alone, and
/// no memory of the machine's own.
const READ_GAP: u64 = 16;

/// What a machine is made of.
pub struct Config {
    pub engine: Engine,
    /// Bytes of RAM; a multiple of [`MEMORY_STEP`] from [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory_bytes: u64,
    /// From 1 to as many as the architecture's machine has.
    pub vcpus: u32,
    /// An arm64 Image, or an x86_64 vmlinux, as the engine's guests are.
    pub kernel: Vec<u8>,
    /// A cpio archive, or nothing.
    pub initramfs: Vec<u8>,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// In order: /dev/vda, /dev/vdb …
    pub disks: Vec<Disk>,
}

/// A disk's contents.
pub struct Disk {
    pub file: File,
    pub read_only: bool,
}

/// A virtio window that the bus and a capture share.
pub(crate) type SharedWindow = Arc<Mutex<dyn Window>>;

/// A machine, paused until [`Machine::start`].
pub struct Machine {
    pub(crate) engine: Engine,
    pub(crate) processors: Arc<dyn Processors>,
    pub(crate) devices: Devices,
    tail: Tail,
    /// Mapped into the engine's VM, so it goes after the vCPU threads have.
    pub(crate) memory: Arc<Memory>,
}

impl<D: Device> Registers for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }
}

impl<D: Device> Window for Transport<D> {
    fn id(&self) -> u32 {
        self.device.id()
    }

    fn state(&self) -> DeviceState {
        DeviceState { id: self.device.id(), config: self.device.config().to_vec(), transport: self.state() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), String> {
        if state.id != self.device.id() || !self.device.restore_config(&state.config) {
            let (id, config) = (self.device.id(), self.device.config());
            return Err(format!(
                "it is of type {} with configuration {:02x?}, and the machine has type {id} with {config:02x?} there; \
                 a snapshot needs the devices and disks that it was taken with",
                state.id, state.config
            ));
        }
        self.restore(&state.transport).map_err(|e| e.to_string())
    }

    fn resume(&mut self) {
        self.with(|device, rings| {
            device.resume(rings);
            Ok(())
        });
    }
}

impl Registers for Pl011 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }
}

/// A machine that goes on where a snapshot was taken.
pub struct Restore {
    pub engine: Engine,
    pub memory_bytes: u64,
    pub memory: Backing,
    pub state: State,
    /// Those that the guest may rely on.
    pub cpu_features: Vec<String>,
    /// Those that the machine had.
    pub disks: Vec<Disk>,
    /// A new VM generation id: what tells the guest's kernel that it is another machine now.
    pub generation: [u8; 16],
}

impl Machine {
    /// Makes the machine and loads what it boots.
    pub fn new(config: Config) -> Result<Self, Error> {
        let architecture = Architecture::of(config.engine);
        let memory_bytes = config.memory_bytes;
        check(architecture, memory_bytes, config.vcpus, config.disks.len())?;
        let memory = Memory::new(architecture.map(), architecture.span(memory_bytes))?;
        #[cfg(target_os = "linux")]
        if config.engine == Engine::Kvm {
            memory.prefer_huge_pages();
        }
        let parts = Parts::new(config.engine, config.vcpus, memory, Layout::NEWEST, config.disks, None)?;

        let mut rng_seed = [0; 32];
        // SAFETY: the pointer and length are the array's.
        if unsafe { libc::getentropy(rng_seed.as_mut_ptr().cast(), rng_seed.len()) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let mut generation = [0; 16];
        generation.copy_from_slice(&rng_seed[16..]);
        parts.memory.set_generation(generation);
        let load = Load {
            kernel: &config.kernel,
            initramfs: &config.initramfs,
            cmdline: &config.cmdline,
            memory_bytes,
            virtio_devices: parts.devices.windows.len(),
            rng_seed,
        };
        let entry = parts.board.load(&parts.memory, &load)?;
        let machine = parts.assemble(config.engine)?;
        machine.processors.power_on(0, entry);
        Ok(machine)
    }

    /// Makes a machine as it was when its snapshot was taken; told of each step as it is done. Connections that were
    /// open are reset, and the guest's kernel is told that it is another machine.
    pub fn restore(restore: Restore, mut step: impl FnMut(&str)) -> Result<Self, Error> {
        let Restore { engine, memory_bytes, memory, state, cpu_features, disks, generation } = restore;
        let (vcpus, machine) = (state.vcpus.len(), Some(&state.machine[..]));
        let layout = Layout::of(state.devices.len(), disks.len())?;
        let parts = Parts::restored(engine, vcpus, memory_bytes, memory, layout, disks, machine, &mut step)?;
        parts.go_on(engine, &state, &cpu_features, generation, step)
    }

    /// As [`Machine::restore`], from a version 8 file.
    pub fn restore_v8(
        engine: Engine,
        opened: v8::Opened,
        disks: Vec<Disk>,
        generation: [u8; 16],
        mut step: impl FnMut(&str),
    ) -> Result<Self, Error> {
        let architecture = Architecture::of(engine);
        if architecture != Architecture::Arm64 {
            let reason = format!(
                "its guest is aarch64, and the {engine} engine's are {} here",
                architecture.map().architecture
            );
            return Err(Error::State { part: "header".into(), reason });
        }
        let (vcpus, memory_bytes) = (opened.vcpus(), opened.memory_bytes);
        let (backing, snapshot) = opened.split();
        let layout = v8::layout(&snapshot, disks.len())?;
        let parts = Parts::restored(engine, vcpus, memory_bytes, backing, layout, disks, None, &mut step)?;
        let state = v8::state(&snapshot, &parts.devices.windows)?;
        parts.go_on(engine, &state, &[], generation, step)
    }

    /// Lets the vCPUs run. A guest that was restored is told what has changed with its devices.
    pub fn start(&self) {
        for window in &self.devices.windows {
            window.lock().unwrap_or_else(PoisonError::into_inner).resume();
        }
        self.processors.resume();
    }

    /// The host's side of vsock.
    pub fn vsock(&self) -> &vsock::Host {
        &self.devices.vsock
    }

    /// The guest's network card, its cable unplugged at first. What is attached before [`Machine::start`] is, for a guest
    /// whose snapshot had a network, as if it had never been away.
    pub fn network(&self) -> Result<&net::Host, Error> {
        self.devices.net.as_ref().ok_or(Error::OldLayout { what: "network card" })
    }

    /// Has this serve the guest's files; before, there is an empty directory.
    pub fn set_file_server(&self, server: Box<dyn fs::Server>) -> Result<(), Error> {
        let fs = self.devices.fs.as_ref().ok_or(Error::OldLayout { what: "file server" })?;
        fs.lock().unwrap_or_else(PoisonError::into_inner).device.set_server(server);
        Ok(())
    }

    /// Slots for disks.
    pub fn slots(&self) -> usize {
        self.devices.slots.len()
    }

    /// Puts a disk into a slot, from 0 on.
    pub fn insert_disk(&self, slot: usize, disk: Box<dyn DiskBacking>, read_only: bool) -> Result<(), Error> {
        let device = self.devices.slots.get(slot).ok_or(Error::OldLayout { what: "slot for the disk" })?;
        device.lock().unwrap_or_else(PoisonError::into_inner).with(|device, rings| {
            device.insert(disk, read_only, rings);
            Ok(())
        });
        Ok(())
    }

    /// Takes a slot's disk out; `None` when it is empty, or there is no such slot.
    pub fn eject_disk(&self, slot: usize) -> Option<Box<dyn DiskBacking>> {
        let device = self.devices.slots.get(slot)?;
        device.lock().unwrap_or_else(PoisonError::into_inner).with(|device, rings| Ok(device.eject(rings)))
    }

    /// Ends the machine; the first reason given is kept.
    pub fn stop(&self, reason: Stop) {
        self.processors.stop(reason);
    }

    /// Waits until the machine has stopped. `None` when `deadline` passes first.
    pub fn wait(&self, deadline: Option<Duration>) -> Option<Stop> {
        self.processors.wait(deadline)
    }

    /// Ends every connection of the guest's; whoever waits on one sees the end of its stream.
    pub fn close(&self) {
        self.devices.vsock.close();
    }

    /// The pages of RAM that the host has given, from its start.
    pub fn touched(&self, map: &PageMap) -> std::io::Result<Vec<Touched>> {
        let (host, bytes) = self.memory.host();
        map.touched(host.as_ptr() as u64, bytes / PAGE)
    }

    /// Has the host begin to read what of these pages is in the snapshot's file.
    pub fn read_ahead(&self, runs: &[Touched]) {
        let pages = pages::joined(runs.iter().map(|run| run.pages.clone()), READ_GAP);
        pages.iter().for_each(|pages| self.memory.read_ahead(pages));
    }

    /// Brings these pages in; those that were written to are the guest's own afterwards.
    pub fn prefault(&self, runs: &[Touched]) {
        for (pages, write) in pages::prefaults(runs, READ_GAP) {
            self.memory.prefault(&pages, write);
        }
    }

    /// Whether pages may be brought in while the guest runs. KVM maps nothing to a guest as long as another thread is
    /// changing the same part of the host's page tables: the vCPU faults over and over until that thread is done,
    /// which on a busy host it may not be for many milliseconds.
    pub fn prefaults_beside_the_guest(&self) -> bool {
        self.engine != Engine::Kvm
    }

    /// The last of what the guest wrote to its console.
    pub fn console_tail(&self) -> String {
        self.tail.text()
    }

    /// Exits by cause, and guest instructions run by vCPUs that have stopped.
    pub fn stats(&self) -> (Vec<(String, u64)>, u64) {
        self.processors.stats()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.processors.stop(Stop::Requested);
        self.processors.wait(None);
    }
}

/// What a machine consists of before its vCPUs exist.
struct Parts {
    board: Box<dyn Board>,
    memory: Arc<Memory>,
    devices: Devices,
    tail: Tail,
}

impl Parts {
    fn new(
        engine: Engine,
        vcpus: u32,
        memory: Memory,
        layout: Layout,
        disks: Vec<Disk>,
        machine: Option<&[u8]>,
    ) -> Result<Self, Error> {
        let memory = Arc::new(memory);
        let board = Architecture::of(engine).board(engine, vcpus, &memory, machine)?;
        let tail = Tail::default();
        let devices = Devices::assemble(layout, &*board, &memory, disks, &tail)?;
        Ok(Self { board, memory, devices, tail })
    }

    /// With RAM as a snapshot has it.
    #[expect(clippy::too_many_arguments, reason = "what a machine is made of, once")]
    fn restored(
        engine: Engine,
        vcpus: usize,
        memory_bytes: u64,
        backing: Backing,
        layout: Layout,
        disks: Vec<Disk>,
        machine: Option<&[u8]>,
        step: &mut impl FnMut(&str),
    ) -> Result<Self, Error> {
        let vcpus = u32::try_from(vcpus).unwrap_or(u32::MAX);
        let architecture = Architecture::of(engine);
        check(architecture, memory_bytes, vcpus, disks.len())?;
        let memory = Memory::restored(architecture.map(), memory_bytes, backing)?;
        step("ram_map");
        Self::new(engine, vcpus, memory, layout, disks, machine)
    }

    /// Takes over a snapshot's state.
    fn go_on(
        self,
        engine: Engine,
        state: &State,
        cpu_features: &[String],
        generation: [u8; 16],
        mut step: impl FnMut(&str),
    ) -> Result<Machine, Error> {
        self.memory.set_generation(generation);
        let machine = self.assemble(engine)?;
        machine.take_over(state, cpu_features, &mut step)?;
        machine.processors.announce_generation();
        machine.devices.vsock.reset_connections();
        step("devices");
        Ok(machine)
    }

    /// Starts the vCPU threads, all paused.
    fn assemble(self, engine: Engine) -> Result<Machine, Error> {
        let Self { board, memory, devices, tail } = self;
        let processors = board.start(devices.windows.clone(), tail.clone())?;
        Ok(Machine { engine, processors, devices, tail, memory })
    }
}

fn check(architecture: Architecture, memory: u64, vcpus: u32, disks: usize) -> Result<(), Error> {
    let map = architecture.map();
    if !(MIN_MEMORY..=architecture.span(MAX_MEMORY)).contains(&memory) || !memory.is_multiple_of(MEMORY_STEP)
    {
        return Err(Error::BadMemory { memory });
    }
    if vcpus == 0 || vcpus > map.max_vcpus {
        return Err(Error::BadVcpus { vcpus, most: map.max_vcpus });
    }
    let most = assembly::most_disks(map.virtio_max);
    if disks > most {
        return Err(Error::TooManyDisks { disks, most });
    }
    Ok(())
}
