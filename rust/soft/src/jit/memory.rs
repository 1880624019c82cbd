//! Memory for machine code: one file, mapped twice, writable in one place and executable in the other, so that nothing is
//! ever both.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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
    pub fn new() -> io::Result<Self> {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"code".as_ptr(), libc::MFD_CLOEXEC) };
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
    pub fn new() -> io::Result<Self> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// The part of one of `of` vCPUs.
    pub fn share(self: &std::sync::Arc<Self>, index: usize, of: usize) -> Share {
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
    pub fn len(&self) -> usize {
        self.len
    }

    /// The executable address of the byte at `offset`.
    pub fn address(&self, offset: usize) -> u64 {
        assert!(offset < self.len);
        // SAFETY: inside the mapping, by the check and the share's bounds.
        unsafe { self.memory.executable.as_ptr().add(self.first + offset) as u64 }
    }

    /// Writes code. The vCPU must not be running what is written over.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: inside the writable mapping, by the check and the share's bounds; only this share writes there.
        unsafe {
            let to = self.memory.writable.as_ptr().add(self.first + offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
}

/// What [`prepare`] has made, for the next machine.
static PREPARED: Mutex<Option<CodeMemory>> = Mutex::new(None);

fn prepared() -> std::sync::MutexGuard<'static, Option<CodeMemory>> {
    PREPARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
