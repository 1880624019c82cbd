//! The interrupt controller: a GICv3 of the framework's own (macOS 15).

use std::ffi::c_void;
use std::sync::atomic::Ordering;

use supermachine_soft::id::{IccReg, RedistReg};

use crate::host::machine;
use crate::object::{Object, object};
use crate::vcpu::{Mine, mine};
use crate::vm::make_core;
use crate::{HV_BAD_ARGUMENT, HV_BUSY, HV_DENIED, HV_ERROR, HV_NO_DEVICE, HV_SUCCESS, Return, put};

/// Measured.
const DISTRIBUTOR_BYTES: usize = 64 << 10;
const REDISTRIBUTOR_BYTES: usize = 128 << 10;
const BASE_ALIGNMENT: usize = 64 << 10;
const FIRST_SPI: u32 = 32;
const SPIS: u32 = 224;

const TYPER: u32 = 8;
const PIDR2: u32 = 0xffe8;
const ISENABLER0: u32 = 0x1_0100;
const ICFGR1: u32 = 0x1_0c04;

/// `hv_gic_redistributor_reg_t`, beyond TYPER and PIDR2.
const REDISTRIBUTOR: [u32; 17] = [
    0x1_0080, ISENABLER0, 0x1_0180, 0x1_0200, 0x1_0280, 0x1_0300, 0x1_0380, 0x1_0400, 0x1_0404, 0x1_0408,
    0x1_040c, 0x1_0410, 0x1_0414, 0x1_0418, 0x1_041c, 0x1_0c00, ICFGR1,
];

/// `hv_gic_icc_reg_t`, without EL2's.
const ICC: [IccReg; 10] = [
    IccReg::PMR_EL1,
    IccReg::BPR0_EL1,
    IccReg::AP0R0_EL1,
    IccReg::AP1R0_EL1,
    IccReg::RPR_EL1,
    IccReg::BPR1_EL1,
    IccReg::CTLR_EL1,
    IccReg::SRE_EL1,
    IccReg::IGRPEN0_EL1,
    IccReg::IGRPEN1_EL1,
];

/// Documented: made after the VM. Assumed: nothing without one.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_create() -> *mut c_void {
    match machine() {
        Some(_) => Object::GicConfig { gicd_base: None, gicr_base: None }.hand_out(),
        None => std::ptr::null_mut(),
    }
}

/// Documented: aligned to what hv_gic_get_distributor_base_alignment says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_config_set_distributor_base(config: *mut c_void, base: u64) -> Return {
    // SAFETY: the caller's handle.
    match unsafe { object(config) } {
        Some(Object::GicConfig { gicd_base, .. }) if base.is_multiple_of(BASE_ALIGNMENT as u64) => {
            *gicd_base = Some(base);
            HV_SUCCESS
        }
        _ => HV_BAD_ARGUMENT,
    }
}

/// Documented: aligned to what hv_gic_get_redistributor_base_alignment says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_config_set_redistributor_base(config: *mut c_void, base: u64) -> Return {
    // SAFETY: the caller's handle.
    match unsafe { object(config) } {
        Some(Object::GicConfig { gicr_base, .. }) if base.is_multiple_of(BASE_ALIGNMENT as u64) => {
            *gicr_base = Some(base);
            HV_SUCCESS
        }
        _ => HV_BAD_ARGUMENT,
    }
}

/// Documented: after the VM and before its vCPUs, once. Assumed: both bases are set and the regions do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_create(config: *mut c_void) -> Return {
    let Some(machine) = machine() else { return HV_NO_DEVICE };
    // SAFETY: the caller's handle.
    let Some(Object::GicConfig { gicd_base: Some(gicd), gicr_base: Some(gicr) }) =
        (unsafe { object(config) })
    else {
        return HV_BAD_ARGUMENT;
    };
    if *gicr < *gicd + DISTRIBUTOR_BYTES as u64 && *gicd < *gicr + REDISTRIBUTOR_BYTES as u64 {
        return HV_BAD_ARGUMENT;
    }
    match machine.soft.get() {
        Some(_) => HV_BUSY,
        None => make_core(&machine, *gicd, *gicr),
    }
}

/// Documented.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_distributor_size(size: *mut usize) -> Return {
    // SAFETY: the caller's pointer, as documented.
    unsafe { put(size, DISTRIBUTOR_BYTES) }
}

/// Documented.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_distributor_base_alignment(alignment: *mut usize) -> Return {
    // SAFETY: the caller's pointer, as documented.
    unsafe { put(alignment, BASE_ALIGNMENT) }
}

/// Documented: "two 64 kilobyte frames per vCPU".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_size(size: *mut usize) -> Return {
    // SAFETY: the caller's pointer, as documented.
    unsafe { put(size, REDISTRIBUTOR_BYTES) }
}

/// Documented.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_base_alignment(alignment: *mut usize) -> Return {
    // SAFETY: the caller's pointer, as documented.
    unsafe { put(alignment, BASE_ALIGNMENT) }
}

/// Documented: the first SPI and how many there are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32) -> Return {
    // SAFETY: the caller's pointers, as documented.
    match unsafe { put(first, FIRST_SPI) } {
        // SAFETY: as above.
        HV_SUCCESS => unsafe { put(count, SPIS) },
        error => error,
    }
}

/// Documented: sets the level of an SPI, from any thread; `HV_BAD_ARGUMENT` for an INTID that is none.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_spi(intid: u32, level: bool) -> Return {
    let Some(machine) = machine() else { return HV_NO_DEVICE };
    let Some(core) = machine.soft.get() else { return HV_NO_DEVICE };
    if !(FIRST_SPI..FIRST_SPI + SPIS).contains(&intid) {
        return HV_BAD_ARGUMENT;
    }
    core.set_spi(intid, level);
    HV_SUCCESS
}

/// Documented: "Must be called after the affinity of the given vCPU has been set in its MPIDR_EL1 register."
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_base(vcpu: u64, base: *mut u64) -> Return {
    mine(vcpu, |mine| match mine.machine.gicr_base.get() {
        Some(first) if mine.affinity_set => {
            // SAFETY: the caller's pointer, as documented.
            unsafe { put(base, first + REDISTRIBUTOR_BYTES as u64 * u64::from(mine.index)) }
        }
        _ => HV_BAD_ARGUMENT,
    })
}

/// Documented: by the owning thread; ids are offsets from the redistributor's base.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_reg(vcpu: u64, register: u32, value: *mut u64) -> Return {
    mine(vcpu, |mine| {
        let found = match register {
            // Architecture revision 3 (IHI 0069, 12.11.33).
            PIDR2 => Some(0x3b),
            TYPER => mine.vcpu.redist_reg(RedistReg(TYPER)).ok(),
            _ if REDISTRIBUTOR.contains(&register) => mine.vcpu.redist_reg(RedistReg(register)).ok(),
            _ => None,
        };
        match found {
            // SAFETY: the caller's pointer, as documented.
            Some(found) => unsafe { put(value, found) },
            None => HV_BAD_ARGUMENT,
        }
    })
}

/// Documented: as above. IHI 0069, 12.11: a one in a set or clear register changes that bit, a zero does nothing; TYPER
/// and PIDR2 are read-only; the trigger of an interrupt that is enabled must not be changed (GICR_ICFGR1:
/// UNPREDICTABLE). Assumed: an error for the last.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_redistributor_reg(vcpu: u64, register: u32, value: u64) -> Return {
    mine(vcpu, |mine| {
        if !REDISTRIBUTOR.contains(&register) || register == ICFGR1 && changes_enabled(mine, value) {
            return HV_BAD_ARGUMENT;
        }
        match mine.vcpu.set_redist_reg(RedistReg(register), value) {
            Ok(()) => HV_SUCCESS,
            Err(_) => HV_BAD_ARGUMENT,
        }
    })
}

/// Whether these triggers of the PPIs are others than those that enabled ones have.
fn changes_enabled(mine: &Mine, triggers: u64) -> bool {
    let read = |register| mine.vcpu.redist_reg(RedistReg(register)).unwrap_or(0);
    let (enabled, before) = (read(ISENABLER0), read(ICFGR1));
    (0..16).any(|n| enabled >> (16 + n) & 1 == 1 && (before ^ triggers) >> (2 * n + 1) & 1 == 1)
}

fn icc(register: u32) -> Option<IccReg> {
    ICC.into_iter().find(|known| u32::from(known.0) == register)
}

/// Documented: by the owning thread. IHI 0069, 12.2: with ICC_SRE_EL1.SRE clear the other registers cannot be accessed.
/// Assumed: `HV_DENIED` for them then, and SRE clear at reset.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_icc_reg(vcpu: u64, register: u32, value: *mut u64) -> Return {
    mine(vcpu, |mine| {
        let Some(register) = icc(register) else { return HV_BAD_ARGUMENT };
        if register == IccReg::SRE_EL1 && !mine.system_registers {
            // SAFETY: the caller's pointer, as documented.
            return unsafe { put(value, 0) };
        }
        if !mine.system_registers {
            return HV_DENIED;
        }
        match mine.vcpu.icc_reg(register) {
            // SAFETY: as above.
            Ok(found) => unsafe { put(value, found) },
            Err(_) => HV_BAD_ARGUMENT,
        }
    })
}

/// Documented: as above. IHI 0069, 12.2.19: RPR is read-only. Assumed: priorities and masks are not set from outside
/// any more once a group is enabled, for interrupts may have been signalled by the old ones; `HV_DENIED` then.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_icc_reg(vcpu: u64, register: u32, value: u64) -> Return {
    mine(vcpu, |mine| {
        let Some(register) = icc(register) else { return HV_BAD_ARGUMENT };
        match register {
            IccReg::RPR_EL1 => return HV_BAD_ARGUMENT,
            IccReg::SRE_EL1 => {
                mine.system_registers = mine.has_run || value & 1 == 1;
                return HV_SUCCESS;
            }
            _ if !mine.system_registers => return HV_DENIED,
            IccReg::IGRPEN0_EL1 | IccReg::IGRPEN1_EL1 => {}
            _ if enabled(mine, IccReg::IGRPEN0_EL1) || enabled(mine, IccReg::IGRPEN1_EL1) => {
                return HV_DENIED;
            }
            _ => {}
        }
        match mine.vcpu.set_icc_reg(register, value) {
            Ok(()) => HV_SUCCESS,
            Err(_) => HV_BAD_ARGUMENT,
        }
    })
}

fn enabled(mine: &Mine, group: IccReg) -> bool {
    mine.vcpu.icc_reg(group).is_ok_and(|value| value & 1 == 1)
}

/// Documented: the state as it is, or nothing when there is no controller; the VM must be stopped.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_state_create() -> *mut c_void {
    let state = machine().filter(|machine| machine.running.load(Ordering::SeqCst) == 0);
    match state.as_ref().and_then(|machine| machine.soft.get()) {
        Some(core) => Object::GicState(core.gic_state()).hand_out(),
        None => std::ptr::null_mut(),
    }
}

/// Documented: the bytes that hv_gic_state_get_data writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_state_get_size(state: *mut c_void, size: *mut usize) -> Return {
    // SAFETY: the caller's handle and pointer.
    match unsafe { object(state) } {
        // SAFETY: as above.
        Some(Object::GicState(bytes)) => unsafe { put(size, bytes.len()) },
        _ => HV_BAD_ARGUMENT,
    }
}

/// Documented: opaque, versioned, all but the CPU interfaces' registers. (Snapshots in the field found that private
/// interrupts are not in it either; here they are not.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_state_get_data(state: *mut c_void, data: *mut c_void) -> Return {
    // SAFETY: the caller's handle.
    match unsafe { object(state) } {
        Some(Object::GicState(bytes)) if !data.is_null() => {
            // SAFETY: the caller's buffer is as long as hv_gic_state_get_size said.
            unsafe { data.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            HV_SUCCESS
        }
        _ => HV_BAD_ARGUMENT,
    }
}

/// Documented: after the controller and the vCPUs have been created, before any runs; state of another version is an
/// error. Assumed: `HV_BUSY` once one has run, `HV_BAD_ARGUMENT` for what is not such state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_set_state(data: *const c_void, size: usize) -> Return {
    let Some(machine) = machine() else { return HV_NO_DEVICE };
    let Some(core) = machine.soft.get() else { return HV_NO_DEVICE };
    if data.is_null() {
        return HV_BAD_ARGUMENT;
    }
    if machine.live.load(Ordering::SeqCst) == 0 {
        return HV_ERROR;
    }
    if machine.has_run.load(Ordering::SeqCst) {
        return HV_BUSY;
    }
    // SAFETY: the caller's buffer is `size` long.
    let state = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) };
    match core.set_gic_state(state) {
        Ok(()) => HV_SUCCESS,
        Err(_) => HV_BAD_ARGUMENT,
    }
}
