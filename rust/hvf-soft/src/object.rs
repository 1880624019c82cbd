//! Objects that the framework hands out: configurations and the interrupt controller's state.

use std::ffi::c_void;

/// What a handle points at.
pub(crate) enum Object {
    VmConfig { ipa_bits: u32 },
    GicConfig { gicd_base: Option<u64>, gicr_base: Option<u64> },
    GicState(Vec<u8>),
}

impl Object {
    pub(crate) fn hand_out(self) -> *mut c_void {
        Box::into_raw(Box::new(self)).cast()
    }
}

/// The object behind a handle.
///
/// # Safety
/// `handle` must be null or a live handle of this framework, used by one thread at a time.
pub(crate) unsafe fn object<'a>(handle: *mut c_void) -> Option<&'a mut Object> {
    // SAFETY: a handle that is not null points at the object that `hand_out` leaked; the caller vouches for the rest.
    unsafe { handle.cast::<Object>().as_mut() }
}

/// Gives an object back. Documented: "Release this object with os_release when no longer used." Null is ignored here;
/// Apple's would not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn os_release(handle: *mut c_void) {
    if !handle.is_null() {
        // SAFETY: the handle is one of `hand_out`'s, given back once: the caller's promise.
        drop(unsafe { Box::from_raw(handle.cast::<Object>()) });
    }
}
