//! Guests that break the rules lose their device, and nothing else happens.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use common::acts::{Act, to_every_device};
use common::*;
use proptest::prelude::*;
use supermachine_devices::blk::Blk;
use supermachine_devices::console::Console;
use supermachine_devices::rng::Rng;
use supermachine_devices::tail::Tail;
use supermachine_devices::{Transport, vsock};
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const END: u64 = RAM + MEMORY_BYTES as u64;

/// Lets `lie` prepare a chain at descriptor 0 of a block device's queue, and expects the device to be broken by it,
/// and mended by a reset.
fn breaks(name: &str, lie: impl FnOnce(&mut Driver<Blk>)) {
    let mut driver = Driver::start(Blk::new(file(&[7; 4096]), false).unwrap());
    lie(&mut driver);
    driver.notify(0);
    assert!(driver.is_broken(), "{name}");
    assert_eq!(driver.load(0x60) & 2, 2, "{name}: a configuration interrupt");
    assert_eq!(driver.take(0), None, "{name}: nothing came back");
    driver.notify(0);
    driver.initialise();
    assert!(!driver.is_broken());
    driver.add(0, 0, &[readable(BUFFERS, 16), writable(BUFFERS + 0x1000, 513)]);
    driver.put(BUFFERS, &[0; 16]);
    driver.notify(0);
    assert_eq!(driver.take(0), Some((0, 513)), "{name}: the mended device serves");
    assert_eq!(driver.bytes(BUFFERS + 0x1000, 512), [7; 512]);
}

#[test]
fn lies_in_descriptors_break_the_device() {
    breaks("a loop", |driver| {
        driver.describe(0, 0, BUFFERS, 16, NEXT, 1);
        driver.describe(0, 1, BUFFERS, 16, NEXT, 0);
        driver.offer(0, 0);
    });
    breaks("a head beyond the table", |driver| driver.offer(0, 128));
    breaks("a next beyond the table", |driver| {
        driver.describe(0, 0, BUFFERS, 16, NEXT, 999);
        driver.offer(0, 0);
    });
    breaks("an address outside memory", |driver| driver.add(0, 0, &[readable(0x1000, 16)]));
    breaks("a buffer over the end of memory", |driver| driver.add(0, 0, &[readable(END - 8, 16)]));
    breaks("an address that overflows", |driver| driver.add(0, 0, &[readable(u64::MAX - 4, 16)]));
    breaks("a huge length", |driver| driver.add(0, 0, &[readable(BUFFERS, u32::MAX)]));
    breaks("huge lengths in sum", |driver| {
        driver.add(0, 0, &[[writable(BUFFERS, 16 << 20); 9].as_slice()].concat());
    });
    breaks("nothing to write a status to", |driver| driver.add(0, 0, &[readable(BUFFERS, 16)]));
    breaks("half a header", |driver| {
        driver.add(0, 0, &[readable(BUFFERS, 15), writable(BUFFERS, 1)]);
    });
    breaks("writable before readable", |driver| {
        driver.add(0, 0, &[writable(BUFFERS, 512), readable(BUFFERS, 16)]);
    });
    for (name, length) in [("an empty indirect table", 0), ("a crooked indirect table", 17)] {
        breaks(name, |driver| {
            driver.describe(0, 0, BUFFERS, length, INDIRECT, 0);
            driver.offer(0, 0);
        });
    }
    breaks("an indirect table in an indirect table", |driver| {
        driver.put(
            BUFFERS,
            &[BUFFERS.to_le_bytes().as_slice(), &[16, 0, 0, 0, INDIRECT as u8, 0, 0, 0]].concat(),
        );
        driver.describe(0, 0, BUFFERS, 16, INDIRECT, 0);
        driver.offer(0, 0);
    });
    breaks("an indirect table outside memory", |driver| {
        driver.describe(0, 0, END, 16, INDIRECT, 0);
        driver.offer(0, 0);
    });
    breaks("more offered than the queue holds", |driver| {
        driver.describe(0, 0, BUFFERS, 16, WRITE, 0);
        driver.memory.write_obj(129_u16, GuestAddress(rings(0)[1] + 2)).unwrap();
    });
}

#[test]
fn impossible_queues_are_not_taken() {
    let configure = |size: u32, desc: u64, avail: u64, used: u64| {
        let driver = Driver::start(Rng);
        driver.store(0x70, 0);
        for status in [1, 3] {
            driver.store(0x70, status);
        }
        driver.store(0x24, 1);
        driver.store(0x20, 1);
        driver.store(0x70, 11);
        driver.store(0x38, size);
        for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
            driver.store(register, address as u32);
            driver.store(register + 4, (address >> 32) as u32);
        }
        driver.store(0x44, 1);
        driver.store(0x70, 15);
        driver.notify(0);
        (driver.load(0x44), driver.is_broken())
    };
    let [desc, avail, used] = rings(0);
    assert_eq!(configure(16, desc, avail, used), (1, false));
    for size in [0, 3, 32, 0x1_0010] {
        assert!(configure(size, desc, avail, used).1, "size {size}");
    }
    for (desc, avail, used) in [
        (desc + 8, avail, used),
        (desc, avail + 1, used),
        (desc, avail, used + 2),
        (END, avail, used),
        (desc, END - 4, used),
        (desc, avail, END - 8),
        (u64::MAX - 15, avail, used),
    ] {
        assert_eq!(configure(16, desc, avail, used), (0, true), "{desc:#x} {avail:#x} {used:#x}");
    }
}

#[test]
fn random_numbers_and_console_output_pass() {
    let mut driver = Driver::start(Rng);
    driver.add(0, 0, &[writable(BUFFERS, 64)]);
    driver.add(0, 1, &[writable(BUFFERS + 0x100, 1 << 20)]);
    driver.notify(0);
    assert_eq!(driver.take(0), Some((0, 64)));
    assert_eq!(driver.take(0), Some((1, 4096)), "one request is bounded");
    assert_ne!(driver.bytes(BUFFERS, 64), driver.bytes(BUFFERS + 0x100, 64));

    let tail = Tail::default();
    let mut driver = Driver::start(Console(tail.clone()));
    driver.put(BUFFERS, b"hello, world");
    driver.add(1, 0, &[readable(BUFFERS, 5), readable(BUFFERS + 5, 7)]);
    driver.notify(1);
    assert_eq!(driver.take(1), Some((0, 0)));
    assert_eq!(tail.text(), "hello, world");
}

fn act() -> impl Strategy<Value = Act> {
    let address = prop_oneof![
        6 => RAM..RAM + 0x2_0000,
        2 => BUFFERS..END,
        1 => END - 32..END + 32,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![4 => 0..5000_u32, 1 => any::<u32>()];
    prop_oneof![
        2 => (0..0x120_u64, any::<u32>()).prop_map(|(offset, value)| Act::Store(offset, value)),
        2 => (0..0x40_u64, 0..64_u32).prop_map(|(register, value)| Act::Store(4 * register, value)),
        1 => (0..0x220_u64, 0..9_usize).prop_map(|(offset, length)| Act::Load(offset, length)),
        6 => (0..16_u16, address.clone(), length, 0..8_u16, 0..17_u16)
            .prop_map(|(n, address, length, flags, next)| Act::Describe(n, address, length, flags, next)),
        6 => (0..17_u16).prop_map(Act::Offer),
        2 => (address, prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Act::Scribble(at, bytes)),
        8 => (0..4_u32).prop_map(Act::Notify),
        1 => Just(Act::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_guest_does_is_more_than_its_own_loss(acts in prop::collection::vec(act(), 1..120)) {
        to_every_device(&acts);
    }
}

#[test]
fn a_transport_is_sent_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Transport<vsock::Vsock>>();
}
