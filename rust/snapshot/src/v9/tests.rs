//! Round trips, chains, and files that were damaged or made to mislead.

use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::ram::PAGE;
use crate::{Error, Result};

const RAM: usize = 48 * PAGE;

/// A file without a name.
fn nameless() -> File {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = format!("supermachine-v9-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let path: PathBuf = std::env::temp_dir().join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = nameless();
    file.write_all(bytes).unwrap();
    file
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn identity() -> Identity {
    Identity {
        architecture: "aarch64".into(),
        engine: "soft".into(),
        engine_version: 3,
        cpu_features: vec!["lse".into(), "sha2".into()],
        kernel: Digest32::of(b"kernel"),
        initramfs: Digest32::of(b"initramfs"),
        image: Some("sha256:1234".into()),
        devices: vec!["blk".into(), "vsock".into()],
        vcpus: 2,
        memory_bytes: RAM as u64,
        ram_gpa: 0x4000_0000,
        parent: None,
        created_unix_ns: 1_700_000_000_000_000_000,
    }
}

fn section(kind: &str, index: u32, required: bool, data: &[u8]) -> Section {
    Section { kind: kind.into(), index, version: 1, required, data: data.to_vec() }
}

fn metadata() -> Metadata {
    let sections = vec![
        section("vcpu", 0, true, &[1; 100]),
        section("vcpu", 1, true, &[2; 101]),
        section("gic", 0, true, b""),
        section("timings", 0, false, b"optional"),
    ];
    Metadata { identity: identity(), sections }
}

fn write(metadata: &Metadata, ram: &[u8], present: Option<&[Range<u64>]>) -> Result<(File, Summary)> {
    let file = nameless();
    let mut writer = Writer::begin(&file, metadata)?;
    match present {
        None => writer.write_ram(ram)?,
        Some(ranges) => writer.write_ram_pages(ram, ranges)?,
    }
    let summary = writer.finish()?;
    Ok((file, summary))
}

fn ram_of(file: &File) -> Vec<u8> {
    let snapshot = Snapshot::open(file).unwrap();
    bytes_of(file)[snapshot.ram_offset() as usize..].to_vec()
}

fn sparse_ram() -> Vec<u8> {
    let mut ram = vec![0; RAM];
    ram[PAGE..3 * PAGE].fill(5);
    ram[20 * PAGE + 17] = 1;
    ram
}

#[test]
fn what_was_written_is_read() {
    let (file, summary) = write(&metadata(), &sparse_ram(), None).unwrap();
    let snapshot = Snapshot::open(&file).unwrap();
    assert_eq!(*snapshot.identity(), identity());
    assert_eq!(snapshot.sections(), metadata().sections);
    assert_eq!(snapshot.id(), summary.id);
    assert_eq!(snapshot.ram_digest(), summary.ram_digest);
    assert_eq!(snapshot.ram_offset() % RAM_ALIGNMENT, 0);
    assert_eq!(snapshot.present_extents(), None);
    assert_eq!(snapshot.section("vcpu", 1), Some(&metadata().sections[1]));
    assert_eq!(snapshot.section("vcpu", 2), None);
    assert_eq!(ram_of(&file), sparse_ram());
    assert_eq!(summary.data_bytes, 3 * PAGE as u64);
    let found = file.metadata().unwrap();
    assert_eq!(found.len(), summary.file_bytes);
    // Header and sections, three pages of RAM, the last page, and what a file system allots on its own account.
    assert!(found.blocks() * 512 <= RAM as u64 / 2, "{} blocks", found.blocks());
    assert_eq!(verify(&file).unwrap(), Verified { snapshot, data_bytes: 3 * PAGE as u64 });
}

#[test]
fn the_same_state_makes_the_same_file() {
    let (a, b) =
        (write(&metadata(), &sparse_ram(), None).unwrap(), write(&metadata(), &sparse_ram(), None).unwrap());
    assert_eq!(bytes_of(&a.0), bytes_of(&b.0));
    assert_eq!(a.1, b.1);
}

#[test]
fn ram_outside_the_touched_ranges_is_not_looked_at() {
    let file = nameless();
    let mut writer = Writer::begin(&file, &metadata()).unwrap();
    writer.write_ram_within(&[7; RAM], &[PAGE as u64..2 * PAGE as u64, 0..0]).unwrap();
    writer.finish().unwrap();
    let mut expected = vec![0; RAM];
    expected[PAGE..2 * PAGE].fill(7);
    assert_eq!(ram_of(&file), expected);
}

#[test]
fn an_unfinished_file_is_no_snapshot() {
    let file = nameless();
    let mut writer = Writer::begin(&file, &metadata()).unwrap();
    writer.write_ram(&[7; RAM]).unwrap();
    drop(writer);
    assert!(matches!(Snapshot::open(&file), Err(Error::Magic { .. })));
}

#[test]
fn a_file_that_another_has_written_to_is_not_finished() {
    let file = nameless();
    let mut writer = Writer::begin(&file, &metadata()).unwrap();
    writer.write_ram(&sparse_ram()).unwrap();
    file.write_all_at(&[1], RAM_ALIGNMENT + 10 * PAGE as u64).unwrap();
    assert!(matches!(writer.finish(), Err(Error::WrittenDiffers { written: 12288, found: 16384 })));
    assert!(matches!(Snapshot::open(&file), Err(Error::Magic { .. })));
}

#[test]
fn a_section_that_is_required_and_unknown_is_refused_by_name() {
    let (file, _) = write(&metadata(), &sparse_ram(), None).unwrap();
    let snapshot = Snapshot::open(&file).unwrap();
    snapshot.require_known(&["vcpu", "gic"]).unwrap();
    let error = snapshot.require_known(&["vcpu"]).unwrap_err();
    assert!(matches!(&error, Error::UnknownSection { kind, index: 0, version: 1 } if kind == "gic"));
    assert!(error.to_string().contains("\"gic\""), "{error}");
}

#[test]
fn what_cannot_be_read_is_not_written() {
    let refused = |change: &dyn Fn(&mut Metadata)| {
        let mut metadata = metadata();
        change(&mut metadata);
        let result = Writer::begin(&nameless(), &metadata);
        assert!(matches!(result, Err(Error::Unwritable { .. })), "{metadata:?}");
    };
    refused(&|m| m.sections[0].kind = String::new());
    refused(&|m| m.sections[0].kind = "a".repeat(17));
    refused(&|m| m.sections[0].kind = "VCPU".into());
    refused(&|m| m.sections[0].kind = "identity".into());
    refused(&|m| m.sections[0].kind = "ram-extents".into());
    refused(&|m| m.sections[1].index = 0);
    refused(&|m| m.identity.vcpus = 0);
    refused(&|m| m.identity.memory_bytes = 4097);
    refused(&|m| m.identity.memory_bytes = 0);
    refused(&|m| m.identity.ram_gpa = u64::MAX - 4095);
    refused(&|m| m.identity.engine = "a\nb".into());
    refused(&|m| m.identity.engine = "a".repeat(257));

    let mut writer = Writer::begin(&nameless(), &metadata()).unwrap();
    assert!(writer.write_ram(&[0; RAM - PAGE]).is_err());
    assert!(writer.write_ram_pages(&[0; RAM], &[]).is_err(), "a diff without a parent");
    assert!(writer.finish().is_err(), "no RAM");
    let with_parent =
        Metadata { identity: Identity { parent: Some(Digest32::default()), ..identity() }, ..metadata() };
    assert!(Writer::begin(&nameless(), &with_parent).unwrap().write_ram(&[0; RAM]).is_err());
    assert!(Writer::begin(&file_of(b"x"), &metadata()).is_err());
    let many = Metadata {
        sections: vec![section("a", 0, true, &vec![0; MAX_METADATA as usize])],
        identity: identity(),
    };
    assert!(Writer::begin(&nameless(), &many).unwrap().write_ram(&[0; RAM]).is_err());
}

/// A base and two diffs; which pages each changes, and the RAM after the last.
fn chain() -> (Vec<File>, Vec<u8>) {
    let mut ram = sparse_ram();
    let (base, summary) = write(&metadata(), &ram, None).unwrap();
    let mut files = vec![base];
    let mut parent = summary.id;
    for (n, pages) in [vec![0..2, 30..31], vec![1..3, 20..21, 47..48]].into_iter().enumerate() {
        let ranges: Vec<_> = pages
            .iter()
            .map(|range: &Range<u64>| range.start * PAGE as u64..range.end * PAGE as u64)
            .collect();
        for range in &ranges {
            // The second diff makes page 20 zero again.
            let value = if range.start == 20 * PAGE as u64 { 0 } else { 0x10 + n as u8 };
            ram[range.start as usize..range.end as usize].fill(value);
        }
        let mut metadata = metadata();
        metadata.identity.parent = Some(parent);
        metadata.sections[0].data = vec![n as u8];
        let (file, summary) = write(&metadata, &ram, Some(&ranges)).unwrap();
        files.push(file);
        parent = summary.id;
    }
    (files, ram)
}

#[test]
fn a_chain_amounts_to_the_last_state() {
    let (files, ram) = chain();
    for file in &files {
        verify(file).unwrap();
    }
    let snapshots: Vec<_> = files.iter().map(|file| Snapshot::open(file).unwrap()).collect();
    let refs: Vec<_> = snapshots.iter().collect();
    let mut laid: Vec<u8> = vec![];
    for piece in layers(&refs).unwrap() {
        let range = piece.ram.start as usize..piece.ram.end as usize;
        laid.extend(&ram_of(&files[piece.layer])[range]);
    }
    assert!(laid == ram);

    let flat = nameless();
    let summary = flatten(&files.iter().collect::<Vec<_>>(), &flat).unwrap();
    let verified = verify(&flat).unwrap();
    assert_eq!(verified.data_bytes, summary.data_bytes);
    assert!(ram_of(&flat) == ram);
    assert_eq!(*verified.snapshot.identity(), identity());
    assert_eq!(verified.snapshot.sections(), snapshots[2].sections());
    // The same as if it had been captured whole.
    let whole = Metadata { identity: identity(), sections: snapshots[2].sections().to_vec() };
    assert!(bytes_of(&flat) == bytes_of(&write(&whole, &ram, None).unwrap().0));
}

#[test]
fn members_of_a_chain_must_belong_together() {
    let (files, _) = chain();
    let snapshots: Vec<_> = files.iter().map(|file| Snapshot::open(file).unwrap()).collect();
    let [base, first, second] = &snapshots[..] else { panic!() };
    check_chain(&[base]).unwrap();
    check_chain(&[base, first, second]).unwrap();
    for (wrong, at) in [
        (vec![], 0),
        (vec![first], 0),
        (vec![base, second], 1),
        (vec![base, base], 1),
        (vec![base, first, first], 2),
    ] {
        let error = check_chain(&wrong).unwrap_err();
        assert!(matches!(error, Error::Chain { position, .. } if position == at), "{error}");
    }
    let mut other = metadata();
    other.identity.parent = Some(base.id());
    other.identity.devices.swap(0, 1);
    let (file, _) = write(&other, &sparse_ram(), Some(&[])).unwrap();
    let error = check_chain(&[base, &Snapshot::open(&file).unwrap()]).unwrap_err();
    assert!(error.to_string().contains("list of devices"), "{error}");
}

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
fn forged(count: u32, sections: &[u8], memory_bytes: u64) -> File {
    let metadata_bytes = sections.len() as u64;
    let ram_offset = header::Header::ram_offset(metadata_bytes);
    let header = header::Header {
        minor: 7,
        sections: count,
        metadata_bytes,
        ram_offset,
        memory_bytes,
        metadata: Digest32::of(sections),
        ram: Digest32::default(),
    };
    let file = nameless();
    file.write_all_at(&header.encode().0, 0).unwrap();
    file.write_all_at(sections, header::BYTES as u64).unwrap();
    file.set_len(ram_offset + memory_bytes).unwrap();
    file
}

fn encoded(sections: &[Section]) -> Vec<u8> {
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

fn any_text() -> impl Strategy<Value = String> {
    "[ -~äß🦀]{0,40}"
}

fn any_identity() -> impl Strategy<Value = Identity> {
    let texts = || prop::collection::vec(any_text(), 0..6);
    let digest = || any::<[u8; 32]>().prop_map(Digest32);
    let strings = (any_text(), any_text(), texts(), texts(), prop::option::of(any_text()));
    let numbers = (any::<u32>(), 1_u32.., 0_u64..1 << 40, any::<u64>());
    (strings, numbers, digest(), digest()).prop_map(|(strings, numbers, kernel, initramfs)| Identity {
        architecture: strings.0,
        engine: strings.1,
        engine_version: numbers.0,
        cpu_features: strings.2,
        kernel,
        initramfs,
        image: strings.4,
        devices: strings.3,
        vcpus: numbers.1,
        memory_bytes: RAM as u64,
        ram_gpa: numbers.2 * PAGE as u64,
        parent: None,
        created_unix_ns: numbers.3,
    })
}

fn any_sections() -> impl Strategy<Value = Vec<Section>> {
    let data = prop::collection::vec(any::<u8>(), 0..300);
    let one = ("[a-h._-]{1,16}", any::<u32>(), any::<u32>(), any::<bool>(), data)
        .prop_map(|(kind, index, version, required, data)| Section { kind, index, version, required, data });
    prop::collection::vec(one, 0..12).prop_map(|mut sections| {
        sections.sort_by(|a, b| (&a.kind, a.index).cmp(&(&b.kind, b.index)));
        sections.dedup_by(|a, b| a.kind == b.kind && a.index == b.index);
        sections
    })
}

proptest! {
    #[test]
    fn any_state_comes_back(
        identity in any_identity(),
        sections in any_sections(),
        pages in prop::collection::vec((0..48_usize, any::<u8>()), 0..20),
        parent in prop::option::of(any::<[u8; 32]>()),
    ) {
        let mut ram = vec![0; RAM];
        for (page, value) in &pages {
            ram[page * PAGE..(page + 1) * PAGE].fill(*value);
        }
        let parent = parent.map(Digest32);
        let metadata = Metadata { identity: Identity { parent, ..identity }, sections };
        let ranges: Vec<_> = pages.iter().map(|(page, _)| (page * PAGE) as u64..((page + 1) * PAGE) as u64).collect();
        let (file, summary) = write(&metadata, &ram, parent.map(|_| &ranges[..])).unwrap();
        let verified = verify(&file).unwrap();
        prop_assert_eq!(verified.snapshot.identity(), &metadata.identity);
        prop_assert_eq!(verified.snapshot.sections(), &metadata.sections[..]);
        prop_assert_eq!(verified.data_bytes, summary.data_bytes);
        prop_assert_eq!(verified.snapshot.id(), summary.id);
        prop_assert!(ram_of(&file) == ram);
    }

    /// Whatever the bytes after a right header are, the reader says something and goes on living.
    #[test]
    fn arbitrary_sections_do_no_harm(count in 0_u32..4, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Snapshot::open(&forged(count, &bytes, RAM as u64));
    }

    /// As above, but with checksums that are right.
    #[test]
    fn arbitrary_identities_and_extents_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        extents in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut own = Identity { parent: Some(Digest32::default()), ..identity() }.encode().unwrap();
        for (at, value) in changes {
            let at = at.index(own.data.len());
            own.data[at] = value;
        }
        let extents = section("ram-extents", 0, true, &extents);
        if let Ok(found) = Snapshot::open(&forged(2, &encoded(&[own, extents]), RAM as u64)) {
            let whole: u64 = found.present_extents().unwrap().iter().map(|e| e.end - e.start).sum();
            prop_assert!(whole <= RAM as u64);
        }
    }
}
