//! Whether vCPUs run, and where they start.

use serde::{Deserialize, Serialize};

/// Where a vCPU starts, and what it is told there: for the first one, where the description of the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// The first instruction's guest physical address.
    pub pc: u64,
    /// What the first argument's register has there.
    pub context: u64,
}

/// Whether a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Power {
    Off,
    /// To be started at `entry`, told `context`.
    Starting {
        entry: u64,
        context: u64,
    },
    On,
}

// As with `saved_structure`: who adds a state of power changes a saved encoding.
const _: fn(Power) = |power| match power {
    Power::Off | Power::Starting { entry: _, context: _ } | Power::On => {}
};
