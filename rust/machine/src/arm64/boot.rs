//! Puts kernel, initramfs and device tree into guest memory (kernel Documentation/arch/arm64/booting.rst).

use supermachine_proto::limits::MAX_MEMORY;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::fdt::{self, Description};
use super::layout;
use crate::Error;
use crate::power::EntryPoint;

/// "ARM\x64" at offset 56 of an arm64 Image.
const MAGIC: u32 = 0x644d_5241;
const HEADER: usize = 64;
/// The tree must not be longer (booting.rst, section 2).
const MAX_FDT: usize = 2 << 20;

/// Loads everything; `description.initramfs` is filled in here. The first vCPU is told the address of the device tree,
/// in X0.
pub fn load(
    ram: &GuestMemoryMmap<()>,
    kernel: &[u8],
    initramfs: &[u8],
    mut description: Description,
) -> Result<EntryPoint, Error> {
    let end = layout::RAM_BASE + description.memory_bytes;
    let (text_offset, image_size) = header(kernel)?;
    let start = layout::RAM_BASE + text_offset;
    let too_small = |needed: u64| Error::MemoryTooSmall { memory: description.memory_bytes, needed };

    // After the kernel with its zeroed data come the initramfs and the tree, each on a page of its own.
    let kernel_end = start + image_size.max(kernel.len() as u64);
    let initramfs_start = page_up(kernel_end);
    let initramfs_end = initramfs_start + initramfs.len() as u64;
    let fdt_start = page_up(initramfs_end);
    if !initramfs.is_empty() {
        description.initramfs = Some((initramfs_start, initramfs_end));
    }
    let tree = fdt::build(&description).map_err(|e| Error::DeviceTree(e.to_string()))?;
    if tree.len() > MAX_FDT {
        return Err(Error::DeviceTree(format!("it is {} bytes long, more than {MAX_FDT}", tree.len())));
    }
    let needed = fdt_start + tree.len() as u64;
    if needed > end {
        return Err(too_small(needed - layout::RAM_BASE));
    }
    for (bytes, at) in [(kernel, start), (initramfs, initramfs_start), (&tree, fdt_start)] {
        ram.write_slice(bytes, GuestAddress(at)).map_err(|_| too_small(needed - layout::RAM_BASE))?;
    }
    Ok(EntryPoint { pc: start, context: fdt_start })
}

/// `text_offset` and `image_size` of the Image's header.
fn header(kernel: &[u8]) -> Result<(u64, u64), Error> {
    let field = |at: usize| u64::from_le_bytes(kernel[at..at + 8].try_into().expect("eight bytes"));
    if kernel.len() < HEADER || field(56) & 0xffff_ffff != u64::from(MAGIC) {
        return Err(Error::NotAKernel);
    }
    let (text_offset, image_size) = (field(8), field(16));
    // Bounds that keep the sums above from overflowing; a real kernel is far below them.
    if text_offset >= 2 << 20 || image_size > MAX_MEMORY {
        return Err(Error::NotAKernel);
    }
    Ok((text_offset, image_size))
}

fn page_up(address: u64) -> u64 {
    address.next_multiple_of(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    fn description(memory_bytes: u64) -> Description<'static> {
        Description {
            vcpus: 1,
            memory_bytes,
            cmdline: "quiet",
            initramfs: None,
            virtio_devices: 2,
            pmu: true,
            rng_seed: [7; 32],
        }
    }

    fn image(text_offset: u64, image_size: u64) -> Vec<u8> {
        let mut kernel = vec![0x1f; 128];
        kernel[8..16].copy_from_slice(&text_offset.to_le_bytes());
        kernel[16..24].copy_from_slice(&image_size.to_le_bytes());
        kernel[56..60].copy_from_slice(&MAGIC.to_le_bytes());
        kernel
    }

    #[test]
    fn parts_do_not_overlap() {
        let memory = Memory::new(&layout::MAP, 64 << 20).unwrap();
        let kernel = image(0, 0x1_0001);
        let entry = load(&memory.ram, &kernel, &[9; 5000], description(64 << 20)).unwrap();
        assert_eq!(entry.pc, layout::RAM_BASE);
        assert_eq!(entry.context, layout::RAM_BASE + 0x1_1000 + 0x2000);
        let magic: [u8; 4] = memory.ram.read_obj(GuestAddress(entry.context)).unwrap();
        assert_eq!(magic, 0xd00d_feed_u32.to_be_bytes());
        let byte: u8 = memory.ram.read_obj(GuestAddress(layout::RAM_BASE + 0x1_1000 + 4999)).unwrap();
        assert_eq!(byte, 9);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let memory = Memory::new(&layout::MAP, 64 << 20).unwrap();
        for kernel in [vec![], vec![0; 64], image(0, u64::MAX), image(1 << 40, 4096)] {
            assert!(matches!(load(&memory.ram, &kernel, &[], description(64 << 20)), Err(Error::NotAKernel)));
        }
    }

    #[test]
    fn too_little_memory_is_named() {
        let memory = Memory::new(&layout::MAP, 64 << 20).unwrap();
        let error = load(&memory.ram, &image(0, 65 << 20), &[], description(64 << 20)).unwrap_err();
        assert!(matches!(error, Error::MemoryTooSmall { needed, .. } if needed > 65 << 20));
    }
}
