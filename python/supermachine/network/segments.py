"""Private segments: machines of one program that reach each other by name, or of one user where they are shared.

Each machine's own policy process knows the others' names and takes what comes from them; no frame of a guest reaches
another one. A machine on a segment has an address that no other machine of this process has, or of this user.
"""

from __future__ import annotations

import re
import threading
import weakref
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._core import Worker

#: Addresses of this process's machines on segments. Below are the gateway's, and that which all other machines have.
_ADDRESSES = tuple(f"10.0.2.{last}" for last in range(16, 255))
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")


class _Segment:
    def __init__(self, number: int, ipv6: bool) -> None:
        self.number = number
        #: Whether names lead to addresses of IPv6 as well.
        self.ipv6 = ipv6
        #: Workers, and what they are called.
        self.members: list[tuple[weakref.ref[Worker], list[str]]] = []

    def alive(self) -> list[tuple[Worker, list[str]]]:
        found = [
            (worker, names) for ref, names in self.members if (worker := ref()) is not None and worker.exit is None
        ]
        self.members = [(weakref.ref(worker), names) for worker, names in found]
        return found


_lock = threading.Lock()
_segments: dict[str, _Segment] = {}
_numbers = 0
#: Who has an address; ``None`` for a machine that is being started.
_held: dict[str, weakref.ref[Worker] | None] = {}


def is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """Raises ConfigurationError for what is no name of a machine."""
    for name in names:
        if not is_name(name):
            raise ConfigurationError(f"{name!r} is no name of a machine: letters, digits, '-', '_' and '.' are")
    return tuple(names)


def checked_segment(name: object) -> str:
    """Raises ConfigurationError for what is no name of a segment that others find."""
    if not is_name(name):
        raise ConfigurationError(f"{name!r} is no name of a segment: letters, digits, '-', '_' and '.' are")
    return str(name)


def reserve(*, across: bool = False) -> str | None:
    """An address for a machine that is about to start, for `keep` or `release`; ``None`` when all are taken.

    With `across` it is one that no other machine of this user has.
    """
    if across:
        from . import shared

        return shared.reserve()
    with _lock:
        for address in _ADDRESSES:
            if address in _held:
                ref = _held[address]
                if ref is None or ((worker := ref()) is not None and worker.exit is None):
                    continue
            _held[address] = None
            return address
    return None


def keep(address: str, worker: Worker) -> None:
    """The machine has started: it has the address until it ends."""
    with _lock:
        if address in _held:
            _held[address] = weakref.ref(worker)
            return
    from . import shared

    shared.keep(address, worker)


def release(address: str) -> None:
    with _lock:
        if address in _held:
            del _held[address]
            return
    from . import shared

    shared.release(address)


def join(worker: Worker, segment: str, names: Sequence[str], *, ipv6: bool = True) -> None:
    """Puts a machine on a segment, where it is called so. Raises NotSupported for one without an address of its own.

    Whoever is first on one within this process says whether it has `ipv6`.
    """
    global _numbers
    if _is_shared(worker):
        from . import shared

        return shared.join(worker, checked_segment(segment), list(dict.fromkeys(checked(names))))
    if worker.network_address not in _held:
        raise NotSupported(
            f"the machine cannot be put on the segment {segment!r}: it was started without an address of its own",
            hint="start it with network=Network.private(NAME); a process has 239 such machines at once",
        )
    called = list(dict.fromkeys(checked(names)))
    with _lock:
        if segment not in _segments:
            _numbers += 1
            _segments[segment] = _Segment(_numbers, ipv6)
        there = _segments[segment]
        others = [(other, its) for other, its in there.alive() if other is not worker]
        worker.join_segment(there.number, called, there.ipv6)
        for other, its in others:
            worker.meet(there.number, called, other, its, there.ipv6)
        there.members = [(weakref.ref(other), its) for other, its in [*others, (worker, called)]]


def leave(worker: Worker, segment: str) -> None:
    """Takes a machine off a segment; what it has open there is reset."""
    if _is_shared(worker):
        from . import shared

        return shared.leave(worker, segment)
    with _lock:
        there = _segments.get(segment)
        if there is None:
            return
        others = [(other, its) for other, its in there.alive() if other is not worker]
        there.members = [(weakref.ref(other), its) for other, its in others]
        if not others:
            del _segments[segment]
        worker.leave_segment(there.number)


def address_of(worker: Worker) -> str:
    """Where other machines on its segments find it; empty for one that is on none."""
    address = worker.network_address
    return address if address is not None and (address in _held or _is_shared(worker)) else ""


def _is_shared(worker: Worker) -> bool:
    address = worker.network_address
    if address is None or address in _held:
        return False
    from . import shared

    return shared.has(address)
