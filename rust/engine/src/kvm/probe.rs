//! How fast this host's KVM is. Some hosts run a guest's kernel code by emulation, under a million instructions a
//! second: everything works there and nothing finishes, which only running something shows.

use std::time::{Duration, Instant};

use super::host::LEAST_RATE;
use super::{Error, Unusable};

/// How long the whole measurement may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Instructions in one turn of the guest's loop.
const PER_TURN: u64 = 3;
/// Turns of a first look, and of a better one where that was over too soon to be measured.
const FEW: u64 = 500;
const MANY: u64 = 100_000;
const TOO_SOON: Duration = Duration::from_micros(30);

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// Of guest code that stays in the guest.
    pub instructions_per_second: u64,
    /// From one exit to user space, through it, to the next.
    pub exit_nanoseconds: u64,
}

impl Measurement {
    /// Refuses what is too slow.
    pub fn judge(self) -> Result<Self, Unusable> {
        match self.instructions_per_second {
            instructions_per_second if instructions_per_second < LEAST_RATE => {
                Err(Unusable::TooSlow { instructions_per_second })
            }
            _ => Ok(self),
        }
    }
}

/// Opens KVM, makes a small VM and measures it. It takes milliseconds.
pub fn measure() -> Result<Measurement, Unusable> {
    rig::measure().map_err(|error| match error {
        Error::Unusable(reason) => reason,
        error => Unusable::Failed(error.to_string()),
    })
}

/// The laps of a guest that exits, takes a number of turns, and so on.
struct Laps {
    last: Option<Instant>,
    /// Turns, and how long the shortest lap with as many took.
    shortest: [(u64, Option<Duration>); 3],
    lap: usize,
}

impl Laps {
    /// Laps of each kind.
    const EACH: usize = 4;

    fn new() -> Self {
        let [one, few, many] = [1, FEW, MANY].map(|turns| (turns, None));
        Self { last: None, shortest: [one, few, many], lap: 0 }
    }

    /// The guest has come out; how many turns it is to take now, or `None` when enough is known.
    fn next(&mut self) -> Option<u64> {
        let now = Instant::now();
        if let Some(last) = self.last {
            let shortest = &mut self.shortest[self.lap / Self::EACH].1;
            let lap = now - last;
            *shortest = Some(shortest.map_or(lap, |shortest| shortest.min(lap)));
            self.lap += 1;
        }
        let kind = self.lap / Self::EACH;
        // Long laps are for fast hosts.
        let [one, few] = [0, 1].map(|kind| self.shortest[kind].1.unwrap_or_default());
        if kind == 3 || kind == 2 && few.saturating_sub(one) > TOO_SOON {
            return None;
        }
        self.last = Some(Instant::now());
        Some(self.shortest[kind].0)
    }

    fn result(&self) -> Option<Measurement> {
        let exit = self.shortest[0].1?;
        let (turns, lap) =
            self.shortest.iter().rev().find_map(|(turns, lap)| lap.map(|lap| (*turns, lap)))?;
        if turns == 1 {
            return None;
        }
        let nanoseconds = lap.saturating_sub(exit).as_nanos().max(1);
        let rate = u128::from((turns - 1) * PER_TURN) * 1_000_000_000 / nanoseconds;
        Some(Measurement {
            instructions_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
            exit_nanoseconds: u64::try_from(exit.as_nanos()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod rig {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::{Laps, Measurement, PATIENCE};
    use crate::Protection;
    use crate::kvm::kick::Kick;
    use crate::kvm::x86_64::{Bus, Start, Vm, tables};
    use crate::kvm::{Error, Result, Unusable};

    const TABLES: u64 = 0x1000;
    const GDT: u64 = TABLES + tables::SIZE;
    const CODE: u64 = GDT + 0x1000;
    const DATA: u64 = CODE + 0x1000;
    const SIZE: usize = 0x1_0000;
    /// A port that nothing in the kernel answers at.
    const PORT: u8 = 0xf4;

    /// With RSI at the data: out; take the number of turns; for each, count down and store.
    const PROGRAM: [u8; 16] = [
        0xe6, PORT, // 1: out PORT, al
        0x48, 0x8b, 0x0e, // mov rcx, [rsi]
        0x48, 0xff, 0xc9, // 2: dec rcx
        0x48, 0x89, 0x4e, 0x08, // mov [rsi + 8], rcx
        0x75, 0xf7, // jnz 2b
        0xeb, 0xf0, // jmp 1b
    ];

    struct Watch {
        laps: Laps,
        memory: GuestMemoryMmap<()>,
        kick: Arc<Kick>,
    }

    impl Bus for Watch {
        fn port_read(&mut self, _: u16, _: &mut [u8]) {}

        fn port_write(&mut self, port: u16, _: &[u8]) {
            match self.laps.next().filter(|_| port == u16::from(PORT)) {
                Some(turns) => {
                    self.memory.write_obj(turns, GuestAddress(DATA)).expect("the data lie in memory");
                }
                None => self.kick.request(),
            }
        }

        fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
        fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    }

    pub(super) fn measure() -> Result<Measurement> {
        let failed = |e: &dyn std::fmt::Display| Error::from(Unusable::Failed(e.to_string()));
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), SIZE)]).map_err(|e| failed(&e))?;
        for (bytes, at) in [(&tables::identity(TABLES)[..], TABLES), (&tables::gdt(), GDT), (&PROGRAM, CODE)]
        {
            memory.write_slice(bytes, GuestAddress(at)).map_err(|e| failed(&e))?;
        }
        let host = memory.get_host_address(GuestAddress(0)).map_err(|e| failed(&e))?;
        let host = std::ptr::NonNull::new(host).ok_or_else(|| failed(&"no memory"))?;
        let vm = Vm::new(1, None)?;
        // SAFETY: `memory` outlives `vm` and `vcpu`, which are dropped before it.
        unsafe { vm.map(host, 0, SIZE as u64, Protection::ReadWriteExecute)? };
        let mut vcpu = vm.create_vcpu(0)?;
        vcpu.start(&Start { rip: CODE, rsp: DATA + 0x1000, rsi: DATA, cr3: TABLES, gdt: GDT })?;
        let kick = vm.kick(0);
        let mut watch = Watch { laps: Laps::new(), memory: memory.clone(), kick: kick.clone() };
        let (done, watched) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            if watched.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                kick.request();
            }
        });
        let ran = vcpu.run(&mut watch);
        drop(done);
        let _ = watchdog.join();
        ran?;
        drop((vcpu, vm));
        // Not one turn in all that time: slower than any measure.
        watch.laps.result().ok_or_else(|| Unusable::TooSlow { instructions_per_second: 0 }.into())
    }
}

#[cfg(target_arch = "aarch64")]
mod rig {
    use std::ptr::NonNull;
    use std::sync::mpsc;
    use std::thread;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::{Laps, Measurement, PATIENCE};
    use crate::Protection;
    use crate::arm64::{Exit, Reg, Vm, VmConfig};
    use crate::kvm::arm64::KvmVm;
    use crate::kvm::{Error, Result, Unusable};

    const GICD: u64 = 0x800_0000;
    const GICR: u64 = 0x80a_0000;
    const CODE: u64 = 0x4000_0000;
    const DATA: u64 = CODE + 0x1000;
    /// A multiple of every page size.
    const SIZE: usize = 0x1_0000;
    /// An address that nothing answers at.
    const DOORBELL: u64 = 0x100_0000;
    /// EL1h with all interrupts masked; the MMU is off.
    const EL1H: u64 = 0x3c5;

    /// With X1 at the doorbell and X3 at the data: store; take the number of turns; for each, count down and store.
    const PROGRAM: [u32; 6] = [
        0xb900_0020, // 1: str w0, [x1]
        0xf940_0062, // ldr x2, [x3]
        0xf100_0442, // 2: subs x2, x2, #1
        0xf900_0462, // str x2, [x3, #8]
        0x54ff_ffc1, // b.ne 2b
        0x17ff_fffb, // b 1b
    ];

    pub(super) fn measure() -> Result<Measurement> {
        let failed = |e: &dyn std::fmt::Display| Error::from(Unusable::Failed(e.to_string()));
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(CODE), SIZE)]).map_err(|e| failed(&e))?;
        let program: Vec<u8> = PROGRAM.into_iter().flat_map(u32::to_le_bytes).collect();
        memory.write_slice(&program, GuestAddress(CODE)).map_err(|e| failed(&e))?;
        let host = memory.get_host_address(GuestAddress(CODE)).map_err(|e| failed(&e))?;
        let host = NonNull::new(host).ok_or_else(|| failed(&"no memory"))?;
        let vm = KvmVm::new(&VmConfig { vcpus: 1, gicd_base: GICD, gicr_base: GICR })?;
        let ours = |e: crate::Error| match e {
            crate::Error::Kvm(error) => error,
            error => failed(&error),
        };
        // SAFETY: `memory` outlives `vm` and `vcpu`, which are dropped before it.
        unsafe { vm.map(host, CODE, SIZE as u64, Protection::ReadWriteExecute) }.map_err(ours)?;
        let mut vcpu = vm.create_vcpu(0).map_err(ours)?;
        for (register, value) in
            [(Reg::CPSR, EL1H), (Reg::PC, CODE), (Reg::x(1), DOORBELL), (Reg::x(3), DATA)]
        {
            vcpu.set_reg(register, value).map_err(ours)?;
        }
        let cancel = vm.canceller(0).map_err(ours)?;
        let (done, watched) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            if watched.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                cancel();
            }
        });
        let mut laps = Laps::new();
        let ran = loop {
            match vcpu.run() {
                Ok(Exit::Write { .. }) => match laps.next() {
                    Some(turns) => {
                        memory.write_obj(turns, GuestAddress(DATA)).map_err(|e| failed(&e))?;
                    }
                    None => break Ok(()),
                },
                Ok(Exit::Canceled) => break Ok(()),
                Ok(exit) => break Err(failed(&format!("the guest left with {exit:?}"))),
                Err(error) => break Err(ours(error)),
            }
        };
        drop(done);
        let _ = watchdog.join();
        ran?;
        drop((vcpu, vm));
        // Not one turn in all that time: slower than any measure.
        laps.result().ok_or_else(|| Unusable::TooSlow { instructions_per_second: 0 }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slow_is_refused_with_its_rate() {
        let measured = |instructions_per_second| Measurement { instructions_per_second, exit_nanoseconds: 1 };
        assert!(measured(LEAST_RATE).judge().is_ok());
        let refused = measured(650_000).judge().unwrap_err();
        assert_eq!(refused, Unusable::TooSlow { instructions_per_second: 650_000 });
        assert!(refused.to_string().contains("650 thousand"), "{refused}");
    }

    #[test]
    fn a_guest_of_known_speed_is_measured_as_such() {
        // Laps that take as long as the guest says, by what the watch is told and not by the clock.
        let laps = Laps {
            shortest: [
                (1, Some(Duration::from_micros(22))),
                (FEW, Some(Duration::from_micros(2_322))),
                (MANY, None),
            ],
            ..Laps::new()
        };
        let Measurement { instructions_per_second, exit_nanoseconds } = laps.result().unwrap();
        assert_eq!(exit_nanoseconds, 22_000);
        assert_eq!(instructions_per_second, 499 * 3 * 1_000_000 / 2_300);
    }

    #[test]
    fn this_hosts_kvm_is_measured() {
        match measure() {
            Ok(measurement) => {
                assert!(measurement.instructions_per_second > 0 && measurement.exit_nanoseconds > 0)
            }
            Err(reason) => eprintln!("SKIPPED: {reason}"),
        }
    }
}
