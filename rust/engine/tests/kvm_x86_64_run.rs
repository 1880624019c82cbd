//! Running vCPUs on KVM, and getting them out of the guest, by bare guests on the real device.

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

use std::sync::mpsc;
use std::time::Duration;

use bare::{Guest, Memory, Program, RESULTS};
use host::kvm_here;
use supermachine_engine::kvm::Error;
use supermachine_engine::kvm::x86_64::{Bus, Exit};

std::arch::global_asm!(
    r#"
    .globl spin_start, spin_end
spin_start:
    inc qword ptr [0x20000]
    jmp spin_start
spin_end:

    .globl fault_start, fault_end
fault_start:
    ud2
fault_end:

    .globl breakpoint_start, breakpoint_end
breakpoint_start:
    lea rax, [rip + breakpoint_handler]
    mov rdi, 0x22030                             // IDT entry 3
    mov [rdi], ax
    mov word ptr [rdi + 2], 0x10
    mov word ptr [rdi + 4], 0x8f00
    shr rax, 16
    mov [rdi + 6], ax
    lea rdi, [rip + breakpoint_idt]
    lidt [rdi]
    int3
1:  mov edx, 0x420
    mov eax, 2
    out dx, al
breakpoint_handler:
    mov rax, [rsp]
    lea rcx, [rip + 1b]
    sub rax, rcx                                 // 0: the address behind the breakpoint
    inc rax
    mov edx, 0x420
    out dx, al
    iretq
breakpoint_idt:
    .short 0x7ff
    .quad 0x22000
breakpoint_end:
"#
);

unsafe extern "C" {
    fn spin_start();
    fn spin_end();
    fn fault_start();
    fn fault_end();
    fn breakpoint_start();
    fn breakpoint_end();
}

const SPIN: Program = (spin_start, spin_end);
const FAULT: Program = (fault_start, fault_end);
const BREAKPOINT: Program = (breakpoint_start, breakpoint_end);

struct Nothing;

impl Bus for Nothing {
    fn port_read(&mut self, _: u16, _: &mut [u8]) {}
    fn port_write(&mut self, _: u16, _: &[u8]) {}
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
}

#[test]
fn no_kick_is_lost() {
    if !kvm_here() {
        return;
    }
    const KICKS: u64 = 2000;
    let (left, leaves) = mpsc::channel();
    let (ask, asked) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let (guest, mut vcpu) = Guest::running(SPIN);
        ask.send(guest.vm.kick(0)).unwrap();
        for n in 0..KICKS {
            // Some kicks come before the run, some during it.
            if n % 3 == 0 {
                std::thread::yield_now();
            }
            assert_eq!(vcpu.run(&mut Nothing).unwrap(), Exit::Canceled);
            left.send(n).unwrap();
        }
        guest.memory.word(RESULTS)
    });
    let kick = asked.recv().unwrap();
    for n in 0..KICKS {
        if n % 7 == 0 {
            std::thread::sleep(Duration::from_micros(n % 100));
        }
        kick.request();
        // A lost kick would leave the guest spinning for ever.
        assert_eq!(leaves.recv_timeout(Duration::from_secs(30)).expect("a kick was lost"), n);
    }
    assert!(thread.join().unwrap() > 0, "the guest never ran");
}

#[test]
fn a_kick_before_the_vcpu_exists_is_kept() {
    if !kvm_here() {
        return;
    }
    let memory = Memory::new();
    memory.load(SPIN);
    let guest = Guest::new(1, memory, None);
    guest.vm.kick(0).request();
    let mut vcpu = guest.vm.create_vcpu(0).unwrap();
    vcpu.start(&bare::start()).unwrap();
    assert_eq!(vcpu.run(&mut Nothing).unwrap(), Exit::Canceled);
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    if !kvm_here() {
        return;
    }
    let (_guest, mut vcpu) = Guest::running(FAULT);
    assert_eq!(vcpu.run(&mut Nothing).unwrap(), Exit::Shutdown);
}

/// Also where KVM runs kernel code by emulation, and does not know the instruction.
#[test]
fn a_breakpoint_is_taken_and_returned_from() {
    if !kvm_here() {
        return;
    }
    let (guest, mut vcpu) = Guest::running(BREAKPOINT);
    assert_eq!(guest.ring(&mut vcpu), 1);
    assert_eq!(guest.ring(&mut vcpu), 2);
}

/// One with memory and vCPUs in it already would refuse both.
#[test]
fn a_vm_that_was_begun_is_given_out_once() {
    if !kvm_here() {
        return;
    }
    for _ in 0..2 {
        supermachine_engine::begin(supermachine_engine::Engine::Kvm);
        let (first, mut one) = Guest::running(BREAKPOINT);
        let (second, mut other) = Guest::running(BREAKPOINT);
        assert_eq!((first.ring(&mut one), second.ring(&mut other)), (1, 1));
    }
}

#[test]
fn more_vcpus_than_kvm_gives_are_refused() {
    if !kvm_here() {
        return;
    }
    assert!(matches!(supermachine_engine::kvm::x86_64::Vm::new(0, None), Err(Error::TooManyVcpus { .. })));
    let many = supermachine_engine::kvm::x86_64::Vm::new(100_000, None);
    assert!(matches!(many, Err(Error::TooManyVcpus { vcpus: 100_000, .. })));
}
