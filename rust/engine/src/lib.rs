//! Engines: what runs guest code. The arm64 machine is written against [`arm64::Vm`] and [`arm64::Vcpu`] alone, with
//! the shape of Hypervisor.framework; each engine is a provider of them.

#![cfg_attr(
    test,
    allow(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "tests make small numbers and bytes of counters"
    )
)]
#![allow(unsafe_code, reason = "hypervisors are C interfaces, and guest memory is raw")]

pub mod arm64;
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-soft"))]
pub mod hvf;
#[cfg(target_os = "linux")]
pub mod kvm;
mod soft;

use std::sync::Arc;

pub use crate::soft::SoftVm;
pub use supermachine_proto::engine::Engine;
pub use supermachine_soft::interprets;

/// Opens what the engine needs of the host: for a process that confines itself before it makes a VM.
pub fn prepare(engine: Engine) -> Result<()> {
    match engine {
        #[cfg(target_os = "linux")]
        Engine::Kvm => Ok(kvm::host::open().map(drop).map_err(kvm::Error::from)?),
        Engine::Soft => {
            // Where memory cannot be made executable, the interpreter does everything.
            let _ = supermachine_soft::prepare();
            Ok(())
        }
        #[allow(unreachable_patterns, reason = "some builds have no other")]
        _ => Ok(()),
    }
}

/// Has the host begin with what making a VM waits for, where there is such.
pub fn begin(engine: Engine) {
    #[cfg(target_os = "linux")]
    if engine == Engine::Kvm {
        kvm::creation::begin();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = engine;
}

/// Makes an engine's VM of the arm64 machine, without memory.
pub fn create_arm64_vm(engine: Engine, config: arm64::VmConfig) -> Result<Arc<dyn arm64::Vm>> {
    match engine {
        #[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-soft"))]
        Engine::Hvf => Ok(Arc::new(hvf::HvfVm::new(config)?)),
        Engine::Soft => Ok(Arc::new(SoftVm::new(config)?)),
        #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
        Engine::Kvm => Ok(Arc::new(kvm::arm64::KvmVm::new(&config)?)),
        #[allow(unreachable_patterns, reason = "some builds have all of them")]
        engine => Err(Error::Absent { engine }),
    }
}

/// What the guest may do with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Everything.
    ReadWriteExecute,
    /// Reads, and execution where the engine knows no difference; writes are exits.
    Read,
}

/// Why an engine could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of the software CPU.
    #[error("the soft engine failed: {0}")]
    Soft(#[from] supermachine_soft::Error),
    /// Of Hypervisor.framework.
    #[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-soft"))]
    #[error(transparent)]
    Hvf(#[from] hvf::Error),
    /// It was not built in.
    #[error("this build has no {engine} engine for arm64 guests; the soft engine runs everywhere")]
    Absent {
        /// Which was asked for.
        engine: Engine,
    },
    /// Of KVM.
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// Saved state was refused.
    #[error(transparent)]
    State(#[from] arm64::state::Error),
}

/// What calls of an engine give.
pub type Result<T> = std::result::Result<T, Error>;
