//! Interrupts at random moments, in code that is interpreted and in code that is translated: they are taken soon, where
//! a block ends and nowhere else, and what they interrupt goes on as if nothing had been. The programs are for GNU as.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

mod bare;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use supermachine_soft::id::{Reg, SimdReg, SysReg};
use supermachine_soft::{Exit, Translation, Vcpu};

use bare::{Machine, RAM, assemble};

const VECTORS: u64 = 0x8000;
const CODE: u64 = 0xa000;
const DATA: u64 = 0x20_0000;
const INTID: u32 = 40;
/// Within this time the guest is in its handler: the vCPU's own, which does not pass while the host runs something
/// else.
const SOON: Duration = Duration::from_micros(50);

/// So long interrupts are waited for: who raises them and who takes them want a processor each.
const PATIENCE: Duration = Duration::from_secs(6);

/// Lets shared interrupt 40 through, to vCPU 0.
const PREPARE: &str = "
    movz x1, #0x0800, lsl #16
    mov w2, #0x12           // GICD_CTLR: affinity routing, group 1
    str w2, [x1]
    mov w2, #0x100          // bit 8 of the second word: INTID 40
    str w2, [x1, #0x84]
    str w2, [x1, #0x104]
    mov x2, #1
    msr s3_0_c12_c12_5, x2  // ICC_SRE_EL1
    mov x2, #0xff
    msr s3_0_c4_c6_0, x2    // ICC_PMR_EL1
    mov x2, #1
    msr s3_0_c12_c12_7, x2  // ICC_IGRPEN1_EL1
    hvc #7";

/// Tells the machine around before it does anything else.
const HANDLER: &str = "
    hvc #1
    mrs x28, s3_0_c12_c12_0 // ICC_IAR1_EL1
    msr s3_0_c12_c12_1, x28 // ICC_EOIR1_EL1
    hvc #2
    eret";

/// What the vCPU's thread has run for.
fn processor_time(clock: libc::clockid_t) -> Duration {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the timespec that is given to it.
    assert_eq!(unsafe { libc::clock_gettime(clock, &mut t) }, 0);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

fn own_clock() -> libc::clockid_t {
    let mut clock = 0;
    // SAFETY: the thread is this one, and the call writes to what it is given.
    assert_eq!(unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) }, 0);
    clock
}

fn machine(translation: Translation, program: &[u32]) -> (Machine, Vcpu) {
    let m = Machine::with(1, translation);
    m.put(0, &assemble("prepare", PREPARE));
    m.put(VECTORS + 0x280, &assemble("handler", HANDLER));
    m.put(CODE, program);
    let mut v = m.vcpu(0, 0, &[]);
    v.set_sys_reg(SysReg::VBAR_EL1, RAM + VECTORS).expect("VBAR_EL1");
    v.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).expect("CPACR_EL1");
    assert_eq!(v.run().expect("it runs"), Exit::Hvc { immediate: 7 });
    (m, v)
}

fn begin(m: &Machine, v: &mut Vcpu, rounds: u64, seed: u64) {
    for n in 0..28 {
        v.set_reg(Reg::x(n), 0).expect("a register");
        v.set_simd_reg(SimdReg(n), 0).expect("a register");
    }
    v.set_reg(Reg::x(0), rounds).expect("a register");
    v.set_reg(Reg::x(20), RAM + DATA).expect("a register");
    // The looks of the run loop come elsewhere in each run.
    v.set_reg(Reg::x(25), seed).expect("a register");
    v.set_reg(Reg::FPSR, 0).expect("a register");
    // EL1h, interrupts let through.
    v.set_reg(Reg::CPSR, 5).expect("a register");
    v.set_reg(Reg::PC, RAM + CODE).expect("a register");
    for n in 0..512 {
        m.put64(DATA + 8 * n, 0);
    }
}

/// All that a program leaves behind.
fn left(m: &Machine, v: &Vcpu) -> (Vec<u64>, Vec<u128>, Vec<u64>) {
    let vectors = (0..8).map(|n| v.simd_reg(SimdReg(n)).expect("a register")).collect();
    let mut registers: Vec<u64> = (0..28).map(|n| v.reg(Reg::x(n)).expect("a register")).collect();
    registers.push(v.reg(Reg::FPSR).expect("a register"));
    (registers, vectors, (0..512).map(|n| m.get64(DATA + 8 * n)).collect())
}

/// Where interrupts were taken, and how long each took to come.
struct Taken {
    places: BTreeMap<u64, usize>,
    times: Vec<Duration>,
}

/// Runs the program for `rounds` again and again until so many interrupts have come, or none has time to on this host;
/// each run must leave what one without interrupts leaves.
fn interrupt(translation: Translation, program: &[u32], rounds: u64, wanted: usize) -> Taken {
    let mut alone = machine(Translation::Off, program);
    let mut right = |seed| {
        let (m, v) = &mut alone;
        begin(m, v, rounds, seed);
        assert_eq!(v.run().expect("it runs"), Exit::Hvc { immediate: 0 });
        left(m, v)
    };
    let (m, mut v) = machine(translation, program);
    let clock = own_clock();
    // When the interrupt that is to come was raised.
    let raised: Mutex<Option<Duration>> = Mutex::new(None);
    let (running, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut seed = 0_u64;
    let mut taken = Taken { places: BTreeMap::new(), times: Vec::new() };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            while !done.load(Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let until = Instant::now() + Duration::from_nanos(random % 150_000);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                {
                    let mut raised = raised.lock().expect("a lock");
                    if raised.is_none() && running.load(Ordering::Relaxed) {
                        *raised = Some(processor_time(clock));
                        m.vm.set_spi(INTID, true);
                    }
                }
                while raised.lock().expect("a lock").is_some() && !done.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
        });
        let begun = Instant::now();
        while taken.times.len() < wanted && begun.elapsed() < PATIENCE {
            seed += 1;
            let right = right(seed);
            begin(&m, &mut v, rounds, seed);
            if let Some(raised) = raised.lock().expect("a lock").as_mut() {
                // Too late for the run before.
                *raised = processor_time(clock);
            }
            running.store(true, Ordering::Relaxed);
            loop {
                match v.run().expect("it runs") {
                    Exit::Hvc { immediate: 0 } => break,
                    Exit::Hvc { immediate: 1 } => {
                        let raised = raised.lock().expect("a lock").expect("it was raised");
                        taken.times.push(processor_time(clock).saturating_sub(raised));
                        let at = v.sys_reg(SysReg::ELR_EL1).expect("a register") - RAM - CODE;
                        *taken.places.entry(at).or_default() += 1;
                    }
                    Exit::Hvc { immediate: 2 } => {
                        m.vm.set_spi(INTID, false);
                        *raised.lock().expect("a lock") = None;
                    }
                    other => panic!("{other:?}"),
                }
            }
            running.store(false, Ordering::Relaxed);
            let left = left(&m, &v);
            assert!(left == right, "{translation:?}: {:x?}\n{:x?}", right.0, left.0);
        }
        done.store(true, Ordering::Relaxed);
    });
    taken.times.sort_unstable();
    taken
}

/// A quarter of them: on a host that is busy the rest may wait for it. How many instructions run at most between two
/// looks is counted in the crate (`turns.rs`).
fn soon(name: &str, translation: Translation, taken: &Taken) {
    let all = taken.times.len();
    assert!(all > 0, "{name}, {translation:?}: no interrupt came");
    let [quarter, half, most] = [all / 4, all / 2, all * 99 / 100].map(|n| taken.times[n]);
    let said =
        format!("{name}, {translation:?}: {quarter:?}, half within {half:?}, 99 of 100 within {most:?}");
    println!("{said}");
    assert!(quarter <= SOON, "{said}");
}

/// Loops of one kind of instruction each.
#[test]
fn interrupts_come_soon_whatever_runs() {
    let additions = "add x2, x2, x1\n".repeat(60);
    for (name, body) in [
        ("a loop of its own", "mov x2, #40\n 2: subs x2, x2, #1\n b.ne 2b"),
        ("a long block", additions.as_str()),
        ("handlers", "mrs x2, midr_el1\n add x3, x3, x2\n mrs x4, mpidr_el1"),
        ("loads and stores", "ldr x2, [x20]\n add x2, x2, x1\n str x2, [x20]\n ldp x4, x5, [x20, #16]"),
        ("numbers", "fadd d1, d1, d2\n fmov d2, #1.5\n fmul d3, d2, d1\n fdiv d4, d3, d2\n scvtf d0, x1"),
        ("exclusive accesses", "4: ldaxr x2, [x20]\n add x2, x2, #1\n stlxr w3, x2, [x20]\n cbnz w3, 4b"),
        ("calls", "bl 7f\n b 8f\n 7: add x2, x2, #1\n ret\n 8: adr x3, 9f\n br x3\n 9: nop"),
    ] {
        let program = assemble(
            &format!("soon-{}", name.replace(' ', "-")),
            &format!("1: add x1, x1, #1\n {body}\n sub x0, x0, #1\n cbnz x0, 1b\n hvc #0"),
        );
        for translation in [Translation::Off, Translation::Always] {
            soon(name, translation, &interrupt(translation, &program, 3000, 60));
        }
    }
}

/// A program of many blocks, whose labels are where blocks begin by way of a branch.
const BLOCKS: &str = "
start:  movz x24, #0x7f2d
        movk x24, #0x4c95, lsl #16
        movk x24, #0xf42d, lsl #32
        movk x24, #0x5851, lsl #48
round:  add x1, x1, #1
        // Knuth's MMIX generator, but for the increment.
        madd x25, x25, x24, x1
        lsr x2, x25, #40
        and x5, x2, #15
        tbnz x2, #3, odd
        b even
odd:    add x3, x3, #3
even:   subs x4, x5, #7
        b.eq equal
        ldr x6, [x20, x5, lsl #3]
        add x6, x6, x4
        str x6, [x20, x5, lsl #3]
        // Of the flags that were made before the blocks between.
        b.hi above
        adc x7, x7, x5
        b equal
above:  csinc x8, x8, x4, ne
equal:  add x5, x5, #1
tight:  madd x9, x9, x5, x1
        subs x5, x5, #1
        b.ne tight
        bl far
back:   mrs x10, midr_el1
        add x11, x11, x10
        scvtf d1, x1
        fadd d0, d0, d1
        adr x12, there
        br x12
there:  adds x13, x13, x2
        cbz x2, round
        adc x14, x14, x13
        sub x0, x0, #1
        cbnz x0, round
        hvc #0
        .balign 4096
far:    add x15, x15, x2
        cbnz x3, other
        add x15, x15, #1
other:  ret
";

#[test]
fn interrupts_are_taken_at_each_end_of_a_block() {
    /// The rarest place has one of forty.
    const WANTED: usize = 500;
    let program = assemble("blocks", BLOCKS);
    // Where each label is: its address is what this program has at its end.
    let labels = ["round", "odd", "even", "above", "equal", "tight", "far", "back", "there", "other"];
    let table: String = labels.iter().map(|l| format!(".quad {l} - start\n")).collect();
    let words = assemble("labels", &format!("{BLOCKS}\n.balign 8\n{table}"));
    let table = &words[words.len() - 2 * labels.len()..];
    let places: BTreeSet<u64> = table.chunks(2).map(|w| u64::from(w[0])).collect();
    assert_eq!(places.len(), labels.len());
    // A block goes on behind a B that stays in its page, where there is machine code; and B is the only way to this
    // one.
    let even = places.iter().nth(2).copied().expect("a place");
    for translation in [Translation::Off, Translation::Always] {
        let taken = interrupt(translation, &program, 2000, WANTED);
        soon("many blocks", translation, &taken);
        let seen: BTreeSet<u64> = taken.places.keys().copied().collect();
        println!("{translation:?}: {:x?}", taken.places);
        if taken.times.len() < WANTED {
            println!("{translation:?}: this host is too busy to tell more");
            continue;
        }
        let missing: Vec<_> = places.difference(&seen).filter(|at| **at != even).collect();
        assert!(
            missing.is_empty(),
            "{translation:?}: none at {missing:x?} of {places:x?}, but {:x?}",
            taken.places
        );
    }
}
