//! A software Hypervisor.framework: the `hv_*` C functions over [`supermachine_soft`], so that the engine that ships to
//! Macs, linked with this in place of Apple's framework, runs real guests where there is no Mac.
//!
//! It is there to find mistakes in its caller, and so keeps the framework's contract rather than to what happens to
//! work. Each function says where that contract is written down: "Documented" is Apple's documentation of the function
//! of the same name (developer.apple.com/documentation/hypervisor; the comments of hv_vm.h, hv_vcpu.h, hv_gic.h and
//! their neighbours in the macOS 15 SDK say the same), "IHI 0069" and "Arm ARM" are Arm's specifications of the
//! interrupt controller and of the CPU, "Measured" is what Macs were seen to do, and "Assumed" is this crate's guess,
//! always the stricter one. Only what the engine calls is here.
//!
//! | what | this framework | Apple's |
//! |---|---|---|
//! | page size of guest memory | 16 KiB; host addresses in pages of the host | 16 KiB for both |
//! | guest physical address bits | 36, at most 40 | measured: the same |
//! | vCPUs | [`supermachine_soft::MAX_VCPUS`] | measured: 64 |
//! | shared peripheral interrupts | INTID 32 to 255 | measured: INTID 32 to 1019 |
//! | redistributors | 128 KiB each, in the order of creation | measured: the same |
//! | WFI with an interrupt controller | waits inside `hv_vcpu_run` | measured: the same |
//! | a VM without `hv_gic_create` | no vCPU can be made | allowed |

#![allow(unsafe_code, reason = "it is a C interface")]
// The C interface passes raw pointers; what each must point at is Apple's to document.
#![allow(clippy::missing_safety_doc, reason = "the contract is the framework's")]

mod gic;
mod host;
mod object;
mod regs;
mod simd;
mod time;
mod vcpu;
mod vm;

pub use gic::*;
pub use host::{Host, set_host};
pub use object::os_release;
pub use regs::*;
pub use simd::*;
pub use time::*;
pub use vcpu::*;
pub use vm::*;

/// `hv_return_t` (hv_error.h).
pub type Return = i32;

/// The call was done.
pub const HV_SUCCESS: Return = 0;
/// It failed, and no other code says why.
pub const HV_ERROR: Return = 0xfae9_4001_u32.cast_signed();
/// There is one already, or it is in use.
pub const HV_BUSY: Return = 0xfae9_4002_u32.cast_signed();
/// A pointer that is null, a number that there is not, a range that is not allowed.
pub const HV_BAD_ARGUMENT: Return = 0xfae9_4003_u32.cast_signed();
/// State that no guest can have.
pub const HV_ILLEGAL_GUEST_STATE: Return = 0xfae9_4004_u32.cast_signed();
/// There is no room for more.
pub const HV_NO_RESOURCES: Return = 0xfae9_4005_u32.cast_signed();
/// There is no such vCPU, machine or interrupt controller.
pub const HV_NO_DEVICE: Return = 0xfae9_4006_u32.cast_signed();
/// The process may not.
pub const HV_DENIED: Return = 0xfae9_4007_u32.cast_signed();
/// This host cannot.
pub const HV_UNSUPPORTED: Return = 0xfae9_400f_u32.cast_signed();

/// Stores `value` where `pointer` says, or `HV_BAD_ARGUMENT` when that is nowhere.
///
/// # Safety
/// `pointer` must be null or good for a write of `T`.
unsafe fn put<T>(pointer: *mut T, value: T) -> Return {
    if pointer.is_null() {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the caller's promise.
    unsafe { pointer.write(value) };
    HV_SUCCESS
}
