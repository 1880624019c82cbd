"""Volumes that are directories of the host, which guests have as shares, several at once.

``NAME/share`` is what a machine is given; what its guest sees is the directory ``volume`` in that, which the first one
fills. ``NAME/lock`` is locked by each process that has machines with it, and by who removes it; ``NAME/filling`` by
the one that fills it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from .. import descriptors
from ..errors import NotSupported, VolumeExists, VolumeInUse, VolumeNotFound

#: What guests see (`rust/agent/src/fill.rs`).
_VISIBLE = "volume"
#: Seconds that another machine may take to fill one: as long as it waits for its guest (`rust/python/src/shares.rs`).
_FILLED = 120.0
#: Where owners are kept (`rust/fs/src/owners.rs`).
_ATTRIBUTE = "user.supermachine.stat"


class Held:
    """The locks of a machine on the directories that it has, until it has ended."""

    def __init__(self) -> None:
        self._locks: list[int] = []
        self._filling: list[int] = []

    def take(self, volume: Path) -> None:
        """Locks a volume; one that is not filled yet for this machine alone, until `filled`.

        Raises VolumeNotFound, and VolumeInUse for one that is being removed, or takes too long to be filled.
        """
        self._locks.append(_in_use(volume))
        if not _is_filled(volume):
            turn = descriptors.open_unshared(volume / "filling", os.O_RDWR | os.O_CREAT)
            self._filling.append(turn)
            if not _locked(turn, fcntl.LOCK_EX, _FILLED):
                raise VolumeInUse(f"the volume {volume.name} is being filled by another virtual machine")

    def filled(self) -> None:
        """The guest has what it is given."""
        while self._filling:
            descriptors.close(self._filling.pop())

    def close(self) -> None:
        self.filled()
        while self._locks:
            descriptors.close(self._locks.pop())

    def __del__(self) -> None:
        self.close()


def share_of(volume: Path) -> Path:
    """What a machine is given of a volume."""
    return volume / "share"


def is_one(volume: Path) -> bool:
    return share_of(volume).is_dir()


def make(volume: Path) -> None:
    """Makes a volume, whole or not at all. Raises VolumeExists, and NotSupported where owners cannot be kept."""
    unfinished = volume.with_name(f".{volume.name}.{os.urandom(8).hex()}")
    share = share_of(unfinished)
    share.mkdir(parents=True)
    try:
        (unfinished / "lock").touch(mode=0o600)
        _check_attributes(share)
        # Never over another: one is not empty.
        unfinished.rename(volume)
    except OSError as error:
        shutil.rmtree(unfinished)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise VolumeExists(f"the volume {volume.name} is there already") from None
        raise


def _check_attributes(place: Path) -> None:
    try:
        os.setxattr(place, _ATTRIBUTE, b"0:0:40755:0:0")
        os.removexattr(place, _ATTRIBUTE)
    except (AttributeError, OSError) as error:
        raise NotSupported(
            f"a volume in {place.parent.parent} cannot be a directory: its files keep no owners of the guest's there",
            cause=str(error),
            hint="that needs a Linux host and a file system with attributes of users (user.*); or make a disk",
        ) from None


def holder(volume: Path) -> int | None:
    """A process that has machines with it, where that can be told; 0 for one that cannot be named."""
    with _lock_file(volume) as fd:
        if _locked(fd, fcntl.LOCK_EX, 0):
            return None
        inode = os.fstat(fd).st_ino
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            # "1: FLOCK  ADVISORY  READ 4711 08:01:131 0 EOF", proc_locks(5).
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode and int(fields[4]) > 0:
                return int(fields[4])
    return 0


def created(volume: Path) -> float:
    """Seconds since 1970."""
    return (volume / "lock").stat().st_mtime


def disk_bytes(volume: Path) -> int:
    """What all that is in it takes of the host's disk."""
    return sum(os.lstat(os.path.join(top, name)).st_blocks * 512 for top, _, names in os.walk(volume) for name in names)  # noqa: PTH118


def remove(volume: Path) -> int:
    """Removes it with all that is in it, unless a machine has it; gives the bytes freed."""
    with _lock_file(volume) as fd:
        if not _locked(fd, fcntl.LOCK_EX, 0.5):
            raise in_use(volume)
        _check_there(volume, fd)
        freed = disk_bytes(volume)
        # Whoever comes by now finds nothing, and the rest may take its time.
        gone = volume.with_name(f".{volume.name}.{os.urandom(8).hex()}")
        volume.rename(gone)
        shutil.rmtree(gone)
    return freed


def in_use(volume: Path) -> VolumeInUse:
    found = holder(volume)
    who = f"virtual machines of process {found}" if found else "a virtual machine"
    return VolumeInUse(f"the volume {volume.name} is in use by {who}", holder=found or None, hint="end them first")


def _is_filled(volume: Path) -> bool:
    return (share_of(volume) / _VISIBLE).is_dir()


def _in_use(volume: Path) -> int:
    with _lock_file(volume) as fd:
        if not _locked(fd, fcntl.LOCK_SH, 0.5):
            raise VolumeInUse(f"the volume {volume.name} is being removed")
        _check_there(volume, fd)
        return descriptors.unshared(descriptors.raised(os.dup(fd)))


@contextlib.contextmanager
def _lock_file(volume: Path) -> Iterator[int]:
    try:
        fd = descriptors.open_file(volume / "lock", os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        raise VolumeNotFound(f"there is no volume {volume.name}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _check_there(volume: Path, fd: int) -> None:
    """Whether what is locked is still the volume's."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(fd), os.stat(volume / "lock")):  # noqa: PTH116
            return
    raise VolumeNotFound(f"there is no volume {volume.name}")


def _locked(fd: int, how: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True
