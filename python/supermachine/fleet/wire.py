"""What a fleet's clients and hosts say to each other, over TLS 1.3: JSON objects, then a guest's own bytes.

Each host has made certificates for itself and for its clients, and the engine has carried those of the clients to them:
``rust/python/src/secured.rs``.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import descriptors
from .._core import secured
from ..errors import FleetFailed
from ..named.protocol import error_from_json, error_to_json

if TYPE_CHECKING:
    from ..network.secrets import Secret

#: Bytes of a message at most. As many secrets as there may be, each as long as it may be, are a quarter of it.
_MAX_MESSAGE = 4 << 20
#: Seconds for a connection to be made, and for each end to say who it is.
GREETING = 5.0
_PIECE = 256 << 10

__all__ = [
    "GREETING",
    "Address",
    "Wire",
    "connect",
    "error_from_json",
    "error_to_json",
    "greet",
    "relay",
    "secrets_from_json",
    "secrets_to_json",
]


class Address(NamedTuple):
    """Where a host is, and what it takes to speak with it."""

    name: str
    host: str
    port: int
    #: Of a client of this host: `Host.credentials`. Secret.
    credentials: bytes
    labels: dict[str, str]

    def __repr__(self) -> str:
        return f"Address({self.name!r}, {self.host!r}, {self.port})"


class Wire:
    """One end of a connection whose other end is known."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Raises OSError when the other end is gone."""
        data = json.dumps(message).encode()
        with self._lock:
            self.socket.sendall(struct.pack("<I", len(data)) + data)

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next message; ``None`` at the end. Raises TimeoutError, OSError, or ValueError for what is no message."""
        self.socket.settimeout(timeout)
        head = _exactly(self.socket, 4)
        if head is None:
            return None
        (length,) = struct.unpack("<I", head)
        if length > _MAX_MESSAGE:
            raise ValueError("the message is too long")
        body = _exactly(self.socket, length)
        if body is None:
            return None
        message = json.loads(body)
        if not isinstance(message, dict):
            raise ValueError("the message is no object")
        return message

    def ask(self, request: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """The answer to a request; raises the error that it has."""
        self.send(request)
        answer = self.receive(timeout)
        if answer is None:
            raise ConnectionResetError("the host has closed the connection")
        if isinstance(answer.get("error"), dict):
            raise error_from_json(answer["error"])
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(min(count - len(data), _PIECE))
        if not piece:
            return None
        data += piece
    return bytes(data)


def prepare(connection: socket.socket) -> None:
    """What every connection of a fleet has: no delay, and an end when the other host has vanished."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 5000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def connect(address: Address, timeout: float = GREETING) -> Wire:
    """A connection to a host. Raises FleetFailed for one that is not who it should be, OSError for none."""
    with descriptors.connection((address.host, address.port), timeout) as connection:
        prepare(connection)
        try:
            return Wire(socket.socket(fileno=secured(connection.fileno(), address.credentials, timeout)))
        except ValueError as error:
            raise FleetFailed(
                f"what answers at {address.host}:{address.port} is not the host {address.name}", cause=str(error)
            ) from None


def greet(connection: socket.socket, credentials: bytes) -> Wire | None:
    """The host's side: the connection, if the other end is a client of this host. Raises OSError."""
    prepare(connection)
    try:
        return Wire(socket.socket(fileno=secured(connection.fileno(), credentials, GREETING)))
    except ValueError:
        return None


def secrets_to_json(secrets: Mapping[str, Secret] | None) -> dict[str, Any]:
    """Secrets with their values, for a message alone: a connection is the only place where they are so."""
    said = {}
    for name, secret in (secrets or {}).items():
        _, value, hosts, query, body = secret.told(name)
        said[name] = {"value": value.decode("ascii"), "hosts": list(hosts), "query": query, "body": body}
    return said


def secrets_from_json(said: Mapping[str, Any]) -> dict[str, Secret]:
    """The same at the other end. Raises ConfigurationError for what is none."""
    from ..network.secrets import Secret

    return {
        str(name): Secret(each["value"], each["hosts"], query=bool(each["query"]), body=bool(each["body"]))
        for name, each in said.items()
    }


def relay(one: socket.socket, other: socket.socket, done: Callable[[], object] = lambda: None) -> None:
    """Joins two sockets until both directions have ended; the end of one is passed on. Closes both."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        buffer = bytearray(_PIECE)
        view = memoryview(buffer)
        try:
            while count := source.recv_into(buffer):
                target.sendall(view[:count])
        except OSError:
            # A broken connection is no end of a stream: both ends are to see that.
            for each in (source, target):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        else:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    for each in (one, other):
        each.settimeout(None)
    thread = threading.Thread(target=pump, args=(one, other), name="supermachine-relay", daemon=True)
    thread.start()
    try:
        pump(other, one)
        thread.join()
    finally:
        one.close()
        other.close()
        done()
