//! Connections to the ports of HTTP and TLS whose first bytes decide, as they name whom they are for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use supermachine_proto::netd::{FIRST, Protocol, Refusal, Reply};

use crate::first::{self, Seen};
use crate::policy::{Basis, Denied};
use crate::server::Server;

pub(crate) const HTTP: u16 = 80;
pub(crate) const HTTPS: u16 = 443;
/// How long a client has to say whom it wants; and one that may reach the address in any case: then the server may be
/// the one that speaks first.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);
/// Connections that are judged at once.
const MOST: usize = 1024;
/// Pages of refusal that wait to be read, and for how long.
const PAGES: usize = 64;
const READING: Duration = Duration::from_secs(2);

/// What decides about a connection once it has said whom it is for.
#[derive(Clone, Debug)]
pub(crate) enum Pending {
    Basis(Basis),
    /// It is denied, and told: a client of HTTP gets to read why.
    Denied(Denied),
}

/// A connection that has not said enough.
pub(crate) struct Judging {
    flow: u64,
    /// To the server; none where it is denied anyway.
    socket: Option<OwnedFd>,
    pending: Pending,
    /// It may be one that is opened for secrets, so TLS is expected at any port.
    secret: bool,
    said: Vec<u8>,
    deadline: Instant,
}

/// Those, and pages that are being read.
#[derive(Default)]
pub(crate) struct Judgements {
    waiting: Vec<Judging>,
    pages: Vec<(OwnedFd, Instant)>,
}

impl Judgements {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|judging| judging.deadline);
        waiting.chain(self.pages.iter().map(|(_, until)| *until)).min()
    }

    pub(crate) fn forget(&mut self, flow: u64) {
        self.waiting.retain(|judging| judging.flow != flow);
    }
}

impl Server {
    /// Has the guest say whom a connection is for.
    pub(crate) fn judge(&mut self, flow: u64, socket: Option<OwnedFd>, pending: Pending) -> io::Result<()> {
        if self.judgements.waiting.len() >= MOST {
            return self.refuse(flow, Refusal::Unreachable);
        }
        let secret = self.granted.get(&flow).is_some_and(|granted| self.has_secrets_for(granted));
        let patience =
            if matches!(pending, Pending::Basis(Basis::Address)) && !secret { SHORT } else { PATIENCE };
        let deadline = Instant::now() + patience;
        self.judgements.waiting.push(Judging { flow, socket, pending, secret, said: Vec::new(), deadline });
        self.link.send(&Reply::Judged { flow }, None)
    }

    /// The guest's next bytes.
    pub(crate) fn hear_first(&mut self, flow: u64, bytes: &[u8], ended: bool) -> io::Result<()> {
        let Some(at) = self.judgements.waiting.iter().position(|judging| judging.flow == flow) else {
            return Ok(());
        };
        let Some(port) = self.granted.get(&flow).map(|granted| granted.destination.port()) else {
            return Ok(());
        };
        let judging = &mut self.judgements.waiting[at];
        judging.said.extend(bytes);
        let seen = match port {
            HTTPS => first::hello(&judging.said),
            _ if judging.secret => first::hello(&judging.said),
            _ => first::request(&judging.said),
        };
        let more = seen == Seen::Incomplete && !ended && judging.said.len() < FIRST;
        if more {
            return self.link.send(&Reply::More { flow }, None);
        }
        let judging = self.judgements.waiting.swap_remove(at);
        self.conclude(judging, seen)
    }

    /// Gives up those that have not said enough by now.
    pub(crate) fn end_judgements(&mut self, now: Instant) -> io::Result<()> {
        self.judgements.pages.retain(|(_, until)| *until > now);
        while let Some(at) = self.judgements.waiting.iter().position(|judging| judging.deadline <= now) {
            let judging = self.judgements.waiting.swap_remove(at);
            self.conclude(judging, Seen::Incomplete)?;
        }
        Ok(())
    }

    fn conclude(&mut self, judging: Judging, seen: Seen) -> io::Result<()> {
        let Judging { flow, socket, pending, secret, said, .. } = judging;
        let Some(granted) = self.granted.get(&flow) else { return Ok(()) };
        let (destination, class) = (granted.destination, self.class(granted.destination.ip()));
        let pinned: Vec<&str> = granted.names.iter().map(String::as_str).collect();
        let denied = |reason| Err(Denied { rule: None, reason, remedy: String::new() });
        let (verdict, told) = match (pending, &seen) {
            (Pending::Denied(denied), _) => (Err(denied), true),
            (Pending::Basis(basis), Seen::Name(name)) => {
                let (to, port) = (destination.ip(), destination.port());
                (self.policy.presents(name, to, class, &pinned, basis, port), false)
            }
            (Pending::Basis(Basis::Address), _) => (Ok(()), false),
            (Pending::Basis(Basis::Name), Seen::Hidden) => {
                (denied("it hides the name that it is for, and only names are allowed"), false)
            }
            (Pending::Basis(Basis::Name), _) => {
                (denied("it does not say for which name it is, and only names are allowed"), false)
            }
        };
        match (verdict, socket) {
            (Ok(()), Some(socket)) => {
                if let (true, Seen::Name(name), Some(opening)) = (secret, &seen, &mut self.opening)
                    && opening.concerns(std::iter::once(&name[..]), destination.port())
                {
                    let (to, port) = (destination.ip(), destination.port());
                    return match opening.open(flow, socket, said, name, to, port) {
                        Ok(guest) => self.link.send(&Reply::Granted { flow }, Some(guest)),
                        Err(_) => self.refuse(flow, Refusal::Unreachable),
                    };
                }
                // A fresh socket takes as much as this.
                if rustix::io::write(&socket, &said).ok() != Some(said.len()) && !said.is_empty() {
                    return self.refuse(flow, Refusal::Refused);
                }
                self.link.send(&Reply::Granted { flow }, Some(socket))
            }
            (Ok(()), None) => self.refuse(flow, Refusal::Unreachable),
            (Err(denied), _) => {
                let name = match &seen {
                    Seen::Name(name) => Some(name.clone()),
                    _ => granted.names.first().cloned(),
                };
                let http =
                    destination.port() == HTTP && !secret && !matches!(seen, Seen::Other | Seen::Incomplete);
                let page = first::forbidden(denied.reason, denied.rule.as_deref(), &denied.remedy);
                if !told {
                    let (to, port) = (Some(destination.ip()), destination.port());
                    self.tell(name, to, port, Protocol::Tcp, denied)?;
                }
                match http.then(|| self.page(&page)).flatten() {
                    Some(page) => self.link.send(&Reply::Granted { flow }, Some(page)),
                    None => self.refuse(flow, Refusal::Denied),
                }
            }
        }
    }

    /// The guest's end of a connection on which it reads this.
    fn page(&mut self, page: &[u8]) -> Option<OwnedFd> {
        if self.judgements.pages.len() >= PAGES {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        theirs.set_nonblocking(true).ok()?;
        ours.set_nonblocking(true).ok()?;
        rustix::io::write(ours.as_fd(), page).ok()?;
        ours.shutdown(std::net::Shutdown::Write).ok()?;
        self.judgements.pages.push((ours.into(), Instant::now() + READING));
        Some(theirs.into())
    }
}
