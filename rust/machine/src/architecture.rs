//! Which machine there is for a guest.

use supermachine_engine::Engine;

use crate::address_map::AddressMap;
use crate::arm64;

/// What guests this machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// On every engine.
    Arm64,
    /// On KVM of x86_64 hosts.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    X86_64,
}

impl Architecture {
    /// What the engine's guests are on this host.
    pub fn of(engine: Engine) -> Self {
        match engine {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Engine::Kvm => Self::X86_64,
            _ => Self::Arm64,
        }
    }

    /// Where its machine's parts are.
    pub fn map(self) -> &'static AddressMap {
        match self {
            Self::Arm64 => &arm64::layout::MAP,
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::X86_64 => &crate::x86_64::layout::MAP,
        }
    }

    /// Bytes of guest physical memory, from the start of RAM, that hold this much RAM.
    pub fn span(self, memory_bytes: u64) -> u64 {
        match self {
            Self::Arm64 => memory_bytes,
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::X86_64 => crate::x86_64::layout::span(memory_bytes),
        }
    }
}
