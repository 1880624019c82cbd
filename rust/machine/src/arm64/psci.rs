//! Power State Coordination Interface 1.1 (Arm DEN 0022) and SMC Calling Convention 1.1 (Arm DEN 0028), as far as a
//! virtual machine needs them.

const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND_32: u32 = 0x8400_0001;
const CPU_SUSPEND: u32 = 0xC400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON_32: u32 = 0x8400_0003;
const CPU_ON: u32 = 0xC400_0003;
const AFFINITY_INFO_32: u32 = 0x8400_0004;
const AFFINITY_INFO: u32 = 0xC400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000A;
const SYSTEM_RESET2: u32 = 0xC400_0012;
const SMCCC_VERSION: u32 = 0x8000_0000;

/// Version 1.1 of PSCI and of the calling convention alike.
const VERSION_1_1: i64 = 0x1_0001;
/// Trusted OS "not present": nothing to migrate.
const NO_TRUSTED_OS: i64 = 2;

/// Return values (DEN 0022, 5.2.2).
pub const SUCCESS: i64 = 0;
/// There is no such call.
pub const NOT_SUPPORTED: i64 = -1;
/// There is no such vCPU.
pub const INVALID_PARAMETERS: i64 = -2;
/// The vCPU runs already.
pub const ALREADY_ON: i64 = -4;
/// AFFINITY_INFO's answers.
pub const ON: i64 = 0;
/// The vCPU does not run.
pub const OFF: i64 = 1;

/// What a call asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// X0 takes this value and the vCPU goes on.
    Return(i64),
    /// Starts the vCPU with this MPIDR affinity at `entry`, `context` in X0; X0 takes the machine's answer.
    CpuOn {
        /// Which vCPU, by its affinity.
        target: u64,
        /// A guest physical address.
        entry: u64,
        /// What the guest is told in X0.
        context: u64,
    },
    /// Stops the calling vCPU.
    CpuOff,
    /// X0 takes [`ON`], [`OFF`] or [`INVALID_PARAMETERS`].
    AffinityInfo {
        /// Which vCPU, by its affinity.
        target: u64,
    },
    /// The guest powers off.
    SystemOff,
    /// The guest starts over.
    SystemReset,
}

/// Decodes a call from X0 to X3.
pub fn decode(x: [u64; 4]) -> Call {
    let [_, x1, x2, x3] = x;
    // Calls of 32 bits, and the number of each call, have the lower halves (SMCCC, 3.1).
    #[expect(clippy::cast_possible_truncation, reason = "the lower half of a register")]
    let [function, w1, w2, w3] = x.map(|register| register as u32);
    match function {
        PSCI_VERSION | SMCCC_VERSION => Call::Return(VERSION_1_1),
        // A standby state only: the next WFI sleeps as well.
        CPU_SUSPEND | CPU_SUSPEND_32 => Call::Return(SUCCESS),
        CPU_OFF => Call::CpuOff,
        CPU_ON => Call::CpuOn { target: x1, entry: x2, context: x3 },
        CPU_ON_32 => Call::CpuOn { target: w1.into(), entry: w2.into(), context: w3.into() },
        AFFINITY_INFO | AFFINITY_INFO_32 if x2 == 0 => Call::AffinityInfo { target: x1 },
        AFFINITY_INFO | AFFINITY_INFO_32 => Call::Return(INVALID_PARAMETERS),
        MIGRATE_INFO_TYPE => Call::Return(NO_TRUSTED_OS),
        SYSTEM_OFF => Call::SystemOff,
        SYSTEM_RESET | SYSTEM_RESET2 => Call::SystemReset,
        PSCI_FEATURES => Call::Return(match w1 {
            PSCI_VERSION | CPU_SUSPEND | CPU_OFF | CPU_ON | AFFINITY_INFO | MIGRATE_INFO_TYPE
            | SYSTEM_OFF | SYSTEM_RESET | SYSTEM_RESET2 | PSCI_FEATURES | SMCCC_VERSION => SUCCESS,
            _ => NOT_SUPPORTED,
        }),
        _ => Call::Return(NOT_SUPPORTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_asks_at_boot_is_answered() {
        assert_eq!(decode([0x8400_0000, 0, 0, 0]), Call::Return(0x1_0001));
        assert_eq!(decode([0x8400_000A, 0x8000_0000, 0, 0]), Call::Return(SUCCESS));
        assert_eq!(
            decode([0xC400_0003, 1, 0x4020_0000, 7]),
            Call::CpuOn { target: 1, entry: 0x4020_0000, context: 7 }
        );
        assert_eq!(decode([0x8400_0008, 0, 0, 0]), Call::SystemOff);
        // An Arm architecture workaround that does not exist here.
        assert_eq!(decode([0x8000_8000, 0, 0, 0]), Call::Return(NOT_SUPPORTED));
    }
}
