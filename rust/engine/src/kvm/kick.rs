//! Getting a vCPU out of KVM_RUN from another thread, without a request ever being lost.
//!
//! A signal interrupts a vCPU that is in the guest, but one that arrives just before the ioctl would be spent on
//! nothing. So the request is written where KVM looks first: `immediate_exit` in the shared page makes KVM_RUN finish
//! the access that the last exit was for and return EINTR at once (Documentation/virt/kvm/api.rst, 5).

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, Once};

use kvm_bindings::kvm_run;
use supermachine_support::lock;

/// A request to leave the guest. Made before its vCPU is, so that a request is never too early.
#[derive(Default)]
pub struct Kick {
    requested: AtomicBool,
    target: Mutex<Option<Target>>,
}

/// Where a vCPU runs.
struct Target {
    thread: libc::pthread_t,
    immediate_exit: NonNull<AtomicU8>,
}

// SAFETY: the pointer is to a byte that is only accessed atomically, and a `Target` lives in a [`Kick`] only as long
// as the mapping does (see `Kick::attach`).
unsafe impl Send for Target {}

impl Kick {
    /// Asks the vCPU to leave the guest; if it is outside, its next run comes back at once.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        if let Some(target) = &*lock(&self.target) {
            // SAFETY: the byte is mapped while the target is here.
            unsafe { target.immediate_exit.as_ref() }.store(1, Ordering::SeqCst);
            // SAFETY: the thread is alive: it detaches before it ends.
            unsafe { libc::pthread_kill(target.thread, signal()) };
        }
    }

    /// Takes the request, if there is one. Called after KVM_RUN was interrupted.
    pub(super) fn take(&self) -> bool {
        if let Some(target) = &*lock(&self.target) {
            // Before the request is looked at: one that comes in between sets it again.
            // SAFETY: the byte is mapped while the target is here.
            unsafe { target.immediate_exit.as_ref() }.store(0, Ordering::SeqCst);
        }
        self.requested.swap(false, Ordering::SeqCst)
    }

    /// The calling thread runs the vCPU whose shared page this is.
    ///
    /// # Safety
    /// The page stays mapped, and the calling thread alive, until [`Kick::detach`].
    pub(super) unsafe fn attach(&self, run: &mut kvm_run) {
        install();
        let immediate_exit = NonNull::from(&mut run.immediate_exit).cast::<AtomicU8>();
        // SAFETY: the calling thread's own id.
        let thread = unsafe { libc::pthread_self() };
        let mut target = lock(&self.target);
        if self.requested.load(Ordering::SeqCst) {
            // SAFETY: a byte of the caller's page.
            unsafe { immediate_exit.as_ref() }.store(1, Ordering::SeqCst);
        }
        *target = Some(Target { thread, immediate_exit });
    }

    /// The page is about to be unmapped.
    pub(super) fn detach(&self) {
        *lock(&self.target) = None;
    }
}

/// The signal that interrupts KVM_RUN.
fn signal() -> i32 {
    libc::SIGRTMIN()
}

/// Gives the signal a handler that does nothing, so that it interrupts and does not kill.
fn install() {
    extern "C" fn nothing(_: i32) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeros is a valid sigaction: no flags (so no SA_RESTART) and an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(i32) as libc::sighandler_t;
        // SAFETY: the handler is async-signal-safe, since it does nothing.
        unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) };
    });
}
