//! What a machine sees of a vCPU.

use crate::cpu::Cpu;
use crate::id::{IccReg, RedistReg, Reg, SimdReg, SysReg};
use crate::{Error, Result};

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A [`crate::Canceller`] asked for it.
    Canceled,
    /// The guest touched a physical address that nothing is mapped at. PC is at the instruction.
    DataAbort(DataAbort),
    /// HVC with this immediate. PC is after the instruction.
    Hvc {
        /// Of the instruction.
        immediate: u16,
    },
    /// SMC with this immediate. PC is at the instruction.
    Smc {
        /// Of the instruction.
        immediate: u16,
    },
}

/// A data abort taken to the machine, as ESR_EL2 and its companions describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    /// ESR_EL2.
    pub syndrome: u64,
    /// FAR_EL2: where the guest saw it.
    pub virtual_address: u64,
    /// Of the same byte, guest physical.
    pub physical_address: u64,
}

/// One virtual CPU. It may be made on one thread and moved to another before it runs.
pub struct Vcpu {
    cpu: Box<Cpu>,
}

// SAFETY: the raw pointers inside point into memory that the CPU owns and that moves with it.
unsafe impl Send for Vcpu {}

impl Vcpu {
    pub(crate) fn new(cpu: Box<Cpu>) -> Self {
        Self { cpu }
    }

    pub(crate) fn index(&self) -> u32 {
        self.cpu.index
    }

    pub(crate) fn begin_translating(&mut self) {
        self.cpu.begin_translating();
    }

    /// Where the code begins that it has decoded, by guest physical addresses: what has run last comes first, more or
    /// less.
    pub fn decoded(&self) -> Vec<u64> {
        self.cpu.code.places()
    }

    /// Runs the guest until something happens that the machine must handle. Sleeps while the guest waits for
    /// interrupts.
    pub fn run(&mut self) -> Result<Exit> {
        Ok(self.cpu.run())
    }

    /// A general register, PC, FPCR, FPSR or CPSR; an error for another id.
    pub fn reg(&self, reg: Reg) -> Result<u64> {
        let c = &self.cpu;
        Ok(match reg {
            Reg(n @ 0..=30) => c.state.regs.x[n as usize],
            Reg::PC => c.state.pc,
            Reg::FPCR => u64::from(c.state.regs.fpcr),
            Reg::FPSR => u64::from(c.state.regs.fpsr),
            Reg::CPSR => c.state.pstate(),
            Reg(n) => return Err(Error::UnknownRegister(n)),
        })
    }

    /// Sets one of them; an error for a CPSR with another mode than EL0t, EL1t and EL1h.
    pub fn set_reg(&mut self, reg: Reg, value: u64) -> Result<()> {
        let c = &mut self.cpu;
        match reg {
            Reg(n @ 0..=30) => c.state.regs.x[n as usize] = value,
            Reg::PC => {
                // On by one: the machine has finished the instruction, as software step sees it.
                if value == c.state.pc.wrapping_add(4) {
                    c.state.ss = false;
                }
                c.state.pc = value;
            }
            Reg::FPCR => c.state.set_fpcr(value),
            Reg::FPSR => c.state.set_fpsr(value),
            Reg::CPSR if matches!(value & 0x1f, 0 | 4 | 5) => c.set_pstate(value),
            Reg::CPSR => return Err(Error::BadState(value)),
            Reg(n) => return Err(Error::UnknownRegister(n)),
        }
        Ok(())
    }

    /// Q`n`; an error for `n` above 31.
    pub fn simd_reg(&self, reg: SimdReg) -> Result<u128> {
        self.cpu.state.regs.v.get(reg.0 as usize).copied().ok_or(Error::UnknownRegister(reg.0))
    }

    /// Sets Q`n`; an error for `n` above 31.
    pub fn set_simd_reg(&mut self, reg: SimdReg, value: u128) -> Result<()> {
        *self.cpu.state.regs.v.get_mut(reg.0 as usize).ok_or(Error::UnknownRegister(reg.0))? = value;
        Ok(())
    }

    /// A system register that snapshots hold or that tells of the CPU; an error for another.
    pub fn sys_reg(&self, reg: SysReg) -> Result<u64> {
        self.cpu.sys_state(reg).ok_or(Error::UnknownRegister(u32::from(reg.0)))
    }

    /// Sets a system register that snapshots hold; an error for another.
    pub fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<()> {
        self.cpu.set_sys_state(reg, value).ok_or(Error::UnknownRegister(u32::from(reg.0)))
    }

    /// A register of the GIC's CPU interface; an error for another.
    pub fn icc_reg(&self, reg: IccReg) -> Result<u64> {
        let c = &self.cpu;
        c.vm.gic.icc_state(c.index, reg).ok_or(Error::UnknownRegister(u32::from(reg.0)))
    }

    /// Sets a register of the GIC's CPU interface; an error for another.
    pub fn set_icc_reg(&mut self, reg: IccReg, value: u64) -> Result<()> {
        let c = &self.cpu;
        Ok(c.vm.gic.set_icc_state(c.index, reg, value)?)
    }

    /// A register of this vCPU's redistributor; an error for another offset.
    pub fn redist_reg(&self, reg: RedistReg) -> Result<u64> {
        let c = &self.cpu;
        c.vm.gic.redist_state(c.index, reg).ok_or(Error::UnknownRegister(reg.0))
    }

    /// Sets a register of this vCPU's redistributor; an error for another offset.
    pub fn set_redist_reg(&mut self, reg: RedistReg, value: u64) -> Result<()> {
        let c = &self.cpu;
        Ok(c.vm.gic.set_redist_state(c.index, reg, value)?)
    }

    /// What is taken from the host's counter to make CNTVCT_EL0, in ticks of [`crate::COUNTER_HZ`].
    pub fn vtimer_offset(&self) -> u64 {
        self.cpu.timer_offset
    }

    /// Sets it, and what timers are due by it.
    pub fn set_vtimer_offset(&mut self, offset: u64) -> Result<()> {
        self.cpu.timer_offset = offset;
        self.cpu.update_timers();
        Ok(())
    }

    /// Whether the virtual timer's interrupt is held back.
    pub fn vtimer_mask(&self) -> bool {
        self.cpu.timer_mask
    }

    /// Holds it back, or lets it come.
    pub fn set_vtimer_mask(&mut self, masked: bool) -> Result<()> {
        self.cpu.timer_mask = masked;
        self.cpu.update_timers();
        Ok(())
    }

    /// Whether hot code is translated, as far as this host lets it.
    pub fn translates(&self) -> bool {
        self.cpu.jit.is_some()
    }

    /// Guest instructions run so far.
    pub fn instructions(&self) -> u64 {
        self.cpu.instructions()
    }
}
