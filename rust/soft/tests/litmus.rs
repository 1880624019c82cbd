//! Litmus tests of the memory model (Arm ARM, B2.3): programs of a few accesses on two to four vCPUs, many times, whose
//! forbidden outcomes must not be seen, interpreted and translated. Names are those of the literature (Alglave,
//! Maranget, Tautschnig: "Herding Cats"). And counters that no exclusive or atomic access may lose a step of.
//!
//! `SUPERMACHINE_LITMUS_COUNT` is how often each runs. The programs are for GNU as.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "raw memory, to test with")]

#[path = "bare/mod.rs"]
mod bare;

use supermachine_soft::id::{Reg, SysReg};
use supermachine_soft::{Exit, Translation};

use bare::{Machine, RAM, READ_ONLY, assemble, page};

/// Where programs, the barrier and the cells are, from the start of RAM.
const CODE: u64 = 0x3000;
const BARRIER: u64 = 0x9000;
const CELLS: u64 = 0x1_0000;
/// What a round's cell has: X and Y, on cache lines of their own, and two results of each vCPU.
const CELL: u64 = 256;
const RESULTS: u64 = 128;

const EACH: [Translation; 2] = [Translation::Off, Translation::Always];

fn count() -> u64 {
    let text = std::env::var("SUPERMACHINE_LITMUS_COUNT");
    text.map_or(2000, |n| n.parse().expect("a number of rounds"))
}

/// Runs a program on each vCPU to its HVC. X0 is how often, X1 the first cell, X2 the barrier, X3 how many vCPUs, X9
/// which.
fn together(translation: Translation, name: &str, programs: &[String], rounds: u64) -> Machine {
    let vcpus = programs.len() as u32;
    let m = Machine::with(vcpus, translation);
    // Exceptions come out as HVC #9.
    m.put(0x2200, &[0xd400_0122]);
    let mut cpus = Vec::new();
    for (i, text) in programs.iter().enumerate() {
        let at = CODE + 0x1000 * i as u64;
        m.put(at, &assemble(&format!("{name}-{i}-{translation:?}"), text));
        let x = [(0, rounds), (1, RAM + CELLS), (2, RAM + BARRIER), (3, u64::from(vcpus)), (9, i as u64)];
        let mut v = m.vcpu(i as u32, at, &x);
        v.set_sys_reg(SysReg::VBAR_EL1, RAM + 0x2000).expect("VBAR_EL1");
        v.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).expect("CPACR_EL1");
        cpus.push(v);
    }
    let threads: Vec<_> = cpus
        .into_iter()
        .map(|mut v| {
            std::thread::spawn(move || {
                assert_eq!(v.run().expect("it runs"), Exit::Hvc { immediate: 0 });
                v.reg(Reg::x(0)).expect("X0")
            })
        })
        .collect();
    for t in threads {
        assert_eq!(t.join().expect("the vCPU's thread"), 0, "{name} has rounds left");
    }
    m
}

/// A loop around `body`, which finds the address of X in X1 and of Y in X8, 1 in X7, and leaves what it reads in X10
/// and X11. All vCPUs begin each round together.
fn rounds(body: &str) -> String {
    format!(
        "
        mov x4, #0
        mov x7, #1
1:      add x4, x4, x3
        ldadd x7, x5, [x2]
        mov x6, #200
2:      ldr x5, [x2]
        cmp x5, x4
        b.hs 3f
        subs x6, x6, #1
        b.ne 2b
        mov x6, #200
        yield
        b 2b
3:      add x8, x1, #64
        mov x10, #0
        mov x11, #0
        {body}
        add x12, x1, #{RESULTS}
        add x12, x12, x9, lsl #4
        stp x10, x11, [x12]
        add x1, x1, #{CELL}
        sub x0, x0, #1
        cbnz x0, 1b
        hvc #0"
    )
}

/// Runs a test, and asserts of each round that its results (X10 and X11 of each vCPU) are not forbidden.
fn litmus(name: &str, bodies: &[&str], forbidden: impl Fn(&[[u64; 2]]) -> bool) {
    // As many as there is room for at a time.
    const AT_ONCE: u64 = 8192;
    for translation in EACH {
        let mut left = count();
        while left > 0 {
            let now = left.min(AT_ONCE);
            left -= now;
            let programs: Vec<String> = bodies.iter().map(|b| rounds(b)).collect();
            let m = together(translation, name, &programs, now);
            for round in 0..now {
                let at = CELLS + round * CELL + RESULTS;
                let seen: Vec<[u64; 2]> = (0..bodies.len() as u64)
                    .map(|i| [m.get64(at + 16 * i), m.get64(at + 16 * i + 8)])
                    .collect();
                assert!(!forbidden(&seen), "{name}, {translation:?}: {seen:?} in round {round}");
            }
        }
    }
}

fn both_read_nothing(seen: &[[u64; 2]]) -> bool {
    seen[0][0] == 0 && seen[1][0] == 0
}

#[test]
fn store_buffering() {
    for (name, store, load) in [
        ("SB+dmbs", "str x7, [{}]\n dmb ish", "ldr x10, [{}]"),
        ("SB+dsbs", "str x7, [{}]\n dsb ish", "ldr x10, [{}]"),
        // A release is before an acquire that is behind it.
        ("SB+rel-acq", "stlr x7, [{}]", "ldar x10, [{}]"),
        ("SB+swpal-acq", "swpal x7, x13, [{}]", "ldar x10, [{}]"),
        ("SB+ldaddal-acq", "ldaddal x7, x13, [{}]", "ldar x10, [{}]"),
        ("SB+stlxr-acq", "4: ldxr x13, [{}]\n stlxr w13, x7, [{}]\n cbnz w13, 4b", "ldar x10, [{}]"),
    ] {
        let side = |a: &str, b: &str| format!("{}\n {}", store.replace("{}", a), load.replace("{}", b));
        litmus(name, &[&side("x1", "x8"), &side("x8", "x1")], both_read_nothing);
    }
}

#[test]
fn message_passing() {
    for (name, write, read) in [
        ("MP+dmbs", "str x7, [x1]\n dmb ish\n str x7, [x8]", "ldr x10, [x8]\n dmb ish\n ldr x11, [x1]"),
        (
            "MP+dmb.st+dmb.ld",
            "str x7, [x1]\n dmb ishst\n str x7, [x8]",
            "ldr x10, [x8]\n dmb ishld\n ldr x11, [x1]",
        ),
        ("MP+rel+acq", "str x7, [x1]\n stlr x7, [x8]", "ldar x10, [x8]\n ldr x11, [x1]"),
        ("MP+rel+acqpc", "str x7, [x1]\n stlr x7, [x8]", "ldapr x10, [x8]\n ldr x11, [x1]"),
        (
            "MP+rel+addr",
            "str x7, [x1]\n stlr x7, [x8]",
            "ldr x10, [x8]\n eor x13, x10, x10\n ldr x11, [x1, x13]",
        ),
        ("MP+swpl+swpa", "str x7, [x1]\n swpl x7, x13, [x8]", "ldadda xzr, x10, [x8]\n ldr x11, [x1]"),
        (
            "MP+vectors",
            "fmov d0, x7\n str d0, [x1]\n dmb ish\n str x7, [x8]",
            "ldar x10, [x8]\n ldr d1, [x1]\n fmov x11, d1",
        ),
    ] {
        litmus(name, &[write, read], |seen| seen[1] == [1, 0]);
    }
}

#[test]
fn load_buffering() {
    for (name, order) in [("LB+dmbs", "dmb ish"), ("LB+datas", "")] {
        // What is stored is 1 whatever was read, and yet depends on it.
        let side = |a: &str, b: &str| {
            format!("ldr x10, [{a}]\n {order}\n eor x13, x10, x10\n add x13, x13, #1\n str x13, [{b}]")
        };
        litmus(name, &[&side("x1", "x8"), &side("x8", "x1")], |seen| seen[0][0] == 1 && seen[1][0] == 1);
    }
}

#[test]
fn independent_reads_of_independent_writes() {
    for (name, first, order) in [("IRIW+dmbs", "ldr", "dmb ish"), ("IRIW+acqs", "ldar", "")] {
        let read = |a: &str, b: &str| format!("{first} x10, [{a}]\n {order}\n {first} x11, [{b}]");
        let (r, s) = (read("x1", "x8"), read("x8", "x1"));
        let bodies = ["str x7, [x1]", "str x7, [x8]", r.as_str(), s.as_str()];
        litmus(name, &bodies, |seen| seen[2] == [1, 0] && seen[3] == [1, 0]);
    }
}

#[test]
fn coherence() {
    // Two reads of one place see its writes in one order.
    litmus("CoRR", &["str x7, [x1]", "ldr x10, [x1]\n ldr x11, [x1]"], |seen| seen[1] == [1, 0]);
}

/// Each vCPU adds to counters at X1; `step` does it once.
fn count_up(name: &str, vcpus: usize, step: &str, check: impl Fn(&Machine, u64)) {
    let program = format!("mov x7, #1\n 1: {step}\n sub x0, x0, #1\n cbnz x0, 1b\n hvc #0");
    for translation in EACH {
        let m = together(translation, name, &vec![program.clone(); vcpus], count());
        check(&m, count() * vcpus as u64);
    }
}

#[test]
fn nothing_is_lost() {
    for vcpus in 2..=4 {
        for (name, step) in [
            ("ldxr", "4: ldxr x5, [x1]\n add x5, x5, #1\n stxr w6, x5, [x1]\n cbnz w6, 4b"),
            ("ldaxr", "4: ldaxr x5, [x1]\n add x5, x5, #1\n stlxr w6, x5, [x1]\n cbnz w6, 4b"),
            ("ldaxrh", "4: ldaxrh w5, [x1]\n add w5, w5, #1\n stlxrh w6, w5, [x1]\n cbnz w6, 4b"),
            ("ldadd", "ldadd x7, x5, [x1]"),
            ("ldaddal", "ldaddal x7, x5, [x1]"),
            (
                "cas",
                "4: ldr x5, [x1]\n mov x6, x5\n add x10, x5, #1\n casal x6, x10, [x1]\n cmp x5, x6\n b.ne 4b",
            ),
        ] {
            let bits = if name == "ldaxrh" { 16 } else { 64 };
            count_up(name, vcpus, step, |m, all| {
                assert_eq!(m.get64(CELLS), all & u64::MAX >> (64 - bits), "{name} on {vcpus}");
            });
        }
    }
}

#[test]
fn pairs_change_as_one() {
    for vcpus in 2..=4 {
        for (name, step) in [
            (
                "ldxp",
                "4: ldaxp x4, x5, [x1]\n add x10, x4, #1\n add x11, x5, #3\n stlxp w6, x10, x11, [x1]\n cbnz w6, 4b",
            ),
            (
                "casp",
                "4: ldp x4, x5, [x1]\n mov x12, x4\n mov x13, x5\n add x10, x4, #1\n add x11, x5, #3\n \
                 caspal x12, x13, x10, x11, [x1]\n cmp x12, x4\n ccmp x13, x5, #0, eq\n b.ne 4b",
            ),
        ] {
            count_up(name, vcpus, step, |m, all| {
                assert_eq!((m.get64(CELLS), m.get64(CELLS + 8)), (all, 3 * all), "{name} on {vcpus}");
            });
        }
    }
}

#[test]
fn a_lock_keeps_others_out() {
    // A ticket lock; within it two places are changed by plain accesses.
    let step = "ldadda x7, x4, [x2]\n 4: ldar x5, [x1]\n cmp x5, x4\n b.eq 5f\n yield\n b 4b\n \
                5: ldr x5, [x1, #64]\n ldr x6, [x1, #128]\n cmp x5, x6\n b.ne 9f\n add x5, x5, #1\n \
                str x5, [x1, #64]\n str x5, [x1, #128]\n add x4, x4, #1\n stlr x4, [x1]\n b 8f\n \
                9: hvc #1\n 8:";
    for vcpus in 2..=4 {
        count_up("ticket", vcpus, step, |m, all| assert_eq!(m.get64(CELLS + 64), all));
    }
}

const VECTORS: u64 = 0x2000;
/// What each vCPU adds to beside, in its handler of interrupts.
const SIGNALS: u64 = CELLS + 0x800;

/// While each vCPU is asked to leave its run, and has interrupts of the others' whose handler has exclusive accesses of
/// its own.
#[test]
fn nothing_is_lost_where_vcpus_are_interrupted() {
    // X7 is 1; the handler has X14 to X18, and X19 is how many interrupts this vCPU has sent.
    let handler = "mrs x16, s3_0_c12_c12_0\n 4: ldaxr x17, [x15]\n add x17, x17, #1\n stlxr w18, x17, [x15]\n \
                   cbnz w18, 4b\n msr s3_0_c12_c12_1, x16\n eret";
    // The redistributor's SGI 1, group 1, on; the CPU's interface; interrupts let through.
    let prepare = format!(
        "movz x4, #0x0800, lsl #16\n mov w5, #0x12\n str w5, [x4]\n movz x4, #0x080b, lsl #16\n \
         add x4, x4, x9, lsl #17\n mov w5, #2\n str w5, [x4, #0x80]\n str w5, [x4, #0x100]\n mov x7, #1\n \
         msr s3_0_c12_c12_5, x7\n mov x5, #0xff\n msr s3_0_c4_c6_0, x5\n msr s3_0_c12_c12_7, x7\n \
         add x15, x1, #{}\n mov x19, #0\n mov x20, #0\n msr daifclr, #2",
        SIGNALS - CELLS
    );
    // Each tenth step an SGI 1 to all others.
    let send = "add x20, x20, #1\n cmp x20, #10\n b.ne 6f\n mov x20, #0\n movz x21, #0x100, lsl #32\n \
                movk x21, #0x100, lsl #16\n msr s3_0_c12_c11_5, x21\n isb\n add x19, x19, #1\n 6:";
    let loops = "4: ldxr x5, [x1]\n add x5, x5, #1\n stxr w6, x5, [x1]\n cbnz w6, 4b\n ldaddal x7, x5, [x1]\n \
                 5: ldaxp x10, x11, [x22]\n add x10, x10, #1\n add x11, x11, #3\n stlxp w12, x10, x11, [x22]\n \
                 cbnz w12, 5b";
    // All begin together: one that is not prepared gets no interrupt.
    let together = "ldadd x7, x5, [x2]\n 7: yield\n ldr x5, [x2]\n cmp x5, x3\n b.ne 7b";
    let program = format!(
        "{prepare}\n {together}\n add x22, x1, #64\n 1: {loops}\n {send}\n sub x0, x0, #1\n cbnz x0, 1b\n \
         msr daifset, #2\n hvc #0"
    );
    let steps = count();
    for vcpus in [2, 4] {
        for translation in EACH {
            let m = Machine::with(vcpus, translation);
            m.put(VECTORS + 0x280, &assemble(&format!("signals-{vcpus}"), handler));
            let words = assemble(&format!("signalled-{vcpus}"), &program);
            let cancellers: Vec<_> = (0..vcpus).map(|i| m.vm.canceller(i).expect("a vCPU")).collect();
            let cpus: Vec<_> = (0..vcpus)
                .map(|i| {
                    let at = CODE + 0x1000 * u64::from(i);
                    m.put(at, &words);
                    let x = [
                        (0, steps),
                        (1, RAM + CELLS),
                        (2, RAM + BARRIER),
                        (3, u64::from(vcpus)),
                        (9, u64::from(i)),
                    ];
                    let mut v = m.vcpu(i, at, &x);
                    v.set_sys_reg(SysReg::VBAR_EL1, RAM + VECTORS).expect("VBAR_EL1");
                    v
                })
                .collect();
            let (mut sent, mut left) = (0, 0);
            std::thread::scope(|threads| {
                let running: Vec<_> = cpus
                    .into_iter()
                    .map(|mut v| {
                        threads.spawn(move || {
                            let mut canceled = 0;
                            loop {
                                match v.run().expect("it runs") {
                                    Exit::Hvc { immediate: 0 } => break,
                                    Exit::Canceled => canceled += 1,
                                    other => panic!("{other:?}"),
                                }
                            }
                            assert_eq!(v.reg(Reg::x(0)).expect("X0"), 0);
                            (v.reg(Reg::x(19)).expect("X19"), canceled)
                        })
                    })
                    .collect();
                while running.iter().any(|t| !t.is_finished()) {
                    cancellers.iter().for_each(supermachine_soft::Canceller::cancel);
                    std::thread::sleep(std::time::Duration::from_micros(50));
                }
                for t in running {
                    let (s, canceled) = t.join().expect("the vCPU's thread");
                    sent += s;
                    left += canceled;
                }
            });
            let all = steps * u64::from(vcpus);
            let name = format!("{vcpus} vCPUs, {translation:?}");
            assert_eq!(m.get64(CELLS), 2 * all, "{name}");
            assert_eq!((m.get64(CELLS + 64), m.get64(CELLS + 72)), (all, 3 * all), "{name}");
            // One that is pending is not sent again.
            let taken = m.get64(SIGNALS);
            println!("{name}: {sent} interrupts sent, {taken} taken, {left} times left");
            assert!(taken > 0 && taken <= sent * u64::from(vcpus - 1), "{name}: {taken} of {sent}");
            assert!(left > 0, "{name}: no vCPU was asked to leave in time");
        }
    }
}

/// Page A and page B, which one page of the guest's stands for by turns.
const PAGE_A: u64 = 0x20_0000;
const PAGE_B: u64 = 0x20_1000;
const VA: u64 = 0x1000_0000;
const STOP: u64 = 0x30_0000;

/// Runs `mapper` on vCPU 0 and `worker` on all others, with translation on. X1 of the mapper is where the entry of the
/// page VA is, X4 is VA; an access of a worker to what is not mapped is tried again.
fn remapped(
    name: &str,
    vcpus: u32,
    translation: Translation,
    mapper: &str,
    worker: &str,
    x: &[(u32, u64)],
) -> Machine {
    let m = Machine::with(vcpus, translation);
    m.put(CODE, &assemble(&format!("{name}-mapper"), mapper));
    m.put(CODE + 0x1000, &assemble(&format!("{name}-worker"), worker));
    let mut cpus: Vec<_> = (0..vcpus)
        .map(|i| m.vcpu(i, CODE + if i == 0 { 0 } else { 0x1000 }, &[(4, VA), (7, 1), (9, u64::from(i))]))
        .collect();
    let entry = m.tables(&mut cpus.iter_mut().collect::<Vec<_>>());
    m.put64(entry, page(RAM + PAGE_A));
    // Synchronous exceptions of EL1: again.
    m.put(VECTORS + 0x200, &assemble(&format!("{name}-again"), "eret"));
    for v in &mut cpus {
        v.set_reg(Reg::x(1), RAM + entry).expect("X1");
        v.set_reg(Reg::x(14), RAM + STOP).expect("X14");
        for (n, value) in x {
            v.set_reg(Reg::x(*n), *value).expect("a register");
        }
    }
    let threads: Vec<_> = cpus
        .into_iter()
        .map(|mut v| {
            std::thread::spawn(move || {
                let exit = v.run().expect("it runs");
                let seen: Vec<u64> = (8..14).map(|n| v.reg(Reg::x(n)).expect("a register")).collect();
                assert_eq!(exit, Exit::Hvc { immediate: 0 }, "X8 to X13: {seen:x?}");
            })
        })
        .collect();
    let done: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    assert!(done.iter().all(Result::is_ok), "{name}, {vcpus} vCPUs, {translation:?}");
    m
}

/// After TLBI and DSB no other vCPU stores by the entry that was, whatever its code has been translated to.
#[test]
fn a_page_that_is_taken_away_changes_no_more() {
    // X2 and X3 are the entries of the pages X5 and X6; X0 counts down.
    let mapper = "
        lsr x13, x4, #12
1:      str xzr, [x1]
        dsb ishst
        tlbi vaae1is, x13
        dsb ish
        isb
        ldp x8, x10, [x5, #8]
        ldr x11, [x5, #24]
        mov x12, #300
2:      subs x12, x12, #1
        b.ne 2b
        ldr x12, [x5, #8]
        cmp x12, x8
        b.ne 9f
        ldr x12, [x5, #16]
        cmp x12, x10
        b.ne 9f
        ldr x12, [x5, #24]
        cmp x12, x11
        b.ne 9f
        str x3, [x1]
        dsb ishst
        isb
        mov x12, x2
        mov x2, x3
        mov x3, x12
        mov x12, x5
        mov x5, x6
        mov x6, x12
        // Until somebody has stored there.
        ldr x12, [x5, #8]
3:      yield
        ldr x10, [x5, #8]
        cmp x10, x12
        b.eq 3b
        sub x0, x0, #1
        cbnz x0, 1b
        str x7, [x14]
        hvc #0
9:      str x7, [x14]
        hvc #1";
    let worker = "
        mov x15, #40
1:      ldr x5, [x4, x9, lsl #3]
        add x5, x5, #1
        str x5, [x4, x9, lsl #3]
        subs x15, x15, #1
        b.ne 1b
        mov x15, #40
        ldr x6, [x14]
        cbz x6, 1b
        hvc #0";
    let (a, b) = (page(RAM + PAGE_A), page(RAM + PAGE_B));
    for vcpus in [2, 4] {
        for translation in EACH {
            let x = [(0, count() / 20), (2, a), (3, b), (5, RAM + PAGE_A), (6, RAM + PAGE_B)];
            let m = remapped("shootdown", vcpus, translation, mapper, worker, &x);
            for i in 1..u64::from(vcpus) {
                let [a, b] = [PAGE_A, PAGE_B].map(|page| m.get64(page + 8 * i));
                assert!(a > 0 && b > 0, "{vcpus} vCPUs, {translation:?}: vCPU {i} stored {a} and {b} times");
            }
        }
    }
}

/// Exclusive and atomic accesses to a page that is read-only, nowhere and writable by turns.
#[test]
fn nothing_is_lost_where_the_page_comes_and_goes() {
    // X2 is the entry, X3 one that is read-only; X6 is how many vCPUs are to be done.
    let change = |entry: &str| format!("str {entry}, [x1]\n dsb ishst\n tlbi vaae1is, x13\n dsb ish\n isb\n");
    let mapper = format!(
        "lsr x13, x4, #12\n 1: {} {} {} str x2, [x1]\n dsb ishst\n isb\n mov x12, #3000\n 3: subs x12, x12, #1\n \
         b.ne 3b\n add x20, x20, #1\n ldr x12, [x14]\n cmp x12, x6\n b.ne 1b\n str x20, [x14, #64]\n hvc #0",
        change("x3"),
        change("xzr"),
        change("x3"),
    );
    let worker = "
1:      mov x8, #0
2:      ldxr x5, [x4]
        add x5, x5, #1
        stxr w8, x5, [x4]
        cbnz w8, 2b
        ldadd x7, x5, [x15]
        ldaddal x7, x5, [x16]
3:      ldr x5, [x17]
        mov x10, x5
        add x11, x5, #1
        cas x10, x11, [x17]
        cmp x10, x5
        b.ne 3b
4:      ldaxp x10, x11, [x18]
        add x10, x10, #1
        add x11, x11, #2
        stlxp w12, x10, x11, [x18]
        cbnz w12, 4b
        sub x0, x0, #1
        cbnz x0, 1b
        ldadd x7, x5, [x14]
        hvc #0";
    let entry = page(RAM + PAGE_A);
    let steps = count() / 4;
    for vcpus in [2, 4] {
        for translation in EACH {
            let x = [
                (0, steps),
                (2, entry),
                (3, entry | READ_ONLY),
                (6, u64::from(vcpus - 1)),
                (15, VA + 64),
                (16, VA + 128),
                (17, VA + 192),
                (18, VA + 256),
            ];
            let m = remapped("comes-and-goes", vcpus, translation, &mapper, worker, &x);
            let all = steps * u64::from(vcpus - 1);
            let seen = [0, 64, 128, 192, 256, 264].map(|at| m.get64(PAGE_A + at));
            assert_eq!(seen, [all, all, all, all, all, 2 * all], "{vcpus} vCPUs, {translation:?}");
            println!("{vcpus} vCPUs, {translation:?}: {} times away", m.get64(STOP + 64));
            assert!(m.get64(STOP + 64) > 0);
        }
    }
}
