//! Messages between the host and the guest's agent ([`agent`]), the API and a worker ([`worker`]), and the policy process
//! of a guest's network and both of them ([`netd`]).
//!
//! They travel as frames: a u32 length, little-endian, and that many bytes of a postcard-encoded enum
//! ([`frame`]). Host and guest parts of one release are built together; [`VERSION`] is compared when they meet.

pub mod agent;
pub mod arrival;
pub mod echo;
pub mod engine;
pub mod frame;
pub mod limits;
pub mod netd;
mod path_bytes;
pub mod worker;

/// Version of the messages in this crate. Two sides that differ refuse to talk.
pub const VERSION: u32 = 9;
