//! AES, PMULL and SHA by the host's instructions.

use super::asm::{RAX, Sh, X};
use super::block::Translator;
use super::sse::{self, Ps};
use super::stubs::Constant;
use crate::isa::insn::Reg;
use crate::isa::simd::{Crypto, Simd};

impl Translator<'_> {
    /// False when the interpreter must do it.
    pub(super) fn crypto(&mut self, op: Crypto, d: Reg, n: Reg, m: Reg) -> bool {
        use Crypto::*;
        let has = match op {
            Aese | Aesd | Aesmc | Aesimc => self.features.aes,
            Pmull | Pmull2 => self.features.clmul,
            Sha1su0 | Sha1su1 | Sha1h => true,
            _ => self.features.sha,
        };
        if !has {
            return false;
        }
        match op {
            Aese | Aesd => self.aes_round(op == Aese, d, n),
            Aesmc => {
                // A whole encryption round undoes the decryption round before it, but for MixColumns.
                let x = self.read_vector(n);
                let r = self.write_vector(d);
                self.asm.movaps(r, x);
                self.asm.vector(sse::XORPS, X(0), X(0));
                self.asm.vector(sse::AESDECLAST, r, X(0));
                self.asm.vector(sse::AESENC, r, X(0));
            }
            Aesimc => {
                let x = self.read_vector(n);
                let r = self.write_vector(d);
                self.asm.vector(sse::AESIMC, r, x);
            }
            Pmull | Pmull2 => {
                let (x, y) = (self.read_vector(n), self.read_vector(m));
                let r = self.write_vector(d);
                self.asm.movaps(r, x);
                self.asm.vector_i(sse::PCLMULQDQ, r, y, if op == Pmull2 { 0x11 } else { 0 });
            }
            Sha1c | Sha1p | Sha1m => self.sha1(op, d, n, m),
            Sha1h => {
                let x = self.read_vector(n);
                self.asm.mov_r(false, RAX, x);
                self.asm.shift_i(Sh::Rol, false, RAX, 30);
                let r = self.write_vector(d);
                self.asm.mov_low_r(false, r, RAX);
                self.number(false, d);
            }
            Sha1su0 => {
                let (z, x, y) = (self.read_vector(d), self.read_vector(n), self.read_vector(m));
                let r = self.write_vector(d);
                // The upper half of d, and the lower one of n above it.
                self.asm.movaps(r, z);
                self.asm.vector_i(sse::SHUFPS, r, x, 0b0100_1110);
                self.asm.vector(sse::PXOR, r, z);
                self.asm.vector(sse::PXOR, r, y);
            }
            Sha1su1 => {
                let (z, x) = (self.read_vector(d), self.read_vector(n));
                let r = self.write_vector(d);
                self.asm.movaps(r, x);
                self.asm.byte_shift(false, r, 4);
                self.asm.vector(sse::PXOR, r, z);
                self.rotate_left_once(r);
                self.asm.movaps(X(0), r);
                self.asm.byte_shift(true, X(0), 12);
                self.asm.movaps(X(2), X(0));
                self.asm.lane_shift(Ps::Ll, 2, X(0), 1);
                self.asm.lane_shift(Ps::Rl, 2, X(2), 31);
                self.asm.vector(sse::POR, X(0), X(2));
                self.asm.vector(sse::PXOR, r, X(0));
            }
            Sha256h | Sha256h2 => self.sha256(op == Sha256h, d, n, m),
            Sha256su0 => {
                let x = self.read_vector(n);
                let z = self.read_vector(d);
                let r = self.write_vector(d);
                self.asm.movaps(r, z);
                self.asm.vector(sse::SHA256MSG1, r, x);
            }
            Sha256su1 => {
                let (z, x, y) = (self.read_vector(d), self.read_vector(n), self.read_vector(m));
                let r = self.write_vector(d);
                self.asm.movaps(r, y);
                self.asm.vector_i(sse::PALIGNR, r, x, 4);
                self.asm.vector(sse::PADD[2], r, z);
                self.asm.vector(sse::SHA256MSG2, r, y);
            }
        }
        true
    }

    fn rotate_left_once(&mut self, r: X) {
        self.asm.movaps(X(0), r);
        self.asm.lane_shift(Ps::Ll, 2, r, 1);
        self.asm.lane_shift(Ps::Rl, 2, X(0), 31);
        self.asm.vector(sse::POR, r, X(0));
    }

    /// AESE or AESD, with the AESMC or AESIMC of its result that mostly follows: both are one round of the host's.
    fn aes_round(&mut self, encrypt: bool, d: Reg, n: Reg) {
        let z = self.read_vector(d);
        let x = self.read_vector(n);
        let mixed = if encrypt { Crypto::Aesmc } else { Crypto::Aesimc };
        let both = matches!(self.following(), Some(Simd::Crypto { op, d: to, n: from, .. })
            if op == mixed && to == d && from == d);
        let r = self.write_vector(d);
        self.asm.movaps(r, z);
        self.asm.vector(sse::PXOR, r, x);
        self.asm.vector(sse::XORPS, X(0), X(0));
        let op = match (encrypt, both) {
            (true, true) => sse::AESENC,
            (true, false) => sse::AESENCLAST,
            (false, true) => sse::AESDEC,
            (false, false) => sse::AESDECLAST,
        };
        self.asm.vector(op, r, X(0));
        self.skip_following(both);
    }

    /// Four rounds of SHA-1. The host has the lanes the other way round, and adds the constant itself.
    fn sha1(&mut self, op: Crypto, d: Reg, n: Reg, m: Reg) {
        let (z, x, y) = (self.read_vector(d), self.read_vector(n), self.read_vector(m));
        let (constant, number) = match op {
            Crypto::Sha1c => (Constant::Sha1c, 0),
            Crypto::Sha1p => (Constant::Sha1p, 1),
            _ => (Constant::Sha1m, 2),
        };
        let r = self.write_vector(d);
        self.asm.movaps(X(0), y);
        self.constant(sse::PADD[2], X(0), constant);
        self.asm.vector_i(sse::PSHUFD, X(0), X(0), 0x1b);
        self.asm.movaps(X(1), x);
        self.asm.byte_shift(true, X(1), 12);
        self.asm.vector(sse::PADD[2], X(0), X(1));
        self.asm.vector_i(sse::PSHUFD, r, z, 0x1b);
        self.asm.vector_i(sse::SHA1RNDS4, r, X(0), number);
        self.asm.vector_i(sse::PSHUFD, r, r, 0x1b);
    }

    /// Four rounds of SHA-256, for one half of the state or, where the next instruction asks for the other half of the
    /// same rounds, for both.
    fn sha256(&mut self, first: bool, d: Reg, n: Reg, m: Reg) {
        let both = first
            && matches!(self.following(),
                Some(Simd::Crypto { op: Crypto::Sha256h2, d: to, n: old, m: words })
                    if to == n && words == m && old != d && d != n && d != m && self.copies[old as usize] == Some(d));
        if both {
            self.will_write_vector(n);
        }
        let (z, x, y) = (self.read_vector(d), self.read_vector(n), self.read_vector(m));
        let (abcd, efgh) = if first { (z, x) } else { (x, z) };
        let (cdgh, abef, words) = (X(1), X(2), X(0));
        let a = &mut self.asm;
        a.vector_i(sse::PSHUFD, X(3), abcd, 0xb1);
        a.vector_i(sse::PSHUFD, abef, efgh, 0xb1);
        a.movaps(cdgh, abef);
        a.vector(sse::PUNPCKL[3], abef, X(3));
        a.vector(sse::PUNPCKH[3], cdgh, X(3));
        // Two rounds each; what was abef becomes cdgh.
        a.movaps(words, y);
        a.vector(sse::SHA256RNDS2, cdgh, abef);
        a.vector_i(sse::PSHUFD, words, words, 0x0e);
        a.vector(sse::SHA256RNDS2, abef, cdgh);
        let half = |t: &mut Self, g: Reg, upper: bool| {
            let r = t.write_vector(g);
            t.asm.movaps(r, abef);
            t.asm.vector(if upper { sse::PUNPCKH[3] } else { sse::PUNPCKL[3] }, r, cdgh);
            t.asm.vector_i(sse::PSHUFD, r, r, 0xb1);
        };
        half(self, d, first);
        if both {
            half(self, n, false);
        }
        self.skip_following(both);
    }
}
