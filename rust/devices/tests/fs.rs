//! The file server's device, with the server that every machine has at first.

mod common;

use common::*;
use supermachine_devices::fs::Fs;

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
