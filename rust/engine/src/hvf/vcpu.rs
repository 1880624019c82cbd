//! A vCPU, on the thread that made it.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use applevisor_sys as hv;

use super::error::{self, Error, check};
use super::{Inner, REDISTRIBUTOR, Slot, host, ids, lock, trap};
use crate::Result;
use crate::arm64::{DataAbort, Exit, IccReg, RedistReg, Reg, SimdReg, SysReg, Vcpu};

/// `hv_exit_reason_t`, as numbers: the framework may know more of them than the bindings do.
const CANCELED: u32 = hv::hv_exit_reason_t::CANCELED as u32;
const EXCEPTION: u32 = hv::hv_exit_reason_t::EXCEPTION as u32;
const VTIMER_ACTIVATED: u32 = hv::hv_exit_reason_t::VTIMER_ACTIVATED as u32;

/// Exception classes (Arm ARM, D24.2.40).
const EC_WFX: u64 = 0x01;
const EC_HVC: u64 = 0x16;
const EC_SMC: u64 = 0x17;
const EC_SYSTEM_REGISTER: u64 = 0x18;
const EC_FETCH: u64 = 0x20;
const EC_DATA_ABORT: u64 = 0x24;

/// GICR_ISPENDR0 and the virtual timer's interrupt in it (hv_gic_get_intid).
const ISPENDR0: RedistReg = RedistReg(0x1_0200);
const VTIMER: u64 = 1 << hv::hv_gic_intid_t::EL1_VIRTUAL_TIMER as u32;
/// CNTV_CTL_EL0: enabled, not masked, due.
const TIMER_FIELDS: u64 = 7;
const TIMER_DUE: u64 = 5;

/// The C type of vector registers is a vector and passed as one. The bindings declare an integer in its place, which
/// would be passed in general registers.
#[cfg(target_arch = "aarch64")]
type Vector = core::arch::aarch64::uint8x16_t;
#[cfg(target_arch = "x86_64")]
type Vector = core::arch::x86_64::__m128i;
#[allow(improper_ctypes_definitions, reason = "the C type is this vector; the lint knows no vectors")]
type SetVector = unsafe extern "C" fn(hv::hv_vcpu_t, hv::hv_simd_fp_reg_t, Vector) -> hv::hv_return_t;

pub(super) struct HvfVcpu {
    inner: Arc<Inner>,
    slot: Arc<Slot>,
    id: hv::hv_vcpu_t,
    exit: *const hv::hv_vcpu_exit_t,
    /// The framework has masked the virtual timer with an exit.
    timer_masked: bool,
    /// It has run, and so all vCPUs are there.
    has_run: bool,
}

impl HvfVcpu {
    /// Makes the calling thread's vCPU, with affinity `index`.
    pub(super) fn new(inner: Arc<Inner>, slot: Arc<Slot>, index: u32) -> error::Result<Self> {
        host::prefer_this_thread();
        let (mut id, mut exit) = (0, std::ptr::null());
        // SAFETY: the call writes to the two that are given to it; no configuration is the default one.
        check("hv_vcpu_create", unsafe { hv::hv_vcpu_create(&mut id, &mut exit, std::ptr::null_mut()) })?;
        *lock(&slot.id) = Some(id);
        let vcpu = Self { inner, slot, id, exit, timer_masked: false, has_run: false };
        // SAFETY: the id is this thread's vCPU.
        check("hv_vcpu_set_sys_reg", unsafe {
            hv::hv_vcpu_set_sys_reg(id, hv::hv_sys_reg_t::MPIDR_EL1, index.into())
        })?;
        let mut found = 0;
        // SAFETY: as above, and the call writes to the integer that is given to it.
        check("hv_gic_get_redistributor_base", unsafe { hv::hv_gic_get_redistributor_base(id, &mut found) })?;
        let needed = vcpu.inner.config.gicr_base + REDISTRIBUTOR * u64::from(index);
        if found != needed {
            return Err(Error::Layout { what: "a redistributor's address", found, needed });
        }
        Ok(vcpu)
    }

    /// Why the framework came back, as numbers: a reason that the bindings do not have must not become their type.
    fn reason(&self) -> (u32, hv::hv_vcpu_exit_exception_t) {
        // SAFETY: the structure lives as long as the vCPU and is written by hv_vcpu_run alone, which is over. The
        // reason is its first field and four bytes long; the exception is integers.
        unsafe {
            (self.exit.cast::<u32>().read_volatile(), (&raw const (*self.exit).exception).read_volatile())
        }
    }

    /// What an exception means to the machine; `None` when it has been dealt with.
    fn exception(&mut self, exception: hv::hv_vcpu_exit_exception_t) -> Result<Option<Exit>> {
        let hv::hv_vcpu_exit_exception_t { syndrome, virtual_address, physical_address } = exception;
        match syndrome >> 26 & 0x3f {
            EC_DATA_ABORT => {
                let abort = DataAbort { syndrome, virtual_address, physical_address };
                return Ok(Some(Exit::DataAbort(abort)));
            }
            EC_HVC => return Ok(Some(Exit::Hvc { immediate: syndrome as u16 })),
            EC_SMC => return Ok(Some(Exit::Smc { immediate: syndrome as u16 })),
            EC_SYSTEM_REGISTER => trap::system_register(self, syndrome)?,
            EC_FETCH => trap::instruction_abort(self, virtual_address)?,
            // With an interrupt controller the framework waits by itself. Should it not, a WFI may end early.
            EC_WFX => {
                trap::skip(self)?;
                std::thread::sleep(Duration::from_micros(100));
            }
            _ => return Err(Error::UnknownException { syndrome, pc: self.reg(Reg::PC)? }.into()),
        }
        Ok(None)
    }

    /// An exit for the virtual timer masks it (hv_vcpu_run). With an interrupt controller none is expected: the
    /// framework makes the interrupt pending by itself. Should one come, that is done here, and the mask goes once the
    /// guest has dealt with the timer.
    fn timer_activated(&mut self) -> Result<()> {
        self.timer_masked = true;
        self.set_redist_reg(ISPENDR0, VTIMER)
    }

    fn timer_unmask_if_served(&mut self) -> Result<()> {
        if self.timer_masked && self.sys_reg(SysReg::CNTV_CTL_EL0)? & TIMER_FIELDS != TIMER_DUE {
            self.timer_masked = false;
            self.set_vtimer_mask(false)?;
        }
        Ok(())
    }
}

impl Drop for HvfVcpu {
    fn drop(&mut self) {
        *lock(&self.slot.id) = None;
        // SAFETY: the vCPU is this thread's, for this type does not leave it, and nobody uses its id any more.
        unsafe { hv::hv_vcpu_destroy(self.id) };
    }
}

impl Vcpu for HvfVcpu {
    fn run(&mut self) -> Result<Exit> {
        if !self.has_run {
            drop(self.inner.complete(|| self.slot.wanted.load(Ordering::SeqCst))?);
        }
        loop {
            if self.slot.wanted.swap(false, Ordering::SeqCst) {
                return Ok(Exit::Canceled);
            }
            self.has_run = true;
            self.timer_unmask_if_served()?;
            // SAFETY: the vCPU is this thread's.
            check("hv_vcpu_run", unsafe { hv::hv_vcpu_run(self.id) })?;
            match self.reason() {
                (CANCELED, _) => {}
                (EXCEPTION, exception) => {
                    if let Some(exit) = self.exception(exception)? {
                        return Ok(exit);
                    }
                }
                (VTIMER_ACTIVATED, _) => self.timer_activated()?,
                (reason, _) => return Err(Error::UnknownExit(reason).into()),
            }
        }
    }

    fn reg(&self, reg: Reg) -> Result<u64> {
        let (reg, mut value) = (ids::general(reg)?, 0);
        // SAFETY: the vCPU is this thread's, and the call writes to the integer that is given to it.
        check("hv_vcpu_get_reg", unsafe { hv::hv_vcpu_get_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<()> {
        let reg = ids::general(reg)?;
        // SAFETY: the vCPU is this thread's.
        Ok(check("hv_vcpu_set_reg", unsafe { hv::hv_vcpu_set_reg(self.id, reg, value) })?)
    }

    fn simd_reg(&self, reg: SimdReg) -> Result<u128> {
        let (reg, mut value) = (ids::simd(reg)?, 0);
        // SAFETY: the vCPU is this thread's, and the call writes sixteen bytes to the integer that is given to it.
        check("hv_vcpu_get_simd_fp_reg", unsafe { hv::hv_vcpu_get_simd_fp_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    fn set_simd_reg(&mut self, reg: SimdReg, value: u128) -> Result<()> {
        let reg = ids::simd(reg)?;
        let set: unsafe extern "C" fn(_, _, u128) -> _ = hv::hv_vcpu_set_simd_fp_reg;
        // SAFETY: this is the function's true C type, and a vector is sixteen bytes of any value. The vCPU is this
        // thread's.
        let code = unsafe {
            mem::transmute::<unsafe extern "C" fn(_, _, u128) -> _, SetVector>(set)(
                self.id,
                reg,
                mem::transmute::<u128, Vector>(value),
            )
        };
        Ok(check("hv_vcpu_set_simd_fp_reg", code)?)
    }

    fn sys_reg(&self, reg: SysReg) -> Result<u64> {
        let (reg, mut value) = (ids::system(reg)?, 0);
        // SAFETY: the vCPU is this thread's, and the call writes to the integer that is given to it.
        check("hv_vcpu_get_sys_reg", unsafe { hv::hv_vcpu_get_sys_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<()> {
        let reg = ids::system(reg)?;
        // SAFETY: the vCPU is this thread's.
        Ok(check("hv_vcpu_set_sys_reg", unsafe { hv::hv_vcpu_set_sys_reg(self.id, reg, value) })?)
    }

    fn icc_reg(&self, reg: IccReg) -> Result<u64> {
        let (reg, mut value) = (ids::icc(reg)?, 0);
        // SAFETY: the vCPU is this thread's, and the call writes to the integer that is given to it.
        check("hv_gic_get_icc_reg", unsafe { hv::hv_gic_get_icc_reg(self.id, reg, &mut value) })?;
        Ok(value)
    }

    fn set_icc_reg(&mut self, reg: IccReg, value: u64) -> Result<()> {
        let reg = ids::icc(reg)?;
        // SAFETY: the vCPU is this thread's.
        Ok(check("hv_gic_set_icc_reg", unsafe { hv::hv_gic_set_icc_reg(self.id, reg, value) })?)
    }

    fn redist_reg(&self, reg: RedistReg) -> Result<u64> {
        let (reg, mut value) = (ids::redistributor(reg)?, 0);
        // SAFETY: the vCPU is this thread's, and the call writes to the integer that is given to it.
        check("hv_gic_get_redistributor_reg", unsafe {
            hv::hv_gic_get_redistributor_reg(self.id, reg, &mut value)
        })?;
        Ok(value)
    }

    fn set_redist_reg(&mut self, reg: RedistReg, value: u64) -> Result<()> {
        let reg = ids::redistributor(reg)?;
        // SAFETY: the vCPU is this thread's.
        let code = unsafe { hv::hv_gic_set_redistributor_reg(self.id, reg, value) };
        Ok(check("hv_gic_set_redistributor_reg", code)?)
    }

    fn vtimer_offset(&self) -> u64 {
        let mut offset = 0;
        // SAFETY: the vCPU is this thread's, and the call writes to the integer that is given to it. For such a vCPU it
        // does not fail.
        unsafe { hv::hv_vcpu_get_vtimer_offset(self.id, &mut offset) };
        offset
    }

    fn set_vtimer_offset(&mut self, offset: u64) -> Result<()> {
        // SAFETY: the vCPU is this thread's.
        Ok(check("hv_vcpu_set_vtimer_offset", unsafe { hv::hv_vcpu_set_vtimer_offset(self.id, offset) })?)
    }

    fn vtimer_mask(&self) -> bool {
        let mut masked = false;
        // SAFETY: as for the offset.
        unsafe { hv::hv_vcpu_get_vtimer_mask(self.id, &mut masked) };
        masked
    }

    fn set_vtimer_mask(&mut self, masked: bool) -> Result<()> {
        // SAFETY: the vCPU is this thread's.
        Ok(check("hv_vcpu_set_vtimer_mask", unsafe { hv::hv_vcpu_set_vtimer_mask(self.id, masked) })?)
    }

    fn instructions(&self) -> u64 {
        0
    }
}
