//! Condition flags inside a block: worked out only for who asks, and stored only where they must be seen.

use super::asm::{Arith, Asm, Cc, Jump, R, RAX, RCX, X};
use super::block::Translator;
use super::cache::{Cache, home};
use super::layout;
use super::sse;
use super::stubs::{nzcv_from_host, set_nzcv};
use crate::interp::handlers::{Flags, holds};

/// For each condition the values of NZCV (as bits of a word) with which it holds.
static HOLDS: [u16; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 256 {
        let (cond, nzcv) = (i >> 4, i & 15);
        table[cond as usize] |= (holds(cond, nzcv << 28) as u16) << nzcv;
        i += 1;
    }
    table
};

/// An operand that can be had again later: a guest register that has not changed since, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Reg(u8),
    Imm(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Add,
    Sub,
    And,
    /// A comparison of numbers that do compare.
    Numbers,
}

/// Where the flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In memory, in whatever form.
    Memory,
    /// In memory as NZCV.
    Nzcv,
    /// In memory as a comparison of this width.
    Compared(bool),
    /// Nowhere yet: they are those of this operation.
    Pending { kind: Kind, wide: bool, a: Source, b: Source },
    /// Likewise: those of a comparison of numbers that do compare, in vector registers; the second is zero where none
    /// is named.
    Numbers { double: bool, n: u8, m: Option<u8> },
}

impl State {
    /// Whether they would have to be worked out.
    pub(super) fn is_nowhere(self) -> bool {
        matches!(self, Self::Pending { .. } | Self::Numbers { .. })
    }

    pub(super) fn depends_on(self, g: u8) -> bool {
        let is = |s| s == Source::Reg(g);
        matches!(self, Self::Pending { a, b, .. } if is(a) || is(b))
    }

    pub(super) fn depends_on_vector(self, g: u8) -> bool {
        matches!(self, Self::Numbers { n, m, .. } if n == g || m == Some(g))
    }
}

pub(super) fn kind_of(wide: bool) -> u8 {
    (if wide { Flags::Sub64 } else { Flags::Sub32 }) as u8
}

/// The register that holds `s`, or `spare` with it.
fn source(asm: &mut Asm, cache: &Cache, s: Source, spare: R) -> R {
    match s {
        Source::Imm(v) => {
            asm.mov_i(spare, i64::from(v) as u64);
            spare
        }
        Source::Reg(g) => match cache.held(g) {
            Some(r) => r,
            None => {
                asm.load(3, false, true, spare, home(g));
                spare
            }
        },
    }
}

/// Does the operation for its flags alone; uses RAX and RCX.
fn operate(asm: &mut Asm, cache: &Cache, kind: Kind, wide: bool, a: Source, b: Source) {
    let x = source(asm, cache, a, RAX);
    match (kind, b) {
        (Kind::Sub, Source::Imm(v)) => asm.arith_i(Arith::Cmp, wide, x, v),
        (Kind::And, Source::Imm(v)) => asm.test_i(wide, x, v),
        (Kind::Sub, _) => {
            let y = source(asm, cache, b, RCX);
            asm.arith(Arith::Cmp, wide, x, y);
        }
        (Kind::And, _) => {
            let y = source(asm, cache, b, RCX);
            asm.test(wide, x, y);
        }
        (Kind::Add | Kind::Numbers, _) => {
            let y = source(asm, cache, b, RCX);
            if x != RAX {
                asm.mov(true, RAX, x);
            }
            asm.arith(Arith::Add, wide, RAX, y);
        }
    }
}

/// Compares numbers; uses XMM1 and XMM2.
fn compare(asm: &mut Asm, cache: &Cache, double: bool, n: u8, m: Option<u8>) {
    let mut held = |g: u8, spare: X| {
        cache.held_vector(g).unwrap_or_else(|| {
            asm.movups(spare, layout::v(g));
            spare
        })
    };
    let x = held(n, X(1));
    let y = m.map_or(X(2), |m| held(m, X(2)));
    if m.is_none() {
        asm.vector(sse::XORPS, y, y);
    }
    asm.vector(sse::UCOMIS[usize::from(double)], x, y);
}

/// Brings pending flags to memory; uses RAX, RCX, XMM1, XMM2 and the host's flags.
pub(super) fn store(asm: &mut Asm, cache: &Cache, state: State) -> State {
    if let State::Numbers { double, n, m } = state {
        compare(asm, cache, double, n, m);
        // As integers that compare alike: 1 and 0, 0 and 1, or 0 and 0.
        for (place, cc) in layout::COMPARED.into_iter().zip([Cc::A, Cc::B]) {
            asm.mov_i(RAX, 0);
            asm.set_al(cc);
            asm.store(3, place, RAX);
        }
        asm.store_byte_i(layout::FLAGS, kind_of(true));
        return State::Compared(true);
    }
    let State::Pending { kind, wide, a, b } = state else { return state };
    if kind == Kind::Sub {
        let x = source(asm, cache, a, RAX);
        asm.store(3, layout::COMPARED[0], x);
        match b {
            Source::Imm(v) => asm.store_i(layout::COMPARED[1], v),
            Source::Reg(_) => {
                let y = source(asm, cache, b, RAX);
                asm.store(3, layout::COMPARED[1], y);
            }
        }
        asm.store_byte_i(layout::FLAGS, kind_of(wide));
        return State::Compared(wide);
    }
    operate(asm, cache, kind, wide, a, b);
    nzcv_from_host(asm);
    set_nzcv(asm);
    State::Nzcv
}

/// The host's condition for Arm's after a comparison, or another operation where the two agree.
fn after(kind: Kind, cond: u8) -> Cc {
    // Carry after an addition is the host's; after AND it is clear in both.
    let (carry, higher) = match kind {
        Kind::Sub => (Cc::AE, Cc::A),
        Kind::Add | Kind::And => (Cc::B, Cc::B),
        Kind::Numbers => {
            // The host's comparison is as of unsigned integers; parity is clear, as V is.
            let cc = [Cc::E, Cc::AE, Cc::B, Cc::P, Cc::A, Cc::AE, Cc::A][cond as usize >> 1];
            return if cond & 1 == 1 { cc.not() } else { cc };
        }
    };
    let cc = match cond >> 1 {
        0 => Cc::E,
        1 => carry,
        2 => Cc::S,
        3 => Cc::O,
        4 => higher,
        5 => Cc::GE,
        _ => Cc::G,
    };
    if cond & 1 == 1 { cc.not() } else { cc }
}

impl Translator<'_> {
    /// Flags that depend on a register go to memory before it changes.
    pub(super) fn will_write(&mut self, g: u8) {
        if self.flags.depends_on(g) {
            self.keep_flags();
        }
    }

    /// The same for a vector register.
    pub(super) fn will_write_vector(&mut self, g: u8) {
        if self.flags.depends_on_vector(g) {
            self.keep_flags();
        }
    }

    /// Flags go to memory if anybody may look at them.
    fn keep_flags(&mut self) {
        if self.flags_needed() {
            self.store_flags();
        } else {
            self.flags = State::Memory;
        }
    }

    pub(super) fn store_flags(&mut self) {
        let lost = matches!(self.flags, State::Pending { kind: Kind::Add | Kind::And, .. });
        self.flags = store(&mut self.asm, &self.cache, self.flags);
        if lost {
            self.host_flags = None;
        }
    }

    /// The operation at hand changes nothing of the host's flags.
    pub(super) fn keep_host_flags(&mut self) {
        if let Some((at, kind)) = self.host_flags
            && at == self.at
        {
            self.host_flags = Some((at + 1, kind));
        }
    }

    /// The flags are those that the host has, of this operation.
    pub(super) fn set_flags(&mut self, state: State, kind: Kind) {
        self.flags = state;
        self.host_flags = Some((self.at + 1, kind));
    }

    /// The flags come to memory as NZCV, and stay so until they change.
    pub(super) fn need_nzcv(&mut self) {
        self.store_flags();
        if self.flags != State::Nzcv {
            self.asm.call_to(self.stubs.ways.flags);
            self.flags = State::Nzcv;
        }
    }

    /// Begins a conditional comparison: where the condition does not hold RAX is `nzcv`, and the jump goes to where
    /// [`Self::join_compared`] is. Uses what [`Self::condition`] does.
    pub(super) fn part(&mut self, cond: u8, nzcv: u8) -> Option<Jump> {
        (cond < 14).then(|| {
            let cc = self.condition(cond);
            let holds = self.asm.jcc(cc);
            self.asm.mov_i(RAX, u64::from(nzcv) << 28);
            let done = self.asm.jmp();
            self.asm.land(holds);
            done
        })
    }

    /// Ends one: either way its flags are in RAX.
    pub(super) fn join_compared(&mut self, parted: Option<Jump>) {
        if let Some(done) = parted {
            self.asm.land(done);
        }
        set_nzcv(&mut self.asm);
        self.flags = State::Nzcv;
        self.host_flags = None;
    }

    /// The host's flags tell this condition by the one returned; 14 and 15 always hold and must not come here. Uses
    /// RAX, RCX, XMM1 and XMM2; what the host's flags were is lost unless they told already.
    pub(super) fn condition(&mut self, cond: u8) -> Cc {
        if let Some((at, kind)) = self.host_flags
            && at == self.at
            && (kind != Kind::Add || cond >> 1 != 4)
        {
            self.host_flags = Some((at + 1, kind));
            return after(kind, cond);
        }
        if let State::Pending { kind, wide, a, b } = self.flags
            && (kind != Kind::Add || cond >> 1 != 4)
        {
            operate(&mut self.asm, &self.cache, kind, wide, a, b);
            self.host_flags = Some((self.at + 1, kind));
            return after(kind, cond);
        }
        if let State::Numbers { double, n, m } = self.flags {
            compare(&mut self.asm, &self.cache, double, n, m);
            self.host_flags = Some((self.at + 1, Kind::Numbers));
            return after(Kind::Numbers, cond);
        }
        if let State::Compared(wide) = self.flags {
            self.asm.load(3, false, true, RAX, layout::COMPARED[0]);
            self.asm.arith_m(Arith::Cmp, wide, RAX, layout::COMPARED[1]);
            self.host_flags = Some((self.at + 1, Kind::Sub));
            return after(Kind::Sub, cond);
        }
        self.need_nzcv();
        self.asm.load(2, false, false, RAX, layout::NZCV);
        let bit = match cond >> 1 {
            0 => 30,
            1 => 29,
            2 => 31,
            3 => 28,
            _ => {
                self.asm.shift_i(super::asm::Sh::Shr, false, RAX, 28);
                self.asm.mov_i(RCX, HOLDS[cond as usize].into());
                self.asm.bt(false, RCX, RAX);
                return Cc::B;
            }
        };
        self.asm.test_i(false, RAX, (1_u32 << bit) as i32);
        if cond & 1 == 1 { Cc::E } else { Cc::NE }
    }
}
