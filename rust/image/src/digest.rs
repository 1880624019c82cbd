//! OCI content digests (image-spec, descriptor.md): `sha256:` and `sha512:`.

use sha2::{Digest as _, Sha256, Sha512};

use crate::Error;

pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// The hash that `digest` was made with; SHA-256 when there is nothing to compare with.
    pub(crate) fn for_digest(digest: Option<&str>) -> Result<Self, Error> {
        let Some(digest) = digest else { return Ok(Self::Sha256(Sha256::new())) };
        let bad = || Error::DigestFormat { digest: digest.chars().take(200).collect() };
        let (algorithm, hex) = digest.split_once(':').ok_or_else(bad)?;
        let (hasher, digits) = match algorithm {
            "sha256" => (Self::Sha256(Sha256::new()), 64),
            "sha512" => (Self::Sha512(Box::new(Sha512::new())), 128),
            _ => return Err(bad()),
        };
        if hex.len() != digits || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        Ok(hasher)
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(h) => h.update(data),
            Self::Sha512(h) => h.update(data),
        }
    }

    pub(crate) fn finish(self) -> String {
        match self {
            Self::Sha256(h) => format!("sha256:{}", hex(&h.finalize())),
            Self::Sha512(h) => format!("sha512:{}", hex(&h.finalize())),
        }
    }
}

/// SHA-256 as 64 lower-case hexadecimal digits.
pub fn sha256(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

/// 16 bytes that depend on nothing but `parts`, marked as a version 8 UUID (RFC 9562).
pub(crate) fn uuid_of<'a>(parts: impl Iterator<Item = &'a str>) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update(b"\n");
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash.finalize()[..16]);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        let mut h = Hasher::for_digest(None).unwrap();
        h.update(b"abc");
        assert_eq!(
            format!("sha256:{}", sha256(b"abc")),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(h.finish(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn malformed_digests_are_refused() {
        for bad in ["", "sha256", "sha256:", "md5:00", "sha256:zz", &format!("sha256:{}", "A".repeat(64))] {
            assert_eq!(Hasher::for_digest(Some(bad)).err().map(|e| e.kind()), Some("digest_format"), "{bad}");
        }
    }
}
