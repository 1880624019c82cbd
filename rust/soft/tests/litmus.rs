//! Litmus tests of the memory model (Arm ARM, B2.3): programs of a few accesses on two to four vCPUs, many times, whose
//! forbidden outcomes must not be seen, interpreted and translated. Names are those of the literature (Alglave, Maranget,
//! Tautschnig: "Herding Cats"). And counters that no exclusive or atomic access may lose a step of.
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

use std::process::Command;

use supermachine_soft::id::{Reg, SysReg};
use supermachine_soft::{Exit, Translation};

use bare::{Machine, RAM};

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

/// The words that GNU as makes of some code.
fn assemble(name: &str, text: &str) -> Vec<u32> {
    let file = |ending: &str| {
        std::env::temp_dir().join(format!("supermachine-litmus-{}-{name}.{ending}", std::process::id()))
    };
    let [source, object, binary] = ["s", "o", "bin"].map(file);
    std::fs::write(&source, format!(".arch armv8.3-a\n{text}\n")).expect("a file for the assembler");
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let done = Command::new(program).args(args).output();
        let done = done.unwrap_or_else(|e| panic!("{program} does not start: {e}"));
        assert!(done.status.success(), "{name}: {}\n{text}", String::from_utf8_lossy(&done.stderr));
    };
    run("aarch64-linux-gnu-as", &[source.as_os_str(), "-o".as_ref(), object.as_os_str()]);
    run(
        "aarch64-linux-gnu-objcopy",
        &["-O".as_ref(), "binary".as_ref(), object.as_os_str(), binary.as_os_str()],
    );
    let bytes = std::fs::read(&binary).expect("what objcopy wrote");
    for f in [source, object, binary] {
        let _ = std::fs::remove_file(f);
    }
    bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

/// Runs a program on each vCPU to its HVC. X0 is how often, X1 the first cell, X2 the barrier, X3 how many vCPUs, X9 which.
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

/// A loop around `body`, which finds the address of X in X1 and of Y in X8, 1 in X7, and leaves what it reads in X10 and
/// X11. All vCPUs begin each round together.
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
