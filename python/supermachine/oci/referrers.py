"""What belongs to a manifest: referrers of the distribution specification 1.1, and the tag that stands in for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

from ..errors import ImageNotFound, ImageTooLarge, InvalidImage, RegistryError
from .model import MAX_ENTRIES, MAX_JSON, OCI_INDEX, OCI_MANIFEST, load_json
from .references import is_digest
from .registry import Repository

# Another writer of the stand-in may have been faster.
_ATTEMPTS = 5


class Referrer(NamedTuple):
    """A manifest that says that it belongs to another."""

    digest: str
    size: int
    artifact_type: str
    annotations: Mapping[str, str]

    def descriptor(self) -> dict[str, Any]:
        """As an index has it."""
        return {
            "mediaType": OCI_MANIFEST,
            "digest": self.digest,
            "size": self.size,
            "artifactType": self.artifact_type,
            "annotations": dict(self.annotations),
        }


def fallback_tag(digest: str) -> str:
    """Under which a registry without the interface for referrers has the list of them."""
    return digest.replace(":", "-", 1)


def find(repository: Repository, subject: str, artifact_type: str) -> list[Referrer]:
    """The referrers of this type, in the registry's order; none where the registry has none or does not tell."""
    query = urlencode({"artifactType": artifact_type})
    response = repository.send("GET", f"referrers/{subject}?{query}", {"Accept": OCI_INDEX})
    try:
        if response.status == 200:
            data = response.body(MAX_JSON)
        elif response.status == 401 or response.status == 403:
            raise repository.refused(response, f"the referrers of {subject}")
        else:
            data = b""
    finally:
        response.close()
    if not data:
        data = _stand_in(repository, subject)
    return [r for r in _parsed(data, f"the referrers of {subject}") if r.artifact_type == artifact_type]


def add(repository: Repository, subject: str, referrer: Referrer) -> None:
    """Puts a referrer into the list of a registry that keeps none itself."""
    from .uploads import put_manifest

    for _ in range(_ATTEMPTS):
        entries = _raw(_stand_in(repository, subject), f"the referrers of {subject}")
        if any(entry.get("digest") == referrer.digest for entry in entries):
            return
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, referrer.descriptor()]}
        data = json.dumps(index, separators=(",", ":")).encode()
        if len(data) > MAX_JSON:
            raise ImageTooLarge(f"{subject} has more referrers than a registry's index can list")
        put_manifest(repository, fallback_tag(subject), data, OCI_INDEX)
    raise RegistryError(f"registry {repository.host} does not keep the list of the referrers of {subject}")


def _stand_in(repository: Repository, subject: str) -> bytes:
    try:
        return repository.manifest(fallback_tag(subject))[0]
    except ImageNotFound:
        return b""


def _raw(data: bytes, what: str) -> list[dict[str, Any]]:
    if not data:
        return []
    entries = load_json(data, what).get("manifests")
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise InvalidImage(f"{what} are no list of at most {MAX_ENTRIES} manifests")
    return [entry for entry in entries if isinstance(entry, dict)]


def _parsed(data: bytes, what: str) -> list[Referrer]:
    found = []
    for entry in _raw(data, what):
        digest, size, kind = entry.get("digest"), entry.get("size"), entry.get("artifactType")
        annotations = entry.get("annotations")
        if not is_digest(digest) or not isinstance(size, int) or not isinstance(kind, str):
            continue  # somebody else's
        texts = annotations if isinstance(annotations, dict) else {}
        found.append(Referrer(str(digest), size, kind, {str(k): v for k, v in texts.items() if isinstance(v, str)}))
    return found
