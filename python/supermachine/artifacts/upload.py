"""Blobs on their way up, and where an upload that was broken off goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

from .._core import sha256
from ..cache.store import Cache
from ..oci.model import Descriptor
from ..oci.registry import Repository
from ..oci.uploads import Sessions, push_blob

_MAX_LOCATION = 8192


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
        with contextlib.suppress(OSError):
            if location is None:
                path.unlink(missing_ok=True)
                return
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            with os.fdopen(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w"
            ) as file:
                json.dump(location, file)
            temporary.replace(path)

    def _path(self, digest: str) -> Path:
        return self._place / sha256(f"{self._repository}\n{digest}".encode())


def put_bytes(repository: Repository, descriptor: Descriptor, data: bytes, what: str) -> int:
    """Sees to it that the repository has a small blob; gives the bytes that were sent."""
    return push_blob(repository, descriptor, io.BytesIO(data), what)
