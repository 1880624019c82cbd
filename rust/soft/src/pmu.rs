//! The performance monitor (Arm ARM, D13 and D24.5): six event counters and the cycle counter, of 64 bits each.
//!
//! What is counted is instructions, which the run loop's fuel counts anyway: a cycle is an instruction here, and none
//! pass while a vCPU sleeps. Nothing is added up while code runs. A counter's value is worked out where it is read,
//! where the exception level or the unit's control changes, and at the latest when the earliest overflow is due, which
//! the run loop looks for each time that it looks around.

use crate::id::SysReg;

/// PPI of the overflow interrupt (Arm BSA, PPI assignments).
pub(crate) const PPI: u32 = 23;
/// ID_AA64DFR0_EL1.PMUVer: FEAT_PMUv3p5, whose event counters have 64 bits.
pub(crate) const VERSION: u64 = 6;

const EVENTS: usize = 6;
/// PMCCNTR_EL0 is behind the event counters here, and bit 31 in the registers.
const CYCLES: usize = EVENTS;
const COUNTERS: usize = EVENTS + 1;
/// The event counters' bits in registers.
const EVENT_BITS: u64 = (1 << EVENTS) - 1;

/// PMCR_EL0: enable, reset of event counters and of the cycle counter, no cycles where counting is prohibited, long
/// cycle counter (RES1 without AArch32), long event counters.
const E: u64 = 1;
const P: u64 = 1 << 1;
const C: u64 = 1 << 2;
const DP: u64 = 1 << 5;
const LC: u64 = 1 << 6;
const LP: u64 = 1 << 7;
/// Writable bits that stay.
const CONTROL: u64 = E | DP | LP;

/// PMEVTYPER<n>_EL0: not at EL1, not at EL0, and the event.
const NOT_EL1: u64 = 1 << 31;
const NOT_EL0: u64 = 1 << 30;
const EVENT: u64 = 0xffff;

const SW_INCR: u64 = 0x00;
const INST_RETIRED: u64 = 0x08;
const CPU_CYCLES: u64 = 0x11;
/// PMCEID0_EL0 and PMCEID1_EL0: those, and the stalls that FEAT_PMUv3p1 and FEAT_PMUv3p4 want (0x23, 0x24, 0x3c), of
/// which there are none.
const COMMON: [u64; 2] = [1 << SW_INCR | 1 << INST_RETIRED | 1 << CPU_CYCLES, 1 << 3 | 1 << 4 | 1 << 28];

/// PMUSERENR_EL0: all, software increments, reads of the cycle counter and of event counters.
const USER_ALL: u8 = 1;
const USER_INCREMENT: u8 = 2;
const USER_CYCLES: u8 = 4;
const USER_EVENTS: u8 = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    /// As of [`Pmu::at`].
    value: u64,
    /// PMEVTYPER<n>_EL0 or PMCCFILTR_EL0.
    filter: u64,
}

/// The performance monitor of a vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Pmu {
    control: u64,
    /// PMCNTENSET_EL0, PMINTENSET_EL1 and PMOVSSET_EL0, a bit for each of `counters`.
    on: u64,
    interrupts: u64,
    overflowed: u64,
    user: u8,
    selected: u8,
    counters: [Counter; COUNTERS],
    /// Instructions that the vCPU had run when the counters were last brought up to date.
    at: u64,
    /// Instructions that it will have run when the earliest interrupt of an overflow comes; the largest for none.
    pub due: u64,
    /// Whether something counts, so that changes of the exception level matter.
    pub active: bool,
    /// The interrupt line's level as it was last told.
    pub line: bool,
}

impl Default for Pmu {
    fn default() -> Self {
        Self {
            control: LP,
            on: 0,
            interrupts: 0,
            overflowed: 0,
            user: 0,
            selected: 0,
            counters: [Counter::default(); COUNTERS],
            at: 0,
            due: u64::MAX,
            active: false,
            line: false,
        }
    }
}

/// What a register of the unit is.
enum Place {
    Control,
    Enabled { set: bool },
    Interrupts { set: bool },
    Overflowed { set: bool },
    Increment,
    Select,
    Common(usize),
    Count(usize),
    Filter(usize),
    User,
    Slots,
}

impl Pmu {
    fn place(&self, r: u16) -> Option<Place> {
        let selected = usize::from(self.selected);
        Some(match r {
            0xdce0 => Place::Control,
            0xdce1 | 0xdce2 => Place::Enabled { set: r & 1 == 1 },
            0xc4f1 | 0xc4f2 => Place::Interrupts { set: r & 1 == 1 },
            0xdce3 => Place::Overflowed { set: false },
            0xdcf3 => Place::Overflowed { set: true },
            0xdce4 => Place::Increment,
            0xdce5 => Place::Select,
            0xdce6 | 0xdce7 => Place::Common(usize::from(r & 1)),
            0xdce8 => Place::Count(CYCLES),
            // PMXEVTYPER_EL0 and PMXEVCNTR_EL0; 31 selects PMCCFILTR_EL0.
            0xdce9 => Place::Filter(if selected == 31 { CYCLES } else { selected.min(COUNTERS) }),
            0xdcea => Place::Count(if selected < EVENTS { selected } else { COUNTERS }),
            0xdcf0 => Place::User,
            0xc4f6 => Place::Slots,
            0xdf40..0xdf46 => Place::Count(usize::from(r - 0xdf40)),
            0xdf60..0xdf66 => Place::Filter(usize::from(r - 0xdf60)),
            0xdf7f => Place::Filter(CYCLES),
            _ => return None,
        })
    }

    /// Whether EL0 may access one of the unit's registers.
    pub(crate) fn is_open(&self, r: u16, write: bool) -> bool {
        let wanted = match self.place(r) {
            Some(Place::User) => return true,
            Some(Place::Increment) => USER_INCREMENT,
            Some(Place::Count(CYCLES)) if !write => USER_CYCLES,
            Some(Place::Count(_)) if !write => USER_EVENTS,
            Some(Place::Select) => USER_EVENTS,
            _ => 0,
        };
        self.user & (USER_ALL | wanted) != 0
    }

    /// A register's value; `None` where there is none to read. `now`: instructions run; `el`: the exception level.
    pub(crate) fn read(&self, r: u16, now: u64, el: u8) -> Option<u64> {
        let passed = now.wrapping_sub(self.at);
        Some(match self.place(r)? {
            Place::Control => (EVENTS as u64) << 11 | LC | self.control,
            Place::Enabled { .. } => to_bits(self.on),
            Place::Interrupts { .. } => to_bits(self.interrupts),
            Place::Overflowed { .. } => {
                let passing = (0..COUNTERS).filter(|n| self.counts(*n, el) && passed > self.room(*n));
                to_bits(passing.fold(self.overflowed, |all, n| all | 1 << n))
            }
            Place::Select => u64::from(self.selected),
            Place::Common(n) => COMMON[n],
            Place::Count(n @ 0..COUNTERS) => {
                self.counters[n].value.wrapping_add(if self.counts(n, el) { passed } else { 0 })
            }
            Place::Filter(n @ 0..COUNTERS) => self.counters[n].filter,
            Place::Count(_) | Place::Filter(_) | Place::Slots => 0,
            Place::User => u64::from(self.user),
            Place::Increment => return None,
        })
    }

    /// Writes a register; `None` where there is none to write.
    pub(crate) fn write(&mut self, r: u16, v: u64, now: u64, el: u8) -> Option<()> {
        self.advance(now, el);
        let change = |held: &mut u64, set| if set { *held |= from_bits(v) } else { *held &= !from_bits(v) };
        match self.place(r)? {
            Place::Control => {
                self.control = v & CONTROL;
                let (events, cycles) = self.counters.split_at_mut(CYCLES);
                if v & P != 0 {
                    events.iter_mut().for_each(|counter| counter.value = 0);
                }
                if v & C != 0 {
                    cycles[0].value = 0;
                }
            }
            Place::Enabled { set } => change(&mut self.on, set),
            Place::Interrupts { set } => change(&mut self.interrupts, set),
            Place::Overflowed { set } => change(&mut self.overflowed, set),
            Place::Increment => {
                for n in 0..EVENTS {
                    if v >> n & 1 == 1 && self.is_on(n, el) && self.counters[n].filter & EVENT == SW_INCR {
                        self.add(n, 1);
                    }
                }
            }
            Place::Select => self.selected = (v & 31) as u8,
            Place::Count(n @ 0..COUNTERS) => self.counters[n].value = v,
            Place::Filter(CYCLES) => self.counters[CYCLES].filter = v & (NOT_EL1 | NOT_EL0),
            Place::Filter(n @ 0..COUNTERS) => self.counters[n].filter = v & (NOT_EL1 | NOT_EL0 | EVENT),
            Place::Count(_) | Place::Filter(_) => {}
            Place::User => self.user = (v & 15) as u8,
            Place::Common(_) | Place::Slots => return None,
        }
        self.plan(el);
        Some(())
    }

    /// Gives one of [`SysReg::PMU`] the value that `read` gave.
    pub(crate) fn restore(&mut self, r: u16, v: u64, now: u64, el: u8) -> Option<()> {
        self.advance(now, el);
        match self.place(r)? {
            Place::Control => self.control = v & CONTROL,
            Place::Enabled { .. } => self.on = from_bits(v),
            Place::Interrupts { .. } => self.interrupts = from_bits(v),
            Place::Overflowed { .. } => self.overflowed = from_bits(v),
            _ => return self.write(r, v, now, el),
        }
        self.plan(el);
        Some(())
    }

    /// Whether a counter is on at this level, whatever its event.
    fn is_on(&self, n: usize, el: u8) -> bool {
        let barred = if el == 0 { NOT_EL0 } else { NOT_EL1 };
        self.control & E != 0 && self.on >> n & 1 == 1 && self.counters[n].filter & barred == 0
    }

    /// Whether a counter counts instructions at this level.
    fn counts(&self, n: usize, el: u8) -> bool {
        let event = self.counters[n].filter & EVENT;
        self.is_on(n, el) && (n == CYCLES || matches!(event, INST_RETIRED | CPU_CYCLES))
    }

    /// What a counter can count without an overflow.
    fn room(&self, n: usize) -> u64 {
        let value = self.counters[n].value;
        if n == CYCLES || self.control & LP != 0 { !value } else { u64::from(!value as u32) }
    }

    fn add(&mut self, n: usize, passed: u64) {
        if passed > self.room(n) {
            self.overflowed |= 1 << n;
        }
        self.counters[n].value = self.counters[n].value.wrapping_add(passed);
    }

    /// Brings the counters up to date, which have counted at this level since the last time.
    pub(crate) fn advance(&mut self, now: u64, el: u8) {
        let passed = now.wrapping_sub(self.at);
        self.at = now;
        for n in 0..COUNTERS {
            if self.counts(n, el) {
                self.add(n, passed);
            }
        }
    }

    /// Works out what is to come, the counters being up to date, at this level.
    pub(crate) fn plan(&mut self, el: u8) {
        self.active = self.control & E != 0 && self.on != 0;
        let counting = (0..COUNTERS).filter(|n| self.interrupts >> n & 1 == 1 && self.counts(*n, el));
        let room = counting.map(|n| self.room(n)).min().unwrap_or(u64::MAX);
        self.due = self.at.saturating_add(room.saturating_add(1));
    }

    /// Whether the overflow interrupt is pending.
    pub(crate) fn interrupt(&self) -> bool {
        self.control & E != 0 && self.overflowed & self.interrupts != 0
    }
}

/// Whether a register is one of the unit's.
pub(crate) fn is_pmu(r: u16) -> bool {
    matches!(r, 0xdce0..=0xdcea | 0xdcf0 | 0xdcf3 | 0xc4f1 | 0xc4f2 | 0xc4f6 | 0xdf40..=0xdf45 | 0xdf60..=0xdf65 | 0xdf7f)
}

/// Counters as registers have them: the cycle counter is bit 31.
fn to_bits(counters: u64) -> u64 {
    counters & EVENT_BITS | counters >> CYCLES << 31
}

fn from_bits(bits: u64) -> u64 {
    bits & EVENT_BITS | (bits >> 31 & 1) << CYCLES
}

const _: () = assert!(
    SysReg::new(3, 3, 9, 12, 0).0 == 0xdce0
        && SysReg::new(3, 0, 9, 14, 1).0 == 0xc4f1
        && SysReg::new(3, 3, 14, 12, 0).0 == 0xdf60
        && SysReg::new(3, 3, 14, 15, 7).0 == 0xdf7f
);
