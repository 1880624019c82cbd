"""``/build``, ``/commit``, ``/images/get``, ``/images/{}/push``: what makes images, and takes them elsewhere."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import SupermachineError
from ...oci.references import RegistryReference
from ...oci.transport import Transport
from .. import archives, builds, dockerfile, documents, logins, made
from ..errors import ApiError, BadRequest, NotImplementedHere, as_api_error
from ..http import Answer, Duplex, Hijacked, Request, Streamed, reply
from ..images import reference
from ..pulling import encoded
from ..routing import Routes
from ..streaming import from_thread

if TYPE_CHECKING:
    from ...machine.vm import VM
    from ..images import Image
    from ..logins import Login
    from ..session import Session

routes = Routes()

_JSON, _TAR = {"Content-Type": "application/json"}, {"Content-Type": "application/x-tar"}
#: Parts of a container's configuration that are not an image's.
_OF_CONTAINERS = (
    *(
        "Hostname",
        "Domainname",
        "AttachStdin",
        "AttachStdout",
        "AttachStderr",
        "Tty",
        "OpenStdin",
        "StdinOnce",
        "Image",
    ),
    "OnBuild",
)


@routes.post("/session")
async def buildkit_session(_session: Session, _request: Request) -> Answer:
    """What BuildKit's clients open before they build, and show no failure of. Their build is told what to do."""

    async def nothing(connection: Duplex) -> None:
        while await connection.read():
            pass

    return Hijacked(nothing)


@routes.post("/build")
async def build(session: Session, request: Request) -> Answer:
    if request.text("version") == "2" or request.text("session"):
        raise NotImplementedHere("supermachine does not serve BuildKit: build with the variable DOCKER_BUILDKIT=0")
    if request.text("remote"):
        raise NotImplementedHere("a build's context is sent here, and not fetched from an address")
    wanted = builds.Wanted(
        dockerfile=request.text("dockerfile") or "Dockerfile",
        names=[name for name in request.all("t") if name],
        arguments=_texts(request, "buildargs"),
        labels=_texts(request, "labels"),
        target=request.text("target").lower(),
        platform=request.text("platform"),
        pull=request.flag("pull"),
        use_cache=not request.flag("nocache"),
        quiet=request.flag("q"),
        memory=request.number("memory") or 0,
        no_network=request.text("networkmode") == "none",
    )
    for name in wanted.names:
        reference(name)
    async with session.upload(request.body) as path:
        kept = path.rename(path.with_suffix(".context"))

    async def pieces() -> AsyncIterator[bytes]:
        running = builds.Build(session, wanted, kept)
        try:
            async for piece in from_thread(session, running.run, running.cancel):
                yield piece
        finally:
            _remove(kept)

    return Streamed(pieces(), headers=_JSON)


def _remove(context: Path) -> None:
    for path in (context, context.with_suffix(".plain")):
        path.unlink(missing_ok=True)


def _texts(request: Request, name: str) -> dict[str, str]:
    """An object of texts that a query holds as JSON; what is null in it is left out."""
    try:
        said = json.loads(request.text(name) or "{}")
    except (ValueError, RecursionError):
        raise BadRequest(f"{name} is not JSON") from None
    if not isinstance(said, dict):
        raise BadRequest(f"{name} is not a JSON object")
    return {str(key): str(value) for key, value in said.items() if value is not None}


@routes.post("/build/prune")
async def prune(_session: Session, _request: Request) -> Answer:
    return reply({"CachesDeleted": None, "SpaceReclaimed": 0})


@routes.post("/commit")
async def commit(session: Session, request: Request) -> Answer:
    container = session.containers.get(request.text("container"))
    given = await request.document()
    config = {k: v for k, v in documents.config(container).items() if k not in _OF_CONTAINERS}
    config.update({k: v for k, v in given.items() if k not in _OF_CONTAINERS and v})
    for line in request.all("changes"):
        for instruction in dockerfile.parse(f"FROM x\n{line}")[1:]:
            dockerfile.apply(config, dockerfile.expanded(instruction, dockerfile.environment(config)))
    names = []
    if request.text("repo"):
        names = [request.text("repo") + (f":{request.text('tag')}" if request.text("tag") else "")]
    vm = await container.machine()
    resolved = container.image.resolved
    assert resolved is not None
    history = [*container.image.history, made.step(shlex.join(container.command), request.text("comment"))]

    def work() -> Image:
        image = session.made.of_guest(
            vm, config, str(resolved.platform), history=history, author=request.text("author")
        )
        session.made.name(names, image)
        return image

    async with container.still() if request.flag("pause", True) else contextlib.nullcontext():
        image = await _called(session, work)
    container.announce("commit", comment=request.text("comment"))
    return reply({"Id": image.id}, 201)


@routes.get("/containers/{name}/export")
async def export(session: Session, _request: Request, name: str) -> Answer:
    vm: VM = await session.containers.get(name).machine()
    pieces = from_thread(session, lambda write: archives.pack_root(vm, write))
    return Streamed(pieces, headers=_TAR)


@routes.get("/images/get")
async def save_several(session: Session, request: Request) -> Answer:
    names = [name for text in request.all("names") for name in text.split(",") if name]
    if not names:
        raise BadRequest("no image is named")
    return await _saved(session, names)


@routes.get("/images/{name:path}/get")
async def save(session: Session, _request: Request, name: str) -> Answer:
    return await _saved(session, [name])


async def _saved(session: Session, names: list[str]) -> Answer:
    found: list[tuple[made.Layout, list[str]]] = []
    for name in names:
        image = await session.images.usable(name, None)
        by_id = image.id.removeprefix("sha256:").startswith(name.removeprefix("sha256:"))
        layout = await _called(session, partial(session.made.layout, image))
        found.append((layout, [] if by_id else [reference(name).familiar]))
    return Streamed(from_thread(session, lambda write: made.save(found, write)), headers=_TAR)


@routes.post("/images/{name:path}/push")
async def push(session: Session, request: Request, name: str) -> Answer:
    target = reference(f"{name}:{request.text('tag')}" if request.text("tag") else name)
    image = await session.images.usable(target.familiar, None)
    login = logins.of_header(request.headers.get("x-registry-auth", ""))
    return Streamed(from_thread(session, lambda write: _push(session, image, target, login, write)), headers=_JSON)


def _push(
    session: Session, image: Image, target: RegistryReference, login: Login | None, write: Callable[[bytes], None]
) -> None:
    write(encoded({"status": f"The push refers to repository [{target.name}]"}))
    try:
        layout = session.made.layout(image)
        transport = Transport(credentials={login.domain or target.domain: login.credentials} if login else None)
        try:
            digest = layout.push(
                target,
                transport,
                lambda blob, done: write(
                    encoded({"status": "Pushing", "id": blob[7:19], "progressDetail": {"current": done}})
                ),
            )
        finally:
            transport.close()
    except (SupermachineError, OSError) as error:
        message = as_api_error(error).message
        write(encoded({"errorDetail": {"message": message}, "error": message}))
        return
    tag, size = target.tag or "latest", len(layout.manifest)
    write(encoded({"status": f"{tag}: digest: {digest} size: {size}"}))
    write(encoded({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": size}}))


async def _called(session: Session, work: Callable[[], Any]) -> Any:
    try:
        return await session.call(work)
    except ApiError:
        raise
    except (SupermachineError, OSError) as error:
        raise as_api_error(error) from error
