//! Floating point, Advanced SIMD and cryptography: the guest's own instructions, where the host has them.
//!
//! The host's FPCR stays as Rust programs have it, all zero; where the guest's is not, the interpreter goes on. Results
//! are then the same to the bit (Arm ARM, A1.5). What may set bits of FPSR has them collected in the host's, which is
//! cleared first and joined to the guest's at every way out.

use super::asm::with;
use super::block::Translator;
use crate::isa::effects::Registers;
use crate::isa::insn::{Insn, Reg};
use crate::isa::simd::{self, Crypto, Float1, Simd};

/// What an instruction needs of the host's processor and of its floating-point state.
struct Needs {
    feature: bool,
    /// It looks at FPCR or may set bits of FPSR.
    status: bool,
}

impl Translator<'_> {
    pub(super) fn simd(&mut self) {
        let word = self.word();
        let Some(f) = self.input.fp_handler(self.at) else { return self.call_handler() };
        match self.needs(word) {
            Needs { feature: true, status } => self.same(word, status),
            Needs { feature: false, .. } => self.call_fp(f),
        }
    }

    fn needs(&self, word: u32) -> Needs {
        let has = |feature| Needs { feature, status: false };
        let f = self.features;
        match simd::decode(word) {
            Some(Simd::Crypto { op, .. }) => match op {
                Crypto::Aese | Crypto::Aesd | Crypto::Aesmc | Crypto::Aesimc => has(f.aes),
                Crypto::Pmull | Crypto::Pmull2 => has(f.pmull),
                _ => has(f.sha2),
            },
            Some(Simd::Eor3 { .. }) => has(f.sha3),
            Some(Simd::Javascript { .. }) => Needs { feature: f.jsconv, status: true },
            Some(Simd::Float1 { op: Float1::Bounded { .. }, .. }) => {
                Needs { feature: f.frintts, status: true }
            }
            // FMOV of an immediate of half precision.
            Some(Simd::Const { .. }) if word & 0x9ff8_0c00 == 0x0f00_0c00 || word >> 22 & 0x3ff == 0x7b => {
                has(f.fp16)
            }
            Some(
                Simd::Float1 { op: Float1::Abs | Float1::Neg, .. }
                | Simd::Const { .. }
                | Simd::Select { .. }
                | Simd::FromUpper { .. }
                | Simd::ToUpper { .. }
                | Simd::Three { .. }
                | Simd::Two { .. }
                | Simd::Across { .. }
                | Simd::PairSum { .. }
                | Simd::Long { .. }
                | Simd::ByLane { .. }
                | Simd::OrConst { .. }
                | Simd::AndConst { .. }
                | Simd::Shift { .. }
                | Simd::Permute { .. }
                | Simd::Extract { .. }
                | Simd::Table { .. }
                | Simd::Dup { .. }
                | Simd::Lane { .. }
                | Simd::DupGeneral { .. }
                | Simd::ToGeneral { .. }
                | Simd::FromGeneral { .. }
                | Simd::Insert { .. },
            ) => has(true),
            Some(_) => Needs { feature: true, status: true },
            None => Needs { feature: self.unnamed(word), status: !is_quiet(word) },
        }
    }

    /// Whether the host has an instruction that has no name.
    fn unnamed(&self, word: u32) -> bool {
        let f = self.features;
        let is = |value: u32, mask: u32| word & mask == value;
        // SHA512 and SHA3.
        if word >> 24 == 0xce {
            return f.sha3;
        }
        // Scalars of half precision, but for conversions to and from other numbers.
        if is(0x1ec0_0000, 0x5ec0_0000) {
            return f.fp16;
        }
        // Vectors of them: three of one kind, two, and across lanes.
        if is(0x0e40_0400, 0x8f60_c400) || is(0x0e78_0800, 0x8f7e_0c00) || is(0x0e30_c800, 0xbf7f_cc00) {
            return f.fp16;
        }
        // Pairs of half precision as scalars, and immediates.
        if is(0x5e30_0800, 0xff7e_0c00) || is(0x0f00_0c00, 0x9ff8_0c00) {
            return f.fp16;
        }
        // Fixed point: SCVTF, UCVTF, FCVTZS and FCVTZU by the element.
        if is(0x0f10_e400, 0x8ff0_e400) {
            return f.fp16;
        }
        // Three different ones of the kinds that came later, and the same by element.
        if is(0x0e00_8400, 0x8f20_8400) {
            return match word >> 11 & 15 {
                0 | 1 => f.rdm,
                2 => f.dotprod,
                _ => f.fcma && f.fp16,
            };
        }
        if is(0x0e20_ec00, 0xbf20_fc00) || is(0x2e20_cc00, 0xbf20_fc00) {
            return f.fhm;
        }
        if is(0x0f00_0000, 0x8f00_0400) {
            let size = word >> 22 & 3;
            return match (word >> 29 & 1, word >> 12 & 15) {
                (1, 13 | 15) => f.rdm,
                (_, 14) => f.dotprod,
                (0, 0 | 4) | (1, 8 | 12) if size == 2 => f.fhm,
                (1, 1 | 3 | 5 | 7) => f.fcma && f.fp16,
                (_, 1 | 5 | 9) => size != 0 || f.fp16,
                _ => true,
            };
        }
        // FRINT32Z and its kind.
        if is(0x0e21_e800, 0x9fbf_ec00) {
            return f.frintts;
        }
        true
    }

    /// The host does the same.
    fn same(&mut self, word: u32, status: bool) {
        let (mut reads, writes) = (Insn::Simd.reads(word), Insn::Simd.writes(word));
        if reads.vector == u32::MAX {
            reads = Registers { vector: 0, ..reads };
            // Whatever its fields may be.
            let field = |at: u32| (word >> at & 31) as Reg;
            let tables = word & 0xbf20_8c00 == 0x0e00_0000;
            let last = if tables { 3 } else { 0 };
            for v in [field(0), field(10), field(16), field(16) & 15] {
                reads = reads.v(v);
            }
            for n in 0..=last {
                reads = reads.v(field(5) + n);
            }
        }
        if status {
            self.begin_fpsr();
        }
        if reads.flags {
            self.need_flags();
        }
        for v in (0..32).filter(|v| reads.has_vector(*v)) {
            self.read_vector(v);
        }
        let one = |general: u64| (general != 0).then(|| general.trailing_zeros() as Reg);
        let n = one(reads.general).map(|g| self.read(g));
        let d = one(writes.general).map(|g| self.write(g));
        for v in (0..32).filter(|v| writes.has_vector(*v)) {
            self.write_vector(v);
        }
        self.asm.word(with(word, d, n, None, None));
        if writes.flags {
            self.set_flags();
        }
    }
}

/// Whether an instruction that has no name is known to be of integers and not to saturate, so that it knows nothing of
/// FPCR and FPSR (Arm ARM, C4.1, the tables of "Advanced SIMD").
fn is_quiet(word: u32) -> bool {
    let is = |value: u32, mask: u32| word & mask == value;
    let unsigned = word >> 29 & 1 == 1;
    // SHA512, SHA3.
    if word >> 24 == 0xce {
        return true;
    }
    // TBL and TBX.
    if is(0x0e00_0000, 0xbf20_8c00) {
        return true;
    }
    // Three different ones, but for SQDMLAL, SQDMLSL and SQDMULL.
    if is(0x0e20_0000, 0x9f20_0c00) {
        return !matches!(word >> 12 & 15, 9 | 11 | 13);
    }
    // By element: MUL, MLA, MLS and their long forms, SDOT.
    if is(0x0f00_0000, 0x9f00_0400) {
        return matches!((unsigned, word >> 12 & 15), (_, 2 | 6 | 10 | 14) | (false, 8) | (true, 0 | 4));
    }
    // Across lanes.
    if is(0x0e30_0800, 0x9f3e_0c00) {
        return matches!(word >> 12 & 31, 3 | 10 | 26 | 27);
    }
    // Three alike: halving, shifts, differences, maxima of pairs, polynomials.
    if is(0x0e20_0400, 0x9f20_0400) {
        return matches!(word >> 11 & 31, 0 | 2 | 4 | 8 | 10 | 14 | 15 | 19 | 20 | 21);
    }
    // Two: sums of pairs, CLS, CLZ, CNT, RBIT, SHLL.
    if is(0x0e20_0800, 0x9f3e_0c00) {
        return matches!(word >> 12 & 31, 2 | 4 | 5 | 6 | 19);
    }
    // Shifts by a number that round.
    if is(0x0f00_0400, 0x9f80_0400) && word >> 19 & 15 != 0 {
        return matches!((unsigned, word >> 11 & 31), (_, 4 | 6) | (false, 17));
    }
    false
}
