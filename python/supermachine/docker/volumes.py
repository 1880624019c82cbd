"""Named volumes: directories of this session, shared into the guests that use them; or disks, one guest's at a time.

Those of the driver `local` are directories. Several containers may have one at once, and as files of this host's user
all in it belongs to the container's. Those of the driver `supermachine` are volumes as `supermachine volume` has them:
file systems of the guest's own, or directories that several have, with any owners, which outlast the session.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, NotSupported, SupermachineError, VolumeExists, VolumeInUse, VolumeNotFound
from ..machine.vm import VM
from ..storage import volumes as disks
from ..storage.shares import Share
from ..storage.sizes import disk_bytes
from . import names
from .errors import BadRequest, Conflict, NotFound, NotImplementedHere
from .filters import Filters
from .logs import timestamp

if TYPE_CHECKING:
    from .session import Session

MAX_VOLUMES = 1000
#: Drivers.
LOCAL, DISK = "local", "supermachine"
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
    #: Held while it is filled, which happens once.
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    anonymous: bool = False
    driver: str = LOCAL
    #: Bytes of one that is a disk; 0 for the usual, or what it has.
    size: int = 0
    #: Of one that outlasts the session.
    kind: disks.Kind = "disk"

    @property
    def lasting(self) -> bool:
        """Whether it outlasts the session."""
        return self.driver == DISK

    @property
    def disk(self) -> bool:
        return self.lasting and self.kind == "disk"

    @property
    def mounted(self) -> Share | disks.Volume:
        """What a machine is given for it, to read and to write."""
        return disks.Volume(self.name, size=self.size or None, kind=self.kind) if self.lasting else Share(self.path)

    def document(self) -> dict[str, Any]:
        return {
            "CreatedAt": timestamp(self.created_ns),
            "Driver": self.driver,
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

    async def create(self, name: str, labels: dict[str, str], driver: str, options: Mapping[str, Any]) -> Volume:
        """The volume of this name, made by a driver where there is none."""
        if driver == DISK:
            return await self._lasting(name or names.new_id(), labels, options)
        if driver not in ("", LOCAL):
            raise NotImplementedHere(f"the volume driver {driver[:50]} is not there: {LOCAL} and {DISK} are")
        if options:
            raise NotImplementedHere(f"options of the volume driver {LOCAL} are not supported")
        return self.ensure(name, labels)

    async def _lasting(self, name: str, labels: dict[str, str], options: Mapping[str, Any]) -> Volume:
        if unknown := options.keys() - {"size", "kind"}:
            raise NotImplementedHere(
                f"options of the volume driver {DISK}: size and kind are, {sorted(unknown)[0][:50]} is not"
            )
        name = names.check("volume", name)
        if name not in self._volumes:
            self._check_count()
            size, kind = options.get("size") or 0, options.get("kind") or None
            try:
                length = disk_bytes(size)
                wanted = disks.Volume(name, size=size or None, kind=kind)
                found = await self._session.call(disks.kind_of, wanted)
                with contextlib.suppress(VolumeExists):
                    await self._session.call(disks.make, name, size or None, found)
                info = await self._session.call(disks.inspect, name)
            except (ConfigurationError, NotSupported) as error:
                raise BadRequest(str(error)) from None
            said = {str(key): str(value) for key, value in options.items()}
            made = Volume(name, info.path, labels, said, filled=True, driver=DISK, size=length, kind=info.kind)
            self._volumes[name] = made
            self._session.events.publish("volume", "create", name, {"driver": DISK})
        return self._volumes[name]

    def ensure(self, name: str, labels: dict[str, str]) -> Volume:
        """The volume of this name, a directory where there is none; an empty name is a new one's."""
        anonymous = not name
        name = names.check("volume", name) if name else names.new_id()
        if name not in self._volumes:
            self._check_count()
            path = self._session.directory / "volumes" / name / "_data"
            path.mkdir(parents=True)
            self._volumes[name] = Volume(name, path, labels, {}, anonymous=anonymous)
            self._session.events.publish("volume", "create", name, {"driver": LOCAL})
        return self._volumes[name]

    def _check_count(self) -> None:
        if len(self._volumes) >= MAX_VOLUMES:
            raise Conflict(f"this session has {MAX_VOLUMES} volumes, which is the most it keeps")

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
        if volume.lasting:
            try:
                with contextlib.suppress(VolumeNotFound):
                    await self._session.call(disks.remove, volume.name)
            except VolumeInUse as error:
                raise Conflict(f"remove {volume.name}: {error}") from None
        del self._volumes[volume.name]
        if not volume.lasting:
            await self._session.call(shutil.rmtree, volume.path.parent, True)
        self._session.events.publish("volume", "destroy", volume.name, {"driver": volume.driver})

    def matching(self, filters: Filters) -> list[Volume]:
        dangling = filters.flag("dangling")
        return [
            v
            for v in self.all()
            if filters.labels(v.labels)
            and filters.one_of("driver", v.driver)
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
            volume_size = await self._session.call(_size, volume.path)
            try:
                await self.remove(volume)
            except Conflict:
                # Of a machine that is none of this session's.
                continue
            size += volume_size
            gone.append(volume.name)
        return gone, size

    def fill(self, volume: Volume, target: str, machine: VM) -> None:
        """Copies what the image has at `target` into a new volume, as docker does, unless that has been done. `machine`
        is one of the image without shares, which is started for it. Blocks. Raises what `VM.copy_out` does; the volume
        is a new one as before then.
        """
        with volume.lock:
            if not volume.filled:
                self._fill(volume, target, machine)
                volume.filled = True

    def _fill(self, volume: Volume, target: str, machine: VM) -> None:
        if any(volume.path.iterdir()):
            return
        copied = volume.path.with_name("copied")
        try:
            with machine as vm:
                if not vm.path(target).is_dir():
                    return
                vm.copy_out(target, copied, max_bytes=_MAX_COPIED)
            # Over the directory that is there, which is empty, and which no machine has before this is done.
            copied.rename(volume.path)
        except BaseException:
            shutil.rmtree(copied, ignore_errors=True)
            raise


def _size(path: Path) -> int:
    try:
        if path.is_file():
            return path.stat().st_blocks * 512
        return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    except (OSError, SupermachineError):
        return 0
