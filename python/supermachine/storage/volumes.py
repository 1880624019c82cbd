"""Volumes: disks and directories with names, which outlive the machines that have them mounted."""

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
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from .. import descriptors, directories
from ..errors import (
    ConfigurationError,
    DiskFull,
    NotSupported,
    VMTimeout,
    VolumeChanged,
    VolumeExists,
    VolumeInUse,
    VolumeNotFound,
)
from . import volume_directories
from .sizes import disk_bytes

if TYPE_CHECKING:
    from .._core import Worker

Kind: TypeAlias = Literal["disk", "directory"]

#: Size of a volume that is made on first use; it takes no room before it is written to.
DEFAULT_SIZE = "64g"
#: Slots of a machine that volumes are put into; the one before is the root's disk's (`rust/proto/src/worker.rs`).
SLOTS = (1, 2, 3)
#: Has a file share another's blocks (include/uapi/linux/fs.h).
_FICLONE = 0x40049409
#: Seconds that a lock is waited for.
_PATIENCE = 0.5
#: Seconds that a worker may take to make the disk larger, beside a capture that is under way.
_GROWN = 120.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Seconds in which the worker of another process looks at what is wished of its volume, and the guest's kernel does it.
_GRANTED = 120.0
_GROW = "use it, make it larger with `supermachine volume grow`, or remove it with `supermachine volume rm`"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\Z")
#: The guest's name for its second disk, which is that of slot 0.
_FIRST = ord("b")


@dataclass(frozen=True)
class Volume:
    """What a machine is given by name, and what outlives it. One that is not there yet is made, of this `size`.

    What the image has in the directory that a new volume is mounted at is copied into it, as docker does. One machine
    has a disk at a time, or several that have it `read_only`: what those write to it is gone with them. A `kind` of
    ``"directory"`` is a directory of the host, which several have at once, with owners as guests set them.
    """

    name: str
    #: Bytes, or "20g"; `DEFAULT_SIZE` for one that is made. One that is there already is made as large when a machine
    #: is given it to write to, and never smaller.
    size: int | str | None = None
    read_only: bool = False
    #: ``None`` for what it is, and a disk where one is made.
    kind: Kind | None = None

    @classmethod
    def create(cls, name: str, size: int | str | None = None, *, kind: Kind = "disk") -> Volume:
        """Makes a volume; a disk is of `DEFAULT_SIZE` unless `size` says otherwise, and a directory has none.

        Raises `VolumeExists`, `DiskFull`, and `NotSupported` where files of a directory cannot keep owners.
        """
        make(name, size, kind)
        return cls.get(name)

    @classmethod
    def get(cls, name: str) -> Volume:
        """Raises `VolumeNotFound`."""
        found = inspect(name)
        return cls(name, found.size or None, kind=found.kind)

    @classmethod
    def list(cls) -> list[Volume]:
        """All of this user's, by name."""
        return [cls.get(name) for name in names()]

    def grow(self, size: int | str) -> Volume:
        """Makes it larger, with what is in it, whether a machine has it or not.

        Its file system follows when a machine next mounts the volume, or, in a machine of whatever process that
        has it to write to, before this returns.

        Raises `VolumeNotFound`, `VolumeInUse` where machines only read it, `ConfigurationError` for a size that is
        smaller than it is and for a directory, `NotSupported` for one that an earlier version made, `AgentError` when
        the guest that has it cannot, `VMTimeout` when its machine does not answer, and `DiskFull`.
        """
        grow(self.name, size)
        return type(self)(self.name, size, self.read_only)

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
    #: On the host; of a directory what its files are in.
    path: Path
    #: Of the disk, in bytes, which is 0 for a directory; and what it takes of the host's.
    size: int
    disk_bytes: int
    created: datetime
    #: The process of a machine that has it, 0 where it cannot be told; ``None`` when none has.
    holder: int | None
    kind: Kind = "disk"


class Mounted(NamedTuple):
    """A volume, checked, and where it is in the guest."""

    target: str
    name: str
    #: Bytes that it has at least; 0 for any, and the usual for one that is made.
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


def kind_of(volume: Volume) -> Kind:
    """What a volume is, or will be when it is made. Raises ConfigurationError for one that is not what is asked for."""
    path = place() / check_name(volume.name)
    check_kind(volume.kind or "disk", volume.size)
    there = inspect_kind(volume.name) if path.exists() else None
    if there and volume.kind and there != volume.kind:
        raise ConfigurationError(f"the volume {volume.name} is a {there}, and a {volume.kind} is asked for")
    if there == "directory":
        check_kind(there, volume.size)
    return there or volume.kind or "disk"


def inspect_kind(name: str) -> Kind:
    """What a volume is. Raises VolumeNotFound."""
    if not (path := place() / check_name(name)).exists():
        raise VolumeNotFound(f"there is no volume {name}")
    return "directory" if volume_directories.is_one(path) else "disk"


def check_kind(kind: str, size: int | str | None) -> None:
    if kind not in get_args(Kind):
        raise ConfigurationError(f"the kind of a volume is {kind!r}; disk or directory is needed")
    if kind == "directory" and size is not None:
        raise ConfigurationError("a volume that is a directory has no size of its own", hint="leave the size out")


def make(name: str, size: int | str | None = None, kind: Kind = "disk") -> None:
    """Makes a volume, whole or not at all."""
    from .._core import make_volume

    path = place() / check_name(name)
    check_kind(kind, size)
    length = disk_bytes(DEFAULT_SIZE if size is None else size)
    if not length:
        raise ConfigurationError("a volume of no bytes is none")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        raise VolumeExists(f"the volume {name} is there already", hint=_GROW)
    if kind == "directory":
        volume_directories.make(path)
        return
    unfinished = path.with_name(f".{name}.{os.urandom(8).hex()}")
    fd = descriptors.open_file(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        make_volume(fd, length)
        os.link(unfinished, path)
    except FileExistsError:
        raise VolumeExists(f"the volume {name} is there already", hint=_GROW) from None
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(f"there is no room for the volume {name}", cause=str(error)) from error
        raise
    finally:
        os.close(fd)
        unfinished.unlink()


def grow(name: str, size: int | str) -> None:
    """Makes a volume larger; raises as `Volume.grow` does."""
    length = disk_bytes(size)
    with _open(name) as fd:
        try:
            _locked(name, fd, shared=False)
        except VolumeInUse as error:
            _wish(name, fd, length, error)
        else:
            _grow(name, fd, length)


def _wish(name: str, fd: int, length: int, in_use: VolumeInUse) -> None:
    """Has the machine that has a volume make it larger, or does so itself when that machine has ended."""
    from .._core import answer_of_volume, lock_volume, look_at_volume, wish_of_volume
    from ..errors import AgentError

    if lock_volume(fd, True):
        # Nobody writes to it, so nobody can grow its file system. The lock is given back when the file is closed.
        raise in_use
    _grow(name, fd, length, only_check=True)
    wish_of_volume(fd, length)
    end, refused = time.monotonic() + _GRANTED, False
    while not (granted := answer_of_volume(fd)) or look_at_volume(fd)[0] < length:
        if granted is False and refused:
            wish_of_volume(fd, None)
            raise AgentError(f"the virtual machine of process {in_use.holder} cannot make the volume {name} larger")
        if granted is not None:
            # That may have been the answer to another's wish, which came after this one.
            refused = refused or not granted
            wish_of_volume(fd, length)
        if lock_volume(fd, False):
            wish_of_volume(fd, None)
            _grow(name, fd, length)
            return
        if time.monotonic() >= end:
            wish_of_volume(fd, None)
            raise VMTimeout(
                f"the virtual machine of process {in_use.holder} did not make the volume {name} larger "
                f"within {_GRANTED:.0f} seconds",
                hint="end it first",
            )
        time.sleep(0.02)


def grow_attached(worker: Worker, mounted: Sequence[Mounted], name: str, size: int | str) -> None:
    """Makes a volume larger that the guest of this worker has mounted."""
    from .._core import grow_file_system

    volume = next((disk for disk in mounted if disk.name == name and not disk.read_only), None)
    if volume is None:
        raise ConfigurationError(f"the virtual machine has no volume {name} to write to")
    length = disk_bytes(size)
    # What is wrong with the size, or with the volume, is said as for one that no machine has.
    with _open(name, os.O_RDONLY) as fd:
        _grow(name, fd, length, only_check=True)
    try:
        grown = worker.grow_volume(volume.slot, length, _GROWN)
    except OSError as error:
        raise DiskFull(f"there is no room for a larger volume {name}", cause=str(error)) from error
    if not grown:
        raise VMTimeout(f"the volume {name} did not become larger within {_GROWN:.0f} seconds")
    grow_file_system(worker, volume.device, length)


def _grow(name: str, fd: int, length: int, *, only_check: bool = False) -> None:
    from .._core import grow_volume

    try:
        grow_volume(fd, length, only_check=only_check)
    except ValueError as error:
        raise ConfigurationError(f"the volume {name} cannot be made larger: {error}") from None
    except NotImplementedError as error:
        raise NotSupported(f"the volume {name} cannot be made larger: {error}") from None
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(f"there is no room for a larger volume {name}", cause=str(error)) from error
        raise


@contextlib.contextmanager
def _open(name: str, how: int = os.O_RDWR) -> Iterator[int]:
    path = place() / check_name(name)
    if volume_directories.is_one(path):
        raise ConfigurationError(f"the volume {name} is a directory, and has no size", hint="use it as it is")
    try:
        fd = descriptors.open_file(path, how | os.O_NOFOLLOW)
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
    if os.fstat(fd).st_nlink == 0:
        raise VolumeNotFound(f"the volume {name} has just been removed")


def inspect(name: str) -> VolumeInfo:
    from .._core import lock_volume, look_at_volume

    path = place() / check_name(name)
    if volume_directories.is_one(path):
        since = datetime.fromtimestamp(volume_directories.created(path), timezone.utc)
        taken, users = volume_directories.disk_bytes(path), volume_directories.holder(path)
        return VolumeInfo(name, volume_directories.share_of(path), 0, taken, since, users, "directory")
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
    if volume_directories.is_one(place() / check_name(name)):
        return volume_directories.remove(place() / name)
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


def directory(name: str) -> Path:
    """Where a volume is that is a directory, which is made where there is none."""
    path = place() / check_name(name)
    if not path.exists():
        with contextlib.suppress(VolumeExists):
            make(name, kind="directory")
    return path


def _opened(volume: Mounted) -> Opened:
    from .._core import look_at_volume

    if not volume.mark and not (place() / volume.name).exists():
        with contextlib.suppress(VolumeExists):
            make(volume.name, volume.size or DEFAULT_SIZE)
    with _open(volume.name, os.O_RDONLY if volume.read_only else os.O_RDWR) as fd:
        _locked(volume.name, fd, shared=volume.read_only)
        size, _, mark = look_at_volume(fd)
        if volume.mark and bytes(mark).hex() != volume.mark:
            raise VolumeChanged(
                f"the volume {volume.name} has been written to since the snapshot was taken, whose guest would not "
                "know of it"
            )
        if volume.size > size and not volume.read_only:
            _grow(volume.name, fd, volume.size)
            size = volume.size
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
