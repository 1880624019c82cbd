"""Named volumes: directories of this session, shared into the guests that use them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SupermachineError
from ..machine.vm import VM
from . import names
from .errors import Conflict, NotFound, NotImplementedHere
from .filters import Filters
from .logs import timestamp

if TYPE_CHECKING:
    from .session import Session

MAX_VOLUMES = 1000
#: Bytes of an image's directory that are copied into a new volume.
_MAX_COPIED = 4 << 30


@dataclass
class Volume:
    name: str
    path: Path
    labels: dict[str, str]
    options: dict[str, str]
    created_ns: int = field(default_factory=time.time_ns)
    #: Whether it holds what the first image that used it has there.
    filled: bool = False
    anonymous: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "CreatedAt": timestamp(self.created_ns),
            "Driver": "local",
            "Labels": self.labels,
            "Mountpoint": str(self.path),
            "Name": self.name,
            "Options": self.options,
            "Scope": "local",
        }


class Volumes:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._volumes: dict[str, Volume] = {}

    def all(self) -> list[Volume]:
        return list(self._volumes.values())

    def get(self, name: str) -> Volume:
        if name not in self._volumes:
            raise NotFound(f"get {name[:255]}: no such volume")
        return self._volumes[name]

    def ensure(self, name: str, labels: dict[str, str], driver: str = "local", options: Any = None) -> Volume:
        """The volume of this name, made where there is none; an empty name is a new one's."""
        if driver not in ("", "local"):
            raise NotImplementedHere(f"the volume driver {driver[:50]} is not there: local is")
        if options:
            raise NotImplementedHere("options of the volume driver local are not supported")
        anonymous = not name
        name = names.check("volume", name) if name else names.new_id()
        if name not in self._volumes:
            if len(self._volumes) >= MAX_VOLUMES:
                raise Conflict(f"this session has {MAX_VOLUMES} volumes, which is the most it keeps")
            path = self._session.directory / "volumes" / name / "_data"
            path.mkdir(parents=True)
            self._volumes[name] = Volume(name, path, labels, {}, anonymous=anonymous)
            self._session.events.publish("volume", "create", name, {"driver": "local"})
        return self._volumes[name]

    def by_path(self, path: str) -> Volume | None:
        return next((v for v in self.all() if str(v.path) == path), None)

    async def remove_anonymous(self, wanted: Iterable[str]) -> None:
        """Removes those without a name that nobody has any more."""
        for name in wanted:
            volume = self._volumes.get(name)
            if volume is not None and volume.anonymous and not self.users(volume):
                await self.remove(volume)

    def users(self, volume: Volume) -> list[str]:
        """Names of the containers that have it."""
        return [c.name for c in self._session.containers.all() if volume.name in c.volumes]

    async def remove(self, volume: Volume) -> None:
        if users := self.users(volume):
            raise Conflict(f"remove {volume.name}: volume is in use - [{', '.join(users)}]")
        del self._volumes[volume.name]
        await self._session.call(shutil.rmtree, volume.path.parent, True)
        self._session.events.publish("volume", "destroy", volume.name, {"driver": "local"})

    def matching(self, filters: Filters) -> list[Volume]:
        dangling = filters.flag("dangling")
        return [
            v
            for v in self.all()
            if filters.labels(v.labels)
            and filters.one_of("driver", "local")
            and (not filters.values("name") or any(n in v.name for n in filters.values("name")))
            and (dangling is None or dangling != bool(self.users(v)))
        ]

    async def prune(self, filters: Filters) -> tuple[list[str], int]:
        """Removes those that nobody has, of `all` also the named; gives names and bytes."""
        every = filters.flag("all") or False
        gone, size = [], 0
        for volume in self.all():
            if self.users(volume) or not (every or volume.anonymous) or not filters.labels(volume.labels):
                continue
            size += await self._session.call(_size, volume.path)
            await self.remove(volume)
            gone.append(volume.name)
        return gone, size

    def fill(self, volume: Volume, target: str, machine: VM) -> None:
        """Copies what the image has at `target` into a new volume, as docker does. `machine` is one of the image
        without shares, which is started for it. Blocks.
        """
        volume.filled = True
        if any(volume.path.iterdir()):
            return
        copied = volume.path.with_name("copied")
        with machine as vm:
            if not vm.path(target).is_dir():
                return
            vm.copy_out(target, copied, max_bytes=_MAX_COPIED)
        # Over the directory that is there, which is empty.
        copied.rename(volume.path)


def _size(path: Path) -> int:
    try:
        return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    except (OSError, SupermachineError):
        return 0
