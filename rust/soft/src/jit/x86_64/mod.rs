//! Machine code for x86-64 hosts.
//!
//! RBX points at the CPU's state (see `layout`); RAX, RCX and RDX are for whoever needs them; the others hold guest
//! registers inside a block (see `cache`), none of them between blocks. The stack is as deep as `Stubs::enter` makes it.

mod access;
mod asm;
mod block;
mod cache;
mod compute;
mod flags;
mod layout;
mod stubs;

use super::{Code, Entries, Host, Input, Link};
use asm::Asm;
use stubs::Stubs;

pub(super) struct X86 {
    stubs: Stubs,
    lzcnt: bool,
}

impl Host for X86 {
    fn new(entries: &Entries) -> Option<(Self, Vec<u8>)> {
        let mut asm = Asm::default();
        let stubs = Stubs::emit(&mut asm, entries);
        Some((Self { stubs, lzcnt: std::is_x86_feature_detected!("lzcnt") }, asm.buf))
    }

    fn entry(&self) -> usize {
        self.stubs.enter
    }

    fn translate(&self, block: &Input, origin: usize, entries: &Entries) -> Code {
        block::translate(block, origin, &self.stubs, entries, self.lzcnt)
    }

    fn link(&self, link: &Link, target: usize) -> [u8; 4] {
        ((target as i64 - (link.at as i64 + 4)) as i32).to_le_bytes()
    }
}
