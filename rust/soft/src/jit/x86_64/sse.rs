//! The assembler's instructions on vector registers.

use super::asm::{Asm, M, R, X};

/// An instruction on two vector registers, or one and memory: prefix, what comes between 0F and the opcode, opcode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    prefix: u8,
    map: u8,
    opcode: u8,
}

/// 66 0F.
const fn int(opcode: u8) -> Op {
    Op { prefix: 0x66, map: 0, opcode }
}

/// 66 0F 38.
const fn int38(opcode: u8) -> Op {
    Op { prefix: 0x66, map: 0x38, opcode }
}

/// 66 0F 3A, with a byte behind.
const fn int3a(opcode: u8) -> Op {
    Op { prefix: 0x66, map: 0x3a, opcode }
}

/// 0F 38.
const fn sha(opcode: u8) -> Op {
    Op { prefix: 0, map: 0x38, opcode }
}

pub(super) const PAND: Op = int(0xdb);
pub(super) const PANDN: Op = int(0xdf);
pub(super) const POR: Op = int(0xeb);
pub(super) const PXOR: Op = int(0xef);
/// By size of a lane, as the ones below.
pub(super) const PADD: [Op; 4] = [int(0xfc), int(0xfd), int(0xfe), int(0xd4)];
pub(super) const PSUB: [Op; 4] = [int(0xf8), int(0xf9), int(0xfa), int(0xfb)];
pub(super) const PCMPEQ: [Op; 4] = [int(0x74), int(0x75), int(0x76), int38(0x29)];
pub(super) const PCMPGT: [Op; 4] = [int(0x64), int(0x65), int(0x66), int38(0x37)];
pub(super) const PMAXS: [Op; 3] = [int38(0x3c), int(0xee), int38(0x3d)];
pub(super) const PMINS: [Op; 3] = [int38(0x38), int(0xea), int38(0x39)];
pub(super) const PMAXU: [Op; 3] = [int(0xde), int38(0x3e), int38(0x3f)];
pub(super) const PMINU: [Op; 3] = [int(0xda), int38(0x3a), int38(0x3b)];
pub(super) const PABS: [Op; 3] = [int38(0x1c), int38(0x1d), int38(0x1e)];
pub(super) const PUNPCKL: [Op; 4] = [int(0x60), int(0x61), int(0x62), int(0x6c)];
pub(super) const PUNPCKH: [Op; 4] = [int(0x68), int(0x69), int(0x6a), int(0x6d)];
/// From lanes of this size to the next.
pub(super) const PMOVZX: [Op; 3] = [int38(0x30), int38(0x33), int38(0x35)];
pub(super) const PMOVSX: [Op; 3] = [int38(0x20), int38(0x23), int38(0x25)];
/// Of 16 and 32 bits.
pub(super) const PMULL: [Op; 2] = [int(0xd5), int38(0x40)];
pub(super) const PHADD: [Op; 2] = [int38(0x01), int38(0x02)];
/// Of the even lanes of 32 bits.
pub(super) const PMULUDQ: Op = int(0xf4);
pub(super) const PMULDQ: Op = int38(0x28);
/// Rounded up; of 8 and 16 bits.
pub(super) const PAVG: [Op; 2] = [int(0xe0), int(0xe3)];
pub(super) const PACKUSDW: Op = int38(0x2b);
pub(super) const PACKUSWB: Op = int(0x67);
pub(super) const PACKSSDW: Op = int(0x6b);
pub(super) const PSADBW: Op = int(0xf6);
pub(super) const PADDUSB: Op = int(0xdc);
pub(super) const PSHUFB: Op = int38(0x00);
pub(super) const PSHUFD: Op = int(0x70);
pub(super) const PSHUFLW: Op = Op { prefix: 0xf2, map: 0, opcode: 0x70 };
pub(super) const PSHUFHW: Op = Op { prefix: 0xf3, map: 0, opcode: 0x70 };
pub(super) const SHUFPS: Op = Op { prefix: 0, map: 0, opcode: 0xc6 };
pub(super) const PALIGNR: Op = int3a(0x0f);
pub(super) const INSERTPS: Op = int3a(0x21);
pub(super) const ROUND: [Op; 2] = [int3a(0x0a), int3a(0x0b)];
pub(super) const PCLMULQDQ: Op = int3a(0x44);
pub(super) const AESENC: Op = int38(0xdc);
pub(super) const AESENCLAST: Op = int38(0xdd);
pub(super) const AESDEC: Op = int38(0xde);
pub(super) const AESDECLAST: Op = int38(0xdf);
pub(super) const AESIMC: Op = int38(0xdb);
pub(super) const SHA1RNDS4: Op = Op { prefix: 0, map: 0x3a, opcode: 0xcc };
pub(super) const SHA256RNDS2: Op = sha(0xcb);
pub(super) const SHA256MSG1: Op = sha(0xcc);
pub(super) const SHA256MSG2: Op = sha(0xcd);
pub(super) const XORPS: Op = Op { prefix: 0, map: 0, opcode: 0x57 };
pub(super) const ANDPS: Op = Op { prefix: 0, map: 0, opcode: 0x54 };
pub(super) const ORPS: Op = Op { prefix: 0, map: 0, opcode: 0x56 };

/// Of the lowest number, single or double.
const fn scalar(opcode: u8) -> [Op; 2] {
    [Op { prefix: 0xf3, map: 0, opcode }, Op { prefix: 0xf2, map: 0, opcode }]
}

pub(super) const SQRT: [Op; 2] = scalar(0x51);
pub(super) const ADD: [Op; 2] = scalar(0x58);
pub(super) const MUL: [Op; 2] = scalar(0x59);
pub(super) const SUB: [Op; 2] = scalar(0x5c);
pub(super) const MIN: [Op; 2] = scalar(0x5d);
pub(super) const DIV: [Op; 2] = scalar(0x5e);
pub(super) const MAX: [Op; 2] = scalar(0x5f);
/// To the other size.
pub(super) const CONVERT: [Op; 2] = scalar(0x5a);
pub(super) const UCOMIS: [Op; 2] = [Op { prefix: 0, map: 0, opcode: 0x2e }, int(0x2e)];

/// Of all lanes, single or double.
const fn packed(opcode: u8) -> [Op; 2] {
    [Op { prefix: 0, map: 0, opcode }, int(opcode)]
}

pub(super) const SQRTP: [Op; 2] = packed(0x51);
pub(super) const ADDP: [Op; 2] = packed(0x58);
pub(super) const MULP: [Op; 2] = packed(0x59);
pub(super) const SUBP: [Op; 2] = packed(0x5c);
pub(super) const MINP: [Op; 2] = packed(0x5d);
pub(super) const DIVP: [Op; 2] = packed(0x5e);
pub(super) const MAXP: [Op; 2] = packed(0x5f);
/// With what is compared behind: 0 equal, 1 less, 2 less or equal, 3 unordered.
pub(super) const CMPP: [Op; 2] = packed(0xc2);
pub(super) const HADDP: [Op; 2] = [Op { prefix: 0xf2, map: 0, opcode: 0x7c }, int(0x7c)];
pub(super) const ROUNDP: [Op; 2] = [int3a(0x08), int3a(0x09)];
/// From two singles, and to two with zeros above.
pub(super) const CVTPS2PD: Op = Op { prefix: 0, map: 0, opcode: 0x5a };
pub(super) const CVTPD2PS: Op = int(0x5a);
/// Integers of 32 bits to singles, and back rounded to zero.
pub(super) const CVTDQ2PS: Op = Op { prefix: 0, map: 0, opcode: 0x5b };
pub(super) const CVTTPS2DQ: Op = Op { prefix: 0xf3, map: 0, opcode: 0x5b };
pub(super) const ANDNPS: Op = Op { prefix: 0, map: 0, opcode: 0x55 };

/// Shifts of lanes by a number, by their number in opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ps {
    Rl = 2,
    Ra = 4,
    Ll = 6,
}

/// Fused multiplications and additions: what becomes of the destination, the addend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fma {
    /// `x * y + d`
    Madd = 0xb9,
    /// `x * y - d`
    Msub = 0xbb,
    /// `-(x * y) + d`
    Nmadd = 0xbd,
    /// `-(x * y) - d`
    Nmsub = 0xbf,
}

impl Op {
    fn bytes(self) -> ([u8; 3], usize) {
        match self.map {
            0 => ([0x0f, self.opcode, 0], 2),
            map => ([0x0f, map, self.opcode], 3),
        }
    }
}

impl Asm {
    fn op_with(&mut self, op: Op, wide: bool, reg: u8, rm: u8) {
        if op.prefix != 0 {
            self.u8(op.prefix);
        }
        let (bytes, n) = op.bytes();
        self.rr(wide, &bytes[..n], reg, rm);
    }

    pub(super) fn vector(&mut self, op: Op, d: X, s: X) {
        self.op_with(op, false, d.0, s.0);
    }

    pub(super) fn vector_i(&mut self, op: Op, d: X, s: X, imm: u8) {
        self.vector(op, d, s);
        self.u8(imm);
    }

    /// The second operand is at a place in the code memory.
    pub(super) fn vector_at(&mut self, op: Op, d: X, place: usize) {
        if op.prefix != 0 {
            self.u8(op.prefix);
        }
        let (bytes, n) = op.bytes();
        self.r_at(&bytes[..n], d.0, place);
    }

    /// The same with a byte behind.
    pub(super) fn vector_i_at(&mut self, op: Op, d: X, place: usize, imm: u8) {
        // Distances are from the end of the instruction.
        self.vector_at(op, d, place - 1);
        self.u8(imm);
    }

    /// 16 bytes.
    pub(super) fn movaps(&mut self, d: X, s: X) {
        if d != s {
            self.rr(false, &[0x0f, 0x28], d.0, s.0);
        }
    }

    /// 16 bytes from memory; there need be no alignment.
    pub(super) fn movups(&mut self, d: X, m: M) {
        self.rm(false, &[0x0f, 0x10], d.0, m);
    }

    pub(super) fn movups_to(&mut self, m: M, s: X) {
        self.rm(false, &[0x0f, 0x11], s.0, m);
    }

    /// 4 or 8 bytes from memory, zeros above.
    pub(super) fn mov_low(&mut self, wide: bool, d: X, m: M) {
        self.u8(if wide { 0xf3 } else { 0x66 });
        self.rm(false, &[0x0f, if wide { 0x7e } else { 0x6e }], d.0, m);
    }

    /// 4 or 8 bytes to memory.
    pub(super) fn mov_low_to(&mut self, wide: bool, m: M, s: X) {
        self.u8(0x66);
        self.rm(false, &[0x0f, if wide { 0xd6 } else { 0x7e }], s.0, m);
    }

    /// A general register, zeros above.
    pub(super) fn mov_low_r(&mut self, wide: bool, d: X, s: R) {
        self.u8(0x66);
        self.rr(wide, &[0x0f, 0x6e], d.0, s.0);
    }

    /// The lowest 4 or 8 bytes to a general register.
    pub(super) fn mov_r(&mut self, wide: bool, d: R, s: X) {
        self.u8(0x66);
        self.rr(wide, &[0x0f, 0x7e], s.0, d.0);
    }

    /// The lower half, zeros above.
    pub(super) fn low_half(&mut self, d: X, s: X) {
        self.u8(0xf3);
        self.rr(false, &[0x0f, 0x7e], d.0, s.0);
    }

    /// Shifts lanes of 2, 4 or 8 bytes.
    pub(super) fn lane_shift(&mut self, op: Ps, size: u8, d: X, by: u8) {
        self.u8(0x66);
        self.rr(false, &[0x0f, 0x70 | size], op as u8, d.0);
        self.u8(by);
    }

    /// All of it to the right, or to the left, by bytes.
    pub(super) fn byte_shift(&mut self, left: bool, d: X, by: u8) {
        self.u8(0x66);
        self.rr(false, &[0x0f, 0x73], if left { 7 } else { 3 }, d.0);
        self.u8(by);
    }

    /// A lane to a general register, zeros above.
    pub(super) fn lane_to(&mut self, size: u8, d: R, s: X, lane: u8) {
        self.u8(0x66);
        match size {
            0 => self.rr(false, &[0x0f, 0x3a, 0x14], s.0, d.0),
            1 => self.rr(false, &[0x0f, 0xc5], d.0, s.0),
            _ => self.rr(size == 3, &[0x0f, 0x3a, 0x16], s.0, d.0),
        }
        self.u8(lane);
    }

    /// A lane from a general register.
    pub(super) fn lane_from(&mut self, size: u8, d: X, s: R, lane: u8) {
        self.u8(0x66);
        match size {
            0 => self.rr(false, &[0x0f, 0x3a, 0x20], d.0, s.0),
            1 => self.rr(false, &[0x0f, 0xc4], d.0, s.0),
            _ => self.rr(size == 3, &[0x0f, 0x3a, 0x22], d.0, s.0),
        }
        self.u8(lane);
    }

    /// A signed integer of 32 or 64 bits (`wide`) to a number.
    pub(super) fn convert(&mut self, double: bool, wide: bool, d: X, s: R) {
        self.u8(if double { 0xf2 } else { 0xf3 });
        self.rr(wide, &[0x0f, 0x2a], d.0, s.0);
    }

    /// A number to a signed integer, rounded to zero.
    pub(super) fn truncate(&mut self, double: bool, wide: bool, d: R, s: X) {
        self.u8(if double { 0xf2 } else { 0xf3 });
        self.rr(wide, &[0x0f, 0x2c], d.0, s.0);
    }

    /// The signs of the lanes, one bit each.
    pub(super) fn signs(&mut self, double: bool, d: R, s: X) {
        if double {
            self.u8(0x66);
        }
        self.rr(false, &[0x0f, 0x50], d.0, s.0);
    }

    /// The same lane by lane: only [`Fma::Madd`] and [`Fma::Nmadd`].
    pub(super) fn fma_lanes(&mut self, op: Fma, double: bool, d: X, x: X, y: X) {
        self.u8(0xc4);
        self.u8((!d.0 >> 3 & 1) << 7 | 0x40 | (!y.0 >> 3 & 1) << 5 | 2);
        self.u8(u8::from(double) << 7 | (!x.0 & 15) << 3 | 1);
        // Scalars have the lowest bit.
        self.u8(op as u8 & !1);
        self.u8(0xc0 | (d.0 & 7) << 3 | y.0 & 7);
    }

    pub(super) fn fma(&mut self, op: Fma, double: bool, d: X, x: X, y: X) {
        // The inverted high bits of d and y, and the map; W, the inverted x, and prefix 66.
        self.u8(0xc4);
        self.u8((!d.0 >> 3 & 1) << 7 | 0x40 | (!y.0 >> 3 & 1) << 5 | 2);
        self.u8(u8::from(double) << 7 | (!x.0 & 15) << 3 | 1);
        self.u8(op as u8);
        self.u8(0xc0 | (d.0 & 7) << 3 | y.0 & 7);
    }
}

#[cfg(test)]
mod tests {
    use super::super::asm::tests::check;
    use super::super::asm::{R9, R12, RAX, RBX, RCX, at};
    use super::*;

    const EXPECTED: &str = "\
movups xmm0, [rbx+288]|movups [r12], xmm1|movq xmm0, qword ptr [rax]|movd xmm0, dword ptr [r9]|\
movq qword ptr [rax], xmm9|movd dword ptr [rax], xmm1|movq xmm0, r9|movd xmm1, ecx|movq r12, xmm4|movd eax, xmm11|\
movq xmm1, xmm12|movaps xmm8, xmm1|pandn xmm1, xmm0|paddd xmm0, xmm1|pxor xmm8, xmm9|pcmpgtq xmm4, xmm15|\
pmulld xmm4, xmm5|pshufd xmm9, xmm4, 0x1b|pshuflw xmm1, xmm2, 0|pshufhw xmm1, xmm2, 0xaa|palignr xmm4, xmm5, 8|\
insertps xmm10, xmm11, 0xe|roundsd xmm4, xmm5, 8|roundss xmm4, xmm5, 0xb|shufps xmm1, xmm9, 0x88|\
psrlw xmm1, 8|psrad xmm9, 16|psllq xmm10, 63|psrldq xmm4, 8|pslldq xmm9, 12|\
pextrb eax, xmm4, 3|pextrw ecx, xmm9, 7|pextrd r9d, xmm1, 2|pextrq rax, xmm12, 1|\
pinsrb xmm4, eax, 3|pinsrw xmm9, ecx, 7|pinsrd xmm1, r9d, 2|pinsrq xmm12, rax, 1|\
addsd xmm4, xmm5|mulss xmm9, xmm10|sqrtsd xmm1, xmm2|divss xmm1, xmm2|subsd xmm1, xmm2|maxsd xmm1, xmm2|\
minss xmm1, xmm2|cvtss2sd xmm1, xmm2|cvtsd2ss xmm1, xmm9|ucomisd xmm4, xmm5|ucomiss xmm9, xmm5|\
cvtsi2sd xmm4, r9|cvtsi2ss xmm9, eax|cvttsd2si rax, xmm4|cvttss2si eax, xmm12|\
vfmadd231sd xmm4, xmm5, xmm6|vfnmadd231ss xmm12, xmm5, xmm14|vfmsub231sd xmm4, xmm13, xmm6|\
vfnmsub231ss xmm4, xmm5, xmm6|\
aesenc xmm4, xmm5|aesenclast xmm9, xmm5|aesdec xmm4, xmm5|aesdeclast xmm4, xmm5|aesimc xmm4, xmm5|\
pclmulqdq xmm4, xmm5, 0x45|sha1rnds4 xmm4, xmm5, 2|sha256rnds2 xmm4, xmm9, xmm0|sha256msg1 xmm4, xmm5|\
sha256msg2 xmm12, xmm5|xorps xmm1, xmm1|psadbw xmm1, xmm2|pmovzxbw xmm4, xmm5|phaddd xmm4, xmm5|pshufb xmm4, xmm5|\
pmaxud xmm4, xmm5|pabsw xmm4, xmm5|punpckhqdq xmm4, xmm5|packuswb xmm4, xmm5|packssdw xmm4, xmm5|paddusb xmm4, xmm5|\
pmovsxdq xmm4, xmm5|addps xmm4, xmm5|mulpd xmm9, xmm5|cmpltps xmm4, xmm5|cmpunordpd xmm9, xmm10|haddps xmm4, xmm5|\
haddpd xmm4, xmm9|roundpd xmm4, xmm5, 8|cvtps2pd xmm4, xmm5|cvtpd2ps xmm4, xmm5|cvtdq2ps xmm9, xmm5|\
cvttps2dq xmm4, xmm5|andnps xmm4, xmm5|movmskps eax, xmm9|movmskpd ecx, xmm4|\
vfmadd231ps xmm4, xmm5, xmm6|vfnmadd231pd xmm12, xmm5, xmm14|pmuludq xmm4, xmm9|pmuldq xmm4, xmm9|pavgb xmm4, xmm5|pavgw xmm4, xmm5|packusdw xmm4, xmm9|vpsllvd xmm9, xmm4, xmm10|vpsrlvq xmm4, xmm9, xmm5|vcvtph2ps xmm9, xmm4|vcvtps2ph xmm4, xmm9, 0";

    fn all() -> Vec<u8> {
        let mut asm = Asm::default();
        let a = &mut asm;
        let (x1, x4, x5, x9) = (X(1), X(4), X(5), X(9));
        a.movups(X(0), at(RBX, 288));
        a.movups_to(at(R12, 0), x1);
        a.mov_low(true, X(0), at(RAX, 0));
        a.mov_low(false, X(0), at(R9, 0));
        a.mov_low_to(true, at(RAX, 0), x9);
        a.mov_low_to(false, at(RAX, 0), x1);
        a.mov_low_r(true, X(0), R9);
        a.mov_low_r(false, x1, RCX);
        a.mov_r(true, R12, x4);
        a.mov_r(false, RAX, X(11));
        a.low_half(x1, X(12));
        a.movaps(X(8), x1);
        a.vector(PANDN, x1, X(0));
        a.vector(PADD[2], X(0), x1);
        a.vector(PXOR, X(8), x9);
        a.vector(PCMPGT[3], x4, X(15));
        a.vector(PMULL[1], x4, x5);
        a.vector_i(PSHUFD, x9, x4, 0x1b);
        a.vector_i(PSHUFLW, x1, X(2), 0);
        a.vector_i(PSHUFHW, x1, X(2), 0xaa);
        a.vector_i(PALIGNR, x4, x5, 8);
        a.vector_i(INSERTPS, X(10), X(11), 14);
        a.vector_i(ROUND[1], x4, x5, 8);
        a.vector_i(ROUND[0], x4, x5, 11);
        a.vector_i(SHUFPS, x1, x9, 0x88);
        a.lane_shift(Ps::Rl, 1, x1, 8);
        a.lane_shift(Ps::Ra, 2, x9, 16);
        a.lane_shift(Ps::Ll, 3, X(10), 63);
        a.byte_shift(false, x4, 8);
        a.byte_shift(true, x9, 12);
        a.lane_to(0, RAX, x4, 3);
        a.lane_to(1, RCX, x9, 7);
        a.lane_to(2, R9, x1, 2);
        a.lane_to(3, RAX, X(12), 1);
        a.lane_from(0, x4, RAX, 3);
        a.lane_from(1, x9, RCX, 7);
        a.lane_from(2, x1, R9, 2);
        a.lane_from(3, X(12), RAX, 1);
        a.vector(ADD[1], x4, x5);
        a.vector(MUL[0], x9, X(10));
        a.vector(SQRT[1], x1, X(2));
        a.vector(DIV[0], x1, X(2));
        a.vector(SUB[1], x1, X(2));
        a.vector(MAX[1], x1, X(2));
        a.vector(MIN[0], x1, X(2));
        a.vector(CONVERT[0], x1, X(2));
        a.vector(CONVERT[1], x1, x9);
        a.vector(UCOMIS[1], x4, x5);
        a.vector(UCOMIS[0], x9, x5);
        a.convert(true, true, x4, R9);
        a.convert(false, false, x9, RAX);
        a.truncate(true, true, RAX, x4);
        a.truncate(false, false, RAX, X(12));
        a.fma(Fma::Madd, true, x4, x5, X(6));
        a.fma(Fma::Nmadd, false, X(12), x5, X(14));
        a.fma(Fma::Msub, true, x4, X(13), X(6));
        a.fma(Fma::Nmsub, false, x4, x5, X(6));
        a.vector(AESENC, x4, x5);
        a.vector(AESENCLAST, x9, x5);
        a.vector(AESDEC, x4, x5);
        a.vector(AESDECLAST, x4, x5);
        a.vector(AESIMC, x4, x5);
        a.vector_i(PCLMULQDQ, x4, x5, 0x45);
        a.vector_i(SHA1RNDS4, x4, x5, 2);
        a.vector(SHA256RNDS2, x4, x9);
        a.vector(SHA256MSG1, x4, x5);
        a.vector(SHA256MSG2, X(12), x5);
        a.vector(XORPS, x1, x1);
        a.vector(PSADBW, x1, X(2));
        a.vector(PMOVZX[0], x4, x5);
        a.vector(PHADD[1], x4, x5);
        a.vector(PSHUFB, x4, x5);
        a.vector(PMAXU[2], x4, x5);
        a.vector(PABS[1], x4, x5);
        a.vector(PUNPCKH[3], x4, x5);
        a.vector(PACKUSWB, x4, x5);
        a.vector(PACKSSDW, x4, x5);
        a.vector(PADDUSB, x4, x5);
        a.vector(PMOVSX[2], x4, x5);
        a.vector(ADDP[0], x4, x5);
        a.vector(MULP[1], x9, x5);
        a.vector_i(CMPP[0], x4, x5, 1);
        a.vector_i(CMPP[1], x9, X(10), 3);
        a.vector(HADDP[0], x4, x5);
        a.vector(HADDP[1], x4, x9);
        a.vector_i(ROUNDP[1], x4, x5, 8);
        a.vector(CVTPS2PD, x4, x5);
        a.vector(CVTPD2PS, x4, x5);
        a.vector(CVTDQ2PS, x9, x5);
        a.vector(CVTTPS2DQ, x4, x5);
        a.vector(ANDNPS, x4, x5);
        a.signs(false, RAX, x9);
        a.signs(true, RCX, x4);
        a.fma_lanes(Fma::Madd, false, x4, x5, X(6));
        a.fma_lanes(Fma::Nmadd, true, X(12), x5, X(14));
        a.vector(PMULUDQ, x4, x9);
        a.vector(PMULDQ, x4, x9);
        a.vector(PAVG[0], x4, x5);
        a.vector(PAVG[1], x4, x5);
        a.vector(PACKUSDW, x4, x9);
        a.shift_each(true, false, x9, x4, X(10));
        a.shift_each(false, true, x4, x9, x5);
        a.halves_to_singles(x9, x4);
        a.singles_to_halves(x4, x9);
        asm.buf
    }

    #[test]
    fn vector_instructions_are_what_the_disassembler_says() {
        check(&all(), EXPECTED);
    }

    #[test]
    fn constants_are_reached_from_where_the_code_is() {
        let mut a = Asm { origin: 0x100, ..Asm::default() };
        a.vector_at(PSHUFB, X(9), 0x40);
        // pshufb xmm9, [rip - 0xca], from the end of its ten bytes.
        assert_eq!(a.buf, [0x66, 0x44, 0x0f, 0x38, 0x00, 0x0d, 0x36, 0xff, 0xff, 0xff]);
        // pclmulqdq xmm1, [rip - 0xd4], 0x10, likewise.
        a.vector_i_at(PCLMULQDQ, X(1), 0x40, 0x10);
        assert_eq!(a.buf[10..], [0x66, 0x0f, 0x3a, 0x44, 0x0d, 0x2c, 0xff, 0xff, 0xff, 0x10]);
    }
}
