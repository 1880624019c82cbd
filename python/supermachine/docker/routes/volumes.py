"""``/volumes``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import NotFound
from ..filters import Filters
from ..http import Answer, Request, nothing, reply
from ..routing import Routes

if TYPE_CHECKING:
    from ..session import Session

routes = Routes()

_FILTERS = frozenset({"all", "dangling", "driver", "label", "label!", "name"})


@routes.get("/volumes")
async def listed(session: Session, request: Request) -> Answer:
    filters = Filters.parse(request.text("filters"), _FILTERS)
    return reply({"Volumes": [v.document() for v in session.volumes.matching(filters)], "Warnings": []})


@routes.post("/volumes/create")
async def create(session: Session, request: Request) -> Answer:
    body = await request.document()
    said = body.get("Labels")
    labels = {str(name): str(value) for name, value in said.items()} if isinstance(said, dict) else {}
    options = body.get("DriverOpts")
    volume = await session.volumes.create(
        str(body.get("Name") or ""), labels, str(body.get("Driver") or ""), options if isinstance(options, dict) else {}
    )
    return reply(volume.document(), 201)


@routes.post("/volumes/prune")
async def prune(session: Session, request: Request) -> Answer:
    names, size = await session.volumes.prune(Filters.parse(request.text("filters"), _FILTERS))
    return reply({"VolumesDeleted": names, "SpaceReclaimed": size})


@routes.get("/volumes/{name:path}")
async def inspect(session: Session, _request: Request, name: str) -> Answer:
    return reply(session.volumes.get(name).document())


@routes.delete("/volumes/{name}")
async def remove(session: Session, request: Request, name: str) -> Answer:
    try:
        volume = session.volumes.get(name)
    except NotFound:
        if request.flag("force"):
            return nothing()
        raise
    await session.volumes.remove(volume)
    return nothing()
