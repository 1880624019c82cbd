"""The container that test libraries start to remove what they leave: image ``testcontainers/ryuk``.

It is given the socket of Docker's daemon, which nothing outside of this process can be here. So this process answers
for it, with its protocol on its published port: a client sends lines of filters as ``label=NAME=VALUE&label=…``, each
answered by ``ACK``. When the last client has gone and none comes back in time, what the filters match is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from ..errors import PortUnavailable
from .container import Container
from .errors import ApiError, as_api_error
from .filters import Filters
from .logs import STDOUT
from .networks import GATEWAY

if TYPE_CHECKING:
    from .container import Running
    from .pipes import PipeReader, PipeWriter

PORT = "8080/tcp"
#: Seconds that the first client has, and that one has to come back; the second unless RYUK_RECONNECTION_TIMEOUT says.
_FIRST_CLIENT = 60.0
_RECONNECTION = 10.0
#: Of the protocol: bytes of a line, filters that are kept, clients at once.
_MAX_LINE = 16 << 10
_MAX_FILTERS = 1000
_MAX_CLIENTS = 64
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Reaper(Container):
    """A container without a machine."""

    def check(self) -> None:
        pass

    @property
    def command(self) -> list[str]:
        return ["/bin/ryuk"]

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        process = self.process
        return {PORT: process.places} if isinstance(process, _Service) else {}

    async def _open(self) -> Running:
        wanted = self.wanted.ports.get(PORT) or ([(GATEWAY, 0)] if self.wanted.publish_all else [])
        service = _Service(self, _seconds(self.wanted.environment.get("RYUK_RECONNECTION_TIMEOUT", "")))
        try:
            await service.listen([(address or GATEWAY, port) for address, port in wanted])
        except OSError as error:
            service.close()
            raise as_api_error(PortUnavailable("the reaper's port cannot be listened on", cause=str(error))) from error
        return service


class _Service:
    """What is in place of a process."""

    stdin: PipeWriter | None = None
    stdout: PipeReader | None = None
    stderr: PipeReader | None = None
    pid = 0

    def __init__(self, container: Reaper, reconnection: float) -> None:
        self._container = container
        self._reconnection = reconnection
        self._servers: list[asyncio.Server] = []
        self.places: list[tuple[str, int]] = []
        self._filters: list[Filters] = []
        self._clients = 0
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._code: asyncio.Future[int] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None

    async def listen(self, wanted: list[tuple[str, int]]) -> None:
        for address, port in wanted:
            server = await asyncio.start_server(self._serve, address, port, limit=_MAX_LINE)
            self._servers.append(server)
            self.places.append((address, server.sockets[0].getsockname()[1]))
        self._say("Started!")
        self._task = asyncio.create_task(self._wait_for_clients())

    def _say(self, text: str) -> None:
        self._container.log.append(STDOUT, f"supermachine's reaper: {text}\n".encode())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._clients >= _MAX_CLIENTS:
            writer.close()
            return
        self._clients += 1
        self._came.set()
        try:
            while line := await reader.readline():
                if found := _parse(line.decode("utf-8", "replace").strip()):
                    if len(self._filters) >= _MAX_FILTERS:
                        self._say(f"more than {_MAX_FILTERS} filters are not kept")
                        return
                    self._filters.append(found)
                    writer.write(b"ACK\n")
                    await writer.drain()
        except (ConnectionError, ValueError):
            pass  # gone, or a line that is too long
        finally:
            self._clients -= 1
            self._went.set()
            writer.close()

    async def _wait_for_clients(self) -> None:
        patience = _FIRST_CLIENT
        while True:
            self._came.clear()
            if not self._clients:
                try:
                    await asyncio.wait_for(self._came.wait(), patience)
                except asyncio.TimeoutError:
                    break
            self._went.clear()
            if self._clients:
                await self._went.wait()
            patience = self._reconnection
        await self._reap()
        self._end(0)

    async def _reap(self) -> None:
        session = self._container.session
        for wanted in self._filters:
            for container in session.containers.all():
                if container is not self._container and wanted.labels(container.labels()):
                    self._say(f"removes container {container.name}")
                    try:
                        await container.remove(force=True, volumes=True)
                    except ApiError as error:
                        self._say(error.message)
            for network in session.networks.matching(wanted):
                if not network.predefined:
                    with contextlib.suppress(ApiError):
                        session.networks.remove(network)
            for volume in session.volumes.matching(wanted):
                with contextlib.suppress(ApiError):
                    await session.volumes.remove(volume)

    def _end(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)

    async def wait(self) -> int:
        return await self._code

    def signal(self, number: int) -> None:
        self._loop.call_soon_threadsafe(self._end, 128 + number)

    def resize(self, rows: int, columns: int) -> None:
        pass

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        for server in self._servers:
            server.close()


def _parse(line: str) -> Filters | None:
    labels = [value for name, value in parse_qsl(line) if name == "label" and value]
    return Filters({"label": labels}) if labels else None


def _seconds(text: str) -> float:
    """A duration as Go writes it: ``10s``."""
    for unit, size in _UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdecimal():
            return min(float(number[:10]) * size, 3600.0)
    return _RECONNECTION
