//! The vCPU threads: each creates its vCPU, waits to be powered on, and runs it until the machine stops.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use supermachine_engine::arm64::Canceller;

use crate::capture::State;
use crate::{Error, Stop};

/// How long vCPUs may take to leave the guest, or to give and take their state.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Something to do with a paused vCPU, on its own thread.
type Job<V> = Box<dyn FnOnce(&mut V) + Send>;

/// An architecture with its engine, as far as running vCPUs goes.
pub trait Platform: Send + Sync + Sized + 'static {
    /// A vCPU, used on the thread that creates it.
    type Vcpu;

    fn create_vcpu(&self, index: u32) -> Result<Self::Vcpu, Error>;

    /// How to make vCPU `index` leave the guest.
    fn canceller(&self, index: u32) -> Result<Canceller, Error>;

    /// Has a vCPU that was off start there.
    fn start(&self, vcpu: &mut Self::Vcpu, at: Entry) -> Result<(), Error>;

    /// Runs the guest until something is to be looked at in the shared state.
    fn run(&self, vcpus: &Vcpus<Self>, index: usize, vcpu: &mut Self::Vcpu) -> Result<(), Error>;

    /// Guest instructions that the vCPU has run; 0 where nobody counts.
    fn instructions(vcpu: &Self::Vcpu) -> u64;

    /// Exits by cause.
    fn exits(&self) -> Vec<(&'static str, u64)>;

    /// Features of the CPU that the guest may rely on.
    fn cpu_features(vcpus: &Vcpus<Self>) -> Result<Vec<String>, Error>;

    /// State of all but the devices, with every vCPU paused.
    fn save(vcpus: &Vcpus<Self>) -> Result<State, Error>;

    /// Takes over what [`Platform::save`] gave, with memory in place and every vCPU paused, telling each step.
    fn restore(
        vcpus: &Vcpus<Self>,
        state: &State,
        cpu_features: &[String],
        step: &mut dyn FnMut(&str),
    ) -> Result<(), Error>;

    /// What comes last, after the devices.
    fn settle(vcpus: &Vcpus<Self>, state: &State) -> Result<(), Error>;

    /// Tells the guest's kernel that the VM generation id has changed, where it has one.
    fn announce_generation(&self);
}

/// The vCPUs of a machine, whatever their architecture. The methods are those of [`Vcpus`] and [`Platform`].
pub trait Processors: Send + Sync {
    fn power_on(&self, index: usize, at: Entry);
    fn resume(&self);
    fn pause(&self, deadline: Duration) -> bool;
    fn stop(&self, reason: Stop);
    fn wait(&self, deadline: Option<Duration>) -> Option<Stop>;
    /// Exits by cause, and guest instructions run by vCPUs that have stopped.
    fn stats(&self) -> (Vec<(String, u64)>, u64);
    fn cpu_features(&self) -> Result<Vec<String>, Error>;
    fn save(&self) -> Result<State, Error>;
    fn restore(&self, state: &State, features: &[String], step: &mut dyn FnMut(&str)) -> Result<(), Error>;
    fn settle(&self, state: &State) -> Result<(), Error>;
    fn announce_generation(&self);
}

/// Where a vCPU starts, and what it is told there: for the first one, where the description of the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub pc: u64,
    pub context: u64,
}

/// What all vCPU threads of a machine share.
pub struct Vcpus<P: Platform> {
    pub platform: P,
    cancellers: Vec<Canceller>,
    state: Mutex<Shared<P::Vcpu>>,
    changed: Condvar,
    instructions: AtomicU64,
}

struct Shared<V> {
    power: Vec<Power>,
    /// Threads that are outside the guest and look at this state before they go in again.
    parked: Vec<bool>,
    jobs: Vec<VecDeque<Job<V>>>,
    paused: bool,
    stop: Option<Stop>,
    /// Threads that have not ended.
    running: usize,
}

/// Whether a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    Off,
    /// To be started at `entry`, told `context`.
    Starting {
        entry: u64,
        context: u64,
    },
    On,
}

impl<P: Platform> Vcpus<P> {
    /// Starts one thread for each of `count` vCPUs; all are paused, and as `power` says until [`Vcpus::power_on`].
    pub fn start(platform: P, count: u32, power: Power) -> Result<Arc<Self>, Error> {
        let n = count as usize;
        let vcpus = Arc::new(Self {
            cancellers: (0..count).map(|index| platform.canceller(index)).collect::<Result<_, _>>()?,
            platform,
            state: Mutex::new(Shared {
                power: vec![power; n],
                parked: vec![false; n],
                jobs: (0..n).map(|_| VecDeque::new()).collect(),
                paused: true,
                stop: None,
                running: 0,
            }),
            changed: Condvar::new(),
            instructions: AtomicU64::new(0),
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

    /// Lets vCPU `index` start, unless there is none or it is on: `None`, or whether it was off.
    pub fn try_power_on(&self, index: usize, at: Entry) -> Option<bool> {
        let mut state = self.lock();
        let power = state.power.get_mut(index)?;
        let off = *power == Power::Off;
        if off {
            *power = Power::Starting { entry: at.pc, context: at.context };
            self.changed.notify_all();
        }
        Some(off)
    }

    /// Keeps vCPU `index` out of the guest from its next exit on, until it is powered on.
    pub fn power_off(&self, index: usize) {
        self.lock().power[index] = Power::Off;
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
        job: impl Fn(usize, &mut P::Vcpu) -> T + Send + Sync + 'static,
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

    fn lock(&self) -> MutexGuard<'_, Shared<P::Vcpu>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn cancel_all(&self) {
        for cancel in &self.cancellers {
            cancel();
        }
    }

    fn thread(&self, index: u32) -> Result<(), Error> {
        let mut vcpu = self.platform.create_vcpu(index)?;
        let mut counted = 0;
        while self.wait_to_run(index as usize, &mut vcpu)? {
            let ran = self.platform.run(self, index as usize, &mut vcpu);
            let instructions = P::instructions(&vcpu);
            self.instructions.fetch_add(instructions - counted, Ordering::Relaxed);
            counted = instructions;
            ran?;
        }
        Ok(())
    }

    /// Parks until the vCPU may run; `false` when the machine stops.
    fn wait_to_run(&self, index: usize, vcpu: &mut P::Vcpu) -> Result<bool, Error> {
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
                        self.platform.start(vcpu, Entry { pc: entry, context })?;
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
}

impl<P: Platform> Processors for Vcpus<P> {
    fn power_on(&self, index: usize, at: Entry) {
        self.lock().power[index] = Power::Starting { entry: at.pc, context: at.context };
        self.changed.notify_all();
    }

    fn resume(&self) {
        self.resume();
    }

    fn pause(&self, deadline: Duration) -> bool {
        self.pause(deadline)
    }

    fn stop(&self, reason: Stop) {
        self.stop(reason);
    }

    fn wait(&self, deadline: Option<Duration>) -> Option<Stop> {
        self.wait(deadline)
    }

    fn stats(&self) -> (Vec<(String, u64)>, u64) {
        let exits = self.platform.exits().into_iter().map(|(name, count)| (name.to_owned(), count));
        (exits.collect(), self.instructions.load(Ordering::Relaxed))
    }

    fn cpu_features(&self) -> Result<Vec<String>, Error> {
        P::cpu_features(self)
    }

    fn save(&self) -> Result<State, Error> {
        P::save(self)
    }

    fn restore(&self, state: &State, features: &[String], step: &mut dyn FnMut(&str)) -> Result<(), Error> {
        P::restore(self, state, features, step)
    }

    fn settle(&self, state: &State) -> Result<(), Error> {
        P::settle(self, state)
    }

    fn announce_generation(&self) {
        self.platform.announce_generation();
    }
}
