//! Random numbers, and register contents that are likely to hurt.

/// SplitMix64.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer of `bits` bits: at a boundary, short, or random.
    pub(crate) fn integer(&mut self, bits: u32) -> u64 {
        let mask = u64::MAX >> (64 - bits);
        let top = 1 << (bits - 1);
        let x = match self.below(8) {
            0 => self.pick(&[0, 1, 2, top - 1, top, top + 1, mask - 1, mask]),
            1 => 1 << self.below(bits.into()),
            2 => (1u64 << self.below(bits.into())).wrapping_sub(1),
            3 => self.next() >> self.below(64),
            4 => (self.next() >> self.below(64)).wrapping_neg(),
            _ => self.next(),
        };
        x & mask
    }

    /// The encoding of a floating-point number with `e` bits of exponent and `f` of fraction: zeros, denormals, NaNs,
    /// infinities, the edges of the range, halfway cases, small integers, random.
    pub(crate) fn float(&mut self, e: u32, f: u32) -> u64 {
        let sign = (self.next() & 1) << (e + f);
        let top = (1u64 << e) - 1;
        let bias = top >> 1;
        let frac = match self.below(6) {
            0 => 0,
            1 => (1 << f) - 1,
            2 => 1 << self.below(f.into()),
            3 => (self.next() << self.below(u64::from(f))) & ((1 << f) - 1),
            _ => self.next() & ((1 << f) - 1),
        };
        let exp = match self.below(12) {
            0 => 0,
            1 => top,
            2 => self.pick(&[1, 2, 3, top - 1, top - 2]),
            3 => bias + self.below(u64::from(f) + 4),
            4 => bias.wrapping_add(self.below(8)).wrapping_sub(4),
            5 => self.pick(&[bias + 15, bias + 31, bias + 32, bias + 62, bias + 63, bias + 64, bias + 83]),
            6 => return sign,
            // Half's and single's range within the wider formats.
            7 => bias.wrapping_sub(14).wrapping_add(self.below(30)),
            8 => bias.wrapping_sub(30).wrapping_add(self.below(20)),
            9 => bias.wrapping_sub(150).wrapping_add(self.below(30)),
            _ => self.next(),
        };
        sign | (exp & top) << f | frac
    }

    /// A vector register: lanes of one kind.
    pub(crate) fn vector(&mut self) -> u128 {
        let (bits, kind) = self.pick(&[
            (8, 0),
            (16, 0),
            (32, 0),
            (64, 0),
            (16, 5),
            (16, 5),
            (32, 8),
            (32, 8),
            (32, 8),
            (64, 11),
            (64, 11),
            (64, 11),
        ]);
        let mut v = 0;
        for lane in 0..128 / bits {
            let x = if kind == 0 { self.integer(bits) } else { self.float(kind, bits - 1 - kind) };
            v |= u128::from(x) << (lane * bits);
        }
        v
    }

    /// FPCR: mostly as a program has it, else any rounding and any of FZ16, FZ, DN, AHP.
    pub(crate) fn fpcr(&mut self) -> u64 {
        if self.one_in(3) {
            return 0;
        }
        let mask = self.pick(&[0x00c0_0000, 0x0100_0000, 0x0200_0000, 0x07c8_0000, 0x07c8_0000]);
        self.next() & mask
    }

    /// FPSR: clear, or some of QC, IDC, IXC, UFC, OFC, DZC, IOC.
    pub(crate) fn fpsr(&mut self) -> u64 {
        match self.below(3) {
            0 => 0,
            1 => 0x10,
            _ => self.next() & 0x0800_009f,
        }
    }
}
