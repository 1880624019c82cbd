//! One connection that is opened: requests go on with secrets in them, responses come back without.
//!
//! One request is under way at a time. Heads are read whole and written anew; bodies stream through, no more than some
//! 64 KiB ahead of who takes them, but for those of requests that secrets may be in, which are read whole up to a
//! limit.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use zeroize::Zeroizing;

use super::body::{self, Framing, Reader};
use super::head::{self, Bad, Field};
use super::page::page;
use super::peer::{End, Peer};
use super::values::{Covering, Form, Replacing};

/// Bytes of a request's body that secrets may be in.
const WHOLE: usize = 1 << 20;
/// How long both sides may take to greet; a client between two requests; anybody in the midst of one; anybody once the
/// protocol is another (WebSocket); and a client to take the last of what it is sent.
const GREETING: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(300);
const SILENT: Duration = Duration::from_secs(900);
const SWITCHED: Duration = Duration::from_secs(3600);
const LINGER: Duration = Duration::from_secs(2);

/// What a connection is opened with.
pub(super) struct Opened {
    /// Both do not block.
    pub guest: OwnedFd,
    pub host: OwnedFd,
    /// What the guest has said so far: a TLS hello.
    pub said: Vec<u8>,
    pub name: String,
    pub port: u16,
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
    pub replacing: Replacing,
    /// A byte on it ends the connection.
    pub bell: UnixStream,
}

/// A request whose response is awaited or on its way.
struct Exchange {
    method: String,
    minor: u8,
    close: bool,
    websocket: bool,
}

enum Asking {
    Head,
    Body {
        reader: Reader,
        framing: Framing,
    },
    /// A body that is read whole before it goes on, with its head.
    Whole {
        reader: Reader,
        request: Box<head::Request>,
        data: Vec<u8>,
    },
    Done,
}

enum Answering {
    Nothing,
    Head,
    Body {
        reader: Reader,
        framing: Framing,
        covering: Covering,
        close: bool,
    },
    /// The protocol is another now.
    Switched {
        covering: Covering,
    },
}

/// What is to be done next.
enum Step {
    Again,
    Wait,
    End,
}

struct Conversation {
    guest: Peer,
    host: Peer,
    name: String,
    port: u16,
    replacing: Replacing,
    exchange: Exchange,
    asking: Asking,
    answering: Answering,
    /// Nobody is at the guest's end any more.
    gone: bool,
    complain: Box<dyn Fn(String) + Send>,
}

/// Serves the connection to its end; `complain` is told why something was not passed on.
pub(super) fn serve(opened: Opened, complain: Box<dyn Fn(String) + Send>) {
    let Opened { guest, host, said, name, port, server, client, replacing, bell } = opened;
    let Ok(server_name) = ServerName::try_from(name.clone()) else { return };
    let (Ok(server), Ok(client)) =
        (ServerConnection::new(server), ClientConnection::new(client, server_name))
    else {
        return;
    };
    let exchange = Exchange { method: String::new(), minor: 1, close: false, websocket: false };
    let conversation = Conversation {
        guest: Peer::new(guest, server, &said),
        host: Peer::new(host, client, &[]),
        name,
        port,
        replacing,
        exchange,
        asking: Asking::Head,
        answering: Answering::Nothing,
        gone: false,
        complain,
    };
    conversation.run(&bell);
}

impl Conversation {
    fn run(mut self, bell: &UnixStream) {
        let mut bell = Some(bell);
        let mut last = Instant::now();
        let begin = last;
        let mut ending: Option<Instant> = None;
        loop {
            while ending.is_none() {
                match self.step() {
                    Step::Again => {}
                    Step::Wait => break,
                    Step::End => {
                        self.guest.finish();
                        self.host.finish();
                        ending = Some(Instant::now() + LINGER);
                    }
                }
            }
            if ending.is_some() {
                self.guest.input.clear();
            }
            let moved = self.guest.flush() | self.host.flush();
            let now = Instant::now();
            let deadline = match ending {
                Some(until) => until,
                None if self.guest.is_greeting() || self.host.is_greeting() && self.host.end.is_none() => {
                    begin + GREETING
                }
                None => last + self.patience(),
            };
            let over = self.gone && self.host.is_flushed();
            let finished = ending.is_some() && self.guest.end.is_some() && self.guest.is_flushed();
            if over || finished || deadline <= now {
                return;
            }
            if moved {
                last = now;
                // There may be room for more.
                continue;
            }
            match self.wait(&mut bell, deadline - now) {
                Some(true) => last = Instant::now(),
                Some(false) => {}
                None => return,
            }
        }
    }

    fn patience(&self) -> Duration {
        match (&self.asking, &self.answering) {
            (_, Answering::Switched { .. }) => SWITCHED,
            (Asking::Head, Answering::Nothing) => IDLE,
            _ => SILENT,
        }
    }

    /// Waits for either side, and reads what it has said; whether it was anything. `None` when this is to end.
    fn wait(&mut self, bell: &mut Option<&UnixStream>, most: Duration) -> Option<bool> {
        let (guest, host) = (self.guest.wants(), self.host.wants());
        // Whether somebody is there is told in any case.
        let mut fds = vec![PollFd::from_borrowed_fd(self.guest.socket(), guest)];
        if self.gone {
            fds.clear();
        }
        let host_at = fds.len();
        if !host.is_empty() {
            fds.push(PollFd::from_borrowed_fd(self.host.socket(), host));
        }
        let bell_at = fds.len();
        fds.extend(bell.iter().map(|bell| PollFd::new(*bell, PollFlags::IN)));
        let most = most + Duration::from_millis(1);
        let timeout = Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: most.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
        let told = |at: usize| fds.get(at).map_or(PollFlags::empty(), PollFd::revents);
        let (rings, hung_up) =
            (told(bell_at), host_at > 0 && told(0).intersects(PollFlags::HUP | PollFlags::ERR));
        drop(fds);
        if rings.contains(PollFlags::IN) {
            return None;
        }
        if !rings.is_empty() {
            *bell = None;
        }
        let mut some = self.guest.receive() | self.host.receive();
        if hung_up && !some {
            self.gone = true;
            some = true;
        }
        Some(some)
    }

    fn step(&mut self) -> Step {
        if self.guest.is_greeting() {
            return if self.guest.end.is_some() { Step::End } else { Step::Wait };
        }
        if self.host.is_greeting() && self.host.end.is_none() {
            return Step::Wait;
        }
        if self.host.is_flushed() {
            match self.ask() {
                Step::Wait => {}
                other => return other,
            }
        }
        if self.guest.is_flushed() { self.answer() } else { Step::Wait }
    }

    /// Passes on what the guest says.
    fn ask(&mut self) -> Step {
        match &mut self.asking {
            Asking::Head if matches!(self.answering, Answering::Nothing) => self.hear_head(),
            Asking::Head | Asking::Done => {
                if let (Answering::Switched { .. }, false) = (&self.answering, self.guest.input.is_empty()) {
                    let bytes = std::mem::take(&mut self.guest.input);
                    self.host.send(&bytes);
                    return Step::Again;
                }
                let ended = matches!(self.answering, Answering::Switched { .. }) && self.guest.end.is_some();
                if ended { Step::End } else { Step::Wait }
            }
            Asking::Body { reader, framing } => {
                let mut data = Vec::new();
                if let Err(reason) = reader.read(&mut self.guest.input, &mut data) {
                    return self.give_up(Bad(400, reason));
                }
                let mut out = Vec::new();
                body::write(*framing, &data, &mut out);
                let done = reader.is_done();
                if done {
                    body::finish(*framing, &mut out);
                    self.asking = Asking::Done;
                }
                self.host.send(&out);
                match (done || !data.is_empty(), &self.guest.end) {
                    (true, _) => Step::Again,
                    (false, None) => Step::Wait,
                    (false, Some(_)) => Step::End,
                }
            }
            Asking::Whole { reader, data, .. } => {
                if let Err(reason) = reader.read(&mut self.guest.input, data) {
                    return self.give_up(Bad(400, reason));
                }
                if data.len() > WHOLE {
                    return self.give_up(Bad(413, "a body that a secret may be in is at most 1 MiB"));
                }
                if !reader.is_done() {
                    return if self.guest.end.is_some() { Step::End } else { Step::Wait };
                }
                let Asking::Whole { request, data, .. } = std::mem::replace(&mut self.asking, Asking::Done)
                else {
                    return Step::End;
                };
                self.pass_on(*request, Some(data));
                Step::Again
            }
        }
    }

    fn hear_head(&mut self) -> Step {
        if self.guest.input.is_empty() {
            return match (&self.guest.end, &self.host.end) {
                (None, None) => Step::Wait,
                (None, Some(End::Wrong(_))) => Step::Wait, // a request gets to hear it
                _ => Step::End,
            };
        }
        let (request, length) = match head::request(&self.guest.input, &self.name, self.port) {
            Ok(Some(found)) => found,
            Ok(None) if self.guest.input.len() >= head::MOST => {
                return self.give_up(Bad(431, "its head is too long"));
            }
            Ok(None) => return if self.guest.end.is_some() { Step::End } else { Step::Wait },
            Err(bad) => return self.give_up(bad),
        };
        if let Some(reason) = self.unheard() {
            return self.give_up_because(502, &reason);
        }
        self.guest.input.drain(..length);
        self.exchange = Exchange {
            method: request.method.clone(),
            minor: request.minor,
            close: request.close,
            websocket: request.websocket,
        };
        let framing = request.framing;
        let reader = Reader::new(framing);
        if self.replacing.in_bodies() && !reader.is_done() {
            if matches!(framing, Framing::Length(length) if length > WHOLE as u64) {
                return self.give_up(Bad(413, "a body that a secret may be in is at most 1 MiB"));
            }
            if request.expects {
                self.guest.send(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            self.asking = Asking::Whole { reader, request: Box::new(request), data: Vec::new() };
            return Step::Again;
        }
        self.pass_on(request, None);
        self.asking = if reader.is_done() { Asking::Done } else { Asking::Body { reader, framing } };
        Step::Again
    }

    /// Why the host cannot be spoken with, if so.
    fn unheard(&self) -> Option<String> {
        match &self.host.end {
            Some(End::Wrong(rustls::Error::InvalidCertificate(why))) => {
                Some(format!("the certificate of {} is not accepted: {why}", self.name))
            }
            Some(End::Wrong(error)) => Some(format!("TLS with {} has failed: {error}", self.name)),
            Some(End::Cut) if self.host.is_greeting() => {
                Some(format!("{} has ended the connection before TLS was set up", self.name))
            }
            _ => None,
        }
    }

    /// Writes a request anew, with secrets in it.
    fn pass_on(&mut self, request: head::Request, body: Option<Vec<u8>>) {
        let head::Request { method, target, minor, fields, framing, close, websocket, expects } = request;
        let mut out = Zeroizing::new(Vec::new());
        let mut some = false;
        out.extend(method.bytes());
        out.push(b' ');
        match self.replacing.target(&target) {
            Some(replaced) => {
                some = true;
                out.extend(&replaced[..]);
            }
            None => out.extend(target.bytes()),
        }
        out.extend(format!(" HTTP/1.{minor}\r\n").bytes());
        let mut lines: Vec<(String, Zeroizing<Vec<u8>>)> = Vec::with_capacity(fields.len());
        for (name, value) in fields {
            let replaced = match &name.to_ascii_lowercase()[..] {
                "host" => None,
                _ => self.replacing.field(&name, &value),
            };
            some |= replaced.is_some();
            lines.push((name, replaced.unwrap_or_else(|| Zeroizing::new(value))));
        }
        let media_type = lines.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let form = Form::of_body(media_type.map_or(&[], |(_, value)| &value[..]));
        let body = body.map(|body| match self.replacing.body(&body, form) {
            Some(replaced) => {
                some = true;
                replaced
            }
            None => Zeroizing::new(body),
        });
        for (name, value) in &lines {
            // What comes back compressed cannot be covered.
            if some && name.eq_ignore_ascii_case("accept-encoding") {
                continue;
            }
            line(&mut out, name, value);
        }
        if some {
            line(&mut out, "Accept-Encoding", b"identity");
        }
        match (&body, framing) {
            (Some(body), _) => line(&mut out, "Content-Length", body.len().to_string().as_bytes()),
            (None, framing) => frame(&mut out, framing),
        }
        if expects && body.is_none() {
            line(&mut out, "Expect", b"100-continue");
        }
        if websocket {
            line(&mut out, "Connection", b"Upgrade");
            line(&mut out, "Upgrade", b"websocket");
        } else if close {
            line(&mut out, "Connection", b"close");
        }
        out.extend(b"\r\n");
        out.extend(body.iter().flat_map(|body| body.iter()));
        self.host.send(&out);
        self.answering = Answering::Head;
    }

    /// Passes on what the host says.
    fn answer(&mut self) -> Step {
        match &mut self.answering {
            Answering::Nothing => match (&self.host.end, self.host.input.is_empty(), &self.asking) {
                // Unasked.
                (_, false, _) => Step::End,
                (Some(End::Said | End::Cut), _, Asking::Head) if self.guest.input.is_empty() => Step::End,
                _ => Step::Wait,
            },
            Answering::Head => self.answer_head(),
            Answering::Body { reader, framing, covering, close } => {
                let mut data = Vec::new();
                if let Err(reason) = reader.read(&mut self.host.input, &mut data) {
                    return self.cut(reason);
                }
                let mut covered = covering.push(&data, &self.replacing);
                let at_end = reader.ends_with_connection() && self.host.end == Some(End::Said);
                let done = reader.is_done() || at_end;
                if done {
                    covered.extend(covering.finish());
                }
                let mut out = Vec::new();
                body::write(*framing, &covered, &mut out);
                if done {
                    body::finish(*framing, &mut out);
                }
                let close = *close;
                self.guest.send(&out);
                if done {
                    return self.next(close);
                }
                match (data.is_empty(), &self.host.end) {
                    (false, _) => Step::Again,
                    (true, None) => Step::Wait,
                    (true, Some(_)) => {
                        self.cut("the host has ended the connection in the midst of its answer")
                    }
                }
            }
            Answering::Switched { covering } => {
                if self.host.input.is_empty() && self.host.end.is_none() {
                    return Step::Wait;
                }
                let bytes = std::mem::take(&mut self.host.input);
                let mut covered = covering.push(&bytes, &self.replacing);
                let ended = bytes.is_empty();
                if ended {
                    covered.extend(covering.finish());
                }
                self.guest.send(&covered);
                if ended { Step::End } else { Step::Again }
            }
        }
    }

    fn answer_head(&mut self) -> Step {
        let (response, length) = match head::response(&self.host.input, &self.exchange.method) {
            Ok(Some(found)) => found,
            Ok(None) if self.host.input.len() >= head::MOST => {
                return self.give_up_because(502, "the head of the host's answer is too long");
            }
            Ok(None) => {
                return match &self.host.end {
                    None => Step::Wait,
                    Some(End::Wrong(_)) => {
                        let reason = self.unheard().unwrap_or_default();
                        self.give_up_because(502, &reason)
                    }
                    // As if it had ended the guest's connection: clients know whether to ask again.
                    Some(_) => Step::End,
                };
            }
            Err(reason) => return self.give_up_because(502, reason),
        };
        self.host.input.drain(..length);
        let head::Response { status, phrase, minor: _, fields, framing, close, upgrade } = response;
        let mut out = Vec::new();
        out.extend(b"HTTP/1.1 ");
        out.extend(status.to_string().bytes());
        out.push(b' ');
        out.extend(self.replacing.cover_field(phrase.as_bytes()));
        out.extend(b"\r\n");
        self.lines(&mut out, &fields);
        if let Some(protocol) = upgrade {
            if !self.exchange.websocket || !protocol.eq_ignore_ascii_case(b"websocket") {
                return self
                    .give_up_because(502, "the host has switched to a protocol that it was not asked for");
            }
            line(&mut out, "Connection", b"Upgrade");
            line(&mut out, "Upgrade", b"websocket");
            out.extend(b"\r\n");
            self.guest.send(&out);
            self.answering = Answering::Switched { covering: Covering::default() };
            return Step::Again;
        }
        if status < 200 {
            out.extend(b"\r\n");
            // A client of HTTP/1.0 knows of none.
            if self.exchange.minor > 0 {
                self.guest.send(&out);
            }
            return Step::Again;
        }
        if framing == Framing::Chunked && self.exchange.minor == 0 {
            return self
                .give_up_because(502, "the host answers in chunks, which clients of HTTP/1.0 cannot read");
        }
        let close = close || self.exchange.close;
        frame(&mut out, framing);
        if close {
            line(&mut out, "Connection", b"close");
        }
        out.extend(b"\r\n");
        self.guest.send(&out);
        let reader = Reader::new(framing);
        if reader.is_done() {
            return self.next(close);
        }
        self.answering = Answering::Body { reader, framing, covering: Covering::default(), close };
        Step::Again
    }

    fn lines(&self, out: &mut Vec<u8>, fields: &[Field]) {
        for (name, value) in fields {
            line(out, name, &self.replacing.cover_field(value));
        }
    }

    /// After a response.
    fn next(&mut self, close: bool) -> Step {
        if close || !matches!(self.asking, Asking::Done) {
            return Step::End;
        }
        self.asking = Asking::Head;
        self.answering = Answering::Nothing;
        Step::Again
    }

    /// The answer is not whole, and the guest is not told that it was: no notice of TLS's ends it.
    fn cut(&mut self, reason: &str) -> Step {
        (self.complain)(reason.into());
        self.gone = true;
        Step::Wait
    }

    fn give_up(&mut self, Bad(status, reason): Bad) -> Step {
        self.give_up_because(status, reason)
    }

    fn give_up_because(&mut self, status: u16, reason: &str) -> Step {
        (self.complain)(reason.into());
        // In the midst of an answer it would be read as part of that.
        if matches!(self.answering, Answering::Nothing | Answering::Head) {
            self.guest.send(&page(status, reason));
        }
        Step::End
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend(name.bytes());
    out.extend(b": ");
    out.extend(value);
    out.extend(b"\r\n");
}

fn frame(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::Length(length) => line(out, "Content-Length", length.to_string().as_bytes()),
        Framing::Chunked => line(out, "Transfer-Encoding", b"chunked"),
        Framing::None | Framing::End => {}
    }
}
