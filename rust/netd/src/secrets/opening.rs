//! Which connections are opened, and the threads that they run in.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use supermachine_proto::netd::Secrets;

use super::authority::{HTTP_1_1, provider};
use super::connection::{Opened, serve};
use super::error::Error;
use super::values::Values;

/// Connections that are open at once.
const MOST: usize = 256;
const STACK: usize = 256 * 1024;
/// Complaints that wait to be told; more are not.
const COMPLAINTS: usize = 256;

/// Something that was not passed on.
pub struct Complaint {
    /// Whom it was for.
    pub name: String,
    /// Where it was to go.
    pub address: IpAddr,
    /// Of the host.
    pub port: u16,
    /// Why not, for people.
    pub reason: String,
}

/// Opens the connections to the hosts of secrets.
pub struct Opening {
    values: Values,
    client: Arc<ClientConfig>,
    /// What ends the connection of a flow.
    bells: HashMap<u64, UnixStream>,
    /// Held by each thread.
    alive: Arc<()>,
    complaints: Receiver<Complaint>,
    complain: SyncSender<Complaint>,
    /// A byte comes with each complaint.
    told: UnixStream,
    tells: Arc<UnixStream>,
}

impl Opening {
    /// `roots` are the certificates, in DER, of the authorities that hosts are verified by.
    pub fn new(secrets: Secrets, roots: &[Vec<u8>]) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().map(|der| CertificateDer::from(&der[..])));
        if store.is_empty() {
            return Err(Error::NoRoots);
        }
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_root_certificates(store)
            .with_no_client_auth();
        client.alpn_protocols = vec![HTTP_1_1.into()];
        // Each connection verifies its host.
        client.resumption = Resumption::disabled();
        let (told, tells) = UnixStream::pair()?;
        told.set_nonblocking(true)?;
        tells.set_nonblocking(true)?;
        let (complain, complaints) = sync_channel(COMPLAINTS);
        Ok(Self {
            values: Values::read(secrets)?,
            client: Arc::new(client),
            bells: HashMap::new(),
            alive: Arc::new(()),
            complaints,
            complain,
            told,
            tells: Arc::new(tells),
        })
    }

    /// Readable when there are complaints.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }

    /// Those that have come since the last call.
    pub fn complaints(&mut self) -> Vec<Complaint> {
        let mut bytes = [0; 256];
        while matches!(self.told.read(&mut bytes), Ok(1..)) {}
        self.complaints.try_iter().collect()
    }

    /// Whether a connection to this port of a host with one of these names may be one that is opened.
    pub fn concerns<'a>(&self, mut names: impl Iterator<Item = &'a str>, port: u16) -> bool {
        names.any(|name| self.values.concern(name, port))
    }

    /// Opens the connection that is for `name`, whose hello is what the guest has `said`; the guest's end of it.
    pub fn open(
        &mut self,
        flow: u64,
        host: OwnedFd,
        said: Vec<u8>,
        name: &str,
        address: IpAddr,
        port: u16,
    ) -> Result<OwnedFd, Error> {
        if Arc::strong_count(&self.alive) > MOST {
            return Err(io::Error::other("too many connections to hosts of secrets are open").into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let (bell, rings) = UnixStream::pair()?;
        let opened = Opened {
            guest: ours.into(),
            host,
            said,
            name: name.into(),
            port,
            server: self.values.issuing.config(name)?,
            client: self.client.clone(),
            replacing: self.values.of(name, port),
            bell: rings,
        };
        let (alive, complain, tells) = (self.alive.clone(), self.complain.clone(), self.tells.clone());
        let name = name.to_owned();
        let complain = Box::new(move |reason| {
            if complain.try_send(Complaint { name: name.clone(), address, port, reason }).is_ok() {
                let _ = (&*tells).write(&[0]);
            }
        });
        thread::Builder::new().stack_size(STACK).spawn(move || {
            serve(opened, complain);
            drop(alive);
        })?;
        self.bells.insert(flow, bell);
        Ok(theirs.into())
    }

    /// A flow has ended; what the guest has said still reaches the host.
    pub fn forget(&mut self, flow: u64) {
        self.bells.remove(&flow);
    }

    /// A flow ends now.
    pub fn end(&mut self, flow: u64) {
        if let Some(mut bell) = self.bells.remove(&flow) {
            let _ = bell.write(&[0]);
        }
    }
}
