//! The vCPU threads: each creates its vCPU, waits to be powered on, and runs it until the machine stops.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use supermachine_engine::arm64::{Access, Canceller, DataAbort, Exit, Reg, Vcpu, Vm};

use crate::bus::Bus;
use crate::psci::{self, Call};
use crate::{Error, Stop};

/// EL1h with all interrupts masked: how a CPU starts (booting.rst, section 4).
const START_CPSR: u64 = 0x3c5;

/// Something to do with a paused vCPU, on its own thread.
type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// Counters of what made vCPUs leave the guest.
#[derive(Debug, Default)]
pub struct Counters {
    pub mmio: AtomicU64,
    pub hvc: AtomicU64,
    pub smc: AtomicU64,
    pub canceled: AtomicU64,
    /// Guest instructions of the vCPUs, as of their last exit for a [`Exit::Canceled`].
    pub instructions: AtomicU64,
}

/// What all vCPU threads of a machine share.
pub struct Vcpus {
    vm: Arc<dyn Vm>,
    bus: Bus,
    cancellers: Vec<Canceller>,
    state: Mutex<State>,
    changed: Condvar,
    pub counters: Counters,
}

struct State {
    power: Vec<Power>,
    /// Threads that are outside the guest and look at this state before they go in again.
    parked: Vec<bool>,
    jobs: Vec<VecDeque<Job>>,
    paused: bool,
    stop: Option<Stop>,
    /// Threads that have not ended.
    running: usize,
}

/// Whether a vCPU runs, as PSCI has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    Off,
    /// To be started at `entry` with `context` in X0.
    Starting {
        entry: u64,
        context: u64,
    },
    On,
}

impl Vcpus {
    /// Starts one thread for each of `count` vCPUs; all are paused and, until [`Vcpus::power_on`], off.
    pub fn start(vm: Arc<dyn Vm>, bus: Bus, count: u32) -> Result<Arc<Self>, Error> {
        let n = count as usize;
        let vcpus = Arc::new(Self {
            cancellers: (0..count).map(|index| vm.canceller(index)).collect::<Result<_, _>>()?,
            vm,
            bus,
            state: Mutex::new(State {
                power: vec![Power::Off; n],
                parked: vec![false; n],
                jobs: (0..n).map(|_| VecDeque::new()).collect(),
                paused: true,
                stop: None,
                running: 0,
            }),
            changed: Condvar::new(),
            counters: Counters::default(),
        });
        for index in 0..count {
            let shared = vcpus.clone();
            vcpus.lock().running += 1;
            let spawned = std::thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
                if let Err(error) = shared.thread(index) {
                    shared.stop(Stop::Engine(error.to_string()));
                }
                shared.lock().running -= 1;
                shared.changed.notify_all();
            });
            if let Err(error) = spawned {
                vcpus.lock().running -= 1;
                vcpus.stop(Stop::Engine(error.to_string()));
                return Err(Error::Thread(error));
            }
        }
        Ok(vcpus)
    }

    /// Lets vCPU `index` start at `entry` with `context` in X0.
    pub fn power_on(&self, index: usize, entry: u64, context: u64) {
        self.lock().power[index] = Power::Starting { entry, context };
        self.changed.notify_all();
    }

    /// Each vCPU's power.
    pub fn power(&self) -> Vec<Power> {
        self.lock().power.clone()
    }

    /// Sets what [`Vcpus::power`] gave, for as many vCPUs; all are paused.
    pub fn set_power(&self, power: &[Power]) {
        self.lock().power.copy_from_slice(power);
    }

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        self.lock().paused = false;
        self.changed.notify_all();
    }

    /// Brings every vCPU out of the guest and keeps it out. `false` when that takes longer than `deadline`.
    pub fn pause(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let mut state = self.lock();
        state.paused = true;
        self.cancel_all();
        while !state.parked.iter().all(|parked| *parked) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.stop.is_some() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
        }
        true
    }

    /// Has every paused vCPU's own thread do something with it, all at once; what each came to, by index. The machine
    /// stops with an error when that takes longer than `deadline`.
    pub fn on_each<T: Send + 'static>(
        &self,
        deadline: Duration,
        job: impl Fn(usize, &mut dyn Vcpu) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        let end = Instant::now() + deadline;
        let job = Arc::new(job);
        let mut answers = Vec::new();
        {
            let mut state = self.lock();
            for (index, jobs) in state.jobs.iter_mut().enumerate() {
                let (sender, answer) = mpsc::channel();
                let job = job.clone();
                jobs.push_back(Box::new(move |vcpu| drop(sender.send(job(index, vcpu)))));
                answers.push(answer);
            }
        }
        self.changed.notify_all();
        let wait = |answer: &mpsc::Receiver<T>| {
            answer
                .recv_timeout(end.saturating_duration_since(Instant::now()))
                .map_err(|_| Error::Unresponsive)
        };
        answers.iter().map(wait).collect()
    }

    /// Ends the machine for this reason; the first reason given is kept.
    pub fn stop(&self, reason: Stop) {
        self.lock().stop.get_or_insert(reason);
        self.cancel_all();
        self.changed.notify_all();
    }

    /// Waits for the machine to stop; its threads have ended then. `None` when `deadline` passes first.
    pub fn wait(&self, deadline: Option<Duration>) -> Option<Stop> {
        let end = deadline.map(|d| Instant::now() + d);
        let mut state = self.lock();
        loop {
            if let (Some(stop), 0) = (&state.stop, state.running) {
                return Some(stop.clone());
            }
            state = match end {
                None => self.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
                Some(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0
                }
            };
        }
    }

    /// The engine's VM.
    pub fn vm(&self) -> &dyn Vm {
        &*self.vm
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn cancel_all(&self) {
        for cancel in &self.cancellers {
            cancel();
        }
    }

    fn thread(&self, index: u32) -> Result<(), Error> {
        let mut vcpu = self.vm.create_vcpu(index)?;
        let mut counted = 0;
        while self.wait_to_run(index as usize, &mut *vcpu)? {
            let ran = self.run(index as usize, &mut *vcpu);
            let instructions = vcpu.instructions();
            self.counters.instructions.fetch_add(instructions - counted, Ordering::Relaxed);
            counted = instructions;
            ran?;
        }
        Ok(())
    }

    /// Parks until the vCPU may run; `false` when the machine stops.
    fn wait_to_run(&self, index: usize, vcpu: &mut dyn Vcpu) -> Result<bool, Error> {
        let mut state = self.lock();
        loop {
            if state.stop.is_some() {
                return Ok(false);
            }
            if let Some(job) = state.jobs[index].pop_front() {
                drop(state);
                job(vcpu);
                state = self.lock();
                continue;
            }
            if !state.paused {
                match state.power[index] {
                    Power::Off => {}
                    Power::On => break,
                    Power::Starting { entry, context } => {
                        vcpu.set_reg(Reg::CPSR, START_CPSR)?;
                        vcpu.set_reg(Reg::x(0), context)?;
                        vcpu.set_reg(Reg::PC, entry)?;
                        state.power[index] = Power::On;
                        break;
                    }
                }
            }
            if !state.parked[index] {
                state.parked[index] = true;
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        state.parked[index] = false;
        Ok(true)
    }

    /// Runs the guest until something is to be looked at in the shared state.
    fn run(&self, index: usize, vcpu: &mut dyn Vcpu) -> Result<(), Error> {
        loop {
            match vcpu.run()? {
                Exit::Canceled => {
                    self.counters.canceled.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Exit::DataAbort(abort) => {
                    self.counters.mmio.fetch_add(1, Ordering::Relaxed);
                    self.mmio(vcpu, abort)?;
                }
                Exit::Hvc { .. } => {
                    self.counters.hvc.fetch_add(1, Ordering::Relaxed);
                    if !self.psci(index, vcpu)? {
                        return Ok(());
                    }
                }
                Exit::Smc { .. } => {
                    self.counters.smc.fetch_add(1, Ordering::Relaxed);
                    let pc = vcpu.reg(Reg::PC)?;
                    vcpu.set_reg(Reg::PC, pc.wrapping_add(4))?;
                    vcpu.set_reg(Reg::x(0), psci::NOT_SUPPORTED as u64)?;
                }
            }
        }
    }

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
    fn psci(&self, index: usize, vcpu: &mut dyn Vcpu) -> Result<bool, Error> {
        let mut x = [0; 4];
        for (n, x) in x.iter_mut().enumerate() {
            *x = vcpu.reg(Reg::x(n as u32))?;
        }
        let answer = match psci::decode(x) {
            Call::Return(value) => value,
            Call::CpuOn { target, entry, context } => {
                let mut state = self.lock();
                match state.power.get_mut(target as usize) {
                    None => psci::INVALID_PARAMETERS,
                    Some(power @ Power::Off) => {
                        *power = Power::Starting { entry, context };
                        self.changed.notify_all();
                        psci::SUCCESS
                    }
                    Some(_) => psci::ALREADY_ON,
                }
            }
            Call::AffinityInfo { target } => match self.lock().power.get(target as usize) {
                None => psci::INVALID_PARAMETERS,
                Some(Power::Off) => psci::OFF,
                Some(_) => psci::ON,
            },
            Call::CpuOff => {
                self.lock().power[index] = Power::Off;
                return Ok(false);
            }
            Call::SystemOff => {
                self.stop(Stop::PowerOff);
                return Ok(false);
            }
            Call::SystemReset => {
                self.stop(Stop::Reset);
                return Ok(false);
            }
        };
        vcpu.set_reg(Reg::x(0), answer as u64)?;
        Ok(true)
    }
}

/// The register's value after a load of these bytes.
fn loaded(bytes: [u8; 8], access: Access) -> u64 {
    let value = u64::from_le_bytes(bytes);
    if !access.sign_extend {
        return value;
    }
    let unused = 64 - 8 * access.size as u32;
    let extended = ((value << unused) as i64 >> unused) as u64;
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
