//! vCPUs: each belongs to the thread that created it.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use supermachine_support::lock;

use supermachine_soft as soft;
use supermachine_soft::id::RedistReg;

use crate::host::{CANCELLERS, Machine, machine};
use crate::{
    HV_BAD_ARGUMENT, HV_BUSY, HV_ERROR, HV_NO_DEVICE, HV_NO_RESOURCES, HV_SUCCESS, HV_UNSUPPORTED, Return,
};

const REASON_CANCELED: u32 = 0;
const REASON_EXCEPTION: u32 = 1;
const REASON_UNKNOWN: u32 = 3;
/// ESR_EL2: exception classes and the bit for a 32-bit instruction (Arm ARM, D24.2.40).
const EC_HVC: u64 = 0x16 << 26;
const EC_SMC: u64 = 0x17 << 26;
const IL: u64 = 1 << 25;

/// `hv_vcpu_exit_t` (hv_vcpu_types.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Exit {
    /// `hv_exit_reason_t`.
    pub reason: u32,
    /// ESR_EL2.
    pub syndrome: u64,
    /// FAR_EL2.
    pub virtual_address: u64,
    /// The guest physical address of the same byte.
    pub physical_address: u64,
}

/// The calling thread's vCPU.
pub(crate) struct Mine {
    id: u64,
    pub index: u32,
    pub vcpu: soft::Vcpu,
    exit: *mut Exit,
    pub machine: Arc<Machine>,
    /// ICC_SRE_EL1.SRE, for whoever sets registers from outside; a guest sets it on its own.
    pub system_registers: bool,
    /// Its MPIDR has been set, which makes its redistributor known.
    pub affinity_set: bool,
    /// Its PC has been set since it last ran: the vCPU is complete.
    pub complete: bool,
    /// It has run, so that nobody outside knows what the guest did to it.
    pub has_run: bool,
}

impl Drop for Mine {
    fn drop(&mut self) {
        lock(&CANCELLERS).remove(&self.id);
        self.machine.live.fetch_sub(1, Ordering::SeqCst);
        // SAFETY: `exit` came from Box::into_raw and is given back here alone.
        drop(unsafe { Box::from_raw(self.exit) });
    }
}

thread_local! {
    static MINE: RefCell<Option<Mine>> = const { RefCell::new(None) };
}

/// Ids are never used twice, so that an old one is nobody's.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Runs `body` on the vCPU with this id. Documented: the owning thread calls. Assumed: for any other thread the id is
/// a bad argument.
pub(crate) fn mine(id: u64, body: impl FnOnce(&mut Mine) -> Return) -> Return {
    MINE.with_borrow_mut(|mine| match mine {
        Some(mine) if mine.id == id => body(mine),
        _ => HV_BAD_ARGUMENT,
    })
}

/// Documented: makes a vCPU for the calling thread, after the interrupt controller (hv_gic_create); once vCPUs run the
/// topology is final. Measured: redistributors are given out in the order of creation. Assumed: one vCPU for a thread,
/// and SGIs enabled at reset, as the specification leaves open (IHI 0069, 12.11.17).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_create(
    vcpu: *mut u64,
    exit: *mut *const Exit,
    _config: *mut c_void,
) -> Return {
    let Some(machine) = machine() else { return HV_NO_DEVICE };
    let Some(core) = machine.soft.get() else { return HV_UNSUPPORTED };
    if vcpu.is_null() || exit.is_null() {
        return HV_BAD_ARGUMENT;
    }
    if MINE.with_borrow(Option::is_some) || machine.has_run.load(Ordering::SeqCst) {
        return HV_BUSY;
    }
    let mut created = lock(&machine.created);
    let index = *created;
    let (Ok(mut cpu), Ok(canceller)) = (core.create_vcpu(index), core.canceller(index)) else {
        return HV_NO_RESOURCES;
    };
    if cpu.set_redist_reg(RedistReg(0x1_0100), 0xffff).is_err() {
        return HV_ERROR;
    }
    *created += 1;
    core.list_redistributors(*created);
    drop(created);

    let id = NEXT_ID.fetch_add(1, Ordering::SeqCst);
    let information = Box::into_raw(Box::new(Exit { reason: REASON_UNKNOWN, ..Exit::default() }));
    machine.live.fetch_add(1, Ordering::SeqCst);
    lock(&CANCELLERS).insert(id, canceller);
    let made = Mine {
        id,
        index,
        vcpu: cpu,
        exit: information,
        machine: machine.clone(),
        system_registers: false,
        affinity_set: false,
        complete: false,
        has_run: false,
    };
    MINE.set(Some(made));
    // SAFETY: both pointers are the caller's, not null, as documented.
    unsafe {
        vcpu.write(id);
        exit.write(information);
    }
    HV_SUCCESS
}

/// Documented: destroys the calling thread's vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_destroy(vcpu: u64) -> Return {
    let known = mine(vcpu, |_| HV_SUCCESS);
    if known == HV_SUCCESS {
        MINE.set(None);
    }
    known
}

/// Documented: runs the guest until an exit, which it describes; the owning thread calls. Measured: after HVC the PC is
/// past the instruction, after an abort and SMC at it; WFI waits inside.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_run(vcpu: u64) -> Return {
    mine(vcpu, |mine| {
        let machine = mine.machine.clone();
        machine.has_run.store(true, Ordering::SeqCst);
        machine.running.fetch_add(1, Ordering::SeqCst);
        mine.has_run = true;
        mine.complete = false;
        mine.system_registers = true;
        let exit = mine.vcpu.run();
        machine.running.fetch_sub(1, Ordering::SeqCst);
        let described = match exit {
            Ok(soft::Exit::Canceled) => Exit { reason: REASON_CANCELED, ..Exit::default() },
            Ok(soft::Exit::Hvc { immediate }) => exception(EC_HVC | IL | u64::from(immediate)),
            Ok(soft::Exit::Smc { immediate }) => exception(EC_SMC | IL | u64::from(immediate)),
            Ok(soft::Exit::DataAbort(abort)) => Exit {
                reason: REASON_EXCEPTION,
                syndrome: abort.syndrome,
                virtual_address: abort.virtual_address,
                physical_address: abort.physical_address,
            },
            Err(_) => return HV_ERROR,
        };
        // SAFETY: the box is this vCPU's until it is dropped; the caller reads it between runs.
        unsafe { mine.exit.write(described) };
        HV_SUCCESS
    })
}

fn exception(syndrome: u64) -> Exit {
    Exit { reason: REASON_EXCEPTION, syndrome, ..Exit::default() }
}

/// Documented: makes vCPUs leave hv_vcpu_run, from any thread; one that is not running returns from its next run at
/// once, without entering the guest. Assumed: an id that is nobody's is a bad argument.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpus_exit(vcpus: *const u64, count: u32) -> Return {
    if vcpus.is_null() && count != 0 {
        return HV_BAD_ARGUMENT;
    }
    let cancellers = lock(&CANCELLERS);
    for n in 0..count as usize {
        // SAFETY: the caller's array is `count` long.
        match cancellers.get(&unsafe { vcpus.add(n).read() }) {
            Some(canceller) => canceller.cancel(),
            None => return HV_BAD_ARGUMENT,
        }
    }
    HV_SUCCESS
}
