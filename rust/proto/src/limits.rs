//! What a guest may have at most and at least. The API checks a wish against these numbers and the machine checks it again.

/// Bytes of RAM that a guest has at least and at most.
pub const MIN_MEMORY: u64 = 64 << 20;
/// The same at most.
pub const MAX_MEMORY: u64 = 64 << 30;
/// RAM comes in multiples of this.
pub const MEMORY_STEP: u64 = 2 << 20;

/// vCPUs that an arm64 guest has at most: what one distributor addresses by affinity 0 alone.
pub const MAX_VCPUS_ARM64: u32 = 8;
/// vCPUs that an x86_64 guest has at most: what fits the MP table's KiB.
pub const MAX_VCPUS_X86_64: u32 = 32;
/// vCPUs that a guest has at most, by its architecture as the kernel names it.
pub const MAX_VCPUS: [(&str, u32); 2] = [("aarch64", MAX_VCPUS_ARM64), ("x86_64", MAX_VCPUS_X86_64)];

/// Ranges of a working set at most, so that they fit a message.
pub const MAX_WORKING_SET: usize = 16_000;

/// Places of code that are told at most, likewise.
pub const MAX_CODE: usize = 32_000;
