//! The host's counter, at the rate of an Apple silicon Mac's: 24 MHz.

use std::time::Duration;

use supermachine_soft::COUNTER_HZ;

use crate::host::machine;

/// Documented (mach_time.h): ticks since the host started, not counting the time that it slept. It is what virtual
/// counters are offset from: `CNTVCT_EL0 = mach_absolute_time() - vtimer_offset` (Documented:
/// hv_vcpu_set_vtimer_offset; Measured: an offset of zero makes the two equal).
#[cfg_attr(not(target_os = "macos"), unsafe(no_mangle))]
pub extern "C" fn mach_absolute_time() -> u64 {
    let vm = machine();
    match vm.as_ref().and_then(|machine| machine.soft.get()) {
        Some(soft) => soft.counter_now(),
        None => ticks(),
    }
}

fn ticks() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the timespec that is given to it.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    let time = Duration::new(seconds.expect("it counts from the start"), nanoseconds.expect("below 10^9"));
    time.as_secs() * COUNTER_HZ + u64::from(time.subsec_nanos()) * (COUNTER_HZ / 1_000_000) / 1000
}
