"""Fleets, as coroutines: ``async with Fleet(IMAGE, driver="ray") as fleet: vm = await fleet.acquire()``.

A `supermachine.fleet.FleetExecutor` needs nothing of this: ``await loop.run_in_executor(executor, function, *args)``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigurationError
from ..fleet import fleet as _fleets
from ..fleet import vm as _vm
from ..guest import processes as _processes
from .calls import call
from .paths import GuestPath
from .processes import Popen

if TYPE_CHECKING:
    from ..fleet.fleet import HostState
    from ..guest.processes import Args
    from ..machine.snapshot import Snapshot

__all__ = ["Fleet", "FleetVM"]

T = TypeVar("T")


def _kill_all(vms: Iterable[_vm.FleetVM]) -> None:
    for vm in vms:
        vm.kill()


class FleetVM:
    """A machine of a fleet; see :class:`supermachine.fleet.FleetVM`. Made by ``await fleet.acquire()``."""

    def __init__(self, vm: _vm.FleetVM) -> None:
        self._vm = vm

    @property
    def host(self) -> str:
        return self._vm.host

    @property
    def engine(self) -> str:
        return self._vm.engine

    @property
    def isolation(self) -> str:
        return self._vm.isolation

    @property
    def running(self) -> bool:
        return self._vm.running

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        return self._vm.ports

    async def run(self, args: Args, **options: Any) -> CompletedProcess[Any]:
        stop = threading.Event()
        return await call(lambda: _processes.run(self._vm._context(), args, stop=stop, **options), cancel=stop.set)

    async def popen(self, args: Args, **options: Any) -> Popen:
        return Popen(await call(self._vm.popen, args, **options))

    def path(self, *parts: str | os.PathLike[str]) -> GuestPath:
        return GuestPath(self._vm.path(*parts))

    async def copy_in(
        self, source: str | os.PathLike[str], target: str | os.PathLike[str], **options: Any
    ) -> GuestPath:
        return GuestPath(await call(self._vm.copy_in, source, target, **options))

    async def copy_out(self, source: str | os.PathLike[str], target: str | os.PathLike[str], **options: Any) -> str:
        return await call(self._vm.copy_out, source, target, **options)

    async def fork(self, n: int = 1) -> list[FleetVM]:
        return [FleetVM(vm) for vm in await call(self._vm.fork, n, abandon=_kill_all)]

    async def snapshot(self, path: str | os.PathLike[str]) -> Snapshot:
        return await call(self._vm.snapshot, path)

    async def push(self, reference: str, *, sign: str | None = None, insecure: bool = False) -> str:
        return await call(self._vm.push, reference, sign=sign, insecure=insecure)

    async def wait(self, timeout: float | None = None) -> str:
        return await call(self._vm.wait, timeout)

    async def kill(self) -> None:
        await call(self._vm.kill)

    async def __aenter__(self) -> FleetVM:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.shield(self.kill())

    def __repr__(self) -> str:
        return repr(self._vm)


class Fleet:
    """Machines on the hosts of a driver; see :class:`supermachine.fleet.Fleet`, whose arguments it takes.

    `start`, or ``async with``, connects to the hosts.
    """

    def __init__(self, image: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._image = image
        self._options = options
        self._made: _fleets.Fleet | None = None

    @property
    def _fleet(self) -> _fleets.Fleet:
        if self._made is None:
            raise ConfigurationError(
                "the fleet has not been started", hint="use `async with Fleet(...)` or `await fleet.start()`"
            )
        return self._made

    async def start(self) -> Fleet:
        if self._made is None:
            self._made = await call(_fleets.Fleet, self._image, abandon=_fleets.Fleet.close, **self._options)
        return self

    @property
    def hosts(self) -> list[HostState]:
        return self._fleet.hosts

    @property
    def capacity(self) -> int:
        return self._fleet.capacity

    async def drain(self, host: str, timeout: float | None = None) -> bool:
        return await call(self._fleet.drain, host, timeout)

    async def acquire(self, timeout: float | None = None, *, labels: Mapping[str, str] | None = None) -> FleetVM:
        fleet, given_up = self._fleet, threading.Event()

        def give_up() -> None:
            given_up.set()
            fleet._wake()

        return FleetVM(await call(fleet._take, timeout, labels, given_up, cancel=give_up, abandon=_vm.FleetVM.kill))

    def submit(self, function: Callable[..., Awaitable[T]], /, *args: Any, **keywords: Any) -> asyncio.Task[T]:
        """A task that awaits ``function(vm, *args, **keywords)``, with a machine of its own that ends with it."""

        async def work() -> T:
            async with await self.acquire() as vm:
                return await function(vm, *args, **keywords)

        return asyncio.get_running_loop().create_task(work())

    async def map(self, function: Callable[..., Awaitable[T]], /, *iterables: Iterable[Any]) -> AsyncIterator[T]:
        """What ``function(vm, item, …)`` gives for each, in order; as many at once as there is room for."""
        tasks = [self.submit(function, *items) for items in zip(*iterables, strict=False)]
        try:
            for task in tasks:
                yield await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        if self._made is not None:
            await call(self._made.close)

    async def __aenter__(self) -> Fleet:
        return await self.start()

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.shield(self.close())

    def __repr__(self) -> str:
        return repr(self._made) if self._made is not None else f"<{type(self).__name__} not started>"
