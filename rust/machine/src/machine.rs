//! The machine as its owner sees it: made from a configuration, started, watched, stopped.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use supermachine_devices::blk::Blk;
use supermachine_devices::console::Console;
use supermachine_devices::pl011::Pl011;
use supermachine_devices::rng::Rng;
use supermachine_devices::tail::Tail;
use supermachine_devices::{Device, Line, Transport, vsock};
use supermachine_engine::Engine;
use supermachine_engine::arm64::{Protection, Vm, VmConfig};

use crate::boot;
use crate::bus::{Bus, Registers};
use crate::fdt::Description;
use crate::memory::Memory;
use crate::vcpu::Vcpus;
use crate::{Error, Stop, layout};

/// The guest's vsock context id.
const GUEST_CID: u32 = 3;

/// What every guest gets on its command line. `panic=-1` turns a panic into a reset at once; the UART shows what goes
/// wrong before the virtio console is there.
const CMDLINE: &str = "earlycon=pl011,mmio32,0x9000000 console=hvc0 panic=-1";

/// What a machine is made of.
pub struct Config {
    pub engine: Engine,
    /// Bytes of RAM; a multiple of 2 MiB from [`layout::MIN_MEMORY`] to [`layout::MAX_MEMORY`].
    pub memory_bytes: u64,
    /// From 1 to [`layout::MAX_VCPUS`].
    pub vcpus: u32,
    /// An arm64 Image.
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

/// A machine, paused until [`Machine::start`].
pub struct Machine {
    vcpus: Arc<Vcpus>,
    vsock: vsock::Host,
    tail: Tail,
    /// Mapped into the engine's VM, so it goes after the vCPU threads have.
    _memory: Arc<Memory>,
}

impl<D: Device> Registers for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data);
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

impl Machine {
    /// Makes the machine and loads what it boots.
    pub fn new(config: Config) -> Result<Self, Error> {
        check(&config)?;
        let memory = Arc::new(Memory::new(config.memory_bytes)?);
        let vm = config.engine.arm64(VmConfig {
            vcpus: config.vcpus,
            gicd_base: layout::GICD_BASE,
            gicr_base: layout::GICR_BASE,
        })?;
        let (ram, bytes) = memory.host();
        // SAFETY: the mapping is `memory`'s, which the machine keeps until its vCPU threads have ended.
        unsafe { vm.map(ram, layout::RAM_BASE, bytes, Protection::ReadWriteExecute)? };
        // SAFETY: as above.
        unsafe {
            vm.map(memory.vmgenid_host(), layout::VMGENID_BASE, layout::VMGENID_SIZE, Protection::Read)?
        };

        // In bus order: vsock, blocks, then what has no state that matters to a snapshot of the field's format.
        let tail = Tail::default();
        let mut windows = Windows { vm: vm.clone(), memory: memory.clone(), list: Vec::new() };
        let (vsock, transport) = vsock::Host::start(GUEST_CID, memory.ram.clone(), windows.line())?;
        windows.list.push(transport);
        for disk in config.disks {
            windows.add(Blk::new(disk.file, disk.read_only)?);
        }
        windows.add(Console(tail.clone()));
        windows.add(Rng);
        let devices = windows.list.len();
        let bus = Bus::new(windows.list, Arc::new(Mutex::new(Pl011(tail.clone()))));

        let mut rng_seed = [0; 32];
        // SAFETY: the pointer and length are the array's.
        if unsafe { libc::getentropy(rng_seed.as_mut_ptr().cast(), rng_seed.len()) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let mut generation = [0; 16];
        generation.copy_from_slice(&rng_seed[16..]);
        memory.set_generation(generation);
        let cmdline = format!("{CMDLINE} {}", config.cmdline);
        let description = Description {
            vcpus: config.vcpus,
            memory_bytes: config.memory_bytes,
            cmdline: cmdline.trim_end(),
            initramfs: None,
            virtio_devices: devices,
            rng_seed,
        };
        let entry = boot::load(&memory.ram, &config.kernel, &config.initramfs, description)?;
        let vcpus = Vcpus::start(vm, bus, config.vcpus)?;
        vcpus.power_on(0, entry.pc, entry.fdt);
        Ok(Self { vcpus, vsock, tail, _memory: memory })
    }

    /// Lets the vCPUs run.
    pub fn start(&self) {
        self.vcpus.resume();
    }

    /// The host's side of vsock.
    pub fn vsock(&self) -> &vsock::Host {
        &self.vsock
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
        self.vsock.close();
    }

    /// The last of what the guest wrote to its console.
    pub fn console_tail(&self) -> String {
        self.tail.text()
    }

    /// Exits by cause, and guest instructions run by vCPUs that have stopped.
    pub fn stats(&self) -> (Vec<(String, u64)>, u64) {
        let counters = &self.vcpus.counters;
        let named = [
            ("mmio", &counters.mmio),
            ("hvc", &counters.hvc),
            ("smc", &counters.smc),
            ("canceled", &counters.canceled),
        ];
        let exits = named.map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)));
        (exits.into(), counters.instructions.load(Ordering::Relaxed))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.vcpus.stop(Stop::Requested);
        self.vcpus.wait(None);
    }
}

/// The virtio windows, as they are filled.
struct Windows {
    vm: Arc<dyn Vm>,
    memory: Arc<Memory>,
    list: Vec<Arc<Mutex<dyn Registers>>>,
}

impl Windows {
    /// The interrupt of the next window.
    fn line(&self) -> Line {
        let (vm, intid) = (self.vm.clone(), layout::spi_intid(layout::VIRTIO_SPI + self.list.len() as u32));
        Arc::new(move |level| vm.set_spi(intid, level))
    }

    fn add(&mut self, device: impl Device + 'static) {
        let transport = Transport::new(device, self.memory.ram.clone(), self.line());
        self.list.push(Arc::new(Mutex::new(transport)));
    }
}

fn check(config: &Config) -> Result<(), Error> {
    let memory = config.memory_bytes;
    if !(layout::MIN_MEMORY..=layout::MAX_MEMORY).contains(&memory) || !memory.is_multiple_of(2 << 20) {
        return Err(Error::BadMemory { memory });
    }
    if config.vcpus == 0 || config.vcpus > layout::MAX_VCPUS {
        return Err(Error::BadVcpus { vcpus: config.vcpus });
    }
    if config.disks.len() + 3 > layout::VIRTIO_MAX {
        return Err(Error::TooManyDisks { disks: config.disks.len() });
    }
    Ok(())
}
