//! Exports: the table of frames, the frames, and what is in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use supermachine_snapshot::export::Export;
use supermachine_snapshot::{Format, Source, v8, v9};

fuzz_target!(|data: &[u8]| {
    let Ok(export) = Export::open(&data) else { return };
    let mut byte = [0];
    let length = export.length().expect("known");
    let _ = export.fill_at(&mut byte, length / 2);
    assert!(export.fill_at(&mut byte, length).is_err());
    match Format::of(&export) {
        Ok(Format::V8) => drop(v8::Snapshot::read(&export)),
        Ok(Format::V9) => drop(v9::Snapshot::open(&export)),
        _ => {}
    }
});
