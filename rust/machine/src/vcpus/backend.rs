//! What an architecture with its engine does for running vCPUs.

use supermachine_engine::arm64::Canceller;

use super::Vcpus;
use crate::Error;
use crate::power::EntryPoint;
use crate::state::State;

/// An architecture with its engine, as far as running vCPUs goes.
pub(crate) trait VcpuBackend: Send + Sync + Sized + 'static {
    /// A vCPU, used on the thread that creates it.
    type Vcpu;

    fn create_vcpu(&self, index: u32) -> Result<Self::Vcpu, Error>;

    /// How to make vCPU `index` leave the guest.
    fn canceller(&self, index: u32) -> Result<Canceller, Error>;

    /// Has a vCPU that was off start there.
    fn start(&self, vcpu: &mut Self::Vcpu, at: EntryPoint) -> Result<(), Error>;

    /// Runs the guest until something is to be looked at in the shared state.
    fn run(&self, vcpus: &Vcpus<Self>, index: usize, vcpu: &mut Self::Vcpu) -> Result<(), Error>;

    /// Guest instructions that the vCPU has run; 0 where nobody counts.
    fn instructions(vcpu: &Self::Vcpu) -> u64;

    /// Exits by cause.
    fn exits(&self) -> Vec<(&'static str, u64)>;

    /// Features of the CPU that the guest may rely on.
    fn cpu_features(vcpus: &Vcpus<Self>) -> Result<Vec<String>, Error>;

    /// Where code begins that was decoded, by guest physical addresses, what has run last in front; nothing where none
    /// is.
    fn decoded(vcpus: &Vcpus<Self>) -> Result<Vec<u64>, Error> {
        let _ = vcpus;
        Ok(Vec::new())
    }

    /// State of all but the devices, with every vCPU paused.
    fn save(vcpus: &Vcpus<Self>) -> Result<State, Error>;

    /// Takes over what [`VcpuBackend::save`] gave, with memory in place and every vCPU paused, telling each step.
    fn restore(
        vcpus: &Vcpus<Self>,
        state: &State,
        cpu_features: &[String],
        step: &mut dyn FnMut(&str),
    ) -> Result<(), Error>;

    /// Sets the guest's time, after the devices: what a restore ends with.
    fn restore_time(vcpus: &Vcpus<Self>, state: &State) -> Result<(), Error>;

    /// Tells the guest's kernel that the VM generation id has changed, where it has one.
    fn announce_generation(&self);
}
