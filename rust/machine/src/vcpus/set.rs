//! The vCPUs of a machine, whatever their architecture.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{VcpuBackend, Vcpus};
use crate::power::{EntryPoint, Power};
use crate::state::State;
use crate::{Error, Stop};

/// The vCPUs of a machine, whatever their architecture. The methods are those of [`Vcpus`] and [`VcpuBackend`].
pub(crate) trait VcpuSet: Send + Sync {
    fn power_on(&self, index: usize, at: EntryPoint);
    fn resume(&self);
    fn pause(&self, deadline: Duration) -> bool;
    fn stop(&self, reason: Stop);
    fn wait(&self, deadline: Option<Duration>) -> Option<Stop>;
    /// Exits by cause, and guest instructions run by vCPUs that have stopped.
    fn stats(&self) -> (Vec<(String, u64)>, u64);
    fn cpu_features(&self) -> Result<Vec<String>, Error>;
    fn decoded(&self) -> Result<Vec<u64>, Error>;
    fn save(&self) -> Result<State, Error>;
    fn restore(&self, state: &State, features: &[String], step: &mut dyn FnMut(&str)) -> Result<(), Error>;
    fn restore_time(&self, state: &State) -> Result<(), Error>;
    fn announce_generation(&self);
}

impl<P: VcpuBackend> VcpuSet for Vcpus<P> {
    fn power_on(&self, index: usize, at: EntryPoint) {
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
        let exits = self.backend.exits().into_iter().map(|(name, count)| (name.to_owned(), count));
        (exits.collect(), self.instructions.load(Ordering::Relaxed))
    }

    fn cpu_features(&self) -> Result<Vec<String>, Error> {
        P::cpu_features(self)
    }

    fn decoded(&self) -> Result<Vec<u64>, Error> {
        P::decoded(self)
    }

    fn save(&self) -> Result<State, Error> {
        P::save(self)
    }

    fn restore(&self, state: &State, features: &[String], step: &mut dyn FnMut(&str)) -> Result<(), Error> {
        P::restore(self, state, features, step)
    }

    fn restore_time(&self, state: &State) -> Result<(), Error> {
        P::restore_time(self, state)
    }

    fn announce_generation(&self) {
        self.backend.announce_generation();
    }
}
