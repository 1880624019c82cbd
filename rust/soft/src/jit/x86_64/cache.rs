//! Which guest registers are in which host registers, at one place of a block.

use super::asm::{Asm, M, R, R8, R9, R10, R11, R12, R13, R14, R15, RBP, RDI, RSI, X};
use super::layout;
use crate::Regs;

const NONE: u8 = 0xff;
const GUESTS: usize = 34;

/// Host registers that hold general registers of the guest; those that calls preserve come first.
const POOL: [R; 11] = [RBP, R12, R13, R14, R15, RSI, RDI, R8, R9, R10, R11];
/// Those that hold vector registers: calls preserve none. The others are for whoever needs them.
const VECTORS: [u8; 12] = [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Whether a call leaves a register as it is.
fn preserved(r: R) -> bool {
    matches!(r, RBP | R12 | R13 | R14 | R15)
}

/// Registers of one kind, by their numbers.
#[derive(Clone, Copy)]
struct File {
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

impl File {
    const EMPTY: Self =
        Self { host: [NONE; GUESTS], guest: [NONE; 16], dirty: 0, used: [0; 16], clock: 0, pins: 0 };

    fn held(&self, g: u8) -> Option<u8> {
        let h = self.host[g as usize];
        (h != NONE).then_some(h)
    }

    fn touch(&mut self, h: u8) -> u8 {
        self.clock += 1;
        self.used[h as usize] = self.clock;
        self.pins |= 1 << h;
        h
    }

    fn unmap(&mut self, g: u8) {
        if let Some(h) = self.held(g) {
            self.guest[h as usize] = NONE;
        }
        self.host[g as usize] = NONE;
        self.dirty &= !(1 << g);
    }

    fn map(&mut self, g: u8, h: u8) {
        self.host[g as usize] = h;
        self.guest[h as usize] = g;
    }

    fn is_dirty(&self, g: u8) -> bool {
        self.dirty >> g & 1 == 1
    }

    /// A host register for something new: a free one, or the one that was not used for longest. `spill` stores a guest
    /// register from a host register.
    fn allocate(&mut self, pool: impl Iterator<Item = u8> + Clone, spill: impl FnOnce(u8, u8)) -> u8 {
        let pool = pool.filter(|h| self.pins >> h & 1 == 0);
        if let Some(h) = pool.clone().find(|h| self.guest[*h as usize] == NONE) {
            return h;
        }
        let oldest = pool.min_by_key(|h| self.used[*h as usize]);
        let h = oldest.unwrap_or_else(|| unreachable!("an instruction uses fewer registers than there are"));
        let g = self.guest[h as usize];
        if self.is_dirty(g) {
            spill(g, h);
        }
        self.unmap(g);
        h
    }

    /// A host register that takes a new value of `g`, where none may be overwritten that the instruction reads from; or
    /// `None` when a register must be allocated.
    fn reusable(&self, g: u8) -> Option<u8> {
        self.held(g).filter(|h| self.pins >> h & 1 == 0)
    }
}

/// The state of the registers. A copy of it is what an exit needs to know.
#[derive(Clone, Copy)]
pub(super) struct Cache {
    general: File,
    vector: File,
}

/// The place of a guest register in memory.
pub(super) fn home(g: u8) -> M {
    layout::x(g)
}

impl Cache {
    pub fn new() -> Self {
        Self { general: File::EMPTY, vector: File::EMPTY }
    }

    /// Begins with the next instruction.
    pub fn unpin(&mut self) {
        self.general.pins = 0;
        self.vector.pins = 0;
    }

    /// The host register that holds `g`, if one does.
    pub fn held(&self, g: u8) -> Option<R> {
        self.general.held(g).map(R)
    }

    /// The same for a vector register.
    pub fn held_vector(&self, g: u8) -> Option<X> {
        self.vector.held(g).map(X)
    }

    fn allocate(&mut self, asm: &mut Asm) -> u8 {
        self.general.allocate(POOL.into_iter().map(|r| r.0), |g, h| asm.store(3, home(g), R(h)))
    }

    fn allocate_vector(&mut self, asm: &mut Asm) -> u8 {
        self.vector.allocate(VECTORS.into_iter(), |g, h| asm.movups_to(layout::v(g), X(h)))
    }

    /// The host register with the value of `g`.
    pub fn read(&mut self, asm: &mut Asm, g: u8) -> R {
        if let Some(h) = self.general.held(g) {
            return R(self.general.touch(h));
        }
        let h = self.allocate(asm);
        asm.load(3, false, true, R(h), home(g));
        self.general.map(g, h);
        R(self.general.touch(h))
    }

    /// The same for a vector register.
    pub fn read_vector(&mut self, asm: &mut Asm, g: u8) -> X {
        if let Some(h) = self.vector.held(g) {
            return X(self.vector.touch(h));
        }
        let h = self.allocate_vector(asm);
        asm.movups(X(h), layout::v(g));
        self.vector.map(g, h);
        X(self.vector.touch(h))
    }

    /// A host register that takes the new value of `g`: none that the instruction reads from.
    pub fn write(&mut self, asm: &mut Asm, g: u8) -> R {
        let h = match self.general.reusable(g) {
            Some(h) => h,
            None => {
                let h = self.allocate(asm);
                self.general.unmap(g);
                self.general.map(g, h);
                h
            }
        };
        self.change(g);
        R(self.general.touch(h))
    }

    /// The same for a vector register.
    pub fn write_vector(&mut self, asm: &mut Asm, g: u8) -> X {
        let h = match self.vector.reusable(g) {
            Some(h) => h,
            None => {
                let h = self.allocate_vector(asm);
                self.vector.unmap(g);
                self.vector.map(g, h);
                h
            }
        };
        self.vector.dirty |= 1 << g;
        X(self.vector.touch(h))
    }

    /// A host register for something that will be a vector register's: see `assign_vector`. What it held is in memory.
    pub fn reserve_vector(&mut self, asm: &mut Asm) -> X {
        let h = self.allocate_vector(asm);
        X(self.vector.touch(h))
    }

    /// The new value of `g` is in `x`, which was reserved.
    pub fn assign_vector(&mut self, g: u8, x: X) {
        self.vector.unmap(g);
        self.vector.map(g, x.0);
        self.vector.dirty |= 1 << g;
    }

    /// The host register with the value of `g`, which changes it.
    pub fn update(&mut self, asm: &mut Asm, g: u8) -> R {
        let r = self.read(asm, g);
        self.change(g);
        r
    }

    fn change(&mut self, g: u8) {
        if g != Regs::SINK as u8 {
            self.general.dirty |= 1 << g;
        }
    }

    /// Stores what memory does not have yet. The cache itself stays as it is.
    pub fn store(&self, asm: &mut Asm) {
        for r in POOL {
            let g = self.general.guest[r.0 as usize];
            if g != NONE && self.general.is_dirty(g) {
                asm.store(3, home(g), r);
            }
        }
        for h in VECTORS {
            let g = self.vector.guest[h as usize];
            if g != NONE && self.vector.is_dirty(g) {
                asm.movups_to(layout::v(g), X(h));
            }
        }
    }

    /// Memory has everything.
    pub fn clean(&mut self) {
        self.general.dirty = 0;
        self.vector.dirty = 0;
    }

    /// What a call to code that changes no general register but `changed` of the guest leaves.
    pub fn after_call(&mut self, changed: Option<u8>) {
        for r in POOL {
            let g = self.general.guest[r.0 as usize];
            if g != NONE && (!preserved(r) || Some(g) == changed) {
                self.general.unmap(g);
            }
        }
        self.vector = File::EMPTY;
    }

    /// Loads what this state holds after a call that was made in the state `before` and changed the general registers
    /// `changed`, and any vector register.
    pub fn reload(&self, asm: &mut Asm, before: &Self, changed: &[u8]) {
        for r in POOL {
            let n = r.0 as usize;
            let g = self.general.guest[n];
            if g == NONE || g == Regs::SINK as u8 {
                continue;
            }
            if !preserved(r) || before.general.guest[n] != g || changed.contains(&g) {
                asm.load(3, false, true, r, home(g));
            }
        }
        for h in VECTORS {
            let g = self.vector.guest[h as usize];
            if g != NONE {
                asm.movups(X(h), layout::v(g));
            }
        }
    }
}
