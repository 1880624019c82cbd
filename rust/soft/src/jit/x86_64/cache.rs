//! Which guest registers are in which host registers, at one place of a block.

use super::asm::{Asm, M, R, R8, R9, R10, R11, R12, R13, R14, R15, RBP, RDI, RSI};
use super::layout;
use crate::Regs;

const NONE: u8 = 0xff;
const GUESTS: usize = 34;

/// Host registers that hold guest registers; those that calls preserve come first.
const POOL: [R; 11] = [RBP, R12, R13, R14, R15, RSI, RDI, R8, R9, R10, R11];

/// Whether a call leaves a register as it is.
fn preserved(r: R) -> bool {
    matches!(r, RBP | R12 | R13 | R14 | R15)
}

/// The state of the registers. A copy of it is what an exit needs to know.
#[derive(Clone, Copy)]
pub(super) struct Cache {
    /// Host register by guest register.
    host: [u8; GUESTS],
    /// Guest register by host register.
    guest: [u8; 16],
    /// Guest registers whose place in memory is behind.
    dirty: u64,
    /// When a host register was used last.
    used: [u32; 16],
    clock: u32,
    /// Host registers that the instruction at hand uses.
    pins: u16,
}

/// The place of a guest register in memory.
pub(super) fn home(g: u8) -> M {
    layout::x(g)
}

impl Cache {
    pub fn new() -> Self {
        Self { host: [NONE; GUESTS], guest: [NONE; 16], dirty: 0, used: [0; 16], clock: 0, pins: 0 }
    }

    /// Begins with the next instruction.
    pub fn unpin(&mut self) {
        self.pins = 0;
    }

    /// The host register that holds `g`, if one does.
    pub fn held(&self, g: u8) -> Option<R> {
        match self.host[g as usize] {
            NONE => None,
            h => Some(R(h)),
        }
    }

    fn touch(&mut self, r: R) -> R {
        self.clock += 1;
        self.used[r.0 as usize] = self.clock;
        self.pins |= 1 << r.0;
        r
    }

    fn unmap(&mut self, g: u8) {
        if let Some(r) = self.held(g) {
            self.guest[r.0 as usize] = NONE;
        }
        self.host[g as usize] = NONE;
        self.dirty &= !(1 << g);
    }

    fn map(&mut self, g: u8, r: R) {
        self.host[g as usize] = r.0;
        self.guest[r.0 as usize] = g;
    }

    /// A host register for something new: a free one, or the one that was not used for longest.
    fn allocate(&mut self, asm: &mut Asm) -> R {
        let free = |c: &Self, r: R| c.pins >> r.0 & 1 == 0;
        let empty = POOL.into_iter().find(|r| free(self, *r) && self.guest[r.0 as usize] == NONE);
        if let Some(r) = empty {
            return r;
        }
        let oldest = POOL.into_iter().filter(|r| free(self, *r)).min_by_key(|r| self.used[r.0 as usize]);
        let r = oldest.unwrap_or_else(|| unreachable!("an instruction uses fewer registers than there are"));
        let g = self.guest[r.0 as usize];
        if self.dirty >> g & 1 == 1 {
            asm.store(3, home(g), r);
        }
        self.unmap(g);
        r
    }

    /// The host register with the value of `g`.
    pub fn read(&mut self, asm: &mut Asm, g: u8) -> R {
        if let Some(r) = self.held(g) {
            return self.touch(r);
        }
        let r = self.allocate(asm);
        asm.load(3, false, true, r, home(g));
        self.map(g, r);
        self.touch(r)
    }

    /// A host register that takes the new value of `g`: none that the instruction reads from.
    pub fn write(&mut self, asm: &mut Asm, g: u8) -> R {
        let r = match self.held(g) {
            Some(r) if self.pins >> r.0 & 1 == 0 => r,
            _ => {
                let r = self.allocate(asm);
                self.unmap(g);
                self.map(g, r);
                r
            }
        };
        self.change(g);
        self.touch(r)
    }

    /// The host register with the value of `g`, which changes it.
    pub fn update(&mut self, asm: &mut Asm, g: u8) -> R {
        let r = self.read(asm, g);
        self.change(g);
        r
    }

    fn change(&mut self, g: u8) {
        if g != Regs::SINK as u8 {
            self.dirty |= 1 << g;
        }
    }

    /// Stores what memory does not have yet. The cache itself stays as it is.
    pub fn store(&self, asm: &mut Asm) {
        for r in POOL {
            let g = self.guest[r.0 as usize];
            if g != NONE && self.dirty >> g & 1 == 1 {
                asm.store(3, home(g), r);
            }
        }
    }

    /// Memory has everything.
    pub fn clean(&mut self) {
        self.dirty = 0;
    }

    /// What a call to code that changes no general register but `changed` of the guest leaves.
    pub fn after_call(&mut self, changed: Option<u8>) {
        for r in POOL {
            let g = self.guest[r.0 as usize];
            if g != NONE && (!preserved(r) || Some(g) == changed) {
                self.unmap(g);
            }
        }
    }

    /// Loads what this state holds after a call that was made in the state `before` and changed `changed`.
    pub fn reload(&self, asm: &mut Asm, before: &Self, changed: &[u8]) {
        for r in POOL {
            let n = r.0 as usize;
            let g = self.guest[n];
            if g == NONE || g == Regs::SINK as u8 {
                continue;
            }
            if !preserved(r) || before.guest[n] != g || changed.contains(&g) {
                asm.load(3, false, true, r, home(g));
            }
        }
    }
}
