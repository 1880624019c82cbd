"""Answers to a registry's challenges (RFC 9110 and the distribution project's token authentication)."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from ..errors import InvalidImage, RegistryError, RegistryUnauthorized
from .model import load_json
from .transport import is_loopback

if TYPE_CHECKING:
    from .credentials import Credentials, Found
    from .transport import Response, Transport

_PARAMETER = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')
_MAX_TOKEN_ANSWER = 1 << 20
# What a token is good for when the service does not say, and how much of it is kept in reserve for slow clocks.
_TOKEN_SECONDS = 60
_RESERVE = 5


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """The scheme, in lower case, and the parameters; the first challenge only, as no registry sends more."""
    scheme, _, rest = header.strip()[:8192].partition(" ")
    parameters: dict[str, str] = {}
    for match in _PARAMETER.finditer(rest):
        quoted = match.group(2)
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match.group(3)
        parameters.setdefault(match.group(1).lower(), value)
    return scheme.lower(), parameters


class Authenticator:
    """The Authorization header for one repository, got when the registry first asks for it."""

    def __init__(
        self, transport: Transport, host: str, repository: str, find: Callable[[], Found], *, push: bool = False
    ) -> None:
        self._transport = transport
        self._host = host
        #: Nothing but the login where there is no repository.
        self._scope = f"repository:{repository}:{'pull,push' if push else 'pull'}" if repository else ""
        self._find = find
        self._found: Found | None = None
        self._lock = Lock()
        self._header: str | None = None
        self._expires = 0.0

    def header(self) -> str | None:
        """What to send, as far as it is known without asking."""
        with self._lock:
            return self._header if time.monotonic() < self._expires else None

    @property
    def note(self) -> str | None:
        """Why there were no credentials, if that is worth a word."""
        found = self._found
        if found is None or found.credentials is not None:
            return None
        return found.note or "no credentials for this registry were found"

    def answer(self, response: Response, sent: str | None) -> bool:
        """Takes up the challenge of a 401; false when there is nothing better to send than what was refused.

        Only the registry's own: credentials are for it, and a host that it redirects to gets none of them.
        """
        challenge = response.headers.get("WWW-Authenticate")
        if not challenge or not self._transport.is_registry(response.url):
            return False
        scheme, parameters = parse_challenge(challenge)
        with self._lock:
            if self._header is not None and self._header != sent and time.monotonic() < self._expires:
                return True  # another thread was faster
            if self._found is None:
                self._found = self._find()
            credentials = self._found.credentials
            if scheme == "basic":
                if credentials is None or not credentials.username:
                    return False
                header, lifetime = _basic(credentials), float("inf")
            elif scheme == "bearer":
                header, lifetime = self._bearer(parameters, credentials)
            else:
                raise RegistryError(f"registry {self._host} wants the unknown authentication scheme {scheme[:40]!r}")
            refused = sent is not None and header == sent
            self._header, self._expires = header, time.monotonic() + lifetime
            return not refused

    def _bearer(self, parameters: dict[str, str], credentials: Credentials | None) -> tuple[str, float]:
        if credentials is not None and credentials.registry_token:
            return f"Bearer {_clean(credentials.registry_token)}", float("inf")
        realm = parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryError(
                f"registry {self._host} names the token service {realm[:200]!r}, which is no HTTP address"
            )
        if not self._transport.may_name(parts.netloc):
            raise RegistryError(f"registry {self._host} names the token service {realm[:200]!r} on this machine")
        near = parts.netloc == self._host or is_loopback(self._host)
        if parts.scheme == "http" and not (near and self._transport.lenient(parts.netloc)):
            raise RegistryError(f"registry {self._host} names the token service {realm[:200]!r}, which is not HTTPS")
        query = {"service": parameters.get("service", ""), "scope": parameters.get("scope") or self._scope}
        query = {name: value for name, value in query.items() if value}
        headers = {}
        if credentials is not None and credentials.identity_token:
            fields = query | {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": "supermachine",
            }
            response = self._transport.request_url("POST", realm, {}, fields=fields)
        else:
            if credentials is not None and credentials.username:
                query["account"] = credentials.username
                headers["Authorization"] = _basic(credentials)
            separator = "&" if parts.query else "?"
            url = f"{realm}{separator}{urlencode(query)}" if query else realm
            response = self._transport.request_url("GET", url, headers)
        try:
            if response.status in (401, 403):
                raise RegistryUnauthorized(
                    f"the token service of registry {self._host} refused "
                    + ("anonymous access" if credentials is None else "the credentials"),
                    cause=f"HTTP {response.status}",
                    hint=f"log in: supermachine login {self._host}",
                )
            if response.status != 200:
                raise RegistryError(f"the token service of registry {self._host} answered with HTTP {response.status}")
            what = f"the answer of the token service of registry {self._host}"
            try:
                body = load_json(response.body(_MAX_TOKEN_ANSWER), what)
            except InvalidImage as error:
                raise RegistryError(str(error), cause=error.cause) from None
        finally:
            response.close()
        token = body.get("token") or body.get("access_token")
        if not isinstance(token, str) or not token:
            raise RegistryError(f"{what} has no token")
        lifetime = body.get("expires_in")
        if not isinstance(lifetime, int | float) or isinstance(lifetime, bool) or not 0 < lifetime < 1 << 31:
            lifetime = _TOKEN_SECONDS
        return f"Bearer {_clean(token)}", max(float(lifetime) - _RESERVE, 1.0)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _clean(token: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise RegistryError("a token has characters that no HTTP header may have")
    return token
