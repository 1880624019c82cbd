"""Blobs on their way up, and where an upload that was broken off goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

from .. import descriptors
from .._core import sha256
from ..cache.store import Cache
from ..oci.model import Descriptor
from ..oci.references import is_digest
from ..oci.registry import Repository
from ..oci.uploads import Sessions, push_blob

_MAX_LOCATION = 8192
_MAX_PUSHED = 64


class Remembered(Sessions):
    """Keeps the addresses of uploads in the cache, so that another process goes on with them."""

    def __init__(self, cache: Cache, repository: str) -> None:
        self._place = cache.directory / "uploads"
        self._repository = repository

    def load(self, digest: str) -> str | None:
        """The address of an upload that began, or nothing."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            data = json.loads(self._path(digest).read_bytes())
            if isinstance(data, str) and len(data) <= _MAX_LOCATION:
                return data
        return None

    def save(self, digest: str, location: str | None) -> None:
        """Keeps the address; ``None`` when the upload has ended."""
        path = self._path(digest)
        if location is not None:
            return self._write(path, location)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def pushed(self) -> dict[str, str]:
        """The whole snapshots that went from here to the repository: id to manifest, the last first."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            data = json.loads(self._path("pushed").read_bytes())
            if isinstance(data, dict):
                return {str(id_): str(digest) for id_, digest in data.items() if is_digest(digest)}
        return {}

    def note(self, id_: str, digest: str) -> None:
        """Remembers a whole snapshot that builds on no other."""
        known = {id_: digest, **self.pushed()}
        self._write(self._path("pushed"), dict(list(known.items())[:_MAX_PUSHED]))

    def _write(self, path: Path, data: object) -> None:
        with contextlib.suppress(OSError):
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            with os.fdopen(descriptors.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
                json.dump(data, file)
            temporary.replace(path)

    def _path(self, digest: str) -> Path:
        return self._place / sha256(f"{self._repository}\n{digest}".encode())


def put_bytes(repository: Repository, descriptor: Descriptor, data: bytes, what: str) -> int:
    """Sees to it that the repository has a small blob; gives the bytes that were sent."""
    return push_blob(repository, descriptor, io.BytesIO(data), what)
