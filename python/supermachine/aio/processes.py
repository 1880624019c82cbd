"""Processes in a guest, as coroutines."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from .calls import call

if TYPE_CHECKING:
    from ..guest import processes


class Popen:
    """A running process; see :class:`supermachine.Popen`. Made by ``await vm.popen(...)``."""

    def __init__(self, process: processes.Popen) -> None:
        self._process = process
        self.args = process.args
        self.pid = process.pid

    @property
    def stdin(self) -> IO[Any] | None:
        """The blocking file; in a loop use `communicate`, or ``asyncio``'s ``connect_write_pipe``."""
        return self._process.stdin

    @property
    def stdout(self) -> IO[Any] | None:
        """The blocking file; in a loop use `communicate`, or ``asyncio``'s ``connect_read_pipe``."""
        return self._process.stdout

    @property
    def stderr(self) -> IO[Any] | None:
        return self._process.stderr

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def poll(self) -> int | None:
        return self._process.poll()

    async def wait(self, timeout: float | None = None) -> int:
        return await call(self._process.wait, timeout)

    async def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002
        return await call(self._process.communicate, input, timeout, cancel=self._process.kill)

    def send_signal(self, signal: int) -> None:
        self._process.send_signal(signal)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def resize(self, rows: int, columns: int) -> None:
        self._process.resize(rows, columns)

    async def __aenter__(self) -> Popen:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await call(self._process.__exit__, *exc, cancel=self._process.kill)

    def __repr__(self) -> str:
        return repr(self._process)
