//! What tests need of the host.

/// `false`, said aloud, where tests with KVM cannot run.
pub(crate) fn kvm_here() -> bool {
    match supermachine_engine::kvm::host::open() {
        Ok(_) => true,
        Err(reason) => {
            eprintln!("SKIPPED: {reason}");
            false
        }
    }
}
