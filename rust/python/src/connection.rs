//! A connection to the agent on which messages go back and forth one at a time.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use supermachine_proto::frame::{self, Decoder};

use crate::errors;
use crate::sys::{self, Interest};
use crate::worker::{Exit, Shared};

/// How long the VM may take to say why it ended once a connection has.
const EXIT_GRACE: Duration = Duration::from_millis(300);

/// Why a message did not go or come.
enum Trouble {
    Exited(Exit),
    Lost(String),
    Io(io::Error),
}

pub struct Connection {
    stream: UnixStream,
    vm: Arc<Shared>,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn new(stream: UnixStream, vm: Arc<Shared>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, vm, decoder: Decoder::default(), buffer: vec![0; 64 * 1024] })
    }

    fn ended(&self) -> Trouble {
        match self.vm.wait_exit(EXIT_GRACE) {
            Some(exit) => Trouble::Exited(exit),
            None => Trouble::Lost("the agent closed a connection in use".to_owned()),
        }
    }

    /// Sends one message, waiting for room.
    pub fn send<T: Serialize>(&mut self, py: Python<'_>, message: &T) -> PyResult<()> {
        let mut bytes = Vec::new();
        frame::encode(message, &mut bytes).map_err(|e| match e {
            frame::Error::TooLong { .. } => errors::os_error(libc::ENAMETOOLONG, b""),
            e => errors::agent(py, &e.to_string()),
        })?;
        let mut sent = 0;
        let result = sys::wait_for(py, None, |slice| {
            while sent < bytes.len() {
                match (&self.stream).write(&bytes[sent..]) {
                    Ok(n) => sent += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        match sys::poll([Interest::when(true, &self.stream, libc::POLLOUT)], Some(slice)) {
                            Ok([0]) => return None,
                            Ok(_) => {}
                            Err(e) => return Some(Err(Trouble::Io(e))),
                        }
                    }
                    Err(e)
                        if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
                    {
                        return Some(Err(self.ended()));
                    }
                    Err(e) => return Some(Err(Trouble::Io(e))),
                }
            }
            Some(Ok(()))
        })?;
        raise(py, result.unwrap_or(Ok(())))
    }

    /// Receives one message.
    pub fn receive<T: DeserializeOwned + Send>(&mut self, py: Python<'_>) -> PyResult<T> {
        let result = sys::wait_for(py, None, |slice| {
            loop {
                match self.decoder.next::<T>() {
                    Ok(Some(message)) => return Some(Ok(message)),
                    Ok(None) => {}
                    Err(e) => return Some(Err(Trouble::Lost(e.to_string()))),
                }
                match sys::poll([Interest::when(true, &self.stream, libc::POLLIN)], Some(slice)) {
                    Ok([0]) => return None,
                    Ok(_) => {}
                    Err(e) => return Some(Err(Trouble::Io(e))),
                }
                match sys::read(&self.stream, &mut self.buffer) {
                    Ok(0) => return Some(Err(self.ended())),
                    Ok(n) => self.decoder.push(&self.buffer[..n]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Some(Err(self.ended())),
                }
            }
        })?;
        match result {
            Some(result) => raise(py, result),
            None => Err(errors::agent(py, "the agent did not answer")),
        }
    }

    /// Whether bytes have arrived that nobody asked for.
    pub fn idle(&self) -> bool {
        self.decoder.pending() == 0
    }
}

fn raise<T>(py: Python<'_>, result: Result<T, Trouble>) -> PyResult<T> {
    result.map_err(|trouble| match trouble {
        Trouble::Exited(exit) => errors::vm_exited(py, &exit),
        Trouble::Lost(message) => errors::agent(py, &message),
        Trouble::Io(error) => error.into(),
    })
}
