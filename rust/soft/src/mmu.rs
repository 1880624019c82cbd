//! Stage 1 translation of EL1&0, 4 KiB granule (Arm ARM, D8).

use crate::cpu::Cpu;
use crate::mem::read_descriptor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// A fault status code (DFSC and IFSC, Arm ARM D24.2.40).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault(pub u32);

impl Fault {
    pub(crate) const ALIGNMENT: Self = Self(0x21);
    /// Synchronous external abort, not on a walk.
    pub(crate) const EXTERNAL: Self = Self(0x10);

    const fn address_size(level: u32) -> Self {
        Self(level)
    }
    const fn translation(level: u32) -> Self {
        Self(4 + level)
    }
    const fn access_flag(level: u32) -> Self {
        Self(8 + level)
    }
    const fn permission(level: u32) -> Self {
        Self(12 + level)
    }
    const fn external_walk(level: u32) -> Self {
        Self(0x14 + level)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    pub pa: u64,
    /// Level of the descriptor that ended the walk; 3 for a page.
    pub level: u32,
    /// Whether the same walk would allow a write.
    pub writable: bool,
    /// Index into MAIR, and the shareability bits.
    pub attributes: u64,
}

/// Output addresses have this many bits at most (ID_AA64MMFR0_EL1.PARange = 0b0010).
pub(crate) const PA_BITS: u32 = 40;

impl Cpu {
    /// Translates for an access with EL0's or EL1's rights.
    pub(crate) fn walk(&self, va: u64, access: Access, el0: bool) -> Result<Translation, Fault> {
        let sys = &self.state.sys;
        let upper = va >> 55 & 1 == 1;
        if sys.sctlr & 1 == 0 {
            let pa = va & ((1 << 56) - 1);
            if pa >> PA_BITS != 0 {
                return Err(Fault::address_size(0));
            }
            return Ok(Translation { pa, level: 3, writable: true, attributes: 0 });
        }
        let tcr = sys.tcr;
        let (size, tbi, disabled, granule_ok, table) = if upper {
            (tcr >> 16 & 63, tcr >> 38 & 1, tcr >> 23 & 1, tcr >> 30 & 3 == 2, sys.ttbr1)
        } else {
            (tcr & 63, tcr >> 37 & 1, tcr >> 7 & 1, tcr >> 14 & 3 == 0, sys.ttbr0)
        };
        // E0PD is not there; sizes beyond the limits act as the limits (constrained, D8.2.8).
        let size = size.clamp(16, 39);
        let bits = 64 - size as u32;
        let top = if tbi == 1 { va << 8 >> 8 >> bits } else { va >> bits };
        let ones = if tbi == 1 { (1 << (56 - bits)) - 1 } else { u64::MAX >> bits };
        if disabled == 1 || !granule_ok || top != if upper { ones } else { 0 } {
            return Err(Fault::translation(0));
        }
        let mut level = 4 - (bits - 12).div_ceil(9);
        let output =
            |pa: u64, level| if pa >> self.pa_bits != 0 { Err(Fault::address_size(level)) } else { Ok(pa) };
        // The first table may be shorter than a page and then is aligned to its size.
        let first_bits = bits - 12 - 9 * (3 - level);
        let mut base = output(table & 0xffff_ffff_fffe & !((8 << first_bits) - 1), 0)?;
        let mut index_bits = first_bits;
        let (mut no_write, mut no_el0, mut uxn, mut pxn) = (false, false, false, false);
        loop {
            let shift = 12 + 9 * (3 - level);
            let index = va >> shift & ((1 << index_bits) - 1);
            let at = base + index * 8;
            let host = self.host(at, false).ok_or(Fault::external_walk(level))?;
            let d = read_descriptor(host);
            if d & 1 == 0 || (level == 3 && d & 2 == 0) || (level == 0 && d & 2 == 0) {
                return Err(Fault::translation(level));
            }
            if level < 3 && d & 2 != 0 {
                base = output(d & 0xffff_ffff_f000, level)?;
                // Hierarchical permissions (D8.4.6).
                no_el0 |= d >> 61 & 1 == 1;
                no_write |= d >> 62 & 1 == 1;
                uxn |= d >> 60 & 1 == 1;
                pxn |= d >> 59 & 1 == 1;
                level += 1;
                index_bits = 9;
                continue;
            }
            let offset = (1u64 << shift) - 1;
            let pa = output(d & 0xffff_ffff_f000 & !offset, level)? | va & offset;
            if d >> 10 & 1 == 0 {
                return Err(Fault::access_flag(level));
            }
            let user = d >> 6 & 1 == 1 && !no_el0;
            let mut write = d >> 7 & 1 == 0 && !no_write;
            uxn |= d >> 54 & 1 == 1;
            // What EL0 can write, EL1 never executes.
            pxn |= d >> 53 & 1 == 1 || user && write;
            let wxn = sys.sctlr >> 19 & 1 == 1;
            let (read, execute) = if el0 {
                write &= user;
                (user, !(uxn || wxn && write))
            } else {
                let barred = self.state.pan && user;
                let execute = !(pxn || wxn && write);
                write &= !barred;
                (!barred, execute)
            };
            let allowed = match access {
                Access::Read => read,
                Access::Write => write,
                Access::Execute => execute,
            };
            if !allowed {
                return Err(Fault::permission(level));
            }
            return Ok(Translation {
                pa,
                level,
                writable: write,
                attributes: d >> 2 & 7 | (d >> 8 & 3) << 3,
            });
        }
    }
}
