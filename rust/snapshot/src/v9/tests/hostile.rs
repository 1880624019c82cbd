//! Files that were damaged, cut off or made to mislead.

use super::*;

/// A small file, what it holds, and where its RAM begins.
fn small() -> (Vec<u8>, Snapshot) {
    let mut metadata = metadata();
    metadata.identity.memory_bytes = 2 * PAGE as u64;
    metadata.identity.parent = Some(Digest32::of(b"parent"));
    let mut ram = vec![0; 2 * PAGE];
    ram[..PAGE].fill(9);
    let (file, _) = write(&metadata, &ram, Some(&[0..PAGE as u64, 0..0])).unwrap();
    let snapshot = Snapshot::open(&file).unwrap();
    (bytes_of(&file), snapshot)
}

#[test]
fn every_flipped_byte_is_noticed() {
    let (bytes, snapshot) = small();
    let metadata_end = metadata_end(&bytes);
    let ram = snapshot.ram_offset() as usize;
    // All of what is looked at when a snapshot is opened; of the padding and the RAM, a part.
    let some = (metadata_end..bytes.len()).step_by(97);
    let file = file_of(&bytes);
    for at in (0..metadata_end).chain(some).chain([ram - 1, ram, bytes.len() - 1]) {
        for flip in [1, 0x80, 0xff] {
            file.write_all_at(&[bytes[at] ^ flip], at as u64).unwrap();
            match Snapshot::open(&file) {
                Ok(found) => assert!(at >= metadata_end && found == snapshot, "byte {at} is not noticed"),
                Err(error) => assert!(at < metadata_end && !error.to_string().is_empty()),
            }
            let error = verify(&file).unwrap_err();
            assert!(!error.to_string().is_empty());
        }
        file.write_all_at(&[bytes[at]], at as u64).unwrap();
    }
    verify(&file).unwrap();
}

#[test]
fn a_damaged_section_is_named() {
    let (mut bytes, _) = small();
    let data = bytes.windows(100).position(|window| window == [1; 100]).unwrap();
    bytes[data + 50] ^= 1;
    // Digests of sections and header that fit what is there now, as if it had been damaged before it was written.
    let end = metadata_end(&bytes);
    let digest = Digest32::of(&bytes[header::BYTES..end]);
    bytes[48..80].copy_from_slice(&digest.0);
    let id = Digest32::of(&bytes[..128]);
    bytes[128..160].copy_from_slice(&id.0);
    let error = Snapshot::open(&file_of(&bytes)).unwrap_err();
    assert!(matches!(&error, Error::Checksum { section, .. } if section == "section vcpu 0"), "{error}");
}

fn metadata_end(bytes: &[u8]) -> usize {
    header::BYTES + u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize
}

#[test]
fn every_cut_and_every_addition_is_noticed() {
    let (bytes, _) = small();
    let file = file_of(&bytes);
    let metadata_end = metadata_end(&bytes);
    for length in (metadata_end..bytes.len()).step_by(97).chain(0..metadata_end).chain([bytes.len() - 1]) {
        file.set_len(length as u64).unwrap();
        let error = Snapshot::open(&file).unwrap_err();
        assert!(matches!(error, Error::Cut { .. } | Error::Checksum { .. }), "{length}: {error}");
        file.set_len(0).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    }
    file.set_len(bytes.len() as u64 + 1).unwrap();
    let error = Snapshot::open(&file).unwrap_err();
    assert!(error.to_string().contains("1 bytes follow"), "{error}");
}

/// A file whose checksums are right and whose sections are these.
pub(super) fn forged(count: u32, sections: &[u8], memory_bytes: u64) -> File {
    let metadata_bytes = sections.len() as u64;
    let ram_offset = header::Header::ram_offset(metadata_bytes);
    let header = header::Header {
        minor: 7,
        sections: count,
        metadata_bytes,
        ram_offset,
        memory_bytes,
        disk: false,
        metadata: Digest32::of(sections),
        ram: Digest32::default(),
    };
    let file = nameless();
    file.write_all_at(&header.encode().0, 0).unwrap();
    file.write_all_at(sections, header::BYTES as u64).unwrap();
    file.set_len(ram_offset + memory_bytes).unwrap();
    file
}

pub(super) fn encoded(sections: &[Section]) -> Vec<u8> {
    let mut out = vec![];
    sections.iter().for_each(|section| section.encode(&mut out).unwrap());
    out
}

#[test]
fn files_made_to_mislead_are_refused() {
    let ram = RAM as u64;
    let own = || identity().encode().unwrap();
    let diff = || Identity { parent: Some(Digest32::default()), ..identity() }.encode().unwrap();
    let extents = |data: &[u8]| section("ram-extents", 0, true, data);
    let refused = |what: &str, count: u32, sections: &[Section], memory_bytes: u64| {
        let error = Snapshot::open(&forged(count, &encoded(sections), memory_bytes)).expect_err(what);
        assert!(matches!(error, Error::Invalid { .. } | Error::Cut { .. }), "{what}: {error}");
    };
    Snapshot::open(&forged(1, &encoded(&[own()]), ram)).unwrap();
    Snapshot::open(&forged(2, &encoded(&[diff(), extents(&[0, 48])]), ram)).unwrap();
    refused("no section", 0, &[], ram);
    refused("a count too large", 2, &[own()], ram);
    refused("a count too small", 0, &[own()], ram);
    refused("no identity", 1, &[section("a", 0, false, &[])], ram);
    refused("the identity in another place", 2, &[section("a", 0, false, &[]), own()], ram);
    refused("two identities", 2, &[own(), own()], ram);
    refused(
        "the same section twice",
        3,
        &[own(), section("a", 1, false, &[]), section("a", 1, true, &[1])],
        ram,
    );
    refused("another amount of RAM", 1, &[own()], ram + PAGE as u64);
    refused("a diff without extents", 1, &[diff()], ram);
    refused("extents without a parent", 2, &[own(), extents(&[])], ram);
    refused("extents in another place", 3, &[diff(), section("a", 0, false, &[]), extents(&[])], ram);
    refused("extents beyond RAM", 2, &[diff(), extents(&[0, 49])], ram);
    refused("extents far beyond RAM", 2, &[diff(), extents(&[&[0xff; 9][..], &[1, 1]].concat())], ram);
    refused("half an extent", 2, &[diff(), extents(&[1])], ram);
    refused("an empty extent", 2, &[diff(), extents(&[1, 0])], ram);
    refused("extents that touch", 2, &[diff(), extents(&[1, 1, 0, 1])], ram);
    refused("a later version", 1, &[Section { version: 2, ..own() }], ram);
    refused(
        "more data in the identity",
        1,
        &[Section { data: [own().data, vec![0]].concat(), ..own() }],
        ram,
    );
    let mut huge = encoded(&[own(), section("a", 0, false, &[])]);
    let head = huge.len() - section::HEAD_BYTES;
    huge[head + 24..head + 32].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = Snapshot::open(&forged(2, &huge, ram)).unwrap_err();
    assert!(error.to_string().contains("the sections end before"), "{error}");
}

#[test]
fn a_diff_with_more_pages_than_it_says_is_not_verified() {
    let (bytes, snapshot) = small();
    let file = file_of(&bytes);
    file.write_all_at(&[1], snapshot.ram_offset() + PAGE as u64 + 5).unwrap();
    let error = verify(&file).unwrap_err();
    assert!(error.to_string().contains("does not hold"), "{error}");
}

#[test]
fn other_files_are_told_by_their_beginning() {
    for (bytes, found) in [(&b""[..], "cut off"), (b"PK\x03\x04", "PK"), (b"SMSNAP\x08\0", "version 8")] {
        let error = Snapshot::open(&file_of(bytes)).unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
    }
    let mut version_8 = [0; 4096];
    version_8[..8].copy_from_slice(b"SMSNAP\x08\0");
    let error = Snapshot::open(&file_of(&version_8)).unwrap_err();
    assert!(error.to_string().contains("version 8"), "{error}");
}
