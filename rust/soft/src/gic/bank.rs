//! The state of 32 interrupts, one bit each.

use super::PRIORITY_MASK;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bank {
    /// Set for group 1.
    pub group: u32,
    pub enabled: u32,
    /// Pending by an edge, an SGI or a write to the pending register; taken back by acknowledgement.
    pub latched: u32,
    pub active: u32,
    /// Input lines.
    pub line: u32,
    /// Set for edge-triggered.
    pub edge: u32,
    pub priority: [u8; 32],
}

impl Bank {
    /// SGIs are edge-triggered, PPIs level-sensitive until the guest says otherwise.
    pub(super) fn private() -> Self {
        Self { edge: 0xffff, ..Self::default() }
    }

    /// What is pending: a level-sensitive interrupt also for as long as its line is high (IHI 0069, 4.1).
    pub(super) fn pending(&self) -> u32 {
        self.latched | self.line & !self.edge
    }

    /// Sets the input line of interrupt `bit`; whether that changed what is pending.
    pub(super) fn set_line(&mut self, bit: u32, high: bool) -> bool {
        let (mask, before) = (1 << bit, self.pending());
        let rising = high && self.line & mask == 0;
        self.line = if high { self.line | mask } else { self.line & !mask };
        if rising && self.edge & mask != 0 {
            self.latched |= mask;
        }
        self.pending() != before
    }

    /// Pending becomes active.
    pub(super) fn acknowledge(&mut self, bit: u32) {
        self.latched &= !(1 << bit);
        self.active |= 1 << bit;
    }

    /// Four priorities as an IPRIORITYR register.
    pub(super) fn priorities(&self, register: usize) -> u32 {
        let at = 4 * register;
        u32::from_le_bytes([
            self.priority[at],
            self.priority[at + 1],
            self.priority[at + 2],
            self.priority[at + 3],
        ])
    }

    pub(super) fn set_priority(&mut self, bit: usize, priority: u8) {
        self.priority[bit] = priority & PRIORITY_MASK;
    }

    /// Half of the triggers as an ICFGR register: two bits each, the upper set for edge-triggered.
    pub(super) fn triggers(&self, half: u32) -> u32 {
        (0..16).filter(|n| self.edge >> (16 * half + n) & 1 == 1).fold(0, |value, n| value | 2 << (2 * n))
    }

    pub(super) fn set_triggers(&mut self, half: u32, value: u32) {
        for n in 0..16 {
            let mask = 1 << (16 * half + n);
            self.edge = if value >> (2 * n + 1) & 1 == 1 { self.edge | mask } else { self.edge & !mask };
        }
    }
}
