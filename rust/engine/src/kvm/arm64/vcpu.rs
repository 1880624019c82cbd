//! One virtual CPU.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_ARM_VCPU_SVE, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_mp_state, kvm_vcpu_events,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use super::regs::{self, TIMER_COUNT};
use super::vm::{Shared, host_counter};
use crate::arm64::state::Clock;
use crate::arm64::{Exit, IccReg, RedistReg, Reg, SimdReg, SysReg, Vcpu};
use crate::kvm::kick::Kick;
use crate::kvm::{Error, Named, Result};

/// Version of the encoding of [`VcpuState`].
const VERSION: u32 = 1;
/// How often a first KVM_RUN that the kernel has no memory for is tried again, and after how long.
const ENOMEM_TRIES: u32 = 10;
const ENOMEM_WAIT: Duration = Duration::from_millis(5);

/// What a snapshot holds of a vCPU beside the interrupt controller; registers by KVM's ids.
#[derive(Serialize, Deserialize)]
struct VcpuState {
    mp_state: kvm_mp_state,
    /// A system error that waits to be taken: whether there is one, whether it has a syndrome, the syndrome.
    serror: (u8, u8, u64),
    registers: Vec<(u64, Vec<u8>)>,
}

saved_structure!(VcpuState { mp_state: kvm_mp_state, serror: (u8, u8, u64), registers: Vec<(u64, Vec<u8>)> });

/// A vCPU; used on the thread that asked for it.
pub(crate) struct KvmVcpu {
    shared: Arc<Shared>,
    fd: VcpuFd,
    index: u32,
    kick: Arc<Kick>,
    enomem_left: u32,
    /// Whether the lengths of its vectors are settled, without which it neither runs nor tells of its registers.
    finalised: Cell<bool>,
}

impl KvmVcpu {
    pub(super) fn new(shared: Arc<Shared>, mut fd: VcpuFd, index: u32) -> Self {
        let kick = shared.kicks[index as usize].clone();
        // SAFETY: `drop` detaches before the page is unmapped; a vCPU is not Send, so this thread outlives it.
        unsafe { kick.attach(fd.get_kvm_run()) };
        let finalised = Cell::new(!shared.sve);
        Self { shared, fd, index, kick, enomem_left: ENOMEM_TRIES, finalised }
    }

    /// Settles the lengths of the guest's vectors: those that were chosen, or all that the host has.
    fn finalise(&self) -> Result<()> {
        if !self.finalised.replace(true) {
            self.fd.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32)).named("KVM_ARM_VCPU_FINALIZE")?;
        }
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> crate::Result<Exit> {
        self.finalise()?;
        loop {
            let ran = self.fd.run();
            let left = std::mem::take(&mut self.enomem_left);
            match ran {
                Ok(VcpuExit::MmioRead(address, data)) => return Ok(Exit::Read { address, size: data.len() }),
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    let mut bytes = [0; 8];
                    bytes[..data.len()].copy_from_slice(data);
                    return Ok(Exit::Write { address, size: data.len(), value: u64::from_le_bytes(bytes) });
                }
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Ok(Exit::PowerOff),
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Ok(Exit::Reset),
                Ok(VcpuExit::Intr) => {}
                Ok(exit) => {
                    let exit = format!("{exit:?}");
                    let at = self.reg(Reg::PC).unwrap_or(0);
                    return Err(Error::Guest(format!("it left with {exit} at {at:#x}")).into());
                }
                Err(error) => match error.errno() {
                    libc::EINTR => {
                        if self.kick.take() {
                            return Ok(Exit::Canceled);
                        }
                    }
                    libc::EAGAIN => {}
                    libc::ENOMEM if left > 0 => {
                        self.enomem_left = left - 1;
                        std::thread::sleep(ENOMEM_WAIT);
                    }
                    _ => return Err(Error::Call { call: "KVM_RUN", source: error }.into()),
                },
            }
        }
    }

    fn finish_read(&mut self, value: u64) -> crate::Result<()> {
        let run = self.fd.get_kvm_run();
        run.__bindgen_anon_1.mmio.data = value.to_le_bytes();
        Ok(())
    }

    fn reg(&self, reg: Reg) -> crate::Result<u64> {
        Ok(regs::get(&self.fd, regs::general(reg))? as u64)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) -> crate::Result<()> {
        Ok(regs::set(&self.fd, regs::general(reg), value.into())?)
    }

    fn simd_reg(&self, reg: SimdReg) -> crate::Result<u128> {
        self.finalise()?;
        Ok(regs::get_vector(&self.fd, reg, self.shared.sve)?)
    }

    fn set_simd_reg(&mut self, reg: SimdReg, value: u128) -> crate::Result<()> {
        self.finalise()?;
        Ok(regs::set_vector(&self.fd, reg, value, self.shared.sve)?)
    }

    fn sys_reg(&self, reg: SysReg) -> crate::Result<u64> {
        Ok(regs::get(&self.fd, regs::system(reg))? as u64)
    }

    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> crate::Result<()> {
        Ok(regs::set(&self.fd, regs::system(reg), value.into())?)
    }

    fn icc_reg(&self, reg: IccReg) -> crate::Result<u64> {
        Ok(self.shared.gic.icc(self.index, reg)?)
    }

    fn set_icc_reg(&mut self, reg: IccReg, value: u64) -> crate::Result<()> {
        Ok(self.shared.gic.set_icc(self.index, reg, value)?)
    }

    fn redist_reg(&self, reg: RedistReg) -> crate::Result<u64> {
        Ok(self.shared.gic.redist(self.index, reg.0)?.into())
    }

    fn set_redist_reg(&mut self, reg: RedistReg, value: u64) -> crate::Result<()> {
        Ok(self.shared.gic.set_redist(self.index, reg.0, value as u32)?)
    }

    fn vtimer_offset(&self) -> u64 {
        let count = regs::get(&self.fd, TIMER_COUNT).map_or(0, |count| count as u64);
        host_counter().wrapping_sub(count)
    }

    /// KVM takes the counter's value, for all vCPUs of the machine.
    fn set_vtimer_offset(&mut self, offset: u64) -> crate::Result<()> {
        Ok(regs::set(&self.fd, TIMER_COUNT, host_counter().wrapping_sub(offset).into())?)
    }

    /// KVM delivers the timer's interrupt itself.
    fn vtimer_mask(&self) -> bool {
        false
    }

    fn set_vtimer_mask(&mut self, _: bool) -> crate::Result<()> {
        Ok(())
    }

    fn instructions(&self) -> u64 {
        0
    }

    fn save(&self) -> crate::Result<Vec<u8>> {
        self.finalise()?;
        let exception = self.fd.get_vcpu_events().named("KVM_GET_VCPU_EVENTS")?.exception;
        let state = VcpuState {
            mp_state: self.fd.get_mp_state().named("KVM_GET_MP_STATE")?,
            serror: (exception.serror_pending, exception.serror_has_esr, exception.serror_esr),
            registers: regs::save(&self.fd)?,
        };
        Ok(crate::kvm::encode(VERSION, &state)?)
    }

    fn restore(&mut self, saved: &[u8], clock: Clock) -> crate::Result<()> {
        let state: VcpuState = crate::kvm::decode(VERSION, saved)?;
        if !self.finalised.get() {
            regs::restore_lengths(&self.fd, &state.registers)?;
            self.finalise()?;
        }
        // The counter before the compare value, so that no deadline seems to have passed.
        self.set_vtimer_offset(clock.vtimer_offset)?;
        regs::restore(&self.fd, &state.registers)?;
        let mut events = kvm_vcpu_events::default();
        let exception = &mut events.exception;
        (exception.serror_pending, exception.serror_has_esr, exception.serror_esr) = state.serror;
        self.fd.set_vcpu_events(&events).named("KVM_SET_VCPU_EVENTS")?;
        self.fd.set_mp_state(state.mp_state).named("KVM_SET_MP_STATE")?;
        Ok(())
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.detach();
    }
}
