//! The guest's wall clock, kept at the host's while the guest runs.
//!
//! A guest counts time by a counter that stands still while the host sleeps, and nobody in the guest notices that the
//! host's clock was set. Both show in the host as wall clock and counter moving against each other.

#![allow(unsafe_code, reason = "clock_gettime(2) is a C call")]

use std::mem::MaybeUninit;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use supermachine_support::lock;

use supermachine_proto::agent::{BootCommand, BootEvent};

use crate::boot::{self, BootChannel};

/// How often a guest that nobody asks for anything is looked after.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// How far the guest's clock may be off before it is set.
const TOLERANCE: u64 = 50_000_000;
/// How long a request waits for the guest's clock.
const ANSWER: Duration = Duration::from_secs(1);

/// What guests' counters follow: it stands still in the host's sleep (mach_time.h: mach_absolute_time;
/// clock_gettime(2)).
#[cfg(target_os = "macos")]
const COUNTER: libc::clockid_t = libc::CLOCK_UPTIME_RAW;
#[cfg(not(target_os = "macos"))]
const COUNTER: libc::clockid_t = libc::CLOCK_MONOTONIC;

/// What the guest was told of the time.
#[derive(Default)]
pub(crate) struct WallClock {
    state: Mutex<State>,
    /// Told when the clock is set, or has taken too long.
    settled: Condvar,
}

#[derive(Default)]
struct State {
    /// The wall clock less the counter, in nanoseconds, when the guest was told; `None` before.
    told: Option<i64>,
    /// Whether the guest is being told now.
    telling: bool,
}

impl WallClock {
    /// The guest is being told the time.
    pub(crate) fn told(&self) {
        self.lock().told = Some(ahead());
    }

    /// Whether the guest's clock must be set, and nobody is at it.
    pub(crate) fn has_moved(&self) -> bool {
        let state = self.lock();
        !state.telling && moved(state.told, ahead())
    }

    /// Whether there is nothing to wait for in [`WallClock::follow`].
    pub(crate) fn is_right(&self) -> bool {
        let state = self.lock();
        !state.telling && !moved(state.told, ahead())
    }

    /// Sets the guest's clock, if it must be, and waits until that is done, or has taken too long. Nothing is locked
    /// meanwhile.
    pub(crate) fn follow(&self, boot: &BootChannel) {
        let mut state = self.lock();
        if state.telling {
            drop(self.settled.wait_timeout_while(state, ANSWER, |state| state.telling));
            return;
        }
        let now = ahead();
        if !moved(state.told, now) {
            return;
        }
        state.telling = true;
        drop(state);
        let command = BootCommand::Clock { wall_clock_ns: boot::now_ns() };
        // An agent that is slow to answer has the message all the same.
        boot.ask(&command, &BootEvent::ClockSet, ANSWER);
        *self.lock() = State { told: Some(now), telling: false };
        self.settled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn moved(told: Option<i64>, now: i64) -> bool {
    told.is_some_and(|told| told.abs_diff(now) > TOLERANCE)
}

/// The wall clock less the counter, in nanoseconds.
fn ahead() -> i64 {
    let mut best = (i64::MAX, 0);
    // The two cannot be read at once, and between them this thread may have to wait for a processor.
    for _ in 0..3 {
        let (before, wall, after) = (read(COUNTER), read(libc::CLOCK_REALTIME), read(COUNTER));
        best = best.min((after - before, wall - before));
    }
    best.1
}

/// A clock of the host's, in nanoseconds.
fn read(clock: libc::clockid_t) -> i64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the call writes to the structure that is given to it, of which all zeros is a value.
    let time = unsafe {
        libc::clock_gettime(clock, time.as_mut_ptr());
        time.assume_init()
    };
    (time.tv_sec as i64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_one_after_the_other_is_no_move() {
        let clock = WallClock::default();
        assert!(!clock.has_moved());
        clock.told();
        assert!((0..1000).all(|_| !clock.has_moved()));
    }

    #[test]
    fn a_move_either_way_counts_and_a_guest_that_was_told_nothing_is_left_alone() {
        assert!(moved(Some(7), 3_600_000_000_007) && moved(Some(3_600_000_000_007), 7));
        assert!(!moved(Some(7), 40_000_000) && !moved(None, i64::MIN));
        assert!(moved(Some(i64::MIN), i64::MAX));
    }
}
