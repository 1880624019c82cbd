//! The arm64 machine's view of an engine: a VM and its vCPUs with the shape of Hypervisor.framework.

pub mod features;
pub mod state;

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

pub use supermachine_soft::Presence;
pub use supermachine_soft::id::{IccReg, RedistReg, Reg, SimdReg, SysReg};

use supermachine_support::side_work::Slot;

use crate::{Protection, Result};
use state::{Clock, VcpuState};

/// Where an engine's interrupt controller appears in guest physical memory, and for how many vCPUs.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// From 1 on; each engine says how many it has at most.
    pub vcpus: u32,
    /// Base of the GICv3 distributor, 64 KiB.
    pub gicd_base: u64,
    /// Base of the first redistributor; 128 KiB for each vCPU.
    pub gicr_base: u64,
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A [`Canceller`] asked for it.
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
    /// The guest reads where nothing is mapped, on an engine that decodes accesses itself; [`Vcpu::finish_read`] gives
    /// the value before the next run.
    Read {
        /// Guest physical.
        address: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: usize,
    },
    /// The guest writes where nothing is mapped, on an engine that decodes accesses itself.
    Write {
        /// Guest physical.
        address: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: usize,
        /// In its low `size` bytes.
        value: u64,
    },
    /// The guest has asked an engine that serves PSCI to power off.
    PowerOff,
    /// The guest has asked an engine that serves PSCI for a reset.
    Reset,
}

/// A data abort taken to the machine, as ESR_EL2 describes it (Arm ARM D24.2.40, "ISS encoding for an exception from
/// a Data Abort").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    /// ESR_EL2.
    pub syndrome: u64,
    /// FAR_EL2: where the guest saw it.
    pub virtual_address: u64,
    /// Of the same byte, guest physical.
    pub physical_address: u64,
}

/// The access that a [`DataAbort`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes: 1, 2, 4 or 8.
    pub size: usize,
    /// Whether it is a store.
    pub write: bool,
    /// X register that holds the value or takes it; 31 is the zero register.
    pub register: u32,
    /// Whether what is loaded is sign-extended to the register's width.
    pub sign_extend: bool,
    /// Whether the register is 64 bits wide; matters for sign extension.
    pub wide: bool,
}

impl DataAbort {
    /// The access, or `None` when the syndrome holds none (ISV clear: a pair, a vector, an atomic).
    pub fn access(&self) -> Option<Access> {
        let iss = self.syndrome;
        (iss >> 24 & 1 == 1).then_some(Access {
            size: 1 << (iss >> 22 & 3),
            write: iss >> 6 & 1 == 1,
            register: (iss >> 16 & 31) as u32,
            sign_extend: iss >> 21 & 1 == 1,
            wide: iss >> 15 & 1 == 1,
        })
    }
}

/// Makes a vCPU leave [`Vcpu::run`], from any thread. A call while the vCPU is outside makes its next run return at
/// once, so no request is lost.
pub type Canceller = Arc<dyn Fn() + Send + Sync>;

/// A virtual machine of an engine.
pub trait Vm: Send + Sync {
    /// Maps host memory at a guest physical address.
    ///
    /// # Safety
    /// `host` must be valid for `len` bytes (readable, and writable when `protection` says so) until the VM and all
    /// its vCPUs are gone. `host` is a multiple of the host's page size; `gpa` and `len` are multiples of 16 KiB, the
    /// largest page that an engine maps.
    unsafe fn map(&self, host: NonNull<u8>, gpa: u64, len: u64, protection: Protection) -> Result<()>;

    /// Creates vCPU `index` (its MPIDR affinity 0). It belongs to the calling thread.
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>>;

    /// How to make vCPU `index` leave its run.
    fn canceller(&self, index: u32) -> Result<Canceller>;

    /// Sets the level of the shared peripheral interrupt with this INTID (32 and up).
    fn set_spi(&self, intid: u32, level: bool);

    /// The interrupt controller's state, opaque to all but the same engine. No vCPU may be running.
    fn gic_state(&self) -> Result<Vec<u8>>;

    /// Takes over what [`Vm::gic_state`] gave, after every vCPU has been created and before any is restored.
    fn set_gic_state(&self, state: &[u8]) -> Result<()>;

    /// Ticks of the host counter that virtual counters are offset from.
    fn host_counter(&self) -> u64;

    /// Has every access of a vCPU's to guest memory, by address and length, wait until it is there; before any vCPU is
    /// created. `false` ends the access: the memory will not be there, and the vCPU has been told to leave.
    /// Whether the engine can: most have a guest's memory touched by hardware, which waits for nothing.
    fn set_presence(&self, presence: Presence) -> bool {
        let _ = presence;
        false
    }

    /// Decodes the code at these guest physical addresses, which the guest is likely to run: for a process that makes
    /// copies of itself. Before any vCPU is created; engines that decode nothing have nothing to do.
    fn decode_ahead(&self, places: &[u64]) {
        let _ = places;
    }

    /// The same for other processes: what it comes to, for [`Vm::set_baked`] in a machine with the same memory, where
    /// `key` is the same. Nothing on engines that decode nothing.
    fn bake(&self, places: &[u64], key: &[u8; 32]) -> Vec<u8> {
        let _ = (places, key);
        Vec::new()
    }

    /// Has vCPUs take what [`Vm::bake`] has made of the memory that there is, where the file is that: what is not is
    /// refused. Whoever wrote it decides what this process does. Before any vCPU is created.
    fn set_baked(&self, file: File, key: &[u8; 32]) -> io::Result<()> {
        let _ = (file, key);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Where a vCPU that sleeps finds work of other threads, on an engine whose vCPUs sleep as threads of this process.
    fn side_work(&self) -> Option<Arc<Slot>> {
        None
    }

    /// Whether the engine serves PSCI: it then keeps every vCPU but the first out of the guest until that is asked for,
    /// and no PSCI call comes out as [`Exit::Hvc`].
    fn serves_psci(&self) -> bool {
        false
    }

    /// Whether each vCPU has a performance monitor with an interrupt (PMUv3, PPI 23), which guests are told of.
    fn has_pmu(&self) -> bool {
        false
    }
}

/// One virtual CPU; used on the thread that created it.
pub trait Vcpu {
    /// Runs the guest until something happens that the machine must handle.
    fn run(&mut self) -> Result<Exit>;

    /// What the guest reads, after [`Exit::Read`]. Engines that never come out with that have nothing to do.
    fn finish_read(&mut self, _value: u64) -> Result<()> {
        Ok(())
    }

    /// Where code begins that the engine has decoded, by guest physical addresses, what has run last in front; nothing
    /// where it decodes none.
    fn decoded(&self) -> Vec<u64> {
        Vec::new()
    }

    /// A general register; an error for an id that there is not.
    fn reg(&self, reg: Reg) -> Result<u64>;
    /// Sets a general register; an error for a CPSR that no processor of this kind has.
    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<()>;
    /// Q`n`.
    fn simd_reg(&self, reg: SimdReg) -> Result<u128>;
    /// Sets Q`n`.
    fn set_simd_reg(&mut self, reg: SimdReg, value: u128) -> Result<()>;
    /// A system register; an error for one that the engine does not have.
    fn sys_reg(&self, reg: SysReg) -> Result<u64>;
    /// Sets a system register; an error for one that the engine does not have.
    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<()>;
    /// A register of the GIC's CPU interface.
    fn icc_reg(&self, reg: IccReg) -> Result<u64>;
    /// Sets a register of the GIC's CPU interface.
    fn set_icc_reg(&mut self, reg: IccReg, value: u64) -> Result<()>;
    /// A register of this vCPU's redistributor.
    fn redist_reg(&self, reg: RedistReg) -> Result<u64>;
    /// Sets a register of this vCPU's redistributor, as a write of the guest's would.
    fn set_redist_reg(&mut self, reg: RedistReg, value: u64) -> Result<()>;
    /// What is taken from the host counter to make CNTVCT_EL0.
    fn vtimer_offset(&self) -> u64;
    /// Sets what is taken from the host counter; all vCPUs of a machine have the same.
    fn set_vtimer_offset(&mut self, offset: u64) -> Result<()>;
    /// Whether the virtual timer's interrupt is held back.
    fn vtimer_mask(&self) -> bool;
    /// Holds the virtual timer's interrupt back, or lets it come.
    fn set_vtimer_mask(&mut self, masked: bool) -> Result<()>;
    /// Guest instructions run so far; 0 where the engine does not count.
    fn instructions(&self) -> u64;

    /// Features that a guest may have come to rely on, as [`features::missing`] compares them.
    fn features(&self) -> Vec<String> {
        features::features(self)
    }

    /// Everything that a snapshot holds of this vCPU, in the engine's own encoding.
    fn save(&self) -> Result<Vec<u8>> {
        VcpuState::capture(self)?.encode()
    }

    /// Takes over what [`Vcpu::save`] gave, with RAM and interrupt controller restored; the vCPU runs next.
    fn restore(&mut self, saved: &[u8], clock: Clock) -> Result<()> {
        VcpuState::decode(saved)?.restore(self, clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syndrome_names_the_access() {
        // LDRSH W3: ISV, SAS 1, SSE, SRT 3, read.
        let abort = |syndrome| DataAbort { syndrome, virtual_address: 0, physical_address: 0 };
        let syndrome = 0x24 << 26 | 1 << 25 | 1 << 24 | 1 << 22 | 1 << 21 | 3 << 16 | 7;
        let access = Access { size: 2, write: false, register: 3, sign_extend: true, wide: false };
        assert_eq!(abort(syndrome).access(), Some(access));
        // STR XZR: ISV, SAS 3, SRT 31, SF, write.
        let syndrome = 0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 22 | 31 << 16 | 1 << 15 | 1 << 6 | 7;
        let access = Access { size: 8, write: true, register: 31, sign_extend: false, wide: true };
        assert_eq!(abort(syndrome).access(), Some(access));
        assert_eq!(abort(0x24 << 26 | 1 << 25).access(), None);
    }
}
