//! Volumes: made, looked at, locked.

use std::fs::File;
use std::os::fd::RawFd;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::exceptions::{PyNotImplementedError, PyValueError};
use pyo3::prelude::*;
use supermachine_storage::volume::{self, Volume, Wish};
use supermachine_storage::{ext4, lock};
use supermachine_support::entropy;

use crate::sys;

/// Makes a volume of so many bytes in the empty file behind `fd`. Raises ValueError for a size that cannot be.
#[pyfunction]
pub(crate) fn make_volume(py: Python<'_>, fd: RawFd, size: u64) -> PyResult<()> {
    let file = File::from(sys::duplicate(fd)?);
    let mut uuid = [0; 16];
    entropy(&mut uuid)?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let identity = ext4::Identity { uuid, created: u32::try_from(created).unwrap_or(u32::MAX) };
    match py.detach(|| volume::make(&file, size, &identity)) {
        Ok(()) => Ok(()),
        Err(ext4::Error::Io(error)) => Err(error.into()),
        Err(error) => Err(PyValueError::new_err(error.to_string())),
    }
}

/// Makes the volume behind `fd`, which nobody else has, larger; its file system follows when a guest next mounts it.
/// With `only_check` it stays as it is. False for one that is as large already. Raises ValueError for a size that
/// cannot be, NotImplementedError for a file system that cannot grow, and OSError.
#[pyfunction]
#[pyo3(signature = (fd, size, *, only_check=false))]
pub(crate) fn grow_volume(py: Python<'_>, fd: RawFd, size: u64, only_check: bool) -> PyResult<bool> {
    let mut volume = opened(fd)?;
    let grown = py.detach(|| {
        let smaller = volume.can_grow(size)?;
        if smaller && !only_check {
            volume.grow(size)?;
        }
        Ok(smaller)
    });
    grown.map_err(|error: ext4::Error| match error {
        ext4::Error::Io(error) => error.into(),
        ext4::Error::Old => PyNotImplementedError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    })
}

/// Of the volume behind `fd`: its bytes, the process that had it open last, and what it is known by while nobody writes
/// to it. Raises OSError for what is no volume.
#[pyfunction]
pub(crate) fn look_at_volume(fd: RawFd) -> PyResult<(u64, u32, Vec<u8>)> {
    let volume = opened(fd)?;
    Ok((volume.bytes(), volume.holder()?, volume.mark()?.to_vec()))
}

/// Asks the machine that has the volume behind `fd` open to make it `size` bytes large; `None` for nothing any more.
#[pyfunction]
#[pyo3(signature = (fd, size))]
pub(crate) fn wish_of_volume(fd: RawFd, size: Option<u64>) -> PyResult<()> {
    Ok(opened(fd)?.set_wish(size.map_or(Wish::None, Wish::Bytes))?)
}

/// What came of it: `None` while the machine has not answered, else whether it was done.
#[pyfunction]
pub(crate) fn answer_of_volume(fd: RawFd) -> PyResult<Option<bool>> {
    Ok(match opened(fd)?.wish()? {
        Wish::None => Some(true),
        Wish::Refused => Some(false),
        Wish::Bytes(_) => None,
    })
}

fn opened(fd: RawFd) -> PyResult<Volume> {
    let file = File::from(sys::duplicate(fd)?);
    let length = file.metadata()?.len();
    Ok(Volume::open(file, length)?)
}

/// Locks the file behind `fd` for as long as that is open here or elsewhere; false when another has it. Those that only
/// read share it.
#[pyfunction]
pub(crate) fn lock_volume(fd: RawFd, shared: bool) -> PyResult<bool> {
    Ok(lock::acquire(&File::from(sys::duplicate(fd)?), shared)?)
}
