//! The device tree that tells the guest what it runs on (Devicetree Specification 0.4; bindings in the kernel's
//! Documentation/devicetree). Compact: the kernel walks all of it more than once at boot.

use vm_fdt::{FdtWriter, FdtWriterResult};

use super::layout;

/// What varies from one machine to the next.
pub struct Description<'a> {
    /// CPUs, whose affinities are 0, 1, ….
    pub vcpus: u32,
    /// Bytes of RAM from [`layout::RAM_BASE`] on.
    pub memory_bytes: u64,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Start and end of the initramfs in guest physical memory.
    pub initramfs: Option<(u64, u64)>,
    /// Windows, from [`layout::VIRTIO_BASE`] on, that have a device.
    pub virtio_devices: usize,
    /// Whether the CPUs have a performance monitor.
    pub pmu: bool,
    /// Fresh entropy; the kernel credits it to its pool and wipes it from the tree.
    pub rng_seed: [u8; 32],
}

const PHANDLE_GIC: u32 = 1;
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Builds the flattened tree.
pub fn build(description: &Description) -> FdtWriterResult<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "supermachine")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;

    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", description.cmdline)?;
    fdt.property("rng-seed", &description.rng_seed)?;
    if let Some((start, end)) = description.initramfs {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.end_node(chosen)?;

    let memory = fdt.begin_node(&format!("memory@{:x}", layout::RAM_BASE))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[layout::RAM_BASE, description.memory_bytes])?;
    fdt.end_node(memory)?;

    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for index in 0..description.vcpus {
        let cpu = fdt.begin_node(&format!("cpu@{index:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u32("reg", index)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;

    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;

    let gic = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::GICD_BASE))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_phandle(PHANDLE_GIC)?;
    let redistributors = layout::GICR_STRIDE * u64::from(description.vcpus);
    fdt.property_array_u64(
        "reg",
        &[layout::GICD_BASE, layout::GICD_SIZE, layout::GICR_BASE, redistributors],
    )?;
    fdt.end_node(gic)?;

    // Secure, non-secure, virtual and hypervisor timer; the first and the last have no use here but a place.
    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_null("always-on")?;
    let ppis = [13, 14, 11, 10].map(|ppi| [PPI, ppi, LEVEL_HIGH]);
    fdt.property_array_u32("interrupts", ppis.as_flattened())?;
    fdt.end_node(timer)?;

    if description.pmu {
        let pmu = fdt.begin_node("pmu")?;
        fdt.property_string("compatible", "arm,armv8-pmuv3")?;
        fdt.property_array_u32("interrupts", &[PPI, 7, LEVEL_HIGH])?;
        fdt.end_node(pmu)?;
    }

    let vmgenid = fdt.begin_node(&format!("vmgenid@{:x}", layout::VMGENID_BASE))?;
    fdt.property_string("compatible", "microsoft,vmgenid")?;
    fdt.property_array_u64("reg", &[layout::VMGENID_BASE, layout::VMGENID_SIZE])?;
    fdt.property_array_u32("interrupts", &[SPI, layout::VMGENID_SPI, EDGE_RISING])?;
    fdt.end_node(vmgenid)?;

    for (n, spi) in (0..description.virtio_devices).zip(layout::VIRTIO_SPI..) {
        let base = layout::VIRTIO_BASE + layout::VIRTIO_STRIDE * n as u64;
        let device = fdt.begin_node(&format!("virtio_mmio@{base:x}"))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_null("dma-coherent")?;
        fdt.property_array_u64("reg", &[base, layout::VIRTIO_STRIDE])?;
        fdt.property_array_u32("interrupts", &[SPI, spi, LEVEL_HIGH])?;
        fdt.end_node(device)?;
    }

    fdt.end_node(root)?;
    fdt.finish()
}
