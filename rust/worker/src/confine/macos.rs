//! A sandbox profile (sandbox(7)). `sandbox_init` is marked as deprecated without a successor for processes that are no
//! app bundles; the system's own daemons and browsers go on using it.

#![allow(unsafe_code, reason = "confinement is made by calls of the kernel")]

use std::ffi::{CStr, c_char, c_int};

use supermachine_machine::Engine;

use super::{Beneath, Error, Walls};

/// In the profile language: memory, threads, the hypervisor and descriptors that are open stay; ways to anything else
/// go, the services of other processes included.
const PROFILE: &CStr = c"
(version 1)
(allow default)
(deny file-read* file-write* file-map-executable)
(deny network*)
(deny process-exec* process-fork)
(deny mach-lookup mach-register)
(deny iokit-open)
(deny ipc-posix* ipc-sysv*)
(deny sysctl-write)
(deny process-info* (target others))
(deny signal (target others))
";

unsafe extern "C" {
    /// sandbox.h; with no flags the profile is source text.
    fn sandbox_init(profile: *const c_char, flags: u64, error: *mut *mut c_char) -> c_int;
    fn sandbox_free_error(error: *mut c_char);
}

/// Confines this process and all its threads.
pub(crate) fn confine(_: Engine, _: &[Beneath<'_>]) -> Result<(), Error> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the profile ends with a zero, and the call writes to the pointer that is given to it.
    if unsafe { sandbox_init(PROFILE.as_ptr(), 0, &mut error) } == 0 {
        return Ok(());
    }
    if error.is_null() {
        return Err(Error::Sandbox(std::io::Error::last_os_error().to_string()));
    }
    // SAFETY: the call has left a text that ends with a zero, to be given back once.
    unsafe {
        let reason = CStr::from_ptr(error).to_string_lossy().into_owned();
        sandbox_free_error(error);
        Err(Error::Sandbox(reason))
    }
}

/// The sandbox is part of every macOS.
pub(crate) fn walls() -> Walls {
    Walls { landlock: 1, seccomp: true }
}
