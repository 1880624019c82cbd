//! Mounting a machine's shares in its guest.

use std::time::Duration;

use pyo3::prelude::*;
use supermachine_proto::agent::{Attach, AttachReply, Chunk, REQUEST_PORT, Request, ShareMount};

use crate::connection::Connection;
use crate::errors;
use crate::worker::Worker;

/// How long the guest may take.
const ANSWER: Duration = Duration::from_secs(30);

/// Has the guest mount shares, in place of those that it was told of before: `(target, read_only)` in the order in which
/// the worker was given them. What the host's user owns belongs to `user` in the guest. Raises AgentError with the reason
/// when one cannot be mounted.
#[pyfunction]
pub fn attach_shares(
    py: Python<'_>,
    worker: &Bound<'_, Worker>,
    shares: Vec<(Vec<u8>, bool)>,
    user: String,
    host_uid: u32,
    host_gid: u32,
) -> PyResult<()> {
    let (stream, vm) = worker.get().open(py, REQUEST_PORT)?;
    let mut connection = Connection::new(stream, vm, ANSWER)?;
    let mount = |(index, (target, read_only)): (u32, (Vec<u8>, bool))| ShareMount {
        index,
        target: Chunk(target),
        read_only,
    };
    let shares = (0..).zip(shares).map(mount).collect();
    connection.send(py, &Request::Attach(Attach { shares, user, host_uid, host_gid }))?;
    match connection.receive(py)? {
        AttachReply::Done => Ok(()),
        AttachReply::Failed { message } => Err(errors::agent(py, &message)),
    }
}
