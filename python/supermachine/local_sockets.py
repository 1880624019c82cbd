"""Unix sockets in directories of the user's own, whatever the length of their paths."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import descriptors

#: Seconds between two looks at whether a queue has room.
_POLL = 0.005
#: Bytes of a Unix socket's path, the least of all systems.
_MAX_PATH = 100


def listen(path: Path) -> socket.socket:
    """A listening socket that only this user can reach."""
    server = descriptors.local_socket()
    try:
        with _short(path) as name:
            server.bind(name)
        server.listen(64)
    except BaseException:
        server.close()
        raise
    return server


def connect(path: Path, timeout: float | None) -> socket.socket:
    """A connection to whoever listens. Raises OSError, TimeoutError among them."""
    client = descriptors.local_socket()
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        client.settimeout(timeout)
        with _short(path) as name:
            while True:
                try:
                    client.connect(name)
                    break
                except BlockingIOError:
                    # unix(7): with a time limit, nobody is queued where the queue is full.
                    if deadline is not None and time.monotonic() >= deadline:
                        raise TimeoutError("nobody took the connection in time") from None
                    time.sleep(_POLL)
    except BaseException:
        client.close()
        raise
    return client


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of a socket that is as short as its address must be."""
    if len(os.fsencode(path)) < _MAX_PATH or sys.platform != "linux":
        yield str(path)
        return
    fd = descriptors.open_file(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def peer_is_us(connection: socket.socket) -> bool:
    """Whether the other end is this user's, or root's."""
    if sys.platform == "darwin":
        # struct xucred (sys/ucred.h): version, uid, …; SOL_LOCAL is 0 and LOCAL_PEERCRED is 1.
        uid = struct.unpack_from("=II", connection.getsockopt(0, 1, 76))[1]
    else:
        uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid in (0, os.getuid())
