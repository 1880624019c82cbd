"""Images and their baked snapshots, as coroutines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..machine import image as _image
from .calls import call
from .vm import VM

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

    from ..settings.machine import MachineOptions
    from ..snapshots.baking import Warmup


class Image:
    """An image and how its machines are started; see :class:`supermachine.Image`."""

    def __init__(self, reference: str | os.PathLike[str], **machine: Unpack[MachineOptions]) -> None:
        self._image = _image.Image(reference, **machine)
        self.reference = reference

    def vm(self, **machine: Unpack[MachineOptions]) -> VM:
        return VM._of(self._image.vm(**machine))

    async def bake(self, warmup: Warmup | None = None, /, **machine: Unpack[MachineOptions]) -> Path:
        return await call(self._image.bake, warmup, **machine)

    def __repr__(self) -> str:
        return repr(self._image)


async def bake(image: str | os.PathLike[str], **machine: Unpack[MachineOptions]) -> Path:
    """See :func:`supermachine.bake`. A `warmup` is given the machine of :mod:`supermachine`, in a thread."""
    return await call(_image.bake, image, **machine)
