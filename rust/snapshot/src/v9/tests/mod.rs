//! What is written and read, alone and in chains.

mod disk;
mod hostile;
mod random;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;
use crate::ram::PAGE;
use crate::testing::{bytes_of, file_of, nameless};
use crate::{Error, Result};

const RAM: usize = 48 * PAGE;

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
fn a_file_that_nobody_keeps_can_be_read_and_is_refused_by_who_verifies_it() {
    let file = nameless();
    let mut writer = Writer::begin(&file, &metadata()).unwrap();
    writer.write_ram(&sparse_ram()).unwrap();
    let summary = writer.finish_unkept().unwrap();
    let snapshot = Snapshot::open(&file).unwrap();
    assert_eq!((snapshot.id(), snapshot.sections()), (summary.id, &metadata().sections[..]));
    assert_eq!(ram_of(&file), sparse_ram());
    assert_eq!(summary.data_bytes, 3 * PAGE as u64);
    assert!(verify(&file).is_err());
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
