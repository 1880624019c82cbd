//! Self-hosted debug: software step, breakpoints and watchpoints (Arm ARM, D2), and the registers behind them.
//!
//! Code that nobody debugs pays nothing. Where there is a watchpoint the TLB holds no entry for its pages, so that
//! accesses take the slow path and are compared there. Where there is a breakpoint, or a step, the run loop takes one
//! instruction at a time: see `Cpu::debugged`.

use crate::cpu::Cpu;
use crate::id::SysReg;
use crate::sysreg::Sysop;

/// What ID_AA64DFR0_EL1 announces; the last breakpoint is the one that can compare CONTEXTIDR_EL1.
pub(crate) const BREAKPOINTS: usize = 6;
pub(crate) const WATCHPOINTS: usize = 4;
const CONTEXT: usize = BREAKPOINTS - 1;

/// MDSCR_EL1.
const SS: u64 = 1;
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;
/// With TDCC, which lets EL0 not reach the debugger's channel.
const TDCC: u64 = 1 << 12;
const MDSCR_BITS: u64 = SS | TDCC | KDE | MDE;

/// E, PMC, BAS, HMC, SSC, LBN and BT.
const BCR_BITS: u64 = 0x00ff_e1e7;
/// E, PAC, LSC, BAS, HMC, SSC, LBN, WT and MASK.
const WCR_BITS: u64 = 0x1f1f_ffff;
const CLAIM_TAGS: u64 = 0xff;

/// PSTATE.D.
const DAIF_D: u8 = 8;

/// Exception classes: from a lower level; one more from the same (Arm ARM, D24.2.40).
const EC_BREAKPOINT: u64 = 0x30;
const EC_STEP: u64 = 0x32;
const EC_WATCHPOINT: u64 = 0x34;
/// IFSC and DFSC of a debug exception.
const DEBUG_FAULT: u64 = 0x22;

/// A comparison's value and control register.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    value: u64,
    control: u64,
}

impl Pair {
    fn enabled(self) -> bool {
        self.control & 1 == 1
    }

    /// LBN.
    fn linked(self) -> usize {
        (self.control >> 16 & 15) as usize
    }
}

/// The debug unit of a vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Debug {
    mdscr: u64,
    breakpoints: [Pair; BREAKPOINTS],
    watchpoints: [Pair; WATCHPOINTS],
    os_lock: bool,
    double_lock: bool,
    claimed: u64,
    dcc_interrupts: u64,
    /// Whether the run loop must ask `Cpu::debugged`: a step or a breakpoint is enabled.
    pub alert: bool,
    /// Whether a watchpoint is.
    pub watching: bool,
}

/// What a register of the unit is.
enum Place {
    Pair {
        watch: bool,
        control: bool,
        n: usize,
    },
    Mdscr,
    DccInterrupts,
    /// Reads as zero and takes writes: the channel to an external debugger, of which there is none.
    Channel,
    OsLockAccess,
    OsLockStatus,
    DoubleLock,
    ClaimSet,
    ClaimClear,
    /// Reads as zero and takes no writes.
    Zero,
}

fn place(r: u16) -> Option<Place> {
    Some(match r {
        0x8000..=0x807f if r & 7 >= 4 => {
            let (watch, control, n) = (r & 2 != 0, r & 1 == 1, usize::from(r >> 3 & 15));
            if n >= if watch { WATCHPOINTS } else { BREAKPOINTS } {
                return None;
            }
            Place::Pair { watch, control, n }
        }
        0x8010 => Place::DccInterrupts,
        0x8012 => Place::Mdscr,
        // OSDTRRX_EL1, OSDTRTX_EL1, OSECCR_EL1, DBGPRCR_EL1; DBGDTR_EL0, DBGDTRRX_EL0 and DBGDTRTX_EL0.
        0x8002 | 0x801a | 0x8032 | 0x80a4 | 0x9820 | 0x9828 => Place::Channel,
        0x8084 => Place::OsLockAccess,
        0x808c => Place::OsLockStatus,
        0x809c => Place::DoubleLock,
        0x83c6 => Place::ClaimSet,
        0x83ce => Place::ClaimClear,
        // MDRAR_EL1, DBGAUTHSTATUS_EL1, MDCCSR_EL0.
        0x8080 | 0x83f6 | 0x9808 => Place::Zero,
        _ => return None,
    })
}

/// Whether an encoding is in the space of debug and trace registers.
pub(crate) fn is_debug(r: u16) -> bool {
    r >> 14 == 2
}

/// Bits that an address comparison looks at: VA[48:2] (DBGBVR<n>_EL1); a byte's too for watchpoints.
fn address(va: u64) -> u64 {
    va << 15 >> 15
}

impl Debug {
    fn pair(&self, watch: bool, n: usize) -> Pair {
        if watch { self.watchpoints[n] } else { self.breakpoints[n] }
    }

    fn read(&self, r: u16) -> Option<u64> {
        Some(match place(r)? {
            Place::Pair { watch, control: true, n } => self.pair(watch, n).control,
            Place::Pair { watch, n, .. } => self.pair(watch, n).value,
            Place::Mdscr => self.mdscr,
            Place::DccInterrupts => self.dcc_interrupts,
            Place::Channel | Place::Zero => 0,
            Place::OsLockAccess => return None,
            // OSLM: there is a lock.
            Place::OsLockStatus => 8 | u64::from(self.os_lock) << 1,
            Place::DoubleLock => u64::from(self.double_lock),
            Place::ClaimSet => CLAIM_TAGS,
            Place::ClaimClear => self.claimed,
        })
    }

    fn write(&mut self, r: u16, v: u64) -> Option<()> {
        match place(r)? {
            Place::Pair { watch, control, n } => {
                let pair = if watch { &mut self.watchpoints[n] } else { &mut self.breakpoints[n] };
                match (control, watch) {
                    (true, true) => pair.control = v & WCR_BITS,
                    (true, false) => pair.control = v & BCR_BITS,
                    // A context's number has low bits, an address none.
                    (false, false) if n == CONTEXT => pair.value = v,
                    (false, _) => pair.value = v & !3,
                }
            }
            Place::Mdscr => self.mdscr = v & MDSCR_BITS,
            // RX and TX.
            Place::DccInterrupts => self.dcc_interrupts = v & 3 << 29,
            Place::Channel => {}
            Place::OsLockAccess => self.os_lock = v & 1 == 1,
            Place::DoubleLock => self.double_lock = v & 1 == 1,
            Place::ClaimSet => self.claimed |= v & CLAIM_TAGS,
            Place::ClaimClear => self.claimed &= !v,
            Place::OsLockStatus | Place::Zero => return None,
        }
        Some(())
    }

    /// AArch64.StateMatch: whether a comparison is for this level. HMC alone is for levels that there are not, and the
    /// one security state there is counts as Non-secure.
    fn level_matches(control: u64, el: u8) -> bool {
        control >> 14 & 3 != 2 && control >> if el == 0 { 2 } else { 1 } & 1 == 1
    }

    /// Whether breakpoint `n`, linked to or by itself, has the current context.
    fn context_matches(&self, n: usize, linked: bool, contextidr: u64) -> bool {
        let Some(b) = self.breakpoints.get(n).filter(|b| n == CONTEXT && b.enabled()) else { return false };
        b.control >> 20 & 15 == if linked { 3 } else { 2 } && b.value as u32 == contextidr as u32
    }

    /// Whether breakpoint `n` is for code at `va` under this mask, whatever the level.
    fn breaks(&self, n: usize, va: u64, mask: u64, contextidr: u64) -> bool {
        let b = self.breakpoints[n];
        let here = (address(va) ^ address(b.value)) & mask == 0;
        b.enabled()
            && match b.control >> 20 & 15 {
                0 => here,
                1 => here && self.context_matches(b.linked(), true, contextidr),
                2 => self.context_matches(n, false, contextidr),
                // A linked context by itself, address mismatch, and VMIDs, of which there are none.
                _ => false,
            }
    }

    /// The bytes that a watchpoint is on, without its byte select: first and length.
    fn range(w: Pair) -> Option<(u64, u64)> {
        match w.control >> 24 & 31 {
            0 => Some((address(w.value), 8)),
            1 | 2 => None,
            mask => Some((address(w.value) >> mask << mask, 1 << mask)),
        }
    }

    /// The first watched byte of those from `va` on.
    fn touches(w: Pair, va: u64, len: u64) -> Option<u64> {
        let (first, size) = Self::range(w)?;
        let start = address(va);
        let from = first.max(start);
        let to = (first + size).min(start + len);
        let select = w.control >> 5 & 0xff;
        let selected = |at: &u64| w.control >> 24 & 31 != 0 || select >> (at - first) & 1 == 1;
        let at = (from..to).find(selected)?;
        Some(va.wrapping_add(at - start))
    }

    /// Whether an enabled watchpoint has a byte in this page.
    pub(crate) fn watches_page(&self, va: u64) -> bool {
        let page = address(va) & !0xfff;
        self.watching
            && self.watchpoints.iter().filter(|w| w.enabled()).any(|w| {
                Self::range(*w).is_some_and(|(first, size)| first < page + 0x1000 && page < first + size)
            })
    }
}

impl Cpu {
    /// MRS of a debug register.
    pub(crate) fn debug_read(&self, r: u16) -> Result<u64, Sysop> {
        match self.debug_bar(r) {
            Some(bar) => Err(bar),
            None => self.debug.read(r).ok_or(Sysop::Undefined),
        }
    }

    /// MSR of a debug register.
    pub(crate) fn debug_write(&mut self, r: u16, v: u64) -> Sysop {
        if let Some(bar) = self.debug_bar(r) {
            return bar;
        }
        match self.debug.write(r, v) {
            Some(()) => {
                self.debug_changed();
                Sysop::Done
            }
            None => Sysop::Undefined,
        }
    }

    /// EL0 has the channel alone, and not where TDCC is set.
    fn debug_bar(&self, r: u16) -> Option<Sysop> {
        match place(r) {
            None => Some(Sysop::Undefined),
            Some(_) if self.state.el != 0 => None,
            Some(_) if r >> 11 & 7 != 3 => Some(Sysop::Undefined),
            Some(_) => (self.debug.mdscr & TDCC != 0).then_some(Sysop::Trap),
        }
    }

    /// What a snapshot holds of a debug register.
    pub(crate) fn debug_state(&self, r: SysReg) -> Option<u64> {
        self.debug.read(r.0)
    }

    pub(crate) fn set_debug_state(&mut self, r: SysReg, v: u64) -> Option<()> {
        match place(r.0)? {
            Place::OsLockStatus => self.debug.os_lock = v & 2 != 0,
            Place::ClaimClear => self.debug.claimed = v & CLAIM_TAGS,
            Place::Zero => {}
            _ => self.debug.write(r.0, v)?,
        }
        self.debug_changed();
        Some(())
    }

    /// Follows a change of the unit's registers.
    fn debug_changed(&mut self) {
        let d = &self.debug;
        let free = !d.os_lock && !d.double_lock;
        let compares = free && d.mdscr & MDE != 0;
        let breaking = compares && d.breakpoints.iter().any(|b| b.enabled());
        let watching = compares && d.watchpoints.iter().any(|w| w.enabled());
        let watched = std::mem::replace(&mut self.debug.watching, watching);
        self.debug.alert = breaking || free && self.debug.mdscr & SS != 0;
        if breaking {
            // Code of pages with breakpoints must be looked for anew.
            self.flush_jumps();
        }
        if watching || watched {
            self.tlbs[0].flush();
            self.tlbs[1].flush();
        }
    }

    /// Follows a change of CONTEXTIDR_EL1.
    pub(crate) fn context_changed(&mut self) {
        if self.debug.alert {
            self.flush_jumps();
        }
    }

    /// AArch64.GenerateDebugExceptionsFrom: whether debug exceptions can come from a level, to EL1.
    fn debug_enabled(&self, el: u8, daif: u8) -> bool {
        !self.debug.os_lock
            && !self.debug.double_lock
            && (el == 0 || self.debug.mdscr & KDE != 0 && daif & DAIF_D == 0)
    }

    /// Whether software step is active (D2.12.3).
    pub(crate) fn stepping(&self) -> bool {
        self.debug.mdscr & SS != 0 && self.debug_enabled(self.state.el, self.state.daif)
    }

    /// PSTATE.SS after an exception return to `el` with this SPSR.
    pub(crate) fn step_after_return(&self, el: u8, spsr: u64) -> bool {
        let (now, then) = (
            self.debug_enabled(self.state.el, self.state.daif),
            self.debug_enabled(el, (spsr >> 6 & 15) as u8),
        );
        spsr >> 21 & 1 == 1 && self.debug.mdscr & SS != 0 && !now && then
    }

    /// Whether a breakpoint may be in the page of PC.
    pub(crate) fn breaks_in_page(&self) -> bool {
        self.breaks(0x1_ffff_ffff_f000).is_some()
    }

    /// Whether a breakpoint is at PC, and for this level.
    pub(crate) fn breaks_here(&self) -> bool {
        let at = |n: &usize| Debug::level_matches(self.debug.breakpoints[*n].control, self.state.el);
        self.debug_enabled(self.state.el, self.state.daif)
            && self.debug.mdscr & MDE != 0
            && (0..BREAKPOINTS)
                .filter(at)
                .any(|n| self.debug.breaks(n, self.state.pc, 0x1_ffff_ffff_fffc, self.state.sys.contextidr))
    }

    fn breaks(&self, mask: u64) -> Option<usize> {
        let on = self.debug.mdscr & MDE != 0;
        (0..BREAKPOINTS).find(|n| on && self.debug.breaks(*n, self.state.pc, mask, self.state.sys.contextidr))
    }

    pub(crate) fn step_exception(&mut self) {
        // ISV and EX: only after an instruction that has been stepped.
        let iss = self.stepped.take().map_or(0, |exclusive| 1 << 24 | u64::from(exclusive) << 6);
        self.debug_exception(EC_STEP, iss, None);
    }

    pub(crate) fn breakpoint_exception(&mut self) {
        self.debug_exception(EC_BREAKPOINT, 0, None);
    }

    fn debug_exception(&mut self, ec: u64, iss: u64, far: Option<u64>) {
        self.exception(ec | u64::from(self.state.el), iss | DEBUG_FAULT, far);
    }

    /// Compares an access with the watchpoints, with EL0's rights where `user`. `reads` and `writes`: an atomic access
    /// does both. `None` when it has taken the exception.
    pub(crate) fn watch(&mut self, va: u64, len: u64, reads: bool, writes: bool, user: bool) -> Option<()> {
        if !self.debug.watching || !self.debug_enabled(self.state.el, self.state.daif) {
            return Some(());
        }
        let el = if user { 0 } else { self.state.el };
        let hit = |kind: u64| {
            self.debug.watchpoints.iter().find_map(|w| {
                let linked = w.control >> 20 & 1 == 1;
                (w.enabled()
                    && w.control >> 3 & kind != 0
                    && Debug::level_matches(w.control, el)
                    && (!linked || self.debug.context_matches(w.linked(), true, self.state.sys.contextidr)))
                .then(|| Debug::touches(*w, va, len))
                .flatten()
            })
        };
        // WnR of an atomic access: clear where a read would have been enough.
        let read = reads.then(|| hit(1)).flatten();
        let (far, write) = match read.or_else(|| writes.then(|| hit(2)).flatten()) {
            None => return Some(()),
            Some(far) => (far, read.is_none()),
        };
        self.fuel -= self.reached;
        self.debug_exception(EC_WATCHPOINT, u64::from(write) << 6, Some(far));
        None
    }
}
