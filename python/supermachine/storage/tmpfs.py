"""Memory that a guest uses as a directory, written as docker writes it: ``/run:size=64m,mode=755``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ..errors import ConfigurationError
from .sizes import size_bytes

#: As docker-py has them, a mapping of the guest's paths to options; or texts as on docker's command line.
Tmpfs: TypeAlias = "Mapping[str, str] | Sequence[str]"

#: What docker mounts one with unless told otherwise, and what its options set and clear (mount(2)).
_USUAL = 0x2 | 0x4 | 0x8
_FLAGS = {
    "ro": (0x1, 0),
    "rw": (0, 0x1),
    "nosuid": (0x2, 0),
    "suid": (0, 0x2),
    "nodev": (0x4, 0),
    "dev": (0, 0x4),
    "noexec": (0x8, 0),
    "exec": (0, 0x8),
    "noatime": (0x400, 0),
    "atime": (0, 0x400),
    "nodiratime": (0x800, 0),
    "diratime": (0, 0x800),
    "relatime": (0x200000, 0),
    "norelatime": (0, 0x200000),
    "strictatime": (0x1000000, 0),
}
#: Options with a value (tmpfs(5)); a size may be a part of memory.
_VALUES = {
    "size": re.compile(r"\d+(\.\d+)?\s*[bkmgt]?(i?b)?|\d{1,3}%", re.IGNORECASE),
    "mode": re.compile(r"[0-7]{1,5}"),
    "uid": re.compile(r"\d{1,10}"),
    "gid": re.compile(r"\d{1,10}"),
    "nr_inodes": re.compile(r"\d{1,12}[kmg]?", re.IGNORECASE),
    "nr_blocks": re.compile(r"\d{1,12}[kmg]?", re.IGNORECASE),
}


class Mounted(NamedTuple):
    """A tmpfs, checked, and where it is in the guest."""

    target: str
    #: As mount(2) has them.
    flags: int
    #: As tmpfs(5) has them.
    options: str


def parse(said: Tmpfs) -> list[Mounted]:
    """Checks what a user wrote. Raises ConfigurationError."""
    if isinstance(said, str):
        raise ConfigurationError(f"tmpfs is the text {said!r}; a list of such texts is needed")
    if isinstance(said, Mapping):
        return [mounted(target, options or "") for target, options in said.items()]
    return [mounted(*text.partition(":")[::2]) for text in said]


def mounted(target: str, options: str) -> Mounted:
    """One of them. Raises ConfigurationError."""
    path = os.path.normpath(target)
    if not target.startswith("/") or "\0" in target or path in ("/", "//"):
        raise ConfigurationError(f"{target!r} is no place for a tmpfs; an absolute path below / is needed")
    flags, values = _USUAL, {}
    for option in filter(None, options.split(",")):
        name, equals, value = option.partition("=")
        if not equals and name in _FLAGS:
            on, off = _FLAGS[name]
            flags = flags & ~off | on
        elif equals and name in _VALUES and _VALUES[name].fullmatch(value):
            values[name] = value
        else:
            raise ConfigurationError(
                f"{option!r}, of the tmpfs at {target}, is not understood",
                hint=f"{', '.join(_VALUES)} have a value, as size=64m or mode=1777; others are {', '.join(_FLAGS)}",
            )
    if (size := values.get("size")) is not None and not size.endswith("%"):
        values["size"] = str(size_bytes(size, "the size of a tmpfs"))
    return Mounted(path, flags, ",".join(f"{name}={value}" for name, value in values.items()))


def shm_bytes(value: int | str | None) -> int:
    """Bytes of /dev/shm; 0 for what the kernel makes it."""
    size = 0 if value is None else size_bytes(value, "the size of /dev/shm")
    if size < 0 or (value is not None and size == 0):
        raise ConfigurationError(f"a /dev/shm of {value!r} is none", hint="write 64m or 1g")
    return size
