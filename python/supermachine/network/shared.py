"""Private segments of all processes of one user: machines with names, and those of programs.

Each machine on one has an address that no other machine of this user has, and a socket that is called so in the user's
runtime directory. At it the machine's process is told who else comes to its segments, and given the link to that one's
policy process. So nothing lives longer than the machines do, and nobody has to be there first. A socket at which
nobody answers any more is taken away by the next who comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import descriptors, directories, local_sockets, shortage
from .._core import VERSION
from ..cache import locks
from ..errors import HostShortage, NotSupported, VMTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._core import Worker

#: Addresses of a user's machines on these segments; the gateway's network holds them with a prefix of 23 bits.
_ADDRESSES = tuple(f"10.0.3.{last}" for last in range(1, 255))
#: Seconds in which whoever holds the directory's lock is done with it, and in which a process answers for its machine.
_PATIENCE, _ANSWER = 30.0, 5.0
#: Bytes of a message at most.
_MAX_MESSAGE = 1 << 16


class _Machine:
    """One of this process's: its address, its socket, and the segments that it is on."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self.path, self.listener = path, listener
        descriptors.unshared(listener.fileno())
        #: ``None`` while it starts.
        self.worker: weakref.ref[Worker] | None = None
        #: The number that its policy process knows a segment by, and its names there.
        self.segments: dict[str, tuple[int, list[str]]] = {}

    def alive(self) -> Worker | None:
        worker = None if self.worker is None else self.worker()
        return worker if worker is not None and worker.exit is None else None

    def is_over(self) -> bool:
        return self.worker is not None and self.alive() is None


_lock = threading.Lock()
_machines: dict[str, _Machine] = {}
_numbers = 0
_selector: selectors.BaseSelector | None = None


def _forget() -> None:
    """In a forked child, which has no machines."""
    global _lock, _selector
    _lock = threading.Lock()
    _machines.clear()
    _selector = None


os.register_at_fork(after_in_child=_forget)


def _directory() -> Path:
    """Raises RuntimeDirectoryNotTrusted where it could be another user's work."""
    directory = Path(directories.runtime_directory(), "segments").absolute()
    directories.make_own(directory, "private segments")
    return directory


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Held while addresses are given out and machines are introduced to each other: one at a time, of all processes."""
    if (fd := locks.acquire_within(directory / "lock", _PATIENCE)) is None:
        raise VMTimeout(
            f"another process has held {directories.shown(directory)} for {_PATIENCE:g} seconds",
            hint="look for a process of supermachine that is stopped",
        )
    try:
        yield
    finally:
        locks.release(fd)


def reserve() -> str | None:
    """An address for a machine that is about to start, for `keep` or `release`; ``None`` when all are taken."""
    directory = _directory()
    with _locked(directory):
        _sweep()
        there = {path.name for path in directory.iterdir()}
        # Those that are free come first.
        for address in sorted(_ADDRESSES, key=there.__contains__):
            path = directory / address
            if address in there and not _is_debris(path):
                continue
            machine = _Machine(path, local_sockets.listen(path))
            with _lock:
                _machines[address] = machine
                _serve(address, machine)
            return address
    return None


def has(address: str | None) -> bool:
    """Whether it is that of a machine of this process on these segments."""
    return address in _machines


def keep(address: str, worker: Worker) -> None:
    """The machine has started: it has the address until it ends."""
    with _lock:
        if machine := _machines.get(address):
            machine.worker = weakref.ref(worker)


def release(address: str) -> None:
    with _lock:
        if machine := _machines.pop(address, None):
            _end(machine)


def _end(machine: _Machine) -> None:
    if _selector is not None:
        with contextlib.suppress(KeyError, ValueError):
            _selector.unregister(machine.listener)
    with contextlib.suppress(OSError):
        machine.path.unlink()
    descriptors.close(machine.listener.detach())


def _sweep() -> None:
    """Gives up the addresses of machines that have ended."""
    with _lock:
        for address, machine in list(_machines.items()):
            if machine.is_over():
                del _machines[address]
                _end(machine)


def _is_debris(path: Path) -> bool:
    """Takes away the socket of a process that is gone; false for one at which somebody listens."""
    try:
        local_sockets.connect(path, _ANSWER).close()
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return not path.exists()
    return False


def join(worker: Worker, segment: str, names: Sequence[str]) -> None:
    """Puts a machine on a segment, where it is called so. Raises NotSupported where one is there of another version."""
    global _numbers
    own = worker.network_address
    directory = _directory()
    with _locked(directory):
        _sweep()
        with _lock:
            if own is None or (machine := _machines.get(own)) is None:
                raise NotSupported("the machine has ended")
            if segment in machine.segments:
                number = machine.segments[segment][0]
            else:
                _numbers += 1
                number = _numbers
            machine.segments[segment] = (number, list(names))
        worker.join_segment(number, list(names), True)
        said = {"version": VERSION, "segment": segment, "names": list(names), "address": own}
        for path in sorted(directory.iterdir()):
            if path.name != own and path.name in _ADDRESSES:
                _introduce(worker, number, path, said)


def _introduce(worker: Worker, number: int, path: Path, said: dict[str, Any]) -> None:
    """Has the machine and the one that has this socket know each other, where that is on the segment as well."""
    try:
        connection = local_sockets.connect(path, _ANSWER)
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError:
        return
    ours, theirs = descriptors.local_pair()
    with connection, ours, theirs:
        try:
            socket.send_fds(connection, [_encoded(said)], [theirs.fileno()])
            its = _decoded(connection)
        except (OSError, ValueError):
            return  # it has ended meanwhile, or its process is stopped
        if its.get("version") not in (None, VERSION):
            raise NotSupported(
                f"the machine at {path.name} on the segment {said['segment']!r} is of supermachine {its['version']}",
                hint="end it, or use the same version",
            )
        if its.get("address"):
            worker.meet_remote(number, its["address"], its["names"], ours.fileno())


def leave(worker: Worker, segment: str) -> None:
    """Takes a machine off a segment; what it has open there is reset. Others see the link to it end."""
    with _lock:
        machine = _machines.get(worker.network_address or "")
        there = machine.segments.pop(segment, None) if machine is not None else None
    if there is not None:
        worker.leave_segment(there[0])


def _serve(address: str, machine: _Machine) -> None:
    """Has this process's thread answer at the machine's socket."""
    global _selector
    begins = _selector is None
    if _selector is None:
        _selector = selectors.DefaultSelector()
    machine.listener.setblocking(False)
    _selector.register(machine.listener, selectors.EVENT_READ, address)
    if begins:
        thread = threading.Thread(target=_answer_all, args=(_selector,), name="supermachine-segments", daemon=True)
        try:
            shortage.start(thread, "others on the segment cannot be answered")
        except HostShortage:
            _selector.close()
            _selector = None
            raise


def _answer_all(selector: selectors.BaseSelector) -> None:
    while True:
        # Not without an end: in kqueue and poll a new socket does not end a wait that has begun.
        for key, _ in selector.select(0.5):
            # Whatever it says, the others are served.
            with (
                contextlib.suppress(OSError, ValueError, LookupError, TypeError, RuntimeError),
                descriptors.accepted(key.fileobj) as client,  # type: ignore[arg-type]
            ):
                _answer(key.data, client)


def _answer(address: str, connection: socket.socket) -> None:
    """Meets who has come, where the machine is on the segment that it names."""
    connection.settimeout(_ANSWER)
    if not local_sockets.peer_is_us(connection):
        return
    data, fds = b"", list[int]()
    try:
        while not data.endswith(b"\n"):
            more, came, _ = descriptors.received(connection, _MAX_MESSAGE, 1)
            data, fds = data + more, fds + came
            if not more or len(data) > _MAX_MESSAGE:
                return  # who only looks whether somebody is here
        said = json.loads(data)
        with _lock:
            machine = _machines.get(address)
            worker = None if machine is None else machine.alive()
            number, names = (machine.segments if machine is not None else {}).get(said["segment"], (0, None))
        answer: dict[str, Any] = {}
        if worker is not None and names is not None:
            answer = {"version": VERSION, "names": names, "address": address}
            if said["version"] == VERSION and fds:
                worker.meet_remote(number, said["address"], said["names"], fds[0])
        connection.sendall(_encoded(answer))
    finally:
        for fd in fds:
            os.close(fd)


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _decoded(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(_MAX_MESSAGE)
        if not more or len(data) > _MAX_MESSAGE:
            raise ValueError("it says nothing whole")
        data += more
    said = json.loads(data)
    if not isinstance(said, dict):
        raise ValueError("it says no object")
    return said
