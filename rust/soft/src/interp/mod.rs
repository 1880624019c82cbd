//! The interpreter: blocks of decoded operations, each with the handler that does it.
//!
//! [`block`] decodes a block when it enters the code cache; `lower` picks each instruction's handler then, so that
//! running an operation looks nothing up. `handlers` are what operations do.

pub(crate) mod block;
#[cfg(test)]
mod effects;
pub(crate) mod handlers;
pub(crate) mod lower;
pub(crate) mod op;
