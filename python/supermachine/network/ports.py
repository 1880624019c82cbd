"""Ports of the host that lead to ports of a guest, as docker-py writes them: ``{"80/tcp": 8080, "53/udp": 53}``.

``"5000/vsock"`` is a port on which something in the guest listens with AF_VSOCK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ConfigurationError, NotSupported, PortUnavailable

if TYPE_CHECKING:
    from .._core import Forward, Worker

#: Where a port of the guest is to be had: a port, ``None`` for any free one, (address, port), or several of them.
Place: TypeAlias = "int | tuple[str, int | None] | None"
Ports: TypeAlias = "Mapping[str, Place | Sequence[Place]]"
#: "80/tcp", "53/udp" or "5000/vsock" to (address, port) of the host; port 0 for any free one.
Wanted: TypeAlias = "dict[str, list[tuple[str, int]]]"

_LOOPBACK = "127.0.0.1"
#: The guest's ports by protocol: the last one.
_LAST = {"tcp": 65535, "udp": 65535, "vsock": (1 << 32) - 2}


def parse(ports: Ports | None) -> Wanted:
    """Checks what a user wrote."""
    wanted: Wanted = {}
    for key, value in (ports or {}).items():
        number, _, protocol = str(key).partition("/")
        protocol = protocol or "tcp"
        if protocol not in _LAST:
            raise NotSupported(f"{key!r} is no port of TCP, UDP or vsock; others cannot be published")
        name = f"{_number(number, key, 1, _LAST[protocol])}/{protocol}"
        places = value if isinstance(value, list) else [value]
        wanted.setdefault(name, []).extend(_place(place, key) for place in places)
    return wanted


def _place(place: object, key: object) -> tuple[str, int]:
    address, port = place if isinstance(place, tuple) and len(place) == 2 else (_LOOPBACK, place)
    if not isinstance(address, str):
        raise ConfigurationError(f"{place!r}, for the port {key!r}, is neither a port nor (address, port)")
    return address or _LOOPBACK, 0 if port is None else _number(port, key, 0)


def _number(value: object, key: object, least: int, most: int = 65535) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(most)):
        value = int(value)
    if not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(f"{value!r}, for the port {key!r}, is not a port")
    return value


def published(texts: Sequence[str]) -> Wanted:
    """What docker's ``--publish`` says: ``[[ADDRESS:]PORT:]GUEST[/tcp|/udp]``."""
    wanted: Wanted = {}
    for text in texts:
        rest, _, guest = text.rpartition(":")
        # The address may hold colons itself, in brackets.
        address, _, port = rest.rpartition(":") if not rest.isdecimal() else ("", "", rest)
        place: Place = (address.strip("[]"), int(port) if port.isdecimal() else None) if rest else None
        if port and not port.isdecimal():
            raise ConfigurationError(f"{text!r} publishes no port; write 8080:80 or 127.0.0.1:8080:80")
        for name, places in parse({guest: place}).items():
            wanted.setdefault(name, []).extend(places)
    return wanted


def fresh(recorded: Wanted) -> Wanted:
    """The same ports of the guest, on any free ports of the host."""
    return {name: [(address, 0) for address, _ in places] for name, places in recorded.items()}


class Bound:
    """Listening ports of one virtual machine."""

    def __init__(self, worker: Worker, wanted: Wanted) -> None:
        self._forwards: dict[str, list[tuple[str, Forward]]] = {}
        try:
            for name, places in wanted.items():
                for address, port in places:
                    self._forwards.setdefault(name, []).append((address, _listen(worker, name, address, port)))
        except BaseException:
            self.close()
            raise

    def places(self) -> Wanted:
        return {name: [(address, f.port) for address, f in found] for name, found in self._forwards.items()}

    def close(self) -> None:
        for found in self._forwards.values():
            for _, forward in found:
                forward.close()
        self._forwards = {}


def _listen(worker: Worker, name: str, address: str, port: int) -> Forward:
    from .._core import Forward

    number, _, protocol = name.partition("/")
    if protocol == "udp" and not worker.has_network:
        raise NotSupported(
            f"the guest's port {name} cannot be published: UDP ports need a network, and this guest has none",
            hint="start it with a network that allows nothing of its own: Network('none', allow=['gateway:9'])",
        )
    try:
        return Forward.start(worker, protocol, int(number), address, port)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    except OSError as error:
        raise PortUnavailable(
            f"{address}:{port} cannot be listened on for the guest's port {name}",
            cause=error.strerror or str(error),
            hint="choose another port, or None for any that is free",
        ) from error
