//! Integer data processing.

use super::{Word, add_flags, extend, nz};
use crate::cpu::Cpu;
use crate::interp::op::{P, next};

/// Handlers of the form "a = f(…)", and in `apply` what they do before they go on.
macro_rules! set {
    ($($(#[$m:meta])* $name:ident<$t:ident $(, const $k:ident: $kt:ty)*>($c:ident, $o:ident) = $e:expr;)*) => {
        pub(crate) mod apply {
            use super::*;
            $(
                #[inline(always)]
                pub(crate) fn $name<$t: Word $(, const $k: $kt)*>($c: &mut Cpu, $o: P) {
                    let r: $t = $e;
                    $c.set_w($o.a(), r);
                }
            )*
        }
        $(
            $(#[$m])*
            pub(crate) fn $name<$t: Word $(, const $k: $kt)*>(c: &mut Cpu, o: P) {
                apply::$name::<$t $(, $k)*>(c, o);
                next(c, o);
            }
        )*
    };
}

#[inline(always)]
fn shifted<T: Word, const K: u8>(v: T, n: u32) -> T {
    match K {
        0 => v.shl(n),
        1 => v.shr(n),
        2 => v.sar(n),
        _ => v.ror(n),
    }
}

set! {
    add_imm<T>(c, o) = c.w::<T>(o.b()).add(T::of(o.imm()));
    and_imm<T>(c, o) = T::of(c.x(o.b()) & o.imm());
    orr_imm<T>(c, o) = T::of(c.x(o.b()) | o.imm());
    eor_imm<T>(c, o) = T::of(c.x(o.b()) ^ o.imm());
    mov_imm<T>(_c, o) = T::of(o.imm());
    mov<T>(c, o) = c.w(o.c());
    add<T>(c, o) = c.w::<T>(o.b()).add(c.w(o.c()));
    sub<T>(c, o) = c.w::<T>(o.b()).sub(c.w(o.c()));
    and<T>(c, o) = T::of(c.x(o.b()) & c.x(o.c()));
    orr<T>(c, o) = T::of(c.x(o.b()) | c.x(o.c()));
    eor<T>(c, o) = T::of(c.x(o.b()) ^ c.x(o.c()));
    bic<T>(c, o) = T::of(c.x(o.b()) & !c.x(o.c()));
    orn<T>(c, o) = T::of(c.x(o.b()) | !c.x(o.c()));
    eon<T>(c, o) = T::of(c.x(o.b()) ^ !c.x(o.c()));
    add_shift<T, const K: u8>(c, o) = c.w::<T>(o.b()).add(shifted::<T, K>(c.w(o.c()), o.d() as u32));
    sub_shift<T, const K: u8>(c, o) = c.w::<T>(o.b()).sub(shifted::<T, K>(c.w(o.c()), o.d() as u32));
    /// `imm` is all ones where the second operand is to be inverted.
    and_shift<T, const K: u8>(c, o) =
        T::of(c.x(o.b()) & (shifted::<T, K>(c.w(o.c()), o.d() as u32).u() ^ o.imm()));
    orr_shift<T, const K: u8>(c, o) =
        T::of(c.x(o.b()) | (shifted::<T, K>(c.w(o.c()), o.d() as u32).u() ^ o.imm()));
    eor_shift<T, const K: u8>(c, o) =
        T::of(c.x(o.b()) ^ (shifted::<T, K>(c.w(o.c()), o.d() as u32).u() ^ o.imm()));
    /// Extension in `imm`, shift in `d`.
    add_ext<T>(c, o) = c.w::<T>(o.b()).add(T::of(extend(o.imm() as u32, c.x(o.c())) << o.d()));
    sub_ext<T>(c, o) = c.w::<T>(o.b()).sub(T::of(extend(o.imm() as u32, c.x(o.c())) << o.d()));
    lsl_imm<T>(c, o) = c.w::<T>(o.b()).shl(o.d() as u32);
    lsr_imm<T>(c, o) = c.w::<T>(o.b()).shr(o.d() as u32);
    asr_imm<T>(c, o) = c.w::<T>(o.b()).sar(o.d() as u32);
    /// Shift right by `d`, mask `imm`.
    ubfx<T>(c, o) = T::of(c.x(o.b()) >> o.d() & o.imm());
    /// Mask `imm`, shift left by `d`.
    ubfiz<T>(c, o) = T::of((c.x(o.b()) & o.imm()) << o.d());
    /// Shift left by `c`, then arithmetically right by `d`, in 64 bits.
    sbf<T>(c, o) = T::of(((c.x(o.b()) << o.c()) as i64 >> o.d()) as u64);
    sxtb<T>(c, o) = T::of(c.x(o.b()) as i8 as u64);
    sxth<T>(c, o) = T::of(c.x(o.b()) as i16 as u64);
    sxtw<T>(c, o) = T::of(c.x(o.b()) as i32 as u64);
    /// Rotate right by `d`, insert where `imm` has ones.
    bfm<T>(c, o) = T::of(c.x(o.a()) & !o.imm() | c.w::<T>(o.b()).ror(o.d() as u32).u() & o.imm());
    movk<T>(c, o) = T::of(c.x(o.a()) & !(0xffff << o.d()) | o.imm());
    ror_imm<T>(c, o) = c.w::<T>(o.b()).ror(o.d() as u32);
    extr<T>(c, o) = T::of(
        if o.d() == 0 { c.x(o.c()) } else {
            c.w::<T>(o.c()).shr(o.d() as u32).u() | c.w::<T>(o.b()).shl(T::BITS - o.d() as u32).u()
        });
    adc<T>(c, o) = add_flags::<T>(c.w(o.b()), c.w(o.c()), c.nzcv() >> 29 & 1 == 1).0;
    sbc<T>(c, o) = add_flags::<T>(c.w(o.b()), T::of(!c.x(o.c())), c.nzcv() >> 29 & 1 == 1).0;
    /// Addend in `d`.
    madd<T>(c, o) = c.w::<T>(o.d()).add(c.w::<T>(o.b()).mul(c.w(o.c())));
    msub<T>(c, o) = c.w::<T>(o.d()).sub(c.w::<T>(o.b()).mul(c.w(o.c())));
    udiv<T>(c, o) = c.w::<T>(o.b()).udiv(c.w(o.c()));
    sdiv<T>(c, o) = c.w::<T>(o.b()).sdiv(c.w(o.c()));
    lslv<T>(c, o) = c.w::<T>(o.b()).shl(c.x(o.c()) as u32);
    lsrv<T>(c, o) = c.w::<T>(o.b()).shr(c.x(o.c()) as u32);
    asrv<T>(c, o) = c.w::<T>(o.b()).sar(c.x(o.c()) as u32);
    rorv<T>(c, o) = c.w::<T>(o.b()).ror(c.x(o.c()) as u32 & (T::BITS - 1));
    rbit<T>(c, o) = c.w::<T>(o.b()).rbit();
    rev<T>(c, o) = c.w::<T>(o.b()).swap();
    rev16<T>(c, o) = { let v = c.x(o.b()); T::of((v >> 8 & 0x00ff_00ff_00ff_00ff) | (v & 0x00ff_00ff_00ff_00ff) << 8) };
    rev32<T>(c, o) = T::of(c.x(o.b()).swap_bytes().rotate_left(32));
    clz<T>(c, o) = T::of(c.w::<T>(o.b()).clz());
    cls<T>(c, o) = { let v = c.w::<T>(o.b()); T::of(T::of(v.u() ^ v.sar(1).u()).clz() - 1) };
    csel<T, const COND: u32>(c, o) = if c.holds(COND) { c.w(o.b()) } else { c.w(o.c()) };
    csinc<T, const COND: u32>(c, o) = if c.holds(COND) { c.w(o.b()) } else { c.w::<T>(o.c()).add(T::of(1)) };
    csinv<T, const COND: u32>(c, o) = if c.holds(COND) { c.w(o.b()) } else { T::of(!c.x(o.c())) };
    csneg<T, const COND: u32>(c, o) = if c.holds(COND) { c.w(o.b()) } else { T::of(0).sub(c.w(o.c())) };
}

/// Handlers of the form "a, flags = f(…)".
macro_rules! flags {
    ($($(#[$m:meta])* $name:ident<$t:ident $(, const $k:ident: $kt:ty)*>($c:ident, $o:ident) = $e:expr;)*) => {$(
        $(#[$m])*
        pub(crate) fn $name<$t: Word $(, const $k: $kt)*>($c: &mut Cpu, $o: P) {
            let (r, f): ($t, u32) = $e;
            $c.set_w($o.a(), r);
            $c.set_nzcv(f);
            next($c, $o);
        }
    )*};
}

#[inline(always)]
fn with_nz<T: Word>(v: u64) -> (T, u32) {
    let r = T::of(v);
    (r, nz(r))
}

flags! {
    adds_imm<T>(c, o) = add_flags::<T>(c.w(o.b()), T::of(o.imm()), false);
    ands_imm<T>(c, o) = with_nz(c.x(o.b()) & o.imm());
    adds<T>(c, o) = add_flags::<T>(c.w(o.b()), c.w(o.c()), false);
    adds_shift<T, const K: u8>(c, o) =
        add_flags::<T>(c.w(o.b()), shifted::<T, K>(c.w(o.c()), o.d() as u32), false);
    ands_shift<T, const K: u8>(c, o) =
        with_nz(c.x(o.b()) & (shifted::<T, K>(c.w(o.c()), o.d() as u32).u() ^ o.imm()));
    adds_ext<T>(c, o) = add_flags::<T>(c.w(o.b()), T::of(extend(o.imm() as u32, c.x(o.c())) << o.d()), false);
    adcs<T>(c, o) = add_flags::<T>(c.w(o.b()), c.w(o.c()), c.nzcv() >> 29 & 1 == 1);
    sbcs<T>(c, o) = add_flags::<T>(c.w(o.b()), T::of(!c.x(o.c())), c.nzcv() >> 29 & 1 == 1);
}

/// Handlers of the form "a, flags = b - f(…)".
macro_rules! differences {
    ($($name:ident<$t:ident $(, const $k:ident: $kt:ty)*>($c:ident, $o:ident) = $e:expr;)*) => {$(
        pub(crate) fn $name<$t: Word $(, const $k: $kt)*>($c: &mut Cpu, $o: P) {
            let (x, y): ($t, $t) = ($c.w($o.b()), $e);
            $c.set_w($o.a(), x.sub(y));
            $c.set_compared(x, y);
            next($c, $o);
        }
    )*};
}

differences! {
    subs_imm<T>(c, o) = T::of(o.imm());
    subs<T>(c, o) = c.w(o.c());
    subs_shift<T, const K: u8>(c, o) = shifted::<T, K>(c.w(o.c()), o.d() as u32);
    subs_ext<T>(c, o) = T::of(extend(o.imm() as u32, c.x(o.c())) << o.d());
}

/// CCMP, and CCMN where `NEG`: NZCV otherwise in `a` (as its top four bits shifted down), operands `b` and `c`.
pub(crate) fn ccmp<T: Word, const NEG: bool, const COND: u32>(c: &mut Cpu, o: P) {
    ccmp_with::<T, NEG, COND>(c, o, c.w(o.c()));
    next(c, o);
}

pub(crate) fn ccmp_imm<T: Word, const NEG: bool, const COND: u32>(c: &mut Cpu, o: P) {
    ccmp_with::<T, NEG, COND>(c, o, T::of(o.imm()));
    next(c, o);
}

#[inline(always)]
fn ccmp_with<T: Word, const NEG: bool, const COND: u32>(c: &mut Cpu, o: P, b: T) {
    let a = c.w::<T>(o.b());
    if !c.holds(COND) {
        c.set_nzcv((o.a() as u32) << 28);
    } else if NEG {
        c.set_nzcv(add_flags(a, b, false).1);
    } else {
        c.set_compared(a, b);
    }
}

/// Page of PC plus `imm`.
pub(crate) fn adr(c: &mut Cpu, o: P) {
    adr_now(c, o);
    next(c, o);
}

#[inline(always)]
pub(crate) fn adr_now(c: &mut Cpu, o: P) {
    c.set_x(o.a(), c.page.wrapping_add(o.imm()));
}

/// 32×32 to 64 bits, `d` plus or minus.
pub(crate) fn maddl<const SIGNED: bool, const SUB: bool>(c: &mut Cpu, o: P) {
    let (x, y) = (c.x(o.b()), c.x(o.c()));
    let p = if SIGNED {
        (x as i32 as i64).wrapping_mul(y as i32 as i64) as u64
    } else {
        u64::from(x as u32).wrapping_mul(u64::from(y as u32))
    };
    let z = c.x(o.d());
    c.set_x(o.a(), if SUB { z.wrapping_sub(p) } else { z.wrapping_add(p) });
    next(c, o);
}

pub(crate) fn mulh<const SIGNED: bool>(c: &mut Cpu, o: P) {
    let (x, y) = (c.x(o.b()), c.x(o.c()));
    let r = if SIGNED {
        ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64
    } else {
        ((u128::from(x) * u128::from(y)) >> 64) as u64
    };
    c.set_x(o.a(), r);
    next(c, o);
}

/// What each byte adds to a CRC, by the reflected polynomial.
const fn crc_table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut r = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            r = r >> 1 ^ polynomial & (r & 1).wrapping_neg();
            bit += 1;
        }
        table[byte] = r;
        byte += 1;
    }
    table
}

static CRC32: [u32; 256] = crc_table(0xedb8_8320);
static CRC32C: [u32; 256] = crc_table(0x82f6_3b78);

/// Bytes in `d`; CRC-32C when `C`.
pub(crate) fn crc32<const C: bool>(c: &mut Cpu, o: P) {
    let table = if C { &CRC32C } else { &CRC32 };
    let (mut r, v) = (c.x(o.b()) as u32, c.x(o.c()));
    for byte in &v.to_le_bytes()[..o.d().min(8)] {
        r = r >> 8 ^ table[usize::from(r as u8 ^ byte)];
    }
    c.set_x(o.a(), u64::from(r));
    next(c, o);
}

/// RMIF: rotate `b` by `d`, take the bits of mask `a`.
pub(crate) fn rmif(c: &mut Cpu, o: P) {
    let mask = (o.a() as u32) << 28;
    let v = (c.x(o.b()).rotate_right(o.d() as u32) as u32) << 28;
    c.set_nzcv(c.nzcv() & !mask | v & mask);
    next(c, o);
}

/// SETF8 and SETF16, by the bits in `d`.
pub(crate) fn setf(c: &mut Cpu, o: P) {
    let (v, bits) = (c.x(o.b()) as u32, o.d() as u32);
    let n = v >> (bits - 1) & 1;
    let z = u32::from(v << (32 - bits) == 0);
    let overflow = (v >> bits ^ v >> (bits - 1)) & 1;
    c.set_nzcv(c.nzcv() & 1 << 29 | n << 31 | z << 30 | overflow << 28);
    next(c, o);
}

pub(crate) fn cfinv(c: &mut Cpu, o: P) {
    c.set_nzcv(c.nzcv() ^ 1 << 29);
    next(c, o);
}

/// AXFLAG: from Arm's floating-point flags to the others' (C6.2.29).
pub(crate) fn axflag(c: &mut Cpu, o: P) {
    let f = c.nzcv();
    let (z, cf, v) = (f >> 30 & 1, f >> 29 & 1, f >> 28 & 1);
    c.set_nzcv((z | v) << 30 | (cf & (v ^ 1)) << 29);
    next(c, o);
}

/// XAFLAG: back (C6.2.429).
pub(crate) fn xaflag(c: &mut Cpu, o: P) {
    let f = c.nzcv();
    let (z, cf) = (f >> 30 & 1, f >> 29 & 1);
    let n = (cf | z) ^ 1;
    c.set_nzcv(n << 31 | (z & cf) << 30 | (cf | z) << 29 | ((cf ^ 1) & z) << 28);
    next(c, o);
}

pub(crate) fn nop(c: &mut Cpu, o: P) {
    next(c, o);
}
