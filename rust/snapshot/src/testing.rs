//! Files for tests.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// A file without a name.
pub(crate) fn nameless() -> File {
    tempfile::tempfile().unwrap()
}

pub(crate) fn file_of(bytes: &[u8]) -> File {
    let file = nameless();
    file.write_all_at(bytes, 0).unwrap();
    file
}

pub(crate) fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}
