//! Machine code for arm64 hosts: mostly the guest's own instructions with other registers.
//!
//! The guest's flags are the host's wherever nothing says otherwise: no code that is made here changes the host's but
//! for the guest's instructions and calls. Vector registers are in those of the same number. See `cache` for general
//! ones.

mod access;
mod asm;
mod block;
mod cache;
mod compute;
mod layout;
mod stubs;
mod vector;

use super::ways::Ways;
use super::{Code, Entries, Host, Input, Link};
use asm::{Asm, R};
use stubs::Stubs;

/// The CPU's state.
const CPU: R = R(28);
/// The TLB in use, and what its tags have in their low bits.
const TLB: R = R(26);
const TAG: R = R(27);
/// For whoever needs them, by what they are mostly used for.
const ADDRESS: R = R(16);
const TEMP: R = R(17);
const ADDEND: R = R(15);
const OTHER: R = R(14);
/// Where a block ends and no register holds anything of the guest's.
const JUMP: R = R(13);
/// For constants that no instruction has room for.
const LONG: R = OTHER;

/// What the host's processor has beyond Armv8.0.
#[derive(Clone, Copy)]
struct Features {
    lse: bool,
    crc: bool,
    flagm: bool,
    aes: bool,
    pmull: bool,
    sha2: bool,
    /// With SHA512.
    sha3: bool,
    rdm: bool,
    dotprod: bool,
    fhm: bool,
    jsconv: bool,
    fcma: bool,
    frintts: bool,
    fp16: bool,
}

impl Features {
    #[cfg(target_arch = "aarch64")]
    fn detect() -> Self {
        use std::arch::is_aarch64_feature_detected as has;
        Self {
            lse: has!("lse"),
            crc: has!("crc"),
            flagm: has!("flagm"),
            aes: has!("aes"),
            pmull: has!("pmull"),
            sha2: has!("sha2"),
            sha3: has!("sha3"),
            rdm: has!("rdm"),
            dotprod: has!("dotprod"),
            fhm: has!("fhm"),
            jsconv: has!("jsconv"),
            fcma: has!("fcma"),
            frintts: has!("frintts"),
            fp16: has!("fp16"),
        }
    }

    /// In tests on other hosts.
    #[cfg(not(target_arch = "aarch64"))]
    fn detect() -> Self {
        Self {
            lse: true,
            crc: true,
            flagm: true,
            aes: true,
            pmull: true,
            sha2: true,
            sha3: true,
            rdm: true,
            dotprod: true,
            fhm: true,
            jsconv: true,
            fcma: true,
            frintts: true,
            fp16: true,
        }
    }
}

pub(super) struct Arm64 {
    stubs: Stubs,
    features: Features,
}

impl Host for Arm64 {
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
        asm::branch(link.at, target).to_le_bytes()
    }
}
