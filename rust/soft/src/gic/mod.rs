//! The GICv3: distributor, redistributors and CPU interface (Arm IHI 0069, "GIC Architecture Specification").
//!
//! One security state (GICD_CTLR.DS reads as one), affinity routing always on, 32 SGIs and PPIs for each vCPU and
//! SPIs up to INTID 255, five priority bits; neither LPIs nor message-based SPIs. A vCPU's affinity is its index.
//!
//! The files: the state of 32 interrupts at a time in `bank.rs`, memory-mapped registers in `mmio.rs`, ICC
//! system registers in `cpu.rs`, saved state in `state.rs`.

mod bank;
mod cpu;
mod mmio;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bank::Bank;
use cpu::Cpu;

/// Banks of 32 INTIDs, the private one included.
const BANKS: usize = 8;
/// INTIDs that exist.
const INTIDS: u32 = 32 * BANKS as u32;
/// "No interrupt" (IHI 0069, 2.2.1).
const SPURIOUS: u32 = 1023;
/// Priority bits that exist.
const PRIORITY_MASK: u8 = 0xf8;
/// The most vCPUs there may be: an SGI's target list names sixteen.
pub const MAX_VCPUS: u32 = 16;

/// Why interrupt-controller state could not be read or set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its begin is not this engine's.
    #[error(
        "the interrupt controller's state is not one of this engine's (it must begin with SMGIC and version 1)"
    )]
    Format,
    /// It has been cut, or belongs to another machine.
    #[error("the interrupt controller's state is {found} bytes long and must be {expected}")]
    Length {
        /// Bytes that it has.
        found: usize,
        /// Bytes that it must have.
        expected: usize,
    },
    /// It is of another machine.
    #[error("the interrupt controller's state is of {found} vCPUs and this machine has {expected}")]
    Vcpus {
        /// As many as it is of.
        found: u32,
        /// As many as there are.
        expected: u32,
    },
    /// The field that it is in.
    #[error("the interrupt controller's state is damaged: {0} holds a value that cannot be")]
    Value(&'static str),
    /// An index that no vCPU has.
    #[error("the interrupt controller has no vCPU {0}")]
    NoVcpu(u32),
    /// Its id or offset.
    #[error("the interrupt controller has no settable register {0:#x}")]
    Register(u32),
}

/// Called when a line of a vCPU rises.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// IRQ and FIQ as a vCPU sees them; a cache line of its own, for each vCPU polls its pair.
#[derive(Default)]
#[repr(align(64))]
struct Lines {
    irq: AtomicBool,
    fiq: AtomicBool,
}

/// A GICv3 for up to [`MAX_VCPUS`] vCPUs. All calls may come from any thread.
pub struct Gic {
    gicd_base: u64,
    gicr_base: u64,
    inner: Mutex<Inner>,
    lines: Arc<[Lines]>,
    wakers: RwLock<Vec<Option<Waker>>>,
}

/// What the lock protects.
struct Inner {
    /// GICD_CTLR.EnableGrp0 and EnableGrp1.
    group_enabled: [bool; 2],
    /// SPIs; the first bank stays unused, as INTIDs below 32 are the vCPUs' own.
    spis: [Bank; BANKS],
    /// GICD_IROUTER, by INTID.
    routes: Vec<u64>,
    /// SPIs with GICD_IROUTER.Interrupt_Routing_Mode set, by bank.
    any_cpu: [u32; BANKS],
    cpus: Vec<Cpu>,
    /// Redistributors in the list that a guest walks; the last one says so.
    listed: usize,
    lines: Arc<[Lines]>,
    /// vCPUs whose lines have risen since the lock was taken, one bit each.
    risen: u32,
}

impl Gic {
    /// A controller in its reset state. `vcpus` must be between 1 and [`MAX_VCPUS`].
    pub fn new(vcpus: u32, gicd_base: u64, gicr_base: u64) -> Self {
        assert!((1..=MAX_VCPUS).contains(&vcpus), "a GIC is for 1 to {MAX_VCPUS} vCPUs");
        let lines: Arc<[Lines]> = (0..vcpus).map(|_| Lines::default()).collect();
        let mut inner = Inner {
            group_enabled: [false; 2],
            spis: [Bank::default(); BANKS],
            routes: vec![0; INTIDS as usize],
            any_cpu: [0; BANKS],
            cpus: (0..vcpus).map(|_| Cpu::default()).collect(),
            listed: vcpus as usize,
            lines: lines.clone(),
            risen: 0,
        };
        inner.reroute();
        Self {
            gicd_base,
            gicr_base,
            inner: Mutex::new(inner),
            lines,
            wakers: RwLock::new((0..vcpus).map(|_| None).collect()),
        }
    }

    /// Has `waker` called whenever the IRQ or the FIQ line of `vcpu` goes from low to high. No lock is held then.
    pub fn set_waker(&self, vcpu: u32, waker: Waker) {
        let mut wakers = self.wakers.write().unwrap_or_else(|e| e.into_inner());
        if let Some(slot) = wakers.get_mut(vcpu as usize) {
            *slot = Some(waker);
        }
    }

    /// Ends the list of redistributors that a guest walks after the first `vcpus`, before it does so.
    pub fn list(&self, vcpus: u32) {
        self.with(|inner| inner.listed = (vcpus as usize).min(inner.cpus.len()));
    }

    /// Whether `vcpu` has an interrupt to take as an IRQ (group 1).
    pub fn irq_pending(&self, vcpu: u32) -> bool {
        self.lines.get(vcpu as usize).is_some_and(|lines| lines.irq.load(Ordering::Acquire))
    }

    /// Whether `vcpu` has an interrupt to take as an FIQ (group 0).
    pub fn fiq_pending(&self, vcpu: u32) -> bool {
        self.lines.get(vcpu as usize).is_some_and(|lines| lines.fiq.load(Ordering::Acquire))
    }

    /// Sets the input line of a shared interrupt; an INTID that is none is ignored.
    pub fn set_spi(&self, intid: u32, level: bool) {
        if !(32..INTIDS).contains(&intid) {
            return;
        }
        self.with(|inner| {
            if inner.spis[intid as usize / 32].set_line(intid % 32, level) {
                inner.refresh_all();
            }
        });
    }

    /// Sets the input line of a private interrupt (INTID 16 to 31) of `vcpu`; anything else is ignored.
    pub fn set_ppi(&self, vcpu: u32, intid: u32, level: bool) {
        if !(16..32).contains(&intid) {
            return;
        }
        self.with(|inner| {
            let Some(cpu) = inner.cpus.get_mut(vcpu as usize) else { return };
            if cpu.private.set_line(intid, level) {
                inner.refresh(vcpu as usize);
            }
        });
    }

    /// Runs `change` under the lock and then wakes the vCPUs whose lines have risen through it.
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = supermachine_support::lock(&self.inner);
        let result = change(&mut inner);
        let mut risen = std::mem::take(&mut inner.risen);
        drop(inner);
        while risen != 0 {
            let vcpu = risen.trailing_zeros() as usize;
            risen &= risen - 1;
            let waker = self.wakers.read().unwrap_or_else(|e| e.into_inner()).get(vcpu).cloned().flatten();
            if let Some(waker) = waker {
                waker();
            }
        }
        result
    }
}

impl Inner {
    /// The bank that holds `intid` as `vcpu` sees it, with the bit in it. `None` for INTIDs that do not exist.
    fn bank(&mut self, vcpu: usize, intid: u32) -> Option<(&mut Bank, u32)> {
        match intid {
            0..32 => Some((&mut self.cpus.get_mut(vcpu)?.private, intid)),
            32..INTIDS => Some((&mut self.spis[intid as usize / 32], intid % 32)),
            _ => None,
        }
    }

    /// Works out anew which SPIs go to which vCPU.
    fn reroute(&mut self) {
        self.any_cpu = [0; BANKS];
        for cpu in &mut self.cpus {
            cpu.routed = [0; BANKS];
        }
        for intid in 32..INTIDS as usize {
            let (bank, bit) = (intid / 32, 1 << (intid % 32));
            let route = self.routes[intid];
            if route & mmio::IROUTER_ANY != 0 {
                self.any_cpu[bank] |= bit;
            } else if let Some(cpu) = self.cpus.get_mut(usize::try_from(route).unwrap_or(usize::MAX)) {
                cpu.routed[bank] |= bit;
            }
        }
    }

    /// The vCPU that an SPI for any of them goes to now: one that takes part (awake, a group enabled), an idle one
    /// before one that is handling an interrupt.
    fn any_cpu_target(&self) -> Option<usize> {
        let takes_part = |cpu: &Cpu| !cpu.asleep && (cpu.group_enabled[0] || cpu.group_enabled[1]);
        let candidates = self.cpus.iter().enumerate().filter(|(_, cpu)| takes_part(cpu));
        candidates.min_by_key(|(_, cpu)| cpu.running_priority() != cpu::IDLE).map(|(n, _)| n)
    }

    fn refresh_all(&mut self) {
        for vcpu in 0..self.cpus.len() {
            self.refresh_one(vcpu);
        }
    }

    /// Works out the best pending interrupt and the lines of `vcpu` after a change that others do not see.
    fn refresh(&mut self, vcpu: usize) {
        // What one vCPU does decides where interrupts for any of them go.
        if self.any_cpu != [0; BANKS] { self.refresh_all() } else { self.refresh_one(vcpu) }
    }

    fn refresh_one(&mut self, vcpu: usize) {
        let any = if self.any_cpu != [0; BANKS] && self.any_cpu_target() == Some(vcpu) {
            self.any_cpu
        } else {
            [0; BANKS]
        };
        let cpu = &self.cpus[vcpu];
        let enabled = |group: usize| self.group_enabled[group] && cpu.group_enabled[group];
        let group0 = if enabled(0) { !0 } else { 0 };
        let group1 = if enabled(1) { !0 } else { 0 };
        let mut best: Option<(u8, u32)> = None;
        for (n, any) in any.into_iter().enumerate() {
            let (bank, here) = match n {
                0 => (&cpu.private, !0),
                n => (&self.spis[n], cpu.routed[n] | any),
            };
            let groups = bank.group & group1 | !bank.group & group0;
            let mut ready = bank.pending() & bank.enabled & !bank.active & here & groups;
            while ready != 0 {
                let bit = ready.trailing_zeros();
                ready &= ready - 1;
                let candidate = (bank.priority[bit as usize], 32 * n as u32 + bit);
                if best.is_none_or(|best| candidate < best) {
                    best = Some(candidate);
                }
            }
        }
        let best = best.map(|(priority, intid)| {
            let bank = if intid < 32 { &cpu.private } else { &self.spis[intid as usize / 32] };
            cpu::Pending { intid, priority, group: (bank.group >> (intid % 32) & 1) as usize }
        });
        let signalled = best.filter(|best| cpu.may_signal(best)).map(|best| best.group);
        self.cpus[vcpu].best = best;
        let lines = &self.lines[vcpu];
        for (line, group) in [(&lines.fiq, 0), (&lines.irq, 1)] {
            let high = signalled == Some(group);
            // Only the holder of the lock writes; the release is for the vCPU that polls.
            if line.load(Ordering::Relaxed) != high {
                line.store(high, Ordering::Release);
                if high {
                    self.risen |= 1 << vcpu;
                }
            }
        }
    }
}
