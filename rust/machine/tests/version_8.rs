//! The engines' registers and those of version 8 of the snapshot file are the same, in the same order.

use supermachine_engine::arm64::state;
use supermachine_snapshot::v8::registers::{self, Register};

fn ids(table: &[Register]) -> Vec<u32> {
    table.iter().map(|register| register.id).collect()
}

#[test]
fn an_engine_has_the_registers_of_the_file() {
    assert_eq!(ids(&registers::GENERAL), state::GENERAL.map(|register| register.0));
    assert_eq!(ids(&registers::SIMD), (0..32).collect::<Vec<_>>());
    assert_eq!(ids(&registers::SYSTEM), state::SYSTEM.map(|register| u32::from(register.0)));
    assert_eq!(ids(&registers::ICC), state::ICC.map(|register| u32::from(register.0)));
    assert_eq!(ids(&registers::REDISTRIBUTOR), state::REDISTRIBUTOR.map(|register| register.0));
}

#[test]
fn what_an_engine_cannot_do_without_the_file_has() {
    let mut required: Vec<u32> =
        registers::SYSTEM.iter().filter(|register| register.required).map(|register| register.id).collect();
    let mut essential: Vec<u32> = state::ESSENTIAL.iter().map(|register| u32::from(register.0)).collect();
    required.sort_unstable();
    essential.sort_unstable();
    assert_eq!(required, essential);
}
