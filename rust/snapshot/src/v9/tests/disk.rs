//! Snapshots with a disk: alone, in chains, damaged.
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges, some of which have one")]

use std::io;

use super::*;

const DISK: usize = 64 * PAGE;

/// A disk, and which blocks of it a snapshot is to hold.
struct Held {
    contents: Vec<u8>,
    present: Extents,
    zeros: Extents,
}

impl DiskContents for Held {
    fn bytes(&self) -> u64 {
        self.contents.len() as u64
    }

    fn present(&self) -> Extents {
        self.present.clone()
    }

    fn zeros(&self) -> Extents {
        self.zeros.clone()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.copy_from_slice(&self.contents[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

fn blocks(ranges: &[Range<u64>]) -> Extents {
    ranges.iter().map(|range| range.start * PAGE as u64..range.end * PAGE as u64).collect()
}

fn write_with(metadata: &Metadata, disk: Held, present: Option<&[Range<u64>]>) -> Result<(File, Summary)> {
    let file = nameless();
    let mut writer = Writer::begin(&file, metadata)?;
    writer.set_disk(Box::new(disk))?;
    match present {
        None => writer.write_ram(&sparse_ram())?,
        Some(ranges) => writer.write_ram_pages(&sparse_ram(), ranges)?,
    }
    let summary = writer.finish()?;
    Ok((file, summary))
}

fn contents(seed: u8) -> Vec<u8> {
    (0..DISK).map(|n| (n / 700) as u8 ^ seed).collect()
}

fn whole() -> (File, Summary, Vec<u8>) {
    let mut contents = contents(1);
    let present = blocks(&[0..3, 9..40, 63..64]);
    // A block of zeros that is held, at the very end.
    contents[63 * PAGE..].fill(0);
    let expected = masked(&contents, &present);
    let (file, summary) = write_with(&metadata(), Held { contents, present, zeros: vec![] }, None).unwrap();
    (file, summary, expected)
}

fn masked(contents: &[u8], present: &[Range<u64>]) -> Vec<u8> {
    let mut disk = vec![0; contents.len()];
    for range in present {
        let range = range.start as usize..range.end as usize;
        disk[range.clone()].copy_from_slice(&contents[range]);
    }
    disk
}

/// The disk of a chain, byte by byte.
fn disk_of(files: &[&File]) -> Vec<u8> {
    let snapshots: Vec<_> = files.iter().map(|file| Snapshot::open(*file).unwrap()).collect();
    let chain: Vec<_> = snapshots.iter().collect();
    check_chain(&chain).unwrap();
    let (bytes, pieces) = disk_layers(&chain).unwrap();
    let mut disk = vec![0; bytes as usize];
    for piece in pieces {
        let range = piece.disk.start as usize..piece.disk.end as usize;
        files[piece.layer].read_exact_at(&mut disk[range], piece.at).unwrap();
    }
    disk
}

#[test]
fn a_disk_is_read_as_it_was_and_vouched_for() {
    let (file, summary, expected) = whole();
    let snapshot = Snapshot::open(&file).unwrap();
    assert_eq!((snapshot.minor(), snapshot.id()), (1, summary.id));
    let disk = snapshot.disk().unwrap();
    assert_eq!((disk.bytes, disk.held_bytes()), (DISK as u64, 35 * PAGE as u64));
    assert_eq!(file.metadata().unwrap().len(), summary.file_bytes);
    assert!(disk_of(&[&file]) == expected);
    assert_eq!(snapshot.sections(), metadata().sections);
    verify(&file).unwrap();
    // Without one the file is as it ever was.
    let (plain, _) = write(&metadata(), &sparse_ram(), None).unwrap();
    assert_eq!(Snapshot::open(&plain).unwrap().minor(), 0);
    assert!(Snapshot::open(&plain).unwrap().disk().is_none());
}

#[test]
fn damage_of_the_disk_is_found_and_a_cut_at_once() {
    let (file, summary, _) = whole();
    let bytes = bytes_of(&file);
    let start = bytes.len() - 35 * PAGE;
    for at in [start, start + 17 * PAGE + 5, bytes.len() - 1] {
        file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
        assert!(matches!(verify(&file), Err(Error::Checksum { .. })), "{at}");
        file.write_all_at(&[bytes[at]], at as u64).unwrap();
    }
    for length in [summary.file_bytes - 1, start as u64] {
        file.set_len(length).unwrap();
        assert!(matches!(Snapshot::open(&file), Err(Error::Cut { .. })));
    }
    file.set_len(summary.file_bytes + 1).unwrap();
    assert!(Snapshot::open(&file).unwrap_err().to_string().contains("1 bytes follow"));
}

#[test]
fn each_block_is_that_of_the_last_that_says_something_of_it() {
    let (base, first, mut expected) = whole();
    let diff = |parent: &Summary, present: &[Range<u64>], zeros: &[Range<u64>], seed: u8| {
        let metadata =
            Metadata { identity: Identity { parent: Some(parent.id), ..identity() }, ..metadata() };
        let disk = Held { contents: contents(seed), present: blocks(present), zeros: blocks(zeros) };
        write_with(&metadata, disk, Some(std::slice::from_ref(&(0..PAGE as u64)))).unwrap()
    };
    let (one, second) = diff(&first, &[2..4, 20..22], &[30..50], 2);
    let (two, _) = diff(&second, &[0..1, 35..36], &[21..25], 3);
    for (seed, present, zeros) in [(2, vec![2..4, 20..22], 30..50), (3, vec![0..1, 35..36], 21..25_usize)] {
        for range in present {
            let range = range.start * PAGE..range.end * PAGE;
            expected[range.clone()].copy_from_slice(&contents(seed)[range]);
        }
        expected[zeros.start * PAGE..zeros.end * PAGE].fill(0);
    }
    assert!(disk_of(&[&base, &one, &two]) == expected);
    let out = nameless();
    flatten(&[&base, &one, &two], &out).unwrap();
    assert!(disk_of(&[&out]) == expected);
    verify(&out).unwrap();

    // All of a chain have the disk, or none has.
    let metadata = Metadata { identity: Identity { parent: Some(first.id), ..identity() }, ..metadata() };
    let (plain, _) = write(&metadata, &sparse_ram(), Some(&[])).unwrap();
    let snapshots = [&base, &plain].map(|file| Snapshot::open(file).unwrap());
    let error = check_chain(&snapshots.iter().collect::<Vec<_>>()).unwrap_err();
    assert!(error.to_string().contains("size of the disk"), "{error}");
}

#[test]
fn what_a_disk_cannot_be_is_not_written_and_not_read() {
    let held = |present: Extents, zeros: Extents| Held { contents: contents(1), present, zeros };
    for disk in [
        held(vec![0..17], vec![]),
        held(blocks(&[3..4, 1..2]), vec![]),
        held(blocks(&[0..65]), vec![]),
        Held { contents: vec![1; 100], present: vec![], zeros: vec![] },
        held(vec![], blocks(&[1..2])),
    ] {
        assert!(matches!(write_with(&metadata(), disk, None), Err(Error::Unwritable { .. })));
    }
    let forged = |bytes: u64, lists: &[u8]| {
        let mut data = bytes.to_le_bytes().to_vec();
        data.extend([0; 32]);
        data.extend(lists);
        let sections = [identity().encode().unwrap(), section("disk", 0, true, &data)];
        Snapshot::open(&hostile::forged(2, &hostile::encoded(&sections), RAM as u64)).unwrap_err().to_string()
    };
    let bytes = DISK as u64;
    assert!(forged(bytes, &[0, 0, 0, 0]).contains("flags"), "the header does not tell of it");
    assert!(forged(0, &[0, 0, 0, 0]).contains("whole 4 KiB"));
    assert!(forged(u64::MAX, &[0, 0, 0, 0]).contains("whole 4 KiB"));
    assert!(forged(bytes, &[2, 0, 0, 0, 1, 64]).contains("beyond"));
    assert!(forged(bytes, &[0, 0, 0, 0, 1, 2]).contains("no parent"));
    assert!(forged(bytes, &[9, 0, 0, 0, 1, 2]).contains("section disk 0"));
}
