//! vCPUs of the arm64 machine: their exits, served, and their state, saved and restored.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use supermachine_engine::arm64::state::Clock;
use supermachine_engine::arm64::{Access, Canceller, DataAbort, Exit, Reg, Vcpu, Vm, features};
use supermachine_support::{saved_structure, to_usize};

use super::layout;
use super::psci::{self, Call};
use crate::bus::Bus;
use crate::power::{EntryPoint, Power};
use crate::state::{State, decode, encode, refused};
use crate::vcpus::{DEADLINE, VcpuBackend, Vcpus};
use crate::{Error, Stop};

/// EL1h with all interrupts masked: how a CPU starts (booting.rst, section 4).
const START_CPSR: u64 = 0x3c5;

/// Counters of what made vCPUs leave the guest.
#[derive(Debug, Default)]
struct Counters {
    mmio: AtomicU64,
    hvc: AtomicU64,
    smc: AtomicU64,
    canceled: AtomicU64,
}

/// An engine's VM, and what answers beside its memory.
pub(super) struct Arm64 {
    vm: Arc<dyn Vm>,
    bus: Bus,
    counters: Counters,
}

impl Arm64 {
    pub(super) fn new(vm: Arc<dyn Vm>, bus: Bus) -> Self {
        Self { vm, bus, counters: Counters::default() }
    }
}

/// What belongs to the machine as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Common {
    /// The guest's virtual counter (CNTVCT_EL0) at the capture, in ticks.
    pub cntvct: u64,
    pub power: Vec<Power>,
}

saved_structure!(Common { cntvct: u64, power: Vec<Power> });

impl VcpuBackend for Arm64 {
    type Vcpu = Box<dyn Vcpu>;

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Error> {
        Ok(self.vm.create_vcpu(index)?)
    }

    fn canceller(&self, index: u32) -> Result<Canceller, Error> {
        Ok(self.vm.canceller(index)?)
    }

    fn start(&self, vcpu: &mut Box<dyn Vcpu>, at: EntryPoint) -> Result<(), Error> {
        vcpu.set_reg(Reg::CPSR, START_CPSR)?;
        vcpu.set_reg(Reg::x(0), at.context)?;
        vcpu.set_reg(Reg::PC, at.pc)?;
        Ok(())
    }

    fn run(&self, vcpus: &Vcpus<Self>, index: usize, vcpu: &mut Box<dyn Vcpu>) -> Result<(), Error> {
        loop {
            match vcpu.run()? {
                Exit::Canceled => {
                    self.counters.canceled.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Exit::DataAbort(abort) => {
                    self.counters.mmio.fetch_add(1, Ordering::Relaxed);
                    self.mmio(&mut **vcpu, abort)?;
                }
                Exit::Read { address, size } => {
                    self.counters.mmio.fetch_add(1, Ordering::Relaxed);
                    let mut bytes = [0; 8];
                    self.bus.read(address, &mut bytes[..size]);
                    vcpu.finish_read(u64::from_le_bytes(bytes))?;
                }
                Exit::Write { address, size, value } => {
                    self.counters.mmio.fetch_add(1, Ordering::Relaxed);
                    self.bus.write(address, &value.to_le_bytes()[..size]);
                }
                Exit::PowerOff => {
                    vcpus.stop(Stop::PowerOff);
                    return Ok(());
                }
                Exit::Reset => {
                    vcpus.stop(Stop::Reset);
                    return Ok(());
                }
                Exit::Hvc { .. } => {
                    self.counters.hvc.fetch_add(1, Ordering::Relaxed);
                    if !self.psci(vcpus, index, &mut **vcpu)? {
                        return Ok(());
                    }
                }
                Exit::Smc { .. } => {
                    self.counters.smc.fetch_add(1, Ordering::Relaxed);
                    let pc = vcpu.reg(Reg::PC)?;
                    vcpu.set_reg(Reg::PC, pc.wrapping_add(4))?;
                    vcpu.set_reg(Reg::x(0), psci::NOT_SUPPORTED.cast_unsigned())?;
                }
            }
        }
    }

    fn instructions(vcpu: &Box<dyn Vcpu>) -> u64 {
        vcpu.instructions()
    }

    fn exits(&self) -> Vec<(&'static str, u64)> {
        let Counters { mmio, hvc, smc, canceled } = &self.counters;
        [("mmio", mmio), ("hvc", hvc), ("smc", smc), ("canceled", canceled)]
            .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
            .into()
    }

    /// Features of the first vCPU, which are those of all.
    fn cpu_features(vcpus: &Vcpus<Self>) -> Result<Vec<String>, Error> {
        let features = vcpus.on_each(DEADLINE, |_, vcpu| vcpu.features())?;
        Ok(features.into_iter().next().unwrap_or_default())
    }

    fn decoded(vcpus: &Vcpus<Self>) -> Result<Vec<u64>, Error> {
        let of_each = vcpus.on_each(DEADLINE, |_, vcpu| vcpu.decoded())?;
        let longest = of_each.iter().map(Vec::len).max().unwrap_or_default();
        let by_age = (0..longest).flat_map(|age| of_each.iter().filter_map(move |one| one.get(age)));
        let mut known = BTreeSet::new();
        Ok(by_age.copied().filter(|place| known.insert(*place)).collect())
    }

    fn save(vcpus: &Vcpus<Self>) -> Result<State, Error> {
        let vm = &vcpus.backend.vm;
        let host = vm.host_counter();
        let saved = vcpus.on_each(DEADLINE, |_, vcpu| (vcpu.vtimer_offset(), vcpu.save()))?;
        let cntvct = host.wrapping_sub(saved.first().map_or(0, |(offset, _)| *offset));
        let common = Common { cntvct, power: vcpus.power() };
        Ok(State {
            machine: encode("the machine's state", &common)?,
            interrupt_controller: vm.gic_state()?,
            vcpus: saved.into_iter().map(|(_, bytes)| bytes).collect::<Result<_, _>>()?,
            devices: Vec::new(),
            backends: Vec::new(),
        })
    }

    fn restore(
        vcpus: &Vcpus<Self>,
        state: &State,
        cpu_features: &[String],
        step: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        let common: Common = decode("machine state", &state.machine)?;
        state.check_power(&common.power)?;
        let missing = features::missing(cpu_features, &Self::cpu_features(vcpus)?);
        if !missing.is_empty() {
            return Err(Error::CpuFeatures { missing: missing.join(", ") });
        }
        let vm = &vcpus.backend.vm;
        vm.set_gic_state(&state.interrupt_controller)?;
        step("gic");
        let clock = Clock::resuming(common.cntvct, vm.host_counter());
        let saved = state.vcpus.clone();
        let restored = vcpus.on_each(DEADLINE, move |index, vcpu| vcpu.restore(&saved[index], clock))?;
        for (index, result) in restored.into_iter().enumerate() {
            result.map_err(|e| refused(format!("vCPU {index}"), e))?;
        }
        step("vcpu");
        Ok(())
    }

    /// The time between the first register and the last must not pass for the guest: one offset for all vCPUs, last.
    fn restore_time(vcpus: &Vcpus<Self>, state: &State) -> Result<(), Error> {
        let common: Common = decode("machine state", &state.machine)?;
        let offset = Clock::resuming(common.cntvct, vcpus.backend.vm.host_counter()).vtimer_offset;
        for result in vcpus.on_each(DEADLINE, move |_, vcpu| vcpu.set_vtimer_offset(offset))? {
            result?;
        }
        vcpus.set_power(&common.power);
        Ok(())
    }

    fn announce_generation(&self) {
        let vmgenid = layout::spi_intid(layout::VMGENID_SPI);
        self.vm.set_spi(vmgenid, true);
        self.vm.set_spi(vmgenid, false);
    }
}

impl Arm64 {
    fn mmio(&self, vcpu: &mut dyn Vcpu, abort: DataAbort) -> Result<(), Error> {
        let pc = vcpu.reg(Reg::PC)?;
        let Some(access) = abort.access() else {
            return Err(Error::UndecodedAccess { address: abort.physical_address, pc });
        };
        let Access { size, write, register, .. } = access;
        let mut bytes = [0; 8];
        if write {
            let value = if register == 31 { 0 } else { vcpu.reg(Reg::x(register))? };
            bytes = value.to_le_bytes();
            self.bus.write(abort.physical_address, &bytes[..size]);
        } else {
            self.bus.read(abort.physical_address, &mut bytes[..size]);
            if register != 31 {
                vcpu.set_reg(Reg::x(register), loaded(bytes, access))?;
            }
        }
        vcpu.set_reg(Reg::PC, pc.wrapping_add(4))?;
        Ok(())
    }

    /// Serves a PSCI call; `false` when the vCPU must not go on.
    fn psci(&self, vcpus: &Vcpus<Self>, index: usize, vcpu: &mut dyn Vcpu) -> Result<bool, Error> {
        let mut x = [0; 4];
        for (n, x) in (0..).zip(&mut x) {
            *x = vcpu.reg(Reg::x(n))?;
        }
        let answer = match psci::decode(x) {
            Call::Return(value) => value,
            Call::CpuOn { target, entry, context } => {
                match vcpus.try_power_on(to_usize(target), EntryPoint { pc: entry, context }) {
                    None => psci::INVALID_PARAMETERS,
                    Some(true) => psci::SUCCESS,
                    Some(false) => psci::ALREADY_ON,
                }
            }
            Call::AffinityInfo { target } => match vcpus.power().get(to_usize(target)) {
                None => psci::INVALID_PARAMETERS,
                Some(Power::Off) => psci::OFF,
                Some(_) => psci::ON,
            },
            Call::CpuOff => {
                vcpus.power_off(index);
                return Ok(false);
            }
            Call::SystemOff => {
                vcpus.stop(Stop::PowerOff);
                return Ok(false);
            }
            Call::SystemReset => {
                vcpus.stop(Stop::Reset);
                return Ok(false);
            }
        };
        vcpu.set_reg(Reg::x(0), answer.cast_unsigned())?;
        Ok(true)
    }
}

/// The register's value after a load of these bytes.
fn loaded(bytes: [u8; 8], access: Access) -> u64 {
    let value = u64::from_le_bytes(bytes);
    if !access.sign_extend {
        return value;
    }
    let unused = 64 - 8 * access.size;
    let extended = ((value << unused).cast_signed() >> unused).cast_unsigned();
    if access.wide { extended } else { extended & 0xffff_ffff }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_extend_as_the_instruction_says() {
        let access = |size, sign_extend, wide| Access { size, write: false, register: 0, sign_extend, wide };
        let bytes = [0x80, 0xff, 0, 0, 0, 0, 0, 0];
        assert_eq!(loaded([0x80, 0, 0, 0, 0, 0, 0, 0], access(1, false, false)), 0x80);
        assert_eq!(loaded([0x80, 0, 0, 0, 0, 0, 0, 0], access(1, true, false)), 0xffff_ff80);
        assert_eq!(loaded(bytes, access(2, true, true)), 0xffff_ffff_ffff_ff80);
        assert_eq!(loaded(bytes, access(8, true, true)), 0xff80);
    }
}
