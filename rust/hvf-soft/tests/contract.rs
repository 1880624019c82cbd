//! The framework's contract, as a C caller sees it.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use supermachine_hvf_soft::*;

const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
const CPSR: u32 = 34;
const PC: u32 = 31;
const MPIDR: u32 = 0xc005;
const SCTLR: u32 = 0xc080;
const CNTV_CTL: u32 = 0xdf19;
const PMR: u32 = 0xc230;
const RPR: u32 = 0xc65b;
const SRE: u32 = 0xc665;
const IGRPEN1: u32 = 0xc667;
const ISPENDR0: u32 = 0x1_0200;
const ICPENDR0: u32 = 0x1_0280;

static ONE: Mutex<()> = Mutex::new(());

/// The process's VM with an interrupt controller, gone when this is.
struct Vm(#[allow(dead_code, reason = "held until it is dropped")] MutexGuard<'static, ()>);

impl Vm {
    fn bare() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: no configuration is the default one.
        assert_eq!(unsafe { hv_vm_create(null_mut()) }, HV_SUCCESS);
        Self(one)
    }

    fn new() -> Self {
        let vm = Self::bare();
        assert_eq!(vm.gic(GICD, GICR), HV_SUCCESS);
        vm
    }

    fn gic(&self, gicd: u64, gicr: u64) -> Return {
        let config = hv_gic_config_create();
        // SAFETY: the handle is alive until it is released.
        unsafe {
            let distributor = hv_gic_config_set_distributor_base(config, gicd);
            let redistributor = hv_gic_config_set_redistributor_base(config, gicr);
            let created = hv_gic_create(config);
            os_release(config);
            [distributor, redistributor, created]
                .into_iter()
                .find(|code| *code != HV_SUCCESS)
                .unwrap_or(HV_SUCCESS)
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        assert_eq!(hv_vm_destroy(), HV_SUCCESS);
    }
}

fn create() -> (Return, u64, *const Exit) {
    let (mut id, mut exit) = (0, null());
    // SAFETY: the call writes to the two.
    let code = unsafe { hv_vcpu_create(&mut id, &mut exit, null_mut()) };
    (code, id, exit)
}

fn vcpu() -> u64 {
    let (code, id, _) = create();
    assert_eq!(code, HV_SUCCESS);
    id
}

/// What a getter gives.
fn get(
    getter: unsafe extern "C" fn(u64, u32, *mut u64) -> Return,
    id: u64,
    register: u32,
) -> Result<u64, Return> {
    let mut value = 0;
    // SAFETY: the call writes to the integer.
    match unsafe { getter(id, register, &mut value) } {
        HV_SUCCESS => Ok(value),
        code => Err(code),
    }
}

#[test]
fn a_process_has_one_vm() {
    let vm = Vm::bare();
    // SAFETY: no configuration is the default one.
    assert_eq!(unsafe { hv_vm_create(null_mut()) }, HV_BUSY);
    drop(vm);
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(hv_vm_destroy(), HV_NO_DEVICE);
    assert!(hv_gic_config_create().is_null() && hv_gic_state_create().is_null());
    assert_eq!(create().0, HV_NO_DEVICE);
}

#[test]
fn the_controller_comes_after_the_vm_and_before_its_vcpus_once() {
    let vm = Vm::bare();
    assert_eq!(create().0, HV_UNSUPPORTED);
    assert_eq!(vm.gic(GICD + 0x8000, GICR), HV_BAD_ARGUMENT);
    assert_eq!(vm.gic(GICD, GICD + 0x4000), HV_BAD_ARGUMENT);
    assert_eq!(vm.gic(GICD, GICD), HV_BAD_ARGUMENT);
    assert_eq!(vm.gic(GICD, GICR), HV_SUCCESS);
    assert_eq!(vm.gic(GICD, GICR), HV_BUSY);
    // SAFETY: null is looked for.
    assert_eq!(unsafe { hv_gic_create(null_mut()) }, HV_BAD_ARGUMENT);
}

#[test]
fn a_vcpu_is_its_threads_alone() {
    let vm = Vm::new();
    let id = vcpu();
    assert_eq!(create().0, HV_BUSY, "one for a thread");
    assert_eq!(hv_vm_destroy(), HV_BUSY);
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(hv_vcpu_run(id), HV_BAD_ARGUMENT);
            assert_eq!(hv_vcpu_destroy(id), HV_BAD_ARGUMENT);
            assert_eq!(hv_vcpu_set_reg(id, PC, 0), HV_BAD_ARGUMENT);
            assert_eq!(get(hv_vcpu_get_sys_reg, id, SCTLR), Err(HV_BAD_ARGUMENT));
            assert_eq!(get(hv_gic_get_icc_reg, id, SRE), Err(HV_BAD_ARGUMENT));
            assert_eq!(hv_gic_set_redistributor_reg(id, ISPENDR0, 1), HV_BAD_ARGUMENT);
            assert_eq!(hv_vcpu_set_vtimer_offset(id, 0), HV_BAD_ARGUMENT);
            // What any thread may do.
            // SAFETY: the array is one long.
            assert_eq!(unsafe { hv_vcpus_exit(&id, 1) }, HV_SUCCESS);
        });
    });
    assert_eq!(hv_vcpu_destroy(id), HV_SUCCESS);
    assert_eq!(hv_vcpu_destroy(id), HV_BAD_ARGUMENT);
    // SAFETY: the array is one long.
    assert_eq!(unsafe { hv_vcpus_exit(&id, 1) }, HV_BAD_ARGUMENT);
    drop(vm);
}

#[test]
fn an_exit_that_is_asked_for_outside_is_the_next_runs() {
    let vm = Vm::new();
    let (_, id, exit) = create();
    // SAFETY: the array is one long.
    assert_eq!(unsafe { hv_vcpus_exit(&id, 1) }, HV_SUCCESS);
    assert_eq!(hv_vcpu_run(id), HV_SUCCESS);
    // SAFETY: the vCPU is there and does not run.
    assert_eq!(unsafe { exit.read() }.reason, 0);
    // The topology is final from now on.
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(create().0, HV_BUSY));
    });
    hv_vcpu_destroy(id);
    drop(vm);
}

#[test]
fn affinities_follow_the_order_of_creation_and_tell_the_redistributor() {
    let vm = Vm::new();
    let id = vcpu();
    let mut base = 0;
    // SAFETY: the call writes to the integer.
    assert_eq!(unsafe { hv_gic_get_redistributor_base(id, &mut base) }, HV_BAD_ARGUMENT);
    assert_eq!(hv_vcpu_set_sys_reg(id, MPIDR, 1), HV_BAD_ARGUMENT);
    assert_eq!(hv_vcpu_set_sys_reg(id, MPIDR, 0), HV_SUCCESS);
    assert_eq!(get(hv_vcpu_get_sys_reg, id, MPIDR), Ok(1 << 31));
    // SAFETY: as above.
    assert_eq!(unsafe { hv_gic_get_redistributor_base(id, &mut base) }, HV_SUCCESS);
    assert_eq!(base, GICR);
    let last = |id| get(hv_gic_get_redistributor_reg, id, 8).unwrap() >> 4 & 1;
    assert_eq!(last(id), 1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let second = vcpu();
            assert_eq!(hv_vcpu_set_sys_reg(second, MPIDR, 1), HV_SUCCESS);
            let mut base = 0;
            // SAFETY: as above.
            assert_eq!(unsafe { hv_gic_get_redistributor_base(second, &mut base) }, HV_SUCCESS);
            assert_eq!((base, last(second)), (GICR + 0x2_0000, 1));
            hv_vcpu_destroy(second);
        });
    });
    assert_eq!(last(id), 0);
    hv_vcpu_destroy(id);
    drop(vm);
}

#[test]
fn ids_that_do_not_exist_are_bad_arguments() {
    let vm = Vm::new();
    let id = vcpu();
    for register in [35, 36, u32::MAX] {
        assert_eq!(get(hv_vcpu_get_reg, id, register), Err(HV_BAD_ARGUMENT));
        assert_eq!(hv_vcpu_set_reg(id, register, 0), HV_BAD_ARGUMENT);
    }
    for register in [0, 0xc007, 0xffff, u32::MAX] {
        assert_eq!(get(hv_vcpu_get_sys_reg, id, register), Err(HV_BAD_ARGUMENT));
        assert_eq!(hv_vcpu_set_sys_reg(id, register, 0), HV_BAD_ARGUMENT);
        assert_eq!(hv_gic_set_icc_reg(id, register, 0), HV_BAD_ARGUMENT);
        assert_eq!(hv_gic_set_redistributor_reg(id, register, 0), HV_BAD_ARGUMENT);
    }
    let mut wide = 0;
    // SAFETY: the call writes to the integer.
    assert_eq!(unsafe { hv_vcpu_get_simd_fp_reg(id, 32, &mut wide) }, HV_BAD_ARGUMENT);
    // SAFETY: null is looked for.
    assert_eq!(unsafe { hv_vcpu_get_reg(id, PC, null_mut()) }, HV_BAD_ARGUMENT);
    assert_eq!(hv_vcpu_set_reg(id, CPSR, 0x1f), HV_ILLEGAL_GUEST_STATE, "no such mode");
    for (intid, code) in [(31, HV_BAD_ARGUMENT), (32, HV_SUCCESS), (255, HV_SUCCESS), (256, HV_BAD_ARGUMENT)]
    {
        assert_eq!(hv_gic_set_spi(intid, false), code);
    }
    hv_vcpu_destroy(id);
    drop(vm);
}

#[test]
fn the_cpu_interface_is_gated() {
    let vm = Vm::new();
    let id = vcpu();
    assert_eq!(get(hv_gic_get_icc_reg, id, SRE), Ok(0));
    assert_eq!(get(hv_gic_get_icc_reg, id, PMR), Err(HV_DENIED));
    assert_eq!(hv_gic_set_icc_reg(id, IGRPEN1, 1), HV_DENIED);
    assert_eq!(hv_gic_set_icc_reg(id, SRE, 7), HV_SUCCESS);
    assert_eq!(hv_gic_set_icc_reg(id, PMR, 0xf8), HV_SUCCESS);
    assert_eq!(hv_gic_set_icc_reg(id, RPR, 0xf8), HV_BAD_ARGUMENT);
    assert_eq!(hv_gic_set_icc_reg(id, IGRPEN1, 1), HV_SUCCESS);
    assert_eq!(hv_gic_set_icc_reg(id, PMR, 0xa0), HV_DENIED);
    assert_eq!(get(hv_gic_get_icc_reg, id, PMR), Ok(0xf8));
    hv_vcpu_destroy(id);
    drop(vm);
}

#[test]
fn set_and_clear_registers_act_on_ones() {
    let vm = Vm::new();
    let id = vcpu();
    let pending = || get(hv_gic_get_redistributor_reg, id, ISPENDR0).unwrap();
    hv_gic_set_redistributor_reg(id, ISPENDR0, 0b1100);
    hv_gic_set_redistributor_reg(id, ISPENDR0, 0b0010);
    assert_eq!(pending(), 0b1110);
    hv_gic_set_redistributor_reg(id, ICPENDR0, 0b0100);
    assert_eq!(pending(), 0b1010);
    assert_eq!(hv_gic_set_redistributor_reg(id, 8, 0), HV_BAD_ARGUMENT, "TYPER is read-only");
    // PPI 20 is enabled, so its trigger stays.
    hv_gic_set_redistributor_reg(id, 0x1_0100, 1 << 20);
    assert_eq!(hv_gic_set_redistributor_reg(id, 0x1_0c04, 2 << 8), HV_BAD_ARGUMENT);
    assert_eq!(hv_gic_set_redistributor_reg(id, 0x1_0c04, 2 << 10), HV_SUCCESS);
    hv_vcpu_destroy(id);
    drop(vm);
}

#[test]
fn a_complete_vcpu_keeps_its_regime_and_an_unmasked_timer_is_looked_at() {
    let vm = Vm::new();
    let id = vcpu();
    assert_eq!(hv_vcpu_set_sys_reg(id, SCTLR, 0x30d0_0980), HV_SUCCESS);
    assert_eq!(hv_vcpu_set_reg(id, PC, 0), HV_SUCCESS);
    assert_eq!(hv_vcpu_set_sys_reg(id, SCTLR, 0x30d0_0980), HV_ILLEGAL_GUEST_STATE);

    let latched = || get(hv_gic_get_redistributor_reg, id, ISPENDR0).unwrap() >> 27 & 1;
    hv_vcpu_set_vtimer_mask(id, true);
    hv_vcpu_set_sys_reg(id, CNTV_CTL, 1);
    assert_eq!(latched(), 0, "a masked timer is silent");
    hv_vcpu_set_vtimer_mask(id, false);
    hv_vcpu_set_vtimer_mask(id, true);
    assert_eq!(latched(), 1);
    hv_vcpu_destroy(id);
    drop(vm);
}

#[test]
fn guest_memory_is_whole_pages_inside_the_guests_addresses() {
    let vm = Vm::new();
    let memory = vec![0_u8; 64 << 10].leak();
    let host = memory.as_ptr().map_addr(|at| at.next_multiple_of(16 << 10)).cast::<c_void>();
    let page = 16 << 10;
    // SAFETY: leaked memory is valid for good.
    let map = |host, ipa, size, flags| unsafe { hv_vm_map(host, ipa, size, flags) };
    assert_eq!(map(host, 4096, page, 7), HV_BAD_ARGUMENT);
    assert_eq!(map(host, 0, 4096, 7), HV_BAD_ARGUMENT);
    assert_eq!(map(host, 0, 0, 7), HV_BAD_ARGUMENT);
    assert_eq!(map(host, 0, page, 8), HV_BAD_ARGUMENT);
    assert_eq!(map(host, 1 << 36, page, 7), HV_BAD_ARGUMENT, "36 bits unless more are asked for");
    assert_eq!(map(host, u64::MAX - 0x3fff, page, 7), HV_BAD_ARGUMENT);
    assert_eq!(map(null(), 0, page, 7), HV_BAD_ARGUMENT);
    assert_eq!(map(host, 0, page, 7), HV_SUCCESS);
    assert_eq!(map(host, 0, page, 7), HV_ERROR);
    assert_eq!(hv_vm_protect(0, page, 1), HV_SUCCESS);
    assert_eq!(hv_vm_unmap(0, 2 * page), HV_BAD_ARGUMENT);
    assert_eq!(hv_vm_unmap(0, page), HV_SUCCESS);
    assert_eq!(hv_vm_protect(0, page, 1), HV_BAD_ARGUMENT);
    drop(vm);
}
