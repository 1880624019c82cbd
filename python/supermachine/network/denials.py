"""The network of a machine that runs: its policy, what that has denied, what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import NotSupported, VMTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .._core import Worker
    from .policy import Network

#: Seconds that the policy process has for an answer.
_ANSWER = 10.0
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


class Flow(NamedTuple):
    """A connection of the guest's, or datagrams to one address."""

    #: "tcp", "udp" or "icmp".
    protocol: str
    guest_port: int
    #: The name under which the address was found.
    name: str | None
    address: str
    port: int
    #: Seconds since 1970.
    since: float


class GuestNetwork:
    """The network of a virtual machine that runs."""

    def __init__(
        self, worker: Callable[[], Worker], policy: Callable[[], Network], keep: Callable[[Network], None]
    ) -> None:
        self._worker, self._policy, self._keep = worker, policy, keep

    @property
    def policy(self) -> Network:
        """What the guest may reach."""
        return self._policy()

    def update(
        self, network: Network | str | None = None, *, allow: Sequence[str] = (), deny: Sequence[str] = ()
    ) -> None:
        """Sets another policy, or adds rules to the one that there is. What that does not allow is reset.

        Forks that are made from now on have it as well. Raises `NotSupported` where the machine was started without a
        network, and for other name servers, secrets or another audit log than it was started with.
        """
        from . import policy

        worker, before = self._worker(), self._policy()
        new = before.also(allow, deny) if network is None else policy.network(network, allow, deny)
        if isinstance(network, str):
            new = new.replaced(dns=before.dns, audit=before.audit, secrets=before.secrets)
        # It stays on its segments.
        new = new.like(before)
        if not worker.has_network:
            raise NotSupported(
                "the virtual machine was started without a network, and gets none while it runs",
                hint="start it with a network that allows little: Network('none', allow=['gateway'])",
            )
        if (new.dns, new.audit, new.secrets) != (before.dns, before.audit, before.secrets):
            raise NotSupported("name servers, the audit log and secrets are those that the machine was started with")
        worker.set_network_policy(new.preset, new.allow, new.deny)
        self._keep(new)

    def join(self, segment: str, names: Sequence[str], *, ipv6: bool = True) -> None:
        """Puts it on a private segment, where it is called so; a process forgets a segment that nobody is on.

        Without `ipv6` names lead to addresses of IPv4 alone on a segment of this process that nobody was on before.

        Raises NotSupported where it was not started with `Network.private`, as it needs an address of its own.
        """
        from . import segments

        segments.join(self._worker(), segment, names, ipv6=ipv6)

    def leave(self, segment: str) -> None:
        """Takes it off a private segment. What it has open there is reset."""
        from . import segments

        segments.leave(self._worker(), segment)

    @property
    def address(self) -> str | None:
        """The guest's address, at which others on its segments find it; ``None`` for one without a network."""
        return self._worker().network_address

    @property
    def address_v6(self) -> str | None:
        """The same of IPv6; ``None`` for a guest that is on no segment where the host has no route to public ones."""
        return self._worker().network_address_v6

    def flows(self) -> list[Flow]:
        """The connections that are open, and those that are being made."""
        found = self._worker().flows(_ANSWER)
        if found is None:
            raise VMTimeout(f"the network's policy process did not answer within {_ANSWER:g} seconds")
        return [Flow(*flow[:-1], flow[-1] / 1e9) for flow in found]

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
        yield f"the network's policy denied {line}" + (f"; --allow {denial.remedy} lets it" if denial.remedy else "")
