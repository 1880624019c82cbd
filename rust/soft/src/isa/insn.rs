//! Instructions by name, with what the interpreter, the translator and the disassembler need to know of each.
//!
//! Registers are by the decoder's index (see [`crate::Regs`]): 31 is the stack pointer, 32 reads as zero, 33 takes what
//! goes nowhere. Vector registers are 0 to 31. Fields are named as in the Arm ARM: `d` is written, `n`, `m` and `a` are
//! read, `t` and `u` are what a load or store transfers.

/// A register by the decoder's index.
pub(crate) type Reg = u8;

/// Kinds of shifts, as instructions number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Lsl,
    Lsr,
    Asr,
    Ror,
}

impl Shift {
    pub(crate) fn of(kind: u32) -> Self {
        [Self::Lsl, Self::Lsr, Self::Asr, Self::Ror][kind as usize & 3]
    }
}

/// The second operand of an arithmetic or logical instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Imm(u64),
    Reg(Reg),
    Shifted(Reg, Shift, u8),
    /// UXTB to SXTX, and a shift left.
    Extended(Reg, u8, u8),
}

/// How a constant is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Constant {
    /// These 16 bits, or the inverse, shifted left.
    Movz {
        shift: u8,
    },
    Movn {
        shift: u8,
    },
    Orr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alu {
    Add,
    Sub,
    And,
    Orr,
    Eor,
}

/// How the address of a load or store is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// Base and offset: a multiple of the size, or (LDUR and its kind) any.
    Offset(Reg, i64),
    Unscaled(Reg, i64),
    /// The base takes the sum, before or after.
    Pre(Reg, i64),
    Post(Reg, i64),
    /// Base, index, how the index is extended (UXTW 2, SXTW 6, all of it otherwise), shift left.
    Index(Reg, Reg, u8, u8),
    /// From the page of PC.
    Page(i64),
}

/// A register that is loaded or stored: how many bytes (as a power of two), and whether a load extends the sign, to 64
/// bits or to 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub store: bool,
    pub size: u8,
    pub signed: bool,
    pub wide: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Select {
    Csel,
    Csinc,
    Csinv,
    Csneg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Rbit,
    Rev16,
    /// The bytes of each 32 bits.
    Rev32,
    Rev,
    Clz,
    Cls,
}

/// Which acquiring load or releasing store: LDAR and STLR; LDLAR and STLLR, which order less; LDAPR, which is LDAR
/// here; and those with an offset, LDAPUR and STLUR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acquire {
    Ordered,
    Limited,
    Consistent,
    Unscaled,
}

/// What an atomic operation does, as instructions number it; SWP is last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rmw {
    Add,
    Clr,
    Eor,
    Set,
    Smax,
    Smin,
    Umax,
    Umin,
    Swp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exception {
    Svc,
    Hvc,
    Smc,
    Brk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    Dsb,
    Dmb,
    Isb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagOp {
    Cfinv,
    Xaflag,
    Axflag,
}

/// Fields of PSTATE that take an immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pstate {
    SpSel,
    Pan,
    DaifSet,
    DaifClr,
}

/// Lane-wise operations on vector registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    And,
    Bic,
    Orr,
    Eor,
    Add,
    Sub,
}

/// One instruction. `wide` says that it is of 64 bits; distances of branches count from the start of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Insn {
    /// NOP, YIELD, WFE, WFI and the other hints, by number.
    Hint {
        number: u8,
    },
    /// MOVZ, MOVN, and ORR of an immediate with zero.
    Const {
        by: Constant,
        wide: bool,
        d: Reg,
        value: u64,
    },
    Movk {
        d: Reg,
        shift: u8,
        value: u64,
        wide: bool,
    },
    /// ADR and ADRP: page of PC plus `offset`.
    Adr {
        d: Reg,
        page: bool,
        offset: i64,
    },
    Alu {
        op: Alu,
        wide: bool,
        flags: bool,
        invert: bool,
        d: Reg,
        n: Reg,
        m: Operand,
    },
    Adc {
        sub: bool,
        wide: bool,
        flags: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// Shift by an immediate.
    Shift {
        kind: Shift,
        wide: bool,
        d: Reg,
        n: Reg,
        by: u8,
    },
    ShiftBy {
        kind: Shift,
        wide: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// UBFM and SBFM that are no shift: `width` bits from `from` on go to bit `to`, zeros or the sign above them.
    Field {
        signed: bool,
        wide: bool,
        d: Reg,
        n: Reg,
        from: u8,
        to: u8,
        width: u8,
    },
    /// BFM: those bits are put into `d`.
    Insert {
        wide: bool,
        d: Reg,
        n: Reg,
        from: u8,
        to: u8,
        width: u8,
    },
    Extract {
        wide: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        from: u8,
    },
    Madd {
        wide: bool,
        sub: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        a: Reg,
    },
    /// 32 by 32 bits.
    Maddl {
        signed: bool,
        sub: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        a: Reg,
    },
    Mulh {
        signed: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// CRC32 and CRC32C of `1 << size` bytes.
    Crc32 {
        castagnoli: bool,
        size: u8,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// Rotates `n` right and puts its low four bits into the flags of `mask`.
    Rmif {
        n: Reg,
        rotate: u8,
        mask: u8,
    },
    /// SETF8 and SETF16.
    Setf {
        bits: u8,
        n: Reg,
    },
    Div {
        signed: bool,
        wide: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    Unary {
        op: Unary,
        wide: bool,
        d: Reg,
        n: Reg,
    },
    Select {
        kind: Select,
        wide: bool,
        d: Reg,
        n: Reg,
        m: Reg,
        cond: u8,
    },
    /// CCMP, and CCMN where `add`.
    Ccmp {
        add: bool,
        wide: bool,
        n: Reg,
        m: Operand,
        cond: u8,
        nzcv: u8,
    },
    Mem {
        access: Access,
        t: Reg,
        address: Address,
    },
    /// LDTR, STTR and their kind: with the rights of EL0.
    Unprivileged {
        access: Access,
        t: Reg,
        n: Reg,
        offset: i64,
    },
    /// A prefetch: nothing.
    Prfm {
        operation: u8,
        address: Address,
    },
    /// LDAR, LDLAR, LDAPR and LDAPUR.
    LoadAcquire {
        access: Access,
        by: Acquire,
        t: Reg,
        n: Reg,
        offset: i64,
    },
    /// STLR, STLLR and STLUR; never LDAPR's kind.
    StoreRelease {
        access: Access,
        by: Acquire,
        t: Reg,
        n: Reg,
        offset: i64,
    },
    /// LDXR and LDAXR of `1 << size` bytes.
    LoadExclusive {
        size: u8,
        acquire: bool,
        t: Reg,
        n: Reg,
    },
    /// STXR and STLXR; `s` takes the outcome.
    StoreExclusive {
        size: u8,
        release: bool,
        s: Reg,
        t: Reg,
        n: Reg,
    },
    LoadExclusivePair {
        wide: bool,
        acquire: bool,
        t: Reg,
        u: Reg,
        n: Reg,
    },
    StoreExclusivePair {
        wide: bool,
        release: bool,
        s: Reg,
        t: Reg,
        u: Reg,
        n: Reg,
    },
    /// `s` is compared and takes what was there (`to`, which is nowhere for register 31), `t` is stored.
    Cas {
        size: u8,
        acquire: bool,
        release: bool,
        s: Reg,
        to: Reg,
        t: Reg,
        n: Reg,
    },
    /// The same with pairs of registers, of which the first are named by number: 31 is not among them.
    Casp {
        wide: bool,
        acquire: bool,
        release: bool,
        s: Reg,
        t: Reg,
        n: Reg,
    },
    /// LDADD and its kind, and SWP: `s` is the operand, `t` takes what was there.
    Rmw {
        op: Rmw,
        size: u8,
        acquire: bool,
        release: bool,
        s: Reg,
        t: Reg,
        n: Reg,
    },
    /// LD1 to LD4, ST1 to ST4, of whole registers and of one lane: by their encoding.
    Structures {
        word: u32,
        single: bool,
    },
    Pair {
        access: Access,
        /// LDNP and STNP, here and in [`Insn::Vpair`].
        nontemporal: bool,
        t: Reg,
        u: Reg,
        address: Address,
    },
    /// Of vector registers; `size` up to 4.
    Vmem {
        store: bool,
        size: u8,
        t: Reg,
        address: Address,
    },
    Vpair {
        store: bool,
        nontemporal: bool,
        size: u8,
        t: Reg,
        u: Reg,
        address: Address,
    },
    /// Lanes of `1 << size` bytes; 64 bits of the registers, or all 128 where `full`.
    Lanes {
        op: Lanes,
        size: u8,
        full: bool,
        d: Reg,
        n: Reg,
        m: Reg,
    },
    /// FMOV between a general register and the low half of a vector register.
    FromVector {
        wide: bool,
        d: Reg,
        n: Reg,
    },
    ToVector {
        wide: bool,
        d: Reg,
        n: Reg,
    },
    /// FMOV of a scalar, 4 or 8 bytes.
    Fmov {
        wide: bool,
        d: Reg,
        n: Reg,
    },
    B {
        link: bool,
        to: i64,
    },
    Bcond {
        cond: u8,
        to: i64,
    },
    Cbz {
        wide: bool,
        nonzero: bool,
        t: Reg,
        to: i64,
    },
    Tbz {
        bit: u8,
        nonzero: bool,
        t: Reg,
        to: i64,
    },
    /// BR, BLR and RET.
    Indirect {
        link: bool,
        ret: bool,
        n: Reg,
    },
    /// SVC, HVC, SMC and BRK.
    Exception {
        kind: Exception,
        imm: u16,
    },
    Eret,
    /// DSB, DMB and ISB with their option.
    Barrier {
        kind: Barrier,
        option: u8,
    },
    Sb,
    Clrex {
        option: u8,
    },
    /// CFINV, XAFLAG and AXFLAG.
    Flags {
        op: FlagOp,
    },
    /// MRS and MSR of a register by its encoding (see [`crate::id::SysReg`]).
    Mrs {
        t: Reg,
        register: u16,
    },
    Msr {
        t: Reg,
        register: u16,
    },
    /// MSR of an immediate to a field of PSTATE.
    MsrImm {
        field: Pstate,
        imm: u8,
    },
    /// Cache and TLB maintenance and address translation, by the encoding of registers.
    Sys {
        t: Reg,
        op: u16,
    },
    /// Another instruction of "Data Processing -- Scalar Floating-Point and Advanced SIMD"; `fp` has a handler for its
    /// word if it is allocated.
    Simd,
    Undefined,
}
