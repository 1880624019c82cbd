"""Clients that see what a main process writes as it does, and write what it reads.

What a client is sent are frames: a byte that says which stream (1 or 2), four that say how long, and so many of output.
What a client sends is input, as it is.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .. import descriptors, shortage
from ..errors import ConfigurationError, MachineNotRunning

STREAMS = {"stdout": 1, "stderr": 2}
_HEAD = struct.Struct(">BI")
#: Clients of one machine at once.
MAX_CLIENTS = 16
#: Seconds that a client may take nothing for before it is left: the main process waits meanwhile.
_PATIENCE = 5.0
#: Seconds between looks at whether one that sends no more is still there, at most and at least.
_LOOK, _PAUSE = 5.0, 0.1
#: Bytes of one frame at most.
_MAX_FRAME = 1 << 20


class _Client(NamedTuple):
    connection: socket.socket
    #: Held while a frame is sent to it, whole.
    writing: threading.Lock


class Attached:
    """The clients, as a keeper has them."""

    def __init__(self, typed: Callable[[bytes], object]) -> None:
        """`typed` gets what clients send, each piece from a thread of the client's."""
        self._typed = typed
        self._lock = threading.Lock()
        self._clients: list[_Client] = []
        self._over = False

    def add(self) -> int:
        """A client's end of a new connection. Raises ConfigurationError for one too many, MachineNotRunning when all is
        over, and HostShortage.
        """
        with shortage.Told("nobody can be attached to the machine"):
            ours, theirs = descriptors.local_pair()
        ours.settimeout(_PATIENCE)
        client = _Client(ours, threading.Lock())
        try:
            with self._lock:
                if self._over:
                    raise MachineNotRunning("the machine is ending")
                if len(self._clients) >= MAX_CLIENTS:
                    raise ConfigurationError(
                        f"{MAX_CLIENTS} clients are attached; that is the limit", hint="end one of them"
                    )
                self._clients.append(client)
            thread = threading.Thread(target=self._listen, args=(client,), name="attached", daemon=True)
            shortage.start(thread, "nobody can be attached to the machine")
        except BaseException:
            self._leave(client)
            ours.close()
            theirs.close()
            raise
        return theirs.detach()

    def _listen(self, client: _Client) -> None:
        """A thread, until the client has gone or is left: passes on what it sends, and closes the connection."""
        try:
            while True:
                try:
                    data = client.connection.recv(1 << 16)
                except TimeoutError:
                    continue
                if not data:
                    # Its input has ended, which is not the end of the main process's: others may have more.
                    break
                with contextlib.suppress(OSError, ValueError):
                    self._typed(data)
            _until_gone(client.connection)
        except OSError:
            pass  # it has gone without reading all that it was sent
        finally:
            self._leave(client)
            with client.writing:
                client.connection.close()

    def write(self, stream: str, data: bytes) -> None:
        """Shows all of them what has come."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            try:
                with client.writing:
                    client.connection.sendall(_HEAD.pack(STREAMS[stream], len(data)) + data)
            except OSError:
                self._leave(client)

    def _leave(self, client: _Client) -> None:
        """Has no more to do with a client, whose own thread then ends."""
        with self._lock:
            if client in self._clients:
                self._clients.remove(client)
        with contextlib.suppress(OSError):
            client.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Tells all of them that there is no more."""
        with self._lock:
            self._over = True
            clients = list(self._clients)
        for client in clients:
            self._leave(client)


def _until_gone(connection: socket.socket) -> None:
    """Waits until both directions have ended."""
    poll = select.poll()
    poll.register(connection, 0)
    with contextlib.suppress(BrokenPipeError):
        while True:
            poll.poll(_LOOK * 1000)
            # Some systems say POLLHUP of one that has ended its input alone; nothing can be sent to who has gone.
            connection.send(b"")
            time.sleep(_PAUSE)


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """What a client is sent until the end: 1 or 2, and output. Raises OSError."""
    buffer = b""
    while data := connection.recv(1 << 16):
        buffer += data
        while len(buffer) >= _HEAD.size:
            stream, size = _HEAD.unpack_from(buffer)
            if stream not in STREAMS.values() or size > _MAX_FRAME:
                raise ConnectionError("the machine's keeper sends what is no frame")
            if len(buffer) < _HEAD.size + size:
                break
            yield stream, buffer[_HEAD.size : _HEAD.size + size]
            buffer = buffer[_HEAD.size + size :]
