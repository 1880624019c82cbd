//! What operations do. Each function here is a [`crate::interp::op::Handler`]; what it expects in the operation is said
//! in the decoder beside its use.

pub(crate) mod alu;
pub(crate) mod atomic;
pub(crate) mod branch;
pub(crate) mod memory;
pub(crate) mod pairs;
pub(crate) mod system;
pub(crate) mod vector;

use crate::cpu::Cpu;

/// The two widths of general registers.
pub(crate) trait Word: Copy + PartialEq + 'static {
    const BITS: u32;
    /// What flags are of after a subtraction in this width.
    const SUB: Flags;
    fn of(v: u64) -> Self;
    fn u(self) -> u64;
    fn s(self) -> i64;
    fn add(self, o: Self) -> Self;
    fn sub(self, o: Self) -> Self;
    fn mul(self, o: Self) -> Self;
    fn shl(self, n: u32) -> Self;
    fn shr(self, n: u32) -> Self;
    fn sar(self, n: u32) -> Self;
    fn ror(self, n: u32) -> Self;
    fn udiv(self, o: Self) -> Self;
    fn sdiv(self, o: Self) -> Self;
    fn rbit(self) -> Self;
    fn clz(self) -> u64;
    fn swap(self) -> Self;
}

macro_rules! words {
    ($($u:ident $i:ident)*) => {$(
        impl Word for $u {
            const BITS: u32 = $u::BITS;
            const SUB: Flags = if $u::BITS == 32 { Flags::Sub32 } else { Flags::Sub64 };
            #[inline(always)]
            fn of(v: u64) -> Self { v as $u }
            #[inline(always)]
            fn u(self) -> u64 { self as u64 }
            #[inline(always)]
            fn s(self) -> i64 { self as $i as i64 }
            #[inline(always)]
            fn add(self, o: Self) -> Self { self.wrapping_add(o) }
            #[inline(always)]
            fn sub(self, o: Self) -> Self { self.wrapping_sub(o) }
            #[inline(always)]
            fn mul(self, o: Self) -> Self { self.wrapping_mul(o) }
            #[inline(always)]
            fn shl(self, n: u32) -> Self { self.wrapping_shl(n) }
            #[inline(always)]
            fn shr(self, n: u32) -> Self { self.wrapping_shr(n) }
            #[inline(always)]
            fn sar(self, n: u32) -> Self { (self as $i).wrapping_shr(n) as $u }
            #[inline(always)]
            fn ror(self, n: u32) -> Self { self.rotate_right(n) }
            #[inline(always)]
            fn udiv(self, o: Self) -> Self { self.checked_div(o).unwrap_or(0) }
            #[inline(always)]
            fn sdiv(self, o: Self) -> Self {
                if o == 0 { 0 } else { (self as $i).wrapping_div(o as $i) as $u }
            }
            #[inline(always)]
            fn rbit(self) -> Self { self.reverse_bits() }
            #[inline(always)]
            fn clz(self) -> u64 { u64::from(self.leading_zeros()) }
            #[inline(always)]
            fn swap(self) -> Self { self.swap_bytes() }
        }
    )*};
}

words! { u32 i32 u64 i64 }

/// Where the condition flags are: most comparisons' flags are never looked at but by the branch behind them, so they
/// are worked out only for whom asks.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Flags {
    /// In `regs.nzcv`.
    Known,
    /// Those of subtracting `compared[1]` from `compared[0]`.
    Sub32,
    Sub64,
}

impl Cpu {
    #[inline(always)]
    pub(crate) fn nzcv(&self) -> u32 {
        self.state.nzcv()
    }

    #[inline(always)]
    pub(crate) fn set_nzcv(&mut self, v: u32) {
        self.state.set_nzcv(v);
    }

    /// The flags become those of `a - b`.
    #[inline(always)]
    pub(crate) fn set_compared<T: Word>(&mut self, a: T, b: T) {
        self.state.compared = [a.u(), b.u()];
        self.state.flags = T::SUB;
    }

    /// Whether condition `cond` holds, where the handler knows it.
    #[inline(always)]
    pub(crate) fn holds(&self, cond: u32) -> bool {
        let [a, b] = self.state.compared;
        match self.state.flags {
            Flags::Known => holds(cond, self.state.regs.nzcv),
            Flags::Sub32 => compare(cond, a as u32, b as u32),
            Flags::Sub64 => compare(cond, a, b),
        }
    }

    /// A register by the decoder's index.
    #[inline(always)]
    pub(crate) fn x(&self, n: usize) -> u64 {
        debug_assert!(n < 34);
        // SAFETY: the decoder makes indexes from 5-bit fields and the three above them; all are below 34.
        unsafe { *self.state.regs.x.get_unchecked(n) }
    }

    #[inline(always)]
    pub(crate) fn set_x(&mut self, n: usize, v: u64) {
        debug_assert!(n < 34);
        // SAFETY: as above.
        unsafe { *self.state.regs.x.get_unchecked_mut(n) = v };
    }

    #[inline(always)]
    pub(crate) fn w<T: Word>(&self, n: usize) -> T {
        T::of(self.x(n))
    }

    #[inline(always)]
    pub(crate) fn set_w<T: Word>(&mut self, n: usize, v: T) {
        self.set_x(n, v.u());
    }

    #[inline(always)]
    pub(crate) fn v(&self, n: usize) -> u128 {
        self.state.regs.v[n & 31]
    }

    #[inline(always)]
    pub(crate) fn set_v(&mut self, n: usize, v: u128) {
        self.state.regs.v[n & 31] = v;
    }
}

/// Flags of a result, C and V clear.
#[inline(always)]
pub(crate) fn nz<T: Word>(r: T) -> u32 {
    ((r.u() >> (T::BITS - 1)) as u32) << 31 | u32::from(r.u() == 0) << 30
}

/// Sum of `a`, `b` and a carry, with flags.
#[inline(always)]
pub(crate) fn add_flags<T: Word>(a: T, b: T, carry: bool) -> (T, u32) {
    let r = a.add(b).add(T::of(u64::from(carry)));
    let (au, bu, ru) = (a.u(), b.u(), r.u());
    let c = if carry { ru <= au } else { ru < au };
    let v = ((au ^ ru) & (bu ^ ru)) >> (T::BITS - 1) & 1;
    (r, nz(r) | u32::from(c) << 29 | (v as u32) << 28)
}

/// Difference, with flags.
#[inline(always)]
pub(crate) fn sub_flags<T: Word>(a: T, b: T) -> (T, u32) {
    let r = a.sub(b);
    let v = ((a.u() ^ b.u()) & (a.u() ^ r.u())) >> (T::BITS - 1) & 1;
    (r, nz(r) | u32::from(a.u() >= b.u()) << 29 | (v as u32) << 28)
}

/// Whether condition `cond` (0 to 15) holds (Arm ARM, C1.2.4).
#[inline(always)]
pub(crate) const fn holds(cond: u32, nzcv: u32) -> bool {
    let (n, z, c, v) = (nzcv >> 31 == 1, nzcv >> 30 & 1 == 1, nzcv >> 29 & 1 == 1, nzcv >> 28 & 1 == 1);
    let r = match cond >> 1 {
        0 => z,
        1 => c,
        2 => n,
        3 => v,
        4 => c && !z,
        5 => n == v,
        6 => n == v && !z,
        _ => return true,
    };
    r != (cond & 1 == 1)
}

/// Whether it holds after comparing `a` with `b`.
#[inline(always)]
pub(crate) fn compare<T: Word>(cond: u32, a: T, b: T) -> bool {
    let r = match cond >> 1 {
        0 => a == b,
        1 => a.u() >= b.u(),
        2 => a.sub(b).s() < 0,
        4 => a.u() > b.u(),
        5 => a.s() >= b.s(),
        6 => a.s() > b.s(),
        _ => return holds(cond, sub_flags(a, b).1),
    };
    r != (cond & 1 == 1)
}

/// `v` as extension `option` (UXTB … SXTX) gives it.
#[inline(always)]
pub(crate) fn extend(option: u32, v: u64) -> u64 {
    match option {
        0 => u64::from(v as u8),
        1 => u64::from(v as u16),
        2 => u64::from(v as u32),
        4 => v as i8 as u64,
        5 => v as i16 as u64,
        6 => v as i32 as u64,
        _ => v,
    }
}
