"""Machines with names, as coroutines."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

from ..guest import processes as _processes
from ..named import client as _client
from ..named.spec import STOP_TIMEOUT
from .calls import call
from .paths import GuestPath
from .processes import Popen

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..guest.processes import Args
    from ..named.client import State
    from ..named.logs import Entry
    from ..settings.machine import MachineOptions


class Machine:
    """A machine with a name; see :class:`supermachine.Machine`. Made by ``await attach(name)``."""

    def __init__(self, machine: _client.Machine) -> None:
        self._machine = machine

    @property
    def name(self) -> str:
        return self._machine.name

    def __repr__(self) -> str:
        return repr(self._machine)

    @property
    def state(self) -> State:
        """How it fares now; asks its keeper, which takes no time."""
        return self._machine.state

    @property
    def running(self) -> bool:
        return self._machine.running

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        return self._machine.ports

    async def inspect(self) -> dict[str, Any]:
        return await call(self._machine.inspect)

    async def stats(self) -> dict[str, Any]:
        return await call(self._machine.stats)

    async def logs(
        self,
        *,
        tail: int | None = None,
        follow: bool = False,
        since: float | None = None,
        until: float | None = None,
    ) -> AsyncIterator[Entry]:
        entries = self._machine.logs(tail=tail, follow=follow, since=since, until=until)
        while (entry := await call(next, entries, None)) is not None:
            yield entry

    async def wait(self, timeout: float | None = None) -> int | None:
        return await call(self._machine.wait, timeout)

    async def stop(self, timeout: float | None = None, *, signal: int | str | None = None) -> int | None:
        return await call(self._machine.stop, timeout, signal=signal)

    async def start(self) -> None:
        await call(self._machine.start)

    async def rename(self, name: str) -> None:
        await call(self._machine.rename, name)

    async def restart(self, timeout: float | None = None) -> None:
        await call(self._machine.restart, timeout)

    async def pause(self) -> None:
        await call(self._machine.pause)

    async def unpause(self) -> None:
        await call(self._machine.unpause)

    async def top(self) -> list[dict[str, str]]:
        return await call(self._machine.top)

    async def kill(self, signal: int | str = "KILL") -> None:
        await call(self._machine.kill, signal)

    async def remove(self, *, force: bool = False) -> None:
        await call(self._machine.remove, force=force)

    async def snapshot(self, path: str | os.PathLike[str], *, diff: bool = False) -> dict[str, Any]:
        return await call(self._machine.snapshot, path, diff=diff)

    async def fork(self, n: int = 1, *, names: Sequence[str] | None = None) -> list[Machine]:
        return [Machine(machine) for machine in await call(self._machine.fork, n, names=names)]

    async def run(self, args: Args, **options: Any) -> CompletedProcess[Any]:
        stop = threading.Event()
        return await call(lambda: _processes.run(self._machine._context(), args, stop=stop, **options), cancel=stop.set)

    async def popen(self, args: Args, **options: Any) -> Popen:
        return Popen(await call(self._machine.popen, args, **options))

    async def spawn(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
    ) -> int:
        return await call(self._machine.spawn, args, env=env, cwd=cwd, user=user, tty=tty)

    def path(self, *parts: str | os.PathLike[str]) -> GuestPath:
        return GuestPath(self._machine.path(*parts))

    async def copy_in(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> GuestPath:
        return GuestPath(await call(self._machine.copy_in, source, target, max_bytes=max_bytes, timeout=timeout))

    async def copy_out(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> str:
        return await call(self._machine.copy_out, source, target, max_bytes=max_bytes, timeout=timeout)


async def start(
    image: str | os.PathLike[str],
    args: Sequence[str] | str | None = None,
    *,
    name: str | None = None,
    entrypoint: Sequence[str] | None = None,
    remove: bool = False,
    restart: str = "no",
    stop_signal: str = "",
    stop_timeout: float = STOP_TIMEOUT,
    labels: Mapping[str, str] | None = None,
    **machine: Unpack[MachineOptions],
) -> Machine:
    """See :func:`supermachine.start`."""
    made = await call(
        _client.start,
        image,
        args,
        name=name,
        entrypoint=entrypoint,
        remove=remove,
        restart=restart,
        stop_signal=stop_signal,
        stop_timeout=stop_timeout,
        labels=labels,
        **machine,
    )
    return Machine(made)


async def attach(name: str) -> Machine:
    """See :func:`supermachine.attach`."""
    return Machine(await call(_client.attach, name))


async def machines(*, all: bool = False) -> list[Machine]:  # noqa: A002
    """See :func:`supermachine.machines`."""
    return [Machine(machine) for machine in await call(_client.machines, all=all)]
