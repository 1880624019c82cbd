//! A guest of each architecture that counts in memory, with what registers of every kind hold added to the count.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

/// Bytes from the start of RAM to where the guest counts.
pub(crate) const COUNTER: usize = 16 << 20;
/// What the guest's general, system and vector registers hold.
pub(crate) const HELD: u64 = 0x1234;
/// Words that the guest writes behind its count, before each of which: the count and [`HELD`].
pub(crate) const SUMS: usize = 3;

/// What a machine of this engine on this host boots.
pub(crate) fn kernel(engine: supermachine_machine::Engine) -> Vec<u8> {
    match engine {
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        supermachine_machine::Engine::Kvm => x86_64::vmlinux(),
        _ => image(),
    }
}

/// An arm64 Image.
fn image() -> Vec<u8> {
    let mut image = vec![0; 64];
    image[..4].copy_from_slice(&0x1400_0010_u32.to_le_bytes()); // b #64
    image[56..60].copy_from_slice(b"ARM\x64");
    let program: [u32; 18] = [
        0xd2a8_2001, // movz x1, #0x4100, lsl #16
        0xd282_4682, // movz x2, #0x1234
        0xd2a0_0604, // movz x4, #0x30, lsl #16
        0xd518_1044, // msr cpacr_el1, x4
        0xd503_3fdf, // isb
        0x4e08_0c43, // dup v3.2d, x2
        0xd51b_d042, // msr tpidr_el0, x2
        0xd280_0000, // movz x0, #0
        0x9100_0400, // 1: add x0, x0, #1
        0x8b02_0005, // add x5, x0, x2
        0xd53b_d046, // mrs x6, tpidr_el0
        0x8b00_00c6, // add x6, x6, x0
        0xa900_9825, // stp x5, x6, [x1, #8]
        0x4e08_0c04, // dup v4.2d, x0
        0x4ee3_8484, // add v4.2d, v4.2d, v3.2d
        0xfd00_0c24, // str d4, [x1, #24]
        0xf900_0020, // str x0, [x1]
        0x17ff_fff7, // b 1b
    ];
    image.extend(program.iter().flat_map(|word| word.to_le_bytes()));
    image[16..24].copy_from_slice(&4096_u64.to_le_bytes());
    image
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod x86_64 {
    std::arch::global_asm!(
        r#"
    .globl counting_start, counting_end
counting_start:
    mov rax, cr4
    or rax, 0x600                   // OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov ebx, 0x1000000
    mov esi, 0x1234
    movq xmm3, rsi
    mov ecx, 0xc0000100             // FS base
    mov eax, esi
    xor edx, edx
    wrmsr
    xor edi, edi
1:  inc rdi
    lea rax, [rdi + rsi]
    mov [rbx + 8], rax
    rdmsr
    add rax, rdi
    mov [rbx + 16], rax
    movq xmm4, rdi
    paddq xmm4, xmm3
    movq [rbx + 24], xmm4
    mov [rbx], rdi
    jmp 1b
counting_end:
"#
    );

    unsafe extern "C" {
        fn counting_start();
        fn counting_end();
    }

    /// An ELF file with the program as its one segment, at 1 MiB.
    pub(super) fn vmlinux() -> Vec<u8> {
        const HEADERS: usize = 64 + 56;
        const AT: u64 = 1 << 20;
        let (start, end) = (counting_start as *const u8, counting_end as *const u8);
        let len = end as usize - start as usize;
        let mut elf = vec![0; HEADERS];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2; // an executable
        elf[18] = 62; // of x86_64
        elf[24..32].copy_from_slice(&AT.to_le_bytes());
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[54..58].copy_from_slice(&[56, 0, 1, 0]);
        let segment = &mut elf[64..];
        segment[0] = 1;
        for (at, value) in [(8, HEADERS as u64), (16, AT), (24, AT), (32, len as u64), (40, len as u64)] {
            segment[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        // SAFETY: the assembler put the program between these two symbols.
        elf.extend(unsafe { std::slice::from_raw_parts(start, len) });
        elf
    }
}
