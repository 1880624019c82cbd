"""A snapshot is code: it is restored when it is pinned or signed by a key that was named, and otherwise refused."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from supermachine import _core, errors
from supermachine.artifacts import model
from supermachine.artifacts.pull import pull
from supermachine.artifacts.push import push
from supermachine.artifacts.trust import Keys, parse_public
from supermachine.cache.store import Cache

from .conftest import ram, snapshot
from .registry import Registry, sha256


@pytest.fixture(params=[True, False])
def kept(request: pytest.FixtureRequest, registry: Registry) -> Registry:
    """With the interface for referrers, and with the tag that stands in for it."""
    registry.referrers = request.param
    return registry


def test_without_a_key_only_what_is_pinned_is_pulled(
    kept: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache, keys: Keys
) -> None:
    snapshot(tmp_path / "a", ram(100))
    done = push(tmp_path / "a", f"{kept.host}/bb:snap", cache=cache)
    blobs = kept.count("GET", "/blobs/")
    with pytest.raises(errors.UntrustedSnapshot, match="no key is trusted here") as refused:
        pull(f"{kept.host}/bb:snap", cache=elsewhere, keys=keys)
    assert done.reference in str(refused.value.hint) and "supermachine key trust" in str(refused.value.hint)
    assert isinstance(refused.value, PermissionError)
    assert kept.count("GET", "/blobs/") == blobs, "nothing of it was fetched"
    assert pull(done.reference, cache=elsewhere, keys=keys).signer is None


def test_what_a_trusted_key_has_signed_is_pulled(
    kept: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache, keys: Keys
) -> None:
    snapshot(tmp_path / "a", ram(100))
    own = keys.generate("ours")
    done = push(tmp_path / "a", f"{kept.host}/bb:snap", cache=cache, sign="ours", keys=keys)
    theirs = Keys(tmp_path / "their-keys")
    with pytest.raises(errors.UntrustedSnapshot):
        pull(f"{kept.host}/bb:snap", cache=elsewhere, keys=theirs)
    theirs.generate("somebody")
    with pytest.raises(errors.UntrustedSnapshot, match="no key that is trusted") as refused:
        pull(f"{kept.host}/bb:snap", cache=elsewhere, keys=theirs)
    assert own.text in str(refused.value.cause)
    theirs.trust(own.text, "the-team", f"{kept.host}/bb")
    found = pull(f"{kept.host}/bb:snap", cache=elsewhere, keys=theirs)
    assert (found.signer, found.digest) == ("the-team", done.digest)
    theirs.remove("the-team")
    with pytest.raises(errors.UntrustedSnapshot):
        pull(f"{kept.host}/bb:snap", cache=elsewhere, keys=theirs)


def test_a_scope_is_a_repository_or_a_directory_of_it(tmp_path: Path, keys: Keys) -> None:
    key = keys.generate("a")
    keys.remove("a")
    keys.trust(key.text, "b", "reg.example/team")
    names = ["reg.example/team", "reg.example/team/x", "reg.example/teams", "reg.example", "evil/reg.example/team"]
    assert [bool(keys.trusted(name)) for name in names] == [True, True, False, False, False]
    with pytest.raises(errors.ConfigurationError):
        keys.trust(key.text, "c", "a b")


def test_a_tag_that_was_moved_is_another_snapshot(
    kept: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache, keys: Keys
) -> None:
    keys.generate("ours")
    snapshot(tmp_path / "a", ram(100))
    first = push(tmp_path / "a", f"{kept.host}/bb:snap", cache=cache, sign="ours", keys=keys)
    snapshot(tmp_path / "b", ram(100, seed=2))
    second = push(tmp_path / "b", f"{kept.host}/bb:snap", cache=cache, keys=keys)
    with pytest.raises(errors.UntrustedSnapshot):
        pull(f"{kept.host}/bb:snap", cache=elsewhere, keys=keys)
    # The signature of one is none of another.
    _, data = next(m for m in kept.manifests.values() if first.digest in m[1].decode() and b"signature.v1" in m[1])
    body = json.loads(data)
    body["subject"] |= {"digest": second.digest, "size": len(kept.manifests["bb", second.digest][1])}
    moved = json.dumps(body).encode()
    kept.put("bb", moved, "application/vnd.oci.image.manifest.v1+json")
    if not kept.referrers:
        entry = {"digest": sha256(moved), "size": len(moved), "artifactType": model.SIGNATURE_TYPE}
        index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": body["annotations"]}]}
        kept.put(
            "bb", json.dumps(index).encode(), "application/vnd.oci.image.index.v1+json", second.digest.replace(":", "-")
        )
    with pytest.raises(errors.UntrustedSnapshot, match="has signed it"):
        pull(f"{kept.host}/bb:snap", cache=elsewhere, keys=keys)


def test_a_registry_cannot_give_something_else_for_a_digest(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache
) -> None:
    snapshot(tmp_path / "a", ram(50))
    snapshot(tmp_path / "b", ram(50, seed=2))
    first = push(tmp_path / "a", f"{registry.host}/bb:a", cache=cache)
    push(tmp_path / "b", f"{registry.host}/bb:b", cache=cache)
    registry.manifests["bb", first.digest] = registry.manifests["bb", "b"]
    with pytest.raises(errors.DigestMismatch):
        pull(first.reference, cache=elsewhere)


def test_signatures_are_those_of_rfc_8032() -> None:
    """Its test vectors 1 and 3, and what is no signature."""
    secret = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    public = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
    signature = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )
    assert bytes(_core.public_key(secret)) == public
    assert bytes(_core.sign(secret, b"\xaf\x82")) == signature
    assert _core.verify_signature(public, b"\xaf\x82", signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(64), signature[:-1] + b"\1"):
        assert not _core.verify_signature(public, b"\xaf\x82", wrong)
    assert not _core.verify_signature(public, b"\xaf\x83", signature)
    for weak in (bytes(32), b"\1" + bytes(31), b"\2" + bytes(31)):
        with pytest.raises(ValueError, match="public key"):
            _core.verify_signature(weak, b"", signature)


def test_keys_are_kept_to_their_user(tmp_path: Path, keys: Keys) -> None:
    key = keys.generate("mine")
    secret = (tmp_path / "keys" / "private" / "mine").read_text()
    assert (tmp_path / "keys" / "private" / "mine").stat().st_mode & 0o777 == 0o600
    material = secret.split()[-1]
    signer = keys.signer("mine")
    assert material not in repr(signer) + repr(key) + repr(keys.all())
    with pytest.raises(errors.ConfigurationError, match="already") as taken:
        keys.generate("mine")
    assert material not in str(taken.value)
    assert keys.all() == [key.__class__("mine", key.public, own=True, trusted=True)]
    for name in ("", "../x", "a/b", ".x", "x" * 65):
        with pytest.raises(errors.ConfigurationError):
            keys.generate(name)
    for text in ("", "ed25519:", "ed25519:AAAA", base64.b64encode(key.public).decode(), f"ed25519:{'A' * 43}="):
        with pytest.raises((errors.ConfigurationError, ValueError)):
            parse_public(text)
    (tmp_path / "keys" / "trusted" / "mine").chmod(0o666)
    with pytest.raises(errors.UntrustedSnapshot, match="other users"):
        keys.trusted()


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    def key(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "supermachine", "key", *words], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    public = key("generate", "mine").strip()
    assert public.startswith("ed25519:")
    key("rm", "mine")
    key("trust", "theirs", public, "--for", "reg.example/team")
    assert key("ls") == f"theirs  {public}  trusted for reg.example/team\n"
    assert "no public key" in key("trust", "x", "nonsense", status=125)
    assert "no key" in key("rm", "mine", status=125)
