"""The drivers that need no engine of distribution, and which driver is meant by a name."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from .. import descriptors
from ..errors import ConfigurationError, FleetFailed
from .driver import Driver
from .wire import Address

if TYPE_CHECKING:
    from .host import Host

#: Seconds for a host process to say where it is.
_START = 60.0


class LocalDriver(Driver):
    """One host, in this process."""

    def __init__(self, capacity: int | None) -> None:
        from .host import Host

        self._host: Host = Host(capacity)

    def addresses(self) -> list[Address]:
        return [Address("local", "127.0.0.1", self._host.port, self._host.credentials, {})]

    def close(self) -> None:
        self._host.close()


class ProcessesDriver(Driver):
    """Hosts that are processes of this machine, which end with this one: to try what a fleet does."""

    def __init__(self, capacity: int | None, count: int) -> None:
        self._capacity = capacity
        self._count = count
        self._hosts: list[tuple[subprocess.Popen[bytes], Address]] = []
        self._started = 0

    def addresses(self) -> list[Address]:
        for process, _ in [host for host in self._hosts if host[0].poll() is not None]:
            _forget(process)
        self._hosts = [(process, address) for process, address in self._hosts if process.returncode is None]
        while len(self._hosts) < self._count:
            self._hosts.append(self._start())
        return [address for _, address in self._hosts]

    def _start(self) -> tuple[subprocess.Popen[bytes], Address]:
        command = [sys.executable, "-m", "supermachine.fleet.host"]
        descriptors.reserve()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"capacity": self._capacity}).encode() + b"\n")
        process.stdin.flush()
        try:
            said = json.loads(process.stdout.readline())
            port, credentials = int(said["port"]), bytes.fromhex(said["credentials"])
        except (ValueError, KeyError):
            process.kill()
            raise FleetFailed("a host of the fleet did not start") from None
        name = f"process-{self._started}"
        self._started += 1
        return process, Address(name, "127.0.0.1", port, credentials, {"pid": str(process.pid)})

    def close(self) -> None:
        for process, _ in self._hosts:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        for process, _ in self._hosts:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _forget(process)


def _forget(process: subprocess.Popen[bytes]) -> None:
    """Closes the pipes of one that has ended."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def choose(driver: str | Driver, per_host: int | str, options: dict[str, Any]) -> Driver:
    """The driver of this name. `options` are its own."""
    if isinstance(driver, Driver):
        return driver
    capacity = _capacity(per_host)
    if driver == "local":
        return LocalDriver(capacity)
    if driver == "processes":
        return ProcessesDriver(capacity, int(options.get("hosts", 2)))
    if driver == "ray":
        from .ray_driver import RayDriver

        return RayDriver(capacity)
    if driver == "dask":
        from .dask_driver import DaskDriver

        return DaskDriver(capacity, options.get("client"))
    raise ConfigurationError(f"driver is {driver!r}; local, processes, ray and dask are there")


def _capacity(per_host: int | str) -> int | None:
    if per_host == "auto":
        return None
    if isinstance(per_host, int) and not isinstance(per_host, bool) and per_host > 0:
        return per_host
    raise ConfigurationError(f"per_host is {per_host!r}; a number of machines, or 'auto', is needed")
