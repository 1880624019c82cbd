//! Secrets that a guest never gets: it has placeholders, and here their values take their place on the way to the hosts
//! that they are for. To that end TLS with these hosts is opened, with certificates of an authority of this machine's
//! own.
//!
//! What is opened is HTTP/1.1 alone. Each such connection has a thread of its own ([`connection`]), which parses
//! requests and responses and writes them anew, so both sides read them alike.

pub mod authority;
pub mod body;
mod connection;
mod error;
pub mod head;
mod opening;
mod page;
mod peer;
mod values;

pub use error::{Error, LEAST_BYTES, MOST_BYTES};
pub use opening::{Complaint, Opening};
pub use peer::{End, Peer};
pub use values::{Values, host};
