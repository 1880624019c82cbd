//! What comes to a guest: from published ports, and from other machines on its segments.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use supermachine_netd::channel::Channel;
use supermachine_netd::host::Host;
use supermachine_netd::server::Server;
use supermachine_proto::netd::{
    Command, Ended, Event, INCOMING, Member, Policy, Preset, Protocol, Refusal, Reply, Request, Start,
};

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
const SEGMENT: u64 = 7;

/// A policy process in a thread, and both who talk to it.
struct Netd {
    control: Channel,
    link: Channel,
    address: IpAddr,
    v6: IpAddr,
    next: u64,
}

fn hear<T: serde::de::DeserializeOwned>(channel: &mut Channel) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let open = channel.receive().unwrap();
        if let Some(message) = channel.take().unwrap() {
            return message;
        }
        assert!(open && Instant::now() < end, "nothing was said");
        thread::sleep(Duration::from_millis(1));
    }
}

impl Netd {
    fn start(last: u8, deny: &[&str]) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        let (link, worker) = UnixStream::pair().unwrap();
        let (guest, v6) =
            (Ipv4Addr::new(10, 0, 2, last), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()));
        let deny = deny.iter().map(ToString::to_string).collect();
        let start = Start {
            version: supermachine_proto::VERSION,
            // Nothing outside: what is on the segment is allowed by being there.
            policy: Policy { preset: Preset::Nothing, allow: Vec::new(), deny },
            dns: Vec::new(),
            guest,
            guest_v6: Some(v6),
            gateway: vec![GATEWAY],
            audit: false,
            secrets: None,
        };
        thread::spawn(move || {
            let (control, link) = (Channel::new(theirs).unwrap(), Channel::new(link).unwrap());
            Server::new(control, link, start, Host::default()).unwrap().run()
        });
        let (control, link) = (Channel::new(control).unwrap(), Channel::new(worker).unwrap());
        Self { control, link, address: guest.into(), v6: v6.into(), next: 0 }
    }

    fn tell(&mut self, command: &Command, fd: Option<OwnedFd>) {
        self.control.send(command, fd).unwrap();
    }

    fn member(&self, name: &str) -> Member {
        Member { segment: SEGMENT, addresses: vec![self.address, self.v6], names: vec![name.into()] }
    }

    fn open(&mut self, protocol: Protocol, address: IpAddr, port: u16) -> u64 {
        self.next += 1;
        let own = if address.is_ipv6() { self.v6 } else { self.address };
        let (source, destination) = ((own, 40_000).into(), (address, port).into());
        self.link.send(&Request::Open { flow: self.next, protocol, source, destination }, None).unwrap();
        self.next
    }

    fn say(&mut self, request: &Request) {
        self.link.send(request, None).unwrap();
    }

    fn reply(&mut self) -> Reply {
        hear(&mut self.link)
    }

    fn stream(&mut self) -> UnixStream {
        let stream = UnixStream::from(self.link.take_fd().unwrap());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Code and addresses of the answer to a question.
    fn look_up(&mut self, name: &str) -> (u8, Vec<[u8; 4]>) {
        self.ask(name, 1)
    }

    /// The same of addresses of another kind, of so many bytes.
    fn ask<const BYTES: usize>(&mut self, name: &str, kind: u8) -> (u8, Vec<[u8; BYTES]>) {
        self.open(Protocol::Udp, GATEWAY, 53);
        assert!(matches!(self.reply(), Reply::Granted { .. }));
        let mut socket = self.stream();
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        socket.write_all(&query).unwrap();
        let mut answer = [0; 512];
        let n = socket.read(&mut answer).unwrap();
        let records = answer[query.len()..n].chunks_exact(12 + BYTES);
        (answer[3] & 15, records.map(|record| record[12..].try_into().unwrap()).collect())
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    let IpAddr::V6(address) = address else { panic!("{address}") };
    address.octets()
}

/// Two machines on a segment, "web" and "db".
fn two(deny: &[&str]) -> (Netd, Netd) {
    let (mut web, mut db) = (Netd::start(16, deny), Netd::start(17, &[]));
    let (a, b) = UnixStream::pair().unwrap();
    let (as_web, as_db) = (web.member("web"), db.member("DB"));
    web.tell(&Command::Join(as_web.clone()), None);
    db.tell(&Command::Join(as_db.clone()), None);
    web.tell(&Command::Meet(as_db), Some(a.into()));
    db.tell(&Command::Meet(as_web), Some(b.into()));
    for machine in [&mut web, &mut db] {
        machine.tell(&Command::Sync, None);
        assert_eq!(hear::<Event>(&mut machine.control), Event::Synced);
    }
    (web, db)
}

#[test]
fn who_comes_to_a_published_port_is_the_guests_to_take_or_not() {
    let mut netd = Netd::start(15, &[]);
    for (call, taken) in [(1, true), (2, false)] {
        let (client, theirs) = UnixStream::pair().unwrap();
        let source = "10.0.2.2:5000".parse().unwrap();
        netd.tell(&Command::Deliver { call, protocol: Protocol::Tcp, source, port: 80 }, Some(theirs.into()));
        let Reply::Incoming { flow, protocol, source: told, port } = netd.reply() else { panic!() };
        assert!(flow & INCOMING != 0 && protocol == Protocol::Tcp && told == source && port == 80);
        netd.stream().write_all(b"hello").unwrap();
        netd.say(&if taken {
            Request::Accepted { flow }
        } else {
            Request::Closed { flow, how: Ended::Refused }
        });
        assert_eq!(hear::<Event>(&mut netd.control), Event::Delivered { call, taken });
        assert_eq!((&client).read(&mut [0; 8]).unwrap(), 5);
    }
    netd.tell(&Command::Flows, None);
    let Event::Flows(flows) = hear(&mut netd.control) else { panic!() };
    assert_eq!((flows.len(), flows[0].source), (1, "10.0.2.15:80".parse().unwrap()));
    // A policy is about what the guest does; this is not.
    netd.tell(
        &Command::SetPolicy(Policy { preset: Preset::Nothing, allow: vec![], deny: vec!["any".into()] }),
        None,
    );
    netd.tell(&Command::Sync, None);
    assert_eq!(hear::<Event>(&mut netd.control), Event::Flows(vec![]));
    assert_eq!(hear::<Event>(&mut netd.control), Event::Synced);
    assert!(netd.link.receive().unwrap() && netd.link.take::<Reply>().unwrap().is_none());
}

#[test]
fn a_flow_goes_to_another_machine_when_that_takes_it() {
    let (mut web, mut db) = two(&[]);
    let flow = web.open(Protocol::Tcp, db.address, 5432);
    let Reply::Incoming { flow: theirs, source, port, .. } = db.reply() else { panic!() };
    assert_eq!((source, port), ((web.address, 40_000).into(), 5432));
    let mut server = db.stream();
    assert!(
        web.link.receive().unwrap() && web.link.take::<Reply>().unwrap().is_none(),
        "it is not taken yet"
    );
    db.say(&Request::Accepted { flow: theirs });
    assert_eq!(web.reply(), Reply::Granted { flow });
    let mut client = web.stream();
    client.write_all(b"question").unwrap();
    let mut bytes = [0; 16];
    assert_eq!(server.read(&mut bytes).unwrap(), 8);
    server.write_all(b"answer").unwrap();
    assert_eq!(client.read(&mut bytes).unwrap(), 6);
    // A reset reaches the other guest, and an orderly end is the stream's own matter.
    db.say(&Request::Closed { flow: theirs, how: Ended::Reset });
    assert_eq!(web.reply(), Reply::Revoked { flow, why: Refusal::Refused });
    let flow = web.open(Protocol::Udp, db.address, 53);
    let Reply::Incoming { flow: theirs, .. } = db.reply() else { panic!() };
    db.say(&Request::Accepted { flow: theirs });
    assert_eq!(web.reply(), Reply::Granted { flow });
    web.say(&Request::Closed { flow, how: Ended::Reset });
    assert!(matches!(db.reply(), Reply::Revoked { flow, .. } if flow == theirs));
}

#[test]
fn a_flow_of_ipv6_comes_from_the_address_of_that_family() {
    let (mut web, mut db) = two(&[]);
    for (protocol, port) in [(Protocol::Tcp, 5432), (Protocol::Udp, 53), (Protocol::Icmp, 0)] {
        let flow = web.open(protocol, db.v6, port);
        let Reply::Incoming { flow: theirs, protocol: told, source, port: at } = db.reply() else { panic!() };
        assert_eq!((told, source, at), (protocol, (web.v6, 40_000).into(), port));
        db.say(&Request::Accepted { flow: theirs });
        assert_eq!(web.reply(), Reply::Granted { flow });
        drop((web.stream(), db.stream()));
    }
    db.tell(&Command::Flows, None);
    let Event::Flows(flows) = hear(&mut db.control) else { panic!() };
    assert!(flows.iter().all(|flow| flow.source.ip() == db.v6 && flow.name.as_deref() == Some("web")));
    // An address that nobody has is not on the segment.
    web.open(Protocol::Tcp, "fd00::12".parse().unwrap(), 80);
    assert!(matches!(web.reply(), Reply::Refused { refusal: Refusal::Denied, .. }));
}

#[test]
fn who_has_no_ipv6_on_the_segment_does_not_come_by_it() {
    let (mut web, mut db) = (Netd::start(16, &[]), Netd::start(17, &[]));
    let (a, b) = UnixStream::pair().unwrap();
    let (mut as_web, as_db) = (web.member("web"), db.member("db"));
    as_web.addresses.pop();
    db.tell(&Command::Meet(as_web), Some(b.into()));
    web.tell(&Command::Meet(as_db), Some(a.into()));
    for machine in [&mut web, &mut db] {
        machine.tell(&Command::Sync, None);
        assert_eq!(hear::<Event>(&mut machine.control), Event::Synced);
    }
    let flow = web.open(Protocol::Tcp, db.v6, 80);
    assert_eq!(web.reply(), Reply::Refused { flow, refusal: Refusal::Unreachable });
}

#[test]
fn what_the_other_machine_does_not_take_is_refused() {
    let (mut web, mut db) = two(&[]);
    for (how, refusal) in [
        (Ended::Refused, Refusal::Refused),
        (Ended::Unreachable, Refusal::Unreachable),
        (Ended::Reset, Refusal::Refused),
    ] {
        let flow = web.open(Protocol::Tcp, db.address, 81);
        let Reply::Incoming { flow: theirs, .. } = db.reply() else { panic!() };
        db.say(&Request::Closed { flow: theirs, how });
        assert_eq!(web.reply(), Reply::Refused { flow, refusal });
    }
    // One that gives up before there is an answer takes the question back.
    let flow = web.open(Protocol::Tcp, db.address, 81);
    let Reply::Incoming { flow: theirs, .. } = db.reply() else { panic!() };
    web.say(&Request::Closed { flow, how: Ended::Over });
    assert!(matches!(db.reply(), Reply::Revoked { flow, .. } if flow == theirs));
}

#[test]
fn names_lead_to_the_machines_and_to_nobody_who_is_not_there() {
    let (mut web, mut db) = two(&[]);
    assert_eq!(web.look_up("db"), (0, vec![[10, 0, 2, 17]]));
    assert_eq!(web.look_up("WEB"), (0, vec![[10, 0, 2, 16]]), "its own name");
    assert_eq!(db.look_up("web"), (0, vec![[10, 0, 2, 16]]));
    assert_eq!(db.look_up("other").0, 3);
    assert_eq!(db.ask("web", 28), (0, vec![octets(web.v6)]));
    assert_eq!(db.ask::<16>("other", 28).0, 3);
    // An address of the same network that nobody has is not on the segment.
    web.open(Protocol::Tcp, "10.0.2.18".parse().unwrap(), 80);
    assert!(matches!(web.reply(), Reply::Refused { refusal: Refusal::Denied, .. }));
}

#[test]
fn a_rule_that_denies_holds_on_a_segment_as_well() {
    for rule in ["db", "10.0.2.17:5432", "[fd00::11]:5432", "fd00::/16", "private", "any:5432/tcp"] {
        let (mut web, mut db) = two(&[rule]);
        for (address, other) in [(db.address, "fd00"), (db.v6, "10.0")] {
            let flow = web.open(Protocol::Tcp, address, 5432);
            if rule.contains(other) {
                // A rule for an address of the other family is not about this one.
                let Reply::Incoming { flow: theirs, .. } = db.reply() else { panic!() };
                db.say(&Request::Accepted { flow: theirs });
                assert_eq!(web.reply(), Reply::Granted { flow }, "{rule} {address}");
            } else {
                let refused = Reply::Refused { flow, refusal: Refusal::Denied };
                assert_eq!(web.reply(), refused, "{rule} {address}");
            }
        }
    }
    let (mut web, _db) = two(&["db"]);
    assert_eq!((web.look_up("db").0, web.ask::<16>("db", 28).0), (3, 3));
}

#[test]
fn who_leaves_is_gone_with_its_name_and_its_flows() {
    let (mut web, mut db) = two(&[]);
    let taken = web.open(Protocol::Tcp, db.address, 1);
    let Reply::Incoming { flow: theirs, .. } = db.reply() else { panic!() };
    db.say(&Request::Accepted { flow: theirs });
    assert_eq!(web.reply(), Reply::Granted { flow: taken });
    let waiting = web.open(Protocol::Tcp, db.address, 2);
    assert!(matches!(db.reply(), Reply::Incoming { .. }));
    drop((web.stream(), db.stream(), db.stream()));
    db.tell(&Command::Leave { segment: SEGMENT }, None);
    for _ in 0..2 {
        assert!(matches!(db.reply(), Reply::Revoked { flow, .. } if flow & INCOMING != 0));
        match web.reply() {
            Reply::Revoked { flow, .. } => assert_eq!(flow, taken),
            Reply::Refused { flow, .. } => assert_eq!(flow, waiting),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((web.look_up("db").0, db.look_up("web").0), (3, 3));
    web.open(Protocol::Tcp, db.address, 1);
    assert!(matches!(web.reply(), Reply::Refused { refusal: Refusal::Denied, .. }));
}

#[test]
fn a_machine_that_is_killed_leaves_nobody_waiting() {
    let (mut web, db) = two(&[]);
    let address = db.address;
    let flow = web.open(Protocol::Tcp, address, 1);
    drop(db);
    assert!(matches!(web.reply(), Reply::Refused { flow: refused, .. } if refused == flow));
}
