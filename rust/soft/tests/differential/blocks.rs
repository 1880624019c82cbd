//! Programs of several blocks and pages, translated and interpreted: loops, calls, faults in the middle, code that
//! changes. Whatever ends them, both must have come to the same state by the same number of instructions.

use std::time::{Duration, Instant};

use supermachine_soft::id::SysReg;
use supermachine_soft::{Canceller, Exit, Translation};

use crate::base::{Writer, state, told};
use crate::machine::{CODE, Machine};
use crate::oracle::{BASE, MEMORY, State};
use crate::random::Random;
use crate::{FIXED_SEED, count, random_seed};

const PAGES: usize = 4;
/// X29 counts, X30 links; nothing else that is generated touches them.
const SAVE_X29: u32 = 0xd51b_d05d;
const LOAD_X29: u32 = 0xd53b_d05d;
const RET: u32 = 0xd65f_03c0;

/// MOVZ and MOVK of an address or a small number.
fn constant(code: &mut Vec<u32>, rd: u32, v: u64) {
    for (n, base) in [0xd280_0000_u32, 0xf2a0_0000, 0xf2c0_0000, 0xf2e0_0000].into_iter().enumerate() {
        let part = (v >> (16 * n)) as u32 & 0xffff;
        if n == 0 || part != 0 {
            code.push(base | part << 5 | rd);
        }
    }
}

/// What the oracle has not: registers of EL1, those that do not change here or as exceptions left them, and masks of
/// interrupts, of which there are none.
fn system(w: &mut Writer) {
    let rt = w.r.below(20) as u32;
    let mask = 0xd503_40df | (w.r.below(16) as u32) << 8;
    let register = w.r.pick(&[
        SysReg::DAIF,
        SysReg::DAIF,
        SysReg::SP_EL0,
        SysReg::TPIDR_EL0,
        SysReg::TPIDR_EL1,
        SysReg::TPIDRRO_EL0,
        SysReg::DCZID_EL0,
        SysReg::MPIDR_EL1,
        SysReg::SCTLR_EL1,
        SysReg::TCR_EL1,
        SysReg::TTBR0_EL1,
        SysReg::VBAR_EL1,
        SysReg::SPSR_EL1,
        SysReg::ELR_EL1,
        SysReg::ESR_EL1,
        SysReg::FAR_EL1,
        SysReg::PAR_EL1,
        SysReg::CNTKCTL_EL1,
        // MIDR_EL1, ID_AA64ISAR0_EL1, CTR_EL0.
        SysReg::new(3, 0, 0, 0, 0),
        SysReg::new(3, 0, 0, 6, 0),
        SysReg::new(3, 3, 0, 0, 1),
    ]);
    // TPIDR_EL0 has what the program counts with.
    let kept = w.r.pick(&[
        SysReg::DAIF,
        SysReg::SP_EL0,
        SysReg::TPIDR_EL1,
        SysReg::TPIDRRO_EL0,
        SysReg::SPSR_EL1,
        SysReg::ELR_EL1,
        SysReg::ESR_EL1,
        SysReg::FAR_EL1,
    ]);
    w.code.push(match w.r.below(8) {
        // MSR DAIFSet and DAIFClr.
        0 => mask,
        1 => mask | 1 << 5,
        2 | 3 => 0xd510_0000 | (u32::from(kept.0) & 0x7fff) << 5 | rt,
        // ISB, DSB.
        4 => w.r.pick(&[0xd503_3fdf, 0xd503_3f9f]),
        _ => 0xd530_0000 | (u32::from(register.0) & 0x7fff) << 5 | rt,
    });
}

/// Some straight code with forward branches; the registers with addresses are where `pointer` says before it.
fn body(r: &mut Random, pointer: [u64; 32], length: usize) -> Vec<u32> {
    let mut w = Writer { r, pointer, code: Vec::new() };
    while w.code.len() < length {
        match w.r.below(20) {
            0..=3 => w.single(),
            4 => w.pair(),
            5 => {
                let most = 2 + w.r.below(6);
                w.run(most);
            }
            6 => w.atomic(),
            7 => w.structures(),
            8..=10 => w.branch(4),
            11 if w.r.one_in(2) => w.numbers(),
            11 => w.floating(),
            12 if w.r.one_in(3) => {
                // DC ZVA, whose blocks are of another size in the oracle.
                let address = w.r.pick(&[20, 21, 22, 23, 24]);
                w.code.push(0xd50b_7420 | address);
            }
            12 if w.r.one_in(2) => system(&mut w),
            12 => w.flags(),
            13..=15 => w.frequent(),
            _ => w.data_processing(),
        }
    }
    w.code
}

/// Back to `start` until X29 has come to zero: by CBNZ, or by flags.
fn count_down(r: &mut Random, code: &mut Vec<u32>, start: usize) {
    let by_flags = r.one_in(2);
    code.push(if by_flags { 0xf100_07bd } else { 0xd100_07bd });
    let back = (start as i64 - code.len() as i64) as u32 & 0x7ffff;
    code.push(if by_flags { 0x5400_0001 | back << 5 } else { 0xb500_001d | back << 5 });
}

struct Program {
    state: State,
    pieces: Vec<(usize, Vec<u32>)>,
}

fn program(r: &mut Random, most_rounds: u64) -> Program {
    let (mut state, mut pointer) = state(r);
    match r.below(8) {
        // What is nowhere, and what is at the end of what there is.
        0 => pointer[20 + r.below(5) as usize] = 0x9_0000_0000 + r.below(4096),
        1 => pointer[20 + r.below(5) as usize] = BASE + 4096 - r.below(24),
        _ => {}
    }
    // What follows looks at where the addresses are meant to be, and does not know of it.
    let meant = {
        let mut meant = pointer;
        for p in &mut meant[20..25] {
            if *p < BASE || *p >= BASE + MEMORY as u64 {
                *p = BASE + 256;
            }
        }
        meant
    };
    let set = |code: &mut Vec<u32>, r: &mut Random| {
        for n in 20..25 {
            if !r.one_in(4) || pointer[n] != meant[n] {
                constant(code, n as u32, pointer[n]);
            }
        }
    };
    state.x[20..25].copy_from_slice(&pointer[20..25]);

    // A function in the second page, which may go on in the third.
    let inner = 1 + r.below(24);
    let mut function = Vec::new();
    set(&mut function, r);
    function.push(0xd280_001d | (inner as u32) << 5);
    let start = function.len();
    // The addresses that an access moves are set anew, but for a few rounds.
    if !r.one_in(8) {
        for n in 20..25 {
            constant(&mut function, n, pointer[n as usize]);
        }
    }
    let length = 2 + r.below(60) as usize;
    // Sometimes a part of it is another each time: an ADD of what X29 was.
    let changing = r.one_in(4).then_some(function.len());
    if changing.is_some() {
        function.push(0x9100_0000 | 3 << 5 | 3);
    }
    function.extend(body(r, meant, length));
    // add sp, x24, #0
    function.push(0x9100_031f);
    count_down(r, &mut function, start);
    function.push(RET);
    let at = 4096 + r.pick(&[0, 64, 1024, 3800, 3988, 4092]);

    let outer = 1 + r.below(most_rounds);
    let mut main = Vec::new();
    main.push(0xd280_001d | (outer as u32) << 5);
    let start = main.len();
    set(&mut main, r);
    let length = r.below(20) as usize;
    main.extend(body(r, meant, length));
    if let Some(index) = changing {
        // adr x10, there; movz w11, …; orr w11, w11, w29, lsl #10; str w11, [x10]; dc cvau; dsb; ic ivau; dsb; isb
        let distance = (at + 4 * index) as i64 - 4 * main.len() as i64;
        main.push(0x1000_0000 | (distance as u32 & 3) << 29 | ((distance >> 2) as u32 & 0x7ffff) << 5 | 10);
        constant(&mut main, 11, 0x9100_0063);
        main.extend([
            0x2a1d_296b,
            0xb900_014b,
            0xd50b_7b2a,
            0xd503_3b9f,
            0xd50b_752a,
            0xd503_3b9f,
            0xd503_3fdf,
        ]);
    }
    main.push(SAVE_X29);
    if r.one_in(2) {
        main.push(0x9400_0000 | ((at as i64 / 4 - main.len() as i64) as u32 & 0x03ff_ffff));
    } else {
        let distance = at as i64 - 4 * main.len() as i64;
        main.push(0x1000_0000 | ((distance >> 2) as u32 & 0x7ffff) << 5 | 30);
        main.push(0xd63f_03c0);
    }
    main.push(LOAD_X29);
    let length = r.below(12) as usize;
    set(&mut main, r);
    main.extend(body(r, meant, length));
    count_down(r, &mut main, start);
    // hvc #0
    main.push(0xd400_0002);
    Program { state, pieces: vec![(0, main), (at, function)] }
}

fn listing(p: &Program) -> String {
    let line = |at: usize, w: u32| format!("{at:#x}: {w:#010x} {}", told(w, at as u64));
    let words = |(at, words): &(usize, Vec<u32>)| {
        let lines: Vec<String> = words.iter().enumerate().map(|(n, w)| line(at + 4 * n, *w)).collect();
        lines.join("\n")
    };
    p.pieces.iter().map(words).collect::<Vec<_>>().join("\n--\n")
}

fn programs(seed: u64, count: usize) {
    let mut r = Random(seed);
    let mut interpreted = Machine::new(Translation::Off);
    let mut translated = Machine::new(Translation::Always);
    let (mut ended, mut faulted, mut instructions) = (0, 0, 0);
    for n in 0..count {
        let p = program(&mut r, 12);
        let right = interpreted.program(&p.state, PAGES, &p.pieces);
        let mine = translated.program(&p.state, PAGES, &p.pieces);
        assert!(right == mine, "seed {seed:#x}, program {n}:\n{right:x?}\n{mine:x?}\n{}", listing(&p));
        instructions += right.instructions;
        match right.exit {
            Exit::Hvc { immediate: 0 } => ended += 1,
            _ => faulted += 1,
        }
    }
    println!("{ended} ended, {faulted} did not, {instructions} instructions");
    assert!(ended * 3 > count, "only {ended} of {count} programs ran to their ends");
    assert!(faulted * 20 > count, "only {faulted} of {count} programs met a fault");
    assert_eq!(CODE & 0xfff, 0);
}

/// LDXR, STXR and their kind: an exclusive store fails behind a move.
fn has_exclusive(p: &Program) -> bool {
    p.pieces.iter().flat_map(|(_, words)| words).any(|word| word & 0x3f80_0000 == 0x0800_0000)
}

/// Programs that go on in another machine at random moments, interpreted and translated by turns, as a snapshot does
/// that one has taken and another restores.
fn moved_programs(seed: u64, count: usize) {
    let mut r = Random(seed);
    let mut moments = Random(seed ^ 1);
    let (stop, stops) = std::sync::mpsc::channel::<(Canceller, u64)>();
    let stopping = std::thread::spawn(move || {
        while let Ok((canceller, nanoseconds)) = stops.recv() {
            let until = Instant::now() + Duration::from_nanos(nanoseconds);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            canceller.cancel();
        }
    });
    let (mut ran, mut moves) = (0, 0);
    // A busy host is late with some stops.
    while ran < count || moves * 4 <= count && ran < 20 * count {
        let p = program(&mut r, 200);
        if has_exclusive(&p) {
            continue;
        }
        ran += 1;
        let right = Machine::new(Translation::Off).program(&p.state, PAGES, &p.pieces);
        let by_turns = if r.one_in(2) {
            [Translation::Off, Translation::Always]
        } else {
            [Translation::Always, Translation::Off]
        };
        let (mine, moved) = Machine::moving(&p.state, PAGES, &p.pieces, &by_turns, |canceller| {
            let _ = stop.send((canceller, moments.below(60_000)));
        });
        moves += moved;
        assert!(
            right == mine,
            "seed {seed:#x}, program {ran}, {moved} moves:\n{right:x?}\n{mine:x?}\n{}",
            listing(&p)
        );
    }
    drop(stop);
    stopping.join().expect("the thread that stops");
    println!("{ran} programs, {moves} moves");
    assert!(moves * 4 > count, "only {moves} moves in {ran} programs");
}

#[test]
fn programs_go_on_in_another_machine() {
    moved_programs(random_seed(), count() / 100);
}

#[test]
fn programs_of_a_fixed_seed() {
    programs(FIXED_SEED, count() / 10);
}

#[test]
fn programs_of_a_random_seed() {
    programs(random_seed(), count() / 10);
}
