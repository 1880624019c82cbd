//! Decoded code of a snapshot in a file beside it, which restores take in place of decoding it themselves.
//! [`crate::bake`] makes it.
//!
//! What is in such a file runs in this process as its own code does. So it is taken only where nobody but the user
//! could have written it, and is open for reading alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use supermachine_snapshot::Digest32;

use crate::build_id;

/// Opens the file, where there is one that nobody but this user could have written.
pub(crate) fn open(path: &Path) -> Option<File> {
    if path.as_os_str().is_empty() {
        return None;
    }
    // Not a link, and not a pipe that keeps who opens it waiting.
    let file =
        File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    is_own(&file).then_some(file)
}

fn is_own(file: &File) -> bool {
    let Ok(found) = file.metadata() else { return false };
    // Under one name alone: who may write to the directory could have linked another file of the user's to here.
    found.is_file()
        && found.uid() == rustix::process::geteuid().as_raw()
        && found.mode() & 0o022 == 0
        && found.nlink() == 1
}

/// What these files are to the system: another as soon as they are others, or are written to.
pub(crate) fn state(files: &[File]) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    for file in files {
        let found = file.metadata()?;
        let times =
            [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()].map(i64::cast_unsigned);
        for number in [found.dev(), found.ino(), found.len()].into_iter().chain(times) {
            state.extend(number.to_le_bytes());
        }
    }
    Ok(state)
}

/// What a file must be for: this build of the worker, and the snapshot of this id in files of this state.
///
/// The id alone is what the file says of itself, and would be believed of any that says the same.
pub(crate) fn key(id: &Digest32, state: &[u8]) -> Option<[u8; 32]> {
    let build = build_id::of_this_program()?;
    let length = u8::try_from(build.len()).ok()?;
    Some(Digest32::of(&[&[length], build, &id.0, state].concat()).0)
}
