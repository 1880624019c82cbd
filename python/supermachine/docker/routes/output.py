"""What containers write: ``logs`` and ``attach``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from ..errors import BadRequest, NotImplementedHere
from ..http import Answer, Duplex, Hijacked, Request, Streamed
from ..logs import STDERR, STDOUT, Lines, Record, frame, timestamp
from ..routing import Routes
from .system import moment

if TYPE_CHECKING:
    from ..container import Container
    from ..session import Session

routes = Routes()

_RAW, _MULTIPLEXED = "application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"


def _streams(request: Request) -> frozenset[int]:
    return frozenset(stream for name, stream in (("stdout", STDOUT), ("stderr", STDERR)) if request.flag(name))


def _ended(container: Container) -> Callable[[], bool]:
    """Whether the run is over that goes on or comes next."""
    ends = container.ends
    return lambda: container.removed or container.ends > ends


@routes.get("/containers/{name}/logs")
async def logs(session: Session, request: Request, name: str) -> Answer:
    container = session.containers.get(name)
    if container.wanted.log_driver == "none":
        raise NotImplementedHere("configured logging driver does not support reading")
    streams = _streams(request)
    if not streams:
        raise BadRequest("Bad parameters: you must choose at least one stream")
    tail = request.text("tail", "all") or "all"
    if tail != "all" and not tail.isdecimal():
        tail = "all"
    position, skip = container.log.start, 0
    if tail != "all":
        position, skip = container.log.position_of_tail(int(tail[:9]), streams)
    follows = request.flag("follow") and container.alive
    pieces = _lines(
        container,
        streams,
        position,
        skip,
        since=_nanoseconds(request.text("since")) or 0,
        until=_nanoseconds(request.text("until")),
        timestamps=request.flag("timestamps"),
        ended=_ended(container) if follows else lambda: True,
    )
    return Streamed(pieces, headers={"Content-Type": _RAW if container.wanted.tty else _MULTIPLEXED})


def _nanoseconds(text: str) -> int | None:
    seconds = moment(text)
    return None if seconds is None else int(seconds * 1e9)


async def _lines(
    container: Container,
    streams: frozenset[int],
    position: int,
    skip: int,
    *,
    since: int,
    until: int | None,
    timestamps: bool,
    ended: Callable[[], bool],
) -> AsyncIterator[bytes]:
    lines = Lines()

    def said(line: Record) -> bytes:
        nonlocal skip
        if skip > 0:
            skip -= 1
            return b""
        if line.time_ns < since or (until is not None and line.time_ns > until):
            return b""
        data = (timestamp(line.time_ns).encode() + b" " if timestamps else b"") + line.data
        return data if container.wanted.tty else frame(line.stream, data)

    async for record in container.log.follow(position, ended):
        if record.stream in streams and (block := b"".join(said(line) for line in lines.feed(record))):
            yield block
    if block := b"".join(said(line) for line in lines.rest()):
        yield block


@routes.post("/containers/{name}/attach")
async def attach(session: Session, request: Request, name: str) -> Answer:
    container = session.containers.get(name)
    streams = _streams(request)
    live, replay = request.flag("stream"), request.flag("logs")
    position = container.log.start if replay else container.log.end
    ended = _ended(container) if live else lambda: True
    stdin = request.flag("stdin") and live and container.wanted.open_stdin

    async def talk(duplex: Duplex) -> None:
        receiver = asyncio.create_task(_receive(container, duplex, ended)) if stdin else None
        try:
            async for record in container.log.follow(position, ended):
                if record.stream in streams:
                    await duplex.write(record.data if container.wanted.tty else frame(record.stream, record.data))
        finally:
            if receiver is not None:
                receiver.cancel()

    return Hijacked(talk, _RAW if container.wanted.tty else _MULTIPLEXED)


async def _receive(container: Container, duplex: Duplex, ended: Callable[[], bool]) -> None:
    """Passes on what the client sends, from when the command runs."""
    await container.until(lambda: container.process is not None or ended())
    process = container.process
    if process is None or process.stdin is None:
        return
    while data := await duplex.read():
        if not await process.stdin.write(data):
            return
    if container.wanted.stdin_once or not container.wanted.tty:
        process.stdin.close()
