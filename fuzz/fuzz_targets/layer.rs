//! Layers: tar headers, pax records and sparse maps, laid over each other and written as one EROFS image.
//!
//! A fuzzer would not find checksums, so the input is taken for what tar members are made of: type flag, flags, the
//! lengths of name, link and data, then these. The checksum, and with a flag the size, are made right.
#![no_main]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use supermachine_image::{Layer, Limits, convert};

const BLOCK: usize = 512;
/// In memory, where there is such a place.
static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = PathBuf::from("/dev/shm");
    let base = if base.is_dir() { base } else { std::env::temp_dir() };
    let place = base.join(format!("supermachine-fuzz-layer-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("a directory of its own");
    place
});

fuzz_target!(|data: &[u8]| {
    let (path, output) = (PLACE.join("layer"), PLACE.join("image"));
    let tar = archive(data);
    let half = tar.len() / 2 / BLOCK * BLOCK;
    std::fs::write(&path, &tar).expect("written");
    let layer = |offset: usize, length: usize| Layer {
        path: path.clone(),
        offset: offset as u64,
        length: length as u64,
        digest: None,
        diff_id: None,
        compression: None,
    };
    let limits = Limits {
        max_uncompressed_bytes: 4 << 20,
        max_entries: 4096,
        max_metadata_bytes: 4 << 20,
        max_file_bytes: 1 << 40,
    };
    for layers in [vec![layer(0, tar.len())], vec![layer(0, half), layer(half, tar.len() - half)]] {
        if let Ok(made) = convert(&layers, &output, &limits, &mut |_| ControlFlow::Continue(())) {
            assert_eq!(std::fs::metadata(&output).expect("published").len(), made.image_bytes);
            std::fs::remove_file(&output).expect("removed");
        }
    }
});

fn archive(mut data: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    while let [kind, flags, name, link, low, high, rest @ ..] = data {
        let mut take = {
            let mut rest = rest;
            move |n: usize| {
                let (taken, left) = rest.split_at(n.min(rest.len()));
                rest = left;
                (taken, left)
            }
        };
        let (name, _) = take(usize::from(*name % 101));
        let (link, _) = take(usize::from(*link % 101));
        let (body, left) = take(usize::from(u16::from_le_bytes([*low, *high]) % 2048));
        data = left;
        let mut header = [0_u8; BLOCK];
        header[..name.len()].copy_from_slice(name);
        header[100..108].copy_from_slice(b"0000755\0");
        for field in [108..116, 116..124] {
            header[field].copy_from_slice(b"0000000\0");
        }
        let size = if flags & 1 == 0 { body.len() } else { body.len().saturating_mul(usize::from(*flags)) };
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = *kind;
        header[157..157 + link.len()].copy_from_slice(link);
        header[257..265].copy_from_slice(if flags & 2 == 0 { b"ustar\x0000" } else { b"ustar  \0" });
        if flags & 4 != 0 {
            // What GNU tar has there: times, a sparse map, the real size.
            let gnu = &body[..body.len().min(BLOCK - 345)];
            header[345..345 + gnu.len()].copy_from_slice(gnu);
        }
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(body);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.extend([0; 2 * BLOCK]);
    tar
}
