//! The memory-mapped registers of distributor and redistributors (IHI 0069, 12.9 to 12.11).

use super::bank::Bank;
use super::{BANKS, Error, Gic, INTIDS, Inner};
use crate::id::RedistReg;

const GICD_SIZE: u64 = 0x1_0000;
const GICR_STRIDE: u64 = 0x2_0000;
/// The SGI frame follows the redistributor's first 64 KiB.
const SGI_FRAME: u32 = 0x1_0000;

/// GICD_IROUTER.Interrupt_Routing_Mode: any vCPU that takes part.
pub(super) const IROUTER_ANY: u64 = 1 << 31;
/// Affinities 3 to 0 and the mode.
pub(super) const IROUTER_MASK: u64 = 0xff << 32 | IROUTER_ANY | 0xff_ffff;

/// GICD_CTLR: one security state, affinity routing; both fixed.
const CTLR_FIXED: u32 = 1 << 6 | 1 << 4;
/// GICD_TYPER: INTIDs of ten bits, 32 × (N + 1) of them wired.
const TYPER: u32 = 9 << 19 | (BANKS as u32 - 1);
/// Implementer Arm, as drivers expect; product and revision 0.
const IIDR: u32 = 0x43b;
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

const CTLR: u32 = 0;
const GICD_TYPER: u32 = 4;
const GICD_IIDR: u32 = 8;
const GICR_IIDR: u32 = 4;
const GICR_TYPER: u32 = 8;
const GICR_TYPER_HIGH: u32 = 0xc;
const GICR_WAKER: u32 = 0x14;
const IROUTER: u32 = 0x6000;
const PIDR4: u32 = 0xffd0;
const PIDR2: u32 = 0xffe8;

/// A register of a bank, as its offset within a frame gives it.
enum BankRegister {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    /// Which four of the bank.
    Priority(usize),
    /// Which half of the bank.
    Trigger(u32),
}

/// The bank and the register in it at this offset; the layout is the same in the distributor and in an SGI frame.
fn bank_register(offset: u32) -> Option<(usize, BankRegister)> {
    let bit_register = |base: u32| ((offset - base) / 4) as usize;
    let found = match offset {
        0x080..0x100 => (bit_register(0x080), BankRegister::Group),
        0x100..0x180 => (bit_register(0x100), BankRegister::SetEnable),
        0x180..0x200 => (bit_register(0x180), BankRegister::ClearEnable),
        0x200..0x280 => (bit_register(0x200), BankRegister::SetPending),
        0x280..0x300 => (bit_register(0x280), BankRegister::ClearPending),
        0x300..0x380 => (bit_register(0x300), BankRegister::SetActive),
        0x380..0x400 => (bit_register(0x380), BankRegister::ClearActive),
        0x400..0x800 => {
            let intid = (offset - 0x400) as usize;
            (intid / 32, BankRegister::Priority(intid % 32 / 4))
        }
        0xc00..0xd00 => {
            let register = (offset - 0xc00) / 4;
            (register as usize / 2, BankRegister::Trigger(register % 2))
        }
        _ => return None,
    };
    (found.0 < BANKS).then_some(found)
}

impl Bank {
    fn read(&self, register: &BankRegister) -> u32 {
        match *register {
            BankRegister::Group => self.group,
            BankRegister::SetEnable | BankRegister::ClearEnable => self.enabled,
            BankRegister::SetPending | BankRegister::ClearPending => self.pending(),
            BankRegister::SetActive | BankRegister::ClearActive => self.active,
            BankRegister::Priority(register) => self.priorities(register),
            BankRegister::Trigger(half) => self.triggers(half),
        }
    }

    /// Writes the bytes of `value` that `bytes` has set.
    fn write(&mut self, register: &BankRegister, value: u32, bytes: u32) {
        if let BankRegister::Priority(register) = *register {
            for (n, priority) in value.to_le_bytes().into_iter().enumerate() {
                if bytes >> n & 1 == 1 {
                    self.set_priority(4 * register + n, priority);
                }
            }
            return;
        }
        // Only priorities take accesses narrower than a word.
        if bytes != 0xf {
            return;
        }
        match *register {
            BankRegister::Group => self.group = value,
            BankRegister::SetEnable => self.enabled |= value,
            BankRegister::ClearEnable => self.enabled &= !value,
            BankRegister::SetPending => self.latched |= value,
            BankRegister::ClearPending => self.latched &= !value,
            BankRegister::SetActive => self.active |= value,
            BankRegister::ClearActive => self.active &= !value,
            BankRegister::Trigger(half) => self.set_triggers(half, value),
            BankRegister::Priority(_) => {}
        }
    }
}

/// CoreSight identification: a GICv3 (PIDR2.ArchRev 3) by Arm.
fn identification(offset: u32) -> u32 {
    const REGISTERS: [u8; 12] = [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
    REGISTERS.get(((offset - PIDR4) / 4) as usize).copied().unwrap_or(0).into()
}

impl Gic {
    /// A load (`write` is `None`) or store of `size` bytes by `vcpu` at a guest physical address. `None` when the
    /// address is not the controller's; a store gives `Some(0)`. Registers that do not exist read as zero and ignore
    /// writes, and so do accesses of the wrong size or alignment.
    pub fn mmio(&self, _vcpu: u32, pa: u64, size: usize, write: Option<u64>) -> Option<u64> {
        let (redistributor, offset) = self.locate(pa)?;
        if !matches!(size, 1 | 2 | 4 | 8) || !pa.is_multiple_of(size as u64) {
            return Some(0);
        }
        self.with(|inner| {
            let word = offset & !3;
            let shift = 8 * (offset & 3);
            let Some(value) = write else {
                let low = u64::from(inner.read(redistributor, word)) >> shift;
                return Some(match size {
                    8 => low | u64::from(inner.read(redistributor, word + 4)) << 32,
                    4 => low,
                    _ => low & ((1 << (8 * size)) - 1),
                });
            };
            if size == 8 {
                inner.write(redistributor, word, value as u32, 0xf);
                inner.write(redistributor, word + 4, (value >> 32) as u32, 0xf);
            } else {
                let bytes = ((1 << size) - 1) << (offset & 3);
                inner.write(redistributor, word, (value as u32) << shift, bytes);
            }
            inner.refresh_all();
            Some(0)
        })
    }

    /// Which frame an address is in (`None` inside: the distributor), and the offset in it.
    fn locate(&self, pa: u64) -> Option<(Option<usize>, u32)> {
        if let Some(offset) = pa.checked_sub(self.gicd_base).filter(|offset| *offset < GICD_SIZE) {
            return Some((None, offset as u32));
        }
        let offset = pa.checked_sub(self.gicr_base)?;
        let vcpu = usize::try_from(offset / GICR_STRIDE).ok()?;
        (vcpu < self.lines.len()).then_some((Some(vcpu), (offset % GICR_STRIDE) as u32))
    }

    /// A redistributor register, by its offset from the redistributor's base, without side effects.
    pub fn redist_state(&self, vcpu: u32, register: RedistReg) -> Option<u64> {
        self.with(|inner| {
            inner.cpus.get(vcpu as usize)?;
            let read = |offset| u64::from(inner.read(Some(vcpu as usize), offset));
            match register.0 {
                GICR_TYPER => Some(read(GICR_TYPER) | read(GICR_TYPER_HIGH) << 32),
                offset => is_state(offset).then(|| read(offset)),
            }
        })
    }

    /// Writes a redistributor register. The set and clear registers (0x10100 and 0x10180, 0x10200 and 0x10280, 0x10300
    /// and 0x10380) act on the bits that are one, as for the guest.
    pub fn set_redist_state(&self, vcpu: u32, register: RedistReg, value: u64) -> Result<(), Error> {
        self.with(|inner| {
            if vcpu as usize >= inner.cpus.len() {
                return Err(Error::NoVcpu(vcpu));
            }
            let value = u32::try_from(value).map_err(|_| Error::Value("a redistributor register"))?;
            if !is_state(register.0) {
                return Err(Error::Register(register.0));
            }
            inner.write(Some(vcpu as usize), register.0, value, 0xf);
            inner.refresh_all();
            Ok(())
        })
    }
}

/// Whether this offset from a redistributor's base is a register of its private interrupts.
fn is_state(offset: u32) -> bool {
    let bank =
        offset.checked_sub(SGI_FRAME).filter(|offset| offset.is_multiple_of(4)).and_then(bank_register);
    matches!(bank, Some((0, _)))
}

impl Inner {
    /// Reads the word at `offset` of a redistributor or, without one, of the distributor.
    fn read(&self, redistributor: Option<usize>, offset: u32) -> u32 {
        match redistributor {
            None => self.distributor_read(offset),
            Some(vcpu) if offset < SGI_FRAME => self.redistributor_read(vcpu, offset),
            Some(vcpu) => match bank_register(offset - SGI_FRAME) {
                Some((0, register)) => self.cpus[vcpu].private.read(&register),
                _ => 0,
            },
        }
    }

    /// The caller refreshes.
    fn write(&mut self, redistributor: Option<usize>, offset: u32, value: u32, bytes: u32) {
        match redistributor {
            None => self.distributor_write(offset, value, bytes),
            Some(vcpu) if offset < SGI_FRAME => {
                if offset == GICR_WAKER && bytes == 0xf {
                    self.cpus[vcpu].asleep = value & WAKER_PROCESSOR_SLEEP != 0;
                }
            }
            Some(vcpu) => match bank_register(offset - SGI_FRAME) {
                // SGIs are always edge-triggered.
                Some((0, BankRegister::Trigger(0))) => {}
                Some((0, register)) => self.cpus[vcpu].private.write(&register, value, bytes),
                _ => {}
            },
        }
    }

    fn distributor_read(&self, offset: u32) -> u32 {
        match offset {
            CTLR => CTLR_FIXED | u32::from(self.group_enabled[1]) << 1 | u32::from(self.group_enabled[0]),
            GICD_TYPER => TYPER,
            GICD_IIDR => IIDR,
            IROUTER..0x8000 => {
                let intid = (offset - IROUTER) / 8;
                let route = if (32..INTIDS).contains(&intid) { self.routes[intid as usize] } else { 0 };
                (route >> (8 * (offset & 4))) as u32
            }
            PIDR4.. => identification(offset),
            // Private interrupts are the redistributors' (affinity routing).
            _ => match bank_register(offset) {
                Some((bank, register)) if bank > 0 => self.spis[bank].read(&register),
                _ => 0,
            },
        }
    }

    fn distributor_write(&mut self, offset: u32, value: u32, bytes: u32) {
        match offset {
            CTLR if bytes == 0xf => self.group_enabled = [value & 1 != 0, value & 2 != 0],
            IROUTER..0x8000 if bytes == 0xf => {
                let intid = (offset - IROUTER) / 8;
                if (32..INTIDS).contains(&intid) {
                    let shift = 8 * (offset & 4);
                    let route = &mut self.routes[intid as usize];
                    let kept = *route & !(0xffff_ffff << shift);
                    *route = (kept | u64::from(value) << shift) & IROUTER_MASK;
                    self.reroute();
                }
            }
            _ => match bank_register(offset) {
                Some((bank, register)) if bank > 0 => self.spis[bank].write(&register, value, bytes),
                _ => {}
            },
        }
    }

    fn redistributor_read(&self, vcpu: usize, offset: u32) -> u32 {
        match offset {
            GICR_IIDR => IIDR,
            // Processor number and, on the last one, the end of the list.
            GICR_TYPER => (vcpu as u32) << 8 | u32::from(vcpu + 1 == self.listed) << 4,
            // Affinities 3 to 0.
            GICR_TYPER_HIGH => vcpu as u32,
            GICR_WAKER if self.cpus[vcpu].asleep => WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP,
            PIDR4.. => identification(offset),
            _ => 0,
        }
    }
}

const _: () = assert!(PIDR2 - PIDR4 == 0x18, "identification() has PIDR2 at its place");
