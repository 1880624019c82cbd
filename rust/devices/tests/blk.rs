//! The block device, driven through its registers.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::os::unix::fs::FileExt;

use common::*;
use supermachine_devices::Transport;
use supermachine_devices::balloon::Balloon;
use supermachine_devices::blk::{Blk, FileBacking};
use supermachine_devices::persist::RestoreError;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const READ: u32 = 0;
const OUT: u32 = 1;

fn contents() -> Vec<u8> {
    (0..300 * 512_u32).map(|n| (n / 512 * 7 + n) as u8).collect()
}

/// One request; its status and the bytes written.
fn request(driver: &mut Driver<Blk>, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.put(HEADER, &header);
    driver.put(STATUS, &[0xff]);
    let buffers: Vec<_> =
        [&[readable(HEADER, 16)], data, &[writable(STATUS, 1)]].concat().into_iter().collect();
    driver.add(0, 0, &buffers);
    driver.notify(0);
    let (head, length) = driver.take(0).expect("requests are served at once");
    assert_eq!(head, 0);
    (driver.bytes(STATUS, 1)[0], length)
}

#[test]
fn reads_give_the_files_bytes_in_any_segmentation() {
    let contents = contents();
    let mut driver = Driver::start(Blk::new(file(&contents), true).unwrap());
    assert_eq!(driver.load(0x100), 300);
    assert_eq!(request(&mut driver, READ, 3, &[writable(DATA, 1024)]), (0, 1025));
    assert_eq!(driver.bytes(DATA, 1024), &contents[3 * 512..5 * 512]);
    let parts = [writable(DATA, 100), writable(DATA + 0x8000, 411), writable(DATA + 0x9000, 1)];
    assert_eq!(request(&mut driver, READ, 299, &parts), (0, 513));
    let got = [driver.bytes(DATA, 100), driver.bytes(DATA + 0x8000, 411), driver.bytes(DATA + 0x9000, 1)];
    assert_eq!(got.concat(), &contents[299 * 512..]);
    let all = writable(DATA, 300 * 512);
    assert_eq!(request(&mut driver, READ, 0, &[all]), (0, 300 * 512 + 1));
    assert_eq!(driver.bytes(DATA, 300 * 512), contents);
}

#[test]
fn writes_reach_the_file() {
    let disk = file(&contents());
    let mut driver = Driver::start(Blk::new(disk.try_clone().unwrap(), false).unwrap());
    driver.put(DATA, &[0x5a; 1024]);
    assert_eq!(request(&mut driver, OUT, 10, &[readable(DATA, 1024)]), (0, 1));
    assert_eq!(request(&mut driver, 4, 0, &[]), (0, 1), "flush");
    let mut got = vec![0; 300 * 512];
    disk.read_exact_at(&mut got, 0).unwrap();
    let mut expected = contents();
    expected[5120..6144].fill(0x5a);
    assert_eq!(got, expected);
}

#[test]
fn what_cannot_be_served_has_its_status_and_changes_nothing() {
    let disk = file(&contents());
    let mut driver = Driver::start(Blk::new(disk.try_clone().unwrap(), true).unwrap());
    assert_eq!(request(&mut driver, READ, 300, &[writable(DATA, 512)]).0, 1, "beyond the end");
    assert_eq!(request(&mut driver, READ, u64::MAX, &[writable(DATA, 512)]).0, 1);
    assert_eq!(request(&mut driver, READ, 0, &[writable(DATA, 511)]).0, 1, "half a sector");
    assert_eq!(request(&mut driver, OUT, 0, &[readable(DATA, 512)]).0, 1, "read-only");
    assert_eq!(request(&mut driver, 77, 0, &[]).0, 2, "unknown");
    assert_eq!(request(&mut driver, 8, 0, &[writable(DATA, 20)]).0, 0, "the id");
    disk.set_len(512).unwrap();
    assert_eq!(request(&mut driver, READ, 5, &[writable(DATA, 512)]).0, 1, "a file that shrank");
    assert!(!driver.is_broken());
    let mut got = vec![0; 512];
    disk.read_exact_at(&mut got, 0).unwrap();
    assert_eq!(got, &contents()[..512]);
}

#[test]
fn the_interrupt_is_high_until_it_is_acknowledged() {
    use std::sync::atomic::Ordering::SeqCst;
    let mut driver = Driver::start(Blk::new(file(&contents()), true).unwrap());
    assert!(!driver.level.load(SeqCst));
    request(&mut driver, READ, 0, &[writable(DATA, 512)]);
    assert!(driver.level.load(SeqCst));
    assert_eq!(driver.load(0x60), 1);
    driver.store(0x64, 1);
    assert!(!driver.level.load(SeqCst));
    // VRING_AVAIL_F_NO_INTERRUPT.
    driver.put(rings(0)[1], &[1]);
    request(&mut driver, READ, 0, &[writable(DATA, 512)]);
    assert!(!driver.level.load(SeqCst));
}

#[test]
fn a_restored_transport_goes_on_where_the_saved_one_was() {
    let contents = contents();
    let mut driver = Driver::start(Blk::new(file(&contents), true).unwrap());
    for sector in 0..200 {
        assert_eq!(request(&mut driver, READ, sector, &[writable(DATA, 512)]).0, 0);
    }
    let state = driver.lock().state();
    let (line, level) = line();
    let blk = || Blk::new(file(&contents), true).unwrap();
    let mut transport = Transport::new(blk(), driver.memory.clone(), line);
    transport.restore(&state).unwrap();
    assert_eq!(transport.state(), state);
    assert!(level.load(std::sync::atomic::Ordering::SeqCst), "the interrupt was not acknowledged yet");
    *driver.lock() = transport;
    assert_eq!(request(&mut driver, READ, 7, &[writable(DATA, 512)]).0, 0);
    assert_eq!(driver.bytes(DATA, 512), &contents[7 * 512..8 * 512]);

    let refuse = |change: &dyn Fn(&mut supermachine_devices::persist::TransportState)| {
        let mut bad = state.clone();
        change(&mut bad);
        let mut transport = Transport::new(blk(), driver.memory.clone(), common::line().0);
        transport.restore(&bad).unwrap_err()
    };
    assert!(matches!(refuse(&|s| s.driver_features = 1 << 60), RestoreError::Features { .. }));
    assert!(matches!(refuse(&|s| s.queues.clear()), RestoreError::QueueCount { found: 0, expected: 1 }));
    for size in [0, 3, 256] {
        assert!(matches!(refuse(&|s| s.queues[0].size = size), RestoreError::QueueSize { .. }));
    }
    assert!(matches!(refuse(&|s| s.queues[0].desc += 1), RestoreError::QueueAddress { queue: 0 }));
    assert!(matches!(refuse(&|s| s.queues[0].used = u64::MAX - 3), RestoreError::QueueAddress { queue: 0 }));
    assert!(matches!(refuse(&|s| s.queues[0].last_avail_idx += 200), RestoreError::QueueIndex { queue: 0 }));
    assert!(matches!(refuse(&|s| s.queues[0].next_used_idx += 200), RestoreError::QueueIndex { queue: 0 }));
}

#[test]
fn a_slot_is_empty_until_a_disk_comes_and_the_driver_hears_of_both() {
    let mut driver = Driver::start(Blk::slot());
    assert_eq!(driver.load(0x100), 0);
    assert_eq!(request(&mut driver, READ, 0, &[writable(DATA, 512)]).0, 1, "there is nothing");
    let disk = file(&contents());
    let insert = |driver: &Driver<Blk>, read_only: bool| {
        let backing = Box::new(FileBacking::new(disk.try_clone().unwrap()).unwrap());
        driver.lock().with(|device, rings| {
            device.insert(backing, read_only, rings);
            Ok(())
        });
    };
    driver.store(0x64, 3);
    let generation = driver.load(0xfc);
    insert(&driver, false);
    assert_eq!((driver.load(0x100), driver.load(0x60)), (300, 2));
    assert_ne!(driver.load(0xfc), generation);
    assert_eq!(request(&mut driver, READ, 1, &[writable(DATA, 512)]), (0, 513));
    assert_eq!(driver.bytes(DATA, 512), &contents()[512..1024]);
    // WRITE_ZEROES of two sectors from 4 on, then DISCARD.
    driver.put(DATA, &[&4_u64.to_le_bytes()[..], &[2, 0, 0, 0, 1, 0, 0, 0]].concat());
    assert_eq!(request(&mut driver, 13, 0, &[readable(DATA, 16)]), (0, 1));
    let mut zeros = [1; 1024];
    disk.read_exact_at(&mut zeros, 4 * 512).unwrap();
    assert_eq!(zeros, [0; 1024]);
    driver.put(DATA + 12, &[0]);
    assert_eq!(request(&mut driver, 11, 0, &[readable(DATA, 16)]), (0, 1));
    // Beyond the end, and two segments at once.
    driver.put(DATA, &299_u64.to_le_bytes());
    assert_eq!(request(&mut driver, 13, 0, &[readable(DATA, 16)]).0, 1);
    assert_eq!(request(&mut driver, 13, 0, &[readable(DATA, 32)]).0, 2);
    insert(&driver, true);
    assert_eq!(request(&mut driver, OUT, 0, &[readable(DATA, 512)]).0, 1, "a read-only disk");
    driver.store(0x64, 3);
    assert!(driver.lock().with(|device, rings| Ok(device.eject(rings))).is_some());
    assert_eq!((driver.load(0x100), driver.load(0x60)), (0, 2));
}

#[test]
fn pages_that_a_guest_reports_are_released_before_it_gets_them_back() {
    let released = std::sync::Arc::new(std::sync::Mutex::new(vec![]));
    let told = released.clone();
    let mut driver = Driver::start(Balloon::new(Box::new(move |address, length| {
        told.lock().unwrap().push((address, length));
    })));
    driver.add(2, 0, &[writable(RAM + (2 << 20), 2 << 20), writable(RAM + (8 << 20), 4 << 20)]);
    driver.notify(2);
    assert_eq!(driver.take(2), Some((0, 0)));
    assert_eq!(*released.lock().unwrap(), [(RAM + (2 << 20), 2 << 20), (RAM + (8 << 20), 4 << 20)]);
    // What it would inflate the balloon with stays: it is not asked for.
    driver.add(0, 0, &[readable(BUFFERS, 4)]);
    driver.notify(0);
    assert_eq!(driver.take(0), Some((0, 0)));
    assert_eq!(released.lock().unwrap().len(), 2);
}
