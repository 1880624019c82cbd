"""Volumes: disks with names, which outlive the machines that have them mounted."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from .. import descriptors, directories
from ..errors import ConfigurationError, DiskFull, VolumeChanged, VolumeExists, VolumeInUse, VolumeNotFound

#: Size of a volume that is made on first use; it takes no room before it is written to.
DEFAULT_SIZE = "64g"
#: Slots of a machine that volumes are put into; the one before is the root's disk's (`rust/proto/src/worker.rs`).
SLOTS = (1, 2, 3)
#: Has a file share another's blocks (include/uapi/linux/fs.h).
_FICLONE = 0x40049409
#: Seconds that a lock is waited for.
_PATIENCE = 0.5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\Z")
#: The guest's name for its second disk, which is that of slot 0.
_FIRST = ord("b")


@dataclass(frozen=True)
class Volume:
    """A disk with a name. One that a machine is given and that is not there yet is made, of this `size`.

    What the image has in the directory that a new volume is mounted at is copied into it, as docker does. One machine
    has a volume at a time, or several that have it `read_only`: what those write to it is gone with them.
    """

    name: str
    #: Bytes, or "20g"; of one that is there already it is left as it is.
    size: int | str = DEFAULT_SIZE
    read_only: bool = False

    @classmethod
    def create(cls, name: str, size: int | str = DEFAULT_SIZE) -> Volume:
        """Makes a volume. Raises `VolumeExists`, and `DiskFull`."""
        make(name, size)
        return cls(name, size)

    @classmethod
    def get(cls, name: str) -> Volume:
        """Raises `VolumeNotFound`."""
        return cls(name, inspect(name).size)

    @classmethod
    def list(cls) -> list[Volume]:
        """All of this user's, by name."""
        return [cls(name, inspect(name).size) for name in names()]

    def inspect(self) -> VolumeInfo:
        """Raises `VolumeNotFound`."""
        return inspect(self.name)

    def remove(self) -> None:
        """Removes it with all that is in it. Raises `VolumeNotFound` and `VolumeInUse`."""
        remove(self.name)


@dataclass(frozen=True)
class VolumeInfo:
    """What there is to know of a volume."""

    name: str
    path: Path
    #: Of the disk, in bytes, and what it takes of the host's.
    size: int
    disk_bytes: int
    created: datetime
    #: The process of the machine that has it; ``None`` when none has.
    holder: int | None


class Mounted(NamedTuple):
    """A volume, checked, and where it is in the guest."""

    target: str
    name: str
    #: Of one that is to be made, in bytes.
    size: int
    read_only: bool
    slot: int
    #: What a snapshot knows it by, in hexadecimal; empty for any contents.
    mark: str = ""

    @property
    def device(self) -> str:
        """The guest's name for it."""
        return f"/dev/vd{chr(_FIRST + self.slot)}"


class Opened(NamedTuple):
    """A volume that is open and locked, for as long as its descriptor is anywhere."""

    mounted: Mounted
    fd: int
    #: Of an empty file for what is written to one that is only read.
    changes: int | None
    size: int


def check_name(name: str) -> str:
    if not _NAME.match(name):
        raise ConfigurationError(
            f"{name!r} is no name of a volume: letters, digits, underscores, dots and hyphens, at most 200",
            hint=f"for a directory of the host write ./{name}" if "/" not in name else None,
        )
    return name


def place() -> Path:
    """The directory of this user's volumes."""
    return Path(directories.data_directory()) / "volumes"


def names() -> list[str]:
    try:
        return sorted(path.name for path in place().iterdir() if _NAME.match(path.name))
    except FileNotFoundError:
        return []


def make(name: str, size: int | str) -> None:
    """Makes a volume, whole or not at all."""
    from .._core import make_volume
    from .sizes import disk_bytes

    path = place() / check_name(name)
    length = disk_bytes(size)
    if not length:
        raise ConfigurationError("a volume of no bytes is none")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        raise VolumeExists(f"the volume {name} is there already")
    unfinished = path.with_name(f".{name}.{os.urandom(8).hex()}")
    fd = descriptors.open_file(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        make_volume(fd, length)
        os.link(unfinished, path)
    except FileExistsError:
        raise VolumeExists(f"the volume {name} is there already") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(f"there is no room for the volume {name}", cause=str(error)) from error
        raise
    finally:
        os.close(fd)
        unfinished.unlink()


@contextlib.contextmanager
def _open(name: str, how: int = os.O_RDWR) -> Iterator[int]:
    try:
        fd = descriptors.open_file(place() / check_name(name), how | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise VolumeNotFound(f"there is no volume {name}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _locked(name: str, fd: int, *, shared: bool) -> None:
    from .._core import lock_volume, look_at_volume

    # Who only looks has it for a moment, and the process of a machine that was killed takes one to end.
    deadline = time.monotonic() + _PATIENCE
    while not lock_volume(fd, shared):
        if time.monotonic() < deadline:
            time.sleep(0.01)
            continue
        _, holder, _ = look_at_volume(fd)
        raise VolumeInUse(f"the volume {name} is in use by the virtual machine of process {holder}", holder=holder)


def inspect(name: str) -> VolumeInfo:
    from .._core import lock_volume, look_at_volume

    with _open(name) as fd:
        size, holder, _ = look_at_volume(fd)
        # A lock that is had is given back at once.
        free = lock_volume(fd, False)
        found = os.fstat(fd)
        # The file system's own, at its place in the superblock.
        created = int.from_bytes(os.pread(fd, 4, 1024 + 264), "little")
    return VolumeInfo(
        name,
        place() / name,
        size,
        found.st_blocks * 512,
        datetime.fromtimestamp(created, timezone.utc),
        None if free else holder,
    )


def remove(name: str) -> int:
    """Removes it, unless a machine has it; gives the bytes freed."""
    with _open(name) as fd:
        _locked(name, fd, shared=False)
        (place() / name).unlink()
        return os.fstat(fd).st_blocks * 512


def prune() -> dict[str, int]:
    """Removes all that no machine has; the names, and the bytes freed."""
    freed = {}
    for name in names():
        with contextlib.suppress(VolumeInUse, VolumeNotFound):
            freed[name] = remove(name)
    return freed


def opened(mounted: Sequence[Mounted]) -> list[Opened]:
    """Opens and locks volumes, and makes those that are not there yet.

    Raises `VolumeInUse`, which names the holder, and `VolumeChanged` for one that a snapshot knows otherwise.
    """
    found: list[Opened] = []
    try:
        for volume in mounted:
            found.append(_opened(volume))
    except BaseException:
        close(found)
        raise
    return found


def _opened(volume: Mounted) -> Opened:
    from .._core import look_at_volume

    if not volume.mark and not (place() / volume.name).exists():
        with contextlib.suppress(VolumeExists):
            make(volume.name, volume.size)
    with _open(volume.name, os.O_RDONLY if volume.read_only else os.O_RDWR) as fd:
        _locked(volume.name, fd, shared=volume.read_only)
        size, _, mark = look_at_volume(fd)
        if volume.mark and bytes(mark).hex() != volume.mark:
            raise VolumeChanged(
                f"the volume {volume.name} has been written to since the snapshot was taken, whose guest would not "
                "know of it"
            )
        changes = directories.nameless_file() if volume.read_only else None
        return Opened(volume, descriptors.unshared(descriptors.raised(os.dup(fd))), changes, size)


def copies(mounted: Sequence[Mounted], mark: bytes, count: int) -> list[list[Opened]]:
    """Copies of volumes as they were when they got this mark, in files without names, for so many machines.

    Raises `VolumeChanged` when one has been written to before it was copied.
    """
    made: list[list[Opened]] = [[] for _ in range(count)]
    try:
        for volume in mounted if count else ():
            with _open(volume.name, os.O_RDONLY) as fd:
                first = _copy(fd)
                made[0].append(Opened(nameless(volume), first, None, _size(fd, mark, volume.name)))
            for others in made[1:]:
                others.append(made[0][-1]._replace(fd=_copy(first)))
    except BaseException:
        for some in made:
            close(some)
        raise
    return made


def nameless(volume: Mounted) -> Mounted:
    """A copy of it, which ends with its machine."""
    return volume._replace(name="", mark="")


def _size(fd: int, mark: bytes, name: str) -> int:
    from .._core import look_at_volume

    size, _, found = look_at_volume(fd)
    if bytes(found) != mark:
        raise VolumeChanged(f"the volume {name} was written to while it was copied", hint="try again")
    return size


def _copy(source: int) -> int:
    """A file without a name that has the contents of this one; the same blocks, where the file system can."""
    import fcntl

    target = directories.nameless_file()
    try:
        with contextlib.suppress(OSError):
            fcntl.ioctl(target, _FICLONE, source)
            return target
        size = os.fstat(source).st_size
        os.ftruncate(target, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            end = os.lseek(source, at, os.SEEK_HOLE)
            os.lseek(target, at, os.SEEK_SET)
            while at < end:
                at += os.sendfile(target, source, at, end - at)
    except BaseException:
        os.close(target)
        raise
    return target


def close(volumes: Sequence[Opened]) -> None:
    """Closes what this process has of them; machines that have been given them keep them."""
    for volume in volumes:
        descriptors.close(volume.fd)
        if volume.changes is not None:
            os.close(volume.changes)
