//! Registers of a host, by their numbers.

/// A general register. On arm64 31 reads as zero and takes what goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct General(pub u8);

/// A vector register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vector(pub u8);
