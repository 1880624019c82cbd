//! A disk against an array of bytes.

use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;

const BLOCKS: u64 = 1200;
const BYTES: u64 = BLOCKS * BLOCK;

fn file() -> File {
    tempfile::tempfile().unwrap()
}

/// Layers of two files, with gaps.
fn below(model: &mut [u8]) -> Below {
    let mut pieces = Vec::new();
    let mut files = Vec::new();
    for (number, runs) in [(0_usize, [(0, 3), (10, 500)]), (1, [(700, 1), (1100, 100)])] {
        let made = file();
        let mut at = 8192;
        for (first, count) in runs {
            let disk = first * BLOCK..(first + count) * BLOCK;
            let contents: Vec<u8> = (0..count * BLOCK).map(|n| (n / 512 + first) as u8 | 1).collect();
            made.write_all_at(&contents, at).unwrap();
            model[disk.start as usize..disk.end as usize].copy_from_slice(&contents);
            pieces.push(Piece { disk: disk.clone(), file: number, at });
            at += disk.end - disk.start;
        }
        files.push(Arc::new(made));
    }
    Below { pieces, files }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64),
    Discard(u64, u64),
    Seal(Scope, bool),
    /// What was sealed is read and let go.
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    const SECTORS: u64 = BYTES / 512;
    let step = prop_oneof![
        6 => (0..SECTORS, 1..600_usize, any::<u8>()).prop_map(|(at, n, byte)| {
            Step::Write(at * 512, n.min((SECTORS - at) as usize) * 512, byte)
        }),
        2 => (0..SECTORS, 1..3000_u64).prop_map(|(at, n)| Step::Zero(at * 512, n.min(SECTORS - at) * 512)),
        2 => (0..SECTORS, 1..3000_u64).prop_map(|(at, n)| Step::Discard(at * 512, n.min(SECTORS - at) * 512)),
        2 => (any::<bool>(), prop::bool::weighted(0.3)).prop_map(|(whole, last)| {
            Step::Seal(if whole { Scope::Whole } else { Scope::Own }, last)
        }),
        2 => Just(Step::Release),
    ];
    prop::collection::vec(step, 1..40)
}

/// The disk that layers and what was sealed over them amount to.
fn assembled(sealed: &Sealed, layers: &[u8]) -> Vec<u8> {
    let mut disk = layers.to_vec();
    sealed.zeros().iter().for_each(|range| disk[range.start as usize..range.end as usize].fill(0));
    for range in sealed.present() {
        sealed.read(&mut disk[range.start as usize..range.end as usize], range.start).unwrap();
    }
    disk
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn it_is_the_disk_that_was_written_and_what_was_sealed_stays(steps in steps()) {
        let mut model = vec![0; BYTES as usize];
        let below = below(&mut model);
        let layers = model.clone();
        let disk = Scratch::new(file(), BYTES, below);
        let mut sealed: Vec<(Sealed, Scope, Vec<u8>)> = Vec::new();
        for step in steps {
            match step {
                Step::Write(at, length, byte) => {
                    let data: Vec<u8> = (0..length).map(|n| byte.wrapping_add((n / 512) as u8)).collect();
                    disk.write(&data, at).unwrap();
                    model[at as usize..at as usize + length].copy_from_slice(&data);
                }
                Step::Zero(at, length) => {
                    disk.zero(at, length).unwrap();
                    model[at as usize..(at + length) as usize].fill(0);
                }
                Step::Discard(at, length) => {
                    disk.discard(at, length);
                    let (start, end) = (at.next_multiple_of(BLOCK), (at + length) / BLOCK * BLOCK);
                    if start < end {
                        model[start as usize..end as usize].fill(0);
                    }
                }
                // One capture at a time.
                Step::Seal(_, false) if sealed.iter().any(|(sealed, ..)| sealed.held.is_some()) => {}
                Step::Seal(scope, last) => sealed.push((disk.seal(scope, last), scope, model.clone())),
                Step::Release => {
                    for (sealed, scope, expected) in sealed.drain(..) {
                        let start = if scope == Scope::Own { layers.clone() } else { vec![0; BYTES as usize] };
                        prop_assert!(assembled(&sealed, &start) == expected);
                        prop_assert!(scope == Scope::Own || sealed.zeros().is_empty());
                    }
                }
            }
        }
        let mut found = vec![1; BYTES as usize];
        disk.read(&mut found, 0).unwrap();
        prop_assert!(found == model);
        for (sealed, scope, expected) in sealed {
            let start = if scope == Scope::Own { layers.clone() } else { vec![0; BYTES as usize] };
            prop_assert!(assembled(&sealed, &start) == expected);
        }
    }
}

#[test]
fn what_is_discarded_or_written_over_gives_its_room_back() {
    let own = file();
    let disk = Scratch::new(own.try_clone().unwrap(), BYTES, Below::default());
    let taken = || own.metadata().unwrap().blocks() * 512;
    let data = vec![7; 256 * BLOCK as usize];
    disk.write(&data, 0).unwrap();
    assert_eq!(taken(), 256 * BLOCK);
    disk.discard(0, 255 * BLOCK);
    assert_eq!(taken(), BLOCK);
    for _ in 0..10 {
        disk.write(&data, 300 * BLOCK).unwrap();
    }
    assert_eq!(taken(), 257 * BLOCK);
    // A capture keeps what it has, and no longer than it takes.
    let sealed = disk.seal(Scope::Own, false);
    disk.write(&data, 300 * BLOCK).unwrap();
    disk.write(&data, 300 * BLOCK).unwrap();
    assert_eq!(taken(), (257 + 256) * BLOCK);
    drop(sealed);
    assert_eq!(taken(), 257 * BLOCK);
    // Clones keep theirs.
    drop(disk.seal(Scope::Whole, true));
    disk.zero(0, BYTES).unwrap();
    assert_eq!(taken(), 257 * BLOCK);
}

#[test]
fn a_terabyte_takes_no_memory_and_its_ext4_next_to_no_room() {
    let own = file();
    let disk = Scratch::new(own.try_clone().unwrap(), 1 << 40, Below::default());
    let identity = crate::ext4::Identity { uuid: [7; 16], created: 1 };
    crate::ext4::write(1 << 40, &identity, crate::ext4::Life::Lasting, &mut |data, offset| {
        disk.write(data, offset)
    })
    .unwrap();
    assert!(own.metadata().unwrap().blocks() * 512 <= 2 << 20);
    assert!(disk.lock().map.entries().count() < 900);
    // Sealed, it is the file that would have been made.
    let plain = file();
    crate::ext4::make(&plain, 1 << 40, &identity).unwrap();
    let sealed = disk.seal(Scope::Whole, false);
    for range in sealed.present() {
        let (mut one, mut other) =
            (vec![0; (range.end - range.start) as usize], vec![1; (range.end - range.start) as usize]);
        sealed.read(&mut one, range.start).unwrap();
        plain.read_exact_at(&mut other, range.start).unwrap();
        assert!(one == other);
    }
}

#[test]
fn a_write_that_fails_changes_nothing() {
    let own = file();
    let read_only = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&own))).unwrap();
    let disk = Scratch::new(read_only, BYTES, Below::default());
    assert!(disk.write(&[9; 8192], BLOCK).is_err());
    let mut found = [1; 8192];
    disk.read(&mut found, BLOCK).unwrap();
    assert_eq!(found, [0; 8192]);
    assert_eq!(disk.lock().map.entries().count(), 0);
}
