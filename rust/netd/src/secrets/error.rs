//! What can go wrong with secrets.

use std::io;

use crate::rules::NotARule;

/// Bytes of a value: one that is shorter could not be told from other text that comes back.
pub const LEAST_BYTES: usize = 8;
/// The same at most.
pub const MOST_BYTES: usize = 8 * 1024;

/// Why secrets cannot be put on the wire.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A host of a secret's is no rule.
    #[error(transparent)]
    Rule(#[from] NotARule),
    /// A host of a secret's is a rule for something else than names.
    #[error("{0:?} is not a secret's host: NAME[:PORT] and *.NAME[:PORT] are")]
    Host(String),
    /// The placeholder of the secret.
    #[error(
        "a secret's value must be {LEAST_BYTES} to {MOST_BYTES} bytes of printable ASCII; that of {0} is not"
    )]
    Value(String),
    /// Nothing would be trusted.
    #[error("the host has no certificates of authorities that it trusts, so no server can be verified")]
    NoRoots,
    /// What the certificate's maker said.
    #[error("a certificate cannot be made: {0}")]
    Certificate(rcgen::Error),
    /// What TLS said.
    #[error("TLS cannot be opened: {0}")]
    Tls(rustls::Error),
    /// What the system said.
    #[error(transparent)]
    Io(#[from] io::Error),
}
