//! The vCPU threads: each creates its vCPU, waits to be powered on, and runs it until the machine stops.

mod backend;
mod set;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use supermachine_engine::arm64::Canceller;
use supermachine_support::lock;

pub(crate) use self::backend::VcpuBackend;
pub(crate) use self::set::VcpuSet;
use crate::power::{EntryPoint, Power};
use crate::{Error, Stop};

/// How long vCPUs may take to leave the guest, or to give and take their state.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Something to do with a paused vCPU, on its own thread.
type Job<V> = Box<dyn FnOnce(&mut V) + Send>;

/// What all vCPU threads of a machine share.
pub(crate) struct Vcpus<P: VcpuBackend> {
    pub backend: P,
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

impl<P: VcpuBackend> Vcpus<P> {
    /// Starts one thread for each of `count` vCPUs; all are paused, and as `power` says until [`Vcpus::power_on`].
    pub(crate) fn start(backend: P, count: u32, power: Power) -> Result<Arc<Self>, Error> {
        let n = count as usize;
        let vcpus = Arc::new(Self {
            cancellers: (0..count).map(|index| backend.canceller(index)).collect::<Result<_, _>>()?,
            backend,
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
    pub(crate) fn try_power_on(&self, index: usize, at: EntryPoint) -> Option<bool> {
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
    pub(crate) fn power_off(&self, index: usize) {
        self.lock().power[index] = Power::Off;
    }

    /// Each vCPU's power.
    pub(crate) fn power(&self) -> Vec<Power> {
        self.lock().power.clone()
    }

    /// Sets what [`Vcpus::power`] gave, for as many vCPUs; all are paused.
    pub(crate) fn set_power(&self, power: &[Power]) {
        self.lock().power.copy_from_slice(power);
    }

    /// Lets the vCPUs run.
    pub(crate) fn resume(&self) {
        self.lock().paused = false;
        self.changed.notify_all();
    }

    /// Brings every vCPU out of the guest and keeps it out. `false` when that takes longer than `deadline`.
    pub(crate) fn pause(&self, deadline: Duration) -> bool {
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
    pub(crate) fn on_each<T: Send + 'static>(
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
    pub(crate) fn stop(&self, reason: Stop) {
        self.lock().stop.get_or_insert(reason);
        self.cancel_all();
        self.changed.notify_all();
    }

    /// Waits for the machine to stop; its threads have ended then. `None` when `deadline` passes first.
    pub(crate) fn wait(&self, deadline: Option<Duration>) -> Option<Stop> {
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
        lock(&self.state)
    }

    fn cancel_all(&self) {
        for cancel in &self.cancellers {
            cancel();
        }
    }

    fn thread(&self, index: u32) -> Result<(), Error> {
        let mut vcpu = self.backend.create_vcpu(index)?;
        let mut counted = 0;
        while self.wait_to_run(index as usize, &mut vcpu)? {
            let ran = self.backend.run(self, index as usize, &mut vcpu);
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
                        self.backend.start(vcpu, EntryPoint { pc: entry, context })?;
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
