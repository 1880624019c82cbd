//! The certificate authority of one machine: made by who starts it, after any snapshot was taken, and known to no
//! guest.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SerialNumber,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use supermachine_proto::netd::Hidden;
use zeroize::Zeroizing;

use super::error::Error;
use crate::rules::{Rule, Target};

/// Names whose certificates are kept.
const NAMES: usize = 64;

/// The key of a new authority, and its certificate in PEM. It can vouch for names that the rules name, and for no
/// other.
pub fn create(hosts: &[Rule]) -> Result<(Hidden, String), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Certificate)?;
    let mut authority = authority(&key);
    let permitted_subtrees = hosts.iter().filter_map(|rule| match &rule.target {
        Target::Name(name) | Target::Below(name) => Some(GeneralSubtree::DnsName(name.clone())),
        _ => None,
    });
    authority.name_constraints = Some(NameConstraints {
        permitted_subtrees: permitted_subtrees.collect(),
        excluded_subtrees: Vec::new(),
    });
    let certificate = authority.self_signed(&key).map_err(Error::Certificate)?;
    let pem = pem(certificate.der());
    Ok((Hidden(key.serialize_der()), pem))
}

fn dated() -> CertificateParams {
    let mut params = CertificateParams::default();
    // Guests' clocks may be wrong, and the authority is gone with its machine.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn authority(key: &KeyPair) -> CertificateParams {
    let mut params = dated();
    // As every key is another, so is each name: a certificate that a guest has from before is not taken for this one.
    let id: String = key.public_key_raw().iter().rev().take(8).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = named(&format!("supermachine {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Issues certificates for the names that guests ask for.
pub struct Issuing {
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
    configs: HashMap<String, Arc<ServerConfig>>,
}

impl Issuing {
    /// Issues by the key of an authority: PKCS #8, in DER, for ECDSA on P-256.
    pub fn new(of: &Hidden) -> Result<Self, Error> {
        let der = PrivatePkcs8KeyDer::from(&of.0[..]);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(Error::Certificate)?;
        let issuer = Issuer::new(authority(&key), key);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Certificate)?;
        Ok(Self { issuer, key, configs: HashMap::new() })
    }

    /// What a server of this name is configured with.
    pub fn config(&mut self, name: &str) -> Result<Arc<ServerConfig>, Error> {
        if let Some(config) = self.configs.get(name) {
            return Ok(config.clone());
        }
        let mut params = dated();
        params.distinguished_name = named("supermachine");
        params.subject_alt_names =
            vec![rcgen::SanType::DnsName(name.try_into().map_err(Error::Certificate)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from(self.configs.len() as u64 + 1));
        let certificate = params.signed_by(&self.key, &self.issuer).map_err(Error::Certificate)?;
        let key = Zeroizing::new(self.key.serialize_der());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .map_err(Error::Tls)?;
        config.alpn_protocols = vec![HTTP_1_1.into()];
        let config = Arc::new(config);
        if self.configs.len() >= NAMES {
            self.configs.clear();
        }
        self.configs.insert(name.into(), config.clone());
        Ok(config)
    }
}

/// The one protocol that is spoken (RFC 7301, 6): in others nothing would be replaced.
pub const HTTP_1_1: &[u8] = b"http/1.1";

/// What TLS is done with on both sides.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
