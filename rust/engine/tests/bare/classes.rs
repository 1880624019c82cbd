//! A guest that has something in registers of every class.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

use super::Program;

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

unsafe extern "C" {
    fn classes_start();
    fn classes_end();
}

pub(crate) const CLASSES: Program = (classes_start, classes_end);

/// What [`CLASSES`] is to find, in the order it stores it.
pub(crate) const EXPECTED: &[(&str, u64)] = &[
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
