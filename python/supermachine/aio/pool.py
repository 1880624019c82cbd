"""Pools of machines, as coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ..machine import pool as _pool
from .calls import call
from .vm import VM

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..settings.machine import MachineOptions


class Pool:
    """Machines that are ready before they are asked for; see :class:`supermachine.Pool`, whose arguments it takes."""

    def __init__(
        self,
        image: str | os.PathLike[str],
        min: int = 1,  # noqa: A002
        max: int = 4,  # noqa: A002
        idle_timeout: float | None = None,
        **machine: Unpack[MachineOptions],
    ) -> None:
        self._pool = _pool.Pool(image, min, max, idle_timeout, **machine)

    @property
    def ready(self) -> int:
        return self._pool.ready

    @property
    def in_use(self) -> int:
        return self._pool.in_use

    @contextlib.asynccontextmanager
    async def acquire(self, timeout: float | None = None) -> AsyncIterator[VM]:
        pool, given_up = self._pool, threading.Event()

        def give_up() -> None:
            given_up.set()
            pool._wake()

        vm = await call(pool._take, timeout, given_up, cancel=give_up, abandon=pool._end)
        try:
            yield VM._of(vm)
        finally:
            await asyncio.shield(call(pool._end, vm))

    async def close(self) -> None:
        await call(self._pool.close)

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.shield(self.close())

    def __repr__(self) -> str:
        return repr(self._pool)
