"""What `VM.snapshot`, `VM.restore` and `VM.fork` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BadSnapshot, ConfigurationError, NotSupported, SnapshotFailed, VolumeChanged
from ..network import ports
from ..settings.machine import MachineSettings
from ..snapshots import capture, records
from ..storage import volumes
from . import makers
from .guest import Origin
from .snapshot import Snapshot
from .starts import Root, Starter

if TYPE_CHECKING:
    from .._core import _SnapshotV8
    from ..images import ResolvedImage
    from ..storage.scratch import Disk
    from .guest import Guest
    from .vm import RestoreOptions

#: How often volumes are captured and copied until nobody has written to them meanwhile.
_COPY_ATTEMPTS = 5
#: Keywords of `VM.restore` for what a snapshot of version 8 does not say, with their defaults.
_UNSAID: Mapping[str, Any] = {"image": None, "disks": (), "engine": "auto", "agent": True}


def absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow a link that is to be replaced by none


def take(
    guest: Guest,
    settings: MachineSettings,
    image: ResolvedImage | None,
    path: Path,
    *,
    diff: bool,
    version: int,
    timeout: float,
) -> Snapshot:
    if version not in (8, 9):
        raise ConfigurationError(f"format is {version!r}; snapshots are of version 8 or 9")
    if version == 8:
        from ..snapshots.legacy_v8 import check_writable

        check_writable(settings.engine, diff=diff)
        if guest.disk:
            raise NotSupported(
                "a snapshot of version 8 cannot hold the disk of the root", hint="start the machine with disk=0"
            )
    elif image is None:
        raise SnapshotFailed(
            "a snapshot of version 9 says which image its guest is of, and of this one that is not known",
            hint="take one of version 8: format=8; or restore this machine with image=",
        )
    _check_volumes(settings)
    mark = os.urandom(16) if settings.volumes else b""
    with guest.capturing:
        worker = guest.whole(timeout)
        parents = _parents(guest.origin, path) if diff else []
        with capture.published(path) as fd:
            if image is None or version == 8:
                done = capture.write(worker, fd, v8=True, image=None, api=b"", timeout=timeout)
            else:
                record = records.Record.of(image, settings, ports=guest.ports, parents=parents, mark=mark)
                done = capture.write(
                    worker,
                    fd,
                    diff=diff,
                    image=image.digest,
                    api=record.encode(),
                    volume_mark=mark,
                    timeout=timeout,
                )
    parent = parents[-1].id if parents else None
    return Snapshot(path, done.id or None, parent, done.data_bytes, done.pause, done.timings, version)


def _parents(origin: Origin | None, path: Path) -> list[records.Head]:
    """The files that a diff at `path` builds on."""
    if origin is None or not origin.files or origin.v8:
        raise SnapshotFailed(
            "this machine was not restored from a snapshot's file of version 9, so there is nothing for a diff "
            "to build on",
            hint="take a whole snapshot: without diff=True",
        )
    parents = [records.Head.read(file) for file in origin.files]
    return [_kept(parents[0], path.parent)] if origin.baked else parents


def _kept(head: records.Head, directory: Path) -> records.Head:
    """A file of the cache, which may be cleared any time, beside the diff that needs it."""
    kept = directory / f"base-{head.id[:16]}"
    with contextlib.suppress(OSError, ValueError):
        if records.Head.read(kept).id == head.id:
            return _moved(head, kept)
    try:
        os.link(head.path, kept)
    except OSError:
        # Another file system.
        with capture.published(kept) as fd:
            capture.copy_sparse(head.path, fd)
    return _moved(head, kept)


def _moved(head: records.Head, path: Path) -> records.Head:
    return records.Head(path, head.id, head.parent, head.engine, head.memory, head.disk, head.vcpus, head.api)


def _check_volumes(settings: MachineSettings) -> None:
    if any(volume.read_only for volume in settings.volumes):
        raise NotSupported(
            "a machine with a volume that it only reads cannot be captured: what it has of it is nowhere else",
            hint="mount the volume writable",
        )
    if not all(volume.name for volume in settings.volumes):
        raise NotSupported("a fork with a copy of a volume cannot be captured: the copy ends with it")


def of_fork(settings: MachineSettings) -> MachineSettings:
    return settings.of_restored()._replace(ports=ports.fresh(settings.ports))


@contextlib.contextmanager
def captured(
    guest: Guest,
    settings: MachineSettings,
    root: Root,
    *,
    timeout: float,
    shared: Disk | None = None,
    mark: bytes = b"",
) -> Iterator[str]:
    """The path of a file that goes on where `guest` is now; it is there until the end of the block.

    Where the guest's disk is `shared` with who restores it, it is not in the file. Volumes get the `mark`, for who
    copies them; without one a machine that has any is refused.
    """
    if settings.volumes and not mark:
        raise NotSupported(
            "a machine with a volume cannot be forked: two would write to the one file system, which neither survives",
            hint='give each fork a copy: vm.fork(volumes="copy")',
        )
    _check_volumes(settings)
    worker, image = guest.whole(timeout), root.image
    with capture.private(settings.memory) as (fd, path):
        api = records.Record.of(image, settings, ports=guest.ports).encode() if image is not None else b""
        digest = image.digest if image is not None else None
        with guest.capturing:
            capture.write(
                worker,
                fd,
                image=digest,
                api=api,
                disk_elsewhere=bool(shared),
                code=True,
                volume_mark=mark,
                timeout=timeout,
            )
        yield path


def fork(
    guest: Guest, settings: MachineSettings, root: Root, n: int, *, timeout: float, copies: bool = False
) -> list[Guest]:
    """`n` guests with these settings that go on where `guest` is; with `copies` each has its own of the volumes."""
    if n < 0:
        raise ConfigurationError(f"fork() makes 0 or more machines, not {n}")
    for attempt in range(_COPY_ATTEMPTS):
        try:
            return _fork(guest, settings, root, n, timeout, os.urandom(16) if copies and settings.volumes else b"")
        except VolumeChanged:
            # The guest was quicker than the copying.
            if attempt + 1 == _COPY_ATTEMPTS:
                raise
    raise AssertionError


def _fork(guest: Guest, settings: MachineSettings, root: Root, n: int, timeout: float, mark: bytes) -> list[Guest]:
    clones: list[Guest] = []
    starters: list[Starter] = []
    disk = guest.disk.shared()
    with captured(guest, settings, root, timeout=timeout, shared=disk, mark=mark) as path:
        copied = volumes.copies(settings.volumes, mark, n) if mark else [None] * n
        starters += [Starter(settings, root, own) for own in copied]
        try:
            with makers.for_forks(settings, root, path, n, disk) as template:
                # All start before the first is waited for.
                waits = [starter.fork(path, shared=disk, template=template) for starter in starters]
                for wait in waits:
                    clones.append(wait())
                    clones[-1].publish(settings.ports)
        except BaseException:
            for clone in clones:
                clone.kill()
            for starter in starters:
                starter.kill()
            raise
    return clones


def copied(mounted: Sequence[volumes.Mounted]) -> tuple[volumes.Mounted, ...]:
    """The volumes of a fork that has copies."""
    return tuple(volumes.nameless(volume) for volume in mounted)


class Plan(NamedTuple):
    """A machine to restore."""

    reference: str | os.PathLike[str]
    settings: MachineSettings
    root: Root
    origin: Origin


def plan(path: Path, given: RestoreOptions) -> Plan:
    """Where to start from, from what a snapshot says of itself and a caller of it. Raises BadSnapshot and others."""
    options: dict[str, Any] = {"pull": "never", **given}
    unsaid = {name: options.pop(name, default) for name, default in _UNSAID.items()}
    published = options.pop("ports", "fresh")
    found = records.look(path)
    if (state := found["v8"]) is not None:
        return _plan_v8(path, state, unsaid, published, options)
    if unsaid != _UNSAID:
        raise ConfigurationError(
            f"{path} says itself what its image, disks and engine are, and that there is an agent; "
            "image, disks, engine and agent are for snapshots of version 8"
        )
    from ..settings import parsing

    heads = records.chain(path, found)
    head = heads[-1]
    said = head.record()
    own = {name: value for name, value in options.items() if value is not None}
    settings = MachineSettings.of(
        **{
            "working_dir": said.working_dir,
            "user": said.user,
            **own,
            "memory": head.memory,
            "disk": head.disk,
            "vcpus": head.vcpus,
            "engine": head.engine,
            "environment": {**said.environment, **parsing.environment(options.get("environment"))},
            "bake": False,
        }
    )
    if published == "fresh":
        wanted = ports.fresh(said.ports)
    elif published == "same":
        wanted = said.ports
    elif published is None or isinstance(published, Mapping):
        wanted = ports.parse(published)
    else:
        raise ConfigurationError(f"ports is {published!r}; 'fresh', 'same' or a mapping is understood")
    settings = settings._replace(volumes=_volumes_of(said, settings, given))
    if given.get("volumes") is None and given.get("mounts") is None:
        from ..storage import shares

        settings = settings._replace(shares=shares.known(said.directories))
    image = said.image(str(path), pull=settings.pull, insecure=settings.insecure, progress=settings.progress)
    if said.network is not None and options.get("network") is None:
        # Rules that are given now are on top.
        here = MachineSettings.of(network=None, engine=head.engine).network.within(said.network)
        settings = settings._replace(
            network=here.also(options.get("allow", ()), options.get("deny", ()), options.get("secrets"))
        )
    return Plan(
        said.reference,
        settings._replace(ports=wanted),
        Root(image),
        Origin([head.path for head in heads], id=head.id),
    )


def _volumes_of(said: records.Record, settings: MachineSettings, given: RestoreOptions) -> tuple[volumes.Mounted, ...]:
    """The volumes that a snapshot was taken with, unless its user says which there are to be.

    A file system that the guest has in memory meets the volume as it was, or an empty slot, and never another volume.
    """
    known = {
        name: volumes.Mounted(target, name, 0, read_only=False, slot=slot, mark=mark)
        for name, target, slot, mark in said.volumes
    }
    if given.get("volumes") is None and given.get("mounts") is None:
        return tuple(known.values())
    taken = {volume.slot for volume in known.values()}
    free = iter([slot for slot in volumes.SLOTS if slot not in taken])
    placed = []
    for volume in settings.volumes:
        if (before := known.get(volume.name)) is not None and not volume.read_only:
            placed.append(before._replace(target=volume.target))
        elif (slot := next(free, None)) is not None:
            placed.append(volume._replace(slot=slot))
        else:
            raise ConfigurationError(
                f"there is no slot left for the volume {volume.name}: the snapshot's guest has had "
                f"{', '.join(known)} in them"
            )
    return tuple(placed)


def _plan_v8(
    path: Path, state: _SnapshotV8, unsaid: dict[str, Any], published: object, options: dict[str, Any]
) -> Plan:
    from ..snapshots import legacy_v8

    disks = legacy_v8.disks(unsaid["disks"])
    reference, agent = unsaid["image"], unsaid["agent"]
    if reference is None and agent and not disks:
        raise BadSnapshot(
            f"{path} is a snapshot of version 8, which does not say which image its guest is of",
            hint="name it with image=, or the files that were its disks with disks=; a foreign one needs agent=False",
        )
    engine = legacy_v8.choose(unsaid["engine"], options.get("require_hardware"))
    settings = MachineSettings.of(
        **options,
        memory=state["memory_bytes"],
        disk=0,
        vcpus=len(state["vcpus"]),
        engine=engine.name,
        platform=f"linux/{legacy_v8.PLATFORM_ARCHITECTURE}",
        bake=False,
    )
    if published == "fresh":
        wanted = legacy_v8.listeners(path, state)
    elif published == "same":
        raise ConfigurationError(
            f"{path} does not say which ports of the host it had; 'fresh' or a mapping is possible"
        )
    else:
        wanted = ports.parse(published)  # type: ignore[arg-type]
    if not agent and any(name.endswith("/tcp") for name in wanted):
        raise NotSupported(
            "TCP ports of a guest are published by the agent in it, and there is none",
            hint="publish a vsock port: ports={'5000/vsock': 5000}",
        )
    image = None
    if reference is not None:
        from ..images import resolve

        image = resolve(
            reference,
            platform=settings.platform,
            pull=settings.pull,
            insecure=settings.insecure,
            progress=settings.progress,
        )
    return Plan(
        reference if reference is not None else path,
        settings._replace(ports=wanted),
        Root(image, disks, agent=agent),
        Origin([path], v8=True),
    )
