"""Takes snapshots of running virtual machines, into files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import descriptors
from ..errors import DiskFull, SnapshotFailed, SnapshotInUse, SnapshotNotFound, VMExited

if TYPE_CHECKING:
    from .._core import Worker


@dataclass(frozen=True)
class Captured:
    """What the worker said of a snapshot that it wrote."""

    id: str
    data_bytes: int
    pause: float
    timings: list[tuple[str, int]]


def write(
    worker: Worker,
    fd: int,
    *,
    image: str | None,
    api: bytes,
    timeout: float,
    diff: bool = False,
    v8: bool = False,
    disk_elsewhere: bool = False,
    code: bool = False,
    volume_mark: bytes = b"",
) -> Captured:
    """Has the worker write a snapshot to an empty file. The guest goes on, whatever comes of it.

    With `disk_elsewhere` the root's disk is not in it, and stays in the files that the guest's worker has it in.
    With `code` it says which code the guest has run, for a template of workers. Nobody keeps that file, which has no
    digest.
    Volumes are known by `volume_mark` from then on, until they are written to.
    """
    try:
        done = worker.capture(
            fd,
            diff=diff,
            v8=v8,
            image=image,
            api=api,
            disk_elsewhere=disk_elsewhere,
            code=code,
            volume_mark=volume_mark or bytes(16),
            timeout=timeout,
        )
    except VMExited:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise _failed(str(error)) from error
    if done is None:
        raise SnapshotFailed(f"no snapshot was taken within {timeout:g} seconds; the virtual machine goes on")
    id_, data_bytes, pause, timings = done
    return Captured(id_.hex(), data_bytes, pause / 1e9, timings)


def _failed(message: str) -> SnapshotFailed | DiskFull:
    if "no room" in message:
        return DiskFull("there is no room for the snapshot", cause=message, hint="free space, or choose another disk")
    return SnapshotFailed(f"no snapshot was taken: {message}", hint="the virtual machine goes on; try again")


@contextlib.contextmanager
def published(path: Path) -> Iterator[int]:
    """A descriptor of an empty file that has the name `path` at the end, or nowhere a trace when the block fails.

    What kill -9 leaves is `.NAME.partial-…`, unlocked, and the next writer of that name removes it.
    """
    from .._core import Publication

    with Publication(str(path)) as publication:
        try:
            yield publication.fileno()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                message = f"there is no room for the snapshot {path}"
                raise DiskFull(message, cause=str(error), hint="free space, or choose another disk") from error
            raise
        publication.commit()


def delete(path: Path) -> int:
    """Removes a snapshot that nobody runs from, and gives the bytes freed. Raises `SnapshotInUse`."""
    try:
        fd = descriptors.open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        raise SnapshotNotFound(f"the snapshot {path} does not exist") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return os.fstat(fd).st_blocks * 512
    except BlockingIOError:
        raise SnapshotInUse(f"{path} cannot be deleted: virtual machines run from it") from None
    finally:
        os.close(fd)


@contextlib.contextmanager
def private(memory: int) -> Iterator[tuple[int, str]]:
    """An empty file without a name: its descriptor, and the path under which other processes of this user open it.

    It is in memory where there is plenty, else in the cache.
    """
    if hasattr(os, "memfd_create") and memory * 4 <= available_memory():
        fd = descriptors.memory_file("supermachine-fork")
        try:
            yield fd, f"/proc/{os.getpid()}/fd/{fd}"
        finally:
            os.close(fd)
        return
    from ..images import Cache

    with Cache().scratch() as place:
        path = place / "snapshot"
        fd = descriptors.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            yield fd, str(path)
        finally:
            os.close(fd)


def available_memory() -> int:
    """Bytes that the host could give without swapping, as far as it tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def copy_sparse(source: Path, target: int) -> None:
    """Copies a file to a descriptor of an empty one, holes as holes."""
    with source.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        os.ftruncate(target, size)
        at = 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            os.lseek(target, start, os.SEEK_SET)
            while start < at:
                start += os.sendfile(target, file.fileno(), start, at - start)
