//! Engines: what runs guest code. The arm64 machine is written against [`arm64::Vm`] and [`arm64::Vcpu`] alone, with
//! the shape of Hypervisor.framework; each engine is a provider of them.

pub mod arm64;
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-soft"))]
pub mod hvf;
#[cfg(target_os = "linux")]
pub mod kvm;
mod soft;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use crate::soft::SoftVm;
pub use supermachine_soft::interprets;

/// An engine by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// macOS's Hypervisor.framework.
    Hvf,
    /// Linux's /dev/kvm.
    Kvm,
    /// The software CPU.
    Soft,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hvf => "hvf",
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Hvf, Self::Kvm, Self::Soft];

    /// The engine of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.to_string() == name)
    }

    /// Opens what the engine needs of the host: for a process that confines itself before it makes a VM.
    pub fn prepare(self) -> Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Kvm => Ok(kvm::host::open().map(drop).map_err(kvm::Error::from)?),
            Self::Soft => {
                // Where memory cannot be made executable, the interpreter does everything.
                let _ = supermachine_soft::prepare();
                Ok(())
            }
            #[allow(unreachable_patterns, reason = "some builds have no other")]
            _ => Ok(()),
        }
    }

    /// Has the host begin with what making a VM waits for, where there is such.
    pub fn begin(self) {
        #[cfg(target_os = "linux")]
        if self == Self::Kvm {
            kvm::creation::begin();
        }
    }

    /// Makes an arm64 VM without memory.
    pub fn arm64(self, config: arm64::VmConfig) -> Result<Arc<dyn arm64::Vm>> {
        match self {
            #[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-soft"))]
            Self::Hvf => Ok(Arc::new(hvf::HvfVm::new(config)?)),
            Self::Soft => Ok(Arc::new(SoftVm::new(config)?)),
            #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
            Self::Kvm => Ok(Arc::new(kvm::arm64::KvmVm::new(&config)?)),
            // Some builds have all of them.
            #[allow(unreachable_patterns)]
            engine => Err(Error::Absent { engine }),
        }
    }
}

/// What the guest may do with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    ReadWriteExecute,
    Read,
}

/// Why an engine could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the soft engine failed: {0}")]
    Soft(#[from] supermachine_soft::Error),
    #[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-soft"))]
    #[error(transparent)]
    Hvf(#[from] hvf::Error),
    #[error("this build has no {engine} engine for arm64 guests; the soft engine runs everywhere")]
    Absent { engine: Engine },
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    #[error(transparent)]
    State(#[from] arm64::state::Error),
}

pub type Result<T> = std::result::Result<T, Error>;
