"""Locks between processes. The kernel gives them back when their owner dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import descriptors

#: Seconds between two attempts at a lock.
_POLL = 0.005


@contextlib.contextmanager
def locked(
    path: Path, *, shared: bool = False, block: bool = True, on_wait: Callable[[], None] | None = None
) -> Iterator[bool]:
    """Holds the lock file `path`; gives false, without the lock, when `block` is false and somebody else has it.

    `on_wait` is called once if there is waiting to do. Waiting ends with the owner, and a signal handler that raises
    (Ctrl-C) ends it too.
    """
    fd = acquire(path, shared=shared, block=block, on_wait=on_wait)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            release(fd)


def acquire(
    path: Path, *, shared: bool = False, block: bool = True, on_wait: Callable[[], None] | None = None
) -> int | None:
    """A descriptor that holds the lock, for `release`."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        fd = descriptors.open_unshared(path, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(fd, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                if not block:
                    descriptors.close(fd)
                    return None
                if on_wait is not None:
                    on_wait()
                fcntl.flock(fd, operation)
            # Who cleans up deletes lock files that it holds; then this one locks nothing any more.
            if _is_still(fd, path):
                return fd
        except BaseException:
            with contextlib.suppress(OSError):
                descriptors.close(fd)
            raise
        descriptors.close(fd)


def acquire_within(path: Path, seconds: float) -> int | None:
    """The same of a lock that nobody holds for long; ``None`` when somebody else has it for so many seconds."""
    deadline = time.monotonic() + seconds
    while (fd := acquire(path, block=False)) is None and time.monotonic() <= deadline:
        time.sleep(_POLL)
    return fd


def release(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)
    descriptors.close(fd)


def _is_still(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
