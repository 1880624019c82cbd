"""The push side of the distribution specification 1.1: blobs that are there already are skipped or mounted, others
are sent in chunks, from where an attempt before broke off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import quote, urlencode

from ..errors import RegistryError, RegistryTimeout, SupermachineError
from .model import Descriptor
from .registry import Repository
from .transport import Response

#: Bytes that are sent in one request, so that what a break costs is bounded.
CHUNK = 8 << 20
_MAX_CHUNK = 64 << 20
# Chunks that get further may go on; without any progress, as often as a request.
_MAX_TRIES = 1000
_OCTETS = {"Content-Type": "application/octet-stream"}


class Sessions:
    """Where uploads that have begun go on; kept by the caller beyond this process if it can."""

    def load(self, digest: str) -> str | None:
        """The address of an upload that began, or nothing."""
        del digest
        return None

    def save(self, digest: str, location: str | None) -> None:
        """Keeps the address; ``None`` when the upload has ended."""
        del digest, location


def has_blob(repository: Repository, digest: str) -> bool:
    """Whether the repository has it."""
    response = repository.send("HEAD", f"blobs/{digest}")
    response.close()
    if response.status in (401, 403):
        raise repository.refused(response, f"blob {digest}")
    return response.status == 200


def push_blob(
    repository: Repository,
    descriptor: Descriptor,
    source: BinaryIO,
    what: str,
    *,
    mount: str | None = None,
    sessions: Sessions | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Sees to it that the repository has a blob; gives the bytes that were sent for it.

    `mount` names a repository of the same registry that has it, `progress` gets the bytes that the registry has.
    """
    if has_blob(repository, descriptor.digest):
        return 0
    upload = _Upload(repository, descriptor, source, what, sessions or Sessions(), progress)
    return upload.run(mount)


def put_manifest(repository: Repository, target: str, data: bytes, media_type: str) -> Response:
    """Puts a manifest under a tag or its digest; gives the answer, of which the headers are of interest."""
    path = f"manifests/{quote(target, safe=':._-')}"
    response = repository.send("PUT", path, {"Content-Type": media_type}, data)
    try:
        if response.status not in (200, 201, 202):
            raise repository.refused(response, f"the manifest {target}")
    finally:
        response.close()
    return response


class _Upload:
    def __init__(
        self,
        repository: Repository,
        descriptor: Descriptor,
        source: BinaryIO,
        what: str,
        sessions: Sessions,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._source = source
        self._what = what
        self._sessions = sessions
        self._progress = progress
        self._location = ""
        self._chunk = CHUNK
        self._done = 0
        self._sent = 0

    def run(self, mount: str | None) -> int:
        if not self._resumed() and self._begun(mount):
            return 0
        failure: SupermachineError | None = None
        limits = self._repository.transport.limits
        attempt = 0
        for _ in range(_MAX_TRIES):
            if failure is not None:
                if attempt >= limits.attempts:
                    raise failure
                self._repository.transport.pause(attempt)
            attempt += 1
            before = self._done
            try:
                while self._done < self._descriptor.size:
                    self._patch()
                self._end()
                return self._sent
            except (RegistryError, RegistryTimeout) as error:
                if getattr(error, "final", False) and self._done == before and attempt >= 2:
                    raise
                failure = error
            # What the registry has is asked of it: a part of a chunk, or one whose answer was lost.
            if not self._located():
                self._begun(None)
            if self._done > before:
                attempt = 1
        raise failure or RegistryError(f"registry {self._repository.host} did not take {self._what}")

    def _begun(self, mount: str | None) -> bool:
        """Begins anew; true when the registry had the blob elsewhere, and that was all."""
        query = urlencode({"mount": self._descriptor.digest, "from": mount}) if mount else ""
        response = self._repository.send("POST", "blobs/uploads/" + (f"?{query}" if query else ""), {}, b"")
        try:
            if response.status == 201 and mount:
                return True
            if response.status != 202:
                raise self._repository.refused(response, f"the upload of {self._what}")
            least = response.headers.get("OCI-Chunk-Min-Length", "")
            if least.isdecimal() and len(least) < 12:
                self._chunk = min(max(CHUNK, int(least)), _MAX_CHUNK)
            self._follow(response)
            self._done = 0
        finally:
            response.close()
        return False

    def _resumed(self) -> bool:
        """Whether an upload that another process began goes on."""
        location = self._sessions.load(self._descriptor.digest)
        if location is None:
            return False
        self._location = location
        return self._located()

    def _located(self) -> bool:
        """Asks how much the registry has; false when it knows of no such upload."""
        if not self._location:
            return False
        response = self._repository.send("GET", self._location)
        try:
            if response.status != 204:
                self._sessions.save(self._descriptor.digest, None)
                return False
            self._done = _end_of(response)
            if self._done > self._descriptor.size:
                return False
            self._follow(response)
        finally:
            response.close()
        return True

    def _follow(self, response: Response) -> None:
        location = response.headers.get("Location")
        if not location:
            raise RegistryError(f"registry {self._repository.host} does not say where {self._what} is to be sent")
        self._location = self._repository.transport.named(response.url, location)
        self._sessions.save(self._descriptor.digest, self._location)

    def _patch(self) -> None:
        self._source.seek(self._done)
        data = self._source.read(min(self._chunk, self._descriptor.size - self._done))
        if not data:
            raise OSError(f"{self._what} has become shorter")
        headers = {**_OCTETS, "Content-Range": f"{self._done}-{self._done + len(data) - 1}"}
        response = self._repository.send("PATCH", self._location, headers, data, retry=False)
        try:
            if response.status not in (202, 204):
                raise self._repository.refused(response, f"the upload of {self._what}")
            self._follow(response)
        finally:
            response.close()
        self._sent += len(data)
        self._done += len(data)
        if self._progress is not None:
            self._progress(self._done)

    def _end(self) -> None:
        joint = "&" if "?" in self._location else "?"
        place = f"{self._location}{joint}{urlencode({'digest': self._descriptor.digest})}"
        response = self._repository.send("PUT", place, dict(_OCTETS), b"", retry=False)
        try:
            self._sessions.save(self._descriptor.digest, None)
            # Without that, the answer to an earlier attempt was lost.
            if response.status not in (201, 204) and not has_blob(self._repository, self._descriptor.digest):
                raise self._repository.refused(response, f"the upload of {self._what}")
        finally:
            response.close()


def _end_of(response: Response) -> int:
    """Bytes that the registry has of an upload; it says so as ``0-N``, with N the last of them."""
    last = response.headers.get("Range", "").removeprefix("bytes=").rpartition("-")[2].strip()
    if not last.isdecimal() or len(last) > 18 or int(last) == 0:
        return 0  # ``0-0`` is what registries say of nothing
    return int(last) + 1
