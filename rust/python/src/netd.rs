//! The policy process of a VM's network: started for the guest's first flow, told the policy, heard of what it denies.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use supermachine_netd::host::has_route_v6;
use supermachine_netd::{policy, secrets};
use supermachine_proto::agent::{Network, NetworkV6};
use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::netd::{
    Command, Denial, Event, Flow, Hidden, Member, Policy, Preset, Protocol, ROOTS, Secret, Secrets, Start,
};
use supermachine_support::lock;

use crate::descriptors::{self, Unshared};
use crate::sys::{self, Interest};

/// Denials that are kept; the oldest make room, and are counted.
const KEPT: usize = 4096;
/// How long the process may take to exit once it has been told to.
const REAP: Duration = Duration::from_secs(2);

/// Connections to published ports that the guest has not answered, at most; further ones wait.
const CALLS: usize = 256;
/// Between two looks whether that has changed, and the machine still lives.
const LOOK: Duration = Duration::from_millis(100);

/// What Python says of a network: executable, preset, rules that allow, rules that deny, name servers, a descriptor of
/// the audit log with what names the machine there, secrets, and the guest's address where that is not the usual one.
pub(crate) type Wanted = (
    PathBuf,
    String,
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Option<(RawFd, String)>,
    Vec<WantedSecret>,
    Option<String>,
);

/// Placeholder, value, hosts, whether it may be in queries, whether it may be in bodies.
pub(crate) type WantedSecret = (String, Vec<u8>, Vec<String>, bool, bool);

/// A policy and its name servers, after its rules have been read.
pub(crate) struct Settings {
    path: PathBuf,
    policy: Policy,
    dns: Vec<SocketAddr>,
    guest: Ipv4Addr,
    v6: Option<NetworkV6>,
    audit: Option<Log>,
    /// With the certificate of the authority, in PEM.
    secrets: Option<(Secrets, String)>,
}

/// An audit log: one JSON object a line.
struct Log {
    file: Unshared<OwnedFd>,
    machine: String,
}

impl Settings {
    pub(crate) fn new((path, preset, allow, deny, dns, audit, secrets, address): Wanted) -> PyResult<Self> {
        let audit =
            audit.map(|(fd, machine)| Unshared::new(|| sys::duplicate(fd)).map(|file| Log { file, machine }));
        let audit = audit.transpose()?;
        let policy = policy_of(&preset, allow, deny)?;
        let dns = dns.iter().map(|text| {
            let port = |address| SocketAddr::new(address, 53);
            let server = text.parse().or_else(|_| text.parse().map(port));
            server.map_err(|_| PyValueError::new_err(format!("{text:?} is not the address of a name server")))
        });
        let secrets = if secrets.is_empty() { None } else { Some(with_authority(secrets)?) };
        let outwards = has_route_v6();
        // Machines on segments reach each other by it wherever they are.
        let has_v6 = outwards || address.is_some();
        let guest = match address {
            Some(text) => {
                let no_address = || PyValueError::new_err(format!("{text:?} is not a guest's address"));
                text.parse().map_err(|_| no_address())?
            }
            None => Network::default().address,
        };
        let dns = dns.collect::<Result<_, _>>()?;
        let v6 = has_v6.then(|| NetworkV6::beside(guest, outwards));
        Ok(Self { path, policy, dns, guest, v6, audit, secrets })
    }

    /// The certificate, in PEM, that the guest is to trust; empty for none.
    pub(crate) fn certificate(&self) -> String {
        self.secrets.as_ref().map(|(_, certificate)| certificate.clone()).unwrap_or_default()
    }
}

/// Secrets, and an authority that is made for this machine.
fn with_authority(secrets: Vec<WantedSecret>) -> PyResult<(Secrets, String)> {
    let wrong = |error: secrets::Error| PyValueError::new_err(error.to_string());
    let hosts = secrets.iter().flat_map(|(_, _, hosts, ..)| hosts).map(|text| secrets::host(text));
    let hosts = hosts.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let (authority, certificate) = secrets::authority::create(&hosts).map_err(wrong)?;
    let secrets = secrets.into_iter().map(|(placeholder, value, hosts, query, body)| Secret {
        placeholder,
        value: Hidden(value),
        hosts,
        query,
        body,
    });
    Ok((Secrets { authority, secrets: secrets.collect() }, certificate))
}

impl Settings {
    /// The guest's address.
    pub(crate) fn guest(&self) -> Ipv4Addr {
        self.guest
    }

    /// Its place by IPv6, where the host has a route or the guest an address of its own.
    pub(crate) fn v6(&self) -> Option<NetworkV6> {
        self.v6.clone()
    }
}

pub(crate) fn policy_of(preset: &str, allow: Vec<String>, deny: Vec<String>) -> PyResult<Policy> {
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

/// What is done about a connection to a published port that the guest does not take there.
pub(crate) type Otherwise = Box<dyn FnOnce() + Send>;

/// Where the process is in its life.
enum Process {
    /// Not started: the guest has asked for nothing yet, and nobody has come to it. Commands wait for the start.
    Wanted(Box<Settings>, Vec<(Command, Option<OwnedFd>)>),
    Runs {
        control: Unshared<UnixStream>,
        pid: u32,
    },
    /// It has ended, or will not be started any more.
    Over,
}

struct State {
    process: Process,
    denials: VecDeque<Told>,
    /// Of all denials, how many are no longer kept.
    forgotten: u64,
    /// Questions whether all has been told: sent, and answered.
    asked: u64,
    answered: u64,
    /// The same of questions for the flows that are open; of the last answer, and of the one that is coming in.
    flows_asked: u64,
    flows_answered: u64,
    flows: Vec<Flow>,
    coming: Vec<Flow>,
    /// Connections to published ports that the guest has not answered.
    calls: HashMap<u64, Otherwise>,
    next_call: u64,
}

impl State {
    fn is_over(&self) -> bool {
        matches!(self.process, Process::Over)
    }

    /// Tells the process something, or has it started for that.
    fn command(&mut self, bell: &UnixStream, command: Command, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match &mut self.process {
            Process::Wanted(_, waiting) => {
                waiting.push((command, fd.map(|fd| fd.try_clone_to_owned()).transpose()?));
                (&mut &*bell).write_all(&[0])
            }
            Process::Runs { control, .. } => send(control, &command, fd),
            Process::Over => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn add(&mut self, denial: Told) {
        if self.denials.len() >= KEPT {
            self.denials.pop_front();
            self.forgotten += 1;
        }
        self.denials.push_back(denial);
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// A byte has the process started; its end wakes the thread that waits for that.
    bell: Unshared<UnixStream>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The policy process of one VM. It is started when the guest first asks for a flow, so a guest that asks for none
/// costs no process, and no start waits for one.
pub(crate) struct Netd {
    shared: Arc<Shared>,
    address: Ipv4Addr,
    v6: Option<NetworkV6>,
}

/// Brings connections to the guest from published ports, from any thread.
#[derive(Clone)]
pub struct Door(Arc<Shared>);

impl Door {
    /// Passes on what speaks with `source`, who has come to the guest's `port`. When the guest does not take it, or
    /// there is nobody to pass it on, `otherwise` runs. Waits while too much is on its way, for as long as `lives`.
    pub fn deliver(
        &self,
        protocol: Protocol,
        source: SocketAddr,
        port: u16,
        socket: BorrowedFd<'_>,
        otherwise: Otherwise,
        lives: impl Fn() -> bool,
    ) {
        let mut state = self.0.lock();
        while state.calls.len() >= CALLS && !state.is_over() {
            if !lives() {
                return;
            }
            let waited = self.0.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.next_call += 1;
        let call = state.next_call;
        let command = Command::Deliver { call, protocol, source, port };
        match state.command(&self.0.bell, command, Some(socket)) {
            Ok(()) => drop(state.calls.insert(call, otherwise)),
            Err(_) => {
                drop(state);
                otherwise();
            }
        }
    }
}

impl Netd {
    /// Has a thread wait at this end of the link for what the guest asks first.
    pub(crate) fn new(settings: Settings, link: Unshared<UnixStream>) -> io::Result<Self> {
        let (address, v6) = (settings.guest, settings.v6.clone());
        let state = State {
            process: Process::Wanted(Box::new(settings), Vec::new()),
            denials: VecDeque::new(),
            forgotten: 0,
            asked: 0,
            answered: 0,
            flows_asked: 0,
            flows_answered: 0,
            flows: Vec::new(),
            coming: Vec::new(),
            calls: HashMap::new(),
            next_call: 0,
        };
        let (bell, rings) = descriptors::pair()?;
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), bell });
        let hears = shared.clone();
        thread::Builder::new()
            .name("supermachine-netd".into())
            .stack_size(128 * 1024)
            .spawn(move || follow(&hears, link, &rings))?;
        Ok(Self { shared, address, v6 })
    }

    /// The guest's.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The same of IPv6, where it has one.
    pub(crate) fn address_v6(&self) -> Option<Ipv6Addr> {
        self.v6.as_ref().map(|v6| v6.address)
    }

    /// What others on a segment know it as.
    pub(crate) fn member(&self, segment: u64, names: Vec<String>, v6: bool) -> Member {
        member(segment, self.address, names, v6)
    }

    /// Has two machines on a segment know each other.
    pub(crate) fn meet(&self, own: Member, other: &Self, its: Member) -> io::Result<()> {
        let (ours, theirs) = descriptors::pair()?;
        self.command(Command::Meet(its), Some(ours.as_fd()))?;
        other.command(Command::Meet(own), Some(theirs.as_fd()))
    }

    pub(crate) fn door(&self) -> Door {
        Door(self.shared.clone())
    }

    /// Tells the process something, or has it started for that. What has ended hears nothing.
    pub(crate) fn command(&self, command: Command, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut state = self.shared.lock();
        if state.is_over() { Ok(()) } else { state.command(&self.shared.bell, command, fd) }
    }

    /// The process, once there is one.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self.shared.lock().process {
            Process::Runs { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Another policy from here on.
    pub(crate) fn set_policy(&self, policy: Policy) -> io::Result<()> {
        match &mut self.shared.lock().process {
            Process::Wanted(settings, _) => settings.policy = policy,
            Process::Runs { control, .. } => send(control, &Command::SetPolicy(policy), None)?,
            Process::Over => {}
        }
        Ok(())
    }

    /// Waits until every denial so far has been heard of, or nothing more will be, or `timeout` seconds have passed.
    pub(crate) fn sync(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let wanted = py.detach(|| {
            let mut state = self.shared.lock();
            let Process::Runs { control, .. } = &state.process else { return None };
            // Of one that is gone already the thread tells.
            let _ = send(control, &Command::Sync, None);
            state.asked += 1;
            Some(state.asked)
        });
        let Some(wanted) = wanted else { return Ok(()) };
        let heard = |slice| {
            let state = self.shared.lock();
            let (state, _) = self
                .shared
                .changed
                .wait_timeout_while(state, slice, |state| !state.is_over() && state.answered < wanted)
                .unwrap_or_else(PoisonError::into_inner);
            (state.is_over() || state.answered >= wanted).then_some(())
        };
        sys::wait_for(py, sys::deadline(timeout), heard).map(drop)
    }

    /// The flows that are open; none within `timeout` seconds.
    pub(crate) fn flows(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<Open>>> {
        let wanted = py.detach(|| {
            let mut state = self.shared.lock();
            let Process::Runs { control, .. } = &state.process else { return None };
            let _ = send(control, &Command::Flows, None);
            state.flows_asked += 1;
            Some(state.flows_asked)
        });
        let Some(wanted) = wanted else { return Ok(Some(Vec::new())) };
        let heard = |slice| {
            let state = self.shared.lock();
            let (state, _) = self
                .shared
                .changed
                .wait_timeout_while(state, slice, |state| !state.is_over() && state.flows_answered < wanted)
                .unwrap_or_else(PoisonError::into_inner);
            if state.is_over() {
                return Some(Vec::new());
            }
            (state.flows_answered >= wanted).then(|| state.flows.iter().map(open).collect())
        };
        sys::wait_for(py, sys::deadline(timeout), heard)
    }

    /// The denials from this number on, of all that there were, and the number of the next.
    pub(crate) fn denials(&self, from: u64) -> (Vec<Told>, u64) {
        let state = self.shared.lock();
        let skip = usize::try_from(from.saturating_sub(state.forgotten)).unwrap_or(usize::MAX);
        let found = state.denials.iter().skip(skip).cloned().collect();
        (found, state.forgotten + state.denials.len() as u64)
    }

    /// Waits for a denial of this number; `false` at the time-out, or when there will be none.
    pub(crate) fn wait(&self, py: Python<'_>, number: u64, timeout: Option<f64>) -> PyResult<bool> {
        let there = |slice| {
            let state = self.shared.lock();
            let none = |state: &mut State| {
                !state.is_over() && state.forgotten + state.denials.len() as u64 <= number
            };
            let waited = self.shared.changed.wait_timeout_while(state, slice, none);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let found = state.forgotten + state.denials.len() as u64 > number;
            (state.is_over() || found).then_some(found)
        };
        Ok(sys::wait_for(py, sys::deadline(timeout), there)?.unwrap_or(false))
    }
}

impl Drop for Netd {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Process::Runs { control, .. } = &state.process {
            // The thread holds a duplicate; this tells the process that the API is gone.
            let _ = control.shutdown(Shutdown::Both);
        }
        state.process = Process::Over;
        let _ = self.shared.bell.shutdown(Shutdown::Both);
    }
}

/// What a machine of this address is on a segment: its other address follows from that.
pub(crate) fn member(segment: u64, address: Ipv4Addr, names: Vec<String>, v6: bool) -> Member {
    let v6 = v6.then(|| IpAddr::V6(NetworkV6::beside(address, false).address));
    Member { segment, addresses: std::iter::once(IpAddr::V4(address)).chain(v6).collect(), names }
}

fn send(mut control: &UnixStream, command: &Command, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut bytes = Vec::new();
    frame::encode(command, &mut bytes).map_err(io::Error::other)?;
    match fd {
        Some(fd) => sys::send_with_fds(control, &bytes, &[fd]),
        None => control.write_all(&bytes),
    }
}

/// The thread: waits for the guest's first question, starts the process, hears it out and reaps it. With the link's
/// end, which goes when this returns, the worker knows that nobody answers.
fn follow(shared: &Shared, link: Unshared<UnixStream>, bell: &UnixStream) {
    if !is_asked(&link, bell) {
        return over(shared, None);
    }
    let mut log = None;
    let started = {
        let mut state = shared.lock();
        match std::mem::replace(&mut state.process, Process::Over) {
            Process::Wanted(mut settings, waiting) => {
                log = settings.audit.take();
                start(*settings, &link, log.is_some()).map(|(control, reader, child)| {
                    for (command, fd) in waiting {
                        // Of one that is gone already the reader tells.
                        let _ = send(&control, &command, fd.as_ref().map(AsFd::as_fd));
                    }
                    state.process = Process::Runs { control, pid: child.id() };
                    Some((reader, child))
                })
            }
            _ => Ok(None),
        }
    };
    drop(link);
    let failure = match started {
        Ok(Some((reader, child))) => hear(&reader, shared, child, log),
        Ok(None) => None,
        Err(error) => Some(format!("its policy process cannot be started: {error}")),
    };
    over(shared, failure);
}

/// Nobody answers any more; who waits for an answer gets none from here.
fn over(shared: &Shared, failure: Option<String>) {
    let mut state = shared.lock();
    state.process = Process::Over;
    if let Some(reason) = failure {
        state.add((None, None, 0, "any", None, reason, String::new(), now()));
    }
    let calls = std::mem::take(&mut state.calls);
    shared.changed.notify_all();
    drop(state);
    calls.into_values().for_each(|otherwise| otherwise());
}

/// Whether the worker asks for a flow, or the bell rings, before either end of this is gone.
fn is_asked(link: &UnixStream, bell: &UnixStream) -> bool {
    loop {
        let interests = [Interest::when(true, link, libc::POLLIN), Interest::when(true, bell, libc::POLLIN)];
        match sys::poll(interests, None) {
            Ok([_, bell]) if bell & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 => return false,
            Ok([link, _]) if link & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 => return false,
            Ok([link, bell]) if (link | bell) & libc::POLLIN != 0 => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

type Started = (Unshared<UnixStream>, Unshared<UnixStream>, Child);

fn start(settings: Settings, link: &UnixStream, audit: bool) -> io::Result<Started> {
    let (control, child) = descriptors::pair_for(|theirs| {
        let mut command = std::process::Command::new(&settings.path);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
        // A process group of its own: Ctrl-C on the terminal is for the guest's process.
        command.env_clear().process_group(0);
        if settings.secrets.is_some() {
            command.arg(ROOTS);
            // As programs that verify hosts have it.
            for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
                command.envs(std::env::var_os(name).map(|value| (name, value)));
            }
        }
        command.spawn()
    })?;
    let gateways = settings.v6.iter().filter(|v6| v6.outwards).map(|v6| v6.gateway.into());
    let gateways = std::iter::once(Network::default().gateway.into()).chain(gateways);
    let start = Command::Start(Box::new(Start {
        version: supermachine_proto::VERSION,
        policy: settings.policy,
        dns: settings.dns,
        guest: settings.guest,
        guest_v6: settings.v6.as_ref().map(|v6| v6.address),
        gateway: gateways.collect(),
        audit,
        secrets: settings.secrets.map(|(secrets, _)| secrets),
    }));
    let mut bytes = Vec::new();
    frame::encode(&start, &mut bytes).map_err(io::Error::other)?;
    // A process that is gone already is noticed by who reads.
    let _ = sys::send_with_fd(&control, &bytes, link);
    let reader = Unshared::new(|| control.try_clone())?;
    Ok((control, reader, child))
}

/// Hears the process out and reaps it; why it gave up, unless it was told to or its VM has ended.
fn hear(mut reader: &UnixStream, shared: &Shared, mut child: Child, mut log: Option<Log>) -> Option<String> {
    let (mut decoder, mut buffer) = (Decoder::default(), [0; 16 * 1024]);
    let mut failure = None;
    'heard: while let Ok(n @ 1..) = reader.read(&mut buffer) {
        decoder.push(&buffer[..n]);
        loop {
            let Ok(event) = decoder.next::<Event>() else { break 'heard };
            let Some(event) = event else { break };
            if let Some(error) = log.as_ref().and_then(|log| log.write(&event).err()) {
                log = None;
                let reason = format!("nothing, but the audit log cannot be written to: {error}");
                shared.lock().add((None, None, 0, "any", None, reason, String::new(), now()));
            }
            let mut state = shared.lock();
            match event {
                Event::Denied(denial) => state.add(told(denial)),
                Event::Synced => state.answered += 1,
                Event::Flows(flows) if flows.is_empty() => {
                    state.flows_answered += 1;
                    state.flows = std::mem::take(&mut state.coming);
                }
                Event::Flows(flows) => state.coming.extend(flows),
                Event::Opened(_) | Event::Closed(_) => continue,
                Event::Delivered { call, taken } => {
                    let otherwise = state.calls.remove(&call);
                    shared.changed.notify_all();
                    drop(state);
                    // Closes its share of the descriptor where the guest has it.
                    otherwise.filter(|_| !taken).into_iter().for_each(|otherwise| otherwise());
                    continue;
                }
                Event::Failed { message } => {
                    failure = Some(format!("its policy process cannot serve: {message}"));
                    break 'heard;
                }
            }
            shared.changed.notify_all();
        }
    }
    let end = std::time::Instant::now() + REAP;
    let status = loop {
        match child.try_wait() {
            Ok(None) if std::time::Instant::now() < end => thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                let _ = child.kill();
                break child.wait();
            }
            Ok(Some(status)) => break Ok(status),
            Err(error) => break Err(error),
        }
    };
    failure.or_else(|| match status {
        Ok(status) if !status.success() => Some(format!("its policy process has ended: {status}")),
        _ => None,
    })
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Log {
    /// Appends what has happened, where it is of matter.
    fn write(&self, event: &Event) -> io::Result<()> {
        let line = match event {
            Event::Denied(denial) => {
                let address = denial.address.map(|address| address.to_string());
                format!(
                    r#""event": "denied", "protocol": "{}", "name": {}, "address": {}, "port": {}, "rule": {}, "reason": {}"#,
                    protocol_name(denial.protocol),
                    json(denial.name.as_deref()),
                    json(address.as_deref()),
                    denial.port,
                    json(denial.rule.as_deref()),
                    json(Some(&denial.reason)),
                )
            }
            Event::Opened(flow) => format!(r#""event": "opened", {}"#, flow_json(flow)),
            Event::Closed(flow) => format!(r#""event": "closed", {}"#, flow_json(flow)),
            _ => return Ok(()),
        };
        let machine = json(Some(&self.machine));
        // One call for each line: of a file that is open for appending none mixes with others'.
        let line = format!("{{\"time_ns\": {}, \"machine\": {machine}, {line}}}\n", now());
        match sys::write(&*self.file, line.as_bytes())? {
            n if n == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

fn flow_json(flow: &Flow) -> String {
    format!(
        r#""protocol": "{}", "name": {}, "address": "{}", "port": {}, "guest_port": {}"#,
        protocol_name(flow.protocol),
        json(flow.name.as_deref()),
        flow.destination.ip(),
        flow.destination.port(),
        flow.source.port(),
    )
}

fn json(text: Option<&str>) -> String {
    let Some(text) = text else { return "null".into() };
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => character
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| quoted += &format!("\\u{unit:04x}")),
        }
    }
    quoted + "\""
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
        Protocol::Dns => "dns",
    }
}

/// Protocol, the guest's port, name, address, port, nanoseconds since 1970.
pub(crate) type Open = (&'static str, u16, Option<String>, String, u16, u64);

fn open(flow: &Flow) -> Open {
    let (address, port) = (flow.destination.ip().to_string(), flow.destination.port());
    (protocol_name(flow.protocol), flow.source.port(), flow.name.clone(), address, port, flow.since_ns)
}

/// Name, address, port, protocol, rule, reason, remedy, nanoseconds since 1970.
pub(crate) type Told =
    (Option<String>, Option<String>, u16, &'static str, Option<String>, String, String, u64);

fn told(denial: Denial) -> Told {
    let protocol = protocol_name(denial.protocol);
    let address = denial.address.map(|address| address.to_string());
    (denial.name, address, denial.port, protocol, denial.rule, denial.reason, denial.remedy, denial.time_ns)
}

/// Whether the rule is about a name that is not the host's. Raises ValueError, with what is wrong, for a text that is
/// no rule of a network's policy.
#[pyfunction]
pub(crate) fn check_network_rule(rule: &str) -> PyResult<bool> {
    use supermachine_netd::rules::{Rule, Target};
    let rule = Rule::parse(rule).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(match rule.target {
        Target::Name(name) => !policy::is_host_name(&name),
        Target::Below(_) => true,
        Target::Network { .. } | Target::Group(_) => false,
    })
}

/// Checks a host of a secret's. Raises ValueError, with what is wrong, for a text that is none.
#[pyfunction]
pub(crate) fn check_secret_host(host: &str) -> PyResult<()> {
    secrets::host(host).map(drop).map_err(|error| PyValueError::new_err(error.to_string()))
}
