//! Exception levels, and how exceptions are taken and returned from (Arm ARM, D1).

use crate::Regs;
use crate::cpu::Cpu;
use crate::interp::op::P;
use crate::mmu::Fault;

impl Cpu {
    /// Changes exception level and stack pointer selection.
    fn switch(&mut self, el: u8, spsel: bool) {
        if self.pmu.active && el != self.state.el {
            self.count_at_another_level(el);
        }
        let old = self.state.sp_index();
        self.state.sp[old] = self.state.regs.x[Regs::SP];
        self.state.el = el;
        self.state.spsel = spsel;
        self.state.regs.x[Regs::SP] = self.state.sp[self.state.sp_index()];
        self.regime();
    }

    pub(crate) fn set_spsel(&mut self, spsel: bool) {
        self.switch(self.state.el, spsel);
    }

    /// Takes PSTATE over; the mode must be one that exists.
    pub(crate) fn set_pstate(&mut self, v: u64) {
        self.set_nzcv(v as u32 & 0xf000_0000);
        self.set_pan(v >> 22 & 1 == 1);
        self.state.ss = v >> 21 & 1 == 1;
        self.state.il = v >> 20 & 1 == 1;
        self.state.daif = (v >> 6 & 15) as u8;
        let el = (v >> 2 & 1) as u8;
        self.switch(el, if el == 1 { v & 1 == 1 } else { true });
    }

    /// Takes an exception to EL1 with PC as the return address.
    pub(crate) fn exception(&mut self, ec: u64, iss: u64, far: Option<u64>) {
        self.state.sys.esr = ec << 26 | 1 << 25 | iss;
        if let Some(far) = far {
            self.state.sys.far = far;
        }
        self.enter_el1(0);
    }

    pub(crate) fn enter_el1(&mut self, kind: u64) {
        let from = match (self.state.el, self.state.spsel) {
            (0, _) => 0x400,
            (_, false) => 0,
            (_, true) => 0x200,
        };
        self.state.sys.spsr = self.state.pstate();
        self.state.sys.elr = self.state.pc;
        self.state.pc = self.state.sys.vbar + from + kind;
        self.state.daif = 15;
        self.state.il = false;
        self.state.ss = false;
        // SCTLR_EL1.SPAN clear sets PAN.
        if self.state.sys.sctlr >> 23 & 1 == 0 {
            self.set_pan(true);
        }
        self.switch(1, true);
    }

    pub(crate) fn data_abort(&mut self, va: u64, fault: Fault, write: bool) {
        let ec = if self.state.el == 0 { 0x24 } else { 0x25 };
        self.fuel -= self.reached;
        self.exception(ec, u64::from(fault.0) | u64::from(write) << 6, Some(va));
    }

    pub(crate) fn instruction_abort(&mut self, va: u64, fault: Fault) {
        let ec = if self.state.el == 0 { 0x20 } else { 0x21 };
        self.exception(ec, u64::from(fault.0), Some(va));
    }

    /// An exception of the instruction `o`, to be returned to.
    pub(crate) fn raise(&mut self, o: P, ec: u64, iss: u64) {
        self.fuel -= o.n();
        self.sync(o);
        self.exception(ec, iss, None);
    }

    pub(crate) fn undefined(&mut self, o: P) {
        self.raise(o, 0, 0);
    }

    pub(crate) fn eret(&mut self) {
        let spsr = self.state.sys.spsr;
        self.state.monitor.size = 0;
        self.state.pc = self.state.sys.elr;
        if !matches!(spsr & 0x1f, 0 | 4 | 5) {
            // Illegal return: PSTATE keeps level and stack, the rest comes in, IL is set (D1.3.4).
            self.state.ss = self.step_after_return(self.state.el, spsr);
            self.set_nzcv(spsr as u32 & 0xf000_0000);
            self.state.daif = (spsr >> 6 & 15) as u8;
            self.state.il = true;
            return;
        }
        let ss = self.step_after_return((spsr >> 2 & 1) as u8, spsr);
        self.set_pstate(spsr);
        self.state.ss = ss;
        if self.state.el == 0 && self.state.sys.tcr >> 37 & 1 == 1 && self.state.pc >> 55 & 1 == 0 {
            self.state.pc &= (1 << 56) - 1;
        }
    }
}
