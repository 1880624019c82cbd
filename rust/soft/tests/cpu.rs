//! Small programs on the bare core, as its machine sees them. The words are what GNU as makes of the comments.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

#[path = "bare/mod.rs"]
mod bare;

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use supermachine_soft::baked::{Baked, Key};
use supermachine_soft::id::{IccReg, RedistReg, Reg, SysReg};
use supermachine_soft::{DataAbort, Exit, Translation};

use bare::{Machine, RAM, READ_ONLY, SIZE, page};

#[test]
fn hvc_leaves_behind_itself() {
    let m = Machine::new(1);
    // movz x0, #5; add x0, x0, #7; hvc #3
    m.put(0, &[0xd280_00a0, 0x9100_1c00, 0xd400_0062]);
    let mut v = m.vcpu(0, 0, &[]);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 3 });
    assert_eq!(v.reg(Reg::x(0)).unwrap(), 12);
    assert_eq!(v.reg(Reg::PC).unwrap(), RAM + 12);
    assert_eq!(v.instructions(), 3);
}

#[test]
fn device_accesses_carry_their_syndrome() {
    let m = Machine::new(1);
    // str w1, [x2]; ldrsb x3, [x2, #1]; hvc #0
    m.put(0, &[0xb900_0041, 0x3980_0443, 0xd400_0002]);
    let mut v = m.vcpu(0, 0, &[(2, 0x0900_0000)]);
    let abort = |e| match e {
        Exit::DataAbort(DataAbort { syndrome, physical_address, .. }) => (syndrome, physical_address),
        e => panic!("{e:?}"),
    };
    let (esr, pa) = abort(v.run().unwrap());
    assert_eq!(pa, 0x0900_0000);
    // EC, IL, ISV, four bytes, register 1, a write.
    assert_eq!(esr & !0x3f, 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 1 << 16 | 1 << 6);
    assert_eq!(v.reg(Reg::PC).unwrap(), RAM);
    v.set_reg(Reg::PC, RAM + 4).unwrap();
    let (esr, pa) = abort(v.run().unwrap());
    assert_eq!(pa, 0x0900_0001);
    // One byte, sign-extended to 64 bits, register 3, a read.
    assert_eq!(esr & !0x3f, 0x24 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 3 << 16 | 1 << 15);
}

#[test]
fn instructions_are_counted_up_to_every_exit_and_fault() {
    let m = Machine::new(1);
    // mov x0, x0; mov x0, x0; ldr x1, [x2]; mov x0, x0; ldr x1, [x3]
    m.put(0, &[0xaa00_03e0, 0xaa00_03e0, 0xf940_0041, 0xaa00_03e0, 0xf940_0061]);
    // Exceptions from EL1h, VBAR_EL1 being RAM.
    m.put(0x200, &[0xd400_0122]);
    let mut v = m.vcpu(0, 0, &[(2, 0x0900_0000), (3, 1 << 50)]);
    v.set_sys_reg(SysReg::VBAR_EL1, RAM).unwrap();
    assert!(matches!(v.run().unwrap(), Exit::DataAbort(_)));
    assert_eq!((v.reg(Reg::PC).unwrap(), v.instructions()), (RAM + 8, 3));
    v.set_reg(Reg::PC, RAM + 12).unwrap();
    // Beyond the addresses there are: a fault, whose vector calls out.
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 9 });
    assert_eq!((v.sys_reg(SysReg::ELR_EL1).unwrap(), v.instructions()), (RAM + 16, 6));
}

#[test]
fn cancelling_reaches_a_sleeping_and_a_stopped_vcpu() {
    let m = Machine::new(1);
    // 1: wfi; b 1b
    m.put(0, &[0xd503_207f, 0x17ff_ffff]);
    let mut v = m.vcpu(0, 0, &[]);
    let canceller = m.vm.canceller(0).unwrap();
    canceller.cancel();
    assert_eq!(v.run().unwrap(), Exit::Canceled);
    let thread = std::thread::spawn(move || v.run().unwrap());
    std::thread::sleep(Duration::from_millis(20));
    canceller.cancel();
    assert_eq!(thread.join().unwrap(), Exit::Canceled);
}

#[test]
fn the_virtual_timer_wakes_wfi() {
    let m = Machine::new(1);
    // PPI 27 to group 1 and on (x1: the redistributor's SGI frame); SRE, PMR, IGRPEN1; TVAL 48000 (2 ms), CTL 1;
    // 1: wfi; mrs x0, isr_el1; cbz x0, 1b; mrs x0, icc_iar1_el1; hvc #1
    m.put(
        0,
        &[
            0x52a1_0000,
            0xb900_8020,
            0xb901_0020,
            0xd280_0020,
            0xd518_cca0,
            0xd280_1fe0,
            0xd518_4600,
            0xd280_0020,
            0xd518_cce0,
            0xd297_7000,
            0xd51b_e300,
            0xd280_0020,
            0xd51b_e320,
            0xd503_207f,
            0xd538_c100,
            0xb4ff_ffc0,
            0xd538_cc00,
            0xd400_0022,
        ],
    );
    // GICD_CTLR: group 1 on, by a store of the guest's: str x1, [x2]; hvc #7
    m.put(0x100, &[0xb900_0041, 0xd400_00e2]);
    let mut v = m.vcpu(0, 0x100, &[(1, 2), (2, 0x0800_0000)]);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 7 });
    v.set_reg(Reg::PC, RAM).unwrap();
    v.set_reg(Reg::x(1), 0x080B_0000).unwrap();
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 1 });
    assert_eq!(v.reg(Reg::x(0)).unwrap(), 27);
}

#[test]
fn faults_say_what_and_where() {
    let m = Machine::new(1);
    // str x1, [x2]; hvc #7
    m.put(0, &[0xf900_0041, 0xd400_00e2]);
    let mut v = m.vcpu(0, 0, &[]);
    let entry = m.tables(&mut [&mut v]);
    let mut store = |va: u64| {
        v.set_reg(Reg::PC, RAM).unwrap();
        v.set_reg(Reg::x(2), va).unwrap();
        let exit = v.run().unwrap();
        let (esr, far, elr) = (SysReg::ESR_EL1, SysReg::FAR_EL1, SysReg::ELR_EL1);
        assert_eq!(exit == Exit::Hvc { immediate: 9 }, v.reg(Reg::PC).unwrap() == RAM + 0x2204);
        (exit == Exit::Hvc { immediate: 9 }).then(|| {
            assert_eq!(v.sys_reg(elr).unwrap(), RAM);
            (v.sys_reg(esr).unwrap(), v.sys_reg(far).unwrap())
        })
    };
    // Data abort from EL1, IL, write.
    let esr = |dfsc: u64| 0x25 << 26 | 1 << 25 | 1 << 6 | dfsc;
    // Nothing at level 3, 2 and 1, and beyond the range (level 0).
    assert_eq!(store(0x1000_0008), Some((esr(7), 0x1000_0008)));
    assert_eq!(store(0x2000_0008), Some((esr(6), 0x2000_0008)));
    assert_eq!(store(0x1_0000_0000), Some((esr(5), 0x1_0000_0000)));
    assert_eq!(store(1 << 45), Some((esr(4), 1 << 45)));
    m.put64(entry, page(RAM + 0x5000) | READ_ONLY);
    assert_eq!(store(0x1000_0000), Some((esr(15), 0x1000_0000)));
    m.put64(entry, page(RAM + 0x5000) & !(1 << 10));
    assert_eq!(store(0x1000_0000), Some((esr(11), 0x1000_0000)));
    m.put64(entry, page(RAM + 0x5000));
    assert_eq!(store(0x1000_0000), None);
    // Over the page's end: the second page's fault, at its address.
    assert_eq!(store(0x1000_0ffc), Some((esr(7), 0x1000_1000)));
    m.put64(entry + 8, page(RAM + 0x7000));
    assert_eq!(store(0x1000_0ffc), None);
}

#[test]
fn stores_over_a_page_boundary_go_to_both_pages() {
    let m = Machine::new(1);
    // str x1, [x2]; hvc #7
    m.put(0, &[0xf900_0041, 0xd400_00e2]);
    let mut v = m.vcpu(0, 0, &[(1, 0x1122_3344_5566_7788), (2, 0x1000_0ffd)]);
    let entry = m.tables(&mut [&mut v]);
    m.put64(entry, page(RAM + 0x5000));
    m.put64(entry + 8, page(RAM + 0x9000));
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 7 });
    assert_eq!(m.get64(0x5ff8) >> 40, 0x66_7788);
    assert_eq!(m.get64(0x9000), 0x11_2233_4455);
}

#[test]
fn exclusives_and_atomics_lose_nothing_between_vcpus() {
    const ROUNDS: u64 = 50_000;
    let m = Machine::new(2);
    // 1: ldaxr x3, [x1]; add x3, x3, #1; stlxr w4, x3, [x1]; cbnz w4, 1b; mov x5, #1; ldadd w5, w6, [x7];
    // stp x3, x4, [sp, #-16]!; ldp x3, x4, [sp], #16; sub x2, x2, #1; cbnz x2, 1b; hvc #0
    m.put(
        0,
        &[
            0xc85f_fc23,
            0x9100_0463,
            0xc804_fc23,
            0x35ff_ffa4,
            0xd280_0025,
            0xb825_00e6,
            0xa9bf_13e3,
            0xa8c1_13e3,
            0xd100_0442,
            0xb5ff_fee2,
            0xd400_0002,
        ],
    );
    let threads: Vec<_> = (0..2)
        .map(|i| {
            let mut v = m.vcpu(i, 0, &[(1, RAM + 0x8000), (2, ROUNDS), (7, RAM + 0x8040)]);
            v.set_sys_reg(SysReg::SP_EL1, RAM + 0x2_0000 + u64::from(i) * 0x1000).unwrap();
            std::thread::spawn(move || v.run().unwrap())
        })
        .collect();
    for t in threads {
        assert_eq!(t.join().unwrap(), Exit::Hvc { immediate: 0 });
    }
    assert_eq!(m.get64(0x8000), 2 * ROUNDS);
    assert_eq!(m.get64(0x8040), 2 * ROUNDS);
}

#[test]
fn changed_code_runs_after_its_invalidation() {
    let m = Machine::new(1);
    // b 3f; 1: movz x0, #1; ret; 3: bl 1b; adr x3, 1b; str w2, [x3]; dc cvau, x3; dsb ish; ic ivau, x3; dsb ish; isb;
    // bl 1b; hvc #0
    m.put(
        0,
        &[
            0x1400_0003,
            0xd280_0020,
            0xd65f_03c0,
            0x97ff_fffe,
            0x10ff_ffa3,
            0xb900_0062,
            0xd50b_7b23,
            0xd503_3b9f,
            0xd50b_7523,
            0xd503_3b9f,
            0xd503_3fdf,
            0x97ff_fff6,
            0xd400_0002,
        ],
    );
    // x2: movz x0, #2
    let mut v = m.vcpu(0, 0, &[(2, 0xd280_0040)]);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
    assert_eq!(v.reg(Reg::x(0)).unwrap(), 2);
}

#[test]
fn tlb_invalidation_reaches_the_other_vcpu() {
    for _ in 0..50 {
        let m = Machine::new(2);
        // str x0, [x1]; dsb ishst; tlbi vmalle1is; dsb ish; mov x3, #1; str x3, [x4]; 2: ldr x5, [x6]; cbz x5, 2b; hvc
        // #0
        m.put(
            0,
            &[
                0xf900_0020,
                0xd503_3a9f,
                0xd508_831f,
                0xd503_3b9f,
                0xd280_0023,
                0xf900_0083,
                0xf940_00c5,
                0xb4ff_ffe5,
                0xd400_0002,
            ],
        );
        // 1: ldr x5, [x2]; ldr x3, [x4]; cbz x3, 1b; ldr x5, [x2]; str x3, [x6]; hvc #0
        m.put(0x100, &[0xf940_0045, 0xf940_0083, 0xb4ff_ffc3, 0xf940_0045, 0xf900_00c3, 0xd400_0002]);
        let (flag, answer) = (RAM + 0x8000, RAM + 0x8040);
        let mut one = m.vcpu(1, 0x100, &[(2, 0x1000_0000), (4, flag), (6, answer)]);
        let mut zero = m.vcpu(0, 0, &[(0, page(RAM + 0x6000)), (4, flag), (6, answer)]);
        let entry = m.tables(&mut [&mut zero, &mut one]);
        m.put64(entry, page(RAM + 0x5000));
        m.put64(0x5000, 50);
        m.put64(0x6000, 60);
        zero.set_reg(Reg::x(1), RAM + entry).unwrap();
        let thread = std::thread::spawn(move || {
            assert_eq!(one.run().unwrap(), Exit::Hvc { immediate: 0 });
            one.reg(Reg::x(5)).unwrap()
        });
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(zero.run().unwrap(), Exit::Hvc { immediate: 0 });
        assert_eq!(thread.join().unwrap(), 60);
    }
}

#[test]
fn an_address_of_a_block_mapping_stands_for_all_of_it() {
    const VA: u64 = 0x1000_0000;
    // The code is in the block's ninth page. By the address of that and of another, and by the address space: EL1's
    // lower half.
    for (word, operand) in [
        (0xd508_8324, (VA >> 12) + 8),
        (0xd508_8324, (VA >> 12) + 0x1ff),
        (0xd508_8324, VA >> 12),
        (0xd508_8344, 0),
    ] {
        let m = Machine::new(1);
        // mov x5, #2; 1: blr x1; lsl x6, x6, #8; orr x6, x6, x0; str x3, [x2]; dsb ishst; tlbi …, x4; dsb ish; isb;
        // subs x5, x5, #1; b.ne 1b; hvc #0
        m.put(
            0,
            &[
                0xd280_0045,
                0xd63f_0020,
                0xd378_dcc6,
                0xaa00_00c6,
                0xf900_0043,
                0xd503_3a9f,
                word,
                0xd503_3b9f,
                0xd503_3fdf,
                0xf100_04a5,
                0x54ff_fee1,
                0xd400_0002,
            ],
        );
        // mov x0, #1 (or #2); ret
        m.put(0x8000, &[0xd280_0020, 0xd65f_03c0]);
        m.put(0x20_8000, &[0xd280_0040, 0xd65f_03c0]);
        let block = |pa| pa | 1 << 10 | 1;
        let mut v = m.vcpu(0, 0, &[(1, VA + 0x8000), (3, block(RAM + 0x20_0000)), (4, operand)]);
        m.tables(&mut [&mut v]);
        let entry = 0x1_1000 + (VA >> 21) * 8;
        m.put64(entry, block(RAM));
        v.set_reg(Reg::x(2), RAM + entry).unwrap();
        assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
        assert_eq!(v.reg(Reg::x(6)).unwrap(), 0x0102, "{word:#x} of {operand:#x}");
    }
}

#[test]
fn remapped_code_runs_after_each_invalidation_that_covers_it() {
    const VA: u64 = 0x1000_0000;
    const ASID: u64 = 7;
    /// For EL0 too, and for one address space only.
    const USER: u64 = 1 << 6 | 1 << 11;
    const RESULTS: u64 = 0x8000;
    const ENTRIES: u64 = 0x9000;
    for (name, word, operand) in [
        ("tlbi vae1, x2", 0xd508_8722, ASID << 48 | VA >> 12),
        ("tlbi vae1is, x2", 0xd508_8322, ASID << 48 | VA >> 12),
        ("tlbi vaae1, x2", 0xd508_8762, VA >> 12),
        ("tlbi aside1, x2", 0xd508_8742, ASID << 48),
        ("tlbi aside1is, x2", 0xd508_8342, ASID << 48),
        ("tlbi vmalle1", 0xd508_871f, 0),
    ] {
        let m = Machine::new(1);
        // eret
        m.put(0, &[0xd69f_03e0]);
        // movz x0, #1 (or #2); svc #0
        m.put(0x3000, &[0xd280_0020, 0xd400_0001]);
        m.put(0x4000, &[0xd280_0040, 0xd400_0001]);
        let entry = |pa| page(RAM + pa) | USER;
        for (n, pa) in [0x4000, 0x3000, 0x4000].into_iter().enumerate() {
            m.put64(ENTRIES + 8 * n as u64, entry(pa));
        }
        let x = [(2, operand), (5, RAM + RESULTS), (6, 4), (8, RAM + ENTRIES), (10, VA)];
        let mut v = m.vcpu(0, 0, &x);
        let slot = m.tables(&mut [&mut v]);
        // What SVC gets to: str x0, [x5], #8; subs x6, x6, #1; b.eq 1f; ldr x7, [x8], #8; str x7, [x9]; dsb ishst; the
        // invalidation; dsb ish; isb; msr elr_el1, x10; eret; 1: hvc #1
        m.put(
            0x2400,
            &[
                0xf800_84a0,
                0xf100_04c6,
                0x5400_0120,
                0xf840_8507,
                0xf900_0127,
                0xd503_3a9f,
                word,
                0xd503_3b9f,
                0xd503_3fdf,
                0xd518_402a,
                0xd69f_03e0,
                0xd400_0022,
            ],
        );
        m.put64(slot, entry(0x3000));
        v.set_reg(Reg::x(9), RAM + slot).unwrap();
        let ttbr0 = v.sys_reg(SysReg::TTBR0_EL1).unwrap();
        v.set_sys_reg(SysReg::TTBR0_EL1, ttbr0 | ASID << 48).unwrap();
        v.set_sys_reg(SysReg::ELR_EL1, VA).unwrap();
        v.set_sys_reg(SysReg::SPSR_EL1, 0).unwrap();
        assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 1 }, "{name}");
        let ran = [0, 1, 2, 3].map(|n| m.get64(RESULTS + 8 * n));
        assert_eq!(ran, [1, 2, 1, 2], "{name}");
    }
}

/// What an instruction at EL0 or EL1 comes to, X2 being `x2`, one page mapped for EL1 to read at 0x1000_0000 and one
/// for EL0 and EL1 at 0x1000_1000: ESR_EL1 and FAR_EL1 of its exception.
fn fault(insn: u32, x2: u64, el0: bool) -> Option<(u64, u64)> {
    fault_of(&[insn], x2, el0)
}

/// The same of several.
fn fault_of(insns: &[u32], x2: u64, el0: bool) -> Option<(u64, u64)> {
    const USER: u64 = 1 << 6;
    const UXN: u64 = 1 << 54;
    let m = Machine::new(1);
    // hvc #7 (svc #0 for EL0)
    m.put(0x5000, &[insns, &[if el0 { 0xd400_0001 } else { 0xd400_00e2 }]].concat());
    m.put(0x2400, &[0xd400_0122]);
    let mut v = m.vcpu(0, 0x5000, &[(2, x2)]);
    let entry = m.tables(&mut [&mut v]);
    m.put64(entry, page(RAM + 0x6000) | READ_ONLY | UXN);
    m.put64(entry + 8, page(RAM + 0x7000) | USER);
    m.put64(entry + 16, page(RAM + 0x5000) | USER | READ_ONLY);
    // UCI, DZE
    let sctlr = v.sys_reg(SysReg::SCTLR_EL1).unwrap();
    v.set_sys_reg(SysReg::SCTLR_EL1, sctlr | 1 << 26 | 1 << 14).unwrap();
    if el0 {
        v.set_reg(Reg::PC, 0x1000_2000).unwrap();
        v.set_reg(Reg::CPSR, 0).unwrap();
    }
    if v.run().unwrap() == (Exit::Hvc { immediate: 7 }) {
        return None;
    }
    let esr = v.sys_reg(SysReg::ESR_EL1).unwrap();
    (esr >> 26 != 0x15).then(|| (esr, v.sys_reg(SysReg::FAR_EL1).unwrap()))
}

#[test]
fn cache_maintenance_by_address_faults_where_there_is_none() {
    const CM: u64 = 1 << 8;
    const WNR: u64 = 1 << 6;
    let esr = |el0, dfsc| if el0 { 0x24 << 26 } else { 0x25 << 26 } | 1 << 25 | CM | WNR | dfsc;
    // dc cvac, cvau, cvap and civac, ic ivau
    for insn in [0xd50b_7a22, 0xd50b_7b22, 0xd50b_7c22, 0xd50b_7e22, 0xd50b_7522] {
        assert_eq!(fault(insn, 0x1000_0010, false), None, "{insn:#x}");
        for el0 in [false, true] {
            assert_eq!(fault(insn, 0x1000_1010, el0), None, "{insn:#x}");
            let nowhere = 0x1000_8010;
            assert_eq!(fault(insn, nowhere, el0), Some((esr(el0, 7), nowhere)), "{insn:#x}");
        }
        assert_eq!(fault(insn, 0x1000_0010, true), Some((esr(true, 15), 0x1000_0010)), "{insn:#x}");
    }
    // dc ivac is a write.
    assert_eq!(fault(0xd508_7622, 0x1000_1010, false), None);
    assert_eq!(fault(0xd508_7622, 0x1000_0010, false), Some((esr(false, 15), 0x1000_0010)));
}

#[test]
fn a_jump_to_where_no_instruction_can_be_is_a_fault() {
    // br x2, blr x2, ret x2
    for insn in [0xd61f_0040, 0xd63f_0040, 0xd65f_0040] {
        // EL0 has ASID 0: addresses that differ by it from those of EL1 are not taken for them.
        for (el0, place) in [(false, 0), (true, 0), (true, 1 << 48)] {
            for low in [1, 2, 3, 5, 6, 7, 0xffd] {
                let fault = fault(insn, place | low, el0);
                assert_eq!(fault, Some((0x22 << 26 | 1 << 25, place | low)), "{insn:#x} {place:#x} {low:#x}");
            }
        }
    }
}

/// Addresses of 48 bits; EL1 is at address 0x100 and goes to EL0 by X3, on the last page that there is.
#[test]
fn no_branch_to_an_address_that_is_none_finds_code_of_another_address_space() {
    const LAST: u64 = 0xffff_ffff_f000;
    const EL1: u64 = 0x100;
    // br x2; b EL1 from LAST, to what differs from it by bit 48
    for (insn, bits) in [(0xd61f_0040, 1 << 48), (0xd61f_0040, 1 << 52), (0x1400_0440, 1 << 48)] {
        for asid in [0, 1, 2, 0xff] {
            let m = Machine::new(1);
            let link = |n: u64| (RAM + 0x1_0000 + n * 0x1000) | 3;
            let entry = |table: u64, n: u64, value| m.put64(0x1_0000 + table * 0x1000 + n * 8, value);
            // Level 0, then level 1 and 2 of the lowest 2 MiB, which are RAM's; 1 GiB of RAM at its own place.
            entry(0, 0, link(1));
            entry(1, 0, link(2));
            entry(2, 0, RAM | 1 << 10 | 1);
            entry(1, 1, RAM | 1 << 10 | 1);
            // The last page.
            entry(0, 511, link(3));
            entry(3, 511, link(4));
            entry(4, 511, link(5));
            entry(5, 511, page(RAM + 0x5000) | 1 << 6 | READ_ONLY);
            // msr elr_el1, x3; eret
            m.put(EL1, &[0xd518_4023, 0xd69f_03e0]);
            m.put(0x5000, &[insn]);
            m.put(0x2400, &[0xd400_0122]);
            let to = EL1 | bits;
            let mut v = m.vcpu(0, 0, &[(2, to), (3, LAST)]);
            v.set_sys_reg(SysReg::TCR_EL1, 16 | 16 << 16 | 2 << 30).unwrap();
            v.set_sys_reg(SysReg::TTBR0_EL1, (RAM + 0x1_0000) | asid << 48).unwrap();
            v.set_sys_reg(SysReg::VBAR_EL1, RAM + 0x2000).unwrap();
            let sctlr = v.sys_reg(SysReg::SCTLR_EL1).unwrap();
            v.set_sys_reg(SysReg::SCTLR_EL1, sctlr | 1).unwrap();
            v.set_sys_reg(SysReg::SPSR_EL1, 0).unwrap();
            v.set_reg(Reg::PC, EL1).unwrap();
            assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 9 });
            // An instruction abort from EL0: a translation fault of level 0.
            let esr = v.sys_reg(SysReg::ESR_EL1).unwrap();
            assert_eq!(esr, 0x20 << 26 | 1 << 25 | 4, "{insn:#x} {bits:#x} ASID {asid}");
            assert_eq!(v.sys_reg(SysReg::FAR_EL1).unwrap(), to);
        }
    }
}

#[test]
fn what_is_not_announced_is_undefined() {
    let undefined = |insn, el0| fault(insn, 0x1000_1010, el0).map(|(esr, _)| esr);
    for el0 in [false, true] {
        // dc cvadp, x2; msr cntfrq_el0, x1; msr ctr_el0, x1
        for insn in [0xd50b_7d22, 0xd51b_e001, 0xd51b_0021] {
            assert_eq!(undefined(insn, el0), Some(1 << 25), "{insn:#x}");
        }
    }
}

#[test]
fn registers_of_floating_point_trap_as_its_instructions_do() {
    // mrs x0, fpcr; msr fpsr, x1; fmov d0, d0
    for insn in [0xd53b_4400, 0xd51b_4421, 0x1e60_4000] {
        let esr = fault(insn, 0, false).map(|(esr, _)| esr);
        assert_eq!(esr, Some(7 << 26 | 1 << 25 | 1 << 24 | 0xe << 20), "{insn:#x}");
    }
}

#[test]
fn an_inexact_result_leaves_the_other_numbers_as_they_are() {
    // fadd d20, d1, d2; scvtf d20, x1; scvtf d20, d1; frintx d20, d1; fdiv d20, d1, d2; fsqrt d20, d1; fcvt s20, d1
    for insn in [0x1e62_2834, 0x9e62_0034, 0x5e61_d834, 0x1e67_4034, 0x1e62_1834, 0x1e61_c034, 0x1e62_4034] {
        let m = Machine::new(1);
        // fmov d0, x0 to fmov d11, x11: more than there are host registers beside those of the instruction itself.
        let mut code: Vec<u32> = (0..12).map(|n| 0x9e67_0000 | n << 5 | n).collect();
        // fmov x12, d0 to fmov x23, d11; hvc #0
        code.push(insn);
        code.extend((0..12).map(|n| 0x9e66_0000 | n << 5 | (12 + n)));
        code.push(0xd400_0002);
        m.put(0, &code);
        let number = |n: u32| (f64::from(n) + 1.1).to_bits();
        let mut v = m.vcpu(0, 0, &(0..12).map(|n| (n, number(n))).collect::<Vec<_>>());
        v.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).unwrap();
        assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
        for n in 0..12 {
            assert_eq!(v.reg(Reg::x(12 + n)).unwrap(), number(n), "{insn:#x}, register {n}");
        }
    }
}

#[test]
fn an_atomic_access_where_nothing_is_faults_as_its_read() {
    let esr = |wnr: u64, dfsc: u64| 0x25 << 26 | 1 << 25 | wnr << 6 | dfsc;
    // ldadd x1, x0, [x2]; casal x1, x0, [x2]; swp x1, x0, [x2]
    for insn in [0xf821_0040, 0xc8e1_fc40, 0xf821_8040] {
        assert_eq!(fault(insn, 0x1000_1010, false), None);
        assert_eq!(fault(insn, 0x1000_8010, false), Some((esr(0, 7), 0x1000_8010)), "{insn:#x}");
        // What can be read only is a write's fault.
        assert_eq!(fault(insn, 0x1000_0010, false), Some((esr(1, 15), 0x1000_0010)), "{insn:#x}");
        assert_eq!(fault(insn, 0x1000_1011, false), Some((esr(0, 0x21), 0x1000_1011)), "{insn:#x}");
    }
    // stlr x1, [x2]
    assert_eq!(fault(0xc89f_fc41, 0x1000_8010, false), Some((esr(1, 7), 0x1000_8010)));
}

#[test]
fn accesses_with_the_rights_of_el0_are_those_of_el0_whatever_el1_has_found() {
    const LDR: u32 = 0xf940_0041;
    const LDTR: u32 = 0xf840_0841;
    const STTR: u32 = 0xf800_0841;
    let esr = |wnr: u64, dfsc: u64| 0x25 << 26 | 1 << 25 | wnr << 6 | dfsc;
    assert_eq!(fault_of(&[LDTR, STTR, LDTR, STTR, LDR], 0x1000_1010, false), None);
    assert_eq!(fault_of(&[LDR, LDR], 0x1000_0010, false), None);
    assert_eq!(fault_of(&[LDR, LDR, LDTR], 0x1000_0010, false), Some((esr(0, 15), 0x1000_0010)));
    assert_eq!(fault_of(&[LDR, LDR, STTR], 0x1000_0010, false), Some((esr(1, 15), 0x1000_0010)));
    // What EL0 may read only is a write's fault, after reads of it too.
    assert_eq!(fault_of(&[LDTR, LDTR, STTR], 0x1000_2010, false), Some((esr(1, 15), 0x1000_2010)));
    assert_eq!(fault_of(&[LDTR], 0x1000_8010, false), Some((esr(0, 7), 0x1000_8010)));
    assert_eq!(
        fault_of(&[LDTR, STTR], 0x1000_0ffc, false),
        Some((esr(0, 15), 0x1000_0ffc)),
        "over the boundary"
    );
    assert_eq!(fault_of(&[LDTR, STTR, LDTR], 0x1000_1010, true), None);
}

#[test]
fn accesses_with_the_rights_of_el0_move_what_they_say() {
    let m = Machine::new(1);
    // sttr x1, [x2, #8]; ldtrb w3, [x2, #9]; ldtrsw x4, [x2, #12]; ldtrsh w5, [x2, #14]; ldtr x6, [x2, #8]: twice, the
    // second time with the page known.
    let once = [0xf800_8841, 0x3840_9843, 0xb880_c844, 0x78c0_e845, 0xf840_8846];
    m.put(0x5000, &[&once[..], &once, &[0xd400_00e2]].concat());
    let value = 0x8877_6655_4433_2211;
    let mut v = m.vcpu(0, 0x5000, &[(1, value), (2, 0x1000_0ff0), (5, u64::MAX)]);
    let entry = m.tables(&mut [&mut v]);
    m.put64(entry, page(RAM + 0x7000) | 1 << 6);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 7 });
    let x = |n| v.reg(Reg::x(n)).unwrap();
    assert_eq!([3, 4, 5, 6].map(x), [0x22, 0xffff_ffff_8877_6655, 0xffff_8877, value]);
    assert_eq!(m.get64(0x7ff8), value);
}

#[test]
fn dc_zva_names_the_address_that_it_was_given() {
    let esr = 0x25 << 26 | 1 << 25 | 1 << 6 | 7;
    assert_eq!(fault(0xd50b_7422, 0x1000_8017, false), Some((esr, 0x1000_8017)));
    assert_eq!(fault(0xd50b_7422, 0x1000_1017, false), None);
}

/// Code that is decoded before any vCPU is there, with its branches: what memory holds afterwards is not looked at
/// again.
#[test]
fn code_is_decoded_ahead_of_its_first_run() {
    // movz x0, #0; 1: add x0, x0, #1; cmp x0, #10; b.ne 1b; bl f; hvc #0; f: add x0, x0, #100; ret
    let program = [
        0xd280_0000,
        0x9100_0400,
        0xf100_281f,
        0x54ff_ffc1,
        0x9400_0002,
        0xd400_0002,
        0x9101_9000,
        0xd65f_03c0,
    ];
    let ran = |m: &Machine| {
        let mut v = m.vcpu(0, 0, &[]);
        assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
        (v.reg(Reg::x(0)).unwrap(), v.decoded())
    };
    let first = Machine::with(1, Translation::Off);
    first.put(0, &program);
    let (sum, places) = ran(&first);
    assert_eq!(sum, 110);
    assert!([0, 4, 20, 24].iter().all(|at| places.contains(&(RAM + at))), "{places:x?}");

    let second = Machine::with(1, Translation::Off);
    second.put(0, &program);
    // Hints may be anything.
    let wild = [RAM + 1, RAM + SIZE as u64, RAM - 4, u64::MAX - 3, 0];
    second.vm.decode_ahead(&[&places[..], &wild].concat());
    second.put(0, &[0xd420_0000; 8]);
    assert_eq!(ran(&second).0, 110);

    // Machine code is made of what memory holds when it is.
    let third = Machine::with(2, Translation::Always);
    third.put(0, &program);
    third.vm.decode_ahead(&places);
    assert_eq!(ran(&third).0, 110);
    let mut other = third.vcpu(1, 0, &[]);
    assert_eq!(other.run().unwrap(), Exit::Hvc { immediate: 0 });
    assert_eq!(other.reg(Reg::x(0)).unwrap(), 110);
}

/// What is baked of these places, in a file of its own.
fn baked(m: &Machine, places: &[u64], key: &Key) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&m.vm.bake(places, key)).unwrap();
    file
}

#[test]
fn baked_code_is_what_decoding_gives() {
    // A loop, a call in the page, operations of FP and of one page more, which is reached by a register.
    let program = [
        0xd280_0000, // mov x0, #0
        0x9100_0400, // add x0, x0, #1
        0xf100_281f, // cmp x0, #10
        0x54ff_ffc1, // b.ne -8
        0x9400_0006, // bl +24
        0x9e62_0000, // scvtf d0, x0
        0x1e60_2800, // fadd d0, d0, d0
        0x9e78_0000, // fcvtzs x0, d0
        0xd61f_0020, // br x1
        0xd503_201f, // nop
        0x9101_9000, // add x0, x0, #100
        0xd65f_03c0, // ret
    ];
    let other = [0xd503_201f, 0x9100_0400, 0xd400_0002]; // nop; add x0, x0, #1; hvc #0
    let made = |vcpus, translation| {
        let m = Machine::with(vcpus, translation);
        m.put(0, &program);
        m.put(0x1000, &other);
        m
    };
    let run = |m: &Machine, index| {
        let mut v = m.vcpu(index, 0, &[(1, RAM + 0x1000)]);
        v.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).unwrap();
        assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
        (v.reg(Reg::x(0)).unwrap(), v.decoded())
    };
    let first = made(1, Translation::Off);
    let (sum, places) = run(&first, 0);
    assert_eq!(sum, 221);
    let key = [7; 32];
    // Hints may be anything, and come in any order.
    let wild = [RAM + 1, RAM + SIZE as u64, RAM - 4, u64::MAX - 3, 0];
    let mut hints = [&wild[..], &places, &places].concat();
    hints.reverse();
    let file = baked(&first, &hints, &key);

    // The memory is another by now: what runs is from the file, on each vCPU.
    let second = made(2, Translation::Off);
    second.vm.set_baked(Baked::open(file.try_clone().unwrap(), &key).unwrap());
    second.put(0, &[0xd420_0000; 12]);
    second.put(0x1000, &[0xd420_0000; 3]);
    assert_eq!((run(&second, 0).0, run(&second, 1).0), (221, 221));

    // Machine code is made of what memory holds when it is.
    let third = made(1, Translation::Always);
    third.vm.set_baked(Baked::open(file.try_clone().unwrap(), &key).unwrap());
    assert_eq!(run(&third, 0).0, 221);

    // A page that the guest has made invalid is decoded anew, whether it has run there or not: ic ivau, x1; dsb sy;
    // isb; br x1.
    let fourth = made(1, Translation::Off);
    fourth.vm.set_baked(Baked::open(file.try_clone().unwrap(), &key).unwrap());
    fourth.put(0x1000, &[0xd503_201f, 0x9100_0800, 0xd400_0002]);
    fourth.put(0x2000, &[0xd50b_7521, 0xd503_3f9f, 0xd503_3fdf, 0xd61f_0020]);
    let mut v = fourth.vcpu(0, 0x2000, &[(1, RAM + 0x1000)]);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
    assert_eq!(v.reg(Reg::x(0)).unwrap(), 2);

    // It is for this key alone.
    assert!(Baked::open(file, &[8; 32]).is_err());
}

#[test]
fn damaged_baked_code_is_refused() {
    let program: Vec<u32> = (0..200).map(|_| 0x9100_0400).chain([0xd400_0002]).collect();
    let key = [1; 32];
    let m = Machine::with(1, Translation::Off);
    m.put(0, &program);
    let places: Vec<_> = (0..4).map(|n| RAM + n * 256).collect();
    let good = m.vm.bake(&places, &key);
    let run = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let m = Machine::with(1, Translation::Off);
        m.put(0, &program);
        let opened = Baked::open(file, &key).map(|baked| m.vm.set_baked(baked)).is_ok();
        let mut v = m.vcpu(0, 0, &[]);
        assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
        assert_eq!(v.reg(Reg::x(0)).unwrap(), 200);
        opened
    };
    assert!(run(&good));
    // What is in the pages is seen when they are read.
    for length in (0..good.len()).step_by(97) {
        assert!(!run(&good[..length]), "{length}");
    }
    // The header, and the one page's entry.
    let head = 64 + 24;
    for bit in (0..head * 8).step_by(3).chain((head * 8..good.len() * 8).step_by(331)) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(run(&bad), bit / 8 >= head, "bit {bit}");
    }
    // What is none at all, be it that it begins as one does.
    let mut word = 1_u64;
    for round in 0..200 {
        let mut bad = good.clone();
        let from = round * 7 % good.len();
        for byte in &mut bad[from..] {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (word >> 33) as u8;
        }
        let opened = run(&bad);
        assert!(!opened || from >= head, "{from}");
    }
}

#[test]
fn what_ran_last_is_named_first() {
    let m = Machine::with(1, Translation::Off);
    // Each page calls the next by a register, after a flush of the TLB: tlbi vmalle1; br x1; the last: hvc #0.
    m.put(0x1000, &[0xd508_871f, 0xd61f_0020]);
    m.put(0x2000, &[0xd508_871f, 0xd61f_0040]);
    m.put(0x3000, &[0xd400_0002]);
    let mut v = m.vcpu(0, 0x1000, &[(1, RAM + 0x2000), (2, RAM + 0x3000)]);
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
    let pages: Vec<_> = v.decoded().into_iter().map(|place| place & !0xfff).collect();
    let first = |page: u64| pages.iter().position(|known| *known == RAM + page).unwrap();
    // The second page is looked at again behind its flush, when the third is.
    assert!(first(0x2000) < first(0x1000) && first(0x3000) < first(0x1000), "{pages:x?}");
}

#[test]
fn an_interrupt_comes_in_with_the_instruction_that_lets_it() {
    const ROUNDS: u64 = 500;
    let m = Machine::new(1);
    // str w11, [x10]; 1: msr icc_sgi1r_el1, x2; isb; msr daifclr, #2; nop; msr daifset, #2; msr icc_sgi1r_el1, x2; isb;
    // msr daif, x3; nop; msr daifset, #2; subs x0, x0, #1; b.ne 1b; hvc #0
    m.put(
        0,
        &[
            0xb900_014b,
            0xd518_cba2,
            0xd503_3fdf,
            0xd503_42ff,
            0xd503_201f,
            0xd503_42df,
            0xd518_cba2,
            0xd503_3fdf,
            0xd51b_4223,
            0xd503_201f,
            0xd503_42df,
            0xf100_0400,
            0x54ff_fea1,
            0xd400_0002,
        ],
    );
    // The interrupt's vector: mrs x4, elr_el1; mrs x6, icc_iar1_el1; msr icc_eoir1_el1, x6; cmp x4, x5;
    // ccmp x4, x8, #4, ne; cinc x7, x7, eq; add x9, x9, #1; eret
    m.put(
        0x2280,
        &[
            0xd538_4024,
            0xd538_cc06,
            0xd518_cc26,
            0xeb05_009f,
            0xfa48_1084,
            0x9a87_14e7,
            0x9100_0529,
            0xd69f_03e0,
        ],
    );
    let x = [
        (0, ROUNDS),
        // SGI 1 to itself; all but IRQ masked; behind each NOP's neighbour; the distributor, and its groups.
        (2, 1 << 24 | 1),
        (3, 0x340),
        (5, RAM + 16),
        (8, RAM + 36),
        (10, 0x0800_0000),
        (11, 0x12),
    ];
    let mut v = m.vcpu(0, 0, &x);
    v.set_sys_reg(SysReg::VBAR_EL1, RAM + 0x2000).unwrap();
    v.set_reg(Reg::CPSR, 0x3c5).unwrap();
    v.set_icc_reg(IccReg::PMR_EL1, 0xff).unwrap();
    v.set_icc_reg(IccReg::IGRPEN1_EL1, 1).unwrap();
    // GICR_IGROUPR0 and GICR_ISENABLER0.
    v.set_redist_reg(RedistReg(0x1_0080), 2).unwrap();
    v.set_redist_reg(RedistReg(0x1_0100), 2).unwrap();
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
    let x = |n| v.reg(Reg::x(n)).unwrap();
    assert_eq!((x(9), x(7)), (2 * ROUNDS, 2 * ROUNDS));
}
