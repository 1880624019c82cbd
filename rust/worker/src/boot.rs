//! The boot connection: what worker and agent say to each other about the guest as a whole.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::retry_on_intr;
use rustix::net::SendFlags;
use supermachine_proto::agent::{BootCommand, BootEvent, Configure, Identity};
use supermachine_proto::{VERSION, frame};
use supermachine_support::lock;

/// What the rest of the worker hears of the agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AgentEvent {
    /// The kernel runs and the agent speaks.
    Connected,
    /// Requests are served.
    Ready,
    /// The guest cannot be used.
    Failed(String),
}

/// What an agent that says hello is told.
#[derive(Clone)]
pub(crate) enum Greeting {
    /// A guest that has booted.
    Configure(Configure),
    /// A guest that has been restored.
    Renew(Identity),
}

impl Greeting {
    /// The command, with the time as it is now.
    fn command(&self) -> BootCommand {
        match self {
            Self::Configure(configure) => {
                let identity = Identity { wall_clock_ns: now_ns(), ..configure.identity.clone() };
                BootCommand::Configure(Configure { identity, ..configure.clone() })
            }
            Self::Renew(identity) => {
                BootCommand::Renew(Identity { wall_clock_ns: now_ns(), ..identity.clone() })
            }
        }
    }
}

/// Greetings in a worker's life. A guest needs one; an agent that lost its connection, another.
const MAX_GREETINGS: u32 = 16;
/// Bytes of what an agent says that went wrong.
const MAX_REASON: usize = 4096;

/// The worker's end of the boot connection. No call waits for the agent, but for [`BootChannel::ask`] and
/// [`BootChannel::serve`], and nothing is locked while those do.
#[derive(Clone, Default)]
pub(crate) struct BootChannel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    agent: Mutex<Option<Agent>>,
    /// Who waits for answers of the agent's, by the number that each was given; each hears all of them.
    waiting: Mutex<(u64, BTreeMap<u64, Sender<BootEvent>>)>,
}

/// The agent that is connected.
struct Agent {
    stream: UnixStream,
    /// Commands that it has not answered. It says nothing else.
    unanswered: u32,
}

/// What an agent did that none does.
#[derive(Debug, thiserror::Error)]
enum Misbehaviour {
    #[error(transparent)]
    Frame(#[from] frame::Error),
    #[error("the guest's agent said {0} without being asked; the guest is not to be trusted")]
    Unasked(&'static str),
    #[error(
        "the guest's agent has connected more than {MAX_GREETINGS} times; it may be failing over and over"
    )]
    OverAndOver,
}

impl BootChannel {
    /// Sends a command; `false` when no agent is connected that takes it. One that has not read what it was sent before
    /// loses its connection.
    pub(crate) fn send(&self, command: &BootCommand) -> bool {
        let mut agent = lock(&self.0.agent);
        let Some(connected) = agent.as_mut() else { return false };
        let mut bytes = Vec::new();
        let sent = frame::encode(command, &mut bytes).is_ok() && send_now(&connected.stream, &bytes);
        if sent {
            connected.unanswered += 1;
        } else {
            // Its reader sees the end, and says so.
            let _ = connected.stream.shutdown(Shutdown::Both);
            *agent = None;
        }
        sent
    }

    /// Sends a command and waits for its answer; `false` when that does not come by the deadline. One command of a kind
    /// at a time.
    pub(crate) fn ask(&self, command: &BootCommand, answer: &BootEvent, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let (sender, answers) = mpsc::channel();
        let number = {
            let mut waiting = lock(&self.0.waiting);
            let number = waiting.0;
            waiting.0 += 1;
            waiting.1.insert(number, sender);
            number
        };
        let sent = self.send(command);
        let wait = || answers.recv_timeout(end.saturating_duration_since(Instant::now()));
        let answered = sent && std::iter::from_fn(|| wait().ok()).any(|event| event == *answer);
        lock(&self.0.waiting).1.remove(&number);
        answered
    }

    /// Serves connections as they arrive until the sender of `connections` is gone, telling `heard` what happens.
    pub(crate) fn serve(
        &self,
        connections: &Receiver<UnixStream>,
        greeting: &Greeting,
        mut heard: impl FnMut(AgentEvent),
    ) {
        for (stream, greetings) in connections.iter().zip(1..) {
            let served = match greetings {
                ..=MAX_GREETINGS => self.session(stream, greeting, &mut heard),
                _ => Err(Misbehaviour::OverAndOver),
            };
            *lock(&self.0.agent) = None;
            lock(&self.0.waiting).1.clear();
            if let Err(error) = served {
                heard(AgentEvent::Failed(error.to_string()));
            }
        }
    }

    fn session(
        &self,
        stream: UnixStream,
        greeting: &Greeting,
        heard: &mut impl FnMut(AgentEvent),
    ) -> Result<(), Misbehaviour> {
        let mut reader = stream.try_clone().map_err(frame::Error::Io)?;
        let Some(first) = frame::read::<BootEvent>(&mut reader)? else { return Ok(()) };
        match first {
            BootEvent::Hello { version: VERSION, .. } => {}
            BootEvent::Hello { version, .. } => {
                heard(AgentEvent::Failed(format!(
                    "the guest's agent speaks version {version} and the host {VERSION}; both must be of one release"
                )));
                return Ok(());
            }
            // What went wrong before it could say hello.
            BootEvent::Failed { message } => {
                heard(AgentEvent::Failed(reason(message)));
                return Ok(());
            }
            other => return Err(Misbehaviour::Unasked(name(&other))),
        }
        *lock(&self.0.agent) = Some(Agent { stream, unanswered: 0 });
        if !self.send(&greeting.command()) {
            return Err(frame::Error::Io(io::ErrorKind::BrokenPipe.into()).into());
        }
        // Who hears it can send: the agent is there, and was greeted first.
        heard(AgentEvent::Connected);
        let mut greeted = false;
        while let Some(event) = frame::read::<BootEvent>(&mut reader)? {
            self.answered(&event)?;
            match event {
                BootEvent::Ready | BootEvent::Renewed if !greeted => {
                    greeted = true;
                    heard(AgentEvent::Ready);
                }
                BootEvent::Hello { .. } | BootEvent::Ready | BootEvent::Renewed => {
                    return Err(Misbehaviour::Unasked(name(&event)));
                }
                BootEvent::Failed { message } => heard(AgentEvent::Failed(reason(message))),
                BootEvent::Frozen
                | BootEvent::Thawed
                | BootEvent::ClockSet
                | BootEvent::RoomSet
                | BootEvent::Grown { .. } => {
                    // Who does not wait any more is forgotten.
                    lock(&self.0.waiting).1.retain(|_, waiting| waiting.send(event.clone()).is_ok());
                }
                BootEvent::Stopping => {}
            }
        }
        Ok(())
    }

    /// Counts an answer; what is none is refused, so that nobody is kept busy by an agent that goes on talking.
    fn answered(&self, event: &BootEvent) -> Result<(), Misbehaviour> {
        let mut agent = lock(&self.0.agent);
        let left = agent.as_mut().and_then(|agent| {
            agent.unanswered = agent.unanswered.checked_sub(1)?;
            Some(agent.unanswered)
        });
        left.map(drop).ok_or(Misbehaviour::Unasked(name(event)))
    }
}

/// Sends all of it without waiting; `false` when the socket has no room for it.
fn send_now(stream: &UnixStream, mut bytes: &[u8]) -> bool {
    #[cfg(target_os = "linux")]
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    let flags = SendFlags::DONTWAIT;
    while !bytes.is_empty() {
        match retry_on_intr(|| rustix::net::send(stream, bytes, flags)) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(_) => return false,
        }
    }
    true
}

fn name(event: &BootEvent) -> &'static str {
    match event {
        BootEvent::Hello { .. } => "hello",
        BootEvent::Ready => "that it is ready",
        BootEvent::Failed { .. } => "that it has failed",
        BootEvent::Renewed => "that the guest has a new identity",
        BootEvent::Frozen => "that processes stand still",
        BootEvent::Thawed => "that processes run again",
        BootEvent::Stopping => "that the guest stops",
        BootEvent::ClockSet => "that the clock is set",
        BootEvent::RoomSet => "that it knows what room there is",
        BootEvent::Grown { .. } => "that a file system is larger",
    }
}

/// As much of an agent's words as is kept.
fn reason(mut message: String) -> String {
    let end = (0..=MAX_REASON.min(message.len())).rev().find(|at| message.is_char_boundary(*at));
    message.truncate(end.unwrap_or_default());
    message
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use supermachine_proto::agent::{Chunk, Identity, Root};

    use super::*;

    fn configure() -> Greeting {
        Greeting::Configure(Configure {
            identity: Identity {
                hostname: "guest".into(),
                machine_id: [1; 16],
                entropy: Chunk::from(vec![2; 64]),
                wall_clock_ns: 0,
                network: None,
                authority: String::new(),
            },
            root: Root::Initramfs,
            upper_bytes: 0,
            mounts: vec![],
            volumes: vec![],
            upper_device: None,
        })
    }

    #[test]
    fn an_agent_is_configured_with_the_present_time_and_reports_ready() {
        let (agent, worker) = UnixStream::pair().unwrap();
        let (connections, incoming) = mpsc::channel();
        connections.send(worker).unwrap();
        let channel = BootChannel::default();
        let (heard, events) = mpsc::channel();
        let server = {
            let channel = channel.clone();
            thread::spawn(move || channel.serve(&incoming, &configure(), |event| heard.send(event).unwrap()))
        };
        let mut agent = agent;
        frame::write(&mut agent, &BootEvent::Hello { version: VERSION, kernel: "6.12".into() }).unwrap();
        let Some(BootCommand::Configure(got)) = frame::read(&mut agent).unwrap() else {
            panic!("no configuration")
        };
        assert!(got.identity.wall_clock_ns > 1_700_000_000_000_000_000);
        frame::write(&mut agent, &BootEvent::Ready).unwrap();
        assert_eq!(events.recv().unwrap(), AgentEvent::Connected);
        assert_eq!(events.recv().unwrap(), AgentEvent::Ready);
        assert!(channel.send(&BootCommand::Shutdown { grace_ms: 5 }));
        assert_eq!(frame::read(&mut agent).unwrap(), Some(BootCommand::Shutdown { grace_ms: 5 }));
        drop((agent, connections));
        server.join().unwrap();
        assert!(!channel.send(&BootCommand::Shutdown { grace_ms: 5 }));
    }

    #[test]
    fn an_agent_of_another_release_is_refused() {
        let (mut agent, worker) = UnixStream::pair().unwrap();
        let (connections, incoming) = mpsc::channel();
        connections.send(worker).unwrap();
        drop(connections);
        frame::write(&mut agent, &BootEvent::Hello { version: VERSION + 1, kernel: String::new() }).unwrap();
        let mut events = Vec::new();
        BootChannel::default().serve(&incoming, &configure(), |event| events.push(event));
        assert!(
            matches!(&events[..], [AgentEvent::Failed(message)] if message.contains(&format!("version {}", VERSION + 1)))
        );
    }

    /// What is heard of an agent that behaves like this once it is connected, and has been greeted if it said hello.
    fn heard_of(misbehave: impl FnOnce(&mut UnixStream) + Send + 'static) -> Vec<AgentEvent> {
        let (mut agent, worker) = UnixStream::pair().unwrap();
        let (connections, incoming) = mpsc::channel();
        connections.send(worker).unwrap();
        drop(connections);
        let guest = thread::spawn(move || misbehave(&mut agent));
        let mut events = Vec::new();
        BootChannel::default().serve(&incoming, &configure(), |event| events.push(event));
        guest.join().unwrap();
        events
    }

    fn hello() -> BootEvent {
        BootEvent::Hello { version: VERSION, kernel: "6.12".into() }
    }

    fn is_refusal(event: Option<&AgentEvent>) -> bool {
        matches!(event, Some(AgentEvent::Failed(message)) if message.contains("without being asked"))
    }

    /// Says one thing until the worker listens no more.
    fn for_ever(agent: &mut UnixStream, event: &BootEvent) {
        while frame::write(agent, event).is_ok() {}
    }

    #[test]
    fn an_agent_that_repeats_itself_for_ever_is_heard_once() {
        let events = heard_of(|agent| for_ever(agent, &hello()));
        assert!(events.len() == 2 && is_refusal(events.last()), "{events:?}");
        let events = heard_of(|agent| {
            frame::write(agent, &hello()).unwrap();
            for_ever(agent, &BootEvent::Ready);
        });
        assert_eq!(events[..2], [AgentEvent::Connected, AgentEvent::Ready]);
        assert!(events.len() == 3 && is_refusal(events.last()), "{events:?}");
        for other in [BootEvent::Ready, BootEvent::Frozen, BootEvent::Stopping] {
            let events = heard_of(move |agent| for_ever(agent, &other));
            assert!(events.len() == 1 && is_refusal(events.last()), "{events:?}");
        }
    }

    #[test]
    fn what_an_agent_says_that_it_failed_of_is_kept_in_part() {
        let events = heard_of(|agent| {
            frame::write(agent, &BootEvent::Failed { message: "é".repeat(100_000) }).unwrap();
        });
        assert!(
            matches!(&events[..], [AgentEvent::Failed(message)] if message.len() == MAX_REASON),
            "{events:?}"
        );
    }

    #[test]
    fn an_agent_that_never_reads_loses_its_connection_and_nobody_waits_for_it() {
        let (mut agent, worker) = UnixStream::pair().unwrap();
        let (connections, incoming) = mpsc::channel();
        connections.send(worker).unwrap();
        let channel = BootChannel::default();
        let (heard, events) = mpsc::channel();
        let server = {
            let channel = channel.clone();
            thread::spawn(move || channel.serve(&incoming, &configure(), |event| drop(heard.send(event))))
        };
        frame::write(&mut agent, &hello()).unwrap();
        assert_eq!(events.recv().unwrap(), AgentEvent::Connected);
        // More than a socket takes; none of these waits.
        while channel.send(&BootCommand::Shutdown { grace_ms: 0 }) {}
        assert!(!channel.send(&BootCommand::Freeze));
        drop(connections);
        server.join().unwrap();
    }

    #[test]
    fn an_agent_that_comes_over_and_over_is_turned_away() {
        let (connections, incoming) = mpsc::channel();
        let mut agents = Vec::new();
        for _ in 0..=MAX_GREETINGS {
            let (mut agent, worker) = UnixStream::pair().unwrap();
            frame::write(&mut agent, &hello()).unwrap();
            agent.shutdown(Shutdown::Write).unwrap();
            connections.send(worker).unwrap();
            agents.push(agent);
        }
        drop(connections);
        let mut events = Vec::new();
        BootChannel::default().serve(&incoming, &configure(), |event| events.push(event));
        let connected = events.iter().filter(|event| **event == AgentEvent::Connected).count();
        assert_eq!(connected, MAX_GREETINGS as usize);
        assert!(
            matches!(events.last(), Some(AgentEvent::Failed(message)) if message.contains("over and over"))
        );
    }
}
