"""All containers of a session: making, finding, listing them."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import names, networks
from .container import Container
from .errors import ApiError, BadRequest, Conflict, NotFound, NotImplementedHere
from .filters import Filters
from .images import Image, is_reaper
from .logs import Log
from .reaper import Reaper
from .specification import Specification, VolumeMount

if TYPE_CHECKING:
    from .session import Session

#: Containers of one session, those that have ended included.
MAX_CONTAINERS = 1000

FILTERS = frozenset(
    {"id", "name", "label", "status", "health", "network", "volume", "ancestor", "exited", "before", "since"}
    | {"publish", "expose", "is-task", "isolation"}
)


class Containers:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._containers: dict[str, Container] = {}
        #: Names of containers that are being made.
        self._reserved: set[str] = set()

    def all(self) -> list[Container]:
        """The latest first."""
        return list(reversed(self._containers.values()))

    def get(self, wanted: str) -> Container:
        try:
            return names.find("container", wanted, self._containers, lambda c: [c.name])
        except NotFound:
            raise NotFound(f"No such container: {wanted[:256]}") from None

    def forget(self, container: Container) -> None:
        self._containers.pop(container.id, None)

    def _taken(self, name: str) -> bool:
        return name in self._reserved or any(c.name == name for c in self._containers.values())

    def _free(self, name: str) -> str:
        """The name, or a random one for none. Raises Conflict when another container has it."""
        if not name:
            return names.random_name(self._taken)
        name = names.check("container", name.lstrip("/"))
        if self._taken(name):
            holder = next((c.id for c in self._containers.values() if c.name == name), "that is being created")
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{holder}". You have to remove '
                "(or rename) that container to be able to reuse that name."
            )
        return name

    def rename(self, container: Container, name: str) -> None:
        if not name:
            raise BadRequest("Neither old nor new names may be empty")
        old, container.name = container.name, self._free(name)
        container.announce("rename", oldName=f"/{old}")

    async def create(self, name: str, wanted: Specification) -> Container:
        """A new container, with all that can be checked before it is started."""
        if len(self._containers) >= MAX_CONTAINERS:
            raise Conflict(f"this session has {MAX_CONTAINERS} containers, which is the most it keeps")
        name = self._free(name)
        self._reserved.add(name)
        try:
            image = await self._session.images.usable(wanted.image, wanted.platform)
            container = self._made(name, wanted, image)
            try:
                container.networks = self._networks(wanted)
                if not isinstance(container, Reaper):
                    container.mounts = [self._mount(mount, container) for mount in wanted.mounts]
                    await self._session.call(container.check)
            except BaseException:
                container.log.close()
                await self._session.volumes.remove_anonymous(container.volumes)
                raise
            self._containers[container.id] = container
        finally:
            self._reserved.discard(name)
        container.announce("create")
        return container

    def _made(self, name: str, wanted: Specification, image: Image) -> Container:
        container_id = names.new_id()
        directory = self._session.directory / "logs" / container_id
        directory.mkdir(parents=True)
        kind = Reaper if is_reaper(wanted.image) else Container
        return kind(self._session, container_id, name, wanted, image, Log(directory))

    def _networks(self, wanted: Specification) -> dict[str, list[str]]:
        found = {}
        network = self._session.networks.of_mode(wanted.network_mode)
        if network is not None:
            found[network.name] = networks.aliases(
                wanted.endpoints.get(network.name) or wanted.endpoints.get(wanted.network_mode) or {}
            )
        for name, endpoint in wanted.endpoints.items():
            if name not in ("default", wanted.network_mode):
                found[self._session.networks.get(name).name] = networks.aliases(endpoint)
        return found

    def _mount(self, mount: VolumeMount, container: Container) -> VolumeMount:
        """Where it is on the host. Raises BadRequest for what is not there."""
        if mount.kind == "volume":
            volume = self._session.volumes.ensure(mount.source, {})
            volume.anonymous |= not mount.source
            container.volumes.append(volume.name)
            return VolumeMount("volume", str(volume.path), mount.target, mount.read_only)
        path = Path(mount.source)
        if not path.exists() and mount.make:
            with contextlib.suppress(OSError):
                path.mkdir(parents=True)
        try:
            mode = path.stat().st_mode
        except OSError:
            raise BadRequest(
                f'invalid mount config for type "bind": bind source path does not exist: {mount.source[:300]}'
            ) from None
        if stat.S_ISSOCK(mode):
            raise NotImplementedHere(
                f"{mount.source[:300]} is a socket, which a machine of its own cannot reach: bind files or directories"
            )
        return mount

    def matching(self, filters: Filters, *, every: bool, limit: int | None) -> list[Container]:
        """Those that run, or all, or the last `limit` of all."""
        status = filters.values("status") or filters.values("exited")
        found = [c for c in self.all() if every or limit or status or c.alive]
        found = [c for c in found if self._fits(c, filters)]
        for name, newer in (("since", True), ("before", False)):
            for wanted in filters.values(name):
                other = self.get(wanted).created_ns
                found = [c for c in found if c.created_ns != other and (c.created_ns > other) == newer]
        return found[:limit] if limit and limit > 0 else found

    def _fits(self, c: Container, filters: Filters) -> bool:
        ids, health = filters.values("id"), c.health.status if c.health is not None else "none"
        return (
            filters.labels(c.labels())
            and filters.one_of("status", c.status)
            and filters.one_of("health", health)
            and (not filters.values("exited") or (c.ends > 0 and str(c.exit_code) in filters.values("exited")))
            and (not ids or any(c.id.startswith(i) for i in ids))
            and (not filters.values("name") or any(_search(n, c.name) for n in filters.values("name")))
            and (not filters.values("network") or any(self._is_in(c, n) for n in filters.values("network")))
            and (not filters.values("volume") or any(v in _places(c) for v in filters.values("volume")))
            and (not filters.values("ancestor") or any(_is_of(c, a) for a in filters.values("ancestor")))
        )

    def _is_in(self, container: Container, wanted: str) -> bool:
        try:
            return self._session.networks.get(wanted).name in container.networks
        except NotFound:
            return False

    async def prune(self, filters: Filters) -> list[str]:
        gone = [c for c in self.all() if not c.alive and filters.labels(c.labels())]
        for container in gone:
            # It has gone also where its machine did not end well, and one that was started meanwhile stays.
            with contextlib.suppress(ApiError):
                await container.remove(force=False, volumes=False)
        return [container.id for container in gone if container.removed]

    def counts(self) -> dict[str, Any]:
        """For ``docker info``."""
        statuses = [c.status for c in self._containers.values()]
        running, paused = statuses.count("running") + statuses.count("restarting"), statuses.count("paused")
        return {
            "Containers": len(statuses),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": len(statuses) - running - paused,
        }


def _search(pattern: str, name: str) -> bool:
    """Docker's filter of names is a regular expression. Its ends are understood here, and the rest is taken literally:
    an expression can be one that takes for ever.
    """
    starts, ends = pattern.startswith("^"), pattern.endswith("$")
    plain = pattern[starts : len(pattern) - ends].replace("\\", "").removeprefix("/")
    starts |= pattern.startswith("/")
    if starts and ends:
        return name == plain
    return name.startswith(plain) if starts else name.endswith(plain) if ends else plain in name


def _places(container: Container) -> list[str]:
    return [*container.volumes, *(m.target for m in container.mounts), *(m.source for m in container.mounts)]


def _is_of(container: Container, ancestor: str) -> bool:
    digits = ancestor.removeprefix("sha256:")
    image = container.image
    return (
        container.wanted.image == ancestor
        or ancestor in image.names
        or f"{ancestor}:latest" in image.names
        or (len(digits) >= 4 and image.id[7:].startswith(digits))
    )
