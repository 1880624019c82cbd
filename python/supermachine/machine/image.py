"""Images by their references, and baking their snapshots beforehand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SnapshotFailed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..settings.machine import MachineOptions
    from ..snapshots.baking import Warmup
    from .vm import VM


class Image:
    """An image by its reference, and how its virtual machines are started: the keywords of :class:`supermachine.VM`."""

    def __init__(self, reference: str | os.PathLike[str], **machine: Unpack[MachineOptions]) -> None:
        self.reference = reference
        self._machine = machine

    def vm(self, **machine: Unpack[MachineOptions]) -> VM:
        """A new virtual machine of it, not started yet."""
        from .vm import VM

        options: MachineOptions = {**self._machine, **machine}
        return VM(self.reference, **options)

    def bake(self, warmup: Warmup | None = None, /, **machine: Unpack[MachineOptions]) -> Path:
        """See :func:`supermachine.bake`."""
        options: MachineOptions = {**self._machine, **machine}
        if warmup is not None:
            options["warmup"] = warmup
        return bake(self.reference, **options)

    def __repr__(self) -> str:
        return f"Image({str(self.reference)!r})"


def bake(image: str | os.PathLike[str], **machine: Unpack[MachineOptions]) -> Path:
    """Sees to it that virtual machines of these settings start from a baked snapshot, and gives its path.

    `machine` are keywords of :class:`VM`, above all `warmup`. Does next to nothing when it is baked already. Raises
    `SnapshotFailed` when there is none in the end; the reason has been printed.
    """
    from .vm import VM

    options: MachineOptions = {**machine, "bake": True}
    vm = VM(image, **options)
    baked = vm._baked()
    if baked is None:
        raise SnapshotFailed(f"the image {vm.image.reference} is not in the cache, so no snapshot of it can be")
    if not baked.exists():
        with vm:
            pass
    if not baked.exists():
        raise SnapshotFailed(f"no snapshot of the image {vm.image.reference} was baked")
    return baked.path
