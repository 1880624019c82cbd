//! Any state, and any bytes.

use proptest::prelude::*;

use super::hostile::{encoded, forged};
use super::*;

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

    /// Diffs of random pages, each with a value of its own, are worth what they were made from.
    #[test]
    fn any_chain_amounts_to_the_last_state(
        pages in prop::collection::vec((0..48_usize, any::<u8>()), 0..20),
        diffs in prop::collection::vec(prop::collection::vec((0..48_usize, any::<u8>()), 0..12), 1..4),
    ) {
        let mut ram = vec![0; RAM];
        let mut files = vec![];
        let mut parent = None;
        for pages in std::iter::once(&pages).chain(&diffs) {
            for (page, value) in pages {
                ram[page * PAGE..(page + 1) * PAGE].fill(*value);
            }
            let ranges: Vec<_> =
                pages.iter().map(|(page, _)| (page * PAGE) as u64..((page + 1) * PAGE) as u64).collect();
            let metadata = Metadata { identity: Identity { parent, ..identity() }, sections: vec![] };
            let (file, summary) = write(&metadata, &ram, parent.map(|_| &ranges[..])).unwrap();
            parent = Some(summary.id);
            files.push(file);
        }
        let flat = nameless();
        flatten(&files.iter().collect::<Vec<_>>(), &flat).unwrap();
        prop_assert!(ram_of(&flat) == ram);
        let snapshots: Vec<_> = files.iter().map(|file| Snapshot::open(file).unwrap()).collect();
        let mut laid: Vec<u8> = vec![];
        for piece in layers(&snapshots.iter().collect::<Vec<_>>()).unwrap() {
            laid.extend(&ram_of(&files[piece.layer])[piece.ram.start as usize..piece.ram.end as usize]);
        }
        prop_assert!(laid == ram);
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
