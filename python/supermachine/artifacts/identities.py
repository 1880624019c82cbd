"""Signatures of sigstore's: bundles that belong to a snapshot's manifest, as cosign puts them there.

A bundle says who has signed: an identity, and who vouches for it. The package `sigstore`, an extra, verifies that
without a network: by the root of trust that it came with, or by ``sigstore/trusted_root.json`` in the directory of
keys.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SupermachineError, UntrustedSnapshot
from ..oci import referrers
from ..oci.model import load_json
from ..oci.registry import Repository
from . import model

if TYPE_CHECKING:
    from .trust import Key

#: Of the referrer, and of its one layer.
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_TYPE = "application/vnd.in-toto+json"
#: What a signed statement must say: others are of how a thing was made, and not that it is the one to run.
SIGNED = "https://sigstore.dev/cosign/sign/v1"
_MAX_BUNDLES = 16
_MAX_BYTES = 1 << 20


def signer(repository: Repository, digest: str, trusted: Sequence[Key], root: Path | None) -> tuple[str | None, str]:
    """The name of the one of these identities that has signed a manifest, if any has; and what was wrong.

    Raises UntrustedSnapshot where there are bundles and nothing here that could verify them.
    """
    why = ""
    verify: Callable[[bytes, Key], None] | None = None
    for bundle in _bundles(repository, digest):
        verify = verify or _verifier(lambda: repository.manifest(digest)[0], digest, root)
        for key in trusted:
            try:
                verify(bundle, key)
            except SupermachineError:
                raise
            except Exception as error:  # whatever a bundle makes of the package that reads it, it is no signature
                why = f"the bundle of sigstore's in its registry is not one of {key.identity}: {error}"
            else:
                return key.name, ""
    return None, why


def _verifier(manifest: Callable[[], bytes], digest: str, root: Path | None) -> Callable[[bytes, Key], None]:
    """What raises unless a bundle is a signature of the manifest by an identity."""
    try:
        from sigstore.models import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            Bundle,
            TrustedRoot,
        )
        from sigstore.verify import Verifier  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from sigstore.verify.policy import Identity  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise UntrustedSnapshot(
            "the snapshot has a signature of sigstore's, and what verifies those is not installed",
            hint="pip install 'supermachine[sigstore]'",
        ) from None
    # It says at each use that it makes no updates, where nobody has set up a log.
    logging.getLogger("sigstore._internal.tuf").setLevel(logging.ERROR)
    verifier: Any = (
        Verifier.production(offline=True) if root is None else Verifier(trusted_root=TrustedRoot.from_file(str(root)))
    )

    def verify(data: bytes, key: Key) -> None:
        bundle = Bundle.from_json(data)
        policy = Identity(identity=key.identity, issuer=key.issuer)
        if "dsseEnvelope" in load_json(data, "a bundle"):
            kind, payload = verifier.verify_dsse(bundle, policy)
            _check_statement(kind, payload, digest)
        else:
            verifier.verify_artifact(manifest(), bundle, policy)

    return verify


def _check_statement(kind: str, payload: bytes, digest: str) -> None:
    """Raises ValueError unless what was signed says that the manifest is."""
    algorithm, _, value = digest.partition(":")
    statement = json.loads(payload)
    subjects = [subject["digest"].get(algorithm) for subject in statement["subject"]]
    if kind != STATEMENT_TYPE or statement["predicateType"] != SIGNED or value not in subjects:
        raise ValueError("what it signs is another thing")


def _bundles(repository: Repository, digest: str) -> Iterator[bytes]:
    for found in referrers.find(repository, digest, BUNDLE_TYPE)[:_MAX_BUNDLES]:
        try:
            layers = load_json(repository.manifest(found.digest)[0], "a signature")["layers"]
            descriptor = model.described(layers[0])
            if descriptor.size <= _MAX_BYTES:
                yield repository.small_blob(descriptor, "a signature")
        except (SupermachineError, ValueError, TypeError, LookupError, AttributeError):
            continue  # somebody else's
