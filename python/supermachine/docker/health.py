"""Docker's health checks: a command in the container, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ..errors import SupermachineError
from .errors import ApiError
from .logs import timestamp
from .processes import Process

if TYPE_CHECKING:
    from .container import Container
    from .pipes import PipeReader
    from .specification import HealthTest

#: Results that are kept, and bytes of the output of each.
_KEPT = 5
_MAX_OUTPUT = 4096
_SIGKILL = 9


class Health:
    """The checks of one run of a container's command."""

    def __init__(self, container: Container, test: HealthTest) -> None:
        self._container = container
        self._test = test
        self.status = "starting"
        self.failures = 0
        self._results: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def document(self) -> dict[str, Any]:
        return {"Status": self.status, "FailingStreak": self.failures, "Log": list(self._results)}

    async def _watch(self) -> None:
        began = time.monotonic()
        while True:
            test = self._test
            starting = self.status == "starting" and time.monotonic() - began < test.start_period
            await asyncio.sleep(min(test.start_interval, test.interval) if starting else test.interval)
            if self._container.status != "running":
                continue
            started = time.time_ns()
            code, output = await self._check()
            self._results.append(
                {
                    "Start": timestamp(started),
                    "End": timestamp(time.time_ns()),
                    "ExitCode": code,
                    "Output": output.decode("utf-8", "replace"),
                }
            )
            if code == 0:
                self.failures = 0
                self._set("healthy")
            elif self.status != "starting" or time.monotonic() - began >= self._test.start_period:
                self.failures += 1
                if self.failures >= self._test.retries:
                    self._set("unhealthy")

    def _set(self, status: str) -> None:
        if self.status != status:
            self.status = status
            self._container.announce(f"health_status: {status}")

    async def _check(self) -> tuple[int, bytes]:
        """Exit code and output; a code of -1 and a reason where there was no end."""
        call = self._container.session.call
        try:
            process = await call(Process.start, self._container.there(), self._test.test)
        except (ApiError, SupermachineError, OSError, ValueError) as error:
            return -1, str(error).encode()[:_MAX_OUTPUT]
        kept = bytearray()
        readers = [
            asyncio.create_task(_keep(pipe, kept)) for pipe in (process.stdout, process.stderr) if pipe is not None
        ]
        try:
            code = await asyncio.wait_for(process.wait(), self._test.timeout)
            await asyncio.wait(readers, timeout=1.0)
        except asyncio.TimeoutError:
            code = -1
            kept[:] = f"Health check exceeded timeout ({self._test.timeout:g}s)".encode()
            with contextlib.suppress(SupermachineError, OSError):
                await call(process.signal, _SIGKILL)
        finally:
            for reader in readers:
                reader.cancel()
            process.close()
        return code, bytes(kept)


async def _keep(pipe: PipeReader, kept: bytearray) -> None:
    while data := await pipe.read():
        kept += data[: max(0, _MAX_OUTPUT - len(kept))]
