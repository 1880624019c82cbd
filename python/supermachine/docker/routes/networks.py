"""``/networks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..filters import Filters
from ..http import Answer, Request, nothing, reply
from ..routing import Routes

if TYPE_CHECKING:
    from ..session import Session

routes = Routes()

_FILTERS = frozenset({"dangling", "driver", "id", "label", "label!", "name", "scope", "type", "until"})


@routes.get("/networks")
async def listed(session: Session, request: Request) -> Answer:
    filters = Filters.parse(request.text("filters"), _FILTERS)
    return reply([session.networks.document(network) for network in session.networks.matching(filters)])


@routes.post("/networks/create")
async def create(session: Session, request: Request) -> Answer:
    network = session.networks.create(await request.document())
    return reply({"Id": network.id, "Warning": ""}, 201)


@routes.post("/networks/prune")
async def prune(session: Session, request: Request) -> Answer:
    filters = Filters.parse(request.text("filters"), _FILTERS)
    return reply({"NetworksDeleted": session.networks.prune(filters)})


@routes.get("/networks/{name:path}")
async def inspect(session: Session, _request: Request, name: str) -> Answer:
    return reply(session.networks.document(session.networks.get(name)))


@routes.delete("/networks/{name}")
async def remove(session: Session, _request: Request, name: str) -> Answer:
    session.networks.remove(session.networks.get(name))
    return nothing()


@routes.post("/networks/{name}/connect")
async def connect(session: Session, request: Request, name: str) -> Answer:
    body = await request.document()
    network, container = session.networks.get(name), session.containers.get(str(body.get("Container") or ""))
    endpoint = body.get("EndpointConfig")
    await session.networks.connect(network, container, endpoint if isinstance(endpoint, dict) else {})
    return nothing(200)


@routes.post("/networks/{name}/disconnect")
async def disconnect(session: Session, request: Request, name: str) -> Answer:
    body = await request.document()
    container = session.containers.get(str(body.get("Container") or ""))
    await session.networks.disconnect(session.networks.get(name), container)
    return nothing(200)
