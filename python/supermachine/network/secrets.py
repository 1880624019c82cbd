"""Secrets that a guest never gets: what it has in their place, and for which hosts they are."""

from __future__ import annotations

import os

from ..errors import ConfigurationError

# As `typing` has it: this module is on the way of `supermachine run`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn, TypeAlias

    #: ``{"TOKEN": Secret(…)}``, or texts as ``--secret`` takes them.
    Secrets: TypeAlias = "Mapping[str, Secret] | Sequence[str]"

#: Variables that name a file of certificates: of OpenSSL and Go, requests, curl, git, Node, AWS's tools, Cargo, Deno.
_TRUST = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
)
#: Characters of a name at most.
_LONGEST = 128
#: Secrets of a machine at most.
_MOST = 64


class Secret:
    """A value that a guest may use without having it.

    It is put into requests to `hosts`, over TLS, where the guest has its placeholder: in header fields, in HTTP's
    basic credentials, and, if so asked, in the `query` of a target or in a `body`. A host is ``NAME[:PORT]`` or
    ``*.NAME[:PORT]``; the port is 443 unless it says another. Values are printable ASCII of 8 to 8192 bytes. Raises
    ConfigurationError for a value or a host that is none.
    """

    __slots__ = ("_value", "body", "hosts", "query")

    def __init__(self, value: str | bytes, hosts: Sequence[str], *, query: bool = False, body: bool = False) -> None:
        from .._core import MAX_SECRET, MIN_SECRET, check_secret_host

        told = value.encode() if isinstance(value, str) else bytes(value)
        if not MIN_SECRET <= len(told) <= MAX_SECRET or not all(32 <= byte < 127 for byte in told):
            raise ConfigurationError(
                f"a secret's value has to be {MIN_SECRET} to {MAX_SECRET} bytes of printable ASCII",
                hint="a shorter one could not be told from other text; a line's end is often left from a file",
            )
        if isinstance(hosts, str) or not hosts:
            raise ConfigurationError('a secret needs a list of the hosts that it is for: hosts=["api.example.com"]')
        for host in hosts:
            try:
                check_secret_host(host)
            except ValueError as error:
                raise ConfigurationError(str(error)) from None
        self._value = told
        self.hosts = tuple(hosts)
        self.query = query
        self.body = body

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.hosts, self.query, self.body))

    def __repr__(self) -> str:
        return f"Secret(…, hosts={list(self.hosts)})"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: it would be where others can read it")

    def rules(self) -> list[str]:
        """Rules that allow its hosts."""
        return [f"{host}/tcp" if ":" in host else f"{host}:443/tcp" for host in self.hosts]

    def told(self, name: str) -> tuple[str, bytes, Sequence[str], bool, bool]:
        """What the policy process is told of it."""
        return placeholder(name), self._value, self.hosts, self.query, self.body


def placeholder(name: str) -> str:
    """What a guest has in place of a secret: the same in each, so that snapshots and forks go on with it."""
    from .._core import sha256

    return f"supermachine_secret_{name}_{sha256(name.encode())[:16]}"


def environment(secrets: Mapping[str, Secret]) -> dict[str, str]:
    """The variables of a guest that has these: placeholders, and where the certificates are that it trusts."""
    from .._core import TRUST_BUNDLE

    return {**dict.fromkeys(_TRUST, TRUST_BUNDLE), **{name: placeholder(name) for name in secrets}}


def secrets(value: Secrets | None) -> dict[str, Secret]:
    """Secrets by the names of their variables. Raises ConfigurationError for what is none, and OSError for a file."""
    if not value:
        return {}
    if isinstance(value, str):
        raise ConfigurationError('secrets are a mapping, as {"TOKEN": Secret(…)}, or a list of texts')
    found: dict[str, Secret] = {}
    items = value.items() if hasattr(value, "items") else map(_written, value)
    for name, secret in items:
        if not isinstance(name, str) or not (name.isascii() and name.isidentifier() and len(name) <= _LONGEST):
            raise ConfigurationError(f"{name!r} cannot be the name of a secret's variable")
        if not isinstance(secret, Secret):
            # It may be the value.
            raise ConfigurationError(f"the secret {name} is none: Secret(value, hosts=[…]) is needed")
        if name in found:
            raise ConfigurationError(f"the secret {name} is there twice")
        found[name] = secret
    if len(found) > _MOST:
        raise ConfigurationError(f"there are {len(found)} secrets; {_MOST} at most are possible")
    return found


def _written(text: str) -> tuple[str, Secret]:
    """``NAME[=FILE]@HOST[:PORT][,HOST…]``: the value is that of this process's variable NAME, or FILE's first line."""
    said, at, hosts = text.rpartition("@")
    name, equals, file = said.partition("=")
    if not at or not name or not hosts or (equals and not file):
        # A value in place of a file's name would be shown.
        raise ConfigurationError(
            f"the secret {name or text[:20]!r} is not written as NAME[=FILE]@HOST[:PORT][,HOST…]",
            hint="the value is that of the variable NAME, or in FILE, so that no command line has it",
        )
    if equals:
        with open(file, "rb") as stream:  # noqa: PTH123
            value = stream.read(1 << 16).rstrip(b"\r\n")
    else:
        found = os.environ.get(name)
        if found is None:
            raise ConfigurationError(
                f"the variable {name}, whose value is to be a secret, is not set",
                hint="set it, or name a file: NAME=FILE@HOST",
            )
        value = os.fsencode(found)
    return name, Secret(value, hosts.split(","))
