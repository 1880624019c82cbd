//! A vCPU that is being debugged goes on in another VM as it was: in the middle of a step, and with what it compares;
//! and so does one that counts what it runs.

mod common;

use common::{Machine, RAM};
use supermachine_engine::Engine;
use supermachine_engine::arm64::state::{DEBUG, PMU, SYSTEM, VcpuState};
use supermachine_engine::arm64::{Exit, Reg, SysReg};

const ADD: u32 = 0x9100_0400;
const SVC: u32 = 0xd400_0001;
const HVC_9: u32 = 0xd400_0122;
const ERET: u32 = 0xd69f_03e0;
const SS: u64 = 1 << 21;

/// At EL0 from the start of memory, exceptions at 0x400: HVC #9, then back.
fn code() -> Vec<u8> {
    let mut words = vec![0; 0x102];
    words[..3].copy_from_slice(&[ADD, ADD, SVC]);
    words[0x100..].copy_from_slice(&[HVC_9, ERET]);
    words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect()
}

const fn pair(n: u16, which: u16) -> SysReg {
    SysReg::new(2, 0, 0, n, which)
}

#[test]
fn a_step_and_comparisons_go_on_elsewhere() {
    // DBGBVR1_EL1 and DBGBCR1_EL1: code at 4 at EL0; DBGWVR0_EL1 and DBGWCR0_EL1: eight bytes, loads and stores.
    let compared =
        [(pair(1, 4), RAM + 4), (pair(1, 5), 0x1e5), (pair(0, 6), RAM + 0x800), (pair(0, 7), 0x1ffd)];
    for engine in [Engine::Soft, Engine::Hvf] {
        let machine = Machine::of(engine, 1, &code());
        let mut vcpu = machine.vm.create_vcpu(0).unwrap();
        vcpu.set_sys_reg(SysReg::VBAR_EL1, RAM).unwrap();
        vcpu.set_sys_reg(SysReg::MDSCR_EL1, 1 << 15 | 1).unwrap();
        for (register, value) in compared {
            vcpu.set_sys_reg(register, value).unwrap();
        }
        vcpu.set_reg(Reg::CPSR, SS).unwrap();
        vcpu.set_reg(Reg::PC, RAM).unwrap();
        let (machine, mut vcpu) = machine.moved(vcpu);
        for (register, value) in compared {
            assert_eq!(vcpu.sys_reg(register).unwrap(), value, "{engine:?} {register:x?}");
        }
        // One instruction runs, and the step is complete before the breakpoint is looked at.
        assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 9 });
        assert_eq!(vcpu.sys_reg(SysReg::ESR_EL1).unwrap() >> 26, 0x32);
        assert_eq!(vcpu.sys_reg(SysReg::ELR_EL1).unwrap(), RAM + 4);
        assert_eq!(vcpu.reg(Reg::x(0)).unwrap(), 1);
        vcpu.set_sys_reg(SysReg::SPSR_EL1, SS).unwrap();
        let (_machine, mut vcpu) = machine.moved(vcpu);
        assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 9 });
        assert_eq!(vcpu.sys_reg(SysReg::ESR_EL1).unwrap() >> 26, 0x30);
        assert_eq!(vcpu.sys_reg(SysReg::ELR_EL1).unwrap(), RAM + 4);
    }
}

#[test]
fn counters_go_on_elsewhere() {
    let machine = Machine::of(Engine::Soft, 1, &code());
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    vcpu.set_sys_reg(SysReg::VBAR_EL1, RAM).unwrap();
    // PMCNTENSET_EL0: the cycle counter; PMCR_EL0.E; not at EL1, by PMCCFILTR_EL0.
    let counting = [(PMU[5], 1 << 31), (PMU[0], PMU[0].at_rest() | 1), (PMU[3], 1 << 31)];
    for (register, value) in counting {
        vcpu.set_sys_reg(register, value).unwrap();
    }
    vcpu.set_reg(Reg::CPSR, 0).unwrap();
    vcpu.set_reg(Reg::PC, RAM).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 9 });
    let (_machine, mut vcpu) = machine.moved(vcpu);
    for (register, value) in counting.into_iter().chain([(PMU[4], 3)]) {
        assert_eq!(vcpu.sys_reg(register).unwrap(), value, "{register:x?}");
    }
    vcpu.set_sys_reg(SysReg::ELR_EL1, RAM + 4).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 9 });
    assert_eq!(vcpu.sys_reg(PMU[4]).unwrap(), 5);
}

#[test]
fn a_guest_that_is_not_debugged_has_nothing_more_in_its_file() {
    let machine = Machine::of(Engine::Soft, 1, &code());
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    let registers = |state: &VcpuState| state.system.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    let plain = VcpuState::capture(&*vcpu).unwrap();
    assert_eq!(registers(&plain), SYSTEM);
    vcpu.set_sys_reg(DEBUG[0], 8).unwrap();
    let debugged = VcpuState::capture(&*vcpu).unwrap();
    assert_eq!(registers(&debugged)[SYSTEM.len()..], DEBUG[..1]);
    debugged.check().unwrap();
}
