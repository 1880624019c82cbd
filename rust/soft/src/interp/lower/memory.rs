//! Loads and stores.

use super::{Handler, plain};
use crate::interp::block::{Block, Flow, Form, Last};
use crate::interp::handlers::memory::{INDEX, LITERAL, OFFSET, POST, PRE, SXTW, USER, UXTW};
use crate::interp::handlers::pairs::Half;
use crate::interp::handlers::{atomic as at, memory as x, system, vector as v};
use crate::isa::insn::{Access, Address, Reg, Rmw};

/// What stands where there is no such form.
const NONE: Handler = system::undefined;

/// What a transfer of one general register can be in a pair.
const fn half(mode: u8, size: u8, kind: usize) -> Option<Half> {
    match (mode, size, kind) {
        (OFFSET, 3, 0) => Some(Half::Store),
        (OFFSET, 3, 1) => Some(Half::Load),
        (OFFSET, 2, 0) => Some(Half::Store32),
        (OFFSET, 2, 1) => Some(Half::Load32),
        (OFFSET, 0, 1) => Some(Half::Load8),
        (INDEX, 3, 1) => Some(Half::LoadIndex),
        (INDEX, 2, 1) => Some(Half::LoadIndex32),
        _ => None,
    }
}

macro_rules! general {
    (@forms $mode:ident $size:literal [$a:expr, $b:expr, $c:expr, $d:expr]) => {
        [
            Form { f: $a, half: half($mode, $size, 0), last: Last::Other },
            Form { f: $b, half: half($mode, $size, 1), last: Last::Other },
            Form { f: $c, half: half($mode, $size, 2), last: Last::Other },
            Form { f: $d, half: half($mode, $size, 3), last: Last::Other },
        ]
    };
    ($($mode:ident)*) => {
        [$([
            general!(@forms $mode 0 [x::store::<u8, $mode>, x::load::<u8, 32, $mode>,
                x::load::<i8, 64, $mode>, x::load::<i8, 32, $mode>]),
            general!(@forms $mode 1 [x::store::<u16, $mode>, x::load::<u16, 32, $mode>,
                x::load::<i16, 64, $mode>, x::load::<i16, 32, $mode>]),
            general!(@forms $mode 2 [x::store::<u32, $mode>, x::load::<u32, 32, $mode>,
                x::load::<i32, 64, $mode>, NONE]),
            general!(@forms $mode 3 [x::store::<u64, $mode>, x::load::<u64, 64, $mode>, NONE, NONE]),
        ]),*]
    };
}

/// By mode, size and kind (see `kind`).
static GENERAL: [[[Form; 4]; 4]; 8] = general!(OFFSET PRE POST INDEX UXTW USER LITERAL SXTW);

/// By mode, size, and whether it is a load.
macro_rules! vectors {
    ($store:ident $load:ident $($mode:ident)*) => {
        [$([
            [v::$store::<u8, $mode>, v::$load::<u8, $mode>],
            [v::$store::<u16, $mode>, v::$load::<u16, $mode>],
            [v::$store::<u32, $mode>, v::$load::<u32, $mode>],
            [v::$store::<u64, $mode>, v::$load::<u64, $mode>],
            [v::$store::<u128, $mode>, v::$load::<u128, $mode>],
        ]),*]
    };
}

static VECTOR: [[[Handler; 2]; 5]; 8] = vectors!(store load OFFSET PRE POST INDEX UXTW USER LITERAL SXTW);
static VECTOR_PAIR: [[[Handler; 2]; 5]; 3] = vectors!(store_pair load_pair OFFSET PRE POST);

/// The same for pairs.
const fn pair_half(mode: u8, store: bool) -> Option<Half> {
    match (mode, store) {
        (OFFSET, true) => Some(Half::StorePair),
        (OFFSET, false) => Some(Half::LoadPair),
        (PRE, true) => Some(Half::Push),
        (POST, false) => Some(Half::Pop),
        _ => None,
    }
}

/// By mode: stores and loads of 32 bits and of 64, and LDPSW.
macro_rules! pairs {
    ($($mode:ident)*) => {
        [$([
            [
                plain(x::store_pair::<u32, $mode>),
                plain(x::load_pair::<u32, $mode>),
                plain(x::load_pair::<i32, $mode>),
            ],
            [
                Form { f: x::store_pair::<u64, $mode>, half: pair_half($mode, true), last: Last::Other },
                Form { f: x::load_pair::<u64, $mode>, half: pair_half($mode, false), last: Last::Other },
                plain(NONE),
            ],
        ]),*]
    };
}

static PAIR: [[[Form; 3]; 2]; 3] = pairs!(OFFSET PRE POST);

/// The last index into `GENERAL`.
fn kind(access: Access) -> usize {
    match (access.store, access.signed, access.wide) {
        (true, ..) => 0,
        (_, false, _) => 1,
        (_, _, true) => 2,
        (_, _, false) => 3,
    }
}

/// The mode that handlers are made for, base, index, shift, and what is in `imm`.
#[inline(always)]
fn operands(address: Address) -> (u8, Reg, Reg, u8, u64) {
    match address {
        Address::Offset(n, by) | Address::Unscaled(n, by) => (OFFSET, n, 0, 0, by as u64),
        Address::Pre(n, by) => (PRE, n, 0, 0, by as u64),
        Address::Post(n, by) => (POST, n, 0, 0, by as u64),
        Address::Index(n, m, option, by) => {
            let mode = match option {
                2 => UXTW,
                6 => SXTW,
                _ => INDEX,
            };
            (mode, n, m, by, u64::from(option))
        }
        Address::Page(offset) => (LITERAL, 0, 0, 0, offset as u64),
    }
}

/// Picks a handler by access size.
macro_rules! sized {
    ($f:ident $(, $k:expr)*) => {
        [at::$f::<u8 $(, $k)*>, at::$f::<u16 $(, $k)*>, at::$f::<u32 $(, $k)*>, at::$f::<u64 $(, $k)*>]
    };
}

impl Block {
    #[inline(always)]
    pub(super) fn memory(&mut self, access: Access, t: Reg, address: Address) -> Flow {
        let (mode, n, m, by, imm) = operands(address);
        let form = &GENERAL[usize::from(mode)][usize::from(access.size)][kind(access)];
        self.form(form, [t, n, m, by], imm)
    }

    pub(super) fn unprivileged(&mut self, access: Access, t: Reg, n: Reg, offset: i64) -> Flow {
        let f = GENERAL[usize::from(USER)][usize::from(access.size)][kind(access)].f;
        self.on(f, [t, n, 0, 0], offset as u64)
    }

    #[inline(always)]
    pub(super) fn pair(&mut self, access: Access, t: Reg, u: Reg, address: Address) -> Flow {
        let (mode, n, _, _, imm) = operands(address);
        let kind = if access.store { 0 } else { 1 + usize::from(access.signed) };
        let form = &PAIR[usize::from(mode)][usize::from(access.size == 3)][kind];
        self.form(form, [t, n, 0, u], imm)
    }

    #[inline(always)]
    pub(super) fn vector_memory(&mut self, store: bool, size: u8, t: Reg, address: Address) -> Flow {
        let (mode, n, m, by, imm) = operands(address);
        self.fp();
        self.on(VECTOR[usize::from(mode)][usize::from(size)][usize::from(!store)], [t, n, m, by], imm)
    }

    #[inline(always)]
    pub(super) fn vector_pair(&mut self, store: bool, size: u8, t: Reg, u: Reg, address: Address) -> Flow {
        let (mode, n, _, _, imm) = operands(address);
        self.fp();
        self.on(VECTOR_PAIR[usize::from(mode)][usize::from(size)][usize::from(!store)], [t, n, 0, u], imm)
    }

    pub(super) fn structures(&mut self, word: u32, single: bool) -> Flow {
        // LD1 and ST1, which take nothing apart: by width, count and direction.
        static WHOLE: [[[Handler; 2]; 4]; 2] = [
            [
                [v::store_whole::<u64, 1>, v::load_whole::<u64, 1>],
                [v::store_whole::<u64, 2>, v::load_whole::<u64, 2>],
                [v::store_whole::<u64, 3>, v::load_whole::<u64, 3>],
                [v::store_whole::<u64, 4>, v::load_whole::<u64, 4>],
            ],
            [
                [v::store_whole::<u128, 1>, v::load_whole::<u128, 1>],
                [v::store_whole::<u128, 2>, v::load_whole::<u128, 2>],
                [v::store_whole::<u128, 3>, v::load_whole::<u128, 3>],
                [v::store_whole::<u128, 4>, v::load_whole::<u128, 4>],
            ],
        ];
        let whole = |count: usize| WHOLE[word as usize >> 30 & 1][count - 1][word as usize >> 22 & 1];
        let f = match word >> 12 & 15 {
            _ if single => v::single,
            0b0111 => whole(1),
            0b1010 => whole(2),
            0b0110 => whole(3),
            0b0010 => whole(4),
            _ => v::multiple,
        };
        self.fp();
        self.on(f, [0; 4], u64::from(word))
    }

    pub(super) fn load_acquire(&mut self, access: Access, t: Reg, n: Reg, offset: i64) -> Flow {
        static BY: [[Handler; 4]; 4] = [
            [NONE, at::load_acquire::<u8, 32>, at::load_acquire::<i8, 64>, at::load_acquire::<i8, 32>],
            [NONE, at::load_acquire::<u16, 32>, at::load_acquire::<i16, 64>, at::load_acquire::<i16, 32>],
            [NONE, at::load_acquire::<u32, 32>, at::load_acquire::<i32, 64>, NONE],
            [NONE, at::load_acquire::<u64, 64>, NONE, NONE],
        ];
        self.on(BY[usize::from(access.size)][kind(access)], [t, n, 0, 0], offset as u64)
    }

    pub(super) fn store_release(&mut self, size: u8, t: Reg, n: Reg, offset: i64) -> Flow {
        self.on(sized!(store_release)[usize::from(size)], [t, n, 0, 0], offset as u64)
    }

    pub(super) fn load_exclusive(&mut self, size: u8, t: Reg, n: Reg) -> Flow {
        self.on(sized!(load_exclusive)[usize::from(size)], [t, n, 0, 0], 0)
    }

    pub(super) fn store_exclusive(&mut self, size: u8, s: Reg, t: Reg, n: Reg) -> Flow {
        self.on(sized!(store_exclusive)[usize::from(size)], [t, n, s, 0], 0)
    }

    pub(super) fn load_exclusive_pair(&mut self, wide: bool, t: Reg, u: Reg, n: Reg) -> Flow {
        let f = if wide { at::load_exclusive_pair::<true> } else { at::load_exclusive_pair::<false> };
        self.on(f, [t, n, 0, u], 0)
    }

    pub(super) fn store_exclusive_pair(&mut self, wide: bool, s: Reg, t: Reg, u: Reg, n: Reg) -> Flow {
        let f = if wide { at::store_exclusive_pair::<true> } else { at::store_exclusive_pair::<false> };
        self.on(f, [t, n, s, u], 0)
    }

    pub(super) fn cas(&mut self, size: u8, s: Reg, to: Reg, t: Reg, n: Reg) -> Flow {
        self.on(sized!(cas)[usize::from(size)], [t, n, s, to], 0)
    }

    pub(super) fn casp(&mut self, wide: bool, s: Reg, t: Reg, n: Reg) -> Flow {
        self.on(if wide { at::casp::<true> } else { at::casp::<false> }, [t, n, s, 0], 0)
    }

    pub(super) fn rmw(&mut self, op: Rmw, size: u8, s: Reg, t: Reg, n: Reg) -> Flow {
        static BY: [[Handler; 4]; 9] = [
            sized!(rmw, 0),
            sized!(rmw, 1),
            sized!(rmw, 2),
            sized!(rmw, 3),
            sized!(rmw, 4),
            sized!(rmw, 5),
            sized!(rmw, 6),
            sized!(rmw, 7),
            sized!(rmw, 8),
        ];
        self.on(BY[op as usize][usize::from(size)], [t, n, s, 0], 0)
    }
}
