//! The VM and its memory.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use supermachine_support::{lock, page_size};

use supermachine_soft as soft;

use crate::host::{Machine, Region, admit, machine, slot};
use crate::object::{Object, object};
use crate::{
    HV_BAD_ARGUMENT, HV_BUSY, HV_ERROR, HV_NO_DEVICE, HV_NO_RESOURCES, HV_SUCCESS, HV_UNSUPPORTED, Return,
    put,
};

/// Guest memory comes in these (Documented: addresses and sizes are page-aligned; Measured: 16 KiB by default).
const PAGE: u64 = 16 << 10;
const DEFAULT_IPA_BITS: u32 = 36;
const MAX_IPA_BITS: u32 = 40;
const READ: u64 = 1;
const WRITE: u64 = 2;
const EXEC: u64 = 4;

/// Documented: a new configuration object.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_config_create() -> *mut c_void {
    Object::VmConfig { ipa_bits: DEFAULT_IPA_BITS }.hand_out()
}

/// Documented: bits of the largest guest physical address that the host can do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> Return {
    // SAFETY: the caller's pointer, as documented.
    unsafe { put(bits, MAX_IPA_BITS) }
}

/// Documented: sets the bits of guest physical addresses; more than the maximum is an error. Assumed: fewer than the
/// default are as well.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> Return {
    // SAFETY: the caller's handle.
    match unsafe { object(config) } {
        Some(Object::VmConfig { ipa_bits }) if (DEFAULT_IPA_BITS..=MAX_IPA_BITS).contains(&bits) => {
            *ipa_bits = bits;
            HV_SUCCESS
        }
        _ => HV_BAD_ARGUMENT,
    }
}

/// Documented: one VM for a process; without the entitlement or the hardware, none. Assumed: a second is `HV_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_create(config: *mut c_void) -> Return {
    let ipa_bits = match config.is_null() {
        true => DEFAULT_IPA_BITS,
        // SAFETY: the caller's handle.
        false => match unsafe { object(config) } {
            Some(Object::VmConfig { ipa_bits }) => *ipa_bits,
            _ => return HV_BAD_ARGUMENT,
        },
    };
    let admitted = admit();
    if admitted != HV_SUCCESS {
        return admitted;
    }
    let mut slot = slot();
    if slot.is_some() {
        return HV_BUSY;
    }
    *slot = Some(Arc::new(Machine {
        ipa_bits,
        regions: Mutex::new(BTreeMap::new()),
        soft: OnceLock::new(),
        gicr_base: OnceLock::new(),
        created: Mutex::new(0),
        live: AtomicU32::new(0),
        running: AtomicU32::new(0),
        has_run: AtomicBool::new(false),
    }));
    HV_SUCCESS
}

/// Documented: destroys the process's VM. Assumed: not while it has vCPUs.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_destroy() -> Return {
    let mut slot = slot();
    match slot.as_ref() {
        None => HV_NO_DEVICE,
        Some(machine) if machine.live.load(Ordering::SeqCst) != 0 => HV_BUSY,
        Some(_) => {
            *slot = None;
            HV_SUCCESS
        }
    }
}

/// Documented: the most vCPUs that a VM may have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_get_max_vcpu_count(count: *mut u32) -> Return {
    // SAFETY: the caller's pointer, as documented.
    unsafe { put(count, soft::MAX_VCPUS) }
}

/// Documented: maps host memory into the guest; both addresses and the size are page-aligned. Assumed: what overlaps
/// an earlier mapping is refused, and so is what ends beyond the guest's addresses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_map(host: *const c_void, ipa: u64, size: usize, flags: u64) -> Return {
    let Some(machine) = machine() else { return HV_NO_DEVICE };
    let len = size as u64;
    let aligned =
        ipa.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && (host as u64).is_multiple_of(page_size());
    let inside = ipa.checked_add(len).is_some_and(|end| end <= 1 << machine.ipa_bits);
    if host.is_null() || len == 0 || !aligned || !inside || flags & !(READ | WRITE | EXEC) != 0 {
        return HV_BAD_ARGUMENT;
    }
    let mut regions = lock(&machine.regions);
    if regions.iter().any(|(at, region)| *at < ipa + len && ipa < at + region.len) {
        return HV_ERROR;
    }
    let region = Region { host: host as usize, len, flags };
    let mapped = match machine.soft.get() {
        Some(soft) => install(soft, ipa, region),
        None => HV_SUCCESS,
    };
    if mapped == HV_SUCCESS {
        regions.insert(ipa, region);
    }
    mapped
}

/// Documented: unmaps page-aligned guest memory. Assumed here: whole regions, as they were mapped, while no vCPU runs.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_unmap(ipa: u64, size: usize) -> Return {
    let Some(machine) = machine() else { return HV_NO_DEVICE };
    let mut regions = lock(&machine.regions);
    match regions.get(&ipa) {
        Some(region) if region.len == size as u64 => {}
        _ => return HV_BAD_ARGUMENT,
    }
    regions.remove(&ipa);
    match machine.soft.get() {
        Some(soft) if soft.unmap(ipa, size as u64).is_err() => HV_ERROR,
        _ => HV_SUCCESS,
    }
}

/// Documented: changes what the guest may do with page-aligned memory. Assumed here: with whole regions.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_protect(ipa: u64, size: usize, flags: u64) -> Return {
    let Some(machine) = machine() else { return HV_NO_DEVICE };
    let mut regions = lock(&machine.regions);
    let Some(region) = regions.get_mut(&ipa).filter(|region| region.len == size as u64) else {
        return HV_BAD_ARGUMENT;
    };
    if flags & !(READ | WRITE | EXEC) != 0 {
        return HV_BAD_ARGUMENT;
    }
    let changed = Region { flags, ..*region };
    if let Some(soft) = machine.soft.get() {
        if soft.unmap(ipa, size as u64).is_err() {
            return HV_ERROR;
        }
        let mapped = install(soft, ipa, changed);
        if mapped != HV_SUCCESS {
            return mapped;
        }
    }
    *region = changed;
    HV_SUCCESS
}

/// Makes the machine core, with what has been mapped so far.
pub(crate) fn make_core(machine: &Machine, gicd_base: u64, gicr_base: u64) -> Return {
    let config = soft::VmConfig { vcpus: soft::MAX_VCPUS, gicd_base, gicr_base, ..soft::VmConfig::default() };
    let Ok(soft) = soft::Vm::new(config) else { return HV_NO_RESOURCES };
    let regions = lock(&machine.regions);
    for (ipa, region) in regions.iter() {
        let mapped = install(&soft, *ipa, *region);
        if mapped != HV_SUCCESS {
            return mapped;
        }
    }
    match (machine.soft.set(soft), machine.gicr_base.set(gicr_base)) {
        (Ok(()), Ok(())) => HV_SUCCESS,
        _ => HV_BUSY,
    }
}

fn install(soft: &soft::Vm, ipa: u64, region: Region) -> Return {
    // The software CPU knows two kinds of memory, and executes from both.
    let protection = match region.flags {
        flags if flags == READ | WRITE | EXEC => soft::Protection::ReadWriteExecute,
        flags if flags == READ | EXEC || flags == READ => soft::Protection::Read,
        _ => return HV_UNSUPPORTED,
    };
    let Some(host) = NonNull::new(region.host as *mut u8) else { return HV_BAD_ARGUMENT };
    // SAFETY: whoever calls hv_vm_map keeps the memory until it is unmapped or the VM is gone.
    match unsafe { soft.map(host, ipa, region.len, protection) } {
        Ok(()) => HV_SUCCESS,
        Err(_) => HV_BAD_ARGUMENT,
    }
}
