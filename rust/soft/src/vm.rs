//! The virtual machine: memory map, vCPUs' shared parts, timer thread.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

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

/// The part of a vCPU that other threads reach.
#[derive(Default)]
pub(crate) struct VcpuShared {
    /// Bits of [`Pending`].
    pub pending: AtomicU32,
    /// Whether it may be using what it has cached.
    pub running: AtomicBool,
    sleeping: AtomicBool,
    requests: Mutex<Vec<Request>>,
    pub asked: AtomicU64,
    pub done: AtomicU64,
    thread: Mutex<Option<Thread>>,
    created: AtomicBool,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VcpuShared {
    pub fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        lock(&self.requests)
    }

    pub fn ask(&self, r: Request) {
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
    pub fn wake(&self, what: Pending) {
        self.pending.fetch_or(what.0, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst)
            && let Some(t) = &*lock(&self.thread)
        {
            t.unpark();
        }
    }

    pub fn enter(&self) {
        *lock(&self.thread) = Some(std::thread::current());
        self.running.store(true, Ordering::SeqCst);
    }

    pub fn leave(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    /// Sleeps until something other than a request is pending. Requests wait: they are served before any guest code.
    pub fn sleep(&self) {
        self.running.store(false, Ordering::SeqCst);
        self.sleeping.store(true, Ordering::SeqCst);
        while self.pending.load(Ordering::SeqCst) & !Pending::REQUEST.0 == 0 {
            std::thread::park();
        }
        self.sleeping.store(false, Ordering::SeqCst);
        self.running.store(true, Ordering::SeqCst);
        // A request posted before `running` was seen is in `pending`, which the run loop looks at next.
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
    pub fn holds(&self, pa: u64) -> bool {
        pa.wrapping_sub(self.gpa) < self.len
    }

    /// Where `pa`, which it holds, is for the host.
    pub fn host(&self, pa: u64, write: bool) -> Option<*mut u8> {
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
    timers: Arc<Timers>,
    translation: Translation,
    /// Memory for machine code.
    code: Option<Arc<CodeMemory>>,
}

impl Shared {
    /// The memory there is now.
    pub fn memory(&self) -> Vec<Region> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn region(&self, pa: u64) -> Option<Region> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.iter().find(|r| r.holds(pa)).copied()
    }

    /// What translates vCPU `index`'s code, if something does.
    pub fn jit(&self, index: u32) -> Option<Box<Jit>> {
        let share = self.code.as_ref()?.share(index as usize, self.vcpus.len());
        Jit::new(share, self.translation)
    }

    /// The host's counter, in ticks of [`COUNTER_HZ`].
    pub fn counter(&self) -> u64 {
        self.base + ticks(self.start.elapsed())
    }

    /// Asks for a look at vCPU `index`'s timers when the counter reaches `at`.
    pub fn set_timer(&self, index: u32, at: Option<u64>) {
        let at = at.and_then(|at| {
            let ticks = at.saturating_sub(self.counter());
            // Beyond a year there is nothing to wait for.
            (ticks < COUNTER_HZ * 31_536_000)
                .then(|| Instant::now() + Duration::from_nanos((ticks + 1) * 1000 / (COUNTER_HZ / 1_000_000)))
        });
        self.timers.set(index, at);
    }
}

fn ticks(d: Duration) -> u64 {
    d.as_secs() * COUNTER_HZ + u64::from(d.subsec_nanos()) * (COUNTER_HZ / 1_000_000) / 1000
}

/// One thread that tells vCPUs when their timers are due.
#[derive(Default)]
struct Timers {
    due: Mutex<TimersState>,
    changed: Condvar,
}

#[derive(Default)]
struct TimersState {
    at: BTreeMap<u32, Instant>,
    stop: bool,
    /// What the thread waits for; no need to wake it for anything later.
    wait: Option<Instant>,
}

impl Timers {
    fn set(&self, index: u32, at: Option<Instant>) {
        let mut due = lock(&self.due);
        match at {
            Some(at) => {
                due.at.insert(index, at);
                if due.wait.is_none_or(|w| at < w) {
                    self.changed.notify_one();
                }
            }
            None => {
                due.at.remove(&index);
            }
        }
    }

    fn run(&self, vcpus: &[Weak<VcpuShared>]) {
        let mut due = lock(&self.due);
        while !due.stop {
            let now = Instant::now();
            let ready: Vec<u32> = due.at.iter().filter(|(_, at)| **at <= now).map(|(i, _)| *i).collect();
            for i in ready {
                due.at.remove(&i);
                if let Some(v) = vcpus[i as usize].upgrade() {
                    v.wake(Pending::TIMER);
                }
            }
            let first = due.at.values().min().copied();
            due.wait = first;
            due = match first {
                Some(at) => {
                    let wait = at.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(due, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(due).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// A virtual machine.
pub struct Vm {
    shared: Arc<Shared>,
    timer_thread: Option<std::thread::JoinHandle<()>>,
}

impl Vm {
    /// Makes a machine without memory and starts its timer thread.
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
        let timers = Arc::new(Timers::default());
        let timer_thread = {
            let timers = timers.clone();
            let vcpus: Vec<_> = vcpus.iter().map(Arc::downgrade).collect();
            let builder = std::thread::Builder::new().name("timers".into()).stack_size(128 << 10);
            builder.spawn(move || timers.run(&vcpus)).map_err(Error::TimerThread)?
        };
        let translates = config.translation != Translation::Off && cfg!(target_arch = "x86_64");
        // Where there is none the interpreter does everything.
        let code = translates.then(memory::take).and_then(std::io::Result::ok);
        let shared = Arc::new(Shared {
            gic,
            vcpus,
            regions: RwLock::default(),
            start: Instant::now(),
            base: monotonic(),
            timers,
            translation: config.translation,
            code: code.map(Arc::new),
        });
        Ok(Self { shared, timer_thread: Some(timer_thread) })
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
        Ok(Vcpu::new(Cpu::new(self.shared.clone(), index)))
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

    pub fn set_gic_state(&self, state: &[u8]) -> Result<()> {
        Ok(self.shared.gic.set_state(state)?)
    }

    /// The counter that virtual counters are offset from, in ticks of [`COUNTER_HZ`]; monotonic on one host boot.
    pub fn counter_now(&self) -> u64 {
        self.shared.counter()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        lock(&self.shared.timers.due).stop = true;
        self.shared.timers.changed.notify_one();
        if let Some(t) = self.timer_thread.take() {
            let _ = t.join();
        }
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
    pub fn cancel(&self) {
        self.vcpu.wake(Pending::CANCEL);
    }
}
