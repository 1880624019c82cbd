//! The order in which a vCPU's state goes back, on the software framework: the right one brings back what was saved,
//! and every step that is left out or out of place shows. On a Mac these tests ask Apple's framework whether it is what
//! the software one assumes of it; docs/concepts/macos.md.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::sync::mpsc;
use std::thread;

use common::Machine;
use supermachine_engine::arm64::state::{self, Clock, ORDER, Step, VcpuState};
use supermachine_engine::arm64::{Exit, IccReg, RedistReg, Reg, SimdReg, SysReg, Vcpu};
use supermachine_engine::{Error, Result};

const HVC_7: u32 = 0xd400_00e2;
/// MRS X0, CNTVCT_EL0.
const COUNT: u32 = 0xd53b_e040;

const ISENABLER0: RedistReg = RedistReg(0x1_0100);
const ISPENDR0: RedistReg = RedistReg(0x1_0200);
const ISACTIVER0: RedistReg = RedistReg(0x1_0300);
const VTIMER: u64 = 1 << 27;

/// CNTVCT_EL0 at capture: centuries from any host's own count.
const CAPTURED: u64 = 1 << 60;
const HOUR: u64 = 3600 * 24_000_000;

/// What the vCPU's place is like before the restore, and what the timer's deadline was.
#[derive(Clone, Copy, Debug)]
struct Scene {
    /// The framework has masked the timer.
    masked: bool,
    /// CNTV_CVAL_EL0 has passed.
    due: bool,
}

const SCENES: [Scene; 4] = [
    Scene { masked: false, due: false },
    Scene { masked: false, due: true },
    Scene { masked: true, due: false },
    Scene { masked: true, due: true },
];

/// A state in which every register differs from its reset value, as far as it can.
fn saved(scene: Scene, index: u64) -> VcpuState {
    let mut state = VcpuState { vtimer_offset: 77, ..VcpuState::default() };
    for register in state::GENERAL {
        let value = match register {
            Reg::PC => 0x4000_1000,
            Reg::CPSR => 0x6000_0345,
            Reg::FPCR => 0x0100_0000,
            Reg::FPSR => 0x10,
            Reg(n) => 0x1000 + u64::from(n),
        };
        state.general.push((register, value));
    }
    for n in 0..32 {
        state.simd.push((SimdReg(n), u128::from(n + 1) << 64 | 0xabcd));
    }
    let cval = if scene.due { CAPTURED - 1 } else { CAPTURED + HOUR };
    for (n, register) in state::SYSTEM.into_iter().enumerate() {
        let value = match register {
            SysReg::MPIDR_EL1 => 1 << 31 | index,
            SysReg::SCTLR_EL1 => 0x30d0_1804,
            SysReg::TCR_EL1 => 0x5_b510_3510,
            SysReg::CPACR_EL1 => 3 << 20,
            SysReg::SPSR_EL1 => 0x3c5,
            SysReg::CSSELR_EL1 | SysReg::MDSCR_EL1 | SysReg::CNTP_CTL_EL0 => 0,
            SysReg::CNTV_CTL_EL0 => 1,
            SysReg::CNTV_CVAL_EL0 => cval,
            _ => 0x4000_0000 + 0x1000 * n as u64,
        };
        state.system.push((register, value));
    }
    for register in state::ICC {
        let value = match register {
            IccReg::PMR_EL1 => 0xf0,
            IccReg::BPR0_EL1 => 3,
            IccReg::BPR1_EL1 => 4,
            IccReg::AP1R0_EL1 => 1 << 20,
            IccReg::RPR_EL1 => 20 << 3,
            IccReg::CTLR_EL1 => 0x402,
            IccReg::SRE_EL1 => 7,
            IccReg::IGRPEN1_EL1 => 1,
            _ => 0,
        };
        state.icc.push((register, value));
    }
    for register in state::REDISTRIBUTOR {
        let value = match register.0 {
            0x1_0080 => 0xffff_0fff,
            // PPI 20 has another trigger than at reset, and is enabled.
            0x1_0100 => VTIMER | 1 << 20 | 0x7f,
            0x1_0c04 => 2 << 8,
            0x1_0200 => 1 << 3,
            0x1_0300 => 1 << 5,
            priority => u64::from(0x08 + 0x08 * (priority >> 2 & 7)) * 0x0101_0101,
        };
        state.redistributor.push((register, value));
    }
    state
}

/// What a restore led to, as far as a guest would notice.
#[derive(Debug, PartialEq)]
struct Outcome {
    state: VcpuState,
    timer_masked: bool,
}

/// Does something to a fresh vCPU whose private interrupts are not as they are at reset, and looks at what it has
/// become.
fn outcome(scene: Scene, restore: impl FnOnce(&mut dyn Vcpu, Clock) -> Result<()>) -> Result<Outcome> {
    let machine = Machine::new(1, &[]);
    let mut vcpu = machine.vm.create_vcpu(0)?;
    vcpu.set_redist_reg(ISPENDR0, 1 << 9)?;
    vcpu.set_redist_reg(ISACTIVER0, 1 << 10)?;
    vcpu.set_vtimer_mask(scene.masked)?;
    let now = machine.vm.host_counter();
    let clock = Clock::resuming(CAPTURED, now);
    // By the time that is here before, every deadline has passed.
    vcpu.set_vtimer_offset(now.wrapping_sub(CAPTURED + 2 * HOUR))?;
    restore(&mut *vcpu, clock)?;
    let timer_masked = vcpu.vtimer_mask();
    // With the timer's line down, what is pending is what was made so.
    vcpu.set_vtimer_mask(true)?;
    let mut state = VcpuState::capture(&*vcpu)?;
    state.vtimer_offset = state.vtimer_offset.wrapping_sub(clock.vtimer_offset);
    Ok(Outcome { state, timer_masked })
}

fn in_order(scene: Scene, steps: &[Step]) -> Result<Outcome> {
    outcome(scene, |vcpu, clock| saved(scene, 0).restore_in_order(vcpu, clock, steps))
}

/// The saved state as a restored vCPU shows it.
fn expected(scene: Scene) -> Outcome {
    let mut state = saved(scene, 0);
    state.vtimer_offset = 0;
    if scene.due {
        // ISTATUS, and the interrupt.
        state.system.iter_mut().find(|(id, _)| *id == SysReg::CNTV_CTL_EL0).unwrap().1 |= 4;
        state.redistributor.iter_mut().find(|(id, _)| *id == ISPENDR0).unwrap().1 |= VTIMER;
    }
    Outcome { state, timer_masked: false }
}

/// Scenes in which these steps give an error or another outcome.
fn wrong(steps: &[Step]) -> Vec<Scene> {
    let differs =
        |scene: &Scene| in_order(*scene, steps).ok().is_none_or(|outcome| outcome != expected(*scene));
    SCENES.into_iter().filter(differs).collect()
}

/// The right order, but with one step moved to right before another.
fn moved(step: Step, before: Step) -> Vec<Step> {
    let mut steps: Vec<_> = ORDER.into_iter().filter(|other| *other != step).collect();
    let at = steps.iter().position(|other| *other == before).unwrap();
    steps.insert(at, step);
    steps
}

#[test]
fn the_right_order_brings_everything_back() {
    for scene in SCENES {
        let found = in_order(scene, &ORDER).unwrap();
        let wanted = expected(scene);
        assert_eq!(found.state.general, wanted.state.general);
        assert_eq!(found.state.system, wanted.state.system, "{scene:?}");
        assert_eq!(found.state.icc, wanted.state.icc);
        assert_eq!(found.state.redistributor, wanted.state.redistributor, "{scene:?}");
        assert_eq!(found, wanted);
    }
}

#[test]
fn every_step_that_is_left_out_shows() {
    for step in ORDER {
        let steps: Vec<_> = ORDER.into_iter().filter(|other| *other != step).collect();
        assert!(!wrong(&steps).is_empty(), "{step:?} can be left out");
    }
}

#[test]
fn every_step_in_the_wrong_place_shows() {
    let wrong_places = [
        // The other CPU interface registers are not there before ICC_SRE_EL1 is.
        (Step::IccState, Step::IccEnable),
        (Step::IccGroups, Step::IccEnable),
        // Delivery before priorities and masks.
        (Step::IccGroups, Step::IccState),
        // Triggers of interrupts that are enabled already.
        (Step::RedistributorBits, Step::RedistributorConfig),
        // The interrupt of a deadline that has passed, cleared again.
        (Step::VtimerDeadline, Step::RedistributorBits),
        // A deadline judged by another time.
        (Step::VtimerUnmask, Step::VtimerOffset),
        // PC and CPSR in a translation regime that is not there.
        (Step::General, Step::System),
    ];
    for (step, before) in wrong_places {
        assert!(!wrong(&moved(step, before)).is_empty(), "{step:?} can go before {before:?}");
    }
}

#[test]
fn a_set_without_a_clear_is_the_or_of_what_was_and_what_was_saved() {
    let scene = Scene { masked: false, due: false };
    let bits = outcome(scene, |vcpu, clock| {
        let saved = saved(scene, 0);
        let steps: Vec<_> = ORDER.into_iter().filter(|step| *step != Step::RedistributorBits).collect();
        saved.restore_in_order(vcpu, clock, &steps)?;
        for (register, value) in &saved.redistributor {
            if [ISENABLER0, ISPENDR0, ISACTIVER0].contains(register) {
                vcpu.set_redist_reg(*register, *value)?;
            }
        }
        Ok(())
    });
    let found = bits.unwrap();
    assert_ne!(found, expected(scene));
    let value = |register| found.state.redistributor.iter().find(|(id, _)| *id == register).unwrap().1;
    assert_eq!(value(ISENABLER0), VTIMER | 1 << 20 | 0xffff);
    assert_eq!((value(ISPENDR0), value(ISACTIVER0)), (1 << 3 | 1 << 9, 1 << 5 | 1 << 10));
}

#[test]
fn what_is_restored_is_captured_again() {
    for scene in SCENES {
        let first = in_order(scene, &ORDER).unwrap().state;
        let bytes = first.encode().unwrap();
        let second = outcome(scene, |vcpu, clock| vcpu.restore(&bytes, clock)).unwrap().state;
        assert_eq!(first, second, "{scene:?}");
    }
}

/// Restores two vCPUs, the second by `steps`, and has a guest on each say what time it is.
fn counts(steps: &'static [Step]) -> [u64; 2] {
    let machine = Machine::new(2, &[COUNT, HVC_7]);
    let clock = Clock::resuming(CAPTURED, machine.vm.host_counter());
    let (sender, told) = mpsc::channel();
    let threads = [&ORDER[..], steps].into_iter().enumerate().map(|(index, steps)| {
        let (vm, sender) = (machine.vm.clone(), sender.clone());
        thread::spawn(move || {
            let mut vcpu = vm.create_vcpu(index as u32).unwrap();
            drop(vm);
            let scene = Scene { masked: false, due: false };
            let mut state = saved(scene, index as u64);
            // No translation, and the code.
            state.system.iter_mut().find(|(id, _)| *id == SysReg::SCTLR_EL1).unwrap().1 = 0x30d0_1800;
            state.general.iter_mut().find(|(id, _)| *id == Reg::PC).unwrap().1 = common::RAM;
            state.general.iter_mut().find(|(id, _)| *id == Reg::CPSR).unwrap().1 = 0x3c5;
            state.restore_in_order(&mut *vcpu, clock, steps).unwrap();
            assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 7 });
            sender.send((index, vcpu.reg(Reg::x(0)).unwrap())).unwrap();
        })
    });
    let threads: Vec<_> = threads.collect();
    // A thread that fails must not be waited for.
    drop(sender);
    let mut counts = [0; 2];
    for _ in 0..2 {
        let (index, count) = told.recv().unwrap();
        counts[index] = count;
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    counts
}

#[test]
fn all_vcpus_have_one_time_and_a_second_one_without_its_offset_shows() {
    const WITHOUT: [Step; 10] = {
        let mut steps = [Step::System; 10];
        let (mut from, mut to) = (0, 0);
        while from < ORDER.len() {
            if !matches!(ORDER[from], Step::VtimerOffset) {
                steps[to] = ORDER[from];
                to += 1;
            }
            from += 1;
        }
        steps
    };
    assert!(counts(&ORDER).iter().all(|count| (CAPTURED..CAPTURED + HOUR).contains(count)));
    let [first, second] = counts(&WITHOUT);
    assert!((CAPTURED..CAPTURED + HOUR).contains(&first));
    assert!(second < CAPTURED, "the second vCPU lives in the host's time: {second}");
}

#[test]
fn a_vcpu_that_never_ran_is_saved_and_restored() {
    let machine = Machine::new(1, &[]);
    let bytes = machine.vm.create_vcpu(0).unwrap().save().unwrap();
    drop(machine);
    // Its CPU interface is not on, so all that is known of it is that.
    let state = VcpuState::decode(&bytes).unwrap();
    assert_eq!(state.icc, [(IccReg::SRE_EL1, 0)]);
    let machine = Machine::new(1, &[]);
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    vcpu.restore(&bytes, Clock::resuming(CAPTURED, machine.vm.host_counter())).unwrap();
    assert_eq!(VcpuState::capture(&*vcpu).unwrap().general, state.general);
}

#[test]
fn registers_that_a_file_should_not_hold_are_named() {
    let scene = SCENES[0];
    let said = |change: fn(&mut VcpuState)| {
        let mut state = saved(scene, 0);
        change(&mut state);
        match VcpuState::decode(&state.encode().unwrap()) {
            Err(Error::State(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(said(|state| state.general[0].0 = Reg(35)).contains("Reg(35)"));
    assert!(said(|state| state.general[36].0 = Reg(u32::MAX)).contains("Reg(4294967295)"));
    assert!(said(|state| state.simd[31].0 = SimdReg(32)).contains("SimdReg(32)"));
    assert!(said(|state| state.system[5].0 = SysReg(0xc000)).contains("SysReg(49152)"));
    assert!(said(|state| state.icc[0].0 = IccReg(0xc660)).contains("IccReg(50784)"));
    assert!(said(|state| state.redistributor[3].0 = RedistReg(0x1_0204)).contains("RedistReg(66052)"));
    assert!(said(|state| state.system.retain(|(id, _)| *id != SysReg::VBAR_EL1)).contains("lacks"));
    assert!(said(|state| state.redistributor.truncate(12)).contains("lacks redistributor register"));
    assert!(said(|state| state.system[1] = state.system[2]).contains("more than once"));
}
