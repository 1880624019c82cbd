//! KVM on x86_64, by bare guests on the real device.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod bare;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use bare::{Guest, Memory, Program, RESULTS, kvm_here};
use supermachine_engine::kvm::Error;
use supermachine_engine::kvm::x86_64::{Bus, CpuModel, Exit};

// Sets registers of every class, rings, and then, perhaps in another VM, stores what it finds.
std::arch::global_asm!(
    r#"
    .globl classes_start, classes_end
classes_start:
    mov rax, cr4
    or rax, 0x600                   // OSFXSR, OSXMMEXCPT
    mov cr4, rax

    lea rdi, [rip + fx_image]
    fxrstor64 [rdi]

    .macro put_msr index, low, high
    mov ecx, \index
    mov eax, \low
    mov edx, \high
    wrmsr
    .endm
    put_msr 0xc0000100, 0x11111000, 0x00001111   // FS base
    put_msr 0xc0000101, 0x22222000, 0x00002222   // GS base
    put_msr 0xc0000102, 0x33333000, 0x00003333   // kernel GS base
    put_msr 0xc0000081, 0x00000000, 0x00230010   // STAR
    put_msr 0xc0000082, 0x44444000, 0xffffffff   // LSTAR
    put_msr 0xc0000084, 0x00000700, 0            // SFMASK
    put_msr 0x174, 0x10, 0                       // SYSENTER CS, ESP, EIP
    put_msr 0x175, 0x55555000, 0
    put_msr 0x176, 0x66666000, 0
    put_msr 0x277, 0x00070406, 0x00070406        // PAT
    put_msr 0x4b564d01, 0x21001, 0               // kvmclock at 0x21000

    mov rax, 0x7000
    mov dr0, rax
    mov rax, 0x7008
    mov dr1, rax
    mov rax, 0x7010
    mov dr2, rax
    mov rax, 0x7018
    mov dr3, rax
    mov rax, 0x403
    mov dr7, rax
    mov rax, 0x5
    mov cr8, rax
    mov rax, 0x123456
    mov cr2, rax

    mov edi, 0xfee00000                          // local APIC
    mov dword ptr [rdi + 0xf0], 0x1ff            // enabled
    mov dword ptr [rdi + 0x320], 0x20040         // timer: periodic, vector 0x40
    mov dword ptr [rdi + 0x320], 0x10040         // masked, one-shot
    mov dword ptr [rdi + 0x3e0], 0xb             // divided by 1
    mov dword ptr [rdi + 0x370], 0x10041         // error vector, masked

    mov edi, 0xfec00000                          // IOAPIC: pin 7 to vector 0x57, level, masked
    mov dword ptr [rdi], 0x1e
    mov dword ptr [rdi + 0x10], 0x18057
    mov dword ptr [rdi], 0x1f
    mov dword ptr [rdi + 0x10], 0x00000000

    mov al, 0x11                                 // PICs: vectors 0x30 and 0x38, masks 0xa5 and 0x5a
    out 0x20, al
    out 0xa0, al
    mov al, 0x30
    out 0x21, al
    mov al, 0x38
    out 0xa1, al
    mov al, 4
    out 0x21, al
    mov al, 2
    out 0xa1, al
    mov al, 1
    out 0x21, al
    out 0xa1, al
    mov al, 0xa5
    out 0x21, al
    mov al, 0x5a
    out 0xa1, al

    mov al, 0xb4                                 // PIT: channel 2, mode 2, count 0x1234
    out 0x43, al
    mov al, 0x34
    out 0x42, al
    mov al, 0x12
    out 0x42, al

    mov rbx, 0x0123456789abcdef
    mov rcx, 0x1111111111111111
    mov rsi, 0x2222222222222222
    mov rdi, 0x3333333333333333
    mov rbp, 0x4444444444444444
    mov r8, 0x8888888888888888
    mov r9, 0x9999999999999999
    mov r10, 0xaaaaaaaaaaaaaaaa
    mov r11, 0xbbbbbbbbbbbbbbbb
    mov r12, 0xcccccccccccccccc
    mov r13, 0xdddddddddddddddd
    mov r14, 0xeeeeeeeeeeeeeeee
    mov r15, 0xffff0000ffff0000
    mov edx, 0x420
    mov eax, 1
    stc
    out dx, al

    mov [0x20000], rbx
    mov [0x20008], rcx
    mov [0x20010], rsi
    mov [0x20018], rdi
    mov [0x20020], rbp
    mov [0x20028], r8
    mov [0x20030], r9
    mov [0x20038], r10
    mov [0x20040], r11
    mov [0x20048], r12
    mov [0x20050], r13
    mov [0x20058], r14
    mov [0x20060], r15
    mov [0x20068], rsp
    pushfq
    pop rax
    mov [0x20070], rax

    mov rdi, 0x20078
    .macro get_msr index
    mov ecx, \index
    rdmsr
    mov [rdi], eax
    mov [rdi + 4], edx
    add rdi, 8
    .endm
    get_msr 0xc0000100
    get_msr 0xc0000101
    get_msr 0xc0000102
    get_msr 0xc0000081
    get_msr 0xc0000082
    get_msr 0xc0000084
    get_msr 0x174
    get_msr 0x175
    get_msr 0x176
    get_msr 0x277
    get_msr 0x4b564d01
    .macro get register
    mov rax, \register
    mov [rdi], rax
    add rdi, 8
    .endm
    get dr0
    get dr1
    get dr2
    get dr3
    get dr7
    get cr8
    get cr2
    .macro get_apic offset
    mov esi, 0xfee00000 + \offset
    mov eax, [rsi]
    mov [rdi], rax
    add rdi, 8
    .endm
    get_apic 0xf0
    get_apic 0x320
    get_apic 0x3e0
    get_apic 0x370
    mov esi, 0xfec00000
    mov dword ptr [rsi], 0x1e
    mov eax, [rsi + 0x10]
    mov [rdi], rax
    add rdi, 8
    xor eax, eax
    in al, 0x21
    mov [rdi], rax
    in al, 0xa1
    mov [rdi + 8], rax

    mov rdi, 0x20400
    fxsave64 [rdi]
    mov edx, 0x420
    mov eax, 2
    out dx, al
    hlt

    .balign 16
fx_image:
    .short 0x27f, 0x3000, 0x80, 0                // control, status with top 6, tag: two registers hold something
    .quad 0, 0
    .long 0x1fa0, 0xffff                         // MXCSR and its mask
    .quad 0x8000000000000000, 0x3fff             // 1.0
    .quad 0xc000000000000000, 0x4000             // 3.0
    .zero 96
    .set n, 0
    .rept 16
    .quad 0x0102030405060708 * (n + 1), 0x1112131415161718 + n
    .set n, n + 1
    .endr
    .zero 96
classes_end:
"#
);

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

    .globl page_start, page_end
page_start:
    mov byte ptr [0x30000], 1
    mov edx, 0x420
    mov eax, 1
    out dx, al
    mov byte ptr [0x31000], 1
    out dx, al
page_end:
"#
);

unsafe extern "C" {
    fn classes_start();
    fn classes_end();
    fn timer_start();
    fn timer_end();
    fn spin_start();
    fn spin_end();
    fn fault_start();
    fn fault_end();
    fn breakpoint_start();
    fn breakpoint_end();
    fn page_start();
    fn page_end();
}

/// How far ahead [`TIMER`] sets its deadline.
const DEADLINE_TICKS: f64 = 2e8;

const CLASSES: Program = (classes_start, classes_end);
const TIMER: Program = (timer_start, timer_end);
const SPIN: Program = (spin_start, spin_end);
const FAULT: Program = (fault_start, fault_end);
const BREAKPOINT: Program = (breakpoint_start, breakpoint_end);
const PAGES: Program = (page_start, page_end);

/// What [`CLASSES`] is to find, in the order it stores it.
const EXPECTED: &[(&str, u64)] = &[
    ("rbx", 0x0123_4567_89ab_cdef),
    ("rcx", 0x1111_1111_1111_1111),
    ("rsi", 0x2222_2222_2222_2222),
    ("rdi", 0x3333_3333_3333_3333),
    ("rbp", 0x4444_4444_4444_4444),
    ("r8", 0x8888_8888_8888_8888),
    ("r9", 0x9999_9999_9999_9999),
    ("r10", 0xaaaa_aaaa_aaaa_aaaa),
    ("r11", 0xbbbb_bbbb_bbbb_bbbb),
    ("r12", 0xcccc_cccc_cccc_cccc),
    ("r13", 0xdddd_dddd_dddd_dddd),
    ("r14", 0xeeee_eeee_eeee_eeee),
    ("r15", 0xffff_0000_ffff_0000),
    ("rsp", 0x9000),
    ("rflags: carry, and the bit that is always set", 3),
    ("FS base", 0x1111_1111_1000),
    ("GS base", 0x2222_2222_2000),
    ("kernel GS base", 0x3333_3333_3000),
    ("STAR", 0x0023_0010_0000_0000),
    ("LSTAR", 0xffff_ffff_4444_4000),
    ("SFMASK", 0x700),
    ("SYSENTER_CS", 0x10),
    ("SYSENTER_ESP", 0x5555_5000),
    ("SYSENTER_EIP", 0x6666_6000),
    ("PAT", 0x0007_0406_0007_0406),
    ("kvmclock", 0x2_1001),
    ("dr0", 0x7000),
    ("dr1", 0x7008),
    ("dr2", 0x7010),
    ("dr3", 0x7018),
    ("dr7", 0x403),
    ("cr8", 5),
    ("cr2", 0x12_3456),
    ("APIC SVR", 0x1ff),
    ("APIC timer", 0x1_0040),
    ("APIC divider", 0xb),
    ("APIC error vector", 0x1_0041),
    ("IOAPIC pin 7", 0x1_8057),
    ("master PIC's mask", 0xa5),
    ("slave PIC's mask", 0x5a),
];

#[test]
fn every_class_of_register_goes_over_into_a_new_vm() {
    if !kvm_here() {
        return;
    }
    let (guest, mut vcpu) = Guest::running(CLASSES);
    assert_eq!(guest.ring(&mut vcpu), 1);
    let (saved, machine, model) =
        (vcpu.save().unwrap(), guest.vm.save().unwrap(), guest.vm.model().encode().unwrap());
    let memory = guest.memory.copy();
    drop(vcpu);
    drop(guest);

    let guest = Guest::new(1, memory, Some(CpuModel::decode(&model).unwrap()));
    let mut vcpu = guest.vm.create_vcpu(0).unwrap();
    vcpu.restore(&saved).unwrap();
    guest.vm.restore(&machine).unwrap();
    assert_eq!(guest.ring(&mut vcpu), 2);
    for (n, (name, value)) in EXPECTED.iter().enumerate() {
        let found = guest.memory.word(RESULTS + 8 * n as u64);
        assert_eq!(found, *value, "{name} is {found:#x} and not {value:#x}");
    }
    // FXSAVE: the control and status words, the stack, MXCSR, and all of the vector registers.
    let fx = guest.memory.read(RESULTS as usize + 0x400, 512);
    assert_eq!(fx[..5], [0x7f, 2, 0, 0x30, 0x80]);
    assert_eq!(fx[24..28], [0xa0, 0x1f, 0, 0]);
    assert_eq!(fx[32..42], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    for n in 0..16 {
        let (low, high) = (0x0102_0304_0506_0708_u64.wrapping_mul(n + 1), 0x1112_1314_1516_1718 + n);
        let at = 160 + 16 * n as usize;
        assert_eq!(fx[at..at + 16], [low.to_le_bytes(), high.to_le_bytes()].concat(), "xmm{n}");
    }
}

#[test]
fn what_was_restored_is_saved_as_it_was() {
    if !kvm_here() {
        return;
    }
    let (guest, mut vcpu) = Guest::running(CLASSES);
    guest.ring(&mut vcpu);
    let (saved, machine) = (vcpu.save().unwrap(), guest.vm.save().unwrap());
    let copy = Guest::new(1, guest.memory.copy(), Some(guest.vm.model().clone()));
    let mut other = copy.vm.create_vcpu(0).unwrap();
    other.restore(&saved).unwrap();
    copy.vm.restore(&machine).unwrap();
    let again = other.save().unwrap();
    // Only the time stamp counter and its offset, at the end, have moved on.
    let same = saved.iter().zip(&again).take_while(|(a, b)| a == b).count();
    assert!(saved.len() - same <= 24, "different from byte {same} of {}", saved.len());
}

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

#[test]
fn the_dirty_log_names_the_pages_that_the_guest_changed() {
    if !kvm_here() {
        return;
    }
    let (guest, mut vcpu) = Guest::running(PAGES);
    guest.vm.log_dirty_pages(true).unwrap();
    guest.ring(&mut vcpu);
    let first = guest.vm.dirty_pages().unwrap();
    assert!(first.contains(&0x3_0000) && !first.contains(&0x3_1000), "{first:x?}");
    guest.ring(&mut vcpu);
    let second = guest.vm.dirty_pages().unwrap();
    assert!(second.contains(&0x3_1000) && !second.contains(&0x3_0000), "{second:x?}");
}

#[test]
fn damaged_state_is_refused_without_harm() {
    if !kvm_here() {
        return;
    }
    let (guest, mut vcpu) = Guest::running(CLASSES);
    guest.ring(&mut vcpu);
    let (saved, machine) = (vcpu.save().unwrap(), guest.vm.save().unwrap());
    for bytes in [&saved, &machine] {
        for len in (0..bytes.len()).step_by(97) {
            assert!(vcpu.restore(&bytes[..len]).is_err());
            assert!(guest.vm.restore(&bytes[..len]).is_err());
        }
    }
    // Any byte may be wrong: an error or another state, but no panic.
    for at in (0..saved.len()).step_by(53) {
        let mut wrong = saved.clone();
        wrong[at] ^= 0xff;
        let _ = vcpu.restore(&wrong);
    }
    for at in 0..machine.len().min(400) {
        let mut wrong = machine.clone();
        wrong[at] ^= 0xff;
        let _ = guest.vm.restore(&wrong);
    }
    // And the right ones still work.
    vcpu.restore(&saved).unwrap();
    guest.vm.restore(&machine).unwrap();
    assert_eq!(guest.ring(&mut vcpu), 2);
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
