//! Connections between a fleet's clients and its hosts: TLS 1.3, with certificates of both (RFC 8446, 4.3.2).
//!
//! A host has an authority of its own, whose key is gone when it has vouched for two: for the host, and for whoever has
//! the credentials that the engine of distribution carries to clients. A certificate of one is none of the other's (RFC
//! 5280, 4.2.1.12). The rest of the package reads and writes a local socket; a thread joins that to the encrypted one.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyConnectionResetError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use supermachine_netd::secrets::{End, Peer, authority::provider};
use supermachine_support::lock;

use crate::descriptors::{self, Unshared};
use crate::sys::{self, Interest};

/// What every host is called: which one it is, its authority says.
const NAME: &str = "host.supermachine.internal";
/// Configurations that are kept, so that a client's next connection resumes.
const CONFIGURATIONS: usize = 256;
/// How long the other end may take to read what is left when this one has closed.
const LAST_WORDS: Duration = Duration::from_secs(5);
const STACK: usize = 512 * 1024;

#[derive(Clone)]
enum Side {
    Client(Arc<ClientConfig>),
    Host(Arc<ServerConfig>),
}

static SIDES: Mutex<Option<HashMap<Vec<u8>, Side>>> = Mutex::new(None);

/// New credentials of a host, and those of its clients. Both are secret.
#[pyfunction]
pub(crate) fn fleet_credentials() -> PyResult<(Vec<u8>, Vec<u8>)> {
    create().map_err(|error| PyRuntimeError::new_err(format!("a certificate cannot be made: {error}")))
}

fn create() -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = dated("supermachine fleet");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    let vouched = |host: bool| -> Result<Vec<u8>, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = dated(if host { "host" } else { "client" });
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        if host {
            params.subject_alt_names = vec![rcgen::SanType::DnsName(NAME.try_into()?)];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        } else {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
        let certificate = params.signed_by(&key, &issuer)?;
        let mut all = vec![u8::from(host)];
        for part in [authority.der().as_ref(), certificate.der().as_ref(), &key.serialize_der()] {
            all.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            all.extend(part);
        }
        Ok(all)
    };
    Ok((vouched(true)?, vouched(false)?))
}

fn dated(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Clocks of nodes may be wrong, and the keys are gone with the host.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Joins a connected TCP socket to a new local one whose bytes are encrypted there; gives the descriptor of that. What
/// is given stays the caller's, to be closed. Raises ValueError for an end that is not who it should be,
/// ConnectionResetError for one that has gone, and TimeoutError for one that has not said who it is within `timeout`
/// seconds.
#[pyfunction]
pub(crate) fn secured(py: Python<'_>, socket: RawFd, credentials: &[u8], timeout: f64) -> PyResult<RawFd> {
    let side = side(credentials)
        .ok_or_else(|| PyValueError::new_err("these bytes are no credentials of a fleet's"))?;
    let tls = match side {
        Side::Client(config) => ServerName::try_from(NAME)
            .map_err(|error| error.to_string())
            .and_then(|name| ClientConnection::new(config, name).map_err(|error| error.to_string()))
            .map(Connection::from),
        Side::Host(config) => {
            ServerConnection::new(config).map(Connection::from).map_err(|error| error.to_string())
        }
    };
    let tls = tls.map_err(PyRuntimeError::new_err)?;
    let deadline = sys::deadline(Some(timeout)).unwrap_or_else(Instant::now);
    let socket: Unshared<OwnedFd> = Unshared::new(|| sys::duplicate(socket))?;
    sys::set_nonblocking(&*socket)?;
    let (ours, theirs) = descriptors::pair()?;
    ours.set_nonblocking(true)?;
    let (tell, told) = sync_channel(1);
    thread::Builder::new().name("supermachine-tls".into()).stack_size(STACK).spawn(move || {
        let (socket, watched) = socket.watched();
        let mut peer = Peer::new(socket, tls, &[]);
        let greeting = greet(&mut peer, deadline).unwrap_or(Greeting::Gone);
        let done = matches!(greeting, Greeting::Done);
        // Who has asked may have given up; then the other end of the pair is closed, too.
        let _ = tell.send(greeting);
        if done {
            let _ = relay(&mut peer, &ours);
        }
        drop(watched);
    })?;
    let outcome = sys::wait_for(py, None, move |slice| match told.recv_timeout(slice) {
        Ok(outcome) => Some(outcome),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Greeting::Gone),
    })?;
    match outcome {
        Some(Greeting::Done) => Ok(theirs.release().into_raw_fd()),
        Some(Greeting::Wrong(why)) => Err(PyValueError::new_err(why)),
        Some(Greeting::Late) => Err(PyTimeoutError::new_err("the other end has not said who it is")),
        Some(Greeting::Gone) | None => {
            Err(PyConnectionResetError::new_err("the other end has closed the connection"))
        }
    }
}

enum Greeting {
    Done,
    Wrong(String),
    Late,
    Gone,
}

/// Until each end knows who the other is.
fn greet(peer: &mut Peer, deadline: Instant) -> io::Result<Greeting> {
    loop {
        peer.flush();
        match &peer.end {
            Some(End::Wrong(error)) => {
                let why = error.to_string();
                // The alert says so to the other end.
                peer.flush();
                return Ok(Greeting::Wrong(why));
            }
            Some(End::Cut | End::Said) => return Ok(Greeting::Gone),
            None if !peer.is_greeting() => return Ok(Greeting::Done),
            None => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Greeting::Late);
        }
        sys::poll([Interest::when(true, &peer.socket(), events(peer))], Some(left))?;
        peer.receive();
    }
}

#[allow(
    clippy::cast_possible_wrap,
    clippy::unnecessary_cast,
    reason = "flags of poll(2) are c_short, which rustix has as u16 on Linux"
)]
fn events(peer: &Peer) -> libc::c_short {
    peer.wants().bits() as libc::c_short
}

/// Moves bytes both ways until both ends have said that nothing more comes, or one is gone.
fn relay(peer: &mut Peer, local: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    // What this end has to say has ended; the other end's has, and was delivered; this end is closed.
    let (mut ended, mut delivered) = (false, false);
    let mut closed: Option<Instant> = None;
    loop {
        peer.flush();
        while !peer.input.is_empty() && closed.is_none() {
            match (&mut &*local).write(&peer.input) {
                Ok(count) => drop(peer.input.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => closed = Some(Instant::now()),
            }
        }
        match peer.end {
            Some(End::Said) if peer.input.is_empty() && !delivered => {
                let _ = local.shutdown(Shutdown::Write);
                delivered = true;
            }
            // A connection that breaks is no end of a stream: this end sees both directions end.
            Some(End::Cut | End::Wrong(_)) if peer.input.is_empty() || closed.is_some() => return Ok(()),
            // Nor does it take more, after it has said that nothing comes from it.
            _ if peer.is_deaf() && (peer.input.is_empty() || closed.is_some()) => return Ok(()),
            _ => {}
        }
        if closed.is_some() {
            peer.input.clear();
        }
        if ended && peer.is_flushed() && (delivered || closed.is_some()) {
            return Ok(());
        }
        let left = closed.map(|since| (since + LAST_WORDS).saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        let reads = !ended && peer.is_flushed();
        let mut of_local = if reads { libc::POLLIN } else { 0 };
        if !peer.input.is_empty() {
            of_local |= libc::POLLOUT;
        }
        let of_peer = events(peer);
        // Its hanging up comes unasked, so a local end that is closed is not looked at unless there is something to
        // read.
        let looks = closed.is_none() || reads;
        let interests =
            [Interest::when(of_peer != 0, &peer.socket(), of_peer), Interest::when(looks, local, of_local)];
        let [_, of_local] = sys::poll(interests, left)?;
        peer.receive();
        if of_local & (libc::POLLHUP | libc::POLLERR) != 0 && closed.is_none() {
            closed = Some(Instant::now());
        }
        if reads && of_local != 0 {
            match (&mut &*local).read(&mut buffer) {
                Ok(0) => {
                    ended = true;
                    peer.finish();
                }
                Ok(count) => peer.send(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => {
                    ended = true;
                    closed = closed.or(Some(Instant::now()));
                    peer.finish();
                }
            }
        }
    }
}

/// What a connection is made with; kept, so that the next one resumes the session of the one before.
fn side(credentials: &[u8]) -> Option<Side> {
    let mut sides = lock(&SIDES);
    let sides = sides.get_or_insert_with(HashMap::new);
    if let Some(side) = sides.get(credentials) {
        return Some(side.clone());
    }
    let side = configured(credentials)?;
    if sides.len() >= CONFIGURATIONS {
        sides.clear();
    }
    sides.insert(credentials.to_vec(), side.clone());
    Some(side)
}

fn configured(credentials: &[u8]) -> Option<Side> {
    let (&host, mut rest) = credentials.split_first()?;
    let mut part = || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (part, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(part.to_vec())
    };
    let (authority, certificate, key) = (part()?, part()?, part()?);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority)).ok()?;
    let certificates = vec![CertificateDer::from(certificate)];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let versions = &[&rustls::version::TLS13];
    match host {
        0 => {
            let config = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(versions)
                .ok()?
                .with_root_certificates(roots)
                .with_client_auth_cert(certificates, key)
                .ok()?;
            Some(Side::Client(Arc::new(config)))
        }
        1 => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()?;
            let config = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(versions)
                .ok()?
                .with_client_cert_verifier(verifier)
                .with_single_cert(certificates, key)
                .ok()?;
            Some(Side::Host(Arc::new(config)))
        }
        _ => None,
    }
}
