//! What the process has: at most one VM (Documented: "Creates a VM instance for the current process"), its vCPUs by id,
//! and whether the host would let it have them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use supermachine_support::lock;

use supermachine_soft as soft;

use crate::{HV_DENIED, HV_SUCCESS, HV_UNSUPPORTED, Return};

/// What kind of host the framework plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Host {
    /// A Mac, and an executable that may use the framework.
    Ready,
    /// The executable lacks the entitlement com.apple.security.hypervisor.
    NotEntitled,
    /// A virtual machine without nested virtualisation, as hosted runners are.
    NoHypervisor,
}

static HOST: AtomicU8 = AtomicU8::new(Host::Ready as u8);

/// Chooses the host that [`crate::hv_vm_create`] answers for from now on.
pub fn set_host(host: Host) {
    HOST.store(host as u8, Ordering::SeqCst);
}

/// Documented: `HV_DENIED` without the entitlement, `HV_UNSUPPORTED` where the hardware cannot.
pub(crate) fn admit() -> Return {
    match HOST.load(Ordering::SeqCst) {
        host if host == Host::NotEntitled as u8 => HV_DENIED,
        host if host == Host::NoHypervisor as u8 => HV_UNSUPPORTED,
        _ => HV_SUCCESS,
    }
}

/// A region of guest memory.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub host: usize,
    pub len: u64,
    pub flags: u64,
}

/// The process's VM.
pub(crate) struct Machine {
    pub ipa_bits: u32,
    /// By guest physical address.
    pub regions: Mutex<BTreeMap<u64, Region>>,
    /// The machine core; there as soon as the interrupt controller is.
    pub soft: OnceLock<soft::Vm>,
    pub gicr_base: OnceLock<u64>,
    /// vCPUs that have been created, ever.
    pub created: Mutex<u32>,
    /// vCPUs that exist.
    pub live: AtomicU32,
    pub running: AtomicU32,
    pub has_run: AtomicBool,
}

static MACHINE: Mutex<Option<Arc<Machine>>> = Mutex::new(None);

/// A vCPU that other threads may ask to leave its run.
pub(crate) static CANCELLERS: Mutex<BTreeMap<u64, soft::Canceller>> = Mutex::new(BTreeMap::new());

/// The place of the process's VM.
pub(crate) fn slot() -> MutexGuard<'static, Option<Arc<Machine>>> {
    lock(&MACHINE)
}

pub(crate) fn machine() -> Option<Arc<Machine>> {
    slot().clone()
}
