//! KVM_CREATE_VM, begun ahead of time. The kernel waits in it until each of its CPUs has let go of what it changes
//! (Documentation/RCU/whatisRCU.rst), which takes many milliseconds on a host that is idle, and none of its CPUs' time.

use std::sync::Mutex;
use std::thread::{self, JoinHandle};

use kvm_ioctls::{Kvm, VmFd};
use supermachine_support::lock;

use super::host::{self, Unusable};
use super::{Named, Result};

/// The VM that is being made, until it is asked for.
static BEGUN: Mutex<Option<JoinHandle<Result<VmFd>>>> = Mutex::new(None);

/// Has a thread make a VM for the next [`create`]. Where none can be started, that one makes its own.
pub(crate) fn begin() {
    let thread = thread::Builder::new().name("kvm".into()).spawn(|| create_now(host::open()?));
    *lock(&BEGUN) = thread.ok();
}

/// A VM without anything in it.
pub(super) fn create(kvm: &Kvm) -> Result<VmFd> {
    let begun = lock(&BEGUN).take();
    match begun.map(JoinHandle::join) {
        Some(Ok(made)) => made,
        Some(Err(_)) | None => create_now(kvm),
    }
}

fn create_now(kvm: &Kvm) -> Result<VmFd> {
    loop {
        match kvm.create_vm() {
            // A signal came while KVM waited for other CPUs.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) if error.errno() == libc::EBUSY => return Err(Unusable::Busy.into()),
            result => return result.named("KVM_CREATE_VM"),
        }
    }
}
