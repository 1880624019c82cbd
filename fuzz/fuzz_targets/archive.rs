//! Archives of images as they come: the index of a tar, and what is compressed as a whole.
#![no_main]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use supermachine_image::{Limits, decompress_archive, index_tar};

static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = PathBuf::from("/dev/shm");
    let base = if base.is_dir() { base } else { std::env::temp_dir() };
    let place = base.join(format!("supermachine-fuzz-archive-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("a directory of its own");
    place
});

fuzz_target!(|data: &[u8]| {
    let (path, output) = (PLACE.join("archive"), PLACE.join("plain"));
    std::fs::write(&path, data).expect("written");
    for member in index_tar(&path).unwrap_or_default() {
        assert!(member.offset <= data.len() as u64);
    }
    let limits = Limits { max_uncompressed_bytes: 1 << 20, ..Limits::default() };
    if decompress_archive(&path, &output, &limits, &mut |_| ControlFlow::Continue(())).is_ok() {
        assert!(std::fs::metadata(&output).expect("published").len() <= limits.max_uncompressed_bytes);
        std::fs::remove_file(&output).expect("removed");
    }
});
