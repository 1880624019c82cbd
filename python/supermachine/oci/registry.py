"""The OCI distribution specification 1.1 for one repository of one registry: images are pulled, blobs are read.

`referrers` has what belongs to a manifest, and `uploads` the way there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import quote

from ..errors import (
    DigestMismatch,
    ImageNotFound,
    ImageTooLarge,
    InvalidImage,
    RegistryError,
    RegistryTimeout,
    RegistryUnauthorized,
    SupermachineError,
)
from .authentication import Authenticator
from .credentials import Credentials, Found, find_credentials
from .model import INDEXES, MANIFESTS, MAX_JSON, Descriptor, check_digest, digest_of, load_json
from .references import DEFAULT_DOMAIN, RegistryReference, is_digest
from .transport import Response, Transport

# The default domain is a name; the registry behind it answers elsewhere.
_DEFAULT_HOST = f"registry-1.{DEFAULT_DOMAIN}"
_ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))
# Downloads that got further than the last time may go on; without any progress, as often as a request.
_MAX_RESUMES = 100


class Repository:
    """Manifests and blobs of `reference`'s repository; tag and digest in it are not looked at."""

    def __init__(self, reference: RegistryReference, *, transport: Transport, push: bool = False) -> None:
        self.name = reference.name
        self._domain = reference.domain
        self._path = reference.path
        self.host = _DEFAULT_HOST if reference.domain == DEFAULT_DOMAIN else reference.domain
        self.transport = transport
        transport.registry = self.host
        self._authenticator = Authenticator(transport, self.host, self._path, self._credentials, push=push)

    def _credentials(self) -> Found:
        given = self.transport.credentials.get(self._domain)
        return Found(given) if given is not None else find_credentials(self._domain, self._path)

    def manifest(self, target: str) -> tuple[bytes, str, str]:
        """Bytes, media type and digest of the manifest or index that a tag or a digest names."""
        what = f"{self.name}{'@' if is_digest(target) else ':'}{target}"
        response = self._get("manifests", target, {"Accept": _ACCEPT})
        try:
            if response.status != 200:
                raise self.refused(response, f"image {what}")
            data = response.body(MAX_JSON)
        finally:
            response.close()
        if len(data) > MAX_JSON:
            raise ImageTooLarge(f"the manifest of {what} has more than {MAX_JSON} bytes")
        if is_digest(target):
            check_digest(data, target, f"the manifest of {what}")
            digest = target
        else:
            digest = digest_of(data)
            claimed = response.headers.get("Docker-Content-Digest")
            if claimed and is_digest(claimed):
                # The registry's own algorithm is kept, so that the digest is the one that other tools show.
                check_digest(data, claimed, f"the manifest of {what}")
                digest = claimed
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return data, media_type, digest

    def small_blob(self, descriptor: Descriptor, what: str) -> bytes:
        """A blob that is JSON, in memory."""
        import io

        if descriptor.size > MAX_JSON:
            raise ImageTooLarge(f"{what} has {descriptor.size} bytes; {MAX_JSON} is the limit")
        buffer = io.BytesIO()
        self.blob(descriptor, buffer, what)
        return buffer.getvalue()

    def blob(
        self,
        descriptor: Descriptor,
        output: BinaryIO,
        what: str,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Writes a blob to `output`, from its beginning, checking size and digest; broken transfers are resumed.

        Raises DigestMismatch when the registry delivers something else. `progress` gets the bytes so far, and may
        raise to stop.
        """
        algorithm = descriptor.digest.partition(":")[0]
        attempt, done, hasher = 0, 0, hashlib.new(algorithm)
        failure: SupermachineError | None = None
        for _ in range(_MAX_RESUMES):
            if failure is not None:
                if attempt >= self.transport.limits.attempts:
                    raise failure
                self.transport.pause(attempt)
            attempt += 1
            headers = {"Range": f"bytes={done}-"} if done else {}
            response = self._get("blobs", descriptor.digest, headers)
            before = done
            try:
                if response.status == 416 or (response.status == 206 and not _starts_at(response, done)):
                    failure = RegistryError(f"registry {self.host} does not resume the download of {what}")
                    done, hasher = 0, hashlib.new(algorithm)
                    continue
                if response.status not in (200, 206):
                    raise self.refused(response, what)
                if response.status == 200 and done:
                    done, hasher = 0, hashlib.new(algorithm)
                output.seek(done)
                output.truncate()
                for piece in response.pieces():
                    done += len(piece)
                    if done > descriptor.size:
                        raise DigestMismatch(f"{what} is longer than the {descriptor.size} bytes of its descriptor")
                    output.write(piece)
                    hasher.update(piece)
                    if progress is not None:
                        progress(done)
                if done == descriptor.size:
                    break
                failure = RegistryError(f"registry {self.host} sent {done} of {descriptor.size} bytes of {what}")
            except (RegistryError, RegistryTimeout) as error:
                if isinstance(error, ImageNotFound | RegistryUnauthorized) or getattr(error, "final", False):
                    raise
                failure = error
            finally:
                response.close()
            if done > before:
                attempt = 1
        else:
            raise failure or RegistryError(f"registry {self.host} did not deliver {what}")
        actual = f"{algorithm}:{hasher.hexdigest()}"
        if actual != descriptor.digest:
            raise DigestMismatch(f"{what} has the digest {actual} where {descriptor.digest} was expected")
        output.flush()

    def piece(self, digest: str, start: int, end: int, what: str) -> tuple[Response, bool]:
        """A blob's bytes from `start` up to `end`, and whether the answer has these alone; else it has all of them."""
        # Closed: there are registries that take an open end for one beyond the blob's.
        response = self._get("blobs", digest, {"Range": f"bytes={start}-{end - 1}"})
        if response.status == 200 or (response.status == 206 and _starts_at(response, start)):
            return response, response.status == 206
        try:
            if response.status == 416 or response.status == 206:
                raise RegistryError(f"registry {self.host} does not give the bytes {start}-{end - 1} of {what}")
            raise self.refused(response, what)
        finally:
            response.close()

    def abort(self) -> None:
        """Ends the transfers of other threads at once."""
        self.transport.abort()

    def _get(self, kind: str, target: str, headers: dict[str, str]) -> Response:
        return self.send("GET", f"{kind}/{quote(target, safe=':._-')}", headers)

    def send(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        *,
        retry: bool = True,
    ) -> Response:
        """A request about this repository: `path` follows its name, or is the address that an upload was given."""
        whole = path.startswith(("http://", "https://"))
        credible = not whole or self.transport.is_registry(path)
        # Anonymous, then with a token; once more if that one was about to expire.
        for last in (False, False, True):
            sent = self._authenticator.header() if credible else None
            told = {**(headers or {}), **({"Authorization": sent} if sent else {})}
            if whole:
                response = self.transport.request_url(method, path, told, body=body, retry=retry)
            else:
                response = self.transport.request(method, self.host, f"/v2/{self._path}/{path}", told, body=body)
            if response.status != 401 or last:
                break
            if not self._authenticator.answer(response, sent):
                break
            response.close()
        return response

    def refused(self, response: Response, what: str) -> SupermachineError:
        """The error that a status means, with the registry's own words as the cause."""
        status = response.status
        cause = f"HTTP {status}"
        try:
            detail = _detail(response)
        except (RegistryError, RegistryTimeout):
            detail = ""
        if detail:
            cause += f": {detail}"
        log_in = f"supermachine login {self._domain}" if self._domain != DEFAULT_DOMAIN else "supermachine login"
        if status == 401:
            note = self._authenticator.note
            return RegistryUnauthorized(
                f"registry {self.host} wants a login for {what}, or it does not exist",
                cause=f"{cause}; {note}" if note else cause,
                hint=f"log in: {log_in}",
            )
        if status == 403:
            return RegistryUnauthorized(
                f"registry {self.host} denies access to {what}", cause=cause, hint=f"log in as another user: {log_in}"
            )
        if status == 404:
            return ImageNotFound(f"registry {self.host} has no {what}", cause=cause, hint="check the name and the tag")
        return _Final(f"registry {self.host} answered the request for {what} with HTTP {status}", cause=cause)


class _Final(RegistryError):
    """An answer that asking again does not change; retries have happened underneath."""

    final = True


def _starts_at(response: Response, offset: int) -> bool:
    unit, _, rest = response.headers.get("Content-Range", "").strip().partition(" ")
    start = rest.partition("-")[0].strip()
    return unit == "bytes" and start.isdecimal() and len(start) < 20 and int(start) == offset


def _detail(response: Response) -> str:
    """The first error of a body as the distribution specification has it; nothing when it is something else."""
    try:
        errors = load_json(response.body(64 << 10), "the answer").get("errors")
    except InvalidImage:
        return ""
    if not isinstance(errors, list) or not errors or not isinstance(errors[0], dict):
        return ""
    parts = [str(errors[0].get(key) or "") for key in ("code", "message")]
    text = ": ".join(filter(None, parts))[:300]
    return "".join(c if c.isprintable() else "?" for c in text)


def check_login(domain: str, credentials: Credentials, transport: Transport) -> None:
    """Asks a registry whether it knows somebody. Raises RegistryUnauthorized."""
    host = _DEFAULT_HOST if domain == DEFAULT_DOMAIN else domain
    transport.registry = host
    authenticator = Authenticator(transport, host, "", lambda: Found(credentials))
    for _ in range(2):
        sent = authenticator.header()
        response = transport.request("GET", host, "/v2/", {} if sent is None else {"Authorization": sent})
        try:
            if response.status == 200:
                return
            if response.status != 401 or not authenticator.answer(response, sent):
                break
        finally:
            response.close()
    raise RegistryUnauthorized(f"{domain} does not know this user name with this password")
