//! What a machine begins with, be it in a process that was started for it or in a template's copy.

use std::time::Instant;

use supermachine_proto::worker::Start;

use crate::control::{Commands, Events};
use crate::owner::Owner;
use crate::start::Came;

/// What a machine begins with.
pub(crate) struct Begun {
    pub started: Instant,
    pub start: Box<Start>,
    pub came: Came,
    pub commands: Commands,
    pub events: Events,
    pub owner: Owner,
}
