//! What tells one build of this program from any other.

#![allow(unsafe_code, reason = "the loader says where the program's notes are")]

use std::sync::OnceLock;

/// What the linker has made of all that is in the executable; `None` where it did not.
pub(crate) fn of_this_program() -> Option<&'static [u8]> {
    static FOUND: OnceLock<Option<&'static [u8]>> = OnceLock::new();
    *FOUND.get_or_init(find)
}

#[cfg(not(target_os = "linux"))]
fn find() -> Option<&'static [u8]> {
    None
}

#[cfg(target_os = "linux")]
fn find() -> Option<&'static [u8]> {
    /// Of the first object, which is the program.
    unsafe extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _: usize,
        found: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: `info` is what dl_iterate_phdr(3) gives, whose program headers are `dlpi_phnum`; a segment of notes
        // is in memory for as long as the program is. `found` is what was given to that call.
        unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            let notes = headers.iter().filter(|header| header.p_type == libc::PT_NOTE);
            let mut notes = notes.filter_map(|header| {
                let at = usize::try_from(info.dlpi_addr.wrapping_add(header.p_vaddr)).ok()? as *const u8;
                let length = usize::try_from(header.p_memsz).ok()?;
                Some(std::slice::from_raw_parts::<'static>(at, length))
            });
            *found.cast::<Option<&'static [u8]>>() = notes.find_map(build_id);
        }
        1
    }
    let mut found = None;
    // SAFETY: the function is called with this pointer, and writes an option of this type there.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    found
}

/// NT_GNU_BUILD_ID of GNU's (elf(5)): lengths of name and description, the type, and both, each filled up to four
/// bytes.
#[cfg(target_os = "linux")]
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const BUILD_ID: u32 = 3;
    loop {
        let (head, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name, description) = (word(0) as usize, word(4) as usize);
        let at = name.checked_next_multiple_of(4)?;
        let of = rest.get(..name)?;
        let found = rest.get(at..at.checked_add(description)?)?;
        if of == b"GNU\0" && word(8) == BUILD_ID && found.len() >= 8 {
            return Some(found);
        }
        notes = rest.get(at + description.checked_next_multiple_of(4)?..)?;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for number in [name.len() as u32, description.len() as u32, kind] {
            note.extend(number.to_ne_bytes());
        }
        for part in [name, description] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_build_id_is_found_among_other_notes() {
        let (id, other) = (note(b"GNU\0", 3, b"0123456789"), note(b"GNU\0", 1, &[7; 16]));
        let odd = note(b"A", 3, b"other build id");
        assert_eq!(build_id(&[&other[..], &odd, &id, &other].concat()), Some(&b"0123456789"[..]));
        assert_eq!(build_id(&other), None);
        for length in 0..id.len() - 2 {
            assert_eq!(build_id(&id[..length]), None);
        }
        assert_eq!(build_id(&[255; 64]), None);
    }

    #[test]
    fn this_program_has_one() {
        assert!(of_this_program().is_some_and(|id| id.len() >= 8 && id.iter().any(|byte| *byte != 0)));
    }
}
