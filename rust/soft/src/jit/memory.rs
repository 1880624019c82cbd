//! Memory for machine code: one file, mapped twice, writable in one place and executable in the other, so that nothing
//! is ever both.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Mutex;

/// Bytes reserved; they cost nothing before they are written to.
#[cfg(target_os = "linux")]
const SIZE: usize = 16 << 20;

/// Code memory of one machine.
pub(crate) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    len: usize,
}

// SAFETY: the mappings belong to the value; who writes through it is for `Share` to see to.
unsafe impl Send for CodeMemory {}
// SAFETY: as above; nothing is written through a shared reference but by `Share`.
unsafe impl Sync for CodeMemory {}

impl CodeMemory {
    /// Maps new memory; fails where the system lets no memory be executable.
    #[cfg(target_os = "linux")]
    pub(crate) fn new() -> io::Result<Self> {
        // By its number: the C library of the oldest hosts (manylinux_2_17) has no function for it.
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_create, c"code".as_ptr(), libc::MFD_CLOEXEC) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the descriptor is open.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), SIZE as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |protection| {
            // SAFETY: a new mapping, where the kernel likes.
            let at = unsafe {
                libc::mmap(std::ptr::null_mut(), SIZE, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
            };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let missing = || io::Error::other("nothing is mapped");
        let executable = NonNull::new(map(libc::PROT_READ | libc::PROT_EXEC)?).ok_or_else(missing)?;
        let writable = map(libc::PROT_READ | libc::PROT_WRITE).inspect_err(|_| {
            // SAFETY: the mapping was just made, and nothing refers to it.
            unsafe { libc::munmap(executable.as_ptr().cast(), SIZE) };
        });
        let writable = NonNull::new(writable?).ok_or_else(missing)?;
        Ok(Self { writable, executable, len: SIZE })
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn new() -> io::Result<Self> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// The part of one of `of` vCPUs.
    pub(crate) fn share(self: &std::sync::Arc<Self>, index: usize, of: usize) -> Share {
        let len = (self.len / of.max(1)) & !0xfff;
        Share { memory: self.clone(), first: len * index, len }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both mappings were made in `new` with this length, and shares hold on to this value.
        unsafe {
            libc::munmap(self.writable.as_ptr().cast(), self.len);
            libc::munmap(self.executable.as_ptr().cast(), self.len);
        }
    }
}

/// One vCPU's part: no other writes to it or runs what is in it.
pub(crate) struct Share {
    memory: std::sync::Arc<CodeMemory>,
    first: usize,
    len: usize,
}

impl Share {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The executable address of the byte at `offset`.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        assert!(offset < self.len);
        // SAFETY: inside the mapping, by the check and the share's bounds.
        unsafe { self.memory.executable.as_ptr().add(self.first + offset) as u64 }
    }

    /// Writes code. The vCPU must not be running what is written over.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: inside the writable mapping, by the check and the share's bounds; only this share writes there.
        unsafe {
            let to = self.memory.writable.as_ptr().add(self.first + offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        #[cfg(target_arch = "aarch64")]
        publish(self.address(offset), bytes.len());
    }
}

/// Has instructions that were written be fetched: they are in the data cache, which need not be where instructions come
/// from (Arm ARM, B2.4.4). The caches are of physical memory, as far as software sees, so that the executable addresses
/// do for both. Other processors of this process are told too; a thread comes to them through the kernel, which
/// synchronises their context.
#[cfg(target_arch = "aarch64")]
fn publish(at: u64, len: usize) {
    let ctr: u64;
    // SAFETY: EL0 may read CTR_EL0: Linux and macOS let it, or answer themselves.
    unsafe { core::arch::asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack)) };
    let lines = |log: u64| {
        let line = 4 << (ctr >> log & 15);
        (at & !(line - 1)..at + len as u64).step_by(line as usize)
    };
    // IDC and DIC: no cleaning, and no invalidating, is needed.
    if ctr >> 28 & 1 == 0 {
        for line in lines(16) {
            // SAFETY: the address is mapped and may be read; nothing changes but where its data is.
            unsafe { core::arch::asm!("dc cvau, {}", in(reg) line, options(nostack)) };
        }
    }
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("dsb ish", options(nostack)) };
    if ctr >> 29 & 1 == 0 {
        for line in lines(0) {
            // SAFETY: as above, of instructions.
            unsafe { core::arch::asm!("ic ivau, {}", in(reg) line, options(nostack)) };
        }
        // SAFETY: a barrier.
        unsafe { core::arch::asm!("dsb ish", options(nostack)) };
    }
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("isb", options(nostack)) };
}

/// What [`prepare`] has made, for the next machine.
static PREPARED: Mutex<Option<CodeMemory>> = Mutex::new(None);

fn prepared() -> std::sync::MutexGuard<'static, Option<CodeMemory>> {
    supermachine_support::lock(&PREPARED)
}

/// Maps memory for the next machine's code, for a process that cannot later.
pub(crate) fn prepare() -> io::Result<()> {
    *prepared() = Some(CodeMemory::new()?);
    Ok(())
}

/// The memory that was prepared, or new one.
pub(crate) fn take() -> io::Result<CodeMemory> {
    match prepared().take() {
        Some(memory) => Ok(memory),
        None => CodeMemory::new(),
    }
}
