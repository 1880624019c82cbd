"""Descriptors that are made in Python: none is 0, 1 or 2, and what holds something is this process's alone.

A standard stream that is closed leaves its number to whatever is opened next; what the program or a guest then writes
to that stream must not end up in a lock, a snapshot or a socket. And a child that is forked from this process has no
share in its locks and leases: they would outlive their owner, and the child's end would give them back too early.
``rust/python/src/descriptors.rs`` does the same for what the extension makes.

On the way of every `supermachine run`: nothing here loads a module that takes long.
"""

from __future__ import annotations

import os
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_LAST_STANDARD = 2

#: Those that a forked child gives up. The lock is held while one is made or closed, so that no fork falls in between.
_unshared: set[int] = set()
_lock = RLock()


def reserve() -> None:
    """Opens /dev/null where 0, 1 or 2 is closed; for what opens files and sockets by itself."""
    from ._core import reserve_standard_streams

    reserve_standard_streams()


def raised(fd: int) -> int:
    """The same file under a number above 2. The one given is closed when it was another, and /dev/null has it then."""
    if fd > _LAST_STANDARD:
        return fd
    import fcntl

    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD + 1)
    finally:
        os.close(fd)
    reserve()
    return high


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> int:
    """As `os.open`, for the owner alone unless told otherwise."""
    return raised(os.open(path, flags | os.O_CLOEXEC, mode))


def open_unshared(path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> int:
    """The same, of this process alone, for `close`."""
    with _lock:
        fd = open_file(path, flags, mode)
        _unshared.add(fd)
        return fd


def unshared(fd: int) -> int:
    """Has forked children give up a descriptor, which `close` closes."""
    _unshared.add(fd)
    return fd


def close(fd: int) -> None:
    """Closes one that forked children give up; in such a child, what took its place."""
    with _lock:
        _unshared.discard(fd)
        os.close(fd)


def nameless_file(directory: str | None) -> int:
    """An empty file without a name on any file system; the usual place for temporary ones where none is given."""
    import tempfile

    fd, name = tempfile.mkstemp(dir=directory)
    os.unlink(name)  # noqa: PTH108
    return raised(fd)


def pipe() -> tuple[int, int]:
    """As `os.pipe`: the end to read from, and the one to write to."""
    reader, writer = os.pipe()
    return raised(reader), raised(writer)


def memory_file(name: str) -> int:
    """An empty file in memory. Raises AttributeError where there are none."""
    return raised(os.memfd_create(name, os.MFD_CLOEXEC))


def local_socket() -> socket.socket:
    """A stream socket of the family AF_UNIX."""
    import socket

    return _raised_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))


def local_pair() -> tuple[socket.socket, socket.socket]:
    """As `socket.socketpair`."""
    import socket

    one, other = socket.socketpair()
    return _raised_socket(one), _raised_socket(other)


def connection(address: tuple[str, int], timeout: float | None) -> socket.socket:
    """As `socket.create_connection`."""
    import socket

    reserve()
    return _raised_socket(socket.create_connection(address, timeout))


def server(address: tuple[str, int], backlog: int | None = None) -> socket.socket:
    """As `socket.create_server`."""
    import socket

    return _raised_socket(socket.create_server(address, backlog=backlog))


def accepted(listener: socket.socket) -> socket.socket:
    """As `accept`, without the address."""
    return _raised_socket(listener.accept()[0])


def received(connection: socket.socket, size: int, count: int) -> tuple[bytes, list[int], int]:
    """As `socket.recv_fds`, without the address. No program that this process starts inherits what came."""
    import socket

    # macOS has no flag for it.
    close_on_exec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, fds, flags, _ = socket.recv_fds(connection, size, count, close_on_exec)
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, [raised(fd) for fd in fds], flags


def _raised_socket(made: socket.socket) -> socket.socket:
    if made.fileno() > _LAST_STANDARD:
        return made
    import socket

    timeout = made.gettimeout()
    high = socket.socket(fileno=raised(made.detach()))
    high.settimeout(timeout)
    return high


def _give_up() -> None:
    """In a forked child. The objects stay, and close their number in the end; only what is behind it changes."""
    if _unshared:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in _unshared:
            if fd != null:
                os.dup2(null, fd, inheritable=False)
        if null not in _unshared:
            os.close(null)
    _lock.release()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_give_up)
