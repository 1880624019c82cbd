//! The CPU interface: what the ICC system registers do (IHI 0069, chapters 4.8 and 12.2).

use super::bank::Bank;
use super::{BANKS, Error, Gic, Inner, PRIORITY_MASK, SPURIOUS};
use crate::id::{IccReg, SysReg};

/// The running priority when no interrupt is active.
pub(super) const IDLE: u8 = 0xff;
/// The least binary points with five priority bits (IHI 0069, 4.8.5): group 1's is one more, for one security state
/// has the Non-secure view of ICC_BPR1_EL1.
const MIN_BPR: [u8; 2] = [2, 3];
/// ICC_CTLR_EL1: one binary point for both groups; EOIR drops the priority alone; five priority bits.
const CTLR_CBPR: u64 = 1;
const CTLR_EOIMODE: u64 = 2;
const CTLR_PRIBITS: u64 = 4 << 8;
/// ICC_SRE_EL1: system registers are the only interface.
const SRE: u64 = 7;

const fn icc(crm: u16, op2: u16) -> u16 {
    SysReg::new(3, 0, 12, crm, op2).0
}

const PMR: u16 = IccReg::PMR_EL1.0;
const IAR0: u16 = icc(8, 0);
const EOIR0: u16 = icc(8, 1);
const HPPIR0: u16 = icc(8, 2);
const BPR0: u16 = IccReg::BPR0_EL1.0;
const AP0R0: u16 = IccReg::AP0R0_EL1.0;
const AP1R0: u16 = IccReg::AP1R0_EL1.0;
const DIR: u16 = icc(11, 1);
const RPR: u16 = IccReg::RPR_EL1.0;
const SGI1R: u16 = icc(11, 5);
const ASGI1R: u16 = icc(11, 6);
const SGI0R: u16 = icc(11, 7);
const IAR1: u16 = icc(12, 0);
const EOIR1: u16 = icc(12, 1);
const HPPIR1: u16 = icc(12, 2);
const BPR1: u16 = IccReg::BPR1_EL1.0;
const CTLR: u16 = IccReg::CTLR_EL1.0;
const SRE_EL1: u16 = IccReg::SRE_EL1.0;
const IGRPEN0: u16 = IccReg::IGRPEN0_EL1.0;
const IGRPEN1: u16 = IccReg::IGRPEN1_EL1.0;

/// An interrupt that waits for its vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    pub intid: u32,
    pub priority: u8,
    pub group: usize,
}

/// One vCPU's redistributor and CPU interface.
pub(super) struct Cpu {
    pub private: Bank,
    /// SPIs that are routed here, by bank.
    pub routed: [u32; BANKS],
    /// GICR_WAKER.ProcessorSleep. Interrupts for this vCPU come all the same; those for any vCPU do not.
    pub asleep: bool,
    /// The best pending interrupt of the enabled groups, whatever mask and running priority say.
    pub best: Option<Pending>,
    pub group_enabled: [bool; 2],
    mask: u8,
    bpr: [u8; 2],
    /// Active priorities: bit n for group priority n << 3.
    active: [u32; 2],
    ctlr: u64,
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            private: Bank::private(),
            routed: [0; BANKS],
            asleep: true,
            best: None,
            group_enabled: [false; 2],
            mask: 0,
            bpr: MIN_BPR,
            active: [0; 2],
            ctlr: 0,
        }
    }
}

impl Cpu {
    /// Priority of the interrupt being handled, or [`IDLE`].
    pub(super) fn running_priority(&self) -> u8 {
        match self.active[0] | self.active[1] {
            0 => IDLE,
            active => (active.trailing_zeros() as u8) << 3,
        }
    }

    /// The part of a priority that decides about preemption.
    fn group_priority(&self, priority: u8, group: usize) -> u8 {
        // Group 1 has the Non-secure view of its binary point: one more than the bits that it takes away.
        let subpriority_bits = match group {
            1 if self.ctlr & CTLR_CBPR == 0 => self.bpr[1],
            _ => self.bpr[0] + 1,
        };
        priority & u8::MAX.checked_shl(subpriority_bits.into()).unwrap_or(0)
    }

    /// Whether mask and running priority let this interrupt through.
    pub(super) fn may_signal(&self, pending: &Pending) -> bool {
        pending.priority < self.mask
            && self.group_priority(pending.priority, pending.group) < self.running_priority()
    }

    fn highest_pending(&self, group: usize) -> u64 {
        self.best.filter(|best| best.group == group).map_or(SPURIOUS, |best| best.intid).into()
    }

    fn read(&self, register: u16) -> Option<u64> {
        Some(match register {
            PMR => self.mask.into(),
            HPPIR0 => self.highest_pending(0),
            HPPIR1 => self.highest_pending(1),
            BPR0 => self.bpr[0].into(),
            BPR1 if self.ctlr & CTLR_CBPR != 0 => (self.bpr[0] + 1).min(7).into(),
            BPR1 => self.bpr[1].into(),
            AP0R0 => self.active[0].into(),
            AP1R0 => self.active[1].into(),
            RPR => self.running_priority().into(),
            CTLR => self.ctlr | CTLR_PRIBITS,
            SRE_EL1 => SRE,
            IGRPEN0 => self.group_enabled[0].into(),
            IGRPEN1 => self.group_enabled[1].into(),
            _ => return None,
        })
    }

    /// Writes a register that acts on this vCPU's interface alone; `false` for any other.
    fn write(&mut self, register: u16, value: u64) -> bool {
        match register {
            PMR => self.mask = value as u8 & PRIORITY_MASK,
            BPR0 => self.bpr[0] = (value as u8 & 7).max(MIN_BPR[0]),
            BPR1 if self.ctlr & CTLR_CBPR != 0 => {}
            BPR1 => self.bpr[1] = (value as u8 & 7).max(MIN_BPR[1]),
            AP0R0 => self.active[0] = value as u32,
            AP1R0 => self.active[1] = value as u32,
            CTLR => self.ctlr = value & (CTLR_CBPR | CTLR_EOIMODE),
            SRE_EL1 => {}
            IGRPEN0 => self.group_enabled[0] = value & 1 == 1,
            IGRPEN1 => self.group_enabled[1] = value & 1 == 1,
            _ => return false,
        }
        true
    }
}

impl Gic {
    /// An MRS of an ICC register by `vcpu`; reading IAR acknowledges. `None` when there is no such register to read
    /// (the instruction is undefined then).
    pub fn icc_read(&self, vcpu: u32, sysreg: u16) -> Option<u64> {
        self.with(|inner| {
            let vcpu = vcpu as usize;
            match sysreg {
                IAR0 => inner.acknowledge(vcpu, 0),
                IAR1 => inner.acknowledge(vcpu, 1),
                _ => inner.cpus.get(vcpu)?.read(sysreg),
            }
        })
    }

    /// An MSR of an ICC register by `vcpu`; `false` when there is no such register to write.
    pub fn icc_write(&self, vcpu: u32, sysreg: u16, value: u64) -> bool {
        self.with(|inner| {
            let vcpu = vcpu as usize;
            match sysreg {
                EOIR0 => inner.end(vcpu, 0, value),
                EOIR1 => inner.end(vcpu, 1, value),
                DIR => {
                    if inner.cpus.get(vcpu).is_some_and(|cpu| cpu.ctlr & CTLR_EOIMODE != 0) {
                        inner.deactivate(vcpu, value as u32 & 0xff_ffff);
                    }
                }
                SGI0R => inner.send_sgi(vcpu, 0, value),
                // With one security state there is one group 1.
                SGI1R | ASGI1R => inner.send_sgi(vcpu, 1, value),
                _ => {
                    if !inner.cpus.get_mut(vcpu).is_some_and(|cpu| cpu.write(sysreg, value)) {
                        return false;
                    }
                    inner.refresh(vcpu);
                }
            }
            true
        })
    }

    /// A register that a snapshot holds, without side effects.
    pub fn icc_state(&self, vcpu: u32, register: IccReg) -> Option<u64> {
        self.with(|inner| match register.0 {
            HPPIR0 | HPPIR1 => None,
            register => inner.cpus.get(vcpu as usize)?.read(register),
        })
    }

    /// Sets what [`Gic::icc_state`] gave. RPR follows from the active priorities: it is taken and ignored.
    pub fn set_icc_state(&self, vcpu: u32, register: IccReg, value: u64) -> Result<(), Error> {
        self.with(|inner| {
            let cpu = inner.cpus.get_mut(vcpu as usize).ok_or(Error::NoVcpu(vcpu))?;
            match register.0 {
                RPR => {}
                // What BPR1 is behind a common binary point does not matter, what it reads as does not fit it.
                register => {
                    if !cpu.write(register, value) {
                        return Err(Error::Register(register.into()));
                    }
                }
            }
            inner.refresh(vcpu as usize);
            Ok(())
        })
    }
}

impl Inner {
    fn acknowledge(&mut self, vcpu: usize, group: usize) -> Option<u64> {
        let cpu = self.cpus.get(vcpu)?;
        let Some(best) = cpu.best.filter(|best| best.group == group && cpu.may_signal(best)) else {
            return Some(SPURIOUS.into());
        };
        let priority = cpu.group_priority(best.priority, group);
        self.cpus[vcpu].active[group] |= 1 << (priority >> 3);
        if let Some((bank, bit)) = self.bank(vcpu, best.intid) {
            bank.acknowledge(bit);
        }
        self.refresh(vcpu);
        Some(best.intid.into())
    }

    /// EOIR: drops the running priority and, unless EOImode says that DIR does it, deactivates.
    fn end(&mut self, vcpu: usize, group: usize, value: u64) {
        let intid = value as u32 & 0xff_ffff;
        let Some(cpu) = self.cpus.get_mut(vcpu).filter(|_| intid < SPURIOUS - 3) else { return };
        // The interrupt that ends must be of the group whose priority is the running one.
        let lowest = |active: u32| active.trailing_zeros();
        if cpu.active[group] == 0 || lowest(cpu.active[group]) > lowest(cpu.active[1 - group]) {
            return;
        }
        cpu.active[group] &= cpu.active[group] - 1;
        if cpu.ctlr & CTLR_EOIMODE == 0 {
            self.deactivate(vcpu, intid);
        } else {
            self.refresh(vcpu);
        }
    }

    fn deactivate(&mut self, vcpu: usize, intid: u32) {
        if let Some((bank, bit)) = self.bank(vcpu, intid) {
            bank.active &= !(1 << bit);
        }
        // An SPI may have been acknowledged here and be another vCPU's by now.
        if intid < 32 {
            self.refresh(vcpu)
        } else {
            self.refresh_all()
        }
        self.refresh_one(vcpu);
    }

    /// SGI0R and SGI1R (IHI 0069, 12.2.19 and 12.2.20).
    fn send_sgi(&mut self, sender: usize, group: u32, value: u64) {
        let intid = value >> 24 & 15;
        let targets: u32 = if value >> 40 & 1 == 1 {
            !(1 << sender)
        } else {
            // Affinities 1 to 3 and the range selector of every vCPU are zero.
            let elsewhere = 0xff << 16 | 0xff << 32 | 0xf << 44 | 0xff << 48;
            if value & elsewhere != 0 { 0 } else { value as u32 & 0xffff }
        };
        for vcpu in 0..self.cpus.len() {
            let bank = &mut self.cpus[vcpu].private;
            if targets >> vcpu & 1 == 1 && bank.group >> intid & 1 == group {
                bank.latched |= 1 << intid;
                self.refresh(vcpu);
            }
        }
    }
}
