"""When a service is ready: what `wait=` of the fixture `service` takes, beside any function of a service."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import descriptors
from ..errors import ConfigurationError, VMExited

if TYPE_CHECKING:
    from .services import Service

#: Seconds that one attempt may take at most, and that it has at least, however soon the wait is over.
_ATTEMPT, _LEAST = 5.0, 0.05
#: State of a listening socket in /proc/net/tcp (include/net/tcp_states.h).
_LISTEN = "0A"


def _attempt(service: Service, most: float = _ATTEMPT) -> float:
    """Seconds that one attempt may take now."""
    return max(_LEAST, min(most, service.remaining))


class _Bounded(socket.socket):
    """All that is read from it comes before one moment; a socket's own timeout is each read's."""

    _deadline: float

    @classmethod
    def connected(cls, address: tuple[str, int], seconds: float) -> _Bounded:
        deadline = time.monotonic() + seconds
        found = cls(fileno=descriptors.connection(address, seconds).detach())
        found.settimeout(seconds)
        found._deadline = deadline
        return found

    def recv_into(self, *args: Any, **options: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self.settimeout(left)
        return super().recv_into(*args, **options)


@dataclass(frozen=True)
class port:  # noqa: N801 - read as a word: wait=port(5432)
    """Something in the guest listens on a TCP port."""

    number: int

    def __call__(self, service: Service) -> bool:
        wanted = f"{self.number:04X}"
        for table in ("tcp", "tcp6"):
            try:
                lines = service.vm.path("/proc/net", table).read_text().splitlines()[1:]
            except FileNotFoundError:
                continue
            for line in lines:
                fields = line.split()
                if fields[1].endswith(f":{wanted}") and fields[3] == _LISTEN:
                    return True
        return False


@dataclass(frozen=True)
class log:  # noqa: N801
    """Its output has a pattern (a regular expression) so many times."""

    pattern: str
    count: int = 1

    def __call__(self, service: Service) -> bool:
        return len(re.findall(self.pattern, service.output, re.MULTILINE)) >= self.count


@dataclass(frozen=True)
class http:  # noqa: N801
    """A published port answers a request with this status, or without one with any below 400."""

    port: int
    path: str = "/"
    status: int | None = None

    def __call__(self, service: Service) -> bool:
        import http.client

        address = service.address(self.port)
        connection = http.client.HTTPConnection(*address)
        try:
            connection.sock = _Bounded.connected(address, _attempt(service))
            connection.request("GET", self.path, headers={"Connection": "close"})
            said = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return said < 400 if self.status is None else said == self.status


@dataclass(frozen=True)
class command:  # noqa: N801
    """A command in the guest exits with 0: words, or a string for a shell."""

    args: str | tuple[str, ...]

    def __init__(self, args: str | Sequence[str]) -> None:
        object.__setattr__(self, "args", args if isinstance(args, str) else tuple(args))

    def __call__(self, service: Service) -> bool:
        from ..guest.processes import TimeoutExpired

        try:
            shell = isinstance(self.args, str)
            args = self.args if isinstance(self.args, str) else list(self.args)
            return service.vm.run(args, shell=shell, timeout=_attempt(service)).returncode == 0
        except TimeoutExpired:
            return False


@dataclass(frozen=True)
class healthy:  # noqa: N801
    """The image's HEALTHCHECK succeeds."""

    def __call__(self, service: Service) -> bool:
        from ..guest.processes import TimeoutExpired
        from ..named.health import check_of

        check = check_of(service.vm.image.config.healthcheck)
        if check is None:
            raise ConfigurationError(f"the image {service.vm.image.reference} has no HEALTHCHECK to wait for")
        args = check.args[0] if check.shell else list(check.args)
        try:
            return service.vm.run(args, shell=check.shell, timeout=_attempt(service, check.timeout)).returncode == 0
        except VMExited:
            raise
        except (TimeoutExpired, OSError):
            return False
