//! Page tables and segments for a vCPU that starts in 64-bit mode.

use super::vcpu::Start;

/// Bytes of [`identity`].
pub const SIZE: u64 = 6 * PAGE;
const PAGE: u64 = 4096;
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

/// Tables for physical address `at` that map the first 4 GiB to themselves in pages of 2 MiB. CR3 is `at`.
pub fn identity(at: u64) -> Vec<u8> {
    let (pointers, directories) = (at + PAGE, at + 2 * PAGE);
    let mut words = vec![0; (SIZE / 8) as usize];
    words[0] = pointers | PRESENT_WRITABLE;
    for n in 0..4 {
        words[512 + n] = (directories + n as u64 * PAGE) | PRESENT_WRITABLE;
    }
    for (n, word) in words[1024..].iter_mut().enumerate() {
        *word = (n as u64) << 21 | LARGE | PRESENT_WRITABLE;
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The segment descriptors that a vCPU starts with.
pub fn gdt() -> Vec<u8> {
    Start::GDT.into_iter().flat_map(u64::to_le_bytes).collect()
}
