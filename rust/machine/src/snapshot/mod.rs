//! A machine in a file, in each format: what is written of one that stands still, and how it comes back.

pub mod v8;
pub mod v9;
