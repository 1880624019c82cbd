//! Ed25519 signatures (RFC 8032) of what is pushed to registries.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The public key, 32 bytes, of a secret one, which is any 32 bytes of good randomness.
#[pyfunction]
pub(crate) fn public_key(secret: [u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(&secret).verifying_key().to_bytes()
}

/// The signature, 64 bytes, of a message.
#[pyfunction]
pub(crate) fn sign(secret: [u8; 32], message: &[u8]) -> [u8; 64] {
    SigningKey::from_bytes(&secret).sign(message).to_bytes()
}

/// Whether the owner of the public key has signed this message. Raises ValueError for what is no key.
#[pyfunction]
pub(crate) fn verify_signature(public: [u8; 32], message: &[u8], signature: &[u8]) -> PyResult<bool> {
    let key = VerifyingKey::from_bytes(&public)
        .ok()
        // A key of small order has signatures that hold for every message.
        .filter(|key| !key.is_weak())
        .ok_or_else(|| PyValueError::new_err("these 32 bytes are no public key"))?;
    let signature = Signature::from_slice(signature);
    Ok(signature.is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()))
}
