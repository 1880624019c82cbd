//! Floating point, Advanced SIMD and cryptographic instructions: everything of the A64 group "Data Processing --
//! Scalar Floating-Point and Advanced SIMD" (Arm ARM, C4.1) but memory accesses.
//!
//! Beyond Armv8.0 there are, as the ID registers have to say: AES with the long PMULL, SHA1, SHA256, SHA512, SHA3, RDM,
//! DotProd, FHM, JSCVT, FCMA, FRINTTS, and half precision (FP16) in both scalar and vector form. There are not: BF16,
//! I8MM, SM3, SM4.
//!
//! Each instruction has a handler of its own for each element size and vector length, chosen by [`decode`].

mod arith;
mod convert;
mod crypto;
mod estimate;
mod lanes;
mod permute;
mod scalar;
mod shift;
mod softfloat;
mod vector_fp;
mod vector_int;
mod vector_long;

use crate::Regs;

/// Executes one instruction, given its encoding. Touches neither memory nor PC and cannot fail.
pub type Handler = fn(&mut Regs, u32);

/// The handler of `insn`, or `None` when it is unallocated, of a feature that is absent, or of another group.
/// Whether FP is enabled at the current exception level is for the caller to check.
pub fn decode(insn: u32) -> Option<Handler> {
    match insn >> 24 & 0x5f {
        0x1e | 0x1f if insn >> 28 & 0b101 == 1 => scalar::decode(insn),
        0x0e | 0x0f if insn >> 31 == 0 => vector(insn, insn >> 30 & 1),
        0x4e | 0x4f if insn >> 31 == 0 => vector(insn, 1),
        0x5e | 0x5f if insn >> 31 == 0 => scalar_simd(insn),
        0x4e if insn >> 24 == 0xce => crypto_wide(insn),
        _ => None,
    }
}

/// What of the host's [`decode`] chooses by, as bits.
pub(crate) fn host_features() -> u32 {
    crypto::host_features()
}

/// The size of floating-point lanes in most encodings: bit 22 is set for double.
fn fp_size(i: u32) -> u32 {
    2 + (i >> 22 & 1)
}

/// Whether `i` has the bits `value` where `mask` has ones.
fn is(i: u32, value: u32, mask: u32) -> bool {
    i & mask == value
}

/// The opcodes by element that are floating point's, by U and bits 15:12.
fn by_element(i: u32, q: u32) -> Option<Handler> {
    let (u, op, size) = (i >> 29 & 1, i >> 12 & 15, i >> 22 & 3);
    let fp = match (u, op) {
        (0, 0b0001 | 0b0101 | 0b1001) | (1, 0b0001 | 0b0011 | 0b0101 | 0b0111 | 0b1001) => true,
        (0, 0b0000 | 0b0100) => size == 2,
        (1, 0b1000 | 0b1100) => size == 2,
        _ => false,
    };
    if fp { vector_fp::by_element(i, q) } else { vector_long::by_element(i, q) }
}

/// Vector instructions: bit 28 clear.
fn vector(i: u32, q: u32) -> Option<Handler> {
    let u = i >> 29 & 1;
    if i >> 24 & 1 == 1 {
        return match (i >> 23 & 1, i >> 10 & 1) {
            (_, 0) => by_element(i, q),
            (0, _) if i >> 19 & 15 == 0 => permute::modified_immediate(i),
            (0, _) => shift::decode(i, q),
            _ => None,
        };
    }
    if is(i, 0x0e20_0400, 0x9f20_0400) {
        return match i >> 11 & 31 {
            0b11101 if u == 0 => vector_fp::three_same_long(i),
            0b11001 if u == 1 => vector_fp::three_same_long(i),
            op @ 0b11000.. => vector_fp::three_same(u, i >> 23 & 1, op & 7, fp_size(i), q),
            _ => vector_int::three_same(i, q),
        };
    }
    if is(i, 0x0e00_8400, 0x9f20_8400) {
        return vector_int::three_same_extra(i, q).or_else(|| vector_fp::three_same_extra(i, q));
    }
    if is(i, 0x0e20_0000, 0x9f20_0c00) {
        return vector_long::three_different(i, q);
    }
    if is(i, 0x4e28_0800, 0xff3e_0c00) {
        return crypto::aes(i);
    }
    if is(i, 0x0e20_0800, 0x9f3e_0c00) {
        return vector_int::two_misc(i, q)
            .or_else(|| vector_fp::two_misc(u, i >> 23 & 1, i >> 12 & 31, fp_size(i), q));
    }
    if is(i, 0x0e78_0800, 0x9f7e_0c00) {
        return vector_fp::two_misc(u, i >> 23 & 1, i >> 12 & 31, 1, q);
    }
    if is(i, 0x0e30_0800, 0x9f3e_0c00) {
        return vector_int::across_lanes(i, q).or_else(|| vector_fp::across_lanes(i, q));
    }
    if is(i, 0x0e40_0400, 0x9f60_c400) {
        return vector_fp::three_same(u, i >> 23 & 1, i >> 11 & 7, 1, q);
    }
    if is(i, 0x0e00_0400, 0x9fe0_8400) {
        return permute::copy(i);
    }
    if is(i, 0x0e00_0000, 0xbf20_8c00) {
        return permute::table_lookup(i);
    }
    if is(i, 0x0e00_0800, 0xbf20_8c00) {
        return permute::zip(i);
    }
    if is(i, 0x2e00_0000, 0xbf20_8400) {
        return permute::ext(i);
    }
    None
}

/// Scalar forms of Advanced SIMD: bits 30 and 28 set. The shape is 2 in the shared decoders.
fn scalar_simd(i: u32) -> Option<Handler> {
    let u = i >> 29 & 1;
    if i >> 24 & 1 == 1 {
        return match (i >> 23 & 1, i >> 10 & 1) {
            (_, 0) => by_element(i, 2),
            (0, _) => shift::decode(i, 2),
            _ => None,
        };
    }
    if is(i, 0x5e20_0400, 0xdf20_0400) {
        return match i >> 11 & 31 {
            op @ 0b11000.. => vector_fp::three_same(u, i >> 23 & 1, op & 7, fp_size(i), 2),
            _ => vector_int::three_same(i, 2),
        };
    }
    if is(i, 0x5e00_8400, 0xdf20_8400) {
        return vector_int::three_same_extra(i, 2);
    }
    if is(i, 0x5e20_0000, 0xdf20_0c00) {
        return vector_long::three_different(i, 2);
    }
    if is(i, 0x5e28_0800, 0xff3e_0c00) {
        return crypto::sha_two(i);
    }
    if is(i, 0x5e20_0800, 0xdf3e_0c00) {
        return vector_int::two_misc(i, 2)
            .or_else(|| vector_fp::two_misc(u, i >> 23 & 1, i >> 12 & 31, fp_size(i), 2));
    }
    if is(i, 0x5e78_0800, 0xdf7e_0c00) {
        return vector_fp::two_misc(u, i >> 23 & 1, i >> 12 & 31, 1, 2);
    }
    if is(i, 0x5e30_0800, 0xdf3e_0c00) {
        return vector_int::scalar_pairwise(i).or_else(|| vector_fp::scalar_pairwise(i));
    }
    if is(i, 0x5e40_0400, 0xdf60_c400) {
        return vector_fp::three_same(u, i >> 23 & 1, i >> 11 & 7, 1, 2);
    }
    if is(i, 0x5e00_0400, 0xdfe0_8400) {
        return permute::scalar_copy(i);
    }
    if is(i, 0x5e00_0000, 0xff20_8c00) {
        return crypto::sha_three(i);
    }
    None
}

/// SHA-512 and SHA-3.
fn crypto_wide(i: u32) -> Option<Handler> {
    if is(i, 0xce60_8000, 0xffe0_b000) {
        return crypto::sha512_three(i);
    }
    if is(i, 0xcec0_8000, 0xffff_f000) {
        return crypto::sha512_two(i);
    }
    if is(i, 0xce00_0000, 0xff80_8000) {
        return crypto::four_register(i);
    }
    if is(i, 0xce80_0000, 0xffe0_0000) {
        return Some(crypto::xar);
    }
    None
}
