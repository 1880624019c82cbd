//! The policy process as a worker and the API see it: what is granted, what is judged by its first bytes, what is
//! ended.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;

use supermachine_netd::channel::Channel;
use supermachine_netd::confine;
use supermachine_netd::host::Host;
use supermachine_netd::server::Server;
use supermachine_proto::netd::{
    Command, Denial, Event, Policy, Preset, Protocol, Refusal, Reply, Request, Start,
};

use common::receive;

/// The servers' ends of what was dialled, the latest last.
static DIALLED: Mutex<Vec<(SocketAddr, UnixStream)>> = Mutex::new(Vec::new());
const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 2));

fn dial(_: Protocol, to: SocketAddr) -> Result<(OwnedFd, bool), rustix::io::Errno> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    DIALLED.lock().unwrap().push((to, theirs));
    Ok((ours.into(), true))
}

/// A policy process in a thread, and both who talk to it.
struct Netd {
    control: Channel,
    link: Channel,
    next: u64,
}

impl Netd {
    fn start(preset: Preset, allow: &[&str], deny: &[&str], dns: Vec<SocketAddr>) -> Self {
        Self::on(Host::default(), preset, allow, deny, dns)
    }

    fn on(host: Host, preset: Preset, allow: &[&str], deny: &[&str], dns: Vec<SocketAddr>) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        let (link, worker) = UnixStream::pair().unwrap();
        let start = Start {
            version: supermachine_proto::VERSION,
            policy: policy(preset, allow, deny),
            dns,
            guest: std::net::Ipv4Addr::new(10, 0, 2, 15),
            guest_v6: None,
            gateway: vec![GATEWAY],
            audit: false,
            secrets: None,
        };
        thread::spawn(move || {
            confine::confine_thread().unwrap();
            let (control, link) = (Channel::new(theirs).unwrap(), Channel::new(link).unwrap());
            Server::new(control, link, start, host).unwrap().dialing(dial).run()
        });
        Self { control: Channel::new(control).unwrap(), link: Channel::new(worker).unwrap(), next: 0 }
    }

    fn ask(&mut self, protocol: Protocol, to: &str) -> Reply {
        self.next += 1;
        let source = "10.0.2.15:40000".parse().unwrap();
        let request = Request::Open { flow: self.next, protocol, source, destination: to.parse().unwrap() };
        self.link.send(&request, None).unwrap();
        receive(&mut self.link)
    }

    fn first(&mut self, bytes: &[u8], ended: bool) -> Reply {
        let request = Request::First { flow: self.next, bytes: bytes.to_vec().into(), ended };
        self.link.send(&request, None).unwrap();
        receive(&mut self.link)
    }

    fn denied(&mut self) -> Denial {
        match receive(&mut self.control) {
            Event::Denied(denial) => denial,
            other => panic!("{other:?}"),
        }
    }

    /// Looks a name up; the code of the answer.
    fn look_up(&mut self, name: &str) -> u8 {
        assert!(matches!(self.ask(Protocol::Udp, "10.0.2.2:53"), Reply::Granted { .. }));
        let mut socket = UnixStream::from(self.link.take_fd().unwrap());
        socket.set_nonblocking(false).unwrap();
        socket.write_all(&query(name)).unwrap();
        let mut answer = [0; 2048];
        assert!(socket.read(&mut answer).unwrap() > 11);
        answer[3] & 15
    }
}

fn policy(preset: Preset, allow: &[&str], deny: &[&str]) -> Policy {
    let texts = |rules: &[&str]| rules.iter().map(ToString::to_string).collect();
    Policy { preset, allow: texts(allow), deny: texts(deny) }
}

fn name(name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes
}

fn query(of: &str) -> Vec<u8> {
    [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &name(of), &[0, 1, 0, 1]].concat()
}

/// A name server: allowed.test and sibling.test are at 8.8.4.4, inside.test at 10.0.0.5, meta.test where clouds tell
/// secrets, alias.test is an alias of evil.test, which is at 8.8.8.8.
fn name_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((n, peer)) = socket.recv_from(&mut bytes) {
            let asked = &bytes[12..n - 4];
            let of = |label: &str| asked.to_ascii_lowercase() == name(label);
            let (alias, address) = match () {
                () if of("inside.test") => (None, [10, 0, 0, 5]),
                () if of("meta.test") => (None, [169, 254, 169, 254]),
                () if of("alias.test") => (Some("evil.test"), [8, 8, 8, 8]),
                () => (None, [8, 8, 4, 4]),
            };
            let mut reply = bytes[..n].to_vec();
            reply[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1 + u8::from(alias.is_some())]);
            let record = |owner: &[u8], kind: u8, data: &[u8]| {
                [owner, &[0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8], data].concat()
            };
            let mut owner = vec![0xc0, 12];
            if let Some(alias) = alias {
                reply.extend(record(&owner, 5, &name(alias)));
                owner = name(alias);
            }
            reply.extend(record(&owner, 1, &address));
            let _ = socket.send_to(&reply, peer);
        }
    });
    address
}

fn hello(sni: Option<&str>, hidden: bool) -> Vec<u8> {
    let sized = |bytes: usize, data: &[u8]| [&data.len().to_be_bytes()[8 - bytes..], data].concat();
    let mut extensions = Vec::new();
    if let Some(name) = sni {
        let list = sized(2, &[&[0][..], &sized(2, name.as_bytes())].concat());
        extensions.extend([&[0, 0][..], &sized(2, &list)].concat());
    }
    if hidden {
        extensions.extend([0xfe, 0x0d, 0, 1, 0]);
    }
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &sized(2, &extensions)].concat();
    let message = [&[1][..], &sized(3, &body)].concat();
    [&[22, 3, 1][..], &sized(2, &message)].concat()
}

fn get(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

const TLS: &str = "8.8.4.4:443";
const HTTP: &str = "8.8.4.4:80";

#[test]
fn no_attempt_gets_past_rules_for_names() {
    let server = name_server();
    let tcp = Protocol::Tcp;
    // Where to, and what is said first; only allowed.test may be reached, and it was looked up.
    let split = hello(Some("evil.test"), false);
    let attempts: Vec<(&str, Vec<u8>)> = vec![
        ("another name by TLS", hello(Some("evil.test"), false)),
        ("a sibling at the same address", hello(Some("sibling.test"), false)),
        ("a name below", hello(Some("x.allowed.test"), false)),
        ("a name above", hello(Some("test"), false)),
        ("a name with a NUL", hello(Some("allowed.test\0.evil.test"), false)),
        ("no name by TLS", hello(None, false)),
        ("a hidden name", hello(Some("allowed.test"), true)),
        ("an address for a name", hello(Some("8.8.4.4"), false)),
        ("a name of one letter more", hello(Some("allowed.testt"), false)),
        ("a record of another version", [&[22, 2][..], &hello(Some("allowed.test"), false)[2..]].concat()),
        ("SSH at the port of TLS", b"SSH-2.0-OpenSSH_9\r\n".to_vec()),
        ("HTTP at the port of TLS", get("allowed.test")),
        ("SOCKS", vec![5, 1, 0]),
        ("half a hello of another name", split[..split.len() - 2].to_vec()),
        ("nothing", vec![]),
    ];
    let http: Vec<(&str, Vec<u8>)> = vec![
        ("another host", get("evil.test")),
        ("a sibling as host", get("sibling.test")),
        ("no host", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
        ("an address as host", get("8.8.4.4")),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: allowed.test\r\nHost: evil.test\r\n\r\n".to_vec()),
        (
            "a host before a bare line end",
            b"GET / HTTP/1.1\nHost: evil.test\r\nHost: allowed.test\r\n\r\n".to_vec(),
        ),
        (
            "a host behind a fold",
            b"GET / HTTP/1.1\r\nX: 1\r\n Host: evil.test\r\nHost: allowed.test\r\n\r\n".to_vec(),
        ),
        (
            "a host before a space",
            b"GET / HTTP/1.1\r\nHost : evil.test\r\nHost: allowed.test\r\n\r\n".to_vec(),
        ),
        (
            "a target with another host",
            b"GET http://evil.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_vec(),
        ),
        ("a tunnel", b"CONNECT evil.test:443 HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_vec()),
        ("HTTP/2 without TLS", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("TLS at the port of HTTP", hello(Some("evil.test"), false)),
        ("a user before the host", get("allowed.test@evil.test")),
        ("a head without an end", vec![b'A'; 20_000]),
    ];
    let mut netd = Netd::start(Preset::Nothing, &["allowed.test"], &[], vec![server]);
    assert_eq!(netd.look_up("allowed.test"), 0);
    let mut pages = 0;
    for (to, attempts) in [(TLS, attempts), (HTTP, http)] {
        for (what, said) in attempts {
            assert_eq!(netd.ask(tcp, to), Reply::Judged { flow: netd.next }, "{what}");
            // In two parts, as a cut in the middle is an attempt as well.
            let mut reply = Reply::More { flow: netd.next };
            for (part, ended) in [(&said[..said.len() / 2], false), (&said[said.len() / 2..], true)] {
                if reply == (Reply::More { flow: netd.next }) {
                    reply = netd.first(part, ended);
                }
            }
            match reply {
                Reply::Refused { refusal: Refusal::Denied, .. } => {}
                // A page that says so, and nothing of the server's.
                Reply::Granted { .. } => {
                    let mut page = String::new();
                    let mut socket = UnixStream::from(netd.link.take_fd().unwrap());
                    socket.set_nonblocking(false).unwrap();
                    socket.read_to_string(&mut page).unwrap();
                    assert!(page.starts_with("HTTP/1.1 403 "), "{what}: {page}");
                    pages += 1;
                }
                other => panic!("{what}: {other:?}"),
            }
            assert_eq!(netd.denied().address, Some("8.8.4.4".parse().unwrap()), "{what}");
        }
    }
    assert!(pages > 0, "no attempt that speaks HTTP was told why it is denied");
    for (_, server) in DIALLED.lock().unwrap().iter().filter(|(to, _)| to.ip().to_string() == "8.8.4.4") {
        server.set_nonblocking(true).unwrap();
        let mut byte = [0];
        let got = (&*server).read(&mut byte);
        assert!(!matches!(got, Ok(1)), "a server has heard something of an attempt");
    }
}

#[test]
fn what_is_for_the_allowed_name_goes_on_with_its_first_bytes() {
    let mut netd = Netd::start(Preset::Nothing, &["allowed.test"], &[], vec![name_server()]);
    assert_eq!(netd.look_up("allowed.test"), 0);
    for (to, said) in
        [("8.8.4.4:443", hello(Some("Allowed.TEST"), false)), ("8.8.4.4:80", get("allowed.test:80"))]
    {
        assert!(matches!(netd.ask(Protocol::Tcp, to), Reply::Judged { .. }));
        let (start, rest) = said.split_at(7);
        assert!(matches!(netd.first(start, false), Reply::More { .. }));
        assert!(matches!(netd.first(rest, false), Reply::Granted { .. }));
        let mut ours = UnixStream::from(netd.link.take_fd().unwrap());
        ours.write_all(b" and more").unwrap();
        // The server's end is the one that hears it.
        let heard = |server: &UnixStream| {
            server.set_nonblocking(true).unwrap();
            let mut bytes = vec![0; 4096];
            (&*server).read(&mut bytes).map(|n| bytes[..n].to_vec()).unwrap_or_default()
        };
        let wanted = [&said[..], b" and more"].concat();
        assert!(DIALLED.lock().unwrap().iter().any(|(_, server)| heard(server) == wanted), "{to}");
    }
    // Other ports are pinned to the address alone.
    assert!(matches!(netd.ask(Protocol::Tcp, "8.8.4.4:22"), Reply::Granted { .. }));
    assert!(netd.link.take_fd().is_some());
    assert!(matches!(netd.ask(Protocol::Tcp, "8.8.4.5:22"), Reply::Refused { .. }));
}

#[test]
fn no_lookup_opens_a_way() {
    let server = name_server();
    // Preset, rules, name, whether it is found; then where to and whether that is let through.
    let rebinding = &["inside.test", "meta.test"][..];
    for (allow, deny, looked_up, code, protocol, to) in [
        (&["allowed.test"][..], &[][..], "c2VjcmV0.evil.test", 3, Protocol::Tcp, "8.8.4.4:443"),
        (&["allowed.test"], &[], "x.allowed.test", 3, Protocol::Tcp, "8.8.4.4:443"),
        (rebinding, &[], "inside.test", 0, Protocol::Tcp, "10.0.0.5:80"),
        (rebinding, &[], "meta.test", 0, Protocol::Tcp, "169.254.169.254:80"),
        (&["allowed.test"], &[], "allowed.test", 0, Protocol::Udp, "8.8.4.4:443"),
        (&["allowed.test:443"], &[], "allowed.test", 0, Protocol::Tcp, "8.8.4.4:22"),
        (&["allowed.test:443/tcp"], &[], "allowed.test", 0, Protocol::Udp, "8.8.4.4:443"),
        (&["allowed.test"], &[], "allowed.test", 0, Protocol::Tcp, "[64:ff9b::a00:5]:80"),
        (&["allowed.test"], &[], "allowed.test", 0, Protocol::Tcp, "10.0.2.2:22"),
        (&["alias.test"], &["evil.test"], "alias.test", 3, Protocol::Tcp, "8.8.8.8:22"),
        (&["alias.test"], &["*.test"], "alias.test", 3, Protocol::Tcp, "8.8.8.8:22"),
    ] {
        let mut netd = Netd::start(Preset::Nothing, allow, deny, vec![server]);
        assert_eq!(netd.look_up(looked_up), code, "{looked_up}");
        let reply = netd.ask(protocol, to);
        let read = to.ends_with(":80") && matches!(reply, Reply::Judged { .. });
        assert!(read || matches!(reply, Reply::Refused { refusal: Refusal::Denied, .. }), "{to}: {reply:?}");
    }
}

#[test]
fn a_domain_of_the_hosts_with_servers_of_its_own_is_asked_there_unless_others_are_named() {
    let (server, nobody) = (name_server(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let unanswered = nobody.local_addr().unwrap();
    let host = || Host {
        servers: vec![unanswered],
        scoped: [("allowed.test".to_owned(), vec![server])].into(),
        ..Host::default()
    };
    let mut netd = Netd::on(host(), Preset::Public, &[], &[], vec![]);
    assert_eq!(netd.look_up("x.allowed.test"), 0);
    nobody.set_nonblocking(true).unwrap();
    assert!(nobody.recv(&mut [0; 512]).is_err(), "the host's other server was asked");
    let mut netd = Netd::on(host(), Preset::Public, &[], &[], vec![server]);
    assert_eq!(netd.look_up("elsewhere.test"), 0);
    let other = Host { scoped: [("test".to_owned(), vec![unanswered])].into(), ..host() };
    let mut netd = Netd::on(other, Preset::Public, &[], &[], vec![server]);
    assert_eq!(netd.look_up("allowed.test"), 0);
}

#[test]
fn a_denied_name_is_denied_by_whatever_way_its_address_was_found() {
    let mut netd = Netd::start(Preset::Public, &[], &["evil.test", "*.evil.test"], vec![]);
    for (to, said) in
        [("9.9.9.9:443", hello(Some("a.evil.test"), false)), ("9.9.9.9:443", hello(Some("EVIL.test"), false))]
    {
        assert!(matches!(netd.ask(Protocol::Tcp, to), Reply::Judged { .. }));
        assert!(matches!(netd.first(&said, false), Reply::Refused { refusal: Refusal::Denied, .. }));
        assert!(netd.denied().rule.is_some());
    }
    // Others are let through, also where the server speaks first.
    assert!(matches!(netd.ask(Protocol::Tcp, "9.9.9.9:443"), Reply::Judged { .. }));
    assert!(matches!(netd.first(&hello(Some("good.test"), true), false), Reply::Granted { .. }));
    assert!(netd.link.take_fd().is_some());
    assert!(matches!(netd.ask(Protocol::Tcp, "9.9.9.9:80"), Reply::Judged { .. }));
    assert!(matches!(receive::<Reply>(&mut netd.link), Reply::Granted { .. }));
}

#[test]
fn another_policy_ends_the_flows_that_it_does_not_allow() {
    let mut netd = Netd::start(Preset::Nothing, &["1.1.1.0/24"], &[], vec![]);
    assert!(matches!(netd.ask(Protocol::Tcp, "1.1.1.1:22"), Reply::Granted { flow: 1 }));
    assert!(matches!(netd.ask(Protocol::Udp, "1.1.1.2:5000"), Reply::Granted { flow: 2 }));
    netd.control.send(&Command::Flows, None).unwrap();
    let Event::Flows(flows) = receive(&mut netd.control) else { panic!("no flows") };
    assert_eq!(flows.len(), 2);
    assert_eq!(receive::<Event>(&mut netd.control), Event::Flows(vec![]));
    netd.control.send(&Command::SetPolicy(policy(Preset::Nothing, &["1.1.1.2"], &[])), None).unwrap();
    assert_eq!(receive::<Reply>(&mut netd.link), Reply::Revoked { flow: 1, why: Refusal::Denied });
    assert!(matches!(netd.ask(Protocol::Tcp, "1.1.1.1:22"), Reply::Refused { refusal: Refusal::Denied, .. }));
    assert!(netd.denied().remedy.contains("1.1.1.1:22"));
    assert!(netd.link.as_fd().try_clone_to_owned().is_ok());
}
