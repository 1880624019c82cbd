"""Boots of the host, and what is said once in each.

On the way of every `supermachine run`: nothing here loads what takes long.
"""

from __future__ import annotations

import os

from .. import descriptors, directories
from . import warnings

# ruff: noqa: PTH103, PTH105, PTH108, PTH118, PTH123

#: Bytes of a boot's name at most.
_MAX_BYTES = 64


def boot_id() -> str:
    """What is another after each start of the host; empty where it does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(_MAX_BYTES).strip()
    except (OSError, ValueError):
        return _boot_time()


def _boot_time() -> str:
    """The minute in which a host without such names was started."""
    import time

    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_UPTIME_RAW", None))
    return "" if clock is None else f"minute-{int((time.time() - time.clock_gettime(clock)) // 60)}"


_silent = False


def silence() -> None:
    """From now on this process says nothing of the kind (`--quiet`)."""
    global _silent
    _silent = True


def say_once(name: str, text: str) -> None:
    """A line on stderr, unless some process of this user has said that of this `name` since the host was started.

    What has been said is noted in the cache. Where it cannot be, each process says it. Fails no work.
    """
    if _silent:
        return
    try:
        cache = directories.cache_directory()
        path, boot = os.path.join(cache, f"said-{name}"), boot_id()
        if boot and _is_noted(path, boot):
            return
        warnings.say(text)
        if boot and directories.distrust(cache) is None:
            _note(cache, path, boot)
    except (OSError, ValueError):
        return


def _is_noted(path: str, boot: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(_MAX_BYTES) == boot
    except (OSError, ValueError):
        return False


def _note(cache: str, path: str, boot: str) -> None:
    os.makedirs(cache, 0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    fd = descriptors.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(fd, boot.encode("ascii"))
    finally:
        os.close(fd)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
