//! Packets from a guest into vsock: ports, operations, credit and lengths as the bytes say, to connections that the
//! host has made and to those that the guest asks for.
//!
//! Each packet is 20 bytes: operation, type, length of data, two ports out of few, flags, buffer and credit. Now and
//! then the host's ends are read, written or closed.
#![no_main]

#[path = "../../rust/devices/tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use common::{BUFFERS, Driver, line, memory, readable, writable};
use libfuzzer_sys::fuzz_target;
use supermachine_devices::vsock::Host;

const RX: usize = 0;
const TX: usize = 1;
const TX_AT: u64 = BUFFERS + 0x20_0000;
const RX_BUFFERS: u16 = 8;
const RX_BYTES: u32 = 4096;
/// A port that the host listens on, and one of the guest's.
const LISTENS: u32 = 1024;
/// Packets of one input.
const MAX_PACKETS: usize = 64;

fuzz_target!(
    init: {
        // As Rust's own `main` does, which there is none of here: a write to a socket that has gone is an error.
        // SAFETY: there is no other thread yet.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    },
    |data: &[u8]| {
    let ram = memory();
    let (line, level) = line();
    let (host, transport) = Host::start(3, ram.clone(), line).unwrap();
    let ends: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
    let accepted = ends.clone();
    host.listen(LISTENS, Box::new(move |stream| accepted.lock().unwrap().extend(stream.map(Into::into))));
    let mut driver = Driver::with(transport, ram, level);
    for n in 0..RX_BUFFERS {
        driver.add(RX, n, &[writable(BUFFERS + u64::from(n) * u64::from(RX_BYTES), RX_BYTES)]);
    }
    driver.notify(RX);
    for packet in data.chunks_exact(20).take(MAX_PACKETS) {
        let [what, op, kind, host_port, guest_port, words @ ..] = packet else { unreachable!() };
        let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().unwrap());
        match what % 8 {
            0 => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                host.connect(u32::from(*guest_port), theirs.into());
                ends.lock().unwrap().push(ours);
            }
            1 => drop(ends.lock().unwrap().pop()),
            2 => {
                for end in ends.lock().unwrap().iter_mut() {
                    end.set_nonblocking(true).unwrap();
                    let _ = end.read(&mut [0; 4096]);
                    let _ = end.write(words);
                }
            }
            3 => host.reset_connections(),
            _ => {
                // Ports as the host gives them out start high; small ones are of those that listen.
                let host_port =
                    if host_port % 4 == 0 { LISTENS } else { word(11).wrapping_add(u32::from(*host_port)) };
                let length = word(3) % 2048;
                let mut bytes = Vec::new();
                bytes.extend(3_u64.to_le_bytes());
                bytes.extend(if kind & 0x80 != 0 { 3_u64 } else { 2 }.to_le_bytes());
                for word in [u32::from(*guest_port), host_port] {
                    bytes.extend(word.to_le_bytes());
                }
                // Now and then a length that is not the data's.
                bytes.extend(if kind & 0x40 != 0 { word(3) } else { length }.to_le_bytes());
                bytes.extend(u16::from(kind % 4).to_le_bytes());
                bytes.extend(u16::from(op % 10).to_le_bytes());
                bytes.extend(u32::from(words[0] % 4).to_le_bytes());
                bytes.extend(word(7).to_le_bytes());
                bytes.extend(word(1).to_le_bytes());
                bytes.resize(bytes.len() + length as usize, 7);
                driver.put(TX_AT, &bytes);
                if driver.is_broken() {
                    return;
                }
                driver.add(TX, 0, &[readable(TX_AT, bytes.len() as u32)]);
                driver.notify(TX);
                driver.take(TX);
            }
        }
        while let Some((head, length)) = driver.take(RX) {
            assert!(length <= RX_BYTES);
            driver.offer(RX, head);
            driver.notify(RX);
        }
    }
    host.close();
}
);
