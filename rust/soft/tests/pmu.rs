//! The performance monitor, as EL1 and EL0 see it. The words that are written out are what GNU as makes of the
//! comments.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

#[path = "bare/mod.rs"]
mod bare;

use bare::{Machine, RAM};
use supermachine_soft::id::{RedistReg, Reg, SysReg};
use supermachine_soft::{Exit, Vcpu};

const CODE: u64 = 0x3000;
const NOP: u32 = 0xd503_201f;
const SVC: u32 = 0xd400_0001;
/// hvc #1
const HVC: u32 = 0xd400_0022;
/// subs x0, x0, #1; b.ne .-4
const LOOP: [u32; 2] = [0xf100_0400, 0x54ff_ffe1];

const PMCR: SysReg = SysReg::PMCR_EL0;
const PMCNTENSET: SysReg = SysReg::new(3, 3, 9, 12, 1);
const PMOVSCLR: SysReg = SysReg::new(3, 3, 9, 12, 3);
const PMSWINC: SysReg = SysReg::new(3, 3, 9, 12, 4);
const PMSELR: SysReg = SysReg::new(3, 3, 9, 12, 5);
const PMCEID0: SysReg = SysReg::new(3, 3, 9, 12, 6);
const PMCCNTR: SysReg = SysReg::new(3, 3, 9, 13, 0);
const PMXEVTYPER: SysReg = SysReg::new(3, 3, 9, 13, 1);
const PMXEVCNTR: SysReg = SysReg::new(3, 3, 9, 13, 2);
const PMUSERENR: SysReg = SysReg::new(3, 3, 9, 14, 0);
const PMOVSSET: SysReg = SysReg::new(3, 3, 9, 14, 3);
const PMINTENSET: SysReg = SysReg::new(3, 0, 9, 14, 1);
const PMCCFILTR: SysReg = SysReg::new(3, 3, 14, 15, 7);

const E: u64 = 1;
const LP: u64 = 1 << 7;
const CYCLES: u64 = 1 << 31;
const NOT_EL1: u64 = 1 << 31;
const NOT_EL0: u64 = 1 << 30;
const INST_RETIRED: u64 = 8;
const GICR_ISPENDR0: RedistReg = RedistReg(0x1_0200);

fn count(n: u16) -> SysReg {
    SysReg::new(3, 3, 14, 8, n)
}

fn event(n: u16) -> SysReg {
    SysReg::new(3, 3, 14, 12, n)
}

fn mrs(t: u32, r: SysReg) -> u32 {
    0xd520_0000 | u32::from(r.0) << 5 | t
}

fn msr(r: SysReg, t: u32) -> u32 {
    0xd500_0000 | u32::from(r.0) << 5 | t
}

/// A vCPU at these words, MMU off, whose exceptions come out as HVC #9 and return with ERET.
fn program(m: &Machine, el: u64, words: &[u32], x: &[(u32, u64)]) -> Vcpu {
    m.put(CODE, words);
    for vector in [0x2200, 0x2400] {
        m.put(vector, &[0xd400_0122, 0xd69f_03e0]);
    }
    let mut v = m.vcpu(0, CODE, x);
    v.set_sys_reg(SysReg::VBAR_EL1, RAM + 0x2000).unwrap();
    v.set_reg(Reg::CPSR, if el == 0 { 0x3c0 } else { 0x3c5 }).unwrap();
    v
}

fn set(v: &mut Vcpu, registers: &[(SysReg, u64)]) {
    for (register, value) in registers {
        v.set_sys_reg(*register, *value).unwrap();
    }
}

/// Counter 0 and the cycle counter count all instructions.
fn counting(v: &mut Vcpu) {
    set(v, &[(event(0), INST_RETIRED), (PMCNTENSET, CYCLES | 1), (PMCR, E | LP)]);
}

#[test]
fn every_instruction_counts_once() {
    let m = Machine::new(1);
    let [read, again] = [mrs(2, PMCCNTR), mrs(3, PMCCNTR)];
    let words = [mrs(1, count(0)), read, NOP, NOP, again, LOOP[0], LOOP[1], mrs(4, count(0)), HVC];
    let mut v = program(&m, 1, &words, &[(0, 20_000)]);
    counting(&mut v);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 1 });
    let x = |n| v.reg(Reg::x(n)).unwrap();
    assert_eq!(x(2) - x(1), 1);
    assert_eq!(x(3) - x(2), 3);
    assert_eq!(x(4) - x(3), 40_001);
    assert_eq!(v.sys_reg(PMCCNTR).unwrap(), v.sys_reg(count(0)).unwrap());
    assert_eq!(v.sys_reg(PMCCNTR).unwrap(), 40_007);
}

#[test]
fn counters_are_for_their_levels_and_events() {
    let m = Machine::new(1);
    let mut v = program(&m, 0, &[NOP, NOP, NOP, SVC, NOP, SVC], &[]);
    let types =
        [INST_RETIRED | NOT_EL1, INST_RETIRED | NOT_EL0, INST_RETIRED | NOT_EL0 | NOT_EL1, 0x11, 0x23, 3];
    for (n, value) in types.into_iter().enumerate() {
        v.set_sys_reg(event(n as u16), value).unwrap();
    }
    set(&mut v, &[(PMCCFILTR, NOT_EL0), (PMCNTENSET, CYCLES | 0x3f), (PMCR, E | LP)]);
    let counted = |v: &Vcpu| [0, 1, 2, 3, 4, 5].map(|n| v.sys_reg(count(n)).unwrap());
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 9 });
    assert_eq!(counted(&v), [4, 1, 0, 5, 0, 0]);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 9 });
    assert_eq!(counted(&v), [6, 3, 0, 9, 0, 0]);
    assert_eq!(v.sys_reg(PMCCNTR).unwrap(), 3);
    // Stopped, they stay.
    v.set_sys_reg(PMCR, LP).unwrap();
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 9 });
    assert_eq!(counted(&v), [6, 3, 0, 9, 0, 0]);
}

#[test]
fn an_overflow_interrupts() {
    for (long, from) in [(LP, 0u64.wrapping_sub(30_000)), (0, 0x5_ffff_ffff - 29_999)] {
        for (length, over) in [(14_000, false), (50_000, true)] {
            let m = Machine::new(1);
            let words = [LOOP[0], LOOP[1], HVC, msr(PMOVSCLR, 1), HVC];
            let mut v = program(&m, 1, &words, &[(0, length), (1, 1)]);
            set(&mut v, &[(event(0), INST_RETIRED), (count(0), from), (PMCNTENSET, 1), (PMINTENSET, 1)]);
            v.set_sys_reg(PMCR, E | long).unwrap();
            assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 1 });
            let pending = |v: &Vcpu| v.redist_reg(GICR_ISPENDR0).unwrap() >> 23 & 1 == 1;
            assert_eq!(v.sys_reg(count(0)).unwrap(), from.wrapping_add(2 * length + 1));
            assert_eq!((v.sys_reg(PMOVSSET).unwrap() == 1, pending(&v)), (over, over), "{long} {length}");
            assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 1 });
            assert_eq!((v.sys_reg(PMOVSSET).unwrap(), pending(&v)), (0, false));
        }
    }
}

#[test]
fn el0_has_what_it_is_let() {
    // The exception's class, or the value that was read.
    let at_el0 = |insn, user| {
        let m = Machine::new(1);
        let mut v = program(&m, 0, &[insn, SVC], &[(0, 1)]);
        set(&mut v, &[(PMUSERENR, user), (PMCNTENSET, 1), (PMCR, E | LP)]);
        assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 9 });
        match v.sys_reg(SysReg::ESR_EL1).unwrap() >> 26 {
            0x15 => Ok((v.reg(Reg::x(0)).unwrap(), v.sys_reg(count(0)).unwrap())),
            class => Err(class),
        }
    };
    assert_eq!(at_el0(mrs(0, PMUSERENR), 0), Ok((0, 0)));
    for (insn, user) in [
        (mrs(0, PMCCNTR), 4),
        (mrs(0, count(1)), 8),
        (msr(PMSELR, 0), 8),
        (mrs(0, PMXEVCNTR), 8),
        (mrs(0, PMCR), 1),
        (msr(PMCCNTR, 0), 1),
    ] {
        assert_eq!(at_el0(insn, 15 & !1 & !user), Err(0x18), "{insn:#x}");
        assert!(at_el0(insn, user).is_ok(), "{insn:#x}");
    }
    // Counter 0 counts software increments.
    assert_eq!(at_el0(msr(PMSWINC, 0), 2), Ok((1, 1)));
    assert_eq!(at_el0(msr(PMSWINC, 0), 4), Err(0x18));
    // Not EL0's; read-only; write-only.
    for insn in [msr(PMUSERENR, 0), mrs(0, PMINTENSET), msr(PMCEID0, 0), mrs(0, PMSWINC)] {
        assert_eq!(at_el0(insn, 15), Err(0), "{insn:#x}");
    }
}

#[test]
fn registers_hold_their_fields() {
    let m = Machine::new(1);
    let words = [msr(PMSELR, 1), msr(PMXEVTYPER, 2), mrs(3, PMXEVTYPER), mrs(4, PMCR), mrs(5, PMCEID0), HVC];
    let mut v = program(&m, 1, &words, &[(1, 31), (2, u64::MAX)]);
    for register in SysReg::PMU {
        assert_eq!(v.sys_reg(register).unwrap(), register.at_rest(), "{register:?}");
    }
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 1 });
    let x = |n| v.reg(Reg::x(n)).unwrap();
    assert_eq!((x(3), x(4), x(5)), (NOT_EL0 | NOT_EL1, 6 << 11 | LP | 1 << 6, 1 | 1 << 8 | 1 << 17));
    assert_eq!(v.sys_reg(PMCCFILTR).unwrap(), NOT_EL0 | NOT_EL1);
    assert!(v.sys_reg(count(6)).is_err() && v.sys_reg(event(6)).is_err());
}

#[test]
fn another_vcpu_goes_on_with_what_was_saved() {
    let m = Machine::new(2);
    let mut v = program(&m, 1, &[NOP, NOP, HVC, NOP, HVC], &[]);
    counting(&mut v);
    set(&mut v, &[(PMINTENSET, CYCLES), (PMOVSSET, CYCLES | 2), (PMUSERENR, 5), (PMSELR, 3)]);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 1 });
    let saved = SysReg::PMU.map(|register| (register, v.sys_reg(register).unwrap()));
    let mut other = m.vcpu(1, CODE + 12, &[]);
    set(&mut other, &saved);
    assert_eq!(saved, SysReg::PMU.map(|register| (register, other.sys_reg(register).unwrap())));
    assert_eq!(other.run().unwrap(), Exit::Hvc { immediate: 1 });
    assert_eq!(other.sys_reg(PMCCNTR).unwrap(), 5);
    // The interrupt is pending with it.
    assert_eq!(other.redist_reg(GICR_ISPENDR0).unwrap() >> 23 & 1, 1);
}
