"""Clients that see what a main process writes as it does, and write what it reads.

What a client is sent are frames: a byte that says which stream (1 or 2), four that say how long, and so many of output.
What a client sends is input, as it is.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from .. import descriptors

STREAMS = {"stdout": 1, "stderr": 2}
_HEAD = struct.Struct(">BI")
#: Clients of one machine at once.
MAX_CLIENTS = 16
#: Seconds that a client may take nothing for before it is left: the main process waits meanwhile.
_PATIENCE = 5.0
#: Bytes of one frame at most.
_MAX_FRAME = 1 << 20


class Attached:
    """The clients, as a keeper has them."""

    def __init__(self, typed: Callable[[bytes], object]) -> None:
        """`typed` gets what clients send, each piece from a thread of the client's."""
        self._typed = typed
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []
        self._over = False

    def add(self) -> int:
        """A client's end of a new connection. Raises ConnectionError for one too many, and when all is over."""
        ours, theirs = descriptors.local_pair()
        ours.settimeout(_PATIENCE)
        with self._lock:
            if self._over or len(self._clients) >= MAX_CLIENTS:
                ours.close()
                theirs.close()
                raise ConnectionError(
                    "the machine is ending" if self._over else f"{MAX_CLIENTS} clients are attached; that is the limit"
                )
            self._clients.append(ours)
        threading.Thread(target=self._listen, args=(ours,), name="attached", daemon=True).start()
        return theirs.detach()

    def _listen(self, client: socket.socket) -> None:
        """A thread: passes on what a client sends."""
        while True:
            try:
                data = client.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                break
            if not data:
                # Its input has ended, which is not the end of the main process's: others may have more.
                break
            with contextlib.suppress(OSError, ValueError):
                self._typed(data)

    def write(self, stream: str, data: bytes) -> None:
        """Shows all of them what has come."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            try:
                client.sendall(_HEAD.pack(STREAMS[stream], len(data)) + data)
            except OSError:
                self._leave(client)

    def _leave(self, client: socket.socket) -> None:
        with self._lock:
            if client in self._clients:
                self._clients.remove(client)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()

    def close(self) -> None:
        """Tells all of them that there is no more."""
        with self._lock:
            self._over = True
            clients = list(self._clients)
        for client in clients:
            self._leave(client)


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
