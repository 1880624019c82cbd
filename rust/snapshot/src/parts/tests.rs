#![expect(clippy::single_range_in_vec_init, reason = "runs of pages are ranges")]

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::kernel::tests::image;
use super::*;
use crate::testing::{bytes_of, file_of, nameless};
use crate::{Digest32, Error, ram, v9};

const MOST: u64 = 1 << 30;

/// A snapshot whose page `n` of RAM is filled with `pages[n]`.
fn snapshot(pages: &[u8]) -> (File, u64) {
    let memory_bytes = (pages.len() * PAGE) as u64;
    let identity = v9::Identity { vcpus: 1, memory_bytes, ..v9::Identity::default() };
    let ram: Vec<u8> = pages.iter().flat_map(|byte| [*byte; PAGE]).collect();
    let file = nameless();
    let mut writer = v9::Writer::begin(&file, &v9::Metadata { identity, sections: vec![] }).unwrap();
    writer.write_ram(&ram).unwrap();
    (file, writer.finish().unwrap().ram_offset)
}

struct Artifact {
    table: Table,
    blobs: Vec<Vec<u8>>,
}

/// As the Python package packs a snapshot: metadata, hot pages, the rest.
fn packed(file: &File, offset: u64, hot: &[Range<u64>], base: Option<(&File, u64)>) -> Artifact {
    packed_against(None, file, offset, hot, base)
}

fn packed_against(
    kernel: Option<&Kernel>,
    file: &File,
    offset: u64,
    hot: &[Range<u64>],
    base: Option<(&File, u64)>,
) -> Artifact {
    let length = bytes_of(file).len() as u64;
    let ram = Wanted { origin: offset, length: length - offset, kernel, ..Wanted::default() };
    let mut sorted = hot.to_vec();
    sorted.sort_unstable_by_key(|run| run.start);
    let wanted = [
        Wanted { name: "meta", length: offset, ..Wanted::default() },
        Wanted { name: "ram.hot", order: Some(hot), first: true, ..ram.clone() },
        Wanted { name: "ram", except: &sorted, base, ..ram },
    ];
    let (mut parts, mut blobs) = (vec![], vec![]);
    for wanted in wanted {
        let out = nameless();
        let packed = pack(file, &wanted, &out, &mut ram::patient).unwrap();
        let blob = bytes_of(&out);
        assert_eq!(packed.part.packed_bytes(), blob.len() as u64);
        parts.push(packed.part);
        blobs.push(blob);
    }
    Artifact { table: Table { parts }, blobs }
}

/// Frames one by one, the last first.
fn unpacked_with(
    kernel: Option<&[u8]>,
    artifact: &Artifact,
    base: Option<(&File, u64)>,
) -> (File, Option<Digest32>) {
    let table = Table::decode(&artifact.table.encode(), MOST).unwrap();
    assert_eq!(table, artifact.table);
    let out = nameless();
    let unpacker = Unpacker::new(table, vec![out.try_clone().unwrap()]).unwrap();
    if let Some(kernel) = kernel {
        unpacker.with_kernel("kernel".into(), kernel.to_vec());
    }
    for (number, (part, blob)) in artifact.table.parts.iter().zip(&artifact.blobs).enumerate().rev() {
        // Each page that is sent is in one frame, which is found from it.
        let held = (0..part.frames.len()).flat_map(|frame| {
            let pages = unpacker.pages(number, frame..frame + 1).into_iter().flatten();
            pages.map(move |page| (page, frame))
        });
        let held: Vec<_> = held.collect();
        let first = part.origin / PAGE as u64;
        assert!(held.iter().map(|(page, _)| page - first).eq(part.runs.iter().cloned().flatten()));
        assert!(
            held.iter().all(|(page, frame)| unpacker.frame_of(part.file, *page) == Some((number, *frame)))
        );
        for (n, frame) in part.frames.iter().enumerate().rev() {
            let bytes = &blob[frame.at as usize..][..frame.bytes as usize];
            assert_eq!(unpacker.frames(number, n, bytes).unwrap(), 1);
        }
        if let Some((base, origin)) = base {
            unpacker.copy_base(number, base, origin).unwrap();
        }
    }
    let id = unpacker.finish().unwrap();
    (out, id)
}

fn pages() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![3 => Just(0_u8), 2 => 1_u8..4], 16..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_packed_is_unpacked(
        pages in pages(),
        changed in prop::collection::vec((0_usize..300, 0_u8..4), 0..40),
        hot in prop::collection::vec((0_u64..300, 1_u64..9), 0..6),
    ) {
        let count = pages.len() as u64;
        let mut taken = vec![false; pages.len()];
        let mut order = vec![];
        for (start, length) in hot {
            let run = start.min(count)..(start + length).min(count);
            if !run.is_empty() && !taken[run.start as usize..run.end as usize].contains(&true) {
                taken[run.start as usize..run.end as usize].fill(true);
                order.push(run);
            }
        }
        let (base, base_offset) = snapshot(&pages);
        let mut other = pages.clone();
        for (page, byte) in changed {
            other[page % pages.len()] = byte;
        }
        let (file, offset) = snapshot(&other);
        // A kernel that is somewhere among them, and something else.
        let rest: Vec<u8> = pages.iter().skip(3).take(90).flat_map(|byte| [byte ^ u8::from(*byte > 2); PAGE]).collect();
        let kernel_file = image(3 * PAGE as u64 - 64, &rest);
        let kernel = Kernel::read("kernel".as_ref(), kernel_file.clone()).unwrap();
        for base in [None, Some((&base, base_offset))] {
            for kernel in [None, Some(&kernel)] {
                let artifact = packed_against(kernel, &file, offset, &order, base);
                prop_assert_eq!(&artifact.blobs, &packed_against(kernel, &file, offset, &order, base).blobs);
                let (out, id) = unpacked_with(kernel.map(|_| &kernel_file[..]), &artifact, base);
                prop_assert!(bytes_of(&out) == bytes_of(&file));
                prop_assert_eq!(id, Some(v9::Snapshot::open(&file).unwrap().id()));
            }
        }
    }

    #[test]
    fn a_table_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(table) = Table::decode(&bytes, MOST) {
            prop_assert_eq!(table.encode(), bytes);
        }
    }
}

#[test]
fn every_changed_byte_of_a_blob_is_found() {
    let pages: Vec<u8> = (0..200).map(|n| (n % 7) as u8).collect();
    let (file, offset) = snapshot(&pages);
    let artifact = packed(&file, offset, &[3..9], None);
    let table = Table::decode(&artifact.table.encode(), MOST).unwrap();
    let unpacker = Unpacker::new(table, vec![nameless()]).unwrap();
    for (number, blob) in artifact.blobs.iter().enumerate() {
        for at in (0..blob.len()).step_by(1 + blob.len() / 300) {
            let mut bytes = blob.clone();
            bytes[at] ^= 1;
            let error = unpacker.frames(number, 0, &bytes).unwrap_err();
            assert!(matches!(error, Error::Checksum { .. }), "{error}");
        }
        for length in (1..blob.len()).step_by(1 + blob.len() / 50) {
            assert!(
                unpacker.frames(number, 0, &blob[..length]).is_err()
                    || length_is_of_frames(&artifact, number, length)
            );
        }
        assert!(unpacker.frames(number, 1_000_000, blob).is_err());
    }
    assert!(unpacker.frames(9, 0, b"x").is_err());
}

fn length_is_of_frames(artifact: &Artifact, part: usize, length: usize) -> bool {
    artifact.table.parts[part].frames.iter().any(|frame| frame.at == length as u64)
}

#[test]
fn a_frame_that_unpacks_to_more_or_less_is_refused() {
    for pages in [1, FRAME_PAGES as usize + 1, 4096] {
        let bomb = zstd::bulk::compress(&vec![7; pages * PAGE], 3).unwrap();
        let frame = Frame { at: 0, bytes: bomb.len() as u32, digest: Digest32::of(&bomb) };
        let part = Part {
            name: "ram".into(),
            file: 0,
            origin: 0,
            length: 64 * PAGE as u64,
            against_kernel: false,
            runs: vec![0..2],
            frames: vec![frame],
            base: vec![],
        };
        let unpacker = Unpacker::new(Table { parts: vec![part] }, vec![nameless()]).unwrap();
        assert!(matches!(unpacker.frames(0, 0, &bomb), Err(Error::Invalid { .. })));
    }
}

#[test]
fn tables_that_lie_are_refused() {
    let (file, offset) = snapshot(&[1, 2, 0, 3]);
    let good = packed(&file, offset, &[], None).table;
    let refused = |change: &dyn Fn(&mut Table), reason: &str| {
        let mut table = good.clone();
        change(&mut table);
        let error = Table::decode(&table.encode(), MOST).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    refused(&|table| table.parts[2].runs = vec![0..2, 1..2], "twice");
    refused(&|table| table.parts[2].base = vec![1..2], "twice");
    refused(&|table| table.parts[2].origin = 0, "twice");
    refused(&|table| table.parts[2].runs = vec![0..3, 4..5], "outside its part");
    refused(&|table| table.parts[2].length = MOST, "is the limit");
    refused(&|table| table.parts[2].length = u64::MAX / PAGE as u64 * PAGE as u64, "");
    refused(&|table| table.parts[2].frames[0].bytes = 1 << 30, "too long");
    refused(&|table| table.parts.clear(), "parts");
    refused(&|table| table.parts = vec![table.parts[0].clone(); 17], "parts");
    let bytes = good.encode();
    assert!(Table::decode(&[&bytes[..], &[0]].concat(), MOST).is_err());
    for length in 0..bytes.len() {
        assert!(Table::decode(&bytes[..length], MOST).is_err());
    }
    let file = file_of(&[0; 8]);
    file.write_all_at(b"x", 0).unwrap();
    assert!(Unpacker::new(good, vec![]).is_err());
}

/// Bytes that do not pack.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn pages_that_are_nearly_the_kernels_are_small_and_need_that_kernel() {
    let text = noise(0x9e37_79b9_7f4a_7c15, 100 * PAGE);
    let (kernel_file, other_file) = (image(0, &text[64..]), image(0, &noise(77, 100 * PAGE)));
    let mut ram = kernel_file.clone();
    // As alternatives and static keys do.
    (0..ram.len()).step_by(1500).for_each(|at| ram[at] ^= 0x55);
    ram.resize(128 * PAGE, 9);
    let identity = v9::Identity { vcpus: 1, memory_bytes: ram.len() as u64, ..v9::Identity::default() };
    let file = nameless();
    let mut writer = v9::Writer::begin(&file, &v9::Metadata { identity, sections: vec![] }).unwrap();
    writer.write_ram(&ram).unwrap();
    let offset = writer.finish().unwrap().ram_offset;

    let read = |file: &[u8]| Kernel::read("kernel".as_ref(), file.to_vec()).unwrap();
    let hot = [90..95, 3..40, 110..120];
    let bytes = |artifact: &Artifact| artifact.blobs[1].len() + artifact.blobs[2].len();
    let alone = packed(&file, offset, &hot, None);
    let against = packed_against(Some(&read(&kernel_file)), &file, offset, &hot, None);
    assert!(bytes(&alone) > 100 * PAGE && bytes(&against) < 2 * PAGE, "{}", bytes(&against));
    let (out, _) = unpacked_with(Some(&kernel_file), &against, None);
    assert!(bytes_of(&out) == bytes_of(&file));

    let wanted = Wanted { name: "x", origin: offset, length: ram.len() as u64, ..Wanted::default() };
    let alike = |kernel: &Kernel| {
        let wanted = Wanted { kernel: Some(kernel), ..wanted.clone() };
        pack(&file, &wanted, &nameless(), &mut ram::patient).unwrap().alike
    };
    assert_eq!((alike(&read(&kernel_file)), alike(&read(&other_file))), (100, 0));

    // With another one, or none, nothing is written.
    for kernel in [None, Some(&other_file[..]), Some(b"no kernel"), Some(&image(PAGE as u64, &text[64..]))] {
        let out = nameless();
        let table = Table::decode(&against.table.encode(), MOST).unwrap();
        let unpacker = Unpacker::new(table, vec![out.try_clone().unwrap()]).unwrap();
        if let Some(kernel) = kernel {
            unpacker.with_kernel("kernel".into(), kernel.to_vec());
        }
        for part in [1, 2] {
            let error = unpacker.frames(part, 0, &against.blobs[part]).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        assert!(bytes_of(&out).iter().all(|byte| *byte == 0));
    }
}

/// A root image whose block `n` is filled with `blocks[n]`.
fn root_of(blocks: &[u8]) -> File {
    file_of(&blocks.iter().flat_map(|byte| [*byte; PAGE]).collect::<Vec<_>>())
}

#[test]
fn pages_that_are_blocks_of_the_root_image_are_taken_from_there() {
    let mut pages: Vec<u8> = (0..200).map(|n| 1 + (n % 150) as u8).collect();
    pages[20..40].fill(0);
    let (file, offset) = snapshot(&pages);
    let (base, base_offset) = snapshot(&[&[0; 100][..], &pages[100..110], &[0; 90]].concat());
    // Blocks 0 to 99 have bytes 150 down to 51; and a block of zeros.
    let blocks: Vec<u8> = (51..=150).rev().chain([0, 77]).collect();
    let root = root_of(&blocks);
    let hot = [190..200, 60..70, 3..9];
    let find = |base| {
        let end = bytes_of(&file).len() as u64;
        Same::find(&file, offset..end, &root, &hot, base, &mut ram::patient).unwrap()
    };
    let [first, rest] = find(None);
    // 190..200 have 41 to 50, which the image has not; 60..70 have 61 to 70.
    assert_eq!(first.pages.iter().cloned().flatten().collect::<Vec<_>>(), (60..70).rev().collect::<Vec<_>>());
    assert_eq!(first.blocks, [80..90]);
    let count = |runs: &Runs| runs.iter().map(|run| run.end - run.start).sum::<u64>();
    assert_eq!((count(&rest.pages), count(&rest.blocks)), (90, 90));
    let [again, less] = find(Some((&base, base_offset)));
    assert_eq!((again, count(&less.pages)), (first.clone(), 80));

    // The part of these pages: all from the image, none of another image, and the rest from frames where one differs.
    let length = bytes_of(&file).len() as u64 - offset;
    let order = Some(&rest.pages[..]);
    let wanted = Wanted { name: "ram.root", origin: offset, length, order, ..Wanted::default() };
    let out = nameless();
    let packed = pack(&file, &wanted, &out, &mut ram::patient).unwrap();
    let said = rest.describe(&file, offset).unwrap();
    assert_eq!(packed.part.frames.len(), 2);
    let unpacker = |out: &File| {
        let table = Table { parts: vec![packed.part.clone()] };
        Unpacker::new(table, vec![out.try_clone().unwrap()]).unwrap()
    };
    let all = |out: &File| {
        let (out, file) = (bytes_of(out), bytes_of(&file));
        rest.pages.iter().cloned().flatten().all(|page| {
            let at = offset as usize + page as usize * PAGE;
            out[at..at + PAGE] == file[at..at + PAGE]
        })
    };
    let target = nameless();
    assert_eq!(unpacker(&target).from_root(0, &root, &said).unwrap(), 2);
    assert!(all(&target));
    let mut other = blocks.clone();
    other[blocks.len() - 10] ^= 1;
    for (image, taken) in [(root_of(&other), 1), (root_of(&blocks[..95]), 1), (root_of(&[]), 0)] {
        let target = nameless();
        let unpacker = unpacker(&target);
        assert_eq!(unpacker.from_root(0, &image, &said).unwrap(), taken);
        assert!(!all(&target));
        let at = packed.part.frames[taken].at as usize;
        unpacker.frames(0, taken, &bytes_of(&out)[at..]).unwrap();
        assert!(all(&target));
    }
    for length in 0..said.len() {
        assert!(unpacker(&nameless()).from_root(0, &root, &said[..length]).is_err());
    }
    assert!(unpacker(&nameless()).from_root(0, &root, &first.describe(&file, offset).unwrap()).is_err());
}
