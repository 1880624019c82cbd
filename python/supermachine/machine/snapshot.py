"""A snapshot that a machine took."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..snapshots import capture

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .vm import VM, RestoreOptions


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk. It is never changed; virtual machines that run from it keep it from being deleted."""

    path: Path
    #: What its contents are known by, 64 hexadecimal digits; ``None`` for version 8, which has nothing of the kind.
    id: str | None
    #: The id of the snapshot that this one holds the changes to; ``None`` when it is whole.
    parent: str | None
    #: Bytes of RAM in the file; the rest is holes.
    data_bytes: int
    #: Seconds that the virtual machine stood still.
    pause: float
    #: Steps of the capture: name, nanoseconds since it was asked for.
    timings: list[tuple[str, int]]
    #: Version of the format, 8 or 9.
    format: int = 9

    def restore(self, **options: Unpack[RestoreOptions]) -> VM:
        """A running virtual machine that goes on here; see :meth:`supermachine.VM.restore`."""
        from .vm import VM

        return VM.restore(self.path, **options)

    def flatten(self, path: str | os.PathLike[str]) -> Path:
        """Makes one whole snapshot, in a new file, of this diff and all that it builds on."""
        from ..snapshots import files, records

        files.flatten([head.path for head in records.chain(self.path)], path)
        return Path(path)

    def delete(self) -> None:
        """Removes the file. Raises `SnapshotInUse` while a virtual machine runs from it."""
        capture.delete(self.path)

    def __fspath__(self) -> str:
        return str(self.path)
