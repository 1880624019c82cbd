//! What translated code costs at most. In a process of its own, which is measured.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]

mod bare;

use supermachine_soft::Exit;
use supermachine_soft::id::Reg;

use bare::{Machine, RAM};

/// Bytes that this process has resident; what is mapped twice counts once.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn a_guest_that_changes_code_for_ever_costs_bounded_memory() {
    const ROUNDS: u64 = 0x2_49f0;
    let m = Machine::new(1);
    // movz x19, #0x49f0; movk x19, #2, lsl #16; 1: and w9, w19, #0xfff; movz w10, #0x9100, lsl #16;
    // orr w10, w10, w9, lsl #10; adr x11, f; str w10, [x11]; dc cvau, x11; dsb ish; ic ivau, x11; dsb ish; isb; bl f;
    // subs x19, x19, #1; b.ne 1b; hvc #0
    m.put(
        0,
        &[
            0xd289_3e13,
            0xf2a0_0053,
            0x1200_2e69,
            0x52b2_200a,
            0x2a09_294a,
            0x1000_7f6b,
            0xb900_016a,
            0xd50b_7b2b,
            0xd503_3b9f,
            0xd50b_752b,
            0xd503_3b9f,
            0xd503_3fdf,
            0x9400_03f4,
            0xf100_0673,
            0x54ff_fe81,
            0xd400_0002,
        ],
    );
    // f: an ADD of so much; ret
    m.put(0x1004, &[0xd65f_03c0]);
    let mut v = m.vcpu(0, 0, &[]);
    let before = resident();
    assert_eq!(v.run().unwrap(), Exit::Hvc { immediate: 0 });
    assert_eq!(v.reg(Reg::x(0)).unwrap(), (1..=ROUNDS).map(|n| n & 0xfff).sum());
    assert_eq!(v.reg(Reg::PC).unwrap(), RAM + 64);
    let more = resident().saturating_sub(before);
    assert!(more < 48 << 20, "{} MiB more are resident", more >> 20);
}
