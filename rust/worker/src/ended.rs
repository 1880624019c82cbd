//! Why a VM ended.

use supermachine_proto::worker::ExitReason;

/// Why a VM ended, as the API is told.
pub(crate) struct Ended {
    pub(crate) reason: ExitReason,
    pub(crate) message: String,
}

impl Ended {
    pub(crate) fn new(reason: ExitReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(ExitReason::BadConfiguration, message)
    }
}
