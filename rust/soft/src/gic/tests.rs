//! The controller against the architecture (IHI 0069).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::id::{IccReg, RedistReg, SysReg};

const GICD: u64 = 0x800_0000;
const GICR: u64 = 0x80a_0000;
const IAR1: u16 = SysReg::new(3, 0, 12, 12, 0).0;
const EOIR1: u16 = SysReg::new(3, 0, 12, 12, 1).0;
const HPPIR1: u16 = SysReg::new(3, 0, 12, 12, 2).0;
const IAR0: u16 = SysReg::new(3, 0, 12, 8, 0).0;
const EOIR0: u16 = SysReg::new(3, 0, 12, 8, 1).0;
const DIR: u16 = SysReg::new(3, 0, 12, 11, 1).0;
const SGI1R: u16 = SysReg::new(3, 0, 12, 11, 5).0;

/// Set up as Linux does: group 1 for all, all priorities 0xa0, everything enabled, mask 0xf0.
fn gic(vcpus: u32) -> Gic {
    let gic = Gic::new(vcpus, GICD, GICR);
    for bank in 1..8_u64 {
        store(&gic, GICD + 0x80 + 4 * bank, !0);
        store(&gic, GICD + 0x100 + 4 * bank, !0);
    }
    for n in (32..256).step_by(4) {
        store(&gic, GICD + 0x400 + n, 0xa0a0_a0a0);
    }
    store(&gic, GICD, 0x13);
    for vcpu in 0..vcpus {
        let base = GICR + u64::from(vcpu) * 0x2_0000;
        store(&gic, base + 0x14, 0);
        store(&gic, base + 0x1_0080, !0);
        store(&gic, base + 0x1_0100, !0);
        for n in (0..32).step_by(4) {
            store(&gic, base + 0x1_0400 + n, 0xa0a0_a0a0);
        }
        assert!(gic.icc_write(vcpu, IccReg::PMR_EL1.0, 0xf0));
        assert!(gic.icc_write(vcpu, IccReg::IGRPEN1_EL1.0, 1));
    }
    gic
}

fn store(gic: &Gic, address: u64, value: u32) {
    assert_eq!(gic.mmio(0, address, 4, Some(value.into())), Some(0));
}

fn load(gic: &Gic, address: u64) -> u32 {
    gic.mmio(0, address, 4, None).unwrap() as u32
}

fn priority(gic: &Gic, intid: u64, priority: u64) {
    gic.mmio(0, GICD + 0x400 + intid, 1, Some(priority));
}

fn acknowledge(gic: &Gic, vcpu: u32) -> u64 {
    gic.icc_read(vcpu, IAR1).unwrap()
}

#[test]
fn a_level_interrupt_comes_again_after_its_end_for_as_long_as_its_line_is_high() {
    let gic = gic(1);
    gic.set_spi(48, true);
    for _ in 0..3 {
        assert!(gic.irq_pending(0) && !gic.fiq_pending(0));
        assert_eq!(acknowledge(&gic, 0), 48);
        assert!(!gic.irq_pending(0));
        assert_eq!(acknowledge(&gic, 0), 1023);
        assert_eq!(load(&gic, GICD + 0x304), 1 << 16);
        gic.icc_write(0, EOIR1, 48);
        assert_eq!(load(&gic, GICD + 0x304), 0);
    }
    gic.set_spi(48, false);
    assert!(!gic.irq_pending(0));
    assert_eq!(acknowledge(&gic, 0), 1023);
}

#[test]
fn an_edge_is_remembered_once_and_comes_again_when_it_falls_into_the_active_time() {
    let gic = gic(1);
    store(&gic, GICD + 0xc00 + 4 * 3, 2);
    gic.set_spi(48, true);
    gic.set_spi(48, false);
    assert_eq!(acknowledge(&gic, 0), 48);
    // Active and pending: not signalled before the end of the first.
    gic.set_spi(48, true);
    gic.set_spi(48, false);
    assert_eq!(load(&gic, GICD + 0x204), 1 << 16);
    assert!(!gic.irq_pending(0));
    gic.icc_write(0, EOIR1, 48);
    assert_eq!(acknowledge(&gic, 0), 48);
    gic.icc_write(0, EOIR1, 48);
    assert!(!gic.irq_pending(0));
}

#[test]
fn the_lowest_priority_value_and_then_the_lowest_number_goes_first() {
    let gic = gic(1);
    priority(&gic, 60, 0x80);
    for intid in [50, 60, 49] {
        gic.set_spi(intid, true);
    }
    assert_eq!(gic.icc_read(0, HPPIR1), Some(60));
    for intid in [60, 49, 50] {
        assert_eq!(acknowledge(&gic, 0), intid);
        gic.set_spi(intid as u32, false);
        gic.icc_write(0, EOIR1, intid);
    }
}

#[test]
fn a_better_priority_preempts_and_the_running_priority_falls_back() {
    let gic = gic(1);
    priority(&gic, 50, 0x80);
    gic.set_spi(49, true);
    assert_eq!(acknowledge(&gic, 0), 49);
    assert_eq!(gic.icc_read(0, IccReg::RPR_EL1.0), Some(0xa0));
    gic.set_spi(51, true);
    assert!(!gic.irq_pending(0), "the same priority does not preempt");
    gic.set_spi(50, true);
    assert_eq!(acknowledge(&gic, 0), 50);
    assert_eq!(gic.icc_read(0, IccReg::RPR_EL1.0), Some(0x80));
    assert_eq!(gic.icc_read(0, IccReg::AP1R0_EL1.0), Some(1 << 16 | 1 << 20));
    gic.set_spi(50, false);
    gic.icc_write(0, EOIR1, 50);
    assert_eq!(gic.icc_read(0, IccReg::RPR_EL1.0), Some(0xa0));
    assert!(!gic.irq_pending(0));
    gic.set_spi(49, false);
    gic.icc_write(0, EOIR1, 49);
    assert_eq!(gic.icc_read(0, IccReg::RPR_EL1.0), Some(0xff));
    assert_eq!(acknowledge(&gic, 0), 51);
}

#[test]
fn the_binary_point_takes_subpriorities_out_of_preemption() {
    let gic = gic(1);
    gic.icc_write(0, IccReg::BPR1_EL1.0, 0);
    assert_eq!(gic.icc_read(0, IccReg::BPR1_EL1.0), Some(3));
    // Group priority is bits 7:6.
    gic.icc_write(0, IccReg::BPR1_EL1.0, 6);
    priority(&gic, 50, 0x80);
    priority(&gic, 52, 0x78);
    gic.set_spi(49, true);
    assert_eq!(acknowledge(&gic, 0), 49);
    gic.set_spi(50, true);
    assert!(!gic.irq_pending(0));
    assert_eq!(gic.icc_read(0, HPPIR1), Some(50));
    gic.set_spi(52, true);
    assert!(gic.irq_pending(0));
    // A common binary point: group 1 takes group 0's, whose own least value is 2.
    gic.icc_write(0, IccReg::CTLR_EL1.0, 1);
    assert_eq!(gic.icc_read(0, IccReg::BPR1_EL1.0), Some(3));
    gic.set_spi(52, false);
    assert!(!gic.irq_pending(0), "0xa0 was acknowledged as group priority 0x80, which 0x80 does not preempt");
}

#[test]
fn the_mask_holds_back_what_is_not_above_it() {
    let gic = gic(1);
    gic.icc_write(0, IccReg::PMR_EL1.0, 0xa7);
    assert_eq!(gic.icc_read(0, IccReg::PMR_EL1.0), Some(0xa0), "five bits");
    gic.set_spi(48, true);
    assert!(!gic.irq_pending(0));
    assert_eq!(acknowledge(&gic, 0), 1023);
    gic.icc_write(0, IccReg::PMR_EL1.0, 0xa8);
    assert!(gic.irq_pending(0));
}

#[test]
fn enables_and_groups_gate_and_group_0_is_an_fiq() {
    let gic = gic(1);
    gic.set_spi(48, true);
    store(&gic, GICD + 0x184, 1 << 16);
    assert!(!gic.irq_pending(0));
    store(&gic, GICD + 0x104, 1 << 16);
    gic.icc_write(0, IccReg::IGRPEN1_EL1.0, 0);
    assert!(!gic.irq_pending(0));
    gic.icc_write(0, IccReg::IGRPEN1_EL1.0, 1);
    store(&gic, GICD, 0x10);
    assert!(!gic.irq_pending(0));
    store(&gic, GICD, 3);
    assert_eq!(load(&gic, GICD), 0x53);
    assert!(gic.irq_pending(0));
    store(&gic, GICD + 0x84, !(1 << 16));
    assert!(!gic.irq_pending(0) && !gic.fiq_pending(0));
    gic.icc_write(0, IccReg::IGRPEN0_EL1.0, 1);
    assert!(!gic.irq_pending(0) && gic.fiq_pending(0));
    assert_eq!(acknowledge(&gic, 0), 1023);
    assert_eq!(gic.icc_read(0, IAR0), Some(48));
    gic.icc_write(0, EOIR1, 48);
    assert_eq!(gic.icc_read(0, IccReg::RPR_EL1.0), Some(0xa0), "the wrong group's end changes nothing");
    gic.icc_write(0, EOIR0, 48);
    assert_eq!(gic.icc_read(0, IccReg::RPR_EL1.0), Some(0xff));
}

#[test]
fn with_eoimode_the_end_only_drops_the_priority() {
    let gic = gic(1);
    gic.icc_write(0, IccReg::CTLR_EL1.0, 2);
    assert_eq!(gic.icc_read(0, IccReg::CTLR_EL1.0), Some(0x402));
    gic.set_spi(48, true);
    assert_eq!(acknowledge(&gic, 0), 48);
    gic.icc_write(0, EOIR1, 48);
    assert_eq!(gic.icc_read(0, IccReg::RPR_EL1.0), Some(0xff));
    assert!(!gic.irq_pending(0), "still active");
    gic.icc_write(0, DIR, 48);
    assert!(gic.irq_pending(0));
}

#[test]
fn sgis_go_to_the_list_or_to_all_others() {
    let gic = gic(4);
    let pending = |gic: &Gic| (0..4).filter(|v| gic.irq_pending(*v)).collect::<Vec<_>>();
    gic.icc_write(1, SGI1R, 5 << 24 | 0b1010);
    assert_eq!(pending(&gic), [1, 3]);
    assert_eq!(acknowledge(&gic, 1), 5);
    assert_eq!(acknowledge(&gic, 3), 5);
    gic.icc_write(1, EOIR1, 5);
    gic.icc_write(3, EOIR1, 5);
    gic.icc_write(2, SGI1R, 1 << 40 | 7 << 24);
    assert_eq!(pending(&gic), [0, 1, 3]);
    for vcpu in [0, 1, 3] {
        assert_eq!(acknowledge(&gic, vcpu), 7);
    }
    // Another cluster: nobody.
    gic.icc_write(0, SGI1R, 1 << 16 | 9 << 24 | 0xf);
    assert_eq!(pending(&gic), [0; 0]);
}

#[test]
fn routes_choose_the_vcpu() {
    let gic = gic(4);
    let pending = |gic: &Gic| (0..4).filter(|v| gic.irq_pending(*v)).collect::<Vec<_>>();
    let router = GICD + 0x6000 + 8 * 48;
    gic.mmio(0, router, 8, Some(2));
    gic.set_spi(48, true);
    assert_eq!(pending(&gic), [2]);
    store(&gic, router, 3);
    assert_eq!(pending(&gic), [3]);
    store(&gic, router + 4, 1);
    assert_eq!(pending(&gic), [0; 0], "affinity 3 names nobody");
    assert_eq!(gic.mmio(0, router, 8, None), Some(1 << 32 | 3));
    gic.mmio(0, router, 8, Some(1 << 31));
    assert_eq!(pending(&gic), [0], "any vCPU means one of them");
    assert_eq!(acknowledge(&gic, 0), 48);
    gic.mmio(0, router + 8, 8, Some(1 << 31));
    gic.set_spi(49, true);
    assert_eq!(pending(&gic), [1], "an idle one before a busy one");
    gic.icc_write(1, IccReg::IGRPEN1_EL1.0, 0);
    assert_eq!(pending(&gic), [2]);
}

#[test]
fn the_list_of_redistributors_ends_where_it_is_told_to() {
    let gic = gic(4);
    let last = || (0..4).filter(|n| load(&gic, GICR + 0x2_0000 * n + 8) >> 4 & 1 == 1).collect::<Vec<_>>();
    assert_eq!(last(), [3]);
    gic.list(2);
    assert_eq!(last(), [1]);
    gic.list(9);
    assert_eq!(last(), [3]);
}

#[test]
fn private_interrupts_are_their_vcpus_own() {
    let gic = gic(2);
    gic.set_ppi(1, 27, true);
    assert!(!gic.irq_pending(0) && gic.irq_pending(1));
    assert_eq!(acknowledge(&gic, 1), 27);
    gic.icc_write(1, EOIR1, 27);
    assert!(gic.irq_pending(1));
    gic.set_ppi(1, 27, false);
    assert!(!gic.irq_pending(1));
}

#[test]
fn rising_lines_wake_once_and_without_the_lock() {
    let gic = Arc::new(gic(2));
    let woken = Arc::new(AtomicU32::new(0));
    let (count, inner) = (woken.clone(), Arc::downgrade(&gic));
    gic.set_waker(
        1,
        Arc::new(move || {
            // A waker may look at the controller.
            assert_eq!(inner.upgrade().unwrap().icc_state(1, IccReg::PMR_EL1), Some(0xf0));
            count.fetch_add(1, Ordering::Relaxed);
        }),
    );
    gic.set_ppi(1, 27, true);
    gic.set_ppi(1, 28, true);
    gic.set_ppi(0, 27, true);
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    gic.set_ppi(1, 27, false);
    gic.set_ppi(1, 28, false);
    gic.icc_write(0, SGI1R, 0b10);
    assert_eq!(woken.load(Ordering::Relaxed), 2);
}

#[test]
fn identification_is_that_of_a_gicv3() {
    let gic = gic(2);
    assert_eq!(load(&gic, GICD + 0xffe8) >> 4, 3);
    assert_eq!(load(&gic, GICR + 0xffe8) >> 4, 3);
    assert_eq!(load(&gic, GICD + 4) & 31, 7);
    assert_eq!(gic.mmio(0, GICR + 8, 8, None), Some(0));
    assert_eq!(gic.mmio(0, GICR + 0x2_0008, 8, None), Some(1 << 32 | 1 << 8 | 1 << 4));
    let sleeping = Gic::new(1, GICD, GICR);
    assert_eq!(load(&sleeping, GICR + 0x14), 6);
    store(&sleeping, GICR + 0x14, 0);
    assert_eq!(load(&sleeping, GICR + 0x14), 0);
    assert_eq!(gic.mmio(0, GICD + 0x1_0000, 4, None), None);
    assert_eq!(gic.mmio(0, GICR + 0x4_0000, 4, None), None);
    assert_eq!(gic.mmio(0, GICD + 0x80, 4, None), Some(0), "private interrupts are not the distributor's");
    assert_eq!(gic.icc_read(0, EOIR1), None);
    assert!(!gic.icc_write(0, IAR1, 0));
}

/// Everything a snapshot holds of a controller, in the order of a restore.
fn copy(from: &Gic, vcpus: u32) -> Gic {
    let to = Gic::new(vcpus, GICD, GICR);
    to.set_state(&from.state()).unwrap();
    for vcpu in 0..vcpus {
        for register in [
            IccReg::SRE_EL1,
            IccReg::PMR_EL1,
            IccReg::BPR0_EL1,
            IccReg::BPR1_EL1,
            IccReg::AP0R0_EL1,
            IccReg::AP1R0_EL1,
            IccReg::RPR_EL1,
            IccReg::CTLR_EL1,
            IccReg::IGRPEN0_EL1,
            IccReg::IGRPEN1_EL1,
        ] {
            to.set_icc_state(vcpu, register, from.icc_state(vcpu, register).unwrap()).unwrap();
        }
        let private = [0x1_0080, 0x1_0c04].into_iter().chain((0..8).map(|n| 0x1_0400 + 4 * n));
        for register in private.map(RedistReg) {
            to.set_redist_state(vcpu, register, from.redist_state(vcpu, register).unwrap()).unwrap();
        }
        for set in [0x1_0100, 0x1_0200, 0x1_0300] {
            to.set_redist_state(vcpu, RedistReg(set + 0x80), 0xffff_ffff).unwrap();
            let value = from.redist_state(vcpu, RedistReg(set)).unwrap();
            to.set_redist_state(vcpu, RedistReg(set), value).unwrap();
        }
    }
    to
}

#[test]
fn random_histories_keep_the_invariants_and_survive_a_round_trip() {
    const VCPUS: u32 = 3;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for _ in 0..40 {
        let gic = gic(VCPUS);
        let mut handled: Vec<Vec<u64>> = vec![vec![]; VCPUS as usize];
        for _ in 0..400 {
            let vcpu = random(VCPUS.into()) as u32;
            let intid = 32 + random(40);
            match random(10) {
                0 | 1 => gic.set_spi(intid as u32, random(2) == 1),
                2 => priority(&gic, intid, random(256)),
                3 => {
                    gic.mmio(0, GICD + 0x6000 + 8 * intid, 8, Some(random(VCPUS.into())));
                }
                4 => {
                    gic.icc_write(vcpu, SGI1R, random(16) << 24 | random(8));
                }
                5 => store(
                    &gic,
                    GICD + [0x104, 0x184, 0x204, 0x284][random(4) as usize],
                    random(1 << 32) as u32,
                ),
                6 => store(&gic, GICD + 0xc08 + 4 * random(3), random(1 << 32) as u32),
                7 | 8 => {
                    let before = gic.icc_read(vcpu, IccReg::RPR_EL1.0).unwrap();
                    let signalled = gic.irq_pending(vcpu);
                    let taken = acknowledge(&gic, vcpu);
                    assert_eq!(
                        signalled,
                        taken != 1023,
                        "the line is high exactly when there is something to take"
                    );
                    if signalled {
                        assert!(gic.icc_read(vcpu, IccReg::RPR_EL1.0).unwrap() < before);
                        assert!(!handled.iter().enumerate().any(
                            |(n, active)| active.contains(&taken) && (taken >= 32 || n == vcpu as usize)
                        ));
                        handled[vcpu as usize].push(taken);
                    }
                }
                _ => {
                    if let Some(intid) = handled[vcpu as usize].pop() {
                        gic.icc_write(vcpu, EOIR1, intid);
                    }
                }
            }
        }
        let other = copy(&gic, VCPUS);
        assert_eq!(other.state(), gic.state());
        for vcpu in 0..VCPUS {
            assert_eq!(other.irq_pending(vcpu), gic.irq_pending(vcpu));
            assert_eq!(acknowledge(&other, vcpu), acknowledge(&gic, vcpu));
            while let Some(intid) = handled[vcpu as usize].pop() {
                gic.icc_write(vcpu, EOIR1, intid);
            }
        }
    }
}

#[test]
fn bad_state_is_refused_and_changes_nothing() {
    let gic = gic(2);
    let good = gic.state();
    assert_eq!(gic.set_state(b"xyz"), Err(Error::Format));
    for length in 8..good.len() {
        assert!(matches!(gic.set_state(&good[..length]), Err(Error::Length { .. })));
    }
    let with = |at: usize, value: u8| {
        let mut state = good.clone();
        state[at] = value;
        state
    };
    assert_eq!(gic.set_state(&with(8, 3)), Err(Error::Vcpus { found: 3, expected: 2 }));
    assert!(matches!(gic.set_state(&with(12, 4)), Err(Error::Value(_))));
    assert!(matches!(gic.set_state(&with(16, 4)), Err(Error::Value(_))));
    assert!(matches!(gic.set_state(&with(20 + 24, 1)), Err(Error::Value(_))));
    assert!(matches!(gic.set_state(&with(good.len() - 1, 1)), Err(Error::Value(_))));
    assert_eq!(gic.state(), good);
    assert_eq!(gic.set_redist_state(0, RedistReg(0x1_0104), 0), Err(Error::Register(0x1_0104)));
    assert_eq!(gic.set_redist_state(2, RedistReg(0x1_0100), 0), Err(Error::NoVcpu(2)));
    assert_eq!(gic.redist_state(0, RedistReg(0x1_0c08)), None);
}
