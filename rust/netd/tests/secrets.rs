//! Secrets as the guest, the hosts and their attackers see them: real TLS on both sides, and what came of each attempt.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use supermachine_netd::channel::Channel;
use supermachine_netd::confine;
use supermachine_netd::host::Host;
use supermachine_netd::secrets::{authority, host};
use supermachine_netd::server::Server;
use supermachine_proto::netd::{
    Command, Event, Hidden, Policy, Preset, Protocol, Reply, Request, Secret, Secrets, Start,
};

use common::{PATIENCE, receive};

const NAME: &str = "host.docker.internal";
const HOLDER: &str = "PLACEHOLDER_1";
const VALUE: &str = "the-value-itself";
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));

/// The servers' ends of what was dialled, by port.
static DIALLED: Mutex<Option<HashMap<u16, UnixStream>>> = Mutex::new(None);

fn dial(_: Protocol, to: SocketAddr) -> Result<(OwnedFd, bool), rustix::io::Errno> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    DIALLED.lock().unwrap().get_or_insert_default().insert(to.port(), theirs);
    Ok((ours.into(), true))
}

fn dialled(port: u16) -> UnixStream {
    DIALLED.lock().unwrap().as_mut().unwrap().remove(&port).unwrap()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// An authority that the host trusts, or that it does not.
struct Roots {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Roots {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test roots");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn server(&self, name: &str, until: i32, alpn: &[&str]) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// Reads until this has come, or the end.
fn read_to(stream: &mut impl Read, end: &[u8]) -> Vec<u8> {
    let (mut found, mut bytes) = (Vec::new(), [0; 4096]);
    while !found.windows(end.len().max(1)).any(|window| window == end) || end.is_empty() {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => found.extend(&bytes[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    found
}

type Tls<C> = StreamOwned<C, UnixStream>;

/// A host that hears until `end`, says `answer`, hears the rest; what it has heard.
fn serve(
    config: Arc<ServerConfig>,
    stream: UnixStream,
    end: &'static str,
    answer: Vec<u8>,
) -> JoinHandle<String> {
    thread::spawn(move || {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut tls: Tls<ServerConnection> = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
        let mut heard = read_to(&mut tls, end.as_bytes());
        let _ = tls.write_all(&answer);
        let _ = tls.flush();
        tls.conn.send_close_notify();
        let _ = tls.flush();
        heard.extend(read_to(&mut tls, b""));
        String::from_utf8(heard).unwrap()
    })
}

/// A policy process in a thread, its API, its worker, and a guest that trusts the machine's authority.
struct Netd {
    control: Channel,
    link: Channel,
    trusted: Arc<ClientConfig>,
    next: u64,
}

impl Netd {
    fn start(roots: &Roots, body: bool) -> Self {
        let hosts = vec![format!("{NAME}:1-65535")];
        let rules: Vec<_> = hosts.iter().map(|text| host(text).unwrap()).collect();
        let (authority, pem) = authority::create(&rules).unwrap();
        let placeholder = HOLDER.to_owned();
        let secret = Secret { placeholder, value: Hidden(VALUE.into()), hosts, query: body, body };
        let (control, theirs) = UnixStream::pair().unwrap();
        let (link, worker) = UnixStream::pair().unwrap();
        let start = Start {
            version: supermachine_proto::VERSION,
            policy: allowing(&["host"]),
            dns: Vec::new(),
            guest: std::net::Ipv4Addr::new(10, 0, 2, 15),
            guest_v6: None,
            gateway: vec![GATEWAY],
            audit: false,
            secrets: Some(Secrets { authority, secrets: vec![secret] }),
        };
        let host = Host { roots: vec![roots.certificate.to_vec()], ..Host::default() };
        thread::spawn(move || {
            confine::confine_thread().unwrap();
            let (control, link) = (Channel::new(theirs).unwrap(), Channel::new(link).unwrap());
            Server::new(control, link, start, host).unwrap().dialing(dial).run()
        });
        let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let mut store = RootCertStore::empty();
        store.add(CertificateDer::from(BASE64_STANDARD.decode(text).unwrap())).unwrap();
        Self {
            control: Channel::new(control).unwrap(),
            link: Channel::new(worker).unwrap(),
            trusted: client(store, &[]),
            next: 0,
        }
    }

    fn reply(&mut self) -> Reply {
        receive(&mut self.link)
    }

    /// The guest connects and says this first, in so many pieces.
    fn connect(&mut self, port: u16, said: &[u8], piece: usize) -> Reply {
        self.next += 1;
        let (flow, destination) = (self.next, SocketAddr::new(GATEWAY, port));
        let source = "10.0.2.15:40000".parse().unwrap();
        let open = Request::Open { flow, protocol: Protocol::Tcp, source, destination };
        self.link.send(&open, None).unwrap();
        let mut reply = self.reply();
        assert_eq!(reply, Reply::Judged { flow });
        for part in said.chunks(piece) {
            let first = Request::First { flow, bytes: part.to_vec().into(), ended: false };
            self.link.send(&first, None).unwrap();
            reply = self.reply();
        }
        reply
    }

    fn tls(&mut self, port: u16, name: &'static str, piece: usize) -> Tls<ClientConnection> {
        let mut tls =
            ClientConnection::new(self.trusted.clone(), ServerName::try_from(name).unwrap()).unwrap();
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).unwrap();
        let reply = self.connect(port, &hello, piece);
        assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
        StreamOwned::new(tls, self.granted())
    }

    fn granted(&mut self) -> UnixStream {
        let stream = UnixStream::from(self.link.take_fd().unwrap());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn reason(&mut self) -> String {
        match receive(&mut self.control) {
            Event::Denied(denial) => denial.reason,
            other => panic!("{other:?}"),
        }
    }
}

fn allowing(rules: &[&str]) -> Policy {
    Policy {
        preset: Preset::Nothing,
        allow: rules.iter().map(ToString::to_string).collect(),
        deny: Vec::new(),
    }
}

fn client(store: RootCertStore, alpn: &[&str]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// What the host has heard and what the guest has, of requests that are written in such pieces.
fn exchange(
    netd: &mut Netd,
    roots: &Roots,
    port: u16,
    asked: &str,
    piece: usize,
    answer: &str,
) -> (String, String) {
    let mut tls = netd.tls(port, NAME, 7);
    let server = serve(roots.server(NAME, 2049, &[]), dialled(port), "\r\n\r\n", answer.into());
    for part in asked.as_bytes().chunks(piece) {
        tls.write_all(part).unwrap();
        tls.flush().unwrap();
    }
    let got = String::from_utf8(read_to(&mut tls, b"")).unwrap();
    drop(tls);
    (server.join().unwrap(), got)
}

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

#[test]
fn a_value_is_in_header_fields_that_the_host_gets_and_nowhere_else() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    let basic = |text: &str| BASE64_STANDARD.encode(text);
    let held = basic(&format!("me:{HOLDER}"));
    let asked = format!(
        "POST /{HOLDER}?a={HOLDER} HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Bearer {HOLDER}\r\nX-Key: {HOLDER}\r\n\
         Authorization: Basic {held}\r\nAccept-Encoding: gzip\r\nContent-Length: {}\r\n\r\n{HOLDER}",
        HOLDER.len()
    );
    for (port, piece) in [(1001, 1), (1002, 5), (1003, 4096)] {
        let (heard, got) = exchange(&mut netd, &roots, port, &asked, piece, ANSWER);
        let (head, body) = heard.split_once("\r\n\r\n").unwrap();
        assert_eq!(head.lines().next().unwrap(), format!("POST /{HOLDER}?a={HOLDER} HTTP/1.1"));
        for line in [
            format!("Authorization: Bearer {VALUE}"),
            format!("X-Key: {VALUE}"),
            format!("Authorization: Basic {}", basic(&format!("me:{VALUE}"))),
            "Accept-Encoding: identity".into(),
        ] {
            assert!(head.lines().any(|found| found == line), "{line}: {head}");
        }
        assert_eq!((body, head.contains("gzip")), (HOLDER, false));
        assert_eq!(got, ANSWER);
    }
}

#[test]
fn a_value_is_in_queries_and_bodies_where_that_was_asked_for() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, true);
    let body = format!("8\r\n{}\r\n", &HOLDER[..8]);
    let rest = &HOLDER[8..];
    let asked = format!(
        "POST /?a={HOLDER} HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n{body}{:x}\r\n{rest}\r\n0\r\n\r\n",
        rest.len()
    );
    let (heard, got) = exchange(&mut netd, &roots, 1101, &asked, 3, ANSWER);
    assert!(heard.starts_with(&format!("POST /?a={VALUE} HTTP/1.1\r\n")), "{heard}");
    assert!(heard.ends_with(&format!("Content-Length: {}\r\n\r\n{VALUE}", VALUE.len())), "{heard}");
    assert_eq!(got, format!("HTTP/1.1 100 Continue\r\n\r\n{ANSWER}"));
}

#[test]
fn what_a_host_says_of_a_value_does_not_reach_the_guest() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    let encoded = BASE64_STANDARD.encode(format!("me:{VALUE}"));
    let asked = format!(
        "GET / HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Basic {}\r\n\r\n",
        BASE64_STANDARD.encode(format!("me:{HOLDER}"))
    );
    let stars = |text: &str| "*".repeat(text.len());
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let answer = format!(
        "HTTP/1.1 302 {VALUE}\r\nLocation: https://evil.test/?{VALUE}\r\nTransfer-Encoding: chunked\r\n\r\n{}{}{}0\r\nX: {VALUE}\r\n\r\n",
        chunk(&format!("a {}", &VALUE[..5])),
        chunk(&VALUE[5..]),
        chunk(&encoded),
    );
    // The connection goes on, so the guest says that it is the last request.
    let asked = asked.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let (heard, got) = exchange(&mut netd, &roots, 1201, &asked, 4096, &answer);
    assert!(heard.contains(&encoded));
    assert!(!got.contains(VALUE) && !got.contains(&encoded), "{got}");
    assert!(
        got.starts_with(&format!("HTTP/1.1 302 {HOLDER}\r\nLocation: https://evil.test/?{HOLDER}\r\n")),
        "{got}"
    );
    let body: String = got.split("\r\n").filter(|line| line.contains('*')).collect();
    assert_eq!(body.replace("a ", ""), stars(VALUE) + &stars(&encoded));
}

#[test]
fn requests_that_are_not_plainly_for_the_host_do_not_reach_it() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    let key = format!("X-Key: {HOLDER}");
    for (at, (asked, status)) in [
        (format!("GET / HTTP/1.1\r\nHost: evil.test\r\n{key}\r\n\r\n"), 421),
        (format!("GET https://evil.test/ HTTP/1.1\r\nHost: {NAME}\r\n{key}\r\n\r\n"), 421),
        (format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nHost: evil.test\r\n{key}\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\n{key}\r\n\r\n"), 400),
        (format!("POST / HTTP/1.1\r\nHost: {NAME}\r\n{key}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("POST / HTTP/1.1\r\nHost: {NAME}\r\n{key}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), 400),
        (format!("TRACE / HTTP/1.1\r\nHost: {NAME}\r\n{key}\r\n\r\n"), 405),
        (format!("CONNECT evil.test:443 HTTP/1.1\r\nHost: {NAME}\r\n{key}\r\n\r\n"), 405),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".into(), 400),
        (format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {}\r\n\r\n", "a".repeat(70_000)), 431),
        (format!("\x16\x03\x01 {HOLDER}\r\n\r\n"), 400),
    ]
    .into_iter()
    .enumerate()
    {
        let (heard, got) = exchange(&mut netd, &roots, 1301 + at as u16, &asked, 70_000, "");
        assert_eq!(heard, "", "{asked:.200}");
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{asked:.200}: {got}");
        assert!(!netd.reason().contains(HOLDER));
    }
}

#[test]
fn hosts_that_are_not_verified_hear_no_request() {
    let (roots, others) = (Roots::new(), Roots::new());
    let mut netd = Netd::start(&roots, false);
    for (port, server, why) in [
        (1401, roots.server(NAME, 2020, &[]), "expired"),
        // Whose issuer has the name of one that is trusted.
        (1402, others.server(NAME, 2049, &[]), "BadSignature"),
        (1403, roots.server("evil.test", 2049, &[]), "not valid for name"),
        (1404, roots.server(NAME, 2049, &["h2"]), "TLS with"),
    ] {
        let mut tls = netd.tls(port, NAME, 4096);
        let server = serve(server, dialled(port), "\r\n\r\n", ANSWER.into());
        write!(tls, "GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Key: {HOLDER}\r\n\r\n").unwrap();
        let got = String::from_utf8(read_to(&mut tls, b"")).unwrap();
        assert!(got.starts_with("HTTP/1.1 502 ") && !got.contains(VALUE), "{got}");
        drop(tls);
        assert_eq!(server.join().unwrap(), "", "{port}");
        let reason = netd.reason();
        assert!(reason.contains(why), "{why}: {reason}");
    }
    // One that is no TLS at all.
    let mut tls = netd.tls(1405, NAME, 4096);
    let mut plain = dialled(1405);
    plain.write_all(ANSWER.as_bytes()).unwrap();
    write!(tls, "GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Key: {HOLDER}\r\n\r\n").unwrap();
    let got = String::from_utf8(read_to(&mut tls, b"")).unwrap();
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
    drop(tls);
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!String::from_utf8_lossy(&read_to(&mut plain, b"")).contains("X-Key"));
}

#[test]
fn connections_for_others_are_not_opened() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    // Another name: the server, and no authority of the machine's, answers the hello.
    let mut tls = netd.tls(1501, "evil.test", 4096);
    let mut raw = dialled(1501);
    let mut first = [0; 3];
    raw.read_exact(&mut first).unwrap();
    assert_eq!(first[..2], [22, 3]);
    drop(raw);
    assert!(tls.read(&mut [0]).map_or(true, |n| n == 0));
    // Plain HTTP, and an address in place of a name.
    let plain = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Key: {HOLDER}\r\n\r\n");
    assert!(matches!(netd.connect(1502, plain.as_bytes(), 4096), Reply::Granted { .. }));
    netd.granted();
    let mut heard = vec![0; plain.len()];
    dialled(1502).read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), plain);
    let mut literal =
        ClientConnection::new(netd.trusted.clone(), ServerName::try_from("10.0.2.2").unwrap()).unwrap();
    let mut hello = Vec::new();
    literal.write_tls(&mut hello).unwrap();
    assert!(matches!(netd.connect(1503, &hello, 4096), Reply::Granted { .. }));
    netd.granted();
    let mut heard = vec![0; hello.len()];
    dialled(1503).read_exact(&mut heard).unwrap();
    assert_eq!(heard, hello);
}

#[test]
fn nothing_but_http_1_1_is_offered() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    for (port, alpn, agreed) in
        [(1601, &["h2"][..], None), (1602, &["h2", "http/1.1"], Some(&b"http/1.1"[..]))]
    {
        let mut config = (*netd.trusted).clone();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        netd.trusted = Arc::new(config);
        let mut tls = netd.tls(port, NAME, 4096);
        let _host = dialled(port);
        let greeted = tls.conn.complete_io(&mut tls.sock);
        assert_eq!(greeted.is_ok(), agreed.is_some(), "{greeted:?}");
        assert_eq!(tls.conn.alpn_protocol(), agreed);
    }
}

#[test]
fn requests_go_one_after_another_and_each_is_judged() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    let good = format!("GET /1 HTTP/1.1\r\nHost: {NAME}\r\nX-Key: {HOLDER}\r\n\r\n");
    let asked = format!("{good}GET /2 HTTP/1.1\r\nHost: evil.test\r\nX-Key: {HOLDER}\r\n\r\n");
    let mut tls = netd.tls(1701, NAME, 4096);
    let mut stream =
        StreamOwned::new(ServerConnection::new(roots.server(NAME, 2049, &[])).unwrap(), dialled(1701));
    tls.write_all(asked.as_bytes()).unwrap();
    let host = thread::spawn(move || {
        let first = read_to(&mut stream, b"\r\n\r\n");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        stream.flush().unwrap();
        (String::from_utf8(first).unwrap(), read_to(&mut stream, b""))
    });
    let got = String::from_utf8(read_to(&mut tls, b"")).unwrap();
    drop(tls);
    assert!(got.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 421 "), "{got}");
    let (first, rest) = host.join().unwrap();
    assert!(first.starts_with("GET /1 ") && first.contains(VALUE) && rest.is_empty());
}

#[test]
fn a_websocket_goes_both_ways_and_other_protocols_do_not() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    let upgrade = |to: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: {to}\r\nX-Key: {HOLDER}\r\n\r\n"
        )
    };
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut tls = netd.tls(1801, NAME, 4096);
    let mut host =
        StreamOwned::new(ServerConnection::new(roots.server(NAME, 2049, &[])).unwrap(), dialled(1801));
    tls.write_all(upgrade("websocket").as_bytes()).unwrap();
    let host = thread::spawn(move || {
        let head = read_to(&mut host, b"\r\n\r\n");
        write!(host, "{switch}").unwrap();
        let frames = read_to(&mut host, b"end");
        write!(host, "heard {VALUE} end").unwrap();
        host.flush().unwrap();
        (String::from_utf8(head).unwrap(), String::from_utf8(frames).unwrap())
    });
    assert_eq!(String::from_utf8(read_to(&mut tls, b"\r\n\r\n")).unwrap(), switch);
    write!(tls, "{HOLDER} end").unwrap();
    assert_eq!(
        String::from_utf8(read_to(&mut tls, b"end")).unwrap(),
        format!("heard {} end", "*".repeat(VALUE.len()))
    );
    let (head, frames) = host.join().unwrap();
    assert!(head.contains(VALUE) && head.contains("Upgrade: websocket"));
    assert_eq!(frames, format!("{HOLDER} end"));
    let (heard, got) = exchange(&mut netd, &roots, 1802, &upgrade("h2c"), 4096, switch);
    assert!(!heard.contains("h2c") && got.starts_with("HTTP/1.1 502 "), "{heard} {got}");
}

#[test]
fn a_policy_that_no_longer_allows_it_ends_what_is_open() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    let mut tls = netd.tls(1901, NAME, 4096);
    let host = serve(roots.server(NAME, 2049, &[]), dialled(1901), "\r\n\r\n", Vec::new());
    tls.conn.complete_io(&mut tls.sock).unwrap();
    netd.control.send(&Command::SetPolicy(allowing(&[])), None).unwrap();
    assert!(matches!(netd.reply(), Reply::Revoked { .. }));
    assert!(tls.read(&mut [0]).map_or(true, |n| n == 0));
    assert_eq!(host.join().unwrap(), "");
}

#[test]
fn many_bytes_pass_both_ways_and_memory_stays_small() {
    let roots = Roots::new();
    let mut netd = Netd::start(&roots, false);
    let mut tls = netd.tls(2001, NAME, 4096);
    let mut host =
        StreamOwned::new(ServerConnection::new(roots.server(NAME, 2049, &[])).unwrap(), dialled(2001));
    const BYTES: usize = 8 << 20;
    let host = thread::spawn(move || {
        let mut heard = read_to(&mut host, b"\r\n\r\n");
        let head = heard.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let mut rest = vec![0; BYTES - (heard.len() - head)];
        host.read_exact(&mut rest).unwrap();
        heard.drain(..head);
        heard.extend(rest);
        write!(host, "HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\nConnection: close\r\n\r\n").unwrap();
        host.write_all(&heard).unwrap();
        host.conn.send_close_notify();
        host.flush().unwrap();
        let _ = read_to(&mut host, b"");
    });
    let data: Vec<u8> = (0..BYTES).map(|at| ((at * at) >> 7) as u8).collect();
    write!(tls, "POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {BYTES}\r\n\r\n").unwrap();
    tls.write_all(&data).unwrap();
    tls.flush().unwrap();
    let got = read_to(&mut tls, b"");
    assert!(got.ends_with(&data), "{} bytes", got.len());
    drop(tls);
    host.join().unwrap();
}
