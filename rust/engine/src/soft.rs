//! The soft engine: [`supermachine_soft`] behind the trait.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use supermachine_proto::limits::MAX_VCPUS_ARM64;
use supermachine_soft as soft;
use supermachine_support::side_work::Slot;

use crate::arm64::{Canceller, DataAbort, Exit, IccReg, RedistReg, Reg, SimdReg, SysReg, Vcpu, Vm, VmConfig};
use crate::{Protection, Result};

const _: () = assert!(soft::MAX_VCPUS == MAX_VCPUS_ARM64, "the API promises as many vCPUs as soft has");

/// A virtual machine on a software CPU: the isolation is that of a process.
pub struct SoftVm(soft::Vm);

impl SoftVm {
    /// A machine without vCPUs and memory; an error for more vCPUs than the software has.
    pub fn new(config: VmConfig) -> Result<Self> {
        let VmConfig { vcpus, gicd_base, gicr_base } = config;
        Ok(Self(soft::Vm::new(soft::VmConfig { vcpus, gicd_base, gicr_base, ..soft::VmConfig::default() })?))
    }
}

impl Vm for SoftVm {
    unsafe fn map(&self, host: NonNull<u8>, gpa: u64, len: u64, protection: Protection) -> Result<()> {
        let protection = match protection {
            Protection::ReadWriteExecute => soft::Protection::ReadWriteExecute,
            Protection::Read => soft::Protection::Read,
        };
        // SAFETY: the caller promises what `soft::Vm::map` asks for.
        unsafe { self.0.map(host, gpa, len, protection) }.map_err(Into::into)
    }

    fn set_presence(&self, presence: soft::Presence) -> bool {
        self.0.set_presence(presence);
        true
    }

    fn decode_ahead(&self, places: &[u64]) {
        self.0.decode_ahead(places);
    }

    fn bake(&self, places: &[u64], key: &[u8; 32]) -> Vec<u8> {
        self.0.bake(places, key)
    }

    fn set_baked(&self, file: File, key: &[u8; 32]) -> io::Result<()> {
        self.0.set_baked(soft::baked::Baked::open(file, key)?);
        Ok(())
    }

    fn side_work(&self) -> Option<Arc<Slot>> {
        self.0.side_work()
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>> {
        Ok(Box::new(SoftVcpu(self.0.create_vcpu(index)?)))
    }

    fn canceller(&self, index: u32) -> Result<Canceller> {
        let canceller = self.0.canceller(index)?;
        Ok(Arc::new(move || canceller.cancel()))
    }

    fn set_spi(&self, intid: u32, level: bool) {
        self.0.set_spi(intid, level);
    }

    fn gic_state(&self) -> Result<Vec<u8>> {
        Ok(self.0.gic_state())
    }

    fn set_gic_state(&self, state: &[u8]) -> Result<()> {
        Ok(self.0.set_gic_state(state)?)
    }

    fn host_counter(&self) -> u64 {
        self.0.counter_now()
    }

    fn has_pmu(&self) -> bool {
        true
    }
}

struct SoftVcpu(soft::Vcpu);

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Result<Exit> {
        Ok(match self.0.run()? {
            soft::Exit::Canceled => Exit::Canceled,
            soft::Exit::DataAbort(soft::DataAbort { syndrome, virtual_address, physical_address }) => {
                Exit::DataAbort(DataAbort { syndrome, virtual_address, physical_address })
            }
            soft::Exit::Hvc { immediate } => Exit::Hvc { immediate },
            soft::Exit::Smc { immediate } => Exit::Smc { immediate },
        })
    }

    fn decoded(&self) -> Vec<u64> {
        self.0.decoded()
    }

    fn reg(&self, reg: Reg) -> Result<u64> {
        Ok(self.0.reg(reg)?)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<()> {
        Ok(self.0.set_reg(reg, value)?)
    }

    fn simd_reg(&self, reg: SimdReg) -> Result<u128> {
        Ok(self.0.simd_reg(reg)?)
    }

    fn set_simd_reg(&mut self, reg: SimdReg, value: u128) -> Result<()> {
        Ok(self.0.set_simd_reg(reg, value)?)
    }

    fn sys_reg(&self, reg: SysReg) -> Result<u64> {
        Ok(self.0.sys_reg(reg)?)
    }

    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<()> {
        Ok(self.0.set_sys_reg(reg, value)?)
    }

    fn icc_reg(&self, reg: IccReg) -> Result<u64> {
        Ok(self.0.icc_reg(reg)?)
    }

    fn set_icc_reg(&mut self, reg: IccReg, value: u64) -> Result<()> {
        Ok(self.0.set_icc_reg(reg, value)?)
    }

    fn redist_reg(&self, reg: RedistReg) -> Result<u64> {
        Ok(self.0.redist_reg(reg)?)
    }

    fn set_redist_reg(&mut self, reg: RedistReg, value: u64) -> Result<()> {
        Ok(self.0.set_redist_reg(reg, value)?)
    }

    fn vtimer_offset(&self) -> u64 {
        self.0.vtimer_offset()
    }

    fn set_vtimer_offset(&mut self, offset: u64) -> Result<()> {
        Ok(self.0.set_vtimer_offset(offset)?)
    }

    fn vtimer_mask(&self) -> bool {
        self.0.vtimer_mask()
    }

    fn set_vtimer_mask(&mut self, masked: bool) -> Result<()> {
        Ok(self.0.set_vtimer_mask(masked)?)
    }

    fn instructions(&self) -> u64 {
        self.0.instructions()
    }
}
