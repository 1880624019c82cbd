"""``/containers/{name}/exec`` and ``/exec``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ApiError
from ..executions import terminal_size
from ..http import Answer, Duplex, Hijacked, Request, nothing, reply
from ..logs import STDERR, frame
from ..routing import Routes
from .containers import size_of

if TYPE_CHECKING:
    from ..session import Session

routes = Routes()


@routes.post("/containers/{name}/exec")
async def create(session: Session, request: Request, name: str) -> Answer:
    execution = session.executions.create(session.containers.get(name), await request.document())
    return reply({"Id": execution.id}, 201)


@routes.get("/exec/{id}/json")
async def inspect(session: Session, _request: Request, id: str) -> Answer:  # noqa: A002
    return reply(session.executions.get(id).document())


@routes.post("/exec/{id}/resize")
async def resize(session: Session, request: Request, id: str) -> Answer:  # noqa: A002
    await session.executions.resize(session.executions.get(id), *size_of(request))
    return nothing(200)


@routes.post("/exec/{id}/start")
async def start(session: Session, request: Request, id: str) -> Answer:  # noqa: A002
    execution = session.executions.get(id)
    body = await request.document()
    if (size := terminal_size(body.get("ConsoleSize"))) is not None:
        execution.size = size
    if body.get("Detach"):
        await session.executions.start(execution, attached=False)
        return nothing(200)
    # What the client is told before the connection is its own; after that it is told in the stream, as docker does.
    if execution.started:
        raise ApiError(409, f"Error: Exec command {execution.id} has already run")
    execution.container.there()

    async def talk(duplex: Duplex) -> None:
        try:
            process = await session.executions.start(execution, attached=True)
        except ApiError as error:
            said = f"OCI runtime exec failed: exec failed: {error.message}\r\n".encode()
            await duplex.write(said if execution.tty else frame(STDERR, said))
            return
        await session.executions.talk(execution, process, duplex)

    return Hijacked(talk)
