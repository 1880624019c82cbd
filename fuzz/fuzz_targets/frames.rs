//! Frames of every protocol, as whoever reads them does: of agents, workers and policy processes, and of those that
//! command them. What is read can be written, and reads as the same.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use supermachine_proto::frame::{self, Decoder, MAX_FRAME};
use supermachine_proto::{agent, netd, worker};

fn reads<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8], piece: usize) {
    let mut decoder = Decoder::default();
    let mut stream = data;
    for part in data.chunks(piece) {
        decoder.push(part);
        loop {
            // Both readers agree on every message.
            let whole = match decoder.next::<T>() {
                Ok(None) => break,
                Ok(Some(message)) => message,
                Err(_) => {
                    assert!(frame::read::<T>(&mut stream).is_err());
                    return;
                }
            };
            let read = frame::read::<T>(&mut stream).unwrap().unwrap();
            assert_eq!(read, whole);
            let mut bytes = vec![];
            // One that came in a frame of the longest kind may need a longer one when it is written anew.
            if frame::encode(&whole, &mut bytes).is_ok() {
                assert_eq!(frame::read::<T>(&mut &bytes[..]).unwrap().unwrap(), whole);
            }
        }
        assert!(decoder.pending() <= MAX_FRAME + 4 + piece);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some(([which, piece], data)) = data.split_first_chunk() else { return };
    let piece = usize::from(*piece) + 1;
    match which % 12 {
        0 => reads::<agent::BootEvent>(data, piece),
        1 => reads::<agent::BootCommand>(data, piece),
        2 => reads::<agent::Request>(data, piece),
        3 => reads::<agent::AttachReply>(data, piece),
        4 => reads::<agent::ExecInput>(data, piece),
        5 => reads::<agent::ExecOutput>(data, piece),
        6 => reads::<agent::FileCommand>(data, piece),
        7 => reads::<agent::FileReply>(data, piece),
        8 => reads::<worker::Command>(data, piece),
        9 => reads::<worker::Event>(data, piece),
        10 => reads::<netd::Command>(data, piece),
        _ => reads::<netd::Event>(data, piece),
    }
});
