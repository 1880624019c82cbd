"""``/containers/{name}/archive``: ``docker cp``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ...errors import SupermachineError
from .. import archives
from ..errors import ApiError, as_api_error
from ..http import Answer, Request, Response, Streamed
from ..routing import Routes

if TYPE_CHECKING:
    from ...machine.vm import VM
    from ..session import Session

routes = Routes()

#: Pieces of a tar that wait for the client.
_WAITING = 8


@routes.head("/containers/{name}/archive")
async def describe(session: Session, request: Request, name: str) -> Answer:
    vm = await session.containers.get(name).machine()
    said = await session.call(archives.describe, vm, request.text("path"))
    return Response(200, b"", {"X-Docker-Container-Path-Stat": said})


@routes.get("/containers/{name}/archive")
async def get(session: Session, request: Request, name: str) -> Answer:
    vm = await session.containers.get(name).machine()
    path = request.text("path")
    said = await session.call(archives.describe, vm, path)
    headers = {"Content-Type": "application/x-tar", "X-Docker-Container-Path-Stat": said}
    return Streamed(_packed(session, vm, path), headers=headers)


async def _packed(session: Session, vm: VM, path: str) -> AsyncIterator[bytes]:
    """A tar as a thread makes it, no faster than the client takes it."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(_WAITING)
    gone = threading.Event()

    def write(data: bytes) -> None:
        room.acquire()
        if gone.is_set():
            raise _Gone
        loop.call_soon_threadsafe(queue.put_nowait, data)

    def work() -> None:
        try:
            archives.pack(vm, path, write)
        finally:
            loop.call_soon_threadsafe(queue.put_nowait, b"")

    task = asyncio.ensure_future(session.call(work))
    try:
        while piece := await queue.get():
            room.release()
            yield piece
        await task
    except (SupermachineError, OSError) as error:
        # The head has been sent: a body that breaks off says that it is not whole.
        raise as_api_error(error) from error
    finally:
        gone.set()
        room.release()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


class _Gone(Exception):
    """Nobody takes the tar any more."""


@routes.put("/containers/{name}/archive")
async def put(session: Session, request: Request, name: str) -> Answer:
    container = session.containers.get(name)
    vm = await container.machine()
    keep_kinds = request.flag("noOverwriteDirNonDir")
    async with session.upload(request.body) as path:

        def work() -> None:
            archives.unpack(vm, request.text("path"), path, keep_kinds=keep_kinds, limit=session.max_upload)

        try:
            await session.call(work)
        except (SupermachineError, OSError) as error:
            if isinstance(error, SupermachineError):
                raise
            raise ApiError(500, f"the archive could not be unpacked: {error}") from error
    return Response(200)
