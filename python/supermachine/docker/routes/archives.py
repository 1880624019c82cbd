"""``/containers/{name}/archive``: ``docker cp``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import SupermachineError
from .. import archives
from ..errors import ApiError
from ..http import Answer, Request, Response, Streamed
from ..routing import Routes
from ..streaming import from_thread

if TYPE_CHECKING:
    from ..session import Session

routes = Routes()


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
    return Streamed(from_thread(session, lambda write: archives.pack(vm, path, write)), headers=headers)


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
