//! Sets of registers.

use super::insn::{Address, Operand, Reg};
use crate::Regs;

/// A set of registers: general ones by the decoder's index, vector registers, and the condition flags as one. FPCR and
/// FPSR are not among them, nor is what goes nowhere and what reads as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    pub general: u64,
    pub vector: u32,
    pub flags: bool,
}

impl Registers {
    pub(crate) const NONE: Self = Self { general: 0, vector: 0, flags: false };
    pub(crate) const FLAGS: Self = Self { general: 0, vector: 0, flags: true };
    /// All there are.
    pub(crate) const ALL: Self = Self { general: u32::MAX as u64, vector: u32::MAX, flags: true };

    /// With a general register.
    pub(crate) fn x(self, r: Reg) -> Self {
        if r as usize > Regs::SP { self } else { Self { general: self.general | 1 << r, ..self } }
    }

    /// With a vector register.
    pub(crate) fn v(self, r: Reg) -> Self {
        Self { vector: self.vector | 1 << (r & 31), ..self }
    }

    /// With `count` vector registers from `r` on; 0 comes behind 31.
    pub(super) fn structure(self, r: Reg, count: u8) -> Self {
        (0..count).fold(self, |all, n| all.v(r + n))
    }

    pub(super) fn operand(self, m: Operand) -> Self {
        match m {
            Operand::Imm(_) => self,
            Operand::Reg(m) | Operand::Shifted(m, ..) | Operand::Extended(m, ..) => self.x(m),
        }
    }

    pub(super) fn address(self, address: Address) -> Self {
        match address {
            Address::Offset(n, _) | Address::Unscaled(n, _) | Address::Pre(n, _) | Address::Post(n, _) => {
                self.x(n)
            }
            Address::Index(n, m, ..) => self.x(n).x(m),
            Address::Page(_) => self,
        }
    }

    /// With the base register that an address writes.
    pub(super) fn base(self, address: Address) -> Self {
        match address {
            Address::Pre(n, _) | Address::Post(n, _) => self.x(n),
            _ => self,
        }
    }

    /// These and those.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            general: self.general | other.general,
            vector: self.vector | other.vector,
            flags: self.flags || other.flags,
        }
    }

    pub(crate) fn has(self, r: Reg) -> bool {
        self.general >> r & 1 == 1
    }

    pub(crate) fn has_vector(self, r: Reg) -> bool {
        self.vector >> r & 1 == 1
    }
}
