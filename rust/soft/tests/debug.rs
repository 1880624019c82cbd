//! Software step, breakpoints, watchpoints and their registers, as EL1 sees them. The words are what GNU as makes of
//! the comments.

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
use supermachine_soft::id::{Reg, SysReg};
use supermachine_soft::{Exit, Vcpu};

const CODE: u64 = 0x3000;
const DATA: u64 = RAM + 0x8000;
const NOP: u32 = 0xd503_201f;
const SVC: u32 = 0xd400_0001;
/// add x0, x0, #1
const ADD: u32 = 0x9100_0400;

const SS: u64 = 1 << 21;
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;
const EL1H: u64 = 5;
/// Interrupts masked, debug exceptions not.
const AIF: u64 = 7 << 6;
const D: u64 = 1 << 9;

/// DBGBVR<n>_EL1 (4), DBGBCR<n>_EL1 (5), DBGWVR<n>_EL1 (6) and DBGWCR<n>_EL1 (7).
fn pair(n: u16, which: u16) -> SysReg {
    SysReg::new(2, 0, 0, n, which)
}

/// A breakpoint's control: enabled, by level (PMC).
fn at(pmc: u64) -> u64 {
    1 | pmc << 1 | 0xf << 5
}

/// A watchpoint's: enabled, by level (PAC), for loads (1), stores (2) or both, on selected bytes.
fn on(pac: u64, lsc: u64, bytes: u64) -> u64 {
    1 | pac << 1 | lsc << 3 | bytes << 5
}

/// A vCPU at EL0, MMU off, at these words, whose exceptions come out as HVC #9 and return with ERET.
fn program(m: &Machine, words: &[u32], x: &[(u32, u64)]) -> Vcpu {
    m.put(CODE, words);
    for vector in [0x2200, 0x2400] {
        m.put(vector, &[0xd400_0122, 0xd69f_03e0]);
    }
    let mut v = m.vcpu(0, CODE, x);
    v.set_sys_reg(SysReg::VBAR_EL1, RAM + 0x2000).unwrap();
    v.set_reg(Reg::CPSR, 0).unwrap();
    v
}

/// Runs to the next exception: class, the rest of the syndrome, and where.
fn next(v: &mut Vcpu) -> (u64, u64, u64) {
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 9 });
    let esr = v.sys_reg(SysReg::ESR_EL1).unwrap();
    let elr = v.sys_reg(SysReg::ELR_EL1).unwrap();
    (esr >> 26, esr & 0x1ff_ffff, elr.wrapping_sub(RAM + CODE))
}

/// Has the ERET that comes next step one instruction.
fn step(v: &mut Vcpu) {
    let spsr = v.sys_reg(SysReg::SPSR_EL1).unwrap();
    v.set_sys_reg(SysReg::SPSR_EL1, spsr | SS).unwrap();
}

const VALID: u64 = 1 << 24;
const EX: u64 = 1 << 6;
const DEBUG: u64 = 0x22;

#[test]
fn software_step_runs_one_instruction_at_a_time() {
    let m = Machine::new(1);
    // 1: add x0, x0, #1; cmp x0, #3; b.ne 1b; ldxr x1, [x2]; b .+8; nop; str x0, [x2]; svc #0; nop
    let words = [ADD, 0xf100_0c1f, 0x54ff_ffc1, 0xc85f_7c41, 0x1400_0002, NOP, 0xf900_0040, SVC, NOP];
    let mut v = program(&m, &words, &[(2, DATA)]);
    v.set_sys_reg(SysReg::MDSCR_EL1, 1).unwrap();
    // PSTATE.SS is clear: the exception is there before anything runs, and names no instruction.
    assert_eq!(next(&mut v), (0x32, DEBUG, 0));
    let before = v.instructions();
    let mut ran = 0;
    for to in [4, 8, 0, 4, 8, 0, 4, 8, 12, 16, 24, 28] {
        let exclusive = if to == 16 { EX } else { 0 };
        step(&mut v);
        assert_eq!(next(&mut v), (0x32, VALID | exclusive | DEBUG, to));
        assert_eq!(v.sys_reg(SysReg::SPSR_EL1).unwrap() & SS, 0);
        ran += 1;
        // ERET, the instruction and HVC.
        assert_eq!(v.instructions() - before, 3 * ran);
    }
    assert_eq!((v.reg(Reg::x(0)).unwrap(), m.get64(0x8000)), (3, 3));
    // SVC is complete with its exception: the step's own comes after the return.
    step(&mut v);
    assert_eq!(next(&mut v), (0x15, 0, 32));
    assert_eq!(v.sys_reg(SysReg::SPSR_EL1).unwrap() & SS, 0);
    assert_eq!(next(&mut v), (0x32, DEBUG, 32));
    // Without MDSCR_EL1.SS code runs on.
    m.put(CODE + 36, &[NOP, SVC]);
    v.set_sys_reg(SysReg::MDSCR_EL1, 0).unwrap();
    step(&mut v);
    assert_eq!(next(&mut v), (0x15, 0, 44));
}

#[test]
fn an_instruction_that_faults_is_still_to_be_stepped() {
    let m = Machine::new(1);
    // brk #0; udf #0
    let mut v = program(&m, &[0xd420_0000, 0], &[]);
    v.set_sys_reg(SysReg::MDSCR_EL1, 1).unwrap();
    v.set_reg(Reg::CPSR, SS).unwrap();
    assert_eq!(v.reg(Reg::CPSR).unwrap() & SS, SS);
    assert_eq!(next(&mut v), (0x3c, 0, 0));
    assert_eq!(v.sys_reg(SysReg::SPSR_EL1).unwrap() & SS, SS);
    v.set_sys_reg(SysReg::ELR_EL1, RAM + CODE + 4).unwrap();
    assert_eq!(next(&mut v), (0, 0, 4));
    assert_eq!(v.sys_reg(SysReg::SPSR_EL1).unwrap() & SS, SS);
}

#[test]
fn an_access_that_the_machine_finishes_is_a_step() {
    let m = Machine::new(1);
    // str x0, [x2]; nop
    let mut v = program(&m, &[0xf900_0040, NOP], &[(2, 0x0900_0000)]);
    v.set_sys_reg(SysReg::MDSCR_EL1, 1).unwrap();
    v.set_reg(Reg::CPSR, SS).unwrap();
    assert!(matches!(v.run().unwrap(), Exit::DataAbort(_)));
    v.set_reg(Reg::PC, RAM + CODE + 4).unwrap();
    assert_eq!(next(&mut v), (0x32, DEBUG, 4));
}

#[test]
fn debug_exceptions_of_el1_want_kde_and_no_mask_and_none_come_with_a_lock() {
    for (mdscr, cpsr, locked, stepped) in [
        (1, AIF | EL1H, false, false),
        (1 | KDE, AIF | D | EL1H, false, false),
        (1 | KDE, AIF | EL1H, true, false),
        (1, 0, true, false),
        (1 | KDE, AIF | EL1H, false, true),
    ] {
        let m = Machine::new(1);
        let mut v = program(&m, &[NOP, NOP, SVC], &[]);
        v.set_sys_reg(SysReg::MDSCR_EL1, mdscr).unwrap();
        v.set_sys_reg(SysReg::OSLSR_EL1, if locked { 10 } else { 8 }).unwrap();
        v.set_reg(Reg::CPSR, cpsr | SS).unwrap();
        let found = next(&mut v);
        assert_eq!(found, if stepped { (0x33, VALID | DEBUG, 4) } else { (0x15, 0, 12) });
    }
}

#[test]
fn breakpoints_are_for_their_address_level_and_context() {
    const LINKED_TO: u64 = 5 << 16;
    let here = RAM + CODE + 8;
    // Value, control, CONTEXTIDR_EL1, control of breakpoint 5, whose value is 77; whether it is met.
    for (value, control, context, other, met) in [
        (here, at(2), 0, 0, true),
        (here, at(3), 0, 0, true),
        (here, at(1), 0, 0, false),
        (here, at(2) & !1, 0, 0, false),
        (here + 12, at(2), 0, 0, false),
        (here, at(2) | 1 << 20 | LINKED_TO, 77, at(2) | 3 << 20, true),
        (here, at(2) | 1 << 20 | LINKED_TO, 78, at(2) | 3 << 20, false),
        (here, at(2) | 1 << 20 | LINKED_TO, 77, at(2) & !1 | 3 << 20, false),
        (here, at(2) | 1 << 20 | 4 << 16, 77, at(2) | 3 << 20, false),
        // Only the last breakpoint compares contexts.
        (77, at(2) | 2 << 20, 77, 0, false),
    ] {
        let m = Machine::new(1);
        // b .+8; nop; nop; svc #0
        let mut v = program(&m, &[0x1400_0002, NOP, NOP, SVC], &[]);
        // It runs once before, so that its code is known.
        assert_eq!(next(&mut v), (0x15, 0, 16));
        v.set_sys_reg(SysReg::ELR_EL1, RAM + CODE).unwrap();
        for (n, value, control) in [(0, value, control), (5, 77, other)] {
            v.set_sys_reg(pair(n, 4), value).unwrap();
            v.set_sys_reg(pair(n, 5), control).unwrap();
        }
        v.set_sys_reg(SysReg::CONTEXTIDR_EL1, context).unwrap();
        v.set_sys_reg(SysReg::MDSCR_EL1, MDE).unwrap();
        let found = next(&mut v);
        assert_eq!(found, if met { (0x30, DEBUG, 8) } else { (0x15, 0, 16) }, "{value:#x} {control:#x}");
        if met {
            // Linux's way on: a step with the breakpoint off.
            v.set_sys_reg(pair(0, 5), control & !1).unwrap();
            v.set_sys_reg(SysReg::MDSCR_EL1, MDE | 1).unwrap();
            step(&mut v);
            assert_eq!(next(&mut v), (0x32, VALID | DEBUG, 12));
        }
    }
}

#[test]
fn a_context_by_itself_breaks_everywhere() {
    let m = Machine::new(1);
    let mut v = program(&m, &[NOP, SVC], &[]);
    v.set_sys_reg(pair(5, 4), 77).unwrap();
    v.set_sys_reg(pair(5, 5), at(2) | 2 << 20).unwrap();
    v.set_sys_reg(SysReg::MDSCR_EL1, MDE).unwrap();
    assert_eq!(next(&mut v), (0x15, 0, 8));
    v.set_sys_reg(SysReg::CONTEXTIDR_EL1, 77).unwrap();
    v.set_sys_reg(SysReg::ELR_EL1, RAM + CODE).unwrap();
    assert_eq!(next(&mut v), (0x30, DEBUG, 0));
}

#[test]
fn a_guest_arms_a_breakpoint_on_code_that_has_run() {
    let m = Machine::new(1);
    // EL1: 1: bl 3f; msr dbgbvr0_el1, x1; msr dbgbcr0_el1, x2; msr mdscr_el1, x3; msr daifclr, #8; b 1b; 3: nop; ret
    let words =
        [0x9400_0006, 0xd510_0081, 0xd510_00a2, 0xd510_0243, 0xd503_48ff, 0x17ff_fffb, NOP, 0xd65f_03c0];
    let x = [(1, RAM + CODE + 24), (2, at(1)), (3, MDE | KDE)];
    let mut v = program(&m, &words, &x);
    v.set_reg(Reg::CPSR, AIF | D | EL1H).unwrap();
    assert_eq!(next(&mut v), (0x31, DEBUG, 24));
}

/// ldr x1, [x2]
const LDR: u32 = 0xf940_0041;
/// str x1, [x2]
const STR: u32 = 0xf900_0041;
/// ldrb w1, [x2]
const LDRB: u32 = 0x3940_0041;
/// strb w1, [x2]
const STRB: u32 = 0x3900_0041;
/// ldp x1, x3, [x2]
const LDP: u32 = 0xa940_0c41;
/// ldr q1, [x2]
const LDRQ: u32 = 0x3dc0_0041;
/// ldadd x1, x0, [x2]
const LDADD: u32 = 0xf821_0040;
/// dc zva, x2
const ZVA: u32 = 0xd50b_7422;
const WNR: u64 = 1 << 6;

#[test]
fn watchpoints_are_for_their_bytes_kind_and_level() {
    const LOAD: u64 = 1;
    const STORE: u64 = 2;
    const BOTH: u64 = 3;
    // Value, control, instruction and its address; where it is met and how.
    for (value, control, insn, address, met) in [
        (DATA, on(2, BOTH, 0xff), LDR, DATA, Some((DATA, 0))),
        (DATA, on(2, BOTH, 0xff), STR, DATA, Some((DATA, WNR))),
        (DATA, on(2, LOAD, 0xff), STR, DATA, None),
        (DATA, on(2, STORE, 0xff), LDR, DATA, None),
        (DATA, on(1, BOTH, 0xff), STR, DATA, None),
        (DATA, on(2, BOTH, 0xff) & !1, STR, DATA, None),
        (DATA, on(2, BOTH, 0x10), STRB, DATA + 4, Some((DATA + 4, WNR))),
        (DATA, on(2, BOTH, 0x10), STRB, DATA + 3, None),
        (DATA, on(2, BOTH, 0x10), STR, DATA, Some((DATA + 4, WNR))),
        (DATA + 4, on(2, BOTH, 0x0f), LDRB, DATA + 7, Some((DATA + 7, 0))),
        (DATA + 4, on(2, BOTH, 0x0f), LDRB, DATA + 3, None),
        (DATA + 8, on(2, BOTH, 0xff), LDP, DATA, Some((DATA + 8, 0))),
        (DATA + 8, on(2, BOTH, 0xff), LDRQ, DATA, Some((DATA + 8, 0))),
        // Over the end of a page.
        (DATA + 0x1000, on(2, BOTH, 1), STR, DATA + 0xffc, Some((DATA + 0x1000, WNR))),
        (DATA + 0xff8, on(2, BOTH, 0x80), LDR, DATA + 0xffc, Some((DATA + 0xfff, 0))),
        // By mask: 1 KiB.
        (DATA, on(2, BOTH, 0xff) | 10 << 24, LDRB, DATA + 0x3ff, Some((DATA + 0x3ff, 0))),
        (DATA, on(2, BOTH, 0xff) | 10 << 24, LDRB, DATA + 0x400, None),
        // An atomic access is a read where that is watched.
        (DATA, on(2, BOTH, 0xff), LDADD, DATA, Some((DATA, 0))),
        (DATA, on(2, STORE, 0xff), LDADD, DATA, Some((DATA, WNR))),
        (DATA + 32, on(2, STORE, 0xff), ZVA, DATA + 9, Some((DATA + 32, WNR))),
        (DATA, on(2, BOTH, 0xff) | 1 << 20 | 5 << 16, LDR, DATA, None),
    ] {
        let m = Machine::new(1);
        let mut v = program(&m, &[insn, SVC], &[(2, address), (1, 5)]);
        v.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).unwrap();
        let sctlr = v.sys_reg(SysReg::SCTLR_EL1).unwrap();
        v.set_sys_reg(SysReg::SCTLR_EL1, sctlr | 1 << 14).unwrap();
        // It runs once before, so that its page is in the TLB.
        assert_eq!(next(&mut v), (0x15, 0, 8));
        m.put64(DATA - RAM, 11);
        v.set_sys_reg(SysReg::ELR_EL1, RAM + CODE).unwrap();
        v.set_sys_reg(pair(3, 6), value).unwrap();
        v.set_sys_reg(pair(3, 7), control).unwrap();
        v.set_sys_reg(SysReg::MDSCR_EL1, MDE).unwrap();
        let found = next(&mut v);
        let name = format!("{value:#x} {control:#x} {insn:#x} {address:#x}");
        match met {
            None => assert_eq!(found, (0x15, 0, 8), "{name}"),
            Some((far, wnr)) => {
                assert_eq!(found, (0x34, wnr | DEBUG, 0), "{name}");
                assert_eq!(v.sys_reg(SysReg::FAR_EL1).unwrap(), far, "{name}");
                // Nothing has happened yet.
                assert_eq!(m.get64(DATA - RAM), 11, "{name}");
            }
        }
        v.set_sys_reg(SysReg::ELR_EL1, RAM + CODE).unwrap();
        v.set_sys_reg(SysReg::MDSCR_EL1, 0).unwrap();
        assert_eq!(next(&mut v), (0x15, 0, 8), "{name}");
    }
}

/// What an instruction at EL1 comes to: the exception's class, or X0.
fn at_el1(insn: u32, x: &[(u32, u64)]) -> Result<u64, u64> {
    let m = Machine::new(1);
    // hvc #1
    let mut v = program(&m, &[insn, 0xd400_0022], x);
    v.set_reg(Reg::CPSR, AIF | D | EL1H).unwrap();
    match v.run().unwrap() {
        Exit::Hvc { immediate: 1 } => Ok(v.reg(Reg::x(0)).unwrap()),
        _ => Err(v.sys_reg(SysReg::ESR_EL1).unwrap() >> 26),
    }
}

#[test]
fn debug_registers_are_those_that_are_announced() {
    // mrs x0, id_aa64dfr0_el1: six breakpoints, four watchpoints and a performance monitor.
    assert_eq!(at_el1(0xd538_0500, &[]), Ok(6 | 6 << 8 | 5 << 12 | 3 << 20));
    // oslsr_el1, mdrar_el1, dbgclaimset_el1
    assert_eq!(at_el1(0xd530_1180, &[]), Ok(8));
    assert_eq!(at_el1(0xd530_1000, &[(0, 9)]), Ok(0));
    assert_eq!(at_el1(0xd530_78c0, &[]), Ok(0xff));
    // Beyond what there is: dbgbvr6_el1, dbgwvr4_el1.
    assert_eq!(at_el1(0xd530_0680, &[]), Err(0));
    assert_eq!(at_el1(0xd530_04c0, &[]), Err(0));
    // Read-only: mdrar_el1, oslsr_el1, dbgauthstatus_el1; write-only: oslar_el1.
    for insn in [0xd510_1001, 0xd510_1181, 0xd510_7ec1, 0xd530_1080] {
        assert_eq!(at_el1(insn, &[]), Err(0), "{insn:#x}");
    }
}

#[test]
fn debug_registers_hold_their_fields() {
    let m = Machine::new(1);
    // msr oslar_el1, x1; mrs x0, oslsr_el1; msr dbgclaimset_el1, x1; mrs x2, dbgclaimclr_el1; hvc #1
    let mut v = program(&m, &[0xd510_1081, 0xd530_1180, 0xd510_78c1, 0xd530_79c2, 0xd400_0022], &[(1, 3)]);
    v.set_reg(Reg::CPSR, AIF | D | EL1H).unwrap();
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 1 });
    assert_eq!((v.reg(Reg::x(0)).unwrap(), v.reg(Reg::x(2)).unwrap()), (10, 3));
    assert_eq!(v.sys_reg(SysReg::OSLSR_EL1).unwrap(), 10);
    for (register, held) in
        [(pair(0, 4), !3), (pair(0, 5), 0x00ff_e1e7), (pair(3, 6), !3), (pair(3, 7), 0x1f1f_ffff)]
    {
        v.set_sys_reg(register, u64::MAX).unwrap();
        assert_eq!(v.sys_reg(register).unwrap(), held);
    }
    assert!(v.sys_reg(pair(6, 4)).is_err() && v.sys_reg(pair(4, 6)).is_err());
}
