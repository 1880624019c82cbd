//! Engines by name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// macOS's Hypervisor.framework.
    Hvf,
    /// Linux's /dev/kvm.
    Kvm,
    /// The software CPU.
    Soft,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Hvf, Self::Kvm, Self::Soft];

    /// The engine of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// Its name in commands, snapshots and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hvf => "hvf",
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
