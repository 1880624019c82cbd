//! AES, PMULL, SHA-1, SHA-256, SHA-512 and SHA-3. AES and the long PMULL use the host's instructions where it has them.

use super::Handler;
use super::lanes::*;
use crate::Regs;

/// Product in GF(2^8) with AES's polynomial.
const fn gmul(a: u8, b: u8) -> u8 {
    let (mut a, mut p, mut n) = (a, 0, 0);
    while n < 8 {
        if b >> n & 1 == 1 {
            p ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        n += 1;
    }
    p
}

/// The S-box from its definition: inverse, then the affine map.
const SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut x = 0;
    while x < 256 {
        // x^254 is the inverse, zero's being zero.
        let (mut inverse, mut n) = (1, 0);
        while n < 254 {
            inverse = gmul(inverse, x as u8);
            n += 1;
        }
        let i = inverse;
        table[x] = i ^ i.rotate_left(1) ^ i.rotate_left(2) ^ i.rotate_left(3) ^ i.rotate_left(4) ^ 0x63;
        x += 1;
    }
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut x = 0;
    while x < 256 {
        table[SBOX[x] as usize] = x as u8;
        x += 1;
    }
    table
};

/// AES steps in portable code. The state's byte n is row n mod 4 of column n / 4.
mod portable {
    use super::{INVERSE_SBOX, SBOX, gmul};

    pub(super) fn encrypt(x: u128) -> u128 {
        let s = x.to_le_bytes();
        u128::from_le_bytes(std::array::from_fn(|n| SBOX[s[(n + 4 * (n % 4)) % 16] as usize]))
    }

    pub(super) fn decrypt(x: u128) -> u128 {
        let s = x.to_le_bytes();
        u128::from_le_bytes(std::array::from_fn(|n| INVERSE_SBOX[s[(n + 12 * (n % 4)) % 16] as usize]))
    }

    fn columns(x: u128, row: [u8; 4]) -> u128 {
        let s = x.to_le_bytes();
        u128::from_le_bytes(std::array::from_fn(|n| {
            (0..4).fold(0, |p, k| p ^ gmul(s[n / 4 * 4 + (n + k) % 4], row[k]))
        }))
    }

    pub(super) fn mix(x: u128) -> u128 {
        columns(x, [2, 3, 1, 1])
    }

    pub(super) fn unmix(x: u128) -> u128 {
        columns(x, [14, 11, 13, 9])
    }

    pub(super) fn clmul(a: u64, b: u64) -> u128 {
        (0..64).fold(0, |p, n| if b >> n & 1 == 1 { p ^ (a as u128) << n } else { p })
    }
}

#[cfg(target_arch = "x86_64")]
mod host {
    use std::arch::x86_64::*;

    fn to(x: u128) -> __m128i {
        // SAFETY: both are 16 bytes of plain data.
        unsafe { std::mem::transmute(x) }
    }

    fn from(x: __m128i) -> u128 {
        // SAFETY: both are 16 bytes of plain data.
        unsafe { std::mem::transmute(x) }
    }

    pub(super) fn has_aes() -> bool {
        is_x86_feature_detected!("aes")
    }

    pub(super) fn has_clmul() -> bool {
        is_x86_feature_detected!("pclmulqdq")
    }

    #[target_feature(enable = "aes")]
    pub(super) fn encrypt(x: u128) -> u128 {
        from(_mm_aesenclast_si128(to(x), to(0)))
    }

    #[target_feature(enable = "aes")]
    pub(super) fn decrypt(x: u128) -> u128 {
        from(_mm_aesdeclast_si128(to(x), to(0)))
    }

    /// A whole encryption round undoes the decryption round before it, but for MixColumns.
    #[target_feature(enable = "aes")]
    pub(super) fn mix(x: u128) -> u128 {
        from(_mm_aesenc_si128(_mm_aesdeclast_si128(to(x), to(0)), to(0)))
    }

    #[target_feature(enable = "aes")]
    pub(super) fn unmix(x: u128) -> u128 {
        from(_mm_aesimc_si128(to(x)))
    }

    #[target_feature(enable = "pclmulqdq")]
    pub(super) fn clmul(a: u64, b: u64) -> u128 {
        from(_mm_clmulepi64_si128(to(a as u128), to(b as u128), 0))
    }
}

/// What steps are chosen by.
pub(super) fn host_features() -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        u32::from(host::has_aes()) | u32::from(host::has_clmul()) << 1
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Pairs of the host's and the portable form of one step, chosen when an instruction is decoded.
macro_rules! choose {
    ($has:ident, |$r:ident, $i:ident, $f:ident| $body:expr, $step:ident) => {{
        #[cfg(target_arch = "x86_64")]
        if host::$has() {
            let h: Handler = |$r, $i| {
                // SAFETY: this handler is handed out only where the host has the feature.
                #[allow(unused_unsafe, reason = "where the whole build has the feature nothing is unsafe")]
                let $f = |x| unsafe { host::$step(x) };
                $body
            };
            return Some(h);
        }
        let h: Handler = |$r, $i| {
            let $f = portable::$step;
            $body
        };
        Some(h)
    }};
}

pub(super) fn aes(i: u32) -> Option<Handler> {
    if i >> 22 & 3 != 0 {
        return None;
    }
    match i >> 12 & 31 {
        0b00100 => choose!(has_aes, |r, i, f| r.v[rd(i)] = f(r.v[rd(i)] ^ r.v[rn(i)]), encrypt),
        0b00101 => choose!(has_aes, |r, i, f| r.v[rd(i)] = f(r.v[rd(i)] ^ r.v[rn(i)]), decrypt),
        0b00110 => choose!(has_aes, |r, i, f| r.v[rd(i)] = f(r.v[rn(i)]), mix),
        0b00111 => choose!(has_aes, |r, i, f| r.v[rd(i)] = f(r.v[rn(i)]), unmix),
        _ => None,
    }
}

/// PMULL of doublewords, the upper ones for PMULL2.
pub(super) fn pmull(upper: bool) -> Handler {
    #[inline(always)]
    fn run(r: &mut Regs, i: u32, shift: u32, f: impl Fn(u64, u64) -> u128) {
        r.v[rd(i)] = f((r.v[rn(i)] >> shift) as u64, (r.v[rm(i)] >> shift) as u64);
    }
    #[cfg(target_arch = "x86_64")]
    if host::has_clmul() {
        return match upper {
            // SAFETY: these handlers are handed out only where the host has the feature.
            false => |r, i| run(r, i, 0, |a, b| unsafe { host::clmul(a, b) }),
            // SAFETY: as above.
            true => |r, i| run(r, i, 64, |a, b| unsafe { host::clmul(a, b) }),
        };
    }
    match upper {
        false => |r, i| run(r, i, 0, portable::clmul),
        true => |r, i| run(r, i, 64, portable::clmul),
    }
}

#[inline(always)]
fn words(x: u128) -> [u32; 4] {
    u32::split(x)
}

fn choice(x: u32, y: u32, z: u32) -> u32 {
    ((y ^ z) & x) ^ z
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    (x & y) | ((x | y) & z)
}

/// Four rounds of SHA-1.
#[inline(always)]
fn sha1(r: &mut Regs, i: u32, f: impl Fn(u32, u32, u32) -> u32) {
    let mut x = words(r.v[rd(i)]);
    let mut y = r.v[rn(i)] as u32;
    for w in words(r.v[rm(i)]) {
        let t = y.wrapping_add(x[0].rotate_left(5)).wrapping_add(f(x[1], x[2], x[3])).wrapping_add(w);
        y = x[3];
        x = [t, x[0], x[1].rotate_left(30), x[2]];
    }
    store::<u32>(r, rd(i), x);
}

/// Four rounds of SHA-256 on the state abcd, efgh; both halves of the new state.
#[inline(always)]
fn sha256(abcd: u128, efgh: u128, w: u128) -> ([u32; 4], [u32; 4]) {
    let (mut x, mut y) = (words(abcd), words(efgh));
    for w in words(w) {
        let s1 = y[0].rotate_right(6) ^ y[0].rotate_right(11) ^ y[0].rotate_right(25);
        let s0 = x[0].rotate_right(2) ^ x[0].rotate_right(13) ^ x[0].rotate_right(22);
        let t = y[3].wrapping_add(s1).wrapping_add(choice(y[0], y[1], y[2])).wrapping_add(w);
        let a = t.wrapping_add(s0).wrapping_add(majority(x[0], x[1], x[2]));
        let e = t.wrapping_add(x[3]);
        x = [a, x[0], x[1], x[2]];
        y = [e, y[0], y[1], y[2]];
    }
    (x, y)
}

fn sha256_sigma0(x: u32) -> u32 {
    x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3
}

fn sha256_sigma1(x: u32) -> u32 {
    x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10
}

/// "Cryptographic three-register SHA".
pub(super) fn sha_three(i: u32) -> Option<Handler> {
    if i >> 22 & 3 != 0 {
        return None;
    }
    Some(match i >> 12 & 7 {
        0 => |r, i| sha1(r, i, choice),
        1 => |r, i| sha1(r, i, |x, y, z| x ^ y ^ z),
        2 => |r, i| sha1(r, i, majority),
        3 => |r, i| {
            let (d, n, m) = (r.v[rd(i)], r.v[rn(i)], r.v[rm(i)]);
            r.v[rd(i)] = (n << 64 | d >> 64) ^ d ^ m;
        },
        4 => |r, i| r.v[rd(i)] = u32::join(sha256(r.v[rd(i)], r.v[rn(i)], r.v[rm(i)]).0),
        5 => |r, i| r.v[rd(i)] = u32::join(sha256(r.v[rn(i)], r.v[rd(i)], r.v[rm(i)]).1),
        6 => |r, i| {
            let (d, n, m) = (words(r.v[rd(i)]), words(r.v[rn(i)]), words(r.v[rm(i)]));
            let t = [n[1], n[2], n[3], m[0]];
            let mut out = [0; 4];
            for x in 0..4 {
                let s = if x < 2 { m[2 + x] } else { out[x - 2] };
                out[x] = sha256_sigma1(s).wrapping_add(d[x]).wrapping_add(t[x]);
            }
            store::<u32>(r, rd(i), out);
        },
        _ => return None,
    })
}

/// "Cryptographic two-register SHA".
pub(super) fn sha_two(i: u32) -> Option<Handler> {
    if i >> 22 & 3 != 0 {
        return None;
    }
    Some(match i >> 12 & 31 {
        0 => |r, i| r.v[rd(i)] = (r.v[rn(i)] as u32).rotate_left(30) as u128,
        1 => |r, i| {
            let t = words(r.v[rd(i)] ^ r.v[rn(i)] >> 32).map(|x| x.rotate_left(1));
            store::<u32>(r, rd(i), [t[0], t[1], t[2], t[3] ^ t[0].rotate_left(1)]);
        },
        2 => |r, i| {
            let (d, n) = (words(r.v[rd(i)]), r.v[rn(i)] as u32);
            let t = [d[1], d[2], d[3], n];
            r.v[rd(i)] = u32::join(std::array::from_fn(|x| sha256_sigma0(t[x]).wrapping_add(d[x])));
        },
        _ => return None,
    })
}

fn choice64(x: u64, y: u64, z: u64) -> u64 {
    ((y ^ z) & x) ^ z
}

fn majority64(x: u64, y: u64, z: u64) -> u64 {
    (x & y) | ((x | y) & z)
}

fn big_sigma0(x: u64) -> u64 {
    x.rotate_right(28) ^ x.rotate_right(34) ^ x.rotate_right(39)
}

fn big_sigma1(x: u64) -> u64 {
    x.rotate_right(14) ^ x.rotate_right(18) ^ x.rotate_right(41)
}

/// "Cryptographic three-register SHA-512", with RAX1.
pub(super) fn sha512_three(i: u32) -> Option<Handler> {
    if i >> 14 & 1 == 1 {
        return None;
    }
    Some(match i >> 10 & 3 {
        0 => |r, i| {
            let (w, x, y) = (load::<u64>(r, rd(i)), load::<u64>(r, rn(i)), load::<u64>(r, rm(i)));
            let high = choice64(y[1], x[0], x[1]).wrapping_add(big_sigma1(y[1])).wrapping_add(w[1]);
            let t = high.wrapping_add(y[0]);
            let low = choice64(t, y[1], x[0]).wrapping_add(big_sigma1(t)).wrapping_add(w[0]);
            store::<u64>(r, rd(i), [low, high]);
        },
        1 => |r, i| {
            let (w, x, y) = (load::<u64>(r, rd(i)), load::<u64>(r, rn(i)), load::<u64>(r, rm(i)));
            let high = majority64(x[0], y[1], y[0]).wrapping_add(big_sigma0(y[0])).wrapping_add(w[1]);
            let low = majority64(high, y[0], y[1]).wrapping_add(big_sigma0(high)).wrapping_add(w[0]);
            store::<u64>(r, rd(i), [low, high]);
        },
        2 => |r, i| {
            tern::<u64, 128>(r, i, |_, d, n, m| {
                let s = n.rotate_right(19) ^ n.rotate_right(61) ^ n >> 6;
                d.wrapping_add(s).wrapping_add(m)
            });
        },
        _ => |r, i| bin::<u64, 128>(r, i, |_, n, m| n ^ m.rotate_left(1)),
    })
}

/// "Cryptographic two-register SHA-512".
pub(super) fn sha512_two(i: u32) -> Option<Handler> {
    (i >> 10 & 3 == 0).then_some(|r, i| {
        let (w, x) = (load::<u64>(r, rd(i)), load::<u64>(r, rn(i)));
        let s = |x: u64| x.rotate_right(1) ^ x.rotate_right(8) ^ x >> 7;
        r.v[rd(i)] = u64::join([w[0].wrapping_add(s(w[1])), w[1].wrapping_add(s(x[0]))]);
    })
}

/// EOR3 and BCAX.
pub(super) fn four_register(i: u32) -> Option<Handler> {
    Some(match i >> 21 & 3 {
        0 => |r, i| r.v[rd(i)] = r.v[rn(i)] ^ r.v[rm(i)] ^ r.v[ra(i)],
        1 => |r, i| r.v[rd(i)] = r.v[rn(i)] ^ (r.v[rm(i)] & !r.v[ra(i)]),
        _ => return None,
    })
}

pub(super) fn xar(r: &mut Regs, i: u32) {
    bin::<u64, 128>(r, i, |_, n, m| (n ^ m).rotate_right(i >> 10 & 63));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The portable steps against the host's instructions, and against each other.
    #[test]
    fn portable_steps() {
        let mut x = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210u128;
        for _ in 0..1000 {
            x = x.wrapping_mul(0xda94_2042_e4dd_58b5_0c7f_3a1b_9d2e_61f5).rotate_left(41);
            assert_eq!(portable::decrypt(portable::encrypt(x)), x);
            assert_eq!(portable::unmix(portable::mix(x)), x);
            #[cfg(target_arch = "x86_64")]
            if host::has_aes() && host::has_clmul() {
                let (a, b) = (x as u64, (x >> 64) as u64);
                // SAFETY: the features were just detected.
                unsafe {
                    assert_eq!(portable::encrypt(x), host::encrypt(x));
                    assert_eq!(portable::decrypt(x), host::decrypt(x));
                    assert_eq!(portable::mix(x), host::mix(x));
                    assert_eq!(portable::unmix(x), host::unmix(x));
                    assert_eq!(portable::clmul(a, b), host::clmul(a, b));
                }
            }
        }
        // FIPS 197, figure 7.
        assert_eq!((SBOX[0], SBOX[0x53], INVERSE_SBOX[0xed]), (0x63, 0xed, 0x53));
    }
}
