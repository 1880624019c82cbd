"""Baked snapshots and registries: an image's is pushed beside it, and found there instead of being baked."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import descriptors
from ..errors import ConfigurationError, ImageNotFound, SnapshotFailed, SupermachineError, UntrustedSnapshot

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..artifacts.push import Pushed
    from ..images import Progress, RegistryReference, ResolvedImage
    from ..settings.machine import MachineOptions
    from ..snapshots.baking import Baked
    from ..snapshots.records import Head
    from .vm import VM


#: Snapshots of one key that are looked at in a registry.
_MAX_TRIED = 8
#: Seconds for the question whether there is one; a guest boots in less than a slow registry takes.
_PATIENCE = 5.0
#: Seconds for the command of a machine that is started to see which pages it needs.
_FIRST_COMMAND = 30.0
#: Settings of a machine that a snapshot has said already.
_SAID = ("memory", "disk", "vcpus", "engine", "platform", "warmup", "warmup_key")


def push_baked(
    image: str | os.PathLike[str],
    reference: str | None = None,
    *,
    sign: str | None = None,
    **machine: Unpack[MachineOptions],
) -> Pushed:
    """Pushes the baked snapshot of an image and these settings, which is baked for it if need be.

    Without `reference` it goes to the repository of the image.
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
    if not baked.working_set.exists():
        # The first clone records which pages are needed first; any command will do.
        with contextlib.suppress(SupermachineError), VM(image, **options) as vm:
            vm.run(["true"], timeout=_FIRST_COMMAND)
    return push(
        Path(baked.path),
        reference,
        key=baked.key,
        hot=baked.working_set,
        sign=sign,
        insecure=bool(machine.get("insecure")),
        progress=machine.get("progress"),
    )


def adopt(baked: Baked, image: ResolvedImage, *, insecure: bool, progress: Progress | None) -> bool:
    """Looks for a baked snapshot of this key at the image's registry, and has it in its place if it is trusted.

    Without a trusted key no registry is asked. What fails here is said, and the guest boots instead.
    """
    from ..artifacts.trust import Keys
    from ..host.warnings import warn
    from ..images import RegistryReference, parse_reference

    try:
        parsed = parse_reference(image.reference)
        if not isinstance(parsed, RegistryReference) or not Keys().trusted(parsed.name):
            return False
        return _adopt(baked, image, parsed, insecure, progress)
    except UntrustedSnapshot as error:
        warn(f"the guest boots: {error}")
    except (SupermachineError, OSError) as error:
        warn(f"the guest boots, as no snapshot of it could be had from its registry: {error}")
    return False


def _adopt(
    baked: Baked, image: ResolvedImage, parsed: RegistryReference, insecure: bool, progress: Progress | None
) -> bool:
    from ..artifacts import model, trust
    from ..artifacts.pull import Puller, opened
    from ..images import Cache
    from ..oci import referrers
    from ..oci.transport import Limits, Transport

    cache = Cache()
    quick = Transport(insecure=insecure, limits=Limits(connect=_PATIENCE, read=_PATIENCE, attempts=1))
    try:
        with opened(parsed, insecure, quick) as repository:
            found = referrers.find(repository, image.digest, model.ARTIFACT_TYPE)
            wanted = [one for one in found if one.annotations.get(model.KEY) == baked.key][:_MAX_TRIED]
            refusal: UntrustedSnapshot | None = None
            digest = None
            for one in wanted:
                try:
                    trust.check(repository, parsed._replace(tag=None, digest=None), one.digest)
                except UntrustedSnapshot as error:
                    refusal = error
                    continue
                digest = one.digest
                break
    finally:
        quick.close()
    if digest is None:
        if refusal is not None:
            raise refusal
        return False
    with opened(parsed, insecure, None) as repository, cache.scratch() as place:
        temporary = place / "snapshot"
        fd = descriptors.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            config = Puller.of(repository, cache, progress).into(digest, fd)
        finally:
            os.close(fd)
        if (config.key, config.image, config.parent) != (baked.key, image.digest, None):
            return False
        baked.adopt(temporary, config.working_set)
    return True


def restored(reference: str, **machine: Unpack[MachineOptions]) -> VM:
    """A virtual machine, not started yet, that goes on from the snapshot that `reference` names in a registry.

    Its image is taken from the cache or from the same repository. Raises ConfigurationError for settings that the
    snapshot has made already.
    """
    from ..settings.table import SETTINGS
    from . import snapshotting
    from .vm import VM

    defaults = {setting.name: setting.default for setting in SETTINGS}
    # The command line writes nothing as an empty list.
    given: dict[str, Any] = {k: v for k, v in machine.items() if v != defaults[k] and v not in ((), [])}
    if said := sorted(given.keys() & set(_SAID)):
        raise ConfigurationError(
            f"{reference} is a snapshot, which has its {said[0]} already", hint=f"leave {said[0]} out"
        )
    given.pop("bake", None)
    plan = snapshotting.plan(fetched(reference, **machine), given)  # type: ignore[arg-type]
    return VM._of(plan.reference, plan.settings, plan.root, plan.origin)


def fetched(reference: str, **machine: Unpack[MachineOptions]) -> Path:
    """The file of a snapshot in a registry, in the cache as its image is; of `machine`, how to fetch them."""
    from ..artifacts.pull import pull
    from ..snapshots.records import Head

    found = pull(reference, insecure=bool(machine.get("insecure")), progress=machine.get("progress"))
    _get_image(reference, Head.read(found.path), machine)
    return found.path


def _get_image(reference: str, head: Head, machine: MachineOptions) -> None:
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
