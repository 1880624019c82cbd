//! The host: which macOS it is, whether it can virtualise, and its counter.

use super::error::Result;

unsafe extern "C" {
    /// Ticks since the host started, not counting its sleep (mach_time.h); what virtual counters are offset from.
    fn mach_absolute_time() -> u64;
}

pub(super) fn absolute_time() -> u64 {
    // SAFETY: the call takes nothing and always works.
    unsafe { mach_absolute_time() }
}

/// Has the host's scheduler take the calling thread for one that somebody waits for, wherever the process was started:
/// one of a lower class may be kept to the efficient cores. Not the highest class, which is the user's interface's: a
/// guest that computes must not make that wait.
pub(super) fn prefer_this_thread() {
    #[cfg(target_os = "macos")]
    // SAFETY: the call takes no pointers. Should it fail, the thread is as it was.
    unsafe {
        libc::pthread_set_qos_class_self_np(libc::qos_class_t::QOS_CLASS_USER_INITIATED, 0);
    }
}

/// Checks what must be known before the first call into the framework: on an older system its functions are not there
/// to be called.
#[cfg(target_os = "macos")]
pub(super) fn check() -> Result<()> {
    use super::error::Error;

    let version = sysctl(c"kern.osproductversion").unwrap_or_default();
    let version = String::from_utf8_lossy(version.strip_suffix(b"\0").unwrap_or(&version)).into_owned();
    if !new_enough(&version) {
        return Err(Error::OldSystem(version));
    }
    match sysctl(c"kern.hv_support").as_deref() {
        Some([0, ..]) => Err(Error::NoHypervisor),
        _ => Ok(()),
    }
}

/// The software framework is always there.
#[cfg(not(target_os = "macos"))]
pub(super) fn check() -> Result<()> {
    Ok(())
}

/// Whether this macOS has hv_gic_create (hv_gic.h: macOS 15.0). A version that cannot be read is tried.
#[cfg(any(target_os = "macos", test))]
fn new_enough(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_none_or(|major| major >= 15)
}

/// The value of a sysctl, as it is in memory.
#[cfg(target_os = "macos")]
fn sysctl(name: &std::ffi::CStr) -> Option<Vec<u8>> {
    let mut value = vec![0_u8; 256];
    let mut len = value.len();
    // SAFETY: the name ends with a zero, and the buffer is as long as the call is told; it tells what it used.
    let failed = unsafe {
        libc::sysctlbyname(name.as_ptr(), value.as_mut_ptr().cast(), &mut len, std::ptr::null_mut(), 0)
    };
    value.truncate(len);
    (failed == 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(new_enough("15.0") && new_enough("26.4.1") && new_enough("100"));
        assert!(!new_enough("14.7.1") && !new_enough("9.0"));
        assert!(new_enough("") && new_enough("unknown"));
    }

    #[test]
    fn the_clock_moves() {
        let before = absolute_time();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(absolute_time() > before);
    }
}
