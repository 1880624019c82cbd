"""Decoded code: what the soft engine has decoded of a snapshot for those that restore it later, so that they need not.

It is made once a restored guest has given its first answer. Its worker is asked which code that took, and another
process, which runs no guest, decodes that code of the snapshot's memory into a file in the cache. What is in such a
file runs in workers as their own code does: it is made here and nowhere else, it is in no artifact and in no snapshot,
a worker takes it only when nobody but this user could have written it, and only its own build's, of the very file that
it restores. What a worker says that has run a guest is believed no further than that it is where code may begin.

Nothing here can fail a start: without it a guest's code is decoded as it runs.
"""

from __future__ import annotations

import os
import sys

from .. import directories

# As `typing` has it: this module is on the way of every `supermachine run`, and loads nothing that takes long.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .._core import Worker
    from ..cache.store import Cache

#: Seconds that the worker may take to tell, and the other process to decode.
_TIMEOUT = 5.0
#: Files of snapshots outside the cache that are kept; those made first go first.
_KEPT = 64


def has(engine: str) -> bool:
    """Whether workers of this engine take such files here."""
    return engine == "soft" and sys.platform == "linux"


def was_taken(timings: Sequence[tuple[str, int]]) -> bool:
    """Whether a start has gone by one."""
    return any(name == "code" for name, _ in timings)


def beside(cache: Cache, snapshot_id: str, file: str | os.PathLike[str]) -> Path | None:
    """Where that of a snapshot outside the cache is kept; ``None`` where others could write.

    What a file says it is others may say as well, so it goes by the file.
    """
    place = cache.directory / "code"
    if any(map(directories.distrust, (cache.directory, place))):
        return None
    try:
        found = os.stat(file)  # noqa: PTH116
    except OSError:
        return None
    return place / f"{snapshot_id}-{found.st_dev:x}-{found.st_ino:x}"


def make(worker: Worker, files: Sequence[str | os.PathLike[str]], place: Path, cache: Cache, *, required: bool) -> None:
    """Makes that of the guest's snapshot, which is in `files`, of the code that the guest has run by now.

    With `required`, only where there is everything to confine the process with. Failing is no matter.
    """
    import contextlib

    from .. import descriptors
    from .._core import Worker
    from ..errors import SupermachineError
    from ..host import bundle

    with contextlib.suppress(OSError, SupermachineError, ValueError, OverflowError):
        if not (places := worker.code(_TIMEOUT)):
            return
        with cache.scratch() as scratch:
            temporary = scratch / "code"
            fd = descriptors.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                paths = [os.fspath(file) for file in files]
                decoder = Worker.bake(bundle.worker(), files=paths, places=places, fd=fd, require_confinement=required)
                try:
                    end = decoder.wait(_TIMEOUT)
                finally:
                    decoder.kill()
                    decoder.wait(_TIMEOUT)
            finally:
                os.close(fd)
            if end is None or end[0] != "shutdown":
                return
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not synced: what a crash leaves of it is recognised.
            temporary.rename(place)
        if place.parent == cache.directory / "code":
            _keep_few(place.parent)


def _keep_few(directory: Path) -> None:
    found = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in found[:-_KEPT]:
        path.unlink(missing_ok=True)


def prune(cache: Cache) -> int:
    """Removes those of all snapshots outside the cache; gives the bytes freed."""
    try:
        found = list((cache.directory / "code").iterdir())
    except OSError:
        return 0
    return sum(map(remove, found))


def remove(path: Path) -> int:
    """Removes one; gives the bytes freed."""
    try:
        size = path.lstat().st_blocks * 512
        path.unlink()
    except OSError:
        return 0
    return size
