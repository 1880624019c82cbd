"""Snapshots in registries: a machine that starts from one, and an image's baked one that is pushed beside it."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, TimeoutExpired
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, ImageNotFound, SnapshotFailed, SupermachineError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..artifacts.arrival import Arrival
    from ..artifacts.push import Pushed
    from ..settings.machine import MachineOptions
    from ..snapshots.records import Head
    from .vm import VM


#: Seconds for the command of a machine that is started to see which pages it needs: one that was named for that, and
#: the image's own, which may never end.
_FIRST_COMMAND = 60.0
_OWN_COMMAND = 5.0
#: Machines that are started for that, as far as it takes no more than so many seconds.
_RECORDINGS = 5
_RECORDING = 10.0
#: Settings of a machine that a snapshot has said already.
_SAID = ("memory", "disk", "vcpus", "engine", "platform", "warmup", "warmup_key")


def push_baked(
    image: str | os.PathLike[str],
    reference: str | None = None,
    *,
    sign: str | None = None,
    first: Sequence[str] | None = None,
    **machine: Unpack[MachineOptions],
) -> Pushed:
    """Pushes the baked snapshot of an image and these settings, which is baked for it if need be.

    Without `reference` it goes to the repository of the image. What the command `first` needs until it ends is what
    later starts fetch first; without it what the first command on this host needed, and if there was none what the
    image's own needs until it writes something or ends.
    """
    from ..artifacts.push import push
    from ..images import RegistryReference, parse_reference
    from .image import bake
    from .vm import VM

    if reference is None:
        parsed = parse_reference(image)
        if not isinstance(parsed, RegistryReference):
            raise ConfigurationError(f"{image} is a file, so a reference must say where its snapshot is to go")
        reference = parsed._replace(tag=None, digest=None).familiar
    options: MachineOptions = {**machine}
    bake(image, **options)
    baked = VM(image, **options)._baked()
    if baked is None or not baked.exists():
        raise SnapshotFailed(f"the baked snapshot of {image} is gone; push it again")
    if first is not None or not baked.working_set.exists():
        _record_anew(image, options, first, baked.working_set)
    return push(
        Path(baked.path),
        reference,
        key=baked.key,
        hot=baked.working_set,
        sign=sign,
        insecure=bool(machine.get("insecure")),
        progress=machine.get("progress"),
    )


def _record_anew(
    image: str | os.PathLike[str], options: MachineOptions, first: Sequence[str] | None, place: Path
) -> None:
    """Records what starts need: of several, as no two touch the same pages, and each that is missing is waited for."""
    from ..images import Cache
    from ..snapshots import working_set
    from .vm import VM

    recorded: list[working_set.Ranges] = []
    began = time.monotonic()
    while len(recorded) < _RECORDINGS and (not recorded or time.monotonic() - began < _RECORDING):
        place.unlink(missing_ok=True)
        with VM(image, **options) as vm:
            _record(vm, first, place)
        recorded.append(working_set.load(place))
    with contextlib.suppress(ValueError, OSError):
        working_set.keep(working_set.union(recorded), place, Cache())


def _record(vm: VM, first: Sequence[str] | None, place: Path) -> None:
    """Has the pages recorded that a command needs. Raises ConfigurationError for a `first` one that fails."""
    from ..images import Cache
    from ..snapshots import working_set

    if first is not None:
        try:
            done = vm.run(list(first), stdin=DEVNULL, capture_output=True, timeout=_FIRST_COMMAND)
        except TimeoutExpired:
            raise ConfigurationError(
                f"the first command, {first[0]}, has not ended after {_FIRST_COMMAND:g} seconds",
                hint="name one that ends when it has what a start needs",
            ) from None
        if done.returncode:
            tail = done.stderr[-500:].decode(errors="replace").strip()
            raise ConfigurationError(f"the first command, {first[0]}, ended with {done.returncode}", cause=tail or None)
    else:
        # Whatever comes of it: it is how a guest is likely to be started.
        with contextlib.suppress(SupermachineError, OSError):
            words = ["true"]
            with contextlib.suppress(ConfigurationError):  # the image names none
                words = vm.command()
            process = vm.popen(words, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
            assert process.stdout is not None
            select.select([process.stdout], [], [], _OWN_COMMAND)
    if not place.exists():
        working_set.record(vm._running(), place, Cache())


def restored(reference: str, **machine: Unpack[MachineOptions]) -> VM:
    """A virtual machine, not started yet, that goes on from the snapshot that `reference` names in a registry.

    Its image is taken from the cache or from the same repository. Raises ConfigurationError for settings that the
    snapshot has made already.
    """
    from ..settings.table import SETTINGS

    defaults = {setting.name: setting.default for setting in SETTINGS}
    # The command line writes nothing as an empty list.
    given: dict[str, Any] = {k: v for k, v in machine.items() if v != defaults[k] and v not in ((), [])}
    if said := sorted(given.keys() & set(_SAID)):
        raise ConfigurationError(
            f"{reference} is a snapshot, which has its {said[0]} already", hint=f"leave {said[0]} out"
        )
    given.pop("bake", None)
    path, arrival = arriving(reference, machine)
    try:
        return machine_of(path, arrival, given)
    except BaseException:
        if arrival is not None:
            arrival.cancel()
        raise


def machine_of(path: Path, arrival: Arrival | None, given: Mapping[str, Any]) -> VM:
    """A machine, not started yet, of a snapshot's file, which may still be `arriving`. `given` is for `VM.restore`."""
    from .vm import VM

    return VM._arriving(path, arrival, given)


def arrival_of(vm: VM) -> Arrival | None:
    """What fetches the rest of the snapshot that a machine goes on from, where something does."""
    origin = vm._guest.origin if vm._guest is not None else vm._source
    return origin.arrival if origin is not None else None


def finish(arrival: Arrival) -> None:
    """Waits until all is in the cache, after the guest has ended. That it is not to be had is said."""
    from ..host.warnings import warn

    try:
        arrival.wait()
    except (SupermachineError, OSError) as error:
        warn(f"the rest of the snapshot is not in the cache: {error}")


def arriving(reference: str, machine: Mapping[str, Any]) -> tuple[Path, Arrival | None]:
    """The file of a snapshot, and what fetches the rest of it if a guest can start before that is there.

    Its image is in the cache. Of `machine`, how to fetch them.
    """
    from ..artifacts.arrival import Arrival
    from ..artifacts.pull import Pulled, pull
    from ..snapshots.records import Head

    insecure, progress = bool(machine.get("insecure")), machine.get("progress")
    arrival = Arrival(lambda early: pull(reference, insecure=insecure, progress=progress, early=early))
    found = arrival.wait_until_startable()
    path = found.path if isinstance(found, Pulled) else arrival.path
    assert path is not None
    try:
        _get_image(reference, Head.read(path), machine)
    except BaseException:
        arrival.cancel()
        raise
    return path, None if isinstance(found, Pulled) else arrival


def _get_image(reference: str, head: Head, machine: Mapping[str, Any]) -> None:
    """Has the root file system of a snapshot in the cache. No other registry than the snapshot's is asked."""
    from ..images import Cache, parse_reference, resolve

    record = head.record()
    if Cache().rootfs(record.rootfs).is_file():
        return
    parsed = parse_reference(reference)
    exact = f"{parsed.name}@{record.digest}"  # type: ignore[union-attr]
    try:
        resolve(
            exact,
            platform=record.platform,
            pull=machine.get("pull", "missing"),
            insecure=bool(machine.get("insecure")),
            progress=machine.get("progress"),
        )
    except ImageNotFound as error:
        raise ImageNotFound(
            f"{reference} is of the image {record.reference} ({record.digest}), which is neither in the cache nor in "
            "the snapshot's repository",
            cause=error.cause,
            hint=f"get it with `supermachine pull {record.reference}`, or copy it to that repository",
        ) from error
