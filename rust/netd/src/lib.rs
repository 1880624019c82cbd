//! The policy process of a virtual machine's network.
//!
//! It alone makes sockets for a guest. The worker asks it for each flow; it decides by the policy, connects, and hands
//! the connected descriptor over. It serves the guest's questions to its name server, and remembers which names led
//! where.

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

pub mod address;
pub mod channel;
pub mod confine;
pub mod dns;
pub mod first;
pub mod host;
mod incoming;
mod judging;
pub mod policy;
mod resolver;
pub mod rules;
pub mod secrets;
mod segments;
pub mod server;
