//! CPU features that guests may have: those whose state a snapshot holds, or that have none. A feature that is not
//! listed is not given to guests, whatever the host has: MPX, AMX, protection keys of supervisors, control-flow
//! enforcement, transactional memory, performance counters, machine checks, tracing, SGX, nested virtualisation and
//! others. Nor is the promise that the time stamp counter never changes its pace ("invariant TSC"): a snapshot may go
//! to another host, and without that promise Linux takes its time from kvmclock, which the host keeps right.
//!
//! Bits and names: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.

/// A register that CPUID gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The first that CPUID gives.
    Eax,
    /// The second.
    Ebx,
    /// The third.
    Ecx,
    /// The fourth.
    Edx,
}

/// A register full of feature bits: leaf, subleaf, register, and the names of the bits that guests may have.
pub struct Word {
    /// What EAX has before CPUID.
    pub leaf: u32,
    /// What ECX has before CPUID.
    pub subleaf: u32,
    /// Which answer it is.
    pub register: Register,
    /// Number, 0 to 31, and name.
    pub bits: &'static [(u32, &'static str)],
}

impl Word {
    /// All bits that guests may have.
    pub fn mask(&self) -> u32 {
        self.bits.iter().fold(0, |mask, (bit, _)| mask | 1 << bit)
    }
}

const fn word(leaf: u32, subleaf: u32, register: Register, bits: &'static [(u32, &'static str)]) -> Word {
    Word { leaf, subleaf, register, bits }
}

/// Given to every guest: it runs under a hypervisor.
pub const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, ECX: the local APIC's timer can be set to a value of the time stamp counter.
pub const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a copy of CR4.OSXSAVE, not a feature.
pub const OSXSAVE: u32 = 1 << 27;
/// Leaf 1, EDX: several logical processors in the package.
pub const HTT: u32 = 1 << 28;
/// State components of XCR0 that guests may have: x87, SSE, AVX, three of AVX-512, protection keys.
pub const XCR0: u32 = 0x2e7;

/// KVM's own leaves.
pub const KVM_SIGNATURE: u32 = 0x4000_0000;
/// Where KVM tells the features of its own (Documentation/virt/kvm/x86/cpuid.rst).
pub const KVM_FEATURES: u32 = 0x4000_0001;

use Register::{Eax, Ebx, Ecx, Edx};

/// All that guests may have.
pub const WORDS: &[Word] = &[
    word(
        1,
        0,
        Ecx,
        &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4.1"),
            (20, "sse4.2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc-deadline"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
            (31, "hypervisor"),
        ],
    ),
    word(
        1,
        0,
        Edx,
        &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (8, "cx8"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
            (27, "ss"),
        ],
    ),
    word(6, 0, Eax, &[(2, "arat")]),
    word(
        7,
        0,
        Ebx,
        &[
            (0, "fsgsbase"),
            (1, "tsc-adjust"),
            (3, "bmi1"),
            (5, "avx2"),
            (6, "fdp-excptn-only"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (13, "zero-fcs-fds"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (26, "avx512pf"),
            (27, "avx512er"),
            (28, "avx512cd"),
            (29, "sha-ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    word(
        7,
        0,
        Ecx,
        &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512vnni"),
            (12, "avx512bitalg"),
            (14, "avx512vpopcntdq"),
            (22, "rdpid"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    ),
    word(
        7,
        0,
        Edx,
        &[
            (4, "fsrm"),
            (8, "avx512vp2intersect"),
            (10, "md-clear"),
            (14, "serialize"),
            (23, "avx512fp16"),
            (26, "spec-ctrl"),
            (27, "intel-stibp"),
            (28, "flush-l1d"),
            (29, "arch-capabilities"),
            (31, "ssbd"),
        ],
    ),
    word(
        7,
        1,
        Eax,
        &[
            (0, "sha512"),
            (1, "sm3"),
            (2, "sm4"),
            (4, "avx-vnni"),
            (5, "avx512bf16"),
            (10, "fzrm"),
            (11, "fsrs"),
            (12, "fsrc"),
            (23, "avx-ifma"),
        ],
    ),
    word(
        7,
        1,
        Edx,
        &[(4, "avx-vnni-int8"), (5, "avx-ne-convert"), (10, "avx-vnni-int16"), (14, "prefetchi")],
    ),
    word(
        7,
        2,
        Edx,
        &[(0, "psfd"), (1, "ipred-ctrl"), (2, "rrsba-ctrl"), (3, "ddpd-u"), (4, "bhi-ctrl"), (5, "mcdt-no")],
    ),
    word(0xd, 1, Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    word(
        KVM_FEATURES,
        0,
        Eax,
        &[
            (0, "kvm-clock"),
            (1, "kvm-nop-io-delay"),
            (3, "kvm-clock2"),
            (6, "kvm-pv-eoi"),
            (24, "kvm-clock-stable"),
        ],
    ),
    word(
        0x8000_0001,
        0,
        Ecx,
        &[
            (0, "lahf-lm"),
            (4, "cr8-legacy"),
            (5, "abm"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
            (11, "xop"),
            (16, "fma4"),
            (21, "tbm"),
        ],
    ),
    word(
        0x8000_0001,
        0,
        Edx,
        &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (8, "cx8"),
            (9, "apic"),
            (11, "syscall"),
            (12, "mtrr"),
            (13, "pge"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (20, "nx"),
            (22, "mmxext"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "fxsr-opt"),
            (26, "pdpe1gb"),
            (27, "rdtscp"),
            (29, "lm"),
        ],
    ),
    word(
        0x8000_0008,
        0,
        Ebx,
        &[
            (0, "clzero"),
            (2, "xsaveerptr"),
            (9, "wbnoinvd"),
            (12, "amd-ibpb"),
            (14, "amd-ibrs"),
            (15, "amd-stibp"),
            (24, "amd-ssbd"),
            (25, "virt-ssbd"),
            (26, "amd-ssb-no"),
            (28, "amd-psfd"),
        ],
    ),
    word(
        0x8000_0021,
        0,
        Eax,
        &[
            (0, "no-nested-data-bp"),
            (2, "lfence-always-serializing"),
            (6, "null-sel-clr-base"),
            (8, "autoibrs"),
            (27, "sbpb"),
            (28, "ibpb-brtype"),
            (29, "srso-no"),
        ],
    ),
];
