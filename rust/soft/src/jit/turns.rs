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

/// Runs a loop of 48 times this instruction; gives the CPU as it is then.
fn repeat(word: u32) -> Box<Cpu> {
    let config = VmConfig { translation: Translation::Always, ..VmConfig::default() };
    let vm = Vm::new(config).expect("a machine");
    let layout = std::alloc::Layout::from_size_align(SIZE, 4096).expect("a layout");
    // SAFETY: the layout is not empty. The memory is never freed, which a test can afford.
    let ram = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
    // SAFETY: nothing else refers to the memory, and it stays.
    unsafe { vm.map(ram, RAM, SIZE as u64, Protection::ReadWriteExecute) }.expect("memory");
    // movz x1, #ROUNDS; 1: 48 times; subs x1, x1, #1; b.ne 1b; hvc #0
    let mut code = vec![0xd280_0001 | ROUNDS << 5];
    code.extend([word; 48]);
    code.extend([0xf100_0421, 0x5400_0001 | (-49_i32 as u32 & 0x7ffff) << 5, 0xd400_0002]);
    for (n, word) in code.iter().enumerate() {
        // SAFETY: the code is shorter than the memory.
        unsafe { ram.as_ptr().cast::<u32>().add(n).write(word.to_le()) };
    }
    let mut cpu = vm.bare_cpu();
    cpu.state.pc = RAM;
    cpu.state.sys.cpacr = 3 << 20;
    cpu.regime();
    assert_eq!(cpu.run(), Exit::Hvc { immediate: 0 });
    assert!(cpu.jit.is_some() || !super::TRANSLATES, "nothing is translated");
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
