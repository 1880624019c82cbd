//! The machine as its owner sees it: made from a configuration, started, watched, stopped.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use supermachine_devices::blk::Backing as DiskBacking;
use supermachine_devices::tail::Tail;
use supermachine_devices::{fs, net, vsock};
use supermachine_engine::Engine;
use supermachine_proto::limits::{MAX_MEMORY, MEMORY_STEP, MIN_MEMORY};
use supermachine_snapshot::layout::{Layout, most_disks};
use supermachine_support::{entropy, lock};

use crate::architecture::Architecture;
use crate::arm64::Arm64Builder;
use crate::assembly::{self, Devices, Disk};
use crate::builder::{Load, MachineBuilder};
use crate::memory::{Backing, Memory};
use crate::pages::{self, PAGE, PageMap, Touched};
use crate::state::State;
use crate::vcpus::VcpuSet;
use crate::{Error, Stop};

/// What a machine is made of.
pub struct Config {
    /// What runs the guest.
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

/// A machine, paused until [`Machine::start`].
pub struct Machine {
    pub(crate) engine: Engine,
    pub(crate) vcpus: Arc<dyn VcpuSet>,
    pub(crate) devices: Devices,
    tail: Tail,
    /// Mapped into the engine's VM, so it goes after the vCPU threads have.
    pub(crate) memory: Arc<Memory>,
}

/// What machines of one snapshot begin with: memory that is as the snapshot has it, and the engine's VM around it. No
/// thread of it runs, so that a process may be copied that has one.
pub struct Ground {
    engine: Engine,
    memory: Arc<Memory>,
    builder: Box<dyn MachineBuilder>,
}

impl Ground {
    /// Maps the RAM of so many bytes, for a machine with this state; told of each step as it is done.
    pub fn new(
        engine: Engine,
        memory_bytes: u64,
        memory: Backing,
        state: &State,
        step: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        Self::laid(engine, state.vcpus.len(), memory_bytes, memory, Some(&state.machine[..]), step)
    }

    /// `machine` is that part of a snapshot's state.
    pub(crate) fn laid(
        engine: Engine,
        vcpus: usize,
        memory_bytes: u64,
        backing: Backing,
        machine: Option<&[u8]>,
        step: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let vcpus = u32::try_from(vcpus).unwrap_or(u32::MAX);
        let architecture = Architecture::of(engine);
        check(architecture, memory_bytes, vcpus, 0)?;
        let memory = Arc::new(Memory::restored(architecture.map(), memory_bytes, backing)?);
        step("ram_map");
        let builder = builder(engine, vcpus, &memory, machine)?;
        Ok(Self { engine, memory, builder })
    }

    /// For another thread, while the machine is being made of this: has the host read these pages. `None` for an engine
    /// that does so later. The soft engine faults as any process does, with what is around a page. A thread that brings
    /// in pages beside its guest took 1.5 ms of processor time to spare the vCPU 0.5, and made that wait; one that
    /// brings in those that are written to, before it runs, spares it what it takes.
    pub fn read_ahead(&self, runs: Vec<Touched>) -> Option<impl FnOnce() + Send + 'static> {
        let memory = self.memory.clone();
        (self.engine == Engine::Soft && !runs.is_empty()).then_some(move || memory.read_ahead_all(&runs))
    }

    /// Decodes the code at these guest physical addresses, which is likely to run.
    pub fn decode_ahead(&self, places: &[u64]) {
        self.builder.decode_ahead(places);
    }

    /// The same for other processes that restore the snapshot, for [`Ground::set_baked`] with the same `key`; nothing
    /// on engines that decode nothing.
    pub fn bake(&self, places: &[u64], key: &[u8; 32]) -> Vec<u8> {
        self.builder.bake(places, key)
    }

    /// Goes by what another process has decoded of this snapshot, where the file is that. Whoever wrote it decides what
    /// this process does.
    pub fn set_baked(&self, file: File, key: &[u8; 32]) -> io::Result<()> {
        self.builder.set_baked(file, key)
    }
}

/// A machine that goes on where a snapshot was taken.
pub struct Restore {
    /// What it is made of.
    pub ground: Ground,
    /// Of everything but memory.
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
        let memory = Arc::new(memory);
        let builder = self::builder(config.engine, config.vcpus, &memory, None)?;
        let ground = Ground { engine: config.engine, memory, builder };
        let parts = Parts::on(ground, Layout::NEWEST, config.disks)?;

        let mut rng_seed = [0; 32];
        entropy(&mut rng_seed)?;
        let mut generation = [0; 16];
        generation.copy_from_slice(&rng_seed[16..]);
        parts.memory.set_generation(generation);
        let load = Load {
            kernel: &config.kernel,
            initramfs: &config.initramfs,
            cmdline: &config.cmdline,
            memory_bytes,
            virtio_devices: parts.devices.in_bus_order.len(),
            rng_seed,
        };
        let entry = parts.builder.load(&parts.memory, &load)?;
        let machine = parts.assemble()?;
        machine.vcpus.power_on(0, entry);
        Ok(machine)
    }

    /// Makes a machine as it was when its snapshot was taken; told of each step as it is done. Connections that were
    /// open are reset, and the guest's kernel is told that it is another machine.
    pub fn restore(restore: Restore, mut step: impl FnMut(&str)) -> Result<Self, Error> {
        let Restore { ground, state, cpu_features, disks, generation } = restore;
        let layout = assembly::layout_of(state.devices.len(), disks.len())?;
        let parts = Parts::on(ground, layout, disks)?;
        parts.finish_restore(&state, &cpu_features, generation, &mut step)
    }

    /// Lets the vCPUs run. A guest that was restored is told what has changed with its devices.
    pub fn start(&self) {
        for device in &self.devices.in_bus_order {
            lock(device).resume();
        }
        self.vcpus.resume();
    }

    /// The host's side of vsock.
    pub fn vsock(&self) -> &vsock::Host {
        &self.devices.vsock
    }

    /// The guest's network card, its cable unplugged at first. What is attached before [`Machine::start`] is, for a
    /// guest whose snapshot had a network, as if it had never been away.
    pub fn network(&self) -> Result<&net::Host, Error> {
        self.devices.net.as_ref().ok_or(Error::OldLayout { what: "network card" })
    }

    /// Has this serve the guest's files; before, there is an empty directory.
    pub fn set_file_server(&self, server: Box<dyn fs::Server>) -> Result<(), Error> {
        let fs = self.devices.fs.as_ref().ok_or(Error::OldLayout { what: "file server" })?;
        lock(fs).device.set_server(server);
        Ok(())
    }

    /// Serves again what the file server was to be asked again; whether there is still something.
    pub fn retry_files(&self) -> bool {
        let fs = self.devices.fs.as_ref();
        fs.is_some_and(|fs| lock(fs).with(|device, rings| device.retry(rings)))
    }

    /// Slots for disks.
    pub fn slots(&self) -> usize {
        self.devices.slots.len()
    }

    /// Puts a disk into a slot, from 0 on.
    pub fn insert_disk(&self, slot: usize, disk: Box<dyn DiskBacking>, read_only: bool) -> Result<(), Error> {
        let device = self.devices.slots.get(slot).ok_or(Error::OldLayout { what: "slot for the disk" })?;
        lock(device).with(|device, rings| {
            device.insert(disk, read_only, rings);
            Ok(())
        });
        Ok(())
    }

    /// Takes a slot's disk out; `None` when it is empty, or there is no such slot.
    pub fn eject_disk(&self, slot: usize) -> Option<Box<dyn DiskBacking>> {
        let device = self.devices.slots.get(slot)?;
        lock(device).with(|device, rings| Ok(device.eject(rings)))
    }

    /// Ends the machine; the first reason given is kept.
    pub fn stop(&self, reason: Stop) {
        self.vcpus.stop(reason);
    }

    /// Waits until the machine has stopped. `None` when `deadline` passes first.
    pub fn wait(&self, deadline: Option<Duration>) -> Option<Stop> {
        self.vcpus.wait(deadline)
    }

    /// Ends every connection of the guest's; whoever waits on one sees the end of its stream.
    pub fn close(&self) {
        self.devices.vsock.close();
    }

    /// The pages of RAM that the guest has touched: in the order of first touch where that was noted, otherwise those
    /// that the host has given, ascending.
    pub fn touched(&self, map: &PageMap) -> std::io::Result<Vec<Touched>> {
        let (host, bytes) = self.memory.host();
        let given = map.touched(host.as_ptr() as u64, bytes / PAGE)?;
        Ok(self.memory.noted().map_or_else(|| given.clone(), |noted| noted.order(&given)))
    }

    /// Brings these pages in before the guest runs, as far as that pays and was not done while the machine was made;
    /// whether they are in its memory now, those that were written to as its own. KVM maps nothing to a guest as long
    /// as another thread is changing the same part of the host's page tables: the vCPU would fault over and over until
    /// that thread is done.
    pub fn prefault(&self, runs: &[Touched]) -> bool {
        if self.engine == Engine::Soft {
            return false;
        }
        self.memory.read_ahead_all(runs);
        if self.engine == Engine::Kvm {
            for (pages, write) in pages::prefaults(runs, pages::READ_GAP) {
                self.memory.prefault(&pages, write);
            }
        }
        self.engine == Engine::Kvm
    }

    /// The last of what the guest wrote to its console.
    pub fn console_tail(&self) -> String {
        self.tail.text()
    }

    /// Whether all of its memory is there. No snapshot can be taken before.
    pub fn is_complete(&self) -> bool {
        self.memory.is_complete()
    }

    /// Exits by cause, and guest instructions run by vCPUs that have stopped.
    pub fn stats(&self) -> (Vec<(String, u64)>, u64) {
        self.vcpus.stats()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.vcpus.stop(Stop::Requested);
        self.vcpus.wait(None);
    }
}

/// What a machine consists of before its vCPUs exist.
pub(crate) struct Parts {
    engine: Engine,
    builder: Box<dyn MachineBuilder>,
    memory: Arc<Memory>,
    pub devices: Devices,
    tail: Tail,
}

impl Parts {
    pub(crate) fn on(ground: Ground, layout: Layout, disks: Vec<Disk>) -> Result<Self, Error> {
        let Ground { engine, memory, builder } = ground;
        let most = most_disks(Architecture::of(engine).map().virtio_max);
        if disks.len() > most {
            return Err(Error::TooManyDisks { disks: disks.len(), most });
        }
        let tail = Tail::default();
        let devices = Devices::assemble(layout, &*builder, &memory, disks, &tail)?;
        Ok(Self { engine, builder, memory, devices, tail })
    }

    /// Starts the vCPU threads and gives everything its snapshot's state.
    pub(crate) fn finish_restore(
        self,
        state: &State,
        cpu_features: &[String],
        generation: [u8; 16],
        step: &mut dyn FnMut(&str),
    ) -> Result<Machine, Error> {
        self.memory.set_generation(generation);
        let machine = self.assemble()?;
        machine.restore_state(state, cpu_features, step)?;
        machine.vcpus.announce_generation();
        machine.devices.vsock.reset_connections();
        step("devices");
        Ok(machine)
    }

    /// Starts the vCPU threads, all paused.
    fn assemble(self) -> Result<Machine, Error> {
        let Self { engine, builder, memory, devices, tail } = self;
        let vcpus = builder.start(devices.in_bus_order.clone(), tail.clone())?;
        Ok(Machine { engine, vcpus, devices, tail, memory })
    }
}

/// Makes the engine's VM with this memory in it. `machine` is that part of a snapshot's state.
fn builder(
    engine: Engine,
    vcpus: u32,
    memory: &Memory,
    machine: Option<&[u8]>,
) -> Result<Box<dyn MachineBuilder>, Error> {
    match Architecture::of(engine) {
        Architecture::Arm64 => {
            // Its VM is the same for every snapshot.
            let _ = machine;
            Ok(Box::new(Arm64Builder::new(engine, vcpus, memory)?))
        }
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Architecture::X86_64 if memory.presence().is_some() => Err(Error::NeedsAllMemory { engine }),
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Architecture::X86_64 => Ok(Box::new(crate::x86_64::X86Builder::new(vcpus, memory, machine)?)),
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
    let most = most_disks(map.virtio_max);
    if disks > most {
        return Err(Error::TooManyDisks { disks, most });
    }
    Ok(())
}
