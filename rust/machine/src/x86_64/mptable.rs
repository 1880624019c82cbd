//! The table that tells the guest its CPUs and interrupt lines (Intel MultiProcessor Specification 1.4, chapter 4).

use super::layout;

const SPECIFICATION: u8 = 4;
/// The version register of a local APIC with 6 LVT entries, and of an IOAPIC (Intel SDM 3A, 10.4.8; 82093AA, 3.2.2).
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Processor flags.
const ENABLED: u8 = 1;
const BOOTSTRAP: u8 = 2;
/// Kinds of interrupts.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Interrupt flags: as the bus has it; active high and level-triggered.
const CONFORMING: u16 = 0;
const HIGH_LEVEL: u16 = 1 | 3 << 2;
const ISA: u8 = 0;
const ALL_APICS: u8 = 0xff;

/// The table for as many vCPUs, with pointers for address [`layout::MP_TABLE`]. At most a KiB for at most 32 vCPUs.
pub fn build(vcpus: u32, virtio_devices: usize) -> Vec<u8> {
    let ioapic_id = u8::try_from(vcpus).expect("there are at most 32 vCPUs");
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..ioapic_id {
        let flags = ENABLED | if id == 0 { BOOTSTRAP } else { 0 };
        // Signature and features are for kernels that cannot ask the CPU itself.
        entries.push([&[PROCESSOR, id, APIC_VERSION, flags][..], &[0; 16]].concat());
    }
    entries.push([&[BUS, ISA][..], b"ISA   "].concat());
    entries
        .push([&[IO_APIC, ioapic_id, IOAPIC_VERSION, ENABLED][..], &layout::IOAPIC.to_le_bytes()].concat());
    let interrupt = |entry: u8, kind: u8, flags: u16, irq: u8, apic: u8, pin: u8| {
        let flags = flags.to_le_bytes();
        vec![entry, kind, flags[0], flags[1], ISA, irq, apic, pin]
    };
    let virtio = (layout::VIRTIO_IRQ..).take(virtio_devices);
    for pin in 0..layout::IOAPIC_PINS {
        let flags = if virtio.clone().any(|irq| irq == pin) { HIGH_LEVEL } else { CONFORMING };
        let pin = u8::try_from(pin).expect("an IOAPIC has 24");
        entries.push(interrupt(IO_INTERRUPT, INT, flags, pin, ioapic_id, pin));
    }
    entries.push(interrupt(LOCAL_INTERRUPT, EXT_INT, CONFORMING, 0, 0, 0));
    entries.push(interrupt(LOCAL_INTERRUPT, NMI, CONFORMING, 0, ALL_APICS, 1));

    let mut table = Vec::new();
    table.extend(b"PCMP");
    let length = 44 + entries.iter().map(Vec::len).sum::<usize>();
    let field = |value: usize| u16::try_from(value).expect("it is less than a KiB").to_le_bytes();
    table.extend(field(length));
    table.extend([SPECIFICATION, 0]);
    table.extend(b"SUPERMACMICROVM     ");
    // No table of the OEM's.
    table.extend([0; 6]);
    table.extend(field(entries.len()));
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries.concat());
    seal(&mut table, 7);

    let mut pointer = Vec::new();
    pointer.extend(b"_MP_");
    let at = u32::try_from(layout::MP_TABLE + 16).expect("it lies below 1 MiB");
    pointer.extend(at.to_le_bytes());
    // One paragraph; no default configuration; no IMCR, so that interrupts start in virtual wire mode.
    pointer.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    seal(&mut pointer, 10);
    [pointer, table].concat()
}

/// Makes the bytes sum to zero by the one at `at`.
fn seal(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = sum.wrapping_neg();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound_and_fits() {
        for vcpus in [1, 2, layout::MAP.max_vcpus] {
            let bytes = build(vcpus, 4);
            assert!(bytes.len() as u64 <= layout::MP_TABLE_SIZE, "{} bytes", bytes.len());
            let (pointer, table) = bytes.split_at(16);
            let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!((sum(pointer), sum(table)), (0, 0));
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            // Entries of 20 bytes for processors and of 8 for all else, as many as the header says.
            let count = u16::from_le_bytes([table[34], table[35]]);
            let (mut at, mut counted) = (44, 0);
            while at < table.len() {
                at += if table[at] == PROCESSOR { 20 } else { 8 };
                counted += 1;
            }
            assert_eq!((at, counted), (table.len(), count));
        }
    }

    #[test]
    fn lines_of_devices_are_levels() {
        let bytes = build(1, 2);
        let flags = |pin: u8| {
            let entry =
                bytes[16 + 44 + 20..].chunks(8).find(|e| e[0] == IO_INTERRUPT && e[7] == pin).unwrap();
            u16::from_le_bytes([entry[2], entry[3]])
        };
        assert_eq!([4, 5, 6, 7].map(flags), [CONFORMING, HIGH_LEVEL, HIGH_LEVEL, CONFORMING]);
    }
}
