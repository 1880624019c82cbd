//! Saved state: the distributor and what no register of a vCPU shows. Private interrupts and ICC registers are saved
//! register by register with their vCPU; the lines of private interrupts are the timer's to set again.

use super::bank::Bank;
use super::{BANKS, Error, Gic, INTIDS, PRIORITY_MASK, mmio};

/// "SMGIC", two zeros, version 1.
const MAGIC: [u8; 8] = *b"SMGIC\0\0\x01";
const BANK_BYTES: usize = 6 * 4 + 32;
/// Magic, vCPU count, group enables, sleeping vCPUs.
const HEAD_BYTES: usize = 8 + 4 + 4 + 4;
const BYTES: usize = HEAD_BYTES + (BANKS - 1) * BANK_BYTES + (INTIDS as usize - 32) * 8;

impl Gic {
    /// The controller's state beyond what [`Gic::icc_state`] and [`Gic::redist_state`] give.
    pub fn state(&self) -> Vec<u8> {
        self.with(|inner| {
            let mut out = Vec::with_capacity(BYTES);
            out.extend(MAGIC);
            out.extend((inner.cpus.len() as u32).to_le_bytes());
            let groups = u32::from(inner.group_enabled[0]) | u32::from(inner.group_enabled[1]) << 1;
            out.extend(groups.to_le_bytes());
            let asleep =
                inner.cpus.iter().enumerate().fold(0, |set, (n, cpu)| set | u32::from(cpu.asleep) << n);
            out.extend(asleep.to_le_bytes());
            for bank in &inner.spis[1..] {
                for word in [bank.group, bank.enabled, bank.latched, bank.active, bank.line, bank.edge] {
                    out.extend(word.to_le_bytes());
                }
                out.extend(bank.priority);
            }
            for route in &inner.routes[32..] {
                out.extend(route.to_le_bytes());
            }
            out
        })
    }

    /// Sets what [`Gic::state`] gave; nothing is changed when it is refused.
    pub fn set_state(&self, state: &[u8]) -> Result<(), Error> {
        if !state.starts_with(&MAGIC) {
            return Err(Error::Format);
        }
        if state.len() != BYTES {
            return Err(Error::Length { found: state.len(), expected: BYTES });
        }
        let (words, rest) = state[8..].split_at(HEAD_BYTES - 8);
        let word = |bytes: &[u8], n: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[4 * n + i]));
        let (vcpus, groups, asleep) = (word(words, 0), word(words, 1), word(words, 2));
        let expected = self.lines.len() as u32;
        if vcpus != expected {
            return Err(Error::Vcpus { found: vcpus, expected });
        }
        if groups > 3 {
            return Err(Error::Value("the group enable"));
        }
        if asleep >> vcpus != 0 {
            return Err(Error::Value("the set of sleeping vCPUs"));
        }
        let (banks, routes) = rest.split_at((BANKS - 1) * BANK_BYTES);
        let mut spis = [Bank::default(); BANKS];
        for (bank, bytes) in spis[1..].iter_mut().zip(banks.chunks_exact(BANK_BYTES)) {
            let mut priority = [0; 32];
            priority.copy_from_slice(&bytes[24..]);
            if priority.iter().any(|priority| priority & !PRIORITY_MASK != 0) {
                return Err(Error::Value("a priority"));
            }
            *bank = Bank {
                group: word(bytes, 0),
                enabled: word(bytes, 1),
                latched: word(bytes, 2),
                active: word(bytes, 3),
                line: word(bytes, 4),
                edge: word(bytes, 5),
                priority,
            };
        }
        let routes: Vec<u64> = routes
            .chunks_exact(8)
            .map(|bytes| u64::from(word(bytes, 0)) | u64::from(word(bytes, 1)) << 32)
            .collect();
        if routes.iter().any(|route| route & !mmio::IROUTER_MASK != 0) {
            return Err(Error::Value("a route"));
        }
        self.with(|inner| {
            inner.group_enabled = [groups & 1 != 0, groups & 2 != 0];
            for (n, cpu) in inner.cpus.iter_mut().enumerate() {
                cpu.asleep = asleep >> n & 1 == 1;
            }
            inner.spis = spis;
            inner.routes[32..].copy_from_slice(&routes);
            inner.reroute();
            inner.refresh_all();
        });
        Ok(())
    }
}
