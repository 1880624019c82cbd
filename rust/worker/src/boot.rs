//! The boot connection: what worker and agent say to each other about the guest as a whole.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use supermachine_proto::agent::{BootCommand, BootEvent, Configure, Identity};
use supermachine_proto::{VERSION, frame};

/// What the rest of the worker hears of the agent.
#[derive(Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// The kernel runs and the agent speaks.
    Connected,
    /// Requests are served.
    Ready,
    /// The guest cannot be used.
    Failed(String),
}

/// What an agent that says hello is told.
#[derive(Clone)]
pub enum Greeting {
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

/// The worker's end of the boot connection.
#[derive(Clone, Default)]
pub struct BootChannel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    stream: Mutex<Option<UnixStream>>,
    /// Who waits for answers of the agent's; each hears all of them.
    waiting: Mutex<Vec<Sender<BootEvent>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl BootChannel {
    /// Sends a command; `false` when no agent is connected.
    pub fn send(&self, command: &BootCommand) -> bool {
        lock(&self.0.stream).as_mut().is_some_and(|stream| frame::write(stream, command).is_ok())
    }

    /// Sends a command and waits for its answer; `false` when that does not come by the deadline. One command of a kind
    /// at a time.
    pub fn ask(&self, command: &BootCommand, answer: &BootEvent, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let (sender, answers) = mpsc::channel();
        lock(&self.0.waiting).push(sender);
        let sent = self.send(command);
        let wait = || answers.recv_timeout(end.saturating_duration_since(Instant::now()));
        sent && std::iter::from_fn(|| wait().ok()).any(|event| event == *answer)
    }

    /// Serves connections as they arrive until the sender of `connections` is gone, telling `heard` what happens.
    pub fn serve(
        &self,
        connections: &Receiver<UnixStream>,
        greeting: &Greeting,
        mut heard: impl FnMut(AgentEvent),
    ) {
        for stream in connections {
            if let Err(error) = self.session(stream, greeting, &mut heard) {
                heard(AgentEvent::Failed(error.to_string()));
            }
            *lock(&self.0.stream) = None;
            lock(&self.0.waiting).clear();
        }
    }

    fn session(
        &self,
        stream: UnixStream,
        greeting: &Greeting,
        heard: &mut impl FnMut(AgentEvent),
    ) -> Result<(), frame::Error> {
        let mut reader = stream.try_clone().map_err(frame::Error::Io)?;
        *lock(&self.0.stream) = Some(stream);
        while let Some(event) = frame::read::<BootEvent>(&mut reader)? {
            match event {
                BootEvent::Hello { version: VERSION, .. } => {
                    heard(AgentEvent::Connected);
                    if !self.send(&greeting.command()) {
                        return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
                    }
                }
                BootEvent::Hello { version, .. } => {
                    heard(AgentEvent::Failed(format!(
                        "the guest's agent speaks version {version} and the host {VERSION}; both must be of one release"
                    )));
                    return Ok(());
                }
                BootEvent::Ready | BootEvent::Renewed => heard(AgentEvent::Ready),
                BootEvent::Failed { message } => heard(AgentEvent::Failed(message)),
                BootEvent::Frozen | BootEvent::Thawed | BootEvent::ClockSet => {
                    // Who does not wait any more is forgotten.
                    lock(&self.0.waiting).retain(|waiting| waiting.send(event.clone()).is_ok());
                }
                BootEvent::Stopping => {}
            }
        }
        Ok(())
    }
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
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
            },
            root: Root::Initramfs,
            nameservers: vec![],
            upper_bytes: 0,
            mounts: vec![],
            volumes: vec![],
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
}
