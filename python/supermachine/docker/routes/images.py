"""``/images``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .. import logins
from ..errors import NotImplementedHere
from ..filters import Filters
from ..http import Answer, Request, Response, Streamed, nothing, reply
from ..pulling import pull_target
from ..routing import Routes

if TYPE_CHECKING:
    from ..session import Session

routes = Routes()

_FILTERS = frozenset({"before", "dangling", "label", "reference", "since", "until"})


@routes.get("/images/json")
async def listed(session: Session, request: Request) -> Answer:
    filters = Filters.parse(request.text("filters"), _FILTERS)
    if request.text("filter"):
        filters = Filters({"reference": [request.text("filter")]})
    return reply([image.line() for image in await session.images.matching(filters)])


@routes.post("/images/create")
async def create(session: Session, request: Request) -> Answer:
    if request.text("fromSrc"):
        raise NotImplementedHere("images are pulled and loaded here, not imported from a root file system")
    target = pull_target(request.text("fromImage"), request.text("tag"))
    login = logins.of_header(request.headers.get("x-registry-auth", ""))
    pieces = await session.images.pull(target, request.text("platform") or None, login)
    return Streamed(pieces, headers={"Content-Type": "application/json"})


@routes.post("/images/load")
async def load(session: Session, request: Request) -> Answer:
    async with session.upload(request.body) as path:
        names = await session.images.load(path)
    lines = b"".join(json.dumps({"stream": f"{name}\n"}).encode() + b"\r\n" for name in names)
    return Response(200, lines, {"Content-Type": "application/json"})


@routes.post("/images/prune")
async def prune(_session: Session, _request: Request) -> Answer:
    # The cache is the user's, and other programs' too: `supermachine prune` is what frees it.
    return reply({"ImagesDeleted": None, "SpaceReclaimed": 0})


@routes.get("/images/{name:path}/json")
async def inspect(session: Session, _request: Request, name: str) -> Answer:
    return reply((await session.images.find(name)).document())


@routes.get("/images/{name:path}/history")
async def history(session: Session, _request: Request, name: str) -> Answer:
    return reply((await session.images.find(name)).steps())


@routes.post("/images/{name:path}/tag")
async def tag(session: Session, request: Request, name: str) -> Answer:
    await session.images.tag(name, request.text("repo"), request.text("tag"))
    return nothing(201)


@routes.delete("/images/{name:path}")
async def remove(session: Session, request: Request, name: str) -> Answer:
    return reply(await session.images.remove(name, request.flag("force")))
