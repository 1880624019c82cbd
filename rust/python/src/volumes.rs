//! Volumes: made, looked at, locked.

use std::fs::File;
use std::os::fd::RawFd;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use supermachine_storage::volume::{self, Volume};
use supermachine_storage::{ext4, lock};
use supermachine_support::entropy;

use crate::sys;

/// Makes a volume of so many bytes in the empty file behind `fd`. Raises ValueError for a size that cannot be.
#[pyfunction]
pub fn make_volume(py: Python<'_>, fd: RawFd, size: u64) -> PyResult<()> {
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

/// Of the volume behind `fd`: its bytes, the process that had it open last, and what it is known by while nobody writes to
/// it. Raises OSError for what is no volume.
#[pyfunction]
pub fn look_at_volume(fd: RawFd) -> PyResult<(u64, u32, Vec<u8>)> {
    let file = File::from(sys::duplicate(fd)?);
    let length = file.metadata()?.len();
    let volume = Volume::open(file, length)?;
    Ok((volume.bytes(), volume.holder()?, volume.mark()?.to_vec()))
}

/// Locks the file behind `fd` for as long as that is open here or elsewhere; false when another has it. Those that only read
/// share it.
#[pyfunction]
pub fn lock_volume(fd: RawFd, shared: bool) -> PyResult<bool> {
    Ok(lock::acquire(&File::from(sys::duplicate(fd)?), shared)?)
}
