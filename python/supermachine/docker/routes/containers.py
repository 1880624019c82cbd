"""``/containers``: making, listing, starting, ending."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ...errors import SupermachineError
from ...guest import process_table
from .. import changes, documents, statistics
from ..containers import FILTERS
from ..errors import BadRequest, NotImplementedHere, as_api_error
from ..filters import Filters
from ..http import Answer, Request, Streamed, nothing, reply
from ..routing import Routes
from ..specification import parse

if TYPE_CHECKING:
    from ..session import Session

routes = Routes()

_PRUNE_FILTERS = frozenset({"label", "label!", "until"})


@routes.get("/containers/json")
async def listed(session: Session, request: Request) -> Answer:
    filters = Filters.parse(request.text("filters"), FILTERS)
    found = session.containers.matching(filters, every=request.flag("all"), limit=request.number("limit"))
    return reply([documents.line(container) for container in found])


@routes.post("/containers/create")
async def create(session: Session, request: Request) -> Answer:
    wanted = parse(await request.document(), request.text("platform"))
    container = await session.containers.create(request.text("name"), wanted)
    return reply({"Id": container.id, "Warnings": wanted.warnings}, 201)


@routes.post("/containers/prune")
async def prune(session: Session, request: Request) -> Answer:
    filters = Filters.parse(request.text("filters"), _PRUNE_FILTERS)
    return reply({"ContainersDeleted": await session.containers.prune(filters), "SpaceReclaimed": 0})


@routes.get("/containers/{name:path}/json")
async def inspect(session: Session, _request: Request, name: str) -> Answer:
    return reply(documents.inspect(session.containers.get(name)))


@routes.get("/containers/{name}/changes")
async def changed(session: Session, _request: Request, name: str) -> Answer:
    container = session.containers.get(name)
    resolved = container.image.resolved
    if resolved is None:
        raise NotImplementedHere("the image is no image: there is nothing to compare with")
    vm = await container.machine()
    try:
        found = await session.call(changes.of, vm, resolved)
    except (SupermachineError, OSError) as error:
        raise as_api_error(error) from error
    return reply(found or None)


@routes.post("/containers/{name}/start")
async def start(session: Session, _request: Request, name: str) -> Answer:
    await session.containers.get(name).start()
    return nothing()


@routes.post("/containers/{name}/stop")
async def stop(session: Session, request: Request, name: str) -> Answer:
    await session.containers.get(name).stop(request.number("t"), request.text("signal"))
    return nothing()


@routes.post("/containers/{name}/restart")
async def restart(session: Session, request: Request, name: str) -> Answer:
    await session.containers.get(name).restart(request.number("t"), request.text("signal"))
    return nothing()


@routes.post("/containers/{name}/kill")
async def kill(session: Session, request: Request, name: str) -> Answer:
    await session.containers.get(name).kill(request.text("signal"))
    return nothing()


@routes.post("/containers/{name}/pause")
async def pause(session: Session, _request: Request, name: str) -> Answer:
    await session.containers.get(name).pause()
    return nothing()


@routes.post("/containers/{name}/unpause")
async def unpause(session: Session, _request: Request, name: str) -> Answer:
    await session.containers.get(name).unpause()
    return nothing()


@routes.post("/containers/{name}/rename")
async def rename(session: Session, request: Request, name: str) -> Answer:
    session.containers.rename(session.containers.get(name), request.text("name"))
    return nothing()


@routes.post("/containers/{name}/update")
async def update(session: Session, request: Request, name: str) -> Answer:
    container = session.containers.get(name)
    body = await request.document()
    policy = body.get("RestartPolicy")
    if isinstance(policy, dict) and policy.get("Name"):
        container.wanted.restart_policy = str(policy["Name"])
        container.wanted.restart_retries = int(policy.get("MaximumRetryCount") or 0)
    fixed = [key for key in ("Memory", "NanoCpus", "CpuQuota") if body.get(key)]
    if fixed:
        raise NotImplementedHere(f"{', '.join(fixed)} of a machine cannot be changed after it was created")
    container.announce("update")
    return reply({"Warnings": []})


@routes.post("/containers/{name}/resize")
async def resize(session: Session, request: Request, name: str) -> Answer:
    await session.containers.get(name).resize(*size_of(request))
    return nothing(200)


def size_of(request: Request) -> tuple[int, int]:
    """Rows and columns."""
    rows, columns = request.number("h"), request.number("w")
    if rows is None or columns is None or not (0 <= rows < 65536 and 0 <= columns < 65536):
        raise BadRequest("h and w are needed: the rows and columns of a terminal")
    return rows, columns


@routes.post("/containers/{name}/wait")
async def wait(session: Session, request: Request, name: str) -> Answer:
    container = session.containers.get(name)
    reached = container.waiter(request.text("condition"))

    async def result() -> AsyncIterator[bytes]:
        # The head is there before the end, so that who waits may start the container then.
        await container.until(reached)
        said: dict[str, Any] = {"StatusCode": container.exit_code}
        if container.error and not container.starts:
            said["Error"] = {"Message": container.error}
        yield json.dumps(said).encode() + b"\n"

    return Streamed(result(), headers={"Content-Type": "application/json"})


@routes.delete("/containers/{name}")
async def remove(session: Session, request: Request, name: str) -> Answer:
    await session.containers.get(name).remove(force=request.flag("force"), volumes=request.flag("v"))
    return nothing()


@routes.get("/containers/{name}/top")
async def top(session: Session, _request: Request, name: str) -> Answer:
    container = session.containers.get(name)
    rows = await session.call(process_table.processes, container.there())
    return reply({"Titles": process_table.TITLES, "Processes": rows})


@routes.get("/containers/{name}/stats")
async def stats(session: Session, request: Request, name: str) -> Answer:
    container = session.containers.get(name)
    if not request.flag("stream", True):
        before = None
        if not request.flag("one-shot"):
            before = await session.call(statistics.sample, container, None)
            await asyncio.sleep(1.0)
        return reply(await session.call(statistics.sample, container, before))

    async def samples() -> AsyncIterator[bytes]:
        before = None
        while not container.removed:
            before = await session.call(statistics.sample, container, before)
            yield json.dumps(before).encode() + b"\n"
            await asyncio.sleep(1.0)

    return Streamed(samples(), headers={"Content-Type": "application/json"})
