//! Vector registers. Their C type is a vector (`simd_uchar16`), which is passed in a vector register (AAPCS64, 6.8.2;
//! System V ABI, 3.2.3).

use supermachine_soft::id::SimdReg;

use crate::vcpu::mine;
use crate::{HV_BAD_ARGUMENT, HV_SUCCESS, Return, put};

/// How Swift and C pass a vector register.
#[cfg(target_arch = "aarch64")]
pub type Vector = core::arch::aarch64::uint8x16_t;
/// The same on this host.
#[cfg(target_arch = "x86_64")]
pub type Vector = core::arch::x86_64::__m128i;

/// Documented: a vector register; the owning thread calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_simd_fp_reg(vcpu: u64, register: u32, value: *mut u128) -> Return {
    mine(vcpu, |mine| match mine.vcpu.simd_reg(SimdReg(register)) {
        // SAFETY: the caller's pointer, as documented.
        Ok(found) => unsafe { put(value, found) },
        Err(_) => HV_BAD_ARGUMENT,
    })
}

/// Documented: sets it.
#[allow(improper_ctypes_definitions, reason = "the C type is this vector; the lint knows no vectors")]
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_simd_fp_reg(vcpu: u64, register: u32, value: Vector) -> Return {
    // SAFETY: both are sixteen bytes of any value.
    let value: u128 = unsafe { core::mem::transmute(value) };
    mine(vcpu, |mine| match mine.vcpu.set_simd_reg(SimdReg(register), value) {
        Ok(()) => HV_SUCCESS,
        Err(_) => HV_BAD_ARGUMENT,
    })
}
