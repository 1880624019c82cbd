//! The file server's device, with the server that every machine has at first.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use supermachine_devices::fs::{Fs, Served, Server};
use supermachine_devices::{MmioDevice, Transport};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

const REQUEST: usize = 1;
const DATA: u64 = BUFFERS + 0x1000;
const ANSWER: u64 = BUFFERS + 0x2000;

/// One FUSE request of the root's; its answer's error and body.
fn ask(driver: &mut Driver<Fs>, opcode: u32, node: u64, body: &[u8]) -> Option<(i32, Vec<u8>)> {
    let mut header = [0; 40];
    header[..4].copy_from_slice(&(40 + body.len() as u32).to_le_bytes());
    header[4..8].copy_from_slice(&opcode.to_le_bytes());
    header[8..16].copy_from_slice(&77_u64.to_le_bytes());
    header[16..24].copy_from_slice(&node.to_le_bytes());
    driver.put(DATA, &[&header[..], body].concat());
    // The driver gives header and arguments as pieces of their own.
    let request = [readable(DATA, 40), readable(DATA + 40, body.len() as u32)];
    driver.add(REQUEST, 0, &[&request[..], &[writable(ANSWER, 16), writable(ANSWER + 16, 4000)]].concat());
    driver.notify(REQUEST);
    let (_, length) = driver.take(REQUEST).expect("requests are served at once");
    if length == 0 {
        return None;
    }
    let answer = driver.bytes(ANSWER, length as usize);
    assert_eq!((&answer[..4], &answer[8..16]), (&length.to_le_bytes()[..], &77_u64.to_le_bytes()[..]));
    Some((i32::from_le_bytes(answer[4..8].try_into().unwrap()), answer[16..].to_vec()))
}

#[test]
fn there_is_an_empty_directory_that_nobody_writes_to() {
    let mut driver = Driver::start(Fs::new("supermachine"));
    let mut tag = [0; 4];
    driver.lock().read(0x100, &mut tag);
    assert_eq!(&tag, b"supe");
    assert_eq!(driver.load(0x100 + 36), 1, "request queues");
    // INIT of protocol 7.39.
    let init: Vec<u8> = [7, 39, 131_072, 0_u32].iter().flat_map(|word| word.to_le_bytes()).collect();
    let (error, body) = ask(&mut driver, 26, 0, &init).unwrap();
    assert_eq!((error, body.len(), &body[..8]), (0, 64, &[7, 0, 0, 0, 31, 0, 0, 0][..]));
    let (error, body) = ask(&mut driver, 3, 1, &[0; 16]).unwrap();
    assert_eq!((error, body.len()), (0, 104));
    assert_eq!(u32::from_le_bytes(body[76..80].try_into().unwrap()), 0o040_555);
    assert_eq!(ask(&mut driver, 1, 1, b"name\0"), Some((-2, vec![])));
    assert_eq!(ask(&mut driver, 3, 2, &[0; 16]), Some((-2, vec![])), "no other node");
    assert_eq!(ask(&mut driver, 27, 1, &[0; 8]), Some((0, vec![0; 16])));
    assert_eq!(ask(&mut driver, 28, 1, &[0; 40]), Some((0, vec![])));
    // MKDIR.
    assert_eq!(ask(&mut driver, 9, 1, b"\0\0\0\0\0\0\0\0d\0"), Some((-30, vec![])));
    assert_eq!(ask(&mut driver, 2, 1, &[0; 8]), None, "FORGET has no answer");
}

/// Answers with nothing but a header: a FORGET is not waited for, and a SETLKW waits until it may be done.
struct Scripted(Arc<AtomicBool>);

impl Server for Scripted {
    fn serve(&mut self, request: &[VolatileSlice<'_>], _: &[VolatileSlice<'_>]) -> Served {
        let mut header = [0; 8];
        request[0].copy_to(&mut header[..]);
        match u32::from_le_bytes(header[4..].try_into().unwrap()) {
            2 => Served::Unawaited,
            33 if !self.0.load(Ordering::SeqCst) => Served::Later,
            _ => Served::Answered(16),
        }
    }
}

/// A driver that asks for interrupts by index (VIRTIO_F_EVENT_IDX), as Linux does.
fn scripted() -> (Driver<Fs>, Arc<AtomicBool>) {
    let may = Arc::new(AtomicBool::new(false));
    let mut driver = Driver::start(Fs::new("supermachine"));
    driver.features = 1 << 29;
    driver.initialise();
    driver.lock().device.set_server(Box::new(Scripted(may.clone())));
    (driver, may)
}

fn send(driver: &mut Driver<Fs>, queue: usize, first: u16, opcode: u32) {
    let mut header = [0; 40];
    header[4..8].copy_from_slice(&opcode.to_le_bytes());
    let at = DATA + 0x100 * u64::from(first);
    driver.put(at, &header);
    driver.add(queue, first, &[readable(at, 40), writable(ANSWER, 16)]);
    driver.notify(queue);
}

/// Takes all that came back, as an interrupt's handler does, and waits for the next one.
fn look(driver: &mut Driver<Fs>, queue: usize) -> usize {
    while driver.level.load(Ordering::SeqCst) {
        driver.store(0x64, driver.load(0x60));
    }
    let taken = std::iter::from_fn(|| driver.take(queue)).count();
    let [_, avail, used] = rings(queue);
    let index: u16 = driver.memory.load(GuestAddress(used + 2), Ordering::Acquire).unwrap();
    let event = GuestAddress(avail + 4 + 2 * u64::from(driver.sizes[queue]));
    driver.memory.write_obj(index, event).unwrap();
    taken
}

#[test]
fn what_nobody_waits_for_comes_back_with_the_next_answer_or_when_it_is_much() {
    let (mut driver, _) = scripted();
    for n in 0..3 {
        send(&mut driver, REQUEST, 2 * n, 2);
    }
    assert!(!driver.level.load(Ordering::SeqCst));
    send(&mut driver, REQUEST, 6, 3);
    assert!(
        driver.level.load(Ordering::SeqCst),
        "the answer's place is not the first that the guest has not seen"
    );
    assert_eq!(look(&mut driver, REQUEST), 4);
    let told = (0..32).find(|n| {
        send(&mut driver, REQUEST, 2 * n, 2);
        driver.level.load(Ordering::SeqCst)
    });
    assert!(told.is_some_and(|n| (1..16).contains(&n)), "{told:?}");
}

#[test]
fn a_restored_guest_is_told_of_what_it_was_not_told_of() {
    let (mut driver, _) = scripted();
    send(&mut driver, REQUEST, 0, 2);
    let state = driver.lock().state();
    let (line, level) = line();
    let mut restored = Transport::new(Fs::new("supermachine"), driver.memory.clone(), line);
    restored.restore(&state).unwrap();
    restored.resume();
    assert!(level.load(Ordering::SeqCst));
    // One that has seen all is not.
    look(&mut driver, REQUEST);
    let state = driver.lock().state();
    let (line, level) = common::line();
    let mut restored = Transport::new(Fs::new("supermachine"), driver.memory.clone(), line);
    restored.restore(&state).unwrap();
    restored.resume();
    assert!(!level.load(Ordering::SeqCst));
}

#[test]
fn what_waits_is_answered_when_it_is_served_again() {
    let (mut driver, may) = scripted();
    send(&mut driver, REQUEST, 0, 33);
    send(&mut driver, REQUEST, 2, 3);
    assert_eq!(look(&mut driver, REQUEST), 1);
    assert!(driver.lock().with(|device, rings| device.retry(rings)), "it waits still");
    assert_eq!(look(&mut driver, REQUEST), 0);
    may.store(true, Ordering::SeqCst);
    assert!(!driver.lock().with(|device, rings| device.retry(rings)));
    assert!(driver.level.load(Ordering::SeqCst));
    assert_eq!(driver.take(REQUEST), Some((0, 16)));
    // A driver that starts over waits for nothing.
    may.store(false, Ordering::SeqCst);
    send(&mut driver, REQUEST, 0, 33);
    driver.initialise();
    assert!(!driver.lock().with(|device, rings| device.retry(rings)));
}

/// A guest that offers one chain over and over, whose request waits each time.
#[test]
fn what_waits_is_bounded() {
    let (mut driver, _) = scripted();
    for _ in 0..600 {
        send(&mut driver, REQUEST, 0, 33);
    }
    assert!(driver.is_broken());
}
