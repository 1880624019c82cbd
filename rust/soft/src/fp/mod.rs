//! Floating point, Advanced SIMD and cryptographic instructions.
