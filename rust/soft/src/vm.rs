//! The virtual machine: memory map, vCPUs' shared parts, timer thread.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use supermachine_support::lock;
use supermachine_support::side_work::{SideWork, Slot};

use crate::baked::{self, Baked};
use crate::cpu::Cpu;
use crate::gic::Gic;
use crate::jit::memory::{self, CodeMemory};
use crate::jit::{Jit, Translation};
use crate::requests::Pending;
use crate::vcpu::Vcpu;
use crate::{Error, Result};

/// Ticks of the counter in a second (CNTFRQ_EL0), as on Apple silicon.
pub const COUNTER_HZ: u64 = 24_000_000;

/// vCPUs of one machine at most.
pub const MAX_VCPUS: u32 = 8;

/// Where the interrupt controller is, and for how many vCPUs.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Base of the GICv3 distributor, 64 KiB.
    pub gicd_base: u64,
    /// Base of the first redistributor; 128 KiB for each vCPU.
    pub gicr_base: u64,
    /// Which code is translated to the host's, where the host lets memory be executable.
    pub translation: Translation,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            vcpus: 1,
            gicd_base: 0x0800_0000,
            gicr_base: 0x080A_0000,
            translation: Translation::from_environment(),
        }
    }
}

/// What the guest may do with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Everything.
    ReadWriteExecute,
    /// Reads and execution; writes are exits.
    Read,
}

/// What one vCPU asks of another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    TlbAll,
    TlbVa(u64),
    TlbAsid(u64),
    Code,
    CodePage(u64),
}

/// Requests that are kept one by one; more become one for everything.
const MAX_REQUESTS: usize = 64;

/// A vCPU that does not sleep,
const AWAKE: u8 = 0;
/// one that sleeps and does nothing else,
const PARKED: u8 = 1;
/// and one that waits for [`SideWork`] meanwhile.
const BESIDE: u8 = 2;
/// A sleep that is shorter is not worth any side work.
const SHORT: Duration = Duration::from_micros(50);

/// The part of a vCPU that other threads reach.
#[derive(Default)]
pub(crate) struct VcpuShared {
    /// Bits of [`Pending`].
    pub pending: AtomicU32,
    /// Whether it may be using what it has cached.
    pub running: AtomicBool,
    /// One of [`AWAKE`] and what follows it.
    sleep: AtomicU8,
    /// What it does while it sleeps.
    side_work: Mutex<Option<Arc<dyn SideWork>>>,
    requests: Mutex<Vec<Request>>,
    pub asked: AtomicU64,
    pub done: AtomicU64,
    thread: Mutex<Option<Thread>>,
    created: AtomicBool,
}

impl VcpuShared {
    pub(crate) fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        lock(&self.requests)
    }

    pub(crate) fn ask(&self, r: Request) {
        {
            let mut requests = self.requests();
            if requests.len() < MAX_REQUESTS {
                requests.push(r);
                self.asked.fetch_add(1, Ordering::SeqCst);
            } else {
                // Both together are everything that can be asked.
                requests[0] = Request::TlbAll;
                requests[1] = Request::Code;
                let n = requests.len() - 2;
                requests.truncate(2);
                self.done.fetch_add(n as u64, Ordering::SeqCst);
            }
        }
        self.pending.fetch_or(Pending::REQUEST.0, Ordering::SeqCst);
    }

    /// Leaves work and wakes the vCPU when it sleeps.
    pub(crate) fn wake(&self, what: Pending) {
        self.pending.fetch_or(what.0, Ordering::SeqCst);
        match self.sleep.load(Ordering::SeqCst) {
            PARKED => {
                if let Some(thread) = &*lock(&self.thread) {
                    thread.unpark();
                }
            }
            BESIDE => {
                if let Some(work) = &*lock(&self.side_work) {
                    work.wake();
                }
            }
            _ => {}
        }
    }

    pub(crate) fn enter(&self) {
        *lock(&self.thread) = Some(std::thread::current());
        self.running.store(true, Ordering::SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    /// Sleeps until something other than a request is pending, or until this time, and does side work meanwhile.
    /// Requests wait: they are served before any guest code. `held` is work that it has not let go of; what is so
    /// afterwards is returned.
    pub(crate) fn sleep(
        &self,
        until: Option<Instant>,
        slot: &Slot,
        mut held: Option<Arc<dyn SideWork>>,
    ) -> Option<Arc<dyn SideWork>> {
        self.running.store(false, Ordering::SeqCst);
        let mut side_work = slot.get().filter(|work| Self::has_time(until) && work.begin());
        if let Some(work) =
            held.take_if(|held| !side_work.as_ref().is_some_and(|work| Arc::ptr_eq(work, held)))
        {
            work.let_go();
        }
        if let Some(work) = &side_work {
            // Who wakes finds it here, as the slot may hold another by then.
            *lock(&self.side_work) = Some(work.clone());
        }
        loop {
            self.sleep.store(if side_work.is_some() { BESIDE } else { PARKED }, Ordering::SeqCst);
            if self.pending.load(Ordering::SeqCst) & !Pending::REQUEST.0 != 0 {
                break;
            }
            let left = until.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            if let Some(work) = side_work.take_if(|_| left.is_some_and(|left| left < SHORT)) {
                work.let_go();
                work.end();
                held = None;
                continue;
            }
            if let Some(work) = &side_work {
                held.get_or_insert_with(|| work.clone());
                match work.wait(until) {
                    Some(true) => {
                        // What it brings for this vCPU itself needs no waking.
                        self.sleep.store(AWAKE, Ordering::SeqCst);
                        work.work();
                    }
                    Some(false) => {}
                    None => {
                        work.let_go();
                        work.end();
                        (side_work, held) = (None, None);
                    }
                }
                continue;
            }
            match left {
                Some(left) => std::thread::park_timeout(left),
                None => std::thread::park(),
            }
        }
        self.sleep.store(AWAKE, Ordering::SeqCst);
        if let Some(work) = side_work {
            work.end();
        }
        // It may know this machine.
        *lock(&self.side_work) = None;
        self.running.store(true, Ordering::SeqCst);
        // A request posted before `running` was seen is in `pending`, which the run loop looks at next.
        held
    }

    fn has_time(until: Option<Instant>) -> bool {
        until.is_none_or(|at| at.saturating_duration_since(Instant::now()) >= SHORT)
    }
}

/// Memory of the host's at a guest physical address.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    gpa: u64,
    len: u64,
    host: u64,
    writable: bool,
}

impl Region {
    pub(crate) fn holds(&self, pa: u64) -> bool {
        pa.wrapping_sub(self.gpa) < self.len
    }

    /// Where `pa`, which it holds, is for the host.
    pub(crate) fn host(&self, pa: u64, write: bool) -> Option<*mut u8> {
        (self.writable || !write).then(|| (self.host + (pa - self.gpa)) as usize as *mut u8)
    }
}

/// What all vCPUs share.
pub(crate) struct Shared {
    pub gic: Arc<Gic>,
    pub vcpus: Vec<Arc<VcpuShared>>,
    regions: RwLock<Vec<Region>>,
    start: Instant,
    base: u64,
    translation: Translation,
    /// Whether vCPUs are being made ahead, which have no memory for machine code yet.
    ahead: AtomicBool,
    /// Memory for machine code, from the first vCPU on; `None` in it where there is none and the interpreter does
    /// everything.
    code: OnceLock<Option<Arc<CodeMemory>>>,
    /// What a page is waited for with, where some may be missing.
    presence: OnceLock<Presence>,
    /// What has been decoded by another process.
    baked: OnceLock<Arc<Baked>>,
    /// For vCPUs that sleep.
    pub side_work: Arc<Slot>,
}

/// Waits until these bytes of guest memory, by address and length, are there; `false` when they will not be.
pub type Presence = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

impl Shared {
    /// The memory there is now.
    pub(crate) fn memory(&self) -> Vec<Region> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the page of this address is there, for which it may wait; also where there is no memory.
    pub(crate) fn is_present(&self, pa: u64) -> bool {
        self.presence.get().is_none_or(|presence| presence(pa & !0xfff, 0x1000))
    }

    pub(crate) fn region(&self, pa: u64) -> Option<Region> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.iter().find(|r| r.holds(pa)).copied()
    }

    /// What translates vCPU `index`'s code, if something does.
    pub(crate) fn jit(&self, index: u32) -> Option<Box<Jit>> {
        if self.ahead.load(Ordering::Relaxed) {
            return None;
        }
        let code = self.code.get_or_init(|| {
            let translates = self.translation != Translation::Off && crate::jit::TRANSLATES;
            translates.then(memory::take).and_then(std::io::Result::ok).map(Arc::new)
        });
        let share = code.as_ref()?.share(index as usize, self.vcpus.len());
        Jit::new(share, self.translation)
    }

    pub(crate) fn baked(&self) -> Option<Arc<Baked>> {
        self.baked.get().cloned()
    }

    /// The host's counter, in ticks of [`COUNTER_HZ`].
    pub(crate) fn counter(&self) -> u64 {
        self.base + ticks(self.start.elapsed())
    }

    /// When the counter reaches `at`; `None` when that is too far away to wait for.
    pub(crate) fn instant(&self, at: u64) -> Option<Instant> {
        let ticks = at.saturating_sub(self.counter());
        // Beyond a year there is nothing to wait for.
        (ticks < COUNTER_HZ * 31_536_000)
            .then(|| Instant::now() + Duration::from_nanos((ticks + 1) * 1000 / (COUNTER_HZ / 1_000_000)))
    }
}

fn ticks(d: Duration) -> u64 {
    d.as_secs() * COUNTER_HZ + u64::from(d.subsec_nanos()) * (COUNTER_HZ / 1_000_000) / 1000
}

/// A virtual machine.
pub struct Vm {
    shared: Arc<Shared>,
    /// vCPUs that were made before they are asked for.
    made: Mutex<Vec<Vcpu>>,
}

impl Vm {
    /// Makes a machine without memory.
    pub fn new(config: VmConfig) -> Result<Self> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(Error::VcpuCount(config.vcpus));
        }
        let gic = Arc::new(Gic::new(config.vcpus, config.gicd_base, config.gicr_base));
        let vcpus: Vec<Arc<VcpuShared>> = (0..config.vcpus).map(|_| Arc::default()).collect();
        for (i, v) in vcpus.iter().enumerate() {
            let v = Arc::downgrade(v);
            gic.set_waker(
                i as u32,
                Arc::new(move || {
                    if let Some(v) = v.upgrade() {
                        v.wake(Pending::INTERRUPT);
                    }
                }),
            );
        }
        let shared = Arc::new(Shared {
            gic,
            vcpus,
            regions: RwLock::default(),
            start: Instant::now(),
            base: monotonic(),
            translation: config.translation,
            ahead: AtomicBool::new(false),
            code: OnceLock::new(),
            presence: OnceLock::new(),
            baked: OnceLock::new(),
            side_work: Arc::default(),
        });
        Ok(Self { shared, made: Mutex::default() })
    }

    /// Maps host memory at a guest physical address, before any vCPU runs.
    ///
    /// # Safety
    /// `host` must be valid for `len` bytes (readable, and writable when `protection` says so), and not be referred
    /// to by Rust references, until it is unmapped or the VM and all its vCPUs are gone.
    pub unsafe fn map(&self, host: NonNull<u8>, gpa: u64, len: u64, protection: Protection) -> Result<()> {
        let end = gpa.checked_add(len).ok_or(Error::BadRegion { gpa, len })?;
        if (gpa | len | host.as_ptr() as u64) & 0xfff != 0 || len == 0 || end > 1 << crate::mmu::PA_BITS {
            return Err(Error::BadRegion { gpa, len });
        }
        let mut regions = self.shared.regions.write().unwrap_or_else(PoisonError::into_inner);
        if regions.iter().any(|r| gpa < r.gpa + r.len && r.gpa < end) {
            return Err(Error::BadRegion { gpa, len });
        }
        let writable = protection == Protection::ReadWriteExecute;
        regions.push(Region { gpa, len, host: host.as_ptr() as u64, writable });
        Ok(())
    }

    /// Has vCPUs wait for pages before they enter a TLB, once. Before any vCPU runs.
    pub fn set_presence(&self, presence: Presence) {
        let _ = self.shared.presence.set(presence);
    }

    /// Where the vCPU of a machine that has one finds work of other threads while it sleeps. Of several, one that is
    /// busy with a device could keep what the others wait for.
    pub fn side_work(&self) -> Option<Arc<Slot>> {
        (self.shared.vcpus.len() == 1).then(|| self.shared.side_work.clone())
    }

    /// Takes a region away again. No vCPU may be running.
    pub fn unmap(&self, gpa: u64, len: u64) -> Result<()> {
        let mut regions = self.shared.regions.write().unwrap_or_else(PoisonError::into_inner);
        let at = regions.iter().position(|r| r.gpa == gpa && r.len == len);
        regions.remove(at.ok_or(Error::BadRegion { gpa, len })?);
        for v in &self.shared.vcpus {
            v.ask(Request::TlbAll);
            v.ask(Request::Code);
        }
        Ok(())
    }

    /// Creates vCPU `index`: EL1h, interrupts masked, MMU off, affinity 0 equal to the index. Once for each.
    pub fn create_vcpu(&self, index: u32) -> Result<Vcpu> {
        let v = self.shared.vcpus.get(index as usize).ok_or(Error::NoSuchVcpu(index))?;
        if v.created.swap(true, Ordering::SeqCst) {
            return Err(Error::VcpuExists(index));
        }
        let mut made = lock(&self.made);
        let Some(at) = made.iter().position(|vcpu| vcpu.index() == index) else {
            drop(made);
            return Ok(Vcpu::new(Cpu::new(self.shared.clone(), index)));
        };
        let mut vcpu = made.swap_remove(at);
        vcpu.begin_translating();
        Ok(vcpu)
    }

    /// Decodes the code at these guest physical addresses for every vCPU, none of which has been created yet: for a
    /// process that is copied afterwards, once for each machine. No memory becomes executable.
    pub fn decode_ahead(&self, places: &[u64]) {
        let mut made = lock(&self.made);
        self.shared.ahead.store(true, Ordering::Relaxed);
        for index in 0..self.shared.vcpus.len() as u32 {
            let mut cpu = Cpu::new(self.shared.clone(), index);
            cpu.decode_ahead(places);
            made.push(Vcpu::new(cpu));
        }
        self.shared.ahead.store(false, Ordering::Relaxed);
    }

    /// Decodes the code at these guest physical addresses, and gives what [`Baked::open`] reads. Nothing else is done
    /// with this machine.
    pub fn bake(&self, places: &[u64], key: &baked::Key) -> Vec<u8> {
        self.shared.ahead.store(true, Ordering::Relaxed);
        Cpu::new(self.shared.clone(), 0).bake(places, key)
    }

    /// Has vCPUs take what another process has decoded of the memory as it is now, once. Before any vCPU is created.
    pub fn set_baked(&self, baked: Baked) {
        let _ = self.shared.baked.set(Arc::new(baked));
    }

    /// The first vCPU as it is inside, for tests of single operations.
    #[cfg(test)]
    pub(crate) fn bare_cpu(&self) -> Box<crate::cpu::Cpu> {
        crate::cpu::Cpu::new(self.shared.clone(), 0)
    }

    /// Lets the guest find the redistributors of the first `vcpus` vCPUs only. For those that are not created in a
    /// machine made for more; before the guest looks.
    pub fn list_redistributors(&self, vcpus: u32) {
        self.shared.gic.list(vcpus);
    }

    /// What makes vCPU `index` leave its run.
    pub fn canceller(&self, index: u32) -> Result<Canceller> {
        let vcpu = self.shared.vcpus.get(index as usize).ok_or(Error::NoSuchVcpu(index))?;
        Ok(Canceller { vcpu: vcpu.clone() })
    }

    /// Sets the level of the shared peripheral interrupt with this INTID (32 and up).
    pub fn set_spi(&self, intid: u32, level: bool) {
        self.shared.gic.set_spi(intid, level);
    }

    /// The interrupt controller's state: opaque, for [`Vm::set_gic_state`].
    pub fn gic_state(&self) -> Vec<u8> {
        self.shared.gic.state()
    }

    /// Takes over what [`Vm::gic_state`] has given, of a machine with as many vCPUs.
    pub fn set_gic_state(&self, state: &[u8]) -> Result<()> {
        Ok(self.shared.gic.set_state(state)?)
    }

    /// The counter that virtual counters are offset from, in ticks of [`COUNTER_HZ`]; monotonic on one host boot.
    pub fn counter_now(&self) -> u64 {
        self.shared.counter()
    }
}

/// Ticks since the host booted.
fn monotonic() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the timespec that is given to it.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    ticks(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
}

/// Makes a vCPU leave [`Vcpu::run`], from any thread. A call while it is outside makes its next run return at once.
#[derive(Clone)]
pub struct Canceller {
    vcpu: Arc<VcpuShared>,
}

impl Canceller {
    /// Asks it; the guest may run on for up to 1,024 instructions, or 4,096 of translated code.
    pub fn cancel(&self) {
        self.vcpu.wake(Pending::CANCEL);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Work that is announced by a channel, as is what has been done.
    struct Announced {
        comes: Mutex<mpsc::Receiver<bool>>,
        announce: mpsc::Sender<bool>,
        done: mpsc::Sender<&'static str>,
    }

    impl SideWork for Announced {
        fn begin(&self) -> bool {
            self.done.send("begin").unwrap();
            true
        }

        /// As early as it may be.
        fn wait(&self, until: Option<Instant>) -> Option<bool> {
            if let Some(until) = until {
                thread::sleep((until - SHORT / 2).saturating_duration_since(Instant::now()));
                return Some(false);
            }
            Some(lock(&self.comes).recv_timeout(PATIENCE).unwrap())
        }

        fn work(&self) {
            self.done.send("work").unwrap();
        }

        fn let_go(&self) {
            self.done.send("let go").unwrap();
        }

        fn wake(&self) {
            self.announce.send(false).unwrap();
        }

        fn end(&self) {
            self.done.send("end").unwrap();
        }
    }

    fn announced() -> (Arc<Announced>, mpsc::Receiver<&'static str>) {
        let ((announce, comes), (done, told)) = (mpsc::channel(), mpsc::channel());
        (Arc::new(Announced { comes: Mutex::new(comes), announce, done }), told)
    }

    #[test]
    fn a_vcpu_that_sleeps_does_side_work_until_it_is_woken() {
        let (work, told) = announced();
        let (vcpu, slot) = (Arc::new(VcpuShared::default()), Slot::default());
        slot.set(Some(work.clone()));
        let sleeper = thread::spawn({
            let vcpu = vcpu.clone();
            move || {
                vcpu.enter();
                vcpu.sleep(None, &slot, None).is_some()
            }
        });
        work.announce.send(true).unwrap();
        work.announce.send(true).unwrap();
        for expected in ["begin", "work", "work"] {
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), expected);
        }
        assert!(!sleeper.is_finished());
        // A request waits, and work of its own does not.
        vcpu.ask(Request::TlbAll);
        vcpu.wake(Pending::INTERRUPT);
        assert!(sleeper.join().unwrap(), "what it has done work of is its own from then on");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["end"]);
        assert!(lock(&vcpu.side_work).is_none());
    }

    #[test]
    fn a_short_sleep_has_no_side_work_and_a_long_one_ends_in_time() {
        let (work, told) = announced();
        let (vcpu, slot) = (VcpuShared::default(), Slot::default());
        slot.set(Some(work.clone()));
        vcpu.enter();
        let soon = Instant::now() + SHORT / 2;
        assert!(vcpu.sleep(Some(soon), &slot, None).is_none());
        assert!(Instant::now() >= soon && told.try_recv().is_err());
        let later = Instant::now() + 100 * SHORT;
        let held = vcpu.sleep(Some(later), &slot, Some(work.clone())).is_some();
        assert!(Instant::now() >= later);
        // The last moments are another sleep, unless they were over by then.
        let expected = if held { &["begin", "end"][..] } else { &["begin", "let go", "end"] };
        assert_eq!(told.try_iter().collect::<Vec<_>>(), expected);
        // What it holds is let go of before a sleep without it.
        let soon = Instant::now() + SHORT / 2;
        assert!(vcpu.sleep(Some(soon), &slot, Some(work)).is_none());
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["let go"]);
    }
}
