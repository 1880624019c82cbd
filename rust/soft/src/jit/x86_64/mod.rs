//! Machine code for x86-64 hosts.
//!
//! RBX points at the CPU's state (see `layout`); R13 is the fuel, R14 where the TLB is and R15 the tag of its entries,
//! each of which is worth more there than what a block would do with the register; RAX, RCX, RDX and XMM0 to XMM3 are
//! for whoever needs them; the others hold guest registers inside a block (see `cache`), none of them between blocks.
//! The stack is as deep as `Ways::enter` makes it.

mod access;
mod asm;
mod atomic;
mod block;
mod cache;
mod compute;
mod crypto;
mod flags;
mod float;
mod floats;
mod layout;
mod sse;
mod structures;
mod stubs;
mod triples;
mod vector;
mod wide;

use super::ways::Ways;
use super::{Code, Entries, Host, Input, Link};
use asm::Asm;
use stubs::Stubs;

/// What the host's processor has beyond what all have.
#[derive(Clone, Copy)]
struct Features {
    lzcnt: bool,
    /// And what came before: SSE3, SSSE3, SSE4.1.
    sse42: bool,
    fma: bool,
    avx2: bool,
    /// ANDN; and RORX, SHLX and their kind.
    bmi1: bool,
    bmi2: bool,
    aes: bool,
    clmul: bool,
    sha: bool,
    /// CMPXCHG16B.
    cx16: bool,
    /// Conversions to and from half precision.
    f16c: bool,
}

impl Features {
    /// In tests of what there is at best.
    #[cfg(test)]
    const ALL: Self = Self {
        lzcnt: true,
        sse42: true,
        avx2: true,
        fma: true,
        bmi1: true,
        bmi2: true,
        aes: true,
        clmul: true,
        sha: true,
        cx16: true,
        f16c: true,
    };

    fn detect() -> Self {
        let sse42 = std::is_x86_feature_detected!("sse4.2") && std::is_x86_feature_detected!("ssse3");
        Self {
            lzcnt: std::is_x86_feature_detected!("lzcnt"),
            sse42,
            bmi1: std::is_x86_feature_detected!("bmi1"),
            bmi2: std::is_x86_feature_detected!("bmi2"),
            avx2: std::is_x86_feature_detected!("avx2"),
            fma: std::is_x86_feature_detected!("fma"),
            aes: sse42 && std::is_x86_feature_detected!("aes"),
            clmul: std::is_x86_feature_detected!("pclmulqdq"),
            cx16: std::is_x86_feature_detected!("cmpxchg16b"),
            f16c: std::is_x86_feature_detected!("f16c"),
            sha: sse42 && std::is_x86_feature_detected!("sha"),
        }
    }
}

pub(super) struct X86 {
    stubs: Stubs,
    features: Features,
}

impl Host for X86 {
    const FOLLOWS: bool = true;

    fn new(entries: &Entries) -> Option<(Self, Vec<u8>)> {
        let mut asm = Asm::default();
        let stubs = Stubs::emit(&mut asm, entries);
        Some((Self { stubs, features: Features::detect() }, asm.buf))
    }

    fn ways(&self) -> &Ways {
        &self.stubs.ways
    }

    fn translate(&self, block: &Input, origin: usize) -> Code {
        block::translate(block, origin, &self.stubs, self.features)
    }

    fn link(&self, link: &Link, target: usize) -> [u8; 4] {
        ((target as i64 - (link.at as i64 + 4)) as i32).to_le_bytes()
    }
}

#[cfg(test)]
impl X86 {
    /// For a processor that has everything.
    pub(super) fn best(entries: &Entries) -> Self {
        let stubs = Stubs::emit(&mut Asm::default(), entries);
        Self { stubs, features: Features::ALL }
    }
}
