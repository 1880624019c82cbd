//! A hostile driver of each device: registers, descriptors, rings and notifications as the bytes say.
//!
//! Each act is a byte for its kind and some bytes of arguments. Addresses are near the rings, the buffers or the end of
//! memory, where mistakes are; a fourth kind of address is any.
#![no_main]

#[path = "../../rust/devices/tests/common/mod.rs"]
mod common;

use common::acts::{Act, to_every_device};
use common::{BUFFERS, MEMORY_BYTES, RAM};
use libfuzzer_sys::fuzz_target;

/// Acts of one input: each is done to every device, whose state is saved and restored after it.
const MAX_ACTS: usize = 64;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    fn address(&mut self) -> u64 {
        let kind = self.u8();
        let offset = u64::from(self.u16());
        match kind % 4 {
            0 => RAM + offset,
            1 => BUFFERS + offset,
            2 => RAM + MEMORY_BYTES as u64 - 32 + offset % 64,
            _ => u64::from(self.u32()) << 32 | u64::from(self.u32()),
        }
    }

    fn length(&mut self) -> u32 {
        if self.u8() % 4 == 0 { self.u32() } else { self.u16().into() }
    }

    fn act(&mut self) -> Act {
        match self.u8() % 8 {
            0 => Act::Store(self.u16().into(), self.u32()),
            1 => Act::Store(u64::from(self.u8() % 0x40) * 4, self.u8().into()),
            2 => Act::Load(self.u16().into(), usize::from(self.u8() % 9)),
            3 => Act::Describe(
                u16::from(self.u8() % 16),
                self.address(),
                self.length(),
                u16::from(self.u8() % 8),
                u16::from(self.u8() % 17),
            ),
            4 => Act::Offer(u16::from(self.u8() % 17)),
            5 => {
                let at = self.address();
                let length = usize::from(self.u8() % 64);
                Act::Scribble(at, (0..length).map(|_| self.u8()).collect())
            }
            6 => Act::Notify(u32::from(self.u8() % 4)),
            _ => Act::Reset,
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut acts = vec![];
    while !input.0.is_empty() && acts.len() < MAX_ACTS {
        acts.push(input.act());
    }
    to_every_device(&acts);
});
