//! Which guest registers are in which host registers, at one place of a block.

use std::marker::PhantomData;

use super::flow::Around;
use super::registers::{General, Vector};
use crate::Regs;
use crate::isa::effects::Registers;

const NONE: u8 = 0xff;
const GUESTS: usize = 34;
/// Registers of one kind that a host has at most.
const HOSTS: usize = 32;

/// What a host has for the guest's registers, and how they get from and to memory. Host registers are numbers here;
/// guest registers are by the decoder's index.
pub(super) trait Moves {
    /// Those that hold general registers of the guest; those that calls preserve come first.
    const POOL: &'static [u8];
    /// Those that hold vector registers: calls preserve none. The others are for whoever needs them.
    const VECTORS: &'static [u8];
    /// One bit for each of `POOL` that a call leaves as it is.
    const PRESERVED: u32;
    /// How many registers of each kind a loop brings along; the others are for what is short-lived.
    const IN_LOOPS: usize;

    /// The host's vector register that alone may hold `g`, if there is one for each.
    fn own_vector(_: u8) -> Option<u8> {
        None
    }

    /// Of the guest registers `of` (one bit each) the one to give up, where the rest of the block is known; memory has
    /// `clean` of them.
    fn wanted_last(&self, _vector: bool, _of: u64, _clean: u64) -> Option<u8> {
        None
    }

    fn load(&mut self, to: General, g: u8);
    fn store(&mut self, g: u8, from: General);
    fn load_vector(&mut self, to: Vector, g: u8);
    fn store_vector(&mut self, g: u8, from: Vector);
}

/// Registers of one kind, by their numbers.
#[derive(Clone, Copy)]
struct File {
    /// Host register by guest register.
    host: [u8; GUESTS],
    /// Guest register by host register.
    guest: [u8; HOSTS],
    /// Guest registers whose place in memory is behind.
    dirty: u64,
    /// When a host register was used last.
    used: [u32; HOSTS],
    clock: u32,
    /// Host registers that the instruction at hand uses.
    pins: u32,
    /// Host registers that have something else for a while: they are among `pins` all the time.
    kept: u32,
}

impl File {
    const EMPTY: Self = Self {
        host: [NONE; GUESTS],
        guest: [NONE; HOSTS],
        dirty: 0,
        used: [0; HOSTS],
        clock: 0,
        pins: 0,
        kept: 0,
    };

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

    /// A host register for something new: a free one, or the one that is wanted last, or else was not used for longest;
    /// and the guest register that must be stored from it first.
    fn allocate(
        &mut self,
        pool: &[u8],
        wanted_last: impl FnOnce(u64, u64) -> Option<u8>,
    ) -> (u8, Option<u8>) {
        let pool = pool.iter().copied().filter(|h| self.pins >> h & 1 == 0);
        if let Some(h) = pool.clone().find(|h| self.guest[*h as usize] == NONE) {
            return (h, None);
        }
        let guests = pool.clone().fold(0, |all, h| all | 1 << self.guest[h as usize]);
        let h = match wanted_last(guests, guests & !self.dirty) {
            Some(g) => self.held(g),
            None => pool.min_by_key(|h| self.used[*h as usize]),
        };
        let h = h.unwrap_or_else(|| unreachable!("an instruction uses fewer registers than there are"));
        let g = self.guest[h as usize];
        let stored = self.is_dirty(g).then_some(g);
        self.unmap(g);
        (h, stored)
    }

    /// A host register that takes a new value of `g`, where none may be overwritten that the instruction reads from; or
    /// `None` when a register must be allocated.
    fn reusable(&self, g: u8) -> Option<u8> {
        self.held(g).filter(|h| self.pins >> h & 1 == 0)
    }
}

/// The state of the registers. A copy of it is what an exit needs to know.
pub(super) struct Cache<A> {
    general: File,
    vector: File,
    host: PhantomData<A>,
}

impl<A> Clone for Cache<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Cache<A> {}

impl<A: Moves> Cache<A> {
    pub(super) fn new() -> Self {
        Self { general: File::EMPTY, vector: File::EMPTY, host: PhantomData }
    }

    /// Whether a call leaves a register as it is.
    fn preserved(h: u8) -> bool {
        A::PRESERVED >> h & 1 == 1
    }

    /// Begins with the next instruction.
    pub(super) fn unpin(&mut self) {
        self.general.pins = self.general.kept;
        self.vector.pins = 0;
    }

    /// A host register that holds nothing of the guest's until it is given back. What it held is in memory.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some hosts have no use for it"))]
    pub(super) fn keep(&mut self, asm: &mut A) -> General {
        let h = self.allocate(asm);
        self.general.kept |= 1 << h;
        self.general.pins |= 1 << h;
        General(h)
    }

    /// Gives it back.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some hosts have no use for it"))]
    pub(super) fn give_back(&mut self, r: General) {
        self.general.kept &= !(1 << r.0);
    }

    /// The host register that holds `g`, if one does.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some hosts have no use for it"))]
    pub(super) fn held(&self, g: u8) -> Option<General> {
        self.general.held(g).map(General)
    }

    /// The same for a vector register.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some hosts have no use for it"))]
    pub(super) fn held_vector(&self, g: u8) -> Option<Vector> {
        self.vector.held(g).map(Vector)
    }

    fn allocate(&mut self, asm: &mut A) -> u8 {
        let (h, stored) = self.general.allocate(A::POOL, |of, clean| asm.wanted_last(false, of, clean));
        if let Some(g) = stored {
            asm.store(g, General(h));
        }
        h
    }

    fn allocate_vector(&mut self, asm: &mut A, g: u8) -> u8 {
        if let Some(own) = A::own_vector(g) {
            return own;
        }
        self.any_vector(asm)
    }

    fn any_vector(&mut self, asm: &mut A) -> u8 {
        let (h, stored) = self.vector.allocate(A::VECTORS, |of, clean| asm.wanted_last(true, of, clean));
        if let Some(g) = stored {
            asm.store_vector(g, Vector(h));
        }
        h
    }

    /// The host register with the value of `g`.
    pub(super) fn read(&mut self, asm: &mut A, g: u8) -> General {
        if let Some(h) = self.general.held(g) {
            return General(self.general.touch(h));
        }
        let h = self.allocate(asm);
        asm.load(General(h), g);
        self.general.map(g, h);
        General(self.general.touch(h))
    }

    /// The same for a vector register.
    pub(super) fn read_vector(&mut self, asm: &mut A, g: u8) -> Vector {
        if let Some(h) = self.vector.held(g) {
            return Vector(self.vector.touch(h));
        }
        let h = self.allocate_vector(asm, g);
        asm.load_vector(Vector(h), g);
        self.vector.map(g, h);
        Vector(self.vector.touch(h))
    }

    /// A host register that takes the new value of `g`: none that the instruction reads from.
    pub(super) fn write(&mut self, asm: &mut A, g: u8) -> General {
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
        General(self.general.touch(h))
    }

    /// The same for a vector register.
    pub(super) fn write_vector(&mut self, asm: &mut A, g: u8) -> Vector {
        let h = match self.vector.reusable(g) {
            Some(h) => h,
            None => {
                let h = self.allocate_vector(asm, g);
                self.vector.unmap(g);
                self.vector.map(g, h);
                h
            }
        };
        self.vector.dirty |= 1 << g;
        Vector(self.vector.touch(h))
    }

    /// A host register for something that will be a vector register's: see `assign_vector`. What it held is in memory.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some hosts have no use for it"))]
    pub(super) fn reserve_vector(&mut self, asm: &mut A) -> Vector {
        let h = self.any_vector(asm);
        Vector(self.vector.touch(h))
    }

    /// The new value of `g` is in `x`, which was reserved.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some hosts have no use for it"))]
    pub(super) fn assign_vector(&mut self, g: u8, x: Vector) {
        let Vector(x) = x;
        self.vector.unmap(g);
        self.vector.map(g, x);
        self.vector.dirty |= 1 << g;
    }

    /// The host register with the value of `g`, which changes it.
    pub(super) fn update(&mut self, asm: &mut A, g: u8) -> General {
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
    pub(super) fn store(&self, asm: &mut A) {
        for &h in A::POOL {
            let g = self.general.guest[h as usize];
            if g != NONE && self.general.is_dirty(g) {
                asm.store(g, General(h));
            }
        }
        for &h in A::VECTORS {
            let g = self.vector.guest[h as usize];
            if g != NONE && self.vector.is_dirty(g) {
                asm.store_vector(g, Vector(h));
            }
        }
    }

    /// Loads registers before a loop, as far as there is room, and treats those that it writes as newer than memory: so
    /// they need not be stored each time round.
    pub(super) fn enter_loop(&mut self, asm: &mut A, registers: &Around) {
        for g in registers.general.iter().take(A::IN_LOOPS) {
            self.read(asm, *g);
            if registers.written.has(*g) {
                self.change(*g);
            }
        }
        for g in registers.vector.iter().take(A::IN_LOOPS) {
            self.read_vector(asm, *g);
            if registers.written.has_vector(*g) {
                self.vector.dirty |= 1 << g;
            }
        }
        self.unpin();
    }

    /// From this state, at the end of a loop, to the one at its begin.
    pub(super) fn loop_back(&self, asm: &mut A, begin: &Self) {
        let stays = |now: &File, begin: &File, h: u8| {
            let g = now.guest[h as usize];
            g == begin.guest[h as usize] && begin.is_dirty(g)
        };
        for &h in A::POOL {
            let g = self.general.guest[h as usize];
            if g != NONE && self.general.is_dirty(g) && !stays(&self.general, &begin.general, h) {
                asm.store(g, General(h));
            }
        }
        for &h in A::VECTORS {
            let g = self.vector.guest[h as usize];
            if g != NONE && self.vector.is_dirty(g) && !stays(&self.vector, &begin.vector, h) {
                asm.store_vector(g, Vector(h));
            }
        }
        for &h in A::POOL {
            let g = begin.general.guest[h as usize];
            if g != NONE && self.general.guest[h as usize] != g {
                asm.load(General(h), g);
            }
        }
        for &h in A::VECTORS {
            let g = begin.vector.guest[h as usize];
            if g != NONE && self.vector.guest[h as usize] != g {
                asm.load_vector(Vector(h), g);
            }
        }
    }

    /// Memory has everything.
    pub(super) fn clean(&mut self) {
        self.general.dirty = 0;
        self.vector.dirty = 0;
    }

    /// What a call leaves to code that changes these registers of the guest. Memory has everything.
    pub(super) fn after_call(&mut self, writes: Registers) {
        for &h in A::POOL {
            let g = self.general.guest[h as usize];
            if g != NONE && (!Self::preserved(h) || writes.has(g)) {
                self.general.unmap(g);
            }
        }
        self.vector = File::EMPTY;
    }

    /// Loads all that this state holds.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some hosts have no use for it"))]
    pub(super) fn reload_all(&self, asm: &mut A) {
        self.reload(asm, &Self::new(), &[]);
    }

    /// Loads what this state holds after a call that was made in the state `before` and changed the general registers
    /// `changed`, and any vector register.
    pub(super) fn reload(&self, asm: &mut A, before: &Self, changed: &[u8]) {
        for &h in A::POOL {
            let n = h as usize;
            let g = self.general.guest[n];
            if g == NONE || g == Regs::SINK as u8 {
                continue;
            }
            if !Self::preserved(h) || before.general.guest[n] != g || changed.contains(&g) {
                asm.load(General(h), g);
            }
        }
        for &h in A::VECTORS {
            let g = self.vector.guest[h as usize];
            if g != NONE {
                asm.load_vector(Vector(h), g);
            }
        }
    }
}
