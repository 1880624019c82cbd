//! Code that all blocks share: the ways in and out.

use super::asm::{
    Arith, Asm, Cc, FUEL, M, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, TAG, TLB, at,
    indexed,
};
use super::layout::{self, BIAS};
use super::triples::TRIPLES;
use crate::cpu::BESIDE;
use crate::interp::handlers::Flags;
use crate::jit::Entries;
use crate::jit::ways::Ways;

/// 16 bytes that vector instructions have as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Constant {
    /// The sign of a number in the lowest lane, and all other bits of it.
    Sign64,
    Sign32,
    Rest64,
    Rest32,
    /// The signs of both halves.
    Signs,
    /// Shuffles that turn the bytes of 8, 4 and 2 round.
    Rev64,
    Rev32,
    Rev16,
    /// What takes an index from 16 on beyond 127, for PSHUFB.
    Beyond,
    /// What the host's SHA-1 adds, taken away.
    Sha1c,
    Sha1p,
    Sha1m,
    /// In all lanes: the sign, the rest, the exponent's bits, and the exponent of the smallest normal numbers.
    Signs32,
    Rests32,
    Rests64,
    Exponents32,
    Exponents64,
    Smallest32,
    Smallest64,
    /// The low half of each byte, and how many bits of a number below 16 are set.
    LowHalves,
    BitCounts,
    /// Shuffles that bring the first elements of structures together, then the second ones, and so on.
    Pairs8,
    Pairs16,
    Fours8,
    Fours16,
    /// 16 in each byte.
    Sixteens,
    /// For CRC-32 of 64 bits, see `Translator::crc32`.
    Crc32,
}

impl Constant {
    const ALL: [(Self, u128); 27] = [
        (Self::Sign64, 1 << 63),
        (Self::Sign32, 1 << 31),
        (Self::Rest64, (1 << 63) - 1),
        (Self::Rest32, (1 << 31) - 1),
        (Self::Signs, 1 << 127 | 1 << 63),
        (Self::Rev64, 0x0809_0a0b_0c0d_0e0f_0001_0203_0405_0607),
        (Self::Rev32, 0x0c0d_0e0f_0809_0a0b_0405_0607_0001_0203),
        (Self::Rev16, 0x0e0f_0c0d_0a0b_0809_0607_0405_0203_0001),
        (Self::Beyond, 0x7070_7070_7070_7070_7070_7070_7070_7070),
        (Self::Sha1c, four(0x5a82_7999)),
        (Self::Sha1p, four(0x6ed9_eba1)),
        (Self::Sha1m, four(0x8f1b_bcdc)),
        (Self::Signs32, each32(1 << 31)),
        (Self::Rests32, each32((1 << 31) - 1)),
        (Self::Rests64, each64((1 << 63) - 1)),
        (Self::Exponents32, each32(0xff << 23)),
        (Self::Exponents64, each64(0x7ff << 52)),
        (Self::Smallest32, each32(1 << 23)),
        (Self::Smallest64, each64(1 << 52)),
        (Self::LowHalves, each64(0x0f0f_0f0f_0f0f_0f0f)),
        (Self::BitCounts, 0x0403_0302_0302_0201_0302_0201_0201_0100),
        (Self::Pairs8, 0x0f0d_0b09_0705_0301_0e0c_0a08_0604_0200),
        (Self::Pairs16, 0x0f0e_0b0a_0706_0302_0d0c_0908_0504_0100),
        (Self::Fours8, 0x0f0b_0703_0e0a_0602_0d09_0501_0c08_0400),
        (Self::Fours16, 0x0f0e_0706_0d0c_0504_0b0a_0302_0908_0100),
        (Self::Sixteens, each64(0x1010_1010_1010_1010)),
        (Self::Crc32, CRC32_POLYNOMIAL << 64 | crc32_quotient() as u128),
    ];
}

/// The polynomial of CRC-32, bit 0 being the highest power of x as there, the 32nd.
const CRC32_POLYNOMIAL: u128 = 0x1_db71_0641;

/// x to the 96th by that polynomial, bit 0 being the 64th power of x and without the lowest one.
const fn crc32_quotient() -> u64 {
    // Long division, the highest power first: what is left of it is below x to the 33rd, with that at bit 0.
    let (mut quotient, mut rest) = (0, 1);
    let mut power = 0;
    while power < 64 {
        if rest & 1 == 1 {
            quotient |= 1 << power;
            rest ^= CRC32_POLYNOMIAL as u64;
        }
        rest >>= 1;
        power += 1;
    }
    quotient
}

const fn four(x: u32) -> u128 {
    each32(x.wrapping_neg())
}

const fn each32(x: u32) -> u128 {
    x as u128 * 0x0000_0001_0000_0001_0000_0001_0000_0001
}

const fn each64(x: u64) -> u128 {
    (x as u128) << 64 | x as u128
}

/// Code that all blocks share. The operation is in RSI, an address in RAX, the slot of the jump cache at four times
/// RCX.
#[derive(Clone, Copy)]
pub(super) struct Stubs {
    pub ways: Ways,
    /// Where the jump cache has something else at RCX than the address in RAX, which has RDI for a key and RSI for a
    /// page; RDX is where the cache is.
    pub beside: usize,
    /// Calls a function of `fp`.
    pub fp: usize,
    constants: usize,
    triples: usize,
}

/// The flags of an addition, or of a subtraction whose carry was turned round, to NZCV in EAX.
pub(super) fn nzcv_from_host(a: &mut Asm) {
    // Into AH go sign (bit 15 of RAX), zero (14) and carry (8), into AL the overflow (0).
    a.lahf();
    a.set_al(Cc::O);
    a.arith_i(Arith::And, false, RAX, 0xc101);
    // They come to bits 31, 30, 29 and 28; the other products are outside.
    a.imul_i(RAX, RAX, 1 << 16 | 1 << 21 | 1 << 28);
    a.arith_i(Arith::And, false, RAX, 0xf000_0000_u32 as i32);
}

/// Stores NZCV from EAX.
pub(super) fn set_nzcv(a: &mut Asm) {
    a.store(2, layout::NZCV, RAX);
    a.store_byte_i(layout::FLAGS, Flags::Known as u8);
}

const SAVED: [super::asm::R; 6] = [RBX, RBP, R12, R13, R14, R15];

fn restore(a: &mut Asm) {
    a.store(3, layout::FUEL, FUEL);
    a.arith_i(Arith::Add, true, RSP, 8);
    for r in SAVED.into_iter().rev() {
        a.pop(r);
    }
}

impl Stubs {
    pub(super) fn emit(a: &mut Asm, entries: &Entries) -> Self {
        let mut s = Ways { enter: a.here(), ..Ways::default() };
        for r in SAVED {
            a.push(r);
        }
        // Calls from here on find the stack aligned.
        a.arith_i(Arith::Sub, true, RSP, 8);
        a.lea(true, RBX, at(RDI, BIAS));
        Self::regime(a);
        a.jmp_r(RDX);

        s.leave = a.here();
        restore(a);
        a.ret();

        s.exit = a.here();
        a.lea(true, RDI, at(RBX, -BIAS));
        restore(a);
        a.mov_i(RAX, entries.exit);
        a.jmp_r(RAX);

        s.cold = a.here();
        a.lea(true, RDI, at(RBX, -BIAS));
        restore(a);
        a.mov_i(RAX, entries.cold);
        a.jmp_r(RAX);

        s.out = a.here();
        a.arith_m(Arith::Or, true, RAX, layout::PAGE);
        a.store(3, layout::PC, RAX);
        a.jmp_to(s.leave);

        s.chain = a.here();
        a.load(3, false, true, RAX, at(RSI, layout::OP_IMM));
        a.test(true, RAX, RAX);
        let known = a.jcc(Cc::NE);
        a.store(3, layout::PATCH, RSI);
        a.load(1, false, false, RAX, at(RSI, layout::OP_TARGET));
        a.jmp_to(s.out);
        a.land(known);
        a.mov(true, RSI, RAX);
        Self::go_on(a, &s, entries);

        s.unknown = a.here();
        a.lea(true, RDI, at(RBX, -BIAS));
        a.mov(true, RSI, RAX);
        restore(a);
        a.mov_i(RAX, entries.unknown);
        a.jmp_r(RAX);

        let beside = a.here();
        a.arith_i(Arith::Xor, false, RCX, 4);
        a.arith_i(Arith::Or, true, RDI, BESIDE as i32);
        a.arith_m(Arith::Cmp, true, RDI, indexed(RDX, RCX, 2, layout::JUMP_KEY));
        a.jcc_to(Cc::NE, s.unknown);
        a.store(3, layout::PAGE, RSI);
        a.jmp_m(indexed(RDX, RCX, 2, layout::JUMP_CODE));

        s.interpreted = a.here();
        a.load(3, false, true, RDX, layout::JUMP_OPS);
        a.load(3, false, true, RSI, indexed(RDX, RCX, 1, 0));
        a.jmp_to(s.cold);

        s.call = a.here();
        a.lea(true, RDI, at(RBX, -BIAS));
        a.store(3, layout::FUEL, FUEL);
        a.arith_i(Arith::Sub, true, RSP, 8);
        a.mov_i(RAX, entries.call);
        a.call(RAX);
        a.arith_i(Arith::Add, true, RSP, 8);
        Self::regime(a);
        a.test_al();
        let ended = a.jcc(Cc::E);
        a.ret();
        a.land(ended);
        a.arith_i(Arith::Add, true, RSP, 8);
        a.jmp_to(s.leave);

        let fp = a.here();
        a.store(3, layout::FUEL, FUEL);
        a.arith_i(Arith::Sub, true, RSP, 8);
        a.mov_i(RAX, entries.fp);
        a.call(RAX);
        a.arith_i(Arith::Add, true, RSP, 8);
        a.load(3, false, true, FUEL, layout::FUEL);
        a.ret();

        // NZCV's form; uses RAX and RCX.
        s.flags = a.here();
        Self::flags(a);

        a.buf.resize(a.buf.len().next_multiple_of(16), 0);
        let constants = a.here();
        for (_, value) in Constant::ALL {
            a.buf.extend_from_slice(&value.to_le_bytes());
        }
        let triples = a.here();
        for value in TRIPLES.as_flattened().as_flattened() {
            a.buf.extend_from_slice(&value.to_le_bytes());
        }
        Self { ways: s, beside, fp, constants, triples }
    }

    /// Where the nine shuffles of [`TRIPLES`] are.
    pub(super) fn triples(&self, store: bool, size: u8) -> usize {
        self.triples + 16 * 9 * (4 * usize::from(store) + usize::from(size))
    }

    /// Where a constant is.
    pub(super) fn constant(&self, which: Constant) -> usize {
        self.constants + 16 * which as usize
    }

    /// Loads the fuel and what depends on the exception level and the address space.
    fn regime(a: &mut Asm) {
        a.load(3, false, true, FUEL, layout::FUEL);
        a.load(3, false, true, TLB, layout::TLB);
        a.load(3, false, true, TAG, layout::TAG);
    }

    /// On at the operation in RSI: in its machine code if it has some, or in the interpreter.
    fn go_on(a: &mut Asm, s: &Ways, entries: &Entries) {
        a.mov_i(RAX, entries.compiled);
        a.arith_m(Arith::Cmp, true, RAX, at(RSI, layout::OP_HANDLER));
        a.jcc_to(Cc::NE, s.cold);
        a.load(3, false, true, RAX, at(RSI, layout::OP_IMM));
        a.jmp_r(RAX);
    }

    fn flags(a: &mut Asm) {
        a.cmp_byte(layout::FLAGS, Flags::Known as u8);
        let known = a.jcc(Cc::E);
        let [x, y]: [M; 2] = layout::COMPARED;
        a.load(3, false, true, RAX, x);
        a.load(3, false, true, RCX, y);
        a.cmp_byte(layout::FLAGS, Flags::Sub32 as u8);
        let wide = a.jcc(Cc::NE);
        a.arith(Arith::Cmp, false, RAX, RCX);
        let both = a.jmp();
        a.land(wide);
        a.arith(Arith::Cmp, true, RAX, RCX);
        a.land(both);
        a.cmc();
        nzcv_from_host(a);
        set_nzcv(a);
        a.land(known);
        a.ret();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_in_the_order_of_their_names() {
        for (n, (name, _)) in Constant::ALL.into_iter().enumerate() {
            assert_eq!(name as usize, n);
        }
    }
}
