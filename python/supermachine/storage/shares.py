"""Directories and files of the host in the guest, written as docker and docker-py write them: ``./src:/work:ro``.

What is written in the place of such a path and is the name of a volume is in `volumes`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast, get_args

from .. import shortage
from ..errors import ConfigurationError, ShareNotFound
from . import tmpfs as memory
from . import volume_directories
from . import volumes as named
from .sizes import disk_bytes, size_bytes

if TYPE_CHECKING:
    from .._core import Worker

Cache: TypeAlias = Literal["auto", "none", "always"]
Owner: TypeAlias = Literal["map", "virtual"]
#: As docker-py has volumes: a mapping of host paths, or texts as on docker's command line.
Volumes: TypeAlias = "Mapping[str, Any] | Sequence[str]"
#: By the guest's path, or texts as docker's --mount has them.
Mounts: TypeAlias = "Mapping[str, str | os.PathLike[str] | Share | named.Volume] | Sequence[str]"

#: Shares of one machine at most; a directory that holds several is one.
MAX_SHARES = 64
_HOWS = {"rw": False, "ro": True}
#: What docker calls the parts of a --mount.
_FIELDS = {
    "type": "type",
    **dict.fromkeys(("source", "src"), "source"),
    **dict.fromkeys(("target", "dst", "destination"), "target"),
    **dict.fromkeys(("readonly", "ro"), "read_only"),
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
    # Not docker's.
    "kind": "kind",
    "cache": "cache",
    "owner": "owner",
    "quota": "quota",
    "watch": "watch",
}
#: Of those, what only a tmpfs has, and what only a share has.
_OF_TMPFS = ("size", "mode")
_OF_SHARES = ("cache", "owner", "quota", "watch")
_OF_VOLUMES = "kind"
_SWITCH = {"": True, "true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Share:
    """A directory or a file of the host that the guest is given.

    What the host's user owns belongs to the guest's user, in both directions. `cache` says how long the guest goes by
    what it has seen: ``"auto"`` for a second, ``"none"`` not at all, ``"always"`` for a day, which is for what nobody
    else changes. Of a share that is `read_only` nothing can be changed, by the guest or by its own process on the host.

    With `owner="virtual"` the guest sets any owner, mode and kind of file: they are kept beside each file of the
    host's, as the extended attribute ``user.supermachine.stat``, and the host's files belong to the host's user all
    the same. Its file system must have such attributes.

    `quota` is by how much the guest may make it grow, in bytes or as ``"4g"``; then it has ``ENOSPC``. The room that
    files take counts, and what the guest frees is given back; each machine, and each fork of one, begins anew.

    With `watch` programs in the guest that watch files (inotify) are told of what the host changes, too. The host's
    system watches each of the share's directories for that: 65,536 at most, and ConfigurationError beyond.
    """

    path: str | os.PathLike[str]
    read_only: bool = False
    cache: Cache = "auto"
    owner: Owner = "map"
    quota: int | str | None = None
    watch: bool = False


class Mounted(NamedTuple):
    """A share, checked, and where it is in the guest; `_core` reads it by these names."""

    target: str
    #: Absolute.
    path: str
    read_only: bool
    cache: Cache
    owner: Owner
    quota_bytes: int | None
    #: The volume that it is, if it is one.
    volume: str = ""
    watch: bool = False


class Parsed(NamedTuple):
    """What a machine is given beside its image; of each, what lies within another comes after it."""

    shares: tuple[Mounted, ...]
    volumes: tuple[named.Mounted, ...]
    tmpfs: tuple[memory.Mounted, ...]


def parse(volumes: Volumes | None, mounts: Mounts | None, tmpfs: memory.Tmpfs | None = None) -> Parsed:
    """Checks what a user wrote. Raises ConfigurationError and ShareNotFound."""
    found = [*_volumes(volumes or ()), *_mounts(mounts or ()), *memory.parse(tmpfs or ())]
    targets = [mounted.target for mounted in found]
    if twice := next((target for target in targets if targets.count(target) > 1), None):
        raise ConfigurationError(f"two shares, volumes or tmpfs are to be at {twice} in the guest")
    found.sort(key=lambda mounted: mounted.target.count("/"))
    shares = tuple(mounted for mounted in found if isinstance(mounted, Mounted))
    disks = [mounted for mounted in found if isinstance(mounted, named.Mounted)]
    memories = tuple(mounted for mounted in found if isinstance(mounted, memory.Mounted))
    for what, count, most in (
        ("shares", len(shares), MAX_SHARES),
        ("volumes", len(disks), len(named.SLOTS)),
        ("tmpfs", len(memories), MAX_SHARES),
    ):
        if count > most:
            raise ConfigurationError(
                f"{count} {what} are asked for, and a machine has {most} at most",
                hint="one directory may hold several",
            )
    if twice := next((disk.name for disk in disks if sum(disk.name == other.name for other in disks) > 1), None):
        raise ConfigurationError(f"the volume {twice} is to be mounted twice")
    placed = zip(named.SLOTS, disks, strict=False)
    return Parsed(shares, tuple(disk._replace(slot=slot) for slot, disk in placed), memories)


def _volumes(volumes: Volumes) -> list[Mounted | named.Mounted]:
    if isinstance(volumes, Mapping):
        return [_docker_py(source, said) for source, said in volumes.items()]
    if isinstance(volumes, str):
        raise ConfigurationError(f"volumes is the text {volumes!r}; a list of such texts is needed")
    return [_text(text) for text in volumes]


def _mounts(mounts: Mounts) -> list[Mounted | named.Mounted | memory.Mounted]:
    if isinstance(mounts, Mapping):
        return [_mounted(target, share) for target, share in mounts.items()]
    if isinstance(mounts, str):
        raise ConfigurationError(f"mounts is the text {mounts!r}; a list of such texts is needed")
    return [_long(text) for text in mounts]


def _long(text: str) -> Mounted | named.Mounted | memory.Mounted:
    """``type=bind,source=SOURCE,target=TARGET[,readonly]``, as docker's --mount."""
    said: dict[str, str] = {}
    for field in text.split(","):
        key, _, value = field.partition("=")
        name = _FIELDS.get(key.strip().lower())
        if name is None:
            raise ConfigurationError(
                f"{field!r}, in the mount {text!r}, is not understood",
                hint="write type=bind,source=./src,target=/work or type=volume,source=NAME,target=/data, and readonly; "
                "or type=tmpfs,target=/run, and tmpfs-size and tmpfs-mode",
            )
        said[name] = value
    if "target" not in said:
        raise ConfigurationError(f"the mount {text!r} names no target", hint="add target=/work")
    kind, source = said.get("type", "volume"), said.get("source", "")
    options = [f"{name}={said[name]}" for name in _OF_TMPFS if name in said]
    if kind != "bind" and (of_shares := next((name for name in _OF_SHARES if name in said), None)):
        raise ConfigurationError(f"{of_shares}, in the mount {text!r}, is of a bind", hint="add type=bind")
    if kind != "volume" and _OF_VOLUMES in said:
        raise ConfigurationError(f"kind, in the mount {text!r}, is of a volume", hint="add type=volume")
    if kind == "tmpfs" and not source:
        if _SWITCH.get(said.get("read_only", "false")):
            options.append("ro")
        return memory.mounted(said["target"], ",".join(options))
    if kind not in ("bind", "volume") or not source or options:
        raise ConfigurationError(
            f"the mount {text!r} is neither a bind or a volume with a source nor a tmpfs without one",
            hint="tmpfs-size and tmpfs-mode are of a tmpfs",
        )
    if (read_only := _SWITCH.get(said.get("read_only", "false"))) is None:
        raise ConfigurationError(f"readonly, in the mount {text!r}, is neither true nor false")
    if kind == "bind":
        cache, owner = said.get("cache", "auto"), said.get("owner", "map")
        if (watch := _SWITCH.get(said.get("watch", "false"))) is None:
            raise ConfigurationError(f"watch, in the mount {text!r}, is neither true nor false")
        share = Share(source, read_only, cast("Cache", cache), cast("Owner", owner), said.get("quota"), watch)
        return _mounted(said["target"], share)
    volume_kind = cast("named.Kind | None", said.get(_OF_VOLUMES))
    return _mounted(said["target"], named.Volume(source, read_only=read_only, kind=volume_kind))


def _docker_py(source: str, said: object) -> Mounted | named.Mounted:
    if not isinstance(said, Mapping) or "bind" not in said:
        raise ConfigurationError(
            f"{said!r}, for the volume {source!r}, says no place in the guest", hint='write {"bind": "/work"}'
        )
    return _bound(source, str(said["bind"]), str(said.get("mode", "rw")), f"{source!r}")


def _text(text: str) -> Mounted | named.Mounted:
    """``SOURCE:TARGET[:ro|rw]``"""
    source, *rest = text.split(":")
    if not 1 <= len(rest) <= 2 or not source:
        raise ConfigurationError(f"{text!r} is no volume", hint="write ./src:/work or ./src:/work:ro")
    return _bound(source, rest[0], rest[1] if len(rest) == 2 else "rw", repr(text))


def _bound(source: str, target: str, how: str, said: str) -> Mounted | named.Mounted:
    if how not in _HOWS:
        raise ConfigurationError(f"{how!r}, in the volume {said}, is neither ro nor rw")
    if not source.startswith((".", "/", "~")):
        return _mounted(target, named.Volume(source, read_only=_HOWS[how]))
    return _mounted(target, Share(source, read_only=_HOWS[how]))


def _mounted(target: str, share: str | os.PathLike[str] | Share | named.Volume) -> Mounted | named.Mounted:
    if not target.startswith("/") or "\0" in target or os.path.normpath(target) in ("/", "//"):
        raise ConfigurationError(f"{target!r} is no place for a share; an absolute path below / is needed")
    if isinstance(share, named.Volume):
        if named.kind_of(share) == "directory":
            return _directory(os.path.normpath(target), share.name, read_only=share.read_only)
        size = 0 if share.size is None else disk_bytes(share.size)
        return named.Mounted(os.path.normpath(target), named.check_name(share.name), size, bool(share.read_only), 0)
    share = share if isinstance(share, Share) else Share(share)
    if share.cache not in get_args(Cache):
        raise ConfigurationError(f"cache is {share.cache!r}; auto, none or always is needed")
    if share.owner not in get_args(Owner):
        raise ConfigurationError(f"owner is {share.owner!r}; map or virtual is needed")
    quota = None if share.quota is None else size_bytes(share.quota, "a quota")
    if quota is not None and quota < 0:
        raise ConfigurationError(f"quota is {share.quota!r}; a number of bytes from 0 on is needed")
    path = os.path.normpath(Path(share.path).expanduser().absolute())
    if not Path(path).is_dir() and not Path(path).is_file():
        raise ShareNotFound(f"{path}, which is to be at {target} in the guest, is neither a directory nor a file")
    return Mounted(
        os.path.normpath(target),
        path,
        bool(share.read_only),
        share.cache,
        share.owner,
        quota,
        watch=bool(share.watch),
    )


def _directory(target: str, name: str, *, read_only: bool) -> Mounted:
    path = str(volume_directories.share_of(named.place() / name))
    return Mounted(target, path, bool(read_only), "auto", "virtual", None, name)


def known(directories: Sequence[tuple[str, str, bool]]) -> tuple[Mounted, ...]:
    """Volumes that a snapshot's machine had, by name, place in the guest, and whether it only read them.

    Raises VolumeNotFound, and ConfigurationError for what is no directory any more.
    """
    for name, _, _ in directories:
        if named.inspect_kind(name) != "directory":
            raise ConfigurationError(f"the volume {name} was a directory when the snapshot was taken, and is a disk")
    return tuple(_directory(target, name, read_only=read_only) for name, target, read_only in directories)


def held(shares: Sequence[Mounted]) -> volume_directories.Held:
    """The locks of a machine on the volumes among its shares, which are made where they are not there yet.

    One that is new is this machine's alone until `Held.filled`. Raises VolumeInUse.
    """
    found = volume_directories.Held()
    try:
        for volume in sorted({share.volume for share in shares} - {""}):
            found.take(named.directory(volume))
    except BaseException:
        found.close()
        raise
    return found


def attach(
    worker: Worker,
    shares: Sequence[Mounted],
    user: str | None,
    volumes: Sequence[named.Opened] = (),
    tmpfs: Sequence[memory.Mounted] = (),
    shm_bytes: int = 0,
    read_only: bool = False,
) -> None:
    """Has the guest mount what its worker was started with, and memory; then its root may become read-only.

    What the host's user owns in a share belongs to `user` there.

    Raises AgentError with the reason when one cannot be mounted.
    """
    if shares or volumes or tmpfs or shm_bytes or read_only:
        from .._core import attach_shares

        disks = [
            (disk.mounted.device, disk.size, os.fsencode(disk.mounted.target), disk.mounted.read_only)
            for disk in volumes
        ]
        targets = [(os.fsencode(share.target), share.read_only, bool(share.volume)) for share in shares]
        with shortage.Told("what the guest is to mount cannot be mounted"):
            attach_shares(
                worker,
                disks,
                targets,
                user or "",
                os.geteuid(),
                os.getegid(),
                tmpfs=[(os.fsencode(mounted.target), mounted.flags, mounted.options) for mounted in tmpfs],
                shm_bytes=shm_bytes,
                read_only_root=read_only,
            )
            if watched := [(number, share.path) for number, share in enumerate(shares) if share.watch]:
                from . import watching

                watching.follow(worker, watched)
