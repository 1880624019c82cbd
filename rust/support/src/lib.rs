//! What several crates need and none owns: locks, entropy, page size, elapsed time, indices of 64 bits, descriptors
//! over sockets, work for threads that have none, a tripwire for saved structures. It knows no other crate.

#![allow(unsafe_code, reason = "getrandom(2), getentropy(3), sysconf(3) and close_range(2) are C calls")]

pub mod descriptors;
#[cfg(target_os = "linux")]
pub mod inherited;
pub mod side_work;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Locks, also after a thread has panicked with the lock held: what is locked here is whole between two statements, and
/// one thread's panic must not take the others along.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fills `bytes` from the kernel's random number generator, without a file or a descriptor.
pub fn entropy(bytes: &mut [u8]) -> io::Result<()> {
    // Of 256 bytes at once all come or none (getrandom(2), getentropy(2)).
    for part in bytes.chunks_mut(256) {
        let (to, length) = (part.as_mut_ptr().cast::<libc::c_void>(), part.len());
        // By its number: the C library of the oldest hosts (manylinux_2_17) has no function for it.
        // SAFETY: the pointer and the length are the slice's.
        #[cfg(target_os = "linux")]
        let whole = unsafe { libc::syscall(libc::SYS_getrandom, to, length, 0) }
            == libc::c_long::try_from(length).unwrap_or(-1);
        // SAFETY: as above.
        #[cfg(not(target_os = "linux"))]
        let whole = unsafe { libc::getentropy(to, length) } == 0;
        if !whole {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Bytes of the host's pages: 4 KiB, or 16 KiB on Apple silicon.
pub fn page_size() -> u64 {
    // SAFETY: sysconf(3) takes a number and touches no memory of the caller's.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).expect("every system has a page size (POSIX, <unistd.h>)")
}

/// Nanoseconds since `then`, as messages carry them; the largest number after 584 years.
pub fn elapsed_ns(then: Instant) -> u64 {
    u64::try_from(then.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A length or an offset of 64 bits as an index. Nothing is lost: hosts have pointers of 64 bits.
#[expect(clippy::cast_possible_truncation, reason = "no build has smaller pointers")]
pub const fn to_usize(n: u64) -> usize {
    const { assert!(usize::BITS == 64) };
    n as usize
}

/// Does not compile when a structure that snapshots hold has other fields than those that are listed. Who has changed
/// one reads docs/concepts/snapshot-versioning.md, "Changing a saved structure", before this list is changed as well.
///
/// ```
/// #[derive(Clone, Copy)]
/// struct Saved {
///     count: u32,
///     ready: bool,
/// }
/// supermachine_support::saved_structure!(Saved { count: u32, ready: bool });
/// ```
///
/// ```compile_fail
/// struct Saved {
///     count: u32,
///     ready: bool,
/// }
/// supermachine_support::saved_structure!(Saved { count: u32 });
/// ```
#[macro_export]
macro_rules! saved_structure {
    ($name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        const _: () = {
            #[allow(dead_code, clippy::needless_pass_by_value, reason = "it is there to be compiled")]
            fn saved_structure_has_changed_read_docs_concepts_snapshot_versioning(saved: $name) {
                let $name { $($field),* } = saved;
                $(let _: $type = $field;)*
            }
        };
    };
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_lock_that_a_panic_left_is_taken() {
        let value = Arc::new(Mutex::new(1));
        let theirs = value.clone();
        let panicked = std::thread::spawn(move || {
            let _guard = lock(&theirs);
            panic!("with the lock held");
        });
        assert!(panicked.join().is_err());
        assert_eq!(*lock(&value), 1);
    }

    #[test]
    fn entropy_fills_all_of_a_long_slice() {
        let mut bytes = [0; 1000];
        entropy(&mut bytes).unwrap();
        // The chance of this many zeros in a row is one in 2^128.
        assert!(bytes.windows(16).all(|part| part != [0; 16]));
    }

    #[test]
    fn pages_are_a_power_of_two() {
        assert!(page_size().is_power_of_two() && page_size() >= 4096);
    }
}
