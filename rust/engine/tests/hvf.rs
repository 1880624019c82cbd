//! The hvf engine: what the framework asks of its callers, and what goes wrong. Where there is no Mac it is the
//! software framework's; what only that one lets be seen is left out on Macs.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use common::{CONFIG, Machine, RAM, exclusive};
use supermachine_engine::arm64::{Exit, IccReg, RedistReg, Reg, SimdReg, SysReg, Vcpu, VmConfig};
use supermachine_engine::hvf::{Error, HvfVm};
use supermachine_engine::{Engine, Error as EngineError};
#[cfg(not(target_os = "macos"))]
use supermachine_hvf_soft::{Host, set_host};

const WFI: u32 = 0xd503_207f;
const HVC_7: u32 = 0xd400_00e2;
const SMC_1: u32 = 0xd400_0023;
/// B to itself.
const SPIN: u32 = 0x1400_0000;
/// LDR W3, [X1].
const LOAD: u32 = 0xb940_0023;

/// Starts a vCPU at the first instruction: EL1h, all masked.
fn start(vcpu: &mut dyn Vcpu) {
    vcpu.set_reg(Reg::CPSR, 0x3c5).unwrap();
    vcpu.set_reg(Reg::PC, RAM).unwrap();
}

fn refused(config: VmConfig) -> Error {
    match HvfVm::new(config).map(drop) {
        Err(EngineError::Hvf(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[cfg(not(target_os = "macos"))]
#[test]
fn what_the_host_lacks_is_told_apart() {
    let _exclusive = exclusive();
    set_host(Host::NotEntitled);
    assert_eq!(refused(CONFIG), Error::NotEntitled);
    set_host(Host::NoHypervisor);
    assert_eq!(refused(CONFIG), Error::NoHypervisor);
    set_host(Host::Ready);
    assert!(matches!(refused(VmConfig { vcpus: 1000, ..CONFIG }), Error::VcpuCount { vcpus: 1000, .. }));
    assert!(matches!(refused(VmConfig { vcpus: 0, ..CONFIG }), Error::VcpuCount { .. }));
    let vm = HvfVm::new(CONFIG).unwrap();
    assert_eq!(refused(CONFIG), Error::Busy);
    drop(vm);
    HvfVm::new(CONFIG).unwrap();
}

#[test]
fn a_layout_that_the_interrupt_controller_does_not_fit_is_refused_and_leaves_no_vm() {
    let _exclusive = exclusive();
    let misaligned = refused(VmConfig { gicd_base: 0x0800_4000, ..CONFIG });
    assert_eq!(
        misaligned,
        Error::Layout { what: "the distributor's alignment", found: 0x1_0000, needed: 0x4000 }
    );
    let overlapping = refused(VmConfig { gicr_base: 0x0800_8000, ..CONFIG });
    assert!(matches!(overlapping, Error::Layout { what: "the distributor's size", .. }), "{overlapping}");
    HvfVm::new(CONFIG).unwrap();
}

#[test]
fn exits_are_what_the_guest_did() {
    let machine = Machine::new(1, &[HVC_7, SMC_1, LOAD, SPIN]);
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    start(&mut *vcpu);
    vcpu.set_reg(Reg::x(1), 0x0a00_0004).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 7 });
    assert_eq!(vcpu.reg(Reg::PC).unwrap(), RAM + 4);
    assert_eq!(vcpu.run().unwrap(), Exit::Smc { immediate: 1 });
    assert_eq!(vcpu.reg(Reg::PC).unwrap(), RAM + 4);
    vcpu.set_reg(Reg::PC, RAM + 8).unwrap();
    match vcpu.run().unwrap() {
        Exit::DataAbort(abort) => {
            assert_eq!(abort.physical_address, 0x0a00_0004);
            let access = abort.access().unwrap();
            assert_eq!((access.size, access.write, access.register), (4, false, 3));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(vcpu.reg(Reg::PC).unwrap(), RAM + 8);
}

#[cfg(not(target_os = "macos"))]
#[test]
fn memory_goes_in_pages_of_sixteen_kibibytes_and_can_be_protected_and_taken_away() {
    use supermachine_engine::Protection;

    let machine = Machine::new(1, &[]);
    let page = Box::leak(Box::new([0_u8; 64 << 10]));
    let host = page.as_mut_ptr().map_addr(|at| at.next_multiple_of(16 << 10));
    let host = std::ptr::NonNull::new(host).unwrap();
    // SAFETY: leaked memory is valid for good.
    let map = |gpa, len| unsafe { machine.vm.map(host, gpa, len, Protection::Read) };
    for (gpa, len) in [(0x5000_0000, 4096), (0x5000_1000, 16 << 10), (1 << 40, 16 << 10), (RAM, 16 << 10)] {
        assert!(map(gpa, len).is_err(), "{gpa:#x} {len}");
    }
    map((1 << 40) - (16 << 10), 16 << 10).unwrap();
    drop(machine);

    let _exclusive = exclusive();
    let vm = HvfVm::new(CONFIG).unwrap();
    // SAFETY: as above.
    unsafe { supermachine_engine::arm64::Vm::map(&vm, host, RAM, 16 << 10, Protection::Read).unwrap() };
    vm.protect(RAM, 16 << 10, Protection::ReadWriteExecute).unwrap();
    vm.unmap(RAM, 16 << 10).unwrap();
    assert!(vm.unmap(RAM, 16 << 10).is_err() && vm.protect(RAM, 16 << 10, Protection::Read).is_err());
}

#[test]
fn registers_go_in_and_come_out_and_unknown_ids_never_reach_the_framework() {
    let machine = Machine::new(1, &[]);
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    vcpu.set_simd_reg(SimdReg(31), u128::MAX / 3).unwrap();
    assert_eq!(vcpu.simd_reg(SimdReg(31)).unwrap(), u128::MAX / 3);
    assert_eq!(vcpu.simd_reg(SimdReg(30)).unwrap(), 0);
    vcpu.set_sys_reg(SysReg::APGAKEYHI_EL1, 9).unwrap();
    assert_eq!(vcpu.sys_reg(SysReg::APGAKEYHI_EL1).unwrap(), 9);
    assert_eq!(vcpu.sys_reg(SysReg::MPIDR_EL1).unwrap(), 1 << 31);

    let unknown = |result: supermachine_engine::Result<()>| {
        assert!(matches!(result, Err(EngineError::Hvf(Error::UnknownRegister(_)))), "{result:?}");
    };
    unknown(vcpu.set_reg(Reg(35), 1));
    unknown(vcpu.set_simd_reg(SimdReg(32), 1));
    unknown(vcpu.set_sys_reg(SysReg(0xc007), 1));
    unknown(vcpu.set_icc_reg(IccReg(0xc660), 1));
    unknown(vcpu.set_redist_reg(RedistReg(0x1_0204), 1));
    unknown(vcpu.reg(Reg(u32::MAX)).map(drop));
}

#[test]
fn vcpus_are_created_in_order_whoever_comes_first_and_none_runs_alone() {
    let machine = Machine::new(3, &[HVC_7]);
    let (sender, told) = mpsc::channel();
    let threads: Vec<_> = [2, 1]
        .map(|index| {
            let (vm, sender) = (machine.vm.clone(), sender.clone());
            thread::spawn(move || {
                let mut vcpu = vm.create_vcpu(index).unwrap();
                drop(vm);
                start(&mut *vcpu);
                let exit = vcpu.run().unwrap();
                sender.send((index, vcpu.sys_reg(SysReg::MPIDR_EL1).unwrap(), exit)).unwrap();
            })
        })
        .into();
    assert!(told.try_recv().is_err());
    let vcpu = machine.vm.create_vcpu(0).unwrap();
    let mut all: Vec<_> = threads.iter().map(|_| told.recv().unwrap()).collect();
    all.sort_by_key(|(index, ..)| *index);
    let exit = Exit::Hvc { immediate: 7 };
    assert_eq!(all, [(1, 1 << 31 | 1, exit), (2, 1 << 31 | 2, exit)]);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(machine.vm.create_vcpu(0).is_err() && machine.vm.create_vcpu(3).is_err());
    drop(vcpu);
}

#[test]
fn a_cancel_is_never_lost_and_counts_once() {
    let machine = Machine::new(1, &[WFI, SPIN]);
    let cancel = machine.vm.canceller(0).unwrap();
    // Before there is a vCPU, and while it is outside.
    cancel();
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    start(&mut *vcpu);
    assert_eq!(vcpu.run().unwrap(), Exit::Canceled);
    cancel();
    cancel();
    assert_eq!(vcpu.run().unwrap(), Exit::Canceled);

    // While it goes in, is inside, and comes out: each of these would hang if it were lost.
    let (sender, ready) = mpsc::channel();
    let ended = Arc::new(AtomicBool::new(false));
    let canceling = thread::spawn({
        let ended = ended.clone();
        move || {
            let mut n = 0;
            while ready.recv().is_ok() {
                for _ in 0..n % 50 {
                    std::hint::spin_loop();
                }
                n += 1;
                cancel();
            }
            ended.store(true, Ordering::SeqCst);
        }
    });
    for _ in 0..2000 {
        sender.send(()).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Canceled);
    }
    drop(sender);
    canceling.join().unwrap();
    assert!(ended.load(Ordering::SeqCst));
}

#[cfg(not(target_os = "macos"))]
#[test]
fn an_interrupt_wakes_a_vcpu_that_waits() {
    // WFI, then report.
    let machine = Machine::new(1, &[WFI, HVC_7, SPIN]);
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    vcpu.set_icc_reg(IccReg::SRE_EL1, 1).unwrap();
    vcpu.set_icc_reg(IccReg::PMR_EL1, 0xf8).unwrap();
    vcpu.set_icc_reg(IccReg::IGRPEN1_EL1, 1).unwrap();
    vcpu.set_redist_reg(RedistReg(0x1_0080), u32::MAX.into()).unwrap();
    vcpu.set_redist_reg(RedistReg(0x1_0100), 1 << 27).unwrap();
    enable_group_1(&machine);
    vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, 1).unwrap();
    let offset = machine.vm.host_counter();
    vcpu.set_vtimer_offset(offset).unwrap();
    vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 24_000).unwrap();
    start(&mut *vcpu);
    assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 7 });
    assert!(machine.vm.host_counter() - offset >= 24_000);
    assert_eq!(vcpu.redist_reg(RedistReg(0x1_0200)).unwrap(), 1 << 27);
}

#[cfg(not(target_os = "macos"))]
/// The distributor is the guest's to program; from outside its state is set as a whole.
fn enable_group_1(machine: &Machine) {
    let mut state = machine.vm.gic_state().unwrap();
    state[12] = 2;
    machine.vm.set_gic_state(&state).unwrap();
}

#[cfg(not(target_os = "macos"))]
#[test]
fn the_controllers_state_is_taken_only_whole_and_before_the_guest_runs() {
    let machine = Machine::new(1, &[HVC_7]);
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    let state = machine.vm.gic_state().unwrap();
    let refused = |state: &[u8]| {
        let error = machine.vm.set_gic_state(state).unwrap_err();
        assert!(matches!(error, EngineError::Hvf(Error::GicState)), "{error}");
    };
    refused(&state[1..]);
    refused(&state[..state.len() - 1]);
    refused(&[]);
    refused(&vec![0; state.len()]);
    machine.vm.set_gic_state(&state).unwrap();
    start(&mut *vcpu);
    vcpu.run().unwrap();
    assert_eq!(machine.vm.gic_state().unwrap(), state);
    refused(&state);
}

#[test]
fn the_controllers_state_cannot_be_had_while_a_vcpu_runs() {
    let machine = Machine::new(1, &[HVC_7, SPIN]);
    let cancel = machine.vm.canceller(0).unwrap();
    let (sender, told) = mpsc::channel();
    let thread = thread::spawn({
        let vm = machine.vm.clone();
        move || {
            let mut vcpu = vm.create_vcpu(0).unwrap();
            drop(vm);
            start(&mut *vcpu);
            assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 7 });
            sender.send(()).unwrap();
            assert_eq!(vcpu.run().unwrap(), Exit::Canceled);
        }
    });
    told.recv().unwrap();
    // It is about to go in, or inside.
    while machine.vm.gic_state().is_ok() {
        thread::yield_now();
    }
    assert!(matches!(machine.vm.gic_state(), Err(EngineError::Hvf(Error::GicBusy))));
    cancel();
    thread.join().unwrap();
    machine.vm.gic_state().unwrap();
}

#[test]
fn the_engine_is_chosen_by_name() {
    let _exclusive = exclusive();
    let vm = supermachine_engine::create_arm64_vm(Engine::Hvf, CONFIG).unwrap();
    assert!(vm.host_counter() > 0);
}
