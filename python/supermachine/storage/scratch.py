"""The files that the disk of a guest's root is in, kept open for its clones: they have no names, or may lose them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .. import descriptors, directories


class _Kept:
    """A descriptor that is closed when nobody needs it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Disk:
    """The layers of a disk, and last the file that this guest's own changes go to; of a guest without one, nothing."""

    def __init__(self, files: Sequence[_Kept] = ()) -> None:
        self._files = tuple(files)

    @classmethod
    def over(cls, layers: Sequence[str | os.PathLike[str]] | Disk) -> Disk:
        """A new one over these files, or over those of another guest's disk."""
        if isinstance(layers, Disk):
            below = list(layers._files)
        else:
            below = [_Kept(descriptors.open_file(layer, os.O_RDONLY)) for layer in layers]
        return cls([*below, _Kept(directories.nameless_file())])

    def __bool__(self) -> bool:
        return bool(self._files)

    @property
    def own(self) -> int:
        """The descriptor of the file for changes."""
        return self._files[-1].fd

    def shared(self) -> Disk:
        """The same files for clones; nothing where the system cannot open them again, and clones need copies."""
        return Disk(self._files) if os.path.isdir("/proc/self/fd") else Disk()  # noqa: PTH112

    def paths(self) -> list[str]:
        """Names under which other processes of this user open the files."""
        return [f"/proc/{os.getpid()}/fd/{kept.fd}" for kept in self._files]

    def close(self) -> None:
        self._files = ()
