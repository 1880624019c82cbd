//! Mounting a machine's shares in its guest.

use std::time::Duration;

use pyo3::prelude::*;
use supermachine_proto::agent::{
    Attach, AttachReply, Chunk, REQUEST_PORT, Request, ShareMount, TmpfsMount, VolumeMount,
};

use crate::connection::Connection;
use crate::errors;
use crate::worker::Worker;

/// How long the guest may take.
///
/// A volume may have to be filled.
const ANSWER: Duration = Duration::from_secs(120);

/// Has the file system of a volume that is mounted take in all of its disk, which has become `size` bytes large. Raises
/// AgentError with the reason when it stays as it is.
#[pyfunction]
pub(crate) fn grow_file_system(
    py: Python<'_>,
    worker: &Bound<'_, Worker>,
    device: String,
    size: u64,
) -> PyResult<()> {
    ask(py, worker, &Request::Grow { device, bytes: size })
}

fn ask(py: Python<'_>, worker: &Bound<'_, Worker>, request: &Request) -> PyResult<()> {
    let (stream, vm) = worker.get().open(py, REQUEST_PORT)?;
    let mut connection = Connection::new(stream, vm, ANSWER)?;
    connection.send(py, request)?;
    match connection.receive(py)? {
        AttachReply::Done => Ok(()),
        AttachReply::Failed { message } => Err(errors::agent(py, &message)),
    }
}

/// Has the guest mount volumes and shares, in place of those that it was told of before: `(device, bytes, target,
/// read_only)` of each volume, and of shares `(target, read_only, volume)` in the order in which the worker was given
/// them. What the host's user owns belongs to `user` in the guest. Beside them `(target, flags, options)` of each tmpfs
/// that is new, bytes of /dev/shm (0 leaves it as it is), and whether the root becomes read-only. Raises AgentError
/// with the reason when one cannot be mounted.
#[allow(clippy::too_many_arguments, reason = "keywords in Python")]
#[pyfunction]
#[pyo3(signature = (worker, volumes, shares, user, host_uid, host_gid, *, tmpfs=Vec::new(), shm_bytes=0, read_only_root=false))]
pub(crate) fn attach_shares(
    py: Python<'_>,
    worker: &Bound<'_, Worker>,
    volumes: Vec<(String, u64, Vec<u8>, bool)>,
    shares: Vec<(Vec<u8>, bool, bool)>,
    user: String,
    host_uid: u32,
    host_gid: u32,
    tmpfs: Vec<(Vec<u8>, u64, String)>,
    shm_bytes: u64,
    read_only_root: bool,
) -> PyResult<()> {
    let mount = |(index, (target, read_only, volume)): (u32, (Vec<u8>, bool, bool))| ShareMount {
        index,
        target: Chunk(target),
        read_only,
        volume,
    };
    let shares = (0..).zip(shares).map(mount).collect();
    let volume =
        |(device, bytes, target, read_only)| VolumeMount { device, bytes, target: Chunk(target), read_only };
    let volumes = volumes.into_iter().map(volume).collect();
    let memory = |(target, flags, options)| TmpfsMount { target: Chunk(target), flags, options };
    let tmpfs = tmpfs.into_iter().map(memory).collect();
    let wanted = Attach { shares, user, host_uid, host_gid, volumes, tmpfs, shm_bytes, read_only_root };
    ask(py, worker, &Request::Attach(wanted))
}
