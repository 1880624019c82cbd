//! A connection to the agent on which messages go back and forth one at a time.
//!
//! No exchange takes longer than it is given. What it moves earns it time, so that a large file may take long and a
//! guest that sends a byte now and then may not.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use supermachine_proto::frame::{self, Decoder};

use crate::descriptors::Unshared;
use crate::errors;
use crate::state::{Exit, Shared};
use crate::sys::{self, Interest};

/// Bytes that an exchange must move in a second to go on beyond its time; what a busy interpreted guest does in the
/// worst case is some hundred times as much.
const LEAST_RATE: u64 = 16 * 1024;

/// Why a message did not go or come.
enum Trouble {
    Exited(Exit),
    Lost(String),
    Shortage(String),
    Io(io::Error),
    Late,
}

pub(crate) struct Connection {
    stream: Unshared<UnixStream>,
    vm: Arc<Shared>,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// When the exchange must be over; `None` for a time that is too far to represent.
    deadline: Option<Instant>,
    /// Bytes moved that have not earned time yet.
    moved: u64,
    timeout: Duration,
}

impl Connection {
    /// `timeout` is what an exchange is given; `begin` begins one.
    pub(crate) fn new(stream: Unshared<UnixStream>, vm: Arc<Shared>, timeout: Duration) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (decoder, buffer) = (Decoder::default(), vec![0; 64 * 1024]);
        let deadline = Instant::now().checked_add(timeout);
        Ok(Self { stream, vm, decoder, buffer, deadline, moved: 0, timeout })
    }

    /// Begins an exchange, which is given so many times the usual time.
    pub(crate) fn begin(&mut self, times: u32) {
        self.moved = 0;
        self.deadline = Instant::now().checked_add(self.timeout.saturating_mul(times));
    }

    /// To wait for what nobody has asked for: its end.
    #[cfg(target_os = "linux")]
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether this process is another than the connection's own.
    pub(crate) fn elsewhere(&self) -> Option<Exit> {
        self.vm.elsewhere()
    }

    fn earn(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        let seconds = self.moved / LEAST_RATE;
        self.moved %= LEAST_RATE;
        self.deadline = self.deadline.and_then(|deadline| deadline.checked_add(Duration::from_secs(seconds)));
    }

    fn ended(&self) -> Trouble {
        match self.vm.reason_of_exit() {
            Some(exit) => Trouble::Exited(exit),
            None => match self.vm.shortage() {
                Some(lacking) => Trouble::Shortage(lacking),
                None => Trouble::Lost("the agent closed a connection in use".to_owned()),
            },
        }
    }

    /// Sends one message, waiting for room.
    pub(crate) fn send<T: Serialize>(&mut self, py: Python<'_>, message: &T) -> PyResult<()> {
        let mut bytes = Vec::new();
        frame::encode(message, &mut bytes).map_err(|e| match e {
            frame::Error::TooLong { .. } => errors::os_error(libc::ENAMETOOLONG, b""),
            e => errors::agent(py, &e.to_string()),
        })?;
        let mut sent = 0;
        let result = sys::wait_for(py, self.deadline, |slice| {
            let end = Instant::now() + slice;
            while sent < bytes.len() {
                match (&*self.stream).write(&bytes[sent..]) {
                    Ok(n) => sent += n,
                    // A peer that takes it byte by byte gets no more time than one that takes nothing.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() >= end => return None,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        match sys::poll([Interest::when(true, &*self.stream, libc::POLLOUT)], Some(slice)) {
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
        self.earn(bytes.len());
        self.raise(py, result.unwrap_or(Err(Trouble::Late)))
    }

    /// Receives one message.
    pub(crate) fn receive<T: DeserializeOwned + Send>(&mut self, py: Python<'_>) -> PyResult<T> {
        let mut received = 0;
        let result = sys::wait_for(py, self.deadline, |slice| {
            let (end, before) = (Instant::now() + slice, received);
            loop {
                match self.decoder.next::<T>() {
                    Ok(Some(message)) => return Some(Ok(message)),
                    // One that sends byte by byte gets no more time than one that is silent.
                    Ok(None) if received > before && Instant::now() >= end => return None,
                    Ok(None) => {}
                    Err(e) => return Some(Err(Trouble::Lost(e.to_string()))),
                }
                match sys::poll([Interest::when(true, &*self.stream, libc::POLLIN)], Some(slice)) {
                    Ok([0]) => return None,
                    Ok(_) => {}
                    Err(e) => return Some(Err(Trouble::Io(e))),
                }
                match sys::read(&*self.stream, &mut self.buffer) {
                    Ok(0) => return Some(Err(self.ended())),
                    Ok(n) => {
                        received += n;
                        self.decoder.push(&self.buffer[..n]);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Some(Err(self.ended())),
                }
            }
        })?;
        self.earn(received);
        self.raise(py, result.unwrap_or(Err(Trouble::Late)))
    }

    /// Whether bytes have arrived that nobody asked for.
    pub(crate) fn idle(&self) -> bool {
        self.decoder.pending() == 0
    }

    fn raise<T>(&self, py: Python<'_>, result: Result<T, Trouble>) -> PyResult<T> {
        result.map_err(|trouble| match trouble {
            Trouble::Exited(exit) => errors::vm_exited(py, &exit),
            Trouble::Lost(message) => errors::agent(py, &message),
            Trouble::Shortage(message) => errors::shortage(py, &message),
            Trouble::Io(error) => error.into(),
            Trouble::Late => errors::late(py, self.timeout),
        })
    }
}
