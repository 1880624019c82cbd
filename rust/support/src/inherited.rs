//! What a process was started with beside its standard streams.

use rustix::io::Errno;

/// The lowest descriptor that is no standard stream's.
const FIRST: libc::c_int = 3;

/// Closes all descriptors but the standard streams. Who starts a program may have some open for whatever it starts: a lock,
/// a job server's pipe, a log. They are not for a process that a guest may take over.
///
/// # Safety
/// This process has opened none yet: nothing in it uses a descriptor that is no standard stream's.
pub unsafe fn close() {
    // SAFETY: the call takes numbers alone; that nobody uses what it closes is the caller's promise.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_int::MAX, 0) };
    if closed == 0 || Errno::from_io_error(&std::io::Error::last_os_error()) != Some(Errno::NOSYS) {
        return;
    }
    // Before Linux 5.9.
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let numbers: Vec<libc::c_int> = numbers.filter(|number| *number >= FIRST).collect();
    for number in numbers {
        // SAFETY: as above. The directory's own is closed already, and its number nobody's since.
        unsafe { libc::close(number) };
    }
}
