"""What a fleet's clients and hosts say to each other, over TCP: who they are, JSON objects, then a guest's own bytes.

Both ends know a secret of 32 bytes, which the engine has carried. Each proves that to the other by an HMAC over two
random numbers (SHA-256); after that, what is sent is not encrypted: fleets are for networks that are trusted so far.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import descriptors
from ..errors import FleetFailed
from ..named.protocol import error_from_json, error_to_json

#: Bytes of a message at most.
_MAX_MESSAGE = 1 << 20
#: Seconds for the proofs, and for a connection to be made.
GREETING = 5.0
_NONCE = 32
_PIECE = 256 << 10
_MAGIC = b"supermachine fleet 1\n"

__all__ = ["GREETING", "Address", "Wire", "connect", "error_from_json", "error_to_json", "greet", "relay"]


class Address(NamedTuple):
    """Where a host is, and what it takes to speak with it."""

    name: str
    host: str
    port: int
    secret: bytes
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


def _proof(secret: bytes, side: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(secret, _MAGIC + side + first + second, "sha256")


def connect(address: Address, timeout: float = GREETING) -> Wire:
    """A connection to a host. Raises FleetFailed for one that is not who it should be, OSError for none."""
    connection = descriptors.connection((address.host, address.port), timeout)
    try:
        prepare(connection)
        own = os.urandom(_NONCE)
        theirs = _exactly(connection, _NONCE)
        if theirs is None:
            raise ConnectionResetError("the host has closed the connection")
        connection.sendall(own + _proof(address.secret, b"client", theirs, own))
        answer = _exactly(connection, 32)
        if answer is None:
            raise ConnectionResetError("the host has closed the connection")
        if not hmac.compare_digest(answer, _proof(address.secret, b"host", own, theirs)):
            raise FleetFailed(f"what answers at {address.host}:{address.port} is not the host {address.name}")
    except BaseException:
        connection.close()
        raise
    return Wire(connection)


def greet(connection: socket.socket, secret: bytes) -> bool:
    """The host's side: whether the other end knows the secret."""
    connection.settimeout(GREETING)
    prepare(connection)
    own = os.urandom(_NONCE)
    connection.sendall(own)
    said = _exactly(connection, _NONCE + 32)
    if said is None or not hmac.compare_digest(said[_NONCE:], _proof(secret, b"client", own, said[:_NONCE])):
        return False
    connection.sendall(_proof(secret, b"host", said[:_NONCE], own))
    return True


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
