//! The policy process of a VM's network: started beside the worker, told the policy, heard of what it denies.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use supermachine_netd::policy;
use supermachine_proto::agent::Network;
use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::netd::{Command, Denial, Event, Policy, Preset, Protocol, Start};

use crate::sys;

/// Denials that are kept; the oldest make room, and are counted.
const KEPT: usize = 4096;
/// How long the process may take to exit once it has been told to.
const REAP: Duration = Duration::from_secs(2);

/// What Python says of a network: executable, preset, rules that allow, rules that deny, name servers.
pub type Wanted = (PathBuf, String, Vec<String>, Vec<String>, Vec<String>);

/// A policy and its name servers, after its rules have been read.
pub struct Settings {
    path: PathBuf,
    policy: Policy,
    dns: Vec<SocketAddr>,
}

impl Settings {
    pub fn new((path, preset, allow, deny, dns): Wanted) -> PyResult<Self> {
        let policy = policy_of(&preset, allow, deny)?;
        let dns = dns.iter().map(|text| {
            let port = |address| SocketAddr::new(address, 53);
            let server = text.parse().or_else(|_| text.parse().map(port));
            server.map_err(|_| PyValueError::new_err(format!("{text:?} is not the address of a name server")))
        });
        Ok(Self { path, policy, dns: dns.collect::<Result<_, _>>()? })
    }
}

pub fn policy_of(preset: &str, allow: Vec<String>, deny: Vec<String>) -> PyResult<Policy> {
    let preset = match preset {
        "none" => Preset::Nothing,
        "public" => Preset::Public,
        "all" => Preset::All,
        _ => {
            return Err(PyValueError::new_err(format!(
                "{preset:?} is not a network; none, public and all are"
            )));
        }
    };
    let policy = Policy { preset, allow, deny };
    policy::Policy::new(&policy).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(policy)
}

#[derive(Default)]
struct State {
    denials: VecDeque<Denial>,
    /// Of all denials, how many are no longer kept.
    forgotten: u64,
    /// Questions whether all has been told: sent, and answered.
    asked: u64,
    answered: u64,
    gone: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running policy process.
pub struct Netd {
    control: Mutex<UnixStream>,
    shared: Arc<Shared>,
    pub pid: u32,
}

impl Netd {
    /// Starts the process at this end of the link.
    pub fn start(settings: Settings, link: &UnixStream) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = std::process::Command::new(settings.path);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
        // A process group of its own: Ctrl-C on the terminal is for the guest's process.
        let child = command.env_clear().process_group(0).spawn()?;
        let pid = child.id();
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let start = Command::Start(Box::new(Start {
            version: supermachine_proto::VERSION,
            policy: settings.policy,
            dns: settings.dns,
            gateway: vec![Network::default().gateway.into()],
        }));
        let mut bytes = Vec::new();
        frame::encode(&start, &mut bytes).map_err(io::Error::other)?;
        // A process that is gone already is noticed by the monitor.
        let _ = sys::send_with_fd(&ours, &bytes, link);
        let (reader, hears) = (ours.try_clone()?, shared.clone());
        thread::Builder::new()
            .name("supermachine-netd".into())
            .spawn(move || monitor(reader, &hears, child))?;
        Ok(Self { control: Mutex::new(ours), shared, pid })
    }

    fn send(&self, command: &Command) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame::encode(command, &mut bytes).map_err(io::Error::other)?;
        self.control.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes)
    }

    pub fn set_policy(&self, policy: Policy) -> io::Result<()> {
        self.send(&Command::SetPolicy(policy))
    }

    /// Waits until every denial so far has been heard of, or nothing more will be, or `timeout` seconds have passed.
    pub fn sync(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let wanted = {
            let mut state = self.shared.lock();
            state.asked += 1;
            state.asked
        };
        if py.detach(|| self.send(&Command::Sync)).is_err() {
            return Ok(());
        }
        let heard = |slice| {
            let state = self.shared.lock();
            let (state, _) = self
                .shared
                .changed
                .wait_timeout_while(state, slice, |state| !state.gone && state.answered < wanted)
                .unwrap_or_else(PoisonError::into_inner);
            (state.gone || state.answered >= wanted).then_some(())
        };
        sys::wait_for(py, sys::deadline(timeout), heard).map(drop)
    }

    /// The denials from this number on, of all that there were, and the number of the next.
    pub fn denials(&self, from: u64) -> (Vec<Denial>, u64) {
        let state = self.shared.lock();
        let skip = usize::try_from(from.saturating_sub(state.forgotten)).unwrap_or(usize::MAX);
        let found = state.denials.iter().skip(skip).cloned().collect();
        (found, state.forgotten + state.denials.len() as u64)
    }

    /// Waits for a denial of this number; `false` at the time-out, or when there will be none.
    pub fn wait(&self, py: Python<'_>, number: u64, timeout: Option<f64>) -> PyResult<bool> {
        let there = |slice| {
            let state = self.shared.lock();
            let none =
                |state: &mut State| !state.gone && state.forgotten + state.denials.len() as u64 <= number;
            let waited = self.shared.changed.wait_timeout_while(state, slice, none);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let found = state.forgotten + state.denials.len() as u64 > number;
            (state.gone || found).then_some(found)
        };
        Ok(sys::wait_for(py, sys::deadline(timeout), there)?.unwrap_or(false))
    }
}

impl Drop for Netd {
    fn drop(&mut self) {
        // The monitor holds a duplicate; this tells the process that the API is gone.
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = control.shutdown(std::net::Shutdown::Both);
    }
}

/// Hears the process out and reaps it.
fn monitor(mut reader: UnixStream, shared: &Shared, mut child: Child) {
    let (mut decoder, mut buffer) = (Decoder::default(), [0; 16 * 1024]);
    'heard: while let Ok(n @ 1..) = reader.read(&mut buffer) {
        decoder.push(&buffer[..n]);
        loop {
            let Ok(event) = decoder.next::<Event>() else { break 'heard };
            let Some(event) = event else { break };
            let mut state = shared.lock();
            match event {
                Event::Denied(denial) => {
                    if state.denials.len() >= KEPT {
                        state.denials.pop_front();
                        state.forgotten += 1;
                    }
                    state.denials.push_back(denial);
                }
                Event::Synced => state.answered += 1,
                Event::Failed { .. } => break 'heard,
            }
            shared.changed.notify_all();
        }
    }
    shared.lock().gone = true;
    shared.changed.notify_all();
    let end = std::time::Instant::now() + REAP;
    while let Ok(None) = child.try_wait() {
        if std::time::Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Name, address, port, protocol, rule, reason, remedy, nanoseconds since 1970.
pub type Told = (Option<String>, Option<String>, u16, &'static str, Option<String>, String, String, u64);

pub fn told(denial: Denial) -> Told {
    let protocol = match denial.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
        Protocol::Dns => "dns",
    };
    let address = denial.address.map(|address| address.to_string());
    (denial.name, address, denial.port, protocol, denial.rule, denial.reason, denial.remedy, denial.time_ns)
}

/// Raises ValueError, with what is wrong, for a text that is no rule of a network's policy.
#[pyfunction]
pub fn check_network_rule(rule: &str) -> PyResult<()> {
    supermachine_netd::rules::Rule::parse(rule).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(())
}
