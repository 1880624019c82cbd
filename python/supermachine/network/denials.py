"""What the network's policy has denied."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._core import Worker

#: Seconds that denials which are on their way are waited for.
_ON_THE_WAY = 1.0


class NetworkDenied(NamedTuple):
    """Something that the guest was not let do."""

    #: The name that was looked up, or under which the address was found.
    name: str | None
    #: ``None`` for a look-up.
    address: str | None
    #: 0 where there is none.
    port: int
    #: "tcp", "udp", "icmp" or "dns"; "any" when nothing is let through any more, with the reason.
    protocol: str
    #: The rule that denies it, where it was one.
    rule: str | None
    reason: str
    #: A rule that would allow it; empty where none could.
    remedy: str
    #: Seconds since 1970.
    time: float

    def __str__(self) -> str:
        if self.protocol == "any":
            return f"every connection: {self.reason}"
        place = self.name or self.address or "?"
        if self.protocol == "dns":
            what = f"the name {place}"
        else:
            where = f" ({self.address})" if self.name and self.address else ""
            what = f"{place}{f':{self.port}' if self.port else ''}{where} by {self.protocol}"
        return f"{what}: {self.reason}" + (f" ({self.rule})" if self.rule else "")


class GuestNetwork:
    """The network of a virtual machine that runs."""

    def __init__(self, worker: Callable[[], Worker]) -> None:
        self._worker = worker

    def denials(self) -> list[NetworkDenied]:
        """What has been denied so far; of a great many the latest."""
        return _since(self._worker(), 0)[0]

    def events(self, timeout: float | None = None) -> Iterator[NetworkDenied]:
        """Denials as they come, from the first; ends with the machine, or after `timeout` seconds without one."""
        worker, number = self._worker(), 0
        while worker.wait_denial(number, timeout):
            found, number = _since(worker, number)
            yield from found


def _since(worker: Worker, number: int) -> tuple[list[NetworkDenied], int]:
    found, following = worker.denials(number, _ON_THE_WAY)
    return [NetworkDenied(*denial[:-1], denial[-1] / 1e9) for denial in found], following


def complaints(worker: Worker) -> Iterator[str]:
    """Lines for who ran a command that failed: what was denied, each once, and what would allow it."""
    seen = set()
    for denial in _since(worker, 0)[0]:
        if (line := str(denial)) in seen:
            continue
        seen.add(line)
        yield f"the network's policy denied {line}" + (
            f"; the rule {denial.remedy} in --network allows it" if denial.remedy else ""
        )
