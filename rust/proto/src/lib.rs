//! Messages between the host and the guest's agent ([`agent`]) and between the API and a worker ([`worker`]).
//!
//! Both travel as frames: a u32 length, little-endian, and that many bytes of a postcard-encoded enum
//! ([`frame`]). Host and guest parts of one release are built together; [`VERSION`] is compared when they meet.

pub mod agent;
pub mod frame;
pub mod worker;

/// Version of the messages in this crate. Two sides that differ refuse to talk.
pub const VERSION: u32 = 2;
