//! The hvf engine: Hypervisor.framework with its own GICv3 (macOS 15 and newer on Apple silicon).
//!
//! The same code runs over Apple's framework and, in tests elsewhere, over a software one with the same functions
//! (feature `hvf-soft`). What the framework asks of its callers is said where it matters; in short: one VM for each
//! process, each vCPU used by the thread that made it, the interrupt controller before the vCPUs, every vCPU before
//! the first one runs, guest memory in pages of 16 KiB.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the framework's structures and registers have widths of their own, on 64-bit hosts alone"
)]

mod error;
mod host;
mod ids;
mod trap;
mod vcpu;

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use applevisor_sys as hv;
// On a Mac Apple's framework is there, for tests as well.
#[cfg(not(target_os = "macos"))]
use supermachine_hvf_soft as _;

use crate::arm64::{Canceller, Vcpu, Vm, VmConfig};
use crate::{Protection, Result};
pub use error::Error;
use error::check;
use supermachine_support::lock;
use vcpu::HvfVcpu;

/// How long vCPUs wait for each other to be created.
const CREATION: Duration = Duration::from_secs(10);
/// A redistributor as the machine's device tree describes it: two frames of 64 KiB.
const REDISTRIBUTOR: u64 = 128 << 10;

/// A virtual machine of Hypervisor.framework; the isolation is the hardware's.
pub struct HvfVm(Arc<Inner>);

/// What the VM and its vCPUs share. The last of them to go destroys the VM.
struct Inner {
    config: VmConfig,
    slots: Vec<Arc<Slot>>,
    created: Mutex<Created>,
    changed: Condvar,
}

/// The creation of vCPUs, in the order of their index: redistributors are given out in that order.
#[derive(Default)]
struct Created {
    vcpus: u32,
    /// One could not be made, so that the machine never will be complete.
    failed: bool,
}

/// How other threads reach a vCPU.
#[derive(Default)]
struct Slot {
    /// Somebody wants it to leave the guest.
    wanted: AtomicBool,
    /// Its id while it exists.
    id: Mutex<Option<hv::hv_vcpu_t>>,
}

/// An object of the framework's, released when it is dropped.
struct Object(NonNull<c_void>);

impl Object {
    fn new(call: &'static str, object: *mut c_void) -> error::Result<Self> {
        let failed = Error::Call { call, code: hv::hv_error_t::HV_ERROR as hv::hv_return_t };
        NonNull::new(object).map(Self).ok_or(failed)
    }

    fn handle(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the object was handed out to be released once.
        unsafe { hv::os_release(self.handle()) };
    }
}

impl HvfVm {
    /// Makes the process's VM, with the largest guest addresses that the host has and an interrupt controller.
    pub fn new(config: VmConfig) -> Result<Self> {
        host::check()?;
        let VmConfig { vcpus, gicd_base, gicr_base } = config;
        let mut most = 0;
        // SAFETY: the call writes to the integer that is given to it.
        check("hv_vm_get_max_vcpu_count", unsafe { hv::hv_vm_get_max_vcpu_count(&mut most) })?;
        if vcpus == 0 || vcpus > most {
            return Err(Error::VcpuCount { vcpus, most }.into());
        }
        // SAFETY: the call takes nothing and gives an object to release.
        let vm_config = Object::new("hv_vm_config_create", unsafe { hv::hv_vm_config_create() })?;
        let mut bits = 0;
        // SAFETY: the call writes to the integer that is given to it.
        check("hv_vm_config_get_max_ipa_size", unsafe { hv::hv_vm_config_get_max_ipa_size(&mut bits) })?;
        // SAFETY: the handle is alive.
        check("hv_vm_config_set_ipa_size", unsafe {
            hv::hv_vm_config_set_ipa_size(vm_config.handle(), bits)
        })?;
        // SAFETY: as above.
        check("hv_vm_create", unsafe { hv::hv_vm_create(vm_config.handle()) })?;
        // From here on the VM is destroyed with this.
        let inner = Inner {
            config,
            slots: (0..vcpus).map(|_| Arc::default()).collect(),
            created: Mutex::default(),
            changed: Condvar::new(),
        };
        create_gic(gicd_base, gicr_base)?;
        Ok(Self(Arc::new(inner)))
    }

    /// Takes mapped memory away from the guest again.
    pub fn unmap(&self, gpa: u64, len: u64) -> Result<()> {
        // SAFETY: the call takes no pointers.
        Ok(check("hv_vm_unmap", unsafe { hv::hv_vm_unmap(gpa, len as usize) })?)
    }

    /// Changes what the guest may do with mapped memory.
    pub fn protect(&self, gpa: u64, len: u64, protection: Protection) -> Result<()> {
        // SAFETY: the call takes no pointers.
        Ok(check("hv_vm_protect", unsafe { hv::hv_vm_protect(gpa, len as usize, flags(protection)) })?)
    }
}

fn flags(protection: Protection) -> hv::hv_memory_flags_t {
    match protection {
        Protection::ReadWriteExecute => hv::HV_MEMORY_READ | hv::HV_MEMORY_WRITE | hv::HV_MEMORY_EXEC,
        Protection::Read => hv::HV_MEMORY_READ,
    }
}

/// Puts the interrupt controller where the machine's layout has it, if the host's fits there.
fn create_gic(gicd_base: u64, gicr_base: u64) -> error::Result<()> {
    type Query = unsafe extern "C" fn(*mut usize) -> hv::hv_return_t;
    let ask = |call: &'static str, query: Query| {
        let mut value = 0;
        // SAFETY: the call writes to the integer that is given to it.
        check(call, unsafe { query(&mut value) }).map(|()| value as u64)
    };
    let distributor = ask("hv_gic_get_distributor_size", hv::hv_gic_get_distributor_size)?;
    let space = gicr_base.saturating_sub(gicd_base);
    if distributor > space {
        return Err(Error::Layout { what: "the distributor's size", found: distributor, needed: space });
    }
    let redistributor = ask("hv_gic_get_redistributor_size", hv::hv_gic_get_redistributor_size)?;
    if redistributor != REDISTRIBUTOR {
        let what = "a redistributor's size";
        return Err(Error::Layout { what, found: redistributor, needed: REDISTRIBUTOR });
    }
    let alignments = [
        ("the distributor's alignment", gicd_base, hv::hv_gic_get_distributor_base_alignment as Query),
        ("the redistributors' alignment", gicr_base, hv::hv_gic_get_redistributor_base_alignment as Query),
    ];
    for (what, base, query) in alignments {
        let found = ask(what, query)?.max(1);
        if !base.is_multiple_of(found) {
            return Err(Error::Layout { what, found, needed: 1 << base.trailing_zeros() });
        }
    }
    // SAFETY: the call takes nothing and gives an object to release.
    let config = Object::new("hv_gic_config_create", unsafe { hv::hv_gic_config_create() })?;
    // SAFETY: the handle is alive.
    check("hv_gic_config_set_distributor_base", unsafe {
        hv::hv_gic_config_set_distributor_base(config.handle(), gicd_base)
    })?;
    // SAFETY: as above.
    check("hv_gic_config_set_redistributor_base", unsafe {
        hv::hv_gic_config_set_redistributor_base(config.handle(), gicr_base)
    })?;
    // SAFETY: as above.
    check("hv_gic_create", unsafe { hv::hv_gic_create(config.handle()) })
}

impl Vm for HvfVm {
    unsafe fn map(&self, host: NonNull<u8>, gpa: u64, len: u64, protection: Protection) -> Result<()> {
        // SAFETY: the caller keeps the memory for as long as the VM; the framework checks the rest.
        let code = unsafe { hv::hv_vm_map(host.as_ptr().cast(), gpa, len as usize, flags(protection)) };
        Ok(check("hv_vm_map", code)?)
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>> {
        let inner = &self.0;
        let end = Instant::now() + CREATION;
        let slot = inner.slots.get(index as usize).ok_or(Error::BadVcpu(index))?;
        let mut created = inner.wait(end, |created| created.vcpus >= index)?;
        if created.vcpus != index {
            return Err(Error::BadVcpu(index).into());
        }
        // The lock is held, so that creations follow each other.
        let vcpu = HvfVcpu::new(inner.clone(), slot.clone(), index);
        match &vcpu {
            Ok(_) => created.vcpus += 1,
            Err(_) => created.failed = true,
        }
        inner.changed.notify_all();
        Ok(Box::new(vcpu?))
    }

    fn canceller(&self, index: u32) -> Result<Canceller> {
        let slot = self.0.slots.get(index as usize).ok_or(Error::BadVcpu(index))?.clone();
        let inner = Arc::downgrade(&self.0);
        Ok(Arc::new(move || {
            // The flag is what counts. The framework's exit only makes the vCPU look at it, and comes after it: an exit
            // without the flag is one whose request has been served.
            slot.wanted.store(true, Ordering::SeqCst);
            if let Some(id) = *lock(&slot.id) {
                // SAFETY: the array is one id long. The lock keeps the vCPU alive.
                unsafe { hv::hv_vcpus_exit(&id, 1) };
            }
            if let Some(inner) = inner.upgrade() {
                inner.changed.notify_all();
            }
        }))
    }

    fn set_spi(&self, intid: u32, level: bool) {
        // SAFETY: the call takes no pointers. It fails for an INTID that is none, which a machine does not use.
        let code = unsafe { hv::hv_gic_set_spi(intid, level) };
        debug_assert_eq!(code, 0, "SPI {intid}");
    }

    fn gic_state(&self) -> Result<Vec<u8>> {
        // SAFETY: the call takes nothing and gives an object to release, or nothing while a vCPU runs.
        let state = Object::new("", unsafe { hv::hv_gic_state_create() }).map_err(|_| Error::GicBusy)?;
        let mut size = 0;
        // SAFETY: the handle is alive and the call writes to the integer that is given to it.
        check("hv_gic_state_get_size", unsafe { hv::hv_gic_state_get_size(state.handle(), &mut size) })?;
        let mut data = vec![0; size];
        // SAFETY: the buffer is as long as the framework has just said.
        check("hv_gic_state_get_data", unsafe {
            hv::hv_gic_state_get_data(state.handle(), data.as_mut_ptr().cast())
        })?;
        Ok(data)
    }

    fn set_gic_state(&self, state: &[u8]) -> Result<()> {
        drop(self.0.complete(|| false)?);
        // SAFETY: the pointer and the length are the slice's.
        let code = unsafe { hv::hv_gic_set_state(state.as_ptr().cast(), state.len()) };
        Ok(check("hv_gic_set_state", code).map_err(|_| Error::GicState)?)
    }

    fn host_counter(&self) -> u64 {
        host::absolute_time()
    }
}

impl Inner {
    /// Waits until vCPUs have been created as `ready` asks.
    fn wait(&self, end: Instant, ready: impl Fn(&Created) -> bool) -> error::Result<MutexGuard<'_, Created>> {
        let mut created = lock(&self.created);
        while !ready(&created) {
            let left = end.saturating_duration_since(Instant::now());
            if created.failed || left.is_zero() {
                return Err(Error::Incomplete(created.vcpus));
            }
            created = self.changed.wait_timeout(created, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(created)
    }

    /// Waits until every vCPU is there, or `enough` says that there is no need to: only then the topology is what the
    /// guest will find (hv_gic_create).
    fn complete(&self, enough: impl Fn() -> bool) -> error::Result<MutexGuard<'_, Created>> {
        let vcpus = self.config.vcpus;
        self.wait(Instant::now() + CREATION, |created| created.vcpus == vcpus || enough())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the VM exists and its vCPUs, each of which keeps this, are gone.
        unsafe { hv::hv_vm_destroy() };
    }
}
