//! Version 8: whatever is read must make the same bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use supermachine_snapshot::v8::Snapshot;

fuzz_target!(|data: &[u8]| {
    if let Ok((snapshot, ram_offset)) = Snapshot::read_with_ram_offset(&data) {
        let metadata = snapshot.metadata().expect("what was read can be written");
        assert!(metadata == data[..ram_offset as usize]);
    }
});
