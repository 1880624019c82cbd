"""Snapshots signed by an identity of sigstore's: bundles of an authority and logs that the tests make."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supermachine import errors
from supermachine.artifacts import identities, model
from supermachine.artifacts.pull import pull
from supermachine.artifacts.push import Pushed, push
from supermachine.artifacts.trust import Keys
from supermachine.cache.store import Cache
from supermachine.oci.model import OCI_MANIFEST

from .conftest import ram, snapshot
from .registry import Registry

pytest.importorskip("sigstore")

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

WHO, ISSUER = "somebody@example.com", "https://accounts.example.com"
NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.timezone.utc)
VALID = {"start": "2020-01-01T00:00:00Z"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Key:
    """One on P-256, as authorities and logs have them."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.public = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(self.public).digest()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def log(self, url: str) -> dict[str, Any]:
        """As a root of trust names it."""
        named = {"rawBytes": b64(self.public), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": VALID}
        return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": named, "logId": {"keyId": b64(self.id)}}


class Authority:
    """What sigstore is: an authority that certifies identities, a log of its certificates and one of signatures."""

    def __init__(self) -> None:
        self.key, self.certificates, self.signatures = Key(), Key(), Key()
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "an authority of the tests")])
        builder = self._builder(self.name, self.key).add_extension(x509.BasicConstraints(True, 0), critical=True)
        builder = builder.add_extension(_usage(key_cert_sign=True), critical=True)
        self.certificate = builder.sign(self.key.key, hashes.SHA256())

    def _builder(self, subject: x509.Name, key: Key) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name)
        builder = builder.public_key(key.key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(NOW - datetime.timedelta(minutes=5))
        builder = builder.not_valid_after(NOW + datetime.timedelta(minutes=5))
        ours = x509.SubjectKeyIdentifier.from_public_key(self.key.key.public_key())
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.key.public_key()), critical=False)
        return builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours), critical=False
        )

    def root(self) -> bytes:
        """The file of its root of trust."""
        authority = {
            "subject": {"organization": "tests", "commonName": "tests"},
            "uri": "https://authority.example.com",
            "certChain": {"certificates": [{"rawBytes": b64(self.certificate.public_bytes(Encoding.DER))}]},
            "validFor": VALID,
        }
        body = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self.signatures.log("https://signatures.example.com")],
            "certificateAuthorities": [authority],
            "ctlogs": [self.certificates.log("https://certificates.example.com")],
            "timestampAuthorities": [],
        }
        return json.dumps(body).encode()

    def certify(self, key: Key, who: str, issuer: str) -> x509.Certificate:
        builder = self._builder(x509.Name([]), key)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(who)]), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        by = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), issuer.encode())
        builder = builder.add_extension(by, critical=False)
        # RFC 6962, 3.2: what the log signs is the certificate without this signature.
        body = builder.sign(self.key.key, hashes.SHA256()).tbs_certificate_bytes
        when = int(NOW.timestamp() * 1000)
        head = struct.pack("!BBQH", 0, 0, when, 1) + self.key.id + len(body).to_bytes(3, "big")
        signature = self.certificates.sign(head + body + b"\0\0")
        stamp = struct.pack("!B32sQHBBH", 0, self.certificates.id, when, 0, 4, 3, len(signature)) + signature
        stamps = struct.pack("!HH", len(stamp) + 2, len(stamp)) + stamp
        held = x509.UnrecognizedExtension(
            x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), bytes([4, len(stamps)]) + stamps
        )
        return builder.add_extension(held, critical=False).sign(self.key.key, hashes.SHA256())

    def _entry(self, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        """A log of this one entry."""
        body = json.dumps({"apiVersion": "0.0.1", "kind": kind, "spec": spec}, sort_keys=True).encode()
        when = int(NOW.timestamp())
        promise = {"body": b64(body), "integratedTime": when, "logID": self.signatures.id.hex(), "logIndex": 0}
        promised = self.signatures.sign(json.dumps(promise, sort_keys=True, separators=(",", ":")).encode())
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"signatures.example.com\n1\n{b64(root)}\n"
        signed = b64(self.signatures.id[:4] + self.signatures.sign(note.encode()))
        return {
            "logIndex": "0",
            "logId": {"keyId": b64(self.signatures.id)},
            "kindVersion": {"kind": kind, "version": "0.0.1"},
            "integratedTime": str(when),
            "inclusionPromise": {"signedEntryTimestamp": b64(promised)},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": b64(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\u2014 signatures.example.com {signed}\n"},
            },
            "canonicalizedBody": b64(body),
        }

    def _bundle(self, certificate: x509.Certificate, entry: dict[str, Any], **signed: Any) -> dict[str, Any]:
        material = {
            "certificate": {"rawBytes": b64(certificate.public_bytes(Encoding.DER))},
            "tlogEntries": [entry],
        }
        return {"mediaType": identities.BUNDLE_TYPE, "verificationMaterial": material, **signed}

    def sign(self, data: bytes, who: str = WHO, issuer: str = ISSUER) -> dict[str, Any]:
        """A bundle of the signature of these bytes, as `sigstore sign` writes it."""
        key = Key()
        certificate = self.certify(key, who, issuer)
        digest, signature = hashlib.sha256(data).digest(), key.sign(data)
        public = {"content": b64(certificate.public_bytes(Encoding.PEM))}
        spec = {
            "signature": {"content": b64(signature), "publicKey": public},
            "data": {"hash": {"algorithm": "sha256", "value": digest.hex()}},
        }
        said = {"messageDigest": {"algorithm": "SHA2_256", "digest": b64(digest)}, "signature": b64(signature)}
        return self._bundle(certificate, self._entry("hashedrekord", spec), messageSignature=said)

    def state(self, digest: str, who: str = WHO, issuer: str = ISSUER, what: str = identities.SIGNED) -> dict[str, Any]:
        """A bundle of a signed statement, as cosign writes it."""
        key = Key()
        certificate = self.certify(key, who, issuer)
        subject = {"name": "", "digest": {"sha256": digest.removeprefix("sha256:")}}
        statement = {"_type": "https://in-toto.io/Statement/v1", "subject": [subject], "predicateType": what}
        payload, kind = json.dumps({**statement, "predicate": {}}).encode(), identities.STATEMENT_TYPE
        signature = key.sign(f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload)
        envelope = {
            "payload": b64(payload),
            "payloadType": kind,
            "signatures": [{"sig": b64(signature), "keyid": ""}],
        }
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(json.dumps(envelope).encode()).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
            "signatures": [{"signature": b64(signature), "verifier": b64(certificate.public_bytes(Encoding.PEM))}],
        }
        return self._bundle(certificate, self._entry("dsse", spec), dsseEnvelope=envelope)


def _usage(**said: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: said.get(name, False) for name in names})


def attach(registry: Registry, digest: str, bundle: dict[str, Any] | bytes) -> None:
    """Puts a bundle beside a manifest, as cosign does."""
    data = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    layer, empty = model.descriptor(data, identities.BUNDLE_TYPE), model.descriptor(model.EMPTY, model.EMPTY_TYPE)
    registry.blobs["bb", layer.digest] = data
    registry.blobs["bb", empty.digest] = model.EMPTY
    subject = model.descriptor(registry.manifests["bb", digest][1], OCI_MANIFEST)
    registry.put("bb", model.manifest(identities.BUNDLE_TYPE, empty, [layer], subject, {}), OCI_MANIFEST)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def pushed(registry: Registry, tmp_path: Path, cache: Cache) -> Pushed:
    snapshot(tmp_path / "a", ram(50))
    return push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the registry on this machine is spoken to."""
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)


def believe(keys: Keys, authority: Authority, tmp_path: Path) -> None:
    """This user's root of trust is the tests' authority."""
    place = tmp_path / "keys" / "sigstore"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / "trusted_root.json").write_bytes(authority.root())
    os.chmod(place / "trusted_root.json", 0o600)


def taken(registry: Registry, elsewhere: Cache, keys: Keys) -> str | None:
    return pull(f"{registry.host}/bb:snap", cache=elsewhere, keys=keys).signer


@pytest.mark.parametrize("kind", ["a signature", "a statement"])
def test_what_a_trusted_identity_has_signed_is_pulled(
    registry: Registry, tmp_path: Path, elsewhere: Cache, keys: Keys, authority: Authority, pushed: Pushed, kind: str
) -> None:
    believe(keys, authority, tmp_path)
    keys.trust(f"sigstore:{WHO}", "somebody", f"{registry.host}/bb", issuer=ISSUER)
    keys.generate("other")
    with pytest.raises(errors.UntrustedSnapshot):
        taken(registry, elsewhere, keys)
    data = registry.manifests["bb", pushed.digest][1]
    attach(registry, pushed.digest, authority.sign(data) if kind == "a signature" else authority.state(pushed.digest))
    assert taken(registry, elsewhere, keys) == "somebody"


def test_what_another_has_signed_or_something_else_is_not(
    registry: Registry, tmp_path: Path, elsewhere: Cache, keys: Keys, authority: Authority, pushed: Pushed
) -> None:
    believe(keys, authority, tmp_path)
    keys.trust(f"sigstore:{WHO}", "somebody", issuer=ISSUER)
    data = registry.manifests["bb", pushed.digest][1]
    other = "sha256:" + "0" * 64

    def changed(bundle: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        change(bundle)
        return bundle

    def forged(bundle: dict[str, Any]) -> None:
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        bundle["dsseEnvelope"]["payload"] = b64(payload.replace(b"0" * 64, pushed.digest[7:].encode()))

    def unlogged(bundle: dict[str, Any]) -> None:
        bundle["verificationMaterial"]["tlogEntries"] = []

    bad: list[dict[str, Any] | bytes] = [
        authority.sign(data, who="another@example.com"),
        authority.sign(data, issuer="https://another.example.com"),
        authority.sign(data + b" "),
        authority.state(pushed.digest, who="another@example.com"),
        authority.state(pushed.digest, issuer="https://another.example.com"),
        authority.state(other),
        authority.state(pushed.digest, what="https://slsa.dev/provenance/v1"),
        Authority().sign(data),
        Authority().state(pushed.digest),
        changed(authority.state(other), forged),
        changed(authority.sign(data), unlogged),
        b"{}",
        b"not JSON",
        b"",
    ]
    for bundle in bad:
        attach(registry, pushed.digest, bundle)
        with pytest.raises(errors.UntrustedSnapshot):
            taken(registry, elsewhere, keys)
    assert not list((tmp_path / "elsewhere").glob("artifacts/*/snapshot"))
    # They keep nobody from a good one.
    attach(registry, pushed.digest, authority.state(pushed.digest))
    assert taken(registry, elsewhere, keys) == "somebody"


def test_without_a_root_of_ones_own_it_is_the_public_one_and_nobody_is_asked(
    registry: Registry, elsewhere: Cache, keys: Keys, authority: Authority, pushed: Pushed
) -> None:
    keys.trust(f"sigstore:{WHO}", "somebody", issuer=ISSUER)
    attach(registry, pushed.digest, authority.state(pushed.digest))
    with pytest.raises(errors.UntrustedSnapshot, match="no key that is trusted"):
        taken(registry, elsewhere, keys)


def test_without_the_package_it_says_so(
    registry: Registry,
    elsewhere: Cache,
    keys: Keys,
    authority: Authority,
    pushed: Pushed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys.trust(f"sigstore:{WHO}", "somebody", issuer=ISSUER)
    with pytest.raises(errors.UntrustedSnapshot, match="no key that is trusted"):
        taken(registry, elsewhere, keys)
    attach(registry, pushed.digest, authority.state(pushed.digest))
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    with pytest.raises(errors.UntrustedSnapshot) as caught:
        taken(registry, elsewhere, keys)
    assert "supermachine[sigstore]" in (caught.value.hint or "")


def test_a_root_that_others_can_write_is_not_believed(
    registry: Registry, tmp_path: Path, elsewhere: Cache, keys: Keys, authority: Authority, pushed: Pushed
) -> None:
    believe(keys, authority, tmp_path)
    keys.trust(f"sigstore:{WHO}", "somebody", issuer=ISSUER)
    os.chmod(tmp_path / "keys" / "sigstore" / "trusted_root.json", 0o666)
    attach(registry, pushed.digest, authority.state(pushed.digest))
    with pytest.raises(errors.UntrustedSnapshot, match="not believed"):
        taken(registry, elsewhere, keys)


def test_identities_on_the_command_line(keys: Keys) -> None:
    def key(*words: str) -> str:
        command = [sys.executable, "-m", "supermachine", "key", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    key("trust", "--for", "example.com/team", "--issuer", ISSUER, "somebody", f"sigstore:{WHO}")
    key("trust", "--issuer", ISSUER, "everywhere", "sigstore:https://example.com/workflow@refs/heads/main")
    assert f"somebody  sigstore:{WHO} {ISSUER}  trusted for example.com/team\n" in key("ls")
    assert [found.covers("example.com/other") for found in keys.trusted()] == [True, False]
    for identity, issuer in ((WHO, ""), ("", ISSUER), (WHO, "accounts.example.com"), (WHO, "https://a b")):
        with pytest.raises(errors.ConfigurationError, match="identity"):
            keys.trust(f"sigstore:{identity}", "bad", issuer=issuer)
