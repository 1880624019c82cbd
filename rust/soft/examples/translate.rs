//! What translating costs: code of which each instruction runs once, with all of it translated and with none. Says how
//! many microseconds of processor time an instruction takes more, the least of some runs.

#![allow(unsafe_code, reason = "raw memory, to measure with")]

use std::ptr::NonNull;
use std::time::Duration;

use supermachine_soft::id::{Reg, SysReg};
use supermachine_soft::{Exit, Protection, Translation, Vm, VmConfig};

const RAM: u64 = 0x4000_0000;
const SIZE: usize = 1 << 20;
const DATA: u64 = RAM + 0x8_0000;
const INSTRUCTIONS: usize = 100_000;
const RUNS: usize = 9;

/// As compilers mix them: add x1, x1, #1; ldr x2, [x20, #8]; str x2, [x20, #16]; subs x3, x1, #5; b.eq to the next;
/// and x4, x2, x1; ldp x5, x6, [x20, #32]; csel x7, x5, x6, ne; madd x8, x7, x1, x2; fadd d0, d0, d1; ldrb w9, [x20];
/// cbz x9, to the next; lsl x10, x1, #3; stp x5, x10, [x20, #48]; eor w11, w9, w10; ldr q2, [x20, #64]
const MIX: [u32; 16] = [
    0x9100_0421,
    0xf940_0682,
    0xf900_0a82,
    0xf100_1423,
    0x5400_0020,
    0x8a01_0044,
    0xa942_1a85,
    0x9a86_10a7,
    0x9b01_08e8,
    0x1e61_2800,
    0x3940_0289,
    0xb400_0029,
    0xd37d_f02a,
    0xa903_2a85,
    0x4a0a_012b,
    0x3dc0_1282,
];

fn processor_time() -> Duration {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the timespec that is given to it.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) }, 0);
    Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_nanos(t.tv_nsec.unsigned_abs())
}

/// What a fresh machine takes.
fn take(translation: Translation) -> Duration {
    let vm = Vm::new(VmConfig { translation, ..VmConfig::default() }).expect("a machine");
    let layout = std::alloc::Layout::from_size_align(SIZE, 4096).expect("a layout");
    // SAFETY: the layout is not empty; the memory is never freed, which an example can afford.
    let ram = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
    // SAFETY: nothing else refers to the memory, and it stays.
    unsafe { vm.map(ram, RAM, SIZE as u64, Protection::ReadWriteExecute) }.expect("memory");
    let code = MIX.iter().cycle().take(INSTRUCTIONS).chain([&0xd400_0002]);
    for (n, word) in code.enumerate() {
        // SAFETY: the code is shorter than the memory.
        unsafe { ram.as_ptr().cast::<u32>().add(n).write(word.to_le()) };
    }
    let mut v = vm.create_vcpu(0).expect("a vCPU");
    v.set_reg(Reg::PC, RAM).expect("PC");
    v.set_reg(Reg::x(20), DATA).expect("X20");
    v.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).expect("CPACR_EL1");
    let before = processor_time();
    assert_eq!(v.run().expect("it runs"), Exit::Hvc { immediate: 0 });
    processor_time() - before
}

fn main() {
    let least = |translation| (0..RUNS).map(|_| take(translation)).min().unwrap_or_default();
    let [with, without] = [Translation::Always, Translation::Off].map(least);
    let each = |time: Duration| time.as_secs_f64() * 1e6 / INSTRUCTIONS as f64;
    println!(
        "{:.3} us to translate an instruction, {:.3} us to decode it and run it once",
        each(with.saturating_sub(without)),
        each(without)
    );
}
