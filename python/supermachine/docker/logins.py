"""Credentials that a client sends along: ``X-Registry-Auth``, and the body of ``POST /auth``."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..oci.credentials import Credentials
from ..oci.references import DEFAULT_DOMAIN
from ..oci.registry import check_login
from ..oci.transport import Transport
from .errors import BadRequest


class Login(NamedTuple):
    """Who somebody is to one registry."""

    #: Empty where the client does not say.
    domain: str
    credentials: Credentials

    def check(self) -> None:
        """Asks the registry. Raises RegistryUnauthorized."""
        transport = Transport()
        try:
            check_login(self.domain or DEFAULT_DOMAIN, self.credentials, transport)
        finally:
            transport.close()


def of_document(said: Mapping[str, Any]) -> Login | None:
    """What a client says as docker has it; ``None`` for nobody."""
    text = {name.lower(): value for name, value in said.items() if isinstance(value, str)}
    credentials = Credentials(
        text.get("username", ""), text.get("password", ""), text.get("identitytoken", ""), text.get("registrytoken", "")
    )
    if credentials == Credentials():
        return None
    return Login(_domain(text.get("serveraddress", "")), credentials)


def of_header(text: str) -> Login | None:
    """What ``X-Registry-Auth`` says. Raises BadRequest."""
    if not text:
        return None
    try:
        said = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError):
        raise BadRequest("X-Registry-Auth is not base64 of JSON") from None
    return of_document(said) if isinstance(said, dict) else None


def _domain(address: str) -> str:
    """The registry of an address as old clients write it: ``https://index.docker.io/v1/``."""
    host = address.partition("://")[2] or address
    host = host.partition("/")[0]
    return DEFAULT_DOMAIN if host in (f"index.{DEFAULT_DOMAIN}", f"registry-1.{DEFAULT_DOMAIN}") else host
