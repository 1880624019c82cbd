//! Puts kernel, initramfs and the machine's description into guest memory, as Linux's 64-bit boot protocol has it
//! (Documentation/arch/x86/boot.rst, zero-page.rst).

use std::io::Cursor;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{KernelLoader, elf::Elf};
use supermachine_engine::kvm::x86_64::tables;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::{layout, mptable};
use crate::Error;
use crate::builder::{Load, NO_SPARE_DEVICES};

const E820_RAM: u32 = 1;
/// "HdrS", the boot sector's signature, and a boot loader without a number of its own.
const HEADER: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
const UNDEFINED_LOADER: u8 = 0xff;
/// Protocol version, for setup data to be looked at.
const PROTOCOL: u16 = 0x020f;
/// Kinds of setup data: entropy for the random pool, which the kernel wipes after use.
const SETUP_RNG_SEED: u32 = 9;

/// What every guest gets on its command line. `panic=-1` turns a panic into a reset at once, and `reboot=t` a reset
/// into a triple fault, which ends the machine. The UART shows what goes wrong before the virtio console is there: each
/// of its characters is an exit, so that nothing else is shown (`quiet` comes first to be heeded first), and nobody
/// looks for it later.
const CMDLINE: &str = "quiet earlycon=uart8250,io,0x3f8 console=hvc0 panic=-1 reboot=t 8250.nr_uarts=0";

/// Loads everything; where the first vCPU starts.
pub(crate) fn load(ram: &GuestMemoryMmap<()>, vcpus: u32, load: &Load) -> Result<u64, Error> {
    let memory = load.memory_bytes;
    let kernel = Elf::load(ram, None, &mut Cursor::new(load.kernel), Some(GuestAddress(layout::HIGH_RAM)))
        .map_err(|e| Error::NotAVmlinux { reason: e.to_string() })?;
    let low_end = memory.min(layout::HOLE);
    let initramfs = kernel.kernel_end.next_multiple_of(4096);
    let needed = initramfs.saturating_add(load.initramfs.len() as u64);
    if needed > low_end {
        return Err(Error::MemoryTooSmall { memory, needed });
    }
    let cmdline = cmdline(vcpus, load)?;

    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER;
    params.hdr.version = PROTOCOL;
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    let field = |value: u64| u32::try_from(value).expect("all lies below 3 GiB, by the check above");
    params.hdr.cmd_line_ptr = field(layout::CMDLINE);
    params.hdr.cmdline_size = field(cmdline.len() as u64);
    if !load.initramfs.is_empty() {
        params.hdr.ramdisk_image = field(initramfs);
        params.hdr.ramdisk_size = field(load.initramfs.len() as u64);
    }
    params.hdr.setup_data = layout::RNG_SEED;
    let mut ranges = vec![0..layout::MP_TABLE, layout::HIGH_RAM..low_end];
    if memory > layout::HOLE {
        ranges.push(layout::FAR_RAM..layout::span(memory));
    }
    for (entry, range) in params.e820_table.iter_mut().zip(&ranges) {
        *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: E820_RAM };
    }
    params.e820_entries = u8::try_from(ranges.len()).expect("there are three at most");

    // struct setup_data: next, type, length, data.
    let mut seed = Vec::new();
    seed.extend(0_u64.to_le_bytes());
    seed.extend(SETUP_RNG_SEED.to_le_bytes());
    seed.extend(field(load.rng_seed.len() as u64).to_le_bytes());
    seed.extend(load.rng_seed);

    let parts: [(&[u8], u64); 7] = [
        (&tables::gdt(), layout::GDT),
        (params.as_slice(), layout::BOOT_PARAMS),
        (&tables::identity(layout::PAGE_TABLES), layout::PAGE_TABLES),
        (&seed, layout::RNG_SEED),
        (&cmdline, layout::CMDLINE),
        (&mptable::build(vcpus, load.virtio_devices), layout::MP_TABLE),
        (load.initramfs, initramfs),
    ];
    for (bytes, at) in parts {
        ram.write_slice(bytes, GuestAddress(at)).map_err(|_| Error::MemoryTooSmall { memory, needed })?;
    }
    Ok(kernel.kernel_load.0)
}

/// The command line, with its zero: what every guest gets, where the devices are, and what the user adds.
fn cmdline(vcpus: u32, load: &Load) -> Result<Vec<u8>, Error> {
    let mut cmdline = format!("{CMDLINE} {NO_SPARE_DEVICES}");
    if vcpus == 1 {
        // Nothing to patch back and forth.
        cmdline += " noreplace-smp";
    }
    for (n, irq) in (0..load.virtio_devices).zip(layout::VIRTIO_IRQ..) {
        let at = layout::VIRTIO_BASE + n as u64 * layout::VIRTIO_STRIDE;
        cmdline += &format!(" virtio_mmio.device=4K@{at:#x}:{irq}");
    }
    if !load.cmdline.is_empty() {
        cmdline += " ";
        cmdline += load.cmdline;
    }
    let mut bytes = cmdline.into_bytes();
    bytes.push(0);
    if bytes.len() > layout::MAX_CMDLINE {
        return Err(Error::LongCmdline { bytes: bytes.len(), most: layout::MAX_CMDLINE });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    const MEMORY: u64 = 64 << 20;

    /// An ELF file with one segment of `size` bytes at 1 MiB, of which 16 are in the file.
    fn vmlinux(size: u64) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56 + 16];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2;
        elf[18] = 62;
        elf[24..32].copy_from_slice(&0x10_0004_u64.to_le_bytes());
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[54..58].copy_from_slice(&[56, 0, 1, 0]);
        let header = &mut elf[64..];
        header[0] = 1;
        for (at, value) in [(8, 120_u64), (16, 0), (24, 0x10_0000), (32, 16), (40, size)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        elf[120..].fill(0x90);
        elf
    }

    fn loaded<'a>(kernel: &'a [u8], initramfs: &'a [u8], cmdline: &'a str) -> Load<'a> {
        Load { kernel, initramfs, cmdline, memory_bytes: MEMORY, virtio_devices: 3, rng_seed: [7; 32] }
    }

    #[test]
    fn parts_do_not_overlap_and_the_kernel_is_told_of_them() {
        let memory = Memory::new(&layout::MAP, MEMORY).unwrap();
        let kernel = vmlinux(0x1234);
        assert_eq!(load(&memory.ram, 2, &loaded(&kernel, &[9; 5000], "quiet x=1")).unwrap(), 0x10_0004);
        let params: boot_params = memory.ram.read_obj(GuestAddress(layout::BOOT_PARAMS)).unwrap();
        let (image, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        assert_eq!((image, size), (0x10_2000, 5000));
        let last: u8 = memory.ram.read_obj(GuestAddress(0x10_2000 + 4999)).unwrap();
        assert_eq!(last, 9);
        let entries: Vec<_> =
            params.e820_table[..params.e820_entries.into()].iter().map(|e| (e.addr, e.size)).collect();
        assert_eq!(entries, [(0, layout::MP_TABLE), (layout::HIGH_RAM, MEMORY - layout::HIGH_RAM)]);
        let mut line = vec![0; params.hdr.cmdline_size as usize];
        memory.ram.read_slice(&mut line, GuestAddress(layout::CMDLINE)).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains("virtio_mmio.device=4K@0xd0002000:7 quiet x=1\0"), "{line}");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let memory = Memory::new(&layout::MAP, MEMORY).unwrap();
        let mut low = vmlinux(4096);
        low[24..32].fill(0);
        for kernel in [vec![], vec![0; 64], b"MZ".to_vec(), low, vmlinux(u64::MAX)] {
            let result = load(&memory.ram, 1, &loaded(&kernel, &[], ""));
            assert!(
                matches!(result, Err(Error::NotAVmlinux { .. } | Error::MemoryTooSmall { .. })),
                "{result:?}"
            );
        }
    }

    #[test]
    fn too_little_memory_and_too_long_a_line_are_named() {
        let memory = Memory::new(&layout::MAP, MEMORY).unwrap();
        let (kernel, long) = (vmlinux(0x1000), "x".repeat(2048));
        let error = load(&memory.ram, 1, &loaded(&kernel, &vec![0; 64 << 20], "")).unwrap_err();
        assert!(matches!(error, Error::MemoryTooSmall { needed, .. } if needed > MEMORY), "{error}");
        let error = load(&memory.ram, 1, &loaded(&kernel, &[], &long)).unwrap_err();
        assert!(matches!(error, Error::LongCmdline { .. }), "{error}");
    }

    #[test]
    fn memory_beyond_3_gib_goes_on_behind_the_hole() {
        assert_eq!(layout::span(layout::HOLE), layout::HOLE);
        assert_eq!(layout::span(layout::HOLE + (2 << 20)), layout::FAR_RAM + (2 << 20));
    }
}
