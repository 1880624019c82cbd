//! A bare arm64 guest that has something in registers of every class, in instructions made from tables. It sets them,
//! stores what it finds and rings; then, perhaps in another VM, it stores what it finds again and rings again.

use supermachine_engine::arm64::{IccReg, SysReg};

use crate::common::{CONFIG, RAM};

/// Where the guest stores what it finds, first and then; what one register takes depends on its class.
pub(crate) const FOUND: [u64; 2] = [RAM + 0x6000, RAM + 0xb000];
/// An address that nothing answers at: the guest rings by a store to it.
pub(crate) const DOORBELL: u64 = 0x0100_0000;

/// What the guest's CPU has beside what all have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Has {
    /// FEAT_SVE.
    pub scalable_vectors: bool,
    /// FEAT_PAuth, with addresses.
    pub address_keys: bool,
    /// FEAT_PAuth, with generic authentication.
    pub generic_key: bool,
}

impl Has {
    /// By the names that a snapshot records.
    pub(crate) fn of(features: &[String]) -> Self {
        let has = |name: &str| features.iter().any(|feature| feature.split('=').next() == Some(name));
        Self {
            scalable_vectors: has("SVE"),
            address_keys: has("APA") || has("API"),
            generic_key: has("GPA") || has("GPI"),
        }
    }
}

/// System registers that are as they are set (Arm ARM, D24), none of which changes what the guest does next: its MMU is
/// off, interrupts are masked, breakpoints and watchpoints are disabled.
const SYSTEM: [(&str, SysReg, u64); 28] = [
    ("MDSCR_EL1", SysReg::new(2, 0, 0, 2, 2), 1 << 12),
    ("DBGBVR0_EL1", SysReg::new(2, 0, 0, 0, 4), 0x1004),
    ("DBGBCR0_EL1", SysReg::new(2, 0, 0, 0, 5), 0x1e4),
    ("DBGWVR0_EL1", SysReg::new(2, 0, 0, 0, 6), 0x2008),
    ("DBGWCR0_EL1", SysReg::new(2, 0, 0, 0, 7), 0x1ffc),
    ("SCTLR_EL1", SysReg::SCTLR_EL1, 0x30c5_1838),
    ("TTBR0_EL1", SysReg::TTBR0_EL1, 0x1234_0000_5678_9000),
    ("TTBR1_EL1", SysReg::TTBR1_EL1, 0x4321_0000_8765_a000),
    ("TCR_EL1", SysReg::TCR_EL1, 0x0000_0035_b519_3519),
    ("MAIR_EL1", SysReg::MAIR_EL1, 0xff44_0c04_00ff_4404),
    ("VBAR_EL1", SysReg::VBAR_EL1, RAM + 0x5800),
    ("SPSR_EL1", SysReg::SPSR_EL1, 0x6000_03c5),
    ("ELR_EL1", SysReg::ELR_EL1, 0x1111_2222_3333_4440),
    ("SP_EL0", SysReg::SP_EL0, 0x5555_6666_7777_8880),
    ("ESR_EL1", SysReg::ESR_EL1, 0x9600_0047),
    ("FAR_EL1", SysReg::FAR_EL1, 0x9999_aaaa_bbbb_ccc1),
    ("PAR_EL1", SysReg::PAR_EL1, 0x0000_0001_2345_6b80),
    ("CONTEXTIDR_EL1", SysReg::CONTEXTIDR_EL1, 0xdead_beef),
    ("TPIDR_EL0", SysReg::TPIDR_EL0, 0x0101_0202_0303_0404),
    ("TPIDRRO_EL0", SysReg::TPIDRRO_EL0, 0x0505_0606_0707_0808),
    ("TPIDR_EL1", SysReg::TPIDR_EL1, 0x0909_0a0a_0b0b_0c0c),
    ("CSSELR_EL1", SysReg::CSSELR_EL1, 2),
    ("CNTKCTL_EL1", SysReg::CNTKCTL_EL1, 3),
    ("CNTV_CVAL_EL0", SysReg::CNTV_CVAL_EL0, 0x00ff_eeee_dddd_cccc),
    // Enabled and masked.
    ("CNTV_CTL_EL0", SysReg::CNTV_CTL_EL0, 3),
    ("FPCR", SysReg::new(3, 3, 4, 4, 0), 0x03c0_0000),
    ("FPSR", SysReg::new(3, 3, 4, 4, 1), 0x0800_001f),
    ("NZCV", SysReg::new(3, 3, 4, 2, 0), 0xa000_0000),
];

/// The CPU interface (Arm IHI 0069, 12.2).
const CPU_INTERFACE: [(&str, SysReg, u64); 5] = [
    ("ICC_PMR_EL1", SysReg(IccReg::PMR_EL1.0), 0xa8),
    ("ICC_BPR0_EL1", SysReg(IccReg::BPR0_EL1.0), 5),
    ("ICC_BPR1_EL1", SysReg(IccReg::BPR1_EL1.0), 6),
    ("ICC_IGRPEN0_EL1", SysReg(IccReg::IGRPEN0_EL1.0), 1),
    ("ICC_IGRPEN1_EL1", SysReg(IccReg::IGRPEN1_EL1.0), 1),
];

/// Keys of pointer authentication (Arm ARM, D24.2): those of addresses, then the generic one's.
const KEYS: [(&str, SysReg); 10] = [
    ("APIAKeyLo_EL1", SysReg::new(3, 0, 2, 1, 0)),
    ("APIAKeyHi_EL1", SysReg::new(3, 0, 2, 1, 1)),
    ("APIBKeyLo_EL1", SysReg::new(3, 0, 2, 1, 2)),
    ("APIBKeyHi_EL1", SysReg::new(3, 0, 2, 1, 3)),
    ("APDAKeyLo_EL1", SysReg::new(3, 0, 2, 2, 0)),
    ("APDAKeyHi_EL1", SysReg::new(3, 0, 2, 2, 1)),
    ("APDBKeyLo_EL1", SysReg::new(3, 0, 2, 2, 2)),
    ("APDBKeyHi_EL1", SysReg::new(3, 0, 2, 2, 3)),
    ("APGAKeyLo_EL1", SysReg::new(3, 0, 2, 3, 0)),
    ("APGAKeyHi_EL1", SysReg::new(3, 0, 2, 3, 1)),
];
const ADDRESS_KEYS: usize = 8;

/// FEAT_SVE's control register; all lengths that there are.
const ZCR_EL1: SysReg = SysReg::new(3, 0, 1, 2, 0);

/// The interrupt controller's memory-mapped registers, 32 bits each (Arm IHI 0069, 12.9 and 12.11): what is written,
/// and what must then be set in what is read.
const CONTROLLER: [(&str, u64, u32); 13] = [
    ("GICD_CTLR", CONFIG.gicd_base, 0x12),
    ("GICD_ISENABLER1", CONFIG.gicd_base + 0x104, 0x00a5_0081),
    ("GICD_ISPENDR1", CONFIG.gicd_base + 0x204, 0x0000_0108),
    ("GICD_ISACTIVER1", CONFIG.gicd_base + 0x304, 0x0000_0220),
    ("GICD_IPRIORITYR8", CONFIG.gicd_base + 0x420, 0x4030_2010),
    ("GICD_IPRIORITYR31", CONFIG.gicd_base + 0x47c, 0x8898_a8b8),
    ("GICD_ICFGR2", CONFIG.gicd_base + 0xc08, 0x0002_0082),
    ("GICR_ISENABLER0", CONFIG.gicr_base + 0x1_0100, 0x0800_00f3),
    ("GICR_ISPENDR0", CONFIG.gicr_base + 0x1_0200, 0x0080_0004),
    ("GICR_ISACTIVER0", CONFIG.gicr_base + 0x1_0300, 0x0100_0008),
    ("GICR_IPRIORITYR0", CONFIG.gicr_base + 0x1_0400, 0x2858_80f0),
    ("GICR_IPRIORITYR6", CONFIG.gicr_base + 0x1_0418, 0xa000_5030),
    ("GICR_IPRIORITYR7", CONFIG.gicr_base + 0x1_041c, 0x0808_1010),
];

/// One register in what the guest has stored.
pub(crate) struct Place {
    pub name: String,
    /// From [`FOUND`].
    pub offset: u64,
    pub bytes: u64,
    /// What is set in it.
    pub expected: Vec<u8>,
}

/// The guest's instructions, and where it stores what.
pub(crate) struct Guest {
    pub code: Vec<u32>,
    pub places: Vec<Place>,
}

/// X0 is for whatever comes up, X1 where to store.
const SCRATCH: u32 = 0;
const BASE: u32 = 1;

impl Guest {
    pub(crate) fn new(has: Has) -> Self {
        let mut code = Vec::new();
        let system = system(has);
        // Vector instructions, scalable ones too, are trapped no more (CPACR_EL1.FPEN, ZEN).
        set(&mut code, SysReg::CPACR_EL1, (3 << 20) | (u64::from(has.scalable_vectors) * (3 << 16)));
        code.push(ISB);
        if has.scalable_vectors {
            set(&mut code, ZCR_EL1, 0xf);
            code.push(ISB);
            set_scalable(&mut code);
        } else {
            set_vectors(&mut code);
        }
        for (_, address, value) in CONTROLLER {
            number(&mut code, SCRATCH, address);
            number(&mut code, 2, value.into());
            code.push(0xb900_0000 | SCRATCH << 5 | 2); // STR W2, [X0]
        }
        for n in 2..31 {
            number(&mut code, n, general(n));
        }
        for (_, register, value) in &system {
            set(&mut code, *register, *value);
        }
        code.push(ISB);
        let mut places = Vec::new();
        for base in FOUND {
            places = store(&mut code, base, &system, has);
            number(&mut code, SCRATCH, DOORBELL);
            code.push(0xb900_0000 | SCRATCH << 5); // STR W0, [X0]
        }
        assert!(code.len() * 4 < 0x5800);
        assert!(places.iter().all(|place| place.offset + place.bytes <= FOUND[1] - FOUND[0]));
        Self { code, places }
    }
}

const ISB: u32 = 0xd503_3fdf;

/// What general register `n` holds.
fn general(n: u32) -> u64 {
    0x0123_4567_89ab_cdef_u64.rotate_left(n) ^ u64::from(n) << 56
}

fn system(has: Has) -> Vec<(&'static str, SysReg, u64)> {
    let keys = match (has.address_keys, has.generic_key) {
        (true, true) => &KEYS[..],
        (true, false) => &KEYS[..ADDRESS_KEYS],
        (false, true) => &KEYS[ADDRESS_KEYS..],
        (false, false) => &[],
    };
    let keys = keys.iter().enumerate().map(|(n, (name, register))| (*name, *register, !general(n as u32)));
    let scalable = has.scalable_vectors.then_some(("ZCR_EL1", ZCR_EL1, 0xf));
    CPU_INTERFACE.into_iter().chain(keys).chain(scalable).chain(SYSTEM).collect()
}

/// MOVZ and MOVK.
fn number(code: &mut Vec<u32>, x: u32, value: u64) {
    for n in 0..4 {
        let part = (value >> (16 * n)) as u32 & 0xffff;
        let move_wide = if n == 0 { 0xd280_0000 } else { 0xf280_0000 };
        code.push(move_wide | n << 21 | part << 5 | x);
    }
}

/// MSR.
fn set(code: &mut Vec<u32>, register: SysReg, value: u64) {
    number(code, SCRATCH, value);
    code.push(0xd500_0000 | u32::from(register.0) << 5 | SCRATCH);
}

/// MRS.
fn get(code: &mut Vec<u32>, register: SysReg) {
    code.push(0xd520_0000 | u32::from(register.0) << 5 | SCRATCH);
}

fn set_vectors(code: &mut Vec<u32>) {
    for n in 0..32 {
        number(code, SCRATCH, general(n));
        code.push(0x4e08_0c00 | SCRATCH << 5 | n); // DUP Vn.2D, X0
        number(code, SCRATCH, !general(n));
        code.push(0x4e18_1c00 | SCRATCH << 5 | n); // MOV Vn.D[1], X0
    }
}

fn vector(n: u32) -> Vec<u8> {
    [general(n).to_le_bytes(), (!general(n)).to_le_bytes()].concat()
}

/// First value of a scalable vector register's bytes, and by how much each is more than the one before.
fn series(n: u32) -> (i8, i8) {
    (n as i8 / 2 - 8, n as i8 / 2 - (n % 2) as i8 * 15)
}

fn set_scalable(code: &mut Vec<u32>) {
    let five = |value: i8| value as u32 & 0x1f;
    for n in 0..32 {
        let (first, step) = series(n);
        code.push(0x0420_4000 | five(step) << 16 | five(first) << 5 | n); // INDEX Zn.B, #first, #step
    }
    // The first-fault register takes only what is set from its start on.
    code.push(0x2518_e000 | 5 << 5); // PTRUE P0.B, VL5
    code.push(0x2528_9000); // WRFFR P0.B
    for n in 0..15 {
        code.push(0x2518_e000 | (n % 8 + 1) << 5 | n); // PTRUE Pn.B, VL1..VL8
    }
}

/// STR Xn, [X1, #offset].
fn keep(code: &mut Vec<u32>, n: u32, offset: u64) {
    code.push(0xf900_0000 | (offset as u32 / 8) << 10 | BASE << 5 | n);
}

/// Stores everything from `base` on; tells where what is.
fn store(code: &mut Vec<u32>, base: u64, system: &[(&'static str, SysReg, u64)], has: Has) -> Vec<Place> {
    /// The longest that scalable vectors can be, and their predicates.
    const VECTOR: u64 = 256;
    const PREDICATE: u64 = VECTOR / 8;
    let mut places: Vec<Place> = Vec::new();
    // At a multiple of its size; `base` is one of the largest.
    let mut place = |name: String, bytes: u64, expected: Vec<u8>| {
        let end = places.last().map_or(0, |last| last.offset + last.bytes);
        let offset = end.next_multiple_of(bytes);
        places.push(Place { name, offset, bytes, expected });
        offset
    };
    number(code, BASE, base);
    for n in 2..31 {
        keep(code, n, place(format!("X{n}"), 8, general(n).to_le_bytes().into()));
    }
    for (name, register, value) in system {
        get(code, *register);
        keep(code, SCRATCH, place((*name).into(), 8, value.to_le_bytes().into()));
    }
    for (name, address, value) in CONTROLLER {
        number(code, SCRATCH, address);
        code.push(0xb940_0000 | SCRATCH << 5 | SCRATCH); // LDR W0, [X0]
        keep(code, SCRATCH, place(name.into(), 8, u64::from(value).to_le_bytes().into()));
    }
    if !has.scalable_vectors {
        for n in 0..32 {
            number(code, SCRATCH, base + place(format!("V{n}"), 16, vector(n)));
            code.push(0x3d80_0000 | SCRATCH << 5 | n); // STR Qn, [X0]
        }
        return places;
    }
    for n in 0..32 {
        let (first, step) = series(n);
        // However long vectors are, their first bytes.
        let expected = (0..16_i8).map(|byte| first.wrapping_add(byte.wrapping_mul(step)) as u8);
        number(code, SCRATCH, base + place(format!("Z{n}"), VECTOR, expected.collect()));
        code.push(0xe580_4000 | SCRATCH << 5 | n); // STR Zn, [X0]
    }
    let ones = |count: u32| vec![((1_u32 << count) - 1) as u8, 0];
    for n in 0..15 {
        number(code, SCRATCH, base + place(format!("P{n}"), PREDICATE, ones(n % 8 + 1)));
        code.push(0xe580_0000 | SCRATCH << 5 | n); // STR Pn, [X0]
    }
    code.push(0x2519_f00f); // RDFFR P15.B
    number(code, SCRATCH, base + place("FFR".into(), PREDICATE, ones(5)));
    code.push(0xe580_000f | SCRATCH << 5); // STR P15, [X0]
    places
}
