"""What `VM.snapshot`, `VM.restore` and `VM.fork` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from . import capture, launch, ports, records
from .errors import ConfigurationError, SnapshotFailed
from .machine import Machine, Source

if TYPE_CHECKING:
    from .images import Progress
    from .images.store import Pull
    from .options import Environment

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


def take(machine: Machine, path: Path, *, diff: bool, timeout: float) -> capture.Snapshot:
    with machine._capturing:
        worker = machine._running()
        parents: list[records.Head] = []
        if diff:
            origin = machine._origin
            if origin is None or not origin.files:
                raise SnapshotFailed(
                    "this machine was not restored from a snapshot's file, so there is nothing for a diff to build on",
                    hint="take a whole snapshot: without diff=True",
                )
            parents = [records.Head.read(file) for file in origin.files]
            if origin.baked:
                parents = [_kept(parents[0], path.parent)]
        with capture.published(path) as fd:
            api = record(machine, parents).encode()
            done = capture.write(worker, fd, diff=diff, image=machine.image.digest, api=api, timeout=timeout)
    parent = parents[-1].id if parents else None
    return capture.Snapshot(path, done.id, parent, done.data_bytes, done.pause, done.timings)


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
        image = machine.image
        with capture.private(machine._memory) as (fd, path):
            api = record(machine, []).encode()
            capture.write(worker, fd, diff=False, image=image.digest, api=api, timeout=timeout)
            workers = []
            try:
                # All start before the first is waited for.
                for _ in range(n):
                    workers.append(launch.spawn_restored(machine._engine, image, [path], None, machine._boot_timeout))
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


def _like(machine: M) -> M:
    """A new object with the settings of another."""
    clone = type(machine)(
        machine._reference,
        memory=machine._memory,
        vcpus=machine._vcpus,
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
    clone._wanted_ports = ports.fresh(machine._wanted_ports)
    return clone


def restore(
    kind: type[M],
    path: Path,
    *,
    ports: ports.Ports | str,
    environment: Environment | None,
    pull: Pull,
    insecure: bool,
    progress: Progress | None,
    **settings: Any,
) -> M:
    from . import options
    from .ports import fresh, parse

    heads = records.chain(path)
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
        environment={**said.environment, **options.environment(environment)},
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
