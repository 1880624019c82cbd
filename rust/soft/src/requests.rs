//! What vCPUs and other threads have to do with each other: work that is left, asked for and waited for.

use std::sync::atomic::Ordering;

use crate::cpu::Cpu;
use crate::state::{DAIF_F, DAIF_I};
use crate::vcpu::Exit;
use crate::vm::{COUNTER_HZ, Request};

/// How long a vCPU that has done side work goes on in the guest until the work's own thread is woken, in ticks: 200 us,
/// as a program that has its answer asks the next question before.
const HELD: u64 = COUNTER_HZ / 5_000;

/// Work left for a vCPU by other threads: bits of [`VcpuShared::pending`].
#[derive(Clone, Copy)]
pub(crate) struct Pending(pub u32);

impl Pending {
    pub(crate) const INTERRUPT: Self = Self(1);
    pub(crate) const CANCEL: Self = Self(2);
    pub(crate) const REQUEST: Self = Self(4);
}

impl Cpu {
    /// Work that another thread has left for this vCPU.
    pub(crate) fn pending(&self) -> u32 {
        self.me.pending.load(Ordering::Relaxed)
    }

    pub(crate) fn post(&self, what: Pending) {
        self.me.pending.fetch_or(what.0, Ordering::SeqCst);
    }

    /// Looks at what other threads have left.
    pub(crate) fn attend(&mut self) -> Option<Exit> {
        let pending = self.me.pending.load(Ordering::SeqCst);
        if pending & Pending::CANCEL.0 != 0 {
            if let Some(exit) = self.exit.take() {
                return Some(exit);
            }
            self.me.pending.fetch_and(!Pending::CANCEL.0, Ordering::SeqCst);
            return Some(Exit::Canceled);
        }
        if pending & Pending::REQUEST.0 != 0 {
            self.serve();
        }
        if self.me.pending.load(Ordering::SeqCst) & Pending::INTERRUPT.0 != 0 && self.exit.is_none() {
            let gic = self.vm.gic.clone();
            let (irq, fiq) = (gic.irq_pending(self.index), gic.fiq_pending(self.index));
            if !irq && !fiq {
                self.me.pending.fetch_and(!Pending::INTERRUPT.0, Ordering::SeqCst);
                if gic.irq_pending(self.index) || gic.fiq_pending(self.index) {
                    self.post(Pending::INTERRUPT);
                }
            } else if fiq && self.state.daif & DAIF_F == 0 {
                self.enter_el1(0x100);
            } else if irq && self.state.daif & DAIF_I == 0 {
                self.enter_el1(0x80);
            }
        }
        None
    }

    /// Does what other vCPUs asked this one to.
    pub(crate) fn serve(&mut self) {
        self.me.pending.fetch_and(!Pending::REQUEST.0, Ordering::SeqCst);
        let me = self.me.clone();
        let requests = std::mem::take(&mut *me.requests());
        for r in &requests {
            self.apply(*r);
        }
        me.done.fetch_add(requests.len() as u64, Ordering::SeqCst);
    }

    pub(crate) fn apply(&mut self, r: Request) {
        match r {
            Request::TlbAll => {
                // Memory may have been taken away.
                self.memory = self.vm.memory();
                self.flush_tlb();
            }
            Request::TlbVa(va) => self.flush_tlb_va(va),
            Request::TlbAsid(asid) => self.flush_tlb_asid(asid),
            Request::Code => self.flush_code(),
            Request::CodePage(pa) => self.flush_code_page(pa),
        }
    }

    /// Applies to all vCPUs; the others have done it after the next DSB.
    pub(crate) fn everywhere(&mut self, r: Request) {
        self.apply(r);
        for (i, other) in self.vm.vcpus.iter().enumerate() {
            if i as u32 != self.index {
                other.ask(r);
                self.broadcast = true;
            }
        }
    }

    /// Waits until every vCPU that runs has done what it was asked to.
    pub(crate) fn synchronize(&mut self) {
        if !std::mem::take(&mut self.broadcast) {
            return;
        }
        let vm = self.vm.clone();
        for (i, other) in vm.vcpus.iter().enumerate() {
            if i as u32 == self.index {
                continue;
            }
            let asked = other.asked.load(Ordering::SeqCst);
            let mut spins = 0u32;
            while other.done.load(Ordering::SeqCst) < asked && other.running.load(Ordering::SeqCst) {
                if self.me.pending.load(Ordering::SeqCst) & Pending::REQUEST.0 != 0 {
                    self.serve();
                }
                spins += 1;
                if spins > 50 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }

    /// WFI: sleeps until there is something to look at.
    pub(crate) fn wait(&mut self) {
        let gic = self.vm.gic.clone();
        if gic.irq_pending(self.index) || gic.fiq_pending(self.index) {
            return;
        }
        self.me.pending.fetch_and(!Pending::INTERRUPT.0, Ordering::SeqCst);
        if gic.irq_pending(self.index) || gic.fiq_pending(self.index) {
            self.post(Pending::INTERRUPT);
            return;
        }
        let held = self.held.take();
        self.held = self.me.sleep(self.vm.instant(self.deadline), &self.vm.side_work, held);
        self.held_until = self.vm.counter() + HELD;
        self.look_at_deadline();
    }

    /// Another thread is to see to what this one has done beside its sleep.
    pub(crate) fn let_go(&mut self) {
        if let Some(work) = self.held.take() {
            work.let_go();
        }
    }

    /// WFE: gives way for a moment. Nothing here counts events, so it must come back by itself.
    pub(crate) fn wait_event(&mut self) {
        self.look_at_deadline();
        self.waits += 1;
        if self.waits.is_multiple_of(64) {
            std::thread::sleep(std::time::Duration::from_micros(20));
        } else {
            std::thread::yield_now();
        }
    }
}
