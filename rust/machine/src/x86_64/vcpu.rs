//! vCPUs of the x86_64 machine: their accesses, served, and their state, saved and restored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use supermachine_engine::arm64::Canceller;
use supermachine_engine::kvm::x86_64::{self as kvm, CpuModel, Exit, Start, Vcpu, Vm};
use supermachine_support::saved_structure;

use super::layout;
use super::serial::{self, Serial};
use crate::bus::Bus;
use crate::power::{EntryPoint, Power};
use crate::state::{State, decode, encode, refused};
use crate::vcpus::{DEADLINE, VcpuBackend, Vcpus};
use crate::{Error, Stop};

/// The keyboard controller's command port, and its command that resets the CPU: how Linux resets unless told otherwise.
const KEYBOARD_COMMAND: u16 = 0x64;
const RESET_CPU: u8 = 0xfe;
/// Stack of the vCPU that boots, until the kernel has its own: below the boot parameters.
const STACK: u64 = layout::BOOT_PARAMS;

/// Counters of what made vCPUs leave the guest for user space.
#[derive(Debug, Default)]
struct Counters {
    mmio: AtomicU64,
    port: AtomicU64,
    canceled: AtomicU64,
}

/// KVM's VM, and what answers beside its memory.
pub(super) struct X86 {
    vm: Arc<Vm>,
    bus: Bus,
    serial: Serial,
    counters: Counters,
}

impl X86 {
    pub(super) fn new(vm: Arc<Vm>, bus: Bus, serial: Serial) -> Self {
        Self { vm, bus, serial, counters: Counters::default() }
    }
}

/// What belongs to the machine as a whole.
#[derive(Serialize, Deserialize)]
struct Common {
    /// Encodes the [`CpuModel`].
    cpu: Vec<u8>,
    power: Vec<Power>,
}

saved_structure!(Common { cpu: Vec<u8>, power: Vec<Power> });

/// The CPU of a snapshot, which its VM is made with.
pub(super) fn model(machine: &[u8]) -> Result<CpuModel, Error> {
    let common: Common = decode("machine state", machine)?;
    CpuModel::decode(&common.cpu).map_err(|e| refused("CPU model", e))
}

/// What a vCPU's accesses reach.
struct Accesses<'a> {
    machine: &'a X86,
    vcpus: &'a Vcpus<X86>,
}

impl kvm::Bus for Accesses<'_> {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.machine.counters.port.fetch_add(1, Ordering::Relaxed);
        match port.checked_sub(layout::UART).filter(|register| *register < serial::PORTS) {
            Some(register) => self.machine.serial.read(register, data),
            // Nobody drives the bus.
            None => data.fill(0xff),
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.machine.counters.port.fetch_add(1, Ordering::Relaxed);
        match port.checked_sub(layout::UART).filter(|register| *register < serial::PORTS) {
            Some(register) => self.machine.serial.write(register, data),
            None if (port, data.first()) == (KEYBOARD_COMMAND, Some(&RESET_CPU)) => {
                self.vcpus.stop(Stop::Reset)
            }
            None => {}
        }
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        self.machine.counters.mmio.fetch_add(1, Ordering::Relaxed);
        self.machine.bus.read(address, data);
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        self.machine.counters.mmio.fetch_add(1, Ordering::Relaxed);
        self.machine.bus.write(address, data);
    }
}

impl VcpuBackend for X86 {
    type Vcpu = Vcpu;

    fn create_vcpu(&self, index: u32) -> Result<Vcpu, Error> {
        self.vm.create_vcpu(index).map_err(engine)
    }

    fn canceller(&self, index: u32) -> Result<Canceller, Error> {
        let kick = self.vm.kick(index);
        Ok(Arc::new(move || kick.request()))
    }

    fn start(&self, vcpu: &mut Vcpu, at: EntryPoint) -> Result<(), Error> {
        vcpu.start(&Start {
            rip: at.pc,
            rsp: STACK,
            rsi: at.context,
            cr3: layout::PAGE_TABLES,
            gdt: layout::GDT,
        })
        .map_err(engine)
    }

    fn run(&self, vcpus: &Vcpus<Self>, _: usize, vcpu: &mut Vcpu) -> Result<(), Error> {
        match vcpu.run(&mut Accesses { machine: self, vcpus }).map_err(engine)? {
            Exit::Canceled => {
                self.counters.canceled.fetch_add(1, Ordering::Relaxed);
            }
            Exit::Shutdown => vcpus.stop(Stop::Reset),
        }
        Ok(())
    }

    fn instructions(_: &Vcpu) -> u64 {
        0
    }

    fn exits(&self) -> Vec<(&'static str, u64)> {
        let Counters { mmio, port, canceled } = &self.counters;
        [("mmio", mmio), ("port", port), ("canceled", canceled)]
            .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
            .into()
    }

    fn cpu_features(vcpus: &Vcpus<Self>) -> Result<Vec<String>, Error> {
        Ok(vcpus.backend.vm.model().features())
    }

    fn save(vcpus: &Vcpus<Self>) -> Result<State, Error> {
        let vm = &vcpus.backend.vm;
        let saved = vcpus.on_each(DEADLINE, |_, vcpu| vcpu.save())?;
        let common = Common { cpu: vm.model().encode().map_err(engine)?, power: vcpus.power() };
        Ok(State {
            machine: encode("the machine's state", &common)?,
            interrupt_controller: vm.save().map_err(engine)?,
            vcpus: saved.into_iter().collect::<Result<_, _>>().map_err(engine)?,
            devices: Vec::new(),
            backends: Vec::new(),
        })
    }

    /// The features were compared when the VM was made with the snapshot's CPU.
    fn restore(
        vcpus: &Vcpus<Self>,
        state: &State,
        _: &[String],
        step: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        let common: Common = decode("machine state", &state.machine)?;
        state.check_power(&common.power)?;
        let saved = state.vcpus.clone();
        let restored = vcpus.on_each(DEADLINE, move |index, vcpu| vcpu.restore(&saved[index]))?;
        for (index, result) in restored.into_iter().enumerate() {
            result.map_err(|e| refused(format!("vCPU {index}"), e))?;
        }
        step("vcpu");
        let vm = &vcpus.backend.vm;
        vm.restore(&state.interrupt_controller).map_err(|e| refused("interrupt controllers", e))?;
        step("irqchip");
        vcpus.set_power(&common.power);
        Ok(())
    }

    fn restore_time(_: &Vcpus<Self>, _: &State) -> Result<(), Error> {
        Ok(())
    }

    fn announce_generation(&self) {}
}

fn engine(error: supermachine_engine::kvm::Error) -> Error {
    Error::Engine(error.into())
}
