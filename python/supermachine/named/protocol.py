"""What a keeper and its clients say to each other: JSON objects, one a line, over a Unix socket of the user's own."""

from __future__ import annotations

import array
import errno
import json
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from .. import descriptors, errors, shortage
from ..errors import ArgumentsTooLong, KeeperLost, SupermachineError

if TYPE_CHECKING:
    from _typeshed import HasFileno

#: Bytes of a message at most.
MAX_MESSAGE = 1 << 20
#: Descriptors that come with one read at most; a message has one.
_MAX_FDS = 4
#: Seconds in which a keeper answers what takes no time.
ANSWER = 30.0
#: Errors of Python's own that are raised again as what they are.
_BUILTIN: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        ValueError,
        TypeError,
        RuntimeError,
        MemoryError,
        NotImplementedError,
        OSError,
        TimeoutError,
        FileNotFoundError,
        FileExistsError,
        NotADirectoryError,
        IsADirectoryError,
        PermissionError,
        ProcessLookupError,
        ConnectionError,
        BrokenPipeError,
        ConnectionResetError,
        ConnectionRefusedError,
    )
}


class Channel:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self._fds: list[int] = []

    def send(self, message: dict[str, Any], fd: int | None = None) -> None:
        data = json.dumps(message).encode() + b"\n"
        if len(data) > MAX_MESSAGE:
            # Nothing else that is said has no bound of its own.
            raise ArgumentsTooLong(
                f"Argument list too long: the request takes {len(data)} bytes, and a keeper takes {MAX_MESSAGE} at most"
            )
        if fd is not None:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
            data = data[self._socket.sendmsg([data], [rights]) :]
        self._socket.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next message; ``None`` at the end.

        Raises ValueError for what is none, OSError for a lost connection, HostShortage where there is no descriptor for
        one that came.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_MESSAGE:
                raise ValueError("the message is too long")
            data, fds, flags = descriptors.received(self._socket, 65536, _MAX_FDS)
            self._fds += fds
            if flags & socket.MSG_CTRUNC:
                with shortage.Told("a connection to the machine cannot be taken"):
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("the message is no object")
        return message

    def ready(self, timeout: float) -> bool:
        """Waits until a message comes or the peer leaves; false when there is neither after so many seconds."""
        if b"\n" in self._buffer:
            return True
        waits = select.poll()
        waits.register(self._socket, select.POLLIN)
        return bool(waits.poll(max(0.0, timeout) * 1000))

    def wait(self, ended: HasFileno | int) -> bool:
        """Waits until a message comes or the peer leaves, which is true, or until a descriptor reads as ended."""
        waits = select.poll()
        waits.register(ended, select.POLLIN)
        waits.register(self._socket, select.POLLIN)
        return self._socket.fileno() in (fd for fd, _ in waits.poll())

    def take_fd(self) -> int | None:
        """A descriptor that came with the last message; the caller owns it."""
        return self._fds.pop(0) if self._fds else None

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._socket.close()


def error_to_json(error: BaseException) -> dict[str, Any]:
    """An error as another process can raise it again."""
    said = {"class": type(error).__name__, "message": str(error)}
    for name in ("cause", "hint", "reason", "console_tail", "code"):
        if isinstance(value := getattr(error, name, None), str):
            said[name] = value
    # The number is the host's, of which both are.
    number: Any = error.errno if isinstance(error, OSError) else None
    return said if number is None else {**said, "errno": number}


def error_from_json(said: dict[str, Any]) -> Exception:
    """That error; KeeperLost for one of which this side knows nothing."""
    kind = getattr(errors, str(said.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, SupermachineError)):
        if (builtin := _BUILTIN.get(str(said.get("class")))) is not None:
            raised = builtin(said.get("message"))
            if isinstance(raised, OSError) and isinstance(said.get("errno"), int):
                raised.errno = said["errno"]
            return raised
        return KeeperLost(f"the machine's keeper failed: {said.get('class')}: {said.get('message')}")
    error: SupermachineError = kind(str(said.get("message")), cause=said.get("cause"), hint=said.get("hint"))
    for name in ("reason", "console_tail", "code", "errno"):
        if name in said:
            setattr(error, name, said[name])
    return error
