//! Time on KVM, by a bare guest on the real device.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod bare;
mod host;

use std::time::{Duration, Instant};

use bare::{Guest, Program, RESULTS};
use host::kvm_here;

// Sets the TSC-deadline timer a little ahead and rings; then waits for the interrupt.
std::arch::global_asm!(
    r#"
    .globl timer_start, timer_end
timer_start:
    lea rax, [rip + timer_handler]
    mov rdi, 0x22400                             // IDT entry 0x40
    mov [rdi], ax
    mov word ptr [rdi + 2], 0x10
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov [rdi + 6], ax
    lea rdi, [rip + timer_idt]
    lidt [rdi]
    mov ecx, 0x4b564d01                          // kvmclock at 0x21000
    mov eax, 0x21001
    xor edx, edx
    wrmsr
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xf0], 0x1ff
    mov dword ptr [rdi + 0x320], 0x40040         // TSC-deadline, vector 0x40
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [0x20000], rax
    add rax, 200000000
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0x6e0
    wrmsr
    mov edx, 0x420
    mov eax, 1
    out dx, al
1:  sti
    hlt
    cli
    jmp 1b
timer_handler:
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [0x20008], rax
    mov edx, 0x420
    mov eax, 2
    out dx, al
    iretq
timer_idt:
    .short 0x7ff
    .quad 0x22000
timer_end:
"#
);

unsafe extern "C" {
    fn timer_start();
    fn timer_end();
}

const TIMER: Program = (timer_start, timer_end);
/// How far ahead [`TIMER`] sets its deadline.
const DEADLINE_TICKS: f64 = 2e8;

#[test]
fn time_goes_on_from_where_it_was_and_a_deadline_is_kept() {
    if !kvm_here() {
        return;
    }
    let began = Instant::now();
    let (guest, mut vcpu) = Guest::running(TIMER);
    assert_eq!(guest.ring(&mut vcpu), 1);
    let (saved, machine) = (vcpu.save().unwrap(), guest.vm.save().unwrap());
    let first = began.elapsed();
    let set = kvmclock(&guest, guest.memory.word(RESULTS));
    // The host's time goes on beyond the deadline while nothing runs.
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    let copy = Guest::new(1, guest.memory.copy(), Some(guest.vm.model().clone()));
    let mut other = copy.vm.create_vcpu(0).unwrap();
    other.restore(&saved).unwrap();
    copy.vm.restore(&machine).unwrap();
    assert_eq!(copy.ring(&mut other), 2);
    let second = began.elapsed();
    let fired = kvmclock(&copy, copy.memory.word(RESULTS + 8));
    // Clocks of one host, measured by two yardsticks that agree to a percent.
    let passed = (fired - set) as f64;
    assert!(
        passed >= 0.99 * DEADLINE_TICKS * 1e6 / f64::from(copy.vm.model().tsc_khz),
        "{passed} ns: too early"
    );
    let most = 1.01 * (first + second).as_nanos() as f64;
    assert!(passed <= most, "{passed} ns have passed for a guest that was there for {most} ns");
}

/// The guest's kvmclock, in nanoseconds, at a value of its time stamp counter (Documentation/virt/kvm/x86/msr.rst).
fn kvmclock(guest: &Guest, tsc: u64) -> u64 {
    const PAGE: u64 = 0x2_1000;
    let (timestamp, system_time, scale) =
        (guest.memory.word(PAGE + 8), guest.memory.word(PAGE + 16), guest.memory.word(PAGE + 24));
    let (multiplier, shift) = (scale as u32, (scale >> 32) as i8);
    let ticks = i128::from(tsc) - i128::from(timestamp);
    let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
    (i128::from(system_time) + ((shifted * i128::from(multiplier)) >> 32)) as u64
}
