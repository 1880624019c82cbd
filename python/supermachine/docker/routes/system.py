"""``/_ping``, ``/version``, ``/info``, ``/events``, ``/system/df``, ``/auth``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..._core import VERSION
from ...oci.platforms import Platform
from .. import logins
from ..errors import BadRequest, NotFound
from ..filters import Filters
from ..http import Answer, Request, Response, Streamed, reply
from ..routing import API_VERSION, MIN_API_VERSION, Routes
from ..volumes import DISK, LOCAL

if TYPE_CHECKING:
    from ..session import Session

routes = Routes()

_EVENT_FILTERS = frozenset(
    {"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret"}
    | {"service", "type", "volume"}
)


def _ping_headers() -> dict[str, str]:
    return {
        "Api-Version": API_VERSION,
        "Builder-Version": "1",
        "Docker-Experimental": "false",
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
        "Swarm": "inactive",
    }


@routes.get("/_ping")
async def ping(_session: Session, _request: Request) -> Answer:
    return Response(200, b"OK", {"Content-Type": "text/plain; charset=utf-8", **_ping_headers()})


@routes.head("/_ping")
async def ping_head(_session: Session, _request: Request) -> Answer:
    return Response(200, b"", {"Content-Type": "text/plain; charset=utf-8", **_ping_headers()})


def _architecture(session: Session) -> str:
    return Platform.parse(session.platform).architecture


@routes.get("/version")
async def version(session: Session, _request: Request) -> Answer:
    details = {
        "ApiVersion": API_VERSION,
        "Arch": _architecture(session),
        "Engine": session.engine.name,
        "Isolation": session.engine.isolation,
        "MinAPIVersion": MIN_API_VERSION,
        "Os": "linux",
    }
    return reply(
        {
            "Platform": {"Name": "supermachine"},
            "Components": [{"Name": "Engine", "Version": VERSION, "Details": details}],
            "Version": VERSION,
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "GitCommit": "",
            "GoVersion": "",
            "Os": "linux",
            "Arch": _architecture(session),
            "KernelVersion": platform.release(),
            "BuildTime": "",
        }
    )


@routes.get("/info")
async def info(session: Session, _request: Request) -> Answer:
    images = await session.images.all()
    empty = {
        "Volume": [LOCAL, DISK],
        "Network": ["bridge", "host", "null"],
        "Authorization": None,
        "Log": ["json-file"],
    }
    return reply(
        {
            "ID": session.directory.name,
            **session.containers.counts(),
            "Images": len(images),
            "Driver": "erofs",
            "DriverStatus": [["Engine", session.engine.name], ["Isolation", session.engine.isolation]],
            "Plugins": empty,
            "MemoryLimit": True,
            "SwapLimit": False,
            "CpuCfsPeriod": True,
            "CpuCfsQuota": True,
            "OomKillDisable": False,
            "IPv4Forwarding": True,
            "BridgeNfIptables": False,
            "BridgeNfIp6tables": False,
            "Debug": False,
            "NFd": 0,
            "NGoroutines": 0,
            "LoggingDriver": "json-file",
            "CgroupDriver": "none",
            "NEventsListener": 0,
            "KernelVersion": platform.release(),
            "OperatingSystem": f"supermachine {VERSION}",
            "OSType": "linux",
            "Architecture": session.engine.architecture,
            "NCPU": os.cpu_count() or 1,
            "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "IndexServerAddress": "",
            "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"], "IndexConfigs": {}, "Mirrors": []},
            "DockerRootDir": str(session.directory),
            "HttpProxy": "",
            "HttpsProxy": "",
            "NoProxy": "",
            "Name": platform.node(),
            "Labels": [],
            "ExperimentalBuild": False,
            "ServerVersion": VERSION,
            "Runtimes": {"supermachine": {"path": "supermachine"}},
            "DefaultRuntime": "supermachine",
            "Swarm": {"LocalNodeState": "inactive", "NodeID": "", "RemoteManagers": None},
            "LiveRestoreEnabled": False,
            "Isolation": "",
            "InitBinary": "",
            "SecurityOptions": ["name=microvm"],
            "Warnings": None,
        }
    )


@routes.get("/events")
async def events(session: Session, request: Request) -> Answer:
    filters = Filters.parse(request.text("filters"), _EVENT_FILTERS)
    since, until = moment(request.text("since")), moment(request.text("until"))

    async def lines() -> AsyncIterator[bytes]:
        async for event in session.events.listen(filters, since, until):
            yield json.dumps(event).encode() + b"\n"

    return Streamed(lines(), headers={"Content-Type": "application/json"})


def moment(text: str) -> float | None:
    """Seconds since 1970, of a number or a date; ``None`` for nothing and for 0."""
    if text in ("", "0"):
        return None
    try:
        return float(text[:40])
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text[:40].replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise BadRequest(f"{text[:50]!r} is no time") from None


@routes.get("/system/df")
async def disk_usage(session: Session, _request: Request) -> Answer:
    images = [{**image.line(), "Containers": 0} for image in await session.images.all()]
    volumes: list[dict[str, Any]] = [
        {**v.document(), "UsageData": {"RefCount": len(session.volumes.users(v)), "Size": -1}}
        for v in session.volumes.all()
    ]
    from .. import documents

    containers = [{**documents.line(c), "SizeRw": 0, "SizeRootFs": 0} for c in session.containers.all()]
    return reply(
        {
            "LayersSize": sum(image["Size"] for image in images),
            "Images": images,
            "Containers": containers,
            "Volumes": volumes,
            "BuildCache": [],
        }
    )


@routes.post("/auth")
async def login(session: Session, request: Request) -> Answer:
    found = logins.of_document(await request.document())
    if found is None:
        raise BadRequest("no credentials were given")
    await session.call(found.check)
    return reply({"Status": "Login Succeeded", "IdentityToken": ""})


@routes.get("/plugins/{name:path}/json")
async def plugin(_session: Session, _request: Request, name: str) -> Answer:
    """`docker inspect` asks here too for what is nothing else."""
    raise NotFound(f"plugin {name[:256]!r} not found")
