//! How long machine code runs between two looks of the run loop, by what it is made of.

#![allow(unsafe_code, reason = "raw memory, to test with")]

use std::ptr::NonNull;

use crate::cpu::Cpu;
use crate::interp::block::BLOCK_MAX;
use crate::interp::op::FUEL;
use crate::vcpu::Exit;
use crate::vm::{Protection, Vm, VmConfig};
use crate::{Translation, cpu::LONGER};

const RAM: u64 = 0x4000_0000;
const SIZE: usize = 64 << 10;
const ROUNDS: u32 = 2000;

/// A CPU that translates everything, at the begin of memory with these words at these offsets.
fn machine(pieces: &[(usize, &[u32])]) -> Box<Cpu> {
    let config = VmConfig { translation: Translation::Always, ..VmConfig::default() };
    let vm = Vm::new(config).expect("a machine");
    let layout = std::alloc::Layout::from_size_align(SIZE, 4096).expect("a layout");
    // SAFETY: the layout is not empty. The memory is never freed, which a test can afford.
    let ram = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
    // SAFETY: nothing else refers to the memory, and it stays.
    unsafe { vm.map(ram, RAM, SIZE as u64, Protection::ReadWriteExecute) }.expect("memory");
    for (offset, words) in pieces {
        assert!(offset + 4 * words.len() <= SIZE, "there is not so much memory");
        for (n, word) in words.iter().enumerate() {
            // SAFETY: inside the memory, by the check above.
            unsafe { ram.as_ptr().add(*offset).cast::<u32>().add(n).write(word.to_le()) };
        }
    }
    let mut cpu = vm.bare_cpu();
    cpu.state.pc = RAM;
    cpu.state.sys.cpacr = 3 << 20;
    cpu.regime();
    assert!(cpu.jit.is_some() || !super::TRANSLATES, "nothing is translated");
    cpu
}

/// Runs a loop of 48 times this instruction; gives the CPU as it is then.
fn repeat(word: u32) -> Box<Cpu> {
    // movz x1, #ROUNDS; 1: 48 times; subs x1, x1, #1; b.ne 1b; hvc #0
    let mut code = vec![0xd280_0001 | ROUNDS << 5];
    code.extend([word; 48]);
    code.extend([0xf100_0421, 0x5400_0001 | (-49_i32 as u32 & 0x7ffff) << 5, 0xd400_0002]);
    let mut cpu = machine(&[(0, &code)]);
    assert_eq!(cpu.run(), Exit::Hvc { immediate: 0 });
    assert_eq!(cpu.instructions(), 1 + u64::from(ROUNDS) * 50 + 1);
    cpu
}

#[test]
fn instructions_of_handlers_use_up_turns_as_in_the_interpreter() {
    // MRS of MIDR_EL1, and one of FP that neither host's back end has where it lacks half precision: FADD of such.
    for word in [0xd538_0002, 0x1ee1_2800] {
        let cpu = repeat(word);
        let most = FUEL as u64 + BLOCK_MAX as u64;
        assert!(cpu.handled_at_once <= most, "{word:#x}: {} between two looks", cpu.handled_at_once);
    }
    // And what is all machine code runs as long as it may.
    let cpu = repeat(0x9100_0442);
    assert!(cpu.handled_at_once < 64, "{}", cpu.handled_at_once);
    if cpu.jit.is_some() {
        let looks = 1 + u64::from(ROUNDS) * 50 / (FUEL * (LONGER - 1)) as u64;
        assert!(cpu.looks <= looks, "{} looks where {looks} do", cpu.looks);
    }
}

/// Four blocks by turns that the jump cache has two slots for.
#[test]
fn branches_that_share_a_slot_need_no_look_of_the_run_loop() {
    // b 1f; at 0x100: 1: movz x1, #ROUNDS; movz x6, #0x4000, lsl #16; add x7, x6, #0x1024; add x8, x6, #0x9000 (by
    // two); add x9, x8, #4; add x6, x7, #-4; 2: blr of x6 to x9; subs x1, x1, #1; b.ne 2b; hvc #0
    let main = [
        0xd280_0001 | ROUNDS << 5,
        0xd2a8_0006,
        0x9140_04c6,
        0x9140_20c8,
        0x9100_80c6,
        0x9100_10c7,
        0x9100_1109,
        0xd63f_00c0,
        0xd63f_00e0,
        0xd63f_0100,
        0xd63f_0120,
        0xf100_0421,
        0x54ff_ff61,
        0xd400_0002,
    ];
    // add x2, x2, #1; add x3, x3, #1; ret; and of x4 and x5.
    let (one, other) = ([0x9100_0442, 0x9100_0463, 0xd65f_03c0], [0x9100_0484, 0x9100_04a5, 0xd65f_03c0]);
    let mut cpu = machine(&[(0, &[0x1400_0040]), (0x100, &main), (0x1020, &one), (0x9000, &other)]);
    assert_eq!(cpu.run(), Exit::Hvc { immediate: 0 });
    let rounds = u64::from(ROUNDS);
    assert_eq!(cpu.state.regs.x[2..6], [rounds, 2 * rounds, rounds, 2 * rounds]);
    if cpu.jit.is_some() {
        let looks = 64 + rounds * 16 / (FUEL * (LONGER - 1)) as u64;
        assert!(cpu.looks <= looks, "{} looks where {looks} do", cpu.looks);
    }
}
