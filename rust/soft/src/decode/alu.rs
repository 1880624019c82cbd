//! Data processing with immediates and registers (C4.1.93 and C4.1.95).

use super::{Block, Decoded, Last, ON, bits, d, s, sext, wide, z};
use crate::exec::alu as x;

/// The value that a logical immediate's fields stand for (DecodeBitMasks, J1.1.3).
pub(crate) fn bit_masks(n: u32, imms: u32, immr: u32, wide: bool) -> Option<u64> {
    let len = 31 - (n << 6 | !imms & 0x3f).leading_zeros().min(31);
    if n << 6 | !imms & 0x3f == 0 || len < 1 || (!wide && n == 1) {
        return None;
    }
    let size = 1u32 << len;
    let levels = size - 1;
    let (ones, rotate) = (imms & levels, immr & levels);
    if ones == levels {
        return None;
    }
    let mask = u64::MAX >> (64 - size);
    let mut v = (1u64 << (ones + 1)) - 1;
    if rotate != 0 {
        v = (v >> rotate | v << (size - rotate)) & mask;
    }
    let mut width = size;
    while width < 64 {
        v |= v << width;
        width *= 2;
    }
    Some(if wide { v } else { v & 0xffff_ffff })
}

fn ones(n: u32) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

impl Block {
    pub(super) fn immediate(&mut self, i: u32) -> Decoded {
        let sf = i >> 31 == 1;
        let (rd, rn) = (i, i >> 5);
        match bits(i, 25, 23) {
            0 | 1 => {
                let imm = sext(bits(i, 23, 5) << 2 | bits(i, 30, 29), 21);
                let off = i64::from(self.off);
                let imm = if sf { imm << 12 } else { imm + off };
                self.op(x::adr, d(rd), 0, 0, 0, imm as u64);
            }
            2 => {
                let imm = u64::from(bits(i, 21, 10)) << if i >> 22 & 1 == 1 { 12 } else { 0 };
                let (sub, set) = (i >> 30 & 1 == 1, i >> 29 & 1 == 1);
                let rd = if set { d(rd) } else { s(rd) };
                match (sub, set) {
                    (false, false) => self.op(wide!(sf, x::add_imm), rd, s(rn), 0, 0, imm),
                    (true, false) => self.op(wide!(sf, x::add_imm), rd, s(rn), 0, 0, imm.wrapping_neg()),
                    (false, true) => self.op(wide!(sf, x::adds_imm), rd, s(rn), 0, 0, imm),
                    (true, true) => {
                        self.op(wide!(sf, x::subs_imm), rd, s(rn), 0, 0, imm);
                        self.now = Last::SubsImm { wide: sf };
                    }
                }
            }
            // Tags: not there.
            3 => return None,
            4 => {
                let imm = bit_masks(bits(i, 22, 22), bits(i, 15, 10), bits(i, 21, 16), sf)?;
                match bits(i, 30, 29) {
                    0 => self.op(wide!(sf, x::and_imm), s(rd), z(rn), 0, 0, imm),
                    1 if rn & 31 == 31 => self.op(wide!(sf, x::mov_imm), s(rd), 0, 0, 0, imm),
                    1 => self.op(wide!(sf, x::orr_imm), s(rd), z(rn), 0, 0, imm),
                    2 => self.op(wide!(sf, x::eor_imm), s(rd), z(rn), 0, 0, imm),
                    _ => self.op(wide!(sf, x::ands_imm), d(rd), z(rn), 0, 0, imm),
                }
            }
            5 => {
                let shift = bits(i, 22, 21) * 16;
                if !sf && shift >= 32 {
                    return None;
                }
                let imm = u64::from(bits(i, 20, 5)) << shift;
                match bits(i, 30, 29) {
                    0 => self.op(wide!(sf, x::mov_imm), d(rd), 0, 0, 0, !imm),
                    2 => self.op(wide!(sf, x::mov_imm), d(rd), 0, 0, 0, imm),
                    3 => self.op(wide!(sf, x::movk), d(rd), 0, 0, shift as u8, imm),
                    _ => return None,
                }
                // MOVK reads its destination, which as register 31 is nothing at all.
            }
            6 => return self.bitfield(i, sf),
            _ => {
                let imms = bits(i, 15, 10);
                if bits(i, 30, 29) != 0 || bits(i, 21, 21) != 0 || bits(i, 22, 22) != u32::from(sf) {
                    return None;
                }
                if !sf && imms > 31 {
                    return None;
                }
                let f =
                    if bits(i, 9, 5) == bits(i, 20, 16) { wide!(sf, x::ror_imm) } else { wide!(sf, x::extr) };
                self.op(f, d(rd), z(rn), z(i >> 16), imms as u8, 0);
            }
        }
        ON
    }

    fn bitfield(&mut self, i: u32, sf: bool) -> Decoded {
        let (immr, imms, n) = (bits(i, 21, 16), bits(i, 15, 10), bits(i, 22, 22));
        let size = if sf { 64 } else { 32 };
        if n != u32::from(sf) || immr >= size || imms >= size {
            return None;
        }
        let (rd, rn) = (d(i), z(i >> 5));
        let width = imms + 1;
        let shift = (size - immr) % size;
        match bits(i, 30, 29) {
            0 => {
                // In 64 bits: the field goes to the top, then comes down with its sign.
                let (up, down) =
                    if imms >= immr { (63 - imms, 63 - imms + immr) } else { (63 - imms, 63 - imms - shift) };
                match (immr, imms) {
                    (0, 7) => self.op(wide!(sf, x::sxtb), rd, rn, 0, 0, 0),
                    (0, 15) => self.op(wide!(sf, x::sxth), rd, rn, 0, 0, 0),
                    (0, 31) if sf => self.op(wide!(sf, x::sxtw), rd, rn, 0, 0, 0),
                    (_, _) if imms == size - 1 => self.op(wide!(sf, x::asr_imm), rd, rn, 0, immr as u8, 0),
                    _ => self.op(wide!(sf, x::sbf), rd, rn, up as u8, down as u8, 0),
                }
            }
            1 if imms >= immr => {
                let mask = ones(width - immr) << immr;
                self.op(wide!(sf, x::bfm), rd, rn, 0, immr as u8, mask >> immr);
            }
            1 => self.op(wide!(sf, x::bfm), rd, rn, 0, immr as u8, ones(width) << shift),
            2 if imms == size - 1 => self.op(wide!(sf, x::lsr_imm), rd, rn, 0, immr as u8, 0),
            2 if imms + 1 == immr => self.op(wide!(sf, x::lsl_imm), rd, rn, 0, shift as u8, 0),
            2 if immr == 0 => self.op(wide!(sf, x::and_imm), rd, rn, 0, 0, ones(width)),
            2 if imms >= immr => {
                self.op(wide!(sf, x::ubfx), rd, rn, 0, immr as u8, ones(width - immr));
            }
            2 => self.op(wide!(sf, x::ubfiz), rd, rn, 0, shift as u8, ones(width)),
            _ => return None,
        }
        ON
    }

    pub(super) fn register(&mut self, i: u32) -> Decoded {
        let sf = i >> 31 == 1;
        let (rd, rn, rm) = (i, i >> 5, i >> 16);
        let op = bits(i, 30, 29);
        match (bits(i, 28, 28), bits(i, 24, 21)) {
            (0, 0..=7) => self.logical(i, sf),
            (0, 8 | 10 | 12 | 14) => self.add_sub_shifted(i, sf),
            (0, 9 | 11 | 13 | 15) => {
                let (ext, shift) = (bits(i, 15, 13), bits(i, 12, 10) as u8);
                if bits(i, 23, 22) != 0 || shift > 4 {
                    return None;
                }
                // UXTX and SXTX are the same on 64 bits.
                let imm = u64::from(ext);
                match op {
                    0 => self.op(wide!(sf, x::add_ext), s(rd), s(rn), z(rm), shift, imm),
                    1 => self.op(wide!(sf, x::adds_ext), d(rd), s(rn), z(rm), shift, imm),
                    2 => self.op(wide!(sf, x::sub_ext), s(rd), s(rn), z(rm), shift, imm),
                    _ => self.op(wide!(sf, x::subs_ext), d(rd), s(rn), z(rm), shift, imm),
                }
                ON
            }
            (1, 0) => {
                if bits(i, 15, 10) == 0 {
                    let f = match op {
                        0 => wide!(sf, x::adc),
                        1 => wide!(sf, x::adcs),
                        2 => wide!(sf, x::sbc),
                        _ => wide!(sf, x::sbcs),
                    };
                    self.op(f, d(rd), z(rn), z(rm), 0, 0);
                    return ON;
                }
                match (sf, op, bits(i, 14, 10)) {
                    (true, 1, 1) if bits(i, 4, 4) == 0 => {
                        let rotate = bits(i, 20, 15) as u8;
                        self.op(x::rmif, bits(i, 3, 0) as u8, z(rn), 0, rotate, 0);
                    }
                    (false, 1, 2) if bits(i, 20, 15) == 0 && bits(i, 4, 0) == 13 => {
                        self.op(x::setf, 0, z(rn), 0, 8, 0);
                    }
                    (false, 1, 18) if bits(i, 20, 15) == 0 && bits(i, 4, 0) == 13 => {
                        self.op(x::setf, 0, z(rn), 0, 16, 0);
                    }
                    _ => return None,
                }
                ON
            }
            (1, 2) => {
                if op & 1 == 0 || bits(i, 10, 10) != 0 || bits(i, 4, 4) != 0 {
                    return None;
                }
                let (cond, nzcv) = (bits(i, 15, 12) as u8, bits(i, 3, 0) as u8);
                if bits(i, 11, 11) == 1 {
                    let imm = u64::from(bits(i, 20, 16));
                    let f =
                        if op == 1 { wide!(sf, x::ccmp_imm, true) } else { wide!(sf, x::ccmp_imm, false) };
                    self.op(f, nzcv, z(rn), 0, cond, imm);
                } else {
                    let f = if op == 1 { wide!(sf, x::ccmp, true) } else { wide!(sf, x::ccmp, false) };
                    self.op(f, nzcv, z(rn), z(rm), cond, 0);
                }
                ON
            }
            (1, 4) => {
                if op & 1 != 0 || bits(i, 11, 11) != 0 {
                    return None;
                }
                let f = match (op >> 1, bits(i, 10, 10)) {
                    (0, 0) => wide!(sf, x::csel),
                    (0, _) => wide!(sf, x::csinc),
                    (_, 0) => wide!(sf, x::csinv),
                    _ => wide!(sf, x::csneg),
                };
                self.op(f, d(rd), z(rn), z(rm), bits(i, 15, 12) as u8, 0);
                ON
            }
            (1, 6) if op == 0 => self.two_source(i, sf),
            (1, 6) if op == 2 && bits(i, 20, 16) == 0 => {
                let f = match (bits(i, 15, 10), sf) {
                    (0, _) => wide!(sf, x::rbit),
                    (1, _) => wide!(sf, x::rev16),
                    (2, false) => x::rev::<u32>,
                    (2, true) => x::rev32::<u64>,
                    (3, true) => x::rev::<u64>,
                    (4, _) => wide!(sf, x::clz),
                    (5, _) => wide!(sf, x::cls),
                    _ => return None,
                };
                self.op(f, d(rd), z(rn), 0, 0, 0);
                ON
            }
            (1, 8..=15) => {
                let ra = i >> 10;
                let neg = bits(i, 15, 15) == 1;
                if op != 0 {
                    return None;
                }
                let f = match (bits(i, 23, 21), neg, sf) {
                    (0, false, _) => wide!(sf, x::madd),
                    (0, true, _) => wide!(sf, x::msub),
                    (1, false, true) => x::maddl::<true, false>,
                    (1, true, true) => x::maddl::<true, true>,
                    (5, false, true) => x::maddl::<false, false>,
                    (5, true, true) => x::maddl::<false, true>,
                    (2, false, true) => x::mulh::<true>,
                    (6, false, true) => x::mulh::<false>,
                    _ => return None,
                };
                self.op(f, d(rd), z(rn), z(rm), z(ra), 0);
                ON
            }
            _ => None,
        }
    }

    fn logical(&mut self, i: u32, sf: bool) -> Decoded {
        let (kind, amount) = (bits(i, 23, 22), bits(i, 15, 10));
        let invert = bits(i, 21, 21) == 1;
        if !sf && amount > 31 {
            return None;
        }
        let (rd, rn, rm, op) = (d(i), z(i >> 5), z(i >> 16), bits(i, 30, 29));
        if amount == 0 && op != 3 {
            let f = match (op, invert) {
                (0, false) => wide!(sf, x::and),
                (0, true) => wide!(sf, x::bic),
                (1, false) if i >> 5 & 31 == 31 => wide!(sf, x::mov),
                (1, false) => wide!(sf, x::orr),
                (1, true) => wide!(sf, x::orn),
                (_, false) => wide!(sf, x::eor),
                _ => wide!(sf, x::eon),
            };
            self.op(f, rd, rn, rm, 0, 0);
            return ON;
        }
        macro_rules! by_kind {
            ($f:ident) => {
                match kind {
                    0 => wide!(sf, x::$f, 0),
                    1 => wide!(sf, x::$f, 1),
                    2 => wide!(sf, x::$f, 2),
                    _ => wide!(sf, x::$f, 3),
                }
            };
        }
        let f = match op {
            0 => by_kind!(and_shift),
            1 => by_kind!(orr_shift),
            2 => by_kind!(eor_shift),
            _ => by_kind!(ands_shift),
        };
        self.op(f, rd, rn, rm, amount as u8, if invert { u64::MAX } else { 0 });
        ON
    }

    fn add_sub_shifted(&mut self, i: u32, sf: bool) -> Decoded {
        let (kind, amount) = (bits(i, 23, 22), bits(i, 15, 10));
        if kind == 3 || (!sf && amount > 31) {
            return None;
        }
        let (rd, rn, rm, op) = (d(i), z(i >> 5), z(i >> 16), bits(i, 30, 29));
        if amount == 0 {
            let f = match op {
                0 => wide!(sf, x::add),
                1 => wide!(sf, x::adds),
                2 => wide!(sf, x::sub),
                _ => {
                    self.now = Last::Subs { wide: sf };
                    wide!(sf, x::subs)
                }
            };
            self.op(f, rd, rn, rm, 0, 0);
            return ON;
        }
        macro_rules! by_kind {
            ($f:ident) => {
                match kind {
                    0 => wide!(sf, x::$f, 0),
                    1 => wide!(sf, x::$f, 1),
                    _ => wide!(sf, x::$f, 2),
                }
            };
        }
        let f = match op {
            0 => by_kind!(add_shift),
            1 => by_kind!(adds_shift),
            2 => by_kind!(sub_shift),
            _ => by_kind!(subs_shift),
        };
        self.op(f, rd, rn, rm, amount as u8, 0);
        ON
    }

    fn two_source(&mut self, i: u32, sf: bool) -> Decoded {
        let f = match bits(i, 15, 10) {
            2 => wide!(sf, x::udiv),
            3 => wide!(sf, x::sdiv),
            8 => wide!(sf, x::lslv),
            9 => wide!(sf, x::lsrv),
            10 => wide!(sf, x::asrv),
            11 => wide!(sf, x::rorv),
            n @ 16..=23 => {
                if sf != (n & 3 == 3) {
                    return None;
                }
                let f = if n & 4 == 0 { x::crc32::<false> } else { x::crc32::<true> };
                self.op(f, d(i), z(i >> 5), z(i >> 16), 1 << (n & 3), 0);
                return ON;
            }
            _ => return None,
        };
        self.op(f, d(i), z(i >> 5), z(i >> 16), 0, 0);
        ON
    }
}

#[cfg(test)]
mod tests {
    use super::bit_masks;

    /// What GNU as encodes for some masks.
    #[test]
    fn logical_immediates_are_those_of_the_assembler() {
        let of = |i: u32| bit_masks(i >> 22 & 1, i >> 10 & 63, i >> 16 & 63, i >> 31 == 1);
        assert_eq!(of(0x9200_f020), Some(0x5555_5555_5555_5555));
        assert_eq!(of(0x121d_6c20), Some(0x7fff_fff8));
        assert_eq!(of(0xb208_9c20), Some(0xff00_ff00_ff00_ff00));
        assert_eq!(of(0xd241_0420), Some(0x8000_0000_0000_0001));
    }

    #[test]
    fn masks_of_all_ones_do_not_exist() {
        assert_eq!(bit_masks(1, 63, 0, true), None);
        assert_eq!(bit_masks(0, 31, 0, false), None);
        assert_eq!(bit_masks(1, 3, 0, false), None);
    }
}
