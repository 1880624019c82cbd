"""What `VM.snapshot`, `VM.restore` and `VM.fork` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import BadSnapshot, ConfigurationError, NotSupported, RenewFailed, SnapshotFailed
from ..network import ports
from ..snapshots import capture, records
from . import launch
from .lifecycle import Machine, Source

if TYPE_CHECKING:
    from .._core import Worker, _SnapshotV8
    from ..images import Progress
    from ..images.resolution import Pull
    from ..settings.parsing import Environment

M = TypeVar("M", bound=Machine)


def absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow a link that is to be replaced by none


def record(machine: Machine, parents: list[records.Head], *, bare: bool = False) -> records.Record:
    """What a snapshot of this machine says for whoever restores it; `bare` is without what only this one was given."""
    image = machine.image
    return records.Record(
        reference=image.reference,
        digest=image.digest,
        platform=str(image.platform),
        rootfs=image.rootfs.stem,
        config=image.config,
        environment={} if bare else machine._environment,
        working_dir=None if bare else machine._working_dir,
        user=None if bare else machine._user,
        ports={} if bare else machine.ports or machine._wanted_ports,
        parents=[(head.id, str(head.path)) for head in parents],
    )


def take(machine: Machine, path: Path, *, diff: bool, version: int, timeout: float) -> capture.Snapshot:
    if version not in (8, 9):
        raise ConfigurationError(f"format is {version!r}; snapshots are of version 8 or 9")
    if version == 8:
        from ..snapshots.legacy_v8 import check_writable

        check_writable(machine._engine, diff=diff)
    elif not machine._has_image:
        raise SnapshotFailed(
            "a snapshot of version 9 says which image its guest is of, and of this one that is not known",
            hint="take one of version 8: format=8; or restore this machine with image=",
        )
    with machine._capturing:
        worker = machine._running()
        parents: list[records.Head] = []
        if diff:
            origin = machine._origin
            if origin is None or not origin.files or origin.v8:
                raise SnapshotFailed(
                    "this machine was not restored from a snapshot's file of version 9, so there is nothing for a diff "
                    "to build on",
                    hint="take a whole snapshot: without diff=True",
                )
            parents = [records.Head.read(file) for file in origin.files]
            if origin.baked:
                parents = [_kept(parents[0], path.parent)]
        with capture.published(path) as fd:
            if version == 8:
                done = capture.write(worker, fd, v8=True, image=None, api=b"", timeout=timeout)
            else:
                api = record(machine, parents).encode()
                done = capture.write(worker, fd, diff=diff, image=machine.image.digest, api=api, timeout=timeout)
    parent = parents[-1].id if parents else None
    return capture.Snapshot(path, done.id or None, parent, done.data_bytes, done.pause, done.timings, version)


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
    return records.Head(path, head.id, head.parent, head.engine, head.memory, head.vcpus, head.api)


def fork(machine: M, n: int, *, timeout: float) -> list[M]:
    if n < 0:
        raise ConfigurationError(f"{n} forks cannot be had")
    clones: list[M] = []
    with machine._capturing:
        worker = machine._running()
        image = machine.image.digest if machine._has_image else None
        with capture.private(machine._memory) as (fd, path):
            api = record(machine, []).encode() if machine._has_image else b""
            capture.write(worker, fd, image=image, api=api, timeout=timeout)
            workers = []
            try:
                # All start before the first is waited for.
                for _ in range(n):
                    workers.append(_fork_of(machine, path))
                for started in workers:
                    timings = launch.wait_ready(started, machine._boot_timeout)
                    clone = _like(machine)
                    clone._adopt(started, timings, Source(()))
                    clones.append(clone)
            except BaseException:
                for started in workers:
                    started.kill()
                raise
    return clones


def _fork_of(machine: Machine, path: str) -> Worker:
    disks, timeout = machine._all_disks(), machine._boot_timeout
    return launch.spawn_restored(machine._engine.name, disks, [path], None, timeout, agent=machine._has_agent)


def _like(machine: M) -> M:
    """A new object with the settings of another."""
    clone = type(machine)(
        machine._reference,
        memory=machine._memory,
        vcpus=machine._vcpus,
        engine=machine._engine.name,
        environment=machine._environment,
        working_dir=machine._working_dir,
        user=machine._user,
        platform=machine._platform,
        pull=machine._pull,
        insecure=machine._insecure,
        progress=machine._progress,
        boot_timeout=machine._boot_timeout,
        bake=False,
    )
    clone._engine = machine._engine
    clone._image = machine._image
    clone._has_image, clone._has_agent = machine._has_image, machine._has_agent
    clone._disks = machine._disks
    clone._wanted_ports = ports.fresh(machine._wanted_ports)
    return clone


@dataclass(frozen=True)
class Unsaid:
    """What a snapshot of version 8 does not say."""

    image: str | os.PathLike[str] | None = None
    disks: Sequence[str | os.PathLike[str]] = ()
    engine: str = "auto"
    agent: bool = True


def restore(
    kind: type[M],
    path: Path,
    *,
    ports: ports.Ports | str,
    environment: Environment | None,
    pull: Pull,
    insecure: bool,
    progress: Progress | None,
    unsaid: Unsaid = Unsaid(),
    **settings: Any,
) -> M:
    from ..network.ports import fresh, parse
    from ..settings import parsing

    found = records.look(path)
    fetch = {"pull": pull, "insecure": insecure, "progress": progress}
    if (state := found["v8"]) is not None:
        return _restore_v8(kind, path, state, unsaid, ports=ports, environment=environment, **fetch, **settings)
    if unsaid != Unsaid():
        raise ConfigurationError(
            f"{path} says itself what its image, disks and engine are, and that there is an agent; "
            "image, disks, engine and agent are for snapshots of version 8"
        )
    heads = records.chain(path, found)
    head = heads[-1]
    said = head.record()
    for name in ("working_dir", "user"):
        if settings[name] is None:
            settings[name] = getattr(said, name)
    machine = kind(
        said.reference,
        memory=head.memory,
        vcpus=head.vcpus,
        engine=head.engine,
        environment={**said.environment, **parsing.environment(environment)},
        bake=False,
        **settings,
    )
    if ports == "fresh":
        machine._wanted_ports = fresh(said.ports)
    elif ports == "same":
        machine._wanted_ports = said.ports
    elif isinstance(ports, Mapping):
        machine._wanted_ports = parse(cast("Any", ports))
    elif ports is not None:
        raise ConfigurationError(f"ports is {ports!r}; 'fresh', 'same' or a mapping is understood")
    machine._image = said.image(str(path), pull=pull, insecure=insecure, progress=progress)
    machine._source = Source([h.path for h in heads], id=head.id)
    return machine.start()


def _restore_v8(
    kind: type[M],
    path: Path,
    state: _SnapshotV8,
    unsaid: Unsaid,
    *,
    ports: ports.Ports | str,
    environment: Environment | None,
    **settings: Any,
) -> M:
    from ..network.ports import parse
    from ..snapshots import legacy_v8

    disks = legacy_v8.disks(unsaid.disks)
    if unsaid.image is None and unsaid.agent and not disks:
        raise BadSnapshot(
            f"{path} is a snapshot of version 8, which does not say which image its guest is of",
            hint="name it with image=, or the files that were its disks with disks=; a foreign one needs agent=False",
        )
    engine = legacy_v8.choose(unsaid.engine, settings["require_hardware"])
    machine = kind(
        unsaid.image if unsaid.image is not None else path,
        memory=state["memory_bytes"],
        vcpus=len(state["vcpus"]),
        engine=engine.name,
        environment=environment,
        platform="linux/arm64",
        bake=False,
        **settings,
    )
    machine._has_image, machine._has_agent, machine._disks = unsaid.image is not None, unsaid.agent, disks
    if ports == "fresh":
        machine._wanted_ports = legacy_v8.listeners(path, state)
    elif ports == "same":
        raise ConfigurationError(
            f"{path} does not say which ports of the host it had; 'fresh' or a mapping is possible"
        )
    else:
        machine._wanted_ports = parse(cast("Any", ports))
    if not unsaid.agent and any(name.endswith("/tcp") for name in machine._wanted_ports):
        raise NotSupported(
            "TCP ports of a guest are published by the agent in it, and there is none",
            hint="publish a vsock port: ports={'5000/vsock': 5000}",
        )
    machine._source = Source([path], v8=True)
    try:
        return machine.start()
    except RenewFailed as error:
        error.hint = "if this package's agent does not run in that guest, restore it with agent=False"
        raise
