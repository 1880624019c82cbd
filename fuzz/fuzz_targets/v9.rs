//! Version 9, with checksums made right: a fuzzer would not find them, and an attacker computes them.
//!
//! The first byte says what is made right: nothing, the header, or header and sections. In the last case what follows
//! are sections: kind (an index below), flags, version, a u16 length, data; and whatever is left is RAM.
#![no_main]

use libfuzzer_sys::fuzz_target;
use supermachine_snapshot::v9::{self, MAGIC, RAM_ALIGNMENT, Snapshot};

const HEADER: usize = 160;
const KINDS: [&[u8]; 6] = [b"identity", b"ram-extents", b"vcpu", b"device", b"Wrong", b""];
const PAGE: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else { return };
    let file = match how % 3 {
        0 => data.to_vec(),
        1 => with_header(data),
        _ => with_sections(data),
    };
    let source = &file[..];
    if let Ok(snapshot) = Snapshot::open(&source) {
        let memory_bytes = snapshot.identity().memory_bytes;
        assert_eq!(snapshot.ram_offset() + memory_bytes, file.len() as u64);
        let mut end = 0;
        for extent in snapshot.present_extents().unwrap_or_default() {
            assert!(end <= extent.start && extent.start < extent.end && extent.end <= memory_bytes);
            end = extent.end;
        }
        let _ = snapshot.require_known(&["vcpu"]);
        let _ = v9::layers(&[&snapshot]);
    }
    let _ = v9::verify(&source);
});

/// The file with a header whose digest is right.
fn with_header(data: &[u8]) -> Vec<u8> {
    let mut file = data.to_vec();
    if file.len() >= HEADER {
        file[..8].copy_from_slice(&MAGIC);
        let id = blake3::hash(&file[..128]);
        file[128..HEADER].copy_from_slice(id.as_bytes());
    }
    file
}

fn with_sections(mut data: &[u8]) -> Vec<u8> {
    let mut sections = vec![];
    let mut count = 0_u32;
    while let [kind, flags, version, low, high, rest @ ..] = data {
        if *kind == 0xff {
            break;
        }
        let length = rest.len().min(usize::from(u16::from_le_bytes([*low, *high])));
        let (content, rest) = rest.split_at(length);
        let start = sections.len();
        sections.extend(KINDS[usize::from(*kind) % KINDS.len()]);
        sections.resize(start + 16, 0);
        sections.extend((u32::from(*kind) / KINDS.len() as u32).to_le_bytes());
        sections.extend(u32::from(*version).to_le_bytes());
        sections.extend((length as u64).to_le_bytes());
        sections.extend(u32::from(*flags).to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&sections[start..]), content);
        sections.extend(checksum.to_le_bytes());
        sections.extend(content);
        sections.resize(sections.len().next_multiple_of(8), 0);
        count += 1;
        data = rest;
    }
    let ram_offset = (HEADER + sections.len()).next_multiple_of(RAM_ALIGNMENT as usize);
    // RAM of as many pages as the identity says, which the input must have found out: 1 to 8.
    let pages = 1 + data.last().map_or(0, |byte| usize::from(byte % 8));
    let memory_bytes = pages * PAGE;
    let mut file = vec![];
    file.extend(MAGIC);
    file.extend(0_u32.to_le_bytes());
    file.extend(count.to_le_bytes());
    for word in [sections.len(), ram_offset, memory_bytes, 0] {
        file.extend((word as u64).to_le_bytes());
    }
    file.extend(blake3::hash(&sections).as_bytes());
    file.extend([0; 32 + 16]);
    let id = blake3::hash(&file);
    file.extend(id.as_bytes());
    file.extend(&sections);
    file.resize(ram_offset + memory_bytes, 0);
    file
}
